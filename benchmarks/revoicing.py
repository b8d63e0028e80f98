"""Whose voice re-voiced speech has, without a judge: its spectrum, its height, how much is voiced.

    python -m benchmarks.revoicing --workdir=runs/revoice --pairs=48 --heights=8

Sources and targets are people of the dev part, different ones in each pair. Spectrum: log-mel bands
less their mean, averaged over time; of how many pairs it is nearer (root mean square) to that of
another recording of the target than to another one of the source's speaker. Height: median F0 by
pYIN (Mauch and Dixon, ICASSP 2014; librosa), differences in semitones, without a sign and with it
(medians over pairs); the share of frames that it takes for voiced says whether there is one at all.
"""

import argparse

import jax
import librosa
import numpy as np

from common import app, trained
from generation import data, spoken, task, voice_changer

SECONDS = 4  # of a recording


def main() -> None:
    """The command line."""
    parser = app.parser("benchmarks.revoicing", __doc__)
    app.add_run(parser)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--heights", type=int, default=8, help="pairs whose F0 is sought")
    args = parser.parse_args()
    app.command("benchmarks.revoicing", lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Prints a line for each way to say whose voice it is to be, and for two controls."""
    found = trained.load(task.PACKAGE, args.workdir, step=args.checkpoint)
    changer, rate = voice_changer.VoiceChanger(found), found.config.data.sample_rate_hz
    name = found.config.data.eval[0]
    faces = found.task.parts.faces(name)
    pairs = data.pairs(found.task.parts[name], faces, found.config, train=False)
    rows = spoken.Dubbed(data.Seated(pairs, 1))
    ears = Ears(found, SECONDS * rate)
    chosen = np.random.default_rng(0).permutation(len(rows))[: args.pairs].tolist()
    nearer: dict[str, list[bool]] = {}
    heights: dict[str, list[tuple[float, float]]] = {}
    for number, i in enumerate(chosen):
        row = rows.draw(i, None, {"source": SECONDS * rate})
        source, target = row["source"], row["probe"]
        others = np.flatnonzero(pairs.labels == row["source_person"])
        others = [k for k in others if pairs.crops.index.positions[k] != row["source_index"]]
        of_source, of_target = (
            ears.spectrum(pairs.audio(others[0], None)["audio"]),
            ears.spectrum(target),
        )
        sounds = {
            "the source": source,
            "the source through log-mel": ears.copied(source),
            "by the face": changer.say(source, changer.seen(faces(pairs.names[row["person"]], 0))),
            "by a recording": changer.say(source, changer.heard(target)),
            "another of the target": pairs.audio(
                int(np.flatnonzero(pairs.labels == row["person"])[-1]), None
            )["audio"],
        }
        for way, sound in sounds.items():
            own = ears.spectrum(sound)
            to_target, to_source = (np.square(own - x).mean() for x in (of_target, of_source))
            nearer.setdefault(way, []).append(bool(to_target < to_source))
            if number < args.heights:
                heights.setdefault(way, []).append(height(sound, rate))
    print(
        f"step {found.step}, {len(chosen)} pairs of {name}, F0 of {min(args.heights, len(chosen))}"
    )
    own = {way: np.array(x) for way, x in heights.items()}
    for way, won in nearer.items():
        line = f"{way}: spectrum nearer to the target's {100 * np.mean(won):.0f} %"
        if way in own:
            line += f", voiced {100 * own[way][:, 1].mean():.0f} % of frames"
            for of in ("the source", "another of the target"):
                apart = own[way][:, 0] - own[of][:, 0]
                apart = apart[np.isfinite(apart)]
                if len(apart):
                    off, signed = np.median(abs(apart)), np.median(apart)
                    line += f", F0 {off:.1f} ({signed:+.1f}) semitones from {of} ({len(apart)})"
        print(line)


class Ears:
    """What is heard of sounds of at most `room` samples."""

    def __init__(self, found: trained.Trained, room: int) -> None:
        self._task, self._room = found.task, room
        self._heard = jax.jit(found.task.heard)

    def _frames(self, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray, jax.Array, jax.Array]:
        audio = audio[: self._room]
        padded = np.pad(audio, (0, self._room - len(audio)))[None]
        lengths = np.array([len(audio)], np.int32)
        return padded, lengths, *self._heard(padded, lengths)

    def spectrum(self, audio: np.ndarray) -> np.ndarray:
        """Bands over time, less their mean."""
        *_, frames, count = self._frames(audio)
        mean = np.asarray(frames)[0, : int(count[0])].mean(0)
        return mean - mean.mean()

    def copied(self, audio: np.ndarray) -> np.ndarray:
        """Through log-mel frames: what Griffin-Lim costs."""
        padded, lengths, frames, _ = self._frames(audio)
        keys = jax.random.split(jax.random.key(0), 1)
        return self._task.sounds(frames, padded, lengths, keys)[0, : len(audio)]


def height(audio: np.ndarray, rate: int) -> tuple[float, float]:
    """(median F0 in semitones over 1 Hz, NaN where none is voiced; the share of voiced frames)"""
    found, voiced, _ = librosa.pyin(audio, fmin=60, fmax=500, sr=rate, hop_length=320)
    pitch = 12 * np.log2(np.median(found[voiced])) if voiced.any() else np.nan
    return pitch, voiced.mean()


if __name__ == "__main__":
    main()
