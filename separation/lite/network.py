"""VoiceFilter-Lite (Wang et al., Interspeech 2020, arXiv:2009.04323): the features of one voice.

It stands in front of a recogniser and works frame by frame.

In come log-mel features as the recogniser computes them, before it normalises them, and out come
such features; no sound is made. Normalisation, convolutions over frequency alone, LSTMs that are
shown the cue in every frame, then a mask, and beside it the noise type: whether another voice talks
(overlapped speech) or there is at most noise. No frame hangs on a later one.

The mask multiplies the energies of the mel filters, of which the features are the logarithms, and
reaches from their floor (digital silence) to what went in: log(floor + mask (energy - floor)). So a
mask of 1 changes nothing, and nothing that comes out is less than the recogniser has ever seen. It
stays above `least_gain_db`: where the voice pauses, silence is a matter of 30 dB, not of infinity.

In use suppression adapts to the noise type, because a network that is needed only where voices
overlap should do no harm elsewhere: out = w enhanced + (1 - w) given, in the logarithms, so that w
is the share of the suppression in dB. w is 0 before the first frame, and then

    w[t] = beta w[t-1] + (1 - beta) min(1, a P(overlapped speech)[t] + b)

Our choices, where the paper's were not at hand or are for phones: the domain of the mask and of w,
frames one by one and not stacked, the sizes, normalisation by the mean of the training data so far.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from common import errors, parallel, sections
from common.audio import frontend
from common.nn import conv2d, lstm, marks, masking, norm
from separation import model, voice

# Of the recogniser's front end, by their names in its config: what has to be the same here.
FEATURES = ("num_mels", "window_ms", "hop_ms", "preemphasis", "floor", "compat")
_SPREAD = 4.0  # nats, about the deviation of a band's log-energies


@dataclasses.dataclass(frozen=True)
class LiteConfig:
    """Sizes; the defaults fit the features of configs/asr that have 80 bands.

    Attributes:
        num_mels, window_ms, hop_ms, preemphasis, floor, compat: the recogniser's `config.features`.
        convs: (taps, channels) of each convolution over frequency.
        lstm_size, num_layers: of the LSTMs over time.
        hidden_size: of the head for the noise type.
        least_gain_db: what the mask leaves of an energy, at least.
        alone: the share of training rows without any other voice: clean, or with noise where
            `config.augment` has some.
    """

    sample_rate_hz: int = 16000
    num_mels: int = 80
    window_ms: float = 25.0
    hop_ms: float = 10.0
    preemphasis: float = 0.97
    floor: float = 1e-6
    compat: str = "default"
    convs: tuple[tuple[int, int], ...] = ((7, 8), (5, 8))
    lstm_size: int = 256
    num_layers: int = 2
    hidden_size: int = 64
    least_gain_db: float | int = -30.0
    alone: float | int = 0.25

    def __post_init__(self) -> None:
        sections.check_sizes(self, "num_mels", "lstm_size", "num_layers", "hidden_size")
        if any(min(taps, channels) < 1 for taps, channels in self.convs):
            raise ValueError(f"convs={self.convs}: taps and channels have to be 1 at least")
        if self.least_gain_db >= 0:
            raise ValueError(f"least_gain_db={self.least_gain_db} is no suppression: below 0")
        if not 0 <= self.alone < 1:
            raise ValueError(f"alone={self.alone}: a share from 0 to below 1")
        self.front_end  # noqa: B018 - raises for features that cannot be

    @property
    def front_end(self) -> frontend.LogMelConfig:
        """The recogniser's, without its normalisation."""
        return sections.build(frontend.LogMelConfig, dataclasses.asdict(self), normalize="none")

    @property
    def floor_energy(self) -> float:
        """The least energy that the features are the logarithm of."""
        kaldi = self.compat == "kaldi"
        return float(np.finfo(np.float32).eps) if kaldi else self.floor

    @property
    def least_gain(self) -> float:
        """Of energies."""
        return 10 ** (self.least_gain_db / 10)


@dataclasses.dataclass(frozen=True)
class SuppressionConfig:
    """How strong suppression is in use: see the head of this file. a=0, b=1, beta=0: always all."""

    beta: float | int = 0.9
    a: float | int = 1.0
    b: float | int = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1 or self.a < 0 or self.b < 0:
            raise errors.UserError(
                f"config.suppression: beta={self.beta} is from 0 to below 1, a={self.a} and "
                f"b={self.b} are not below 0."
            )


