"""The learned filter bank: near log-mel at its start, its arithmetic, ranks, what it refuses."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from asr import contextnet, costs, filterbank, lowrank
from common.audio import frontend


def bank_of(audio, lengths, **options):
    """A bank's module and variables."""
    module = filterbank.Filterbank(filterbank.FilterbankConfig(**options))
    return module, module.init(jax.random.key(1), audio, lengths, train=True)


@pytest.fixture(scope="module")
def speech(speech_data):
    """Six recordings of AN4's dev part, padded, and their log-mel spectra."""
    with (speech_data / "sentences" / "an4" / "an4.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "dev"]
    found = [soundfile.read(speech_data / row["path"], dtype="float32")[0] for row in rows[::18]]
    lengths = np.array([len(x) for x in found], np.int32)
    audio = np.zeros((len(found), lengths.max()), np.float32)
    for row, x in zip(audio, found):
        row[: len(x)] = x
    log_mel = frontend.LogMelConfig(normalize="none")
    return audio, lengths, frontend.log_mel(jnp.asarray(audio), jnp.asarray(lengths), log_mel)


def error_db(speech, **options):
    """Of the energies of each feature, with the features' means taken off; and the correlation."""
    audio, lengths, (wanted, frames) = speech
    audio, lengths = jnp.asarray(audio), jnp.asarray(lengths)
    module, variables = bank_of(audio[:1, :1600], lengths[:1], normalize="none", **options)
    found, _ = jax.jit(lambda v, *x: module.apply(v, *x, train=False))(variables, audio, lengths)
    errors, correlations = [], []
    for a, b, size in zip(np.asarray(found), np.asarray(wanted), np.asarray(frames)):
        a, b = a[:size] - a[:size].mean(0), b[:size] - b[:size].mean(0)
        errors.append(np.mean(np.square(a - b)))
        correlations.append(np.mean(np.sum(a * b, 0) / np.sqrt(np.sum(a**2, 0) * np.sum(b**2, 0))))
    return 10 / np.log(10) * np.sqrt(np.mean(errors)), np.mean(correlations)


def test_the_start_is_log_mel_on_speech(speech):
    """Measured 1.4 dB and 0.994; of a bank whose floor is 50 dB higher 13 dB and 0.42."""
    error, correlation = error_db(speech)
    assert error < 1.7
    assert correlation > 0.99
    error, correlation = error_db(speech, filters="single", pooling=16)
    assert error < 2.2
    assert correlation > 0.98
    # Each of these is further from log-mel than the start.
    for options in ({"pooling": 1}, {"preemphasis": 0.0}, {"floor": 1e-4}, {"start": "random"}):
        assert error_db(speech, **options)[0] > 1.2 * error_db(speech)[0]


def test_of_a_low_rank_all_bands_are_left(speech):
    """Truncated as it is, rank 24 keeps 0.49 of the correlation, the lowest 28 bands constant."""
    assert error_db(speech, rank=24)[1] > 0.87
    assert error_db(speech, rank=24, filters="single", pooling=16)[1] > 0.92


@pytest.mark.parametrize("filters", ["pairs", "single"])  # those of energies
def test_levels_are_those_of_log_mel(filters):
    """On white noise, in nats; so the floor is as far below."""
    audio = 0.1 * jax.random.normal(jax.random.key(0), (1, 32000))
    lengths = jnp.array([32000])
    log_mel = frontend.LogMelConfig(normalize="none")
    wanted, _ = frontend.log_mel(audio, lengths, log_mel)
    module, variables = bank_of(audio, lengths, filters=filters, normalize="none")
    y, _ = module.apply(variables, audio, lengths, train=False)
    levels = [np.log(np.exp(np.asarray(x, np.float64)[0, 3:-3]).mean(0)) for x in (y, wanted)]
    # 194 frames of bands that hold one or two degrees of freedom each.
    np.testing.assert_allclose(*levels, atol=0.5)
    assert abs(np.mean(levels[0] - levels[1])) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 24},
        {"normalize": "batch"},
        {"normalize": "causal"},
        {"filters": "single", "pool": "hann"},
        {"pool": "learned", "compression": "pcen", "taps": 130},
        {"filters": "max_pooled", "taps": 30, "pooling": 16},
        {"taps": 30, "pooling": 1, "rank": 2},
    ],
)
def test_padded_equals_alone(options):
    audio = 0.1 * jax.random.normal(jax.random.key(0), (2, 4000))
    audio = audio.at[1, 1230:].set(jnp.nan)
    lengths = jnp.array([4000, 1230])
    module, variables = bank_of(audio, lengths, num_filters=40, **options)
    y, frames = module.apply(variables, audio, lengths, train=False)
    np.testing.assert_array_equal(frames, [25, 8])
    alone, _ = module.apply(variables, audio[1:, :1230], lengths[1:], train=False)
    np.testing.assert_allclose(y[1, :8], alone[0], rtol=1e-5, atol=2e-5)
    assert bool((y[1, 8:] == 0).all())


