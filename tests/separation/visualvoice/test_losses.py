"""Losses of VisualVoice against NumPy; rows that are not real, coins, a batch learnt by heart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import errors, metrics
from separation.visualvoice import losses, spectra
from tests.separation.visualvoice import tiny as examples
from tests.separation.visualvoice.tiny import HOP, SAMPLES, initialised, tiny

TRUE = losses.LossConfig(true_share=1.0)


def parts(x):
    return jnp.asarray(np.stack([x.real, x.imag], axis=-1), jnp.float32)


def test_targets_and_weights():
    rng = np.random.default_rng(0)
    voice, mixture = (rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4)) for _ in range(2))
    mixture[0] *= 0.05  # masks of more than 5
    mixture[1] *= 1e6
    mixture[2, 0] = 0.0
    got = losses.ratio_masks(parts(voice), parts(mixture), 5.0)
    with np.errstate(all="ignore"):
        ratio = voice / mixture
    expected = np.stack([ratio.real, ratio.imag], axis=-1).clip(-5.0, 5.0)
    expected[2, 0] = 0.0
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.abs(got).max() == 5.0
    weights = losses.bin_weights(parts(mixture))
    np.testing.assert_allclose(weights, np.log1p(np.abs(mixture)).clip(1e-3, 10.0), rtol=1e-5)
    assert weights[2, 0] == np.float32(1e-3)
    assert weights.max() == 10.0


def cosine_distance(a, b):
    return 1.0 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def triplet(anchor, positive, negative):
    apart = cosine_distance(anchor, positive) - cosine_distance(anchor, negative)
    return max(0.0, apart + 0.5)


def test_matching_and_consistency():
    rng = np.random.default_rng(0)
    heard, faces = rng.normal(size=(4, 2, 2, 6)), rng.normal(size=(4, 2, 6))
    heard[1, :, 0], heard[1, :, 1] = faces[1, 0], faces[1, 1]
    counted = np.array([True, True, False, True])
    heard[2], faces[2] = np.nan, np.nan
    matching = consistency = 0.0
    for row in np.flatnonzero(counted):
        for mix in range(2):
            for person in range(2):
                matching += triplet(heard[row, mix, person], *faces[row, [person, 1 - person]])
            consistency += triplet(heard[row, 0, 0], heard[row, 1, 0], heard[row, mix, 1])
    shown = jnp.float32(heard), jnp.float32(faces), jnp.asarray(counted)
    term = losses.matching_term(*shown, 0.5, 0.01)
    assert matching > 1.0
    np.testing.assert_allclose(term.total, matching, rtol=1e-5)
    assert (term.count, term.weight) == (3 * 4, 0.01 * 4)
    term = losses.consistency_term(shown[0], shown[2], 0.5, 0.01)
    assert consistency > 1.0
    np.testing.assert_allclose(term.total, consistency, rtol=1e-5)
    assert (term.count, term.weight) == (3 * 2, 0.01 * 2)
    assert losses.cosine_distance(jnp.zeros(3), jnp.ones(3)) == 1.0
    slope = jax.grad(lambda x: losses.cosine_distance(x, jnp.ones(3)))(jnp.zeros(3))
    assert np.isfinite(slope).all()


def test_impossible_weights_are_said():
    with pytest.raises(errors.UserError, match=r"mask=0, .*none below 0, and mask above"):
        losses.LossConfig(mask=0)
    with pytest.raises(errors.UserError, match="consistency=-1 are weights"):
        losses.LossConfig(consistency=-1)
    with pytest.raises(errors.UserError, match="true_share=2 is a probability"):
        losses.LossConfig(true_share=2)


@pytest.fixture(scope="module")
def full():
    """The network, its variables, a batch of two rows, and the terms in training, compiled."""
    net, variables = initialised(tiny())

    @jax.jit
    def run(variables, given, keys):
        return examples.terms(net, variables, given, keys)

    return net, variables, examples.batch(net.config), run


def test_terms_against_their_parts(full):
    """Of running statistics and true voices: the masks of the network, the rest in NumPy."""
    net, variables, given, _ = full
    sizes = net.config
    found, _ = jax.jit(
        lambda variables, given: examples.terms(
            net, variables, given, examples.keys(2), TRUE, train=False
        )
    )(variables, given)
    audio = np.float64(given["audio"])
    audio *= 0.1 / np.sqrt(np.mean(audio**2, axis=-1, keepdims=True))
    level = [spectra.at_level(given["audio"][:, i], given["lengths"]) for i in range(3)]
    np.testing.assert_allclose(np.stack(level, axis=1), audio, rtol=1e-4)
    frames = jnp.full(2, examples.FRAMES)
    one, two, other = (spectra.analysed(x, frames, sizes)[..., :-1] for x in level)
    lip = net.apply(
        variables, given["mouth"], given["mouth_present"], frames, train=False, method="lips"
    )
    face = net.apply(variables, given["faces"], given["face_present"], train=False, method="faces")
    total, heard = 0.0, []
    for i, own in enumerate((one, two)):
        mixture = np.complex128(own + other) / 2
        masks = net.apply(
            variables,
            parts(mixture),
            frames,
            lip[:, np.array([i, 2])],
            face,
            train=False,
            method="masks",
        )
        weights = np.log1p(np.abs(mixture)).clip(1e-3, 10.0)[..., None]
        for s, voice in enumerate((own, other)):
            ratio = np.complex128(voice) / mixture
            target = np.stack([ratio.real, ratio.imag], axis=-1).clip(-5.0, 5.0)
            total += np.sum(weights * (np.float64(masks[:, s]) - target) ** 2)
            heard.append(net.apply(variables, parts(voice), frames, train=False, method="voice"))
    mask = found["mask_loss"]
    np.testing.assert_allclose(mask.total, total, rtol=1e-3)
    assert (mask.count, mask.weight) == (4 * 2 * examples.FRAMES * 16 * 2, 4.0)
    a1, b1, a2, b2 = np.float64(heard)
    a, b = np.float64(face).swapaxes(0, 1)
    matching = consistency = 0.0
    for i in range(2):
        matching += triplet(a1[i], a[i], b[i]) + triplet(a2[i], a[i], b[i])
        matching += triplet(b1[i], b[i], a[i]) + triplet(b2[i], b[i], a[i])
        consistency += triplet(a1[i], a2[i], b1[i]) + triplet(a1[i], a2[i], b2[i])
    np.testing.assert_allclose(found["matching_loss"].total, matching, rtol=1e-4)
    np.testing.assert_allclose(found["consistency_loss"].total, consistency, rtol=1e-4)


def check_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), one, other)


def test_rows_and_frames_that_are_not_real_have_no_effect(full):
    """Neither on the terms nor on the new statistics."""
    _, variables, given, run = full
    given = {**given, "lengths": jnp.array([SAMPLES, 15 * HOP])}
    expected = run(variables, given, examples.keys(2))
    rubbish = {
        name: jnp.concatenate([x, jnp.full_like(x[:1], jnp.nan) if x.dtype == "float32" else x[:1]])
        for name, x in given.items()
    }
    rubbish["mask"] = jnp.array([True, True, False])
    rubbish["audio"] = rubbish["audio"].at[1, :, 15 * HOP :].set(jnp.nan)
    rubbish["mouth"] = rubbish["mouth"].at[1, :, 4:].set(jnp.nan)
    got = run(variables, rubbish, examples.keys(3))
    check_equal(got, expected)
    assert got[0]["mask_loss"].count == 4 * (24 + 16) * 16 * 2
    turned = jax.tree.map(lambda x: x[::-1], rubbish)
    check_equal(run(variables, turned, examples.keys(3)[::-1]), expected)
    none = {**rubbish, "mask": jnp.zeros(3, bool)}
    terms, _ = run(variables, none, examples.keys(3))
    assert all(t.total == 0 and t.count == 0 for t in terms.values())


def test_a_row_without_a_face_does_not_count_in_matching(full):
    _, variables, given, run = full
    given = {**given, "face_present": given["face_present"].at[0, 1].set(False)}
    found, _ = run(variables, given, examples.keys(2))
    assert found["matching_loss"].count == 4
    assert found["consistency_loss"].count == 4


def test_coins_hang_on_the_key_of_a_row():
    """Rows with the same voices differ in whether the true ones are shown; half of them do."""
    net, variables = initialised(tiny(dropout=0.0))
    given = jax.tree.map(lambda x: x[:1], examples.batch(net.config))

    @jax.jit
    def values(keys):
        def one(key):
            found, _ = examples.terms(net, variables, given, key[None], train=False)
            return found["matching_loss"].total, found["consistency_loss"].total

        return jax.lax.map(one, keys)

    matching, consistency = (np.asarray(x) for x in values(examples.keys(64)))
    first = [np.isclose(x, x.max(), atol=1e-4) for x in (matching, consistency)]
    for values_, which in zip((matching, consistency), first):
        assert np.ptp(values_[which]) < 1e-4 > np.ptp(values_[~which])
        assert 18 < which.sum() < 46
    # The two are thrown apart.
    assert 16 < np.sum(first[0] == first[1]) < 48


VARIANTS = {
    "context": {"context": True},
    "enhancement": {"enhancement": True},
    "lip only": {"face": False},
    "audio only": {"lip": False, "face": False},
}


@pytest.mark.parametrize(
    "name",
    [
        "audio only",
        "enhancement",
        pytest.param("context", marks=pytest.mark.slow),
        pytest.param("lip only", marks=pytest.mark.slow),
    ],
)
def test_terms_and_gradients_of_the_variants(name):
    """Finite, also where there is no sound; every network that a variant has learns."""
    sizes = tiny(**VARIANTS[name])
    net, variables = initialised(sizes)
    given = examples.batch(sizes)
    given["audio"] = given["audio"].at[1].set(0.0)

    @jax.jit
    def run(params):
        def loss(params):
            shown = {**variables, "params": params}
            terms, _ = examples.terms(net, shown, given, examples.keys(2))
            value = metrics.of_terms(terms)["loss"]
            return value.total / value.count, terms

        return jax.grad(loss, has_aux=True)(params)

    gradients, terms = run(variables["params"])
    expected = {"mask_loss", "consistency_loss", "matching_loss"}
    if sizes.enhancement:
        expected = {"mask_loss"}
    elif not sizes.face:
        expected.remove("matching_loss")
    assert set(terms) == expected
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, terms)))
    for part, tree in gradients.items():
        learns = part != "voice_net" or not sizes.enhancement
        assert any(np.any(x) for x in jax.tree.leaves(tree)) == learns, part
    assert terms["mask_loss"].weight == 2 * sizes.voices


def test_without_cues_order_is_free():
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.normal(size=(2, 2, 2, 3, 4, 2)), jnp.float32)
    masks = targets.at[0, 1].set(targets[0, 1, ::-1])
    weights = jnp.ones((2, 2, 3, 4))
    np.testing.assert_array_equal(losses.in_order(masks, targets, weights), targets)


def test_a_weight_of_zero_leaves_a_term_out(full):
    net, variables, given, _ = full
    keys = examples.keys(2)
    for left_out in ({"matching"}, {"consistency"}, {"matching", "consistency"}):
        weights = dataclasses.replace(losses.LossConfig(), **dict.fromkeys(left_out, 0.0))
        found, _ = jax.eval_shape(
            lambda weights=weights: examples.terms(net, variables, given, keys, weights)
        )
        assert set(found) == {
            f"{name}_loss" for name in {"mask", "matching", "consistency"} - left_out
        }


@pytest.mark.slow
def test_overfits():
    """One batch by heart: masks, and embeddings that tell its people apart."""
    net, variables = initialised(tiny(dropout=0.0, unet_first=(12, 16), unet_widths=(24, 24)))
    given, keys = examples.batch(net.config), examples.keys(2)
    optimiser = optax.adam(3e-3)

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            shown = {"params": params, "batch_stats": stats}
            terms, new = examples.terms(net, shown, given, keys, train=True)
            value = metrics.of_terms(terms)["loss"]
            return value.total / value.count, (terms, new)

        gradients, (terms, new) = jax.grad(loss, has_aux=True)(params)
        changes, state = optimiser.update(gradients, state)
        means = {name: t.total / t.count for name, t in terms.items()}
        return optax.apply_updates(params, changes), new["batch_stats"], state, means

    params, stats = variables["params"], variables["batch_stats"]
    state, history = optimiser.init(params), []
    for _ in range(400):
        params, stats, state, means = step(params, stats, state)
        history.append({name: float(x) for name, x in means.items()})
    first, last = history[0], history[-1]
    assert last["mask_loss"] < 0.15 * first["mask_loss"]
    assert last["matching_loss"] < 0.1
    assert last["consistency_loss"] < 0.1
