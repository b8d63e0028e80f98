"""Memory and time of `separation.separate_video`, by the length of a film (Linux).

    python -m benchmarks.long_films --workdir=runs/seen --clips DATA/s1 DATA/s4 --minutes 1 3 10

Each folder of --clips is a person, shown beside the others: clips of one size, 25 pictures a second
(GRID). A minute of them is encoded (H.264) and shown again and again; the sound is the sum of all.
The command runs in a process of its own, under cProfile; its resident memory is read each tenth
of a second. A row for each film: at the end of a quarter of the time, of a half, ..., and at most;
and a row of what took how long.
"""

import fractions
import os
import pathlib
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import av
import numpy as np
import soundfile

from common import app, errors
from common.audio import io
from common.video import listing

_RATE_HZ, _SAMPLES = 16_000, 640  # of a picture
_LAP = 60 * 25  # pictures
# What the time goes to, by the functions whose own and deeper calls it is.
_STAGES = {
    "decoding": ("frames.py", ("pictures",)),
    "grey and colour": ("frames.py", ("rgb", "grey")),
    "finding faces": ("finding.py", ("find",)),
    "sound to FLAC": ("io.py", ("convert_to_flac",)),
    "cutting mouths, portraits": ("crops.py", ("cut", "intruded", "mouth_views", "face_views")),
    "storing mouths": ("stored_faces.py", ("flush",)),
    "loading the network": ("trained.py", ("load",)),
    "network": ("watching.py", ("_window",)),
    "copying into MP4": ("muxing.py", ("with_sound",)),
}


def pictures(folder: pathlib.Path) -> Iterator[np.ndarray]:
    """The clips of a person one after another, for ever."""
    clips = [path for path in sorted(folder.iterdir()) if path.suffix in listing.SUFFIXES]
    if not clips:
        raise errors.UserError(f"No films in {folder}.")
    while True:
        for clip in clips:
            with av.open(str(clip)) as container:
                for frame in container.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")


def sound(folder: pathlib.Path) -> np.ndarray:
    """That of `pictures` for a lap, at 16 kHz."""
    clips = [path for path in sorted(folder.iterdir()) if path.suffix in listing.SUFFIXES]
    found, there = [], 0
    while there < _LAP * _SAMPLES:
        for clip in clips:
            with av.open(str(clip)) as container:
                count = sum(1 for _ in container.decode(video=0)) * _SAMPLES
            audio = io.load_audio(clip, sample_rate_hz=_RATE_HZ)[:count]
            found.append(np.pad(audio, (0, count - len(audio))))
            there += count
    return np.concatenate(found)[: _LAP * _SAMPLES]


def make_lap(folders: Sequence[pathlib.Path], path: pathlib.Path) -> np.ndarray:
    """Writes a minute without sound; its sound."""
    with av.open(str(path), "w", format="mp4") as out:
        people = [pictures(folder) for folder in folders]
        video = None
        for _ in range(_LAP):
            picture = np.concatenate([next(person) for person in people], axis=1)
            if video is None:
                video = out.add_stream("libx264", rate=25)
                video.height, video.width = picture.shape[:2]
                video.pix_fmt = "yuv420p"
                video.options = {"crf": "20", "preset": "ultrafast", "bf": "0"}
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
    return sum(sound(folder) for folder in folders) / len(folders)


def make_film(lap: pathlib.Path, audio: np.ndarray, laps: int, path: pathlib.Path) -> None:
    """Writes so many laps, with sound."""
    with av.open(str(lap)) as source, av.open(str(path), "w", format="mp4") as out:
        shown = source.streams.video[0]
        video = out.add_stream_from_template(shown)
        heard = out.add_stream("aac", rate=_RATE_HZ, layout="mono")
        minute = round(_LAP / (25 * shown.time_base))
        for number in range(laps):
            source.seek(0)
            for packet in source.demux(shown):
                if packet.dts is None:  # the end
                    continue
                packet.pts, packet.dts = packet.pts + number * minute, packet.dts + number * minute
                packet.stream = video
                out.mux(packet)
            frame = av.AudioFrame.from_ndarray(
                audio[None].astype(np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.time_base = _RATE_HZ, fractions.Fraction(1, _RATE_HZ)
            frame.pts = number * len(audio)
            out.mux(heard.encode(frame))
        out.mux(heard.encode(None))


def watched(command: Sequence[str]) -> tuple[list[tuple[float, float]], float]:
    """((seconds, resident MiB) of a process, its CPU seconds). UserError where it fails."""
    started, found = time.monotonic(), []
    before = os.times()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it has just ended
            break
        found.append((time.monotonic() - started, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
        time.sleep(0.1)
    if process.wait():
        raise errors.UserError(f"{' '.join(command)} ended with {process.returncode}.")
    after = os.times()
    cpu = after.children_user + after.children_system
    return found, cpu - before.children_user - before.children_system


def stages(profile: pathlib.Path) -> dict[str, float]:
    """Seconds of what the time goes to."""
    statistics = pstats.Stats(str(profile)).stats
    found = {}
    for stage, (file, names) in _STAGES.items():
        found[stage] = sum(
            deep
            for (path, _, name), (_, _, _, deep, _) in statistics.items()
            if pathlib.Path(path).name == file and name in names
        )
    return found


def _run(args) -> None:
    print("| film | people | seconds | CPU seconds | MiB at 1/4, 1/2, 3/4 of the time | at most |")
    print("|---|---|---|---|---|---|")
    spent = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        audio = make_lap(args.clips, folder / "lap.mp4")
        for minutes in args.minutes:
            film = folder / f"{minutes}.mp4"
            make_film(folder / "lap.mp4", audio, minutes, film)
            profile = folder / f"{minutes}.profile"
            words = [sys.executable, "-m", "cProfile", "-o", str(profile)]
            words += ["-m", "separation.separate_video", f"--workdir={args.workdir}"]
            words += ["--input", str(film), "--out", str(folder / str(minutes))]
            marks, cpu = watched(words)
            voices = sorted((folder / str(minutes)).glob("*.wav"))
            if any(abs(soundfile.info(v).duration - 60 * minutes) > 0.1 for v in voices):
                raise errors.UserError(f"A voice is not of {minutes} minutes.")
            end = marks[-1][0]
            parts = [next(m for t, m in marks if t >= end * k / 4) for k in (1, 2, 3)]
            print(
                f"| {minutes} min | {len(voices)} | {end:.1f} | {cpu:.1f} | "
                f"{', '.join(f'{m:.0f}' for m in parts)} | {max(m for _, m in marks):.0f} |",
                flush=True,
            )
            spent[minutes] = {**stages(profile), "all": end}
    print(f"\n| seconds of a film of | {' | '.join(f'{m} min' for m in spent)} |")
    print("|---|" + "---|" * len(spent))
    for stage in (*_STAGES, "all"):
        print(f"| {stage} | {' | '.join(f'{of[stage]:.1f}' for of in spent.values())} |")


def main() -> None:
    """Prints two Markdown tables."""
    parser = app.parser("benchmarks.long_films", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of one that sees")
    parser.add_argument("--clips", type=pathlib.Path, required=True, nargs="+", metavar="FOLDER")
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 3, 10])
    args = parser.parse_args()
    app.command("benchmarks.long_films", lambda: _run(args))


if __name__ == "__main__":
    main()
