"""Sources: LibriSpeech trees, manifests, tfds without TensorFlow, the AN4 builder."""

import json
import os
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
from array_record.python import array_record_module
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2

from common import errors
from common.data import (
    clips,
    examples,
    indexing,
    librispeech,
    manifest,
    records,
    splits,
    tfds,
    voxceleb,
)
from common.data.builders.an4 import an4_dataset_builder as an4

RATE_HZ = 16_000


def write_audio(path, seconds=0.25, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Smooth like speech: byte order of headerless files is told by it.
    samples = np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ)).cumsum()
    samples = (samples / np.abs(samples).max() * 9000).astype(np.int16)
    if path.suffix == ".raw":
        samples.astype(">i2").tofile(path)
    elif path.suffix == ".sph":
        soundfile.write(path, samples, RATE_HZ, format="NIST", subtype="PCM_16")
    else:
        soundfile.write(path, samples, RATE_HZ)
    return samples


def indexed(source, folder):
    return indexing.build_index(
        source,
        cache=None,
        rejected_tsv=folder / "rejected.tsv",
        sample_rate_hz=RATE_HZ,
        min_seconds=0.01,
        max_seconds=9.0,
        require_text=False,
        max_bad_share=1.0,
        num_workers=2,
        progress=False,
    )


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "LibriSpeech"
    for subset, speaker in (("dev-clean", "84"), ("train-clean-100", "27"), ("dev-clean", "9")):
        folder = root / subset / speaker / "1"
        for i in range(2):
            write_audio(folder / f"{speaker}-1-000{i}.flac", seed=i)
        lines = [f"{speaker}-1-000{i} WORD {i}" for i in range(2)]
        (folder / f"{speaker}-1.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "SPEAKERS.TXT").write_text("; not a subset\n84 | M | dev-clean | 8.02 | A Reader\n")
    return root


def test_tree_with_several_subsets(tree):
    everything = librispeech.read_tree(tree)
    assert len(everything) == 6
    source = librispeech.read_tree(tree.parent, ["dev-clean"])  # the folder above works too
    assert [r["id"] for r in source] == ["84-1-0000", "84-1-0001", "9-1-0000", "9-1-0001"]
    assert source[2]["text"] == "WORD 0"
    assert source[2]["speaker"] == "9"
    assert [r.get("gender") for r in source] == ["m", "m", None, None]
    assert "dev-clean" in source.name


def test_tree_keeps_files_without_text_and_text_without_file(tree):
    folder = tree / "dev-clean" / "9" / "1"
    write_audio(folder / "9-1-0002.flac")
    (folder / "9-1-0000.flac").unlink()
    source = librispeech.read_tree(tree, ["dev-clean"])
    by_id = {r["id"]: r for r in source}
    assert "text" not in by_id["9-1-0002"]
    assert by_id["9-1-0000"]["audio"].endswith("9-1-0000.flac")


def test_tree_errors_say_what_to_do(tree, tmp_path):
    with pytest.raises(records.DataError, match=r"no folder .*openslr"):
        librispeech.read_tree(tmp_path / "nowhere")
    with pytest.raises(records.DataError, match="no subset test-other; it has dev-clean"):
        librispeech.read_tree(tree, ["test-other"])
    with pytest.raises(records.DataError, match="not a LibriSpeech tree"):
        librispeech.read_tree(tree / "dev-clean" / "84" / "1")


def test_trees_with_marks_tabs_capitals_and_hidden_files(tree):
    folder = tree / "dev-clean" / "9" / "1"
    text = folder / "9-1.trans.txt"
    text.write_bytes(b"\xef\xbb\xbf9-1-0000\tWORD 0\r\n9-1-0001  WORD\t1\n")
    (folder / "9-1-0001.flac").rename(folder / "9-1-0001.FLAC")
    (folder / "._9-1-0001.flac").write_bytes(b"of a Mac")
    found = [r for r in librispeech.read_tree(tree, ["dev-clean"]) if r["speaker"] == "9"]
    assert [(r["id"], r["text"], r["audio"]) for r in found] == [
        ("9-1-0000", "WORD 0", str(folder / "9-1-0000.flac")),
        ("9-1-0001", "WORD\t1", str(folder / "9-1-0001.FLAC")),
    ]
    text.write_bytes(b"9-1-0000 WORD\n9-1-0001 CAF\xc9\n")
    found = list(librispeech.read_tree(tree, ["dev-clean"]))
    bad = [row for row in found if row["speaker"] == "9"]
    assert len(bad) == 2
    for row in bad:
        assert re.search(r"9-1.trans.txt, line 2: .* not UTF-8 .*iconv", row["problem"])
    assert any(row.get("problem") is None and row["text"] for row in found)  # the others go on


def test_an_id_with_two_transcripts_is_rejected_by_name(tree, tmp_path):
    text = tree / "dev-clean" / "9" / "1" / "9-1.trans.txt"
    text.write_text("9-1-0000 WORD 0\n9-1-0001 WORD 1\n9-1-0000 OTHER\n9-1-0001 WORD 1\n")
    found = indexed(librispeech.read_tree(tree, ["dev-clean"]), tmp_path)
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("9-1-0000", f"repeated id (with other words in {text}, line 1 and {text}, line 3)")
    ]


