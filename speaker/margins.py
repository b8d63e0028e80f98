"""Classification losses of speaker recognition: softmax with and without margins, SphereFace2.

Pure functions. Notation: x an embedding, w_j the weight vector of class j, t_j the angle between
them, y the label, s the scale, m the margin. The cosines are float32 with full-precision products
whatever the embeddings' dtype, because near t = 0 the losses look at 1 - cos t; values and
gradients are finite at cos t = +-1 and at x = 0. Margin and scale are traced: a schedule does not
recompile.

One code serves all classes on one device and a shard of the classes (`class_axis`): every sum and
maximum over classes is then completed over the mapped axis. speaker/head.py owns the weights.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from common import errors

Scalar = Float[Array, ""] | float

KINDS = ("softmax", "l2_softmax", "sphereface", "am", "aam", "adacos", "sphereface2")
FALLBACKS = ("continuous", "arcface", "easy")

# Vectors shorter than this have no direction: their unit vector and its gradient are 0, where
# x / |x| would have a gradient of up to 1 / |x| and NaN at 0.
_SHORTEST = 1e-6


@dataclasses.dataclass(frozen=True)
class MarginConfig:
    """Which loss, and its constants. `margin` and `scale` are the final values: the functions take
    the ones of the step as traced arguments.

    * `softmax`: logits w_j x + b_j; margin and scale are not used.
    * `l2_softmax`: s w_j x / |x| + b_j (Ranjan et al. 2017, arXiv:1703.09507).
    * `sphereface`: target (1 - m) cos t + m psi(t), times s |x|, psi with the multiple
      `angle_multiple` (Liu et al. 2017, arXiv:1704.08063, cf. eq. 7). The usual annealing weight
      lambda is m = 1 / (1 + lambda), see `margin_schedules`; s = 1 in the paper.
    * `am`: s (cos t_y - m) (Wang et al. 2018, arXiv:1801.05599; CosFace, arXiv:1801.09414).
    * `aam`: s cos(t_y + m) (ArcFace, Deng et al. 2019, arXiv:1801.07698, cf. eq. 3); beyond pi - m,
      where that would rise again, see `add_angle`.
    * `adacos`: no margin, s follows the data (Zhang et al. 2019, arXiv:1905.00292, cf. eq. 15).
    * `sphereface2`: one binary loss a class (Wen et al. 2022, arXiv:2108.01513, eq. 5, without the
      factor 1 / s, as in Han et al. 2023, arXiv:2307.08205), type C or A.

    `sub_centers` > 1 (am, aam): a class is the nearest of k vectors (Deng et al. 2020, "Sub-center
    ArcFace"). `top_k` > 0 (am, aam): the k other classes with the highest cosines get cos(t - m')
    (aam) or cos t + m' (am), m' = `top_k_ratio` m (Zhao et al. 2022, arXiv:2110.05042).
    """

    kind: str = "aam"
    margin: float = 0.2
    scale: float = 32.0
    fallback: str = "continuous"
    sub_centers: int = 1
    top_k: int = 0
    top_k_ratio: float = 0.3
    angle_multiple: int = 4
    sphereface2_type: str = "C"
    positive_weight: float = 0.7  # sphereface2: lambda; the other classes weigh 1 - lambda
    power: int = 3  # sphereface2: t of g(z) = 2 ((z + 1) / 2)^t - 1

    def __post_init__(self) -> None:
        choices = (
            ("kind", self.kind, KINDS),
            ("fallback", self.fallback, FALLBACKS),
            ("sphereface2_type", self.sphereface2_type, ("A", "C")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise errors.UserError(f"{name}={value!r} is unknown; choose {', '.join(allowed)}.")
        if (self.sub_centers > 1 or self.top_k > 0) and self.kind not in ("am", "aam"):
            raise errors.UserError(
                f"sub_centers={self.sub_centers}, top_k={self.top_k}: kind={self.kind!r} has "
                "neither, only am and aam do."
            )
        if self.sub_centers < 1 or self.top_k < 0 or self.angle_multiple < 1 or self.power < 1:
            raise errors.UserError(
                "sub_centers, angle_multiple and power start at 1, top_k at 0: "
                f"{self.sub_centers}, {self.angle_multiple}, {self.power}, {self.top_k}."
            )

        if not (self.margin >= 0 and self.scale > 0):
            raise errors.UserError(
                f"margin={self.margin} and scale={self.scale}: a margin is not negative, and a "
                "scale is positive."
            )
        if self.kind == "sphereface" and not 0 < self.margin <= 1:
            raise errors.UserError(
                f"sphereface with margin={self.margin}: it is the share of psi in the target, "
                "above 0 and at most 1 (1/6 in the authors' code, with scale=1); the m of the "
                "paper is angle_multiple."
            )

    @property
    def bias(self) -> str:
        """The bias that the loss has besides the weights: none, one a class, or one (scalar)."""
        if self.kind == "sphereface2":
            return "scalar"
        return "class" if self.kind in ("softmax", "l2_softmax") else "none"


class MarginLoss(NamedTuple):
    """What a batch gives, row by row; a masked row gives 0 and False.

    `loss` in nats. `correct`: the true class scores strictly higher than every other, *without*
    margin (accuracy under a margin says little). `target`: the score of the true class, for the
    angular kinds its cosine. `scale`: the one used, for AdaCos the next state.
    """

    loss: Float[Array, "b"]
    correct: Bool[Array, "b"]
    target: Float[Array, "b"]
    scale: Float[Array, ""]


def unit_vectors(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """x / |x| in float32; 0 with gradient 0 for vectors shorter than 1e-6."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=1, keepdims=True)
    long = squares > _SHORTEST**2
    return jnp.where(long, x * lax.rsqrt(jnp.where(long, squares, 1.0)), 0.0)


def _lengths(x: Array) -> Array:
    """|x| of each row in float32, with gradient 0 where `unit_vectors` has none."""
    squares = jnp.sum(x * x, axis=1)
    long = squares > _SHORTEST**2
    return jnp.where(long, jnp.sqrt(jnp.where(long, squares, 1.0)), 0.0)


def _sine(cosine: Array) -> Array:
    """sin t for t in [0, pi], 0 with gradient 0 at both ends.

    Elsewhere d sin / d cos is below 3e3, because the float32 next to 1 is 6e-8 away; times the
    derivative of the cosine, which is sin t, that is bounded.
    """
    squares = (1.0 - cosine) * (1.0 + cosine)
    inside = squares > 0.0
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, squares, 1.0)), 0.0)


