"""Files of torch.save: one that PyTorch wrote, and what is not read."""

import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from common import torch_file

PUBLISHED = pathlib.Path(__file__).parents[1] / "speaker" / "data" / "wespeaker_xvec"


def test_arrays_of_a_file_that_pytorch_wrote():
    """Shapes and types; the order of elements is tested by the network's outputs."""
    found = torch_file.read(PUBLISHED / "avg_model.pt")
    shapes = {name: array.shape for name, array in found.items()}
    assert len(shapes) == 33
    assert shapes["frame_1.conv_1d.weight"] == (4, 8, 5)
    assert shapes["seg_1.bias"] == (5,)
    assert shapes["frame_1.bn.num_batches_tracked"] == ()
    assert found["frame_1.bn.num_batches_tracked"] == 6
    dtypes = {array.dtype.name for array in found.values()}
    assert dtypes == {"float32", "int64"}


def integers(values):
    return "(" + "".join(f"I{value}\n" for value in values) + "t"


def save(path, shape, strides, *, offset=0, call="torch._utils\n_rebuild_tensor_v2", **others):
    """A file as torch.save writes it: "x", a view of a storage of the six numbers 0 to 5."""
    storage = "(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI6\ntQ"
    view = f"I{offset}\n{integers(shape)}{integers(strides)}"
    files = {
        "net/data.pkl": f"(dS'x'\nc{call}\n({storage}{view}I00\nNtRs.",
        "net/byteorder": "little",
        "net/data/0": np.arange(6, dtype="<f4").tobytes(),
        **others,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_views_of_a_storage(tmp_path):
    read = torch_file.read(save(tmp_path / "a.pt", (3, 2), (1, 3)))["x"]
    np.testing.assert_array_equal(read, [[0, 3], [1, 4], [2, 5]])  # a transposed matrix
    read = torch_file.read(save(tmp_path / "b.pt", (2,), (2,), offset=3))["x"]
    np.testing.assert_array_equal(read, [3, 5])
    assert torch_file.read(save(tmp_path / "c.pt", (0, 2), (2, 1)))["x"].shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (7,)}, "reaches beyond its storage"),
        ({"shape": (2,), "offset": 5}, "reaches beyond its storage"),
        ({"call": "os\nsystem"}, "it names os.system"),  # and is not called
        ({"call": "torch._utils\n_rebuild_sparse_tensor"}, "_rebuild_sparse_tensor, which is not"),
        ({"net/byteorder": "big"}, "big-endian"),
        ({"net/data.pkl": "(dS'x'\n"}, "is damaged"),
        ({"other/data.pkl": "."}, "no data.pkl, or several"),
    ],
)
def test_what_is_not_read_is_one_message(tmp_path, options, message):
    path = save(tmp_path / "net.pt", **{"shape": (6,), "strides": (1,), **options})
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.read(path)


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "net.pt"
    with pytest.raises(torch_file.TorchFileError, match="No such file"):
        torch_file.read(path)
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C))  # what a file of PyTorch 1.5 begins with
    with pytest.raises(torch_file.TorchFileError, match=r"older than PyTorch 1\.6"):
        torch_file.read(path)
    whole = (PUBLISHED / "avg_model.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(torch_file.TorchFileError, match="damaged"):
        torch_file.read(path)
    where = whole.index(b"little")  # one byte of a stored entry
    path.write_bytes(whole[:where] + b"L" + whole[where + 1 :])
    with pytest.raises(torch_file.TorchFileError, match="CRC"):
        torch_file.read(path)
