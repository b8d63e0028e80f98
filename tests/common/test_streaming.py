"""`step(state, chunk) -> (state, out)`: chunks of any size give what the whole signal gives."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from common.audio import frontend, stft
from common.nn import conv, lstm, masking, norm

BATCH, UNITS, CHANNELS = 3, 12, 5
# The second row ends within a chunk, the third is a padded row.
SHARES = np.array([1.0, 0.6, 0.0])


class Case(NamedTuple):
    """`step` takes multiples of `unit` frames or samples; `whole` returns the same outputs."""

    initial: Callable[[int], Any]  # rows -> state
    step: Callable[[Any, Any], tuple[Any, Any]]
    whole: Callable[[Any, Any], Any]  # x, lengths
    unit: int = 1
    shape: tuple[int, ...] = (CHANNELS,)
    stride: int = 1  # frames or samples in for one out

    def inputs(self):
        """Rubbish beyond the ends where the layer itself puts zeros."""
        frames = UNITS * self.unit
        x = np.random.default_rng(0).normal(size=(BATCH, frames, *self.shape)).astype(np.float32)
        lengths = np.round(SHARES * frames).astype(np.int32)
        if not self.shape:  # audio is zero beyond its end, by contract
            x = np.where(np.arange(frames)[None] < lengths[:, None], x, 0)
        return x, lengths


def transform(**options):
    config = stft.StftConfig(num_fft=64, window_size=50, hop_size=16, **options)

    def whole(x, lengths):
        del lengths
        late = jnp.pad(x, ((0, 0), (config.delay_frames * config.hop_size, 0)))
        spectrum = stft.stft(late, config)[:, :UNITS]
        return stft.Spectrum(spectrum.real, spectrum.imag)

    return Case(
        functools.partial(stft.stft_state, config=config),
        functools.partial(stft.stft_step, config=config),
        whole,
        unit=config.hop_size,
        shape=(),
        stride=config.hop_size,
    )


def inverse(**options):
    """Of any spectrum, not of one that is a signal's; x holds the real and the imaginary part."""
    config = stft.StftConfig(num_fft=64, window_size=50, hop_size=20, **options)
    lead = config.delay_samples - config.delay_frames * config.hop_size
    # Where the frames before the first one are missing, the whole divides by fewer windows.
    start = config.delay_frames * config.hop_size + lead

    def step(state, x):
        real, imag = x[..., 0], x[..., 1]
        return stft.istft_step(state, stft.Spectrum(real, imag), config)

    def whole(x, lengths):
        del lengths
        spectrum = jax.lax.complex(x[..., 0], x[..., 1])
        size = UNITS * config.hop_size
        audio = stft.istft(spectrum, config, num_samples=size)
        return (
            jnp.pad(audio, ((0, 0), (lead, 0)), constant_values=jnp.nan)[:, :size]
            .at[:, :start]
            .set(jnp.nan)
        )

    return Case(
        functools.partial(stft.istft_state, config=config), step, whole, shape=(config.num_bins, 2)
    )


def convolution(layer):
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 4, CHANNELS)), jnp.array([4]))

    def step(state, x):
        return layer.apply(variables, state, x, method="step")

    def whole(x, lengths):
        return layer.apply(variables, x, lengths)[0]

    return Case(
        lambda rows: layer.initial_state(rows, CHANNELS),
        step,
        whole,
        unit=layer.stride,
        stride=layer.stride,
    )


def batch_norm():
    layer = norm.MaskedBatchNorm()
    keys = iter(jax.random.split(jax.random.key(0), 4))
    variables = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape),
        layer.init(jax.random.key(1), jnp.zeros((1, 4, CHANNELS)), train=False),
    )

    def whole(x, lengths):
        return layer.apply(variables, x, masking.length_mask(lengths, UNITS), train=False)

    return Case(
        lambda rows: (), lambda state, x: (state, layer.apply(variables, x, train=False)), whole
    )


def causal_norm():
    return Case(
        lambda rows: norm.causal_norm_state(rows, CHANNELS),
        functools.partial(norm.causal_norm_step, memory=4),
        functools.partial(norm.causal_norm, memory=4),
    )


def recurrence():
    layer = lstm.LSTM(4)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 4, CHANNELS)))

    def step(state, x):
        y, state = layer.apply(variables, x, None, state)
        return state, y

    def whole(x, lengths):
        return layer.apply(variables, x, lengths)[0]

    return Case(lambda rows: lstm.zero_state(rows, 4), step, whole)


