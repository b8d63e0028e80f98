"""Pooling over time: a padded batch of frames in, one float32 vector per utterance out.

A pooling is named by its statistics, joined with "+" in the order of the output: "mean+std" (also
called "statistical"; Snyder et al., 2018), "max", "mean+std+skew+kurtosis", ... The
comparison of these is that of Rouvier et al. (2021, arXiv 2105.04310). "attentive" is the channel-
and context-dependent weighted mean and deviation of ECAPA-TDNN (Desplanques et al., 2020, arXiv
2005.07143, section 3.1), "attentive_local" the same with an attention that sees the frame alone.
Statistics see true frames only; an utterance without any gets zeros.

`deviation` says what the variance of l frames is: "population" divides by l, "sample" by l - 1, as
torch.var does, hence wespeaker's networks.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from common.nn import conv, masking

STATISTICS = ("min", "max", "mean", "std", "skew", "kurtosis")
ATTENTIVE = ("attentive", "attentive_local")
ALIASES = {"statistical": "mean+std"}
DEVIATIONS = ("population", "sample")
# Added to every variance: the slope of sqrt has no bound at 0, where one frame or a dead channel
# puts it. Deviations of 1 move by 5e-8, below the resolution of float32.
VARIANCE_EPSILON = 1e-7


def parse_kinds(name: str) -> tuple[str, ...]:
    """The statistics that `name` joins with "+", aliases replaced.

    Raises:
      ValueError: for an unknown statistic or one that is named twice.
    """
    kinds = []
    for part in name.split("+"):
        kinds += ALIASES.get(part, part).split("+")
    for kind in kinds:
        if kind not in (*STATISTICS, *ATTENTIVE):
            known = ", ".join((*STATISTICS, *ATTENTIVE, *ALIASES))
            raise ValueError(f"pooling {name!r} has {kind!r}: join some of {known} with '+'")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"pooling {name!r} has a statistic twice: {'+'.join(kinds)}")
    return tuple(kinds)


def check(name: str, deviation: str) -> None:
    """Raises ValueError for a pooling, or a way to count the deviation, that there is not."""
    parse_kinds(name)
    if deviation not in DEVIATIONS:
        raise ValueError(f"deviation={deviation!r}: choose one of {', '.join(DEVIATIONS)}")


def statistics(
    x: Float[Array, "b l d"],
    lengths: Int[Array, "b"],
    kinds: Sequence[str],
    deviation: str = "population",
) -> dict[str, Float[Array, "b d"]]:
    """Each of `kinds` (of `STATISTICS`) over the true frames, in float32; 0 for empty rows.

    With z = (x - mean) / std and std = sqrt(variance + VARIANCE_EPSILON), all moments divided by
    the number of frames: skew is the mean of z^3, kurtosis the mean of z^4 less 3 (SciPy's
    defaults), so that constant input has skew 0 and kurtosis -3 where SciPy's are not defined.
    `deviation` is that of "std" alone.
    Ties share the gradient of min and max.
    """
    x = masking.zero_padding(x.astype(jnp.float32), lengths)
    true = masking.length_mask(lengths, x.shape[1])[:, :, None]
    present = jnp.any(true, axis=1)
    weights = _uniform_weights(lengths, x.shape[1])
    results = {}
    if "min" in kinds:
        results["min"] = jnp.min(jnp.where(true, x, jnp.finfo(jnp.float32).max), axis=1)
    if "max" in kinds:
        results["max"] = jnp.max(jnp.where(true, x, jnp.finfo(jnp.float32).min), axis=1)
    if any(kind not in results for kind in kinds):
        mean = _weighted_mean(x, weights)
        # Two passes: E[x^2] - E[x]^2 cancels when the mean is large beside the deviation.
        centred = x - mean[:, None]
        square = _weighted_mean(jnp.square(centred), weights)
        variance = square + VARIANCE_EPSILON
        results |= {"mean": mean, "std": jnp.sqrt(variance)}
        if deviation == "sample":
            count = jnp.minimum(lengths, x.shape[1]).astype(jnp.float32)[:, None]
            count = jnp.maximum(count, 2.0)  # of one frame the square is 0
            results["std"] = jnp.sqrt(square * (count / (count - 1)) + VARIANCE_EPSILON)
        # Powers of z, not of x: those of loud features leave the range of float32.
        z = centred * jax.lax.rsqrt(variance)[:, None]
        results["skew"] = _weighted_mean(z**3, weights)
        results["kurtosis"] = _weighted_mean(z**4, weights) - 3.0
    return {kind: jnp.where(present, results[kind], 0.0) for kind in kinds}


def _uniform_weights(lengths: Array, num_frames: int) -> Array:
    """1 / length over the true frames, 0 elsewhere: `[b, l]`."""
    mask = masking.length_mask(lengths, num_frames).astype(jnp.float32)
    return mask / jnp.clip(lengths, 1, num_frames).astype(jnp.float32)[:, None]


def _weighted_mean(x: Array, weights: Array) -> Array:
    """sum_l weights[b, l] x[b, l, d], in all of float32: accelerators would round the factors."""
    return jnp.einsum("bl,bld->bd", weights, x, precision=jax.lax.Precision.HIGHEST)


class AttentivePooling(nn.Module):
    """Mean and deviation of each channel under its own attention over the frames (ECAPA-TDNN).

    The attention sees the frame beside the utterance's mean and deviation: a map of `[x, mean,
    std]` to `bottleneck` channels, tanh, and a map back to one score per channel and frame. Without
    `context` it sees the frame alone.
    """

    bottleneck: int = 128
    dtype: Any = jnp.float32  # of the attention; weights and statistics are float32
    context: bool = True
    deviation: str = "population"

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b m"]:
        """Pools to `[b, 2 d]`: weighted means, then deviations."""
        x = masking.zero_padding(x, lengths)
        true = masking.length_mask(lengths, x.shape[1])[:, :, None]
        hidden = conv.Pointwise(self.bottleneck, dtype=self.dtype, use_bias=True, name="frame")(x)
        if self.context:
            # The map of [x, mean, std] in its two parts: the second is the same for all frames.
            context = statistics(x, lengths, ("mean", "std"), self.deviation)
            context = jnp.concatenate([context["mean"], context["std"]], axis=-1)
            shared = nn.Dense(self.bottleneck, use_bias=False, dtype=self.dtype, name="context")
            hidden = hidden + shared(context)[:, None]
        hidden = jnp.tanh(hidden)
        scores = conv.Pointwise(x.shape[-1], dtype=self.dtype, use_bias=True, name="score")(hidden)
        # A finite low score, not -inf: the softmax of an empty row must not be NaN.
        scores = jnp.where(true, scores.astype(jnp.float32), -1e30)
        weights = jnp.where(true, jax.nn.softmax(scores, axis=1), 0.0)
        x = x.astype(jnp.float32)
        mean = jnp.sum(weights * x, axis=1)
        variance = jnp.sum(weights * jnp.square(x - mean[:, None]), axis=1)
        if self.deviation == "sample":  # wespeaker's floor; the weights know no l - 1
            variance = jnp.maximum(variance, VARIANCE_EPSILON)
        else:
            variance = variance + VARIANCE_EPSILON
        pooled = jnp.concatenate([mean, jnp.sqrt(variance)], axis=-1)
        return jnp.where(jnp.any(true, axis=1), pooled, 0.0)


class Pooling(nn.Module):
    """The statistics that `kinds` names, side by side; has parameters only if attentive."""

    kinds: str = "mean+std"
    bottleneck: int = 128
    dtype: Any = jnp.float32
    deviation: str = "population"

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], lengths: Int[Array, "b"]) -> Float[Array, "b m"]:
        """Pools to d channels for each statistic, 2 d for attention, in the order of the name."""
        kinds = parse_kinds(self.kinds)
        plain = tuple(kind for kind in kinds if kind not in ATTENTIVE)
        pooled = statistics(x, lengths, plain, self.deviation) if plain else {}
        for kind in (kind for kind in kinds if kind in ATTENTIVE):
            context = kind == "attentive"
            attentive = AttentivePooling(
                self.bottleneck, self.dtype, context, self.deviation, name=kind
            )
            pooled[kind] = attentive(x, lengths)
        return jnp.concatenate([pooled[kind] for kind in kinds], axis=-1)
