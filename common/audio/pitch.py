"""The height of a voice: its fundamental frequency, frame by frame, and how periodic it is."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.audio import framing
from common.nn import masking

_SILENCE = 1e-7  # mean power, in [-1, 1], of what is too soft to have a height: 16-bit rounding
_SPAN = 0.9  # octaves that a voice goes up and down from its median


@dataclasses.dataclass(frozen=True)
class PitchConfig:
    """The middle of frame i is sample `i * hop_size + middle`, those of a front end its window's.

    Sought are `low_hz` to `high_hz`. `window_size` samples are compared with as many later ones, a
    period apart. `threshold`: the first period whose difference is below it is taken, or else the
    one of the least difference.
    """

    sample_rate_hz: int = 16000
    hop_size: int = 160
    middle: int = 200
    window_size: int = 400
    low_hz: float = 60.0
    high_hz: float = 500.0
    threshold: float = 0.15

    def __post_init__(self):
        if not 0 < self.low_hz < self.high_hz <= self.sample_rate_hz / 4:
            raise ValueError(f"need 0 < low_hz < high_hz <= sample_rate_hz / 4: {self}")
        if self.hop_size < 1 or self.window_size < 1 or self.middle < 0:
            raise ValueError(f"hop and window have to be positive, middle not negative: {self}")


def yin(
    audio: Float[Array, "b t"], lengths: Int[Array, "b"], config: PitchConfig
) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
    """Fundamental frequency in Hz and periodicity, 0 (noise, silence) to 1; `ceil(t / hop)` frames.

    YIN (de Cheveigne and Kawahara, JASA 2002, steps 1 to 5): periodicity is 1 less the normalised
    difference (equation 8) at the period. Sought twice, for a voice stays within an octave or so
    (cf. Hirst, 2007): the second time within `_SPAN` octaves of the median of its periodic frames.
    A frame without a period has a frequency too, which means nothing. Beyond a row's frames both
    are 0; a padded row gives what it gives alone.
    """
    size, most = config.window_size, math.ceil(config.sample_rate_hz / config.low_hz)
    reach = size + most + 1
    hops = -(-audio.shape[1] // config.hop_size)
    audio = masking.zero_padding(audio.astype(jnp.float32)[:, :, None], lengths)[:, :, 0]
    late = config.middle - reach // 2  # the first sample of frame 0
    audio = jnp.pad(audio[:, max(0, late) :], ((0, 0), (max(0, -late), 0)))
    x = framing.frame(audio, window_size=reach, hop_size=config.hop_size, num_frames=hops)
    difference = _normal(_difference(x, size))  # at lags 0 ... most + 1
    lags = jnp.arange(difference.shape[-1])[None, None, :]
    sought = (lags >= math.floor(config.sample_rate_hz / config.high_hz)) & (lags <= most)
    true = masking.length_mask(-(-lengths // config.hop_size), hops)
    true &= jnp.mean(jnp.square(x), axis=-1) > _SILENCE

    period, periodicity = _dip(difference, sought, config.threshold)
    clear = true & (periodicity > 1.0 - 2.0 * config.threshold)
    median = jnp.nanmedian(jnp.where(clear, period, jnp.nan), axis=1)[:, None, None]
    near = jnp.abs(jnp.log2(jnp.maximum(lags, 1) / median)) <= _SPAN
    period, periodicity = _dip(difference, sought & (near | jnp.isnan(median)), config.threshold)
    return (
        jnp.where(true, config.sample_rate_hz / period, 0.0),
        jnp.where(true, jnp.clip(periodicity, 0.0, 1.0), 0.0),
    )


def _dip(
    difference: Float[Array, "b l k"], sought: Bool[Array, "#b 1 k"], threshold: float
) -> tuple[Float[Array, "b l"], Float[Array, "b l"]]:
    """The lag of the first dip below the threshold, or else of the deepest, and 1 less its value;
    both of the parabola through the dip and its neighbours."""
    before, after = difference[..., :-2], difference[..., 2:]
    here = difference[..., 1:-1]
    dips = sought[..., 1:-1] & (here <= before) & (here <= after)
    low = dips & (here < threshold)
    value = jnp.where(dips, here, jnp.where(sought[..., 1:-1], here + 2.0, 9.0))
    best = jnp.where(low.any(-1), low.argmax(-1), value.argmin(-1))[..., None]
    a, b, c = (jnp.take_along_axis(y, best, axis=-1)[..., 0] for y in (before, here, after))
    shift = jnp.clip(0.5 * (a - c) / jnp.maximum(a - 2.0 * b + c, 1e-9), -0.5, 0.5)
    return best[..., 0] + 1 + shift, 1.0 - (b - 0.25 * (a - c) * shift)


def _normal(difference: Float[Array, "b l k"]) -> Float[Array, "b l k"]:
    """Each lag's difference over the mean of those up to it (equation 8); 1 at lag 0."""
    lags = jnp.arange(difference.shape[-1])[None, None, :]
    sums = jnp.maximum(jnp.cumsum(difference.at[..., 0].set(0.0), axis=-1), 1e-12)
    return (difference * lags / sums).at[..., 0].set(1.0)


def _difference(x: Float[Array, "b l w"], size: int) -> Float[Array, "b l k"]:
    """Sums of squares of `size` samples less as many k later (equation 6), k from 0 on."""
    lags = x.shape[-1] - size + 1
    length = 1 << math.ceil(math.log2(x.shape[-1]))
    first = jnp.fft.rfft(x[..., :size], length)
    both = jnp.fft.irfft(jnp.conj(first) * jnp.fft.rfft(x, length), length)[..., :lags]
    sums = jnp.pad(jnp.cumsum(jnp.square(x), axis=-1), ((0, 0), (0, 0), (1, 0)))
    energy = sums[..., size : size + lags] - sums[..., :lags]
    return jnp.maximum(energy[..., :1] + energy - 2.0 * both, 0.0)
