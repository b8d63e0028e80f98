"""Attributions: closed forms, completeness, the trapezoid fault, padding, many scalars at once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from common.analysis import attribution, baselines, explaining
from common.nn import masking


def integrate(score, start, end, **options):
    """`attribution.integrated_gradients` of a function of points."""
    path = jax.jit(functools.partial(attribution.path_gradients, score))
    return attribution.integrated_gradients(path, jax.jit(score), start, end, **options)


def net(x: jax.Array) -> jax.Array:
    """A small smooth network, two scalars a row."""
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 8), (8, 2)))
    return jax.nn.log_softmax(jnp.sum(jax.nn.swish(x @ first), axis=1) @ second)


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(3, 4, 5)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("count", [1, 4, 16, 256])
def test_weights_sum_to_one_and_integrate_polynomials(count):
    nodes, weights = attribution.gauss_legendre(count)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights > 0).all()
    assert 0 < nodes.min() <= nodes.max() < 1
    for degree in range(2 * count):
        assert weights @ nodes**degree == pytest.approx(1 / (degree + 1), abs=1e-11)


def test_the_trapezoid_fault_and_that_it_is_not_here():
    """Two libraries halve the ends of n weights 1/n. F(x) = 3 x from 0 to 1 has attribution 3."""
    n = 50
    theirs = np.full(n, 1 / n)
    theirs[[0, -1]] /= 2
    assert theirs.sum() == pytest.approx((n - 1) / n)
    x, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))

    def found(nodes, weights):
        nodes, weights = (jnp.asarray(w, jnp.float32)[None] for w in (nodes, weights))
        return attribution.path_gradients(lambda x: 3 * x, zero, x, nodes, weights).item()

    assert found(np.linspace(0, 1, n), theirs) == pytest.approx(3 * (n - 1) / n, rel=1e-6)
    for count in (1, 50):
        assert found(*attribution.gauss_legendre(count)) == pytest.approx(3, rel=1e-6)


def test_closed_forms():
    x = np.array([[1.0, -2.0, 3.0]], np.float32)
    start = np.array([[0.5, 1.0, -1.0]], np.float32)
    weights = jnp.array([2.0, -1.0, 0.5])
    (linear,) = integrate(lambda x: (x @ weights)[:, None], start, x, first_nodes=1, max_nodes=1)
    np.testing.assert_allclose(linear.values[0], np.asarray(weights) * (x - start)[0], rtol=1e-6)
    assert (linear.nodes, linear.converged) == (1, True)
    # x_i**2: x_i**2 - x'_i**2, of which one node, the midpoint, is exact.
    (square,) = integrate(
        lambda x: jnp.sum(x * x, axis=1, keepdims=True), start, x, first_nodes=1, max_nodes=1
    )
    np.testing.assert_allclose(square.values[0], (x**2 - start**2)[0], rtol=1e-6)
    # A product from 0: its two factors share alike, whatever their sizes; what is not used has 0.
    (product,) = integrate(lambda x: (x[:, 0] * x[:, 1])[:, None], 0 * x, x)
    np.testing.assert_allclose(product.values[0], [-1.0, -1.0, 0.0], rtol=1e-6, atol=1e-7)
    assert product.score == pytest.approx(-2)
    assert product.baseline_score == pytest.approx(0)


def test_completeness_and_linearity(points):
    start, end = points
    both = integrate(net, start, end)
    for row in both:
        assert row.nodes == 16
        assert row.gap_percent < 0.1
        sums = row.values.sum(axis=(1, 2))
        # The scores are float32 of size 10: differences carry errors of 1e-6.
        np.testing.assert_allclose(sums, row.score - row.baseline_score, rtol=1e-4, atol=1e-5)
    mixed = integrate(lambda x: net(x) @ jnp.array([[2.0], [-3.0]]), start, end)
    for row, one in zip(both, mixed):
        combined = 2 * row.values[0] - 3 * row.values[1]
        np.testing.assert_allclose(one.values[0], combined, atol=1e-5 * np.abs(combined).max())


def test_it_is_what_two_thousand_midpoints_give(points):
    """By NumPy, float64, with gradients by central differences."""
    start, end = (p[:1].astype(np.float64) for p in points)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 8)), rng.normal(size=(8, 2))

    def score(x):
        hidden = x @ first
        y = (hidden / (1 + np.exp(-hidden))).sum(axis=1) @ second
        return y[:, 0] - scipy.special.logsumexp(y, axis=1)

    middles = (np.arange(2000) + 0.5) / 2000
    ways = start + middles[:, None, None] * (end - start)
    expected = np.zeros(start.shape[1:])
    for cell in np.ndindex(*expected.shape):
        step = np.zeros((1, *expected.shape))
        step[0][cell] = 1e-5
        slopes = (score(ways + step) - score(ways - step)) / 2e-5
        expected[cell] = slopes.mean() * (end - start)[0][cell]
    found = integrate(net, *(p[:1] for p in points))[0].values[0]
    # Midpoints err by 1 / (24 n**2) of the second derivative; float32 by 1e-6 of the largest.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_nodes_are_doubled_where_they_are_too_few_and_a_failure_is_loud():
    kink = lambda x: jnp.abs(x - 0.3)  # noqa: E731
    zero, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    (few,) = integrate(kink, zero, one, max_nodes=32, tolerance_percent=1e-3)
    assert (few.nodes, few.converged) == (32, False)
    assert few.gap_percent > 1e-3
    # Halving again and again takes 16 nodes a halving: 14 of them leave 1e-3 % of the kink.
    (more,) = integrate(kink, zero, one, max_nodes=256, tolerance_percent=1e-3)
    assert more.converged
    assert 100 < more.nodes <= 256
    assert more.gap_percent <= 1e-3
    np.testing.assert_allclose(more.values, [[[0.4]]][0], rtol=1e-5)
    # A smooth row beside it stops on its own, and has the map of its 16 nodes.
    score = lambda x: jnp.where(x > 1, jnp.square(x), jnp.abs(x - 0.3))  # noqa: E731
    starts, ends = np.float32([[0.0], [1.1]]), np.float32([[1.0], [3.0]])
    rows = integrate(score, starts, ends, max_nodes=256, tolerance_percent=1e-3)
    assert (rows[0].nodes, rows[1].nodes) == (more.nodes, 16)
    np.testing.assert_allclose(rows[0].values, more.values)


def test_a_logarithm_near_silence():
    """What a waveform's energies are: nearly all of it happens in a thousandth of the way."""
    log = lambda x: jnp.log(jnp.square(x) + 1e-6)  # noqa: E731
    zero, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    (even,) = integrate(log, zero, one, max_nodes=16)
    (found,) = integrate(log, zero, one)
    assert even.gap_percent > 1
    assert found.converged
    assert found.values.item() == pytest.approx(np.log(1 + 1e6), rel=1e-3)


