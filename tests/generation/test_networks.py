"""Sizes and parameters of the networks, and their layers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import parameters, workdir
from configs.generation import quickstart, voice2face
from generation import gan, losses, model, sides, voice
from generation import voice2face as published


def narrow(kind, size, channels, **changes):
    config = quickstart.get_config("debug")
    config.picture.update({"size": size, "channels": channels})
    config.model.kind = kind
    config.update(changes)
    config.loss.update({"wrong_pairs": False, "r1": 0.0, "contrast": 0.0})
    config.loss.kind = "began" if kind == "began" else "hinge"
    return workdir.freeze(config)


OF_ANY_SIZE = ("gan", "voice2face_plus", "sngan_projection", "r3gan")


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *[(kind, size) for kind in ("vanilla_gan", "cgan", "began") for size in (28, 32, 64, 128)],
        *[(kind, size) for kind in OF_ANY_SIZE for size in (8, 28, 32, 64, 128)],
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_the_size_that_is_asked_for(kind, size, channels):
    """asariri's generator made 32 x 32 when it was asked for 64, its discriminator took 32 only."""
    config = narrow(kind, size, channels)
    model.check(config)
    networks = model.make_gan(config, None, 0)
    variables = jax.eval_shape(networks.init, jax.random.key(0))
    condition = jnp.zeros((5, networks.condition_size))
    made = jax.eval_shape(networks.generate, variables, condition, jnp.zeros((5, 8)))
    assert made.shape == (5, size, size, channels)
    judged, state = jax.eval_shape(
        lambda *given: networks.judge(*given, None), variables, made, condition
    )
    assert (judged.real.shape, judged.people, state) == ((5,), None, {})


