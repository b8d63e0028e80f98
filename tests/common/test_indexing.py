"""The index: every way in which a recording is bad, the cache, determinism, clear errors."""

import concurrent.futures
import dataclasses
import os
import pathlib
import pickle

import numpy as np
import pytest
import soundfile

from common.audio import io
from common.data import facts, indexing, records, speech

RATE_HZ = 8000


def tone(seconds: float) -> np.ndarray:
    return 0.1 * np.sin(np.arange(round(seconds * RATE_HZ)) * 0.3)


def write(folder, name: str, samples, **kwargs) -> records.Record:
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, RATE_HZ, **kwargs)
    return {"id": name, "audio": str(path), "text": "HELLO", "speaker": "s"}


def index(source, folder, **changes) -> records.Index:
    options = {
        "cache": folder / "cache",
        "rejected_tsv": folder / "rejected.tsv",
        "sample_rate_hz": RATE_HZ,
        "min_seconds": 0.1,
        "max_seconds": 2.0,
        "require_text": True,
        "max_bad_share": 1.0,
        "num_workers": 2,
        "progress": False,
    }
    return indexing.build_index(source, **(options | changes))


@pytest.fixture
def corpus(tmp_path) -> records.RecordList:
    """Two good recordings, the first and the last, and one of every bad kind between them."""
    rows = [write(tmp_path, "good", tone(1.0))]
    with (tmp_path / "text.wav").open("w") as file:
        file.write("this is not audio")
    rows.append({"id": "text", "audio": str(tmp_path / "text.wav"), "text": "A"})
    (tmp_path / "zero.flac").touch()
    rows.append({"id": "zero", "audio": str(tmp_path / "zero.flac"), "text": "A"})
    rows.append(write(tmp_path, "header", np.zeros(0)))
    nan = tone(1.0)
    nan[100] = np.nan
    rows.append(write(tmp_path, "nan", nan, subtype="FLOAT"))
    inf = tone(1.0)
    inf[-1] = np.inf
    rows.append(write(tmp_path, "inf", inf, subtype="FLOAT"))
    rows.append(write(tmp_path, "absurd", tone(1.0) * 1e29, subtype="FLOAT"))
    rows.append(write(tmp_path, "short", tone(0.05)))
    rows.append(write(tmp_path, "long", tone(2.5)))
    rows.append(write(tmp_path, "silent", np.zeros(RATE_HZ)))
    rows.append({"id": "gone", "audio": str(tmp_path / "gone.wav"), "text": "A"})
    rows.append({"id": "folder", "audio": str(tmp_path), "text": "A"})
    rows.append(write(tmp_path, "mute", tone(1.0)) | {"text": "  "})
    rows.append(write(tmp_path, "good2", tone(0.5)))
    return records.RecordList("corpus", tuple(rows))


EXPECTED = {
    "text": "unreadable",
    "zero": "empty",
    "header": "empty",
    "nan": "not finite",
    "inf": "not finite",
    "absurd": "absurd value",
    "short": "too short",
    "long": "too long",
    "silent": "silent",
    "gone": "missing file",
    "folder": "unreadable",
    "mute": "missing transcript",
}


def test_every_kind_of_bad_recording_gets_its_reason(corpus, tmp_path, caplog):
    caplog.set_level("INFO", "absl")
    found = index(corpus, tmp_path)
    assert {r.id: r.reason.split(" (")[0] for r in found.rejected} == EXPECTED
    np.testing.assert_array_equal(found.positions, [0, len(corpus) - 1])
    np.testing.assert_allclose(found.seconds, [1.0, 0.5])
    lines = (tmp_path / "rejected.tsv").read_text().splitlines()
    assert lines[0] == "id\tpath\treason\tsource"
    assert [line.split("\t")[0] for line in lines[1:]] == list(EXPECTED)
    assert all(len(line.split("\t")) == 4 for line in lines)
    (message,) = [r.getMessage() for r in caplog.records]
    assert "12 of 14 records rejected" in message
    assert "2 not finite" in message
    assert "rejected.tsv" in message


def test_without_required_text_the_mute_one_stays(corpus, tmp_path):
    assert len(index(corpus, tmp_path, require_text=False)) == 3


