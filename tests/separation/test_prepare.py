"""`python -m separation.prepare`: the files are what is drawn, and a second start goes on."""

import functools
import logging
import pathlib
import types
from unittest import mock

import numpy as np
import pytest
import soundfile
import tqdm

from common import errors, workdir
from common.audio import io
from configs.separation import quickstart
from separation import data, fixed, prepare, task
from tests import commands
from tests.separation import voices

RATE_HZ = voices.RATE_HZ


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> pathlib.Path:
    """Three recordings each of four speakers, all of them both in train and in dev."""
    folder = tmp_path_factory.mktemp("voices")
    lines = ["id\tpath\tspeaker\tgender\tsplit"]
    for s, name in enumerate(voices.SPEAKERS):
        for i in range(3):
            audio = voices.voice(s, 1.0 + 0.2 * i, i)
            io.write_wav(folder / f"{name}{i}.wav", audio, RATE_HZ)
            split = "train" if i else "dev"
            lines.append(f"{name}{i}\t{name}{i}.wav\t{name}\t{'fm'[s % 2]}\t{split}")
    (folder / "all.tsv").write_text("\n".join(lines) + "\n")
    return folder / "all.tsv"


def settings(manifest: pathlib.Path, **changes) -> object:
    config = quickstart.get_config("debug")
    config.data.update({"kind": "manifest", "root": str(manifest), "sample_rate_hz": RATE_HZ})
    config.data.update({"crop_seconds": 0.6, "enrolment_seconds": 0.5, "max_eval_seconds": 0.5})
    config.mixing.update({"interferers": (1, 2), "absent": 0.3, "noisy_enrolment": 0.5})
    config.augment.hiss.probability = 0.5
    config.update_from_flattened_dict(changes)
    return workdir.freeze(config)


def written(config, split: str, out: pathlib.Path, count: int | None = None, **options) -> str:
    path, failed = prepare.prepare(
        config, split, out, **{"count": count, "workers": 0, "format": "wav", **options}
    )
    assert failed == 0
    return path.read_text()


def test_the_files_are_what_a_training_draws_and_are_read_back_as_a_list(manifest, tmp_path):
    config = settings(manifest)
    rows = written(config, "train", tmp_path, 20).splitlines()
    assert len(rows) == 21
    found = task.make_task(config, tmp_path)
    stream = iter(data.train_batches(found.train_split, config, found.around))
    batches = [next(stream) for _ in range(5)]
    drawn = [(b, r) for b in batches for r in range(8) if b["mask"][r]][:20]
    part = fixed.open_list("files", tmp_path / "train.csv", config, tmp_path)
    assert len(part) == 20
    kinds = set()
    for i, (batch, r) in enumerate(drawn):
        row = part.draw(i, None, {})
        count = batch["sources_lengths"][r]
        voice = batch["sources"][r, :count, :-1]
        order = [0, *(k for k in (1, 2) if batch["interferer_index"][r, k - 1] >= 0)]
        np.testing.assert_equal(row["sources"][:, : len(order)], voice[:, order])
        # Noise is what the mixture holds beside them: to the rounding of sums.
        mixture = batch["sources"][r, :count].sum(1)
        np.testing.assert_allclose(row["sources"].sum(1), mixture, atol=1e-6)
        known = batch["enrolment"][r, : batch["enrolment_lengths"][r]]
        np.testing.assert_equal(row["enrolment"], known)
        for name in ("present", "noisy"):
            assert row[name] == batch[name][r]
        index = int(batch["target_index"][r])
        speaker = found.train_split.written_at(index)["speaker"]
        assert part.written_at(int(row["target_index"]))["speaker"] == speaker
        assert len(part.genders[i]) == len(order)
        kinds.add((bool(row["present"]), bool(row["noisy"]), len(order)))
    assert len(kinds) > 5


def test_a_second_start_goes_on_to_the_same_files(manifest, tmp_path):
    config, whole, parts = settings(manifest), tmp_path / "whole", tmp_path / "parts"
    expected = written(config, "train", whole, 11)
    written(config, "train", parts, 3)
    journal = parts / "train.jsonl"
    journal.write_text(journal.read_text() + '[17, ["half')  # killed while it wrote
    (parts / "train" / "s1" / ".0000003.wav.12ab.tmp").touch()
    again = mock.Mock(wraps=prepare.Writer.write)
    with mock.patch.object(prepare.Writer, "write", lambda *args: again(*args)):
        assert written(config, "train", parts, 11) == expected
        assert again.call_count == 8
        assert written(config, "train", parts, 11) == expected
        assert again.call_count == 8
    names = sorted(p.relative_to(whole) for p in (whole / "train").rglob("*.*"))
    assert names == sorted(p.relative_to(parts) for p in (parts / "train").rglob("*.*"))
    for name in names:
        one, two = (soundfile.read(folder / name, dtype="float32")[0] for folder in (whole, parts))
        np.testing.assert_equal(one, two)  # the samples: the header holds the time of writing
    with pytest.raises(errors.UserError, match="of other mixtures; what differs: mixing, seed"):
        written(settings(manifest, seed=1, **{"mixing.absent": 0.0}), "train", parts, 11)