def test_it_normalises_as_it_is_told():
    audio, lengths = jax.random.normal(jax.random.key(0), (2, 4000)), jnp.array([4000, 2500])

    def features(normalize):
        module, variables = bank_of(audio, lengths, num_filters=4, normalize=normalize)
        assert ("norm" in variables["params"]) == (normalize == "batch")
        y = module.apply(variables, audio, lengths, train=True, mutable=["batch_stats"])[0][0]
        return np.asarray(y)

    raw = features("none")
    one = raw[1, :16]  # 2500 samples
    centred = one - one.mean(0)
    np.testing.assert_allclose(features("mean")[1, :16], centred, atol=1e-5)
    np.testing.assert_allclose(
        features("utterance")[1, :16], centred / np.sqrt(one.var(0) + 1e-5), rtol=1e-4, atol=1e-5
    )
    both = np.concatenate([raw[0], one])
    found = (one - both.mean(0)) / np.sqrt(both.var(0) + 1e-5)
    np.testing.assert_allclose(features("batch")[1, :16], found, rtol=1e-4, atol=1e-5)
    causal = [(one[i] - one[: i + 1].mean(0)) / np.sqrt(one[: i + 1].var(0) + 1e-5) for i in (5, 9)]
    np.testing.assert_allclose(features("causal")[1, [5, 9]], causal, rtol=1e-3, atol=1e-4)


def weights_of(pool, pooling, num_filters, config):
    """Offsets in energies, and the weights [k, f], by the formulas."""
    if pool == "hann" or pooling == 1:
        place = np.arange(1 - pooling, pooling)
        weights = np.cos(np.pi * place / (2 * pooling)) ** 2 / pooling
        return place, np.repeat(weights[:, None], num_filters, axis=1)
    place = np.arange(-config.reach[0], config.reach[1] + 1)
    step = 160 // pooling
    width = filterbank.pool_widths(config)
    if pool == "learned":
        width = np.maximum(width, 0.5 * step)
    weights = np.exp(-0.5 * np.square(place[:, None] * step / width))
    return place, weights / weights.sum(0)


@pytest.mark.parametrize("filters", ["pairs", "single"])
@pytest.mark.parametrize(
    ("pool", "pooling", "taps"),
    [("hann", 1, 0), ("hann", 4, 0), ("gaussian", 4, 0), ("learned", 2, 130), ("gaussian", 16, 31)],
)
def test_frames_against_a_loop(pool, pooling, taps, filters):
    """Of float64, over every energy; a window that is no multiple of the hop."""
    audio, lengths = np.random.default_rng(0).normal(size=1700), jnp.array([1700])
    given = jnp.asarray(audio[None], jnp.float32)
    options = {"num_filters": 3, "window_samples": 390, "normalize": "none", "taps": taps}
    options |= {"pool": pool, "pooling": pooling, "filters": filters, "preemphasis": 0.9}
    module, variables = bank_of(given, lengths, **options)
    y, _ = module.apply(variables, given, lengths, train=False)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    places, weights = weights_of(pool, pooling, 3, module.config)
    emphasised = audio - 0.9 * np.concatenate([audio[:1], audio[:-1]])
    padded = np.pad(emphasised, (1000, 1000))
    for i in range(11):
        energy = np.zeros(3)
        for place, weight in zip(places, weights):
            start = 1000 + 160 * i + 160 // pooling * place + (390 - len(kernel)) // 2
            found = np.square(padded[start : start + len(kernel)] @ kernel)
            energy += weight * found.reshape(-1, 3).sum(0)
        np.testing.assert_allclose(y[0, i], np.log(np.maximum(energy, 1e-6)), rtol=1e-4, atol=1e-4)


