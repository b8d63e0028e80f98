"""Mixtures: who talks, how loud, when; and that they follow from the seed alone."""

import dataclasses

import numpy as np
import pytest

from common import errors
from common.data import buckets, clips, examples, pipeline, records, speech
from separation import mixing, surroundings

RATE_HZ = 1000
SPEAKERS = "aaabbbccd"  # d has one recording


def crops(speakers: str = SPEAKERS, seconds: float = 2.0) -> speech.SpeechCrops:
    """Recording k holds (k + 1) / 100 and a ramp far below that, which tells its samples apart."""
    count = round(seconds * RATE_HZ)
    ramp = np.arange(count) * 1e-7
    rows = [
        {"id": f"{name}{k}", "audio": np.float32((k + 1) / 100 + ramp), "sample_rate": RATE_HZ}
        | {"speaker": name}
        for k, name in enumerate(speakers)
    ]
    index = records.Index(np.arange(len(rows)), np.full(len(rows), count), RATE_HZ)
    labels = np.unique(list(speakers), return_inverse=True)[1].astype(np.int32)
    return speech.SpeechCrops(records.RecordList("toy", rows), index, labels, RATE_HZ)


def mixtures(speakers: str = SPEAKERS, **config) -> mixing.Mixtures:
    found = crops(speakers)
    places, settings = np.arange(len(speakers)), mixing.MixingConfig(**config)
    return mixing.Mixtures(found, places, settings, num_samples=600, num_enrolment=500)


def drawn(found: mixing.Mixtures, count: int = 60) -> list[dict]:
    return [found.draw(i % len(found), np.random.default_rng([7, i]), {}) for i in range(count)]


def test_each_voice_is_another_and_the_enrolment_another_recording_of_the_target():
    rows = drawn(mixtures(interferers=(1, 3)))
    counts = set()
    for row in rows:
        target = SPEAKERS[row["index"]]
        others = [SPEAKERS[k] for k in row["interferer_index"] if k >= 0]
        counts.add(len(others))
        assert len({target, *others}) == 1 + len(others)
        assert SPEAKERS[row["enrolment_index"]] == target
        assert (row["enrolment_index"] != row["index"]) == (target != "d")
        silent = ~row["sources"].any(0)
        assert silent.tolist() == [False, *(row["interferer_index"] < 0)]
    assert counts == {1, 2, 3}
    heard = {int(k) for row in rows for k in row["interferer_index"]}
    assert heard == {-1, *range(len(SPEAKERS))}


def test_a_speaker_with_one_recording_is_known_by_another_stretch_of_it():
    found = mixtures()
    starts = set()
    for seed in range(20):
        row = found.draw(8, np.random.default_rng(seed), {})
        assert (len(row["sources"]), len(row["enrolment"])) == (600, 500)
        known = np.round((row["enrolment"] - 0.09) / 1e-7)
        scale = row["sources"][0, 0] / row["sources"][-1, 0]
        # The first of the target's samples, from the ratio of a ramp's two ends.
        first = (599e-7 * scale / (1 - scale) - 0.09) / 1e-7
        starts.add(round(first / 100))
        assert known[-1] < first + 60 or known[0] > first + 540  # to the rounding of float32
    assert len(starts) > 5
    assert found.lengths.tolist() == [600] * 9
    assert dataclasses.replace(found, num_samples=1500).lengths.tolist() == [1500] * 8 + [1000]


def test_in_training_the_first_other_voice_may_be_known_too():
    alone = mixtures(interferers=(1, 2))
    for row, unpaired in zip(
        drawn(dataclasses.replace(alone, paired=True)), drawn(alone), strict=True
    ):
        first = int(row["interferer_index"][0])
        recording = round(float(row["other_enrolment"][0]) * 100) - 1
        assert SPEAKERS[recording] == SPEAKERS[first]
        assert (recording != first) == (SPEAKERS[first] != "d")
        assert row["other_speaker"] == "abcd".index(SPEAKERS[first])
        for name, value in unpaired.items():
            if name not in ("sources", "snr_db"):  # from a stretch of the other voice
                np.testing.assert_equal(row[name], value)


