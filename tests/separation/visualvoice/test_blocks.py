"""What the networks are made of, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from separation.visualvoice import attention, faces, layers, lips, shuffle, unet
from tests.separation.visualvoice.tiny import tiny


def randomised(variables, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32), variables
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolved(x, kernel, stride=1):
    """One picture; output (i, j) is centred on input (i, j) * stride, zeros outside."""
    k = kernel.shape[0]
    y = np.zeros((*(-(-size // stride) for size in x.shape[:2]), kernel.shape[-1]))
    for i, j, a, b in np.ndindex(*y.shape[:2], k, k):
        at, to = i * stride + a - k // 2, j * stride + b - k // 2
        if 0 <= at < x.shape[0] and 0 <= to < x.shape[1]:
            y[i, j] += x[at, to] @ kernel[a, b]
    return y


def reference(variables):
    """`normed(x, *names)`: of a module's running statistics."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)

    def normed(x, *names):
        params, stats = tree["params"], tree["batch_stats"]
        for name in names:
            params, stats = params[name], stats[name]
        params, stats = params["norm"], stats["norm"]
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    return tree["params"], normed


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_of_shufflenet(stride):
    unit = shuffle.Unit(tiny(), 8, stride)
    x = normal(2, 5, 6, 8)
    mask = jnp.array([1.0, 0.0]).reshape(2, 1, 1)
    shown = jnp.asarray(x).at[1].set(0.0)
    variables = randomised(unit.init(jax.random.key(0), shown, mask, train=False))
    got = unit.apply(variables, shown, mask, train=False)
    params, normed = reference(variables)

    def pointwise(x, name):
        return np.maximum(normed(x @ params[name]["conv"]["kernel"][0, 0], name), 0.0)

    def taps(x, name):
        kernel = params[name]["kernel"][:, :, 0]
        dense = np.stack([np.stack([np.diag(k) for k in row]) for row in kernel])
        return normed(convolved(x, dense, stride), name)

    if stride == 1:
        left, right = x[0, ..., :4], x[0, ..., 4:]
    else:
        left, right = pointwise(taps(x[0], "left_taps"), "left"), x[0]
    right = pointwise(taps(pointwise(right, "enter"), "taps"), "leave")
    for i in range(4):
        np.testing.assert_allclose(got[0, ..., 2 * i], left[..., i], atol=1e-5)
        np.testing.assert_allclose(got[0, ..., 2 * i + 1], right[..., i], atol=1e-5)
    assert not got[1].any()


def test_max_pool():
    x = normal(1, 5, 6, 2) - 3.0
    got = layers.max_pool(jnp.asarray(x))
    assert got.shape == (1, 3, 3, 2)
    for i, j in np.ndindex(3, 3):
        rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
        np.testing.assert_array_equal(got[0, i, j], x[0, rows, columns].max(axis=(0, 1)))


def test_resnet18():
    """One block a stage: stem, maximum, blocks, maximum of all, linear."""
    net = faces.ResNet18(tiny())
    x = normal(2, 13, 10, 3)
    x[1] = np.nan
    lengths = jnp.array([13, 0])
    variables = randomised(net.init(jax.random.key(0), jnp.zeros(x.shape), lengths, train=False))
    got = net.apply(variables, jnp.asarray(x), lengths, train=False)
    params, normed = reference(variables)

    def layer(x, stride, *names):
        found = params
        for name in names:
            found = found[name]
        return normed(convolved(x, found["conv"]["kernel"], stride), *names)

    y = np.maximum(layer(x[0], 2, "stem"), 0.0)
    y = np.asarray(layers.max_pool(jnp.asarray(y[None], jnp.float32)))[0]
    for stage, stride in ((1, 1), (2, 2)):
        name = f"stage{stage}_block1"
        inner = layer(np.maximum(layer(y, stride, name, "conv1"), 0.0), 1, name, "conv2")
        y = np.maximum(inner + (layer(y, stride, name, "shortcut") if stage == 2 else y), 0.0)
    last = params["embedding"]
    expected = y.max(axis=(0, 1)) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-5)
    assert not got[1].any()


