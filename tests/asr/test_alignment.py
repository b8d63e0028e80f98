"""Prefix probabilities and alignments against all alignments of small lattices."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from asr import alignment, ctc, prediction, transducer


def transducer_alignments(blank, label, frames, labels):
    """(log-probability, frame of each label) of every alignment; the last arc is a blank."""
    for places in itertools.combinations_with_replacement(range(frames), labels):
        score, u = 0.0, 0
        for frame in range(frames):
            while u < labels and places[u] == frame:
                score, u = score + label[frame, u], u + 1
            score += blank[frame, u]
        yield score, places


@pytest.fixture(scope="module")
def lattice():
    rng = np.random.default_rng(0)
    scores = np.log(rng.dirichlet(np.ones(3), size=(2, 5, 4)))
    return scores[..., 0], scores[:, :, :3, 1]  # blank [b, l, n], label [b, l, u]


LENGTHS, SIZES = (5, 4), (3, 2)  # the second row is padded both ways


def test_transducer_path_is_the_best_of_all(lattice):
    for row, (frames, labels) in enumerate(zip(LENGTHS, SIZES)):
        blank, label = lattice[0][row][:frames, : labels + 1], lattice[1][row][:frames, :labels]
        best = max(transducer_alignments(blank, label, frames, labels))
        assert alignment.transducer_path(blank, label).tolist() == list(best[1])


def test_transducer_prefixes_are_sums_over_alignments(lattice):
    prefixes, total = alignment.transducer_prefixes(
        *(jnp.asarray(x, jnp.float32) for x in lattice), jnp.array(LENGTHS), jnp.array(SIZES)
    )
    for row, (frames, labels) in enumerate(zip(LENGTHS, SIZES)):
        blank, label = (x[row] for x in lattice)
        every = [s for s, _ in transducer_alignments(blank, label, frames, labels)]
        np.testing.assert_allclose(total[row], scipy.special.logsumexp(every), rtol=1e-5)
        for u in range(1, labels + 1):
            # What comes before the frame of label u, then that label: the rest is anything.
            begun = []
            for places in itertools.combinations_with_replacement(range(frames), u):
                score, k = 0.0, 0
                for frame in range(places[-1] + 1):
                    while k < u and places[k] == frame:
                        score, k = score + label[frame, k], k + 1
                    if frame < places[-1]:
                        score += blank[frame, k]
                begun.append(score)
            expected = scipy.special.logsumexp(begun)
            np.testing.assert_allclose(prefixes[row, u - 1], expected, rtol=1e-5)
    loss = transducer.lattice_logprob(
        *(jnp.asarray(x, jnp.float32) for x in lattice), jnp.array(LENGTHS), jnp.array(SIZES)
    )
    np.testing.assert_allclose(total, loss, rtol=1e-5)


def collapsed(path):
    return [int(token) for token, _ in itertools.groupby(path) if token]


@pytest.mark.parametrize("labels", [(1, 2), (1, 1), (2,), ()])
def test_ctc_against_all_paths(labels):
    frames, tokens = 5, 3
    scores = np.log(np.random.default_rng(1).dirichlet(np.ones(tokens), size=frames))
    paths = [
        (sum(scores[t, token] for t, token in enumerate(path)), path)
        for path in itertools.product(range(tokens), repeat=frames)
    ]
    own = [(score, path) for score, path in paths if collapsed(path) == list(labels)]
    padded = jnp.array([[*labels, 0, 0]])
    # Frames beyond the length are no part of it.
    wide = jnp.pad(jnp.asarray(scores, jnp.float32), ((0, 2), (0, 0)))[None]
    found = alignment.ctc_prefixes(wide, padded, jnp.array([frames]), jnp.array([len(labels)]))
    total = scipy.special.logsumexp([score for score, _ in own])
    np.testing.assert_allclose(found[1], [total], rtol=1e-5)
    loss = ctc.ctc_loss(wide, jnp.array([frames]), padded, jnp.array([len(labels)])).loss
    np.testing.assert_allclose(found[1], -loss, rtol=1e-4)
    for u in range(1, len(labels) + 1):
        begun = [score for score, path in paths if collapsed(path)[:u] == list(labels[:u])]
        np.testing.assert_allclose(found[0][0, u - 1], scipy.special.logsumexp(begun), rtol=1e-5)
    spans = alignment.ctc_path(scores, np.array(labels, int))
    best = max(own)[1]
    runs, place = [], 0
    for token, run in itertools.groupby(best):
        size = len(list(run))
        if token:
            runs.append([place, place + size])
        place += size
    assert spans.tolist() == runs


def test_labels_that_do_not_fit_their_frames():
    with pytest.raises(ValueError, match="3 labels do not fit 3 frames"):
        alignment.ctc_path(np.log(np.full((3, 2), 0.5)), np.array([1, 1, 1]))


def test_differences_add_up_and_end_at_the_end():
    prefixes, total = jnp.array([[-1.0, -3.0, -9.0], [-2.0, -4.0, -5.0]]), jnp.array([-9.5, -2.25])
    found = alignment.differences(prefixes, total, jnp.array([3, 1]))
    np.testing.assert_allclose(found, [[-1, -2, -6, -0.5], [-2, -0.25, 0, 0]])
    np.testing.assert_allclose(found.sum(axis=1), total)


def test_arcs_are_those_of_the_loss():
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=s) for s in ((2, 5, 6), (2, 4, 6), (6, 7), (7,))]
    joint = prediction.JointInputs(*(jnp.asarray(x, jnp.float32) for x in arrays))
    labels, sizes = jnp.array([[1, 6, 3], [2, 2, 0]]), jnp.array([3, 2])
    lengths = jnp.array([5, 4])
    arcs = alignment.transducer_arcs(joint, labels)
    _, total = alignment.transducer_prefixes(*arcs, lengths, sizes)
    loss = transducer.rnnt_loss(*joint, labels, lengths, sizes)
    np.testing.assert_allclose(total, -loss, rtol=1e-5)
