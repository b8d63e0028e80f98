"""LSTM over padded sequences, and one step of it for decoding.

Autodiff of a scanned LSTM forms the gradient of the recurrent kernel step by step, as a sum of many
thin products. Here the reverse scan only collects the gradients of the gates; the kernel's gradient
is then one product over all frames, as that of the input kernel is already because the input
product stands outside the scan.

Cell: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, no peepholes; gates in
the order input, forget, candidate, output; the bias of the forget gate starts at 1.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from common.nn import masking


class LSTMState(NamedTuple):
    """Hidden state (in the compute dtype) and cell state (float32 or wider), both [b, d]."""

    hidden: Array
    cell: Array


def zero_state(batch: int, features: int, dtype: DTypeLike = jnp.float32) -> LSTMState:
    """State before the first frame."""
    cell_dtype = jnp.promote_types(dtype, jnp.float32)
    return LSTMState(jnp.zeros((batch, features), dtype), jnp.zeros((batch, features), cell_dtype))


def _product(x: Array, kernel: Array, dtype: DTypeLike) -> Array:
    accumulate = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=accumulate)


def _activate(gates: Array) -> Array:
    """Sigmoid of the input, forget and output gates, tanh of the candidate (the third quarter)."""
    features = gates.shape[-1] // 4
    squashed = jax.nn.sigmoid(gates)
    candidate = jnp.tanh(gates[..., 2 * features : 3 * features])
    return jnp.concatenate(
        [squashed[..., : 2 * features], candidate, squashed[..., 3 * features :]], axis=-1
    )


def _cell(gates: Array, cell: Array) -> tuple[Array, Array]:
    """Next cell and hidden state from activated gates."""
    entering, kept, candidate, shown = jnp.split(gates, 4, axis=-1)
    cell = kept * cell + entering * candidate
    return cell, shown * jnp.tanh(cell)


def lstm_step(
    params: Mapping[str, Array], state: LSTMState, x: Float[Array, "b d"]
) -> tuple[LSTMState, Float[Array, "b h"]]:
    """One frame with the parameters of `LSTM`; returns the new state and the output [b, h].

    Computes in the dtype of `state.hidden`.
    """
    dtype = state.hidden.dtype
    gates = _product(x, params["input_kernel"], dtype) + params["bias"][None, :]
    gates = gates + _product(state.hidden, params["recurrent_kernel"], dtype)
    cell, hidden = _cell(_activate(gates), state.cell)
    return LSTMState(hidden.astype(dtype), cell), hidden.astype(dtype)


def _hold(valid: Array | None, new: Array, old: Array) -> Array:
    """`old` in the rows that have ended."""
    return new if valid is None else jnp.where(valid[:, None], new, old)


@jax.custom_vjp
def _recurrence(
    inputs: Float[Array, "l b g"],
    kernel: Float[Array, "h g"],
    state: LSTMState,
    valid: Bool[Array, "l b"] | None,
) -> tuple[Float[Array, "l b h"], LSTMState]:
    """Scan over frames, given the input part of the gates; rows that are not `valid` hold still."""
    return _recurrence_fwd(inputs, kernel, state, valid)[0]


def _recurrence_fwd(inputs, kernel, state, valid):
    dtype = state.hidden.dtype

    def step(state, frame):
        gates, valid = frame
        gates = _activate(gates + _product(state.hidden, kernel, dtype))
        cell, hidden = _cell(gates, state.cell)
        cell = _hold(valid, cell, state.cell)
        hidden = _hold(valid, hidden.astype(dtype), state.hidden)
        return LSTMState(hidden, cell), (hidden, cell, gates)

    final, (hidden, cells, gates) = lax.scan(step, state, (inputs, valid))
    return (hidden, final), (kernel, state, valid, hidden, cells, gates)


def _recurrence_bwd(residuals, cotangents):
    kernel, state, valid, hidden, cells, gates = residuals
    d_outputs, d_final = cotangents
    dtype, accumulate = hidden.dtype, cells.dtype
    previous_cells = jnp.concatenate([state.cell[None], cells[:-1]])
    previous_hidden = jnp.concatenate([state.hidden[None], hidden[:-1]])
    transposed = kernel.T

    def step(carry, frame):
        d_hidden, d_cell = carry
        d_output, gates, cell, previous_cell, valid = frame
        entering, kept, candidate, shown = jnp.split(gates, 4, axis=-1)
        d_hidden = d_hidden + d_output.astype(accumulate)
        squashed = jnp.tanh(cell)
        d_inner = d_cell + d_hidden * shown * (1 - squashed * squashed)
        d_gates = jnp.concatenate(
            [
                d_inner * candidate * entering * (1 - entering),
                d_inner * previous_cell * kept * (1 - kept),
                d_inner * entering * (1 - candidate * candidate),
                d_hidden * squashed * shown * (1 - shown),
            ],
            axis=-1,
        )
        d_gates = _hold(valid, d_gates, jnp.zeros_like(d_gates))
        through = _product(d_gates, transposed, dtype)
        # A row that holds still passes the gradient of its state on.
        d_hidden = _hold(valid, through, d_hidden)
        return (d_hidden, _hold(valid, d_inner * kept, d_cell)), d_gates

    start = d_final.hidden.astype(accumulate), d_final.cell
    frames = d_outputs, gates, cells, previous_cells, valid
    (d_hidden, d_cell), d_gates = lax.scan(step, start, frames, reverse=True)
    rows = d_gates.reshape(-1, d_gates.shape[-1])
    d_kernel = lax.dot_general(
        previous_hidden.reshape(rows.shape[0], -1),
        rows.astype(dtype),
        (((0,), (0,)), ((), ())),
        preferred_element_type=accumulate,
    )
    return (
        d_gates,
        d_kernel.astype(kernel.dtype),
        LSTMState(d_hidden.astype(dtype), d_cell),
        None,
    )


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def lstm(
    params: Mapping[str, Array],
    x: Float[Array, "b l d"],
    lengths: Int[Array, "b"] | None = None,
    initial: LSTMState | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "b l h"], LSTMState]:
    """Outputs at every frame and the state after each row's last frame.

    `params` has `input_kernel [d, 4 h]`, `recurrent_kernel [h, 4 h]` and `bias [4 h]`. With
    `lengths`, outputs beyond a row's end are zero and its state holds still. Products are computed
    in `dtype`, gates and cell state in float32 or wider; outputs have `dtype`.
    """
    batch, length, _ = x.shape
    features = params["recurrent_kernel"].shape[0]
    if initial is None:
        initial = zero_state(batch, features, dtype)
    accumulate = initial.cell.dtype
    # Time first before the product: the small array is transposed, not the gates.
    inputs = _product(x.transpose(1, 0, 2), params["input_kernel"], dtype)
    inputs = inputs + params["bias"].astype(accumulate)[None, None, :]
    valid = None if lengths is None else masking.length_mask(lengths, length).T
    hidden, final = _recurrence(inputs, params["recurrent_kernel"], initial, valid)
    if valid is not None:
        hidden = jnp.where(valid[:, :, None], hidden, jnp.zeros((), hidden.dtype))
    return hidden.transpose(1, 0, 2), final


def _forget_bias_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Zeros, and ones for the forget gate (Jozefowicz et al., ICML 2015, section 3.1)."""
    features = shape[0] // 4
    return jnp.zeros(shape, dtype).at[features : 2 * features].set(1)


