"""Bucket choice: least padding against brute force, limits, assignment."""

import itertools

import numpy as np
import pytest

from common.data import buckets, records


def cost_by_hand(lengths, cuts, max_total, multiple):
    """Padded total of an epoch if sorted `lengths` are cut before the positions `cuts`."""
    total = 0
    for begin, end in itertools.pairwise((0, *cuts, len(lengths))):
        top, count = lengths[end - 1], end - begin
        most = max_total // top // multiple * multiple
        batches = -(-count // most)
        rows = -(-(-(-count // batches)) // multiple) * multiple  # noqa: B002
        total += batches * rows * top
    return total


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_padding_is_least_among_all_cuts(seed, multiple):
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.choice(200, 16, replace=False) + 20)
    sizes = {"audio": rng.permutation(lengths)}
    # So long that no bucket can fill a batch: then every cut is allowed.
    max_total = 100 * int(lengths[-1])
    chosen = buckets.choose_buckets(
        sizes, primary="audio", num_buckets=3, max_total=max_total, rows_multiple_of=multiple
    )
    every = itertools.chain.from_iterable(itertools.combinations(range(1, 16), k) for k in range(3))
    least = min(cost_by_hand(lengths, cuts, max_total, multiple) for cuts in every)
    share = buckets.padding_share(chosen, sizes, "audio")
    np.testing.assert_allclose(share, 1 - lengths.sum() / least, rtol=1e-12)


def speech_like(count=5000, seed=0):
    rng = np.random.default_rng(seed)
    samples = np.round(rng.gamma(6.0, 2.0, count).clip(1, 30) * 16_000).astype(int)
    return {"audio": samples, "labels": samples // 1200}


def test_four_buckets_waste_less_than_one_and_keep_the_limits():
    sizes = speech_like()
    options = {"primary": "audio", "max_total": 16_000 * 320, "rows_multiple_of": 8}
    shares = []
    for num_buckets in (1, 2, 4, 8):
        chosen = buckets.choose_buckets(sizes, num_buckets=num_buckets, **options)
        assert len(chosen) <= num_buckets
        for bucket in chosen:
            assert bucket.rows % 8 == 0
            assert bucket.rows * bucket.lengths["audio"] <= options["max_total"]
            assert bucket.lengths["labels"] % 8 == 0
        assert [b.lengths["audio"] for b in chosen] == sorted(b.lengths["audio"] for b in chosen)
        assigned = buckets.assign(chosen, sizes, 5000)
        for name, size in sizes.items():
            assert (size <= np.array([b.lengths[name] for b in chosen])[assigned]).all()
        # No bucket is so small that its batch is a handful of outliers.
        for b, bucket in enumerate(chosen):
            assert (assigned == b).sum() >= bucket.rows
        shares.append(buckets.padding_share(chosen, sizes, "audio"))
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.5 * shares[0]


@pytest.mark.parametrize("num_buckets", [1, 3])
def test_an_epoch_has_one_of_several_versions(num_buckets):
    """So as many rows as there would be without them, and no bucket that an epoch cannot fill."""
    sizes = {"audio": np.random.default_rng(0).choice(200, 40, replace=False) + 20}
    thrice = {"audio": np.tile(sizes["audio"], 3)}
    options = {"primary": "audio", "num_buckets": num_buckets, "rows_multiple_of": 2}
    options["max_total"] = 30 * 200
    one = buckets.choose_buckets(sizes, **options)
    assert buckets.choose_buckets(thrice, versions=3, **options) == one
    assert buckets.choose_buckets(thrice, **options) != one


def test_batches_of_many_rows_are_the_same_for_1_to_8_devices():
    sizes = speech_like(28_000)  # of LibriSpeech's clean 100 hours
    large = {"primary": "audio", "num_buckets": 4, "max_total": 16_000 * 2400, "accumulate": 2}
    chosen = {n: buckets.choose_for_devices(sizes, devices=n, **large) for n in (1, 2, 4, 8, 16)}
    assert chosen[1] == chosen[2] == chosen[4] == chosen[8] != chosen[16]
    for devices, shapes in chosen.items():
        assert all(bucket.rows % (2 * devices) == 0 for bucket in shapes)
    # With few rows that would cost a fifth of every batch: each number of devices has its own.
    small = {"primary": "audio", "num_buckets": 3, "max_total": 16_000 * 280}
    for devices in (1, 2, 4, 8):
        expected = buckets.choose_buckets(sizes, rows_multiple_of=devices, **small)
        assert buckets.choose_for_devices(sizes, devices=devices, accumulate=1, **small) == expected
    # Eight of the longest fit in no batch, one does.
    tiny = small | {"max_total": 16_000 * 100}
    expected = buckets.choose_buckets(sizes, rows_multiple_of=1, **tiny)
    assert buckets.choose_for_devices(sizes, devices=1, accumulate=1, **tiny) == expected


def test_labels_are_rounded_up_from_the_longest_in_the_bucket():
    sizes = {"audio": np.repeat([10, 100], [10, 1]), "labels": np.repeat([3, 9, 0], [9, 1, 1])}
    short, long = buckets.choose_buckets(
        sizes, primary="audio", num_buckets=2, max_total=100, rows_multiple_of=1
    )
    assert short == buckets.Bucket(10, {"audio": 10, "labels": 16})
    assert long == buckets.Bucket(1, {"audio": 100, "labels": 8})


def test_equal_lengths_and_single_records():
    one = {"audio": np.array([7])}
    options = {"primary": "audio", "num_buckets": 4, "max_total": 100}
    assert buckets.choose_buckets(one, rows_multiple_of=2, **options) == (
        buckets.Bucket(2, {"audio": 7}),
    )
    same = {"audio": np.full(30, 10)}
    chosen = buckets.choose_buckets(same, rows_multiple_of=1, **options)
    assert chosen == (buckets.Bucket(10, {"audio": 10}),)
    assert buckets.padding_share(chosen, same, "audio") == 0.0


def test_what_does_not_fit_is_named():
    sizes, empty = {"audio": np.array([10, 90])}, {"audio": np.zeros(0, int)}
    options = {"primary": "audio", "num_buckets": 2}
    with pytest.raises(records.DataError, match=r"\(90 in 'audio'\) times 2 rows"):
        buckets.choose_buckets(sizes, max_total=100, rows_multiple_of=2, **options)
    with pytest.raises(records.DataError, match="no records"):
        buckets.choose_buckets(empty, max_total=100, rows_multiple_of=2, **options)
    chosen = buckets.choose_buckets(sizes, max_total=100, rows_multiple_of=1, **options)
    with pytest.raises(records.DataError, match=r"1 of 3 records fit no bucket.* number 1"):
        buckets.assign(chosen, {"audio": np.array([90, 91, 2])}, 3)


def test_records_without_any_length_share_a_bucket():
    np.testing.assert_array_equal(buckets.assign((buckets.Bucket(4, {}),), {}, 3), [0, 0, 0])
