"""What `asr.transcribe` takes and prints; with a network, tests/asr/test_main.py runs it."""

import json
import math

import numpy as np
import pytest

from asr import transcribe, transcriber
from common.audio import io
from common.data import clips

FOUND = transcriber.Transcript(
    text="A BC D",
    seconds=3700.0,
    tokens=("▁A", "▁B", "C", "▁D"),
    times=(0.5, 1.0, 1.5, 3661.25),
    probabilities=(0.9, 0.5, 0.125, 1.0),
    segments=(
        transcriber.Segment(0.25, 2.0, "A BC", 0.5),
        transcriber.Segment(5.0, 6.0, "", math.nan),
        transcriber.Segment(3661.0, 3662.0, "D", 1.0),
    ),
)


def test_words_end_where_the_next_begins_or_their_segment_ends():
    words = [(word.text, word.start, word.end) for word in FOUND.words]
    assert words == [("A", 0.5, 1.0), ("BC", 1.0, 2.0), ("D", 3661.25, 3662.0)]
    assert [word.confidence for word in FOUND.words] == pytest.approx([0.9, 0.25, 1.0])


def test_the_formats():
    assert transcribe.as_txt("x.wav", FOUND) == "x.wav\t3700.00\tA BC D\n"
    assert transcribe.as_tsv("x.wav", FOUND).splitlines() == [
        "x.wav\t0.25\t2.00\t0.500\tA BC",
        "x.wav\t5.00\t6.00\t\t",
        "x.wav\t3661.00\t3662.00\t1.000\tD",
    ]
    read = json.loads(transcribe.as_json("x.wav", FOUND))
    assert (read["file"], read["seconds"], read["text"]) == ("x.wav", 3700.0, "A BC D")
    empty = {"start": 5.0, "end": 6.0, "text": "", "confidence": None}
    assert read["segments"][1] == empty
    assert [word["text"] for word in read["words"]] == ["A", "BC", "D"]
    assert transcribe.as_srt("x.wav", FOUND) == (
        "1\n00:00:00,250 --> 00:00:02,000\nA BC\n\n2\n01:01:01,000 --> 01:01:02,000\nD\n\n"
    )


def test_folders_stand_for_what_lies_below(tmp_path):
    sound = np.full(100, 0.1, np.float32)
    for name in ("in/b.wav", "in/deep/a.WAV", "c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        io.write_wav(tmp_path / name, sound, 16000)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    (tmp_path / "empty").mkdir()
    failed = []
    names = [str(tmp_path / name) for name in ("c.wav", "in", "empty", "absent.wav")]
    found = list(clips.named_files([*names, "-"], failed.append))
    below = [str(tmp_path / "in" / name) for name in ("b.wav", "deep/a.WAV")]
    assert found == [names[0], *below, names[3], "-"]
    assert len(failed) == 1
    assert "empty holds no audio files" in failed[0]
