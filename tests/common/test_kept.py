"""Recordings kept in the cache: as they were read, without pauses, once, by name where not."""

import pickle

import numpy as np
import pytest

from common import cache, errors
from common.audio import io, vad
from common.data import kept, records, splits


def sound(seconds: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=round(16000 * seconds))
    return (0.1 * noise).astype(np.float32)


@pytest.fixture
def split(tmp_path, monkeypatch):
    """Three people, in WAV at 16 kHz, at 8 kHz in two channels, and silent in part."""
    monkeypatch.setenv("SPEECH_CACHE", str(tmp_path / "cache"))
    rows = []
    for k, name in enumerate(("ann", "bob", "cid")):
        audio = sound(1.0 + 0.2 * k, k)
        audio[4000:9000] = 0
        rate = 8000 if name == "bob" else 16000
        path = tmp_path / f"{name}.wav"
        io.write_wav(path, np.stack([audio, audio], 1) if name == "bob" else audio, rate)
        rows.append({"id": name, "audio": str(path), "speaker": name, "text": name.upper()})
    source = records.RecordList("voices", [{"id": "x", "problem": "none"}, *rows])
    lengths = [len(records.load_record(row, 16000)) for row in rows]
    return splits.Split("train", source, records.Index(np.arange(1, 4), np.array(lengths), 16000))


def keep(split, tmp_path, detector=None):
    how = {"sample_rate_hz": 16000, "channel": "mean", "detector": detector, "progress": False}
    return kept.keep(split, **how, rejected_tsv=tmp_path / "rejected.tsv")


def test_they_are_what_was_read(split, tmp_path):
    found = keep(split, tmp_path)
    np.testing.assert_array_equal(found.index.positions, split.index.positions)
    np.testing.assert_array_equal(found.index.lengths, split.index.lengths)
    assert (found.ids, found.speakers, found.texts) == (split.ids, split.speakers, split.texts)
    again = pickle.loads(pickle.dumps(found.source))
    for position in split.index.positions.tolist():
        for stretch in ({}, {"start": 0.25, "duration": 0.3}):
            read = records.load_record(split.source[position], 16000, **stretch)
            held = records.load_record(again[position], 16000, **stretch)
            # 16 bits: half a step, and nothing of what has 16 already.
            np.testing.assert_allclose(held, read, atol=0.51 / 32768)


def test_they_are_read_once_and_again_after_a_change(split, tmp_path, monkeypatch):
    first = keep(split, tmp_path)
    folder = cache.folder() / "kept"
    assert len(list(folder.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(records, "load_record", lambda *_: pytest.fail("read again"))
        assert keep(split, tmp_path).source.fingerprint == first.source.fingerprint
    io.write_wav(tmp_path / "cid.wav", sound(0.9, 9), 16000)
    changed = keep(split, tmp_path)
    assert changed.source.fingerprint != first.source.fingerprint
    assert changed.index.lengths[2] == 14400
    assert len(list(folder.iterdir())) == 4
    (tmp_path / "cid.wav").unlink()
    with pytest.raises(errors.UserError, match=r"cid\.wav cannot be read any more"):
        keep(split, tmp_path)


def test_pauses_are_cut_out_and_what_is_left_empty_is_named(split, tmp_path, caplog):
    detector = vad.EnergyVad()
    (tmp_path / "bob.wav").write_bytes(b"no sound")
    found = keep(split, tmp_path, detector)
    assert found.ids == ["ann", "cid"]
    for row, position in enumerate(found.index.positions.tolist()):
        audio = records.load_record(split.source[position], 16000)
        wanted = vad.keep_speech(audio, 16000, detector)
        assert len(wanted) == found.index.lengths[row] < len(audio)
        held = records.load_record(found.source[position], 16000)
        np.testing.assert_allclose(held, wanted, atol=0.51 / 32768)
    assert "1 of 3 recordings cannot be kept, bob (unreadable" in caplog.text
    assert "bob" in (tmp_path / "rejected.tsv").read_text()


def test_a_full_disk_is_said_before_anything_is_written(split, tmp_path, monkeypatch):
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(errors.UserError, match=r"0\.0 GiB free: free some, set SPEECH_CACHE"):
        keep(split, tmp_path)
    assert not (cache.folder() / "kept").exists()
