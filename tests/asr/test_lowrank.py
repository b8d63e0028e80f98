"""Rank tables, factorising and merging a trained encoder, and the learned filter bank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import contextnet, filterbank, lowrank

TABLE = ((1, 16, 1), (2, 24, 2))


@pytest.fixture(scope="module")
def batch():
    return jax.random.normal(jax.random.key(0), (2, 21, 8)), jnp.array([21, 13], jnp.int32)


def trained(batch, **options):
    config = contextnet.reduced(TABLE, **options)
    init = functools.partial(contextnet.ContextNet(config).init, train=False)
    return config, jax.jit(init)(jax.random.key(1), *batch)


def encode(config, params, variables, batch):
    tree = {**variables, "params": params}
    apply = functools.partial(contextnet.ContextNet(config).apply, train=False)
    return jax.jit(apply)(tree, *batch)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pointwise_rank_fraction": 0.25},
        {"conv": "spectro_temporal", "rank": 2},
        {"conv": "dense", "causal": True},
    ],
)
def test_table_adds_up(batch, options):
    config, variables = trained(batch, **options)
    table = lowrank.layer_table(config, variables["params"])
    total = contextnet.count_parameters(variables["params"])
    assert sum(row.parameters for row in table) == total
    macs = sum(c.macs_per_second for c in lowrank.layer_costs(config, variables["params"]))
    assert sum(row.macs_per_second for row in table) == pytest.approx(macs)
    for row in table:
        if row.stable_rank is not None:
            assert 1.0 <= row.stable_rank <= row.entropy_rank + 1e-3 <= row.rank + 2e-3
    text = lowrank.format_table(table)
    assert text.splitlines()[-1] == f"total: {total:,d} parameters, {macs / 1e9:.3f} GMAC/s"


def test_rank_fraction_gives_the_configured_shapes(batch):
    config, variables = trained(batch)
    new, params = lowrank.factorize(config, variables["params"], rank_fraction=0.25)
    _, expected = trained(batch, pointwise_rank_fraction=0.25)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected["params"])
    merged_config, merged = lowrank.merge(new, params)
    assert merged_config == config
    a, b = encode(new, params, variables, batch), encode(config, merged, variables, batch)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_full_rank_changes_nothing(batch):
    config, variables = trained(batch)
    before = encode(config, variables["params"], variables, batch)
    new, params = lowrank.factorize(config, variables["params"], rank_fraction=1.0)
    after = encode(new, params, variables, batch)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    dense, variables = trained(batch, conv="dense")
    new, params = lowrank.factorize(dense, variables["params"], rank_fraction=1.0)
    assert (new.conv, new.rank) == ("spectro_temporal", 5)
    before = encode(dense, variables["params"], variables, batch)
    after = encode(new, params, variables, batch)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["separable", "dense"])
def test_budget_is_kept_and_more_is_better(batch, kind):
    config, variables = trained(batch, conv=kind)
    params = variables["params"]
    total = contextnet.count_parameters(params)
    reference = encode(config, params, variables, batch)
    errors = []
    for share in (0.7, 1.0):
        new, smaller = lowrank.factorize(config, params, budget_params=int(share * total))
        assert contextnet.count_parameters(smaller) <= share * total
        errors.append(float(jnp.abs(encode(new, smaller, variables, batch) - reference).mean()))
    assert errors[0] > errors[1]
    if kind == "separable":
        assert contextnet.count_parameters(smaller) == total
        assert errors[1] == 0.0


def test_greedy_choice_by_hand():
    """Two 4 x 6 maps: a component costs 10, the dense map 24; the last offer costs 4."""
    spectra = {"a": np.array([3.0, 1.0, 0.1, 0.0]), "b": np.array([1.0, 0.99, 0.98, 0.97])}
    shapes = {"a": (4, 6), "b": (4, 6)}
    assert lowrank.choose_ranks(spectra, shapes, 20) == {"a": 1, "b": 1}
    assert lowrank.choose_ranks(spectra, shapes, 30) == {"a": 1, "b": 2}
    assert lowrank.choose_ranks(spectra, shapes, 34) == {"a": 1}
    assert lowrank.choose_ranks(spectra, shapes, 44) == {"a": 2}
    assert lowrank.choose_ranks(spectra, shapes, 48) == {}
    with pytest.raises(ValueError, match="below rank 1"):
        lowrank.choose_ranks(spectra, shapes, 19)


def test_factorize_wants_one_target(batch):
    config, variables = trained(batch)
    for options in ({}, {"rank_fraction": 0.5, "budget_params": 10}):
        with pytest.raises(ValueError, match="only one"):
            lowrank.factorize(config, variables["params"], **options)
    with pytest.raises(ValueError, match="leaves nothing"):
        lowrank.factorize(config, variables["params"], budget_params=10)


def bank_of(audio, lengths, **options):
    """A bank's module and variables."""
    module = filterbank.Filterbank(filterbank.FilterbankConfig(**options))
    return module, module.init(jax.random.key(1), audio, lengths, train=True)