def add_angle(
    cosine: Float[Array, "*n"], margin: Scalar, fallback: str = "continuous"
) -> Float[Array, "*n"]:
    """cos(t + m) from cos t, going on as a falling function of t beyond t = pi - m.

    The fallbacks: `continuous`, cos t - (1 - cos m), which meets -1 at pi - m; `arcface`,
    cos t - m sin m (the authors' code), which jumps there by 1 - cos m - m sin m (-0.0198 for
    m = 0.2); `easy`: the margin only where cos t > 0, cos t elsewhere.
    """
    margin = jnp.asarray(margin, jnp.float32)
    cos_m, sin_m = jnp.cos(margin), jnp.sin(margin)
    added = cosine * cos_m - _sine(cosine) * sin_m
    if fallback == "easy":
        return jnp.where(cosine > 0.0, added, cosine)
    less = 1.0 - cos_m if fallback == "continuous" else margin * sin_m
    return jnp.where(cosine > -cos_m, added, cosine - less)


def subtract_angle(cosine: Float[Array, "*n"], margin: Scalar) -> Float[Array, "*n"]:
    """cos(t - m) from cos t, going on as a falling function of t below t = m.

    There cos(t - m) would fall with the cosine, and its gradient would pull a vector *towards* a
    class that is not its own; cos t + 1 - cos m meets 1 at t = m instead.
    """
    margin = jnp.asarray(margin, jnp.float32)
    cos_m, sin_m = jnp.cos(margin), jnp.sin(margin)
    return jnp.where(cosine < cos_m, cosine * cos_m + _sine(cosine) * sin_m, cosine + (1.0 - cos_m))


