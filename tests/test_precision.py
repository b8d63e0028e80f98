"""What is no layer of a model computes in all of float32 on every device.

A GPU multiplies float32 matrices in TF32 (10 bits) and a TPU in bfloat16 (8 bits) unless the
program asks for more: a mel band, a mean over frames or a cosine would be off in the third digit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from asr import filterbank
from common.audio import augment, frontend, kaldi, mel, stft
from common.nn import lowrank, masking, norm
from speaker import margins, pooling

AUDIO, LENGTHS = jnp.zeros((2, 4000)), jnp.array([4000, 3000], jnp.int32)
FRAMES, FRAME_LENGTHS = jnp.zeros((2, 9, 6)), jnp.array([9, 4], jnp.int32)
LOG_MEL = frontend.LogMelConfig()
STFT = stft.StftConfig(num_fft=64, window_size=64, hop_size=16, dft="matmul")


def keys():
    return jax.random.split(jax.random.key(0), 2)


def learned_bank(rank):
    module = filterbank.Filterbank(filterbank.FilterbankConfig(rank=rank, normalize="batch"))

    def run(audio):
        variables = module.init(jax.random.key(0), audio, LENGTHS, train=False)
        statistics = variables["batch_stats"]

        def total(params):
            y, _ = module.apply(
                {"params": params, "batch_stats": statistics},
                audio,
                LENGTHS,
                train=True,
                mutable=["batch_stats"],
            )
            return y[0].sum()

        return jax.grad(total)(variables["params"])

    return run


def batch_norm(x):
    mask = masking.float_mask(FRAME_LENGTHS, 9)
    ones = jnp.ones(6)
    return jax.grad(lambda x: norm.normalize_batch(x, mask, ones, ones, 1e-5, None)[0].sum())(x)


def scores(x):
    config = margins.MarginConfig()
    labels = jnp.zeros(2, jnp.int32)
    return jax.grad(
        lambda x: margins.margin_loss(config, x, jnp.ones((5, 6)), labels, 0.2, 32.0).loss.sum()
    )(x)


CASES = {
    "log_mel": (lambda x: frontend.log_mel(x, LENGTHS, LOG_MEL), AUDIO),
    "mfcc": (lambda x: frontend.mfcc(x, LENGTHS, frontend.MfccConfig()), AUDIO),
    "kaldi_fbank": (lambda x: kaldi.fbank(x, LENGTHS, kaldi.KaldiConfig()), AUDIO),
    "kaldi_mfcc": (lambda x: kaldi.mfcc(x, LENGTHS, kaldi.KaldiConfig()), AUDIO),
    "stft": (lambda x: stft.stft_step(stft.stft_state(2, STFT), x, STFT), AUDIO),
    "istft": (
        lambda x: stft.istft_step(stft.istft_state(2, STFT), stft.Spectrum(x, x), STFT),
        jnp.zeros((2, 3, 33)),
    ),
    "mel_to_power": (
        lambda x: mel.mel_to_power(x, LOG_MEL.filter_bank()),
        jnp.zeros((1, 3, LOG_MEL.num_mels)),
    ),
    "warp": (
        lambda x: augment.warp_frequency(x, keys(), np.linspace(100, 7000, 6), (0.8, 1.2)),
        FRAMES,
    ),
    "learned_bank": (learned_bank(None), AUDIO),
    "learned_bank_of_low_rank": (learned_bank(4), AUDIO),
    "float_mask": (lambda x: x * masking.float_mask(FRAME_LENGTHS, 9)[:, :, None], FRAMES),
    "masked_mean": (
        jax.grad(lambda x: masking.masked_mean(x, FRAME_LENGTHS).sum()),
        FRAMES,
    ),
    "batch_norm": (batch_norm, FRAMES),
    "pooling": (lambda x: pooling.statistics(x, FRAME_LENGTHS, pooling.STATISTICS), FRAMES),
    "margin_scores": (scores, FRAMES[:, 0]),
    "merged_pointwise": (
        lambda v: lowrank.merge_pointwise({"v": v, "u": jnp.ones((6, 4))}),
        FRAMES[0],
    ),
    "merged_conv": (
        lambda x: lowrank.merge_conv({"spectral": x, "temporal": x}, 2),
        FRAMES[0],
    ),
    "impulse_responses": (
        lambda x: filterbank.impulse_responses({"basis": x, "mixing": jnp.ones((6, 4))}),
        FRAMES[0],
    ),
}


def precisions(jaxpr):
    """Of every product and convolution, those in loops and branches included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for part in core.jaxprs_in_params(equation.params):
            yield from precisions(part)


@pytest.mark.parametrize("name", CASES)
def test_products_are_of_highest_precision(name):
    fn, argument = CASES[name]
    found = list(precisions(jax.make_jaxpr(fn)(argument).jaxpr))
    assert found
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
