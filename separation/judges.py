"""What others make of extracted speech: measures of quality, a recogniser, a speaker network."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from asr import load as load_recogniser
from asr import wer
from common import metrics, workdir
from common.audio import io
from separation import perceptual
from speaker import load as load_speaker

SIGNALS = ("mixture", "extracted", "target")
# Before the name of a figure of each of them.
_PREFIXES = {"mixture": "mixture_", "extracted": "", "target": "target_"}

Sounds = Mapping[str, Float[np.ndarray, "_"]]


@dataclasses.dataclass(frozen=True)
class Judges:
    """Those that are there: measures by name, a `asr.transcriber.Transcriber`, a
    `speaker.embed.Embedder`. Each is shown sounds at `sample_rate_hz`."""

    sample_rate_hz: int
    quality: Mapping[str, perceptual.Measure]
    recogniser: Any = None
    speaker: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that judge."""
        others = {"recogniser": self.recogniser, "speaker": self.speaker}
        return (*self.quality, *(name for name, one in others.items() if one is not None))

    def __bool__(self) -> bool:
        return bool(self.names)

    def __call__(
        self, rows: Sequence[Sounds], present: Sequence[bool], texts: Sequence[str]
    ) -> dict[str, Shaped[np.ndarray, "n"]]:
        """Columns of some mixtures, NaN of what could not be told, and why in "problems".

        A row is {"mixture", "extracted", "target", "enrolment"}. Without its target it is left out;
        what was said is scored where there is a text.
        """
        found: dict[str, list] = {}
        problems: list[list[str]] = [[] for _ in rows]
        here = [i for i, is_here in enumerate(present) if is_here]
        for name, measure in self.quality.items():
            for signal in ("mixture", "extracted"):
                column = [np.nan] * len(rows)
                for i in here:
                    try:
                        column[i] = measure(rows[i]["target"], rows[i][signal])
                    except perceptual.Unmeasurable as error:
                        problems[i].append(str(error))
                found[_PREFIXES[signal] + name] = column
        if self.speaker is not None:
            found |= self._similarities(rows, here, problems)
        if self.recogniser is not None:
            found |= self._transcripts(rows, [i for i in here if texts[i]], texts)
        found["problems"] = ["; ".join(dict.fromkeys(said)) for said in problems]
        return {name: np.array(column) for name, column in found.items()}

    def _similarities(
        self, rows: Sequence[Sounds], here: Sequence[int], problems: list[list[str]]
    ) -> dict[str, list]:
        """Cosines of embeddings against that of the enrolment."""
        audio, places = [], []
        for i in here:
            for name in ("enrolment", *SIGNALS):
                try:
                    audio.append(self.speaker.load(rows[i][name], self.sample_rate_hz))
                    places.append((i, name))
                except io.AudioError as error:
                    problems[i].append(f"{name}: {error.reason}")
        vectors = dict(zip(places, self.speaker.embed_loaded(audio))) if audio else {}
        vectors = {place: x / np.linalg.norm(x) for place, x in vectors.items()}

        def cosine(i: int, name: str) -> float:
            both = vectors.get((i, "enrolment")), vectors.get((i, name))
            return np.nan if both[0] is None or both[1] is None else float(both[0] @ both[1])

        return {
            f"{_PREFIXES[name]}similarity": [cosine(i, name) for i in range(len(rows))]
            for name in SIGNALS
        }

    def _transcripts(
        self, rows: Sequence[Sounds], scored: Sequence[int], texts: Sequence[str]
    ) -> dict[str, list]:
        """Words of the references, errors in each signal, and what was understood."""
        found: dict[str, list] = {"words": [0] * len(rows)}
        for name in SIGNALS:
            loaded = [self.recogniser.load(rows[i][name], self.sample_rate_hz) for i in scored]
            said, wrong = [""] * len(rows), [0] * len(rows)
            for i, transcript in zip(scored, self.recogniser.many(loaded)):
                reference = self.recogniser.normalize(texts[i])
                counts = wer.score(str(i), reference, transcript.text).counts
                said[i], wrong[i], found["words"][i] = transcript.text, counts.errors, counts.ref
            found[f"{_PREFIXES[name]}word_errors"], found[f"{_PREFIXES[name]}said"] = wrong, said
        return found


