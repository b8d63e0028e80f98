"""Margin losses against NumPy in float64 (angles by arccos), at the ends of the cosine, masked."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from common import errors
from speaker import margin_schedules, margins

CONFIGS = {
    "softmax": margins.MarginConfig(kind="softmax"),
    "l2_softmax": margins.MarginConfig(kind="l2_softmax", scale=12.0),
    "sphereface": margins.MarginConfig(kind="sphereface", margin=0.4, scale=1.5),
    "am": margins.MarginConfig(kind="am", margin=0.35),
    "aam": margins.MarginConfig(kind="aam"),
    "aam_arcface": margins.MarginConfig(kind="aam", margin=0.5, fallback="arcface"),
    "aam_easy": margins.MarginConfig(kind="aam", fallback="easy"),
    "sub_center": margins.MarginConfig(kind="aam", sub_centers=3),
    "top_k": margins.MarginConfig(kind="aam", top_k=3, sub_centers=2, margin=0.3),
    "am_top_k": margins.MarginConfig(kind="am", top_k=3),
    "adacos": margins.MarginConfig(kind="adacos"),
    "sphereface2": margins.MarginConfig(kind="sphereface2"),
    "sphereface2_a": margins.MarginConfig(kind="sphereface2", sphereface2_type="A", margin=0.15),
}
ROWS, DIM, CLASSES = 6, 4, 7


@functools.lru_cache
def compiled(name):
    """(loss of each row, correct, scale), gradients of the sum: compiled once a config."""
    config = CONFIGS[name]

    def total(x, weights, bias, labels, mask, margin, scale):
        out = margins.margin_loss(
            config, x, weights, labels, margin, scale, bias=bias, mask=mask, num_classes=CLASSES
        )
        return jnp.sum(out.loss), out

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))


def problem(name, seed=0):
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    # Two padding classes at the end: they may hold anything finite.
    weights = rng.normal(size=((CLASSES + 2) * config.sub_centers, DIM)).astype(np.float32)
    shape = {"none": (0,), "scalar": (), "class": (CLASSES + 2,)}[config.bias]
    bias = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS).astype(np.int32)
    # One row almost opposite to its class, so that the fallbacks are reached.
    x[0] = -weights[labels[0] * config.sub_centers] + 0.05 * x[0]
    if config.sub_centers > 1:
        first = labels[0] * config.sub_centers
        weights[first : first + config.sub_centers] = weights[first] + 0.03 * rng.normal(
            size=(config.sub_centers, DIM)
        )
    return x, weights, bias, labels


def reference(name, x, weights, bias, labels, margin, scale):
    """Row losses by the papers' formulas, in float64 and with explicit angles."""
    config = CONFIGS[name]
    k = config.sub_centers
    x, weights, bias = (np.asarray(a, np.float64) for a in (x, weights, bias))
    weights = weights[: CLASSES * k]
    own = np.arange(CLASSES) == labels[:, None]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    directions = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    cosine = (unit @ directions.T).reshape(len(x), CLASSES, k).max(2)
    angle = np.arccos(cosine)

    def sphere(z):
        return 2 * ((z + 1) / 2) ** config.power - 1

    def beyond(angle):  # cos(t + m) and its continuation
        less = {"arcface": margin * np.sin(margin), "continuous": 1 - np.cos(margin)}
        if config.fallback == "easy":
            return np.where(angle < np.pi / 2, np.cos(angle + margin), np.cos(angle))
        other = np.cos(angle) - less[config.fallback]
        return np.where(angle + margin < np.pi, np.cos(angle + margin), other)

    if config.kind == "softmax":
        logits = x @ weights.T + bias[:CLASSES]
    elif config.kind == "l2_softmax":
        logits = scale * unit @ weights.T + bias[:CLASSES]
    elif config.kind == "sphereface":
        n = config.angle_multiple
        turns = np.floor(n * angle / np.pi)
        psi = (-1.0) ** turns * np.cos(n * angle) - 2 * turns
        mixed = np.where(own, (1 - margin) * cosine + margin * psi, cosine)
        logits = scale * np.linalg.norm(x, axis=1, keepdims=True) * mixed
    elif config.kind == "adacos":
        sums = np.where(own, 0, np.exp(scale * cosine)).sum(1)
        scale = np.log(sums.mean()) / np.cos(min(np.pi / 4, np.median(angle[own])))
        logits = scale * cosine
    elif config.kind == "sphereface2":
        if config.sphereface2_type == "C":
            inner = sphere(cosine) - np.where(own, margin, -margin)
        else:
            inner = sphere(np.where(own, beyond(angle), np.cos(angle - margin)))
        z = scale * inner + bias
        weight = config.positive_weight
        rows = np.where(own, weight * np.log1p(np.exp(-z)), (1 - weight) * np.log1p(np.exp(z)))
        return rows.sum(1), scale
    else:
        marked = cosine.copy()
        penalty = config.top_k_ratio * margin
        for i, y in enumerate(labels):
            others = [j for j in np.argsort(-cosine[i]) if j != y][: config.top_k]
            for j in others:
                harder = cosine[i, j] + penalty
                marked[i, j] = np.cos(angle[i, j] - penalty) if config.kind == "aam" else harder
        target = cosine - margin if config.kind == "am" else beyond(angle)
        logits = scale * np.where(own, target, marked)
    logits = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[own], scale


