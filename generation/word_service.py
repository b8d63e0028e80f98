"""Words in another voice, said for clients that upload a recording and whose voice it is to be."""

from typing import Annotated, Any

import fastapi
import numpy as np
from jaxtyping import Float
from starlette import datastructures

from common.audio import io
from common.data import splits
from common.serve import answers, sound
from common.serve import settings as serve_settings
from generation import serving, voice_changer

_OF_WORDS = """The words of a recording in the voice of a face, or of another recording. Of a face
it is a guess: a face tells little of how somebody sounds. Speak for nobody by it.

`POST /said` takes `file`, a recording of words in any format, and one of two: `face`, a picture,
PNG, JPEG and others, with a face in the middle, or `voice`, a recording of a voice, of which the
first quarter of a minute counts. It gives a WAV of one channel, as long and as loud as the words
were. `seed` draws the phases that Griffin-Lim begins with: the same one gives the same sound.
"""
_EITHER = "face or voice: give one of both, whose voice it is to be"
_Face = Annotated[
    fastapi.UploadFile | None, fastapi.File(description="a picture: its voice, or `voice`")
]
_Voice = Annotated[
    fastapi.UploadFile | None, fastapi.File(description="a recording: its voice, or `face`")
]


class WordService(serving.Service):
    """A network that says recordings in other voices."""

    takes, gives, description = "words", "words", _OF_WORDS

    def __init__(
        self, network: voice_changer.VoiceChanger, settings: serve_settings.Settings
    ) -> None:
        """Compiles what uploads need: takes seconds, the first time most of a minute."""
        super().__init__(settings)
        self._network, self._rate = network, network.sample_rate_hz
        self._channel = splits.channel(network.config.data)
        self._audio = self.measured.counter("audio_seconds", "Sound heard", "way")
        network.compile()

    def _add_routes(self, made: fastapi.FastAPI, about: dict[str, Any]) -> None:
        made.post("/said", response_class=answers.Wav, **about)(self.said)

    async def said(
        self,
        file: serving.Upload,
        face: _Face = None,
        voice: _Voice = None,
        seed: serving.Seed = 0,
    ) -> answers.Wav:
        """The words of a recording in the voice of a face, or of another recording, as WAV."""
        if (face is None) == (voice is None):
            raise fastapi.HTTPException(422, _EITHER)
        return answers.Wav(await self._job(self._made, file, face, voice, seed))

    def _made(
        self,
        file: datastructures.UploadFile,
        face: datastructures.UploadFile | None,
        voice: datastructures.UploadFile | None,
        seed: int,
    ) -> bytes:
        """The WAV of an upload."""
        words = self._heard(file, "words")
        if face is not None:
            who = self._network.seen(face.file.read(), face.filename or "face")
        else:
            who = self._network.heard(self._heard(voice, "voice"), voice.filename or "voice")
        with self._times.time():
            said = self._network.say(words, who, seed, file.filename or "file")
        return io.wav_bytes(said, self._rate)

    def _heard(self, file: datastructures.UploadFile, way: str) -> Float[np.ndarray, "t"]:
        """An uploaded recording at the network's rate."""
        name = file.filename or way
        audio, rate = sound.decode(file.file.read(), name, self._channel, self._limits)
        self._audio.labels(way).inc(len(audio) / rate)
        return io.load_audio(audio, source_rate_hz=rate, sample_rate_hz=self._rate)