@pytest.mark.parametrize("kind", ["librispeech", "voxceleb", "folder"])
def test_a_folder_that_may_not_be_read_costs_its_records(tree, tmp_path, kind, monkeypatch):
    """The user root may read everything: the refusal is made up."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if kind == "voxceleb":
        for name in ("id10001/open", "id10001/closed"):
            write_audio(tmp_path / "vox" / name / "00001.wav")
        source = voxceleb.read_tree(tmp_path, ["vox"])
    else:
        (tree / "dev-clean" / "84" / "closed").mkdir()
        source = librispeech.read_tree(tree) if kind == "librispeech" else clips.read_folder(tree)
    problems = [(r["id"], r["problem"]) for r in source if "problem" in r]
    assert len(problems) == 1
    assert problems[0][0].endswith("closed")
    assert problems[0][1] == "unreadable folder (Permission denied)"
    found = indexed(source, tmp_path)
    assert len(found) == len(source) - 1


def test_one_of_several_manifests_may_have_no_row_of_a_split(tmp_path):
    (tmp_path / "a.tsv").write_text("path\tsplit\na.wav\ttrain\n")
    (tmp_path / "b.tsv").write_text("path\tsplit\nb.wav\tdev\nc.wav\ttrain\n")
    data = splits.default_config()
    data.update({"kind": "manifest", "root": f"{tmp_path / 'a.tsv'}, {tmp_path / 'b.tsv'}"})
    found = {name: splits.open_source(data, [name]) for name in ("train", "dev")}
    assert {name: [r["id"] for r in rows] for name, rows in found.items()} == {
        "train": ["a", "c"],
        "dev": ["b"],
    }
    with pytest.raises(records.DataError, match="none of 2 rows has"):
        splits.open_source(data, ["test"])


def test_tsv_paths_columns_and_filter(tmp_path):
    path = tmp_path / "lists" / "m.tsv"
    path.parent.mkdir()
    path.write_text(
        'utt\tpath\tsplit\ttext\na\twav/a.wav\ttrain\tSAY "YES"\nb\t/abs/b.wav\tdev\t\n\n'
    )
    source = manifest.read_manifest(path)
    assert source[0] == {
        "id": "a",
        "audio": str(tmp_path / "lists" / "wav" / "a.wav"),
        "path": "wav/a.wav",
        "text": 'SAY "YES"',
    }
    assert source[1] == {"id": "b", "audio": "/abs/b.wav", "path": "/abs/b.wav"}
    moved = manifest.read_manifest(path, root=tmp_path, where={"split": "train"})
    assert [r["audio"] for r in moved] == [str(tmp_path / "wav" / "a.wav")]
    assert len(manifest.read_manifest(path, where={"split": ["train", "dev"]})) == 2


def test_jsonl_with_usual_names(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [{"audio_filepath": f"{i}.wav", "text": "T", "duration": 1.0} for i in range(2)]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)))
    source = manifest.read_manifest(path)
    assert [r["id"] for r in source] == ["0", "1"]
    assert source[1]["audio"] == str(tmp_path / "1.wav")


def manifest_of(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    return [*manifest.read_manifest(tmp_path / name)]


def test_nemo_tells_utterances_of_a_file_apart(tmp_path):
    rows = [
        {"audio_filepath": "long.wav", "offset": 0.0, "duration": 1.25, "text": "A"},
        {"audio_filepath": "long.wav", "offset": 1.25, "duration": 2, "text": "B"},
        {"audio_filepath": "own.wav", "offset": 1.25, "duration": 2.0, "id": "x", "text": "C"},
        {"audio_filepath": "whole.wav", "duration": 3.5, "text": "D"},
    ]
    found = manifest_of(tmp_path, "m.json", "\n".join(map(json.dumps, rows)))
    assert [(r["id"], r["start"], r["duration"], r["text"]) for r in found] == [
        ("long", 0.0, 1.25, "A"),
        ("long:1.250", 1.25, 2.0, "B"),
        ("x", 1.25, 2.0, "C"),
        ("whole", 0.0, 3.5, "D"),
    ]
    assert {r["audio"] for r in found[:2]} == {str(tmp_path / "long.wav")}


def test_hugging_face_and_speechbrain(tmp_path):
    """metadata.csv and .jsonl, prepare scripts' CSV and JSON; lists of words; ids are kept."""
    found = manifest_of(tmp_path, "metadata.csv", 'file_name,transcription\na.wav,"YES, SIR"\n')
    assert found == [
        {"id": "a", "audio": str(tmp_path / "a.wav"), "path": "a.wav", "text": "YES, SIR"}
    ]
    row = {"file_name": "a.wav", "transcription": ["YES", "SIR"]}
    assert manifest_of(tmp_path, "metadata.jsonl", json.dumps(row))[0]["text"] == "YES SIR"
    text = "ID,duration,wav,spk_id,wrd\n1-2-3,14.5,/c/1-2-3.flac,1,GO ON\n"
    prepared = {"id": "1-2-3", "audio": "/c/1-2-3.flac", "path": "/c/1-2-3.flac"}
    prepared |= {"speaker": "1", "text": "GO ON"}
    assert manifest_of(tmp_path, "train.csv", text) == [prepared]
    rows = {"1-2-3": {"wav": "/c/1-2-3.flac", "length": 14.5, "words": "GO ON", "spk_id": 1}}
    rows["4"] = {"wav": "{data_root}/4.flac", "length": 1.0, "words": "STOP", "spk_id": "2"}
    first, second = manifest_of(tmp_path, "train.json", json.dumps(rows, indent=2))
    assert first == prepared
    assert (second["id"], second["audio"]) == ("4", str(tmp_path / "4.flac"))
    assert len(manifest_of(tmp_path, "list.json", json.dumps([row, row]))) == 2
    twice = '{"a": {"wav": "a.wav"}, "a": {"wav": "b.wav"}}'  # neither is lost
    assert [r["path"] for r in manifest_of(tmp_path, "m.json", twice)] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"HE SAID ""GO"" TWICE"', 'HE SAID "GO" TWICE'),
        ('"ALL OF IT"', "ALL OF IT"),
        ('"Unbalanced, as in Common Voice', '"Unbalanced, as in Common Voice'),
        ('SAY "YES"', 'SAY "YES"'),
        ('"NO" SHE SAID', '"NO" SHE SAID'),
        ('"A" AND "B"', '"A" AND "B"'),
    ],
)
def test_quotation_marks_of_tsv(tmp_path, field, text):
    found = manifest_of(tmp_path, "m.tsv", f"path\ttext\na.wav\tWORD\nb.wav\t{field}\n")
    assert [r["text"] for r in found] == ["WORD", text]
    # One field that no csv writer wrote decides for all.
    found = manifest_of(tmp_path, "m.tsv", f'path\ttext\na.wav\t5" X\nb.wav\t{field}\n')
    assert [r["text"] for r in found] == ['5" X', field]


