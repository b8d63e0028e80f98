"""Noise and room responses: folders, random stretches, and their place in a training batch."""

import dataclasses
import logging

import numpy as np
import pytest
import soundfile

from common.data import buckets, clips, indexing, pipeline, records

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
        samples = np.round(drawn.draw(np.random.default_rng(seed), 1000) * 32768).astype(int)
        assert (np.diff(samples) == 1).all()
        assert len(samples) in (400, 1000)
        if len(samples) == 1000:
            assert 0 <= samples[0] <= 3000
            starts.add(samples[0])
        else:
            assert samples[0] == 0
    assert len(starts) > 10
    again = drawn.draw(np.random.default_rng(7), 1000)
    np.testing.assert_array_equal(again, drawn.draw(np.random.default_rng(7), 1000))


def test_babble_is_a_sum_of_voices_of_one_power(folder, tmp_path):
    one = open_clips(folder, tmp_path)
    babble = dataclasses.replace(one, voices=(2, 4))
    assert babble.fingerprint != one.fingerprint
    counts = set()
    for seed in range(20):
        mixed = babble.draw(np.random.default_rng(seed), 1000)
        rng = np.random.default_rng(seed)
        count = rng.integers(2, 5)
        expected = np.zeros(1000)
        for _ in range(count):
            part = one.draw(rng, 1000).astype(np.float64)
            expected[: len(part)] += part / np.sqrt(np.mean(part**2))
        np.testing.assert_allclose(mixed, expected[: len(mixed)], atol=1e-4)
        assert not expected[len(mixed) :].any()
        counts.add(int(count))
    assert counts == {2, 3, 4}
    with pytest.raises(records.DataError, match="at least and at most"):
        dataclasses.replace(one, voices=(3, 2))


def test_a_room_response_starts_at_its_start(folder, tmp_path):
    drawn = open_clips(folder, tmp_path, crop=False)
    for seed in range(10):
        assert drawn.draw(np.random.default_rng(seed), 300)[0] == 0


class Ramps:
    """Sixteen examples of 20 to 35 samples."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return {"audio": np.full(20 + i, i, np.float32)}


def stream(drawn, length=None, **options):
    examples = Ramps()
    sizes = {"audio": np.arange(20, 36)}
    shapes = buckets.choose_buckets(
        sizes, primary="audio", num_buckets=2, max_total=160, rows_multiple_of=2
    )
    companions = {"noise": pipeline.Companion(drawn, length)}
    return iter(
        pipeline.train_batches(examples, shapes, sizes, seed=1, companions=companions, **options)
    )


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


def test_workers_draw_the_same(folder, tmp_path):
    drawn = open_clips(folder, tmp_path)
    here, there = stream(drawn, length=30), stream(drawn, length=30, num_workers=1)
    try:
        for _ in range(3):
            a, b = next(here), next(there)
            assert a["noise"].shape[1] == 30
            np.testing.assert_array_equal(a["noise"], b["noise"])
    finally:
        there.close()


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
    assert "different stream" in caplog.text


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