def test_as_many_are_written_where_no_progress_is_shown(manifest, tmp_path):
    """TQDM_DISABLE=1, by which a bar counts nothing: it went on for ever."""
    kept = prepare.Writer.write
    calls = iter(range(16))
    hidden = functools.partial(tqdm.tqdm, disable=True)
    with (
        mock.patch.object(prepare.Writer, "write", lambda *args: (next(calls), kept(*args))[1]),
        mock.patch.object(prepare, "tqdm", types.SimpleNamespace(tqdm=hidden)),
    ):
        assert len(written(settings(manifest), "train", tmp_path, 9).splitlines()) == 10


def test_evaluations_are_written_as_they_are_measured(manifest, tmp_path, caplog):
    config = settings(manifest)
    written(config, "dev", tmp_path, format="flac")
    found = task.make_task(config, tmp_path)
    part = fixed.open_list("files", tmp_path / "dev.csv", config, tmp_path)
    drawn = found.drawn("dev")
    assert len(part) == len(drawn) == 4
    for i in range(4):
        expected = drawn.draw(i, None, {})["sources"].sum(1)
        found_here = part.draw(i, None, {})["sources"].sum(1)
        np.testing.assert_allclose(found_here, np.clip(expected, -1, 1), atol=1 / 32768)
    with caplog.at_level(logging.WARNING):
        loud = settings(manifest, **{"mixing.level_db": (-1.0, 0.0)})
        written(loud, "dev", tmp_path / "loud", format="flac")
    assert "4 mixtures go beyond full scale" in caplog.text


def test_a_list_becomes_files_by_the_command(manifest, tmp_path):
    head = "mix source1 source2 speaker1 speaker2 genders s1_over_s2_db noise s1_over_noise_db"
    rows = [head, "m ann1.wav bob1.wav ann bob fm 3 - -", "n ann2.wav bob2.wav ann bob fm 1 - -"]
    path = manifest.parent / "list.tsv"
    path.write_text("".join("\t".join(row.split()) + "\n" for row in rows))
    options = [f"--config.data.{name}" for name in (f"sample_rate_hz={RATE_HZ}", "min_seconds=0.4")]
    said = commands.run(
        "separation.prepare", f"--list={path}", f"--out={tmp_path}", "--workers=1", *options
    )
    assert f"--config.data.lists={tmp_path / 'list.csv'}" in said.stdout
    config = settings(manifest, **{"data.min_seconds": 0.4, "data.enrolment_seconds": 4.0})
    one, two = (fixed.open_list("x", p, config, tmp_path) for p in (path, tmp_path / "list.csv"))
    assert (len(one), one.genders, one.note) == (len(two), two.genders, two.note)
    for i in range(len(one)):
        a, b = one.draw(i, None, {}), two.draw(i, None, {})
        np.testing.assert_equal(b["sources"][:, :2], a["sources"])
        np.testing.assert_equal(b["enrolment"], a["enrolment"])


def test_what_cannot_be_written_is_said(manifest, tmp_path):
    config = "--config=configs/separation/quickstart.py:debug"
    for words, message in (
        ((), "Give --config=FILE.py, or --list=FILE"),
        ((config, "--list=x.tsv"), "Give --config=FILE.py, or --list=FILE"),
        ((config, "--config.data.rot=x"), "no setting config.data.rot"),
        ((config, "--cuont=3"), "What is '--cuont=3'"),
        ((config, "--count=0"), "--count=0: at least one"),
        (("--list=/nowhere/x.tsv",), "There is no list /nowhere/x.tsv"),
    ):
        said = commands.message("separation.prepare", f"--out={tmp_path / 'out'}", *words)
        assert message in said
    with pytest.raises(errors.UserError, match="--count=9: dev has 4 mixtures"):
        written(settings(manifest), "dev", tmp_path, 9)
    assert not list((tmp_path / "out").glob("*.csv"))
