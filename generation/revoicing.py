"""The task of re-voicing: the words of a recording in the voice of a face, or of another voice."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asr import load as load_recogniser
from asr import wer
from common import errors, metrics, parallel, state, workdir
from common.audio import augment, frontend, mel
from common.data import classes as classes_lib
from common.task import Batch, Metrics, Report
from generation import (
    data,
    harmonics,
    images,
    judging,
    matcher,
    model,
    paired,
    revoice,
    spoken,
    voice,
)

_DECIBELS = 10.0 / math.log(10.0)  # of a neper of power
_CEPSTRA = 13  # of mel-cepstral distances, the level among them, which does not count
_HEARD = 5.0  # frames that have to be clear for a recording to have a height
WAYS = ("face", "voice")  # by which a row's person is known
SIGNALS = ("natural", "copied", *WAYS)  # the source, through its log-mel, and re-voiced


@dataclasses.dataclass(frozen=True)
class RevoiceTask(paired.PairedTask):
    """See `common.task.Task`. `open_judge` opens the run `config.judge` of a config.

    Of each row the content encoder hears the recording, its voice changed at random, and the
    decoder has to say it as it was, knowing the speaker by a face or by another recording, by lot.
    The vectors of both also learn to be nearest to each other (`matcher.contrast`), and how high
    the voice is.
    """

    open_judge: Callable[[Any], judging.Judge] | None = dataclasses.field(
        default=None, compare=False
    )

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.config.data.eval), ""), "face_error_db", "min"

    @functools.cached_property
    def net(self) -> revoice.Revoicer:
        return model.make_revoicer(self.config)

    @functools.cached_property
    def front_end(self) -> frontend.LogMelConfig:
        return revoice.front_end(voice.front_end(self.config))

    def train_data(self) -> Any:
        name = "+".join(self.config.data.train)
        return spoken.train_batches(self.parts[name], self.parts.faces(name), self.config)

    def eval_batches(self, split: str) -> Any:
        return spoken.eval_batches(self.parts[split], self.parts.faces(split), self.config)

    def init(self, key: jax.Array) -> state.Variables:
        picture = self.config.picture
        frames = model.shape(64, self.config.features.num_mels)
        pictures = model.shape(picture.size, picture.size, picture.channels)
        lengths = jnp.full((1,), 64, jnp.int32)
        return dict(self.net.lazy_init(key, frames, lengths, pictures, method="everything"))

    def heard(
        self, audio: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Log-mel frames of recordings at one loudness, and how many are true."""
        lengths = paired.lengths_of(audio) if lengths is None else lengths
        return frontend.log_mel(revoice.levelled(audio, lengths), lengths, self.front_end)

    def height(
        self, audio: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Hz and periodicity of those frames (`harmonics.heights`)."""
        lengths = paired.lengths_of(audio) if lengths is None else lengths
        return harmonics.heights(revoice.levelled(audio, lengths), lengths, self.front_end)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """L1 between log-mel frames, and of mean heights in octaves; InfoNCE between voices and
        faces."""
        del step
        mask, faces = batch["mask"], images.to_values(batch["face"])
        one = slice(None, None, self.net.config.said_every)  # of so many rows
        lengths = jnp.where(mask[one], batch["audio_lengths"][one], 0)
        frames, count = self.heard(batch["audio"][one], lengths)
        height = self.height(batch["audio"][one], lengths)
        heard, seen = None, jnp.arange(len(frames)) % 2 == 0
        if train:
            colours, warps, ways = (
                parallel.row_keys(jax.random.fold_in(key, n), batch["row"]) for n in range(3)
            )
            faces = matcher.augmented(faces, colours, self.net.matching.colour)
            factors, centres = tuple(self.net.config.warp), self.front_end.centres_hz()
            heard = augment.warp_frequency(frames, warps[one], centres, factors)
            seen = jax.vmap(jax.random.bernoulli)(ways[one])
        voices, faces, scale = self.net.apply(
            variables, *self.heard(batch["probe"]), faces, method="meet"
        )
        who = jnp.where(seen[:, None], faces[one], voices[one])
        said = self.net.apply(variables, frames, count, height, who, heard)
        mean, clear = harmonics.mean(*height)
        off = sum(abs(self._expected(variables, x[one]) - mean) for x in (voices, faces)) / 2
        lost, right = matcher.contrast(voices, faces, scale, batch["label"], mask)
        sums = {
            "matched": metrics.ratio(right, mask),
            "error_db": _error_db(said, frames, count),
            "pictures": self._work(batch),
        }
        away = jnp.mean(jnp.abs(said - frames), axis=2)
        contrast = metrics.Term(*metrics.ratio(lost, mask), self.config.loss.contrast)
        terms = {
            "spectral_loss": metrics.Term(*metrics.ratio(away, _true(count, frames))),
            "height_loss": metrics.Term(*metrics.ratio(off, clear >= _HEARD)),
            "contrast_loss": contrast,
        }
        return terms, (sums, {})

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, Any]]:
        """Errors of a person's own recording made anew, and log-mel frames of somebody else's in
        the person's voice."""
        mask = batch["mask"]

        def vectors(pictures: jax.Array) -> jax.Array:
            return self.net.apply(variables, images.to_values(pictures), method="face")

        who = {
            "face": vectors(batch["face"]),
            "voice": self.net.apply(variables, *self.heard(batch["probe"]), method="voice"),
        }
        frames, count = self.heard(batch["audio"])
        count, height = jnp.where(mask, count, 0), self.height(batch["audio"])
        mean, clear = harmonics.mean(*height)
        sums = {"pictures": self._work(batch)}
        for name, of in {**who, "other_face": vectors(batch["other_face"])}.items():
            said = self.net.apply(variables, frames, count, height, mean, of, method="say")
            off = 12.0 * jnp.abs(self._expected(variables, of) - mean)
            sums[f"{name}_height_semitones"] = metrics.ratio(off, mask & (clear >= _HEARD))
            sums[f"{name}_error_db"] = _error_db(said, frames, count)
            sums[f"{name}_cepstral_db"] = _cepstral_db(said, frames, count)
        lengths = jnp.where(mask, batch["source_lengths"], 0)
        source, count = self.heard(batch["source"], lengths)
        height = self.height(batch["source"], lengths)
        middle, _ = harmonics.mean(*height)
        names = ("person", "turn", "face", "probe", "source", "source_lengths", "source_person")
        outputs = {name: batch[name] for name in names} | {"frames_copied": source}
        outputs["source_index"] = batch["source_index"]
        outputs |= {
            f"frames_{name}": self.net.apply(
                variables, source, count, height, middle, of, method="say"
            )
            for name, of in who.items()
        }
        return sums, outputs

    def _expected(self, variables: state.Variables, who: jax.Array) -> jax.Array:
        return self.net.apply(variables, who, method="mean")

    @functools.cached_property
    def judge(self) -> judging.Judge | None:
        """Who says which voice belongs to which face; opened when it is first asked."""
        return self.open_judge(self.config) if self.config.judge else None

    @functools.cached_property
    def recogniser(self) -> Any:
        """An `asr.transcriber.Transcriber`, or None."""
        folder = self.config.recogniser
        if not folder:
            return None
        return workdir.of_setting("config.recogniser", folder, "asr", load_recogniser)

    @functools.cached_property
    def _inverse(self) -> Any:
        def inverse(frames: jax.Array, lengths: jax.Array, keys: jax.Array) -> jax.Array:
            count = self.front_end.num_frames(lengths)
            return revoice.sound(frames, count, self.front_end, keys)

        return jax.jit(inverse)

    def sounds(
        self, frames: Any, like: np.ndarray, lengths: np.ndarray, keys: jax.Array
    ) -> np.ndarray:
        """Log-mel frames as sounds, each as long and as loud as another [b, t]; the phases begin
        by the keys."""
        audio = np.array(self._inverse(frames, lengths, keys))[:, : like.shape[1]]
        audio[np.arange(audio.shape[1])[None] >= lengths[:, None]] = 0
        return np.stack([as_loud(one, other) for one, other in zip(audio, like)])

    def keep(self, split: str, outputs: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """What is made of a source as sound, for those who judge it and for some to hear."""
        names = ("person", "turn", "mask", "index", "source_person", "source_index")
        kept = {name: outputs[name] for name in names}
        shown = outputs["mask"] & (outputs["turn"] == 0)
        shown &= outputs["person"] < self.config.samples.people
        source, lengths = outputs["source"], outputs["source_lengths"]
        made = {name: np.zeros_like(source) for name in SIGNALS} | {"natural": source}
        if self.judge or self.recogniser or shown.any():
            keys = jax.vmap(jax.random.key)(outputs["index"].astype(np.uint32))
            for name in SIGNALS[1:]:
                made[name] = self.sounds(outputs[f"frames_{name}"], source, lengths, keys)
        people = np.flatnonzero(shown)
        kept["shown_person"] = outputs["person"][people]
        kept |= {f"shown_{name}": made[name][people] for name in SIGNALS}
        if self.judge:
            kept |= self._vectors(made, outputs)
        if self.recogniser:
            kept |= self._transcribed(split, made, outputs)
        return kept

    def _vectors(
        self, made: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The judge's, of faces and of sounds; short ones are repeated, as recordings are."""
        samples = outputs["probe"].shape[1]

        def heard(sounds: np.ndarray) -> np.ndarray:
            ends = np.maximum(outputs["source_lengths"], 1)
            rows = [np.resize(sound[:end], samples) for sound, end in zip(sounds, ends)]
            return self.judge.hear(np.stack(rows))

        found = {f"judged_{name}": heard(sounds) for name, sounds in made.items()}
        found["judged_real"] = self.judge.hear(outputs["probe"])
        return found | {"judged_seen": self.judge.look(outputs["face"]).vectors}

    def _transcribed(
        self, split: str, made: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Words of each row's text, and errors in each signal; 0 words where the recording was cut
        or has no text."""
        rate, room, rows = self.config.data.sample_rate_hz, outputs["source"].shape[1], []
        words = np.zeros(len(outputs["mask"]), np.int64)
        part, texts = self.parts[split], {}
        whole = dict(zip(part.index.positions.tolist(), part.index.lengths.tolist()))
        for row in np.flatnonzero(outputs["mask"]).tolist():
            position = int(outputs["source_index"][row])
            text = part.written_at(position)["text"]
            if text and whole[position] <= room:
                rows.append(row)
                texts[row] = self.recogniser.normalize(text)
                words[row] = len(texts[row].split())
        found = {"words": words}
        for name, sounds in made.items():
            ends = outputs["source_lengths"]
            loaded = [self.recogniser.load(sounds[row][: ends[row]], rate) for row in rows]
            wrong = np.zeros(len(words), np.int64)
            for row, said in zip(rows, self.recogniser.many(loaded)):
                wrong[row] = wer.score(str(row), texts[row], said.text).counts.errors
            found[f"wrong_{name}"] = wrong
        return found

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """Sounds of some people; the judge's and the recogniser's figures."""
        del examples
        numbers, lines, sounds = {}, [], {}
        rate = self.config.data.sample_rate_hz
        for batch in outputs:
            for i, person in enumerate(batch["shown_person"].tolist()):
                for name in SIGNALS:
                    sound = batch[f"shown_{name}"][i]
                    sounds[f"{person}_{name}"] = np.trim_zeros(sound, "b"), rate
        if self.judge:
            found = matched(split, outputs, self.genders_of(split))
            learned = {"the judge": self.judge.people, "the network": self.classes}
            people = data.names_of(self.parts[split])
            seen = judging.said_of_seen(split, people, learned)
            numbers, lines = dict(found.scalars), [*found.lines, *filter(None, [seen])]
        if self.recogniser:
            found, said = error_rates(split, outputs)
            numbers |= found
            lines += said
        return Report(numbers, lines, audio=sounds, over=self.parts[split].identity)

    def checkpoint_meta(self) -> dict[str, Any]:
        return {"kind": "revoice", "people": classes_lib.digest(self.classes)}

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        judging.check_kind(meta, "revoice", self.workdir)


def check_task(task: Any, folder: Any) -> None:
    """Raises UserError for a run of this kind where nothing is to be said."""
    if isinstance(task, RevoiceTask):
        raise errors.UserError(
            f"{folder} has a network that says a recording in another voice: give it one "
            "(generation.sample --face=face.jpg --say=a.wav --out=voice.wav)."
        )


def as_loud(sound: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A sound at the power of another, or softer where it would leave [-1, 1]."""
    power, wanted = np.mean(np.square(sound)), np.mean(np.square(like))
    sound = sound * np.sqrt(wanted / max(power, 1e-12))
    return (sound / max(1.0, np.abs(sound).max(initial=0))).astype(np.float32)


def _true(count: jax.Array, frames: jax.Array) -> jax.Array:
    return jnp.arange(frames.shape[1])[None, :] < count[:, None]


def _error_db(said: jax.Array, frames: jax.Array, count: jax.Array) -> metrics.Ratio:
    """Mean absolute difference of bands, in dB."""
    found = _DECIBELS * jnp.mean(jnp.abs(said - frames), axis=2)
    return metrics.ratio(found, _true(count, frames))


def _cepstral_db(said: jax.Array, frames: jax.Array, count: jax.Array) -> metrics.Ratio:
    """Mel-cepstral distance without the level (Kubichek 1993, eq. 2): the root of the mean square
    of bands, in dB, of what the first cepstra make of the difference."""
    matrix = jnp.asarray(mel.dct_matrix(frames.shape[2], _CEPSTRA))
    between = jnp.matmul(said - frames, matrix, precision="highest")[:, :, 1:]
    found = _DECIBELS * jnp.sqrt(jnp.sum(jnp.square(between), axis=2) / frames.shape[2])
    return metrics.ratio(found, _true(count, frames))


def matched(
    split: str, outputs: Sequence[Mapping[str, np.ndarray]], of_people: Sequence[str]
) -> Report:
    """Which voice is that of a face: the re-voiced ones, real ones in their place (the ceiling),
    the sources as they were (whose speaker is another) and those re-voiced by other people's faces
    (the controls); and whether a re-voiced one is nearer to its face than to that of the source's
    speaker.

    `outputs` are batches of "person", "turn", "mask", "source_person" and "judged_*".
    """
    made = {name: f"judged_{name}" for name in (*SIGNALS, "real")}
    seats = judging.seated(outputs, ("person", "source_person", "judged_seen", *made.values()))
    people, faces = seats["person"][0], seats["judged_seen"]
    place = {int(person): i for i, person in enumerate(people)}
    own = [of_people[person] for person in people]
    words = {
        "face": "re-voiced by the face",
        "voice": "re-voiced by a recording",
        "real": "ceiling, real voices",
        "copied": "the source through its log-mel",
        "natural": "control, the source as it was",
    }
    numbers, lines = {}, []

    def match(name: str, prefix: str, title: str, *, shuffled: bool = False) -> None:
        for groups, more, says in ((None, "", ""), (own, "same_gender_", ", same gender")):
            found = judging.matched(faces, seats[made[name]], groups, shuffled=shuffled)
            if found.values:
                numbers.update(judging.scalars(found, f"{prefix}{more}"))
                lines.append(f"{split} face to voice, {title}{says}: {judging.describe(found)}")

    for name, title in words.items():
        prefix = f"{name}_"
        match(name, prefix, title)
        moved = []
        for turn, (sounds, seen) in enumerate(zip(seats[made[name]], faces)):
            for i, other in enumerate(seats["source_person"][turn].tolist()):
                if other in place:
                    theirs = faces[turn][place[other]]
                    moved.append(float(sounds[i] @ seen[i] > sounds[i] @ theirs))
        if moved:
            numbers[f"{prefix}moved"] = float(np.mean(moved))
            lines.append(
                f"{split} {title}: nearer to the target's face than to that of the source's "
                f"speaker {100 * np.mean(moved):.1f} % of {len(moved)}"
            )
    match("face", "shuffled_face_", "control, re-voiced by others' faces", shuffled=True)
    return Report(numbers, lines)


def error_rates(
    split: str, outputs: Sequence[Mapping[str, np.ndarray]]
) -> tuple[dict[str, float], list[str]]:
    """WER of each signal, with intervals over the speakers of the sources."""
    names = ("words", "source_person", *(f"wrong_{name}" for name in SIGNALS))
    rows = {name: np.concatenate([batch[name] for batch in outputs]) for name in names}
    scored = rows["words"] > 0
    if not scored.any():
        return {}, [f"{split} WER: no source is a whole recording with its text"]
    _, owner = np.unique(rows["source_person"][scored], return_inverse=True)
    words, numbers, parts = np.bincount(owner, rows["words"][scored]), {}, []
    titles = {"natural": "sources", "copied": "through log-mel (ceiling)"}
    titles |= {way: f"re-voiced by the {way}" for way in WAYS}
    for name, title in titles.items():
        wrong = np.bincount(owner, rows[f"wrong_{name}"][scored])
        numbers[f"{name}_wer"] = float(wrong.sum() / words.sum())
        bounds = metrics.percentile_interval(metrics.resampled_rates(wrong, words))
        low, high = (100 * x for x in bounds)
        parts.append(f"{title} {100 * numbers[f'{name}_wer']:.1f} % [{low:.1f}, {high:.1f}]")
    return numbers, [
        f"{split} WER: {', '.join(parts)} ({words.sum():.0f} words of {scored.sum()} recordings)"
    ]
