"""Kaldi-compatible features against archives written by Kaldi's own programs."""

import dataclasses
import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.audio import frontend, io, kaldi

FLOAT32_EPS = float(np.finfo(np.float32).eps)
COMPUTE = {
    kind: jax.jit(function, static_argnames="config")
    for kind, function in (
        ("fbank", kaldi.fbank),
        ("mfcc", kaldi.mfcc),
        ("spec", kaldi.spectrogram),
    )
}
OUR_NAMES = {
    "frame_length": "window_ms",
    "frame_shift": "hop_ms",
    "high_freq": "high_hz",
    "low_freq": "low_hz",
    "num_mel_bins": "num_mels",
    "preemphasis_coefficient": "preemphasis",
    "window_type": "window",
}


def read_binary_ark(path) -> np.ndarray:
    """The one float matrix of a binary archive: key, blank, NUL B, FM, two sized int32, floats."""
    data = path.read_bytes()
    at = data.index(b" \0BFM \4") + 7
    rows, four, columns = struct.unpack_from("<ibi", data, at)
    assert four == 4
    return np.frombuffer(data, "<f4", rows * columns, at + 9).reshape(rows, columns)


def read_text_ark(path) -> np.ndarray:
    """The one matrix of a text archive: key, then the rows in square brackets."""
    inside = re.search(r"\[(.*)\]", path.read_text(), re.DOTALL).group(1)
    return np.array([line.split() for line in inside.strip().splitlines()], np.float32)


def features(compute, audio, config) -> np.ndarray:
    """Features of one recording that stands in a longer row with NaN behind it."""
    row = np.concatenate([audio, np.full(55, np.nan, np.float32)])
    values, lengths = compute(jnp.asarray(row)[None], jnp.array([len(audio)]), config)
    assert not np.asarray(values)[0, int(lengths[0]) :].any()
    return np.asarray(values)[0, : int(lengths[0])]


def as_kaldi(kind, ours, options) -> tuple[np.ndarray, slice]:
    """Features after those of Kaldi's options that ours lack, and the columns that they leave.

    An energy of windowed frames (`raw_energy` false) cannot be had from ours: it is left out.
    """
    energy = kind == "spec" or options["use_energy"]
    columns = slice(int(energy and not options["raw_energy"]), None)
    ours = ours.astype(np.float64)
    if energy:
        ours[:, 0] = np.maximum(ours[:, 0], np.log(options["energy_floor"]))
    if not options.get("use_log_fbank", True):
        ours[:, energy:] = np.exp(ours[:, energy:])
    if options["subtract_mean"]:
        ours -= ours.mean(0)
    if options.get("htk_compat") and (energy or kind == "mfcc"):  # the first column comes last
        first = ours[:, :1] if energy else np.sqrt(2) * ours[:, :1]
        ours = np.concatenate([ours[:, 1:], first], axis=1)
        columns = slice(None, -1) if columns.start else columns
    return ours, columns


