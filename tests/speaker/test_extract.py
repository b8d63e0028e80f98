"""`python -m speaker.extract`: splits and files to every format, bad recordings, Kaldi folders."""

import kaldi_native_io
import numpy as np
import pytest

from common import errors
from common.audio import io
from common.data import manifest
from speaker import embed, extract, settings, vectors
from tests import commands
from tests.speaker.conftest import RATE_HZ, SPEAKERS, failure, voice
from tests.speaker.test_embed import untrained


def test_a_split_of_the_run(run, tmp_path, command, capsys):
    extract.main(
        ["--workdir", str(run.workdir), "--data", "eval", "--format", "ark", "--out", str(tmp_path)]
    )
    said = capsys.readouterr().out
    assert "18 embeddings of 16 dimensions" in said
    assert "utterances/s" in said
    ids, rows = vectors.read(tmp_path)
    expected = {f"{name}-{i}" for name in SPEAKERS for i in (3, 4, 5)}
    assert set(ids) == expected
    speakers = vectors.read_speakers(tmp_path / "utt2spk")
    assert speakers == {name: name[:3] for name in expected}
    again = embed.Embedder(run.workdir).embed_files(run.files(*ids))
    np.testing.assert_allclose(rows, again, atol=1e-5 * np.abs(rows).max())
    lengths = vectors.read_durations(tmp_path / "utt2dur")
    assert lengths == pytest.approx(
        {f"{n}-{i}": 0.6 + 0.2 * i for n in SPEAKERS for i in (3, 4, 5)}
    )
    files = {"embeddings.ark", "embeddings.scp", "utt2spk", "utt2dur", "rejected.tsv"}
    assert {p.name for p in tmp_path.iterdir()} == files
    assert (tmp_path / "rejected.tsv").read_text() == "id\tpath\treason\tsource\n"


def test_the_split_named_test(run, tmp_path, command):
    extract.main(["--workdir", str(run.workdir), "--data", "test", "--out", str(tmp_path)])
    assert vectors.read(tmp_path)[0] == tuple(f"{name}-6" for name in SPEAKERS)


def test_a_kaldi_folder_of_recordings(run, tmp_path, command):
    """Cut by its segments, with the speakers of its utt2spk."""
    folder = tmp_path / "kaldi"
    folder.mkdir()
    names = ("ann-5", "bob-5")
    lines = [f"{name} {run.audio}/{name}.wav\n" for name in names]
    (folder / "wav.scp").write_text("".join(lines))
    (folder / "segments").write_text("ann-x ann-5 0.25 0.9\nbob-x bob-5 0.5 -1\n")
    (folder / "utt2spk").write_text("ann-x ann\nbob-x bob\n")
    options = ["--workdir", str(run.workdir), "--out", str(tmp_path / "out"), "--format", "txt"]
    extract.main([*options, "--data", str(folder)])
    ids, rows = vectors.read(tmp_path / "out")
    assert ids == ("ann-x", "bob-x")
    assert vectors.read_speakers(tmp_path / "out" / "utt2spk") == {"ann-x": "ann", "bob-x": "bob"}
    cuts = []
    for name, start, end in (("ann-5", 0.25, 0.9), ("bob-5", 0.5, None)):
        audio = io.load_audio(run.audio / f"{name}.wav", sample_rate_hz=RATE_HZ)
        cuts.append(str(tmp_path / f"{name}.wav"))
        io.write_wav(cuts[-1], audio[int(start * RATE_HZ) : end and int(end * RATE_HZ)], RATE_HZ)
    expected = embed.Embedder(run.workdir).embed_files(cuts)
    np.testing.assert_allclose(rows, expected, atol=1e-5 * np.abs(expected).max())


