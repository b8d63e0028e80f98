"""Embedding sets: round trips, Kaldi's own readers, and every way in which a file is damaged."""

import pathlib
import struct
import sys
import types

import kaldi_native_io
import numpy as np
import pytest

from speaker import vectors

IDS = ("spk2-b.wav", "spk1-ä", "spk10-c")
SORTED = ("spk1-ä", "spk10-c", "spk2-b.wav")
ROWS = np.array([[1.5, -2e-30, 3.3333333], [0.1, 0.2, 1e30], [7, 8, 9]], np.float32)
EXPECTED = ROWS[[1, 2, 0]]


@pytest.mark.parametrize("kind", ["ark", "txt", "npz"])
def test_what_is_written_reads_back_bit_for_bit(tmp_path, kind):
    folder = tmp_path / "with space, comma"
    path = vectors.write(folder, kind, IDS, ROWS, ("spk2", "spk1", "spk10"))
    places = [path, folder] + ([path.with_suffix(".scp")] if kind == "ark" else [])
    for place in places:
        ids, rows = vectors.read(place)
        assert ids == SORTED
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, EXPECTED)
    assert vectors.read_speakers(folder / "utt2spk") == {
        "spk1-ä": "spk1",
        "spk10-c": "spk10",
        "spk2-b.wav": "spk2",
    }
    files = {path.name, "utt2spk"} | ({"embeddings.scp"} if kind == "ark" else set())
    assert {p.name for p in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("kind", "specifier"), [("ark", "ark"), ("ark", "scp"), ("txt", "ark"), ("txt", "ark,t")]
)
def test_kaldi_reads_what_is_written(tmp_path, kind, specifier):
    path = vectors.write(tmp_path / "out", kind, IDS, ROWS)
    if specifier == "scp":
        path = path.with_suffix(".scp")
    with kaldi_native_io.SequentialFloatVectorReader(f"{specifier}:{path}") as reader:
        found = {name: np.array(row) for name, row in reader}
    assert tuple(found) == SORTED
    np.testing.assert_array_equal(np.stack(list(found.values())), EXPECTED)


def test_the_bytes_of_an_archive(tmp_path):
    path = vectors.write(tmp_path, "ark", IDS, ROWS)
    expected, offsets = b"", []
    for name, row in zip(SORTED, EXPECTED):
        expected += name.encode() + b" "
        offsets.append(len(expected))
        expected += b"\0BFV \4" + struct.pack("<i3f", 3, *row)
    assert path.read_bytes() == expected
    table = [f"{n} {tmp_path}/embeddings.ark:{k}" for n, k in zip(SORTED, offsets)]
    assert path.with_suffix(".scp").read_text("utf-8").splitlines() == table
    # Other programs write tabs, and Windows a mark and other ends of lines.
    text = "\r\n".join(table).replace(" ", "\t", 1).encode("utf-8-sig")
    (tmp_path / "other.scp").write_bytes(text)
    assert vectors.read(tmp_path / "other.scp")[0] == SORTED


def test_kaldis_other_archives_are_read(tmp_path):
    for specifier in ("ark:{}/double.ark", "ark,t:{}/text.ark"):
        with kaldi_native_io.DoubleVectorWriter(specifier.format(tmp_path)) as writer:
            writer.write("a", np.array([0.5, 2.0]))
            writer.write("b", np.array([-1.0, 4.0]))
    for name in ("double.ark", "text.ark"):
        ids, rows = vectors.read(tmp_path / name)
        assert ids == ("a", "b")
        np.testing.assert_array_equal(rows, np.array([[0.5, 2.0], [-1.0, 4.0]], np.float32))


