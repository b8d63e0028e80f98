"""Truncation to a budget: known errors on weights and activations, what is kept, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import activations, contextnet, costs, truncation
from common.nn import lowrank

TABLE = ((1, 16, 1), (2, 24, 2))


@pytest.fixture(scope="module")
def batch():
    features = jax.random.normal(jax.random.key(0), (2, 21, 8))
    return features, jnp.array([21, 13], jnp.int32)


@pytest.fixture(scope="module")
def trained(batch):
    config = contextnet.reduced(TABLE)
    init = functools.partial(contextnet.ContextNet(config).init, train=False)
    return config, jax.jit(init)(jax.random.key(1), *batch)


@pytest.fixture(scope="module")
def seen(batch, trained):
    """X'X and the inputs themselves of every map, by a loop over rows without padding."""
    config, variables = trained
    module = contextnet.ContextNet(config)

    def sums(features, lengths):
        found = {}
        with activations.inputs_seen(found):
            module.apply(variables, features, lengths, train=False)
        return found

    features, lengths = batch
    together = jax.jit(sums)(features.at[1, 13:].set(7.0), lengths)
    alone = [
        jax.jit(sums)(features[i : i + 1, :n], lengths[i : i + 1]) for i, n in [(0, 21), (1, 13)]
    ]
    return together, alone


def inputs(rng, n, c, rank=None):
    """Correlated inputs, of fewer directions than channels if asked."""
    return rng.normal(size=(n, rank or c)) @ rng.normal(size=(rank or c, c)) + 0.5


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
def test_error_on_activations_is_the_tail_and_the_least(shape):
    rng = np.random.default_rng(0)
    x, matrix = inputs(rng, 50, shape[0]), rng.normal(size=shape)
    found = lowrank.decompose(matrix, x.T @ x)
    # By another way: through the root of the moment and its inverse.
    values, axes = np.linalg.eigh(x.T @ x)
    root = axes * np.sqrt(values) @ axes.T
    left, singular, right = np.linalg.svd(root @ matrix, full_matrices=False)
    np.testing.assert_allclose(found.singular, singular, rtol=1e-4)
    for rank in (1, 3, min(shape)):
        factored = found.v[:, :rank] @ found.u[:rank]
        best = np.linalg.solve(root, left[:, :rank] * singular[:rank] @ right[:rank])
        np.testing.assert_allclose(factored, best, atol=1e-3)
        error = np.square(x @ (matrix - factored)).sum()
        np.testing.assert_allclose(error, np.square(singular[rank:]).sum(), rtol=1e-3, atol=1e-8)
        np.testing.assert_allclose(
            found.lost(rank), error / np.square(x @ matrix).sum(), rtol=1e-3, atol=1e-8
        )
        of_weights = lowrank.decompose(matrix)
        other = of_weights.v[:, :rank] @ of_weights.u[:rank]
        assert error <= np.square(x @ (matrix - other)).sum() + 1e-8
        tail = np.square(np.linalg.svd(matrix, compute_uv=False)[rank:]).sum()
        np.testing.assert_allclose(np.square(matrix - other).sum(), tail, atol=1e-10)
    # Both factors are of one size.
    sizes = np.linalg.norm(found.v, axis=0), np.linalg.norm(found.u, axis=1)
    np.testing.assert_allclose(*sizes)


def test_error_of_scaled_outputs():
    rng = np.random.default_rng(1)
    x, matrix, scale = inputs(rng, 40, 6), rng.normal(size=(6, 5)), np.array([5.0, 1, 1, 0.1, 0])
    found = lowrank.decompose(matrix, x.T @ x, scale)
    for rank in (1, 2, 3):
        error = x @ (matrix - found.v[:, :rank] @ found.u[:rank]) * scale
        np.testing.assert_allclose(
            np.square(error).sum(), np.square(found.singular[rank:]).sum(), rtol=1e-3, atol=1e-6
        )
    with pytest.raises(ValueError, match="goes with"):
        lowrank.decompose(matrix, None, scale)


