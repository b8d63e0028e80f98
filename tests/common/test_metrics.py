"""Sums and counts: rows outside the mask, uneven devices, an interval of known width."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from common import metrics


def test_masked_values_do_not_count_even_when_nan():
    made = metrics.ratio(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True]))
    assert metrics.finalize({"loss": made}) == {"loss": 2.0}
    assert metrics.finalize({"loss": metrics.ratio(jnp.array([[1, 2], [3, 6]]))}) == {"loss": 3.0}
    assert metrics.finalize({"lr": metrics.gauge(0.5)}) == {"lr": 0.5}


def test_nothing_counted_is_nan_and_nan_stays_nan():
    values = metrics.finalize({"a": metrics.Ratio(0.0, 0), "b": metrics.Ratio(math.nan, 2)})
    assert math.isnan(values["a"])
    assert math.isnan(values["b"])
    assert all(type(v) is float for v in values.values())


def test_add_and_merge_keep_every_name():
    a = {"loss": metrics.Ratio(1, 2), "only_a": metrics.Ratio(5, 5)}
    b = {"loss": metrics.Ratio(3, 2), "only_b": metrics.Ratio(4, 2)}
    expected = {"loss": 1.0, "only_a": 1.0, "only_b": 2.0}
    assert metrics.finalize(metrics.add(a, b)) == expected
    assert metrics.finalize(metrics.merge([a, b])) == expected
    assert metrics.merge([]) == {}


def test_merge_counts_beyond_float32():
    """2**24 + 1 is not a float32: a sum of a whole set must not be one."""
    one = {"n": metrics.Ratio(jnp.float32(1), jnp.float32(1))}
    merged = metrics.merge([{"n": metrics.Ratio(2.0**24, 2.0**24)}, one])
    assert float(merged["n"].count) == 2.0**24 + 1


def test_psum_over_uneven_devices_is_the_mean_over_real_rows():
    """Devices with 0 to 7 real rows of 8: the mean of their means would be another number."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    mask = (np.arange(64) % 8) < (np.arange(64) // 8)

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False
    )
    def step(values, mask):
        local = {"loss": metrics.ratio(values, mask)}
        return metrics.psum(local, "data")

    found = step(values, mask)
    assert isinstance(found["loss"], metrics.Ratio)
    assert float(found["loss"].count) == mask.sum()
    # 28 float32 values of order 1, summed in two orders: a few units of 1e-7.
    assert metrics.finalize(found)["loss"] == pytest.approx(values[mask].mean(), abs=1e-6)


def test_interval_has_the_width_of_the_normal_approximation():
    """Mean of 400 numbers of variance 1: +-1.96 / 20, within the 10 % that 2,000 draws give."""
    values = np.random.default_rng(1).normal(size=400)
    values = (values - values.mean()) / values.std()
    rates = metrics.resampled_rates(values, np.ones(400), num_resamples=2000)
    low, high = metrics.percentile_interval(rates)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    np.testing.assert_array_equal(
        rates, metrics.resampled_rates(values, np.ones(400), num_resamples=2000)
    )
    narrow = metrics.percentile_interval(rates, 0.5)
    assert low < narrow[0] < 0 < narrow[1] < high


def test_interval_says_nothing_of_one_item():
    for totals, counts in ((0, 0), (1, 1)):
        assert not len(metrics.resampled_rates(np.ones(totals), np.ones(counts)))
    assert not len(metrics.resampled_rates(np.ones(3), np.zeros(3)))
    assert all(math.isnan(v) for v in metrics.percentile_interval(np.ones(0)))
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        metrics.percentile_interval(np.ones(3), 95.0)


def test_an_interval_over_groups_is_that_of_their_values_together():
    """Items of one group are copies: as many groups as items, and the interval is that of a mean.

    Against 1.96 standard errors of 100 normal numbers; 1000 resamples are good for some percent.
    """
    rng = np.random.default_rng(0)
    each = rng.normal(3.0, 2.0, size=100)
    groups = np.repeat([f"g{k:03}" for k in range(100)], 4)
    low, high = metrics.group_interval(np.repeat(each, 4), groups, np.mean)
    assert high - low == pytest.approx(2 * 1.96 * np.std(each) / 10, rel=0.1)
    assert low < np.mean(each) < high
    assert metrics.group_interval(np.ones(8), groups[:8], np.median) == (1.0, 1.0)
    assert np.isnan(metrics.group_interval(each[:4], groups[:4], np.median)).all()
