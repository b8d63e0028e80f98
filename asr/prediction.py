"""Prediction and joint networks of the transducer, with variational noise.

The prediction network is a language model without its output layer: embedding, LSTM, projection
(Graves, arXiv:1211.3711, section 2.2). Token 0 is blank on the output side and the start token on
the input side. `JointNetwork` hands out its projected inputs and its output layer separately,
because `transducer.rnnt_loss` forms the logits itself, chunk by chunk.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from common.nn import lstm

START = 0


class PredictionNetwork(nn.Module):
    """Embedding and LSTM layers; float32 parameters.

    vocab_size: tokens including blank. embedding_dim, features: sizes of the embedding and of every
    LSTM layer. dtype: of the products.
    """

    vocab_size: int
    embedding_dim: int
    features: int
    num_layers: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.embedding = nn.Embed(self.vocab_size, self.embedding_dim, dtype=self.dtype)
        self.layers = [
            lstm.LSTM(self.features, self.dtype, name=f"lstm_{i}") for i in range(self.num_layers)
        ]

    def __call__(self, labels: Int[Array, "b u"]) -> Float[Array, "b n d"]:
        """Outputs after the start token and after every label: n = u + 1.

        Output k depends on labels before k only, so padding after the labels changes nothing.
        """
        tokens = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=START)
        x = self.embedding(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return x

    def initial_state(self, batch: int) -> tuple[lstm.LSTMState, ...]:
        """State before the start token, one entry per layer."""
        return tuple(
            lstm.zero_state(batch, self.features, self.dtype) for _ in range(self.num_layers)
        )

    def step(
        self, state: tuple[lstm.LSTMState, ...], tokens: Int[Array, "b"]
    ) -> tuple[tuple[lstm.LSTMState, ...], Float[Array, "b d"]]:
        """Feeds one token per row (`START` first); the outputs equal those of `__call__`."""
        x = self.embedding(tokens)
        following = []
        for layer, layer_state in zip(self.layers, state):
            layer_state, x = layer.step(layer_state, x)
            following.append(layer_state)
        return tuple(following), x


class JointInputs(NamedTuple):
    """The first four arguments of `transducer.rnnt_loss`."""

    encoder: Array  # [b, l, h]
    prediction: Array  # [b, n, h]
    kernel: Array  # [h, v]
    bias: Array  # [v]


class JointNetwork(nn.Module):
    """`tanh(P_enc enc + P_pred pred + b_enc) W + b`, float32 parameters.

    features: size of the hidden layer. vocab_size: tokens including blank at 0. dtype: of the
    products; logits are float32.
    """

    features: int
    vocab_size: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder_projection = nn.Dense(self.features, dtype=self.dtype)
        # One bias is enough: the two projections are added.
        self.prediction_projection = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        shape = (self.features, self.vocab_size)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        self.bias = self.param("bias", nn.initializers.zeros_init(), shape[1:])

    def __call__(
        self, encoder: Float[Array, "b l d"], prediction: Float[Array, "b n e"]
    ) -> JointInputs:
        """What `transducer.rnnt_loss(*joint(encoder, prediction), labels, ...)` needs."""
        return JointInputs(
            self.project_encoder(encoder),
            self.project_prediction(prediction),
            self.kernel,
            self.bias,
        )

    def project_encoder(self, encoder: Float[Array, "*b d"]) -> Float[Array, "*b h"]:
        """Encoder's part of the hidden layer; once per utterance in decoding."""
        return self.encoder_projection(encoder)

    def project_prediction(self, prediction: Float[Array, "*b e"]) -> Float[Array, "*b h"]:
        """Prediction network's part of the hidden layer; once per emitted label in decoding."""
        return self.prediction_projection(prediction)

    def logits(
        self, encoder: Float[Array, "*b h"], prediction: Float[Array, "*b h"]
    ) -> Float[Array, "*b v"]:
        """Scores of all tokens from the two projections at the same nodes."""
        hidden = jnp.tanh(encoder + prediction).astype(self.dtype)
        accumulate = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.matmul(
            hidden, self.kernel.astype(self.dtype), preferred_element_type=accumulate
        )
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + (-1,))


def variational_noise(params: Any, key: Array, std: float | Array, name: str = "prediction") -> Any:
    """Adds Gaussian noise to every weight of the sub-tree `params[name]`, and to nothing else.

    Draw a new key each step, the same one on every device, and differentiate at the noisy weights
    (Graves, "Practical variational inference for neural networks", NIPS 2011, with a fixed
    variance). `std` may be traced, so that a schedule can switch the noise on. Raises KeyError if
    `params` has no `name`.
    """
    if name not in params:
        raise KeyError(f"no parameters under {name!r} for variational noise; found {list(params)}")
    leaves, structure = jax.tree.flatten(params[name])
    noisy = [
        leaf + std * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)))
    ]
    return {**params, name: jax.tree.unflatten(structure, noisy)}
