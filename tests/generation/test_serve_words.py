"""`generation.serve` of a network that says recordings in other voices: uploads, the page."""

import io as bytes_io
import re

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
import httpx2
import soundfile

from common import compiles
from common.audio import io
from common.serve import settings as serve_settings
from generation import api, voice_changer
from tests import serving
from tests.generation import makers
from tests.generation import people as toy

RATE_HZ = toy.RATE_HZ
SETTINGS = serve_settings.Settings(
    limits=serve_settings.Limits(upload_bytes=1 << 20, upload_seconds=5.0)
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """In pieces of 1.5 s, for which less has to be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice_changer, "_PIECE_SECONDS", 1.5)
        yield makers.make_changer(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def url(network):
    with serving.served(api.service(network, SETTINGS).application(), SETTINGS) as found:
        yield found


def encoded(samples: np.ndarray, rate: int = RATE_HZ, form: str = "WAV") -> bytes:
    file = bytes_io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype="FLOAT" if form == "WAV" else None)
    return file.getvalue()


def picture(person: int = 1, size: int = 40) -> bytes:
    file = bytes_io.BytesIO()
    flat = np.broadcast_to(toy.colour(person), (size, size + 8, 3)).astype(np.uint8)
    PIL.Image.fromarray(flat).save(file, format="png")
    return file.getvalue()


def in_16_bits(samples: np.ndarray) -> np.ndarray:
    return io.load_audio(io.wav_bytes(samples, RATE_HZ), sample_rate_hz=RATE_HZ)


WORDS = 0.2 * toy.voice(0, 0.77, 0)  # no peak is cut
VOICE = toy.voice(3, 0.6, 1)
WAYS = {"face": ("ann.png", picture()), "voice": ("cid.wav", encoded(VOICE))}


def test_words_are_said_in_the_voice_of_a_face_or_of_a_recording(url, network):
    health = httpx2.get(url + "health").json()
    assert (health["status"], health["takes"]) == ("ok", "words")
    expected = {"face": {"face": picture()}, "voice": {"voice": VOICE}}
    found = {}
    for way, seed in (("face", 0), ("voice", 0), ("voice", 7)):
        files = {"file": ("words.wav", encoded(WORDS)), way: WAYS[way]}
        answer = httpx2.post(url + "said", files=files, data={"seed": seed}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "audio/wav"
        info = io.probe(answer.content)
        assert (info.sample_rate_hz, info.channels, info.num_samples) == (RATE_HZ, 1, len(WORDS))
        said = io.load_audio(answer.content, sample_rate_hz=RATE_HZ)
        direct = network(WORDS, **expected[way], seed=seed)
        np.testing.assert_array_equal(said, in_16_bits(direct))
        loud = np.sqrt(np.mean(WORDS**2))
        assert np.sqrt(np.mean(said**2)) == pytest.approx(loud, rel=0.02)
        found[way, seed] = said
    for other in (("face", 0), ("voice", 7)):
        assert np.abs(found["voice", 0] - found[other]).max() > 1e-3
    default = httpx2.post(url + "said", files=files, timeout=60).content
    np.testing.assert_array_equal(io.load_audio(default, sample_rate_hz=RATE_HZ), found["voice", 0])
    text = httpx2.get(url + "metrics").text
    heard = dict(re.findall(r'generation_audio_seconds_total\{way="(.*)"\} (.*)', text))
    assert {way: float(seconds) for way, seconds in heard.items()} == pytest.approx(
        {"words": 4 * 0.77, "voice": 3 * 0.6}
    )


@pytest.mark.parametrize(("rate", "form", "seconds"), [(8000, "FLAC", 3.5), (44100, "OGG", 1.1)])
def test_words_of_any_format_rate_and_length(url, rate, form, seconds):
    mono = np.interp(
        np.arange(0, seconds, 1 / rate), np.arange(80000) / RATE_HZ, toy.voice(2, 5, 0)
    )
    words = encoded(np.stack([mono, mono / 2], axis=1), rate, form)
    files = {"file": words, "face": picture()}
    answer = httpx2.post(url + "said", files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    assert io.probe(answer.content).num_samples == pytest.approx(seconds * RATE_HZ, abs=2)


def test_no_upload_waits_for_a_program(url):
    with compiles.CompileCounter() as counted:
        for seconds in (0.5, 1.0, 1.3, 1.6, 2.9, 4.9):
            words = encoded(toy.voice(1, seconds, 0))
            for way in WAYS:
                files = {"file": words, way: words if way == "voice" else picture()}
                answer = httpx2.post(url + "said", files=files, timeout=60)
                assert answer.status_code == 200, answer.text
    assert counted.count == 0


def test_bad_uploads_are_one_message_each(url):
    good, rng = encoded(WORDS), np.random.default_rng(0)
    hush, short = encoded(np.zeros(20000, np.float32)), encoded(WORDS[:3000])
    too_short, once = "0.19 s are too short; it takes 0.4 s", "face or voice: give one of both"
    silent, no_picture = "is silent: nobody speaks in it", "this is no picture that can be read"
    long = "longer than the limit of 5 s"
    for files, status, message in (
        ({"file": good}, 422, once),
        ({"file": good, "face": picture(), "voice": good}, 422, once),
        ({"face": picture()}, 422, "file: Field required"),
        ({"file": hush, "face": picture()}, 422, "file.x: " + silent),
        ({"file": good, "voice": hush}, 422, "voice.x: " + silent),
        ({"file": short, "face": picture()}, 422, "file.x: " + too_short),
        ({"file": good, "voice": short}, 422, "voice.x: " + too_short),
        ({"file": encoded(toy.voice(0, 5.1, 0)), "face": picture()}, 422, "file.x: " + long),
        ({"file": good, "voice": encoded(toy.voice(0, 5.1, 0))}, 422, "voice.x: " + long),
        ({"file": b"", "face": picture()}, 422, "file.x: the file has 0 bytes"),
        ({"file": good, "voice": b"text"}, 422, "voice.x: cannot be decoded as audio"),
        ({"file": good, "face": good}, 422, "face.x: " + no_picture),
        ({"file": good, "face": b""}, 422, "face.x: " + no_picture),
        ({"file": good, "face": picture()[:60]}, 422, "face.x: " + no_picture),
        ({"file": good, "face": picture(size=9)}, 422, "face.x: 17 x 9 pixels are too few"),
        ({"file": good, "face": bytes(1 << 21)}, 413, "more than 1048576 bytes, the limit of"),
    ):
        named = {name: (f"{name}.x", data) for name, data in files.items()}
        answer = httpx2.post(url + "said", files=named, timeout=60)
        found = answer.json()["detail"]
        assert (answer.status_code, found[: len(message)]) == (status, message)
    files = {"file": good, "face": picture()}
    for data, name in (
        ({"seed": "x"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"voice": "bob"}, "voice"),
    ):
        some = {"file": good} if name == "voice" else files
        answer = httpx2.post(url + "said", files=some, data=data)
        assert (answer.status_code, answer.json()["detail"][: len(name)]) == (422, name)
    for _ in range(20):
        noise = rng.bytes(rng.integers(1, 5000))
        answer = httpx2.post(url + "said", files={"file": good, "voice": noise}, timeout=60)
        assert answer.status_code == 422, answer.text
    assert httpx2.post(url + "faces", files=files).status_code == 404
    assert httpx2.post(url + "said", files=files, timeout=60).status_code == 200


def test_the_page_says_words_in_another_voice(url, network, tmp_path):
    browsing = pytest.importorskip("tests.browsing")
    if browsing.CHROMIUM is None:
        pytest.skip(browsing.NEEDED.kwargs["reason"])
    io.write_wav(tmp_path / "microphone.wav", toy.voice(3, 9.0, 0), RATE_HZ)
    words, voice = (browsing.wav(n, x, RATE_HZ) for n, x in (("a.wav", WORDS), ("b.wav", VOICE)))
    hush = browsing.wav("hush.wav", np.zeros(9000, np.float32), RATE_HZ)
    face = {"name": "ann.png", "mimeType": "image/png", "buffer": picture()}

    def chosen(place: str, file: dict) -> None:
        """Chooses a file, upon which words are said, and waits for them."""
        before = page.get_attribute("#words-said", "src") or ""
        page.set_input_files(place, file)
        page.locator(f"#words-said:not([src='{before}'])").wait_for()

    def heard() -> np.ndarray:
        with page.expect_download() as download:
            page.click("#words-save")
        assert download.value.suggested_filename == "said.wav"
        return io.load_audio(download.value.path(), sample_rate_hz=RATE_HZ)

    def plays(place: str) -> float:
        page.wait_for_function(f"document.querySelector('{place}').readyState > 0")
        return page.evaluate(f"document.querySelector('{place}').duration")

    with browsing.browser(microphone=tmp_path / "microphone.wav") as (page, wrong):
        page.goto(url)
        page.locator("[data-takes=words]").wait_for()
        for other in ("voice", "face"):
            assert page.locator(f"[data-takes={other}]").is_hidden()
        page.set_input_files("#words-face", face)
        browsing.wait_for(page, "#words-status", "Now the words.")
        assert page.locator("#words-picture").is_visible()
        assert page.locator("#words-sample").is_hidden()
        page.set_input_files("#words-file", hush)
        browsing.wait_for(page, "#words-status.bad", "hush.wav: is silent")
        assert page.locator("#words-result").is_hidden()
        assert [line for line in wrong if "422" not in line] == []
        wrong.clear()

        chosen("#words-file", words)
        of_face = in_16_bits(network(in_16_bits(WORDS), face=picture()))
        np.testing.assert_array_equal(heard(), of_face)
        for place in ("#words-source", "#words-said"):
            assert plays(place) == pytest.approx(len(WORDS) / RATE_HZ, abs=0.01)
        chosen("#words-voice", voice)
        assert page.locator("#words-picture").is_hidden()
        assert plays("#words-sample") == pytest.approx(len(VOICE) / RATE_HZ, abs=0.01)
        of_voice = in_16_bits(network(in_16_bits(WORDS), voice=in_16_bits(VOICE)))
        np.testing.assert_array_equal(heard(), of_voice)

        for button in ("#words-record", "#words-record-voice"):
            page.click(button)
            browsing.wait_for(page, "#words-status", "Speak now.")
            assert page.locator("#words-file").is_disabled()
            page.wait_for_timeout(900)
            assert page.evaluate("document.querySelector('[data-takes=words] meter').value") > 0.02
            with page.expect_response("**/said") as answer:
                page.click(button)
            assert answer.value.status == 200
            page.locator("#words-result").wait_for()
        assert plays("#words-source") > 0.5
        assert plays("#words-said") == pytest.approx(plays("#words-source"), abs=0.01)
        page.goto(url + "docs")
        browsing.wait_for(page, "td", "/said")
        assert wrong == []


def test_the_page_asks_for_whose_voice_it_is_to_be(url):
    browsing = pytest.importorskip("tests.browsing")
    if browsing.CHROMIUM is None:
        pytest.skip(browsing.NEEDED.kwargs["reason"])
    with browsing.browser() as (page, wrong):
        page.goto(url)
        page.set_input_files("#words-file", browsing.wav("a.wav", WORDS, RATE_HZ))
        browsing.wait_for(page, "#words-status", "Now whose voice it is to be.")
        assert page.locator("#words-source").is_visible()
        assert page.locator("#words-result").is_hidden()
        page.click("#words-record")
        page.locator("#words-status.bad").wait_for()
        assert "microphone" in page.locator("#words-status").text_content()
        assert page.locator("#words-file").is_enabled()
        assert wrong == []
