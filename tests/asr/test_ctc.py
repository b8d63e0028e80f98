"""CTC loss against enumeration of all frame labellings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from asr import ctc

VOCABULARY = 3


def enumerate_labellings(logits: np.ndarray, labels: list[int]) -> float:
    """-log of the summed probability of all v^l frame labellings that collapse to `labels`."""
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    totals = []
    for path in itertools.product(range(VOCABULARY), repeat=len(logits)):
        collapsed = [token for token, _ in itertools.groupby(path) if token != 0]
        if collapsed == labels:
            totals.append(sum(logp[frame, token] for frame, token in enumerate(path)))
    return -float(np.logaddexp.reduce(totals)) if totals else float("inf")


def batch():
    rng = np.random.default_rng(0)
    rows = [  # frames, labels: equal neighbours, empty, single frame, too many labels, masked
        (5, [1, 2, 1]),
        (5, [1, 1, 2]),
        (4, [2, 2]),
        (3, []),
        (1, [2]),
        (3, [2, 2, 1]),
        (2, [1, 2, 1]),
        (0, []),
    ]
    logits = rng.normal(size=(len(rows), 5, VOCABULARY)).astype(np.float32)
    labels = np.zeros((len(rows), 3), np.int32)
    for row, (_, tokens) in enumerate(rows):
        labels[row, : len(tokens)] = tokens
    frame_lengths = np.array([frames for frames, _ in rows], np.int32)
    label_lengths = np.array([len(tokens) for _, tokens in rows], np.int32)
    return rows, [jnp.asarray(x) for x in (logits, frame_lengths, labels, label_lengths)]


def test_equals_enumeration_and_names_impossible_rows():
    rows, (logits, *rest) = batch()
    expected = [
        enumerate_labellings(np.asarray(logits[i, :frames], np.float64), tokens)
        for i, (frames, tokens) in enumerate(rows)
    ]
    impossible = np.isinf(expected)
    assert impossible.sum() == 2
    got = jax.jit(ctc.ctc_loss)(logits, *rest)
    np.testing.assert_array_equal(got.impossible, impossible)
    # log(0) is -1e5 in the recursion: no visible error; float32 sums of five terms.
    np.testing.assert_allclose(got.loss, np.where(impossible, 0, expected), rtol=1e-5, atol=1e-5)


def test_gradient_is_zero_in_padding_and_in_impossible_rows():
    rows, (logits, *rest) = batch()
    # Rubbish in the padding must not reach anything.
    inside = (jnp.arange(5)[None] < rest[0][:, None])[:, :, None]
    logits = jnp.where(inside, logits, jnp.nan)

    @jax.jit
    @jax.grad
    def gradient(logits):
        return jnp.sum(ctc.ctc_loss(logits, *rest).loss)

    got = np.asarray(gradient(logits))
    assert np.all(np.isfinite(got))
    for row, (frames, _) in enumerate(rows):
        assert not np.any(got[row, frames:])
    assert not np.any(got[5:])
    assert np.all(np.any(got[:5], axis=(1, 2)))
    # Each true frame's gradient is a difference of two distributions.
    np.testing.assert_allclose(got.sum(axis=2), 0, atol=1e-6)


def test_padding_changes_nothing():
    _, (logits, frame_lengths, labels, label_lengths) = batch()
    whole = ctc.ctc_loss(logits, frame_lengths, labels, label_lengths)
    one = slice(2, 3)
    alone = ctc.ctc_loss(logits[one, :4], frame_lengths[one], labels[one, :2], label_lengths[one])
    np.testing.assert_allclose(whole.loss[one], alone.loss, rtol=1e-6)


def test_no_labels_at_all_in_bfloat16():
    logits = jnp.zeros((2, 4, VOCABULARY), jnp.bfloat16)
    none = jnp.zeros((2, 0), jnp.int32), jnp.zeros(2, jnp.int32)
    got = ctc.ctc_loss(logits, jnp.asarray([4, 2], jnp.int32), *none)
    assert got.loss.dtype == jnp.float32
    np.testing.assert_allclose(got.loss, np.array([4, 2]) * np.log(VOCABULARY), rtol=1e-6)