CASES = {
    "stft": transform,
    "stft_whole_frames": lambda: transform(center=False),
    "stft_matmul": lambda: transform(dft="matmul"),
    "istft": inverse,
    "istft_whole_frames": lambda: inverse(center=False),
    "istft_matmul": lambda: inverse(dft="matmul"),
    "depthwise": lambda: convolution(conv.DepthwiseConv(5, stride=2, causal=True)),
    "depthwise_long": lambda: convolution(conv.DepthwiseConv(40, causal=True)),
    "conv": lambda: convolution(conv.Conv(4, 3, stride=2, causal=True, use_bias=True, dilation=2)),
    "conv_bfloat16": lambda: convolution(conv.Conv(4, 3, causal=True, dtype=jnp.bfloat16)),
    "one_tap": lambda: convolution(conv.Conv(4, 1, causal=True)),
    "batch_norm": batch_norm,
    "causal_norm": causal_norm,
    "lstm": recurrence,
}


@pytest.mark.parametrize("name", CASES)
def test_chunks_equal_whole(name):
    case = CASES[name]()
    x, lengths = case.inputs()
    expected = jax.jit(case.whole)(x, lengths)
    traced = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, chunk):
        traced.append(chunk.shape)
        return case.step(state, chunk)

    # The last line reuses the programs of the first two.
    for sizes in ((1,) * 12, (3,) * 4, (12,), (3, 1, 1, 3, 3, 1)):
        state = case.initial(BATCH)
        form = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        assert all(leaf.shape[0] == BATCH for leaf in jax.tree.leaves(state))
        outputs, start = [], 0
        for size in sizes:
            chunk = x[:, start * case.unit : (start + size) * case.unit]
            state, y = step(state, chunk)
            outputs.append(y)
            start += size
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == form
        found = jax.tree.map(lambda *parts: np.concatenate(parts, 1), *outputs)
        jax.tree.map(functools.partial(assert_same, case, lengths), found, expected)
    assert len(traced) == 3  # one program for each size of a chunk


def assert_same(case, lengths, found, expected):
    """In the frames within each row's length; NaN in the whole is where it says nothing.

    The sums are the same ones, of at most 64 terms, but XLA may add them in another order: a few
    roundings of float32, or of bfloat16 one step at the end.
    """
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    rounding = 2**-7 if found.dtype == jnp.bfloat16 else 1e-6
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    known = ~np.isnan(expected)
    if case.shape == (CHANNELS,):
        inside = np.arange(found.shape[1])[None] < -(-lengths // case.stride)[:, None]
        known &= inside[:, :, None]
    assert known.any()
    scale = np.abs(expected[known]).max()
    np.testing.assert_allclose(found[known], expected[known], rtol=0, atol=rounding * scale)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_traced_for_any_number_of_rows(name):
    """As an export needs it: no comparison in Python hangs on the batch."""
    case = CASES[name]()
    (rows,) = export.symbolic_shape("b")
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), case.initial(1)
    )
    chunk = jax.ShapeDtypeStruct((rows, 3 * case.unit, *case.shape), jnp.float32)
    exported = export.export(jax.jit(case.step))(state, chunk)
    assert [leaf.shape[0] for leaf in exported.out_avals] == [rows] * len(exported.out_avals)
    if name.endswith("matmul"):
        assert "complex" not in exported.mlir_module()


def both(config, states, chunk):
    """The transform and its inverse, over a stream."""
    first, spectrum = stft.stft_step(states[0], chunk, config)
    second, audio = stft.istft_step(states[1], spectrum, config)
    return (first, second), audio


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dft", ["fft", "matmul"])
def test_a_stream_through_both_transforms_is_the_signal_late(dft, center):
    config = stft.StftConfig(num_fft=64, window_size=50, hop_size=16, dft=dft, center=center)
    assert config.delay_samples == (32 + 16 if center else 48)
    audio = np.random.default_rng(1).uniform(-1, 1, (2, 160)).astype(np.float32)
    states = stft.stft_state(2, config), stft.istft_state(2, config)
    step = jax.jit(functools.partial(both, config))
    played = []
    for start in range(0, 160, 32):
        states, out = step(states, audio[:, start : start + 32])
        played.append(out)
    expected = np.pad(audio, ((0, 0), (config.delay_samples, 0)))[:, :160]
    # Two transforms of 64 points, and the window divided out where windows overlap by two thirds.
    np.testing.assert_allclose(np.concatenate(played, 1), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("size", "synthesis", "hop"), [(64, 24, 12), (60, 24, 12), (64, 32, 8)])
