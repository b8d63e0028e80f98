"""A trained extractor as a function of recordings, and as a stream: `separation.load`."""

import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import soxr
from jaxtyping import Array, Float, Int, Num, UInt8

from common import errors, trained
from common.audio import io
from common.data import splits
from separation import causal, enrolling, hops, lips, model, self_enrolment
from separation import task as separation_task

log = logging.getLogger(__name__)

Recording = enrolling.Recording
# Calls a function and returns what it returns, perhaps later and in another thread.
Run = Callable[[Callable[[], Any]], Any]

# What is said of networks that give no voice of an enrolment, by their kinds.
OTHERS = {
    "visualvoice": "This network knows voices by who is seen to speak: python -m "
    "separation.separate_video is its command.",
    "lite": "This network gives features for a recogniser and no sound: python -m "
    "separation.transcribe is its command.",
}
BLOCK_HOPS = 16  # that a stream takes at a time where there are so many: some milliseconds
# Networks that see all of a recording see so much of a long one, and fade from piece to piece.
_PIECE_SECONDS, _FADE_SECONDS = 10.0, 1.0
_LISTENING_SECONDS = 30.0  # at a time, for a voice's own enrolment


@runtime_checkable
class Streaming(Protocol):
    """What a `Stream` is of: an `Enhancer`, or a network read from a file (`artefact.Exported`)."""

    sample_rate_hz: int
    channel: str | int

    @property
    def extractor(self) -> Any:
        """Its `hop_size` and `delay_samples`."""

    def start(self, cue: Any) -> Any: ...

    def step(self, state: Any, chunk: Any, motion: Any = None) -> tuple[Any, Any]: ...

    def with_cue(self, state: Any, cue: Any) -> Any: ...

    def cue_of(self, audio: Any) -> Any: ...

    def collector(self) -> self_enrolment.Collector: ...

    def watched(self) -> lips.Watched | None: ...


