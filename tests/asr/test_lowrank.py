"""Rank tables, factorising and merging a trained encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import contextnet, costs, truncation

TABLE = ((1, 16, 1), (2, 24, 2))


@pytest.fixture(scope="module")
def batch():
    return jax.random.normal(jax.random.key(0), (2, 21, 8)), jnp.array([21, 13], jnp.int32)


def trained(batch, **options):
    config = contextnet.reduced(TABLE, **options)
    init = functools.partial(contextnet.ContextNet(config).init, train=False)
    return config, jax.jit(init)(jax.random.key(1), *batch)


def encode(config, params, variables, batch):
    tree = {**variables, "params": params}
    apply = functools.partial(contextnet.ContextNet(config).apply, train=False)
    return jax.jit(apply)(tree, *batch)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pointwise_rank_fraction": 0.25},
        {"conv": "spectro_temporal", "rank": 2},
        {"conv": "dense", "causal": True},
    ],
)
def test_table_adds_up(batch, options):
    config, variables = trained(batch, **options)
    table = costs.layer_table(config, variables["params"])
    total = contextnet.count_parameters(variables["params"])
    assert sum(row.parameters for row in table) == total
    macs = sum(c.macs_per_second for c in costs.layer_costs(config, variables["params"]))
    assert sum(row.macs_per_second for row in table) == pytest.approx(macs)
    for row in table:
        if row.stable_rank is not None:
            assert 1.0 <= row.stable_rank <= row.entropy_rank + 1e-3 <= row.rank + 2e-3
    text = costs.format_table(table)
    assert text.splitlines()[-1] == f"total: {total:,d} parameters, {macs / 1e9:.3f} GMAC/s"


def test_rank_fraction_gives_the_configured_shapes(batch):
    config, variables = trained(batch)
    new, params = truncation.factorize(config, variables["params"], rank_fraction=0.25)
    _, expected = trained(batch, pointwise_rank_fraction=0.25)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected["params"])
    merged_config, merged = truncation.merge(new, params)
    assert merged_config == config
    a, b = encode(new, params, variables, batch), encode(config, merged, variables, batch)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_full_rank_changes_nothing(batch):
    config, variables = trained(batch)
    before = encode(config, variables["params"], variables, batch)
    new, params = truncation.factorize(config, variables["params"], rank_fraction=1.0)
    after = encode(new, params, variables, batch)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    dense, variables = trained(batch, conv="dense")
    new, params = truncation.factorize(dense, variables["params"], rank_fraction=1.0)
    assert (new.conv, new.rank) == ("spectro_temporal", 5)
    before = encode(dense, variables["params"], variables, batch)
    after = encode(new, params, variables, batch)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["separable", "dense"])
def test_budget_is_kept_and_more_is_better(batch, kind):
    config, variables = trained(batch, conv=kind)
    params = variables["params"]
    total = contextnet.count_parameters(params)
    reference = encode(config, params, variables, batch)
    errors = []
    for share in (0.7, 1.0):
        new, smaller = truncation.factorize(config, params, budget_params=int(share * total))
        assert contextnet.count_parameters(smaller) <= share * total
        errors.append(float(jnp.abs(encode(new, smaller, variables, batch) - reference).mean()))
    assert errors[0] > errors[1]
    if kind == "separable":
        assert contextnet.count_parameters(smaller) == total
        assert errors[1] == 0.0


def test_greedy_choice_by_hand():
    """Two 4 x 6 maps: a component costs 10, the dense map 24; the last offer costs 4."""
    spectra = {"a": np.array([3.0, 1.0, 0.1, 0.0]), "b": np.array([1.0, 0.99, 0.98, 0.97])}
    shapes = {"a": (4, 6), "b": (4, 6)}
    assert truncation.choose_ranks(spectra, shapes, 20) == {"a": 1, "b": 1}
    assert truncation.choose_ranks(spectra, shapes, 30) == {"a": 1, "b": 2}
    assert truncation.choose_ranks(spectra, shapes, 34) == {"a": 1}
    assert truncation.choose_ranks(spectra, shapes, 44) == {"a": 2}
    assert truncation.choose_ranks(spectra, shapes, 48) == {}
    with pytest.raises(ValueError, match="below rank 1"):
        truncation.choose_ranks(spectra, shapes, 19)


def test_factorize_wants_one_target(batch):
    config, variables = trained(batch)
    for options in ({}, {"rank_fraction": 0.5, "budget_params": 10}):
        with pytest.raises(ValueError, match="only one"):
            truncation.factorize(config, variables["params"], **options)
    with pytest.raises(ValueError, match="leaves nothing"):
        truncation.factorize(config, variables["params"], budget_params=10)
