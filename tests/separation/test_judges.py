"""Who judges extracted speech: figures by hand, and work directories of recogniser and speakers."""

import csv
import dataclasses
import types

import jax
import numpy as np
import pytest

from common import checkpoint, errors, evaluation, parallel, trained, workdir
from common.audio import io
from common.data import classes, records
from configs.speaker import quickstart as speaker_quickstart
from separation import extraction, judges
from speaker import task as speaker_task
from tests.asr.test_transcriber import folder as asr_folder  # noqa: F401 - a fixture
from tests.separation import test_task, voices


@pytest.fixture(scope="module")
def speaker_folder(tmp_path_factory):
    """A speaker network that was never trained."""
    folder = tmp_path_factory.mktemp("speaker")
    config = speaker_quickstart.get_config("debug")
    config.update_from_flattened_dict({"data.min_seconds": 0.2, "ema_decay": 0.0})
    config = workdir.freeze(config)
    classes.write(voices.corpus(), folder)
    workdir.save_config(folder, "speaker", config)
    task = speaker_task.make_task(config, folder)
    state = task.create_state(jax.jit(task.init)(jax.random.key(1)))
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    state = parallel.place(state, parallel.make_mesh(jax.devices()[:1]))
    saver.save(3, state, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()
    return folder


class Recogniser:
    """It hears as many words as there are samples."""

    def load(self, audio, rate):
        assert rate == 8000
        return audio

    def many(self, audio):
        return [types.SimpleNamespace(text=" ".join("ABCDEF"[: len(x)])) for x in audio]

    def normalize(self, text):
        return text.upper()


class Speaker:
    """An embedding is the first two samples."""

    def load(self, audio, rate):
        if not audio.any():
            raise io.AudioError("x", "silent")
        return audio

    def embed_loaded(self, audio):
        return np.stack([x[:2] for x in audio])


def rows():
    """The first is well done; of the second nothing is left; the third has no target."""
    one = {"mixture": [1, 1, 1, 1], "extracted": [0, 5], "target": [1, 3], "enrolment": [0, 2]}
    none = {**one, "extracted": [0, 0]}
    found = [one, none, one]
    return [{n: np.array(x, np.float32) for n, x in row.items()} for row in found]


def test_each_judge_says_before_and_after():
    quality = {"stoi": lambda clean, processed: float(processed.sum() - clean.sum())}
    found = judges.Judges(8000, quality, Recogniser(), Speaker())
    assert found.names == ("stoi", "recogniser", "speaker")
    texts = ["a b c", "", "a b"]
    columns = found(rows(), [True, True, False], texts)
    half, third = 2**-0.5, 3 * 10**-0.5
    expected = {
        "mixture_stoi": [0, 0, np.nan],
        "stoi": [1, -4, np.nan],
        "mixture_similarity": [half, half, np.nan],
        "similarity": [1, np.nan, np.nan],
        "target_similarity": [third, third, np.nan],
        "words": [3, 0, 0],
        "mixture_word_errors": [1, 0, 0],
        "word_errors": [1, 0, 0],
        "target_word_errors": [1, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values, atol=1e-6, err_msg=name)
    assert columns["problems"].tolist() == ["", "extracted: silent", ""]
    assert columns["mixture_said"].tolist() == ["A B C D", "", ""]
    scalars, lines = judges.summarise("dev", columns, np.array(["ann", "bob", "cid"]))
    for name, value in {
        "mixture_stoi_mean": 0,
        "stoi_mean": -1.5,
        "similarity_mean": 1,
        "mixture_similarity_mean": half,
        "mixture_wer": 1 / 3,
        "wer": 1 / 3,
        "wer_mixtures": 1,
        "not_measured": 1,
    }.items():
        assert scalars[name] == pytest.approx(value), name
    assert lines[0] == (
        "dev STOI: mixture 0.000, extracted -1.500 (change -1.500 [-4.000, +1.000]) (2 mixtures)"
    )
    assert "dev cosine to the enrolment: mixture 0.707, extracted 1.000 (change +0.293" in lines[1]
    assert lines[1].endswith(", target 0.949 (1 mixtures)")
    assert "dev WER: mixture 33.3 % [nan, nan], extracted 33.3 %" in lines[2]
    assert "(3 words of the 1 of 3 mixtures that hold a whole utterance with its text)" in lines[2]
    assert lines[3] == "dev not measured in 1 mixtures: extracted: silent"
    _, lines = judges.summarise("dev", {"words": np.zeros(3, int)}, np.array(["ann"] * 3))
    assert lines == ["dev WER: none of 3 mixtures holds a whole utterance with its text"]
    written = judges.columns(columns)
    assert written["similarity"] == ["1", "", ""]
    assert written["said"] == ["A B", "", ""]


def test_work_directories_judge_an_evaluation(tmp_path, asr_folder, speaker_folder):  # noqa: F811
    """Untrained, so only what is counted and where it is written."""
    changes = {
        "data.max_eval_seconds": 1.2,
        "judges.quality": (),
        "judges.recogniser": str(asr_folder),
        "judges.speaker": str(speaker_folder),
    }
    task = test_task.make_task(tmp_path, **changes)
    part = task.parts["dev"]
    texts = [{**part.source[i], "text": "abc de"} for i in range(len(part.source))]
    part = dataclasses.replace(part, source=records.RecordList("voices", texts))
    task = dataclasses.replace(task, parts={**task.parts, "dev": part})
    mesh = parallel.make_mesh(jax.devices()[:1])
    variables = jax.jit(task.init)(jax.random.key(0))
    found = trained.Trained(tmp_path, task.config, task, mesh, variables, {})
    batches = task.eval_data(test=True)["dev"]
    report = evaluation.evaluate(task, found.eval_step, variables, "dev", batches, mesh)
    table = list(csv.DictReader(report.files["dev.csv"].splitlines()))
    whole = [row["present"] == "1" and row["target"][-1] in "01" for row in table]
    assert [int(row["words"]) for row in table] == [2 * x for x in whole]  # 1.0 and 1.2 s
    assert report.scalars["wer_mixtures"] == sum(whole)
    assert report.scalars["target_wer"] > 0.5
    for row in table:
        cosines = [row[f"{prefix}similarity"] for prefix in ("mixture_", "", "target_")]
        assert all(cosines) == (row["present"] == "1" and not row["problems"])
        assert all(-1.001 < float(x) < 1.001 for x in cosines if x)
    # In this order, whatever Python's hashes are.
    asked = ["mixture_similarity", "similarity", "target_similarity", "words"]
    place = list(table[0]).index("level_db") + 1
    assert list(table[0])[place : place + len(asked)] == asked
    assert any("dev cosine to the enrolment: mixture " in line for line in report.lines)


def test_a_work_directory_of_another_task_is_one_message(tmp_path, asr_folder):  # noqa: F811
    cases = (
        (
            {"judges.speaker": str(asr_folder)},
            "is a work directory of 'asr': name one that speaker",
        ),
        (
            {"judges.recogniser": str(tmp_path)},
            r"config\.judges\.recogniser=.*is no work directory",
        ),
    )
    for change, message in cases:
        task = test_task.make_task(tmp_path, **change)
        assert isinstance(task, extraction.SeparationTask)
        with pytest.raises(errors.UserError, match=message):
            task.eval_data(test=True)
    assert voices.RATE_HZ == 8000