def test_max_pooling_is_that_of_the_original():
    """30 taps every 10 samples, the largest of three, or zero: exactly, with a hop of 30."""
    audio = np.random.default_rng(0).normal(size=900).astype(np.float32)
    given, lengths = jnp.asarray(audio[None]), jnp.array([900])
    options = {"num_filters": 8, "window_samples": 400, "hop_samples": 30, "taps": 30}
    options |= {"pooling": 3, "filters": "max_pooled", "normalize": "none", "preemphasis": 0.0}
    for rank in (None, 2):
        module, variables = bank_of(given, lengths, rank=rank, **options)
        y, frames = module.apply(variables, given, lengths, train=False)
        kernel = np.asarray(filterbank.impulse_responses(variables["params"]))
        assert kernel.shape == (30, 8)
        assert int(frames[0]) == 30
        padded = np.pad(audio, (1000, 1000))
        for i in range(30):
            starts = [1000 + 185 + 30 * i + 10 * k for k in (-1, 0, 1)]
            found = np.stack([padded[start : start + 30] @ kernel for start in starts])
            np.testing.assert_allclose(y[0, i], np.maximum(found, 0).max(0), rtol=1e-4, atol=1e-4)


def test_pcen_against_a_loop():
    rng = np.random.default_rng(0)
    energy = rng.exponential(size=(2, 9, 3))
    smooth, gain, offset, root = np.array(
        [[0.1, 0.5, 1.0], [0.9, 1.0, 0.5], [2, 1, 3], [0.5, 1, 0.3]]
    )
    constants = {"smooth": smooth, "gain": gain, "offset": offset, "root": root}
    given = {name: jnp.asarray(value, jnp.float32) for name, value in constants.items()}
    found = filterbank.pcen(jnp.asarray(energy, jnp.float32), **given, floor=1e-6)
    mean = energy[:, 0]
    for i in range(9):
        mean = mean if i == 0 else (1 - smooth) * mean + smooth * energy[:, i]
        wanted = (energy[:, i] / (1e-6 + mean) ** gain + offset) ** root - offset**root
        np.testing.assert_allclose(found[:, i], wanted, rtol=1e-4, atol=1e-5)


def test_pooled_energies_do_not_hang_on_where_a_click_falls():
    """The top filter sees 7 ms: of clicks 10 ms apart it sees all, or without pooling few."""

    def spread(pooling):
        clicks = np.zeros((4, 3200), np.float32)
        for row in range(4):
            clicks[row, 40 * row :: 160] = 1.0
        clicks, lengths = jnp.asarray(clicks), jnp.full(4, 3200)
        options = {"num_filters": 40, "normalize": "none", "pooling": pooling}
        module, variables = bank_of(clicks, lengths, **options)
        y, _ = module.apply(variables, clicks, lengths, train=False)
        return float(np.ptp(np.asarray(y)[:, 10, -1]))

    assert spread(4) < 0.5
    assert spread(1) > 3.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hop_samples": 110}, "choose one of 1, 2, 5, 10, 11, or"),
        ({"pool": "mean"}, "pool='mean': choose one of gaussian, learned, hann"),
        ({"taps": 500}, "500 samples exceed the window of 400"),
        ({"rank": 81, "filters": "single"}, r"choose 1\.\.80 or None"),
        ({"rank": 31, "taps": 30}, r"choose 1\.\.30 or None"),
    ],
)
def test_settings_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        filterbank.FilterbankConfig(**options)


def test_the_banks_rows_of_the_table():
    for rank, size in ((None, 400 * 160), (24, 24 * (400 + 160))):
        options = {"rank": rank, "pool": "learned", "normalize": "batch"}
        _, variables = bank_of(jnp.zeros((1, 1600)), jnp.array([1600]), **options)
        config = filterbank.FilterbankConfig(**options)
        rows = costs.measured(lowrank.bank_costs(config, variables["params"]))
        assert [row.name for row in rows] == ["filterbank", "filterbank/width", "filterbank/norm"]
        assert (rows[0].shape, rows[0].rank, rows[0].parameters) == ((400, 160), rank or 160, size)
        total = contextnet.count_parameters(variables["params"])
        assert sum(row.parameters for row in rows) == total == size + 3 * 80
        assert rows[0].macs_per_second == 400 * size  # energies a second
        assert 1 < rows[0].stable_rank <= rows[0].entropy_rank <= rows[0].rank


