"""Kaldi data folders: recordings, segments, features, and everything that can be wrong in them."""

import pathlib
import pickle

import kaldi_native_io
import numpy as np
import pytest
import soundfile

from common.data import buckets, examples, indexing, kaldi, pipeline, records, speech

RATE_HZ = 8000
HOP_MS = 10.0
SIZE = 5


def put(path: pathlib.Path, rows: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} {value}\n" for key, value in rows.items()))


def features(name: str, frames: int = 30, size: int = SIZE) -> np.ndarray:
    """Row i begins with i, so that a crop says where it comes from."""
    rng = np.random.default_rng(list(name.encode()))
    rows = rng.normal(size=(frames, size)).astype(np.float32)
    rows[:, 0] = np.arange(frames)
    return rows


def write_features(folder: pathlib.Path, matrices: dict[str, np.ndarray], speakers: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    where = f"ark,scp:{folder}/feats.ark,{folder}/feats.scp"
    with kaldi_native_io.FloatMatrixWriter(where) as file:
        for key, matrix in matrices.items():
            file.write(key, matrix)
    write_speakers(folder, speakers)


def write_speakers(folder: pathlib.Path, speakers: dict[str, str]) -> None:
    put(folder / "utt2spk", speakers)
    inverse = {}
    for key, speaker in speakers.items():
        inverse.setdefault(speaker, []).append(key)
    put(folder / "spk2utt", {speaker: " ".join(keys) for speaker, keys in inverse.items()})


def write_recordings(folder: pathlib.Path, names: tuple[str, ...], seconds: float = 1.0) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate(names):
        samples = np.random.default_rng(number).integers(-9000, 9000, round(seconds * RATE_HZ))
        found[name] = samples.astype(np.int16)
        soundfile.write(folder / f"{name}.wav", found[name], RATE_HZ)
    put(folder / "wav.scp", {name: f"{folder}/{name}.wav" for name in names})
    return found


def index(source, folder, **changes) -> records.Index:
    options = {
        "cache": folder / "cache",
        "rejected_tsv": folder / "rejected.tsv",
        "sample_rate_hz": RATE_HZ,
        "min_seconds": 0.05,
        "max_seconds": 5.0,
        "require_text": False,
        "max_bad_share": 1.0,
        "num_workers": 2,
        "progress": False,
        "feature_size": SIZE,
    }
    return indexing.build_index(source, **(options | changes))


NAMES = ("ann-1", "ann-2", "bob-1")
SPEAKERS = {"ann-1": "ann", "ann-2": "ann", "bob-1": "bob"}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A data folder of features: 30, 31 and 32 frames."""
    matrices = {name: features(name, 30 + i) for i, name in enumerate(NAMES)}
    write_features(tmp_path / "train", matrices, SPEAKERS)
    return tmp_path / "train"


def read(folder, **options):
    return kaldi.read_folders(folder.parent, [folder.name], hop_ms=HOP_MS, **options)


def test_features_are_records(folder, tmp_path):
    put(folder / "text", {"ann-1": "A WORD", "bob-1": ""})
    source = pickle.loads(pickle.dumps(read(folder)))
    assert [record["id"] for record in source] == list(NAMES)
    assert [record["speaker"] for record in source] == ["ann", "ann", "bob"]
    assert [record.get("text") for record in source] == ["A WORD", None, ""]
    found = index(source, tmp_path)
    np.testing.assert_array_equal(found.positions, [0, 1, 2])
    np.testing.assert_allclose(found.seconds, [0.30, 0.31, 0.32])
    crops = speech.FeatureCrops(source, found, np.array([0, 0, 1], np.int32))
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(crops.draw(i, None, {})["features"], features(name, 30 + i))
    last = crops.draw(2, None, {})
    assert (int(last["label"]), int(last["index"])) == (1, 2)
    assert (last["id"], last["speaker"]) == ("bob-1", "bob")
    limited = index(source, tmp_path, min_seconds=0.305, max_seconds=0.315)
    np.testing.assert_array_equal(limited.positions, [1])


def test_crops_come_from_everywhere_and_short_ones_whole(folder, tmp_path):
    source = read(folder)
    crops = speech.FeatureCrops(source, index(source, tmp_path), np.zeros(3, np.int32))
    assert isinstance(crops, examples.Examples)
    rng, starts = np.random.default_rng(0), []
    for _ in range(300):
        found = crops.draw(0, rng, {"features": 27})["features"]
        starts.append(int(found[0, 0]))
        np.testing.assert_array_equal(found, features("ann-1")[starts[-1] :][:27])
    counts = np.bincount(starts)
    assert len(counts) == 4  # 0 to 3, equally often: 75 +- 7.5
    assert counts.min() > 45
    whole = crops.draw(0, rng, {"features": 100})["features"]
    np.testing.assert_array_equal(whole, features("ann-1"))
    first = crops.draw(2, None, {"features": 7})["features"]
    np.testing.assert_array_equal(first, features("bob-1", 32)[:7])
    other = speech.FeatureCrops(source, crops.index, np.ones(3, np.int32))
    different = {n for n, part in other.identity.items() if part != crops.identity[n]}
    assert different == {"speakers"}


def test_batches_of_features_are_padded(folder, tmp_path):
    source = read(folder)
    crops = speech.FeatureCrops(source, index(source, tmp_path), np.arange(3, dtype=np.int32))
    frames = np.array([30, 31, 31])
    stream = iter(
        pipeline.train_batches(
            crops, (buckets.Bucket(4, {"features": 31}),), {"features": frames}, seed=0
        )
    )
    batch = next(stream)
    stream.close()
    assert batch["features"].shape == (4, 31, SIZE)
    assert batch["features"].dtype == np.float32
    for row, real in enumerate(batch["mask"]):
        length = int(batch["features_lengths"][row])
        assert length == (frames[batch["label"][row]] if real else 0)
        assert not batch["features"][row, length:].any()
        np.testing.assert_array_equal(np.diff(batch["features"][row, :length, 0]), 1)
    assert batch["mask"].sum() == 3


def test_several_folders_are_one_source(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "more"
    write_features(elsewhere, {"ann-9": features("ann-9")}, {"ann-9": "ann"})
    source = kaldi.read_folders(tmp_path, ["train", str(elsewhere)], hop_ms=HOP_MS)
    assert [record["id"] for record in source] == [*NAMES, "ann-9"]
    assert source[3]["speaker"] == "ann"
    write_features(tmp_path / "again", {"ann-1": features("a")}, {"ann-1": "ann"})
    found = index(kaldi.read_folders(tmp_path, ["train", "again"], hop_ms=HOP_MS), tmp_path)
    assert found.positions.tolist() == [0, 1, 2]
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("ann-1", "repeated id (records 1 and 4 of the source)")
    ]
    with pytest.raises(records.DataError, match=r"no folder .*nowhere"):
        kaldi.read_folders(tmp_path, ["nowhere"])


def test_relative_paths_start_here_or_else_in_the_folder(folder, tmp_path, monkeypatch):
    lines = (folder / "feats.scp").read_text()
    (folder / "feats.scp").write_text(lines.replace(f"{tmp_path}/", ""))
    monkeypatch.chdir(tmp_path)
    source = read(folder)
    (folder / "feats.scp").write_text(lines.replace(f"{folder}/", ""))
    other = read(folder)
    monkeypatch.chdir("/")  # as a worker might
    assert source[1]["features"] == other[1]["features"]
    assert len(index(source, tmp_path)) == 3


def test_recordings(tmp_path):
    samples = write_recordings(tmp_path / "test", NAMES)
    write_speakers(tmp_path / "test", SPEAKERS)
    source = kaldi.read_folders(tmp_path, ["test"])
    found = index(source, tmp_path)
    np.testing.assert_allclose(found.seconds, 1.0)
    crops = speech.SpeechCrops(source, found, np.zeros(3, np.int32), RATE_HZ)
    np.testing.assert_allclose(crops.draw(1, None, {})["audio"] * 32768, samples["ann-2"])


def test_segments_are_stretches_of_recordings(tmp_path):
    (samples,) = write_recordings(tmp_path / "test", ("show",), seconds=3.0).values()
    segments = {
        "a": "show 0.5 1.25",
        "b": "show 1.0 -1",
        "c": "show 0 0.5",
        "over": "show 2.5 3.4",  # half a second past the end is allowed, as by extract-segments
        "beyond": "show 2.5 3.6",
        "after": "show 4 5",
        "back": "show 2 1",
        "other": "shaw 0 1",
    }
    put(tmp_path / "test" / "segments", segments)
    write_speakers(tmp_path / "test", dict.fromkeys(segments, "ann"))
    source = kaldi.read_folders(tmp_path, ["test"])
    found = index(source, tmp_path)
    np.testing.assert_allclose(found.seconds, [0.75, 2.0, 0.5, 0.5])
    assert {r.id: r.reason for r in found.rejected} == {
        "beyond": "cut off (0.50 of 1.10 s decode)",
        "after": "unreadable (start=4.0 s lies past the end of the recording)",
        "back": "empty segment (2 to 1 s)",
        "other": "missing recording (shaw is not in wav.scp)",
    }
    again = index(source, tmp_path)  # each stretch has its own place in the cache
    np.testing.assert_array_equal(again.seconds, found.seconds)
    assert again.rejected == found.rejected

    crops = speech.SpeechCrops(source, found, np.zeros(4, np.int32), RATE_HZ)
    np.testing.assert_allclose(crops.draw(0, None, {})["audio"] * 32768, samples[4000:10000])
    np.testing.assert_allclose(crops.draw(1, None, {})["audio"] * 32768, samples[8000:])
    whole = speech.SpeechExamples(source, found.positions, RATE_HZ).draw(2, None, {})
    np.testing.assert_allclose(whole["audio"] * 32768, samples[:4000])
    rng, windows = np.random.default_rng(0), np.lib.stride_tricks.sliding_window_view(samples, 1000)
    starts = []
    for _ in range(60):
        cropped = np.rint(crops.draw(0, rng, {"audio": 1000})["audio"] * 32768)
        (start,) = np.flatnonzero((windows == cropped).all(1))
        starts.append(start)
    assert 4000 <= min(starts) < 4500
    assert 8500 < max(starts) <= 9000
    assert len(crops.draw(0, rng, {"audio": 20_000})["audio"]) == 6000  # no more than the segment
    short = [len(crops.draw(i, None, {"audio": 5000})["audio"]) for i in range(3)]
    assert short == [5000, 5000, 4000]


def test_tables_saved_on_windows(tmp_path):
    write_recordings(tmp_path / "test", ("show",))
    write_speakers(tmp_path / "test", {"show": "ann"})
    for table in (tmp_path / "test").iterdir():
        if table.suffix in (".scp", "") and table.is_file():
            table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    found = kaldi.read_folders(tmp_path, ["test"])
    assert [(record["id"], record["speaker"]) for record in found] == [("show", "ann")]


@pytest.mark.parametrize("value", ["show 0.5", "show a b", "show 0 1 A", "show 0 nan"])
def test_damaged_segments_are_named(tmp_path, value):
    write_recordings(tmp_path / "test", ("show",))
    write_speakers(tmp_path / "test", {"x": "ann", "y": "ann"})
    put(tmp_path / "test" / "segments", {"x": "show 0 1", "y": value})
    with pytest.raises(records.DataError, match="segments, line 2: y has"):
        kaldi.read_folders(tmp_path, ["test"])


def test_commands_are_refused_and_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    write_recordings(tmp_path / "test", NAMES)
    write_speakers(tmp_path / "test", SPEAKERS)
    rows = {"ann-1": f"{tmp_path}/test/ann-1.wav", "ann-2": f"touch {ran} |", "bob-1": "false |"}
    put(tmp_path / "test" / "wav.scp", rows)
    message = r"wav.scp: 2 of 3 lines are commands .* not run; the first: ann-2 touch .* \|"
    with pytest.raises(records.DataError, match=message):
        kaldi.read_folders(tmp_path, ["test"])
    put(folder / "feats.scp", {"ann-1": f"touch {ran} |"})
    with pytest.raises(records.DataError, match=r"feats.scp: 1 of 1 lines are commands"):
        read(folder)
    assert not ran.exists()
    put(tmp_path / "test" / "wav.scp", dict.fromkeys(NAMES, f"{tmp_path}/wav.ark:12"))
    with pytest.raises(records.DataError, match=r"line 1: ann-1 .*inside an archive"):
        kaldi.read_folders(tmp_path, ["test"])


def test_rows_without_partner_are_rejected_and_named(folder, tmp_path, caplog):
    write_speakers(folder, {"lost": "eve", **SPEAKERS})
    lines = (folder / "utt2spk").read_text().replace("ann-2 ann\n", "")
    (folder / "utt2spk").write_text(lines)
    (folder / "spk2utt").unlink()  # not needed
    found = index(read(folder), tmp_path)
    np.testing.assert_array_equal(found.positions, [0, 2])
    rows = [line.split("\t") for line in (tmp_path / "rejected.tsv").read_text().splitlines()]
    assert {row[0]: row[2] for row in rows[1:]} == {
        "ann-2": "missing speaker (not in utt2spk)",
        "lost": "missing features (not in feats.scp)",
    }
    assert "2 of 4 records rejected (1 missing features, 1 missing speaker)" in caplog.text
    with pytest.raises(records.DataError, match=r"2 of 4 records \(50.0%\) are unusable"):
        index(read(folder), tmp_path, max_bad_share=0.4)


@pytest.mark.parametrize("table", ["utt2spk", "feats.scp", "text", "utt2num_frames"])
def test_an_id_with_two_lines_is_rejected_by_name(folder, tmp_path, table):
    put(folder / "text", dict.fromkeys(NAMES, "WORD"))
    put(folder / "utt2num_frames", dict(zip(NAMES, (30, 31, 32), strict=True)))
    (folder / "spk2utt").unlink()
    lines = (folder / table).read_text().splitlines()
    other = {"utt2spk": "eve", "feats.scp": f"{folder}/feats.ark:7", "utt2num_frames": "99"}
    lines += [lines[0], f"ann-2 {other.get(table, 'OTHER')}"]  # the same again says nothing new
    (folder / table).write_text("\n".join(lines) + "\n")
    found = index(read(folder), tmp_path)
    assert found.positions.tolist() == [0, 2]
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("ann-2", f"repeated id (again in {folder / table}, line 5)")
    ]


def test_tables_that_contradict_each_other(folder):
    put(folder / "spk2utt", {"ann": "ann-1", "bob": "bob-1 ann-2 x"})
    message = (
        "differ in 3 pairs: ann-2 of ann is only in utt2spk; ann-2 of bob is only in spk2utt; "
        "x of bob is only in spk2utt"
    )
    with pytest.raises(records.DataError, match=message):
        read(folder)
    write_speakers(folder, {"x": "eve"})
    message = "utt2spk and feats.scp have no id in common: x and ann-1"
    with pytest.raises(records.DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("utt2spk", None, "There is no .*utt2spk"),
        ("utt2spk", "", "utt2spk is empty"),
        ("utt2spk", "ann-1 ann\nann-2\n", "utt2spk, line 2: 'ann-2' is not an id and a value"),
        ("utt2spk", "ann-1 ann\n\n", "utt2spk, line 2: '' is not"),
        ("utt2spk", "ann-1 ann b\n", "line 1: ann-1 has 'ann b', but a speaker is one word"),
        ("utt2num_frames", "ann-1 30\nann-2 many\n", "line 2: ann-2 has 'many' frames"),
        ("feats.scp", None, "has no feats.scp. A data folder of features needs"),
        ("feats.scp", "ann-1 a.ark:3[1]\n", "line 1: ann-1 'a.ark:3.1.' has a range that is not"),
    ],
)
def test_damaged_tables_are_named(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(records.DataError, match=message):
        read(folder)


def test_tables_in_other_encodings_are_refused(folder):
    (folder / "utt2spk").write_bytes(b"ann-1 J\xfcrgen\n")
    with pytest.raises(records.DataError, match=r"utt2spk, line 1: .* not UTF-8"):
        read(folder)


def test_the_other_kind_of_folder_is_recognised(folder, tmp_path):
    with pytest.raises(records.DataError, match=r"has no wav.scp. It holds features: set config"):
        kaldi.read_folders(tmp_path, ["train"])
    write_recordings(tmp_path / "test", NAMES)
    write_speakers(tmp_path / "test", SPEAKERS)
    with pytest.raises(records.DataError, match=r"has no feats.scp. It holds recordings: set conf"):
        read(tmp_path / "test")


def test_unusable_features_get_their_reason(tmp_path):
    bad = features("x")
    bad[3, 1] = np.inf
    matrices = {
        "good": features("good"),
        "nan": bad,
        "void": np.zeros((0, 0), np.float32),
        "short": features("short", 2),
        "long": features("long", 600),
        "wrong": features("wrong"),
        "cut": features("cut"),
    }
    write_features(tmp_path / "f", matrices, dict.fromkeys((*matrices, "gone"), "ann"))
    path = tmp_path / "f" / "feats.ark"
    path.write_bytes(path.read_bytes()[:-8])
    with (tmp_path / "f" / "feats.scp").open("a") as file:
        file.write(f"gone {tmp_path}/gone.ark:5\n")
    put(tmp_path / "f" / "utt2num_frames", {"good": 30, "wrong": 31, "long": 600})
    found = index(read(tmp_path / "f"), tmp_path)
    np.testing.assert_array_equal(found.positions, [0])
    assert {r.id: r.reason for r in found.rejected} == {
        "nan": "not finite (1 of 150 values are NaN or infinite)",
        "void": "empty (empty: no frames)",
        "short": "too short (0.020 s, limit 0.05 s)",
        "long": "too long (6.000 s, limit 5 s)",
        "wrong": "wrong length (30 frames, utt2num_frames has 31)",
        "cut": "cut off (truncated: 592 of 600 bytes of a 30 x 5 matrix)",
        "gone": "missing file (No such file or directory)",
    }
    assert all(str(tmp_path) in r.path for r in found.rejected)
    assert index(read(tmp_path / "f"), tmp_path).rejected == found.rejected


def test_features_are_checked_once(folder, tmp_path, monkeypatch):
    looked = []
    load = records.ark.read_matrix
    monkeypatch.setattr(
        records.ark, "read_matrix", lambda entry, *a: looked.append(entry.offset) or load(entry, *a)
    )
    first = index(read(folder), tmp_path)
    assert len(looked) == 3
    put(folder / "utt2num_frames", {"ann-1": 99})  # is compared with what is known
    assert [r.id for r in index(read(folder), tmp_path).rejected] == ["ann-1"]
    put(folder / "utt2num_frames", {"ann-1": 30})
    assert not index(read(folder), tmp_path).rejected
    looked.clear()
    again = index(read(folder), tmp_path)
    np.testing.assert_array_equal(again.seconds, first.seconds)
    assert looked == []
    # Another frame shift is another length; ranges are other features.
    wider = kaldi.read_folders(tmp_path, ["train"], hop_ms=20)
    np.testing.assert_allclose(index(wider, tmp_path).seconds, 2 * first.seconds)
    lines = (folder / "feats.scp").read_text().splitlines()
    (folder / "feats.scp").write_text("".join(f"{line}[5:14]\n" for line in lines))
    (folder / "utt2num_frames").unlink()
    ranged = read(folder)
    np.testing.assert_allclose(index(ranged, tmp_path).seconds, 0.1)
    crops = speech.FeatureCrops(ranged, index(ranged, tmp_path), np.zeros(3, np.int32))
    np.testing.assert_array_equal(crops.draw(0, None, {})["features"], features("ann-1")[5:15])


def test_features_of_another_size_stop_the_run(folder, tmp_path):
    with pytest.raises(records.DataError, match=r"3 of 3 .* the 40 expected; .*'ann-1' with 5"):
        index(read(folder), tmp_path, feature_size=40)
    write_features(tmp_path / "mixed", {"x": features("x", size=4)}, {"x": "eve"})
    both = kaldi.read_folders(tmp_path, ["train", "mixed"], hop_ms=HOP_MS)
    for wanted in (SIZE, None):
        with pytest.raises(records.DataError, match=r"1 of 4 .* the 5 expected; .*'x' with 4"):
            index(both, tmp_path, feature_size=wanted)


def write_decisions(folder: pathlib.Path, decisions: dict[str, np.ndarray]) -> None:
    where = f"ark,scp:{folder}/vad.ark,{folder}/vad.scp"
    with kaldi_native_io.FloatVectorWriter(where) as file:
        for key, speech in decisions.items():
            file.write(key, speech.astype(np.float32))


def test_frames_are_selected_by_vad(folder, tmp_path):
    with pytest.raises(records.DataError, match=r"has no vad.scp, which"):
        read(folder, vad=True)
    spoken = np.arange(30) % 3 == 0
    write_decisions(folder, {"ann-1": spoken, "ann-2": np.zeros(31), "bob-1": np.ones(33)})
    source = read(folder, vad=True)
    found = index(source, tmp_path)
    # The length is that of what is kept, and decisions that cannot be used are found beforehand.
    np.testing.assert_allclose(found.seconds, [10 * HOP_MS / 1000], rtol=1e-5)
    reasons = {r.id: r.reason for r in found.rejected}
    assert "no frame of it holds speech" in reasons["ann-2"]
    assert "33 decisions for 32 frames of bob-1" in reasons["bob-1"]
    crops = speech.FeatureCrops(source, found, np.zeros(1, np.int32))
    np.testing.assert_array_equal(crops.draw(0, None, {})["features"], features("ann-1")[spoken])
    rng = np.random.default_rng(0)
    starts = {int(crops.draw(0, rng, {"features": 8})["features"][0, 0]) for _ in range(40)}
    assert starts == {0, 3, 6}
    lines = (folder / "vad.scp").read_text().splitlines()
    (folder / "vad.scp").write_text(lines[0] + "\n")
    rejected = index(read(folder, vad=True), tmp_path).rejected
    assert [r.reason for r in rejected] == 2 * ["missing vad (not in vad.scp)"]