def test_blanks_round_names_are_no_part_of_them(tmp_path):
    text = "id \t path\tspeaker\tsplit\n a \ta b.wav \t s\tdev \nb\tc.wav\ts\ttrain\n"
    (tmp_path / "M.TSV").write_text(text)
    found = manifest.read_manifest(tmp_path / "M.TSV", where={"split": "dev"})
    assert [*found] == [
        {"id": "a", "audio": str(tmp_path / "a b.wav"), "path": "a b.wav", "speaker": "s"}
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"path": ""}, "missing path"),
        ({"path": None}, "missing path"),
        ({"path": {"bytes": None}}, "missing path"),
        ({"text": {"words": "A"}}, "unclear text (text is dict"),
        ({"text": [1, 2]}, "unclear text (text is list"),
        ({"speaker": ["a", "b", 1]}, "unclear speaker"),
        ({"offset": "soon"}, "unclear offset (offset 'soon' is no number)"),
        ({"offset": -1}, "empty segment (offset -1 s"),
        ({"offset": 1, "duration": 0}, "empty segment"),
        ({"start": 16000}, "unclear column start"),
        ({"end_time": "1.5"}, "unclear column end_time"),
        ({"offset_ms": 1500}, "unclear column offset_ms"),
        ({"begin_sec": 1.5}, "unclear column begin_sec"),
        ({"text": "['A', 'B']"}, "unclear text (text is a list, not a text: ['A', 'B'])"),
        ({"channel": 0.5}, "missing channel (channel 0.5"),
        ({"channel": "left"}, "unclear channel"),
    ],
)
def test_a_row_that_is_not_understood_is_rejected_by_name(tmp_path, row, problem):
    rows = [{"id": "good", "path": "a.wav", "text": "A"}]
    rows.append({"id": "odd", "path": "b.wav", "text": "B"} | row)
    good, odd = manifest_of(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows)))
    assert "problem" not in good
    assert odd["id"] == "odd"
    assert odd["problem"].startswith(problem)
    assert odd["problem"].endswith(f"{tmp_path / 'm.jsonl'}, line 2")


