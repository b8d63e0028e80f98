"""Inception v3: as another implementation in NumPy, its weights' files, what it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from common import errors
from generation import inception
from tests.generation import inception_file


@pytest.fixture(scope="module")
def arrays():
    return inception_file.arrays()


class Reference:
    """In NumPy, one picture [c, h, w] in float64, with PyTorch's arrays as they are."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, name, x, stride=1, *, pad=False):
        kernel = self.arrays[f"{name}.conv.weight"].astype(np.float64)
        taps = kernel.shape[2:]
        if pad:
            x = np.pad(x, [(0, 0), *((tap // 2, tap // 2) for tap in taps)])
        seen = np.lib.stride_tricks.sliding_window_view(x, taps, (1, 2))[:, ::stride, ::stride]
        y = np.tensordot(kernel, seen, ((1, 2, 3), (0, 3, 4)))
        gamma, beta, mean, variance = (
            self.arrays[f"{name}.bn.{part}"].astype(np.float64)[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum(gamma * (y - mean) / np.sqrt(variance + 1e-3) + beta, 0)

    def chain(self, x, *names, last_stride=1):
        """One after another, of the same size but for a last one with a stride."""
        for name in names[:-1]:
            x = self(name, x, pad=True)
        return self(names[-1], x, last_stride, pad=last_stride == 1)


def average(x):
    """What lies outside is not counted."""
    sums = 9 * ndimage.uniform_filter(x, (1, 3, 3), mode="constant")
    return sums / (9 * ndimage.uniform_filter(np.ones_like(x), (1, 3, 3), mode="constant"))


def maximum(x):
    return ndimage.maximum_filter(x, (1, 3, 3), mode="constant", cval=-np.inf)


def halved(x):
    return maximum(x)[:, 1:-1:2, 1:-1:2]


def reference(arrays, x):
    """x: [c, h, w] in [-1, 1]."""
    net = Reference(arrays)
    x = net("Conv2d_2b_3x3", net("Conv2d_2a_3x3", net("Conv2d_1a_3x3", x, 2)), pad=True)
    x = halved(net("Conv2d_4a_3x3", net("Conv2d_3b_1x1", halved(x))))

    def block(name, pool, branches, strided=()):
        """A branch is the names of its layers; where the last is a tuple it forks into these."""
        parts = []
        for *names, last in branches:
            full = [f"{name}.{layer}" for layer in names]
            y = net.chain(x, *full) if full else x
            for layer in last if isinstance(last, tuple) else (last,):
                stride = 2 if layer in strided else 1
                parts.append(net.chain(y, f"{name}.{layer}", last_stride=stride))
        parts.append(pool(x) if strided else net(f"{name}.branch_pool", pool(x)))
        return np.concatenate(parts)

    def of(stem, count):
        return [f"{stem}_{k}" for k in range(1, count + 1)]

    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block(name, average, [["branch1x1"], of("branch5x5", 2), of("branch3x3dbl", 3)])
    strided = ("branch3x3", "branch3x3dbl_3")
    x = block("Mixed_6a", halved, [["branch3x3"], of("branch3x3dbl", 3)], strided)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block(name, average, [["branch1x1"], of("branch7x7", 3), of("branch7x7dbl", 5)])
    strided = ("branch3x3_2", "branch7x7x3_4")
    x = block("Mixed_7a", halved, [of("branch3x3", 2), of("branch7x7x3", 4)], strided)
    for name, pool in (("Mixed_7b", average), ("Mixed_7c", maximum)):
        branches = [
            ["branch1x1"],
            ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
            ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
        ]
        x = block(name, pool, branches)
    return x.mean((1, 2))


def test_it_has_as_many_parameters_as_published():
    count = sum(
        taps * width * channels * features + 2 * features
        for taps, width, channels, features in inception.kernel_shapes().values()
    )
    # torchvision's inception_v3 without auxiliary classifier, and without its last layer
    assert count == 23_834_568 - 1000 * (inception.SIZE + 1)


def test_its_features_are_those_of_another_implementation(arrays):
    """At 107 pixels blocks see 11 x 11, 5 x 5 and 2 x 2: borders are most of it."""
    x = np.random.default_rng(1).uniform(-1, 1, (1, 107, 107, 3)).astype(np.float32)
    layers = inception.from_arrays(arrays, "net.pth").layers
    found = jax.jit(inception.pooled_features)(layers, x)[0]
    expected = reference(arrays, x[0].transpose(2, 0, 1).astype(np.float64))
    assert expected.std() > 0.05
    # Float32, about a hundred layers.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (400, 3)])
def test_pictures_are_resized_between_the_middles_of_pixels(size, channels):
    pictures = np.random.default_rng(2).integers(0, 256, (2, size, size, channels), np.uint8)
    places = (np.arange(299) + 0.5) * size / 299 - 0.5
    found = np.asarray(inception.seen(jnp.asarray(pictures)))
    assert found.shape == (2, 299, 299, 3)
    for channel in range(3):
        values = pictures[1, :, :, channel % channels] / 255
        grid = np.meshgrid(places, places, indexing="ij")
        expected = 2 * ndimage.map_coordinates(values, grid, order=1, mode="nearest") - 1
        np.testing.assert_allclose(found[1, :, :, channel], expected, atol=1e-4)


def test_the_classes_tell_whose_weights_they_are(tmp_path):
    for classes in (1008, 1000):
        net = inception.read(inception_file.write(tmp_path / "net.pth", classes))
        assert net.is_original == (classes == 1008)
        assert net.layers["Mixed_7c.branch_pool"].kernel.shape == (1, 1, 2048, 192)


def changed(name, value):
    return lambda arrays: {**arrays, name: value}


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


KERNEL, VARIANCE = "Conv2d_2a_3x3.conv.weight", "Mixed_6e.branch1x1.bn.running_var"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(KERNEL), "1 arrays of Inception v3 are missing, the first is Conv2d_2a_3x3.conv"),
        (
            lambda arrays: {"conv1.weight": arrays[KERNEL]},
            "holds no Inception v3: there is nothing",
        ),
        (lambda arrays: 7, "holds no Inception v3"),
        (changed("Mixed_8a.weight", np.ones(1)), "another network: Inception v3 has no Mixed_8a"),
        (changed(KERNEL, np.zeros((32, 32, 1, 1))), r"has the shape \(32, 32, 1, 1\), in Incep"),
        (changed(KERNEL, np.full((32, 32, 3, 3), np.nan)), "layer Conv2d_2a_3x3 has values that"),
        (changed(VARIANCE, np.full(192, -1.0)), "layer Mixed_6e.branch1x1 has values that are not"),
        (changed("fc.weight", np.zeros((10, 2048))), "of 10 classes. It tells which network"),
        (without("fc.weight"), "of 0 classes"),
    ],
)
def test_files_of_something_else(arrays, change, message):
    with pytest.raises(errors.UserError, match=rf"net\.pth.*{message}"):
        inception.from_arrays(change(arrays), "net.pth")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "net.pth").write_text("no network")
    with pytest.raises(errors.UserError, match=r"net\.pth is no file of torch\.save"):
        inception.read(tmp_path / "net.pth")
