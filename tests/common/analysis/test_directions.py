"""Directions: norms by filters, composed filters of low-rank layers, trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors
from common.analysis import directions
from common.nn import lowrank

RNG = np.random.default_rng(7)


def flat(**leaves):
    return {tuple(name.split("__")): np.float64(leaf) for name, leaf in leaves.items()}


KERNELS = flat(
    dense__kernel=RNG.normal(size=(5, 7)),
    depthwise__kernel=RNG.normal(size=(3, 6)) * np.arange(1, 7),
    conv__kernel=RNG.normal(size=(3, 4, 6)),
    conv2d__kernel=RNG.normal(size=(3, 3, 2, 5)),
    norm__scale=RNG.normal(size=6),
    embed__embedding=RNG.normal(size=(9, 4)),
)


def factors(scale=1.0):
    """A product of rank 3 and filters of rank 2, with the scale on either factor."""
    rng = np.random.default_rng(1)
    tree = flat(
        point__v=rng.normal(size=(8, 3)) * scale,
        point__u=rng.normal(size=(3, 10)) / scale,
        filter__spectral=rng.normal(size=(6, 2 * 5)) * scale,
        filter__temporal=rng.normal(size=(4, 2 * 5)) / scale,
    )
    layers = {
        ("point",): directions.Factors("v", "u", None),
        ("filter",): directions.Factors("temporal", "spectral", 2),
    }
    return directions.Space(tree, layers)


def change(space, direction):
    """That of the composed filters, to first order, by JAX's own derivative."""

    def compose(params):
        kernel = lowrank.merge_conv(params["filter"], 2)["kernel"]
        return {"point": lowrank.merge_pointwise(params["point"])["kernel"], "filter": kernel}

    trees = [directions.unflat(tree) for tree in (space.params, direction)]
    with jax.default_matmul_precision("highest"):
        return jax.jvp(compose, (trees[0],), (trees[1],))


def norms(kernel):
    return np.sqrt(np.sum(np.square(kernel), axis=tuple(range(np.ndim(kernel) - 1))))


def test_every_output_filter_has_the_norm_of_its_weights():
    space = directions.Space(KERNELS, {})
    drawn, second = directions.random_directions(space, 2, seed=0)
    for path, leaf in KERNELS.items():
        if leaf.ndim == 1:
            assert not drawn[path].any()
            continue
        rows = path[-1] == "embedding"
        for one in (drawn, second):
            got, wanted = (norms(x.T if rows else x) for x in (one[path], leaf))
            np.testing.assert_allclose(got, wanted, rtol=1e-9)
    assert abs(directions.cosine(drawn, second)) < 1e-6


@pytest.mark.parametrize("normalize", ["layer", "weight", "none"])
def test_other_normalisations(normalize):
    space = directions.Space(KERNELS, {})
    (drawn,) = directions.random_directions(space, 1, seed=0, normalize=normalize, vectors=True)
    (plain,) = directions.random_directions(space, 1, seed=0, normalize="none", vectors=True)
    for path, leaf in KERNELS.items():
        if normalize == "layer":
            assert np.linalg.norm(drawn[path]) == pytest.approx(np.linalg.norm(leaf))
            wanted = plain[path] * np.linalg.norm(leaf) / np.linalg.norm(plain[path])
        else:
            wanted = plain[path] * (leaf if normalize == "weight" else 1)
        np.testing.assert_allclose(drawn[path], wanted, rtol=1e-12)


def test_every_direction_by_single_weights_is_drawn_times_them_once():
    space = directions.Space(KERNELS, {})
    first, second = directions.random_directions(space, 2, seed=0, normalize="weight")
    assert abs(directions.cosine(first, second)) < 1e-6
    for one in (first, second):
        drawn = np.concatenate(
            [(one[path] / leaf).ravel() for path, leaf in KERNELS.items() if leaf.ndim > 1]
        )
        assert 0.8 < drawn.std() < 1.25  # standard normal, 249 of them


