"""The page of `generation.serve` in a real browser, whose microphone is a file."""

import io as bytes_io

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
from common.audio import io
from common.serve import settings as serve_settings
from generation import api, images, listening
from tests import browsing, serving
from tests.generation import makers
from tests.generation import people as toy

pytestmark = browsing.NEEDED
wait_for = browsing.wait_for
RATE_HZ = toy.RATE_HZ


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return makers.make(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def url(network):
    settings = serve_settings.Settings("sesame", serve_settings.Limits(streams=1))
    with serving.served(api.service(network, settings).application(), settings) as found:
        yield found


def shown(page) -> np.ndarray:
    """The picture, as the link saves it."""
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "faces.png"
    return np.asarray(PIL.Image.open(bytes_io.BytesIO(download.value.path().read_bytes())))


def draws(page, act) -> None:
    """Does something upon which other faces are drawn, and waits for them."""
    before = page.get_attribute("#picture", "src")
    act()
    page.locator(f"#picture:not([src='{before}'])").wait_for()


def sheet(network, audio: np.ndarray, count: int, seed: int, columns: int) -> np.ndarray:
    heard = listening.heard(network, audio, "a.wav")
    faces = network.drawn(np.tile(heard, (count, 1)), network.noise(seed, count))
    return images.sheet([list(faces[i : i + columns]) for i in range(0, count, columns)])


def test_upload_record_and_live(network, url, tmp_path):
    voice = toy.voice(1, 1.5, 0)
    io.write_wav(tmp_path / "microphone.wav", toy.voice(3, 9.0, 0), RATE_HZ)
    kept = io.load_audio(io.wav_bytes(voice, RATE_HZ), sample_rate_hz=RATE_HZ)  # of 16 bits
    ann = browsing.wav("ann.wav", voice, RATE_HZ)
    with browsing.browser(microphone=tmp_path / "microphone.wav") as (page, wrong):
        page.goto(url)
        page.locator("[data-takes=voice]").wait_for()
        assert page.locator("#result").is_hidden()
        assert page.locator("#others").is_disabled()
        page.set_input_files("#file", ann)
        wait_for(page, "#status.bad", "a token is needed")
        assert [text for text in wrong if "401" not in text] == []
        wrong.clear()
        page.fill("#token input", "sesame")

        silent = browsing.wav("hush.wav", np.zeros(9000, np.float32), RATE_HZ)
        page.set_input_files("#file", silent)
        wait_for(page, "#status.bad", "hush.wav: is silent: there is no voice to make a face of")
        assert [text for text in wrong if "422" not in text] == []
        wrong.clear()

        page.set_input_files("#file", ann)
        page.locator("#result").wait_for()
        np.testing.assert_array_equal(shown(page), sheet(network, kept, 4, 0, 2))
        draws(page, lambda: page.select_option("#count", "1"))
        page.fill("#seed", "5")
        draws(page, lambda: page.locator("#seed").blur())
        np.testing.assert_array_equal(shown(page), sheet(network, kept, 1, 5, 1))
        draws(page, lambda: page.click("#others"))
        seed = int(page.input_value("#seed"))
        assert seed != 5
        np.testing.assert_array_equal(shown(page), sheet(network, kept, 1, seed, 1))

        page.click("#record")
        wait_for(page, "#status", "Speak now.")
        assert page.locator("#file").is_disabled()
        page.wait_for_timeout(700)
        with page.expect_response("**/faces") as answer:
            page.click("#record")
        assert answer.value.status == 200

        page.fill("#seed", "9")
        page.click("#live")
        wait_for(page, "#status", "1 s of the voice so far.")
        assert page.evaluate("document.querySelector('#level').value") > 0.02
        assert page.locator("#seed").is_disabled()
        page.click("#live")
        page.locator("#seed:enabled").wait_for()
        live = shown(page)
        assert live.shape == (128, 128, 3)
        # The same voice and chance, as a recording: but for the rounding to 16 bits the same face.
        draws(page, lambda: page.select_option("#count", "4"))
        again = shown(page)[:128, :128]
        assert np.abs(again.astype(int) - live).max() <= 2

        page.goto(url + "docs")
        wait_for(page, "td", "/faces")
        assert wrong == []


def test_a_microphone_that_hears_nothing_brings_no_face(url, tmp_path):
    io.write_wav(tmp_path / "microphone.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    with browsing.browser(microphone=tmp_path / "microphone.wav") as (page, wrong):
        page.goto(url)
        page.click("#live")
        wait_for(page, "#status.bad", "a token is needed")
        page.fill("#token input", "sesame")
        page.click("#live")
        wait_for(page, "#status", "0 s of the voice so far.")
        page.click("#live")
        wait_for(page, "#status", "No voice was heard.")
        assert page.locator("#result").is_hidden()
        assert page.locator("#others").is_disabled()
        assert wrong == []


def test_without_a_microphone_the_page_says_so(url):
    with browsing.browser() as (page, wrong):
        page.goto(url)
        page.click("#live")
        page.locator("#status.bad").wait_for()
        assert "microphone" in page.locator("#status").text_content()
        assert page.locator("#live").text_content() == "Live"
        assert page.locator("#record").is_enabled()
        assert wrong == []
