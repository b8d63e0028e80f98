"""A voice out of what a microphone hears, at once.

    python -m separation.live --workdir=runs/separation --enroll=ann.wav [--input=I --output=O]
    python -m separation.live --workdir=runs/seen --prepared=DIR --person=ID --output=voice.wav
    python -m separation.live --workdir=runs/seen --camera=0 [--enroll=ann.wav]
    python -m separation.live --workdir=runs/seen --video=film.mp4 --output=voice.wav
    python -m separation.live --list

--input and --output are devices of the list, by number or a part of the name, or both WAV files.
Somebody in a film that separation.prepare_video prepared in DIR (a line of its manifest.tsv) is
heard and seen as if live: sound and lips come hop by hop, and the portraits are known.
--camera=N shows the network who is largest in that camera's picture, --video a film in its place,
picture by picture (OpenCV finds the face: pip install 'opencv-python-headless>=4.14,<5'). Lips are
known from the middle of a picture's 40 ms on, later by what finding them takes, which is said at
the end, and by the camera's own delay, which nobody here knows: they lag the sound by that.
Use headphones. What is lost shows as xruns: blocks that came too late to be played, or could not be
heard in time. Needs the package sounddevice and the library PortAudio (files do not).
"""

import contextlib
import pathlib
import queue
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from common import app, errors, files
from common.audio import devices, io
from common.data import prepared_films, records
from common.video import finding, following, frames
from separation import enhancer as enhancer_lib
from separation import sight

_SPARE_HOPS = 2  # that are played behind, so that one late hop is not heard
_LINE_SECONDS = 0.25
_FACE_SECONDS = 15  # until somebody is in a camera's view
_INSTEAD = "give WAV files as --input and --output."


class Channel:
    """Between the callback of a device, which may never wait, and the thread that extracts."""

    def __init__(self, hop_size: int, spare_hops: int = _SPARE_HOPS) -> None:
        self.heard = devices.Heard()
        self.xruns = 0
        self._spoken: queue.SimpleQueue = queue.SimpleQueue()
        self._rest = np.zeros(0, np.float32)
        self._hop = hop_size
        self.speak(np.zeros(spare_hops * hop_size, np.float32))

    def callback(self, heard: Any, spoken: Any, frames: int, when: Any, status: Any) -> None:
        """What sounddevice calls for every block: [frames, 1] both ways."""
        del frames, when
        lost = not self.heard.put(heard) or bool(status)
        try:
            spoken[:, 0] = self._spoken.get_nowait()
        except queue.Empty:
            spoken[:] = 0
            lost = True
        self.xruns += lost

    def speak(self, audio: Float[np.ndarray, "n"]) -> None:
        """To be played, in whole blocks as soon as there are."""
        self._rest = np.concatenate([self._rest, audio])
        while len(self._rest) >= self._hop:
            self._spoken.put(self._rest[: self._hop])
            self._rest = self._rest[self._hop :]


def run(
    stream: enhancer_lib.Stream,
    channel: Channel,
    seconds: float,
    rate: int,
    camera: following.Camera | None = None,
) -> None:
    """Extracts what the channel hears until so many seconds were heard; shows levels and xruns.

    Of a `camera` the stream is shown the newest mouth whenever a picture is due.
    """
    heard, said, shown = 0, time.monotonic(), 0
    while heard < seconds * rate:
        chunk = channel.heard.get()
        heard += len(chunk)
        while camera is not None and shown <= sight.latest_picture(heard, rate):
            stream.show(camera.mouth)
            shown += 1
        voice = stream(chunk)
        channel.speak(voice)
        if time.monotonic() - said >= _LINE_SECONDS:
            said = time.monotonic()
            print(
                f"\r{heard / rate:7.1f} s   in {devices.level_db(chunk):6.1f} dB   "
                f"out {devices.level_db(voice):6.1f} dB   xruns {channel.xruns}",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)


def play(
    network: enhancer_lib.Enhancer,
    stream: enhancer_lib.Stream,
    args: Any,
    sounddevice: Any,
    camera: following.Camera | None = None,
) -> None:
    """From device to device."""
    rate, hop = network.sample_rate_hz, network.extractor.hop_size
    # The first hop comes out one hop late: one more to play meanwhile.
    channel = Channel(hop, _SPARE_HOPS + 1)
    settings = {"samplerate": rate, "blocksize": hop, "dtype": "float32", "channels": 1}
    settings |= {"device": tuple(map(devices.named, (args.input, args.output))), "latency": "low"}
    settings["callback"] = channel.callback
    with devices.opened(sounddevice, sounddevice.Stream, **settings) as opened:
        own = network.latency_ms + 1000 * _SPARE_HOPS * hop / rate
        there = 1000 * sum(opened.latency)
        print(f"Latency {own:.0f} ms, and {there:.0f} ms of the devices. Ctrl-C ends.")
        run(stream, channel, args.seconds, rate, camera)


