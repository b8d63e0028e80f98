"""The one program that loads eSpeak NG: `python -m common.data.embedded.worker`.

It reads a job a line (JSON) from stdin and answers each with a line on stdout; the samples go into
the file that the job names. eSpeak NG is GPL-3.0, so nothing else here links it, and it keeps state
from one sentence to the next (flutter, noise, echo, some variants' tempo), so each sentence is
spoken by a fork of a worker that has spoken nothing else: its samples depend on voice and text
alone, whatever was rendered before, and on how many workers.

A job to speak: {"path": absolute path of the file to write, "utterances": [{"text", "voice",
"pitch", "rate_wpm", "range", "level_dbfs"}, ...]}; its answer: {"done": [{"samples", "phones":
[[ms, mnemonic], ...]}, ...]}. A job to draw, for which eSpeak NG is not loaded: {"path", "films":
[{"id", "speaker", "samples", "phones"}, ...]}; its answer: {"done": [{"frames"}, ...]}; or
{"path", "films": [{"speaker"}, ...], "portraits": true}; its answer: {"done": [factors, ...]}.
Either fails with {"error": message}.
"""

import ctypes
import json
import os
import pathlib
import signal
import sys

import espeakng_loader
import numpy as np
import soxr

SAMPLE_RATE_HZ = 16_000

# From eSpeak NG's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS, _INITIALIZE_DONT_EXIT = 0x0001, 0x8000
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7

_SILENCE_DB = -45.0  # against the peak
_MARGIN_SECONDS = 0.06