def multiply_angle(cosine: Float[Array, "*n"], multiple: int) -> Float[Array, "*n"]:
    """psi(t) = (-1)^k cos(n t) - 2 k with k = floor(n t / pi), from cos t, for n = `multiple`.

    Falls from 1 at t = 0 to 1 - 2 n at t = pi. cos(n t) is the Chebyshev polynomial, so no arccos
    with its infinite slope is needed.
    """
    before, chebyshev = jnp.ones_like(cosine), cosine
    for _ in range(multiple - 1):
        before, chebyshev = chebyshev, 2.0 * cosine * chebyshev - before
    half_turns = jnp.zeros_like(cosine)
    for j in range(1, multiple):
        half_turns += cosine <= math.cos(j * math.pi / multiple)
    return (1.0 - 2.0 * (half_turns % 2.0)) * chebyshev - 2.0 * half_turns


def class_scores(
    config: MarginConfig,
    embeddings: Float[Array, "b d"],
    weights: Float[Array, "ck d"],
    scale: Scalar,
    bias: Float[Array, "c"] | None = None,
) -> Float[Array, "b c"]:
    """Scores without margin, float32: cosines, or logits for softmax and l2_softmax.

    `weights` has the sub-centers of a class one after the other; the nearest one counts.
    """
    x, weights = embeddings.astype(jnp.float32), weights.astype(jnp.float32)
    if config.kind != "softmax":
        x = unit_vectors(x)
    if config.kind == "l2_softmax":
        x = scale * x
    elif config.kind != "softmax":
        weights = unit_vectors(weights)
    scores = jnp.matmul(x, weights.T, precision=lax.Precision.HIGHEST)
    if config.sub_centers > 1:
        scores = jnp.max(scores.reshape(x.shape[0], -1, config.sub_centers), axis=2)
    return scores if config.bias != "class" else scores + bias[None]


def _hardest(rivals: Array, count: int, axis: str | None) -> Array:
    """The `count` highest scores of other classes, descending, [b, count] (fewer if c is less)."""
    rivals = lax.stop_gradient(rivals)
    if count == 1:
        best = jnp.max(rivals, axis=1, keepdims=True)
        return best if axis is None else lax.pmax(best, axis)
    best, _ = lax.top_k(rivals, min(count, rivals.shape[1]))
    if axis is not None:
        best = lax.all_gather(best, axis, axis=1, tiled=True)
        best, _ = lax.top_k(best, min(count, best.shape[1]))
    return best


def _class_sum(x: Array, axis: str | None) -> Array:
    total = jnp.sum(x, axis=1)
    return total if axis is None else lax.psum(total, axis)


def _log_sum_exp(scores: Array, highest: Array, size: Array, axis: str | None) -> Array:
    """log sum exp over classes of size [b] x scores; -inf leaves a class out, whatever the size.

    `highest` [b] is the maximum of the scores; any constant would give the same result.
    """
    present = scores > -jnp.inf
    # Two selects: neither size x -inf nor its gradient may arise.
    logits = jnp.where(present, size[:, None] * jnp.where(present, scores, 0.0), -jnp.inf)
    highest = lax.stop_gradient(size * highest)
    return highest + jnp.log(_class_sum(jnp.exp(logits - highest[:, None]), axis))


