"""FID and KID: known answers, halves, names by whose weights they are."""

import jax
import ml_collections
import numpy as np
import pytest

from common import errors, package, parallel
from generation import distances, fid, inception, task

SIZE = 40  # features, more than pictures


def pictures(seed, count=24, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(count, SIZE))


def test_few_pictures_have_the_distance_that_many_dimensions_give():
    """That of dimensions, by the roots of matrices, where pictures are more than dimensions."""
    x, y = pictures(0), 1 + pictures(1, 31, 2.0)
    few = distances.frechet(x, y)
    # The same vectors in as many dimensions as they span, 23 + 30 + 1 at most.
    basis = np.linalg.qr(np.concatenate([x, y]).T)[0]
    assert distances.frechet(x @ basis, y @ basis) == pytest.approx(few)
    a, b = (np.cov(z, rowvar=False) for z in (x, y))
    values = np.linalg.eigvals(a @ b).real
    shift = x.mean(0) - y.mean(0)
    both = np.sqrt(np.clip(values, 0, None)).sum()
    assert few == pytest.approx(shift @ shift + np.trace(a + b) - 2 * both)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_kid_of_sets_is_that_of_loops():
    x, y = pictures(0, 5), pictures(1, 7)

    def kernel(a, b):
        return (a @ b / SIZE + 1) ** 3

    def others(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    expected = others(x) + others(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert distances.kernel_distance_of_sets(x, y) == pytest.approx(expected)
    assert fid.kernel_distances(x, y[:5], 5) == pytest.approx(
        [distances.kernel_distance_of_sets(x, y[:5])]
    )


def test_subsets_are_unbiased():
    """Their mean is that of all pictures, and 0 where both sides are of one kind."""
    x, y = pictures(0, 200), 0.2 + pictures(1, 200)
    drawn = fid.kernel_distances(x, y, 50)
    assert drawn.shape == (100,)
    error = drawn.std() / 10
    assert drawn.mean() == pytest.approx(distances.kernel_distance_of_sets(x, y), abs=4 * error)
    # Of so many pictures, as in the halves of a set.
    alike = fid.kernel_distances(x, pictures(2, 200), 50)
    assert abs(alike.mean()) < alike.std()
    assert drawn.mean() > 2 * alike.std()


def outputs(made, real, people, batch=16):
    """In batches with a row that could not be read in each."""
    found = []
    for start in range(0, len(made), batch):
        part = slice(start, start + batch)
        kept = {"inception_made": made[part], "inception_real": real[part]}
        mask = np.append(np.ones(len(made[part]), bool), False)
        found.append({**kept, "person": np.append(people[part], 99), "mask": mask})
    return found


def network(is_original=True):
    return inception.Inception({}, is_original)


def test_a_report_of_people():
    people = np.arange(40).repeat(2)
    own = pictures(3, 40).repeat(2, axis=0)  # whose two pictures are hardly different
    made, real = own + 0.1 * pictures(4, 80), own + 0.1 * pictures(5, 80)
    found = fid.report("dev", outputs(made, real, people), network(), by_class=False)
    numbers, (whole, halves, kernel) = found.scalars, found.lines
    assert numbers["fid"] == pytest.approx(distances.frechet(made, real))
    assert numbers["inception_pictures"] == 80
    ends = [numbers["fid"] + side * 1.96 * numbers["fid_deviation"] for side in (-1, 1)]
    assert whole.startswith("dev FID {:.4g} [{:.4g}, {:.4g}]: ".format(numbers["fid"], *ends))
    assert ": 80 made pictures against as many real ones, brought to 299 x 299" in whole
    assert whole.endswith("; 95 % over people")
    assert "compare it with that of as many; published: 50,000" in whole
    # Nobody is on both sides: what is made is as far from them as their own pictures.
    assert numbers["fid_of_halves"] == pytest.approx(numbers["real_fid_of_halves"], rel=0.1)
    assert numbers["fid_of_halves"] > 5 * numbers["fid"]
    assert halves.startswith("dev FID of halves: made ")
    assert halves.endswith("(40 pictures)")
    assert kernel.startswith("dev KID ")
    assert "100 subsets of 40 pictures, deviation " in kernel
    assert numbers["kid_deviation"] > 0
    by_class = fid.report("dev", outputs(made, real, people), network(), by_class=True)
    assert by_class.scalars["real_fid_of_halves"] < numbers["real_fid_of_halves"]
    assert by_class.lines[0].endswith("; 95 % over pictures")


def test_the_deviation_of_a_distance_is_that_of_distances():
    """Of sets drawn anew: people with two pictures each, which resemble each other."""
    people, found, said = np.arange(100).repeat(2), [], []
    for seed in range(30):
        made, real = (
            pictures(2 * seed + side, 100).repeat(2, axis=0)
            + pictures(2 * seed + side + 1000, 200, 0.5)
            for side in (0, 1)
        )
        found.append(distances.frechet(2 * made + 1, real))
        said.append(fid.frechet_deviation(2 * made + 1, real, people))
    assert np.mean(said) == pytest.approx(np.std(found, ddof=1), rel=0.3)
    # Pictures taken for people of their own: half of them say little that is new.
    alone = fid.frechet_deviation(2 * made + 1, real, np.arange(200))
    assert alone < 0.95 * said[-1]


def test_by_other_weights_it_is_no_fid():
    people = np.arange(20)
    rows = outputs(pictures(0, 20), pictures(1, 20), people)
    found = fid.report("dev", rows, network(is_original=False), by_class=False)
    assert not {"fid", "kid"} & set(found.scalars)
    assert {"torchvision_frechet", "real_torchvision_kernel"} <= set(found.scalars)
    assert found.lines[0].startswith("dev Frechet distance (torchvision's Inception: no FID) ")
    assert found.lines[2].startswith("dev kernel distance (torchvision's Inception: no KID) ")


def test_few_people_say_nothing():
    people = np.arange(7).repeat(2)
    rows = outputs(pictures(0, 14), pictures(1, 14), people)
    few = fid.report("dev", rows, network(), by_class=False)
    assert (few.scalars, few.lines) == ({}, ["dev: Inception's distances take 8 people."])
    assert fid.report("dev", rows, network(), by_class=True).scalars


@pytest.mark.parametrize("kind", ["face2voice", "matcher", "revoice", "voice"])
def test_networks_without_pictures_are_refused(tmp_path, kind):
    """Before the file is looked for."""
    config = ml_collections.FrozenConfigDict({"model": {"kind": kind}})
    options = fid.Options(str(tmp_path / "none.pth"))
    mesh = parallel.make_mesh(jax.devices()[:1])
    context = package.Context(tmp_path, config, mesh, None, options=options)
    with pytest.raises(errors.UserError, match=f"of kind '{kind}' makes no pictures"):
        fid.EVALUATE.run(task.PACKAGE, context)
