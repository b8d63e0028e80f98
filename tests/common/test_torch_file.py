"""Files of torch.save: one that PyTorch wrote, and what is not read."""

import pathlib
import pickle

import numpy as np
import pytest

from common import torch_file
from tests import torch_files

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


SIX = np.arange(6)


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_old])
def test_views_of_a_storage(tmp_path, save):
    views = {
        "transposed": torch_files.view((3, 2), (1, 3)),
        "every second": torch_files.view((2,), (2,), offset=3),
        "empty": torch_files.view((0, 2), (2, 1)),
    }
    read = torch_file.read(save(tmp_path / "net.pt", views, SIX))
    np.testing.assert_array_equal(read["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(read["every second"], [3, 5])
    assert read["empty"].shape == (0, 2)


def test_the_oldest_tensors(tmp_path):
    views, call = {"x": torch_files.view((2, 3))}, "torch._utils\n_rebuild_tensor"
    read = torch_file.read(torch_files.save_old(tmp_path / "net.pt", views, SIX, call))
    np.testing.assert_array_equal(read["x"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("view", "options", "message"),
    [
        (((7,),), {}, "reaches beyond its storage"),
        (((2,), (1,), 5), {}, "reaches beyond its storage"),
        (((6,),), {"call": "os\nsystem"}, "it names os.system"),  # and is not called
        (
            ((6,),),
            {"call": "torch._utils\n_rebuild_sparse_tensor"},
            "_rebuild_sparse_tensor, which is not",
        ),
        (((6,),), {"net/byteorder": "big"}, "big-endian"),
        (((6,),), {"net/data.pkl": "(dS'x'\n"}, "is damaged"),
        (((6,),), {"other/data.pkl": "."}, "no data.pkl, or several"),
    ],
)
def test_what_is_not_read_is_one_message(tmp_path, view, options, message):
    views = {"x": torch_files.view(*view)}
    path = torch_files.save(tmp_path / "net.pt", views, SIX, **options)
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.read(path)


@pytest.mark.parametrize(
    ("view", "options", "cut", "message"),
    [
        (((7,),), {}, None, "reaches beyond its storage"),
        (((6,),), {"call": "os\nsystem"}, None, "it names os.system"),
        (((6,),), {"machine": {"little_endian": False}}, None, "big-endian"),
        (((6,),), {}, -4, "cut short, or storage 0"),
        (((6,),), {}, 40, "is damaged"),
        (((6,),), {}, 4, "is damaged"),
    ],
)
def test_what_is_not_read_of_old_files(tmp_path, view, options, cut, message):
    views = {"x": torch_files.view(*view)}
    path = torch_files.save_old(tmp_path / "net.pt", views, SIX, **options)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(torch_file.TorchFileError, match=message):
        torch_file.read(path)


def test_a_pickle_of_something_else(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(pickle.dumps({"x": 1}, 2) + pickle.dumps(1001, 2))
    with pytest.raises(torch_file.TorchFileError, match="it does not begin as files"):
        torch_file.read(path)


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "net.pt"
    with pytest.raises(torch_file.TorchFileError, match="No such file"):
        torch_file.read(path)
    path.write_bytes(b"no archive")
    with pytest.raises(torch_file.TorchFileError, match=r"of the first PyTorches"):
        torch_file.read(path)
    whole = (PUBLISHED / "avg_model.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(torch_file.TorchFileError, match="damaged"):
        torch_file.read(path)
    where = whole.index(b"little")  # one byte of a stored entry
    path.write_bytes(whole[:where] + b"L" + whole[where + 1 :])
    with pytest.raises(torch_file.TorchFileError, match="CRC"):
        torch_file.read(path)