def person_of(folder: pathlib.Path, name: str) -> records.Record:
    """Somebody in a prepared film. Raises UserError, records.DataError."""
    people = prepared_films.PreparedFilms(folder)
    for record in map(people.__getitem__, range(len(people))):
        if record["id"] == name:
            if "problem" in record:
                raise errors.UserError(f"{folder}: {name}: {record['problem']}.")
            return record
    some = ", ".join(people[k]["id"] for k in range(min(5, len(people))))
    raise errors.UserError(f"--person={name}: nobody in {folder} is called that; there are {some}.")


def seen_of(
    person: records.Record | None, network: enhancer_lib.Enhancer
) -> tuple[UInt8[np.ndarray, "v 96 96"] | None, UInt8[np.ndarray, "k 224 224 3"] | None]:
    """(the mouth's pictures, the portraits) that the network looks at, None for those it does not.

    Raises UserError where it looks at neither, and for pictures that cannot be read.
    """
    if person is None:
        return None, None
    _check_sees(network, "--person")
    try:
        return (
            np.asarray(person["video"]) if network.sees_lips else None,
            np.asarray(person["face"]) if network.sees_face else None,
        )
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"{person['id']}: its pictures cannot be read ({error}). Prepare the film again by "
            "separation.prepare_video."
        ) from error


def _check_sees(network: enhancer_lib.Enhancer, flag: str) -> None:
    if not (network.sees_lips or network.sees_face):
        raise errors.UserError(
            f"{flag}: this network sees nothing. Give the sound as --input, or train one with "
            "config.sight (configs/separation/audiovisual_quickstart.py)."
        )


def seen_in(
    film: str, network: enhancer_lib.Enhancer, follower: following.Follower
) -> tuple[Iterator[Any] | None, UInt8[np.ndarray, "1 224 224 3"] | None]:
    """(the mouths of a film, each looked for when it is asked for; the first sight of the face)
    that the network looks at, None for those it does not. Raises UserError, FilmError."""
    _check_sees(network, "--video")
    zero, face = frames.sound_start(film), None
    if network.sees_face:
        first = following.Follower(follower.finder)
        if all(first(picture) is None for picture in frames.pictures(film, zero)):
            raise frames.FilmError(film, "no face")
        face = first.portraits

    def mouths() -> Iterator[Any]:
        due = 0
        for picture in frames.pictures(film, zero):
            while due < picture.number:  # before the first one
                yield None
                due += 1
            yield follower(picture)
            due += 1

    return mouths() if network.sees_lips else None, face


def convert(
    network: enhancer_lib.Enhancer,
    stream: enhancer_lib.Stream,
    args: Any,
    person: records.Record | None,
    mouths: Iterator[Any] | None,
) -> None:
    """From file to file, hop by hop as if live, as fast as it goes."""
    output = pathlib.Path(args.output)
    source = {"audio": args.video or args.input} if person is None else person
    files.check_output(output)
    files.check_kept(output, (source["audio"], *(args.enroll or ())))
    rate, hop = network.sample_rate_hz, network.extractor.hop_size
    audio = io.load_audio(
        source["audio"],
        sample_rate_hz=rate,
        channel=network.channel,
        start=source.get("start", 0.0),
        duration=source.get("duration"),
    )
    audio = audio[: max(1, round(min(args.seconds, len(audio) / rate) * rate))]
    started, parts, shown = time.perf_counter(), [], 0
    for first in range(0, len(audio), hop):
        while mouths is not None and shown <= sight.latest_picture(first + hop, rate):
            stream.show(next(mouths, None))
            shown += 1
        parts.append(stream(audio[first : first + hop]))
    voice = np.concatenate([*parts, stream.flush()])
    io.write_wav(args.output, voice, rate)
    factor = (time.perf_counter() - started) / (len(audio) / rate)
    print(f"{args.output}: {len(audio) / rate:.1f} s, real-time factor {factor:.3f}")


