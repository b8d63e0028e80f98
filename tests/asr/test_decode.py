"""Batched greedy decoding against a plain loop over one utterance at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import decode

BATCH, LENGTH, FEATURES, VOCABULARY = 6, 9, 8, 5
LENGTHS = np.array([9, 5, 1, 0, 7, 9], np.int32)
MAX_LABELS, MAX_SYMBOLS = 16, 3


def network(seed):
    """A random recurrent prediction network and joint: weights, inputs, blank bias for balance."""
    rng = np.random.default_rng(seed)
    weights = {
        "embedding": rng.normal(size=(VOCABULARY, FEATURES)),
        "recurrent": rng.normal(size=(FEATURES, FEATURES)) / np.sqrt(FEATURES),
        "output": rng.normal(size=(FEATURES, VOCABULARY)),
        "bias": np.eye(VOCABULARY)[0] * 1.5,
    }
    encoder = rng.normal(size=(BATCH, LENGTH, FEATURES))
    return {k: v.astype(np.float32) for k, v in weights.items()}, encoder.astype(np.float32)


def greedy(weights, encoder, lengths, **limits):
    def predict(state, tokens):
        hidden = jnp.tanh(weights["embedding"][tokens] + state["hidden"] @ weights["recurrent"])
        return {"hidden": hidden, "count": state["count"] + 1}, hidden

    def joint(frames, output):
        return jnp.tanh(frames + output) @ weights["output"] + weights["bias"][None]

    batch = encoder.shape[0]
    initial = {"hidden": jnp.zeros((batch, FEATURES)), "count": jnp.zeros(batch, jnp.int32)}
    limits = {"max_labels": MAX_LABELS, "max_symbols_per_frame": MAX_SYMBOLS} | limits
    return decode.transducer_greedy(encoder, lengths, predict, joint, initial, **limits)


jitted_greedy = jax.jit(
    greedy, static_argnames=("max_labels", "max_symbols_per_frame", "blank_penalty")
)


def one_utterance(weights, encoder, length, blank_penalty=0.0):
    """Frame by frame, label by label, in NumPy."""

    def predict(hidden, token):
        return np.tanh(weights["embedding"][token] + hidden @ weights["recurrent"])

    hidden = predict(np.zeros(FEATURES, np.float32), 0)
    tokens, frames, scores, score = [], [], [], 0.0
    for frame in range(length):
        for _ in range(MAX_SYMBOLS):
            logits = np.tanh(encoder[frame] + hidden) @ weights["output"] + weights["bias"]
            token = int(np.argmax(logits - blank_penalty * (np.arange(len(logits)) == 0)))
            own = logits[token] - np.logaddexp.reduce(logits)
            score += own
            if token == 0:
                break
            tokens.append(token)
            frames.append(frame)
            scores.append(own)
            hidden = predict(hidden, token)
            if len(tokens) == MAX_LABELS:
                return tokens, frames, score, scores
    return tokens, frames, score, scores


def rows_of(hypotheses):
    return [
        (list(map(int, tokens[:n])), list(map(int, frames[:n])))
        for tokens, n, frames in zip(hypotheses.tokens, hypotheses.lengths, hypotheses.frames)
    ]


@pytest.mark.parametrize(("seed", "penalty"), [(0, 0.0), (1, 0.0), (2, 0.0), (0, 0.3)])
def test_transducer_equals_a_loop_over_utterances(seed, penalty):
    weights, encoder = network(seed)
    got = jitted_greedy(weights, encoder, jnp.asarray(LENGTHS), blank_penalty=penalty)
    expected = [one_utterance(weights, encoder[b], LENGTHS[b], penalty) for b in range(BATCH)]
    if penalty:
        plain = jitted_greedy(weights, encoder, jnp.asarray(LENGTHS))
        assert got.lengths.sum() > plain.lengths.sum()
    assert rows_of(got) == [row[:2] for row in expected]
    # Sums of at most a few dozen float32 log-probabilities.
    np.testing.assert_allclose(got.log_probs, [row[2] for row in expected], rtol=1e-5)
    each = np.zeros((BATCH, MAX_LABELS))
    for row, (*_, own) in zip(each, expected):
        row[: len(own)] = own
    np.testing.assert_allclose(got.token_log_probs, each, atol=1e-5)
    # The cases that make the test worth running: empty rows, and frames with many labels.
    counts = [len(row[0]) for row in expected]
    assert counts[3] == 0
    assert max(counts) > 3
    assert not np.any(got.tokens[3])
    beyond = np.arange(MAX_LABELS)[None] >= np.asarray(got.lengths)[:, None]
    assert not np.any(np.where(beyond, got.tokens, 0))


def test_transducer_rows_decode_as_they_do_alone_and_padding_changes_nothing():
    weights, encoder = network(0)
    together = jitted_greedy(weights, encoder, jnp.asarray(LENGTHS))
    longer = np.pad(encoder, ((0, 0), (0, 4), (0, 0)), constant_values=3.0)
    padded = jitted_greedy(weights, longer, jnp.asarray(LENGTHS))
    assert rows_of(padded) == rows_of(together)
    for b in (0, 1, 4):
        alone = jitted_greedy(weights, encoder[b : b + 1], jnp.asarray(LENGTHS[b : b + 1]))
        assert rows_of(alone) == rows_of(together)[b : b + 1]
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[b], rtol=1e-5)


def test_transducer_limits():
    weights, encoder = network(0)
    weights["bias"] = -100 * np.eye(VOCABULARY, dtype=np.float32)[0]  # never blank
    full = jitted_greedy(weights, encoder, jnp.asarray(LENGTHS), max_labels=40)
    np.testing.assert_array_equal(full.lengths, LENGTHS * MAX_SYMBOLS)
    np.testing.assert_array_equal(full.frames[0, :27], np.repeat(np.arange(9), MAX_SYMBOLS))
    assert not np.any(full.truncated)
    cut = jitted_greedy(weights, encoder, jnp.asarray(LENGTHS), max_labels=4)
    np.testing.assert_array_equal(cut.lengths, np.minimum(LENGTHS * MAX_SYMBOLS, 4))
    np.testing.assert_array_equal(cut.truncated, LENGTHS * MAX_SYMBOLS > 4)
    np.testing.assert_array_equal(cut.tokens, full.tokens[:, :4])


def test_ctc_equals_groupby():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(BATCH, 30, 3)).astype(np.float32)
    lengths = np.array([30, 12, 1, 0, 30, 7], np.int32)
    got = jax.jit(decode.ctc_greedy)(logits, jnp.asarray(lengths))
    expected, scores, each = [], [], np.zeros(logits.shape[:2])
    for row, length, own in zip(logits, lengths, each):
        tokens, frames, frame = [], [], 0
        for token, run in itertools.groupby(np.argmax(row[:length], axis=1)):
            if token:
                tokens.append(int(token))
                frames.append(frame)
            frame += len(list(run))
        expected.append((tokens, frames))
        logp = row[:length] - np.logaddexp.reduce(row[:length], axis=1, keepdims=True)
        scores.append(np.sum(np.max(logp, axis=1)) if length else 0.0)
        own[: len(frames)] = [logp[frame, token] for frame, token in zip(frames, tokens)]
    assert rows_of(got) == expected
    np.testing.assert_allclose(got.log_probs, scores, rtol=1e-5)
    np.testing.assert_allclose(got.token_log_probs, each, atol=1e-5)
    assert not np.any(got.truncated)


def test_ctc_output_size():
    best = jnp.asarray([[1, 1, 0, 1, 2, 2, 0, 3], [0, 0, 2, 2, 0, 0, 0, 0]])
    lengths = jnp.asarray([8, 8], jnp.int32)
    got = decode.ctc_greedy(5.0 * jax.nn.one_hot(best, 4), lengths, max_labels=3)
    np.testing.assert_array_equal(got.tokens, [[1, 1, 2], [2, 0, 0]])
    np.testing.assert_array_equal(got.lengths, [3, 1])
    np.testing.assert_array_equal(got.frames, [[0, 3, 4], [2, 0, 0]])
    np.testing.assert_array_equal(got.truncated, [True, False])
