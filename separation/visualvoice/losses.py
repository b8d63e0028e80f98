"""The losses of VisualVoice: masks, voices near their own faces, voices near themselves.

Gao and Grauman (CVPR 2021, arXiv:2101.03149), section 3.4. A row of a batch has two clips A1 and A2
of one person and a clip B of another: the mixtures are A1 + B and A2 + B. In enhancement B is
noise, and A1 and A2 alone are wanted; the losses of embeddings, which compare two people, are left
out then.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common import errors
from common.metrics import Term
from common.nn import masking
from separation.visualvoice import network, spectra
from separation.visualvoice.config import VisualVoiceConfig

FLOOR = 1e-8  # of the power of a bin, where a mask's target divides by it


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the terms, as published; a weight of 0 leaves a term out.

    Attributes:
      mask: squared differences of complex masks.
      matching: a voice is nearer to its own face than to the other. Only of networks with a face.
      consistency: two clips of a person are nearer to each other than to the other person.
      margin: by which nearer, in cosine distance.
      true_share: probability that a row's embeddings are of its true voices, not of those that the
        masks give. Drawn for each row, and for matching and consistency apart.
    """

    mask: float | int = 1.0
    matching: float | int = 0.01
    consistency: float | int = 0.01
    margin: float | int = 0.5
    true_share: float | int = 0.5

    def __post_init__(self) -> None:
        if min(self.mask, self.matching, self.consistency) < 0 or not self.mask:
            raise errors.UserError(
                f"config.loss: mask={self.mask}, matching={self.matching} and "
                f"consistency={self.consistency} are weights: none below 0, and mask above."
            )
        if not 0 <= self.true_share <= 1:
            raise errors.UserError(
                f"config.loss.true_share={self.true_share} is a probability: 0 to 1."
            )


def terms(
    net: network.VisualVoice,
    audio: Float[Array, "b 3 t"],
    lengths: Int[Array, "b"],
    mask: Bool[Array, "b"],
    mouth: Float[Array, "b n v h w"] | None,
    mouth_present: Bool[Array, "b n v"] | None,
    faces: Float[Array, "b s k p q 3"] | None,
    face_present: Bool[Array, "b s k"] | None,
    keys: Key[Array, "b"],
    config: LossConfig,
    *,
    train: bool = True,
) -> dict[str, Term]:
    """The terms over real rows: a method for `net.apply(variables, ..., method=losses.terms)`.

    The published loss sums the means of four masks, of four triplets for matching and of two for
    consistency; here a term counts all of them alike, and its weight is as many times larger.

    Args:
      net: bound by `apply`.
      audio: A1, A2 and B, at any level.
      lengths: samples, of all three.
      mask: the real rows; others may hold anything.
      mouth: of A1, A2 and B; in enhancement of A1 and A2. None in networks without lips.
      mouth_present: which pictures there are, of as many people.
      faces: of A and B; in enhancement of A. None in networks without a face.
      face_present: which there are. Rows without a picture of both do not count in matching.
      keys: one a row, of (seed, step, row): coins and dropout.
      config: weights.
      train: batch statistics and dropout.
    """
    sizes = net.config
    b, voices = audio.shape[0], sizes.voices
    lengths = masking.fold_row_mask(lengths, mask)
    frames = spectra.num_frames(lengths, sizes)
    levelled = [spectra.at_level(audio[:, i], lengths) for i in range(3)]
    one, two, other = (spectra.parts(spectra.analysed(x, frames, sizes)) for x in levelled)
    true = jnp.stack([jnp.stack([own, other], axis=1)[:, :voices] for own in (one, two)], axis=1)
    mixtures = jnp.stack([mixed(own, other, sizes) for own in (one, two)], axis=1)

    lip = face = None
    if sizes.lip:
        dropout_keys = None
        if train:
            people = jnp.arange(1, mouth.shape[1] + 1)
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            dropout_keys = fold(keys, people).reshape(-1)
        lip = net.lips(mouth, mouth_present, frames, train=train, dropout_keys=dropout_keys)
        lip = jnp.stack([lip[:, [i, 2][:voices]] for i in (0, 1)], axis=1)
        lip = lip.reshape(2 * b, *lip.shape[2:])
    if sizes.face:
        face_present = face_present & mask[:, None, None]
        face = net.faces(faces, face_present, train=train)
    masks = net.masks(
        mixtures.reshape(2 * b, *mixtures.shape[2:]),
        jnp.repeat(frames, 2),
        lip,
        None if face is None else jnp.repeat(face, 2, axis=0),
        train=train,
    ).reshape(true.shape)
    targets = ratio_masks(true, mixtures[:, :, None], sizes.mask_limit)
    weights = bin_weights(mixtures)
    if not sizes.cue_size and voices == 2:
        masks = in_order(masks, targets, weights)
    found = {}
    predictions = 2.0 * voices
    squares = jnp.square(masks - targets) * weights[:, :, None, :, :, None]
    count = jnp.sum(frames).astype(jnp.float32) * (sizes.num_bins * 2 * predictions)
    total = jnp.sum(masking.zero_padding(jnp.moveaxis(squares, 3, 1), frames))
    found["mask_loss"] = Term(total, count, config.mask * predictions)
    if voices == 1:
        return found

    heard = spectra.product(masks, mixtures[:, :, None])
    coins = jax.vmap(lambda key: jax.random.bernoulli(key, config.true_share, (2,)))(
        jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    )
    wanted = [
        i for i, on in enumerate((face is not None and config.matching, config.consistency)) if on
    ]
    if not wanted:
        return found
    shown = jnp.stack(
        [jnp.where(coins[:, i][:, None, None, None, None, None], true, heard) for i in wanted], 1
    )
    # In one batch, so that statistics are of all that is heard.
    rows = shown.reshape(-1, *shown.shape[4:])
    each = len(wanted) * 4
    embeddings = net.voice(rows, jnp.repeat(frames, each), train=train)
    embeddings = embeddings.reshape(b, len(wanted), 2, 2, -1)
    if 0 in wanted:
        both = jnp.all(jnp.any(face_present, axis=2), axis=1)
        found["matching_loss"] = matching_term(
            embeddings[:, 0], face, both, config.margin, config.matching
        )
    if 1 in wanted:
        found["consistency_loss"] = consistency_term(
            embeddings[:, -1], frames > 0, config.margin, config.consistency
        )
    return found