class Stream:
    """A voice out of a stream of samples at the model's rate, in constant memory.

    `stream(chunk)`, of any size, gives the samples that are complete, `delay_samples` fewer than
    went in up to a hop; `flush()` the rest. Together they are as many as went in, on time. With a
    `strength` below 1 the mixture is heard too. With `self_enroll` the cue is changed once,
    when enough of a voice came out alone (`self_enrolment.SECONDS`), for that of it. At which hop
    does not hang on the sizes of the chunks.

    To a network that sees lips `show` gives the pictures of the mouth, 25 a second from the first
    sample on, each before the sound that goes on behind its middle (`lips.Watched`). Sound for
    which there is no picture yet is heard without.

    Attributes:
        enrolled_at: samples that were given back before the cue was changed; None: it was not.
    """

    def __init__(
        self,
        enhancer: Streaming,
        cue: Float[Array, "1 c"] | None,
        strength: float = 1.0,
        self_enroll: bool = False,
        run: Run = lambda work: work(),
    ) -> None:
        """`run` is given every step of the network: some milliseconds. A `cue` of None: that of a
        file."""
        self._run, self._enhancer = run, enhancer
        self._listening = enhancer.collector() if self_enroll else None
        self._given, self.enrolled_at = 0, None
        extractor = enhancer.extractor
        self.delay_samples = extractor.delay_samples
        heard = self._listen if self_enroll else None
        self._hops = hops.Hops(extractor.hop_size, extractor.delay_samples, strength, heard)
        self._state = enhancer.start(cue)
        self._lips = enhancer.watched()

    def show(self, mouth: UInt8[np.ndarray, "h w"] | None) -> None:
        """The next picture; None: the mouth is not in view. Raises UserError in a network that sees
        no lips, and for another size."""
        if self._lips is None:
            raise errors.UserError(
                "This network sees no lips: train one with config.sight.lips=True "
                "(configs/separation/audiovisual_quickstart.py)."
            )
        self._lips.show(mouth)

    def __call__(self, chunk: Num[np.ndarray, "n *c"]) -> Float[np.ndarray, "m"]:
        """Integers and channels are taken as those of files. Raises io.AudioError for samples that
        are NaN or infinite, and UserError for any after `flush`; the stream is as it was."""
        if chunk.size:
            rate, channel = self._enhancer.sample_rate_hz, self._enhancer.channel
            chunk = io.load_audio(chunk, sample_rate_hz=rate, channel=channel, source_rate_hz=rate)
            self._hops.put(chunk)
        return self._advance()

    def flush(self) -> Float[np.ndarray, "m"]:
        """What silence after the last sample brings out. The stream is over then: no more may come,
        and another `flush` gives nothing."""
        self._hops.end()
        return self._advance()

    def _advance(self) -> Float[np.ndarray, "m"]:
        parts = [np.zeros(0, np.float32)]
        while ready := self._hops.ready:
            is_block = ready >= BLOCK_HOPS and self._listening is None
            audio = self._hops.take(BLOCK_HOPS if is_block else 1)
            parts.append(self._hops.give(self._run(functools.partial(self._stepped, audio))))
        return np.concatenate(parts)

    def _stepped(self, audio: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
        motion = None if self._lips is None else self._lips.at_hops(len(audio))
        self._state, out = self._enhancer.step(self._state, audio[None], motion)
        return np.asarray(out)[0]

    def _listen(self, mixture: Float[np.ndarray, "m"], voice: Float[np.ndarray, "m"]) -> None:
        self._given += len(voice)
        if self._listening is None:
            return
        self._listening.put(mixture, voice)
        if self._listening.is_full:
            cue = self._enhancer.cue_of(self._listening.enrolment)
            self._state = self._enhancer.with_cue(self._state, cue)
            self._listening, self.enrolled_at = None, self._given


class Enhancer:
    """A trained network. `enhancer(mixture, rate, enrolment)` gives the voice of the enrolment.

    Recordings are files, the bytes of one, or samples with their rate. Without an enrolment a
    learned cue stands in: the loudest voice. With `self_enroll` that voice is then known by what of
    it is heard alone.
    """

    def __init__(self, found: trained.Trained) -> None:
        self.sample_rate_hz = found.config.data.sample_rate_hz
        self.channel = splits.channel(found.config.data)
        self._needs_enrolment = not found.config.cue.dropout
        self._net = found.task.model
        if not isinstance(self._net, model.SeparationNet):
            raise errors.UserError(OTHERS[found.config.model.kind])
        # On one device: as arrays of the host they would be taken over again with every call.
        self._variables = jax.device_put(jax.device_get(found.variables), jax.devices()[0])
        apply = self._net.apply
        self._extract = jax.jit(lambda v, *x: apply(v, *x, method="extract"))
        self._enroller = enrolling.Enroller(
            functools.partial(jax.jit(self.pure_cue), self._variables),
            self.sample_rate_hz,
            self.channel,
            found.config.data.enrolment_seconds,
        )
        self._look = jax.jit(lambda v, *x: apply(v, *x, method="motion"))
        self._know_face = jax.jit(lambda v, *x: apply(v, *x, method="looks"))
        self._apply_step = jax.jit(self.pure_step, donate_argnums=1)
        self._apply_cue = jax.jit(self.pure_with_cue, donate_argnums=1)

    @property
    def extractor(self) -> Any:
        """The network without its cue encoder."""
        return self._net.extractor

    @property
    def streams(self) -> bool:
        """Whether the network is causal, so that `stream` works."""
        return isinstance(self.extractor, causal.CausalExtractor)

    def check_streams(self) -> None:
        """Raises UserError where the network cannot stream."""
        if not self.streams:
            raise errors.UserError(
                "This network sees all of a recording and cannot stream: train one with "
                "config.model.kind=causal."
            )

    @property
    def latency_ms(self) -> float:
        """Of a stream: how much of the future a sample of the output hangs on."""
        extractor = self.extractor
        return 1000 * (extractor.delay_samples + extractor.hop_size) / self.sample_rate_hz

    @property
    def variables(self) -> Any:
        """For the pure functions."""
        return self._variables

    def pure_step(
        self,
        variables: Any,
        state: Any,
        chunk: Float[Array, "b t"],
        motion: Float[Array, "b k d"] | None = None,
    ) -> tuple[Any, Float[Array, "b t"]]:
        """`step` as a pure function, to be a part of others."""
        return self._net.apply(variables, state, chunk, motion, method="step")

    def pure_with_cue(self, variables: Any, state: Any, cue: Float[Array, "b c"]) -> Any:
        """`with_cue` as a pure function."""
        return self._net.apply(variables, state, cue, method="with_cue")

    def pure_cue(
        self, variables: Any, enrolment: Float[Array, "b n"], lengths: Int[Array, "b"]
    ) -> Float[Array, "b c"]:
        """What enrolments say, as a pure function."""
        return self._net.apply(variables, enrolment, lengths, method="cue")

    @property
    def enrolment_samples(self) -> int:
        """At the network's rate, that a cue is made of: others are filled up or cut."""
        return self._enroller.longest

    def start(self, cue: Float[Array, "b c"]) -> Any:
        """The state of a new stream for the voice of a cue."""
        return self.with_cue(self.extractor.initial_state(len(cue)), cue)

    def step(
        self,
        state: Any,
        chunk: Float[np.ndarray, "b t"],
        motion: Float[np.ndarray, "b k d"] | None = None,
    ) -> tuple[Any, Float[Array, "b t"]]:
        """See `causal.CausalExtractor.step`. The memory of `state` is used again."""
        return self._apply_step(self._variables, state, chunk, motion)

    def watched(self) -> lips.Watched | None:
        """The lips of a new stream; None in a network that sees none."""
        if not self.sees_lips:
            return None
        look = functools.partial(self._look, self._variables)
        return lips.Watched(
            look, self._net.lips.config, self.extractor.hop_size, self.sample_rate_hz
        )

    @property
    def sees_lips(self) -> bool:
        """Whether its streams are to be shown a mouth."""
        return self._net.lips is not None

    @property
    def sees_face(self) -> bool:
        """Whether portraits say something to the network."""
        return self._net.faces is not None

    def with_face(
        self, cue: Float[Array, "1 c"], face: UInt8[np.ndarray, "k 224 224 3"]
    ) -> Float[Array, "1 c"]:
        """A cue and what portraits say. Raises UserError in a network that sees no faces."""
        if not self.sees_face:
            raise errors.UserError("This network sees no faces: config.sight.face is False.")
        shown = face[: self._net.faces.config.pictures][None]
        there = np.ones(shown.shape[:2], bool)
        return cue + self._know_face(self._variables, shown, there)

    def with_cue(self, state: Any, cue: Float[Array, "b c"]) -> Any:
        """`state` with another cue from here on. Its memory is used again."""
        return self._apply_cue(self._variables, state, cue)

    def compile(self) -> None:
        """All programs that recordings need, so that none waits for them."""
        # Blocks and single hops of a stream; or a whole piece and half of one.
        silence = np.zeros(round(1.4 * _PIECE_SECONDS * self.sample_rate_hz), np.float32)
        self.extract(silence, self.sample_rate_hz, self.cue_of(np.zeros(0, np.float32)))

    def cue(
        self, enrolment: Recording | Sequence[Recording] | None, rate: int | None = None
    ) -> Float[Array, "1 c"]:
        """What is to be known of a voice. None: the null cue. Of several recordings: the mean.

        `rate` (Hz) goes with samples. Raises io.AudioError, also for a recording that is silent or
        shorter than a second; of a long one it takes the first seconds, as in training.
        """
        if enrolment is None and self._needs_enrolment:
            log.warning(
                "This network was trained with config.cue.dropout=0, never without an enrolment: "
                "without one it is nobody's voice in particular."
            )
        return self._enroller.cue(enrolment, rate)

    def cue_of(self, audio: Float[np.ndarray, "n"]) -> Float[Array, "1 c"]:
        """That of samples at the network's rate, whatever they are; of none the null cue."""
        return self._enroller.cue_of(audio)

    def collector(self) -> self_enrolment.Collector:
        """Of what a voice may be known by."""
        return self_enrolment.Collector(self.sample_rate_hz, self._enroller.longest)

    def stream(
        self,
        enrolment: Recording | Sequence[Recording] | None = None,
        rate: int | None = None,
        strength: float = 1.0,
        self_enroll: bool = False,
        face: UInt8[np.ndarray, "k 224 224 3"] | None = None,
    ) -> Stream:
        """A new stream for the voice of an enrolment, of a face, of lips that it will be shown.

        Raises UserError if the network cannot, for a strength that is not from 0 to 1, and where an
        enrolment is given and the voice is to enrol itself.
        """
        self.check_streams()
        check_wishes(enrolment, self_enroll, strength)
        cue = self.cue(enrolment, rate)
        if face is not None:
            cue = self.with_face(cue, face)
        return Stream(self, cue, strength, self_enroll)

    def __call__(
        self,
        mixture: Recording,
        rate: int | None = None,
        enrolment: Recording | Sequence[Recording] | None = None,
        enrolment_rate: int | None = None,
        strength: float = 1.0,
        self_enroll: bool = False,
    ) -> Float[np.ndarray, "_"]:
        """One channel of the voice, at the rate and of the length of the mixture.

        With a `strength` below 1 the mixture is heard too: 0.8 leaves a fifth of it.

        `rate` (Hz) goes with samples; `enrolment_rate` is that of the enrolment's, by default the
        same. Raises io.AudioError, and UserError where an enrolment is given with `self_enroll` or
        for a strength that is not from 0 to 1.
        """
        check_wishes(enrolment, self_enroll, strength)
        if not isinstance(mixture, np.ndarray):
            rate = io.probe(mixture).sample_rate_hz
        elif rate is None:
            raise ValueError("an array needs its rate")
        cue = self.cue(enrolment, enrolment_rate or rate)
        return self.extract(mixture, rate, cue, strength, self_enroll=self_enroll)

    def extract(
        self,
        mixture: Recording,
        rate: int,
        cue: Float[Array, "1 c"],
        strength: float = 1.0,
        *,
        self_enroll: bool = False,
        as_stream: bool = False,
        run: Run = lambda work: work(),
    ) -> Float[np.ndarray, "_"]:
        """The voice of a cue at `rate`, that of the mixture; see `__call__`.

        With `self_enroll` what the cue brings out is the enrolment for all of the recording, or
        `as_stream` for what comes after it. `run` is given each step of a network that streams.
        """
        native = io.load_audio(
            mixture, sample_rate_hz=rate, channel=self.channel, source_rate_hz=rate
        )
        audio = self._enroller.load(native, rate)
        if self_enroll and as_stream:
            self.check_streams()
            found = self._streamed(audio, cue, run, self_enroll=True)
        else:
            cue = self._own_cue(audio, cue, run) if self_enroll else cue
            found = self._voice(audio, cue, run)
        if rate != self.sample_rate_hz:
            found = soxr.resample(found, self.sample_rate_hz, rate)
        found = found[: len(native)]
        found = np.pad(found, (0, len(native) - len(found)))
        return found if strength == 1 else hops.mixed(found, native, strength)

    def _voice(
        self, audio: Float[np.ndarray, "t"], cue: Float[Array, "1 c"], run: Run
    ) -> Float[np.ndarray, "t"]:
        return self._streamed(audio, cue, run) if self.streams else self._in_pieces(audio, cue)

    def _own_cue(
        self, audio: Float[np.ndarray, "t"], cue: Float[Array, "1 c"], run: Run
    ) -> Float[Array, "1 c"]:
        """That of the first confident seconds of what `cue` brings out; `cue` if there are none."""
        found, size = self.collector(), round(_LISTENING_SECONDS * self.sample_rate_hz)
        for first in range(0, len(audio), size):
            heard = audio[first : first + size]
            found.put(heard, self._voice(heard, cue, run))
            if found.is_full:
                break
        if found.enrolment is None:
            log.warning("No voice is alone for long enough to be known by: the loudest it is.")
            return cue
        return self.cue_of(found.enrolment)

    def _streamed(
        self,
        audio: Float[np.ndarray, "t"],
        cue: Float[Array, "1 c"],
        run: Run,
        *,
        self_enroll: bool = False,
    ) -> Float[np.ndarray, "t"]:
        stream = Stream(self, cue, self_enroll=self_enroll, run=run)
        return np.concatenate([stream(audio), stream.flush()])

    def _in_pieces(
        self, audio: Float[np.ndarray, "t"], cue: Float[Array, "1 c"]
    ) -> Float[np.ndarray, "t"]:
        """Pieces that overlap; the weight of each rises at its start as the last one's falls."""
        size = round(_PIECE_SECONDS * self.sample_rate_hz)
        fade = round(_FADE_SECONDS * self.sample_rate_hz)
        total = np.zeros(len(audio), np.float32)
        rising = (np.arange(fade, dtype=np.float32) + 0.5) / fade
        for first in range(0, max(1, len(audio) - fade), size - fade):
            piece = audio[first : first + size]
            # Half a piece or a whole one: two programs.
            room = size // 2 if len(piece) <= size // 2 else size
            padded = np.pad(piece, (0, room - len(piece)))
            length = jnp.array([len(piece)])
            voice = np.array(self._extract(self._variables, padded[None], length, cue))[0]
            voice = voice[: len(piece)]
            if first:
                voice[:fade] *= rising[: len(voice)]
            if first + size < len(audio):
                voice[-fade:] *= rising[::-1]
            total[first : first + size] += voice
        return total


def check_wishes(enrolment: Any, self_enroll: bool, strength: float) -> None:
    """Raises UserError for what no stream or recording can be asked for."""
    if not 0 <= strength <= 1:
        raise errors.UserError(f"strength={strength:g} is not from 0 (the mixture) to 1.")
    if self_enroll and enrolment is not None:
        raise errors.UserError(
            "A voice that has an enrolment needs none of its own: leave one of both out."
        )


def load(workdir: io.PathLike, *, step: int | None = None) -> Enhancer:
    """The network that a training left in `workdir`: its best checkpoint, or that of `step`.

    Raises UserError: no work directory of a separation network, or no such checkpoint.
    """
    return Enhancer(trained.load(separation_task.PACKAGE, pathlib.Path(workdir), step=step))