def test_a_file_that_decodes_to_less_than_it_states_is_cut_off(tmp_path, monkeypatch):
    # Which damaged files decode early without an error depends on libsndfile, so the header lies.
    rows = (write(tmp_path, "whole", tone(1.0)), write(tmp_path, "damaged", tone(1.0)))
    probe = io.probe

    def claim_more(path):
        info = probe(path)
        extra = RATE_HZ // 2 if "damaged" in str(path) else RATE_HZ // 20  # 0.05 s is tolerated
        return dataclasses.replace(info, num_samples=info.num_samples + extra)

    monkeypatch.setattr(io, "probe", claim_more)
    found = index(records.RecordList("two", rows), tmp_path)
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("damaged", "cut off (1.00 of 1.50 s decode)")
    ]


def test_half_a_flac_file_is_rejected(tmp_path):
    path = tmp_path / "half.flac"
    soundfile.write(path, np.random.default_rng(0).normal(size=16 * RATE_HZ) * 0.1, RATE_HZ)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows = ({"id": "half", "audio": str(path)}, write(tmp_path, "whole", tone(1.0)))
    found = index(records.RecordList("two", rows), tmp_path, max_seconds=20.0, require_text=False)
    assert [r.id for r in found.rejected] == ["half"]


@pytest.mark.parametrize("num_workers", [0, 1, 5])
def test_the_result_depends_on_neither_workers_nor_cache(corpus, tmp_path, num_workers):
    first = index(corpus, tmp_path)
    for cache in (None, tmp_path / "cache", tmp_path / "other"):
        again = index(corpus, tmp_path, num_workers=num_workers, cache=cache)
        np.testing.assert_array_equal(again.positions, first.positions)
        np.testing.assert_array_equal(again.seconds, first.seconds)
        assert again.rejected == first.rejected


def test_only_new_and_changed_files_are_decoded_again(corpus, tmp_path, monkeypatch):
    decoded = []
    load = io.load_audio
    monkeypatch.setattr(
        io, "load_audio", lambda path, **options: decoded.append(path) or load(path, **options)
    )
    before = index(corpus, tmp_path)
    assert len(decoded) >= 2
    decoded.clear()
    # Other limits need no decoding either (the long one was only looked at before).
    assert len(index(corpus, tmp_path, min_seconds=0.6)) == 1
    assert decoded == []
    changed = write(tmp_path, "good2", tone(0.7))
    after = index(corpus, tmp_path)
    assert decoded == [changed["audio"]]
    np.testing.assert_array_equal(after.positions, before.positions)
    np.testing.assert_allclose(after.seconds, [1.0, 0.7])


@pytest.mark.parametrize("damage", ["truncate", "flip", "garbage", "empty"])
def test_a_damaged_cache_is_rebuilt(corpus, tmp_path, damage, caplog):
    first = index(corpus, tmp_path)
    (cache,) = (tmp_path / "cache").glob("*.npz")
    good = cache.read_bytes()
    at = good.index(np.int64(RATE_HZ).tobytes())  # a length
    cache.write_bytes(
        {
            "truncate": good[: len(good) // 2],
            "flip": good[:at] + np.int64(2 * RATE_HZ).tobytes() + good[at + 8 :],
            "garbage": b"\x00\x01",
            "empty": b"",
        }[damage]
    )
    again = index(corpus, tmp_path)
    np.testing.assert_array_equal(again.lengths, first.lengths)
    assert again.rejected == first.rejected
    assert "is unusable" in caplog.text
    caplog.clear()
    index(corpus, tmp_path)
    assert "is unusable" not in caplog.text
    assert not [*cache.parent.glob("*.tmp")]


def test_too_many_bad_records_stop_with_the_table_share_and_limit(corpus, tmp_path):
    with pytest.raises(records.DataError, match=r"12 of 14 .*85\.7%.*50\.0%.*rejected\.tsv"):
        index(corpus, tmp_path, max_bad_share=0.5)
    assert (tmp_path / "rejected.tsv").exists()


def test_nothing_usable_and_nothing_at_all_are_errors(corpus, tmp_path):
    bad = records.RecordList("bad", tuple(corpus)[1:4])
    with pytest.raises(records.DataError, match="none of 3 records is usable"):
        index(bad, tmp_path)
    with pytest.raises(records.DataError, match="void holds no records"):
        index(records.RecordList("void", ()), tmp_path)


def test_repeated_ids_are_rejected_by_name_and_the_others_go_on(corpus, tmp_path):
    """The first of two recordings stays; of two transcripts of one recording neither."""
    good, last = corpus[0], corpus[len(corpus) - 1]
    found = index(records.RecordList("twice", (good, last, last | {"id": "good"})), tmp_path)
    assert found.positions.tolist() == [0, 1]
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("good", "repeated id (records 1 and 3 of the source)")
    ]
    found = index(records.RecordList("twice", (good, last, good | {"text": "OTHER"})), tmp_path)
    assert found.positions.tolist() == [1]
    assert [r.reason for r in found.rejected] == [
        "repeated id (another transcript follows)",
        "repeated id (records 1 and 3 of the source)",
    ]


