"""The study: its cells as settings, its stages, and what its report says of known figures."""

import argparse
import base64
import json
import os
import shutil
import sys

import numpy as np
import pytest

from asr import study, study_report
from common import command_line, errors, preemption
from tests import commands

CONFIG = "configs/asr/quickstart.py:debug"
FLAGS = {"checkpoints": 2, "points": 3, "batches": 1, "recordings": 2}


def arguments(**changes):
    options = {"config": CONFIG, "settings": [], "equal": "params", **FLAGS, **changes}
    return argparse.Namespace(**options)


def test_every_cell_is_a_config(tmp_path):
    """Its settings are known to the config, and make the form and the front end of its name."""
    config = command_line.read_config(
        CONFIG, ["--config.encoder.blocks=((2,64,2),(2,64,1),(1,64,1))"]
    )
    found = study.cells(tmp_path, study.CELLS, 2)
    assert len({cell.folder for cell in found}) == len(found) == 2 * 8 * 3
    for cell in found[: len(study.CELLS)]:
        words = study.settings(config, cell, "params", 10)
        made = command_line.read_config(CONFIG, words)
        assert made.features.kind == study.FRONTS[cell.front]["kind"]
        assert made.encoder.conv == study.widths.VARIANTS[cell.form]["conv"]
        assert made.keep_every == made.checkpoint_every == made.evaluate_every == 10
    assert {cell.form for cell in found} == set(study.widths.VARIANTS)
    # Behind a user's own settings they count, and are not joined to them.
    blocks = "--config.encoder.blocks=((2,64,2),(2,64,1),(1,64,1))"
    assert len(command_line.read_config(CONFIG, [blocks, *words]).encoder.blocks) == 3


def test_checkpoints_end_with_the_last_step():
    config = argparse.Namespace(total_steps=30)
    assert study.steps(config, study.interval(config, 4)) == [8, 16, 24, 30]
    assert study.steps(config, study.interval(config, 1)) == [30]


class Workers(study.Workers):
    """Writes what was to be called into a list; one word fails."""

    def __init__(self, fail="", empty=False):
        super().__init__([study.Slot()])
        self.calls, self.fail, self.empty = [], fail, empty

    def call(self, words, log_file, slot):
        self.calls.append(" ".join(words))
        log_file.write_text("first line\nthe reason\n")
        if "--mode=attribution" in words and not self.empty:
            table = log_file.parent / "analysis" / "attribution_30_transcript.json"
            table.parent.mkdir(exist_ok=True)
            table.write_text(json.dumps([{"converged": False}]))
        return 1 if self.fail and self.fail in self.calls[-1] else 0


def test_stages_are_done_once(tmp_path):
    config = command_line.read_config(CONFIG, [])
    (cell,) = study.cells(tmp_path, ["rank_2/log_mel"], 1)
    stages = study.stages(config, cell, arguments())
    first = Workers(fail="--mode=hessian")
    problem = study.work(cell, stages, first)
    assert problem.startswith("hessian_15 ended with 1:")
    assert "the reason" in problem
    assert len(first.calls) == 4
    assert f"--config={CONFIG}" in first.calls[0]
    assert "--config.encoder.rank=2" in first.calls[0]
    # A map that does not add up is no failure, but no map at all is one.
    problem = study.work(cell, stages, Workers("--mode=attribution", empty=True))
    assert problem.startswith("attribution ended with 1:")
    second = Workers(fail="--mode=attribution")
    assert study.work(cell, stages, second) is None
    names = ["train", "responses", "landscape", "hessian_15", "hessian_30", "attribution"]
    assert study.done(cell) == names
    assert len(second.calls) == 1
    third = Workers()
    assert study.work(cell, stages, third) is None
    assert third.calls == []


