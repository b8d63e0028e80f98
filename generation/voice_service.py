"""Voices of faces, made for clients that upload a picture."""

from typing import Any

import fastapi
import numpy as np
from starlette import datastructures

from common.audio import io
from common.serve import answers
from common.serve import settings as serve_settings
from generation import images, serving, voice_maker

_OF_FACES = """Voices that go with a face. They are guesses: a face tells little of how somebody
sounds.

`POST /voices` takes a picture, PNG, JPEG and others, with a face in the middle, and gives a WAV of
`count` stretches of a little more than a second, one after another; they say nothing. Each is
another draw of chance, and the same `seed` gives the same ones.
"""
_GAP_SECONDS = 0.3  # between stretches of voices


class VoiceService(serving.Service):
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

    async def voices(
        self, file: serving.Upload, count: serving.Count = 1, seed: serving.Seed = 0
    ) -> answers.Wav:
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
