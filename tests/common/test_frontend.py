"""STFT, mel, cepstra and inverses: against librosa and SciPy, padding, gradients, devices."""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.signal

from common.audio import framing, frontend, io, mel, stft

RATE_HZ = 16000


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two rows of 0.5 s: a gliding harmonic tone with a pause, and noise."""
    rng = np.random.default_rng(0)
    time = np.arange(8000) / RATE_HZ
    tone = sum(np.sin(2 * np.pi * k * (120 + 40 * time) * time) / k for k in range(1, 20))
    tone[3000:4500] = 0
    tone += 0.01 * rng.standard_normal(8000)
    return np.stack([0.1 * tone, 0.05 * rng.standard_normal(8000)]).astype(np.float32)


@pytest.mark.parametrize(("window_size", "hop_size"), [(400, 160), (320, 160), (7, 3), (3, 7)])
def test_frames_and_their_transpose(window_size, hop_size):
    audio = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    num_frames = -(-1000 // hop_size)
    cut = functools.partial(
        framing.frame, window_size=window_size, hop_size=hop_size, num_frames=num_frames
    )
    frames = cut(jnp.asarray(audio))
    padded = np.pad(audio, ((0, 0), (0, window_size)))
    index = np.arange(num_frames)[:, None] * hop_size + np.arange(window_size)
    np.testing.assert_array_equal(frames, padded[:, index])
    # <frame(x), y> == <x, overlap_add(y)>
    other = np.random.default_rng(1).standard_normal(frames.shape).astype(np.float32)
    added = framing.overlap_add(jnp.asarray(other), hop_size=hop_size)
    assert added.shape == (2, (num_frames - 1) * hop_size + window_size)
    shared = min(1000, added.shape[1])
    expected = np.sum(audio[:, :shared] * np.asarray(added)[:, :shared], dtype=np.float64)
    np.testing.assert_allclose(
        np.sum(np.asarray(frames) * other, dtype=np.float64), expected, rtol=1e-4
    )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("window_size", [400, 512])
def test_stft_equals_librosa_and_inverts_exactly(speech, center, window_size):
    config = stft.StftConfig(window_size=window_size, center=center)
    spectrogram = stft.stft(jnp.asarray(speech), config)
    expected = librosa.stft(
        speech,
        n_fft=512,
        hop_length=160,
        win_length=window_size,
        center=center,
        pad_mode="constant",
    )
    # float32 FFT of values up to 30.
    np.testing.assert_allclose(spectrogram, expected.swapaxes(1, 2), atol=2e-5)
    audio = stft.istft(spectrogram, config, num_samples=8000)
    covered = slice(0, 7840) if center else slice(200, 7400)  # whole windows, inside both ends
    np.testing.assert_allclose(audio[:, covered], speech[:, covered], atol=1e-5)


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "rectangular"])
def test_windows_equal_scipy(name):
    scipy_name = {"rectangular": "boxcar"}.get(name, name)
    for periodic in (True, False):
        expected = scipy.signal.get_window(scipy_name, 400, fftbins=periodic)
        np.testing.assert_allclose(
            stft.window_function(name, 400, periodic=periodic), expected, atol=1e-12
        )


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("norm", ["none", "slaney"])
def test_mel_filter_bank_equals_librosa(scale, norm):
    ours = mel.mel_filter_bank(
        num_mels=64,
        num_fft=512,
        sample_rate_hz=RATE_HZ,
        min_hz=60.0,
        max_hz=7600.0,
        scale=scale,
        norm=norm,
    )
    expected = librosa.filters.mel(
        sr=RATE_HZ, n_fft=512, n_mels=64, fmin=60, fmax=7600, htk=scale == "htk",
        norm=None if norm == "none" else norm,
    )  # fmt: skip
    np.testing.assert_allclose(ours.T, expected, atol=1e-6)
    hz = np.array([0.0, 100, 999, 1001, 5000])
    np.testing.assert_allclose(
        mel.mel_to_hz(mel.hz_to_mel(hz, scale), scale), hz, rtol=1e-12, atol=1e-9
    )


def librosa_log_mel(audio: np.ndarray, config: frontend.LogMelConfig) -> np.ndarray:
    emphasised = audio - 0.97 * np.concatenate([audio[:1], audio[:-1]])
    spectrum = librosa.feature.melspectrogram(
        # librosa stands a short window in the middle of the FFT: begin that much earlier.
        y=np.pad(emphasised, (56, 512)), sr=RATE_HZ, n_fft=512, win_length=400, hop_length=160,
        center=False, n_mels=config.num_mels, fmin=20, htk=True, norm=None,
    )  # fmt: skip
    return np.log(np.maximum(spectrum, config.floor)).T[: config.num_frames(len(audio))]


def test_log_mel_and_mfcc_equal_librosa(speech):
    config = frontend.LogMelConfig(num_mels=40, normalize="none")
    lengths = jnp.array([8000, 8000])
    ours, ours_lengths = frontend.log_mel(jnp.asarray(speech), lengths, config)
    assert ours.shape == (2, 50, 40)
    assert ours_lengths.tolist() == [50, 50]
    expected = np.stack([librosa_log_mel(row, config) for row in speech])
    # Weak bins beside strong harmonics carry float32 rounding of the FFT; values span -14 to 3.
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert np.median(np.abs(ours - expected)) < 1e-5
    cepstra, _ = frontend.mfcc(
        jnp.asarray(speech), lengths, frontend.MfccConfig(config, 13, lifter=0.0, normalize="none")
    )
    by_librosa = librosa.feature.mfcc(S=np.asarray(ours).swapaxes(1, 2), n_mfcc=13)
    np.testing.assert_allclose(cepstra, by_librosa.swapaxes(1, 2), atol=1e-4)
    lifted, _ = frontend.mfcc(
        jnp.asarray(speech), lengths, frontend.MfccConfig(config, 13, lifter=22.0, normalize="none")
    )
    weights = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    np.testing.assert_allclose(lifted, np.asarray(cepstra) * weights, rtol=1e-4, atol=1e-4)
    dct = scipy.fft.dct(np.eye(40), norm="ortho", axis=1)[:, :13]
    np.testing.assert_allclose(mel.dct_matrix(40, 13), dct, atol=1e-6)


@pytest.mark.parametrize("normalize", ["none", "mean", "utterance"])
def test_a_padded_row_has_the_values_it_has_alone(speech, normalize):
    config = frontend.LogMelConfig(normalize=normalize)
    audio = np.concatenate([speech, speech[:, ::-1]])
    lengths = jnp.array([8000, 5555, 30, 0])
    audio[1, 5555:] = np.nan  # what stands in the padding must not matter
    compute = jax.jit(functools.partial(frontend.log_mel, config=config))
    batch, frame_lengths = compute(audio, lengths)
    assert frame_lengths.tolist() == [50, 35, 1, 0]
    assert frame_lengths.dtype == jnp.int32
    for row, length in enumerate(lengths[:3].tolist()):
        alone, (n,) = compute(audio[row : row + 1, :length], lengths[row : row + 1])
        assert alone.shape[1] == n == frame_lengths[row]
        np.testing.assert_allclose(batch[row, :n], alone[0], atol=1e-5)
        assert not batch[row, n:].any()
    assert not batch[3].any()
    if normalize == "utterance":
        np.testing.assert_allclose(np.mean(batch[1, :35], 0), 0, atol=1e-5)
        np.testing.assert_allclose(np.std(batch[0], 0), 1, atol=1e-3)


def test_gradient_is_finite_and_silence_is_safe(speech):
    lengths = jnp.array([6000, 0])

    def total(audio):
        return jnp.sum(jnp.sin(frontend.log_mel(audio, lengths, frontend.LogMelConfig())[0]))

    for audio in (jnp.asarray(speech), jnp.zeros(speech.shape)):
        gradient = jax.jit(jax.grad(total))(audio)
        assert np.isfinite(gradient).all()
        assert not gradient[0, 6000:].any()
        assert not gradient[1].any()


def test_inside_shard_map_the_rows_are_the_same(speech):
    audio, lengths = jnp.tile(speech, (4, 1)), jnp.arange(1000, 9000, 1000)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    compute = functools.partial(frontend.log_mel, config=frontend.LogMelConfig())
    mapped = jax.jit(
        jax.shard_map(compute, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )
    one, one_lengths = jax.jit(compute)(audio, lengths)
    many, many_lengths = mapped(audio, lengths)
    np.testing.assert_array_equal(one_lengths, many_lengths)
    # Another batch size may choose another matrix kernel: the last bits differ.
    np.testing.assert_allclose(one, many, atol=1e-5)
    # The DESIGN trap: an FFT of a sharded batch must not gather the batch.
    assert "all-gather" not in mapped.lower(audio, lengths).compile().as_text()


def test_mel_to_power_and_griffin_lim_bring_the_sound_back(speech):
    config = stft.StftConfig(hop_size=128, window_size=512)
    magnitude = jnp.abs(stft.stft(jnp.asarray(speech[:1]), config))
    rebuild = jax.jit(functools.partial(stft.griffin_lim, config=config, num_samples=8000))

    def convergence(audio):
        difference = jnp.abs(stft.stft(audio, config)) - magnitude
        return 20 * np.log10(np.linalg.norm(difference) / np.linalg.norm(magnitude))

    audio = rebuild(magnitude, key=jax.random.key(0))
    assert audio.shape == (1, 8000)
    # Random phases alone give about -5 dB; fast Griffin-Lim is known to pass -20 dB on speech.
    assert convergence(audio) < -20
    np.testing.assert_array_equal(audio, rebuild(magnitude, key=jax.random.key(0)))
    bank = mel.mel_filter_bank(num_mels=80, num_fft=512, sample_rate_hz=RATE_HZ, scale="slaney")
    spectrum = jnp.square(magnitude) @ bank
    power = mel.mel_to_power(spectrum, bank)
    assert power.min() >= 0
    # 80 equations for 257 unknowns: the mel spectrum comes back, the fine structure need not.
    assert np.linalg.norm(power @ bank - spectrum) < 0.02 * np.linalg.norm(spectrum)


def test_a_real_recording_matches_librosa(speech_data):
    path = next((speech_data / "sentences" / "an4").rglob("*.flac"))
    audio = io.load_audio(path, sample_rate_hz=RATE_HZ)
    config = frontend.LogMelConfig(normalize="none")
    ours, (n,) = frontend.log_mel(jnp.asarray(audio)[None], jnp.array([len(audio)]), config)
    np.testing.assert_allclose(ours[0], librosa_log_mel(audio, config), atol=1e-3)
    assert n == -(-len(audio) // 160)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mels": 300}, "hold no FFT bin"),
        ({"max_hz": 9000.0}, "half of sample_rate_hz=16000"),
        ({"window": "kaiser"}, "window='kaiser'"),
    ],
)
def test_impossible_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        frontend.log_mel(jnp.zeros((1, 800)), jnp.array([800]), frontend.LogMelConfig(**change))
    with pytest.raises(ValueError, match="normalize"):
        frontend.LogMelConfig(normalize="utterence")
