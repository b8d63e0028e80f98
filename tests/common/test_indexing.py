"""The index: every way in which a recording is bad, the cache, determinism, clear errors."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from common.audio import io
from common.data import excerpts, indexing, records

RATE_HZ = 8000


def tone(seconds: float) -> np.ndarray:
    return 0.1 * np.sin(np.arange(round(seconds * RATE_HZ)) * 0.3)


def write(folder, name: str, samples, **kwargs) -> records.Record:
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, RATE_HZ, **kwargs)
    return {"id": name, "audio": str(path), "text": "HELLO", "speaker": "s"}


def index(source, folder, **changes) -> records.Index:
    options = {
        "cache": folder / "cache" / "index.json",
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
    assert "11 of 13 records rejected" in message
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
    for cache in (None, tmp_path / "cache" / "index.json", tmp_path / "other.json"):
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


@pytest.mark.parametrize("damage", ["truncate", "flip", "garbage", "version"])
def test_a_damaged_cache_is_rebuilt(corpus, tmp_path, damage, caplog):
    first = index(corpus, tmp_path)
    cache = tmp_path / "cache" / "index.json"
    good = cache.read_text()
    digest, body = good.split("\n")
    cache.write_text(
        {
            "truncate": good[: len(good) // 2],
            "flip": digest + "\n" + body.replace("8000", "9000"),
            "garbage": "\x00\x01",
            "version": json.dumps({"version": 0}),
        }[damage]
    )
    again = index(corpus, tmp_path)
    np.testing.assert_array_equal(again.seconds, first.seconds)
    assert "is unusable" in caplog.text
    assert cache.read_text() == good
    assert [p.name for p in cache.parent.iterdir()] == ["index.json"]  # no temporary left


def test_too_many_bad_records_stop_with_the_table_share_and_limit(corpus, tmp_path):
    with pytest.raises(records.DataError, match=r"11 of 13 .*84\.6%.*50\.0%.*rejected\.tsv"):
        index(corpus, tmp_path, max_bad_share=0.5)
    assert (tmp_path / "rejected.tsv").exists()


def test_nothing_usable_and_nothing_at_all_are_errors(corpus, tmp_path):
    bad = records.RecordList("bad", corpus.records[1:4])
    with pytest.raises(records.DataError, match="none of 3 records is usable"):
        index(bad, tmp_path)
    with pytest.raises(records.DataError, match="void holds no records"):
        index(records.RecordList("void", ()), tmp_path)


def test_repeated_ids_are_named(corpus, tmp_path):
    twice = records.RecordList("twice", (corpus[0], corpus[-1], corpus[0]))
    with pytest.raises(records.DataError, match="'good' more than once"):
        index(twice, tmp_path)


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
    examples = excerpts.SpeechExamples(
        corpus, np.array([12, 0]), sample_rate_hz=16_000, encode=lambda text: [len(text)]
    )
    assert len(examples) == 2
    assert examples[0]["audio"].shape == (8000,)
    assert examples[1]["audio"].dtype == np.float32
    assert (examples[0]["index"], examples[1]["index"]) == (12, 0)
    np.testing.assert_array_equal(examples[1]["labels"], [5])


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
