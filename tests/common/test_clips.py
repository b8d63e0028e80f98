"""Noise and room responses: folders, random stretches, and their place in a training batch."""

import dataclasses
import logging

import ml_collections
import numpy as np
import pytest
import soundfile

from common import errors
from common.audio import io
from common.data import buckets, clips, examples, indexing, pipeline, records, splits

RATE_HZ = 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings that count up from 0 (0.5 s and 0.05 s), in sub-folders, and other files."""
    root = tmp_path_factory.mktemp("musan")
    for name, count in (("noise/free/long.wav", 4000), ("music/short.flac", 400)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.arange(count, dtype=np.int16), RATE_HZ, subtype="PCM_16")
    (root / "noise" / "README").write_text("not audio")
    return root


def open_clips(root, tmp_path, crop=True):
    source = clips.read_folder(root)
    index = indexing.build_index(
        source,
        cache=None,
        rejected_tsv=tmp_path / "rejected.tsv",
        sample_rate_hz=RATE_HZ,
        min_seconds=0.01,
        max_seconds=1e9,
        require_text=False,
        max_bad_share=0.6,
        num_workers=2,
        progress=False,
    )
    return clips.Clips(source, index, RATE_HZ, crop)


def test_a_folder_is_searched_in_depth(folder):
    assert [r["id"] for r in clips.read_folder(folder)] == [
        "music/short.flac",
        "noise/free/long.wav",
    ]


def test_links_are_followed_and_hidden_files_left_out(folder, tmp_path):
    """A folder put together of links; one of them leads back."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "musan").symlink_to(folder)
    (tmp_path / "own" / "back").symlink_to(tmp_path / "own")
    (tmp_path / "own" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "own" / "A.WAV").write_bytes((folder / "noise/free/long.wav").read_bytes())
    (tmp_path / "own" / "._A.WAV").touch()
    (tmp_path / "own" / ".trash").mkdir()
    (tmp_path / "own" / ".trash" / "b.wav").touch()
    drawn = open_clips(tmp_path / "own", tmp_path)
    assert [r["id"] for r in drawn.source] == [
        *("A.WAV", "gone.wav", "musan/music/short.flac", "musan/noise/free/long.wav")
    ]
    assert [r.id for r in drawn.index.rejected] == ["gone.wav"]


def test_folders_without_audio_are_named(tmp_path):
    with pytest.raises(records.DataError, match="There is no folder"):
        clips.read_folder(tmp_path / "absent")
    with pytest.raises(records.DataError, match="holds no audio files"):
        clips.read_folder(tmp_path)


def test_draws_are_stretches_of_the_recordings(folder, tmp_path):
    drawn = open_clips(folder, tmp_path)
    starts = set()
    for seed in range(40):
        samples = np.round(drawn.draw(np.random.default_rng(seed), 1000, {}) * 32768).astype(int)
        assert (np.diff(samples) == 1).all()
        assert len(samples) in (400, 1000)
        if len(samples) == 1000:
            assert 0 <= samples[0] <= 3000
            starts.add(samples[0])
        else:
            assert samples[0] == 0
    assert len(starts) > 10
    long = (drawn.draw(np.random.default_rng([1, seed]), 3996, {}) for seed in range(200))
    counts = np.bincount([round(stretch[0] * 32768) for stretch in long if len(stretch) == 3996])
    assert len(counts) == 5  # 0 to 4, of about 100 draws: 20 +- 4
    assert counts.min() > 4
    again = drawn.draw(np.random.default_rng(7), 1000, {})
    np.testing.assert_array_equal(again, drawn.draw(np.random.default_rng(7), 1000, {}))


def test_babble_is_a_sum_of_voices_of_one_power(folder, tmp_path):
    one = open_clips(folder, tmp_path)
    babble = dataclasses.replace(one, voices=(2, 4))
    assert babble.fingerprint != one.fingerprint
    counts = set()
    for seed in range(20):
        mixed = babble.draw(np.random.default_rng(seed), 1000, {})
        rng = np.random.default_rng(seed)
        count = rng.integers(2, 5)
        expected = np.zeros(1000)
        for _ in range(count):
            part = one.draw(rng, 1000, {}).astype(np.float64)
            expected[: len(part)] += part / np.sqrt(np.mean(part**2))
        np.testing.assert_allclose(mixed, expected[: len(mixed)], atol=1e-4)
        assert not expected[len(mixed) :].any()
        counts.add(int(count))
    assert counts == {2, 3, 4}
    with pytest.raises(records.DataError, match="at least and at most"):
        dataclasses.replace(one, voices=(3, 2))