@pytest.mark.parametrize(
    "every", [pytest.param(12, id="sample"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
def test_archives_of_the_options_sweep(speech_data, every):
    folder = speech_data / "reference" / "kaldi" / "torchaudio"
    audio = io.load_audio(folder / "kaldi_file.wav", sample_rate_hz=16000)
    records = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert len(records) == 227
    # Nobody can ask for these: warped filters, magnitudes, Blackman windows of another shape.
    records = [
        record
        for record in records
        if record["options"].get("vtln_warp", 1) == 1
        and record["options"].get("use_power", True)
        and record["options"]["window_type"] != "blackman"
    ]
    assert len(records) == 152
    ours_have = {field.name for field in dataclasses.fields(kaldi.KaldiConfig)}
    for record in records[::every]:
        options = {OUR_NAMES.get(k, k): v for k, v in record["options"].items()}
        options = {k: float(v) if k.endswith("_hz") else v for k, v in options.items()}
        config = kaldi.KaldiConfig(**{k: v for k, v in options.items() if k in ours_have})
        ours = features(COMPUTE[record["kind"]], audio, config)
        ours, columns = as_kaldi(record["kind"], ours, options)
        # Kaldi computes corners of mel filters in float32: near 1000 mel a step is 6e-5 mel, so a
        # weight of 0.001 on a filter 0.3 % of its width inside an edge is known to about 1e-4.
        expected = read_binary_ark(folder / record["file"])
        np.testing.assert_allclose(
            ours[:, columns], expected[:, columns], atol=2e-4, rtol=2e-4, err_msg=record["file"]
        )


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("test", "fbank", {}),
        ("test-40", "fbank", {"num_mels": 40}),
        ("test-mfcc", "mfcc", {"use_energy": True}),
        ("test-spectrogram", "spec", {}),
        ("test-spectrogram-no-snip-edges", "spec", {"snip_edges": False}),
    ],
)
def test_archives_of_a_recording(speech_data, name, kind, options):
    folder = speech_data / "reference" / "kaldi" / "kaldifeat"
    audio = io.load_audio(folder / "test.wav", sample_rate_hz=16000)
    config = kaldi.KaldiConfig(**options)
    ours, expected = features(COMPUTE[kind], audio, config), read_text_ark(folder / f"{name}.txt")
    assert ours.shape == expected.shape
    # The file is nearly a pure tone, so most bins hold what leaks far below the peak. A float32 FFT
    # errs by some eps of the *largest* bin: against float64, ours by 1.5 eps, Kaldi's by 18. In the
    # log this grows as exp((peak - value) / 2) below the peak.
    if kind == "mfcc":  # sums of 23 such logs, weights up to 0.3 * 12
        np.testing.assert_allclose(ours, expected, atol=0.1)
        assert np.median(np.abs(ours - expected)) < 2e-3
        return
    below_peak = expected.max(axis=1, keepdims=True) - expected
    error = np.abs(ours - expected)
    assert np.all(error < 2e-4 + 24 * FLOAT32_EPS * np.exp(below_peak / 2))
    assert np.median(error) < 1e-3


@pytest.mark.parametrize("snip_edges", [True, False])
def test_a_padded_row_has_the_values_it_has_alone(snip_edges):
    config = kaldi.KaldiConfig(snip_edges=snip_edges, use_energy=True)
    audio = 0.1 * np.random.default_rng(0).standard_normal((4, 6000)).astype(np.float32)
    audio, lengths = jnp.asarray(audio), jnp.array([6000, 4321, 250, 0])
    batch, frame_lengths = COMPUTE["fbank"](audio, lengths, config)
    assert batch.shape == (4, config.num_frames(6000), 24)
    assert frame_lengths.dtype == jnp.int32
    for row, length in enumerate(lengths[:3].tolist()):
        alone, n = COMPUTE["fbank"](audio[row : row + 1, :length], lengths[row : row + 1], config)
        assert n[0] == frame_lengths[row] == alone.shape[1] == config.num_frames(length)
        # Log energies near 20: 1e-5 relative.
        np.testing.assert_allclose(batch[row, : n[0]], alone[0], atol=2e-4)
        assert not batch[row, n[0] :].any()
    assert frame_lengths[3] == 0
    assert not batch[3].any()


def test_frame_counts():
    snip, centred = kaldi.KaldiConfig(), kaldi.KaldiConfig(snip_edges=False)
    lengths = np.array([0, 1, 80, 399, 400, 559, 560, 16000])
    np.testing.assert_array_equal(snip.num_frames(lengths), [0, 0, 0, 0, 1, 1, 2, 98])
    np.testing.assert_array_equal(centred.num_frames(lengths), [0, 0, 1, 2, 3, 3, 4, 100])


def test_log_mel_with_kaldi_compat_is_kaldis_fbank():
    audio = 0.1 * np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    audio, lengths = jnp.asarray(audio), jnp.array([4000, 3000])
    config = frontend.LogMelConfig(num_mels=40, normalize="none", compat="kaldi")
    ours, ours_lengths = jax.jit(frontend.log_mel, static_argnames="config")(audio, lengths, config)
    expected, expected_lengths = COMPUTE["fbank"](audio, lengths, kaldi.KaldiConfig(num_mels=40))
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(ours_lengths, expected_lengths)
    assert ours.shape[1] == config.num_frames(4000)
    hamming = dataclasses.replace(config, window="hamming")
    ours, _ = jax.jit(frontend.log_mel, static_argnames="config")(audio, lengths, hamming)
    kaldis = kaldi.KaldiConfig(num_mels=40, window="hamming")
    np.testing.assert_array_equal(ours, COMPUTE["fbank"](audio, lengths, kaldis)[0])
    with pytest.raises(ValueError, match="window='triangle' is unknown"):
        frontend.LogMelConfig(window="triangle")


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match="low_hz=5000"):
        kaldi.mel_filter_bank(kaldi.KaldiConfig(low_hz=5000.0, high_hz=4000.0))
    with pytest.raises(ValueError, match="window='kaiser'"):
        kaldi.fbank(jnp.zeros((1, 800)), jnp.array([800]), kaldi.KaldiConfig(window="kaiser"))
