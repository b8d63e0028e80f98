"""Networks of pictures: their parameters counted by hand, their layers and losses against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, parallel, parameters
from configs.generation import cifar10
from generation import asariri, blocks, diff_augment, losses, r3gan, residual, sides


def dense(inside, outside):
    return inside * outside + outside


def conv(taps, inside, outside):
    return taps * taps * inside * outside + outside


def norm(channels):
    return 2 * channels


def count(net, *sizes):
    given = [jnp.zeros((1, *size)) for size in sizes]
    return parameters.count(jax.eval_shape(net.init, jax.random.key(0), *given)["params"])


def test_asariri_at_32_by_32_has_the_published_numbers_of_parameters():
    """640 cepstra and 100 numbers of noise: 28.0 M and 63.5 M, 3.5 M of cgan's discriminator."""
    heard, noise, grey = (640,), (100,), (32, 32, 1)
    vanilla = [norm(740), dense(740, 8 * 8 * 512), conv(5, 512, 256), norm(256)]
    vanilla += [conv(5, 256, 64), norm(64), conv(5, 64, 32), norm(32), conv(5, 32, 1)]
    assert count(asariri.Generator(32), heard, noise) == sum(vanilla)
    assert round(sum(vanilla) / 1e6, 1) == 28.0
    large = [norm(740), dense(740, 8 * 8 * 1024), conv(5, 1024, 512), norm(512)]
    large += [conv(5, 512, 128), norm(128), conv(5, 128, 64), norm(64), conv(5, 64, 1)]
    cgan = asariri.Generator(32, most=1024, normalize_last=True)
    assert count(cgan, heard, noise) == sum(large)
    assert round(sum(large) / 1e6, 1) == 63.5
    layers = [conv(5, 1, 64), conv(5, 64, 128), conv(5, 128, 256), norm(128), norm(256)]
    assert count(asariri.Discriminator(), grey, heard) == sum(layers) + dense(4 * 4 * 256, 1)
    hearing = asariri.Discriminator(conditional=True)
    for size in (640, 740):  # the voice alone; and with the noise, as there
        last = [norm(64), dense(4 * 4 * 256 + size, 512), dense(512, 1)]
        assert count(hearing, grey, (size,)) == sum(layers) + sum(last)
        assert round((sum(layers) + sum(last)) / 1e6, 1) == 3.5
    code = [conv(4, 1, 64), dense(16 * 16 * 64, 32), norm(32), dense(32, 16 * 16 * 64)]
    code += [norm(16 * 16 * 64), conv(4, 64, 1)]
    assert count(asariri.Autoencoder(), grey, heard) == sum(code)


def test_sngan_has_the_published_layers():
    """Miyato et al. 2018, table 4, with 256 and 128 channels and tables of ten classes."""
    found = cifar10.get_config().model
    generator = residual.Generator(32, 3, found.width, found.most)
    block = 2 * conv(3, 256, 256) + conv(1, 256, 256) + 2 * 2 * 10 * 256
    assert count(generator, (10,), (found.noise,)) == (
        dense(128, 4 * 4 * 256) + 3 * block + norm(256) + conv(3, 256, 3)
    )
    judge = residual.Discriminator(32, found.discriminator_width, found.discriminator_most)
    first = conv(3, 3, 128) + conv(3, 128, 128) + conv(1, 3, 128)
    second = 2 * conv(3, 128, 128) + conv(1, 128, 128)
    flat = 2 * conv(3, 128, 128)
    assert count(judge, (32, 32, 3), (10,)) == (
        first + second + 2 * flat + dense(128, 1) + 10 * 128
    )


def test_r3gan_begins_as_its_shortcuts_and_groups_sixteen_channels():
    net = r3gan.Discriminator(8, width=32, most=32)
    pictures, heard = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4))
    params = net.init(jax.random.key(0), pictures, heard)["params"]
    assert params["block_0_0"]["grouped"]["kernel"].shape == (3, 3, 16, 64)
    assert not np.any(params["block_0_0"]["out"]["kernel"])
    x = np.asarray(pictures) @ np.asarray(params["picture"]["kernel"])
    x = np.asarray(r3gan.downsampled(jnp.asarray(x)))
    h = (x * np.asarray(params["basis"])).sum((1, 2)) @ np.asarray(params["real"]["kernel"])
    side = np.asarray(heard) @ np.asarray(params["heard"]["kernel"])
    judged = net.apply({"params": params}, pictures, heard)
    np.testing.assert_allclose(judged.real, (h * side).sum(1) / 32**0.5, rtol=1e-4)


