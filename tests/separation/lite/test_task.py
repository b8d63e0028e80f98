"""VoiceFilter-Lite as a task: it learns, what is measured, the recogniser behind it, commands."""

import csv
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asr
from common import checkpoint, errors, evaluation, metrics, parallel, trainer, workdir
from common.audio import io
from common.data import classes
from configs.separation import lite as lite_config
from separation import enhancer
from separation import task as separation_task
from separation.lite import evaluation as lite_evaluation
from separation.lite import filtering, network
from separation.lite import task as lite_task
from tests import commands
from tests.asr.test_transcriber import folder as asr_folder  # noqa: F401 - a fixture
from tests.asr.test_transcriber import noise
from tests.separation import voices

CHANGES = {
    "data.sample_rate_hz": voices.RATE_HZ,
    "data.crop_seconds": 0.6,
    "data.enrolment_seconds": 0.6,
    "data.max_eval_seconds": 1.4,
    "data.eval_batch_seconds": 11.2,
    "data.max_eval_mixtures": 0,
    "mixing.snr_db": (-1.0, 1.0),
    "mixing.absent": 0.0,
    "augment.hiss.probability": 0.0,
    "model.lite.num_mels": 20,
    "model.lite.alone": 0.3,
}


def make_task(folder, **changes) -> lite_task.LiteTask:
    config = lite_config.get_config("debug")
    config.update_from_flattened_dict({**CHANGES, **changes})
    found = voices.corpus()
    classes.write(found, folder)
    return lite_task.LiteTask(workdir.freeze(config), folder, {"train": found, "dev": found})


def mesh():
    return parallel.make_mesh(jax.devices()[:1])


