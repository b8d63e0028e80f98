"""The command line from end to end: train, stop, resume, evaluate, transcribe, and bad input."""

import fcntl
import json
import pathlib
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from asr import costs, lowrank, model, responses
from asr import task as asr_task
from common import errors, evaluation, preemption, workdir
from common.analysis import directions
from common.audio import io
from common.data import embedded
from common.trained import load
from configs.asr import quickstart
from tests import commands

CONFIG = "--config=configs/asr/quickstart.py:debug"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A work directory that was stopped by SIGTERM once and then trained to the end."""
    workdir = tmp_path_factory.mktemp("runs") / "debug"
    process = commands.start("asr.main", CONFIG, f"--workdir={workdir}", stderr=subprocess.PIPE)
    while not list(workdir.glob("checkpoints/1*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=300)
    assert process.returncode in (0, preemption.EXIT_CODE), log  # it may have been too late
    done = commands.run("asr.main", CONFIG, f"--workdir={workdir}")
    if "saved step" in log:
        assert "Resumed at step" in done.stderr
    (workdir / "stdout.txt").write_text(done.stdout)
    return workdir


@pytest.mark.slow
def test_training_leaves_what_the_readme_says(trained):
    words = (trained / "stdout.txt").read_text()
    assert "dev WER" in words
    assert words.count("  ref  ") == 5
    assert "asr.transcribe" in words
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["step"] == 30
    assert train[-1]["loss"] < train[0]["loss"]
    dev = [line for line in lines if line["split"] == "dev"]
    assert [line["step"] for line in dev] == [15, 30]
    assert all(np.isfinite(line["wer"]) for line in dev)
    for name in ("config.json", "tokenizer", "tensorboard", "results/dev.tsv", "rejected.tsv"):
        assert (trained / name).exists(), name
    state = ocp.StandardCheckpointer().restore(trained / "checkpoints" / "30" / "state")
    assert int(state["step"]) == 30
    assert set(state) >= {"params", "opt_state", "model_state"}


@pytest.mark.slow
def test_evaluate_repeats_the_figure(trained):
    done = commands.run("asr.main", f"--workdir={trained}", "--mode=evaluate", "--checkpoint=30")
    first = (trained / "stdout.txt").read_text().splitlines()
    assert done.stdout.splitlines()[:2] == first[:2]


@pytest.mark.slow
def test_an_evaluation_that_is_stopped_leaves_nothing_in_shared_memory(trained):
    """The signal comes when its loader processes are there, so before the second of 17 batches."""
    settings = {"eval": "train", "num_workers": 2, "batch_seconds": 8.0}
    options = [f"--config.data.{name}={value}" for name, value in settings.items()]
    options += [f"--workdir={trained}", "--mode=evaluate"]
    results = trained / "results"
    before = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}

    def workers() -> int:
        threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for thread in threads for child in thread.read_text().split()]
        lines = [pathlib.Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
        return sum(b"spawn_main" in line for line in lines)

    with commands.start("asr.main", *options, stderr=subprocess.PIPE) as process:
        while process.poll() is None and workers() < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "asr: stopped by SIGTERM before all of train was evaluated.\n" in said
    assert "leaked" not in said
    assert "Traceback" not in said
    assert {path.name: path.stat().st_mtime_ns for path in results.iterdir()} == before


@pytest.mark.slow
def test_transcribe_goes_on_after_bad_files(trained, tmp_path):
    corpus = embedded.EmbeddedCorpus(
        "dev", embedded.CorpusSettings(hours=0.02, eval_hours=0.01), progress=False
    )
    speech = corpus[0]["audio"].astype(np.float32) / 32768
    io.write_wav(tmp_path / "good.wav", speech, 16000)
    io.write_wav(tmp_path / "long.wav", np.tile(speech, 40000 // len(speech) + 40), 16000)
    io.write_wav(tmp_path / "stereo.wav", np.stack([speech, speech], 1), 8000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF....WAVE")
    names = ("good.wav", "broken.wav", "absent.wav", "long.wav", "stereo.wav")
    files = [tmp_path / name for name in names]
    done = commands.run("asr.transcribe", f"--workdir={trained}", *files, code=1)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [pathlib.Path(line[0]).name for line in lines] == ["good.wav", "long.wav", "stereo.wav"]
    assert all(len(line) == 3 for line in lines)
    bad = [line for line in done.stderr.splitlines() if line.startswith("asr.transcribe:")]
    assert len(bad) == 2
    assert "broken.wav" in bad[0]
    assert "absent.wav" in bad[1]


@pytest.mark.slow
def test_tokenizer_and_checkpoint_that_disagree(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    saved = json.loads(text)
    swapped = text.replace('"A"', '"\\u00c4"') if '"A"' in text else text
    assert swapped != text, saved
    path.write_text(swapped)
    assert "tokenizer" in commands.message("asr.main", f"--workdir={run}", "--mode=evaluate")


@pytest.mark.slow
def test_a_second_process_is_turned_away(trained):
    with (trained / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = commands.message("asr.main", CONFIG, f"--workdir={trained}")
    assert "Another process" in message


@pytest.mark.slow
def test_a_config_that_does_not_fit_the_checkpoint(trained):
    options = (CONFIG, f"--workdir={trained}", "--config.decoder.joint=32")
    options = (*options, "--config.data.batch_seconds=48")  # for this process's eight devices
    message = commands.message("asr.main", *options)
    assert "params/joint/kernel: checkpoint float32[24, " in message
    assert json.loads((trained / "config.json").read_text())["config"]["decoder"]["joint"] == 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((CONFIG,), "--workdir is missing"),
        ((CONFIG, "--workdir={tmp}/a", "--config.decoder.lstn=3"), "Did you mean"),
        ((CONFIG, "--workdir={tmp}/a", "--config.decoder.lstm=many"), "lstm"),
        (("--config=configs/asr/an4.py", "--workdir={tmp}/a"), "config.data.root is empty"),
        (
            (
                "--config=configs/asr/librispeech.py:s",
                "--workdir={tmp}/a",
                "--config.data.root={tmp}/x",
            ),
            "There is no folder",
        ),
        (("--config=configs/asr/librispeech.py:xl", "--workdir={tmp}/a"), "s, m, l or debug"),
        (("--workdir={tmp}/a", "--mode=evaluate"), "is no work directory"),
        ((CONFIG, "--workdir=/proc/nothing/here"), "Cannot write to the work directory"),
    ],
)
def test_bad_input_is_one_message(tmp_path, options, words):
    message = commands.message("asr.main", *(option.format(tmp=tmp_path) for option in options))
    assert words in message
    assert len(message.splitlines()) < 8, message


def test_bad_input_ends_the_process(tmp_path):
    """As above, but as a user sees it."""
    options = ("--config=configs/asr/absent.py", f"--workdir={tmp_path / 'a'}")
    done = commands.run("asr.main", *options, code=1)
    assert done.stdout == ""
    assert "absent.py" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a").exists()


def test_a_work_directory_of_another_task(tmp_path):
    (tmp_path / "config.json").write_text('{"task": "speaker", "config": {}}')
    message = commands.message("asr.main", CONFIG, f"--workdir={tmp_path}")
    assert "belongs to the task 'speaker'" in message


@pytest.mark.slow
def test_a_run_that_is_done_is_done(trained):
    """It ends with 0 again, not as one that is to be started once more."""
    done = commands.run("asr.main", CONFIG, f"--workdir={trained}")
    assert "This run had all its 30 steps" in done.stderr
    assert "asr.transcribe" in done.stdout


@pytest.mark.slow
def test_lowrank_truncates_to_a_budget_fine_tunes_and_merges(trained, tmp_path):
    """What the command says of the error rates is what it writes, and what an evaluation says."""
    out, merged = tmp_path / "out", tmp_path / "merged"
    options = (f"--workdir={trained}", "--budget_params=3600", "--by=activations", "--batches=2")
    options += (f"--out={out}", "--steps=2", "--config.optimizer.learning_rate=1e-3")
    done = commands.run("asr.lowrank", *options, "--config.regularize.orthogonality=0.01")
    said = json.loads((out / "lowrank.json").read_text())
    sizes = [said[when]["encoder_parameters"] for when in ("before", "after")]
    assert sizes[1] <= 3600 < sizes[0]
    assert all(0 < row["share_lost"] < 1 for row in said["maps"].values())
    lines = [line for line in done.stdout.splitlines() if "dev WER" in line]
    assert [line.split(":")[0] for line in lines] == ["before", "after the change", "after 2 steps"]
    for line, key in zip(lines, ("before", "changed", "fine_tuned")):
        assert f"dev WER {100 * said['splits']['dev'][key]['wer']:.2f} %" in line
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["total_steps"] == said["fine_tuning_steps"] == 2
    assert config["optimizer"]["learning_rate"] == 1e-3
    evaluated = commands.run("asr.main", f"--workdir={out}", "--mode=evaluate").stdout
    assert evaluated.splitlines()[0] in lines[2]

    # As if it had been stopped before its last words.
    begun = json.loads((out / "lowrank.json").read_text())
    del begun["fine_tuning_steps"], begun["splits"]["dev"]["fine_tuned"]
    (out / "lowrank.json").write_text(json.dumps(begun))
    for other in ("--batches=3", "--config.optimizer.learning_rate=2e-3"):
        assert "not those of this" in commands.message("asr.lowrank", *options, other)
    done = commands.run("asr.lowrank", *options)
    assert "Resumed at step 2" in done.stderr
    assert json.loads((out / "lowrank.json").read_text()) == said

    # From Python, the same.
    config = ConfigDict(load(asr_task.PACKAGE, trained).config.to_dict())
    config.data.batch_seconds = 60.0  # for the tests' eight devices: other batches
    found = load(asr_task.PACKAGE, trained, config=workdir.freeze(config))
    maps = lowrank.components(found, "activations", batches=2)
    for name, row in said["maps"].items():
        assert maps[name].lost(row["rank"]) == pytest.approx(row["share_lost"], rel=0.2)
    reports = evaluation.reports(found.task, found.eval_step, found.variables, found.mesh)
    assert reports["dev"].scalars["wer"] == pytest.approx(said["splits"]["dev"]["before"]["wer"])
    heard = responses.of_run(found)
    assert sum(cost.parameters for cost in heard.table) == sizes[0]
    assert [one.name for one in heard.layers][:2] == ["block_0/conv_0", "block_1/conv_0"]
    with pytest.raises(errors.UserError, match="choose one of weights, activations, normalized"):
        lowrank.components(found, "activation")

    again = (f"--workdir={out}", "--merge", f"--out={merged}", "--steps=0")
    done = commands.run("asr.lowrank", *again)
    total = [line for line in done.stdout.splitlines() if line.startswith("total:")][1]
    assert total.split()[1] == f"{sizes[0]:,d}"
    first, second = [line for line in done.stdout.splitlines() if "dev WER" in line]
    assert first.partition("dev")[2] == second.partition("dev")[2]
    assert "has checkpoints already" in commands.message("asr.lowrank", *again)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--merge", "--bank_rank=3"], "leave --bank_rank out"),
        (["--merge"], "--out goes with"),
        (["--out=x"], "--out goes with"),
        (["--merge", "--budget_macs=1e6", "--out=x"], "goes with --budget_params or alone"),
        (["--merge", "--by=weights", "--out=x"], "--by goes with"),
        (["--budget_params=9", "--out=x", "--batches=3"], "give --by=activations too"),
        (["--budget_params=9", "--out=x", "--steps=-1"], "0 or more, with --out"),
        (["--steps=3"], "with --out"),
        (["--config.seed=3"], "--config.seed=3: settings and others go with --out"),
        (["--budget_macs=1e6", "--out=x"], "config.json"),
    ],
)
def test_lowrank_options_that_do_not_go_together(tmp_path, options, said):
    assert said in commands.message("asr.lowrank", f"--workdir={tmp_path}", *options)


@pytest.mark.slow
def test_a_learned_filter_bank_trains_resumes_and_is_factorised(tmp_path):
    run, low, dense = (tmp_path / name for name in ("run", "low", "dense"))
    options = (
        f"--workdir={run}",
        "--config.features.kind=learned",
        "--config.features.num_mels=40",
    )
    options = (CONFIG, *options, "--config.features.rank=24", "--config.evaluate_every=30")
    done = commands.run("asr.main", *options, "--config.total_steps=10")
    assert "Rank 24 keeps" in done.stderr
    done = commands.run("asr.main", *options)
    assert "Resumed at step 10" in done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line["loss"] for line in lines if line["split"] == "train"]
    assert train[-1] < 0.8 * train[0]
    figures = done.stdout.splitlines()[:2]
    assert figures[0].startswith("dev WER")
    state = ocp.StandardCheckpointer().restore(run / "checkpoints" / "30" / "state")
    assert set(state["params"]["filterbank"]) == {"basis", "mixing"}

    done = commands.run("asr.lowrank", f"--workdir={run}", "--bank_rank=12", f"--out={low}")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("filterbank ")]
    assert [row[2:4] for row in rows] == [["400x80", "24"], ["400x80", "12"]]
    assert json.loads((low / "config.json").read_text())["config"]["features"]["rank"] == 12

    done = commands.run("asr.lowrank", f"--workdir={run}", "--merge", f"--out={dense}")
    done = commands.run("asr.main", f"--workdir={dense}", "--mode=evaluate")
    assert done.stdout.splitlines()[:2] == figures


@pytest.mark.slow
def test_attribution_of_files_and_of_a_split(trained, tmp_path):
    """From command to picture; a broken file and one too long do not stop the others."""
    corpus = embedded.EmbeddedCorpus(
        "dev", embedded.CorpusSettings(hours=0.02, eval_hours=0.01), progress=False
    )
    speech = corpus[0]["audio"].astype(np.float32) / 32768
    io.write_wav(tmp_path / "good.wav", speech, 16000)
    io.write_wav(tmp_path / "long.wav", np.tile(speech, 40), 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF....WAVE")
    files = [tmp_path / name for name in ("broken.wav", "good.wav", "absent.wav", "long.wav")]
    mode = f"--workdir={trained}", "--mode=attribution", "--checkpoint=30"
    done = commands.run("asr.main", *mode, "--target=transcript,tokens", "--judge", *files, code=1)
    last = done.stderr.splitlines()[-1]
    assert "3 of the files could not be used" in last
    assert all(name in last for name in ("broken.wav", "absent.wav", "long.wav: lasts"))
    assert "--max_seconds" in last
    assert done.stdout.count("good.wav: integrated gradients of t") == 2
    folder = trained / "analysis"
    stem = "attribution_30_transcript"
    with np.load(folder / f"{stem}_good.wav.npz") as found:
        assert bool(found["converged"])
        wanted = found["score"] - found["baseline_score"]
        np.testing.assert_allclose(found["attribution"].sum(), wanted.sum(), rtol=2e-3)
        assert found["attribution"].shape == (1, *found["input"].shape)
        row = json.loads(str(found["metadata"]))
    assert (row["step"], row["target"], row["baseline"]) == (30, "transcript", "silence")
    assert json.loads((folder / f"{stem}.json").read_text()) == [row]
    lines = (folder / f"{stem}.tsv").read_text().splitlines()
    assert len(lines) == 2
    assert {"gap_percent", "nodes", "deletion_random", "random_1_sizes"} <= set(
        lines[0].split("\t")
    )
    for name in (f"{stem}_good.wav.png", f"{stem}_good.wav_curves.png"):
        assert (folder / name).stat().st_size > 10_000
    with np.load(folder / "attribution_30_tokens_good.wav.npz") as found:
        # The hypothesis stands for the transcript that there is not; the end is a token too.
        assert len(found["attribution"]) == len(found["part_texts"])
        assert found["part_texts"][-1] == "</s>"


@pytest.mark.slow
def test_attribution_panels_films_and_what_cannot_be(trained, command):
    mode = f"--workdir={trained}", "--mode=attribution"
    options = "--n=2", "--panel", "--film", "--max_nodes=16", "--tolerance=1000"
    commands.run("asr.main", *mode, "--checkpoint=30", *options)
    folder = trained / "analysis"
    assert (folder / "attribution_30_panel_channel_channel-3.png").exists()
    assert len(list(folder.glob("attribution_film_channel_*.gif"))) == 2
    text = commands.message("asr.main", *mode, "--target=nonsense")
    assert "--target=nonsense" in text
    assert all(name in text for name in ("transcript", "tokens", "words", "channel:N"))
    assert "log_mel" in commands.message("asr.main", *mode, "--input=nonsense")
    assert "choose dev" in commands.message("asr.main", *mode, "--split=nonsense")
    assert "exclude each other" in commands.message("asr.main", *mode, "--split=dev", "a.wav")
    loud = commands.message("asr.main", *mode, "--n=1", "--max_nodes=1", "--tolerance=1e-9")
    assert "do not add up" in loud
    assert "converged=False" in loud


@pytest.mark.slow
def test_the_centre_of_a_landscape_is_the_loss_that_the_evaluation_reported(trained):
    mode = f"--workdir={trained}", "--mode=landscape", "--checkpoint=30"
    done = commands.run("asr.main", *mode, "--points=3", "--metric_points=1")
    assert "step 30: 9 points in" in done.stderr
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (reported,) = (x for x in lines if x["split"] == "dev" and x["step"] == 30)
    with np.load(trained / "analysis" / "random_2d" / "30.npz") as found:
        (centre,) = np.flatnonzero(np.all(found["points"] == 0, axis=1))
        for name in ("loss", "transducer_loss", "ctc_loss"):
            assert found[f"values/{name}"][centre] == pytest.approx(reported[name], rel=1e-5)
        assert found["values/wer"][centre] == pytest.approx(reported["wer"])
    # A folder of TensorBoard's pictures, beside the curves of training.
    assert any(b"analysis/30_loss" in path.read_bytes() for path in trained.rglob("events*"))
    text = commands.message("asr.main", *mode, "--points=5")
    assert "points 3 there, 5 here" in text
    assert "--points is a flag of" in commands.message("asr.main", mode[0], "--points=5")


@pytest.mark.parametrize("kind", ["pointwise", "spectro_temporal", "bank"])
def test_low_rank_layers_move_by_their_composed_filters(tmp_path, kind):
    config = quickstart.get_config("debug")
    if kind == "pointwise":
        config.encoder.pointwise_rank_fraction = 0.25
    elif kind == "spectro_temporal":
        config.encoder.update({"conv": "spectro_temporal", "rank": 2})
    else:
        config.features.update({"kind": "learned", "rank": 12})
    net = model.make_model(workdir.freeze(config), vocab_size=30)
    variables = jax.eval_shape(lambda key: model.init(net, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), variables["params"])
    found = {}

    def loss(variables, batch):
        with directions.factors_seen(found):
            audio, size = jnp.zeros((1, 8000)), jnp.full((1,), 8000, jnp.int32)
            labels, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1,), bool)
            return net.apply(variables, audio, size, labels, train=False, mask=mask)

    jax.eval_shape(loss, variables, None)
    space = directions.Space(directions.flat(params), found)
    layers = costs.layer_costs(model.encoder_config(config), params["encoder"])
    names = {"pointwise": "pointwise", "spectro_temporal": "spectro_temporal"}
    wanted = {f"encoder/{x.name}" for x in layers if x.kind == names.get(kind)}
    # A map that is named dense in the table has no factors.
    wanted = {x for x in wanted if kind != "pointwise" or "projection" not in x}
    wanted = wanted or {"filterbank"}
    assert {"/".join(path) for path in found} == wanted
    (drawn,) = directions.random_directions(space, 1, seed=0)
    # The change of the composed filters, by a small step of all factors.
    step = 1e-6
    moved = {path: x + step * drawn[path] for path, x in space.params.items()}
    before, after = (directions.composed(tree, found) for tree in (space.params, moved))
    for path in found:
        kernel = before[(*path, "kernel")]
        change = (after[(*path, "kernel")] - kernel) / step
        axes = tuple(range(kernel.ndim - 1))
        sizes = [np.sqrt(np.sum(np.square(x), axis=axes)) for x in (change, kernel)]
        np.testing.assert_allclose(*sizes, rtol=1e-4)
