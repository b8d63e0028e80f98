"""The face of the voice that a microphone hears, while it speaks.

    python -m generation.live --workdir=runs/faces --out=face.png --show
    python -m generation.live --workdir=runs/faces --out=face.png --film=film.mp4 --input=ann.wav
    python -m generation.live --list

--input is a device of the list, by number or a part of the name, or a recording of any format,
which is heard as fast as it goes. Once a second the face of all that the voice has said so far,
the last half minute of it, takes the place of the one in --out; pauses change nothing, and chance
stays as it was. --show opens a page, beside --out, that follows it; --film keeps all faces (MP4,
and a GIF beside it). Ctrl-C ends. The page of generation.serve follows the microphone of whoever
opens it. A face is a guess: a voice tells little of how somebody looks. Microphones need the
package sounddevice and the library PortAudio.
"""

import contextlib
import pathlib
import sys
import urllib.parse
import webbrowser
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from common import app, errors, files
from common.analysis import video
from common.audio import devices, io
from common.data import splits
from generation import images, listening
from generation import maker as maker_lib

_BLOCKS_PER_SECOND = 10  # of a device
_INSTEAD = "give a recording as --input."
_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>A face of a voice</title>
<style>
body { margin: 2rem; text-align: center; }
img { width: min(90vw, 90vh, 32rem); image-rendering: pixelated; }
</style>
<img id="face" alt="not enough of the voice was heard yet">
<script>
setInterval(() => {
  const next = new Image();
  next.onload = () => (document.getElementById("face").src = next.src);
  next.src = `FACE?${Date.now()}`;
}, 500);
</script>
"""


class Drawing:
    """The face of a voice, drawn anew into a file whenever there is more of the voice."""

    def __init__(self, maker: maker_lib.FaceMaker, args: Any) -> None:
        self.faces: list[UInt8[np.ndarray, "h w c"]] = []  # all of a film, else the last one
        self.lost = 0  # blocks of a device
        self._voice = listening.Listener(maker, seed=args.seed, step_seconds=args.every)
        self._out, self._is_film = args.out, args.film is not None

    def hear(self, samples: Float[np.ndarray, "n"]) -> None:
        """Takes samples; at each step it says how far it is."""
        if self._voice.gather(samples):
            self._draw(self._voice.face())
            print(
                f"\r{self._voice.heard_seconds:7.1f} s   voice {self._voice.voice_seconds:5.1f} s"
                f"   in {devices.level_db(samples):6.1f} dB   xruns {self.lost}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        """Hears what is left. Raises UserError where there was no voice."""
        self._draw(self._voice.face(last=True))
        print(file=sys.stderr)
        if not self.faces:
            raise errors.UserError(
                f"No voice was heard in {self._voice.heard_seconds:.1f} s: there is no face. Speak "
                "louder or nearer, or choose another --input."
            )

    def _draw(self, face: UInt8[np.ndarray, "h w c"] | None) -> None:
        if face is not None:
            images.write_png(self._out, images.sheet([[face]]))
            if not self._is_film:
                self.faces.clear()
            self.faces.append(face)


def play(drawing: Drawing, maker: maker_lib.FaceMaker, args: Any) -> None:
    """Hears a recording."""
    rate, channel = maker.sample_rate_hz, splits.channel(maker.config.data)
    audio = io.load_audio(args.input, sample_rate_hz=rate, channel=channel)
    audio = audio[: round(min(args.seconds, len(audio) / rate) * rate)]
    step = round(args.every * rate)
    for first in range(0, len(audio), step):
        drawing.hear(audio[first : first + step])


def record(drawing: Drawing, maker: maker_lib.FaceMaker, args: Any, sounddevice: Any) -> None:
    """Hears a device for --seconds, or until Ctrl-C."""
    rate, heard = maker.sample_rate_hz, devices.Heard()

    def callback(block: Any, frames: int, when: Any, status: Any) -> None:
        del frames, when
        drawing.lost += not heard.put(block) or bool(status)

    settings = {"samplerate": rate, "blocksize": rate // _BLOCKS_PER_SECOND, "dtype": "float32"}
    settings |= {"device": devices.named(args.input), "channels": 1, "callback": callback}
    with (
        contextlib.suppress(KeyboardInterrupt),
        devices.opened(sounddevice, sounddevice.InputStream, **settings),
    ):
        print("Speak now. Ctrl-C ends.", flush=True)
        wanted = float(np.round(args.seconds * rate))
        while wanted > 0:
            block = heard.get_all()
            block = block[: int(min(wanted, len(block)))]
            wanted -= len(block)
            drawing.hear(block)


def show(out: pathlib.Path) -> None:
    """Opens a page that follows the picture, beside it."""
    page = out.with_suffix(".html")
    files.write_text(page, _PAGE.replace("FACE", urllib.parse.quote(out.name)))
    if not webbrowser.open(page.resolve().as_uri()):
        print(f"There is no browser here: open {page} in one.")


def check(args: Any) -> None:
    """Raises UserError for flags that cannot be."""
    if args.workdir is None or args.out is None:
        raise errors.UserError("--workdir and --out are needed: whose network, and where to?")
    if not 0.1 <= args.every <= 60:
        raise errors.UserError(f"--every={args.every:g} is not from 0.1 to 60 s.")
    if not args.seconds > 0:
        raise errors.UserError(f"--seconds={args.seconds:g} must be positive.")
    maker_lib.check_seed(args.seed)
    for name, suffix in (("out", ".png"), ("film", ".mp4")):
        if (path := getattr(args, name)) is not None:
            if path.suffix.lower() != suffix:
                raise errors.UserError(f"--{name}={path}: give a name that ends in {suffix}.")
            files.check_output(path)
            files.check_kept(path, [args.input] if args.input else ())


def is_recording(name: str | None) -> bool:
    """Whether --input is a file, and no device."""
    return name is not None and (
        pathlib.Path(name).suffix.lower() in io.SUFFIXES or pathlib.Path(name).is_file()
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("generation.live", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")
    parser.add_argument("--input", help="a device, or a recording; default: the system's device")
    parser.add_argument("--out", type=pathlib.Path, metavar="PNG", help="the face")
    parser.add_argument("--film", type=pathlib.Path, metavar="MP4", help="all faces")
    parser.add_argument("--show", action="store_true", help="in a browser")
    parser.add_argument("--list", action="store_true", help="shows the devices")
    parser.add_argument("--every", type=float, default=1.0, help="seconds of a step (1)")
    parser.add_argument("--seed", type=int, default=0, help="of chance (0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="default: until Ctrl-C")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.list:
            print(devices.module(_INSTEAD).query_devices())
            return
        check(args)
        found = None if is_recording(args.input) else devices.module(_INSTEAD)
        maker = maker_lib.load(args.workdir, step=args.checkpoint)
        drawing = Drawing(maker, args)
        if args.show:
            show(args.out)
        if found is None:
            play(drawing, maker, args)
        else:
            record(drawing, maker, args, found)
        drawing.end()
        print(args.out)
        if args.film is not None:
            frames, film = images.frames(drawing.faces), args.film.with_suffix("")
            print(video.write(frames, film, fps=1 / args.every)[1])

    app.command("generation.live", work)


if __name__ == "__main__":
    main()
