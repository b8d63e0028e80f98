"""The picture of the README: spectrograms of a mixture, its target and what is extracted.

python -m separation.prepare --list=dev.tsv --out=MIX
python -m benchmarks.separation_picture --workdir=DIR --list=MIX/dev.csv --row=0
    --out=benchmarks/separation.png
"""

import argparse
import csv
import pathlib

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from PIL import Image

from common.audio import io
from separation import load, metrics

_RANGE_DB = 70.0  # below the loudest bin of the mixture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="of a separation network")
    parser.add_argument("--list", type=pathlib.Path, required=True, help="by separation.prepare")
    parser.add_argument("--row", type=int, default=0, help="of the list, from 0")
    parser.add_argument("--out", type=pathlib.Path, default="benchmarks/separation.png")
    args = parser.parse_args()
    with args.list.open(newline="") as lines:
        row = list(csv.DictReader(lines))[args.row]
    enhancer = load(args.workdir)
    rate = enhancer.sample_rate_hz
    paths = [
        args.list.parent / row[f"{name}_path"] for name in ("mixture", "source_1", "enrolment_1")
    ]
    mixture, target, enrolment = (io.load_audio(path, sample_rate_hz=rate) for path in paths)
    sounds = {"mixture": mixture, "target": target}
    sounds["extracted"] = enhancer(mixture, rate, enrolment)
    ratios = {name: metrics.si_sdr(sounds[name], target) for name in ("mixture", "extracted")}
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
    top = None
    for axis, (name, sound) in zip(axes, sounds.items()):
        found = axis.specgram(sound + np.float32(1e-7), NFFT=512, noverlap=352, Fs=rate)
        axis.set(xticks=range(1 + len(sound) // rate), xlim=found[2][[0, -1]])
        top = found[0].max() if top is None else top
        found[3].set_clim(10 * np.log10(top) - _RANGE_DB, 10 * np.log10(top))
        said = f", SI-SDR {ratios[name]:.1f} dB" if name in ratios else ""
        axis.set(title=f"{name}{said}", xlabel="s")
    axes[0].set_ylabel("Hz")
    figure.suptitle(f"{row.get('mixture_ID', '')}: one voice of {_voices(row)}", fontsize="medium")
    figure.savefig(args.out, dpi=100)
    # A palette is enough, and half of the bytes.
    Image.open(args.out).convert("RGB").quantize(256).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


def _voices(row: dict[str, str]) -> int:
    """How many sources the mixture has."""
    return sum(name.startswith("source_") and bool(value) for name, value in row.items())


if __name__ == "__main__":
    main()