def test_pytorch_gets_a_dict_of_tensors(tmp_path, monkeypatch):
    """A stand-in notes what it is given: PyTorch is no dependency."""
    saved = {}

    def save(tensors, path):
        saved.update(tensors)
        pathlib.Path(path).write_bytes(b"pt")

    fake = types.ModuleType("torch")
    fake.from_numpy, fake.save = lambda row: ("tensor", row), save
    fake.__spec__ = types.SimpleNamespace(name="torch")
    monkeypatch.setitem(sys.modules, "torch", fake)
    path = vectors.write(tmp_path, "pt", IDS, ROWS)
    assert path.read_bytes() == b"pt"
    assert list(saved) == list(SORTED)
    np.testing.assert_array_equal(saved["spk10-c"][1], ROWS[2])
    with pytest.raises(vectors.VectorError, match="read by PyTorch only"):
        vectors.read(tmp_path)


def test_without_pytorch_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(vectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(vectors.VectorError, match="choose npz, ark or txt"):
        vectors.check("pt", IDS)


def test_a_failure_leaves_the_earlier_set(tmp_path, monkeypatch):
    vectors.write(tmp_path, "ark", IDS, ROWS, IDS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors, "_write_scp", full)
    with pytest.raises(vectors.VectorError, match="No space left on device"):
        vectors.write(tmp_path, "ark", IDS, 2 * ROWS)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_new_set_without_speakers_keeps_no_old_ones(tmp_path):
    vectors.write(tmp_path, "txt", IDS, ROWS, IDS)
    vectors.write(tmp_path, "txt", IDS[:1], ROWS[:1])
    assert [p.name for p in tmp_path.iterdir()] == ["embeddings.txt"]
    assert vectors.read(tmp_path)[0] == IDS[:1]


@pytest.mark.parametrize("kind", ["ark", "npz"])
def test_every_cut_is_noticed(tmp_path, kind):
    """In the folder at every byte; in an archive alone a cut between two vectors is none."""
    path = vectors.write(tmp_path / "whole", kind, IDS, ROWS)
    data, folder = path.read_bytes(), tmp_path / "cut"
    vectors.write(folder, kind, IDS, ROWS)
    for size in range(0, len(data), 1 if kind == "ark" else 37):
        (folder / path.name).write_bytes(data[:size])
        with pytest.raises(vectors.errors.UserError, match=f"embeddings.{kind}"):
            vectors.read(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a  [ 1 2 ]\nb  [ 1 2", "'b' cannot be read: `\\[ x y z \\]` on one line"),
        ("a.txt", b"a  [ 1 2 ]\nb  [ 1 x ]\n", "'b' cannot be read: could not convert"),
        ("a.txt", b"a  [ 1 2 ]\nb  [ 1 2 3 ]\n", "'b' has 3 dimensions, the first has 2"),
        ("a.txt", b"a  [ 1 2 ]\na  [ 1 3 ]\n", "the id 'a' comes twice"),
        ("a.txt", b"a  [ 1 2 ]\nb  [ nan 2 ]\n", "1 of 2 embeddings hold NaN or infinity, .* 'b'"),
        ("a.txt", b"a  [ ]\n", "'a' has 0 dimensions"),
        ("a.txt", b"alone\n", "'alone' cannot be read: no vector follows"),
        ("a.txt", b"", "holds no embeddings"),
        ("a.ark", b"\xff\xfe\0 \0BFV ", "no Kaldi archive of vectors"),
        ("a.ark", b"x" * 20_000, "no Kaldi archive of vectors"),
        ("a.ark", b"a \0BFM \4\1\0\0\0", "'a' cannot be read: it is no vector of floats but 'FM'"),
        ("a.ark", b"a \0BFV \4\xff\xff\xff\x7f1234", "2147483647 values are stated and 4 bytes"),
        ("a.ark", b"a \0BFV \4\xff\xff\xff\xff1234", "-1 values are stated"),
        ("a.scp", b"a cat a.ark |\n", "a.scp:1: `a cat a.ark |` is not `id archive:offset`"),
        ("a.scp", b"a /absent/b.ark:2\n", "the archive /absent/b.ark cannot be read"),
        ("a.npz", b"no zip", "is no set of embeddings"),
        ("a.pkl", b"", "the suffix"),
    ],
)
def test_damage_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(vectors.errors.UserError, match=message):
        vectors.read(tmp_path / name)


def test_what_is_missing_is_named(tmp_path):
    for name in ("a.npz", "a.ark", "a.scp"):
        with pytest.raises(vectors.VectorError, match=f"{name}: "):
            vectors.read(tmp_path / name)
    with pytest.raises(vectors.VectorError, match="holds no embeddings: extract them first"):
        vectors.read(tmp_path)
    vectors.write(tmp_path, "txt", IDS, ROWS)
    vectors.write(tmp_path, "npz", IDS, ROWS)
    with pytest.raises(vectors.VectorError, match=r"embeddings.txt, embeddings.npz: name one"):
        vectors.read(tmp_path)
    np.savez(tmp_path / "odd.npz", ids=np.array(["a"]), embeddings=np.zeros((2, 3)))
    with pytest.raises(vectors.VectorError, match="do not belong together"):
        vectors.read(tmp_path / "odd.npz")


def test_what_cannot_be_written_is_refused_before(tmp_path):
    with pytest.raises(vectors.VectorError, match="unknown; choose one of ark, txt, npz, pt"):
        vectors.check("wav", IDS)
    with pytest.raises(vectors.VectorError, match="2 ids are empty or no single word, first 'a b'"):
        vectors.check("ark", ("a b", "", "c"))
    vectors.check("npz", ("a b", "c"))
    with pytest.raises(vectors.VectorError, match="'c' comes twice"):
        vectors.check("npz", ("c", "b", "c"))
    with pytest.raises(vectors.VectorError, match=r"first that of 'spk2-b.wav'"):
        vectors.write(tmp_path, "npz", IDS, np.where(ROWS == 1.5, np.nan, ROWS))
    with pytest.raises(vectors.VectorError, match="first 'an n', which utt2spk cannot hold"):
        vectors.write(tmp_path, "ark", IDS, ROWS, ("bob", "an n", "cid"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "speakers"), [(("a b", "c", "d"), "xyz"), ("abc", ("x y", "z", ""))]
)
def test_npz_holds_what_tables_cannot(tmp_path, caplog, ids, speakers):
    vectors.write(tmp_path, "npz", IDS, ROWS, IDS, (1.0, 2.0, 3.0))
    vectors.write(tmp_path, "npz", ids, ROWS, speakers)
    assert [p.name for p in tmp_path.iterdir()] == ["embeddings.npz"]
    assert vectors.read(tmp_path)[0] == tuple(ids)
    assert "No utt2spk is written" in caplog.text


def test_durations_go_with_the_embeddings(tmp_path):
    path = vectors.write(tmp_path, "npz", IDS, ROWS, seconds=(0.25, 3600.125, 2.0))
    for place in (path, tmp_path):
        table = vectors.beside(place, vectors.UTT2DUR)
        assert vectors.beside(place, vectors.UTT2SPK) is None
        seconds = vectors.read_durations(table)
        assert seconds == pytest.approx(dict(zip(IDS, (0.25, 3600.125, 2.0))), rel=1e-5)
    for text in ("a 0\n", "a x\n", "a inf\n", "a -1\n"):
        table.write_text(text)
        with pytest.raises(vectors.VectorError, match="the duration of 'a' is"):
            vectors.read_durations(table)


def test_speakers_are_read_line_by_line(tmp_path):
    path = tmp_path / "utt2spk"
    for text, message in (
        ("a x\nb\n", "utt2spk, line 2: 'b' is not an id and a speaker"),
        ("a x\na y\n", "utt2spk, line 2: utterance 'a' had the speaker 'x'"),
        ("a x\n\nb y\n", "utt2spk, line 2: '' is not an id and a speaker"),
        ("", "utt2spk is empty"),
    ):
        path.write_text(text)
        with pytest.raises(vectors.VectorError, match=message):
            vectors.read_speakers(path)
    with pytest.raises(vectors.VectorError, match="cannot be read"):
        vectors.read_speakers(tmp_path)
