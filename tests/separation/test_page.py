"""The page of `separation.serve` in a real browser, whose microphone is a file."""

import json

import numpy as np
import pytest
from scipy import signal

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
from common.audio import io
from common.serve import settings as serve_settings
from separation import api
from tests import browsing, serving
from tests.separation import test_enhancer

pytestmark = browsing.NEEDED
wait_for = browsing.wait_for
RATE_HZ = 16000


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return test_enhancer.make(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def url(network):
    limits = serve_settings.Limits(streams=1)
    settings = serve_settings.Settings("sesame", limits)
    with serving.served(api.Service(network, settings).application(), settings) as found:
        yield found


def wav(name: str, samples: np.ndarray) -> dict:
    return browsing.wav(name, samples, RATE_HZ)


def heard(page, name: str) -> np.ndarray:
    """The samples of a player, saved."""
    with page.expect_download() as download:
        page.click(f"#{name}-save")
    return io.load_audio(download.value.path(), sample_rate_hz=RATE_HZ)


def shades(page, name: str) -> int:
    """Of how many colours a picture is."""
    script = """(id) => {
      const canvas = document.getElementById(id);
      const {width, height} = canvas;
      const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
      return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return page.evaluate(script, f"{name}-picture")


def test_enrol_upload_and_live(network, url, tmp_path, caplog):
    """Before and after, as the players have them, are what the network makes of one another."""
    low = signal.firwin(101, 4000, fs=RATE_HZ)  # what the browser's resampling leaves as it is
    microphone = np.convolve(test_enhancer.noise(9.0), low, "same").astype(np.float32)
    voice = test_enhancer.noise(1.5, seed=1)
    mixture = test_enhancer.noise(1.2, seed=2)
    io.write_wav(tmp_path / "microphone.wav", microphone, RATE_HZ)
    cue = network.cue(io.wav_bytes(voice, RATE_HZ))
    with browsing.browser(microphone=tmp_path / "microphone.wav") as (page, wrong):
        page.goto(url)
        page.set_input_files("#voice-file", wav("ann.wav", voice))
        wait_for(page, "#voice-status.bad", "a token is needed")
        assert [text for text in wrong if "401" not in text] == []
        wrong.clear()
        page.fill("#token input", "sesame")

        page.set_input_files("#voice-file", wav("ann.wav", voice[:5000]))
        wait_for(page, "#voice-status.bad", "enrolment: 0.31 s are too short to know a voice by")
        page.set_input_files("#voice-file", wav("ann.wav", voice))
        wait_for(page, "#voice-status", "This voice is known now, by 1.5 s.")
        assert [text for text in wrong if "422" not in text] == []
        wrong.clear()

        page.fill("#strength", "0.25")
        wait_for(page, "#strength-value", "25 %")
        page.set_input_files("#mixture-file", wav("mixture.wav", mixture))
        wait_for(page, "#status", "Done.")
        check(page, network, cue, 0.25)
        np.testing.assert_allclose(heard(page, "before"), mixture, atol=1 / 32768)

        page.fill("#strength", "0.5")
        page.click("#live")
        wait_for(page, "#status", "Live; the network's delay is 32 ms.")
        assert page.locator("#strength").is_disabled()
        page.wait_for_timeout(1500)
        assert page.evaluate("document.querySelector('#level').value") > 0.05
        page.click("#live")
        wait_for(page, "#status", "Done")
        before = check(page, network, cue, 0.5)
        assert len(before) > RATE_HZ
        assert agrees(before, microphone) > 30  # dB

        assert page.locator("#own-label").is_hidden()
        page.click("#forget")
        page.check("#own")
        with page.expect_response("**/enhance"):
            page.set_input_files("#mixture-file", wav("mixture.wav", mixture))
        assert "No voice is alone for long enough" in caplog.text  # it was looked for
        wait_for(page, "#status", "Done")
        sent = []
        page.on("websocket", lambda it: it.on("framesent", lambda frame: sent.append(frame)))
        page.click("#live")
        wait_for(page, "#status", "Live; the network's delay is 32 ms.")
        page.click("#live")
        wait_for(page, "#status", "Done")
        assert json.loads(sent[0])["self_enroll"] is True
        page.uncheck("#own")

        page.click("#record-voice")
        wait_for(page, "#voice-status", "Speak now.")
        page.wait_for_timeout(1300)
        page.click("#record-voice")
        wait_for(page, "#voice-status", "This voice is known now")

        page.goto(url + "docs")
        wait_for(page, "td", "/enhance")
        assert wrong == []


def check(page, network, cue, strength) -> np.ndarray:
    """After is the voice of before, to the rounding of both; both have a picture."""
    before, after = heard(page, "before"), heard(page, "after")
    expected = network.extract(before, RATE_HZ, cue, strength)
    np.testing.assert_allclose(after, expected, atol=1e-4)
    assert min(shades(page, "before"), shades(page, "after")) > 50
    return before


def agrees(before: np.ndarray, whole: np.ndarray) -> float:
    """SNR in dB of the last second against the stretch of `whole` that it is most like.

    But for a filter of 2 ms: the browser resamples, and is not late by whole samples.
    """
    part, taps = before[-RATE_HZ:], 33
    first = int(np.argmax(signal.correlate(whole, part, "valid", "fft"))) - taps // 2
    stretches = [np.roll(whole, -first - i)[: len(part)] for i in range(taps)]
    error = np.linalg.lstsq(np.stack(stretches, axis=1), part)[1]
    return 10 * np.log10(np.sum(part**2) / error[0])


def test_without_a_microphone_the_page_says_so(url):
    with browsing.browser() as (page, wrong):
        page.goto(url)
        assert page.locator("#result").is_hidden()
        page.click("#live")
        page.locator("#status.bad").wait_for()
        assert page.locator("#status").text_content() in (
            "there is no microphone",
            "the microphone was refused; allow it in the browser's settings of this page",
        )
        assert page.locator("#live").text_content() == "Live"
        assert page.locator("#record-mixture").is_enabled()
        assert wrong == []
