"""ECAPA-TDNN: published counts, Res2 and squeeze against NumPy, padding, training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speaker import ecapa
from tests.speaker import encoders

SMALL = ecapa.ECAPAConfig(
    channels=12,
    res2_scale=4,
    dilations=(2, 3),
    se_bottleneck=4,
    aggregation_channels=10,
    attention_bottleneck=4,
    embedding_size=6,
)


@pytest.fixture(scope="module")
def small():
    model = ecapa.ECAPA(SMALL)
    return model, encoders.initialised(model, 5)


@pytest.mark.parametrize(
    ("options", "count", "millions"),
    [
        ({}, 6_190_720, 6.19),  # wespeaker, ECAPA-512 with global context
        ({"channels": 1024}, 14_657_088, 14.65),  # wespeaker, cut off rather than rounded
        ({"channels": 1024, "aggregation_channels": 3072}, None, 20.8),  # 3D-Speaker
    ],
)
def test_published_counts(options, count, millions):
    got = encoders.num_parameters(ecapa.ECAPA(ecapa.ECAPAConfig(**options)), 80)
    print(options, got)
    assert count is None or got == count
    assert got / 1e6 == pytest.approx(millions, abs=0.05)


def test_block_against_numpy():
    """SE-Res2Block on a row of 7 of 9 frames: groups in a chain, squeeze over true frames."""
    block = ecapa.SERes2Block(SMALL, 2)
    row = np.random.default_rng(0).standard_normal((7, 12)).astype(np.float32)
    x = jnp.pad(jnp.asarray(row)[None], ((0, 0), (0, 2), (0, 0)))
    lengths, frames = jnp.array([7]), (jnp.arange(9) < 7).astype(jnp.float32)[None]
    variables = block.init(jax.random.key(0), x, lengths, frames, train=False)
    random = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1 * np.abs(random.standard_normal(leaf.shape)).astype(np.float32),
        variables,
    )
    got = block.apply(variables, x, lengths, frames, train=False)
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)

    def layer(x, p, s, dilation):
        kernel = p["conv"]["kernel"]
        kernel = kernel[None] if kernel.ndim == 2 else kernel
        y = np.tile(p["conv"]["bias"], (len(x), 1))
        for t in range(len(x)):
            for tap in range(len(kernel)):
                source = t + (tap - len(kernel) // 2) * dilation
                if 0 <= source < len(x):
                    y[t] += x[source] @ kernel[tap]
        y = (np.maximum(y, 0.0) - s["norm"]["mean"]) / np.sqrt(s["norm"]["var"] + 1e-5)
        return y * p["norm"]["scale"] + p["norm"]["bias"]

    p, s = tree["params"], tree["batch_stats"]
    y = np.split(layer(row, p["expand"], s["expand"], 1), 4, axis=1)
    y[1] = layer(y[1], p["res2"]["group2"], s["res2"]["group2"], 2)
    y[2] = layer(y[2] + y[1], p["res2"]["group3"], s["res2"]["group3"], 2)
    y[3] = layer(y[3] + y[2], p["res2"]["group4"], s["res2"]["group4"], 2)
    y = layer(np.concatenate(y, axis=1), p["merge"], s["merge"], 1)
    gate = y.mean(0) @ p["se"]["squeeze"]["kernel"] + p["se"]["squeeze"]["bias"]
    gate = np.maximum(gate, 0.0) @ p["se"]["excite"]["kernel"] + p["se"]["excite"]["bias"]
    expected = row + y / (1.0 + np.exp(-gate))
    np.testing.assert_allclose(got[0, :7], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[0, 7:], 0.0)


def test_summed_inputs_have_the_same_parameters(small):
    model, variables = small
    summed = ecapa.ECAPA(dataclasses.replace(SMALL, summed_inputs=True))
    assert encoders.num_parameters(summed, 5) == encoders.num_parameters(model, 5)
    y, z = (
        jax.jit(functools.partial(m.apply, train=False))(variables, *encoders.batch(5))
        for m in (model, summed)
    )
    assert float(jnp.abs(y - z).max()) > 1e-3


def test_padded_equals_alone(small):
    encoders.check_padded_equals_alone(*small, 5)


def test_training_ignores_padding_and_devices(small):
    def make(axis_name):
        return ecapa.ECAPA(dataclasses.replace(SMALL, axis_name=axis_name))

    encoders.check_training_ignores_padding_and_devices(make, small[1], 5)


def test_bfloat16(small):
    encoders.check_bfloat16(*small, 5)


def test_overfits(small):
    encoders.check_overfits(*small, 5)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match="res2_scale is 5"):
        ecapa.ECAPAConfig(res2_scale=5)
    with pytest.raises(ValueError, match="dilations is empty"):
        ecapa.ECAPAConfig(dilations=())
    with pytest.raises(ValueError, match="kernel_size is 4"):
        ecapa.ECAPAConfig(kernel_size=4)
