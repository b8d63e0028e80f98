"""Examples of every form in batches, and what is drawn beside them: coins, streams, failures."""

import dataclasses
import logging
import threading

import numpy as np
import pytest

from common.audio import io
from common.data import buckets, examples, pipeline, records


@dataclasses.dataclass(frozen=True)
class Made:
    """Examples that a function of (number, room) makes, training or not."""

    make: object
    count: int = 10

    def __len__(self):
        return self.count

    def draw(self, i, rng, lengths):
        return self.make(i, lengths)


def picture(i, lengths=None):
    """Without any sequence: u8[4, 5, 3], a score, a class, a name."""
    pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return {"id": f"p{i}", "picture": pixels, "score": np.float32(i / 2), "label": np.int32(i % 3)}


def test_pictures_are_examples():
    made = Made(picture)
    options = {"buckets": (buckets.Bucket(4, {}),), "sizes": {}}
    stream = iter(pipeline.train_batches(made, seed=1, num_workers=1, **options))
    try:
        epoch = [next(stream) for _ in range(3)]
    finally:
        stream.close()
    passes = list(pipeline.eval_batches(made, **options))
    for batches in (epoch, passes):
        seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
        assert sorted(seen) == list(range(10))
        for batch in batches:
            assert batch.keys() == {"mask", "index", "picture", "score", "label"}
            assert batch["picture"].shape == (4, 4, 5, 3)
            kinds = [batch[name].dtype.name for name in ("picture", "score", "label", "index")]
            assert kinds == ["uint8", "float32", "int32", "int32"]
            for row, i in enumerate(batch["index"]):
                expected = picture(i) if i >= 0 else dict.fromkeys(("picture", "score", "label"), 0)
                for name in ("picture", "score", "label"):
                    np.testing.assert_array_equal(batch[name][row], expected[name])
    assert [int(batch["mask"].sum()) for batch in passes] == [4, 4, 2]


def film(i, lengths=None):
    """640 samples for each of 3 to 12 frames u8[t, 3, 2], and one picture of a face."""
    rng, count = np.random.default_rng(i), 3 + i
    return {
        "audio": rng.normal(size=640 * count).astype(np.float32),
        "frames": rng.integers(1, 256, (count, 3, 2), dtype=np.uint8),
        "labels": rng.integers(1, 9, count // 2, dtype=np.int32),
        "face": rng.normal(size=(6, 6)),
    }


def test_sequences_of_several_rates_come_together():
    made, frames = Made(film), 3 + np.arange(10)
    sizes = {"audio": 640 * frames, "frames": frames, "labels": frames // 2}
    shapes = buckets.choose_buckets(
        sizes, primary="audio", num_buckets=2, max_total=640 * 48, rows_multiple_of=1
    )
    assert len(shapes) == 2
    seen = []
    for batch in pipeline.eval_batches(made, shapes, sizes):
        assert {name: array.dtype.name for name, array in batch.items() if name in film(0)} == {
            "audio": "float32",
            "frames": "uint8",
            "labels": "int32",
            "face": "float64",
        }
        (shape,) = [shape for shape in shapes if shape.lengths["audio"] == batch["audio"].shape[1]]
        assert batch["frames"].shape == (shape.rows, shape.lengths["frames"], 3, 2)
        assert batch["face"].shape == (shape.rows, 6, 6)
        for row in np.flatnonzero(batch["mask"]):
            example = film(int(batch["index"][row]))
            seen.append(int(batch["index"][row]))
            np.testing.assert_array_equal(batch["face"][row], example["face"])
            for name in shape.lengths:
                count = batch[f"{name}_lengths"][row]
                np.testing.assert_array_equal(batch[name][row, :count], example[name])
                assert not batch[name][row, count:].any()
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("odd", [np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5, 3), np.float32)])
def test_arrays_of_another_form_are_named(odd):
    made = Made(lambda i, lengths: picture(i) | ({"picture": odd} if i == 2 else {}))
    with pytest.raises(records.DataError, match=r"p2: 'picture' is .*, in other examples uint8\[4"):
        list(pipeline.eval_batches(made, (buckets.Bucket(4, {}),), {}))


def test_rows_of_a_batch_are_read_at_the_same_time():
    """Each waits until another is being read."""
    meeting = threading.Barrier(2, timeout=20.0)

    def make(i, lengths):
        meeting.wait()
        return picture(i)

    (batch,) = pipeline.eval_batches(Made(make, 4), (buckets.Bucket(4, {}),), {})
    assert batch["index"].tolist() == [0, 1, 2, 3]


