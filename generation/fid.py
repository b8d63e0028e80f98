"""FID and KID: how far made pictures are from real ones, by Inception's features.

Heusel et al. (2017, section 4) and Binkowski et al. (2018, section 4). Only with the weights that
published figures stand on do these have their names here; a user has to give them (`inception`).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from common import app, errors
from common.mode_options import option
from common.package import Context, Mode, Package
from common.task import Report
from generation import distances, inception

_NO_PICTURES = ("face2voice", "matcher", "revoice", "voice")  # kinds of networks
_LEAST = 8  # pictures: fewer say nothing
_SUBSETS, _SUBSET = 100, 1000  # of KID, and pictures in each, as published
_PARTS = 20  # of FID's interval: a distance in 2,048 dimensions takes seconds
_USUAL = 50_000  # pictures of published FIDs
_SEED = 0  # of halves, subsets and intervals
_NORMAL = 1.96  # deviations to either end of 95 %


class _Names(NamedTuple):
    """Of the two distances, in files and as they are said."""

    frechet: str
    kernel: str
    frechet_title: str
    kernel_title: str


_ORIGINAL = _Names("fid", "kid", "FID", "KID")
_TORCHVISION = _Names(
    "torchvision_frechet",
    "torchvision_kernel",
    "Frechet distance (torchvision's Inception: no FID)",
    "kernel distance (torchvision's Inception: no KID)",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The flag of --mode=evaluate."""

    inception_weights: str = option(
        "", "FID and KID by this file: pt_inception-2015-12-05-6726825d.pth"
    )


def _evaluate(package: Package, context: Context) -> None:
    """The usual evaluation, by a task that has the network."""
    path = context.options.inception_weights
    if path:
        kind = context.config.model.kind
        if kind in _NO_PICTURES:
            raise errors.UserError(
                f"--inception_weights has no use: a network of kind {kind!r} makes no pictures."
            )
        network = inception.read(pathlib.Path(path).expanduser())
        package = dataclasses.replace(package, make_task=_with(package.make_task, network))
        about = {**context.changed, "inception_weights": path}
        context = dataclasses.replace(context, changed=about)
    app.MODES["evaluate"].run(package, context)


def _with(make_task: Any, network: inception.Inception) -> Any:
    def make(config: Any, folder: pathlib.Path) -> Any:
        return dataclasses.replace(make_task(config, folder), fid_network=network)

    return make


EVALUATE: Mode = app.MODES["evaluate"]._replace(run=_evaluate, options=Options)


def kept(
    network: inception.Inception,
    mask: Bool[np.ndarray, "b"],
    made: UInt8[np.ndarray, "b h w c"],
    real: UInt8[np.ndarray, "b h w c"],
) -> dict[str, np.ndarray]:
    """What `report` takes of a batch; of rows outside of the mask nothing."""
    count = int(mask.sum())
    found = network.features(np.concatenate([made[mask], real[mask]]))
    return {"inception_made": found[:count], "inception_real": found[count:]}


def report(
    split: str,
    outputs: Sequence[Mapping[str, np.ndarray]],
    network: inception.Inception,
    by_class: bool,
) -> Report:
    """Of batches of `kept` with "person" and "mask": made pictures against as many real ones.

    Both are also divided by lot into halves, people with all their pictures or, where they are
    classes, each picture for itself. What is made for the one half is compared with the real ones
    of the other, and so are the real ones: the floor for so many.
    """
    made, real = (
        np.concatenate([batch[f"inception_{side}"] for batch in outputs])
        for side in ("made", "real")
    )
    people = np.concatenate([batch["person"][batch["mask"]] for batch in outputs])
    groups = np.arange(len(people)) if by_class else people
    if len(np.unique(groups)) < _LEAST:
        what = "pictures" if by_class else "people"
        return Report({}, [f"{split}: Inception's distances take {_LEAST} {what}."])
    first, second = _halves(groups)
    frechet, numbers, said = _frechet(made, real, first, second)
    spread = frechet_deviation(made, real, groups)
    numbers["{}_deviation"] = spread
    low, high = frechet - _NORMAL * spread, frechet + _NORMAL * spread
    kernel, more, more_said = _kernel(made, real, first, second)
    names = _ORIGINAL if network.is_original else _TORCHVISION
    scalars = {**_named(names.frechet, numbers), **_named(names.kernel, more)}
    lines = [
        f"{split} {names.frechet_title} {frechet:.4g} [{low:.4g}, {high:.4g}]: {len(made):,} made "
        f"pictures against as many real ones, brought to {inception.SIDE} x {inception.SIDE} "
        f"bilinearly{_few(len(made))}; 95 % over {'pictures' if by_class else 'people'}",
        f"{split} {names.frechet_title} of halves: {said}",
        f"{split} {names.kernel_title} {kernel:.4g}: {more_said}",
    ]
    return Report({**scalars, "inception_pictures": float(len(made))}, lines)