def test_a_stage_that_ended_well_in_spite_of_a_stop_is_done(tmp_path):
    config = command_line.read_config(CONFIG, [])
    (cell,) = study.cells(tmp_path, ["rank_2/log_mel"], 1)
    stages = study.stages(config, cell, arguments())
    for fail, behind in (("--config=", []), ("", ["train"])):
        workers = Workers(fail)
        call = workers.call
        workers.call = lambda *args, w=workers, call=call: (w.stop(), call(*args))[1]
        assert study.work(cell, stages, workers) is None
        assert study.done(cell) == behind
        assert len(workers.calls) == 1


class Trainings(Workers):
    """Each training leaves its curve; those of seed 1 of one cell fail."""

    def __init__(self):
        super().__init__()
        self.reports = []

    def call(self, words, log_file, slot):
        report = log_file.parents[1] / "report.html"
        self.reports.append(report.read_text() if report.exists() else "")
        code = super().call(words, log_file, slot)
        if not any(word.startswith("--config=") for word in words):
            return code
        if log_file.parent.name == "dense_log_mel.1":
            return 1
        line = {"step": 30, "split": "dev", "wer": 0.25}
        (log_file.parent / "metrics.jsonl").write_text(json.dumps(line))
        return code


def test_all_are_trained_before_any_is_looked_into(tmp_path):
    """The report then has the error rates of all. What was not trained is not looked into."""
    config = command_line.read_config(CONFIG, [])
    wanted = study.cells(tmp_path, ["separable/log_mel", "dense/log_mel"], 2)
    study.check(tmp_path, arguments(), config)
    workers = Trainings()
    failed = study.work_all(tmp_path, config, wanted, arguments(), workers, at_once=1)
    assert [(cell.name, cell.seed) for cell in failed] == [("dense/log_mel", 1)]
    assert failed[wanted[3]].startswith("train ended with 1:")
    quick = ["asr.responses" in call or f"--config={CONFIG}" in call for call in workers.calls]
    assert quick == [True] * 7 + [False] * 12  # four stages of three cells
    folders = [str(cell.folder) for cell in wanted]
    assert [
        next(f for f in folders if f"={f} " in call) for call in workers.calls[::2][:4]
    ] == folders
    assert not any(folders[3] in call for call in workers.calls[7:])
    page = workers.reports[7]
    assert "3 runs of 2 cells" in page
    assert "3 are trained to the end, 0 have a landscape" in page
    assert "WER of dense/log_mel less that of separable/log_mel" in page
    assert page.count("Not there yet") == 3
    assert "nan" not in page
    # Again: the rest alone.
    again = Workers()
    assert study.work_all(tmp_path, config, wanted, arguments(), again, at_once=1) == {}
    assert len(again.calls) == 6
    assert all(str(folders[3]) in call for call in again.calls)


def test_a_process_and_its_end(tmp_path):
    """What it says is kept, and nothing begins after a stop."""
    core = min(os.sched_getaffinity(0))
    workers = study.Workers([study.Slot({"STUDY_TEST": "7"}, frozenset({core}))])
    log_file = tmp_path / "log"
    said = "import os; print(os.environ['STUDY_TEST'], os.sched_getaffinity(0))"
    with workers.slot() as slot:
        assert workers.call(["timeit", "-n1", "-r1", said], log_file, slot) == 0
        assert f"7 {{{core}}}" in log_file.read_text()
        workers.stop()
        assert workers.call(["timeit"], log_file, slot) != 0
    assert sys.executable


def test_jobs_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 6, 7}, raising=False)
    assert [slot.cores for slot in study.shares(2)] == [{0, 4, 7}, {1, 6}]
    assert [slot.cores for slot in study.shares(1)] == [set()]  # all, as without us
    assert [slot.cores for slot in study.shares(6)] == [set()] * 6


