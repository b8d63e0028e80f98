"""Deletion and insertion on a function with a known order, layers from the top, likeness."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.analysis import judging


def test_a_known_order_gives_the_steepest_curves():
    """F is a weighted sum, so the best order is that of weight x value."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(10, 8))
    x = np.zeros((2, 12, 8))
    x[0, :10], x[1, :10] = rng.normal(size=(2, 10, 8))
    lengths = np.array([10, 10])

    def score(points):
        return np.einsum("blf,lf->b", points[:, :10], weights)

    maps = [weights * x[row, :10] for row in range(2)]
    found = judging.curves(score, np.zeros_like(x), x, lengths, maps)
    for row, curves in enumerate(found):
        ordered = np.sort(maps[row].ravel())[::-1]
        cut = [int(np.sum(np.arange(80) / 80 < share)) for share in judging.SHARES]
        kept = np.array([ordered[:count].sum() for count in cut])
        np.testing.assert_allclose(curves["insertion"]["attribution"], kept, atol=1e-9)
        np.testing.assert_allclose(curves["deletion"]["attribution"], kept[-1] - kept, atol=1e-9)
        for kind, sign in (("deletion", 1), ("insertion", -1)):
            for other in ("energy", "random"):
                gap = curves[kind][other] - curves[kind]["attribution"]
                assert (sign * gap > -1e-9).all(), (kind, other)
        for kind in ("deletion", "insertion"):
            ends = {tuple(np.round(curve[[0, -1]], 9)) for curve in curves[kind].values()}
            assert len(ends) == 1  # nothing and everything are the same in any order


def test_orders():
    values = np.array([[0.1, 3.0], [-5.0, 2.0]])
    recording = np.array([[4.0, 1.0], [2.0, 3.0]])
    assert judging.order("attribution", values, recording).tolist() == [[2, 0], [3, 1]]
    assert judging.order("energy", values, recording).tolist() == [[0, 3], [2, 1]]
    one, same, other = (
        judging.order("random", np.zeros((50, 3)), np.zeros((50, 3)), seed=seed)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert sorted(one.ravel()) == list(range(150))
    with pytest.raises(ValueError, match="no order"):
        judging.order("best", values, recording)


def test_stretches_of_a_waveform_are_one_cell():
    values = np.array([0.0, 1.0, 5.0, 5.0, -9.0])
    ranks = judging.order("attribution", values, np.ones(5), group=2)
    assert ranks.tolist() == [1, 1, 0, 0, 2]


def test_areas():
    straight = np.linspace(1, 0, 21)
    assert judging.area(straight, 0.0, 1.0) == pytest.approx(0.5)
    assert judging.area(10 * straight - 3, -3.0, 7.0) == pytest.approx(0.5)
    assert np.isnan(judging.area(straight, 1.0, 1.0))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="z_first")(x)
        x = nn.BatchNorm(use_running_average=True, name="m_middle")(x)
        return nn.Dense(2, name="a_last")(nn.tanh(x))


def test_layers_are_randomised_from_the_top():
    """In the order in which they are called, not in that of their names."""
    init = lambda key: Net().init(key, jnp.zeros((1, 4)))  # noqa: E731
    order = judging.layers(init)
    assert order == ["z_first", "m_middle", "a_last"]
    old, fresh = (jax.tree.map(lambda x, s=s: x + s, init(jax.random.key(s))) for s in (1, 2))
    changed = []
    for fraction in (0.0, 1 / 3, 2 / 3, 1.0):
        mixed = judging.randomised(old, fresh, order, fraction)
        assert jax.tree.structure(mixed) == jax.tree.structure(old)
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), mixed, old)
        changed.append([any(jax.tree.leaves(moved["params"][name])) for name in order])
        assert any(jax.tree.leaves(moved["batch_stats"])) == changed[-1][1]
    assert changed == [[False] * 3, [False, False, True], [False, True, True], [True] * 3]


def test_similarity():
    first = np.random.default_rng(0).normal(size=(20, 5))
    assert judging.similarity(first, 3 * first + 0.0) == pytest.approx((1, 1))
    assert judging.similarity(first, -first) == pytest.approx((-1, 1))
    other = np.random.default_rng(1).normal(size=(20, 5))
    assert abs(judging.similarity(first, other)[0]) < 0.3  # 100 ranks: deviation 0.1
    assert np.isnan(judging.similarity(first, np.zeros_like(first))).all()
