"""Faces of voices, drawn for clients: recordings, and a websocket whose voice is followed."""

import math
from typing import Any

import fastapi
import numpy as np
from starlette import datastructures

from common import pictures
from common.audio import io
from common.data import splits
from common.serve import answers, incoming, sockets, sound
from common.serve import settings as serve_settings
from generation import images, listening, maker, serving

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
_NOTHING = np.zeros(0, np.float32)


class FaceService(serving.Service):
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

    async def faces(
        self, file: serving.Upload, count: serving.Count = 1, seed: serving.Seed = 0
    ) -> answers.Png:
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


def _wanted(header: dict[str, Any]) -> tuple[incoming.Form, int]:
    """Form of the sound, seed. Raises sockets.Refused."""
    form, seed = incoming.form(header, ("seed",)), header.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= serving.MOST_SEED:
        raise incoming.wrong(f"seed: a whole number from 0 to {serving.MOST_SEED}")
    return form, seed