@pytest.mark.parametrize("rank", [None, 24])
@pytest.mark.parametrize("normalize", filterbank.NORMALIZATIONS)
def test_filterbank_padded_equals_alone(rank, normalize):
    audio = 0.1 * jax.random.normal(jax.random.key(0), (2, 4000))
    audio = audio.at[1, 1230:].set(jnp.nan)
    lengths = jnp.array([4000, 1230])
    module, variables = bank_of(audio, lengths, num_filters=40, rank=rank, normalize=normalize)
    y, frames = module.apply(variables, audio, lengths, train=False)
    np.testing.assert_array_equal(frames, [25, 8])
    alone, _ = module.apply(variables, audio[1:, :1230], lengths[1:], train=False)
    np.testing.assert_allclose(y[1, :8], alone[0], rtol=1e-5, atol=1e-5)
    assert bool((y[1, 8:] == 0).all())


def test_filterbank_normalises_as_it_is_told():
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


@pytest.mark.parametrize("pooling", [1, 4])
def test_filterbank_frames_against_a_loop(pooling):
    """Of float64, over every energy; a window that is no multiple of the hop."""
    audio, lengths = np.random.default_rng(0).normal(size=1700), jnp.array([1700])
    given = jnp.asarray(audio[None], jnp.float32)
    options = {"num_filters": 3, "window_samples": 390, "normalize": "none"}
    module, variables = bank_of(given, lengths, **options, pooling=pooling)
    y, _ = module.apply(variables, given, lengths, train=False)
    filters = np.asarray(variables["params"]["kernel"], np.float64)
    padded = np.pad(audio, (160, 600))
    step = 160 // pooling
    for i in range(11):
        energy = np.zeros(3)
        for k in range(1 - pooling, pooling):
            start = 160 + 160 * i + step * k
            found = padded[start : start + 390] @ filters
            # A Hann window of two frames, whose weights add up to one.
            weight = np.cos(np.pi * k / (2 * pooling)) ** 2 / pooling
            energy += weight * (found[:3] ** 2 + found[3:] ** 2)
        np.testing.assert_allclose(y[0, i], np.log(energy + 1e-5), rtol=1e-4, atol=1e-4)


def test_pooled_energies_do_not_hang_on_where_a_click_falls():
    """The top filter sees 5 ms: of clicks 10 ms apart it sees all, or without pooling none."""

    def spread(pooling):
        clicks = np.zeros((4, 3200), np.float32)
        for row in range(4):
            clicks[row, 40 * row :: 160] = 1.0
        clicks, lengths = jnp.asarray(clicks), jnp.full(4, 3200)
        options = {"num_filters": 40, "normalize": "none", "pooling": pooling}
        module, variables = bank_of(clicks, lengths, **options)
        y, _ = module.apply(variables, clicks, lengths, train=False)
        return float(np.ptp(np.asarray(y)[:, 10, -1]))

    assert spread(4) < 0.1
    assert spread(1) > 3.0


def test_pooling_that_does_not_divide_the_hop():
    with pytest.raises(ValueError, match="choose one of 1, 2, 5,"):
        filterbank.FilterbankConfig(hop_samples=110)


def test_the_banks_row_of_the_table():
    for rank, size in ((None, 400 * 160), (24, 24 * (400 + 160))):
        config = filterbank.FilterbankConfig(rank=rank)
        _, variables = bank_of(jnp.zeros((1, 1600)), jnp.array([1600]), rank=rank)
        (row,) = lowrank.measured(lowrank.bank_costs(config, variables["params"]))
        assert (row.shape, row.rank) == ((400, 160), rank or 160)
        assert row.parameters == contextnet.count_parameters(variables["params"]) == size
        assert row.macs_per_second == 400 * size  # energies a second
        assert 1 < row.stable_rank <= row.entropy_rank <= row.rank


