"""Augmentation: measured ratios and lengths, against SciPy, per-row keys, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal

from common.audio import augment, frontend, io
from common.audio.augment import SpecAugmentConfig

RATE_HZ = 16000


def keys(rows: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), rows)


def noise_rows(rows: int, num_samples: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(0.1 * rng.standard_normal((rows, num_samples)), jnp.float32)


spec_augment = jax.jit(augment.spec_augment, static_argnames="config")
add_noise = jax.jit(augment.add_noise, static_argnames="snr_db")
reverberate = jax.jit(augment.reverberate)


def test_masks_have_the_configured_widths():
    config = SpecAugmentConfig(freq_masks=1, freq_width=10, time_masks=1, time_ratio=0.1)
    features = jnp.ones((512, 100, 40))
    lengths = jnp.where(jnp.arange(512) % 2 == 0, 100, 50)
    masked = np.asarray(spec_augment(features, lengths, keys(512), config)) == 0
    for row, length in zip(masked[:64], lengths[:64].tolist()):
        assert row[length:].all()
    frames = [row[:n].all(axis=1).sum() for row, n in zip(masked, lengths.tolist())]
    bins = [row[:n].all(axis=0).sum() for row, n in zip(masked, lengths.tolist())]
    # Every width from 0 to the limit occurs among 256 rows (missing one: 256 * (10/11)^256 < 1e-8).
    assert set(frames[0::2]) == set(range(11))
    assert set(frames[1::2]) == set(range(6))
    assert set(bins) == set(range(11))
    # Masks reach both ends of the true frames and never fall wholly outside.
    assert masked[0::2, 0].all(axis=1).any()
    assert masked[0::2, 99].all(axis=1).any()
    assert masked[1::2, 49].all(axis=1).any()


def test_spec_augment_limits():
    features = 3 + noise_rows(4, 50 * 20).reshape(4, 50, 20)
    lengths = jnp.array([50, 31, 1, 0])
    none = SpecAugmentConfig(freq_masks=0, time_masks=0)
    out = np.asarray(spec_augment(features, lengths, keys(4), none))
    np.testing.assert_array_equal(out[0], features[0])
    np.testing.assert_array_equal(out[1, :31], features[1, :31])
    assert not out[1, 31:].any()
    capped = SpecAugmentConfig(freq_masks=0, time_masks=1, time_ratio=1.0, time_width=2)
    out = np.asarray(spec_augment(features, lengths, keys(4), capped))
    assert ((out[0] == 0).all(axis=1)).sum() <= 2
    wide = SpecAugmentConfig(freq_masks=2, freq_width=20)
    out = np.asarray(spec_augment(features, lengths, keys(4, 1), wide))
    changed = out[1, :31] != np.asarray(features[1, :31])
    assert changed.any()
    assert not out[1, :31][changed].any()
    assert not out[3].any()


def measured_snr_db(clean, noisy, length) -> float:
    clean, noisy = (np.asarray(x, np.float64)[:length] for x in (clean, noisy))
    return 10 * np.log10(np.sum(clean**2) / np.sum((noisy - clean) ** 2))


def test_noise_has_the_drawn_ratio_over_true_samples():
    audio = noise_rows(6, 4000) * jnp.asarray([1, 0.1, 1, 1, 1, 0.0])[:, None]
    lengths = jnp.array([4000, 1500, 4000, 4000, 0, 4000])
    audio = jnp.where(jnp.arange(4000)[None] < lengths[:, None], audio, 0)
    noise = 5 * noise_rows(6, 6000, seed=1)
    noise_lengths = jnp.array([6000, 6000, 700, 0, 6000, 6000])
    out = add_noise(audio, lengths, noise, noise_lengths, keys(6), snr_db=(10.0, 10.0))
    for row in range(3):
        # float32 sums of thousands of squares.
        assert abs(measured_snr_db(audio[row], out[row], int(lengths[row])) - 10) < 1e-3
        assert not out[row, int(lengths[row]) :].any()
    np.testing.assert_array_equal(out[3:], audio[3:])  # no noise, no samples, silence
    # Long noise is one uncut stretch of the recording, short noise repeats with its period.
    added = np.asarray(out[0] - audio[0])
    match = np.correlate(np.asarray(noise[0]), added / np.linalg.norm(added), "valid")
    energy = np.sqrt(np.convolve(np.asarray(noise[0]) ** 2, np.ones(4000), "valid"))
    assert np.max(match / energy) > 0.9999
    repeated = np.asarray(out[2] - audio[2])
    np.testing.assert_allclose(repeated[700:1400], repeated[:700], atol=1e-6)


def test_noise_has_any_ratio_of_the_range():
    audio, lengths, full = noise_rows(256, 400), jnp.full(256, 400), jnp.full(256, 500)
    noise = noise_rows(256, 500, 1)
    out = add_noise(audio, lengths, noise, full, keys(256), snr_db=(0.0, 20.0))
    snr = np.array([measured_snr_db(a, o, 400) for a, o in zip(audio, out)])
    assert snr.min() > -0.01
    assert snr.max() < 20.01
    # Uniform on [0, 20]: the mean of 256 draws has a deviation of 0.36 dB.
    assert abs(snr.mean() - 10) < 1.5


def test_rooms_align_the_direct_path_and_keep_the_energy():
    rng = np.random.default_rng(0)
    audio, lengths = noise_rows(4, 5000), jnp.array([5000, 3000, 5000, 5000])
    audio = jnp.where(jnp.arange(5000)[None] < lengths[:, None], audio, 0)
    rir = rng.standard_normal((4, 800)) * np.exp(-np.arange(800) / 100) * 0.2
    rir[:, :37] *= 0.01
    rir[:, 37] = 1.5
    rir[2] = 0
    rir_lengths = jnp.array([800, 500, 800, 0])
    out = np.asarray(reverberate(audio, lengths, jnp.asarray(rir, jnp.float32), rir_lengths))
    for row in range(2):
        n = int(lengths[row])
        wet = scipy.signal.fftconvolve(audio[row, :n], rir[row, : int(rir_lengths[row])])
        wet = wet[37 : 37 + n]
        wet *= np.linalg.norm(audio[row]) / np.linalg.norm(wet)
        # float32 FFT of 8192 points.
        np.testing.assert_allclose(out[row, :n], wet, atol=1e-5)
        assert not out[row, n:].any()
    np.testing.assert_array_equal(out[2:], audio[2:])


def test_a_real_room(speech_data):
    path = sorted(p for p in (speech_data / "noise").rglob("*.flac") if "rir" in p.name.lower())[0]
    rir = io.load_audio(path, sample_rate_hz=RATE_HZ, channel=0)
    audio, lengths = noise_rows(1, 16000), jnp.array([16000])
    out = reverberate(audio, lengths, jnp.asarray(rir)[None], jnp.array([len(rir)]))
    np.testing.assert_allclose(np.linalg.norm(out), np.linalg.norm(audio), rtol=1e-4)
    # The direct path is where it was: the strongest correlation is at lag 0.
    lags = np.asarray(jnp.fft.irfft(jnp.fft.rfft(out[0]) * jnp.conj(jnp.fft.rfft(audio[0]))))
    assert np.argmax(np.abs(lags)) == 0


def test_rows_do_not_depend_on_the_number_of_devices():
    def everything(audio, lengths, row_keys):
        a, d = jnp.moveaxis(jax.vmap(jax.random.split)(row_keys), 1, 0)
        audio = augment.add_noise(audio, lengths, audio[:, ::-1], lengths, a, snr_db=(0.0, 20.0))
        audio = augment.reverberate(audio, lengths, audio[:, :64], lengths // 10)
        features = audio.reshape(-1, 80, 10)
        return augment.spec_augment(features, lengths // 10, d, SpecAugmentConfig())

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    batch = noise_rows(8, 800), jnp.arange(100, 900, 100), keys(8)
    one = jax.jit(everything)(*batch)
    many = jax.jit(
        jax.shard_map(everything, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )(*batch)
    # Same draws; sums in another order.
    np.testing.assert_allclose(one, many, atol=1e-5)


CENTRES_HZ = frontend.LogMelConfig(num_mels=40).centres_hz()


def test_a_warp_takes_each_band_from_its_frequency_times_the_factor():
    """Against the piecewise linear map of Jaitly and Hinton written out for one row at a time."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 5, 40)).astype(np.float32)
    warped = np.asarray(
        augment.warp_frequency(jnp.asarray(features), keys(6), CENTRES_HZ, (0.7, 1.4))
    )
    draws = [float(jax.random.uniform(key)) for key in keys(6)]
    top, bend = CENTRES_HZ[-1], min(4800.0, 0.6 * CENTRES_HZ[-1])
    mel = np.arange(40.0)
    for row, draw in enumerate(draws):
        factor = 0.7 * (1.4 / 0.7) ** draw
        knee = bend * min(factor, 1.0)
        wanted = np.interp(CENTRES_HZ, [0, knee / factor, top], [0, knee, top])
        bands = np.interp(wanted, CENTRES_HZ, mel)
        for frame in range(5):
            expected = np.interp(bands, mel, features[row, frame])
            # Places of bands are float32: 40 bands times its epsilon, on values near 1.
            np.testing.assert_allclose(warped[row, frame], expected, atol=1e-4)
        np.testing.assert_allclose(warped[row, :, -1], features[row, :, -1], atol=1e-4)


