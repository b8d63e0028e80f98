"""The routes of `generation.serve`: faces of voices, one that follows a voice, voices of faces."""

import abc
import asyncio
import concurrent.futures
import contextlib
import math
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import fastapi
import numpy as np
from starlette import datastructures

from common import errors, pictures
from common.audio import io
from common.data import splits
from common.serve import answers, app, incoming, measures, sockets, sound
from common.serve import settings as serve_settings
from generation import images, listening, maker, voice_changer, voice_maker

PAGES = pathlib.Path(__file__).parent / "page"
_OF_VOICES = """Faces that go with a voice. They are guesses: a voice tells little of how somebody
looks. Identify nobody by them.

`POST /faces` takes a recording of a voice in any format, and gives a PNG of `count` faces, row by
row; each is another draw of chance, and the same `seed` gives the same ones. All speech counts, up
to the last half minute.

`/live` is a websocket. First frame, JSON: `{"rate": 16000, "format": "pcm16" or "float32", "seed":
0, "token": TOKEN}`, of which only the rate has to be there. The answer is `{"rate", "format",
"step_seconds"}`. Then binary frames of little-endian samples of one channel, cut anywhere. After
each step of sound comes `{"heard_seconds", "voice_seconds"}`, and where there was more of the voice
a PNG, the face of all that was said so far. `{"end": true}` brings the last ones. An error is
`{"error": MESSAGE}` and a close code: 4400 what was sent is wrong, 4401 token, 4408 too slow or
idle, 4413 too long, 4429 too many streams.
"""
_OF_FACES = """Voices that go with a face. They are guesses: a face tells little of how somebody
sounds.

`POST /voices` takes a picture, PNG, JPEG and others, with a face in the middle, and gives a WAV of
`count` stretches of a little more than a second, one after another; they say nothing. Each is
another draw of chance, and the same `seed` gives the same ones.
"""
_MOST, _MOST_SEED = 16, 2**31 - 1
_GAP_SECONDS = 0.3  # between stretches of voices
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_NOTHING = np.zeros(0, np.float32)
_Upload = Annotated[fastapi.UploadFile, fastapi.File()]
_Count = Annotated[int, fastapi.Form(ge=1, le=_MOST, description="how many, 1 to 16")]
_Seed = Annotated[int, fastapi.Form(ge=0, le=_MOST_SEED, description="of chance")]


class Service(abc.ABC):
    """A network behind one application; its direction adds the routes.

    `takes` and `gives`, of /health, say to the page which of its parts belong to what is served.
    """

    takes: str
    gives: str
    description: str

    def __init__(self, settings: serve_settings.Settings) -> None:
        self._settings, self._limits = settings, settings.limits
        self.measured = measures.Measures("generation")
        self._times = self.measured.histogram(
            "work_seconds", "From what is given to what is made of it", _SECONDS
        )
        self._streams = 0
        # One after another: the network has all cores for each.
        self._jobs = concurrent.futures.ThreadPoolExecutor(1, "network")

    def application(self) -> fastapi.FastAPI:
        """What `common.serve.running` serves."""
        made = app.make(
            "Generation",
            self.description,
            pages=PAGES,
            settings=self._settings,
            measured=self.measured,
            health=self._health,
            work=self._work,
        )
        self._add_routes(made, {"dependencies": app.TOKEN, "tags": ["generation"]})
        return made

    @abc.abstractmethod
    def _add_routes(self, made: fastapi.FastAPI, about: dict[str, Any]) -> None:
        """Those of the direction; `about` goes to each that is no websocket."""

    async def _job(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._jobs, work, *arguments)

    def _health(self) -> dict[str, Any]:
        about = {"takes": self.takes, "gives": self.gives}
        return {"status": "ok", "streams": self._streams, **about}

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(self._jobs.shutdown, cancel_futures=True)


