"""x-vector: the published table and count, context, padding, training, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from speaker import layers, xvector
from tests.speaker import encoders

SMALL = xvector.XVectorConfig(
    frame_layers=((8, 5, 1), (8, 3, 2), (8, 3, 3), (8, 1, 1), (12, 1, 1)), embedding_size=16
)


@pytest.fixture(scope="module")
def small():
    model = xvector.XVector(SMALL)
    return model, encoders.initialised(model, 5)


def test_published_count():
    """tdnn1 to tdnn7 with biases, batch normalisation without parameters (Kaldi, wespeaker)."""
    config = xvector.XVectorConfig()
    rows = [(80, 512, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (512, 1500, 1)]
    rows += [(3000, 512, 1), (512, 512, 1)]
    assert sum(k * c * d + d for c, d, k in rows) == 4_610_524
    assert encoders.num_parameters(xvector.XVector(config), 80) == 4_610_524
    kaldi = dataclasses.replace(config, embedding_layer="tdnn6")
    assert encoders.num_parameters(xvector.XVector(kaldi), 80) == 4_610_524 - (512 * 512 + 512)


def test_context_of_each_layer(small):
    """Which input frames reach frame 14 of each layer: t-2..t+2, ... of the table."""
    model, variables = small
    features, lengths = encoders.batch(5)

    def frame(features):
        _, seen = model.apply(
            variables,
            features,
            lengths,
            train=False,
            capture_intermediates=lambda module, _: isinstance(module, layers.FrameLayer),
            mutable=["intermediates"],
        )
        seen = seen["intermediates"]
        return jnp.stack([seen[f"tdnn{i}"]["__call__"][0][0, 14].sum() for i in range(1, 6)])

    reached = np.abs(jax.jit(jax.jacrev(frame))(features)).sum(axis=(1, 3)) > 0
    for row, context in zip(reached, (5, 9, 15, 15, 15)):
        frames = np.flatnonzero(row)
        assert (frames.min(), frames.max()) == (14 - context // 2, 14 + context // 2)


def test_against_numpy(small):
    """One utterance in float64: affine maps, ReLU, running averages, mean and deviation."""
    model, variables = small
    features, lengths = encoders.batch(5)
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    p, stats = tree["params"], tree["batch_stats"]

    def normalized(x, s):
        return (np.maximum(x, 0.0) - s["mean"]) / np.sqrt(s["var"] + 1e-5)

    x = np.asarray(features[0], np.float64)
    for i, (_, k, dilation) in enumerate(SMALL.frame_layers, start=1):
        layer = p[f"tdnn{i}"]["conv"]
        kernel = layer["kernel"] if k > 1 else layer["kernel"][None]
        y = np.tile(layer["bias"], (len(x), 1))
        for t in range(len(x)):
            for tap in range(k):
                source = t + (tap - k // 2) * dilation
                if 0 <= source < len(x):
                    y[t] += x[source] @ kernel[tap]
        x = normalized(y, stats[f"tdnn{i}"]["norm"])
    x = np.concatenate([x.mean(0), np.sqrt(x.var(0) + 1e-7)])
    x = x @ p["tdnn6"]["affine"]["kernel"] + p["tdnn6"]["affine"]["bias"]
    kaldi = xvector.XVector(dataclasses.replace(SMALL, embedding_layer="tdnn6"))
    got = kaldi.apply(variables, features[:1], lengths[:1], train=False)
    np.testing.assert_allclose(got[0], x, rtol=1e-4, atol=1e-5)
    x = (
        normalized(x, stats["norm6"]) @ p["tdnn7"]["affine"]["kernel"]
        + p["tdnn7"]["affine"]["bias"]
    )
    got = model.apply(variables, features[:1], lengths[:1], train=False)
    np.testing.assert_allclose(got[0], x, rtol=1e-4, atol=1e-5)


def test_padded_equals_alone(small):
    encoders.check_padded_equals_alone(*small, 5)


def test_training_ignores_padding_and_devices(small):
    def make(axis_name):
        return xvector.XVector(dataclasses.replace(SMALL, axis_name=axis_name))

    encoders.check_training_ignores_padding_and_devices(make, small[1], 5)


VALID = dataclasses.replace(SMALL, padding="valid")


def test_without_padding_frames_see_true_frames_only(small):
    """What is pooled are the frames of the padded network whose context lies inside the row."""
    features, lengths = encoders.batch(5)
    padded, valid = (
        jax.jit(
            lambda features, lengths, config=config: xvector.XVector(config).apply(
                small[1],
                features,
                lengths,
                train=False,
                capture_intermediates=lambda module, _: module.name == "tdnn5",
                mutable=["intermediates"],
            )
        )
        for config in (SMALL, VALID)
    )
    _, seen = padded(features, lengths)
    embeddings, inside = valid(encoders.nan_padded(features, 4, 33), lengths)
    seen, inside = (s["intermediates"]["tdnn5"]["__call__"][0] for s in (seen, inside))
    assert VALID.lost_frames == 14
    assert inside.shape[1] == 33 - 14
    for row, length in enumerate((29, 18)):
        kept = length - 14
        np.testing.assert_allclose(
            inside[row, :kept], seen[row, 7 : 7 + kept], rtol=1e-5, atol=1e-5
        )
        np.testing.assert_array_equal(inside[row, kept:], 0.0)
        alone, _ = valid(features[row : row + 1, :length], lengths[row : row + 1])
        np.testing.assert_allclose(embeddings[row], alone[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(embeddings[2:], 0.0)  # of 7 frames and of 1
    with pytest.raises(errors.UserError, match="see 15 frames, the recordings have 7"):
        xvector.XVector(VALID).apply(small[1], features[:1, :7], lengths[:1], train=False)


def test_training_without_padding_ignores_padding_and_devices(small):
    def make(axis_name):
        return xvector.XVector(dataclasses.replace(VALID, axis_name=axis_name))

    encoders.check_training_ignores_padding_and_devices(make, small[1], 5)


def test_bfloat16(small):
    encoders.check_bfloat16(*small, 5)


def test_overfits(small):
    encoders.check_overfits(*small, 5)


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"embedding_layer is 'tdnn8'"):
        xvector.XVectorConfig(embedding_layer="tdnn8")
    with pytest.raises(ValueError, match="padding='zeros': choose same or valid"):
        xvector.XVectorConfig(padding="zeros")
    with pytest.raises(ValueError, match="odd kernel_size"):
        xvector.XVectorConfig(frame_layers=((8, 4, 1),))
    with pytest.raises(ValueError, match="is empty"):
        xvector.XVectorConfig(frame_layers=())
    with pytest.raises(ValueError, match="'median'"):
        xvector.XVectorConfig(pooling="median")