class _Id(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Espeak:
    """eSpeak NG in this process. Make one only in a process of its own."""

    def __init__(self) -> None:
        self._data = pathlib.Path(espeakng_loader.get_data_path()).absolute()
        library = pathlib.Path(espeakng_loader.get_library_path()).absolute()
        # By a relative path, because it cuts paths off at 160 bytes; it reads files later, too.
        os.chdir(self._data.parent)
        self._library = ctypes.CDLL(str(library))
        options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT
        self.sample_rate_hz = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(self._data.name), options
        )
        if self.sample_rate_hz <= 0:
            raise RuntimeError(f"eSpeak NG does not start from its data in {self._data}")
        self._audio: list[bytes] = []
        self._phones: list[tuple[int, str]] = []
        self._callback = _Callback(self._collect)  # held: the library keeps only the address
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        # Reads dictionary and phoneme tables once, before the forks.
        self._library.espeak_ng_SetRandSeed(1)
        self._synthesize("a", "en-us", 50, 175, 50)

    def _collect(self, audio, count, events) -> int:
        if audio and count > 0:
            self._audio.append(ctypes.string_at(audio, 2 * count))
        i = 0
        while events[i].type != _EVENT_LIST_TERMINATED:
            if events[i].type == _EVENT_PHONEME:
                # The mnemonic fills all eight bytes at times: no closing zero then.
                name = ctypes.string_at(ctypes.addressof(events[i].id), 8).split(b"\0")[0]
                self._phones.append((events[i].audio_position, name.decode()))
            i += 1
        return 0

    def _synthesize(
        self, text: str, voice: str, pitch: int, rate_wpm: int, pitch_range: int
    ) -> None:
        self._audio.clear()
        self._phones.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG knows no voice {voice!r}")
        for parameter, value in ((_RATE, rate_wpm), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0:
            raise RuntimeError(f"eSpeak NG cannot speak {text!r} as {voice!r}: error {status}")

    def speak(
        self, text: str, voice: str, pitch: int, rate_wpm: int, pitch_range: int
    ) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Speaks in a fork of this process: int16[t] at `sample_rate_hz`, and (ms, phoneme)s."""
        variant = voice.partition("+")[2]
        # With an unknown variant the library silently speaks with the plain voice.
        if variant and not (self._data / "voices" / "!v" / variant).is_file():
            raise RuntimeError(f"eSpeak NG's data in {self._data} have no voice variant {variant}")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reading)
                # Its default seed is the clock.
                self._library.espeak_ng_SetRandSeed(1)
                self._synthesize(text, voice, pitch, rate_wpm, pitch_range)
                audio = b"".join(self._audio)
                with os.fdopen(os.dup(writing), "wb") as pipe:
                    pipe.write(len(audio).to_bytes(8, "little") + audio)
                    pipe.write(json.dumps(self._phones).encode())
                status = 0
            except BaseException as error:
                os.write(writing, bytes(8) + str(error).encode())
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        size = int.from_bytes(answer[:8], "little")
        if status != 0 or size == 0:
            reason = answer[8:].decode(errors="replace") if size == 0 else ""
            reason = reason.strip("[]") or f"it ended with status {status} and no sound"
            raise RuntimeError(f"eSpeak NG failed on {text!r} as {voice!r}: {reason}")
        phones = [(ms, phone) for ms, phone in json.loads(answer[8 + size :])]
        return np.frombuffer(answer, np.int16, size // 2, 8), phones


def finish(audio: np.ndarray, sample_rate_hz: int, level_dbfs: float) -> tuple[np.ndarray, float]:
    """Trims silence, resamples to 16 kHz and sets the level: int16[t], and the ms cut in front."""
    magnitude = np.abs(audio.astype(np.int32))  # -32768 has no int16 counterpart
    loud = np.flatnonzero(magnitude > 10 ** (_SILENCE_DB / 20) * magnitude.max(initial=0))
    if loud.size == 0:
        raise RuntimeError("eSpeak NG answered with silence")
    margin = round(_MARGIN_SECONDS * sample_rate_hz)
    start, end = max(loud[0] - margin, 0), min(loud[-1] + margin, audio.size)
    wave = soxr.resample(
        audio[start:end].astype(np.float32) / 32768, sample_rate_hz, SAMPLE_RATE_HZ
    )
    gain = 10 ** (level_dbfs / 20) / np.sqrt(np.mean(np.square(wave)))
    gain = min(gain, 0.95 / np.abs(wave).max())  # never clips
    return np.rint(wave * (gain * 32767)).astype(np.int16), 1e3 * start / sample_rate_hz


def _work(espeak: Espeak, job: dict) -> list[dict]:
    done = []
    with pathlib.Path(job["path"]).open("wb") as file:
        for item in job["utterances"]:
            audio, phones = espeak.speak(
                item["text"], item["voice"], item["pitch"], item["rate_wpm"], item["range"]
            )
            try:
                audio, cut_ms = finish(audio, espeak.sample_rate_hz, item["level_dbfs"])
            except RuntimeError as error:
                raise RuntimeError(f"{error}: {item['text']!r} as {item['voice']!r}") from None
            file.write(audio.tobytes())
            phones = [(max(round(ms - cut_ms), 0), phone) for ms, phone in phones]
            done.append({"samples": audio.size, "phones": phones})
    return done


def _draw(job: dict) -> list[dict]:
    # Only here: a worker that speaks needs none of it.
    from common.data.embedded import talking

    data = pathlib.Path(espeakng_loader.get_data_path()).absolute()
    write = talking.write_portraits if job.get("portraits") else talking.write_mouths
    return write(pathlib.Path(job["path"]), job["films"], data)


def main() -> None:
    """Answers jobs until stdin closes, which also happens when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever the library prints must not mix with the answers
        espeak = None
        for line in sys.stdin:
            try:
                job = json.loads(line)
                if "films" in job:
                    done = _draw(job)
                else:
                    espeak = espeak or Espeak()
                    done = _work(espeak, job)
                answer = {"done": done}
            except (RuntimeError, OSError, AttributeError) as error:
                answer = {"error": str(error)}
            try:
                print(json.dumps(answer), file=answers, flush=True)
            except BrokenPipeError:  # the parent is gone
                os._exit(1)


if __name__ == "__main__":
    main()