def test_beside_a_speaker_comes_none_of_the_same(tmp_path):
    """Twelve recordings of three speakers in any order, each of one value; one names nobody."""
    root = tmp_path / "voices"
    root.mkdir()
    for i in range(12):
        soundfile.write(root / f"{i:02d}.wav", np.full(500, i + 1, np.int16), RATE_HZ)
    names = ("ann", "bob", "ann", "cid", "bob", "ann", "ann", "", "cid", "bob", "ann", "ann")
    drawn = dataclasses.replace(open_clips(root, tmp_path), speakers=names)

    def heard(beside, count=200):
        values = [
            drawn.draw(np.random.default_rng([3, k]), 100, beside)[0] * 32768 for k in range(count)
        ]
        return {round(float(value)) - 1 for value in values}

    for speaker in ("ann", "bob", "cid"):
        assert heard({"speaker": speaker}) == {i for i in range(12) if names[i] != speaker}
    assert heard({}) == heard({"speaker": "dee"}) == set(range(12))
    alone = dataclasses.replace(drawn, speakers=("ann",) * 12)
    with pytest.raises(io.AudioError, match="holds no other speaker than 'ann'"):
        alone.draw(np.random.default_rng(0), 100, {"speaker": "ann"})
    other = dataclasses.replace(drawn, speakers=names[::-1])
    assert other.fingerprint != drawn.fingerprint


def test_no_file_is_read_that_is_not_heard(folder, tmp_path, monkeypatch):
    config = ml_collections.ConfigDict(
        {"data": splits.default_config(), "augment": splits.default_augment()}
    )
    config.data.sample_rate_hz = RATE_HZ
    for name in ("rir", "noise", "music", "babble"):
        config.augment[name].update({"root": str(folder), "probability": 0.2})
    rows = examples.WithCompanions(Ramps(), splits.companions(config, tmp_path))
    read, load = [], io.load_audio

    def counting(*args, **options):
        read.append(args[0])
        return load(*args, **options)

    monkeypatch.setattr(io, "load_audio", counting)
    count = 500
    for k in range(count):
        rows.draw(k % 16, np.random.default_rng([1, k]), {"audio": 40})
    # One room, one noise, one piece of music and 3 to 7 voices, each for a fifth of the rows; four
    # deviations of the mean are 0.4.
    assert len(read) / count == pytest.approx(0.2 * (1 + 1 + 1 + 5), abs=0.4)


def test_a_room_response_starts_at_its_start(folder, tmp_path):
    drawn = open_clips(folder, tmp_path, crop=False)
    for seed in range(10):
        assert drawn.draw(np.random.default_rng(seed), 300, {})[0] == 0
    (tmp_path / "array").mkdir()
    two = np.stack([np.arange(400, dtype=np.int16), np.zeros(400, np.int16)], 1)
    soundfile.write(tmp_path / "array" / "a.wav", two, RATE_HZ)
    first = open_clips(tmp_path / "array", tmp_path, crop=False)
    heard = first.draw(np.random.default_rng(0), 300, {}) * 32768
    np.testing.assert_array_equal(heard, np.arange(300))  # one microphone, not their mean


class Ramps:
    """Sixteen examples of 20 to 35 samples."""

    def __len__(self):
        return 16

    def draw(self, i, rng, lengths):
        return {"audio": np.full(20 + i, i, np.float32)}


def stream(drawn, length=None, **options):
    beside = {"noise": examples.Companion(drawn, length=length)}
    sizes = {"audio": np.arange(20, 36)}
    shapes = buckets.choose_buckets(
        sizes, primary="audio", num_buckets=2, max_total=160, rows_multiple_of=2
    )
    rows = examples.WithCompanions(Ramps(), beside)
    return iter(pipeline.train_batches(rows, shapes, sizes, seed=1, **options))


def test_every_row_has_its_own_noise_whoever_reads_it(folder, tmp_path):
    drawn = open_clips(folder, tmp_path)
    whole = stream(drawn)
    halves = [stream(drawn, process_index=p, process_count=2) for p in range(2)]
    first = []
    for _ in range(6):
        batch = next(whole)
        assert batch["noise"].shape == batch["audio"].shape
        assert (batch["noise_lengths"][batch["mask"]] == batch["audio"].shape[1]).all()
        assert not batch["noise_lengths"][~batch["mask"]].any()
        parts = [next(half) for half in halves]
        for name in ("noise", "noise_lengths"):
            np.testing.assert_array_equal(
                batch[name], np.concatenate([part[name] for part in parts])
            )
        first.append(batch["noise"][:, 0])
    assert len(np.unique(np.concatenate(first))) > 20


def test_another_folder_is_noticed_on_resume(folder, tmp_path, caplog):
    drawn = open_clips(folder, tmp_path)
    state = stream(drawn).get_state()
    with caplog.at_level(logging.WARNING):
        stream(drawn).set_state(state)
        assert not caplog.text
        fewer = clips.Clips(
            drawn.source, records.Index(np.arange(1), np.full(1, RATE_HZ), RATE_HZ), RATE_HZ, True
        )
        stream(fewer).set_state(state)
    assert "What differs: noise. Continuing at batch 0" in caplog.text