def test_nothing_to_explain_has_no_gap_and_a_sum_of_nothing_an_endless_one():
    assert attribution.gap_percent(np.zeros((1, 3)), np.ones(1), np.ones(1)) == 0
    assert attribution.gap_percent(np.ones((1, 3)), np.ones(1), np.ones(1)) == np.inf


def test_cotangents_at_once_equal_a_loop_over_scalars():
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    score = lambda x: jnp.tanh(jnp.sum(x, axis=1) @ weights)  # noqa: E731
    x = jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.float32)
    loop = np.stack([jax.grad(lambda x, k=k: jnp.sum(score(x)[:, k]))(x) for k in range(7)], axis=1)
    for at_once in (1, 3, 7, 100):
        found = attribution.gradients(score, x, at_once)
        np.testing.assert_allclose(found, loop, rtol=1e-6, atol=1e-7)


def test_memory_does_not_grow_with_the_nodes(points):
    start, end = map(jnp.asarray, points)
    path = jax.jit(functools.partial(attribution.path_gradients, net))
    sizes = []
    for count in (16, 512):
        nodes = jnp.zeros((3, count))
        compiled = path.lower(start, end, nodes, nodes).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] + 512 * 3 * 16


def test_sums_of_nodes_are_compensated():
    """1e4 gradients of 1 and weights of 1e-4: plain float32 sums are wrong in the fifth digit."""
    count = 10000
    weights = jnp.full((1, count), np.float32(1 / count))
    found = attribution.path_gradients(
        lambda x: x, jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.zeros((1, count)), weights
    )
    exact = np.asarray(weights, np.float64).sum()
    plain = functools.reduce(lambda a, b: np.float32(a + b), np.asarray(weights)[0])
    assert abs(found.item() - exact) < 1.2e-7 < abs(plain - exact)


