"""CIFAR-10 and MNIST as published and by tfds; damaged ones; a pickle that would do more."""

import json
import pickle

import numpy as np
import pytest

from common import errors
from generation import labelled
from tests.generation import layouts


def held(kind, root, part):
    return labelled.Labelled(kind, str(root), part).held


def check(found, expected, names):
    np.testing.assert_array_equal(found.pictures, expected[0])
    np.testing.assert_array_equal(found.labels, expected[1])
    assert found.names == names


def test_cifar10_is_read_from_its_folder_and_its_archive(tmp_path):
    wanted = layouts.cifar10(tmp_path, packed=True)
    places = (tmp_path, tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz")
    for place in places:
        for part in layouts.PARTS:
            check(held("cifar10", place, part), wanted[part], layouts.CLASSES)
    source = labelled.Labelled("cifar10", str(tmp_path), "test")
    again = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000
    assert (
        again.fingerprint
        == source.fingerprint
        != labelled.Labelled("cifar10", str(tmp_path), "train").fingerprint
    )
    record = again[4]
    assert record["speaker"] == layouts.CLASSES[wanted["test"][1][4]]
    np.testing.assert_array_equal(record["face"], wanted["test"][0][4][None])


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_packed_or_not_and_is_not_mirrored(tmp_path, packed):
    wanted = layouts.mnist(tmp_path, packed)
    for part in layouts.PARTS:
        check(held("mnist", tmp_path, part), wanted[part], tuple("0123456789"))
    source = labelled.Labelled("mnist", str(tmp_path), "train")
    assert not source.mirrored
    faces = labelled.ClassFaces(source, source.held.names)
    assert [faces.count(name) for name in faces.people] == [3] * 10
    seven = wanted["train"][0][wanted["train"][1] == 7]
    np.testing.assert_array_equal(faces("7", 2), seven[2].repeat(3, axis=2))


def test_tfds_is_read_without_tensorflow(tmp_path):
    wanted = layouts.tfds(tmp_path)
    for part in layouts.PARTS:
        check(held("cifar10", tmp_path, part), wanted[part], layouts.CLASSES)
    images, labels = wanted["train"]
    check(held("cifar10", tmp_path, "train[:25%]"), (images[:3], labels[:3]), layouts.CLASSES)
    (path,) = tmp_path.glob("*/*/features.json")
    description = json.loads(path.read_text())
    description["featuresDict"]["features"]["label"] = {
        "pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar",
        "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
    }
    path.write_text(json.dumps(description))
    with pytest.raises(errors.UserError, match=r"with 0 names of classes; it takes .*ClassLabel"):
        held("cifar10", tmp_path, "train")


def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_does_nothing(tmp_path):
    layouts.cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    made = tmp_path / "made"

    class Trap:
        def __reduce__(self):
            return made.mkdir, ()

    batch.write_bytes(pickle.dumps({b"data": Trap(), b"labels": [1]}, protocol=2))
    with pytest.raises(errors.UserError, match=r"data_batch_3 is damaged.*which no picture needs"):
        held("cifar10", tmp_path, "train")
    assert not made.exists()
    held("cifar10", tmp_path, "test")  # the rest is as good as before


def test_what_is_damaged_or_missing_is_named(tmp_path):
    layouts.cifar10(tmp_path / "c")
    layouts.mnist(tmp_path / "m")
    batches, idx = tmp_path / "c" / "cifar-10-batches-py", tmp_path / "m"
    whole = (batches / "test_batch").read_bytes()
    (batches / "test_batch").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.UserError, match="test_batch is damaged"):
        held("cifar10", tmp_path / "c", "test")
    (batches / "data_batch_5").unlink()
    with pytest.raises(errors.UserError, match="lacks data_batch_5: name the folder"):
        held("cifar10", tmp_path / "c", "train")
    images = idx / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:100])
    with pytest.raises(errors.UserError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        held("mnist", idx, "test")
    (idx / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(errors.UserError, match="lacks train-labels-idx1-ubyte"):
        held("mnist", idx, "train")
    with pytest.raises(errors.UserError, match="no part 'dev': it has train and test"):
        held("mnist", idx, "dev")
    with pytest.raises(errors.UserError, match="no such folder or archive"):
        held("mnist", tmp_path / "none", "train")


def test_each_class_has_a_speaker(tmp_path):
    layouts.cifar10(tmp_path)
    source = labelled.Labelled("cifar10", str(tmp_path), "train")
    faces = labelled.of_classes(source, ["ann", "bob", "cid", "dee"])
    assert faces.people == ("ann", "bob", "cid")
    of_bob = source.held.pictures[source.held.labels == 1]
    np.testing.assert_array_equal(faces("bob", 3), of_bob[3])
    with pytest.raises(errors.UserError, match=r"has 3 classes.*there are 2 speakers"):
        labelled.of_classes(source, ["ann", "bob"])