def test_a_clip_that_has_gone_leaves_its_row_clean(folder, tmp_path, caplog):
    root = tmp_path / "going"
    root.mkdir()
    for name in ("a", "b"):
        soundfile.write(root / f"{name}.wav", np.ones(4000, np.int16), RATE_HZ)
    drawn = open_clips(root, tmp_path)
    (root / "a.wav").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        batches = stream(drawn)
        lengths = np.concatenate([next(batches)["noise_lengths"] for _ in range(6)])
    assert (lengths == 0).any()
    assert (lengths > 0).any()
    assert "goes without noise" in caplog.text
    assert "a.wav" in caplog.text


def test_folders_of_speakers_are_data(tmp_path):
    for name in ("train/ann/a.wav", "train/ann/deep/b.wav", "train/bob/a.wav", "dev/x.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        io.write_wav(tmp_path / name, np.full(1600, 0.1, np.float32), 16000)
    found = list(clips.read_speakers(tmp_path, ["train"]))
    assert [(row["id"], row.get("speaker")) for row in found] == [
        ("ann/a.wav", "ann"),
        ("ann/deep/b.wav", "ann"),
        ("bob/a.wav", "bob"),
    ]
    both = list(clips.read_speakers(tmp_path, ["train", "dev"]))
    assert [row["id"] for row in both][-1] == "dev/x.wav"
    assert "speaker" not in both[-1]
    data = splits.default_config()
    data.update({"kind": "folder", "root": str(tmp_path)})
    source = splits.open_source(data, ["."])
    assert [row["speaker"] for row in source] == ["dev", "train", "train", "train"]
    with pytest.raises(records.DataError, match="There is no folder"):
        splits.open_source(data, ["test"])


def test_hiss_falls_with_frequency_by_a_slope_of_its_own():
    slopes = []
    for seed in range(40):
        made = clips.Hiss().draw(np.random.default_rng(seed), 1 << 15, {})
        assert np.mean(np.square(made, dtype=np.float64)) == pytest.approx(1.0, rel=1e-4)
        power = np.abs(np.fft.rfft(made.astype(np.float64))[16:-1]) ** 2
        octaves = np.log(np.arange(16, 16 + len(power)))
        slopes.append(-np.polyfit(octaves, np.log(power), 1, w=np.exp(-octaves / 2))[0])
    assert -0.2 < min(slopes) < 0.3
    assert 1.7 < max(slopes) < 2.2
    again = clips.Hiss().draw(np.random.default_rng(39), 1 << 15, {})
    np.testing.assert_array_equal(again, made)
    assert clips.Hiss().draw(np.random.default_rng(0), 100, {}).shape == (100,)


def test_made_rooms_decay_in_their_reverberation_time():
    """By Schroeder's backward integration, fitted from -5 to -25 dB (ISO 3382)."""
    rate, times = 16000, []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        made = clips.MadeRooms((0.3, 0.8), rate).draw(rng, rate, {})
        assert np.argmax(np.abs(made)) == 0
        ratio = -10 * np.log10(np.sum(np.square(made[1:], dtype=np.float64)))
        assert -3.01 < ratio < 12.01
        assert not made[1:16].any()
        energy = np.cumsum(np.square(made[1:], dtype=np.float64)[::-1])[::-1]
        decay = 10 * np.log10(energy[energy > 0] / energy[0])
        part = np.flatnonzero((decay < -5) & (decay > -25))
        slope = np.polyfit(part / rate, decay[part], 1)[0]
        times.append((-60 / slope) / np.random.default_rng(seed).uniform(0.3, 0.8))
    assert 0.85 < min(times) < max(times) < 1.15
    assert 0.97 < np.mean(times) < 1.03
    short = clips.MadeRooms((0.5, 0.5), rate).draw(np.random.default_rng(0), 1000, {})
    assert short.shape == (1000,)
    with pytest.raises(records.DataError, match="Reverberation times of"):
        clips.MadeRooms((0.6, 0.2), rate)


def test_rooms_are_recorded_or_made(folder, tmp_path):
    config = ml_collections.ConfigDict(
        {"data": splits.default_config(), "augment": splits.default_augment()}
    )
    assert splits.companions(config, tmp_path) == {}
    config.augment.rir.t60_seconds = (0.2, 0.4)
    room = splits.companions(config, tmp_path)["rir"]
    assert room.clips == clips.MadeRooms((0.2, 0.4), 16000)
    assert (room.probability, room.length) == (0.5, 16000)
    config.augment.rir.root = str(folder)
    with pytest.raises(errors.UserError, match=r"recorded rooms, or t60_seconds .* not both"):
        splits.companions(config, tmp_path)


def test_noise_may_be_named_by_a_manifest(folder, tmp_path):
    config = ml_collections.ConfigDict(
        {"data": splits.default_config(), "augment": splits.default_augment()}
    )
    (tmp_path / "noise.tsv").write_text(f"path\n{folder / 'noise/free/long.wav'}\n")
    config.augment.noise.root = str(tmp_path / "noise.tsv")
    drawn = splits.companions(config, tmp_path)["noise"].clips
    assert len(drawn.index) == 1