def test_inputs_of_few_directions():
    """Nothing is lost on them at their rank, nothing at all at full rank; zeros do no harm."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 6))
    matrix = rng.normal(size=(6, 8))
    found = lowrank.decompose(matrix, x.T @ x)
    error = x @ (matrix - found.v[:, :2] @ found.u[:2])
    assert np.abs(error).max() < 1e-4 * np.abs(x @ matrix).max()
    assert found.lost(2) < 1e-5
    np.testing.assert_allclose(found.v @ found.u, matrix, atol=1e-8)
    nothing = lowrank.decompose(matrix, np.zeros((6, 6)))
    assert np.isfinite(nothing.v @ nothing.u).all()


def test_moments_are_of_true_frames_alone(trained, seen):
    config, _ = trained
    together, alone = seen
    assert set(together) == set(contextnet.pointwise_names(config))
    for name, moment in together.items():
        apart = sum(np.asarray(part[name]) for part in alone)
        np.testing.assert_allclose(moment, apart, rtol=1e-4, atol=1e-4)


def test_the_first_map_sees_filtered_features(batch, trained, seen):
    """Against NumPy: the depthwise filter over the rows, and the residual's every second frame."""
    _, variables = trained
    taps = np.asarray(variables["params"]["block_0"]["conv_0"]["depthwise"]["kernel"])
    moment = 0.0
    for row, length in zip(*map(np.asarray, batch)):
        padded = np.pad(row[:length], ((2, 2), (0, 0)))
        x = sum(padded[k : k + length] * taps[k] for k in range(5))
        moment = moment + x.T @ x
    np.testing.assert_allclose(seen[0]["block_0/conv_0/pointwise"], moment, rtol=1e-4, atol=1e-4)


def test_measured_error_of_a_truncated_net_is_the_predicted(batch, trained, seen):
    """The first map's output, of which nothing before it is truncated."""
    config, variables = trained
    together, _ = seen
    moments = {name: (np.asarray(moment), None) for name, moment in together.items()}
    maps = truncation.decompositions(config, variables["params"], moments)
    new, params = truncation.factorize(config, variables["params"], rank_fraction=0.5, maps=maps)
    name = "block_0/conv_0/pointwise"
    assert dict(new.pointwise_ranks)[name] == 4
    before = np.asarray(truncation.at(variables["params"], name)["kernel"])
    after = np.asarray(lowrank.merge_pointwise(truncation.at(params, name))["kernel"])
    moment = np.asarray(together[name])
    error = np.trace((before - after).T @ moment @ (before - after))
    whole = np.trace(before.T @ moment @ before)
    np.testing.assert_allclose(error / whole, maps[name].lost(4), rtol=1e-3)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_budgets_are_kept(trained, seen, by):
    config, variables = trained
    params, maps = variables["params"], None
    if by == "activations":
        stats = variables["batch_stats"]
        scales = activations.output_scales(config, params, stats)
        moments = {name: (np.asarray(m), scales[name]) for name, m in seen[0].items()}
        maps = truncation.decompositions(config, params, moments)

    def total(config, params):
        layers = costs.layer_costs(config, params)
        return (
            sum(layer.parameters for layer in layers),
            sum(layer.macs_per_second for layer in layers),
        )

    size, macs = total(config, params)
    factorize = functools.partial(truncation.factorize, config, params, maps=maps)
    a = total(*factorize(budget_params=int(0.8 * size)))
    b = total(*factorize(budget_macs=0.7 * macs))
    both = total(*factorize(budget_params=int(0.8 * size), budget_macs=0.7 * macs))
    assert 0.75 * size < a[0] <= 0.8 * size
    assert 0.65 * macs < b[1] <= 0.7 * macs
    assert both[0] <= 0.8 * size
    assert both[1] <= 0.7 * macs
    new, same = factorize(budget_macs=macs)
    assert (new.pointwise_ranks, total(new, same)) == ((), (size, macs))


def test_what_cannot_be_had(trained):
    config, variables = trained
    with pytest.raises(truncation.LowRankError, match=r"MMAC/s leaves nothing .* MMAC/s"):
        truncation.factorize(config, variables["params"], budget_macs=10.0)
    dense = contextnet.reduced(TABLE, conv="dense")
    with pytest.raises(truncation.LowRankError, match="by weights"):
        truncation.factorize(dense, {}, budget_params=10, maps={})
