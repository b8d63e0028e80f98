"""Distances between sets against closed forms, loops, enumeration and cases worked by hand."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from generation import distances


def white(n, d, seed):
    """Rows with mean 0 and covariance 1, exactly."""
    z = np.random.default_rng(seed).normal(size=(n, d))
    z -= z.mean(0)
    return z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T


def test_the_frechet_distance_of_gaussians_with_the_same_axes():
    """|a - b|^2 and the squared differences of the deviations."""
    one, other = np.array([1.0, 2.0, 0.5]), np.array([1.5, 0.1, 0.5])
    x = white(20, 3, 0) * one + np.array([0.0, 1.0, 3.0])
    y = white(35, 3, 1) * other + np.array([2.0, 1.0, 2.0])
    expected = 2.0**2 + 1.0**2 + np.square(one - other).sum()
    assert distances.frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_gaussians_with_other_axes():
    """By the root of the product, which is not symmetric."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4))
    y = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = shift @ shift + np.trace(a + b - 2 * root)
    assert distances.frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet(y, x) == pytest.approx(expected, rel=1e-9)


def test_fewer_pictures_than_dimensions_will_do():
    x, y = np.random.default_rng(3).normal(size=(2, 4, 10))
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-6)  # roots of rounding errors
    assert distances.frechet(x, y) > 1
    same = np.broadcast_to(x.mean(0), x.shape)  # a point at the mean of the others
    assert distances.frechet(same, x) == pytest.approx(np.trace(np.cov(x, rowvar=False)))
    with pytest.raises(ValueError, match="two pictures"):
        distances.frechet(x[:1], y)


def of(x, y, first, second):
    """The kernel distance of x and y [p, t, d] of the same people, taken so often."""
    means = (distances.kernel_means(*pair) for pair in ((x, x), (y, y), (x, y)))
    return distances.kernel_distance(*means, np.array(first, float), np.array(second, float))


def looped(x, y, first, second):
    """Over all pictures of all pairs of people who are taken, but of nobody with himself."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    def apart(one, other, taken, against):
        found = [
            kernel(a, b)
            for i in np.repeat(np.arange(len(one)), taken)
            for j in np.repeat(np.arange(len(other)), against)
            if i != j
            for a, b in itertools.product(one[i], other[j])
        ]
        return np.mean(found)

    return apart(x, x, first, first) + apart(y, y, second, second) - 2 * apart(x, y, first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 1, 1, 0, 0], [0, 0, 0, 1, 1]), ([1] * 5, [1] * 5), ([2, 0, 1, 3, 0], [2, 0, 1, 3, 0])],
)
def test_the_kernel_distance_is_that_of_all_pairs_of_different_people(first, second):
    x, y = np.random.default_rng(4).normal(size=(2, 5, 2, 3))
    assert of(x, y, first, second) == pytest.approx(looped(x, y, first, second), rel=1e-12)


def test_the_kernel_distance_is_right_on_average():
    """Over all samples of two people of each of two distributions on three points."""
    x, y = np.random.default_rng(5).normal(size=(2, 3, 2)) + np.array([[[0.0]], [[0.5]]])
    expected = (
        distances.polynomial(x, x).mean()
        + distances.polynomial(y, y).mean()
        - 2 * distances.polynomial(x, y).mean()
    )
    found = []
    for i, j, k, m in itertools.product(range(3), repeat=4):
        rows = np.stack([x[i], x[j], y[k], y[m]])[:, None]
        found.append(of(rows, rows, [1, 1, 0, 0], [0, 0, 1, 1]))
    assert np.mean(found) == pytest.approx(expected, rel=1e-12)
    # Also where made and real faces belong together.
    pairs = [list(pair) for pair in itertools.product(range(3), repeat=2)]
    both = [of(x[pair][:, None], y[pair][:, None], [1, 1], [1, 1]) for pair in pairs]
    assert np.mean(both) == pytest.approx(expected, rel=1e-12)


def test_a_line_worked_by_hand():
    """Real faces at 0, 1, 3 and 7: the nearest others are 1, 1, 2 and 4 away."""
    real, made = np.array([[0.0], [1], [3], [7]]), np.array([[-0.5], [2], [4], [20]])
    expected = [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, True, True],
        [False] * 4,
    ]
    np.testing.assert_array_equal(distances.inside(made, real, 1), expected)
    with pytest.raises(ValueError, match="4 pictures have no 4 neighbours each"):
        distances.inside(made, real, 4)


def test_precision_recall_density_and_coverage_are_those_of_loops():
    rng = np.random.default_rng(6)
    made, real = 0.7 * rng.normal(size=(15, 2)), rng.normal(size=(12, 2))

    def radius(points, i, nearest):
        return sorted(np.linalg.norm(points[i] - p) for k, p in enumerate(points) if k != i)[
            nearest - 1
        ]

    def holds(points, i, nearest, point):
        return np.linalg.norm(points[i] - point) <= radius(points, i, nearest)

    found = distances.compared(made, real)
    within, around = range(len(made)), range(len(real))
    expected = {
        "precision": [any(holds(real, i, 3, made[k]) for i in around) for k in within],
        "recall": [any(holds(made, k, 3, real[i]) for k in within) for i in around],
        "density": [sum(holds(real, i, 5, made[k]) for i in around) / 5 for k in within],
        "coverage": [any(holds(real, i, 5, made[k]) for k in within) for i in around],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values)
    assert 0 < np.mean(found.recall) < 1


def test_one_face_for_all_is_precise_and_recalls_nothing():
    real = np.random.default_rng(7).normal(size=(40, 3))
    found = distances.compared(np.zeros((40, 3)), real)
    assert found.precision.all()
    assert not found.recall.any()
    assert found.density.mean() > 1