def test_a_kaldi_folder_of_features(run, tmp_path, command, caplog):
    """For a network of features; one of recordings says that it wants those."""
    folder = tmp_path / "kaldi"
    folder.mkdir()
    given = {"features.kind": "given", "features.num_mels": 5, "data.kind": "kaldi"}
    untrained(run, tmp_path, **given)
    rng = np.random.default_rng(0)
    with kaldi_native_io.FloatMatrixWriter(f"ark,scp:{folder}/f.ark,{folder}/feats.scp") as writer:
        for name, frames in (("u1", 90), ("u2", 3), ("u3", 120)):
            writer.write(name, rng.normal(size=(frames, 5)).astype(np.float32))
    (folder / "utt2spk").write_text("u1 a\nu2 a\nu3 b\n")
    out = ("--out", tmp_path / "out", "--data")
    said = failure(extract.main, "--workdir", tmp_path, *out, folder)
    assert "1 of 3 recordings have no embedding" in said
    assert "u2: too short (0.030 s, limit 0.4 s)" in caplog.text
    assert vectors.read(tmp_path / "out")[0] == ("u1", "u3")
    said = failure(extract.main, "--workdir", tmp_path, *out, *run.files("ann-0"))
    assert "has to be a Kaldi folder with feats.scp" in said
    said = failure(extract.main, "--workdir", run.workdir, *out, folder)
    assert "holds features only, and this network takes recordings" in said


def test_bad_files_are_named_and_the_others_go_on(run, tmp_path, command, caplog):
    (tmp_path / "broken.wav").write_bytes(b"RIFF....WAVE")
    io.write_wav(tmp_path / "silent.wav", np.zeros(RATE_HZ, np.float32), RATE_HZ)
    io.write_wav(tmp_path / "short.wav", voice(0, 0.1, 0), RATE_HZ)
    io.write_wav(tmp_path / "stereo.wav", np.stack([voice(0, 1, 0)] * 2, 1), 22050)
    good = [*run.files("ann-0"), str(tmp_path / "stereo.wav")]
    bad = [str(tmp_path / f"{name}.wav") for name in ("broken", "silent", "short", "absent")]
    out = tmp_path / "out"
    with caplog.at_level("WARNING"):
        said = failure(
            extract.main, "--workdir", run.workdir, "--out", out, "--data", *good[:1], *bad, good[1]
        )
    assert "4 of 6 recordings have no embedding" in said
    assert vectors.read(out)[0] == tuple(sorted(good))
    for name, reason in zip(bad, ("unreadable", "silent", "too short", "missing file")):
        assert f"{name}: {reason}" in caplog.text
    assert len((out / "rejected.tsv").read_text().splitlines()) == 5
    assert not (out / "utt2spk").exists()


def test_what_fails_while_embedding_is_in_the_table(run, tmp_path, command, monkeypatch):
    """A recording that goes away between its validation and its embedding."""
    gone = tmp_path / "gone.wav"
    io.write_wav(gone, voice(0, 1.0, 0), RATE_HZ)
    opened = embed.Embedder.open

    def then_remove(self, source, folder):
        split = opened(self, source, folder)
        gone.unlink()
        return split

    monkeypatch.setattr(embed.Embedder, "open", then_remove)
    files, out = [*run.files("ann-0", "bob-0"), tmp_path / "absent.wav", gone], tmp_path / "out"
    said = failure(extract.main, "--workdir", run.workdir, "--out", out, "--data", *files)
    assert "2 of 4 recordings have no embedding; all are listed" in said
    rows = [line.split("\t") for line in (out / "rejected.tsv").read_text().splitlines()[1:]]
    assert [row[1] for row in rows] == [str(tmp_path / "absent.wav"), str(gone)]
    assert "could no longer be read" in rows[1][2]