def _per_gate_orthogonal(key: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32):
    features = shape[0]
    init = nn.initializers.orthogonal()
    gates = [init(k, (features, features), dtype) for k in jax.random.split(key, 4)]
    return jnp.concatenate(gates, axis=1)


class LSTM(nn.Module):
    """One LSTM layer, float32 parameters; see `lstm` for shapes and padding.

    features: size of the hidden state. dtype: of the products and the outputs.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        lengths: Int[Array, "b"] | None = None,
        initial: LSTMState | None = None,
    ) -> tuple[Float[Array, "b l h"], LSTMState]:
        return lstm(self._params(x.shape[-1]), x, lengths, initial, self.dtype)

    @nn.compact
    def step(
        self, state: LSTMState, x: Float[Array, "b d"]
    ) -> tuple[LSTMState, Float[Array, "b h"]]:
        """One frame: `lstm_step` with this layer's parameters."""
        return lstm_step(self._params(x.shape[-1]), state, x)

    def _params(self, inputs: int) -> dict[str, Array]:
        gates = 4 * self.features
        return {
            "input_kernel": self.param(
                "input_kernel", nn.initializers.lecun_normal(), (inputs, gates)
            ),
            "recurrent_kernel": self.param(
                "recurrent_kernel", _per_gate_orthogonal, (self.features, gates)
            ),
            "bias": self.param("bias", _forget_bias_init, (gates,)),
        }