def test_factors_are_normalised_by_the_filters_that_they_make():
    space = factors()
    first, second = directions.random_directions(space, 2, seed=3)
    assert set(first) == set(space.params)
    for one in (first, second):
        kernels, moved = change(space, one)
        for name in kernels:  # float32 of the derivative
            np.testing.assert_allclose(norms(moved[name]), norms(kernels[name]), rtol=2e-5)


def test_the_scale_between_factors_does_not_matter():
    """(v s, u / s) is the same layer: the direction is the same change, on the whole path."""
    plain, scaled = factors(), factors(40.0)
    (a,), (b,) = (directions.random_directions(space, 1, seed=3) for space in (plain, scaled))
    for at in (0.7, -1.3):
        for space, one in ((plain, a), (scaled, b)):
            moved = {path: space.params[path] + at * one[path] for path in one}
            made = directions.composed(moved, space.factors)
            if space is plain:
                wanted = made
        for path in wanted:
            np.testing.assert_allclose(made[path], wanted[path], rtol=1e-9, atol=1e-9)


def test_a_layer_of_full_rank_moves_as_the_dense_one_does():
    rng = np.random.default_rng(5)
    v, u = rng.normal(size=(4, 6)), rng.normal(size=(6, 6))
    dense = directions.Space(flat(point__kernel=v @ u), {})
    space = directions.Space(
        flat(point__v=v, point__u=u), {("point",): directions.Factors("v", "u", None)}
    )
    (a,) = directions.random_directions(dense, 1, seed=0)
    (b,) = directions.random_directions(space, 1, seed=0)
    made = b[("point", "v")] @ u + v @ b[("point", "u")]
    np.testing.assert_allclose(made, a[("point", "kernel")], atol=1e-9)


def test_principal_directions_of_a_path_on_a_plane():
    origin = flat(a=np.zeros((3, 3)), b=np.zeros(4))
    x, y = (directions.unit(flat(a=RNG.normal(size=(3, 3)), b=RNG.normal(size=4))) for _ in "xy")
    y = directions.unit({p: y[p] - directions.inner(x, y) * x[p] for p in y})
    path = [{p: s * x[p] + t * y[p] for p in x} for s, t in ((5, 1), (3, -1), (-2, 0.5))]
    found = directions.principal(path, origin, 2)
    assert found.explained[:2].sum() == pytest.approx(1)
    assert abs(directions.cosine(found.directions[0], x)) > 0.9
    for point in path:
        where = directions.place(point, origin, found.directions)
        assert where.distance == pytest.approx(0, abs=1e-9)
    off = {p: path[0][p] + leaf for p, leaf in flat(a=np.zeros((3, 3)), b=np.zeros(4)).items()}
    off[("b",)] = off[("b",)] + 1.0
    assert directions.place(off, origin, [x, y]).distance > 0.1
    with pytest.raises(errors.UserError, match="span no 2 principal directions: keep more"):
        directions.principal(path[:1], origin, 2)


def test_coordinates_on_oblique_directions():
    x, y = flat(a=[[1.0, 0, 0]]), flat(a=[[1.0, 2, 0]])
    where = directions.place(flat(a=[[5.0, 4, 3]]), flat(a=[[0.0, 0, 0]]), [x, y])
    np.testing.assert_allclose(where.coordinates, (3, 2))
    assert where.distance == pytest.approx(3)


def test_checkpoints_of_other_networks_are_named():
    with pytest.raises(errors.UserError, match="of different networks: a and 0 more"):
        directions.difference(flat(a=np.zeros((2, 2))), flat(a=np.zeros((2, 3))))


def test_unflat_gives_the_tree_again():
    tree = {"a": {"b": jnp.ones((2, 2))}, "c": jnp.zeros(3)}
    again = directions.unflat(directions.flat(tree))
    assert jax.tree.all(jax.tree.map(np.array_equal, tree, again))