def test_speakers_of_several_words(run, tmp_path, command, monkeypatch, caplog):
    """Refused before the work where Kaldi's files are wanted, else only utt2spk is missing."""
    (tmp_path / "a.tsv").write_text(f"id\taudio\tspeaker\na\t{run.audio}/ann-0.wav\tAnn Lee\n")
    source = manifest.read_manifest(tmp_path / "a.tsv")
    monkeypatch.setattr(extract, "open_data", lambda *_: source)
    options = ("--workdir", run.workdir, "--out", tmp_path / "out", "--data", "eval", "--format")
    said = failure(extract.main, *options, "ark")
    assert "1 recordings have speakers of several words, first 'Ann Lee'" in said
    assert not (tmp_path / "out").exists()
    extract.main([str(option) for option in (*options, "npz")])
    assert vectors.read(tmp_path / "out")[0] == ("a",)
    assert "No utt2spk is written: 1 ids or speakers" in caplog.text
    files = {"embeddings.npz", "utt2dur", "rejected.tsv"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == files


def test_folders_of_recordings(tmp_path):
    """With speakers where these have folders. They do not mix with what is named otherwise."""
    for name in ("a/ann/1.wav", "a/bob/1.wav", "b/2.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    a, b, config = str(tmp_path / "a"), str(tmp_path / "b"), settings.default_config()
    found = list(extract.open_data([a], config))
    assert [(row["id"], row.get("speaker")) for row in found] == [
        ("ann/1.wav", "ann"),
        ("bob/1.wav", "bob"),
    ]
    assert found[0]["audio"] == f"{a}/ann/1.wav"
    ids = [row["id"] for row in extract.open_data([a, b], config)]
    assert ids == [f"{a}/ann/1.wav", f"{a}/bob/1.wav", f"{b}/2.flac"]
    with pytest.raises(errors.UserError, match=r"2\.flac is no Kaldi folder"):
        extract.open_data([f"{b}/2.flac", a], config)
    config.features.kind = "given"
    with pytest.raises(errors.UserError, match=r"has neither wav\.scp nor feats\.scp"):
        extract.open_data([a], config)


def test_what_cannot_be_done_is_said_first(run, tmp_path, command, monkeypatch):
    (tmp_path / "file").write_text("")
    said = failure(
        extract.main, "--workdir", "absent", "--out", tmp_path / "file", "--data", "eval"
    )
    assert f"rejected.tsv cannot be written: {tmp_path}/file is no folder" in said
    options = ("--workdir", run.workdir, "--out", tmp_path / "out", "--data")
    assert "choose npz" in failure_of_pt(monkeypatch, options)
    (tmp_path / "empty").mkdir()
    said = failure(extract.main, *options, tmp_path / "empty")
    assert "holds no audio files" in said
    for names in (["absent.wav"], ["evl"], ["eval", "train"]):
        assert f"--data {' '.join(names)}: no such file" in failure(extract.main, *options, *names)
    spaced = tmp_path / "a b.wav"
    spaced.touch()
    said = failure(extract.main, *options, spaced)
    assert "none of 1 records is usable (1 empty), the first is" in said
    said = failure(extract.main, *options, spaced, "--format", "ark")
    assert "Choose format npz or rename" in said
    assert not (tmp_path / "out" / "embeddings.ark").exists()
    said = failure(extract.main, *options, spaced, spaced)
    assert "comes twice" in said


def failure_of_pt(monkeypatch, options) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(vectors.importlib.util, "find_spec", lambda name: None)
        return failure(extract.main, *options, "eval", "--format", "pt")


@pytest.mark.slow
def test_from_training_to_scores(run, tmp_path):
    """The commands as a user starts them."""

    def start(module, *options, code=0):
        return commands.run(f"speaker.{module}", *options, code=code)

    trained, out = ("--workdir", run.workdir), tmp_path / "out"
    start("extract", *trained, "--data", "eval", "--out", out)
    trials = tmp_path / "trials"
    trials.write_text("1 ann-3 ann-4\n0 ann-3 bob-4\n1 eve-3 eve-4\n0 eve-3 fay-5\n")
    assert "EER" in start("score", "--trials", trials, "--embeddings", out).stdout
    pair = (*run.files("ann-3"), tmp_path / "absent.wav")
    done = start("verify", *trained, *pair, code=1)
    assert done.stderr.splitlines()[-1].endswith("absent.wav: no such file")
    voices = ("--voices", tmp_path / "voices.npz")
    start("voices", "add", *trained, *voices, "ann", *run.files("ann-3"))
    done = start("voices", "identify", *trained, *voices, *run.files("ann-4"))
    assert done.stdout.split("\t")[1] == "ann"