def test_shares_inside_a_word():
    values = np.zeros((100, 3))
    values[30:40] = -2.0
    values[80] = 1.0
    share, even = attribution.share_inside(values, 0.3, 0.4, 0.01, slack=0.0)
    assert share == pytest.approx(60 / 63)
    assert even == pytest.approx(0.1)
    assert attribution.share_inside(values, 0.34, 0.36, 0.01, slack=0.05)[0] == pytest.approx(
        60 / 63
    )


def test_baselines():
    rng = np.random.default_rng(3)
    values = (rng.normal(size=(200, 4)) * [1, 2, 3, 4] + [5, 0, -5, 1]).astype(np.float32)
    silence = np.full_like(values, -13.8)
    make = functools.partial(baselines.baselines, values=values, silence=silence, seconds=0.01)
    assert np.array_equal(make("silence"), [silence])
    (mean,) = make("mean")
    np.testing.assert_allclose(mean, np.broadcast_to(values.mean(0), mean.shape), rtol=1e-5)
    noises = make("noise", seed=1)
    assert len(noises) == baselines.NOISES
    assert not np.array_equal(noises[0], noises[1])
    assert np.array_equal(noises, make("noise", seed=1))
    assert not np.array_equal(noises, make("noise", seed=2))
    for noise in noises:  # 200 draws: the deviation of a deviation is 5 %
        np.testing.assert_allclose(noise.std(0), values.std(0), rtol=0.25)
    (blurred,) = make("blurred")
    assert np.abs(np.diff(blurred, axis=0)).max() < 0.1 * np.abs(np.diff(values, axis=0)).max()
    with pytest.raises(ValueError, match="no baseline"):
        make("black")


def test_noise_of_a_recording_does_not_hang_on_its_padding():
    values = np.zeros((2, 30, 2), np.float32)
    values[0, :20], values[1, :30] = 1.0, 2.0
    values[:, 0] = 0.5
    for length, row in ((20, 0), (30, 1)):
        alone = explaining.smooth_points(values[row : row + 1, :length], np.array([length]), 0)
        beside = explaining.smooth_points(values, np.array([20, 30]), 0)
        for a, b in zip(alone, beside):
            assert np.array_equal(a[0], b[row, :length])
            assert not b[row, length:].any()


def test_alone_equals_padded():
    """Attributions are 0 beyond a recording, which has the map that it has alone."""
    rng = np.random.default_rng(4)
    kernel = jnp.asarray(rng.normal(size=(5, 1)), jnp.float32)

    def score(lengths, x):
        x = masking.zero_padding(x, lengths)
        return masking.masked_sum(jnp.tanh(x), lengths) @ kernel

    ends = [rng.normal(size=(1, length, 5)).astype(np.float32) for length in (6, 9)]
    lengths = jnp.array([6, 9], jnp.int32)
    padded = np.zeros((2, 9, 5), np.float32)
    for row, end in enumerate(ends):
        padded[row, : lengths[row]] = end[0]
    together = integrate(functools.partial(score, lengths), 0 * padded, padded)
    for row, end in enumerate(ends):
        (alone,) = integrate(functools.partial(score, lengths[row : row + 1]), 0 * end, end)
        length = lengths[row]
        np.testing.assert_allclose(together[row].values[:, :length], alone.values, atol=1e-6)
        assert not together[row].values[:, length:].any()


def test_averages_over_baselines_add_up(points):
    starts = [points[0] * scale for scale in (0.5, 1.0, 2.0)]
    each = [integrate(net, start, points[1]) for start in starts]
    for parts in zip(*each):
        found = attribution.average(parts, 0.1)
        gap = attribution.gap_percent(found.values, found.score, found.baseline_score)
        assert gap < 0.1
        assert found.gap_percent == max(part.gap_percent for part in parts)
    assert list(itertools.chain(each[0][:1])) == [attribution.average(each[0][:1], 0.1)]