def test_resampling_is_the_filter_one_two_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    taps = np.array([1, 2, 1]) / 2
    # Zeros between the pixels, two before them all and one behind.
    whole = np.zeros((2, 10, 14, 3))
    whole[:, 2:-1:2, 2:-1:2] = x
    rows = sum(t * whole[:, k : k + 8] for k, t in enumerate(taps))
    both = sum(t * rows[:, :, k : k + 12] for k, t in enumerate(taps))
    np.testing.assert_allclose(r3gan.upsampled(jnp.asarray(x)), both, atol=1e-6)
    # The adjoint: <up(x), y> = 4 <x, down(y)>.
    y = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    down = np.asarray(r3gan.downsampled(jnp.asarray(y)), np.float64)
    assert (both * y).sum() == pytest.approx(4 * (x * down).sum(), rel=1e-4)


def test_the_spectral_norm_is_that_of_the_singular_values():
    layer = blocks.Conv(6, 3, spectral=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 4)), jnp.float32)
    variables = layer.init(jax.random.key(0), x, train=False)
    params = variables["params"]

    @jax.jit
    def step(variables, _):
        y, new = layer.apply(variables, x, train=True, mutable=[blocks.SPECTRAL])
        return {**variables, **new}, y

    variables, _ = jax.lax.scan(step, variables, length=200)
    kernel = np.asarray(params["kernel"], np.float64)
    left, values, right = np.linalg.svd(kernel.reshape(-1, 6), full_matrices=False)
    plain = blocks.Conv(6, 3)
    scaled = {"params": {**params, "kernel": params["kernel"] / values[0]}}
    found = layer.apply(variables, x, train=False)
    np.testing.assert_allclose(found, plain.apply(scaled, x, train=False), atol=1e-5)

    # d(W / s) = dW / s - W / s^2 <u v^T, dW>, the vectors being constants.
    weights = np.random.default_rng(1).normal(size=found.shape).astype(np.float32)

    def value(layer, rest, kernel):
        given = {**rest, "params": {**params, "kernel": kernel}}
        return jnp.sum(layer.apply(given, x, train=False) * weights)

    state = {blocks.SPECTRAL: variables[blocks.SPECTRAL]}
    gradient = jax.grad(functools.partial(value, layer, state))(params["kernel"])
    inner = jax.grad(functools.partial(value, plain, {}))(params["kernel"])
    inner, outer = np.asarray(inner, np.float64), np.outer(left[:, 0], right[0])
    along = (inner * kernel).sum() / values[0] ** 2
    expected = inner / values[0] - along * outer.reshape(kernel.shape)
    np.testing.assert_allclose(gradient, expected, atol=1e-3)


def test_the_relativistic_loss_by_hand():
    game = losses.adversarial("relativistic")
    real, fake = np.array([2.0, -1.0]), np.array([0.5, 1.0])
    above = jnp.asarray(fake - real)
    expected = -np.log(1 / (1 + np.exp(-(real - fake))))  # the real one is the more real
    np.testing.assert_allclose(game.fake(above), expected, rtol=1e-6)
    expected = -np.log(1 / (1 + np.exp(-(fake - real))))
    np.testing.assert_allclose(game.fooled(above), expected, rtol=1e-6)
    assert game.relative
    assert not losses.adversarial("hinge").relative


def test_the_balance_of_began_by_hand():
    """k' = k + 0.1 (0.75 L(x) - L(G(z))), between 0 and 1; M = L(x) + |0.75 L(x) - L(G(z))|."""
    k, rows = jnp.float32(0.0), ((1.0, 0.25), (0.8, 0.2), (0.4, 0.9))
    expected = ((0.05, 1.5), (0.09, 1.2), (0.03, 1.0))
    for (real, fake), (after, convergence) in zip(rows, expected):
        k, measure = losses.balanced(k, jnp.float32(real), jnp.float32(fake), 0.75, 0.1)
        assert float(k) == pytest.approx(after)
        assert float(measure) == pytest.approx(convergence)
    assert float(losses.balanced(k, jnp.float32(0.0), jnp.float32(9.0), 0.75, 0.1)[0]) == 0
    assert float(losses.balanced(k, jnp.float32(99.0), jnp.float32(0.0), 0.75, 0.1)[0]) == 1


ROWS = parallel.row_keys(jax.random.key(3), jnp.arange(6))


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_a_function_of_the_row_and_nothing_at_strength_0(channels):
    rng = np.random.default_rng(0)
    pictures = jnp.asarray(rng.uniform(-1, 1, (6, 16, 16, channels)), jnp.float32)
    kinds = tuple(diff_augment.KINDS)
    changed = jax.jit(lambda x, keys: diff_augment.augmented(x, keys, kinds))
    whole = changed(pictures, ROWS)
    np.testing.assert_array_equal(diff_augment.augmented(pictures, ROWS, kinds, 0.0), pictures)
    np.testing.assert_array_equal(diff_augment.augmented(pictures, ROWS, ()), pictures)
    np.testing.assert_allclose(changed(pictures[3:], ROWS[3:]), whole[3:], atol=1e-6)
    assert np.abs(changed(pictures, ROWS[::-1]) - whole).max() > 0.1
    # Every row is moved otherwise, and its gradient comes through where nothing was cut out.
    gradient = jax.grad(lambda x: jnp.sum(changed(x, ROWS)))(pictures)
    seen = np.abs(gradient).max((1, 2, 3))
    assert np.isfinite(np.asarray(gradient)).all()
    assert (seen > 0).all()