def _person(args: Any) -> records.Record | None:
    """Who of --prepared is heard and seen."""
    if (args.prepared is None) != (args.person is None):
        raise errors.UserError("--prepared and --person go together.")
    if args.prepared and (args.video or args.camera is not None):
        raise errors.UserError("--prepared, --video and --camera: one of them.")
    if args.video and args.camera is not None:
        raise errors.UserError("--video is in place of a --camera: one of them.")
    if args.video and args.input:
        raise errors.UserError("--input: with --video the sound is that of the film.")
    if args.prepared is None:
        return None
    if args.input:
        raise errors.UserError("--input: with --person the sound is that of the film.")
    return person_of(args.prepared, args.person)


def _are_files(args: Any) -> bool:
    """Whether there is no device."""
    input_is, output_is = (
        bool(x) and x.lower().endswith(".wav") for x in (args.input, args.output)
    )
    if args.person is not None and not output_is:
        raise errors.UserError("--output: with --person give a WAV file.")
    if args.video and not output_is:
        raise errors.UserError("--output: with --video give a WAV file.")
    if args.camera is not None and (input_is or output_is):
        raise errors.UserError("--camera goes with a microphone and a loudspeaker, not with files.")
    if not (args.person or args.video) and input_is != output_is:
        raise errors.UserError("--input and --output are both WAV files, or both devices.")
    return output_is


def main() -> None:
    """The command line."""
    parser = app.parser("separation.live", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, help="of a training run")
    parser.add_argument("--checkpoint", type=int, help="step; default: the best on the dev set")
    parser.add_argument(
        "--enroll", metavar="FILE", action="append", help="a recording of the voice; may repeat"
    )
    parser.add_argument(
        "--self-enroll", action="store_true", help="the loudest voice, known by its own sound"
    )
    parser.add_argument(
        "--prepared", type=pathlib.Path, metavar="DIR", help="films of separation.prepare_video"
    )
    parser.add_argument("--person", metavar="ID", help="who of --prepared is heard and seen")
    parser.add_argument("--camera", type=int, metavar="N", help="of the system: who is in view")
    parser.add_argument("--video", metavar="FILM", help="heard and seen in place of devices")
    parser.add_argument("--input", help="a device, or a WAV file; default: the system's")
    parser.add_argument("--output", help="a device, or a WAV file; default: the system's")
    parser.add_argument("--list", action="store_true", help="shows the devices")
    parser.add_argument(
        "--dry", type=float, default=0.0, help="share of the mixture: 0 (default) to 1"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="default: until Ctrl-C")
    args = parser.parse_args()

    def work() -> None:
        if args.list:
            print(devices.module(_INSTEAD).query_devices())
            return
        if args.workdir is None:
            raise errors.UserError("--workdir is missing: whose network is it to be?")
        if not 0 <= args.dry <= 1:
            raise errors.UserError(f"--dry={args.dry:g} is not from 0 to 1.")
        if not args.seconds > 0:
            raise errors.UserError(f"--seconds={args.seconds:g} must be positive.")
        person, from_files = _person(args), _are_files(args)
        found = None if from_files else devices.module(_INSTEAD)
        network = enhancer_lib.load(args.workdir, step=args.checkpoint)
        with contextlib.ExitStack() as stack:
            camera = follower = None
            if args.video or args.camera is not None:
                follower = following.Follower(finding.Cascade())
            if args.video:
                mouths, face = seen_in(args.video, network, follower)
            elif follower:
                _check_sees(network, "--camera")
                camera = stack.enter_context(following.Camera(args.camera, follower))
                if not camera.wait(_FACE_SECONDS):
                    raise errors.UserError(
                        f"--camera={args.camera}: nobody in view for {_FACE_SECONDS} s."
                    )
                face = follower.portraits if network.sees_face else None
            else:
                mouth, face = seen_of(person, network)
                mouths = None if mouth is None else iter(mouth)
            stream = network.stream(
                args.enroll, strength=1 - args.dry, self_enroll=args.self_enroll, face=face
            )
            network.compile()
            if found is None:
                convert(network, stream, args, person, mouths)
            else:
                play(network, stream, args, found, camera if network.sees_lips else None)
            if follower and follower.seconds:
                p50, p95 = 1000 * np.percentile(follower.seconds, (50, 95))
                print(
                    f"Lips in {follower.seen} of {follower.pictures} pictures, found in {p50:.0f} "
                    f"ms (median), {p95:.0f} ms (95 %)"
                )

    app.command("separation.live", work)


if __name__ == "__main__":
    main()