@pytest.mark.parametrize("kind", [kind for kind in model.GANS if kind != "face2voice"])
def test_pictures_and_logits_are_float32_whatever_the_layers_are(kind):
    networks = model.make_gan(narrow(kind, 64, 3, dtype="bfloat16"), None, 3)
    variables = jax.eval_shape(networks.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    condition, noise = (jnp.zeros((2, n)) for n in (networks.condition_size, networks.noise))
    training = sides.Training(jnp.ones(2, bool), jax.random.split(jax.random.key(0), 2))

    def both(variables):
        made, _ = networks.play(variables, condition, noise, training)
        return made, networks.judge(variables, made, condition, training)[0].real

    mapped = jax.vmap(lambda _, given: both(given), (0, None), axis_name="data", axis_size=1)
    made, real = jax.eval_shape(mapped, jnp.zeros(1), variables)
    assert (made.dtype, real.dtype) == (jnp.float32, jnp.float32)
    layers = str(jax.make_jaxpr(mapped)(jnp.zeros(1), variables)).splitlines()
    kinds = [line.split(" = ")[0] for line in layers if " = conv_general_dilated" in line]
    assert kinds
    assert all(":bf16[" in kind for kind in kinds)


def test_voice2face_plus_may_have_the_generator_of_voice2face():
    config = quickstart.get_config("debug")
    config.picture.size = 64
    config.model.update({"kind": "voice2face_plus", "residual": False})
    networks = model.make_gan(workdir.freeze(config), None, 0)
    assert isinstance(networks.generator, published.Generator)
    heard = jnp.zeros((2, networks.condition_size))
    assert networks.noise == networks.condition_size
    variables = jax.eval_shape(networks.init, jax.random.key(0))
    assert jax.eval_shape(networks.generate, variables, heard, heard).shape == (2, 64, 64, 3)


def test_the_published_numbers_of_parameters():
    """Wen et al. 2019: 2,670,720 and 12,191,875 and 3,310,720, and linear heads without bias."""
    config = workdir.freeze(voice2face.get_config())
    networks = model.make_gan(config, config, 924)
    shapes = jax.eval_shape(networks.init, jax.random.key(0))
    params = shapes["params"]
    assert parameters.count(shapes[voice.FROZEN]["params"]) == 2_670_720
    assert parameters.count(params["generator"]) == 12_191_875
    heads = params["discriminator"]
    assert parameters.count(heads["face"]) == 3_310_720
    assert {name: tree["kernel"].shape for name, tree in heads.items() if name != "face"} == {
        "real": (64, 1),
        "people": (64, 924),
    }
    assert parameters.count(heads) == 3_310_720 + 64 * 925
    condition = jnp.zeros((2, 64))
    made = jax.eval_shape(networks.generate, shapes, condition, condition)
    assert made.shape == (2, 64, 64, 3)
    judged, _ = jax.eval_shape(lambda *given: networks.judge(*given, None), shapes, made, condition)
    assert (judged.real.shape, judged.people.shape) == ((2,), (2, 924))


def transposed(x, kernel, stride, cut):
    """y[s i + k] += x[i] kernel[k], less `cut` at each end: the definition, loop by loop."""
    b, h, w, _ = x.shape
    taps = kernel.shape[0]
    size = [(n - 1) * stride + taps for n in (h, w)]
    y = np.zeros((b, *size, kernel.shape[3]))
    for i in range(h):
        for j in range(w):
            spread = np.einsum("bc,klcd->bkld", x[:, i, j], kernel)
            y[:, stride * i : stride * i + taps, stride * j : stride * j + taps] += spread
    return y[:, cut : size[0] - cut, cut : size[1] - cut]


def test_the_generator_of_voice2face_against_loops():
    net = published.Generator((3, 4, 2), 3)
    rng = np.random.default_rng(0)
    heard, noise = (rng.normal(size=(2, 5)).astype(np.float32) for _ in range(2))
    given = jnp.asarray(heard), jnp.asarray(noise)
    params = net.init(jax.random.key(0), *given)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
    x = heard + 0.05 * noise
    x = (x / np.linalg.norm(x, axis=1, keepdims=True))[:, None, None]
    for i, (stride, cut) in enumerate([(1, 0), (2, 1), (2, 1)]):
        layer = params[f"up_{i}"]
        # Flax's layer correlates with its kernel, so that its taps are turned round.
        kernel = np.asarray(layer["kernel"])[::-1, ::-1]
        x = np.maximum(transposed(x, kernel, stride, cut) + np.asarray(layer["bias"]), 0)
    x = x @ np.asarray(params["picture"]["kernel"])[0, 0] + np.asarray(params["picture"]["bias"])
    assert x.shape == (2, 16, 16, 3)
    # Sums of some dozens of float32 numbers of order 1.
    np.testing.assert_allclose(net.apply({"params": params}, *given), x, atol=1e-5)


def test_the_gradient_penalty_is_that_of_finite_differences():
    net = gan.Discriminator((8, 8), 4, 8)
    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    condition = rng.normal(size=(2, 4)).astype(np.float32)
    condition = jnp.asarray(condition)
    variables = net.init(jax.random.key(1), jnp.asarray(pictures), condition)

    def logits(x):
        return net.apply(variables, x, condition).real

    found = losses.gradient_penalty(logits, jnp.asarray(pictures))
    step = 1e-3
    moved = pictures[None] + step * np.eye(192, dtype=np.float32).reshape(192, 1, 8, 8, 3)
    both = jnp.concatenate([jnp.asarray(moved), jnp.asarray(2 * pictures[None] - moved)])
    values = np.asarray(jax.lax.map(logits, both), np.float64).reshape(2, 192, 2)
    slopes = (values[0] - values[1]) / (2 * step)
    # Differences of float32 logits of order 0.1 over 2e-3; the leaky units have kinks.
    np.testing.assert_allclose(found, np.square(slopes).sum(0), rtol=0.02)


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name != "began"])
def test_losses_fall_as_the_sides_get_what_they_want(name):
    game = losses.adversarial(name)
    logits = jnp.linspace(-0.9, 0.9, 7)  # least squares has its least at 1 and 0
    assert game.relative or (np.diff(game.real(logits)) < 0).all()
    assert (np.diff(game.fooled(logits)) < 0).all()
    rising = game.fake(logits if name != "least_squares" else jnp.abs(logits[3:]))
    assert (np.diff(rising) > 0).all()


def test_statistics_do_not_hear_the_level():
    config = voice.front_end(workdir.freeze(quickstart.get_config("debug")))
    rng = np.random.default_rng(0)
    audio = jnp.asarray(0.1 * rng.normal(size=(2, 8000)), jnp.float32)
    whole = jnp.full((2,), 8000)
    found = voice.statistics(audio, whole, config)
    # The floor of the log-mel spectrum is 1e-6, far below.
    np.testing.assert_allclose(voice.statistics(0.5 * audio, whole, config), found, atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 0.01