def mixed(
    own: Float[Array, "b l f 2"], other: Float[Array, "b l f 2"], config: VisualVoiceConfig
) -> Float[Array, "b l f 2"]:
    """The spectrum of a voice and what it is mixed with."""
    return (own + config.other_weight * other) / config.mixture_share


def ratio_masks(
    voices: Float[Array, "*b f 2"], mixture: Float[Array, "*c f 2"], limit: float
) -> Float[Array, "*b f 2"]:
    """voice / mixture, complex, with parts clipped to +- `limit`; 0 where there is no sound."""
    power = jnp.sum(jnp.square(mixture), axis=-1, keepdims=True)
    conjugate = mixture * jnp.array([1.0, -1.0]).reshape((1,) * (mixture.ndim - 1) + (2,))
    return jnp.clip(spectra.product(voices, conjugate) / (power + FLOOR), -limit, limit)


def bin_weights(mixture: Float[Array, "*b f 2"]) -> Float[Array, "*b f"]:
    """What a bin counts: log(1 + magnitude), between 0.001 and 10."""
    power = jnp.sum(jnp.square(mixture), axis=-1)
    return jnp.clip(jnp.log1p(jnp.sqrt(jnp.maximum(power, 1e-12))), 1e-3, 10.0)


def in_order(
    masks: Float[Array, "b m 2 l f 2"],
    targets: Float[Array, "b m 2 l f 2"],
    weights: Float[Array, "b m l f"],
) -> Float[Array, "b m 2 l f 2"]:
    """Of a network without cues: both masks in the order that is nearer to the targets."""

    def distance(masks: Array) -> Array:
        squares = jnp.square(masks - targets) * weights[:, :, None, :, :, None]
        return jnp.sum(squares, axis=(2, 3, 4, 5))

    turned = masks[:, :, ::-1]
    swap = distance(turned) < distance(masks)
    return jnp.where(swap[:, :, None, None, None, None], turned, masks)


def cosine_distance(a: Float[Array, "*b d"], b: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """1 - cos; 1 of vectors of length 0."""

    def unit(x: Array) -> Array:
        squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))

    return 1.0 - jnp.sum(unit(a) * unit(b), axis=-1)


def triplet(
    anchor: Float[Array, "*b d"],
    positive: Float[Array, "*b d"],
    negative: Float[Array, "*b d"],
    margin: float,
) -> Float[Array, "*b"]:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin) of cosine distances."""
    apart = cosine_distance(anchor, positive) - cosine_distance(anchor, negative)
    return jnp.maximum(apart + margin, 0.0)


def matching_term(
    embeddings: Float[Array, "b 2 2 d"],
    faces: Float[Array, "b 2 d"],
    counted: Bool[Array, "b"],
    margin: float,
    weight: float,
) -> Term:
    """Of voices, `[row, mixture, person]`: each with its own face, against the other."""
    own, other = (jnp.stack([x, x], axis=1) for x in (faces, faces[:, ::-1]))
    losses = jnp.sum(triplet(embeddings, own, other, margin), axis=(1, 2))
    return _term(losses, counted, 4, weight)


def consistency_term(
    embeddings: Float[Array, "b 2 2 d"], counted: Bool[Array, "b"], margin: float, weight: float
) -> Term:
    """A1 with A2, against B of either mixture."""
    a1, a2 = embeddings[:, 0, 0], embeddings[:, 1, 0]
    losses = sum(triplet(a1, a2, embeddings[:, i, 1], margin) for i in (0, 1))
    return _term(losses, counted, 2, weight)


def _term(
    losses: Float[Array, "b"], counted: Bool[Array, "b"], triplets: int, weight: float
) -> Term:
    """Rows of so many triplets, each of which counts."""
    count = jnp.sum(counted).astype(jnp.float32) * triplets
    return Term(jnp.sum(jnp.where(counted, losses, 0.0)), count, weight * triplets)
