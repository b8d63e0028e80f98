"""The routes of `separation.serve`: enrol a voice, enhance an upload, a stream a websocket."""

import asyncio
import concurrent.futures
import contextlib
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import fastapi
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from starlette import datastructures

from common.audio import io
from common.serve import answers, app, incoming, measures, sockets, sound, store
from common.serve import settings as serve_settings
from separation import enhancer as separation_enhancer
from separation import streams

PAGES = pathlib.Path(__file__).parent / "page"
_DESCRIPTION = """One voice out of several.

`POST /voices` takes a recording of a voice and gives its name; `POST /enhance` takes a recording of
several voices and gives that one as WAV, at the recording's rate and of its length. Any format.
A `strength` of 1 gives the voice alone, 0.8 leaves a fifth of the mixture, 0 is the mixture.
Without a voice it is the loudest, which `self_enroll` then knows by what of it is heard alone.

`/stream` is a websocket. First frame, JSON: `{"rate": 16000, "format": "pcm16" or "float32",
"voice": NAME or null, "strength": 0 to 1, "self_enroll": true or false, "token": TOKEN}`, of which
only the rate has to be there.
The answer is `{"rate", "format", "delay_ms", "hop_ms"}`. Then binary frames of little-endian
samples of one channel, cut anywhere; the voice comes back the same way. `{"end": true}` brings the
rest, as many samples as went in, and `{"samples": N}`. An error is `{"error": MESSAGE}` and a close
code: 4400 what was sent is wrong, 4401 token, 4404 no such voice, 4408 too slow or idle, 4413 too
long, 4429 too many streams.
"""
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_Upload = Annotated[fastapi.UploadFile, fastapi.File()]
_OptionalUpload = Annotated[fastapi.UploadFile | None, fastapi.File()]
_Voice = Annotated[str, fastapi.Form(description="the name of an enrolled voice")]
_Strength = Annotated[
    float, fastapi.Form(ge=0, le=1, description="0 (the mixture) to 1 (the voice)")
]

_SelfEnroll = Annotated[
    bool, fastapi.Form(description="know the loudest voice by what of it is heard alone")
]
_TWO_VOICES = "voice or enrolment: give one of both, or none for the loudest voice"
_ONE = "self_enroll goes without a voice and without an enrolment"


