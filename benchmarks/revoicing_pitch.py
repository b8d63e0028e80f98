"""Whose height re-voiced speech has: the median F0 of sources, targets and what comes out.

    python -m benchmarks.revoicing_pitch runs/revoice --pairs=32

Sources and targets are people of the dev part, different ones in each pair; F0 by pYIN (Mauch and
Dixon, ICASSP 2014; librosa). Correlations are of the logarithms over pairs; distances are medians
in semitones. A voice that does not move correlates with its source's by 1.
"""

import argparse
import pathlib

import jax
import librosa
import numpy as np

from common import app, trained
from generation import data, revoicing, spoken, task, voice_changer


def height(audio: np.ndarray, rate: int) -> float:
    """Median F0 in semitones over 1 Hz; NaN where nothing is voiced."""
    found, voiced, _ = librosa.pyin(
        audio, fmin=60, fmax=500, sr=rate, hop_length=640, resolution=0.25
    )
    return 12 * np.log2(np.median(found[voiced])) if voiced.any() else np.nan


def copied(task: revoicing.RevoiceTask, audio: np.ndarray, room: int) -> np.ndarray:
    """A recording of at most `room` samples through its log-mel frames: what Griffin-Lim costs."""
    padded, lengths = np.pad(audio, (0, room - len(audio)))[None], np.array([len(audio)], np.int32)
    frames, _ = task.heard(padded, lengths)
    return task.sounds(frames, padded, lengths, jax.random.split(jax.random.key(0), 1))[0]


def main() -> None:
    """The command line."""
    parser = app.parser("benchmarks.revoicing_pitch", __doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--checkpoint", type=int)
    parser.add_argument("--pairs", type=int, default=32)
    args = parser.parse_args()
    app.command("benchmarks.revoicing_pitch", lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Prints a line for each way to say whose voice it is to be."""
    found = trained.load(task.PACKAGE, args.workdir, step=args.checkpoint)
    changer, rate = voice_changer.VoiceChanger(found), found.config.data.sample_rate_hz
    name = found.config.data.eval[0]
    faces = found.task.parts.faces(name)
    pairs = data.pairs(found.task.parts[name], faces, found.config, train=False)
    rows = spoken.Dubbed(data.Seated(pairs, 1))
    chosen = np.random.default_rng(0).permutation(len(rows))[: args.pairs]
    heights = []
    for i in chosen.tolist():
        row = rows.draw(i, None, {"source": 4 * rate})
        who = {
            "face": changer.seen(faces(pairs.names[row["person"]], 0)),
            "voice": changer.heard(row["probe"]),
            "other": changer.heard(row["source"]),
        }
        said = {way: changer.say(row["source"], vector) for way, vector in who.items()}
        said["copied"] = copied(found.task, row["source"], 4 * rate)
        sounds = {"source": row["source"], "target": row["probe"], **said}
        heights.append({way: height(sound, rate) for way, sound in sounds.items()})
    table = {way: np.array([row[way] for row in heights]) for way in heights[0]}
    titles = {
        "copied": "the source through log-mel",
        "face": "by the face",
        "voice": "by a recording",
        "other": "by the source itself",
    }
    print(f"step {found.step}, {len(chosen)} pairs of {name}")
    for way, title in {"target": "the target's own", **titles}.items():
        for of in ("source", "target"):
            both = np.isfinite(table[way]) & np.isfinite(table[of])
            one, other = table[way][both], table[of][both]
            print(
                f"{title}: to the {of}'s correlation {np.corrcoef(one, other)[0, 1]:+.2f}, "
                f"distance {np.median(np.abs(one - other)):.1f} semitones, median difference "
                f"{np.median(one - other):+.1f} ({both.sum()} voiced)"
            )


if __name__ == "__main__":
    main()