def test_samples_instead_of_paths(tmp_path):
    good = (tone(1.0) * 32767).astype(np.int16)
    rows = tuple(
        {"id": name, "audio": audio, "sample_rate": RATE_HZ, "text": "A"}
        for name, audio in {
            "good": good,
            "empty": good[:0],
            "silent": 0 * good,
            "nan": np.full(RATE_HZ, np.nan, np.float32),
            "long": np.tile(good, 3),
        }.items()
    )
    found = index(records.RecordList("arrays", rows), tmp_path)
    assert len(found) == 1
    reasons = [r.reason.split(" (")[0] for r in found.rejected]
    assert reasons == ["empty", "silent", "not finite", "too long"]


def test_examples_are_decoded_resampled_and_encoded(corpus):
    examples = speech.SpeechExamples(
        corpus, np.array([13, 0]), sample_rate_hz=16_000, encode=lambda text: [len(text)]
    )
    assert len(examples) == 2
    first, second = (examples.draw(i, None, {}) for i in range(2))
    assert first["audio"].shape == (8000,)
    assert second["audio"].dtype == np.float32
    assert (first["index"], second["index"]) == (13, 0)
    np.testing.assert_array_equal(second["labels"], [5])


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16_000, 22_050, 44_100, 48_000, 7350])
def test_lengths_are_what_decoding_gives(tmp_path, rate_hz):
    """At any rate, of whole files and of stretches; another rate needs no new decoding."""
    rng = np.random.default_rng(rate_hz)
    rows = []
    for i, count in enumerate(rng.integers(rate_hz // 5, rate_hz // 2, 12)):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * rng.normal(size=count), rate_hz)
        row = {"id": str(i), "audio": str(path)}
        if i % 3 == 1:
            row |= {"start": float(rng.uniform(0, 0.05)), "duration": float(rng.uniform(0.05, 0.1))}
        if i % 3 == 2:  # to the end, or a little beyond it
            row |= {"start": float(rng.uniform(0, 0.05)), "duration": None if i == 2 else 0.6}
        rows.append(row)
    # A stretch that ends within half a sample of the file's end.
    soundfile.write(tmp_path / "end.wav", 0.1 * rng.normal(size=2000), rate_hz)
    for extra in (-0.4, 0.0, 0.4):
        stretch = {"start": 0.0, "duration": (2000 + extra) / rate_hz}
        rows.append({"id": f"end{extra}", "audio": str(tmp_path / "end.wav")} | stretch)
    source = records.RecordList("corpus", tuple(rows))
    for wanted_hz in (16_000, 8000):
        options = {"sample_rate_hz": wanted_hz, "require_text": False, "min_seconds": 0.01}
        found = index(source, tmp_path, **options)
        decoded = [len(records.load_record(source[int(i)], wanted_hz)) for i in found.positions]
        np.testing.assert_array_equal(found.lengths, decoded)
        assert len(found) == len(rows)
        np.testing.assert_allclose(found.seconds, found.lengths / wanted_hz)


def test_the_channel_that_is_used_is_the_one_that_is_validated(tmp_path):
    """Inverted phase has a silent mean; another channel needs another look."""
    left = (tone(1.0) * 32767).astype(np.int16)
    other = np.random.default_rng(0).integers(-900, 900, RATE_HZ).astype(np.int16)
    rows = (
        write(tmp_path, "inverted", np.stack([left, -left], 1)),
        write(tmp_path, "dead", np.stack([left, 0 * left], 1)),
        write(tmp_path, "mono", left),
        write(tmp_path, "good", np.stack([left, other], 1)),
        write(tmp_path, "own", np.stack([0 * left, left], 1)) | {"channel": 1},
    )
    source = records.RecordList("calls", rows)

    def reasons(channel):
        found = index(source, tmp_path, channel=channel)
        return {r.id: r.reason.split(" (")[0] for r in found.rejected}

    assert reasons("mean") == {"inverted": "silent"}
    assert reasons(0) == {}
    assert reasons(1) == {"dead": "silent", "mono": "missing channel"}
    said = [index(source, tmp_path, channel=c).rejected[0].reason for c in ("mean", 1)]
    assert "in their mean: see config.data.channel" in said[0]
    assert said[1] == "silent (every sample of channel 1 is zero)"
    assert reasons("mean") == {"inverted": "silent"}


class Failing:
    """A source that cannot give all of its records."""

    name = "shards"

    def __init__(self, rows, errors):
        self.rows, self.errors = rows, errors

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        if position in self.errors:
            raise self.errors[position]
        return self.rows[position]


def test_a_record_that_the_source_cannot_give_is_rejected_by_its_position(corpus, tmp_path):
    rows = [corpus[0], corpus[0], corpus[0], corpus[len(corpus) - 1]]
    errors = {1: OSError("shard 7 is cut short"), 2: ValueError("cannot parse the example")}
    found = index(Failing(rows, errors), tmp_path)
    assert found.positions.tolist() == [0, 3]
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("shards[1]", "unreadable (OSError: shard 7 is cut short)"),
        ("shards[2]", "unreadable (ValueError: cannot parse the example)"),
    ]


def test_what_may_not_be_read_is_not_remembered(corpus, tmp_path, monkeypatch):
    """Neither a refusal that is mended later, nor that it was good before."""
    path, closed = corpus[0]["audio"], set()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: str(p) not in closed and access(p, mode))
    for closed_now in ({path}, set(), {path}):  # the user root may read everything: made up
        closed.clear()
        closed.update(closed_now)
        reasons = {r.id: r.reason for r in index(corpus, tmp_path).rejected}
        assert reasons.get("good") == ("unreadable (Permission denied)" if closed else None)

    load = io.load_audio

    def refuse(audio, **options):
        if audio == path:
            raise PermissionError(13, "Permission denied")
        return load(audio, **options)

    closed.clear()
    with monkeypatch.context() as context:
        context.setattr(io, "load_audio", refuse)
        again = index(corpus, tmp_path, cache=tmp_path / "other")
    assert {r.id: r.reason for r in again.rejected}["good"].startswith("unreadable (Permission")
    assert "good" not in {r.id for r in index(corpus, tmp_path, cache=tmp_path / "other").rejected}


