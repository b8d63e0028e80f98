"""What every speaker encoder has to hold, for the tests of each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

LENGTHS = np.array([29, 18, 7, 1], np.int32)


def batch(num_features):
    return jax.random.normal(jax.random.key(0), (4, 29, num_features)), jnp.asarray(LENGTHS)


def num_parameters(model, num_features):
    """By shapes alone: nothing is computed."""
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False),
        jax.random.key(0),
        jnp.zeros((1, 16, num_features)),
        jnp.array([16]),
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def initialised(model, num_features):
    """Variables as after some training: nothing is 0 or 1 by initialisation."""
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), *batch(num_features)
    )
    random = np.random.default_rng(0)

    def moved(path, leaf):
        noise = 0.1 * random.standard_normal(leaf.shape).astype(np.float32)
        return leaf * np.exp(noise) if path[-1].key == "var" else leaf + noise

    return jax.tree_util.tree_map_with_path(moved, variables)


def nan_padded(features, rows, frames):
    padded = np.full((rows, frames, features.shape[2]), np.nan, np.float32)
    for row, length in enumerate(LENGTHS):
        padded[row, :length] = features[row, :length]
    return jnp.asarray(padded)


def check_padded_equals_alone(model, variables, num_features):
    features, lengths = batch(num_features)
    apply = jax.jit(functools.partial(model.apply, train=False))
    embeddings = apply(
        variables,
        nan_padded(features, 6, 40),
        jnp.append(lengths, jnp.array([0, 40], jnp.int32)),
        mask=jnp.array([True] * 5 + [False]),
    )
    assert embeddings.dtype == jnp.float32
    np.testing.assert_array_equal(embeddings[4:], 0.0)  # an empty row and one that is not real
    for row in (1, 3):
        alone = apply(variables, features[row : row + 1, : LENGTHS[row]], lengths[row : row + 1])
        assert float(jnp.abs(alone).max()) > 0.01
        # The contract of the house: 1e-5.
        np.testing.assert_allclose(embeddings[row], alone[0], rtol=1e-5, atol=1e-5)


def _gradient(make, variables, axis_name):
    def loss(params, features, lengths, mask):
        embeddings, new = make(axis_name).apply(
            {**variables, "params": params},
            features,
            lengths,
            train=True,
            mask=mask,
            mutable=["batch_stats"],
        )
        directions = jnp.cos(jnp.arange(embeddings.shape[1], dtype=jnp.float32))
        return jnp.sum(jnp.where(mask, jnp.sin(embeddings @ directions), 0.0)), new

    def step(*args):
        grads, new = jax.grad(loss, has_aux=True)(*args)
        return (grads if axis_name is None else jax.lax.psum(grads, axis_name)), new

    return step


def check_training_ignores_padding_and_devices(make, variables, num_features):
    """Gradients and statistics: a small batch here, padded with NaN and rows over 4 devices."""
    features, lengths = batch(num_features)
    params = variables["params"]
    one = jax.jit(_gradient(make, variables, None))(
        params, features[:3], lengths[:3], jnp.ones(3, bool)
    )
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        _gradient(make, variables, "data"),
        mesh=mesh,
        in_specs=(everywhere, rows, rows, rows),
        out_specs=everywhere,
        check_vma=False,
    )
    mask = jnp.array([True, True, True, False])
    many = jax.jit(mapped)(params, nan_padded(features, 4, 33), lengths, mask)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(one[0]))
    assert np.isfinite(scale)
    assert scale > 1e-3
    # Sums of 54 frames in another order, through batch normalisation, beside the largest gradient.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4 * max(scale, 1.0))
    jax.tree.map(close, one, many)


def check_bfloat16(model, variables, num_features):
    """Parameters, statistics and embeddings in float32, embeddings near those of float32."""
    low = type(model)(dataclasses.replace(model.config, dtype=jnp.bfloat16))
    fresh = jax.eval_shape(
        functools.partial(low.init, train=False), jax.random.key(0), *batch(num_features)
    )
    options = {"train": True, "mutable": ["batch_stats"]}
    (y, _), (z, new) = (
        jax.jit(functools.partial(m.apply, **options))(variables, *batch(num_features))
        for m in (model, low)
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((fresh, new, z))}
    assert dtypes == {jnp.dtype("float32")}
    # 8 bits of mantissa through some ten layers.
    assert float(jnp.linalg.norm(y - z)) < 0.1 * float(jnp.linalg.norm(y))


def check_overfits(model, variables, num_features, steps=60):
    """Four utterances of noise become four speakers."""
    features, lengths = batch(num_features)
    lengths = jnp.maximum(lengths, 7)
    optimizer = optax.adam(1e-2)

    def loss(params, stats):
        embeddings, new = model.apply(
            {"params": params, "batch_stats": stats},
            features,
            lengths,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(embeddings[:, :4], jnp.arange(4))
        return losses.mean(), new["batch_stats"]

    def step(carry, _):
        params, stats, state = carry
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), stats, state), value

    carry = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))(carry)
    assert float(losses[-1]) < 0.1 < float(losses[0])  # chance is log 4
