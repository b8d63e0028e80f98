"""Batches: once an epoch, the same for any workers and processes, exact resume, broken files."""

import dataclasses
import functools
import itertools
import pathlib
import subprocess
import sys

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile

from common.audio import io
from common.data import buckets, pipeline, records, speech

RATE_HZ = 8000
COUNT = 23


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """23 recordings of 0.02 to 0.2 s whose transcripts are digits, shuffled lengths."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(COUNT):
        path = folder / f"{i:02d}.wav"
        samples = rng.normal(size=int(rng.integers(160, 1600))) * 0.1
        soundfile.write(path, samples, RATE_HZ)
        text = "".join(map(str, rng.integers(0, 10, int(rng.integers(1, 9)))))
        rows.append({"id": str(i), "audio": str(path), "text": text})
    return records.RecordList("corpus", tuple(rows))


# Digits to numbers, with nothing that a worker process could not import.
encode = functools.partial(np.fromiter, dtype=np.int32)


def make(corpus, positions=None, max_total=4800):
    positions = np.arange(COUNT) if positions is None else positions
    examples = speech.SpeechExamples(corpus, positions, RATE_HZ, encode=encode)
    whole = [examples.draw(i, None, {}) for i in range(len(examples))]
    sizes = {n: np.array([len(example[n]) for example in whole]) for n in ("audio", "labels")}
    chosen = buckets.choose_buckets(
        sizes, primary="audio", num_buckets=3, max_total=max_total, rows_multiple_of=2
    )
    return examples, chosen, sizes


@pytest.fixture(scope="module")
def data(corpus):
    return make(corpus)


@dataclasses.dataclass(frozen=True)
class Twice:
    """Examples, then the same again, as long as `sizes` say."""

    examples: object
    sizes: dict

    def __len__(self):
        return 2 * len(self.examples)

    def draw(self, i, rng, lengths):
        example = dict(self.examples.draw(i % len(self.examples), rng, lengths))
        example |= {name: np.resize(example[name], size[i]) for name, size in self.sizes.items()}
        return {**example, "index": np.int32(i)}


def batches_per_epoch(chosen, sizes) -> int:
    counts = np.bincount(buckets.assign(chosen, sizes, COUNT), minlength=len(chosen))
    return sum(-(-n // b.rows) for n, b in zip(counts, chosen))


def take(dataset, count, state=None):
    iterator = iter(dataset)
    if state is not None:
        iterator.set_state(state)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_hold_what_the_examples_hold(data):
    examples, chosen, _ = data
    shapes = {(b.rows, b.lengths["audio"], b.lengths["labels"]) for b in chosen}
    for batch in take(pipeline.train_batches(*data, seed=0), 6):
        assert (*batch["audio"].shape, batch["labels"].shape[1]) in shapes
        assert {n: a.dtype.name for n, a in batch.items()} == {
            "mask": "bool",
            "audio": "float32",
            "audio_lengths": "int32",
            "labels": "int32",
            "labels_lengths": "int32",
            "index": "int32",
        }
        for row, real in enumerate(batch["mask"]):
            example = examples.draw(int(batch["index"][row]), None, {}) if real else None
            for name in ("audio", "labels"):
                length = batch[f"{name}_lengths"][row]
                assert not batch[name][row, length:].any()
                if real:
                    np.testing.assert_array_equal(batch[name][row, :length], example[name])
                else:
                    assert length == 0
                    assert batch["index"][row] == -1


def test_every_epoch_holds_each_record_once_in_another_order(data):
    count = batches_per_epoch(*data[1:])
    batches = take(pipeline.train_batches(*data, seed=3), 3 * count)
    orders = []
    for epoch in (batches[i : i + count] for i in range(0, len(batches), count)):
        seen = np.concatenate([b["index"][b["mask"]] for b in epoch])
        np.testing.assert_array_equal(np.sort(seen), np.arange(COUNT))
        orders.append(tuple(seen))
    assert len(set(orders)) == 3
    # Not only the batches change places: other records meet in them.
    company = {
        frozenset(frozenset(b["index"][b["mask"]].tolist()) for b in batches[i : i + count])
        for i in range(0, len(batches), count)
    }
    assert len(company) == 3
    other = take(pipeline.train_batches(*data, seed=4), count)
    assert tuple(np.concatenate([b["index"][b["mask"]] for b in other])) != orders[0]
    # Batches of different buckets come mixed, not one bucket after the other.
    widths = np.reshape([b["audio"].shape[1] for b in batches], (3, count))
    assert np.count_nonzero(np.diff(widths)) > 3 * (len(data[1]) - 1)


def test_epochs_take_turns_with_the_versions_of_the_records(data):
    """The second version is longer and takes more batches; resumed amid it, the stream goes on."""
    examples, chosen, sizes = data
    longest = {name: size.max() for name, size in sizes.items()}
    both = {name: np.r_[size, np.full(COUNT, longest[name])] for name, size in sizes.items()}
    twice = Twice(examples, both)
    make = functools.partial(pipeline.train_batches, twice, chosen, both, seed=3, versions=2)
    short, long = batches_per_epoch(chosen, sizes), -(-COUNT // chosen[-1].rows)
    assert short != long
    batches = take(make(), 2 * (short + long))
    ends = np.cumsum([0, short, long, short, long])
    orders = []
    for epoch, (begin, end) in enumerate(itertools.pairwise(ends)):
        seen = np.concatenate([b["index"][b["mask"]] for b in batches[begin:end]])
        assert sorted(seen) == [i + epoch % 2 * COUNT for i in range(COUNT)]
        orders.append(tuple(seen % COUNT))
    assert len(set(orders)) == 4
    for number in (1, short, short + 1, short + long, 2 * short + long):
        iterator = iter(make())
        iterator.set_state({**iterator.get_state(), "next_batch": number})
        assert_same([next(iterator)], batches[number : number + 1])
        iterator.close()


def test_evaluation_holds_each_record_once_in_fixed_order(data):
    first, again = (list(pipeline.eval_batches(*data)) for _ in range(2))
    assert_same(first, again)
    seen = np.concatenate([b["index"][b["mask"]] for b in first])
    np.testing.assert_array_equal(np.sort(seen), np.arange(COUNT))
    for batch in first:  # empty rows only at the end of a bucket's last batch
        assert (np.diff(batch["mask"].astype(int)) <= 0).all()


def test_padding_is_less_than_with_one_shape(data):
    _, chosen, sizes = data
    one = (buckets.Bucket(4, {n: int(s.max()) for n, s in sizes.items()}),)
    batches = take(pipeline.train_batches(*data, seed=0), batches_per_epoch(chosen, sizes))
    share = 1 - sum(b["audio_lengths"].sum() for b in batches) / sum(
        b["audio"].size for b in batches
    )
    np.testing.assert_allclose(share, buckets.padding_share(chosen, sizes, "audio"))
    assert share < 0.7 * buckets.padding_share(one, sizes, "audio")


def test_the_blocks_of_any_number_of_processes_make_up_the_same_batches(data):
    whole = take(pipeline.train_batches(*data, seed=1), 12)
    parts = [
        take(pipeline.train_batches(*data, seed=1, process_index=p, process_count=2), 12)
        for p in range(2)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)
    # 23 examples in batches of 22 rows: the last batch has one, so process 1 has only padding.
    examples, _, sizes = data
    wide = (buckets.Bucket(COUNT - 1, {n: int(s.max()) for n, s in sizes.items()}),)
    first, second = (
        list(pipeline.eval_batches(examples, wide, sizes, process_index=p, process_count=2))
        for p in range(2)
    )
    assert [int(b["mask"].sum()) for b in first] == [11, 1]
    assert [int(b["mask"].sum()) for b in second] == [11, 0]
    for a, b in zip(first, second, strict=True):
        assert {n: (x.shape, x.dtype) for n, x in a.items()} == {
            n: (x.shape, x.dtype) for n, x in b.items()
        }
    with pytest.raises(records.DataError, match="3 processes cannot share"):
        pipeline.train_batches(*data, seed=1, process_count=3)


def test_workers_change_nothing_and_states_fit_any_number_of_them(data):
    whole = take(pipeline.train_batches(*data, seed=1), 8)
    iterator = iter(pipeline.train_batches(*data, seed=1))
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    iterator.close()
    assert_same(take(pipeline.train_batches(*data, seed=1, num_workers=1), 8), whole)
    resumed = take(pipeline.train_batches(*data, seed=1, num_workers=2), 5, state)
    assert_same(resumed, whole[3:])


def test_resume_is_exact_at_every_batch_across_an_epoch(data):
    count = batches_per_epoch(*data[1:])
    dataset = pipeline.train_batches(*data, seed=2)
    limited = grain.experimental.LimitIterDataset(dataset, count + 2)
    grain.experimental.assert_equal_output_after_checkpoint(limited)
    grain.experimental.assert_equal_output_after_checkpoint(pipeline.eval_batches(*data))
    # Far on, without going through what lies between.
    iterator = iter(dataset)
    iterator.set_state({**iterator.get_state(), "next_batch": 10_000 * count + 1})
    far = next(iterator)
    iterator.close()
    assert far["mask"].any()


def test_the_state_travels_through_orbax(data, tmp_path):
    dataset = pipeline.train_batches(*data, seed=2)
    iterator = iter(dataset)
    for _ in range(4):
        next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = [next(iterator) for _ in range(3)]
        iterator.close()
        fresh = iter(dataset)
        manager.restore(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same([next(fresh) for _ in range(3)], expected)
    fresh.close()


def test_what_differs_from_the_stream_of_a_checkpoint_is_said(data, corpus, caplog):
    examples, chosen, sizes = data
    state = iter(pipeline.train_batches(*data, seed=2)).get_state()
    # Other recordings, however much they look like these: only the ids differ.
    renamed = tuple({**row, "id": f"new-{row['id']}"} for row in corpus)
    others = dataclasses.replace(examples, source=records.RecordList("corpus", renamed))
    rows = tuple(dataclasses.replace(bucket, rows=2 * bucket.rows) for bucket in chosen)
    longer = {**sizes, "labels": np.maximum(sizes["labels"], 2)}
    mono = dataclasses.replace(examples, channel=0)
    for args, seed, expected in (
        (data, 2, None),
        (data, 3, "What differs: seed. Continuing at batch 0 of this one."),
        ((others, chosen, sizes), 2, "differs: recordings."),
        ((mono, chosen, sizes), 2, "differs: settings of how they are read."),
        ((examples, chosen, longer), 2, "differs: lengths of the recordings."),
        ((examples, rows, sizes), 2, "the batch settings and the number of devices)."),
        ((others, rows, sizes), 2, "devices), recordings."),
    ):
        caplog.clear()
        iterator = iter(pipeline.train_batches(*args, seed=seed))
        iterator.set_state(state)
        assert len(caplog.messages) == (expected is not None)
        assert (expected or "") in caplog.text
        assert (iterator.get_state() == state) == (expected is None)
        assert (iterator.get_state()["stream"] == state["stream"]) == (expected is None)
    iterator.set_state({"next_batch": 5, "stream": "0123456789abcdef"})
    assert "of an earlier version, whose batches were others. Continuing at batch 5" in caplog.text


def break_files(corpus, folder, broken):
    """A copy of the corpus in which some files are gone, cut off or longer than they were."""
    rows = []
    for i, row in enumerate(corpus):
        path = folder / pathlib.Path(row["audio"]).name
        path.write_bytes(pathlib.Path(row["audio"]).read_bytes())
        if i in broken:
            broken[i](path)
        rows.append({**row, "audio": str(path)})
    return records.RecordList("broken", tuple(rows))


BREAK = {
    2: lambda path: path.unlink(),
    7: lambda path: path.write_bytes(b"RIFF"),
    11: lambda path: soundfile.write(path, np.ones(5000) * 0.1, RATE_HZ),
}


def test_files_that_broke_after_indexing_leave_empty_rows_and_are_named(
    data, corpus, tmp_path, caplog
):
    examples = speech.SpeechExamples(
        break_files(corpus, tmp_path, BREAK), np.arange(COUNT), RATE_HZ, encode=encode
    )
    count = 2 * batches_per_epoch(*data[1:])
    good = take(pipeline.train_batches(*data, seed=5), count)
    some = take(pipeline.train_batches(examples, *data[1:], seed=5), count)
    for batch, expected in zip(some, good, strict=True):
        lost = np.isin(expected["index"], list(BREAK))
        np.testing.assert_array_equal(batch["mask"], expected["mask"] & ~lost)
        for name in ("audio", "audio_lengths", "labels", "index"):
            np.testing.assert_array_equal(batch[name][~lost], expected[name][~lost])
        assert not batch["audio"][lost].any()
        assert (batch["index"][lost] == -1).all()
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 3  # each once, not in every epoch
    for name in ("): 2: ", "): 7: ", "): 11: 'audio' has length 5000"):  # by their ids
        assert sum(name in message for message in messages) == 1
    assert "3 of 23 examples so far" in messages[-1]


def test_a_limit_on_broken_files_and_a_lost_disk_stop_the_run(data, corpus, tmp_path):
    (tmp_path / "some").mkdir()
    examples = speech.SpeechExamples(
        break_files(corpus, tmp_path / "some", BREAK), np.arange(COUNT), RATE_HZ, encode=encode
    )
    with pytest.raises(io.AudioError, match=r"3 of 23 examples: .*above the limit of 10\.0%"):
        take(pipeline.train_batches(examples, *data[1:], seed=5, max_failed_share=0.1), 50)
    (tmp_path / "all").mkdir()
    everything = dict.fromkeys(range(COUNT), BREAK[2])
    examples = speech.SpeechExamples(
        break_files(corpus, tmp_path / "all", everything), np.arange(COUNT), RATE_HZ, encode=encode
    )
    with pytest.raises(io.AudioError, match=r"none of its .* recordings can be read any more"):
        take(pipeline.train_batches(examples, *data[1:], seed=5), 50)


def test_sizes_of_other_examples_are_refused(data):
    examples, chosen, sizes = data
    with pytest.raises(ValueError, match="22 sizes 'audio' for 23 examples"):
        pipeline.train_batches(examples, chosen, {n: s[1:] for n, s in sizes.items()}, seed=0)


def test_nothing_here_imports_jax_or_tensorflow(corpus):
    """Workers import these modules; grain itself takes JAX only where it can be imported."""
    code = f"""
import sys
sys.modules["jax"] = None  # any import of it fails
import numpy as np
from common.data import buckets, examples, librispeech, manifest, pipeline, records, speech, tfds
source = records.RecordList("one", ({{"id": "a", "audio": {corpus[0]["audio"]!r}}},))
examples = speech.SpeechExamples(source, np.arange(1), 8000)
sizes = {{"audio": np.array([len(examples.draw(0, None, {{}})["audio"])])}}
shapes = buckets.choose_buckets(
    sizes, primary="audio", num_buckets=1, max_total=9999, rows_multiple_of=1)
(batch,) = pipeline.eval_batches(examples, shapes, sizes)
assert batch["mask"].tolist() == [True]
assert "tensorflow" not in sys.modules and "tensorflow_datasets" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
