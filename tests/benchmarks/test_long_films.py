"""Films as long as one likes out of clips: all pictures of all people, the sum of the sounds."""

import sys

import numpy as np

from benchmarks import long_films
from common.audio import io
from common.video import frames
from tests import films


def test_laps_follow_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(long_films, "_LAP", 20)
    folders = []
    for name, level in (("ann", 60), ("bob", 180)):
        folders.append(tmp_path / name)
        for clip, count in (("a.mkv", 9), ("b.mkv", 7)):
            pictures = np.full((count, 48, 64), level, np.uint8)
            sound = films.tone(count / 25) * (2 if name == "bob" else 1)
            films.encode(tmp_path / name / clip, pictures, np.arange(count) / 25, sound)
    audio = long_films.make_lap(folders, tmp_path / "lap.mp4")
    assert len(audio) == 20 * 640
    once = films.tone(9 / 25)
    np.testing.assert_allclose(audio[: len(once)], 1.5 * once, atol=1e-3)
    long_films.make_film(tmp_path / "lap.mp4", audio, 3, tmp_path / "film.mp4")
    shown = list(frames.pictures(tmp_path / "film.mp4", 0.0))
    assert [one.index for one in shown] == list(range(60))
    grey = shown[45].grey()[0]
    assert grey.shape == (48, 128)
    assert abs(int(grey[20, 30]) - 60) < 4
    assert abs(int(grey[20, 100]) - 180) < 4
    heard = io.load_audio(tmp_path / "film.mp4", sample_rate_hz=16_000)
    assert abs(len(heard) - 60 * 640) <= 2048


def test_a_process_is_watched():
    marks, cpu = long_films.watched([sys.executable, "-c", "import time; time.sleep(1)"])
    assert max(size for _, size in marks) > 1
    assert cpu >= 0