def test_filterbank_truncation_error_is_the_tail_and_merging_changes_nothing():
    audio, lengths = 0.1 * jax.random.normal(jax.random.key(0), (1, 4000)), jnp.array([4000])
    options = {"num_filters": 40, "normalize": "batch"}
    dense_module, dense = bank_of(audio, lengths, **options)
    low_module, low = bank_of(audio, lengths, **options, rank=30)
    factored = filterbank.factor(dense["params"], 30)
    assert jax.tree.map(jnp.shape, factored) == jax.tree.map(jnp.shape, low["params"])
    kernel = np.asarray(dense["params"]["kernel"], np.float64)
    found = np.asarray(filterbank.impulse_responses(factored), np.float64)
    eigenvalues = np.linalg.eigvalsh(kernel.T @ kernel)  # ascending: of 80, the tail are 50
    np.testing.assert_allclose(np.sum((kernel - found) ** 2), eigenvalues[:50].sum(), rtol=1e-4)
    ((_, share, constant),) = filterbank.truncations(kernel, [30])
    assert share == pytest.approx(eigenvalues[50:].sum() / eigenvalues.sum(), rel=1e-4)
    assert 10 < constant < 20

    y, _ = low_module.apply({**low, "params": factored}, audio, lengths, train=False)
    merged = {**dense, "params": filterbank.merge(factored)}
    z, _ = dense_module.apply(merged, audio, lengths, train=False)
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)
    # Again from the factored form; and at full rank nothing is lost.
    again = filterbank.factor(factored, 30)
    np.testing.assert_allclose(filterbank.impulse_responses(again), found, atol=1e-6)
    full = filterbank.factor(dense["params"], 80)
    np.testing.assert_allclose(filterbank.impulse_responses(full), kernel, rtol=1e-4, atol=1e-6)


def test_constant_features_are_those_that_do_not_move(caplog):
    """On noise at the level of speech, and for a bank that is of low rank already."""
    rng = np.random.default_rng(0)
    loudness = np.exp(np.repeat(rng.normal(size=10), 1600))  # or noise would hardly move any
    audio = jnp.asarray(0.05 * loudness * rng.normal(size=16000), jnp.float32)[None]
    lengths = jnp.array([16000])
    module, variables = bank_of(audio, lengths, num_filters=40, normalize="none", rank=24)
    y, _ = module.apply(variables, audio, lengths, train=False)
    moves = np.asarray(y)[0].std(axis=0)
    filters = np.asarray(filterbank.impulse_responses(variables["params"]))
    ((_, share, constant),) = filterbank.truncations(filters, [24])
    assert share == pytest.approx(1.0, abs=1e-5)
    assert constant == 21
    assert np.sum(moves < 0.05) <= constant <= np.sum(moves < 0.5)  # of 0 to 1.5
    filterbank.warn_of_constant(filters, 24)
    assert "leaves 21 of 40 features constant" in caplog.text
    assert filterbank.describe(variables["params"]).splitlines()[-1].split()[-3:] == (
        ["21", "of", "40"]
    )


def test_mel_initialisation_finds_the_frequency():
    time = np.arange(3200) / 16_000
    audio = jnp.asarray(np.sin(2 * np.pi * 1000.0 * time)[None], jnp.float32)
    module, variables = bank_of(audio, jnp.array([3200]), normalize="none")
    y, _ = module.apply(variables, audio, jnp.array([3200]), train=False)
    edges = np.linspace(0, 1, 82)

    def mel(hz):
        return 2595 * np.log10(1 + hz / 700)

    mels = mel(60.0) + edges[1:-1] * (mel(7600.0) - mel(60.0))
    middle = np.asarray(y)[0, 2:17]
    assert set(middle.argmax(1)) <= {int(np.abs(mels - mel(1000.0)).argmin())}
    # A unit sinusoid near a centre: energy near 1, whatever its phase.
    np.testing.assert_allclose(middle.max(1), 0.0, atol=0.2)
    assert float(np.ptp(middle.max(1))) < 0.02