class State(NamedTuple):
    """What a stream remembers: of the LSTMs, and the last strength of suppression [b]."""

    lstms: tuple[lstm.LSTMState, ...]
    strength: Array


class Enhanced(NamedTuple):
    """Features [b, l, m], logits of overlapped speech [b, l], and the LSTMs' states."""

    features: Array
    overlapped: Array
    after: tuple[lstm.LSTMState, ...]


def features(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: LiteConfig
) -> tuple[Float[Array, "b l m"], Int[Array, "b"]]:
    """Log-mel features that are not normalised, and their lengths."""
    return frontend.log_mel(audio, lengths, config.front_end)


def masked(
    x: Float[Array, "b l m"], gains: Float[Array, "b l m"], floor: float
) -> Float[Array, "b l m"]:
    """Log-energies whose energies lie between the floor (a gain of 0) and what they were (1)."""
    above = jnp.maximum(jnp.exp(x) - floor, 0.0)
    return jnp.log(floor + gains * above)


def strengths(
    overlapped: Float[Array, "b l"], before: Float[Array, "b"], config: SuppressionConfig
) -> Float[Array, "b l"]:
    """w of each frame from the probabilities of overlapped speech; `before` is the last one, 0 at
    the start."""

    def frame(last: Array, probability: Array) -> tuple[Array, Array]:
        wanted = jnp.minimum(config.a * probability + config.b, 1.0)
        now = config.beta * last + (1 - config.beta) * wanted
        return now, now

    return jax.lax.scan(frame, before, overlapped.T)[1].T


def suppressed(
    given: Float[Array, "b l m"], enhanced: Float[Array, "b l m"], strength: Float[Array, "b l"]
) -> Float[Array, "b l m"]:
    """Between what went in (a strength of 0) and what the network makes of it (1)."""
    return strength[..., None] * enhanced + (1 - strength[..., None]) * given


def check_same(sizes: LiteConfig, front_end: frontend.LogMelConfig, named: str) -> None:
    """Raises UserError where the features of the recogniser that is `named` are others."""
    theirs, ours = (
        dataclasses.asdict(dataclasses.replace(x, normalize="none"))
        for x in (front_end, sizes.front_end)
    )
    others = [name for name in ours if ours[name] != theirs[name]]
    if others:
        said = ", ".join(
            f"{name} is {theirs[name]!r} there, {ours[name]!r} here" for name in others
        )
        raise errors.UserError(
            f"{named}: the features of this recogniser are not those of config.model.lite: {said}. "
            "The network filters only such features as it was trained on: train one with the "
            "recogniser's settings of config.features as config.model.lite (and its "
            "config.data.sample_rate_hz), or name another recogniser."
        )


def initial_state(rows: int, config: LiteConfig) -> State:
    """Before the first frame."""
    lstms = tuple(lstm.zero_state(rows, config.lstm_size) for _ in range(config.num_layers))
    return State(lstms, jnp.zeros(rows))


class LiteExtractor(nn.Module):
    """Features and cue -> the features of the cue's voice, and the noise type."""

    config: LiteConfig

    def setup(self) -> None:
        config = self.config
        self.norm = norm.RunningMean(axis_name=parallel.AXIS)
        self.convs = [
            conv2d.Conv2D(channels, (1, taps), use_bias=True) for taps, channels in config.convs
        ]
        self.layers = [lstm.LSTM(config.lstm_size) for _ in range(config.num_layers)]
        self.gains = nn.Dense(config.num_mels)
        self.hidden, self.overlapped = nn.Dense(config.hidden_size), nn.Dense(1)

    def __call__(
        self,
        x: Float[Array, "b l m"],
        lengths: Int[Array, "b"],
        cue: Float[Array, "b c"],
        before: tuple[lstm.LSTMState, ...] | None = None,
        *,
        train: bool,
    ) -> Enhanced:
        """All frames, or the next ones where states are given. 0 beyond the lengths."""
        config = self.config
        frames = masking.float_mask(lengths, x.shape[1])
        h = self.norm(x, frames, train=train)[..., None] / _SPREAD
        for conv in self.convs:
            h = jax.nn.relu(conv(h))
        h = h.reshape(*h.shape[:2], -1)
        shown = jnp.broadcast_to(cue[:, None, :], (*h.shape[:2], cue.shape[-1]))
        h, after = jnp.concatenate([h, shown], axis=-1), []
        for i, layer in enumerate(self.layers):
            h, last = layer(h, lengths, None if before is None else before[i])
            after.append(last)
        least = config.least_gain
        gains = least + (1 - least) * jax.nn.sigmoid(self.gains(h))
        enhanced = masked(x, gains, config.floor_energy)
        overlapped = self.overlapped(jax.nn.relu(self.hidden(h)))
        enhanced, overlapped = (masking.zero_padding(y, lengths) for y in (enhanced, overlapped))
        return Enhanced(enhanced, overlapped[..., 0], tuple(after))


