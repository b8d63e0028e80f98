"""Files of programs and arrays: whole, read without our code, and one message for what is wrong."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, export


def artefact(platforms=("cpu", "cuda")) -> export.Artefact:
    program = export.program(
        lambda weights, x: ([weights[0] + 1], x @ weights[0]),
        [jnp.zeros((3, 2))],
        jnp.zeros((1, 3)),
        platforms=platforms,
    )
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    return export.Artefact({"rate": 8000}, {"step": program}, {"weights/0": weights})


def test_a_file_is_read_as_it_was_written_with_and_without_our_code(tmp_path):
    path, wanted = tmp_path / "new" / "a.jaxexport", artefact()
    export.write(path, "asr.export", wanted)
    assert [p.name for p in path.parent.iterdir()] == ["a.jaxexport"]  # nothing half-written
    found = export.read(path, "asr.export")
    assert found.about["rate"] == 8000
    assert found.about["platforms"] == ["cpu", "cuda"]
    np.testing.assert_equal(found.arrays, wanted.arrays)
    x, weights = np.ones((1, 3), np.float32), wanted.arrays["weights/0"]
    more, result = found.programs["step"].call([weights], x)
    np.testing.assert_equal(np.asarray(result), [[6.0, 9.0]])
    np.testing.assert_equal(np.asarray(more[0]), weights + 1)
    with np.load(path) as file:  # as the head of `common.export` says
        assert json.loads(str(file["about"]))["jax"] == jax.__version__
        program = jax.export.deserialize(bytearray(file["programs/step"]))
        result = jax.jit(program.call)([file["weights/0"]], x)[1]
    np.testing.assert_equal(np.asarray(result), [[6.0, 9.0]])


def test_what_is_wrong_with_a_file_is_one_message(tmp_path, monkeypatch):
    good, wrong = tmp_path / "good", tmp_path / "wrong"
    export.write(good, "asr.export", artefact())
    with pytest.raises(errors.UserError, match=r"no file .*other: python -m asr\.export makes one"):
        export.read(tmp_path / "other", "asr.export")
    with pytest.raises(errors.UserError, match=r"made by python -m asr\.export \(format 1\), and"):
        export.read(good, "separation.export")
    data = good.read_bytes()
    flipped = bytearray(data)
    with zipfile.ZipFile(good) as file:
        flipped[file.getinfo("programs/step.npy").header_offset + 500] ^= 1
        locked = bytearray(data)
        locked[file.start_dir + 8] |= 1  # the flag of encryption: zipfile raises RuntimeError
    with (tmp_path / "array").open("wb") as file:
        np.save(file, np.zeros(3))
    with (tmp_path / "objects").open("wb") as file:
        np.savez(file, about=np.array([{}], object))
    with (tmp_path / "empty").open("wb") as file:
        np.savez(file, about=np.array("[]"))
    others = [(tmp_path / name).read_bytes() for name in ("array", "objects", "empty")]
    for content in (
        b"",
        b"text",
        data[: len(data) // 2],
        data[:-1],
        bytes(flipped),
        bytes(locked),
        *others,
    ):
        wrong.write_bytes(content)
        with pytest.raises(errors.UserError, match="wrong is damaged, or not of python -m asr"):
            export.read(wrong, "asr.export")
    monkeypatch.setattr(export.export, "default_export_platform", lambda: "tpu")
    with pytest.raises(errors.UserError, match="made for cpu, cuda, and this is tpu: make it with"):
        export.read(good, "asr.export")


def test_without_flatbuffers_it_says_what_is_missing(tmp_path, monkeypatch):
    good = tmp_path / "good"
    export.write(good, "asr.export", artefact())

    def missing(*_, **__) -> None:
        raise ImportError("flatbuffers")

    monkeypatch.setattr(export.export, "deserialize", missing)
    monkeypatch.setattr(export.export.Exported, "serialize", missing)
    for call in (
        lambda: export.read(good, "asr.export"),
        lambda: export.write(tmp_path / "a", "asr.export", artefact()),
    ):
        with pytest.raises(errors.UserError, match="need flatbuffers: pip install flatbuffers"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_program_of_a_later_jax_is_one_message(tmp_path):
    wanted = artefact()
    export.write(tmp_path / "a", "asr.export", wanted)
    with np.load(tmp_path / "a") as file:
        content = {**file, "programs/step": np.zeros(64, np.uint8)}
    about = {**json.loads(str(content["about"])), "jax": "99.0"}
    with (tmp_path / "a").open("wb") as file:
        np.savez(file, **{**content, "about": np.array(json.dumps(about))})
    with pytest.raises(errors.UserError, match=r"written by jax 99\.0, and jax .* cannot read it"):
        export.read(tmp_path / "a", "asr.export")


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "a"
    export.write(path, "asr.export", artefact())
    kept = path.read_bytes()

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(errors.UserError, match=r"cannot be written \(No space left"):
        export.write(path, "asr.export", artefact())
    assert path.read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