@dataclasses.dataclass(frozen=True)
class Count:
    """Clips of random samples that note what they were asked for."""

    asked: list = dataclasses.field(default_factory=list)
    broken: bool = False

    def draw(self, rng, max_samples, beside):
        self.asked.append((max_samples, beside["id"]))
        if self.broken:
            raise io.AudioError(f"clip {rng.integers(2)}.wav", f"gone {rng.random()}")
        return rng.random(max_samples - 2, dtype=np.float32)


def sound(i, lengths):
    return {"id": f"s{i}", "audio": np.full(20 + i, i, np.float32)}


def drawn(companions, count=400, lengths=None):
    beside = examples.WithCompanions(Made(sound), companions)
    rngs = (np.random.default_rng([5, k]) for k in range(count))
    return [beside.draw(k % 10, rng, lengths or {"audio": 30}) for k, rng in enumerate(rngs)]


def test_the_coin_comes_before_the_file():
    noise, room = Count(), Count()
    rows = drawn(
        {"noise": examples.Companion(noise, 0.25), "rir": examples.Companion(room, 0.5, length=7)}
    )
    with_noise = [row for row in rows if row["noise_lengths"]]
    assert len(noise.asked) == len(with_noise)
    assert len(room.asked) == sum(row["rir_lengths"] > 0 for row in rows)
    # Binomial: four deviations of 400 throws.
    assert abs(len(noise.asked) - 100) < 35
    assert abs(len(room.asked) - 200) < 40
    assert noise.asked[0] == (30, with_noise[0]["id"])
    assert room.asked[0][0] == 7
    for row in rows:
        assert row["noise"].shape == (30,)
        assert row["rir"].shape == (7,)
        assert row["noise_lengths"] in (0, 28)
        assert row["noise"].any() == (row["noise_lengths"] > 0)
        assert not row["noise"][row["noise_lengths"] :].any()
    # Evaluation hears what there is.
    beside = examples.WithCompanions(Made(sound), {"noise": examples.Companion(Count())})
    assert beside.draw(0, None, {}).keys() == {"id", "audio"}


def test_one_companion_more_changes_none_of_the_others():
    alone = drawn({"noise": examples.Companion(Count(), 0.5)})
    music = examples.Companion(Count(), 0.5)
    both = drawn({"music": music, "noise": examples.Companion(Count(), 0.5)})
    for a, b in zip(alone, both, strict=True):
        np.testing.assert_array_equal(a["noise"], b["noise"])
    # And their coins fall independently: a correlation of 400 pairs deviates by 0.05.
    thrown = np.array([[row["music_lengths"] > 0, row["noise_lengths"] > 0] for row in both])
    assert abs(np.corrcoef(thrown.T)[0, 1]) < 0.2


def test_a_companion_that_has_gone_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        rows = drawn({"noise": examples.Companion(Count(broken=True))}, count=40)
    assert not any(row["noise_lengths"] for row in rows)
    assert len(caplog.records) == 2
    for name in ("clip 0.wav", "clip 1.wav"):
        assert sum(f"A row goes without noise: {name}: gone" in m for m in caplog.messages) == 1


def test_companions_are_part_of_the_batch_whoever_reads_it():
    made = examples.WithCompanions(Made(sound), {"noise": examples.Companion(Count(), 0.5)})
    shapes, sizes = (buckets.Bucket(4, {"audio": 30}),), {"audio": 20 + np.arange(10)}
    options = [{}, {"num_workers": 2}, *({"process_index": p, "process_count": 2} for p in (0, 1))]
    streams = [iter(pipeline.train_batches(made, shapes, sizes, seed=3, **o)) for o in options]
    heard = set()
    try:
        for _ in range(7):
            here, there, *halves = (next(stream) for stream in streams)
            for name, array in here.items():
                np.testing.assert_array_equal(array, there[name])
                np.testing.assert_array_equal(array, np.concatenate([h[name] for h in halves]))
            assert not here["noise_lengths"][~here["mask"]].any()
            heard |= set(here["noise"][:, 0].tolist())
    finally:
        for stream in streams:
            stream.close()
    assert len(heard) > 8


def test_recordings_are_told_apart_by_their_ids():
    """By all of them and their order; names of files need not be text."""
    lists = [["a", "b", "c"], ["a", "c", "b"], ["a", "b", "d"], ["a", "b", "\udcff"]]
    sources = [records.RecordList("x", [{"id": i, "audio": i} for i in ids]) for ids in lists]
    found = [examples.recordings(source, np.arange(3)) for source in sources]
    assert len({*found, examples.recordings(sources[0], np.arange(2))}) == 5
    elsewhere = records.RecordList("y", [{"id": i, "audio": f"/other/{i}"} for i in lists[0]])
    assert examples.recordings(elsewhere, np.arange(3)) == found[0]
