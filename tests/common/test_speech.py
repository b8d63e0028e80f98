"""Recordings as examples: whole and cropped to the sample, at every rate, and named when broken."""

import dataclasses
import functools

import numpy as np
import pytest
import soundfile

from common.audio import io, vad
from common.data import ark, buckets, indexing, pipeline, records, speech

WANTED_HZ = 16_000


@pytest.fixture(scope="module", params=[16_000, 22_050, 44_100])
def crops(request, tmp_path_factory):
    """Six files of 0.2 to 0.5 s at one rate, the fourth and fifth being stretches of theirs."""
    folder, rate_hz = tmp_path_factory.mktemp("speech"), request.param
    rng, rows = np.random.default_rng(rate_hz), []
    for i, count in enumerate(rng.integers(rate_hz // 5, rate_hz // 2, 6)):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.normal(size=count), rate_hz)
        rows.append({"id": f"u{i}", "audio": str(folder / f"{i}.wav"), "speaker": f"s{i % 2}"})
    rows[3] |= {"start": 0.0317, "duration": 0.1111}
    rows[4] |= {"start": 0.0223}
    source = records.RecordList("speech", tuple(rows))
    index = indexing.build_index(
        source,
        cache=None,
        rejected_tsv=folder / "rejected.tsv",
        sample_rate_hz=WANTED_HZ,
        min_seconds=0.01,
        max_seconds=1.0,
        require_text=False,
        max_bad_share=0.0,
        num_workers=1,
        progress=False,
    )
    return speech.SpeechCrops(source, index, np.arange(6) % 2, WANTED_HZ)


def test_whole_recordings_fit_to_the_sample(crops, caplog):
    lengths = crops.index.lengths
    examples = speech.SpeechExamples(crops.source, crops.index.positions, WANTED_HZ)
    for made in (crops, examples):
        shapes = tuple(buckets.Bucket(1, {"audio": int(n)}) for n in sorted(lengths))
        batches = list(pipeline.eval_batches(made, shapes, {"audio": lengths}))
        assert len(batches) == 6
        for batch in batches:
            assert batch["audio_lengths"].tolist() == [batch["audio"].shape[1]]
    assert not caplog.messages


def test_crops_are_stretches_to_the_sample(crops):
    """As long as there is room, and what stands there in the whole recording."""
    starts = set()
    for i, count in enumerate(crops.index.lengths):
        whole = crops.draw(i, None, {})
        assert len(whole["audio"]) == count
        assert (whole["id"], whole["speaker"], int(whole["label"])) == (f"u{i}", f"s{i % 2}", i % 2)
        windows = np.lib.stride_tricks.sliding_window_view(whole["audio"], 1000)
        for seed in range(12):
            audio = crops.draw(i, np.random.default_rng(seed), {"audio": 1000})["audio"]
            assert len(audio) == 1000
            distance = np.abs(windows - audio).max(1)
            starts.add((i, int(np.argmin(distance))))
            # A stretch is resampled with context: to the resampler's own accuracy.
            assert distance.min() < 1e-4
        first = crops.draw(i, None, {"audio": 1000})["audio"]
        np.testing.assert_allclose(first, whole["audio"][:1000], atol=1e-4)
        longer = crops.draw(i, np.random.default_rng(0), {"audio": int(count) + 9})["audio"]
        np.testing.assert_array_equal(longer, whole["audio"])
    assert len(starts) > 50


def test_every_start_is_drawn_equally_often(monkeypatch):
    """Of a recording that counts up, and of what is left of it when the first two are cut out."""
    monkeypatch.setattr(vad, "keep_speech", lambda audio, *_: audio[2:])
    monkeypatch.setattr(records, "speech_frames", lambda record: record["features"][2:])
    rising = np.arange(12, dtype=np.float32) / 16
    record = {"id": "a", "audio": rising, "sample_rate": WANTED_HZ}
    record |= {"features": rising[:, None], "vad": ""}
    source = records.RecordList("rising", (record,))
    index = records.Index(np.arange(1), np.array([12]), WANTED_HZ)
    plain = speech.SpeechCrops(source, index, np.zeros(1, np.int32), WANTED_HZ)
    detecting = dataclasses.replace(plain, detector=vad.DETECTORS["energy"]())
    frames = speech.FeatureCrops(source, index, np.zeros(1, np.int32))
    monkeypatch.setattr(ark, "read_matrix", lambda x, start, count: x[start : start + count])
    whole = {name: value for name, value in record.items() if name != "vad"}
    stored = dataclasses.replace(frames, source=records.RecordList("rising", (whole,)))
    for made, name, first in (
        (plain, "audio", 0),
        (detecting, "audio", 2),
        (frames, "features", 2),
        (stored, "features", 0),
    ):
        rng = np.random.default_rng(0)
        drawn = [made.draw(0, rng, {name: 7})[name] for _ in range(600)]
        assert {len(stretch) for stretch in drawn} == {7}
        starts, counts = np.unique([stretch.flat[0] * 16 for stretch in drawn], return_counts=True)
        assert starts.tolist() == list(range(first, 6))
        # Four deviations of a binomial's count.
        assert abs(counts - 600 / len(starts)).max() < 4 * (600 / len(starts)) ** 0.5


def test_other_speeds_fill_the_room(crops):
    fast = dataclasses.replace(crops, speeds=(1.0, 0.9, 1.1), num_speakers=2)
    seen = set()
    for seed in range(20):
        example = fast.draw(0, np.random.default_rng(seed), {"audio": 1000})
        seen.add(int(example["label"]))
        assert len(example["audio"]) in (999, 1000)
    assert seen == {0, 2, 4}
    assert fast.draw(0, None, {})["label"] == 0


def test_every_record_is_an_example_at_every_speed(crops):
    speeds = (1.0, 0.9, 1.1)
    plain = speech.SpeechExamples(crops.source, crops.index.positions, WANTED_HZ)
    examples = dataclasses.replace(plain, speeds=speeds)
    lengths = speech.played_lengths(crops.index.lengths, speeds)
    assert len(examples) == len(lengths) == 18
    for i, length in enumerate(lengths):
        example, own = examples.draw(i, None, {}), plain.draw(i % 6, None, {})
        assert (example["id"], len(example["audio"])) == (own["id"], length)
        assert abs(length - len(own["audio"]) / speeds[i // 6]) <= 0.5
    np.testing.assert_array_equal(
        examples.draw(2, None, {})["audio"], plain.draw(2, None, {})["audio"]
    )
    assert plain.identity["recordings"] == examples.identity["recordings"]
    assert plain.identity["settings"] != examples.identity["settings"]


def test_silence_is_around_what_is_played(crops):
    plain = speech.SpeechExamples(crops.source, crops.index.positions, WANTED_HZ, speeds=(1.0, 0.9))
    silence = speech.draw_silence(2 * len(plain), seed=0, probability=0.8, max_samples=30)
    examples = dataclasses.replace(plain, silence=silence)
    assert len(examples) == 24
    for i, (before, after) in enumerate(silence.tolist()):
        example, own = examples.draw(i, None, {}), plain.draw(i % 12, None, {})
        assert example["id"] == own["id"]
        np.testing.assert_array_equal(example["audio"][before:][: len(own["audio"])], own["audio"])
        assert len(example["audio"]) == before + len(own["audio"]) + after
        assert not example["audio"][:before].any()
        assert not example["audio"][before + len(own["audio"]) :].any()
    assert plain.identity["settings"] != examples.identity["settings"]


def test_silence_is_as_likely_and_as_long_as_it_says():
    draw = functools.partial(speech.draw_silence, 2000, probability=0.5, max_samples=9)
    before, after = (found := draw(seed=0)).T
    np.testing.assert_array_equal(found, draw(seed=0))
    assert (found != draw(seed=1)).any()
    assert (before + after).max() == 9
    # Four deviations of a binomial's share: 1 in 10 of those with silence draws 0 before.
    assert abs((before > 0).mean() - 0.45) < 4 * (0.45 * 0.55 / 2000) ** 0.5
    for size in range(1, 10):
        assert abs((before == size).mean() - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5
    for first in range(9):
        rest = after[before == first]
        assert (rest.min(), rest.max()) == (0, 9 - first)


@pytest.mark.parametrize(("speed", "hz"), [(0.9, 1000.0), (1.1, 1000.0), (1.25, 7900.0)])
def test_a_tone_played_faster_is_higher_and_does_not_fold_back(speed, hz):
    time = np.arange(WANTED_HZ) / WANTED_HZ
    tone = np.sin(2 * np.pi * hz * time).astype(np.float32)
    source = records.RecordList("tone", ({"id": "a", "audio": tone, "sample_rate": WANTED_HZ},))
    played = speech.SpeechExamples(source, np.arange(1), WANTED_HZ, speeds=(speed,))
    found = played.draw(0, None, {})["audio"]
    time = np.arange(len(found)) / WANTED_HZ
    audible = hz * speed < WANTED_HZ / 2
    expected = np.sin(2 * np.pi * hz * speed * time) * audible
    # Away from the ends; soxr's HQ keeps what would fold back 100 dB down.
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=1e-4)


def test_broken_recordings_are_named_by_their_ids(tmp_path):
    bad = np.full(800, np.nan, np.float32)
    path = tmp_path / "long.wav"
    soundfile.write(path, np.ones(2000) * 0.1, WANTED_HZ)
    rows = (
        {"id": "ann-1", "audio": bad, "sample_rate": WANTED_HZ},
        {"id": "bob-1", "audio": str(tmp_path / "gone.wav")},
        {"id": "cid-1", "audio": str(path)},
    )
    source = records.RecordList("broken", rows)
    index = records.Index(np.arange(3), np.full(3, 800), WANTED_HZ)
    crops = speech.SpeechCrops(source, index, np.zeros(3, np.int32), WANTED_HZ)
    for i, message in ((0, "ann-1: .*800 of 800 samples"), (1, "bob-1: .*gone.wav: no such file")):
        with pytest.raises(io.AudioError, match=message):
            crops.draw(i, None, {"audio": 800})
    # One that has grown since is left out, not cut.
    shape, sizes = (buckets.Bucket(1, {"audio": 800}),), {"audio": index.lengths}
    batches = pipeline.eval_batches(crops, shape, sizes)
    assert not any(batch["mask"].any() for batch in batches)