def test_what_pandas_has_for_nothing_is_no_text(tmp_path):
    (row,) = manifest_of(tmp_path, "m.jsonl", '{"path": "a.wav", "text": NaN, "offset": NaN}')
    assert row == {"id": "a", "audio": str(tmp_path / "a.wav"), "path": "a.wav"}


def test_a_channel_of_a_manifest_is_the_one_that_is_read(tmp_path):
    samples = np.stack([np.full(1000, 0.25), np.full(1000, -0.5)], 1)
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    (record,) = manifest_of(tmp_path, "m.tsv", "path\tchannel\na.wav\t1\n")
    np.testing.assert_allclose(records.load_record(record, RATE_HZ, 0), -0.5)


def test_a_folder_of_manifests(tmp_path):
    """One file a split, as of NeMo and SpeechBrain, and Hugging Face's audiofolder."""
    (tmp_path / "train.json").write_text('{"audio_filepath": "a.wav"}')
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "metadata.csv").write_text("file_name\nb.wav\n")
    data = splits.default_config()
    data.update({"kind": "manifest", "root": str(tmp_path)})
    assert [r["id"] for r in splits.open_source(data, ["train.json"])] == ["a"]
    (record,) = splits.open_source(data, ["dev"])
    assert record["audio"] == str(tmp_path / "dev" / "b.wav")
    with pytest.raises(
        records.DataError, match=r"no manifest .*test: config.data.root is a folder"
    ):
        splits.open_source(data, ["test"])


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("m.tsv", "id\tpath\na\tb\tc\n", {}, "line 2: 3 fields, but the header has 2"),
        ("m.tsv", "id\tpath\n", {}, "holds no rows"),
        ("m.tsv", "id\tfoo\na\tb\n", {}, "among id, foo; call it one of .*path"),
        ("m.tsv", "id\tpath\tsplit\na\tb\tdev\n", {"where": {"spilt": "x"}}, "mean 'split'"),
        ("m.tsv", "id\tpath\tsplit\na\tb\tdev\n", {"where": {"split": "x"}}, r"none of 1.*'dev'"),
        ("m.tsv", "id\tpath\na\tb\n", {"where": {"split": "x"}}, "root is their folder"),
        ("m.tsv", "id\tpath\na\tb\n", {"root": "/nowhere"}, "no folder /nowhere"),
        ("m.tsv", "id\tpath\tid\na\tb\tc\n", {}, "two columns 'id'"),
        ("m.jsonl", '{"path": 1}\n{', {}, "line 2: not JSON"),
        ("m.jsonl", "7", {}, "line 1: not a JSON object"),
        ("m.jsonl", '["a"]', {}, "entry 1: not a JSON object"),
        ("m.csv", "id,path", {}, "holds no rows"),
        ("m.csv", 'id,path\na,"b"c\n', {}, "line 2: not CSV"),
        ("m.csv", "id,path\na,b,c\n", {}, "line 2: 3 fields, .* separated by a comma"),
        ("m.csv", "id;path\na;b\n", {}, "no column with the audio path among id;path"),
        ("m.txt", "id,path", {}, "suffix"),
    ],
)
def test_manifest_errors(tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(records.DataError, match=message):
        manifest.read_manifest(tmp_path / name, **options)


def test_missing_and_undecodable_manifests(tmp_path):
    with pytest.raises(records.DataError, match="no manifest"):
        manifest.read_manifest(tmp_path / "m.tsv")
    (tmp_path / "m.tsv").write_bytes(b"id\tpath\na\tb\nJ\xfcrgen\t1\n")
    with pytest.raises(records.DataError, match=r"m.tsv, line 3: .* not UTF-8 .* 0xfc.*iconv"):
        manifest.read_manifest(tmp_path / "m.tsv")
    (tmp_path / "m.tsv").write_bytes("id\tpath\r\n\u00e9\tb\r\n".encode("utf-16"))
    assert manifest.read_manifest(tmp_path / "m.tsv")[0]["id"] == "\u00e9"
    (tmp_path / "m.tsv").write_bytes("id\tpath\na\tb\n".encode("utf-16-le"))
    with pytest.raises(records.DataError, match=r"m.tsv, line 1: .* zero byte"):
        manifest.read_manifest(tmp_path / "m.tsv")


def make_an4(folder, suffix):
    """The corpus as CMU distributes it, with 2 x 53 training and 2 test utterances."""
    samples = {}
    etc = folder / "an4" / "etc"
    etc.mkdir(parents=True)
    lines = []
    for n in range(106):
        speaker = ("mzzz", "faaa")[n % 2]
        file = f"an{n}-{speaker}-b"
        path = folder / "an4" / "wav" / "an4_clstk" / speaker / (file + suffix)
        samples[f"{speaker}-an{n}"] = write_audio(path, 0.05, n)
        lines.append(f"<s> WORD {n} </s> ({file})")
    (etc / "an4_train.transcription").write_text("\n".join(lines) + "\n")
    lines = []
    for n in range(2):
        file = f"cen{n}-fxyz-b"
        path = folder / "an4" / "wav" / "an4test_clstk" / "fxyz" / (file + suffix)
        samples[f"fxyz-cen{n}"] = write_audio(path, 0.05, 200 + n)
        lines.append(f"A B {n} ({file})")
    (etc / "an4_test.transcription").write_text("\n".join(lines) + "\n")
    return samples


@pytest.mark.parametrize("suffix", [".sph", ".raw"])
def test_an4_as_distributed_through_tfds_without_tensorflow(tmp_path, suffix):
    samples = make_an4(tmp_path / "corpus", suffix)
    prepared = tfds.prepare(an4.Builder, tmp_path / "corpus", tmp_path / "data")
    seen = {}
    for split, count in (("train", 6), ("dev", 100), ("test", 2)):
        source = tfds.TfdsSource(prepared, split)
        assert len(source) == count
        seen |= {source[i]["id"]: (split, source[i]) for i in range(count)}
    assert seen.keys() == samples.keys()
    assert {key for key, (split, _) in seen.items() if split == "dev"} == set(
        sorted(k for k in samples if k[0] != "f" or "xyz" not in k)[:100]
    )
    for key, (_, record) in seen.items():
        np.testing.assert_array_equal(record["audio"], samples[key])
        assert record["audio"].dtype == np.int16
        assert record["sample_rate"] == RATE_HZ
    assert seen["faaa-an1"][1]["text"] == "WORD 1"
    assert seen["fxyz-cen1"][1]["text"] == "A B 1"
    assert seen["faaa-an1"][1]["speaker"] == "faaa"
    assert "tensorflow" not in sys.modules

    source = tfds.TfdsSource(tmp_path / "data", "dev[:10%]")  # found below data_dir
    assert len(source) == 10
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["id"] == source[3]["id"]
    whole = tfds.TfdsSource(prepared, "dev")
    assert source.fingerprint == copy.fingerprint != whole.fingerprint
    # Another machine has its own copy: streams of the two are one and the same.
    shutil.copytree(prepared, tmp_path / "other" / prepared.name)
    other = tfds.TfdsSource(tmp_path / "other" / prepared.name, "dev[:10%]")
    assert other.fingerprint != source.fingerprint
    assert examples.recordings(other, np.arange(9)) == examples.recordings(source, np.arange(9))
    assert examples.recordings(other, np.arange(9)) != examples.recordings(whole, np.arange(9))
    index = indexing.build_index(
        whole,
        cache=tmp_path / "cache",
        rejected_tsv=tmp_path / "rejected.tsv",
        sample_rate_hz=RATE_HZ,
        min_seconds=0.01,
        max_seconds=1.0,
        require_text=True,
        max_bad_share=0.0,
        num_workers=2,
        progress=False,
    )
    assert len(index) == 100


def test_an4_from_a_manifest(tmp_path):
    rows = ["utt\tpath\tspeaker\tsplit\ttext"]
    for n, split in enumerate(("train", "dev", "train")):
        write_audio(tmp_path / "sentences" / "an4" / f"{n}.flac", seed=n)
        rows.append(f"u{n}\tsentences/an4/{n}.flac\ts{n}\t{split}\tWORD")
    (tmp_path / "sentences" / "an4" / "an4.tsv").write_text("\n".join(rows) + "\n")
    splits = an4.read_splits(tmp_path / "sentences" / "an4")
    assert {name: list(rows) for name, rows in splits.items()} == {
        "train": ["u0", "u2"],
        "dev": ["u1"],
    }
    assert splits["dev"]["u1"]["audio"] == str(tmp_path / "sentences" / "an4" / "1.flac")


def test_an4_errors(tmp_path):
    with pytest.raises(records.DataError, match=r"missing or empty. Unpack AN4"):
        tfds.prepare(an4.Builder, tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(records.DataError, match=r"neither an4\.tsv nor"):
        an4.read_splits(tmp_path)
    make_an4(tmp_path, ".sph")
    (tmp_path / "an4" / "wav" / "an4_clstk" / "faaa" / "an1-faaa-b.sph").unlink()
    with pytest.raises(records.DataError, match=r"line 2: there is no .*an1-faaa-b"):
        an4.read_splits(tmp_path)


def write_prepared(folder, audio, examples, file_format="array_record"):
    """A data set with the feature description and the bytes that tfds's librispeech has."""
    folder.mkdir(parents=True)
    core = "tensorflow_datasets.core.features"
    scalar = {"shape": {}, "dtype": "int64", "encoding": "none"}
    features = {
        "speech": {"pythonClassName": f"{core}.audio_feature.Audio", "audio": audio},
        "text": {"pythonClassName": f"{core}.text_feature.Text", "text": {}},
        "id": {
            "pythonClassName": f"{core}.tensor_feature.Tensor",
            "tensor": scalar | {"dtype": "string"},
        },
        "speaker_id": {"pythonClassName": f"{core}.tensor_feature.Tensor", "tensor": scalar},
    }
    description = {
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(description))
    split = {
        "name": "dev_clean",
        "shardLengths": [str(len(examples))],
        "numBytes": "1",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": "librispeech", "version": "2.1.1", "fileFormat": file_format, "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    path = folder / "librispeech-dev_clean.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i, stored in enumerate(examples):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        if isinstance(stored, bytes):
            feature["speech"].bytes_list.value.append(stored)
        else:
            feature["speech"].int64_list.value.extend(stored.tolist())
        feature["text"].bytes_list.value.append(f"WORD {i}".encode())
        feature["id"].bytes_list.value.append(f"84-1-{i:04d}".encode())
        feature["speaker_id"].int64_list.value.append(84)
        writer.write(example.SerializeToString())
    writer.close()
    return path


@pytest.mark.parametrize("lazy", [False, True])
def test_tfds_librispeech_is_read_without_tensorflow(tmp_path, lazy):
    path = tmp_path / "a.flac"
    samples = [write_audio(path, 0.1 * (i + 1), seed=i) for i in range(3)]
    stored = samples
    if lazy:
        stored = []
        for i in range(3):
            write_audio(path, 0.1 * (i + 1), seed=i)
            stored.append(path.read_bytes())
    audio = {
        "shape": {"dimensions": ["-1"]},
        "dtype": "int16",
        "fileFormat": "flac",
        "sampleRate": str(RATE_HZ),
        "encoding": "none",
        "lazyDecode": lazy,
    }
    write_prepared(tmp_path / "librispeech" / "default" / "2.1.1", audio, stored)
    source = tfds.TfdsSource(tmp_path, "dev_clean")
    assert len(source) == 3
    for i, expected in enumerate(samples):
        record = source[i]
        np.testing.assert_array_equal(record["audio"], expected)
        assert record["audio"].dtype == np.int16
        assert (record["sample_rate"], record["speaker"]) == (RATE_HZ, "84")
        assert (record["id"], record["text"]) == (f"84-1-{i:04d}", f"WORD {i}")
    assert "tensorflow" not in sys.modules


def write_prepared_voxceleb(folder, samples, labels, names):
    """What tfds's voxceleb writes: 16 kHz wave as int64, a class for the speaker, no ids."""
    folder.mkdir(parents=True)
    core = "tensorflow_datasets.core.features"
    audio = {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "fileFormat": "wav"}
    audio |= {"sampleRate": str(RATE_HZ), "encoding": "none"}
    features = {
        "audio": {"pythonClassName": f"{core}.audio_feature.Audio", "audio": audio},
        "label": {
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "1252"},
        },
        "youtube_id": {"pythonClassName": f"{core}.text_feature.Text", "text": {}},
    }
    description = {
        "type": f"{core}.features_dict.FeaturesDict",
        "content": {"features": features},
        "proto_cls": "tensorflow_datasets.FeaturesDict",
    }
    (folder / "features.json").write_text(json.dumps(description))
    if names:
        (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    split = {
        "name": "train",
        "shardLengths": [str(len(samples))],
        "numBytes": "1",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": "voxceleb", "version": "1.2.1", "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [split]}))
    path = folder / "voxceleb-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for stored, label in zip(samples, labels, strict=True):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["audio"].int64_list.value.extend(stored.tolist())
        feature["label"].int64_list.value.append(label)
        feature["youtube_id"].bytes_list.value.append(b"Y8hIVOBuels")
        writer.write(example.SerializeToString())
    writer.close()


@pytest.mark.parametrize("named", [False, True])
def test_tfds_voxceleb_is_read_without_tensorflow(tmp_path, named):
    """The label is the speaker: a number, or its name where the data set has names."""
    names = [f"id1{i:04d}" for i in range(1252)] if named else []
    samples = [write_audio(tmp_path / "a.wav", 0.1 * (i + 1), seed=i) for i in range(3)]
    write_prepared_voxceleb(tmp_path / "voxceleb" / "1.2.1", samples, [270, 1, 270], names)
    source = pickle.loads(pickle.dumps(tfds.TfdsSource(tmp_path / "voxceleb", "train")))
    for i, expected in enumerate(samples):
        np.testing.assert_array_equal(source[i]["audio"], expected)
        assert source[i]["audio"].dtype == np.int16
        assert source[i]["sample_rate"] == RATE_HZ
    found = [source[i]["speaker"] for i in range(3)]
    assert found == (["id10270", "id10001", "id10270"] if named else ["270", "1", "270"])
    assert source[1]["id"] == "train-0000001"
    assert "tensorflow" not in sys.modules


def test_tfds_sign_for_an_unknown_label_is_no_speaker(tmp_path):
    names = [f"id1{i:04d}" for i in range(1252)]
    samples = [write_audio(tmp_path / "a.wav", 0.1, seed=0)]
    write_prepared_voxceleb(tmp_path / "voxceleb" / "1.2.1", samples, [-1], names)
    assert "speaker" not in tfds.TfdsSource(tmp_path / "voxceleb", "train")[0]


def test_tfds_errors_say_what_to_do(tmp_path):
    with pytest.raises(records.DataError, match="holds no data set prepared by tfds"):
        tfds.TfdsSource(tmp_path, "train")
    audio = {"shape": {"dimensions": ["-1"]}, "dtype": "int16"}
    data = tmp_path / "a" / "1.0.0"
    path = write_prepared(data, audio, [np.arange(5)])
    with pytest.raises(records.DataError, match="no split 'train'; it has dev_clean"):
        tfds.TfdsSource(data, "train")
    with pytest.raises(records.DataError, match="does not state a sampling rate"):
        tfds.TfdsSource(data, "dev_clean")
    path.unlink()
    with pytest.raises(records.DataError, match="1 of 1 record files are missing"):
        tfds.TfdsSource(data, "dev_clean")
    write_prepared(tmp_path / "b" / "1.0.0", audio, [], file_format="tfrecord")
    with pytest.raises(records.DataError, match="no random access"):
        tfds.TfdsSource(tmp_path / "b", "dev_clean")
    with pytest.raises(records.DataError, match="several data sets"):
        tfds.TfdsSource(tmp_path, "dev_clean")


def test_real_trees_and_manifests(speech_data):
    source = librispeech.read_tree(speech_data / "sentences", ["test-other"])
    assert len(source) == 80
    assert all(record["text"] for record in source)
    path = speech_data / "sentences" / "an4" / "an4.tsv"
    dev = manifest.read_manifest(path, root=speech_data, where={"split": "dev"})
    assert len(dev) == 100
    splits = an4.read_splits(path.parent)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 848, "dev": 100}
    # The manifest's dev part is the builder's own rule.
    assert sorted(k for rows in splits.values() for k in rows)[:100] == sorted(splits["dev"])
    sphere = speech_data / "reference" / "sphere" / "an251-fash-b.sph"
    flac = speech_data / "sentences" / "an4" / "train" / "fash" / "fash-an251.flac"
    np.testing.assert_array_equal(an4.read_int16(sphere), an4.read_int16(flac))