def write_run(folder, cell, seed, wer, sharp, largest, step=30):
    """What the stages leave of a run."""
    run = folder / f"{cell.replace('/', '_')}.{seed}"
    (run / "analysis" / "study").mkdir(parents=True)
    (run / "study.json").write_text(json.dumps({"cell": cell, "seed": seed, "done": []}))
    lines = [{"step": k, "split": "dev", "wer": w} for k, w in ((15, 0.9), (step, wer))]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    points = np.array([[0, 0], [0.5, 0], [0, 0.5], [1, 0], [0.3, 0]], float)
    loss = np.array([2.0, 2 + sharp, 2 + sharp, 99, np.nan])
    np.savez(run / "analysis" / "study" / f"{step}.npz", points=points, **{"values/loss": loss})
    spectrum = {"step": step, "largest": [largest, 1], "least": [0, -1], "trace": 5}
    (run / "analysis" / "hessian_x.json").write_text(json.dumps(spectrum))


@pytest.fixture
def folder(tmp_path):
    about = {"config": {"total_steps": 30}, "equal": "params", **FLAGS}
    (tmp_path / "study.json").write_text(json.dumps(about))
    for seed, noise in enumerate((-0.01, 0.0, 0.01)):
        write_run(tmp_path, "separable/log_mel", seed, 0.20 + noise, 1.0 + noise, 10)
        write_run(tmp_path, "dense/log_mel", seed, 0.30 + noise, 2.0 + noise, 10 + seed)
        write_run(tmp_path, "rank_1/log_mel", seed, 0.20 - noise, 0.9 + noise, 9)
        write_run(tmp_path, "separable/waveform", seed, 0.40 + noise / 2, 3.0 + noise, 30)
    return tmp_path


def test_what_it_says_of_known_figures(folder):
    seeds = [study_report.read(path.parent, 30) for path in sorted(folder.glob("*/study.json"))]
    by_name = {(s.cell, s.seed): s for s in seeds}
    one = by_name["separable/log_mel", 1]
    # Infinity and what is far away are no points of the disk; the rest is 1 above the middle.
    assert one.values["sharpness"] == pytest.approx(1.0)
    assert one.values["wer"] == pytest.approx(20.0)
    assert one.over["wer"] == [(15, 90.0), (30, pytest.approx(20.0))]
    mean, half, count = study_report.paired(seeds, "wer", "dense/log_mel", "separable/log_mel")
    assert (mean, half, count) == (pytest.approx(10.0), pytest.approx(0.0, abs=1e-9), 3)
    # Differences 2, 0, -2: t of 2 degrees of freedom, 4.303, times 2 / sqrt 3.
    mean, half, _ = study_report.paired(seeds, "wer", "rank_1/log_mel", "separable/log_mel")
    assert (mean, half) == (
        pytest.approx(0.0, abs=1e-9),
        pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3),
    )
    rho, low, high, runs = study_report.correlation(seeds, "sharpness", "wer")
    assert runs == 12
    assert 0.8 < rho <= 1
    assert low <= rho <= high
    answers = study_report.findings(seeds)
    assert len(answers) == 3
    assert len(answers[study_report.PREDICTS]) == 2  # of the trace all are alike
    lines = "\n".join(line for some in answers.values() for line in some)
    assert "WER of dense/log_mel less that of separable/log_mel: +10" in lines
    assert "(3 seeds): higher." in lines
    assert "rank_1/log_mel less that of separable/log_mel" in lines
    assert "not told apart" in lines
    assert "WER of separable/waveform less that of separable/log_mel: +20" in lines


def test_a_run_that_is_not_at_its_end_has_no_last_figure(folder):
    write_run(folder, "rank_4/log_mel", 0, 0.5, 1.0, 3.0, step=16)
    found = study_report.read(folder / "rank_4_log_mel.0", 30)
    assert "wer" not in found.values
    assert found.over["wer"][-1] == (16, 50.0)


def test_one_page_with_all_in_it(folder):
    path = study_report.write(folder)
    text = path.read_text()
    assert "12 runs of 4 cells, encoders of equal parameters, 30 steps each; 12 are trained" in text
    assert "<li><b>rank_1</b>: filters that are sums" in text
    assert "<li><b>waveform</b>: a learned filter bank" in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.count("data:image/png;base64,") == 6
    assert "20.00 &plusmn; 2.48" in text  # 4.303 / sqrt 3
    assert "of them)" not in text
    rows = json.loads((folder / "runs.json").read_text())
    assert len(rows) == 12
    assert rows[0]["wer"] == pytest.approx(19.0)


