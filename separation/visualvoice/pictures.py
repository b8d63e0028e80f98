"""Mouths and faces as the networks of VisualVoice see them: cut, turned, coloured, normalised."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

MOUTH_SIZE = 88  # of pictures of 96
_MOUTH_MEAN, _MOUTH_DEVIATION = 0.421, 0.165
_FACE_MEAN, _FACE_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of ImageNet
_JITTER = 0.3  # of brightness and of colour


def mouths(
    film: UInt8[Array, "b v h w"], keys: Key[Array, "b"] | None = None
) -> Float[Array, "b v 88 88"]:
    """With `keys`, in training, a film is cut anywhere and turned by a coin; else the middle."""
    x = film.astype(jnp.float32) / 255.0
    room = x.shape[2] - MOUTH_SIZE
    v = x.shape[1]
    if keys is None:
        cut = x[:, :, room // 2 :, room // 2 :][:, :, :MOUTH_SIZE, :MOUTH_SIZE]
    else:

        def one(film: Array, key: Array) -> Array:
            places, coin = jax.random.split(key)
            top, left = jax.random.randint(places, (2,), 0, room + 1)
            cut = jax.lax.dynamic_slice(film, (0, top, left), (v, MOUTH_SIZE, MOUTH_SIZE))
            return jnp.where(jax.random.bernoulli(coin), cut[:, :, ::-1], cut)

        cut = jax.vmap(one)(x, keys)
    return (cut - _MOUTH_MEAN) / _MOUTH_DEVIATION


def faces(
    pictures: UInt8[Array, "b k h w 3"], keys: Key[Array, "b"] | None = None
) -> Float[Array, "b k h w 3"]:
    """With `keys`, in training, turned by a coin, and of other brightness and colour."""
    x = pictures.astype(jnp.float32) / 255.0
    if keys is not None:

        def one(x: Array, key: Array) -> Array:
            factors, coin = jax.random.split(key)
            least, most = 1 - _JITTER, 1 + _JITTER
            bright, colour = jax.random.uniform(factors, (2,), minval=least, maxval=most)
            x = jnp.where(jax.random.bernoulli(coin), x[:, :, ::-1], x)
            grey = jnp.mean(x, axis=-1, keepdims=True)
            return jnp.clip((grey + (x - grey) * colour) * bright, 0.0, 1.0)

        x = jax.vmap(one)(x, keys)
    mean, deviation = (jnp.array(x).reshape(1, 1, 1, 1, 3) for x in (_FACE_MEAN, _FACE_DEVIATION))
    return (x - mean) / deviation
