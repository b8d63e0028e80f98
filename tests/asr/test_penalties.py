"""Penalties on factors: known values, layers of every kind, what their gradients do, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from asr import contextnet, penalties, truncation
from common import errors, metrics
from common.nn import lowrank
from tests import commands

TABLE = ((1, 16, 1), (2, 24, 2))
NAMES = ("orthogonality", "nuclear_norm")


def encoder(**options):
    """A configuration and parameters of it."""
    config = contextnet.reduced(TABLE, **options)
    init = functools.partial(contextnet.ContextNet(config).init, train=False)
    features, lengths = jnp.ones((1, 16, 8)), jnp.array([16], jnp.int32)
    return config, jax.jit(init)(jax.random.key(1), features, lengths)["params"]


def weights(**given):
    return ConfigDict({name: 0.0 for name in NAMES} | given)


def test_orthonormal_columns_cost_nothing():
    rng = np.random.default_rng(0)
    orthonormal = jnp.asarray(np.linalg.qr(rng.normal(size=(7, 3)))[0], jnp.float32)
    assert float(lowrank.non_orthogonality(orthonormal)) == pytest.approx(0, abs=1e-10)
    # V'V of 2 V is 4 I: 3 entries of 3 too much.
    assert float(lowrank.non_orthogonality(2 * orthonormal)) == pytest.approx(27, rel=1e-5)
    both = jnp.stack([orthonormal, 2 * orthonormal])
    assert float(lowrank.non_orthogonality(both)) == pytest.approx(27, rel=1e-5)


def test_energy_of_factors_is_at_least_the_nuclear_norm():
    rng = np.random.default_rng(1)
    matrix = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    norm = np.linalg.svd(matrix, compute_uv=False).sum()
    v, u = lowrank.factor_matrix(matrix, 4)
    assert float(lowrank.factor_energy(v, u)) == pytest.approx(norm, rel=1e-5)
    turn = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    other = v @ turn, jnp.linalg.solve(turn, u)
    np.testing.assert_allclose(other[0] @ other[1], matrix, atol=1e-4)
    assert float(lowrank.factor_energy(*other)) > 1.01 * norm


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"pointwise_rank_fraction": 0.25}, 3),
        ({"pointwise_ranks": (("block_1/residual/projection", 2),)}, 1),
        ({"conv": "spectro_temporal", "rank": 2}, 3),
        ({}, 0),
    ],
)
def test_terms_are_sums_over_the_low_rank_layers(options, layers):
    config, params = encoder(**options)
    assert len(penalties.factors(config, params)) == layers
    orthogonality, energy = 0.0, 0.0
    for name in (*contextnet.pointwise_names(config), *contextnet.filter_names(config)):
        layer = {key: np.asarray(value) for key, value in truncation.at(params, name).items()}
        if "v" in layer:
            pairs = [(layer["v"], layer["u"])]
        elif "spectral" in layer:
            size = layer["spectral"].shape[1] // config.rank
            columns = [[i, i + size] for i in range(size)]  # of one filter
            pairs = [(layer["spectral"][:, at], layer["temporal"][:, at]) for at in columns]
        else:
            continue
        for first, second in pairs:
            gram = first.T @ first
            orthogonality += np.square(gram - np.eye(len(gram))).sum()
            energy += (np.square(first).sum() + np.square(second).sum()) / 2
    found = penalties.terms(weights(orthogonality=2.0, nuclear_norm=0.5), config, params)
    assert {name: term.weight for name, term in found.items()} == {
        "orthogonality": 2.0,
        "nuclear_norm": 0.5,
    }
    for name, value in (("orthogonality", orthogonality), ("nuclear_norm", energy)):
        assert isinstance(found[name], metrics.Term)
        np.testing.assert_allclose(found[name].total / found[name].count, value, rtol=1e-4)
    assert penalties.terms(weights(), config, params) == {}


@pytest.mark.parametrize("name", NAMES)
def test_descent_does_what_a_penalty_says(name):
    """Gradient descent on the term alone: columns become orthonormal, or all factors vanish."""
    config, params = encoder(conv="spectro_temporal", rank=2)

    def loss(params):
        return penalties.terms(weights(**{name: 1.0}), config, params)[name].total

    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.05 * g, p, jax.grad(loss)(p)))
    before = float(loss(params))
    for _ in range(200):
        params = step(params)
    assert float(loss(params)) < 1e-3 * before


def test_weights_without_a_use(tmp_path):
    message = commands.message(
        "asr.main",
        "--config=configs/asr/quickstart.py:debug",
        f"--workdir={tmp_path}",
        "--config.regularize.orthogonality=0.1",
    )
    assert "acts on low-rank layers, and this encoder has none" in message
    low, _ = encoder(pointwise_rank_fraction=0.5)
    penalties.check(weights(orthogonality=0.1), low)
    with pytest.raises(errors.UserError, match=r"nuclear_norm=-1.0: give 0 \(off\) or more"):
        penalties.check(weights(nuclear_norm=-1.0), low)
