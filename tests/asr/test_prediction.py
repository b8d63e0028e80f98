"""Prediction and joint networks: steps equal sequences, noise stays where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asr import prediction, transducer

VOCABULARY = 6


class Transducer(nn.Module):
    """The decoder side of a transducer, with the names the model uses."""

    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.prediction = prediction.PredictionNetwork(
            VOCABULARY, 4, 5, num_layers=2, dtype=self.dtype
        )
        self.joint = prediction.JointNetwork(7, VOCABULARY, dtype=self.dtype)

    def __call__(self, encoder, labels):
        return self.joint(encoder, self.prediction(labels))

    def initial_state(self, batch):
        return self.prediction.initial_state(batch)

    def step(self, state, tokens):
        state, output = self.prediction.step(state, tokens)
        return state, self.joint.project_prediction(output)

    def project(self, encoder):
        return self.joint.project_encoder(encoder)

    def logits(self, encoder, output):
        return self.joint.logits(encoder, output)


def model_and_inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    encoder = jax.random.normal(keys[0], (2, 5, 8))
    labels = jax.random.randint(keys[1], (2, 3), 1, VOCABULARY)
    model = Transducer(jnp.dtype(dtype))
    return model, model.init(keys[2], encoder, labels), encoder, labels


def test_steps_equal_the_sequence_and_logits_equal_the_loss_inputs():
    model, variables, encoder, labels = model_and_inputs()
    inputs = model.apply(variables, encoder, labels)
    assert inputs.prediction.shape == (2, 4, 7)
    state = model.apply(variables, 2, method="initial_state")
    projected = model.apply(variables, encoder, method="project")
    np.testing.assert_allclose(projected, inputs.encoder, atol=1e-6)
    for position, token in enumerate([jnp.zeros(2, jnp.int32), *labels.T]):
        state, output = model.apply(variables, state, token, method="step")
        np.testing.assert_allclose(output, inputs.prediction[:, position], atol=1e-6)
        logits = model.apply(variables, projected[:, 1], output, method="logits")
        hidden = jnp.tanh(inputs.encoder[:, 1] + inputs.prediction[:, position])
        np.testing.assert_allclose(logits, hidden @ inputs.kernel + inputs.bias[None], atol=1e-6)


def test_later_labels_do_not_change_earlier_outputs():
    model, variables, encoder, labels = model_and_inputs()
    before = model.apply(variables, encoder, labels).prediction
    after = model.apply(variables, encoder, labels.at[:, 1:].set(0)).prediction
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.any(before[:, 2:] != after[:, 2:])


def test_bfloat16_compute_keeps_float32_parameters_and_loss():
    model, variables, encoder, labels = model_and_inputs(jnp.bfloat16)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    lengths = jnp.asarray([5, 4], jnp.int32), jnp.asarray([3, 1], jnp.int32)

    @jax.jit
    @jax.value_and_grad
    def loss(variables):
        inputs = model.apply(variables, encoder, labels)
        assert inputs.encoder.dtype == jnp.bfloat16
        return jnp.sum(transducer.rnnt_loss(*inputs, labels, *lengths, dtype=jnp.bfloat16))

    value, grads = loss(variables)
    assert value.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 and np.any(x) for x in jax.tree.leaves(grads))


def test_variational_noise_touches_the_prediction_network_only():
    _, variables, _, _ = model_and_inputs()
    params = variables["params"]
    noisy = prediction.variational_noise(params, jax.random.key(1), 0.075)
    jax.tree.map(np.testing.assert_array_equal, noisy["joint"], params["joint"])
    changes = jax.tree.map(lambda a, b: np.ravel(a - b), noisy, params)["prediction"]
    assert all(np.all(change != 0) for change in jax.tree.leaves(changes))
    change = np.concatenate(jax.tree.leaves(changes))
    # Standard error of the deviation of n samples is std / sqrt(2 n) = 3 % here: three of them.
    assert abs(change.std() / 0.075 - 1) < 3 / np.sqrt(2 * change.size)
    again = prediction.variational_noise(params, jax.random.key(1), 0.075)
    jax.tree.map(np.testing.assert_array_equal, noisy, again)
    still = prediction.variational_noise(params, jax.random.key(1), 0.0)
    jax.tree.map(np.testing.assert_array_equal, still, params)
    with pytest.raises(KeyError, match="no parameters under 'decoder'"):
        prediction.variational_noise(params, jax.random.key(1), 0.1, name="decoder")
