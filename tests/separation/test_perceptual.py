"""STOI, ESTOI and PESQ: their own best, order, what they cannot say, and what is not installed."""

import numpy as np
import pytest

from common import errors
from separation import perceptual
from tests.separation import voices

RATE_HZ = 16000


def speech(seconds: float = 3.0) -> np.ndarray:
    return np.repeat(voices.voice(1, seconds, 0), RATE_HZ // voices.RATE_HZ)


def noise(seconds: float = 3.0) -> np.ndarray:
    return np.random.default_rng(0).normal(size=round(seconds * RATE_HZ)).astype(np.float32)


def test_stoi_is_1_of_the_speech_itself_and_falls_with_noise():
    pytest.importorskip("pystoi")
    found = perceptual.measures(("stoi", "estoi"), RATE_HZ)
    assert list(found) == ["stoi", "estoi"]
    for measure in found.values():
        scores = [measure(speech(), speech() + level * noise()) for level in (0.0, 0.03, 0.3)]
        assert scores[0] == pytest.approx(1.0, abs=1e-6)
        assert scores[0] > scores[1] > scores[2]
        assert measure(speech(), 0.1 * speech()) == pytest.approx(1.0, abs=1e-6)
        with pytest.raises(perceptual.Unmeasurable, match="too little speech for STOI"):
            measure(speech(0.2), speech(0.2))
    assert found["estoi"](speech(), speech() + noise()) != found["stoi"](
        speech(), speech() + noise()
    )


def test_pesq_has_its_band_in_its_name_and_says_what_it_cannot_measure():
    """4.64 and 4.55 are the best that P.862.2 and P.862.1 give."""
    pytest.importorskip("pesq")
    for rate, name, best in ((16000, "pesq_wb", 4.64), (8000, "pesq_nb", 4.55)):
        ((found, measure),) = perceptual.measures(("pesq",), rate).items()
        assert found == name
        assert measure(speech(), speech()) == pytest.approx(best, abs=0.01)
        assert measure(speech(), speech() + 0.3 * noise()) < 2
        with pytest.raises(perceptual.Unmeasurable, match="silence for PESQ"):
            measure(speech(), 0 * speech())
        with pytest.raises(perceptual.Unmeasurable, match="PESQ: Buffer needs to be at least 1/4"):
            measure(speech(0.05), speech(0.05))
    assert perceptual.measures(("pesq",), 22050) == {}


def test_what_is_not_installed_is_named_and_what_is_unknown_refused(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        assert perceptual.measures(("stoi", "pesq"), RATE_HZ) == {}
    assert "No stoi: it takes the package pystoi (pip install)." in caplog.text
    assert "No pesq: it takes the package pesq (pip install)." in caplog.text
    with pytest.raises(errors.UserError, match="'mos' is none of stoi, estoi, pesq"):
        perceptual.measures(("stoi", "mos"), RATE_HZ)
