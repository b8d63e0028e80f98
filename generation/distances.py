"""How far one set of pictures is from another, by vectors of a network: arrays in, numbers out.

The Frechet distance and the kernel distance are called FID and KID of Inception's vectors only
(Heusel et al. 2017, Binkowski et al. 2018); of another network they are other figures. Where a
function takes people [p, t, d] it has t pictures of each, which resemble each other.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import distance

MANIFOLD, DENSITY = 3, 5  # ranks of neighbours, as in the papers of `Inside`


def frechet(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Squared distance of two Gaussians with the means and covariances of two sets.

    |a - b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): Dowson and Landau (1982), equation 4. With few
    pictures it is too large, so that only sets of as many are compared; fewer than dimensions will
    do. Raises ValueError for one picture.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a Frechet distance takes two pictures on each side")
    if max(len(x), len(y)) < x.shape[-1]:
        return _frechet_of_few(x, y)
    a, b = (np.atleast_2d(np.cov(z, rowvar=False, dtype=np.float64)) for z in (x, y))
    shift = np.mean(x, axis=0, dtype=np.float64) - np.mean(y, axis=0, dtype=np.float64)
    root = _root(a)
    # Of a positive semidefinite matrix; rounding makes some of its zeros negative.
    both = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * both)


def _frechet_of_few(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The same by matrices of pictures and not of dimensions: with A = X^T X and B = Y^T Y the last
    trace is that of the singular values of X Y^T."""
    means = [np.mean(z, axis=0, dtype=np.float64) for z in (x, y)]
    a, b = ((z - mean) / np.sqrt(len(z) - 1) for z, mean in zip((x, y), means))
    shift = means[0] - means[1]
    both = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * both)


def _root(x: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(x)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def polynomial(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """(x y / d + 1)^3, the kernel of Binkowski et al. (2018), section 4."""
    return (np.asarray(x, np.float64) @ np.asarray(y, np.float64).T / x.shape[-1] + 1) ** 3


def kernel_means(
    x: Float[np.ndarray, "p t d"], y: Float[np.ndarray, "q s d"]
) -> Float[np.ndarray, "p q"]:
    """The mean kernel of one's pictures with another's, for every two people; in blocks of one."""
    people, pictures, d = y.shape
    flat = y.reshape(-1, d)
    return np.stack([polynomial(own, flat).mean(0).reshape(people, pictures).mean(1) for own in x])


def kernel_distance(
    xx: Float[np.ndarray, "p p"],
    yy: Float[np.ndarray, "p p"],
    xy: Float[np.ndarray, "p p"],
    first: Float[np.ndarray, "p"],
    second: Float[np.ndarray, "p"],
) -> float:
    """Unbiased MMD^2 (Gretton et al. 2012, lemma 6) between the x and the y of people, by the
    `kernel_means` of all.

    `first` and `second` say how often each of the p people is taken on either side. Nobody is
    compared with himself, however often he is taken: x and y of the same people will do.
    """
    return _apart(xx, first, first) + _apart(yy, second, second) - 2 * _apart(xy, first, second)


def kernel_distance_of_sets(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The same of pictures that are all somebody else's, KID as published: every x is compared with
    every y."""
    both = np.concatenate([x, y])
    kernel, first = polynomial(both, both), np.arange(len(both)) < len(x)
    return kernel_distance(kernel, kernel, kernel, first.astype(float), (~first).astype(float))


def _apart(
    means: Float[np.ndarray, "p p"], one: Float[np.ndarray, "p"], other: Float[np.ndarray, "p"]
) -> float:
    """The mean over pairs of different people."""
    total = one @ means @ other - (one * other) @ np.diagonal(means)
    return float(total / (one.sum() * other.sum() - one @ other))


class Inside(NamedTuple):
    """What `inside` says of two sets, in values of which each figure is the mean.

    Precision and recall: Kynkaanniemi et al. (2019), equations 1 and 2; density and coverage: Naeem
    et al. (2020), equations 4 and 6.
    """

    precision: Bool[np.ndarray, "m"]
    recall: Bool[np.ndarray, "n"]
    density: Float[np.ndarray, "m"]
    coverage: Bool[np.ndarray, "n"]


def inside(
    points: Float[np.ndarray, "m d"], centres: Float[np.ndarray, "n d"], nearest: int
) -> Bool[np.ndarray, "m n"]:
    """Which points lie in the balls around which centres.

    A ball reaches to the centre's neighbour of that rank among the other centres. Raises ValueError
    where there is none.
    """
    if len(centres) <= nearest:
        raise ValueError(f"{len(centres)} pictures have no {nearest} neighbours each")
    # The first one of a row is the centre itself.
    radii = np.partition(distance.cdist(centres, centres), nearest, axis=1)[:, nearest]
    return distance.cdist(points, centres) <= radii[None, :]


def compared(made: Float[np.ndarray, "m d"], real: Float[np.ndarray, "n d"]) -> Inside:
    """Made pictures against real ones. Raises ValueError for too few of either."""
    around = inside(made, real, DENSITY)
    return Inside(
        inside(made, real, MANIFOLD).any(1),
        inside(real, made, MANIFOLD).any(1),
        around.sum(1) / DENSITY,
        around.any(0),
    )
