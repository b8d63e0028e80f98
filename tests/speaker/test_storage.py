"""Model files: whole or not there, and refused when they are something else."""

import numpy as np
import pytest

from common import errors
from speaker import storage


def test_arrays_read_back_under_the_name_given(tmp_path):
    path = tmp_path / "deep" / "a.model"
    storage.save_arrays(path, {"x": np.arange(3), "flag": True})
    got = storage.load_arrays(path, ["x", "flag"], kind="model")
    assert got["x"].tolist() == [0, 1, 2]
    assert bool(got["flag"])
    assert [p.name for p in path.parent.iterdir()] == ["a.model"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.model"
    storage.save_arrays(path, {"x": np.zeros(3)})
    before = path.read_bytes()

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(storage.ModelFileError, match=r"a\.model cannot be written \(disk full\)"):
        storage.save_arrays(path, {"x": np.ones(3)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.model"]


def test_a_place_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "a.model"):
        with pytest.raises(storage.ModelFileError, match="cannot be written"):
            storage.save_arrays(place, {"x": np.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.model"
    storage.save_arrays(path, {"x": np.zeros(300)})
    whole = path.read_bytes()

    def refused(message):
        with pytest.raises(storage.ModelFileError, match=message) as raised:
            storage.load_arrays(path, ["x"], kind="PLDA model")
        assert isinstance(raised.value, errors.UserError)
        assert "\n" not in str(raised.value)

    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        refused(r"a\.model is no PLDA model .* with x is expected")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    refused("is no PLDA model")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused("is no PLDA model")
    storage.save_arrays(path, {"y": np.zeros(3)})
    refused("is no PLDA model")
    storage.save_arrays(path, {"x": np.array([{}], dtype=object)})
    refused("is no PLDA model")
    path.unlink()
    refused("no such file")