def test_a_voice_at_another_speed_is_another_speaker():
    found = dataclasses.replace(mixtures(), paired=True, speeds=(1.0, 0.8, 1.25), num_speakers=4)
    heard = set()
    for row in drawn(found, 40):
        own = int(row["target_index"])
        k, speaker = divmod(int(row["speaker"]), 4)
        assert "abcd"[speaker] == SPEAKERS[own]
        heard |= {int(row["speaker"]) // 4, int(row["other_speaker"]) // 4}
        # The ramp of the middle, where the ends of the resampling are far away.
        for audio, number in ((row["enrolment"], k), (row["other_enrolment"], None)):
            number = row["other_speaker"] // 4 if number is None else number
            slope = float(audio[-150] - audio[150]) / (len(audio) - 300)
            assert slope == pytest.approx(1e-7 * found.speeds[number], rel=0.03)
    assert heard == {0, 1, 2}


def test_levels_shares_and_absence_are_as_asked():
    settings = {"snr_db": (-3.0, 6.0), "overlap": (0.3, 0.5), "level_db": (-30.0, -20.0)}
    rows = drawn(mixtures(**settings, absent=0.25), 200)
    snrs, shares, levels, starts = [], [], [], []
    for row in rows:
        other = row["sources"][:, 1]
        talks = np.flatnonzero(other)
        assert np.all(np.diff(talks) == 1)
        shares.append(len(talks) / len(other))
        starts.append(talks[0])
        levels.append(10 * np.log10(np.mean(row["sources"].sum(1) ** 2)))
        if row["present"]:
            target = row["sources"][:, 0]
            snrs.append(10 * np.log10(np.mean(target**2) / np.mean(other[talks] ** 2)))
            whole = 10 * np.log10(np.mean(target**2) / np.mean(other**2))
            assert row["snr_db"] == pytest.approx(whole, abs=1e-3)
        else:
            assert not row["sources"][:, 0].any()
    for found, (low, high) in (
        (snrs, (-3, 6)),
        (shares, (0.3, 0.5)),
        (levels, (-30, -20)),
        (starts, (0, 420)),
    ):
        span = high - low
        assert low - 1e-2 <= min(found) < low + 0.1 * span
        assert high + 1e-2 >= max(found) > high - 0.15 * span
    absent = np.mean([not row["present"] for row in rows])
    assert 0.16 < absent < 0.34  # 200 throws of 0.25: three deviations


def test_batches_follow_from_the_seed_and_their_number_and_go_on_where_they_stopped():
    found = mixtures(interferers=(1, 2), absent=0.2)
    shape = buckets.Bucket(4, {"sources": 600, "enrolment": 500})
    sizes = {name: np.full(9, most) for name, most in shape.lengths.items()}

    def stream(**options):
        return iter(pipeline.train_batches(found, (shape,), sizes, seed=3, **options))

    whole = stream()
    batches = [next(whole) for _ in range(5)]
    resumed = stream()
    resumed.set_state({**resumed.get_state(), "next_batch": 3})
    for batch in batches[3:]:
        np.testing.assert_equal(next(resumed), batch)
    halves = [stream(process_index=p, process_count=2) for p in range(2)]
    for batch in batches[:2]:
        parts = [next(half) for half in halves]
        for name, values in batch.items():
            np.testing.assert_equal(np.concatenate([part[name] for part in parts]), values)
    seen = [(int(i), b["sources"][r].tobytes()) for b in batches for r, i in enumerate(b["index"])]
    seen = [(i, mixture) for i, mixture in seen if i >= 0]
    assert len(set(seen)) == len(seen) > len({i for i, _ in seen})  # anew in every epoch


def test_mixtures_are_as_long_as_drawn_for_each_and_batches_say_so():
    """By the seed, step and row alone: two hosts have the rows of one, and it is resumed."""
    fixed = dataclasses.replace(mixtures(interferers=(1, 2)), paired=True)
    found = dataclasses.replace(fixed, shortest=200)
    sizes = []
    for row, whole in zip(drawn(found, 200), drawn(fixed, 200), strict=True):
        sizes.append(len(row["sources"]))
        assert row["sources"].any(0).tolist() == whole["sources"].any(0).tolist()
        for name in ("interferer_index", "enrolment", "present", "speaker"):
            if row["id"] != "d8" or name != "enrolment":  # of the rest of the same recording
                np.testing.assert_equal(row[name], whole[name])
    assert 200 <= min(sizes) < 220  # 200 draws out of 401 lengths
    assert 600 >= max(sizes) > 580
    assert np.mean(sizes) == pytest.approx(400, abs=4 * 401 / 12**0.5 / 200**0.5)
    bounds = {"sources": 600, "enrolment": 500, "other_enrolment": 500}
    shape, most = buckets.Bucket(4, bounds), {k: np.full(9, v) for k, v in bounds.items()}

    def stream(**options):
        return iter(pipeline.train_batches(found, (shape,), most, seed=3, **options))

    whole = stream()
    batches = [next(whole) for _ in range(4)]
    resumed = stream()
    resumed.set_state({**resumed.get_state(), "next_batch": 3})
    np.testing.assert_equal(next(resumed), batches[3])
    halves = [stream(process_index=p, process_count=2) for p in range(2)]
    for batch in batches:
        assert batch["sources"].shape[1] == 600
        for audio, length in zip(batch["sources"], batch["sources_lengths"], strict=True):
            assert np.all(audio[:length].sum(1) != 0)
            assert not audio[length:].any()
        parts = [next(half) for half in halves]
        for name, values in batch.items():
            np.testing.assert_equal(np.concatenate([part[name] for part in parts]), values)
    assert len({int(n) for batch in batches for n in batch["sources_lengths"]}) > 8


def test_mixtures_of_one_length_are_told_apart_by_what_they_were_before():
    """Runs from before there were others go on: `identity` is compared with their checkpoints."""
    found = mixtures()
    settings = "MixingConfig(interferers=(1, 1), snr_db=(-5.0, 5.0), overlap=(1.0, 1.0), "
    settings += "absent=0.0, level_db=(-35.0, -15.0), noisy_enrolment=0.0, "
    settings += "enrolment_snr_db=(0.0, 10.0))"
    assert found.identity["mixing"] == f"({settings}, 600, 500, {list(range(9))})"
    assert set(found.identity) == {*found.crops.identity, "mixing"}
    other = dataclasses.replace(found, shortest=200).identity
    assert other == {**found.identity, "shortest": "200"}


def test_an_evaluation_has_the_same_mixtures_in_every_bucket():
    found = mixtures(absent=0.3)
    np.testing.assert_equal(
        found.draw(2, None, {"sources": 600}), found.draw(2, None, {"sources": 9999})
    )
    other = dataclasses.replace(found, seed=1).draw(2, None, {})
    assert not np.array_equal(found.draw(2, None, {})["sources"], other["sources"])


def around(probability: float = 1.0, room: float = 0.0) -> surroundings.Surroundings:
    """Noise of 0.3 s (a whole number of periods of nothing), and a room of two reflections."""
    noise = np.random.default_rng(5).normal(size=300).astype(np.float32)
    response = np.zeros(200, np.float32)
    response[[10, 40, 150]] = 1.0, -0.5, 0.4  # 50 samples after the direct sound are early
    found = {}
    for name, audio, share, length in (
        ("rir", response, room, 200),
        ("noise", noise, probability, None),
    ):
        source = records.RecordList(name, [{"id": "x", "audio": audio, "sample_rate": RATE_HZ}])
        index = records.Index(np.arange(1), np.array([len(audio)]), RATE_HZ)
        drawn = clips.Clips(source, index, RATE_HZ, crop=name == "noise")
        found[name] = examples.Companion(drawn, share, length)
    return surroundings.Surroundings(found, {"noise": (3.0, 12.0)}, RATE_HZ)


def test_noise_is_a_source_of_its_own_at_the_ratio_asked_for():
    found = mixtures(absent=0.2)
    noisy, plain = dataclasses.replace(found, around=around()), drawn(found)
    ratios = []
    for row, dry in zip(drawn(noisy), plain, strict=True):
        assert row["sources"].shape == (600, 3)
        noise = row["sources"][:, 2]
        np.testing.assert_allclose(noise[:300], noise[300:], rtol=1e-5)  # short: repeated
        if not row["present"]:
            continue
        power = np.mean(np.square(row["sources"], dtype=np.float64), axis=0)
        ratios.append(10 * np.log10(power[0] / power[2]))
        rest = np.mean(np.square(row["sources"][:, 1:].sum(1), dtype=np.float64))
        assert row["snr_db"] == pytest.approx(10 * np.log10(power[0] / rest), abs=1e-3)
        # Everything else is drawn as without it; the level of the whole is the same.
        scale = row["sources"][0, 0] / dry["sources"][0, 0]
        np.testing.assert_allclose(row["sources"][:, :2], scale * dry["sources"], rtol=1e-4)
    assert 3 - 1e-3 < min(ratios) < 4 < 11 < max(ratios) < 12 + 1e-3
    some = dataclasses.replace(found, around=around(0.5))
    share = np.mean([row["sources"][:, 2].any() for row in drawn(some, 200)])
    assert 0.38 < share < 0.62  # three deviations
    assert len({str(f.identity) for f in (found, noisy, some)}) == 3


@pytest.mark.parametrize("probability", [1.0, 0.3])
def test_a_voice_in_noise_is_never_without_noise(probability):
    found = mixtures(interferers=(1, 1))
    alone = mixing.MixingConfig(interferers=(0, 0), absent=0.2)
    found = dataclasses.replace(found, config=alone, around=around(probability))
    assert found.num_voices == 1
    for row in drawn(found):
        assert row["sources"].shape == (600, 2)
        assert row["interferer_index"].shape == (0,)
        assert row["sources"][:, 1].any()
        if row["present"]:
            power = np.mean(np.square(row["sources"], dtype=np.float64), axis=0)
            assert row["snr_db"] == pytest.approx(10 * np.log10(power[0] / power[1]), abs=1e-3)
            assert 3 - 1e-3 < row["snr_db"] < 12 + 1e-3


@pytest.mark.parametrize("keeps_late", [False, True])
def test_a_room_leaves_the_early_sound_to_each_voice_and_the_rest_to_the_noise(keeps_late):
    """Both voices are targets of a training mixture: what is wanted of them is of one kind."""
    found = dataclasses.replace(mixtures(), around=around(0.0, room=1.0), keeps_late=keeps_late)
    for row, dry in zip(drawn(found, 20), drawn(mixtures(), 20), strict=True):
        wet = []
        for voice in dry["sources"].T:
            early, late = voice.copy(), np.zeros_like(voice)
            early[30:] -= 0.5 * voice[:-30]
            late[140:] = 0.4 * voice[:-140]
            wet.append((early, late))
        early, late = (row["sources"][0, 0] / wet[0][0][0] * x for x in wet[0])
        # FFT against direct sums: float32 over 600 samples.
        np.testing.assert_allclose(row["sources"][:, 0], early, atol=1e-5)
        whole = sum(wet[1])
        scale = row["sources"][0, 1] / whole[0]
        expected = whole if keeps_late else wet[1][0]
        np.testing.assert_allclose(row["sources"][:, 1], scale * expected, atol=1e-5)
        if not keeps_late:
            late = late + scale * wet[1][1]
        np.testing.assert_allclose(row["sources"][:, 2], late, atol=1e-5)
    identities = [dataclasses.replace(found, keeps_late=x).identity for x in (False, True)]
    assert identities[0] != identities[1]


def test_an_absent_target_leaves_no_reverberation():
    found = dataclasses.replace(mixtures(absent=0.5), around=around(0.0, room=1.0))
    found = dataclasses.replace(found, keeps_late=True)  # of the target alone, to look at it
    rows = [row for row in drawn(found) if not row["present"]]
    assert len(rows) > 10
    assert not any(row["sources"][:, [0, 2]].any() for row in rows)


def test_an_enrolment_may_hold_noise_or_another_voice():
    """The ramp of recording k is all but constant: what is added shows as a change of level."""
    settings = {"noisy_enrolment": 0.5, "enrolment_snr_db": (6.0, 6.0)}
    clean, kinds = drawn(mixtures()), set()
    noisy = dataclasses.replace(mixtures(**settings), around=around())
    for row, dry in zip(drawn(noisy), clean, strict=True):
        added = row["enrolment"] - dry["enrolment"]
        assert row["noisy"] == bool(added.any())
        if row["noisy"]:
            ratio = np.mean(np.square(dry["enrolment"])) / np.mean(np.square(added))
            assert 10 * np.log10(ratio) == pytest.approx(6, abs=1e-2)
            kinds.add("voice" if added.std() < 1e-3 else "noise")
        np.testing.assert_equal(row["target_index"], dry["target_index"])
    assert kinds == {"voice", "noise"}
    share = np.mean([row["noisy"] for row in drawn(noisy, 200)])
    assert 0.38 < share < 0.62


def test_what_cannot_be_mixed_is_said():
    with pytest.raises(errors.UserError, match=r"toy: 1 speaker.*up to 2"):
        mixtures("aaa")
    with pytest.raises(errors.UserError, match=r"config\.mixing\.snr_db=\(5, -5\)"):
        mixing.MixingConfig(snr_db=(5, -5))
    with pytest.raises(errors.UserError, match=r"config\.mixing\.absent=1"):
        mixing.MixingConfig(absent=1)
    with pytest.raises(errors.UserError, match=r"interferers=\(0, 2\): one voice at least, or"):
        mixing.MixingConfig(interferers=(0, 2))
    alone, found = mixing.MixingConfig(interferers=(0, 0)), mixtures()
    with pytest.raises(errors.UserError, match=r"interferers=\(0, 0\) without noise"):
        dataclasses.replace(found, config=alone, around=None)
    with pytest.raises(errors.UserError, match=r"two voices are wanted.*enhancement=True"):
        dataclasses.replace(found, config=alone, around=around(), paired=True)
    with pytest.raises(errors.UserError, match=r"config\.mixing\.noisy_enrolment=2"):
        mixing.MixingConfig(noisy_enrolment=2)
