"""`python -m speaker.voices`: known voices, unknown ones, other networks."""

import json
import math
import shutil

import numpy as np
import pytest

from speaker import embed, storage
from speaker import voices as known
from tests.speaker.conftest import SPEAKERS, failure
from tests.speaker.test_embed import untrained


@pytest.fixture(scope="module")
def embedder(run):
    return embed.Embedder(run.workdir)


@pytest.fixture(scope="module")
def voices(run, embedder, tmp_path_factory):
    """A file that knows all but the last voice, by two recordings each."""
    path = tmp_path_factory.mktemp("voices") / "known.npz"
    for name in SPEAKERS[:-1]:
        known.add(path, embedder, name, run.files(f"{name}-3", f"{name}-4"))
    return path


def lines(capsys) -> list[list[str]]:
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_known_voices_are_found_and_others_are_unknown(run, voices, command, capsys):
    files = run.files(*(f"{name}-6" for name in SPEAKERS))
    options = ["--workdir", str(run.workdir), "--voices", str(voices)]
    known.main(["identify", *options, "--top", "2", *files])
    found = lines(capsys)
    assert [line[0] for line in found[::2]] == files
    assert [line[0] for line in found[1::2]] == files
    assert [line[1] for line in found[::2]] == [*SPEAKERS[:-1], "unknown"]
    assert all(
        line[2] == "-" if line[1] == "unknown" else float(line[2]) < 1.0001 for line in found
    )
    for first, second in zip(found[::2], found[1::2]):
        assert float(first[3]) + float(second[3]) <= 1.0001
        assert float(first[3]) >= float(second[3])


def test_probabilities_follow_bayes():
    ratios = np.array([[2.0, -1.0, 0.5], [-700.0, -800.0, -900.0]])
    found = known.posteriors(ratios, 0.3)
    odds = [0.1 * math.exp(x) for x in ratios[0]] + [0.7]
    np.testing.assert_allclose(found[0], np.array(odds) / sum(odds), rtol=1e-12)
    np.testing.assert_allclose(found[1], [0, 0, 0, 1], atol=1e-12)
    # One voice: what `verify` says of it.
    one = known.posteriors(ratios[:, :1], 0.3)
    assert one[0, 0] == pytest.approx(1 / (1 + math.exp(-(2.0 + math.log(0.3 / 0.7)))))