def test_a_map_and_its_curves_are_shown_of_each_cell(folder):
    for seed in (0, 1):
        for name in ("a", "a_curves", "a_each", "b", "b_curves"):
            path = folder / f"rank_1_log_mel.{seed}/analysis/attribution_30_transcript_{name}.png"
            path.write_bytes(f"{seed} {name}".encode())
    text = study_report.write(folder).read_text()
    shown = [base64.b64encode(f"0 {name}".encode()).decode() for name in ("a", "a_curves")]
    assert all(f"base64,{data}" in text for data in shown)
    assert text.count("data:image/png;base64,") == 6 + 2


def test_a_mean_of_fewer_runs_says_of_how_many(folder):
    shutil.rmtree(folder / "rank_1_log_mel.2" / "analysis")
    text = study_report.write(folder).read_text()
    assert "0.895 &plusmn; 0.0635 (2 of them)" in text  # 12.71 x 0.005


@pytest.mark.parametrize(
    "name", ["study.json", "metrics.jsonl", "analysis/study/30.npz", "analysis/hessian_x.json"]
)
def test_a_damaged_file_costs_its_run_alone(folder, name, caplog):
    path = folder / "rank_1_log_mel.2" / name
    path.write_bytes(path.read_bytes()[:20])
    text = study_report.write(folder).read_text()
    assert f"A run is left out: {path} cannot be read" in text
    assert f"{path} cannot be read" in caplog.text
    assert "11 runs of 4 cells" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "says what is trained"),
        ((f"--config={CONFIG}", "--cells", "rank_3/log_mel"), "--cells rank_3/log_mel: choose of"),
        ((f"--config={CONFIG}", "--seeds=0"), "--seeds=0: 1 at least"),
        ((f"--config={CONFIG}", "--config.encoder.blokcs=()"), "blocks"),
        (("--report",), "is no folder of asr.study"),
    ],
)
def test_what_cannot_be(tmp_path, options, message):
    assert message in commands.message("asr.study", f"--workdir={tmp_path}", *options)


def test_another_study_in_its_folder(folder):
    config = argparse.Namespace(to_dict=lambda: {"total_steps": 30})
    study.check(folder, arguments(), config)
    with pytest.raises(errors.UserError, match="a study with another points"):
        study.check(folder, arguments(points=5), config)


def test_a_stopped_study_is_no_error(tmp_path, command, monkeypatch, capsys):
    """Its exit code is that of a stopped training."""
    words = ["study", f"--config={CONFIG}", f"--workdir={tmp_path}", "--equal=none", "--seeds=1"]
    monkeypatch.setattr(sys, "argv", [*words, "--cells", "rank_1/log_mel"])
    monkeypatch.setattr(study, "work_all", lambda *args, **_: args[4].stop())
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == preemption.EXIT_CODE
    assert "The same command goes on" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_from_command_to_report(tmp_path):
    options = ("--seeds=1", "--checkpoints=1", "--points=3", "--batches=1", "--recordings=1")
    cells = ("--cells", "rank_1/log_mel")
    small = (
        "--config.total_steps=6",
        "--config.encoder.blocks=((1,16,2),(1,16,2))",
        "--equal=none",
    )
    line = (f"--config={CONFIG}", f"--workdir={tmp_path}", *small, *options)
    ended = commands.run("asr.study", *line, *cells)
    assert f"The report: {tmp_path / 'report.html'}" in ended.stdout
    (row,) = json.loads((tmp_path / "runs.json").read_text())
    wanted = {"wer", "sharpness", "largest", "trace", "stable_rank", "mmacs", "explained"}
    assert wanted <= set(row)
    page = (tmp_path / "report.html").read_text()
    assert page.count("the loss around its checkpoints") == 2
    assert "rank_1/log_mel" in page
    # Again: nothing is done anew.
    again = commands.run("asr.study", *line, *cells)
    assert "train" not in again.stderr
