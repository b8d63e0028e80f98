"""`generation.serve` of a network that makes voices of faces: uploads, bad ones, the page."""

import io as bytes_io

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
import httpx2

from common.audio import io
from common.serve import settings as serve_settings
from generation import api
from tests import serving
from tests.generation import makers
from tests.generation import people as toy

SETTINGS = serve_settings.Settings(limits=serve_settings.Limits(upload_bytes=1 << 19))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return makers.make_voices(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def url(network):
    with serving.served(api.service(network, SETTINGS).application(), SETTINGS) as found:
        yield found


def picture(size: int = 40) -> bytes:
    file = bytes_io.BytesIO()
    flat = np.broadcast_to(toy.colour(1), (size, size + 8, 3)).astype(np.uint8)
    PIL.Image.fromarray(flat).save(file, format="png")
    return file.getvalue()


def said(network, count: int, seed: int) -> np.ndarray:
    """Stretches of a voice, one after another, in 16 bits."""
    gap = np.zeros(round(0.3 * network.sample_rate_hz), np.float32)
    sounds = network.voice(picture(), count, seed)
    parts = [sounds[0], *(part for sound in sounds[1:] for part in (gap, sound))]
    wav = io.wav_bytes(np.concatenate(parts), network.sample_rate_hz)
    return io.load_audio(wav, sample_rate_hz=network.sample_rate_hz)


def test_a_picture_becomes_voices(url, network):
    assert httpx2.get(url + "health").json()["takes"] == "face"
    for count, seed in ((1, 0), (3, 7)):
        data = {"count": count, "seed": seed}
        answer = httpx2.post(url + "voices", files={"file": picture()}, data=data, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "audio/wav"
        found = io.load_audio(answer.content, sample_rate_hz=network.sample_rate_hz)
        np.testing.assert_array_equal(found, said(network, count, seed))
    assert "generation_voices_total 4.0" in httpx2.get(url + "metrics").text


def test_bad_pictures_are_one_message_each(url):
    good, rng = picture(), np.random.default_rng(0)
    for data, status, message in (
        (b"", 422, "a.png: this is no picture that can be read"),
        (b"text", 422, "a.png: this is no picture that can be read"),
        (good[:60], 422, "a.png: this is no picture that can be read"),
        (picture(9), 422, "a.png: 17 x 9 pixels are too few, it takes 16 x 16"),
        (bytes(1 << 20), 413, "more than 524288 bytes, the limit of an upload"),
    ):
        answer = httpx2.post(url + "voices", files={"file": ("a.png", data)}, timeout=60)
        assert (answer.status_code, message in answer.json()["detail"]) == (status, True), (
            answer.text
        )
    for _ in range(20):
        data = good[:40] + rng.bytes(rng.integers(1, 500))
        answer = httpx2.post(url + "voices", files={"file": data}, timeout=60)
        assert answer.status_code in (200, 422), answer.text
    answer = httpx2.post(url + "voices", files={"file": good}, data={"count": 17})
    assert (answer.status_code, answer.json()["detail"][:5]) == (422, "count")
    assert httpx2.post(url + "faces", files={"file": good}).status_code == 404


def test_the_page_offers_voices_of_a_picture(url, network):
    browsing = pytest.importorskip("tests.browsing")
    if browsing.CHROMIUM is None:
        pytest.skip(browsing.NEEDED.kwargs["reason"])
    face = {"name": "ann.png", "mimeType": "image/png", "buffer": picture()}
    text = {**face, "buffer": b"text"}

    def heard(page) -> np.ndarray:
        with page.expect_download() as download:
            page.click("#face-save")
        return io.load_audio(download.value.path(), sample_rate_hz=network.sample_rate_hz)

    with browsing.browser() as (page, wrong):
        page.goto(url)
        page.locator("[data-takes=face]").wait_for()
        assert page.locator("[data-takes=voice]").is_hidden()
        page.set_input_files("#face-file", text)
        browsing.wait_for(page, "#face-status.bad", "ann.png: this is no picture that can be read")
        assert [line for line in wrong if "422" not in line] == []
        wrong.clear()
        page.set_input_files("#face-file", face)
        page.locator("#face-result").wait_for()
        np.testing.assert_array_equal(heard(page), said(network, 3, 0))
        before = page.get_attribute("#face-voices", "src")
        page.click("#face-others")
        page.locator(f"#face-voices:not([src='{before}'])").wait_for()
        seed = int(page.input_value("#face-seed"))
        np.testing.assert_array_equal(heard(page), said(network, 3, seed))
        assert wrong == []