def _masked_median(x: Array, mask: Array) -> Array:
    """The median of the rows in the mask, the mean of the middle two if they are even in number."""
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf))
    count = jnp.maximum(jnp.sum(mask), 1)
    return 0.5 * (ordered[(count - 1) // 2] + ordered[count // 2])


def adacos_start(num_classes: int) -> float:
    """s before the first batch, sqrt(2) log(c - 1) (Zhang et al. 2019)."""
    if num_classes < 3:
        raise errors.UserError(f"adacos needs 3 classes or more, not {num_classes}.")
    return math.sqrt(2.0) * math.log(num_classes - 1)


def adacos_scale(
    previous: Scalar,
    target_cosines: Float[Array, "b"],
    log_others: Float[Array, "b"],
    mask: Bool[Array, "b"],
) -> Float[Array, ""]:
    """The scale of this batch, log B / cos(min(pi / 4, median t_y)) (Zhang et al. 2019).

    Cf. eq. 15 there. B is the mean over rows of sum_{j != y} exp(s cos t_j) with the previous s;
    `log_others` is the logarithm of these sums. All rows of the batch have to be here. Without a
    real row the scale stays; it never falls below 0, where the loss would turn round (from 0 it
    recovers).
    """
    angle = _masked_median(jnp.arccos(jnp.clip(target_cosines, -1.0, 1.0)), mask)
    count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    log_mean = jax.nn.logsumexp(jnp.where(mask, log_others, -jnp.inf)) - jnp.log(count)
    scale = log_mean / jnp.cos(jnp.minimum(math.pi / 4.0, angle))
    return jnp.where(jnp.any(mask), jnp.maximum(scale, 0.0), previous)


def _sphereface2_logits(config: MarginConfig, cosine: Array, sign: int, margin: Array) -> Array:
    """g(cos t) -+ m (type C) or g(cos(t +- m)) (type A); `sign` +1 for the true class."""

    def reshape(z: Array) -> Array:
        return 2.0 * (0.5 * (z + 1.0)) ** config.power - 1.0

    if config.sphereface2_type == "C":
        return reshape(cosine) - sign * margin
    return reshape(add_angle(cosine, margin) if sign > 0 else subtract_angle(cosine, margin))


def sphereface2_bias(config: MarginConfig, num_classes: int) -> float:
    """The start of the bias: at cos t = 0 the true class and all others together pull equally.

    lambda sigmoid(-(s g_y + b)) = (1 - lambda)(c - 1) sigmoid(s g_j + b) is quadratic in exp(b).
    """

    def at_right_angle(sign: int) -> float:
        if config.sphereface2_type == "C":
            return 2.0 * 0.5**config.power - 1.0 - sign * config.margin
        return 2.0 * (0.5 - sign * 0.5 * math.sin(config.margin)) ** config.power - 1.0

    own, other = config.scale * at_right_angle(1), config.scale * at_right_angle(-1)
    ratio = config.positive_weight / ((1.0 - config.positive_weight) * (num_classes - 1))
    root = math.sqrt((1.0 - ratio) ** 2 + 4.0 * ratio * math.exp(own - other))
    return math.log(2.0 * ratio / (1.0 - ratio + root)) - other


def margin_loss(
    config: MarginConfig,
    embeddings: Float[Array, "b d"],
    weights: Float[Array, "ck d"],
    labels: Int[Array, "b"],
    margin: Scalar,
    scale: Scalar,
    *,
    bias: Float[Array, "*c"] | None = None,
    mask: Bool[Array, "b"] | None = None,
    num_classes: int | None = None,
    adapt_scale: bool = True,
    class_axis: str | None = None,
    row_axis: str | None = None,
) -> MarginLoss:
    """The loss of every row.

    Args:
      weights: all classes, k = `config.sub_centers` consecutive rows each, or with `class_axis`
        this device's equal share of them, in device order.
      labels: 0 <= y < c. A real row with another label gets the loss NaN, so that the run stops
        instead of learning a clamped class; its gradient is 0.
      margin, scale: of this step; for AdaCos `scale` is the state (`adacos_start` at first).
      bias: `[c]` (or the share of it) for softmax and l2_softmax, a scalar for sphereface2.
      mask: real rows; what the others hold, NaN included, has no influence.
      num_classes: classes beyond it are padding and are left out. None: all of `weights`.
      adapt_scale: False keeps AdaCos' scale (evaluation; fixed AdaCos).
      class_axis: mapped axis over which the classes are split. The rows are the same on all its
        devices. Needs `num_classes`.
      row_axis: mapped axis over which the rows are split; only AdaCos looks at other rows.

    Differentiated inside shard_map with check_vma=False (sum over devices of their own rows'
    losses), the gradient of a shard of weights is complete and that of the rows too.
    """
    if config.bias != "none" and bias is None:
        raise ValueError(f"{config.kind} needs a bias ({config.bias}).")
    if class_axis is not None and num_classes is None:
        raise ValueError("A shard of classes does not know how many there are: give num_classes.")
    margin, scale = jnp.asarray(margin, jnp.float32), jnp.asarray(scale, jnp.float32)
    count = weights.shape[0] // config.sub_centers
    num_classes = count if num_classes is None else num_classes
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    x = jnp.where(mask[:, None], embeddings.astype(jnp.float32), 0.0)
    scores = class_scores(config, x, weights, scale, None if config.bias != "class" else bias)

    first = 0 if class_axis is None else lax.axis_index(class_axis) * count
    classes = (first + jnp.arange(count))[None]
    own = classes == labels[:, None]
    other = (classes < num_classes) & ~own
    target = _class_sum(jnp.where(own, scores, 0.0), class_axis)
    rivals = jnp.where(other, scores, -jnp.inf)
    hardest = _hardest(rivals, max(1, config.top_k), class_axis)
    correct = mask & (target > hardest[:, 0])

    if config.kind == "sphereface2":
        positive = scale * _sphereface2_logits(config, target, 1, margin) + bias
        negative = scale * _sphereface2_logits(config, scores, -1, margin) + bias
        against = _class_sum(jnp.where(other, jax.nn.softplus(negative), 0.0), class_axis)
        weight = config.positive_weight
        loss = weight * jax.nn.softplus(-positive) + (1.0 - weight) * against
    else:
        if config.kind == "adacos" and adapt_scale:
            size = jnp.broadcast_to(scale, target.shape)
            log_others = _log_sum_exp(rivals, hardest[:, 0], size, class_axis)
            # The scale is a constant of the step; arccos has no finite gradient at 1 either.
            rows = lax.stop_gradient((target, log_others, mask))
            if row_axis is not None:
                rows = lax.all_gather(rows, row_axis, tiled=True)
            scale = adacos_scale(scale, *rows)
        loss = _cross_entropy(config, x, target, rivals, hardest, margin, scale, class_axis)
    loss = jnp.where((labels >= 0) & (labels < num_classes), loss, jnp.nan)
    return MarginLoss(jnp.where(mask, loss, 0.0), correct, jnp.where(mask, target, 0.0), scale)


def _cross_entropy(config, x, target, rivals, hardest, margin, scale, axis):
    """log(1 + exp(log sum_{j != y} exp(z_j) - z_y)): cross entropy that stays exact when small."""
    # Each kind's logits of the true class, z_y / s, and of the others; rivals and hardest move by
    # the same rising function, so `hardest` stays the maximum.
    highest = hardest[:, 0]
    if config.kind == "am":
        target = target - margin
    elif config.kind == "aam":
        target = add_angle(target, margin, config.fallback)
    elif config.kind == "sphereface":
        target = (1.0 - margin) * target + margin * multiply_angle(target, config.angle_multiple)
    if config.top_k:
        penalty = config.top_k_ratio * margin

        def harden(cosine: Array) -> Array:
            return cosine + penalty if config.kind == "am" else subtract_angle(cosine, penalty)

        # Classes that tie with the k-th are all taken, on any number of devices.
        chosen = (rivals >= hardest[:, -1:]) & (rivals > -jnp.inf)
        rivals = jnp.where(chosen, harden(jnp.where(chosen, rivals, 0.0)), rivals)
        highest = harden(highest)
    if config.kind == "sphereface":
        size = scale * _lengths(x)
    elif config.kind in ("softmax", "l2_softmax"):
        size = jnp.ones_like(target)
    else:
        size = jnp.broadcast_to(scale, target.shape)
    return jax.nn.softplus(_log_sum_exp(rivals, highest, size, axis) - size * target)
