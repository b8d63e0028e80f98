"""Kaldi archives: every kind of matrix, whole and in part, ranges, damage."""

import kaldi_native_io
import numpy as np
import pytest

from common.audio import io
from common.data import ark

FRAMES, SIZE = 40, 6


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Archives of two matrices "a" and "b" in every form, and the matrices."""
    folder = tmp_path_factory.mktemp("ark")
    rng = np.random.default_rng(0)
    matrices = {name: rng.normal(size=(FRAMES, SIZE)).astype(np.float32) for name in "ab"}
    writers = {
        "float": (kaldi_native_io.FloatMatrixWriter, "ark,scp"),
        "double": (kaldi_native_io.DoubleMatrixWriter, "ark,scp"),
        "text": (kaldi_native_io.FloatMatrixWriter, "ark,t,scp"),
    }
    for kind, (writer, form) in writers.items():
        with writer(f"{form}:{folder / kind}.ark,{folder / kind}.scp") as file:
            for name, matrix in matrices.items():
                file.write(name, matrix.astype(np.float64) if kind == "double" else matrix)
    for method in ("kSpeechFeature", "kTwoByteAuto", "kOneByteAuto"):
        with kaldi_native_io.CompressedMatrixWriter(
            f"ark,scp:{folder / method}.ark,{folder / method}.scp"
        ) as file:
            for name, matrix in matrices.items():
                file.write(name, matrix, getattr(kaldi_native_io.CompressionMethod, method))
    return folder, matrices


def entries(folder, kind) -> dict[str, ark.Entry]:
    lines = (folder / f"{kind}.scp").read_text().splitlines()
    return {name: ark.parse(rest) for name, rest in (line.split(" ", 1) for line in lines)}


# Text keeps seven digits; one byte has 255 steps over a range of about six.
TOLERANCE = {"text": 1e-5, "kSpeechFeature": 0.05, "kTwoByteAuto": 1e-4, "kOneByteAuto": 0.02}
KINDS = ("float", "double", *TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_whole_and_in_part(archives, kind):
    folder, matrices = archives
    for name, entry in entries(folder, kind).items():
        assert ark.matrix_shape(entry) == (FRAMES, SIZE)
        whole = ark.read_matrix(entry)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole, matrices[name], atol=TOLERANCE.get(kind, 0), rtol=0)
        np.testing.assert_array_equal(ark.read_matrix(entry, 7, 5), whole[7:12])
        np.testing.assert_array_equal(ark.read_matrix(entry, 7), whole[7:])
        np.testing.assert_array_equal(ark.read_matrix(entry, 38, 5), whole[38:])
        with pytest.raises(io.AudioError, match="start=40 lies past the end"):
            ark.read_matrix(entry, 40, 5)


@pytest.mark.parametrize("kind", ["float", "kTwoByteAuto"])
@pytest.mark.parametrize(
    "given", ["[3:9]", "[:]", "[0:0]", "[:,2:4]", "[5:8,0:3]", "[30:41]", "[5:8,:]"]
)
def test_ranges_are_those_of_kaldi(archives, kind, given):
    folder, _ = archives
    entry = entries(folder, kind)["b"]
    expected = kaldi_native_io.FloatMatrix.read(f"{entry}{given}").numpy()
    ranged = ark.parse(f"{entry}{given}")
    assert ark.parse(str(ranged)) == ranged
    assert ark.matrix_shape(ranged) == expected.shape
    np.testing.assert_array_equal(ark.read_matrix(ranged), expected)
    if len(expected) > 2:
        np.testing.assert_array_equal(ark.read_matrix(ranged, 1, 2), expected[1:3])


@pytest.mark.parametrize("given", ["[40:41]", "[30:43]", "[9:3]", "[0:3,0:6]"])
def test_ranges_outside_are_refused(archives, given):
    folder, _ = archives
    entry = ark.parse(f"{entries(folder, 'float')['a']}{given}")
    with pytest.raises(io.AudioError, match="of a 40 x 6 matrix"):
        ark.read_matrix(entry)


def test_a_few_rows_of_a_binary_matrix_need_no_others(archives, tmp_path):
    """What is behind the rows is gone, and the header still states it: only they were read."""
    folder, matrices = archives
    entry = entries(folder, "float")["b"]
    data = bytearray((folder / "float.ark").read_bytes())
    begin = entry.offset + 15  # NUL B, FM, two sizes of 1 + 4 bytes
    data[begin : begin + 4 * SIZE * 9] = b"\xff" * 4 * SIZE * 9  # NaN
    data[begin + 4 * SIZE * 12 :] = b"\xff" * (len(data) - begin - 4 * SIZE * 12)
    (tmp_path / "damaged.ark").write_bytes(data)
    found = ark.read_matrix(ark.Entry(str(tmp_path / "damaged.ark"), entry.offset), 9, 3)
    np.testing.assert_array_equal(found, matrices["b"][9:12])
    with pytest.raises(io.AudioError, match="222 of 240 values are NaN"):
        ark.read_matrix(ark.Entry(str(tmp_path / "damaged.ark"), entry.offset))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0, 1, 4, 8, 60, 150])
def test_truncated_archives_are_said_to_be(archives, tmp_path, kind, left):
    folder, _ = archives
    entry = entries(folder, kind)["b"]
    data = (folder / f"{kind}.ark").read_bytes()
    (tmp_path / "cut.ark").write_bytes(data[: entry.offset + left])
    cut = ark.Entry(str(tmp_path / "cut.ark"), entry.offset)
    for read in (ark.matrix_shape, ark.read_matrix):
        with pytest.raises(io.AudioError, match=r"cut\.ark:\d+: (truncated|cannot be read)"):
            read(cut)


def test_a_damaged_header_allocates_nothing(tmp_path):
    sizes = b"\4\xff\xff\xff\x7f\4\xff\xff\xff\x7f"  # 2^31 - 1 rows and columns
    (tmp_path / "f").write_bytes(b"\0BFM " + sizes + b"\0" * 100)
    with pytest.raises(io.AudioError, match="truncated: 100 of 18446744056529682436 bytes"):
        ark.read_matrix(ark.Entry(str(tmp_path / "f")))
    (tmp_path / "c").write_bytes(b"\0BCM2 " + b"\0" * 8 + b"\xff\xff\xff\x7f" * 2 + b"\0" * 100)
    with pytest.raises(io.AudioError, match="truncated: 100 of"):
        ark.read_matrix(ark.Entry(str(tmp_path / "c")))
    (tmp_path / "n").write_bytes(b"\0BFM \4\xff\xff\xff\xff\4\1\0\0\0" + b"\0" * 100)
    with pytest.raises(io.AudioError, match="its header is damaged"):
        ark.read_matrix(ark.Entry(str(tmp_path / "n")))


def test_what_holds_no_features(tmp_path):
    bad = np.ones((4, 3))
    bad[1, 2] = 1e300  # beyond float32
    with kaldi_native_io.DoubleMatrixWriter(f"ark,scp:{tmp_path}/d.ark,{tmp_path}/d.scp") as file:
        file.write("big", bad)
        file.write("empty", np.zeros((0, 0)))
    found = entries(tmp_path, "d")
    with pytest.raises(io.AudioError, match="1 of 12 values are NaN or infinite"):
        ark.read_matrix(found["big"])
    assert ark.matrix_shape(found["empty"]) == (0, 0)
    with pytest.raises(io.AudioError, match="empty: no frames"):
        ark.read_matrix(found["empty"])
    with kaldi_native_io.FloatVectorWriter(f"ark,scp:{tmp_path}/v.ark,{tmp_path}/v.scp") as file:
        file.write("v", np.array([1, 0, 1], np.float32))
    vector = entries(tmp_path, "v")["v"]
    np.testing.assert_array_equal(ark.read_decisions(vector), [True, False, True])
    with pytest.raises(io.AudioError, match=r"as a Kaldi matrix .*FV"):
        ark.read_matrix(vector)
    with pytest.raises(io.AudioError, match="as a Kaldi vector"):
        ark.read_decisions(found["big"])
    with pytest.raises(io.AudioError, match="No such file"):
        ark.read_decisions(ark.Entry(str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("touch {} |", "is a command"),
        ("| touch {}", "is a command"),
        ("-", "names no file"),
        ("", "names no file"),
        ("a.ark:5[,2:4]", "a range that is not"),
        ("a.ark:5[1]", "a range that is not"),
        ("a.ark:5[1:2,3:4,5:6]", "a range that is not"),
    ],
)
def test_lines_that_name_no_place_are_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        ark.parse(line.format(tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


def test_a_command_in_disguise_is_a_file_that_is_not_there(tmp_path):
    for line in (f"touch {tmp_path / 'ran'} |:3", f"touch {tmp_path / 'ran'} |[0:1]"):
        entry = ark.parse(line)
        for read in (ark.matrix_shape, ark.read_matrix, ark.read_decisions):
            with pytest.raises(io.AudioError, match="No such file"):
                read(entry)
    assert not (tmp_path / "ran").exists()


def test_paths_with_blanks_and_without_offset(archives, tmp_path):
    _, matrices = archives
    path = tmp_path / "with a blank"
    kaldi_native_io.FloatMatrix(matrices["a"]).write(str(path), binary=True)
    np.testing.assert_array_equal(ark.read_matrix(ark.parse(str(path))), matrices["a"])


def test_archives_that_kaldi_wrote(speech_data):
    """The same two utterances, binary, as text and compressed by copy-feats."""
    folder = speech_data / "reference" / "kaldi" / "kaldi_io"
    found = {}
    for name in ("feats", "feats_ascii", "feats_compressed"):
        data = (folder / f"{name}.ark").read_bytes()
        key = data[: data.index(b" ")]
        found[name] = ark.read_matrix(ark.Entry(str(folder / f"{name}.ark"), len(key) + 1))
    assert found["feats"].shape == (285, 13)
    np.testing.assert_allclose(found["feats_ascii"], found["feats"], rtol=1e-5, atol=1e-6)
    spread = np.ptp(found["feats"], axis=0)
    error = np.abs(found["feats_compressed"] - found["feats"]).max(0)
    assert (error < spread / 64).all()
