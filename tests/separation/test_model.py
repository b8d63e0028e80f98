"""Cues: of padded enrolments, of none; and which networks there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, workdir
from separation import model, settings


def small(**changes):
    config = settings.default_config()
    config.model.causal.update({"features": 16, "num_layers": 1})
    config.cue.update({"channels": 8, "size": 12, "num_mels": 16})
    config.model.update(changes)
    return workdir.freeze(config)


def test_a_cue_is_that_of_the_enrolment_alone_or_the_null_cue():
    net = model.make_model(small(), num_speakers=5)
    variables = jax.jit(lambda key: model.init(net, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    audio = jnp.float32(0.1 * rng.normal(size=(3, 6000)))
    lengths = jnp.array([6000, 3000, 0])
    encode = jax.jit(lambda audio, lengths: net.apply(variables, audio, lengths, method="cue"))
    cues = encode(audio, lengths)
    alone = encode(audio[1:2, :3000], lengths[1:2])
    np.testing.assert_allclose(cues[1], alone[0], atol=1e-5)
    louder = encode(8 * audio, lengths)
    np.testing.assert_allclose(louder, cues, atol=1e-3)  # but for the floor of the log-mel
    np.testing.assert_allclose(np.mean(cues**2, axis=1), 1.0, atol=1e-4)
    null = variables["params"]["null_cue"]
    np.testing.assert_allclose(cues[2], null / np.sqrt(np.mean(null**2)), atol=1e-5)

    def total(variables):
        mask = jnp.array([True, True, False])
        shown = audio, lengths, audio, lengths
        found, logits = net.apply(variables, *shown, train=True, mask=mask)
        return jnp.sum(jnp.square(found)) + jnp.sum(jnp.square(logits)), found

    gradients, found = jax.jit(jax.grad(total, has_aux=True))(variables)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert not found[1, 3000:].any()
    assert not found[2].any()


def test_unknown_networks_and_sizes_are_said():
    with pytest.raises(errors.UserError, match=r"config\.model\.kind='unet' is unknown"):
        model.make_model(small(kind="unet"))
    with pytest.raises(errors.UserError, match=r"config\.model\.causal: window_ms=64"):
        model.make_model(small(causal={**small().model.causal, "window_ms": 64.0}))