class Recogniser:
    """It hears a word for every 40 frames that have any energy."""

    def __init__(self, sizes):
        self.front_end = sizes.front_end

    def texts_of(self, features):
        heard = [int(np.sum(x.max(axis=1) > -5)) // 40 for x in features]
        return [" ".join("ABCDEFGH"[:count]) for count in heard]

    def normalize(self, text):
        return text.upper()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A task, its state after 240 steps, and the losses of the first 120, all of one batch."""
    task = make_task(tmp_path_factory.mktemp("task"))
    state = task.create_state(jax.jit(task.init)(jax.random.key(0)))
    state = parallel.place(state, mesh())
    step = trainer.make_train_step(task, task.config, mesh())
    batches = iter(task.train_data())
    one, losses = parallel.global_batch(next(batches), mesh()), []
    for _ in range(120):
        state, sums = step(state, one)
        losses.append(metrics.finalize(sums))
    for _ in range(120):
        state, _ = step(state, parallel.global_batch(next(batches), mesh()))
    return task, state, losses


def test_it_learns_one_batch_by_heart(trained):
    _, _, losses = trained
    for name in ("feature_loss", "noise_type_loss"):  # with other voices and without, by chance
        first, last = (np.mean([x[name] for x in losses[i]]) for i in (slice(5), slice(-5, None)))
        assert last < 0.5 * first, name


def test_it_filters_voices_and_tells_the_noise_type(trained, monkeypatch):
    """Four voices in bands of their own, whose words are not the recogniser's concern here."""
    task, state, _ = trained
    found = dataclasses.replace(task)
    judge = types.SimpleNamespace(recogniser=Recogniser(task.sizes), names=("recogniser",))
    object.__setattr__(found, "judges", judge)
    monkeypatch.setattr(
        type(task.parts["dev"]), "written_at", lambda part, i: {**part.source[i], "text": "a b c"}
    )
    step = evaluation.make_eval_step(found, found.config, mesh())
    batches = found.eval_data(test=True)["dev"]
    report = evaluation.evaluate(found, step, state.variables, "dev", batches, mesh())
    scalars = report.scalars
    print(report.lines)
    assert scalars["mixtures"] == 12
    assert scalars["feature_error"] < 0.5 * scalars["given_feature_error"]
    assert scalars["noise_type_accuracy"] > 0.9
    assert scalars["alone_strength"] < 0.2 < 0.4 < scalars["strength"]
    assert scalars["alone_over_suppression"] < 0.1
    assert 0 < scalars["overlapped_share"] < 0.5
    rows = list(csv.DictReader(report.files["dev.csv"].splitlines()))
    errors_ = [float(row["error"]) for row in rows]
    assert np.mean(errors_) == pytest.approx(scalars["feature_error"], rel=1e-3)
    # Every recording fits: all have their words, 3 each; 1.0 to 1.4 s are 2 or 3 times 40 frames.
    assert scalars["wer_mixtures"] == 12
    assert sum(int(row["words"]) for row in rows) == 36
    wrong = sum(int(row["alone_word_errors"]) for row in rows)
    assert scalars["alone_wer"] == pytest.approx(wrong / 36)
    assert {row["target_said"] for row in rows} <= {"A B", "A B C"}
    assert any("WER without other voices: mixture " in line for line in report.lines)
    assert report.images["0/features"].shape[0] == 3 * 20 + 2 * 2


def test_without_other_voices_a_mixture_is_its_target(trained):
    task, _, _ = trained
    batch = {k: jnp.asarray(v) for k, v in next(iter(task.train_data())).items()}
    alone = jnp.arange(len(batch["mask"])) % 2 == 0
    found = jax.jit(task.parts_of)(batch, alone)
    np.testing.assert_allclose(found.mixture[::2], found.target[::2], atol=1e-5)
    assert found.mixture.shape == (8, 60, 20)
    for row in np.flatnonzero(batch["mask"]):
        frames = int(found.frames[row])
        assert (np.max(found.others[row, :frames]) > -5) == (row % 2 == 1)
        apart = np.abs(found.mixture - found.target)[row, :frames].mean()
        assert (apart > 0.1) == (row % 2 == 1)


def parts():
    """Two rows of four frames; the target talks in the first two, another voice in the third."""
    target = np.full((2, 4, 2), -10.0)
    target[:, :2] = 0.0
    others = np.full((2, 4, 2), -10.0)
    others[:, 2] = 1.0
    mixture = np.maximum(target, others)
    frames = np.array([4, 3])
    return lite_task.Parts(*(jnp.float32(x) for x in (mixture, target, others)), jnp.array(frames))


def test_measures_by_hand():
    given = parts()
    features, full = np.array(given.mixture), np.array(given.mixture)
    features[0, 0, 0] = -1.0  # 4.3 dB too low, in one of the four energies that count
    features[0, 1, 1] = -0.5
    full[:] -= 2.0
    strength = np.array([[0.0, 0.5, 1.0, 1.0], [0.3, 0.3, 0.3, 9.0]])
    logits = np.array([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]])
    state = network.State((), jnp.zeros(2))
    found = lite_task.Filtered(*(jnp.float32(x) for x in (features, full, logits, strength)), state)
    result = lite_evaluation.measures(given, found, jnp.array([True, False]))
    expected = {
        "given_error": 0.0,
        "error": (1.0 + 0.25) / 4,
        "full_error": 4.0,
        "given_over": 0.0,
        "over": 0.25,
        "full_over": 1.0,
    }
    for name, value in expected.items():
        assert result[name][0] == pytest.approx(value), name
        assert np.isnan(result[name][1]), name  # its target is absent
    np.testing.assert_allclose(result["strength"], [0.625, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(result["frames"], [4, 3])
    np.testing.assert_array_equal(result["overlapped"], [1, 1])
    np.testing.assert_array_equal(result["right"], [3, 2])
    np.testing.assert_array_equal(result["right_overlapped"], [1, 0])


def test_settings_that_cannot_be_are_said_before_data_are_opened(tmp_path):
    for change, message in (
        ({"cue.dropout": 0.1}, r"config\.cue\.dropout=0\.1, but"),
        ({"sight.lips": True}, r"config\.sight: config\.model\.kind=lite sees nothing"),
        ({"model.lite.alone": 2.0}, r"config\.model\.lite: alone=2\.0"),
        ({"loss.lite.alpha": 0.5}, r"config\.loss\.lite"),
        ({"suppression.beta": 1.0}, r"config\.suppression"),
        ({"modes": ("given", "none")}, r"config\.modes=.*: of given, given at least"),
    ):
        config = lite_config.get_config("debug")
        config.update_from_flattened_dict(change)
        with pytest.raises(errors.UserError, match=message):
            separation_task.make_task(workdir.freeze(config), tmp_path)
    task = make_task(tmp_path)
    with pytest.raises(errors.UserError, match="there are no attributions of it"):
        task.explanation  # noqa: B018


@pytest.fixture(scope="module")
def lite_folder(tmp_path_factory):
    """A network that was never trained, for the recogniser of `asr_folder`."""
    folder = tmp_path_factory.mktemp("lite")
    config = lite_config.get_config("debug")
    config.update({"ema_decay": 0.0})
    config = workdir.freeze(config)
    classes.write(voices.corpus(), folder)
    workdir.save_config(folder, "separation", config)
    task = separation_task.make_task(config, folder)
    state = task.create_state(jax.jit(task.init)(jax.random.key(1)))
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    state = parallel.place(state, mesh())
    saver.save(3, state, None, {**task.checkpoint_meta(), "evaluated": -1}, None)
    saver.close()
    return folder


def changed(folder, tmp_path, **settings):
    """The same run with other settings of suppression."""
    config = json.loads((folder / "config.json").read_text())
    config["config"]["suppression"].update(settings)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in folder.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_in_use_it_stands_in_front_of_a_recogniser(lite_folder, asr_folder, tmp_path):  # noqa: F811
    found, recogniser = filtering.load(lite_folder), asr.load(asr_folder)
    found.check(recogniser)
    cue = found.cue(noise(2.0, seed=5), 16000)
    audio = [noise(1.0, seed=2), noise(2.5, seed=3)]
    features = found.features_of(audio, cue)
    assert [x.shape for x in features] == [(100, 40), (250, 40)]
    state, parts = found.start(), []
    front_end = jax.jit(lambda x, n: network.features(x, n, found.sizes)[0])
    plain = front_end(audio[1][None], jnp.array([len(audio[1])]))
    for first in range(0, 250, 50):
        state, out = found.step(state, np.asarray(plain[:, first : first + 50]), cue)
        parts.append(out)
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[0], features[1], atol=1e-4)
    assert np.abs(features[1] - plain[0]).max() > 0.1
    none = filtering.load(changed(lite_folder, tmp_path, a=0.0, b=0.0))
    np.testing.assert_allclose(none.features_of(audio, cue)[1], plain[0], atol=1e-5)
    heard = recogniser.many(audio, lambda pieces: none.features_of(pieces, cue))
    assert [x.text for x in heard] == [x.text for x in recogniser.many(audio)]


def test_other_commands_say_which_is_its_own(lite_folder, asr_folder):  # noqa: F811
    with pytest.raises(errors.UserError, match=r"python -m separation\.transcribe is its command"):
        enhancer.load(lite_folder)
    with pytest.raises(errors.UserError, match="belongs to the task 'asr'"):
        filtering.load(asr_folder)


def test_a_recogniser_of_other_features_is_one_message(tmp_path, asr_folder):  # noqa: F811
    task = make_task(tmp_path, **{"judges.recogniser": str(asr_folder)})
    message = r"config\.judges\.recogniser=.*: sample_rate_hz is 16000 there, 8000 here, num_mels"
    with pytest.raises(errors.UserError, match=message):
        task.eval_data(test=True)


@pytest.mark.slow
def test_commands(tmp_path, asr_folder):  # noqa: F811
    """Training, evaluation with a recogniser, one voice's transcript."""
    run, own = tmp_path / "run", ("--config=configs/separation/lite.py:debug",)
    said = commands.run("separation.main", *own, f"--workdir={run}").stdout
    assert "dev noise type: right in " in said
    assert f"python -m separation.transcribe --workdir={run} --recogniser=ASR_DIR" in said
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["feature_loss"] < 0.8 * train[0]["feature_loss"]
    judge = f"--config.judges.recogniser={asr_folder}"
    said = commands.run(
        "separation.main", f"--workdir={run}", "--mode=evaluate", judge, "--config.suppression.b=1"
    ).stdout
    assert "dev WER with other voices: mixture " in said
    assert "dev with other voices: mean strength of suppression 0.9" in said
    audio = tmp_path / "a.wav"
    io.write_wav(audio, noise(3.0, seed=1), 16000)
    options = (f"--workdir={run}", f"--recogniser={asr_folder}", f"--enroll={audio}", audio)
    said = commands.run("separation.transcribe", *options).stdout
    assert said.startswith(f"{audio}\t3.00\t")
