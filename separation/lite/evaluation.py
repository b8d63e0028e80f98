"""What an evaluation says of filtered features: errors, over-suppression, noise type, words."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from asr import wer
from common import files, metrics
from common.data import splits
from common.nn import masking
from common.task import Report
from separation import fixed, judges
from separation.lite import losses

# Taken from the batch as it is.
GIVEN = ("present", "snr_db", "target_index", "enrolment_index", "interferer_index")
CONDITIONS = {"": "with other voices", "alone_": "without other voices"}
OVER_DB = 3.0  # an energy is suppressed too much that is so far below the clean one
_ERRORS = ("given_error", "error", "full_error", "given_over", "over", "full_over")
_COUNTS = ("frames", "overlapped", "right", "right_overlapped")


def measures(parts: Any, found: Any, present: Bool[Array, "b"]) -> dict[str, Float[Array, "b"]]:
    """Of each row, from `task.Parts` and `task.Filtered`.

    Squared error in nats and the share of energies that are too low, over bands and the frames in
    which the target talks (NaN without any), of what was given, what came out, and what would at
    full strength; the mean strength; true frames, those in which another voice talks, and how many
    of both the network told.
    """
    there = masking.length_mask(parts.frames, parts.mixture.shape[1])
    talks = losses.active(parts.target, parts.mixture, parts.frames) & present[:, None]
    count = jnp.sum(talks, axis=1)
    result = {}

    def mean(values: Float[Array, "b l m"]) -> Float[Array, "b"]:
        total = jnp.sum(jnp.where(talks, jnp.mean(values, axis=2), 0.0), axis=1)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)

    limit = OVER_DB * math.log(10) / 10
    for prefix, x in (("given_", parts.mixture), ("", found.features), ("full_", found.full)):
        apart = parts.target - x
        result[f"{prefix}error"] = mean(jnp.square(apart))
        result[f"{prefix}over"] = mean((apart > limit).astype(jnp.float32))
    frames = jnp.maximum(parts.frames, 1)
    result["strength"] = jnp.sum(jnp.where(there, found.strength, 0.0), axis=1) / frames
    overlapped = losses.active(parts.others, parts.mixture, parts.frames)
    right = there & ((found.overlapped > 0) == overlapped)
    told = (there, overlapped, right, right & overlapped)
    return result | {
        name: jnp.sum(x, axis=1).astype(jnp.float32) for name, x in zip(_COUNTS, told, strict=True)
    }


def transcribed(
    heard: Mapping[str, np.ndarray], texts: Mapping[int, str], recogniser: Any
) -> dict[str, Shaped[np.ndarray, "n"]]:
    """Words, errors and what was understood of the rows that have a text; 0 and "" of others."""
    rows, signals = len(heard["lengths"]), [name for name in heard if name != "lengths"]
    words, found = [0] * rows, {}
    for signal in signals:
        said, wrong = [""] * rows, [0] * rows
        features = [heard[signal][i, : heard["lengths"][i]] for i in texts]
        for i, text in zip(texts, recogniser.texts_of(features)):
            counts = wer.score(str(i), recogniser.normalize(texts[i]), text).counts
            said[i], wrong[i], words[i] = text, counts.errors, counts.ref
        # The names that `judges` has for them: what came out needs none.
        place = f"{signal}_".replace("extracted_", "")
        found |= {f"{place}word_errors": wrong, f"{place}said": said}
    return {name: np.array(values) for name, values in {"words": words, **found}.items()}


def summarise(
    split: str, outputs: Sequence[Mapping[str, np.ndarray]], part: splits.Split
) -> Report:
    """Scalars, lines and <split>.csv with a row for every mixture.

    Errors are means over mixtures whose target is present, the noise type's over frames. Intervals:
    95 %, over speakers of the targets.
    """
    real = np.concatenate([batch["mask"] for batch in outputs])
    names = [name for name in outputs[0] if name not in ("mask", "examples")]
    rows = {name: np.concatenate([batch[name] for batch in outputs])[real] for name in names}
    order = np.argsort(rows["index"], kind="stable")
    rows = {name: np.asarray(values)[order] for name, values in rows.items()}
    targets = [part.written_at(int(i)) for i in rows["target_index"]]
    speakers = np.array([row["speaker"] for row in targets])
    scalars, lines = {"mixtures": float(len(targets))}, []
    for prefix, words in CONDITIONS.items():
        own = {n: rows[f"{prefix}{n}"] for n in (*_ERRORS, *_COUNTS, "strength")}
        found, said = _errors(own, speakers)
        scalars |= {f"{prefix}{name}": value for name, value in found.items()}
        lines += [f"{split} {words}: {line}" for line in said]
    found, line = _noise_type(rows, speakers)
    scalars |= found
    lines.append(f"{split} noise type: {line}")
    if "words" in rows:
        for prefix, words in CONDITIONS.items():
            found, line = _words(rows, prefix, speakers)
            scalars |= found
            lines.append(f"{split} WER {words}: {line}")
    table = _table(rows, targets, speakers, part)
    return Report(scalars, lines, files={f"{files.safe_name(split)}.csv": table})


def _errors(
    rows: Mapping[str, np.ndarray], speakers: Shaped[np.ndarray, "n"]
) -> tuple[dict[str, float], list[str]]:
    known = np.isfinite(rows["given_error"])
    if not known.any():
        return {"feature_error": math.nan}, ["no mixture in which the target talks"]
    owners, scalars = speakers[known], {}

    def told(name: str, scalar: str, scale: float | int, unit: str) -> str:
        values = rows[name][known].astype(np.float64)
        value = scalars[scalar] = float(np.mean(values))
        low, high = metrics.group_interval(values, owners, np.mean)
        return f"{scale * value:.2f}{unit} [{scale * low:.2f}, {scale * high:.2f}]"

    lines = []
    for name, scalar, scale, unit, title in (
        ("error", "feature_error", 1, "", "squared error of log-energies (nats)"),
        ("over", "over_suppression", 100, " %", f"more than {OVER_DB:g} dB too low"),
    ):
        given = told(f"given_{name}", f"given_{scalar}", scale, unit)
        after, full = (told(f"{p}{name}", f"{p}{scalar}", scale, unit) for p in ("", "full_"))
        gained = (rows[name] - rows[f"given_{name}"])[known].astype(np.float64)
        low, high = (scale * x for x in metrics.group_interval(gained, owners, np.mean))
        lines.append(
            f"{title}: given {given}, after {after} (change {scale * np.mean(gained):+.2f} "
            f"[{low:+.2f}, {high:+.2f}]), at full strength {full} ({known.sum()} mixtures, "
            f"{len(set(owners))} voices)"
        )
    scalars["strength"] = float(np.mean(rows["strength"]))
    lines.append(f"mean strength of suppression {scalars['strength']:.2f}")
    return scalars, lines


def _noise_type(
    rows: Mapping[str, np.ndarray], speakers: Shaped[np.ndarray, "n"]
) -> tuple[dict[str, float], str]:
    """Of the frames of both conditions together."""
    frames, overlapped, right, right_overlapped = (
        sum(rows[f"{prefix}{name}"].astype(np.float64) for prefix in CONDITIONS) for name in _COUNTS
    )
    _, owner = np.unique(speakers, return_inverse=True)

    def told(totals: Float[np.ndarray, "n"], counts: Float[np.ndarray, "n"], scalar: str) -> str:
        totals, counts = (np.bincount(owner, x) for x in (totals, counts))
        scalars[scalar] = float(totals.sum() / counts.sum()) if counts.sum() else math.nan
        bounds = metrics.percentile_interval(metrics.resampled_rates(totals, counts))
        low, high = (100 * x for x in bounds)
        return f"{100 * scalars[scalar]:.1f} % [{low:.1f}, {high:.1f}]"

    scalars: dict[str, float] = {}
    whole = told(right, frames, "noise_type_accuracy")
    talked = told(right_overlapped, overlapped, "noise_type_overlapped")
    other = told(right - right_overlapped, frames - overlapped, "noise_type_other")
    scalars["overlapped_share"] = float(overlapped.sum() / max(frames.sum(), 1))
    return scalars, (
        f"right in {whole} of frames: {talked} of those in which another voice talks "
        f"({100 * scalars['overlapped_share']:.1f} % of all), {other} of the others"
    )


def _words(
    rows: Mapping[str, np.ndarray], prefix: str, speakers: Shaped[np.ndarray, "n"]
) -> tuple[dict[str, float], str]:
    """Error rates, and by how much what came out has fewer than what was given."""
    given, after = (rows[f"{prefix}{name}"] for name in ("mixture_word_errors", "word_errors"))
    same = {name: rows[name] for name in ("words", "target_word_errors")}
    scalars, line = judges.error_rates(
        {**same, "mixture_word_errors": given, "word_errors": after}, speakers
    )
    if not scalars["wer_mixtures"]:
        return scalars, line
    _, owner = np.unique(speakers, return_inverse=True)
    gained, words = (np.bincount(owner, x) for x in (after - given, rows["words"]))
    bounds = metrics.percentile_interval(metrics.resampled_rates(gained, words))
    low, high = (100 * x for x in bounds)
    change = 100 * gained.sum() / words.sum()
    found = {f"{prefix}{name}": value for name, value in scalars.items()}
    return found, f"{line}, change {change:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _table(
    rows: Mapping[str, np.ndarray],
    targets: Sequence[Mapping[str, Any]],
    speakers: Shaped[np.ndarray, "n"],
    part: splits.Split,
) -> str:
    """A line for every mixture; what has no meaning there is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    told = [f"{prefix}{name}" for prefix in CONDITIONS for name in (*_ERRORS, "strength", *_COUNTS)]
    said = [n for n in rows if n.endswith(("words", "word_errors", "said"))]
    head = [
        "mixture",
        "target",
        "speaker",
        "enrolment",
        "interferers",
        "seconds",
        "snr_db",
        "present",
    ]
    writer.writerow([*head, *told, *said])
    for i, target in enumerate(targets):
        others = [part.written_at(int(k))["id"] for k in rows["interferer_index"][i] if k >= 0]
        enrolment = part.written_at(int(rows["enrolment_index"][i]))["id"]
        listed = isinstance(part, fixed.ListSplit)
        name = part.fixed.entries[rows["index"][i]].id if listed else target["id"]
        values = [float(rows[name][i]) for name in told]
        writer.writerow(
            [
                *(name, target["id"], speakers[i], enrolment, " ".join(others)),
                *(f"{rows['seconds'][i]:.2f}", f"{rows['snr_db'][i]:.2f}"),
                int(rows["present"][i]),
                *(f"{x:.4g}" if math.isfinite(x) else "" for x in values),
                *(str(rows[name][i]) for name in said),
            ]
        )
    return text.getvalue()
