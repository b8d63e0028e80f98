"""Schedules at their corners, and the optimizers against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import errors, optim


def config(**changes):
    made = optim.default_config()
    made.update({"schedule": "constant", "warmup_steps": 1, "learning_rate": 0.1, **changes})
    return made


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 10}, {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        ({"schedule": "cosine", "warmup_steps": 10}, {0: 0.0, 10: 1.0, 55: 0.505, 100: 0.01}),
        # wespeaker: the fall begins at once, the warm-up multiplies it.
        (
            {"schedule": "exponential", "warmup_steps": 10},
            {0: 0.0, 5: 0.5 * 0.01**0.05, 10: 0.01**0.1, 50: 0.1, 100: 0.01},
        ),
        ({"schedule": "noam", "warmup_steps": 4}, {0: 0.25, 3: 1.0, 15: 0.5}),
        (
            {"schedule": "steps", "warmup_steps": 2, "boundaries": (10, 20)},
            {1: 0.5, 2: 1.0, 9: 1.0, 10: 0.5, 19: 0.5, 20: 0.25},
        ),
    ],
)
def test_schedules(changes, expected):
    schedule = optim.make_schedule(config(learning_rate=1.0, **changes), 100)
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-7)


def test_names_are_checked():
    with pytest.raises(errors.UserError, match="choose noam, cosine, exponential"):
        optim.make_schedule(config(schedule="linear"), 100)
    with pytest.raises(errors.UserError, match="choose adam or sgd"):
        optim.make_optimizer(config(name="lion"), 100)


def run(settings, params, gradients):
    tx, _ = optim.make_optimizer(settings, 100)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for gradient in gradients:
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    shapes = {"body": {"kernel": (3, 2), "bias": (2,)}, "head": {"weights": (4, 3)}}

    def draw():
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    return draw(), [draw() for _ in range(4)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_pytorch(problem, nesterov):
    """g += decay w; v = momentum v + g; w -= rate (g + momentum v, or v)."""
    params, gradients = problem
    settings = config(
        name="sgd",
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.01,
        warmup_steps=0,
        rate_factors=(("head", 0.5),),
    )
    found = run(settings, params, gradients)

    def expected(w, factor, decay, steps):
        w, v = np.asarray(w, np.float64), 0.0
        for i, g in enumerate(steps):
            g = np.asarray(g, np.float64) + decay * w
            v = 0.9 * v + g
            # A warm-up of one step at least: the first rate is 0.
            w = w - (0.0 if i == 0 else 0.1) * factor * (g + 0.9 * v if nesterov else v)
        return w

    for part, name, factor, decay in (
        ("body", "kernel", 1.0, 0.01),
        ("body", "bias", 1.0, 0.0),
        ("head", "weights", 0.5, 0.01),
    ):
        steps = [gradient[part][name] for gradient in gradients]
        wanted = expected(params[part][name], factor, decay, steps)
        np.testing.assert_allclose(found[part][name], wanted, rtol=1e-5, atol=1e-6)


def test_a_global_norm_is_one_sum_over_all_leaves(problem):
    """Not one for each, which XLA:CPU compiles one by one."""
    params, _ = problem
    expected = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params)))
    np.testing.assert_allclose(optim.global_norm(params), expected, rtol=1e-6)
    assert len(jax.tree.leaves(params)) > 2
    assert str(jax.make_jaxpr(optim.global_norm)(params)).count("reduce_sum") == 1


def test_adam_with_clipping_is_that_of_optax(problem):
    params, gradients = problem
    found = run(config(clip_norm=1.0, weight_decay=0.1), params, gradients)
    mask = jax.tree.map(lambda p: p.ndim > 1, params)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.98, 1e-9),
        optax.add_decayed_weights(0.1, mask=mask),
        optax.scale_by_learning_rate(optim.make_schedule(config(), 100)),
    )
    state, wanted = tx.init(params), params
    for gradient in gradients:
        updates, state = tx.update(gradient, state, wanted)
        wanted = optax.apply_updates(wanted, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_rate_factors_name_what_there_is(problem):
    tx, _ = optim.make_optimizer(config(rate_factors=(("hed", 0.5),)), 100)
    with pytest.raises(errors.UserError, match="no parameter lies under 'hed'; there are body, he"):
        tx.init(problem[0])


def test_a_part_begins_late(problem):
    """Before its first step it stays; then its moments are those of all gradients so far."""
    params, gradients = problem
    late = run(config(rate_factors=(("head", 1.0, 3),)), params, gradients)
    always = run(config(), params, gradients)
    before = run(config(), params, gradients[:3])
    np.testing.assert_array_equal(late["body"]["kernel"], always["body"]["kernel"])
    last = always["head"]["weights"] - before["head"]["weights"]
    np.testing.assert_allclose(late["head"]["weights"], params["head"]["weights"] + last, atol=1e-5)
    assert float(jnp.abs(last).max()) > 1e-4


def test_a_group_is_optimized_as_if_it_were_alone(problem):
    """And one whose gradients do not come in a call does not move, nor its moments or schedule."""
    params, gradients = problem
    settings = {
        "body": config(clip_norm=1.0, schedule="noam"),
        "head": config(name="sgd", learning_rate=0.3, schedule="noam"),
    }
    groups = {name: optim.Group(made, (name,)) for name, made in settings.items()}
    tx, schedules = optim.make_optimizers(groups, 100)
    state, found = tx.init(params), params
    turns = (("body",), ("body", "head"), ("head",), ("body", "head"))
    for turn, gradient in zip(turns, gradients):
        some = {name: gradient[name] for name in turn}
        updates, state = tx.update(some, state, found)
        found = {**found, **optax.apply_updates({name: found[name] for name in turn}, updates)}
    for name in ("body", "head"):
        own = [{name: g[name]} for turn, g in zip(turns, gradients) if name in turn]
        alone = run(settings[name], {name: params[name]}, own)
        jax.tree.map(np.testing.assert_array_equal, found[name], alone[name])
    assert {name: float(at(0)) for name, at in schedules.items()} == pytest.approx(
        {"learning_rate_body": 0.1, "learning_rate_head": 0.3}
    )


def test_updates_of_one_step_have_its_rate(problem):
    params, gradients = problem
    settings = config(name="sgd", momentum=0.0, schedule="noam")
    tx, _ = optim.make_optimizer(settings, 100, updates=2)
    state = tx.init(params)
    for number, gradient in enumerate(gradients):
        updates, state = tx.update(gradient, state, params)
        rate = 0.1 * (number // 2 + 1) ** -0.5
        np.testing.assert_allclose(
            updates["head"]["weights"], -rate * gradient["head"]["weights"], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"a": ("body",), "b": ("hed",)}, "head/weights is in 0 groups .*none.*in one of a, b"),
        ({"a": ("body", "head"), "b": ("body/bias",)}, "body/bias is in 2 groups .*a, b"),
    ],
)
def test_every_parameter_is_in_one_group(problem, paths, words):
    groups = {name: optim.Group(config(), chosen) for name, chosen in paths.items()}
    tx, _ = optim.make_optimizers(groups, 100)
    with pytest.raises(errors.UserError, match=words):
        tx.init(problem[0])