def test_names_that_are_no_text(tmp_path):
    """Old corpora have names in Latin-1: they are read, remembered, and written as they are."""
    folder = os.fsencode(tmp_path)
    good = os.fsdecode(folder + b"/caf\xe9.wav")
    soundfile.write(tmp_path / "plain.wav", tone(1.0), RATE_HZ)
    (tmp_path / "plain.wav").rename(good)
    gone = os.fsdecode(folder + b"/\xe9t\xe9.wav")
    rows = [{"id": pathlib.Path(path).name, "audio": path} for path in (good, gone)]
    for _ in range(2):
        found = index(records.RecordList(os.fsdecode(folder), rows), tmp_path, require_text=False)
        assert found.positions.tolist() == [0]
        table = (tmp_path / "rejected.tsv").read_bytes().splitlines()
        assert table[1].split(b"\t")[:2] == [b"\xe9t\xe9.wav", folder + b"/\xe9t\xe9.wav"]
        assert len(table) == 2


def test_rows_of_several_sources_and_processes_are_all_kept(tmp_path):
    def write_one(i):
        indexing.write_rejected(
            tmp_path / "r.tsv", f"source {i}", [records.Rejected(f"a{i}", "p", "silent")]
        )

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write_one, [*range(12), *range(12)]))
    rows = (tmp_path / "r.tsv").read_text().splitlines()
    assert rows[0] == "id\tpath\treason\tsource"
    assert sorted(row.split("\t")[3] for row in rows[1:]) == sorted(
        f"source {i}" for i in range(12)
    )