class Service:
    """A network, the voices of clients and their streams, behind one application."""

    def __init__(
        self, enhancer: separation_enhancer.Enhancer, settings: serve_settings.Settings
    ) -> None:
        """Compiles what uploads and streams need: takes seconds."""
        self._enhancer, self._settings, self._limits = enhancer, settings, settings.limits
        self.measured = measures.Measures("separation")
        self._audio = self.measured.counter("audio_seconds", "Audio enhanced", "way")
        self._rows = self.measured.histogram("step_rows", "Streams in a step", _ROWS)
        self._waits = self.measured.histogram(
            "hop_seconds", "From a hop's last sample to its output", _SECONDS
        )
        self._voices = store.Store(self._limits.stored)
        self._null = np.asarray(enhancer.cue(None))[0]
        # One after another, so that a core is left for streams. Their network's steps, if it
        # streams, come between those of streams.
        self._jobs = concurrent.futures.ThreadPoolExecutor(1, "uploads")
        enhancer.compile()
        self._engine: streams.Engine | None = None
        if enhancer.streams:
            self._engine = streams.Engine(enhancer, self._limits.streams, observe=self._observe)
            self._engine.compile()
        self._running: asyncio.Task | None = None

    def application(self) -> fastapi.FastAPI:
        """What `common.serve.running` serves."""
        made = app.make(
            "Separation",
            _DESCRIPTION,
            pages=PAGES,
            settings=self._settings,
            measured=self.measured,
            health=self._health,
            work=self._work,
        )
        about: dict[str, Any] = {"dependencies": app.TOKEN, "tags": ["separation"]}
        made.post("/voices", status_code=201, **about)(self.enrol)
        made.delete("/voices/{voice}", status_code=204, **about)(self.forget)
        made.post("/enhance", response_class=answers.Wav, **about)(self.enhance)
        made.websocket("/stream")(self.stream)
        return made

    async def enrol(self, file: _Upload) -> dict[str, Any]:
        """Takes a recording of one voice, a second at least, better five; names it."""
        cue, seconds = await self._job(self._cue, file)
        return {"voice": self._voices.add(cue), "seconds": round(seconds, 2)}

    async def forget(self, voice: str) -> None:
        """Forgets a voice."""
        self._known(voice)
        self._voices.remove(voice)

    async def enhance(
        self,
        file: _Upload,
        voice: _Voice = "",
        enrolment: _OptionalUpload = None,
        strength: _Strength = 1.0,
        self_enroll: _SelfEnroll = False,
    ) -> answers.Wav:
        """The voice of a recording: an enrolled one, that of an enrolment, or the loudest."""
        if voice and enrolment is not None:
            raise fastapi.HTTPException(422, _TWO_VOICES)
        if self_enroll and (voice or enrolment is not None):
            raise fastapi.HTTPException(422, _ONE)
        known = self._known(voice) if voice else self._null
        return answers.Wav(
            await self._job(self._enhanced, file, known, enrolment, strength, self_enroll)
        )

    async def stream(self, socket: fastapi.WebSocket) -> None:
        """See the description of the application."""
        async with sockets.serving(socket, self._settings, self.measured) as talk:
            form, cue, strength, own = self._wanted(await talk.header())
            stream = None
            if self._engine is not None:
                stream = self._engine.open(cue, strength, self_enroll=own)
            if stream is None:
                limit = f"there are {self._limits.streams} streams, the limit; try again later"
                raise sockets.Refused(sockets.BUSY, "busy", limit)
            try:
                self.measured.streams.inc()
                hop, delay = self._engine.hop_size, self._engine.delay_samples
                ms = 1000 / self._enhancer.sample_rate_hz
                ready = {"rate": form.rate, "format": form.name}
                await talk.send({**ready, "delay_ms": delay * ms, "hop_ms": hop * ms})
                way = _Way(talk, stream, form, self._enhancer.sample_rate_hz)
                most = round(self._limits.stream_seconds * form.rate)
                await sockets.together(way.listen(most), way.answer())
            finally:
                self._engine.close(stream)
                self.measured.streams.dec()

    def _wanted(
        self, header: dict[str, Any]
    ) -> tuple[incoming.Form, Float[np.ndarray, "c"], float, bool]:
        """Form of the sound, cue, strength, whether it enrols itself. Raises sockets.Refused."""
        wrong = incoming.wrong
        if self._engine is None:
            raise wrong("this server's network sees all of a recording and cannot stream")
        form = incoming.form(header, ("self_enroll", "strength", "voice"))
        voice, strength = header.get("voice"), header.get("strength", 1.0)
        own = header.get("self_enroll", False)
        is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
        if not is_number or not 0 <= strength <= 1:
            raise wrong("strength: a number from 0 (the mixture) to 1 (the voice)")
        if not isinstance(own, bool):
            raise wrong("self_enroll: true or false")
        if own and voice is not None:
            raise wrong(_ONE)
        if voice is None:
            return form, self._null, float(strength), own
        try:
            cue = self._voices.get(voice if isinstance(voice, str) else "")
            return form, cue, float(strength), own
        except KeyError:
            raise sockets.Refused(sockets.UNKNOWN, "voice", _NO_VOICE) from None

    def _known(self, voice: str) -> Float[np.ndarray, "c"]:
        try:
            return self._voices.get(voice)
        except KeyError:
            raise fastapi.HTTPException(404, _NO_VOICE) from None

    async def _job(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._jobs, work, *arguments)

    def _decoded(self, file: datastructures.UploadFile) -> tuple[Float[np.ndarray, "n"], int]:
        return sound.decode(file.file.read(), file.filename, self._enhancer.channel, self._limits)

    def _cue(self, file: datastructures.UploadFile) -> tuple[Float[np.ndarray, "c"], float]:
        audio, rate = self._decoded(file)
        return np.asarray(self._enhancer.cue(audio, rate))[0], len(audio) / rate

    def _enhanced(
        self,
        file: datastructures.UploadFile,
        cue: Float[np.ndarray, "c"],
        enrolment: datastructures.UploadFile | None,
        strength: float,
        self_enroll: bool,
    ) -> bytes:
        if enrolment is not None:
            cue, _ = self._cue(enrolment)
        audio, rate = self._decoded(file)
        cue = jnp.asarray(cue)[None]
        voice = self._enhancer.extract(
            audio, rate, cue, strength, self_enroll=self_enroll, run=self._between
        )
        self._audio.labels("upload").inc(len(audio) / rate)
        return io.wav_bytes(voice, rate)

    def _between(self, work: Callable[[], Any]) -> Any:
        """For the thread of uploads: waits for the engine, which calls `work` between streams."""
        return asyncio.run_coroutine_threadsafe(self._engine.between(work), self._loop).result()

    def _observe(self, rows: int, hops: int, seconds: float) -> None:
        self._rows.observe(rows)
        self._waits.observe(seconds)
        samples = rows * hops * self._enhancer.extractor.hop_size
        self._audio.labels("stream").inc(samples / self._enhancer.sample_rate_hz)

    def _health(self) -> dict[str, Any]:
        works = self._engine is None or (self._running is not None and not self._running.done())
        return {
            "status": "ok" if works else "the engine of the streams has stopped",
            "streams": len(self._engine or ()),
            "voices": len(self._voices),
        }

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncIterator[None]:
        try:
            if self._engine is not None:
                self._loop = asyncio.get_running_loop()
                self._running = asyncio.create_task(self._engine.run())
            yield
        finally:
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait([self._running])
            # The upload that is being worked on may wait for this loop.
            await asyncio.to_thread(self._jobs.shutdown, cancel_futures=True)


_NO_VOICE = (
    "no voice of this name: enrol it; the oldest are forgotten, and all of them at a restart"
)


class _Way:
    """Between a websocket and a stream of the engine: bytes, samples and rates."""

    def __init__(
        self,
        talk: sockets.Socket,
        stream: streams.Stream,
        form: incoming.Form,
        model_rate: int,
    ) -> None:
        self._talk, self._stream, self._frames = talk, stream, sound.Frames(form.name)
        self._in = incoming.resampler(form.rate, model_rate)
        self._out = incoming.resampler(model_rate, form.rate)
        self._heard = 0

    async def listen(self, most: int) -> None:
        """Up to the end that the client states; `most` samples."""
        async for samples in incoming.samples(self._talk, self._frames, most):
            self._heard += len(samples)
            await self._stream.put(self._in(samples, False))
        await self._stream.put(self._in(np.zeros(0, np.float32), True))
        self._stream.end()

    async def answer(self) -> None:
        """As many samples as were heard."""
        given = 0
        while (voice := await self._stream.get()) is not None:
            voice = self._out(voice, False)[: self._heard - given]
            given += len(voice)
            if voice.size:
                await self._talk.send(self._frames.data(voice))
        rest = self._out(np.zeros(0, np.float32), True)[: self._heard - given]
        rest = np.pad(rest, (0, self._heard - given - len(rest)))
        if rest.size:
            await self._talk.send(self._frames.data(rest))
        await self._talk.send({"samples": self._heard})