def make(settings: Any, sample_rate_hz: int) -> Judges:
    """Those of `config.judges`. Raises UserError for work directories of others."""
    return Judges(
        sample_rate_hz,
        perceptual.measures(tuple(settings.quality), sample_rate_hz),
        recogniser(settings),
        _opened("speaker", settings.speaker, "speaker", load_speaker),
    )


def recogniser(settings: Any) -> Any:
    """That of `config.judges`, a `asr.transcriber.Transcriber`; None where it names none."""
    return _opened("recogniser", settings.recogniser, "asr", load_recogniser)


def _opened(name: str, folder: str, task: str, load: Any) -> Any:
    return workdir.of_setting(f"config.judges.{name}", folder, task, load) if folder else None


def summarise(
    split: str, rows: Mapping[str, np.ndarray], speakers: Shaped[np.ndarray, "n"]
) -> tuple[dict[str, float], list[str]]:
    """Scalars and lines of the columns that there are, before and after."""
    scalars: dict[str, float] = {}
    lines = []
    for name in (n for n in rows if f"mixture_{n}" in rows and _is_told(n)):
        signals = [p for p in ("mixture_", "", "target_") if f"{p}{name}" in rows]
        known = np.all([np.isfinite(rows[f"{p}{name}"]) for p in signals], axis=0)
        if not known.any():
            lines.append(f"{split} {_title(name)}: of no mixture")
            continue
        for prefix in signals:
            scalars[f"{prefix}{name}_mean"] = float(np.mean(rows[f"{prefix}{name}"][known]))
        gained = (rows[name] - rows[f"mixture_{name}"])[known]
        low, high = metrics.group_interval(gained, speakers[known], np.mean)
        target = ""
        if "target_" in signals:
            target = f", target {scalars[f'target_{name}_mean']:.3f}"
        lines.append(
            f"{split} {_title(name)}: mixture {scalars[f'mixture_{name}_mean']:.3f}, extracted "
            f"{scalars[f'{name}_mean']:.3f} (change {np.mean(gained):+.3f} [{low:+.3f}, "
            f"{high:+.3f}]){target} ({known.sum()} mixtures)"
        )
    if "words" in rows:
        found, line = error_rates(rows, speakers)
        scalars |= found
        lines.append(f"{split} WER: {line}")
    if "problems" in rows:
        said = collections.Counter(p for row in rows["problems"] for p in row.split("; ") if p)
        lines += [f"{split} not measured in {n} mixtures: {why}" for why, n in said.most_common()]
        scalars["not_measured"] = float(np.sum(rows["problems"] != ""))
    return scalars, lines


def error_rates(
    rows: Mapping[str, np.ndarray], speakers: Shaped[np.ndarray, "n"]
) -> tuple[dict[str, float], str]:
    """WER of each signal, with intervals over speakers, of the mixtures that have words."""
    scored = rows["words"] > 0
    scalars = {"wer_mixtures": float(scored.sum())}
    if not scored.any():
        return scalars, f"none of {len(scored)} mixtures holds a whole utterance with its text"
    _, owner = np.unique(speakers[scored], return_inverse=True)
    words, parts = np.bincount(owner, rows["words"][scored]), []
    for signal in SIGNALS:
        wrong = np.bincount(owner, rows[f"{_PREFIXES[signal]}word_errors"][scored])
        rate = scalars[f"{_PREFIXES[signal]}wer"] = float(wrong.sum() / words.sum())
        bounds = metrics.percentile_interval(metrics.resampled_rates(wrong, words))
        low, high = (100 * x for x in bounds)
        parts.append(f"{signal} {100 * rate:.1f} % [{low:.1f}, {high:.1f}]")
    return scalars, (
        f"{', '.join(parts)} ({words.sum():.0f} words of the {scored.sum()} of {len(scored)} "
        "mixtures that hold a whole utterance with its text)"
    )


def columns(rows: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Those of the table of mixtures, as they are written; "" where there is nothing."""
    found = {}
    for name, values in rows.items():
        bare = name.removeprefix("mixture_").removeprefix("target_")
        if _is_told(bare):
            found[name] = [f"{x:.4g}" if np.isfinite(x) else "" for x in values]
        elif bare in ("words", "word_errors", "said", "problems"):
            found[name] = [str(x) for x in values]
    return found


def _is_told(name: str) -> bool:
    return name in ("stoi", "estoi", "similarity") or name.startswith("pesq_")


def _title(name: str) -> str:
    if name == "similarity":
        return "cosine to the enrolment"
    return name.upper().replace("_WB", ", wide band").replace("_NB", ", narrow band")