def test_no_warp_is_the_identity_and_rows_are_their_own():
    features = noise_rows(3, 4 * 40).reshape(3, 4, 40)
    same = augment.warp_frequency(features, keys(3), CENTRES_HZ, (1.0, 1.0))
    np.testing.assert_allclose(same, features, atol=1e-6)
    whole = augment.warp_frequency(features, keys(3), CENTRES_HZ, (0.8, 1.25))
    alone = augment.warp_frequency(features[1:2], keys(3)[1:2], CENTRES_HZ, (0.8, 1.25))
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-6)
    assert np.abs(np.asarray(whole) - np.asarray(features)).max() > 0.01


def test_a_warp_moves_formants_of_real_log_mel_spectra():
    """A tone of 1000 Hz seen with factor 1.25 stands where 800 Hz stood."""
    time = np.arange(8000) / RATE_HZ
    tones = np.stack([np.sin(2 * np.pi * hz * time) for hz in (1000.0, 800.0)]).astype(np.float32)
    config = frontend.LogMelConfig(num_mels=40, normalize="none")
    features, _ = frontend.log_mel(jnp.asarray(tones), jnp.full((2,), 8000), config)
    warped = augment.warp_frequency(features[:1], keys(1), CENTRES_HZ, (1.25, 1.25))
    assert abs(int(warped[0, 25].argmax()) - int(features[1, 25].argmax())) <= 1
    assert int(features[0, 25].argmax()) != int(features[1, 25].argmax())


def test_gain_lies_between_its_limits():
    audio = noise_rows(256, 30)
    louder = np.asarray(augment.change_gain(audio, keys(256), (-20.0, 6.0)) / audio)
    np.testing.assert_allclose(louder, np.broadcast_to(louder[:, :1], louder.shape), rtol=1e-5)
    decibels = 20 * np.log10(louder[:, 0])
    assert -20 <= decibels.min() < -18
    assert 4 < decibels.max() <= 6
