"""LSTM with closed-form gradient against Flax's cell and its autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from common.nn import lstm

BATCH, LENGTH, INPUTS, FEATURES = 3, 7, 5, 4
LENGTHS = jnp.asarray([7, 4, 0], jnp.int32)


def layer_and_input(seed=0, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, INPUTS))
    layer = lstm.LSTM(FEATURES, dtype)
    return layer, layer.init(jax.random.key(seed + 1), x), x


def flax_params(params):
    """The same weights as parameters of nn.OptimizedLSTMCell (gates i, f, g, o; bias on h)."""
    cell = {}
    for n, gate in enumerate("ifgo"):
        part = slice(n * FEATURES, (n + 1) * FEATURES)
        cell["i" + gate] = {"kernel": params["input_kernel"][:, part]}
        cell["h" + gate] = {
            "kernel": params["recurrent_kernel"][:, part],
            "bias": params["bias"][part],
        }
    return {"cell": cell}


def test_value_and_gradient_equal_flax():
    layer, variables, x = layer_and_input()
    initial = lstm.LSTMState(*jax.random.normal(jax.random.key(5), (2, BATCH, FEATURES)))
    weights = jax.random.normal(jax.random.key(6), (BATCH, LENGTH, FEATURES))
    reference = nn.RNN(nn.OptimizedLSTMCell(FEATURES), return_carry=True)

    def ours(params, x, initial):
        y, final = layer.apply({"params": params}, x, LENGTHS, initial)
        return jnp.sum(weights * y) + jnp.sum(jnp.sin(final.cell)) + jnp.sum(final.hidden**2), y

    def flax(params, x, initial):
        carry = initial.cell, initial.hidden
        inside = (jnp.arange(LENGTH)[None] < LENGTHS[:, None])[:, :, None]
        (cell, hidden), y = reference.apply(
            {"params": flax_params(params)}, x, initial_carry=carry, seq_lengths=LENGTHS
        )
        # Flax returns the first frame's carry for an empty row; ours keeps the initial state.
        empty = (LENGTHS == 0)[:, None]
        cell = jnp.where(empty, initial.cell, cell)
        hidden = jnp.where(empty, initial.hidden, hidden)
        y = jnp.where(inside, y, 0)
        return jnp.sum(weights * y) + jnp.sum(jnp.sin(cell)) + jnp.sum(hidden**2), y

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(
            variables["params"], x, initial
        )
        for f in (ours, flax)
    ]
    # Values near 1, sums of a few dozen float32 terms in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), *results)


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        layer, variables, x = layer_and_input(dtype=jnp.float64)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), variables["params"])
        direction = jax.tree.map(jnp.cos, params)

        @jax.jit
        def loss(scale):
            moved = jax.tree.map(lambda p, d: p + scale * d, params, direction)
            return jnp.sum(layer.apply({"params": moved}, x, LENGTHS)[0] ** 2)

        step = 1e-5
        numeric = (loss(step) - loss(-step)) / (2 * step)
        # Central difference: error step^2 = 1e-10, rounding 1e-16 / step = 1e-11.
        np.testing.assert_allclose(jax.grad(loss)(0.0), numeric, rtol=1e-8)


def test_padding_and_state_after_the_last_frame():
    layer, variables, x = layer_and_input()
    y, final = layer.apply(variables, x, LENGTHS)
    alone, final_alone = layer.apply(variables, x[1:2, :4])
    np.testing.assert_allclose(y[1, :4], alone[0], atol=1e-6)
    np.testing.assert_allclose(final.cell[1], final_alone.cell[0], atol=1e-6)
    np.testing.assert_allclose(final.hidden[1], final_alone.hidden[0], atol=1e-6)
    assert not np.any(y[1, 4:])
    assert not np.any(y[2])
    assert not np.any(final.hidden[2])


def test_steps_equal_the_sequence():
    layer, variables, x = layer_and_input()
    y, final = layer.apply(variables, x)
    state = lstm.zero_state(BATCH, FEATURES)
    for frame in range(LENGTH):
        state, out = lstm.lstm_step(variables["params"], state, x[:, frame])
        np.testing.assert_allclose(out, y[:, frame], atol=1e-6)
    np.testing.assert_allclose(state.cell, final.cell, atol=1e-6)
    _, again = layer.apply(variables, lstm.zero_state(BATCH, FEATURES), x[:, 0], method="step")
    np.testing.assert_allclose(again, y[:, 0], atol=1e-6)


def test_bfloat16_output_with_float32_parameters_and_gradients():
    layer, variables, x = layer_and_input(dtype=jnp.bfloat16)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    exact, _ = lstm.LSTM(FEATURES).apply(variables, x)
    y, final = layer.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    assert final.cell.dtype == jnp.float32
    # bfloat16 rounds to 2^-9; the errors of 7 steps add up to a few times that.
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.03)
    grads = jax.grad(lambda v: jnp.sum(layer.apply(v, x)[0].astype(jnp.float32)))(variables)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


def test_forget_gate_starts_open():
    _, variables, _ = layer_and_input()
    bias = variables["params"]["bias"].reshape(4, FEATURES)
    np.testing.assert_array_equal(bias, np.array([0, 1, 0, 0])[:, None] * np.ones((1, FEATURES)))


def test_learns_to_remember_the_first_frame():
    x = jnp.asarray([[1.0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0]])[:, :, None]
    layer = lstm.LSTM(4)
    params = layer.init(jax.random.key(0), x)

    @jax.jit
    def update(params, _):
        def loss(params):
            y, _ = layer.apply(params, x)
            return jnp.mean((y[:, -1, 0] - jnp.asarray([0.5, -0.5])) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), value

    _, losses = jax.lax.scan(update, params, length=150)
    assert losses[0] > 0.1
    assert losses[-1] < 1e-3