def test_empty_references_are_kept_to_evaluate_when_asked(tmp_path):
    rows = ["path\tsplit\ttext"]
    for n, (split, text) in enumerate([("train", "A"), ("train", ""), ("dev", " "), ("dev", "B")]):
        write_audio(tmp_path / f"{n}.wav", seed=n)
        rows.append(f"{n}.wav\t{split}\t{text}")
    (tmp_path / "m.tsv").write_text("\n".join(rows))
    config = ConfigDict({"data": splits.default_config(), "features": {}})
    config.data.update({"kind": "manifest", "root": str(tmp_path / "m.tsv"), "test": ()})
    config.data.max_bad_share = 0.5
    for allow, texts in ((False, ["B"]), (True, ["", "B"])):
        config.data.allow_empty_text = allow
        opened = splits.Splits(config, tmp_path / "work", require_text=True)
        assert opened["train"].texts == ["A"]
        assert opened["dev"].texts == texts
        last = opened["dev"].written_at(int(opened["dev"].index.positions[-1]))
        assert last == {"id": "3", "text": "B", "speaker": "", "gender": "", "path": "3.wav"}


def test_names_with_commas_between_are_several():
    config = ConfigDict({"data": {"train": ("a, b", 2020), "eval": ("dev",)}})
    found = splits.separate_names(config).data
    assert (found.train, found.eval) == (("a", "b", "2020"), ("dev",))
    assert config.data.train == ("a, b", 2020)


def test_a_run_without_data_is_refused():
    config = ConfigDict({"data": {"train": ("",), "eval": ("b",), "test": ()}})
    with pytest.raises(errors.UserError, match=r"config\.data\.train names no part"):
        splits.separate_names(config)


@pytest.mark.parametrize("wanted", ["left", "-1", "1.5", ""])
def test_a_channel_that_is_none_is_one_message(wanted):
    with pytest.raises(errors.UserError, match="give mean, or the number of a channel"):
        splits.channel(ConfigDict({"channel": wanted}))


def test_a_manifest_may_tell_the_gender(tmp_path):
    rows = ["path\tSex", "a.wav\tFemale", "b.wav\tm", "c.wav\t", "d.wav\tunknown"]
    (tmp_path / "m.tsv").write_text("\n".join(rows) + "\n")
    found = manifest.read_manifest(tmp_path / "m.tsv")
    assert [record.get("gender") for record in found] == ["f", "m", None, None]