def _named(name: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {form.format(name): float(x) for form, x in numbers.items()}


def _few(count: int) -> str:
    if count >= _USUAL:
        return ""
    return f" (the fewer, the larger: compare it with that of as many; published: {_USUAL:,})"


def _frechet(
    made: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "n d"],
    first: Int[np.ndarray, "k"],
    second: Int[np.ndarray, "m"],
) -> tuple[float, dict[str, float], str]:
    """The figure, all by the form of their names, and what is said of halves; with made pictures
    the mean of both directions."""
    whole = distances.frechet(made, real)
    both = ((first, second), (second, first))
    crossed = np.mean([distances.frechet(made[one], real[other]) for one, other in both])
    floor = distances.frechet(real[first], real[second])
    numbers = {"{}": whole, "{}_of_halves": crossed, "real_{}_of_halves": floor}
    count = min(len(first), len(second))
    said = f"made {crossed:.4g}, real ones in their place {floor:.4g} ({count:,} pictures)"
    return whole, numbers, said


def frechet_deviation(
    made: Float[np.ndarray, "n d"], real: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "n"]
) -> float:
    """Of the distance, by the jackknife that leaves out a part of the groups at a time, of made and
    real ones alike (Shao and Wu 1989). With fewer pictures than dimensions it is too large."""
    names = np.random.default_rng(_SEED).permutation(np.unique(groups))
    parts = np.array_split(names, min(_PARTS, len(names)))
    others = (~np.isin(groups, part) for part in parts)
    found = np.array([distances.frechet(made[kept], real[kept]) for kept in others])
    return float(np.sqrt((len(parts) - 1) * np.var(found)))


def _kernel(
    made: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "n d"],
    first: Int[np.ndarray, "k"],
    second: Int[np.ndarray, "m"],
) -> tuple[float, dict[str, float], str]:
    """As `_frechet`; the real ones of one half against those of the other."""
    size = min(_SUBSET, len(made) // 2)
    drawn = kernel_distances(made, real, size)
    halves = real[first], real[second]
    floor = kernel_distances(*halves, min(_SUBSET, *map(len, halves))).mean()
    mean, deviation = drawn.mean(), drawn.std(ddof=1)
    numbers = {"{}": mean, "{}_deviation": deviation, "real_{}": floor}
    said = (
        f"the mean over {_SUBSETS} subsets of {size:,} pictures, deviation {deviation:.2g}; halves "
        f"of the real ones {floor:.4g}"
    )
    return mean, numbers, said


def _halves(groups: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "m"]]:
    """The places of two halves of the groups."""
    names = np.random.default_rng(_SEED).permutation(np.unique(groups))
    ours = np.isin(groups, names[: len(names) // 2])
    return np.flatnonzero(ours), np.flatnonzero(~ours)


def kernel_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], size: int
) -> Float[np.ndarray, "k"]:
    """Of subsets of `size` drawn without replacement, or once of all where these are as many."""
    if size == len(x) == len(y):
        return np.array([distances.kernel_distance_of_sets(x, y)])
    rng = np.random.default_rng(_SEED)
    found = []
    for _ in range(_SUBSETS):
        some = [z[rng.choice(len(z), size, replace=False)] for z in (x, y)]
        found.append(distances.kernel_distance_of_sets(*some))
    return np.array(found)