def test_truncation_error_is_the_tail_and_merging_changes_nothing():
    """The tail of the bank with every feature at the energy one."""
    audio, lengths = 0.1 * jax.random.normal(jax.random.key(0), (1, 4000)), jnp.array([4000])
    options = {"num_filters": 40, "normalize": "batch"}
    dense_module, dense = bank_of(audio, lengths, **options)
    low_module, low = bank_of(audio, lengths, **options, rank=30)
    factored = filterbank.factor(dense["params"], low_module.config)
    assert jax.tree.map(jnp.shape, factored) == jax.tree.map(jnp.shape, low["params"])
    squares = [float(jnp.mean(jnp.square(factored[name]))) for name in ("basis", "mixing")]
    assert squares[0] == pytest.approx(squares[1], rel=1e-4)
    kernel = np.asarray(dense["params"]["kernel"], np.float64)
    scale = np.sqrt(np.sum(kernel[:, :40] ** 2 + kernel[:, 40:] ** 2, axis=0))
    scale = np.concatenate([scale, scale])
    found = np.asarray(filterbank.impulse_responses(factored), np.float64)
    scaled = kernel / scale
    eigenvalues = np.linalg.eigvalsh(scaled.T @ scaled)  # ascending: of 80, the tail are 50
    error = np.sum(((kernel - found) / scale) ** 2)
    np.testing.assert_allclose(error, eigenvalues[:50].sum(), rtol=1e-4)
    ((_, share, least, constant),) = filterbank.truncations(kernel, 40, [30])
    assert share == pytest.approx(eigenvalues[50:].sum() / 40, rel=1e-4)
    assert constant == 0
    kept = 1 - np.sum(((kernel - found) / scale) ** 2, axis=0).reshape(2, 40).sum(0)
    assert least == pytest.approx(kept.min(), rel=1e-3)

    y, _ = low_module.apply({**low, "params": factored}, audio, lengths, train=False)
    merged = {**dense, "params": filterbank.merge(factored)}
    z, _ = dense_module.apply(merged, audio, lengths, train=False)
    np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-4)
    # Again from the factored form; and at full rank nothing is lost.
    again = filterbank.factor(factored, low_module.config)
    np.testing.assert_allclose(filterbank.impulse_responses(again), found, atol=1e-4)
    whole = filterbank.FilterbankConfig(**options, rank=80)
    full = filterbank.factor(dense["params"], whole)
    np.testing.assert_allclose(filterbank.impulse_responses(full), kernel, rtol=1e-4, atol=1e-4)


def test_features_that_a_rank_loses_are_named(caplog):
    config = filterbank.FilterbankConfig(num_filters=40, rank=2)
    filters = filterbank.mel_filters(config)
    ((_, _, least, constant),) = filterbank.truncations(filters, 40, [2])
    assert constant > 10
    assert least < 0.01
    filterbank.say_what_is_kept(filters, config)
    assert f"leaves {constant} of 40 features of the filter bank constant" in caplog.text
    lines = filterbank.describe({"kernel": jnp.asarray(filters)}, config).splitlines()
    assert lines[-1].split() == ["80", "100.0", "%", "100.0", "%"]
    assert "features left constant" in lines[1]


def test_the_start_finds_the_frequency():
    time = np.arange(3200) / 16_000
    audio = jnp.asarray(np.sin(2 * np.pi * 1000.0 * time)[None], jnp.float32)
    module, variables = bank_of(audio, jnp.array([3200]), normalize="none")
    y, _ = module.apply(variables, audio, jnp.array([3200]), train=False)
    centres = module.config.centres_hz()
    middle = np.asarray(y)[0, 2:17]
    # The band or one beside it: centres are those of the FFT bins that a band holds.
    assert set(np.abs(middle.argmax(1) - np.abs(centres - 1000.0).argmin())) <= {0, 1}
    # Whatever the phase.
    assert float(np.ptp(middle.max(1))) < 0.02


def test_a_random_start_has_the_scale_and_another_for_every_key():
    config = filterbank.FilterbankConfig(start="random")
    mel = filterbank.mel_filters(config)
    one, two = (filterbank.start_filters(config, jax.random.key(i)) for i in (0, 1))
    assert float(jnp.abs(one - two).max()) > 0.1
    np.testing.assert_allclose(jnp.sum(one**2, 0), np.sum(mel**2, 0), rtol=0.4)  # 400 taps
    _, low = bank_of(jnp.zeros((1, 1600)), jnp.array([1600]), start="random", rank=12)
    composed = filterbank.impulse_responses(low["params"])
    assert float(jnp.mean(composed**2)) == pytest.approx(float(np.mean(mel**2)), rel=0.3)
