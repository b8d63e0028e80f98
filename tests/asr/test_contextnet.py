"""ContextNet: the published table, our own counts, padding, context, devices, gradients."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from asr import contextnet, costs, settings
from asr import model as asr_model

SMALL = ((1, 16, 1), (2, 16, 2), (2, 24, 2))


@functools.lru_cache
def shapes(config):
    model = contextnet.ContextNet(config)
    features, lengths = jnp.zeros((1, 16, 80)), jnp.array([16])
    return jax.eval_shape(
        lambda key: model.init(key, features, lengths, train=False), jax.random.key(0)
    )["params"]


def make(features, lengths, **options):
    model = contextnet.ContextNet(contextnet.reduced(SMALL, **options))
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), features, lengths
    )
    return model, variables


@pytest.fixture(scope="module")
def batch():
    features = jax.random.normal(jax.random.key(0), (4, 33, 8))
    return features, jnp.array([33, 20, 9, 1], jnp.int32)


@pytest.mark.parametrize(
    ("alpha", "encoder", "gmacs"),
    [(0.5, 5_744_520, 0.13), (1.0, 22_640_000, 0.51), (2.0, 89_885_040, 2.02)],
)
def test_parameters_and_macs_of_the_published_sizes(alpha, encoder, gmacs):
    """Our own counts. With 1k tokens and 640-wide LSTM and joiner: 10.95, 28.05 and 95.7 M."""
    config = contextnet.contextnet(alpha)
    params = shapes(config)
    count = contextnet.count_parameters(params)
    print(f"ContextNet alpha={alpha}: {count:,d} encoder parameters")
    assert count == encoder
    assert config.reduction == 8
    assert (
        round(sum(c.macs_per_second for c in costs.layer_costs(config, params)) / 1e9, 2) == gmacs
    )


def test_whole_model_counts():
    """Encoder, LSTM, joiner and output layer of the recogniser itself, with 1,000 tokens."""
    for alpha, millions in ((0.5, 10.95), (1.0, 28.05), (2.0, 95.7)):
        config = settings.default_config()
        config.encoder.alpha = alpha
        whole = jax.eval_shape(
            functools.partial(asr_model.init, asr_model.make_model(config, 1000)), jax.random.key(0)
        )
        total = contextnet.count_parameters(whole["params"])
        assert total / 1e6 == pytest.approx(millions, abs=0.06)


def test_rematerialisation_keeps_less_and_changes_nothing(batch):
    features, lengths = batch
    model, variables = make(features, lengths)
    remat = contextnet.ContextNet(contextnet.reduced(SMALL, remat=True))

    def loss(model, params):
        tree = {**variables, "params": params}
        (y, _), new = model.apply(tree, features, lengths, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(y)), new["batch_stats"]

    def kept_bytes(model):
        """What the forward pass leaves for the backward pass, on any backend."""
        residuals = jax.eval_shape(
            lambda params: jax.vjp(functools.partial(loss, model), params, has_aux=True)[1],
            variables["params"],
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    assert kept_bytes(remat) < 0.25 * kept_bytes(model)
    plain, again = (
        jax.jit(jax.value_and_grad(functools.partial(loss, m), has_aux=True))(variables["params"])
        for m in (model, remat)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, again)


def test_the_table():
    config = contextnet.contextnet(1.0)
    assert len(config.blocks) == 23
    assert [i for i, b in enumerate(config.blocks) if b.stride == 2] == [3, 7, 14]
    assert [b.channels for b in config.blocks] == [256] * 11 + [512] * 11 + [640]
    assert [b.num_convs for b in config.blocks] == [1] + [5] * 21 + [1]
    assert [b.residual for b in config.blocks] == [False] + [True] * 21 + [False]
    assert contextnet.contextnet(1.0, strided_blocks=(3,)).reduction == 2


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({"pointwise_rank_fraction": 1 / 8}, 2.38),
        ({"pointwise_rank_fraction": 1 / 4}, 3.49),
        ({"conv": "spectro_temporal", "rank": 1}, 5.746),
        ({"conv": "spectro_temporal", "rank": 4}, 19.5),
        ({"conv": "dense"}, 23.57),
    ],
)
def test_parameters_of_the_low_rank_variants(options, millions):
    params = shapes(contextnet.contextnet(0.5, **options))
    # Half of the last digit given.
    assert contextnet.count_parameters(params) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "se_window": 4, "conv": "spectro_temporal", "rank": 2},
        {"causal": True, "conv": "dense"},
        {"se_window": 5, "pointwise_rank_fraction": 0.25},
    ],
)
def test_padded_equals_alone(batch, options):
    features, lengths = batch
    model, variables = make(features, lengths, **options)
    padded = np.full((4, 47, 8), np.nan, np.float32)
    for row, length in enumerate(lengths):
        padded[row, :length] = features[row, :length]
    apply = functools.partial(jax.jit(model.apply, static_argnames="train"), train=False)
    y, new = apply(variables, jnp.asarray(padded), lengths)
    np.testing.assert_array_equal(new, -(-lengths // 4))
    alone, _ = apply(variables, features[1:2, :20], lengths[1:2])
    # The contract of the house: 1e-5.
    np.testing.assert_allclose(y[1, : new[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_padding_and_padded_rows_do_not_touch_training(batch):
    """Loss, gradients and statistics of a batch with padding in both directions."""
    features, lengths = batch
    model, variables = make(features, lengths)

    def loss(params, features, lengths, mask):
        tree = {**variables, "params": params}
        (y, new_lengths), new = model.apply(
            tree, features, lengths, train=True, mask=mask, mutable=["batch_stats"]
        )
        true = (jnp.arange(y.shape[1])[None] < new_lengths[:, None]) & mask[:, None]
        return jnp.sum(jnp.where(true[..., None], jnp.sin(y), 0.0)), new

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    plain = step(variables["params"], features, lengths, jnp.ones(4, bool))
    wide = jnp.pad(features, ((0, 2), (0, 6), (0, 0)), constant_values=jnp.nan)
    more = jnp.concatenate([lengths, jnp.array([39, 3], jnp.int32)])
    padded = step(variables["params"], wide, more, jnp.arange(6) < 4)
    assert float(plain[0][0]) == pytest.approx(float(padded[0][0]), rel=1e-5)
    # Sums over 63 frames and four blocks in float32.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        (plain[1], plain[0][1]),
        (padded[1], padded[0][1]),
    )


def test_causal_encoder_sees_no_later_frame(batch):
    features, lengths = batch
    model, variables = make(features, lengths, causal=True)
    apply = functools.partial(jax.jit(model.apply, static_argnames="train"), train=False)
    y, _ = apply(variables, features, lengths)
    changed, _ = apply(variables, features.at[:, 21:].add(1.0), lengths)
    # Output i ends at input frame 4 i: 5 is the last before frame 21.
    np.testing.assert_allclose(changed[0, :6], y[0, :6], rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(changed[0, 6:] - y[0, 6:]).max()) > 1e-3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_moving_mean_against_a_loop(window, causal):
    x = np.random.default_rng(0).standard_normal((2, 11, 3)).astype(np.float32)
    lengths = np.array([11, 6], np.int32)
    x[1, 6:] = 0.0
    got = contextnet.moving_mean(jnp.asarray(x), jnp.asarray(lengths), window, causal)
    for row, length in enumerate(lengths):
        for i in range(length):
            span = 10**6 if window is None else window
            first = max(0, i - (span - 1 if causal else (span - 1) // 2))
            last = min(length, i + 1 + (0 if causal else span // 2))
            expected = x[row, first:last].mean(0)
            np.testing.assert_allclose(got[row, i], expected, rtol=1e-4, atol=1e-5)


def test_squeeze_sees_true_frames_only():
    module = contextnet.SqueezeExcite(contextnet.reduced(SMALL))
    x = jax.random.normal(jax.random.key(0), (1, 6, 16))
    variables = module.init(jax.random.key(1), x, jnp.array([6]))
    x = x.at[:, 4:].set(0.0)
    y = module.apply(variables, x, jnp.array([4]))
    p = variables["params"]
    mean = np.asarray(x)[0, :4].mean(0)
    hidden = mean @ np.asarray(p["squeeze"]["kernel"]) + np.asarray(p["squeeze"]["bias"])
    hidden = hidden / (1 + np.exp(-hidden))
    gate = hidden @ np.asarray(p["excite"]["kernel"]) + np.asarray(p["excite"]["bias"])
    assert p["squeeze"]["kernel"].shape == (16, 2)
    expected = np.asarray(x)[0] / (1 + np.exp(-gate))
    np.testing.assert_allclose(y[0], expected, rtol=1e-5, atol=1e-6)


def test_devices_equal_one(batch):
    features, lengths = batch
    _, variables = make(features, lengths)

    def loss(params, features, lengths, mask, axis_name):
        model = contextnet.ContextNet(contextnet.reduced(SMALL, axis_name=axis_name))
        (y, n), new = model.apply(
            {**variables, "params": params},
            features,
            lengths,
            train=True,
            mask=mask,
            mutable=["batch_stats"],
        )
        true = (jnp.arange(y.shape[1])[None] < n[:, None]) & mask[:, None]
        return jnp.sum(jnp.where(true[..., None], jnp.sin(y), 0.0)), new

    def per_device(*args):
        grads, new = jax.grad(loss, has_aux=True)(*args, "data")
        return jax.lax.psum(grads, "data"), new

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(everywhere, rows, rows, rows),
        out_specs=everywhere,
        check_vma=False,
    )
    args = (variables["params"], features, lengths, jnp.array([True, True, True, False]))
    many = jax.jit(mapped)(*args)
    one = jax.jit(jax.grad(lambda *a: loss(*a, None), has_aux=True))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), many, one)


def test_overfits_and_repeats(batch):
    """Two classes by a mean over time; the same keys give the same bits."""
    features, lengths = batch
    target = jnp.array([0, 1, 1, 0])
    model, variables = make(features, lengths, dropout_rate=0.05, norm_momentum=0.9)
    optimizer = optax.adam(1e-2)

    def loss(params, stats, keys):
        (y, n), new = model.apply(
            {"params": params, "batch_stats": stats},
            features,
            lengths,
            train=True,
            dropout_keys=keys,
            mutable=["batch_stats"],
        )
        true = jnp.arange(y.shape[1])[None] < n[:, None]
        logits = jnp.where(true[..., None], y, 0.0)[..., :2].sum(1) / n[:, None]
        value = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
        return value, new["batch_stats"]

    @jax.jit
    def train(params, stats):
        def step(carry, key):
            params, stats, state = carry
            keys = jax.random.split(key, 4)
            (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, keys)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), stats, state), value

        carry = (params, stats, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(jax.random.key(7), 80))

    first = train(variables["params"], variables["batch_stats"])
    assert float(first[1][-1]) < 0.1  # from log 2
    again = train(variables["params"], variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_bfloat16_computes_near_float32_with_float32_parameters(batch):
    features, lengths = batch
    model, variables = make(features, lengths)
    low = contextnet.ContextNet(contextnet.reduced(SMALL, dtype=jnp.bfloat16))
    options = {"train": True, "mutable": ["batch_stats"]}
    (y, _), _ = jax.jit(functools.partial(model.apply, **options))(variables, *batch)
    (z, _), new = jax.jit(functools.partial(low.apply, **options))(variables, *batch)
    assert z.dtype == jnp.bfloat16
    dtypes = jax.tree.leaves(jax.tree.map(lambda a: a.dtype, (variables, new)))
    assert set(dtypes) == {jnp.dtype("float32")}
    # 8 bits of mantissa through seven layers.
    assert float(jnp.mean(jnp.abs(y - z)[0])) < 0.03


def test_hessian_vector_product(batch):
    """Forward over reverse passes through every closed-form gradient."""
    features, lengths = batch
    model = contextnet.ContextNet(contextnet.reduced([(2, 8, 2)]))
    variables = model.init(jax.random.key(1), features, lengths, train=False)

    def loss(params):
        tree = {**variables, "params": params}
        (y, _), _ = model.apply(tree, features, lengths, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.sin(y[0]))

    flat, unravel = jax.flatten_util.ravel_pytree(variables["params"])
    gradient = jax.jit(jax.grad(lambda flat: loss(unravel(flat))))
    direction = jax.random.normal(jax.random.key(2), flat.shape)
    hvp = jax.jit(lambda flat: jax.jvp(gradient, (flat,), (direction,))[1])(flat)
    slope = (gradient(flat + 1e-3 * direction) - gradient(flat - 1e-3 * direction)) / 2e-3
    # Central differences in float32: a per cent.
    assert float(jnp.linalg.norm(hvp - slope)) < 0.03 * float(jnp.linalg.norm(slope))


def test_errors_name_the_field():
    with pytest.raises(ValueError, match=r"ContextNetConfig\.conv is 'fancy'"):
        contextnet.reduced(SMALL, conv="fancy")
    with pytest.raises(ValueError, match="block_9/conv_0/pointwise"):
        contextnet.reduced(SMALL, pointwise_ranks=(("block_9/conv_0/pointwise", 2),))
    with pytest.raises(ValueError, match="blocks is empty"):
        contextnet.reduced(())
    features, lengths = jnp.zeros((1, 8, 8)), jnp.array([8])
    model, variables = make(features, lengths, dropout_rate=0.1)
    with pytest.raises(ValueError, match="needs dropout_keys"):
        model.apply(variables, features, lengths, train=True, mutable=["batch_stats"])