def test_each_augmentation_does_what_it_says():
    """Of a ramp and a flat picture, whose pixels tell where they come from."""
    ramp = jnp.tile(jnp.arange(1.0, 257.0).reshape(1, 16, 16, 1), (6, 1, 1, 1))
    for found in np.asarray(diff_augment.augmented(ramp, ROWS, ("translation",))):
        rows, columns = np.nonzero(found[:, :, 0])
        value = int(found[rows[0], columns[0], 0]) - 1
        down, right = rows[0] - value // 16, columns[0] - value % 16
        assert max(abs(down), abs(right)) <= 2  # an eighth of 16
        expected = np.zeros((16, 16))
        for i in range(16):
            for j in range(16):
                if 0 <= i - down < 16 and 0 <= j - right < 16:
                    expected[i, j] = 16 * (i - down) + (j - right) + 1
        np.testing.assert_array_equal(found[:, :, 0], expected)
    for found in np.asarray(diff_augment.augmented(ramp, ROWS, ("cutout",)))[:, :, :, 0]:
        gone = found == 0
        height, width = gone.any(1).sum(), gone.any(0).sum()
        assert gone.sum() == height * width
        assert 4 <= min(height, width) <= max(height, width) <= 8  # half of 16, less at an edge
        np.testing.assert_array_equal(found[~gone], np.asarray(ramp[0, :, :, 0])[~gone])
    tint = jnp.tile(jnp.asarray([0.3, -0.1, 0.1]).reshape(1, 1, 1, 3), (6, 16, 16, 1))
    found = np.asarray(diff_augment.augmented(tint, ROWS, ("colour",)), np.float64)
    assert np.abs(found - found[:, :1, :1]).max() < 1e-6  # flat as before
    means, spread = found.mean((1, 2, 3)), found[:, 0, 0, 0] - found[:, 0, 0, 1]
    assert np.abs(means - 0.1).max() <= 0.5
    assert (spread >= 0).all()
    assert spread.max() <= 0.4 * 2 * 1.5
    assert np.ptp(means) > 0.1
    assert np.ptp(spread) > 0.1


def test_unknown_augmentations_are_said():
    with pytest.raises(errors.UserError, match="color is unknown; choose of colour, translation"):
        diff_augment.check(("color", "cutout"), 1.0)
    with pytest.raises(errors.UserError, match="augment_strength=2"):
        diff_augment.check((), 2.0)


def test_padding_rows_do_not_count_and_evaluations_are_by_running_statistics():
    """cgan in small: what stands in masked rows changes nothing of the real ones."""
    rng = np.random.default_rng(0)
    net = asariri.Generator(28, most=16, normalize_last=True)
    heard, noise = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    variables = net.init(jax.random.key(0), heard, noise)
    training = sides.Training(jnp.array([True, True, True, False]), ROWS[:4])

    @jax.jit
    def train(variables, heard):
        return net.apply(variables, heard, noise, training, mutable=["batch_stats"])

    made, new = train(variables, heard)
    other, _ = train(variables, heard.at[3].set(9.0))
    np.testing.assert_array_equal(made[:3], other[:3])
    apart, _ = train(variables, heard.at[2].set(9.0))
    assert np.abs(apart[0] - made[0]).max() > 1e-4  # of the batch
    z = np.concatenate([heard, noise], axis=1)[:3]
    mean = new["batch_stats"]["norm_z"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * z.mean(0), atol=1e-6)
    evaluate = jax.jit(lambda heard: net.apply({**variables, **new}, heard, noise))
    whole = evaluate(heard)
    np.testing.assert_array_equal(evaluate(heard.at[2].set(9.0))[0], whole[0])


def test_half_is_dropped_in_training_alone():
    net = asariri.Discriminator(4)
    pictures = jnp.tile(jnp.linspace(-1, 1, 28)[None, :, None, None], (4, 1, 28, 1))
    heard = jnp.zeros((4, 2))
    variables = net.init(jax.random.key(0), pictures, heard)

    @jax.jit
    def train(keys):
        training = sides.Training(jnp.ones(4, bool), keys)
        return net.apply(variables, pictures, heard, training, mutable=["batch_stats"])[0].real

    found = np.asarray(train(ROWS[:4]))
    assert len(np.unique(found)) == 4  # of equal pictures, each row by its own key
    assert len(np.unique(net.apply(variables, pictures, heard).real)) == 1
    np.testing.assert_array_equal(found, train(ROWS[:4]))