def test_gradients_reach_the_largest_place():
    """As one program and operation by operation: where XLA computes x twice, places stay."""
    net = faces.ResNet18(tiny(face_widths=(16, 32)))
    x, direction = jnp.asarray(normal(2, 64, 64, 3)), normal(2, 5, seed=1)
    lengths = jnp.array([64, 64])
    variables = randomised(net.init(jax.random.key(0), x, lengths, train=False))

    def value(params):
        tree = {**variables, "params": params}
        found, _ = net.apply(tree, x, lengths, train=True, mutable=["batch_stats"])
        return jnp.sum(found * direction)

    gradient = jax.grad(value)
    found, expected = jax.jit(gradient)(variables["params"]), gradient(variables["params"])

    def close(one, other):
        # Rounding, of which normalisations make more; a place that is missed costs a tenth.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())

    jax.tree.map(close, found, expected)


def test_doubling_is_a_transposed_convolution():
    """Of 4 x 4 taps with a stride of 2, of which one is cut off on each side."""
    module = unet.Doubling(tiny(), 2)
    x = normal(1, 3, 4, 5)
    variables = randomised(module.init(jax.random.key(0), jnp.asarray(x)))
    got = module.apply(variables, jnp.asarray(x))
    params = variables["params"]
    kernel = np.asarray(params["conv"]["kernel"]).reshape(2, 2, 5, 2, 2, 2)
    side, phase = (1, 1, 0, 0), (1, 0, 1, 0)
    expected = np.zeros((8, 10, 2)) + np.asarray(params["bias"])
    for i, j, a, b in np.ndindex(3, 4, 4, 4):
        taps = kernel[side[a], side[b], :, phase[a], phase[b]]
        expected[2 * i + a, 2 * j + b] += x[0, i, j] @ taps
    assert got.shape == (1, 6, 8, 2)
    np.testing.assert_allclose(got[0], expected[1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_attention():
    module = attention.BottleneckAttention(2)
    x = normal(2, 5, 6)
    x[0, 3:] = 100.0
    mask = jnp.array([[1.0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    variables = randomised(module.init(jax.random.key(0), jnp.asarray(x), mask))
    got = module.apply(variables, jnp.asarray(x), mask)
    params = jax.tree.map(np.asarray, variables["params"])
    true = x[0, :3]
    heard = np.zeros((3, 6))
    parts = [true @ params[n]["kernel"] + params[n]["bias"] for n in ("query", "key", "value")]
    for head in (slice(0, 3), slice(3, 6)):
        query, key, value = (part[:, head] for part in parts)
        weights = np.exp(query @ key.T / np.sqrt(3))
        heard[:, head] = weights / weights.sum(axis=1, keepdims=True) @ value
    y = true + heard
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
    expected = y * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(got[0, :3], expected, rtol=1e-4, atol=1e-4)
    assert not got[0, 3:].any()
    assert not got[1].any()


def test_a_temporal_block_and_its_dropout():
    sizes = tiny(dropout=0.5)
    block = lips.TemporalBlock(sizes, 2)
    x = jnp.asarray(normal(2, 9, 6))
    mask = jnp.ones((2, 9)).at[1, 5:].set(0.0)
    x = x * mask[:, :, None]
    variables = randomised(block.init(jax.random.key(0), x, mask, None, train=False))
    whole = block.apply(variables, x, mask, None, train=False)
    alone = block.apply(variables, x[1:, :5], mask[1:, :5], None, train=False)
    np.testing.assert_allclose(whole[1, :5], alone[0], atol=1e-5)
    assert not whole[1, 5:].any()
    # Nine frames see those up to four away: two layers of three taps, two frames apart.
    moved = block.apply(variables, x.at[0, 0].add(1.0), mask, None, train=False)
    changed = np.abs(moved - whole)[0].max(axis=1) > 0
    np.testing.assert_array_equal(changed, [i in (0, 2, 4) for i in range(9)])

    def dropped(keys, x):
        return block.apply(variables, x, mask, keys, train=True, mutable=["batch_stats"])[0]

    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(dropped(keys, x), dropped(keys, x))
    assert np.abs(dropped(keys, x) - dropped(keys[::-1], x)).max() > 0.01