class FaceService(Service):
    """A network that draws faces of voices."""

    takes, gives, description = "voice", "face", _OF_VOICES

    def __init__(self, network: maker.FaceMaker, settings: serve_settings.Settings) -> None:
        """Compiles what uploads and streams need: takes seconds. Raises UserError for a network
        that hears no voices."""
        super().__init__(settings)
        self._network, self._rate = network, network.sample_rate_hz
        self._audio = self.measured.counter("audio_seconds", "Sound heard", "way")
        self._faces = self.measured.counter("faces", "Faces drawn", "way")
        listening.Listener(network).vector()
        silence = np.zeros(round(network.config.data.eval_seconds * self._rate), np.float32)
        network.drawn(network.vector(silence)[None], network.noise(0, 1))

    def _add_routes(self, made: fastapi.FastAPI, about: dict[str, Any]) -> None:
        made.post("/faces", response_class=answers.Png, **about)(self.faces)
        made.websocket("/live")(self.live)

    async def faces(self, file: _Upload, count: _Count = 1, seed: _Seed = 0) -> answers.Png:
        """Faces of the voice of a recording, as a PNG."""
        return answers.Png(await self._job(self._drawn, file, count, seed))

    async def live(self, socket: fastapi.WebSocket) -> None:
        """See the description of the application."""
        async with sockets.serving(socket, self._settings, self.measured) as talk:
            form, seed = _wanted(await talk.header())
            if self._streams >= self._limits.streams:
                limit = f"there are {self._limits.streams} streams, the limit; try again later"
                raise sockets.Refused(sockets.BUSY, "busy", limit)
            self._streams += 1
            self.measured.streams.inc()
            try:
                voice = listening.Listener(self._network, seed=seed)
                step = {"step_seconds": voice.step_seconds}
                await talk.send({"rate": form.rate, "format": form.name, **step})
                await self._follow(talk, form, voice)
            finally:
                self._streams -= 1
                self.measured.streams.dec()

    async def _follow(
        self, talk: sockets.Socket, form: incoming.Form, voice: listening.Listener
    ) -> None:
        """Answers each step of the sound."""
        resampled = incoming.resampler(form.rate, self._rate)
        most = round(self._limits.stream_seconds * form.rate)
        async for samples in incoming.samples(talk, sound.Frames(form.name), most):
            self._audio.labels("stream").inc(len(samples) / form.rate)
            if voice.gather(resampled(samples, False)):
                await self._answer(talk, voice)
        voice.gather(resampled(_NOTHING, True))
        await self._answer(talk, voice, last=True)

    async def _answer(
        self, talk: sockets.Socket, voice: listening.Listener, *, last: bool = False
    ) -> None:
        """How much was heard, and the face where it is a new one."""
        with self._times.time():
            face = await self._job(lambda: voice.face(last=last))
        heard = {"heard_seconds": voice.heard_seconds, "voice_seconds": voice.voice_seconds}
        await talk.send({name: round(seconds, 2) for name, seconds in heard.items()})
        if face is not None:
            self._faces.labels("stream").inc()
            await talk.send(pictures.png(images.sheet([[face]])))

    def _drawn(self, file: datastructures.UploadFile, count: int, seed: int) -> bytes:
        """The PNG of an upload."""
        name, channel = file.filename or "upload", splits.channel(self._network.config.data)
        audio, rate = sound.decode(file.file.read(), name, channel, self._limits)
        self._audio.labels("upload").inc(len(audio) / rate)
        audio = io.load_audio(audio, source_rate_hz=rate, sample_rate_hz=self._rate)
        with self._times.time():
            heard = listening.heard(self._network, audio, name)
            noise = self._network.noise(seed, count)
            faces = self._network.drawn(np.tile(heard, (count, 1)), noise)
        self._faces.labels("upload").inc(count)
        columns = math.ceil(math.sqrt(count))
        rows = [list(faces[first : first + columns]) for first in range(0, count, columns)]
        return pictures.png(images.sheet(rows))


class VoiceService(Service):
    """A network that makes voices of faces."""

    takes, gives, description = "face", "voice", _OF_FACES

    def __init__(self, network: voice_maker.VoiceMaker, settings: serve_settings.Settings) -> None:
        """Compiles what uploads need: takes seconds."""
        super().__init__(settings)
        self._network = network
        self._voices = self.measured.counter("voices", "Stretches of voices made")
        network.voice(np.zeros((images.LEAST_PIXELS, images.LEAST_PIXELS, 3), np.uint8))

    def _add_routes(self, made: fastapi.FastAPI, about: dict[str, Any]) -> None:
        made.post("/voices", response_class=answers.Wav, **about)(self.voices)

    async def voices(self, file: _Upload, count: _Count = 1, seed: _Seed = 0) -> answers.Wav:
        """Voices for the face in the middle of a picture, one after another, as WAV."""
        return answers.Wav(await self._job(self._made, file, count, seed))

    def _made(self, file: datastructures.UploadFile, count: int, seed: int) -> bytes:
        """The WAV of an upload."""
        face = images.read(file.file.read(), file.filename or "upload")
        with self._times.time():
            sounds = self._network.voice(face, count, seed)
        self._voices.inc(count)
        rate = self._network.sample_rate_hz
        gap = np.zeros(round(_GAP_SECONDS * rate), np.float32)
        parts = [part for sound in sounds for part in (gap, sound)]
        return io.wav_bytes(np.concatenate(parts[1:]), rate)


def service(
    network: maker.FaceMaker | voice_maker.VoiceMaker | voice_changer.VoiceChanger,
    settings: serve_settings.Settings,
) -> Service:
    """What serves the network of a work directory (`generation.load`). Raises UserError for one
    that there are no routes for."""
    if isinstance(network, voice_changer.VoiceChanger):
        raise errors.UserError(
            f"{network.folder} has a network that says a recording in another voice, which is not "
            "served: use generation.sample --say=a.wav, or name a run of a GAN."
        )
    if isinstance(network, voice_maker.VoiceMaker):
        return VoiceService(network, settings)
    return FaceService(network, settings)


def _wanted(header: dict[str, Any]) -> tuple[incoming.Form, int]:
    """Form of the sound, seed. Raises sockets.Refused."""
    form, seed = incoming.form(header, ("seed",)), header.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _MOST_SEED:
        raise incoming.wrong(f"seed: a whole number from 0 to {_MOST_SEED}")
    return form, seed