def test_a_voice_is_extended(run, embedder, tmp_path, command, capsys):
    path = tmp_path / "voices.npz"
    options = ["--workdir", str(run.workdir), "--voices", str(path)]
    known.main(["add", *options, "ann", *run.files("ann-3")])
    known.main(["add", *options, "bob", *run.files("bob-3", "bob-4")])
    known.main(["add", *options, "ann", *run.files("ann-4", "ann-5")])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"ann: 1 recordings, 0 of them from before. {path} knows 1 voices."
    assert said[2] == f"ann: 3 recordings, 1 of them from before. {path} knows 2 voices."
    names, models, counts = known.load(path, embedder).models()
    assert names == ("ann", "bob")
    assert counts.tolist() == [3, 2]
    rows = embedder.embed_files(run.files("ann-3", "ann-4", "ann-5")).astype(np.float64)
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(models[0], mean, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["voices.npz"]


def test_voices_are_listed_and_removed(voices, tmp_path, command, capsys):
    path = tmp_path / "voices.npz"
    shutil.copy(voices, path)
    options = ("--voices", str(path))
    for name, left in (("dee", 4), ("ann", 3)):
        known.main(["remove", *options, name])
        assert capsys.readouterr().out == f"{path} knows {left} voices.\n"
    known.main(["list", *options])
    assert capsys.readouterr().out == "bob\t2\ncid\t2\neve\t2\n"
    before, after = known.load(voices), known.load(path)
    kept = [name not in ("ann", "dee") for name in before.names]
    np.testing.assert_array_equal(after.embeddings, before.embeddings[kept])
    said = failure(known.main, "remove", *options, "ann")
    assert said.endswith("knows no voice 'ann', but bob, cid, eve.")
    for name in ("bob", "cid"):
        known.main(["remove", *options, name])
    assert "'eve' is the only voice" in failure(known.main, "remove", *options, "eve")
    assert known.load(path).names == ("eve", "eve")


def test_two_commands_at_once_lose_no_voice(run, embedder, tmp_path, monkeypatch):
    """Another command adds bob while this one works on ann's recordings."""
    path = tmp_path / "voices.npz"
    original = embedder.embed_files

    def embed_files(names):
        monkeypatch.setattr(embedder, "embed_files", original)
        known.add(path, embedder, "bob", run.files("bob-3"))
        return original(names)

    monkeypatch.setattr(embedder, "embed_files", embed_files)
    voices, before = known.add(path, embedder, "ann", run.files("ann-3", "ann-4"))
    assert (voices.names, before) == (("bob", "ann", "ann"), 0)
    assert known.load(path, embedder).names == voices.names


def test_a_bad_recording_changes_nothing(run, embedder, voices, tmp_path, command):
    before = voices.read_bytes()
    options = ("add", "--workdir", run.workdir, "--voices", voices)
    said = failure(known.main, *options, "ann", *run.files("ann-5"), tmp_path / "absent.wav")
    assert said.startswith("speaker.voices:")
    assert said.endswith("absent.wav: no such file")
    for name in ("unknown", "", " ann", "a\tb"):
        assert "cannot name a voice" in failure(known.main, *options, name, *run.files("ann-5"))
    assert voices.read_bytes() == before


def test_bad_files_are_named_and_the_others_go_on(run, voices, tmp_path, command, capsys):
    arguments = ["--workdir", str(run.workdir), "--voices", str(voices), "--top", "1"]
    with pytest.raises(SystemExit) as stopped:
        known.main(["identify", *arguments, str(tmp_path / "absent.wav"), *run.files("bob-6")])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "absent.wav: no such file" in printed.err
    assert [line.split("\t")[1] for line in printed.out.splitlines()] == ["bob"]


def test_a_place_for_the_voices_is_checked_before_the_work(run, tmp_path, command, monkeypatch):
    monkeypatch.setattr(embed, "Embedder", None)  # it is not called
    options = ("add", "--workdir", run.workdir, "--voices")
    rest = ("ann", *run.files("ann-3"))
    assert f"{tmp_path} is a folder: name" in failure(known.main, *options, tmp_path, *rest)
    (tmp_path / "file").write_text("")
    said = failure(known.main, *options, tmp_path / "file" / "v.npz", *rest)
    assert f"v.npz cannot be written: {tmp_path}/file is no folder" in said


def test_voices_of_another_network_are_refused(run, voices, tmp_path, command):
    untrained(run, tmp_path, "xvector")
    options = ("--workdir", tmp_path, "--voices", voices)
    for name, rest in (("identify", ()), ("add", ("bob",))):
        said = failure(known.main, name, *options, *rest, *run.files("bob-6"))
        assert "holds embeddings of another network (checkpoint of step 60," in said
        assert "than step 3 of" in said


def test_files_of_something_else_are_refused(run, embedder, tmp_path, command):
    options = ("identify", "--workdir", run.workdir, "--voices", tmp_path / "v.npz")
    assert "no such file" in failure(known.main, *options, *run.files("bob-6"))
    storage.save_arrays(tmp_path / "v.npz", {"mean": np.zeros(3)})
    assert "is no file of voices" in failure(known.main, *options, *run.files("bob-6"))
    fields = {"names": np.array(["a", "b"]), "embeddings": np.zeros((1, 3))}
    storage.save_arrays(tmp_path / "v.npz", {**fields, "network": "x", "step": 1})
    assert "is no file of voices" in failure(known.main, *options, *run.files("bob-6"))
    assert "at least one name" in failure(known.main, *options, "--top", 0, "a.wav")


def test_without_a_calibration_there_are_scores_only(
    run, voices, tmp_path, command, capsys, caplog
):
    folder = tmp_path / "run"
    shutil.copytree(run.workdir, folder)
    path = folder / "checkpoints" / "60" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["report"] = {"dev": {}}
    del meta["checksum"], meta["data"]  # as earlier versions wrote it
    path.write_text(json.dumps(meta))
    known.main(["identify", "--workdir", str(folder), "--voices", str(voices), *run.files("cid-6")])
    found = lines(capsys)
    assert len(found) == 3
    assert found[0][1] == "cid"
    assert {line[3] for line in found} == {"-"}
    assert "with no word on whether it is one of them" in caplog.text


def test_voices_of_several_recordings_have_a_calibration_of_their_own(
    run, embedder, voices, tmp_path, command, capsys, caplog
):
    """Five voices of two recordings: ratios from slope and offset at 1 / 2."""
    decision = embedder.decision
    w = decision.voices
    rows = embedder.embed_files(run.files("ann-6")).astype(np.float64)
    names, models, _ = known.load(voices).models()
    cosines = models @ rows[0] / np.linalg.norm(models, axis=1) / np.linalg.norm(rows)
    extra = w.quality_weights
    ratios = (w.slope + extra[0] / 2) * cosines + w.offset + extra[1] / 2
    weights = np.append(0.3 / 5 * np.exp(ratios), 0.7)
    options = ["--voices", str(voices), "--prior", "0.3", "--top", "6", *run.files("ann-6")]
    known.main(["identify", "--workdir", str(run.workdir), *options])
    found = {line[1]: float(line[3]) for line in lines(capsys)}
    for name, weight in zip([*names, "unknown"], weights):
        assert found[name] == pytest.approx(weight / weights.sum(), abs=2e-3)
    assert decision.ratios(cosines, np.ones(5, int)) == pytest.approx(decision.calibration(cosines))

    # A checkpoint of an earlier version: that of pairs, and a word about it.
    folder = tmp_path / "run"
    shutil.copytree(run.workdir, folder)
    path = folder / "checkpoints" / "60" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["report"]["dev"]["voices"]
    del meta["checksum"], meta["data"]
    path.write_text(json.dumps(meta))
    known.main(["identify", "--workdir", str(folder), *options])
    weights = np.append(0.3 / 5 * np.exp(decision.calibration(cosines)), 0.7)
    found = {line[1]: float(line[3]) for line in lines(capsys)}
    assert found["ann"] == pytest.approx(weights[0] / weights.sum(), abs=2e-3)
    assert "no calibration for voices of several recordings" in caplog.text