def test_windows_that_are_not_symmetric_are_exact_and_less_late(size, synthesis, hop, center):
    """1e-6 of samples up to 1. Late by no more than the synthesis window where hops divide both."""
    config = stft.StftConfig(
        num_fft=size, window_size=size, hop_size=hop, window="sqrt_hann", center=center,
        synthesis_size=synthesis,
    )  # fmt: skip
    if size % hop == 0 and not center:
        assert config.delay_samples + hop == synthesis
    count = 20 * hop
    audio = np.random.default_rng(1).uniform(-1, 1, (2, count)).astype(np.float32)
    states, parts = (stft.stft_state(2, config), stft.istft_state(2, config)), []
    step = jax.jit(functools.partial(both, config))
    for start in range(0, count, 4 * hop):
        states, out = step(states, audio[:, start : start + 4 * hop])
        parts.append(out)
    late = config.delay_samples
    expected = np.pad(audio, ((0, 0), (late, 0)))[:, :count]
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=0, atol=1e-6)
    whole = jax.jit(lambda x: stft.istft(stft.stft(x, config), config, num_samples=count))
    found = whole(audio)
    known = slice(config.unheard + synthesis, count - size)
    np.testing.assert_allclose(found[:, known], audio[:, known], rtol=0, atol=1e-6)


def test_transform_as_a_product_equals_the_fft():
    audio = jax.random.normal(jax.random.key(2), (2, 300))
    found = {}
    for dft in ("fft", "matmul"):
        config = stft.StftConfig(num_fft=63, window_size=50, hop_size=16, dft=dft)
        spectrum = stft.stft(audio, config)
        found[dft] = spectrum, stft.istft(spectrum * 1j, config, num_samples=290)
    for a, b in zip(*found.values()):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max())
    with pytest.raises(ValueError, match="fft or matmul"):
        stft.StftConfig(dft="slow")


def test_causal_norm_against_sums():
    """The mean and deviation of the frames so far; of a long stream, with exponential weights."""
    x, lengths = 3 + 2 * np.random.default_rng(3).normal(size=(2, 30, 4)), np.array([30, 11])
    found = norm.causal_norm(jnp.asarray(x, jnp.float32), jnp.asarray(lengths, jnp.int32), 8)
    for row, length in enumerate(lengths):
        for i in range(length):
            weights = np.ones(1)
            for n in range(1, i + 1):
                rate = 1 / min(n + 1, 8)
                weights = np.append(weights * (1 - rate), rate)
            seen = x[row, : i + 1]
            mean = weights @ seen
            deviation = np.sqrt(weights @ (seen - mean) ** 2 + 1e-5)
            np.testing.assert_allclose(
                found[row, i], (x[row, i] - mean) / deviation, rtol=1e-4, atol=1e-4
            )
    assert np.all(np.asarray(found)[1, 11:] == 0)
    with pytest.raises(ValueError, match="memory"):
        norm.causal_norm(jnp.zeros((1, 2, 3)), jnp.array([2]), 0)


def test_causal_front_end():
    audio = jax.random.normal(jax.random.key(4), (1, 1600))
    lengths = jnp.array([1600], jnp.int32)
    plain = frontend.LogMelConfig(normalize="none")
    features, frames = frontend.log_mel(audio, lengths, plain)
    found, _ = frontend.log_mel(audio, lengths, frontend.LogMelConfig(normalize="causal"))
    np.testing.assert_allclose(found, norm.causal_norm(features, frames), atol=1e-5)


def test_what_cannot_stream_says_so():
    layer = conv.Conv(4, 3)
    x = jnp.zeros((1, 4, CHANNELS))
    variables = layer.init(jax.random.key(0), x, jnp.array([4]))
    with pytest.raises(ValueError, match="causal=True"):
        layer.apply(variables, layer.initial_state(1, CHANNELS), x, method="step")
    layer = conv.DepthwiseConv(3, stride=2, causal=True)
    state = layer.initial_state(1, CHANNELS)
    with pytest.raises(ValueError, match="3 frames is no multiple of stride 2"):
        layer.init(jax.random.key(0), state, x[:, :3], method="step")
    config = stft.StftConfig(num_fft=64, window_size=50, hop_size=16)
    with pytest.raises(ValueError, match="20 samples is no multiple of 16"):
        stft.stft_step(stft.stft_state(1, config), jnp.zeros((1, 20)), config)
