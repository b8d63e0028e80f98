"""DiffAugment: what a discriminator sees is changed at random, real and fake pictures alike.

Zhao et al. 2020 (arXiv:2006.10738), section 3.3 and their published ranges. Everything is
differentiable in the picture, so that the generator learns through it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from common import errors

_MOVED = 1 / 8  # of a side, at most
_CUT = 1 / 2  # of a side


def _colour(picture: Array, key: Array, strength: float) -> Array:
    """Brightness by +-1/2, saturation times 0 to 2, contrast times 1/2 to 3/2."""
    light, vivid, contrast = strength * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    picture = picture + light / 2
    picture = picture + vivid * (picture - jnp.mean(picture, axis=2, keepdims=True))
    return picture + contrast / 2 * (picture - jnp.mean(picture))


def _translation(picture: Array, key: Array, strength: float) -> Array:
    """Moved by up to an eighth of a side, zeros behind it."""
    most = round(picture.shape[0] * _MOVED * strength)
    whole = jnp.pad(picture, ((most, most), (most, most), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(whole, (top, left, 0), picture.shape)


def _cutout(picture: Array, key: Array, strength: float) -> Array:
    """Zeros in a square of half a side, whose middle may lie anywhere."""
    size = picture.shape[0]
    side = round(size * _CUT * strength)
    middle = jax.random.randint(key, (2,), 0, size + 1 - side % 2)
    from_start = jnp.arange(size)[None] - (middle[:, None] - side // 2)
    rows, columns = (from_start >= 0) & (from_start < side)
    return jnp.where((rows[:, None] & columns[None])[:, :, None], 0.0, picture)


KINDS = {"colour": _colour, "translation": _translation, "cutout": _cutout}


def check(kinds: Sequence[str], strength: float) -> None:
    """Raises UserError for settings that there are not."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise errors.UserError(
            f"config.loss.augment={tuple(kinds)}: {', '.join(unknown)} is unknown; choose of "
            f"{', '.join(KINDS)}."
        )
    if not 0 <= strength <= 1:
        raise errors.UserError(
            f"config.loss.augment_strength={strength}: from 0, nothing, to 1, as published."
        )


def augmented(
    pictures: Float[Array, "b h w c"],
    keys: Key[Array, "b"],
    kinds: Sequence[str],
    strength: float = 1.0,
) -> Float[Array, "b h w c"]:
    """Pictures in [-1, 1], each changed by its own key; 0 of `strength` leaves them as they are."""

    def one(picture: Array, key: Array) -> Array:
        for number, (kind, change) in enumerate(KINDS.items()):
            if kind in kinds:
                picture = change(picture, jax.random.fold_in(key, number), strength)
        return picture

    return jax.vmap(one)(pictures, keys)
