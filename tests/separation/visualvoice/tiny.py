"""A VisualVoice of few channels and frames, and seeded batches for it."""

import jax
import jax.numpy as jnp
import numpy as np

from separation.visualvoice import config, losses, network

HOP = 10
FRAMES = 24  # of the STFT, six of video
SAMPLES = (FRAMES - 1) * HOP


def tiny(**changes):
    """16 bins, a bottleneck of 8 + 6 + 5 channels."""
    sizes = {
        "num_fft": 32,
        "window_ms": 25 / 16,
        "hop_ms": HOP / 16,
        "lip_front": 4,
        "lip_stages": (4, 8),
        "lip_units": (2, 1),
        "lip_features": 7,
        "tcn_channels": 6,
        "tcn_dilations": (1, 2),
        "face_widths": (4, 6),
        "face_blocks": (1, 1),
        "embedding_size": 5,
        "unet_first": (4, 6),
        "unet_widths": (8, 8),
    }
    return config.VisualVoiceConfig(**{**sizes, **changes})


def cues(sizes, rows, people, *, pictures=1, seed=0, faces=None):
    """Random mouths and faces that are all present, as `VisualVoice` takes them."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    faces = people if faces is None else faces
    found = dict.fromkeys(("mouth", "mouth_present", "faces", "face_present"))
    if sizes.lip:
        found["mouth"] = random(rows, people, FRAMES // 4, 16, 16)
        found["mouth_present"] = jnp.ones((rows, people, FRAMES // 4), bool)
    if sizes.face:
        found["faces"] = random(rows, faces, pictures, 16, 16, 3)
        found["face_present"] = jnp.ones((rows, faces, pictures), bool)
    return found


def sound(rows, *more, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(0.1 * rng.normal(size=(rows, *more, SAMPLES)), jnp.float32)


def batch(sizes, rows=2, seed=0):
    """What `losses.terms` takes, without keys and weights."""
    people = 2 if sizes.enhancement else 3
    return {
        "audio": sound(rows, 3, seed=seed + 1),
        "lengths": jnp.full(rows, SAMPLES, jnp.int32),
        "mask": jnp.ones(rows, bool),
        **cues(sizes, rows, people, seed=seed, faces=people - 1),
    }


def initialised(sizes, seed=0):
    """The network and its variables, with biases, scales and statistics that are not 0 and 1."""
    net = network.VisualVoice(sizes)
    given = cues(sizes, 1, sizes.voices)
    audio, lengths = sound(1), jnp.array([SAMPLES])
    variables = jax.jit(lambda key: net.init(key, audio, lengths, **given))(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return net, jax.tree.map(
        lambda x: x + 0.1 * jnp.asarray(np.abs(rng.normal(size=x.shape)), x.dtype) * (x.ndim == 1),
        variables,
    )


def keys(rows, step=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(step), jnp.arange(rows))


def terms(net, variables, given, row_keys, weights=None, *, train=True):
    """Terms of the loss, and the new statistics."""
    return net.apply(
        variables,
        **given,
        keys=row_keys,
        config=weights or losses.LossConfig(),
        train=train,
        method=losses.terms,
        mutable=["batch_stats"],
    )
