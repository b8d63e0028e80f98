"""The network as a function: padding, long recordings, which weights, what it refuses."""

import dataclasses
import itertools
import json
import math
import re
import shutil

import jax
import kaldi_native_io
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

import speaker
from common import checkpoint, errors, parallel, workdir
from common.audio import io, vad
from common.data import ark, pipeline, records, splits
from speaker import data, embed, settings
from speaker import task as speaker_task
from tests.speaker.conftest import RATE_HZ, voice

KINDS = {
    "xvector": {},
    "resnet": {"model.channels": 4, "model.depth": 18},
    "ecapa": {"model.channels": 16, "model.pooled_channels": 24},
}


@pytest.fixture(scope="module")
def embedder(run):
    return embed.Embedder(run.workdir)


def split_of(audio):
    rows = [{"id": f"u{i}", "audio": a, "sample_rate": RATE_HZ} for i, a in enumerate(audio)]
    lengths = np.array([len(a) for a in audio])
    source = records.RecordList("voices", tuple(rows))
    return splits.Split("voices", source, records.Index(np.arange(len(rows)), lengths, RATE_HZ))


def untrained(run, folder, kind="xvector", **changes):
    """The embedder of a fresh network of another kind."""
    config = ConfigDict(
        workdir.load_config(run.workdir, "speaker", settings.default_config()).to_dict()
    )
    config.update_from_flattened_dict({"model.kind": kind, **KINDS[kind], **changes})
    config = workdir.freeze(config)
    shutil.copy(run.workdir / "speakers.txt", folder)
    workdir.save_config(folder, "speaker", config)
    task = speaker_task.make_task(config, folder)
    state = task.create_state(jax.jit(task.init)(jax.random.key(1)))
    (folder / "checkpoints").mkdir()
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    state = parallel.place(state, parallel.make_mesh())
    saver.save(3, state, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()
    return embed.Embedder(folder)


def test_settings_that_came_later_have_their_defaults(run, tmp_path, caplog):
    """A work directory of an earlier commit stays usable, and what is filled in is said."""
    folder = tmp_path / "run"
    shutil.copytree(run.workdir, folder)
    saved = json.loads((folder / "config.json").read_text())
    del saved["config"]["data"]["vad"], saved["config"]["loss"]["kind"]
    saved["config"]["data"]["crop_seconds"] = 1  # a whole number where a float belongs
    saved["config"]["data"]["wav_root"] = "/corpora"
    (folder / "config.json").write_text(json.dumps(saved))
    with caplog.at_level("INFO"):
        embedder = embed.Embedder(folder)
    assert (embedder.config.data.vad, embedder.config.loss.kind) == ("none", "aam")
    assert isinstance(embedder.config.data.crop_seconds, float)
    assert "config.loss.kind came after" in caplog.text
    assert "config.data.wav_root='/corpora'" in caplog.text
    files = run.files("ann-6")
    expected = embed.Embedder(run.workdir).embed_files(files)
    np.testing.assert_array_equal(embedder.embed_files(files), expected)


def test_the_public_functions_take_files_bytes_and_samples(run, tmp_path):
    network = speaker.load(run.workdir)
    one, same, other = run.files("ann-6", "ann-5", "bob-6")
    samples, rate = soundfile.read(one, dtype="float32")
    by_path = network.embed(one)
    np.testing.assert_array_equal(by_path, network.embed_files([one])[0])
    np.testing.assert_array_equal(by_path, network.embed(samples, rate))
    near, far = network.compare(one, same), network.compare(one, other)
    assert near.probability > far.probability
    assert near.ratio > far.ratio
    assert far.score == pytest.approx(float(_cosine(by_path, network.embed(other))), abs=1e-6)


def test_a_few_recordings_start_no_process(run, tmp_path, monkeypatch):
    """A user's script, which may have no main guard, waited for ever for what it had started."""
    embedder = untrained(run, tmp_path, **{"data.num_workers": 2})
    monkeypatch.setattr(pipeline.grain, "MultiprocessingOptions", None)  # not to be called
    assert embedder.embed(run.files("ann-6")[0]).shape == (16,)
    with pytest.raises(TypeError):
        embedder(split_of([voice(0, 0.6, 0)]))


def _cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_changes_no_embedding(run, tmp_path, kind):
    """Several lengths in one bucket against batches of one, to 1e-5."""
    embedder = untrained(run, tmp_path, kind)
    assert embedder.decision is None
    audio = [voice(i, 0.5 + 0.2 * i, i) for i in range(3)]
    together = embedder(split_of(audio))
    assert together.failed == {}
    alone = np.concatenate([embedder(split_of([a])).embeddings for a in audio[:2]])
    assert np.abs(alone).max() > 0.01
    scale = np.abs(alone).max(1, keepdims=True)
    np.testing.assert_allclose(together.embeddings[:2] / scale, alone / scale, atol=1e-5)


def test_long_recordings_are_means_over_equal_pieces(embedder):
    """2 s at most: 5 s are three pieces, whose embeddings are averaged."""
    whole = np.concatenate([voice(i, 1.7, 5) for i in range(3)])[: 5 * RATE_HZ]
    assert embedder.config.data.max_eval_seconds == 2.0
    cuts = [5 * RATE_HZ * n // 3 for n in range(4)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    short = voice(1, 0.8, 6)
    found = embedder(split_of([short, whole, short]))
    expected = embedder(split_of([short, *pieces])).embeddings
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.embeddings[0], expected[0], atol=1e-5 * scale)
    np.testing.assert_allclose(found.embeddings[2], expected[0], atol=1e-5 * scale)
    np.testing.assert_allclose(found.embeddings[1], expected[1:].mean(0), atol=1e-5 * scale)
    # The pieces differ: the mean is none of them.
    assert np.abs(expected[1:] - expected[1:].mean(0)).max() > 0.01 * scale


def test_pieces_of_files_are_cut_at_their_own_rate(tmp_path):
    audio = np.random.default_rng(0).normal(size=8000 * 3).astype(np.float32) * 0.1
    io.write_wav(tmp_path / "a.wav", audio, 8000, subtype="FLOAT")
    source = records.RecordList("one", ({"id": "a", "audio": str(tmp_path / "a.wav")},))
    pieces = embed.Pieces(
        source, np.array([0]), np.array([24000]), np.array([4]), sample_rate_hz=8000, channel="mean"
    )
    assert len(pieces) == 4
    assert pieces.owner.tolist() == [0, 0, 0, 0]
    assert pieces.lengths.tolist() == [6000] * 4
    joined = np.concatenate([pieces[i]["audio"] for i in range(4)])
    np.testing.assert_array_equal(joined, audio)


def test_pauses_are_left_out_once(run, tmp_path, monkeypatch):
    """Of files in memory, of validated ones, and before long ones are cut into pieces."""
    calls, stretches = [], vad.speech_stretches
    monkeypatch.setattr(vad, "speech_stretches", lambda *a: calls.append(a) or stretches(*a))
    embedder = untrained(run, tmp_path, **{"data.vad": "energy"})
    gap, parts = np.zeros(RATE_HZ // 2, np.float32), [voice(i, 1.3, i) for i in range(3)]
    gap[::2] = 1e-4
    short = np.concatenate([gap, voice(0, 0.9, 0), gap])
    whole = np.concatenate([*parts[:2], *[gap] * 8, parts[2], gap])  # 8.4 s with pauses
    files = []
    for name, audio in (("short", short), ("whole", whole), ("gap", gap)):
        files.append(str(tmp_path / f"{name}.wav"))
        io.write_wav(files[-1], audio, RATE_HZ)
    rows = tuple({"id": file, "audio": file} for file in files[:2])
    found = embedder(embedder.open(records.RecordList("two", rows), tmp_path / "out")).embeddings
    assert len(calls) == 2  # once for each recording, not for each piece
    kept = [vad.keep_speech(io.load_audio(f, sample_rate_hz=RATE_HZ), RATE_HZ) for f in files[:2]]
    assert len(kept[0]) < 0.8 * len(short)
    # At most 2 s of speech each, whatever the pauses.
    count = math.ceil(len(kept[1]) / RATE_HZ / 2.0)
    assert 2 <= count < math.ceil(len(whole) / RATE_HZ / 2.0)
    cuts = [len(kept[1]) * n // count for n in range(count + 1)]
    pieces = [kept[0], *(kept[1][a:b] for a, b in itertools.pairwise(cuts))]
    plain = untrained(run, make(tmp_path / "plain"))
    expected = plain(split_of(pieces)).embeddings
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5 * scale)
    np.testing.assert_allclose(found[1], expected[1:].mean(0), atol=1e-5 * scale)
    np.testing.assert_allclose(embedder.embed_files(files[:2]), found, atol=1e-5 * scale)
    silence = tmp_path / "silence.wav"
    io.write_wav(silence, np.full(RATE_HZ, 3e-5, np.float32), RATE_HZ)
    with pytest.raises(io.AudioError, match=r"silence.wav: no speech in it"):
        embedder.embed_files([str(silence)])
    # Little speech is as too short for a split as it is for a file.
    rest, short = tmp_path / "rest.wav", r"too short: 0.\d+ s of speech, the network wants 0.4 s"
    io.write_wav(rest, np.concatenate([gap, parts[0][: RATE_HZ // 10], gap]), RATE_HZ)
    with pytest.raises(io.AudioError, match=rf"rest.wav: {short}"):
        embedder.embed_files([str(rest)])
    rows = tuple({"id": str(file), "audio": str(file)} for file in (rest, silence, files[0]))
    split = embedder.open(records.RecordList("three", rows), tmp_path / "out")
    alone = embedder(split)
    assert alone.places.tolist() == [2]
    assert re.fullmatch(short, alone.failed[0])
    assert alone.failed[1].startswith("no speech in it")
    np.testing.assert_allclose(alone.embeddings[0], found[0], atol=1e-5 * scale)
    none = dataclasses.replace(
        split, index=records.Index(np.arange(2), np.full(2, RATE_HZ), RATE_HZ)
    )
    with pytest.raises(io.AudioError, match=rf"all 2 recordings of three: {short}"):
        embedder(none)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_pieces_of_speech_are_equal_and_complete(parts):
    """A file of 30 s of whose samples some stretches are speech; each piece is read by itself."""
    audio = np.arange(300, dtype=np.float32) / 300
    stretches = np.array([[3, 40], [41, 42], [100, 230], [290, 300]])
    kept = np.concatenate([audio[a:b] for a, b in stretches])
    source = records.RecordList("one", ({"id": "a", "audio": audio, "sample_rate": 10},))
    pieces = embed.Pieces(
        source, np.array([0]), np.array([178]), np.array([parts]), 10, "mean", [stretches]
    )
    found = [pieces[i]["audio"] for i in range(parts)]
    assert pieces.lengths.tolist() == [len(piece) for piece in found]
    np.testing.assert_array_equal(np.concatenate(found), kept)
    assert {len(piece) for piece in found} <= {len(kept) // parts, len(kept) // parts + 1}


def test_long_features_are_cut_into_rows(run, tmp_path):
    """2 s are 200 frames at most: 450 are three pieces of 150; a range of an archive too."""
    changes = {"features.kind": "given", "features.num_mels": 5, "data.kind": "kaldi"}
    embedder = untrained(run, tmp_path, **changes)
    assert embedder.takes_features
    rng = np.random.default_rng(0)
    long, short = (rng.normal(size=(n, 5)).astype(np.float32) for n in (470, 120))
    with kaldi_native_io.FloatMatrixWriter(f"ark:{tmp_path}/feats.ark") as writer:
        for name, rows in (("a", long), ("b", short)):
            writer.write(name, rows)
    entries = [
        ark.Entry(f"{tmp_path}/feats.ark", 2, rows=(10, 459)),
        ark.Entry(f"{tmp_path}/feats.ark", 2 + 15 + long.nbytes + 2),
    ]

    def embedded(entries):
        rows = [{"id": str(i), "features": e, "hop_ms": 10.0} for i, e in enumerate(entries)]
        source = records.RecordList("features", tuple(rows))
        return embedder(embedder.open(source, tmp_path / "out")).embeddings

    thirds = [ark.Entry(entries[0].path, 2, rows=(10 + n, 159 + n)) for n in (0, 150, 300)]
    found, expected = embedded(entries), embedded([entries[1], *thirds])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[1], expected[0], atol=1e-5 * scale)
    np.testing.assert_allclose(found[0], expected[1:].mean(0), atol=1e-5 * scale)
    with pytest.raises(errors.UserError, match="takes features that were computed elsewhere"):
        embedder.embed_files(run.files("ann-0"))


def make(folder):
    folder.mkdir()
    return folder


def test_a_recording_that_disappears_is_named(embedder, tmp_path, caplog):
    rows = []
    for i in range(3):
        io.write_wav(tmp_path / f"{i}.wav", voice(i, 1.0, i), RATE_HZ)
        rows.append({"id": f"r{i}", "audio": str(tmp_path / f"{i}.wav")})
    split = embedder.open(records.RecordList("three", tuple(rows)), tmp_path / "out")
    (tmp_path / "1.wav").unlink()
    with caplog.at_level("WARNING"):
        found = embedder(split)
    assert found.places.tolist() == [0, 2]
    assert found.failed.keys() == {1}
    assert len(found.embeddings) == 2
    assert "1.wav: no such file" in caplog.text


def test_files_equal_their_split(run, embedder):
    """Through the index and from samples in memory; in the order of the files."""
    names = ["bob-5", "ann-0", "fay-3"]
    split = embedder.open(
        records.RecordList(
            "f", tuple({"id": n, "audio": f} for n, f in zip(names, run.files(*names)))
        ),
        run.workdir.parent / "validated",
    )
    found = embedder.embed_files(run.files(*names))
    expected = embedder(split).embeddings
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_evaluation_of_training_is_repeated(run, embedder):
    """The same embeddings as the task's own evaluation of the dev split, by its EER."""
    config = embedder.config
    source = splits.open_source(config.data, config.data.eval)
    split = embedder.open(source, run.workdir.parent / "again")
    found = embedder(split).embeddings
    task = speaker_task.SpeakerTask(config, run.workdir, {"dev": split})
    rows = {
        "embedding": found,
        "index": split.index.positions,
        "mask": np.ones(len(found), bool),
    }
    report = task.report("dev", [rows])
    lines = [json.loads(x) for x in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    stored = next(line for line in lines if line["split"] == "dev" and line["step"] == 60)
    assert report.scalars["eer"] == pytest.approx(stored["eer"], abs=1e-6)
    assert embedder.step == 60
    assert embedder.decision.eer_threshold == pytest.approx(report.meta["eer_threshold"], abs=1e-4)
    assert embedder.decision.source == "153 trials of the split 'dev' at step 60"


def test_weights_have_their_own_name(run, embedder, tmp_path):
    assert embed.Embedder(run.workdir, 60).network == embedder.network
    assert untrained(run, tmp_path, "xvector").network != embedder.network
    with pytest.raises(errors.UserError, match=r"no checkpoint of step 7 .* there are"):
        embed.Embedder(run.workdir, 7)
    with pytest.raises(errors.UserError, match="is no work directory"):
        embed.Embedder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(16000, np.float32), r"a.wav: silent: every sample is zero"),
        (voice(0, 0.1, 0), r"a.wav: too short: 0.100 s, the network of .* wants 0.4 s"),
        (None, r"a.wav: cannot be decoded as audio"),
    ],
)
def test_useless_audio_is_refused(run, embedder, tmp_path, content, message):
    path = tmp_path / "a.wav"
    if content is None:
        path.write_bytes(b"RIFF....WAVE")
    else:
        io.write_wav(path, content, RATE_HZ)
    with pytest.raises(io.AudioError, match=message):
        embedder.embed_files([*run.files("ann-0"), str(path)])


def test_shapes_are_few(run, embedder, monkeypatch):
    """Files of any length are padded to lengths of a short list."""
    shapes = set()
    batches = data.eval_batches

    def noting(*args, **options):
        for batch in batches(*args, **options):
            shapes.add(batch["audio"].shape)
            yield batch

    monkeypatch.setattr(data, "eval_batches", noting)
    # 0.8 and 1 s: up to 1 s; 1.2 and 1.4 s: up to 1.41 s.
    for i in range(1, 5):
        embedder.embed_files(run.files(f"ann-{i}"))
    assert len(shapes) == 2