def test_the_cache_is_shared_by_runs_and_kept_by_corpus(corpus, tmp_path, monkeypatch):
    """Whoever writes at the same time loses nothing; another list of the same files is known."""
    cache = tmp_path / "cache"
    elsewhere = tmp_path / "x" / "y" / "z" / "other.wav"
    elsewhere.parent.mkdir(parents=True)
    soundfile.write(elsewhere, tone(1.0), RATE_HZ)
    other = records.RecordList("other", ({"id": "other", "audio": str(elsewhere)},))
    first, second = facts.Known(cache), facts.Known(cache)
    keys = [facts.key("/corpus/a.wav", i) for i in range(3)]
    second.find(keys)  # reads before the first one writes
    first.add(keys[0], facts.Fact(1, 8000))
    first.add(keys[1], facts.Fact(problem="silent"))
    first.save()
    second.add(keys[1], facts.Fact(problem="cut off"))
    second.add(keys[2], facts.Fact(30, 100.5, dimensions=4, whole=False))
    second.save()
    assert facts.Known(cache).find([keys[2], None, *keys[:2]]) == [
        facts.Fact(30, 100.5, dimensions=4, whole=False),
        None,
        facts.Fact(1, 8000),
        facts.Fact(problem="cut off"),
    ]
    index(other, tmp_path, require_text=False)
    index(corpus, tmp_path)
    assert len([*cache.glob("*.npz")]) == 3
    monkeypatch.setattr(io, "load_audio", None)
    part = records.RecordList("part", [row for row in corpus if row["id"] in ("good2", "nan")])
    assert [r.id for r in index(part, tmp_path).rejected] == ["nan"]


def test_a_cache_that_cannot_be_written_costs_a_warning(corpus, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert len(index(corpus, tmp_path, cache=tmp_path / "file" / "cache")) == 2
    assert "nothing is remembered" in caplog.text


def test_a_task_may_look_at_more_than_the_sound(corpus, tmp_path):
    """Its own inspection sees every record once, again when its file changed."""
    (tmp_path / "a.mp4").write_bytes(b"face")
    (tmp_path / "b.mp4").write_bytes(b"none")
    video = {"good": str(tmp_path / "a.mp4"), "good2": str(tmp_path / "b.mp4")}
    rows = [row | {"video": video[row["id"]]} for row in corpus if row["id"] in video]
    rows.append(rows[0] | {"id": "gone", "video": str(tmp_path / "c.mp4")})
    looked = []

    def inspect(record, channel, max_seconds):
        looked.append(record["id"])
        fact = indexing.inspect_record(record, channel, max_seconds)
        if pathlib.Path(record["video"]).read_bytes() == b"none":
            return dataclasses.replace(fact, problem="no face")
        return fact

    for _ in range(2):
        found = index(records.RecordList("talks", rows), tmp_path, inspect=inspect)
        assert {r.id: r.reason for r in found.rejected} == {
            "good2": "no face",
            "gone": "missing file (No such file or directory)",
        }
    assert looked == ["good", "good2"]
    (tmp_path / "b.mp4").write_bytes(b"face!")
    assert len(index(records.RecordList("talks", rows), tmp_path, inspect=inspect)) == 2
    assert looked == ["good", "good2", "good2"]


def test_a_table_gives_back_what_it_was_given():
    rows = [
        {"id": "a", "start": 0.5, "n": 3, "text": ""},
        {"id": "\udce9\ud800", "n": None, "new": np.arange(2)},
        {"id": "c", "start": 1, "text": "\u00e9"},  # another type than above
    ]
    source = pickle.loads(pickle.dumps(records.RecordList("rows", rows)))
    assert [{k: v for k, v in row.items() if k != "new"} for row in source] == [
        {"id": "a", "start": 0.5, "n": 3, "text": ""},
        {"id": "\udce9\ud800"},
        {"id": "c", "start": 1, "text": "\u00e9"},
    ]
    np.testing.assert_array_equal(source[1]["new"], [0, 1])
    assert source.column("n") == [3, None, None]
    assert source.column("start") == [0.5, None, 1]
    assert source.column("absent") == [None] * 3