class LiteNet(nn.Module):
    """Features of mixtures and enrolments -> features of voices.

    With `num_speakers` a linear layer tells the training speakers apart by their cues, as in
    `model.SeparationNet`.
    """

    cue_encoder: nn.Module
    extractor: LiteExtractor
    num_speakers: int

    def setup(self) -> None:
        self.speakers = nn.Dense(self.num_speakers, name="speakers") if self.num_speakers else None
        self.outputs = marks.Outputs()

    def cue(self, enrolment: Float[Array, "b n"], lengths: Int[Array, "b"]) -> Float[Array, "b c"]:
        """What the enrolments say."""
        return self.cue_encoder(enrolment, lengths)

    def enhance(
        self,
        x: Float[Array, "b l m"],
        lengths: Int[Array, "b"],
        cue: Float[Array, "b c"],
        before: tuple[lstm.LSTMState, ...] | None = None,
    ) -> Enhanced:
        """See `LiteExtractor`."""
        return self.extractor(x, lengths, cue, before, train=False)

    def __call__(
        self,
        x: Float[Array, "b l m"],
        lengths: Int[Array, "b"],
        enrolment: Float[Array, "b n"],
        enrolment_lengths: Int[Array, "b"],
        *,
        train: bool,
        mask: Bool[Array, "b"],
    ) -> tuple[Float[Array, "b l m"], Float[Array, "b l"], Float[Array, "b s"] | None]:
        """Features, logits of overlapped speech, and in training those of the speakers.

        Rows that are not real (`mask`) have no part in statistics, and are 0.
        """
        known = self.cue(enrolment, enrolment_lengths)
        logits = None
        if self.speakers is not None and (train or self.is_initializing()):
            logits = self.speakers(known)
        lengths = masking.fold_row_mask(lengths, mask)
        found = self.extractor(x, lengths, known, train=train)
        return self.outputs((found.features, found.overlapped, logits))


def make_sizes(config: Any) -> LiteConfig:
    """Those of a config. Raises UserError for settings that do not go together."""
    rate = config.data.sample_rate_hz
    try:
        sizes = sections.build(LiteConfig, config.model.lite, sample_rate_hz=rate)
    except ValueError as error:
        raise errors.UserError(f"config.model.lite: {error}") from error
    if config.cue.dropout:
        raise errors.UserError(
            f"config.cue.dropout={config.cue.dropout}, but config.model.kind=lite always has an "
            "enrolment: set it to 0."
        )
    if config.sight.lips or config.sight.face:
        raise errors.UserError(
            "config.sight: config.model.kind=lite sees nothing, only causal does."
        )
    return sizes


def make_model(config: Any, num_speakers: int = 0, known: voice.Voice | None = None) -> LiteNet:
    """The network of a config; see `model.make_model`."""
    extractor = LiteExtractor(make_sizes(config))
    return LiteNet(model.cue_encoder(config, known), extractor, num_speakers)


def init(net: LiteNet, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables of the network."""
    audio, lengths = jnp.zeros((1, 8000)), jnp.full((1,), 8000, jnp.int32)
    x, frames, mask = jnp.zeros((1, 4, net.extractor.config.num_mels)), jnp.array([4]), lengths > 0
    return dict(net.init(key, x, frames, audio, lengths, train=False, mask=mask))