@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients(name):
    config = CONFIGS[name]
    x, weights, bias, labels = problem(name)
    margin, scale = config.margin, min(config.scale, 8.0)
    mask = np.ones(ROWS, bool)
    (_, out), grads = compiled(name)(x, weights, bias, labels, mask, margin, scale)
    expected, next_scale = reference(name, x, weights, bias, labels, margin, scale)
    # float32 against float64 for losses up to 40; near t = pi the sine loses 1e-4 of itself.
    np.testing.assert_allclose(out.loss, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(out.scale, next_scale, rtol=1e-5)

    # AdaCos does not differentiate its scale: hold it in the reference as the library does.
    def loss(x, weights, bias):
        if config.kind != "adacos":
            return reference(name, x, weights, bias, labels, margin, scale)[0].sum()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        w = weights[:CLASSES] / np.linalg.norm(weights[:CLASSES], axis=1, keepdims=True)
        logits = next_scale * unit @ w.T
        return (np.log(np.exp(logits).sum(1)) - logits[np.arange(ROWS), labels]).sum()

    points = [np.asarray(a, np.float64) for a in (x, weights, bias)]
    for which, gradient in enumerate(grads):
        numeric = np.zeros(points[which].shape)
        for index in np.ndindex(*numeric.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [p.copy() for p in points]
                moved[which][index] += step
                sides.append(loss(*moved))
            numeric[index] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_finite_for_adversarial_inputs_and_one_compilation(name):
    fn = compiled(name)
    for seed in range(6):
        x, weights, bias, labels = problem(name, seed)
        k = CONFIGS[name].sub_centers
        own = weights[labels * k]
        x[0], x[1], x[2] = 0.0, own[1], -own[2]  # no direction; cos = 1; cos = -1
        x[3], x[4] = 1e-20 * x[3], 1e12 * own[4]
        x[5] = weights[((labels[5] + 1) % CLASSES) * k]  # on another class
        weights[(CLASSES - 1) * k] = 0.0
        if seed == 1:
            weights[:] = weights[:1]  # every class the same: all ties
        if seed == 2:
            x[:] = np.float32(np.sqrt(0.25)) * np.sign(x)  # exact products
            weights[: len(x)] = x[: len(weights)]
        mask = np.ones(ROWS, bool)
        for margin in (0.0, 0.2, 0.9):
            for scale in (0.0, 1.0, 64.0):
                (_, out), grads = fn(x, weights, bias, labels, mask, margin, scale)
                for array in (*out, *grads):
                    assert bool(jnp.isfinite(array).all()), (seed, margin, scale)
                if CONFIGS[name].kind not in ("softmax", "l2_softmax"):
                    assert float(jnp.abs(out.target).max()) <= 1.0 + 1e-6
    # Margins and scales are traced: test_values_and_gradients used the same program.
    assert fn._cache_size() == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_masked_rows_and_wrong_labels(name):
    x, weights, bias, labels = problem(name)
    config = CONFIGS[name]
    args = (config.margin, min(config.scale, 8.0))
    kept = np.array([True, False, True, True, False, True])
    (_, alone), reference_grads = compiled(name)(
        np.where(kept[:, None], x, 1.0), weights, bias, np.where(kept, labels, 0), kept, *args
    )
    x[1], x[4] = np.nan, np.inf
    labels[1], labels[4] = -1, 10_000
    (_, out), grads = compiled(name)(x, weights, bias, labels, kept, *args)
    jax.tree.map(np.testing.assert_array_equal, (out, grads), (alone, reference_grads))
    np.testing.assert_array_equal(out.loss[~kept], 0.0)
    assert not out.correct[~kept].any()
    np.testing.assert_array_equal(grads[0][~kept], 0.0)
    np.testing.assert_array_equal(grads[1][CLASSES * config.sub_centers :], 0.0)  # padding classes
    # A real row with a label that no class has (a padding class, too) is named by a NaN.
    labels[0] = CLASSES
    (_, out), grads = compiled(name)(x, weights, bias, labels, kept, *args)
    np.testing.assert_array_equal(np.isnan(out.loss), ~np.arange(ROWS).astype(bool))
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_correct_without_margin():
    weights = jnp.eye(4)
    x = jnp.array([[1, 0.99, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    labels = jnp.array([0, 1, 0, 0])
    out = margins.margin_loss(CONFIGS["aam"], x, weights, labels, 0.5, 32.0)
    # Row 0 is right though not by the margin; no direction and a tie are not right.
    np.testing.assert_array_equal(out.correct, [True, True, False, False])


def test_bfloat16_embeddings_have_float32_cosines():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(ROWS, 256)), jnp.bfloat16)
    weights = rng.normal(size=(CLASSES, 256)).astype(np.float32)
    scores = margins.class_scores(CONFIGS["aam"], x, jnp.asarray(weights), 1.0)
    exact = np.asarray(x, np.float64)
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    exact = exact @ (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, exact, atol=3e-7)  # bfloat16 products would give 1e-3


def test_angle_functions():
    angle = np.linspace(0.0, np.pi, 2001)
    cosine = jnp.asarray(np.cos(angle), jnp.float32)

    def with_slope(fn, *args):
        values, slopes = jax.vmap(jax.value_and_grad(lambda c: fn(c, *args)))(cosine)
        assert bool(jnp.isfinite(values).all() & jnp.isfinite(slopes).all())
        assert float(slopes[0]) >= 0.0
        assert float(slopes[-1]) >= 0.0
        return np.asarray(values, np.float64)

    step = np.pi / 2000
    for margin in (0.2, 0.5, 1.0):
        inside = angle + margin < np.pi - step
        # float32 next to cos = 1: the sine is known to about 3e-4.
        for fallback, jump in (
            ("continuous", 0.0),
            ("arcface", 1 - np.cos(margin) - margin * np.sin(margin)),
        ):
            values = with_slope(margins.add_angle, margin, fallback)
            np.testing.assert_allclose(values[inside], np.cos(angle + margin)[inside], atol=4e-4)
            at = np.searchsorted(angle, np.pi - margin)
            # One step beyond: the fallback falls by sin(pi - m) a radian, cos(t + m) is flat.
            gap = values[at + 1] - values[at - 2]
            assert abs(gap - jump) < 3.5 * step, (margin, fallback)
            if fallback == "continuous":
                assert (np.diff(values) < 2e-7).all()
        values = with_slope(margins.subtract_angle, margin)
        assert (np.diff(values) < 2e-7).all()
        far = angle > margin + step
        np.testing.assert_allclose(values[far], np.cos(angle - margin)[far], atol=4e-4)
    jump = margins.add_angle(jnp.cos(np.pi - 0.2 + 1e-3), 0.2, "arcface") + 1.0
    np.testing.assert_allclose(jump, -0.0198, atol=3e-4)  # published code, m = 0.2
    for multiple in (1, 2, 3, 4, 5):
        values = with_slope(margins.multiply_angle, multiple)
        turns = np.floor(multiple * angle / np.pi)
        exact = (-1.0) ** turns * np.cos(multiple * angle) - 2 * turns
        np.testing.assert_allclose(values, exact, atol=2e-5)
        assert (np.diff(values) < 1e-5).all()
        np.testing.assert_allclose(values[[0, -1]], [1.0, 1.0 - 2.0 * multiple], atol=1e-6)


def test_adacos_scale_over_steps_and_devices():
    config = CONFIGS["adacos"]
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(CLASSES, DIM)), jnp.float32)
    x = rng.normal(size=(3, 8, DIM)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (3, 8)).astype(np.int32)
    mask = np.ones((3, 8), bool)
    mask[1, 3:] = mask[2] = False  # an odd number of rows; none
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def one(x, labels, mask, scale, axis):
        out = margins.margin_loss(config, x, weights, labels, 0.0, scale, mask=mask, row_axis=axis)
        return out.loss, out.scale

    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    many = jax.jit(
        jax.shard_map(
            functools.partial(one, axis="data"),
            mesh=mesh,
            in_specs=(rows, rows, rows, everywhere),
            out_specs=(rows, everywhere),
            check_vma=False,
        )
    )
    single = jax.jit(functools.partial(one, axis=None))
    scale = expected = margins.adacos_start(CLASSES)
    np.testing.assert_allclose(scale, math.sqrt(2) * math.log(CLASSES - 1))
    for batch in zip(x, labels, mask):
        real = batch[2]
        if real.any():
            rows = batch[0][real], weights, 0, batch[1][real]
            _, expected = reference("adacos", *rows, 0.0, expected)
        loss, new = single(*batch, scale)
        again = many(*batch, scale)
        np.testing.assert_allclose(again[0], loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(again[1], new, rtol=1e-6)
        np.testing.assert_allclose(new, expected, rtol=1e-5)
        scale = new


@pytest.mark.parametrize("name", ["sphereface2", "sphereface2_a"])
def test_sphereface2_starts_balanced(name):
    config = CONFIGS[name]
    bias = margins.sphereface2_bias(config, 1000)
    x = jnp.array([[1.0, 0.0]])
    weights = jnp.tile(jnp.array([[0.0, 1.0]]), (1000, 1))  # all cosines 0

    def loss(weights):
        args = (jnp.array([0]), config.margin, config.scale)
        return margins.margin_loss(config, x, weights, *args, bias=jnp.float32(bias)).loss[0]

    pull = jax.grad(loss)(weights)[:, 0]
    if config.sphereface2_type == "A":  # d cos(t + m) is not d cos(t - m): undo the two slopes

        def slope(sign):
            sine = np.sin(config.margin)
            return (0.5 * (1 - sign * sine)) ** (config.power - 1)

        pull = pull.at[0].divide(slope(1)).at[1:].divide(slope(-1))
    np.testing.assert_allclose(-pull[0], pull[1:].sum(), rtol=1e-3)


def test_schedules():
    steps = jnp.array([0, 20, 30, 39, 40, 100])
    kwargs = {"final": 0.2, "start_step": 20, "end_step": 40}
    exponential = jax.jit(lambda s: margin_schedules.margin_at(s, **kwargs))
    values = [float(exponential(step)) for step in steps]
    assert exponential._cache_size() == 1
    expected = [0.0, 0.0, 0.2 * (1 - 1e-3**0.5), 0.2 * (1 - 1e-3**0.95), 0.2, 0.2]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    linear = [margin_schedules.margin_at(s, initial=0.1, growth="linear", **kwargs) for s in steps]
    np.testing.assert_allclose(linear, [0.1, 0.1, 0.15, 0.195, 0.2, 0.2], rtol=1e-5)
    fixed = margin_schedules.margin_at(5, final=0.5, start_step=0, end_step=0)
    np.testing.assert_allclose(fixed, 0.5)
    weight = [
        margin_schedules.margin_at(step, final=1 / 6, start_step=0, end_step=0, growth="sphereface")
        for step in (0, 100, 100_000)
    ]
    np.testing.assert_allclose(weight, [1 / 1001, 1 / (1 + 1000 / 13), 1 / 6], rtol=1e-5)
    with pytest.raises(errors.UserError, match="exponential, linear"):
        margin_schedules.margin_at(0, growth="cubic", **kwargs)
    with pytest.raises(errors.UserError, match="ends above 0"):
        margin_schedules.margin_at(0, final=0.0, start_step=0, end_step=0, growth="sphereface")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "arc"}, "softmax, l2_softmax"),
        ({"fallback": "hard"}, "continuous, arcface"),
        ({"kind": "softmax", "sub_centers": 3}, "only am and aam"),
        ({"kind": "adacos", "top_k": 5}, "only am and aam"),
        ({"sub_centers": 0}, "start at 1"),
        ({"margin": -0.1}, "margin is not negative"),
        ({"scale": 0.0}, "scale is positive"),
        ({"kind": "sphereface", "margin": 4.0}, "the m of the paper is angle_multiple"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(errors.UserError, match=message):
        dataclasses.replace(margins.MarginConfig(), **change)
    with pytest.raises(errors.UserError, match="3 classes"):
        margins.adacos_start(2)
