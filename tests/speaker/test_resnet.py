"""ResNet: published counts, one block against loops, padding through strides, training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn import conv2d, residual
from speaker import resnet
from tests.speaker import encoders

SMALL = resnet.ResNetConfig(num_blocks=(1, 1, 1), widths=(4, 6, 8), embedding_size=6)


@pytest.fixture(scope="module")
def small():
    model = resnet.ResNet(SMALL)
    return model, encoders.initialised(model, 11)


def test_published_counts():
    """80 features, 256 dimensions; wespeaker: 6.63 M, 23.79 M and 28.62 M."""
    counts = {
        depth: encoders.num_parameters(resnet.ResNet(resnet.resnet(depth)), 80)
        for depth in (34, 221, 293)
    }
    print(counts)
    assert counts[34] == 6_634_336
    assert counts[221] / 1e6 == pytest.approx(23.79, abs=0.01)
    assert counts[293] / 1e6 == pytest.approx(28.62, abs=0.01)
    assert resnet.resnet(34) == resnet.ResNetConfig()


def test_zero_init_makes_blocks_their_shortcuts():
    block = residual.Block(SMALL.blocks, 4, 1)
    x, frames = jax.random.normal(jax.random.key(0), (1, 5, 6, 4)), jnp.ones((1, 5, 1))
    variables = block.init(jax.random.key(1), x, frames, frames, train=False)
    y = block.apply(variables, x, frames, frames, train=False)
    np.testing.assert_array_equal(y, jnp.maximum(x, 0.0))


def naive_conv(x, kernel, stride):
    """Zeros outside, output (i, j) centred on input (i, j) * stride."""
    frames, frequencies, _ = x.shape
    k = kernel.shape[0]
    y = np.zeros((-(-frames // stride), -(-frequencies // stride), kernel.shape[-1]))
    for i, j in np.ndindex(*y.shape[:2]):
        for a, b in np.ndindex(k, k):
            t, f = i * stride + a - k // 2, j * stride + b - k // 2
            if 0 <= t < frames and 0 <= f < frequencies:
                y[i, j] += x[t, f] @ kernel[a, b]
    return y


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_against_numpy(bottleneck):
    """A row of 7 of 9 frames and 5 frequencies through a block of stride 2."""
    block = residual.Block(dataclasses.replace(SMALL.blocks, bottleneck=bottleneck), 3, 2)
    row = np.random.default_rng(0).standard_normal((7, 5, 4)).astype(np.float32)
    x = jnp.pad(jnp.asarray(row)[None], ((0, 0), (0, 2), (0, 0), (0, 0)))
    before = (jnp.arange(9) < 7).astype(jnp.float32).reshape(1, 9, 1)
    after = (jnp.arange(5) < 4).astype(jnp.float32).reshape(1, 5, 1)
    variables = block.init(jax.random.key(0), x, before, after, train=False)
    random = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1 * np.abs(random.standard_normal(leaf.shape)).astype(np.float32),
        variables,
    )
    got = block.apply(variables, x, before, after, train=False)
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)

    def layer(x, name, stride):
        p, s = tree["params"][name], tree["batch_stats"][name]["norm"]
        y = (naive_conv(x, p["conv"]["kernel"], stride) - s["mean"]) / np.sqrt(s["var"] + 1e-5)
        return y * p["norm"]["scale"] + p["norm"]["bias"]

    y = row
    strides = (1, 2, 1) if bottleneck else (2, 1)
    for i, stride in enumerate(strides, start=1):
        y = layer(y, f"conv{i}", stride)
        y = np.maximum(y, 0.0) if i < len(strides) else y
    expected = np.maximum(y + layer(row, "shortcut", 2), 0.0)
    np.testing.assert_allclose(got[0, :4], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[0, 4:], 0.0)


def test_padded_equals_alone(small):
    encoders.check_padded_equals_alone(*small, 11)


def test_bottlenecks_padded_equal_alone():
    model = resnet.ResNet(dataclasses.replace(SMALL, bottleneck=True, embedding_norm=True))
    encoders.check_padded_equals_alone(model, encoders.initialised(model, 11), 11)


def test_wide_convolutions_ignore_padding_and_devices():
    """The path of `conv2d.three_by_three`."""
    channels = conv2d.MIN_THREE_BY_THREE_CHANNELS
    wide = dataclasses.replace(SMALL, num_blocks=(1,), widths=(channels,))
    variables = encoders.initialised(resnet.ResNet(wide), 11)
    encoders.check_padded_equals_alone(resnet.ResNet(wide), variables, 11)

    def make(axis_name):
        return resnet.ResNet(dataclasses.replace(wide, axis_name=axis_name))

    encoders.check_training_ignores_padding_and_devices(make, variables, 11)


def test_training_ignores_padding_and_devices(small):
    def make(axis_name):
        return resnet.ResNet(dataclasses.replace(SMALL, axis_name=axis_name))

    encoders.check_training_ignores_padding_and_devices(make, small[1], 11)


def test_bfloat16(small):
    encoders.check_bfloat16(*small, 11)


def test_overfits(small):
    encoders.check_overfits(*small, 11)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match="depth is 35"):
        resnet.resnet(35)
    with pytest.raises(ValueError, match="3 num_blocks and 2 widths"):
        resnet.ResNetConfig(num_blocks=(1, 1, 1), widths=(4, 8))
