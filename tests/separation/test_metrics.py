"""SI-SDR and BSS Eval against mir_eval, least squares in the open, and known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from separation import metrics

# mir_eval 0.8.2, separation.bss_eval_sources(references, estimates, compute_permutation=False) of
# `mixed()`.
MIR_EVAL = {"sdr": (14.0200, 14.2726), "sir": (19.5454, 20.1143), "sar": (15.4958, 15.6254)}


def mixed() -> tuple[np.ndarray, np.ndarray]:
    """(references, estimates): two noises of low pass, each in the other at -20 dB, and hiss."""
    rng = np.random.default_rng(0)
    references = scipy.signal.lfilter([1], [1, -0.9], rng.normal(size=(2, 32000)))
    leaked = references + 0.1 * references[::-1]
    return references, leaked + 0.17 * np.std(references) * rng.normal(size=leaked.shape)


def brute_force(estimate: np.ndarray, sources: np.ndarray, taps: int) -> list[float]:
    """The decomposition by least squares on the matrix of all delayed sources of target 0."""
    late = [scipy.linalg.toeplitz(np.pad(s, (0, taps - 1)), np.zeros(taps)) for s in sources]
    goal = np.pad(estimate, (0, taps - 1))
    own, whole = (a @ np.linalg.lstsq(a, goal)[0] for a in (late[0], np.concatenate(late, axis=1)))
    pairs = ((own, goal - own), (own, whole - own), (whole, goal - whole))
    return [10 * np.log10(np.sum(a**2) / np.sum(b**2)) for a, b in pairs]


def test_bss_eval_is_that_of_mir_eval():
    references, estimates = mixed()
    for place, estimate in enumerate(estimates):
        found = metrics.bss_eval(estimate, references, place)
        for name, values in MIR_EVAL.items():
            assert getattr(found, name) == pytest.approx(values[place], abs=1e-4)


def test_bss_eval_is_least_squares_on_delayed_sources():
    rng = np.random.default_rng(1)
    sources = rng.normal(size=(3, 200))
    estimate = np.convolve(sources[0], [0.0, 1.0, -0.5])[:200] + 0.3 * sources[1]
    estimate += 0.1 * rng.normal(size=200)
    found = metrics.bss_eval(estimate, sources, taps=8)
    np.testing.assert_allclose(found, brute_force(estimate, sources, 8), atol=1e-8)
    silent = np.insert(sources, 1, 0.0, axis=0)  # a source that says nothing changes nothing
    np.testing.assert_allclose(metrics.bss_eval(estimate, silent, taps=8), found, atol=1e-8)
    assert np.isnan(metrics.bss_eval(estimate, silent, 1, taps=8)).all()
    twice = np.concatenate([sources, sources[1:2]])  # nor one that is there twice
    np.testing.assert_allclose(metrics.bss_eval(estimate, twice, taps=8), found, atol=1e-6)


def test_rows_of_a_padded_batch_are_worth_what_they_are_alone():
    """Both batched metrics in float32, of speech-like signals, with rubbish in the padding."""
    rng = np.random.default_rng(2)
    lengths, taps = jnp.array([900, 600, 700, 0]), 64
    noise = scipy.signal.lfilter([1], [1, -0.95], rng.normal(size=(4, 1000, 3)), axis=1)
    noise[2, :, 1] = 0.0
    noise *= np.array([1.0, 30.0, 0.01, 1.0])[:, None, None]
    target = np.array([0, 2, 1, 0], np.int32)
    estimate = noise[:, :, 0] + 0.2 * noise[:, :, 2]
    estimate += 0.05 * np.std(noise, axis=(1, 2))[:, None] * rng.normal(size=(4, 1000))
    bss = jax.jit(metrics.batched_bss_eval, static_argnames="taps")
    found = bss(jnp.float32(estimate), jnp.float32(noise), lengths, target, taps=taps)
    sdr = metrics.batched_si_sdr(jnp.float32(estimate), jnp.float32(noise[:, :, 0]), lengths)
    for row, length in enumerate(lengths[:3]):
        own, sources = estimate[row, :length], noise[row, :length].T
        alone = metrics.bss_eval(own, sources, int(target[row]), taps)
        np.testing.assert_allclose([x[row] for x in found], alone, atol=2e-3)
        np.testing.assert_allclose(sdr[row], metrics.si_sdr(own, sources[0]), atol=1e-3)
    assert np.isnan(found.sdr[2])  # its target is silent
    assert np.isfinite(sdr).all()  # of nothing at all: a number, or training would end


def test_si_sdr_has_the_ratio_that_was_mixed():
    time = np.arange(8000) / 8000
    target, other = np.sin(2 * np.pi * 50 * time), np.sin(2 * np.pi * 70 * time)
    estimate = 7.0 * (target + 10 ** (-12 / 20) * other) + 3.0  # scale and offset do not count
    assert metrics.si_sdr(estimate, target) == pytest.approx(12.0, abs=1e-9)
    assert metrics.si_sdr(-2 * target, target) > 200
    assert metrics.si_sdr(0 * target, target) == -np.inf
    assert np.isnan(metrics.si_sdr(target, 0 * target))
    length = jnp.array([8000])
    perfect = metrics.batched_si_sdr(jnp.float32(target)[None], jnp.float32(target)[None], length)
    assert 90 < perfect[0] <= 100.1
    gradient = jax.grad(lambda x: metrics.batched_si_sdr(x, x * 0 + 1.0, length)[0])
    assert np.isfinite(gradient(jnp.zeros((1, 8000)))).all()
