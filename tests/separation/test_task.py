"""The separation task: it learns whom to extract, devices, cues that are hidden, and its report."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, evaluation, metrics, parallel, trainer, workdir
from common.data import classes, clips, examples
from configs.separation import quickstart
from separation import data, extraction, surroundings
from separation import task as separation_task
from tests.common import slopes
from tests.separation import voices

CHANGES = {
    "data.sample_rate_hz": voices.RATE_HZ,
    "data.crop_seconds": 0.6,
    "data.enrolment_seconds": 0.6,
    "data.max_eval_seconds": 0.8,
    "data.eval_batch_seconds": 6.4,
    "data.max_eval_mixtures": 0,
    "mixing.snr_db": (-1.0, 1.0),
    "mixing.absent": 0.2,
}

SIZES = {
    "quality": ("channels", "num_blocks", "bands", "hidden"),
    "voicefilter": ("num_fft", "channels", "last_channels", "lstm_size", "hidden_size"),
    "lite": ("num_mels", "lstm_size", "num_layers", "hidden_size"),
}


def make_task(folder, **changes) -> extraction.SeparationTask:
    config = quickstart.get_config("debug")
    config.update_from_flattened_dict({**CHANGES, **changes})
    found = voices.corpus()
    classes.write(found, folder)
    return extraction.SeparationTask(workdir.freeze(config), folder, {"train": found, "dev": found})


def mesh(devices: int):
    return parallel.make_mesh(jax.devices()[:devices])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A task and its state after 100 steps on one device."""
    task = make_task(tmp_path_factory.mktemp("task"))
    state = task.create_state(jax.jit(task.init)(jax.random.key(0)))
    state = parallel.place(state, mesh(1))
    step = trainer.make_train_step(task, task.config, mesh(1))
    batches = iter(task.train_data())
    for _ in range(100):
        state, _ = step(state, parallel.global_batch(next(batches), mesh(1)))
    return task, state


@pytest.fixture(scope="module")
def report(trained):
    task, state = trained
    step = evaluation.make_eval_step(task, task.config, mesh(1))
    batches = task.eval_data()["dev"]
    return evaluation.evaluate(task, step, state.variables, "dev", batches, mesh(1))


def test_it_learns_whom_to_extract(report):
    """Four voices in bands of their own: a mask is enough, if the cue says which."""
    assert report.scalars["si_sdri_median"] > 12
    assert report.scalars["wrong_speaker_rate"] < 0.1
    assert report.scalars["mixtures"] == 12
    assert "4 voices" in report.lines[0]
    rows = list(csv.DictReader(report.files["dev.csv"].splitlines()))
    assert len(rows) == 12
    assert {row["target"] for row in rows} == set(voices.corpus().ids)
    for row in rows:
        one, other = row["enrolment"], row["interferers"]
        assert one[:3] == row["speaker"] != other[:3]
        assert bool(row["si_sdri"]) == (row["present"] == "1")
    found = [float(row["si_sdri"]) for row in rows if row["si_sdri"]]
    assert 0 < len(found) < 12  # some targets are absent
    assert np.median(found) == pytest.approx(report.scalars["si_sdri_median"], abs=0.01)
    assert len(report.audio["0/extracted"][0]) == len(report.audio["0/mixture"][0])
    assert len(report.images) == 3
    height, width, _ = report.images["0/spectrograms"].shape
    assert height == 3 * (256 // 2 + 1) + 2 * 2  # frames of 32 ms at 8 kHz
    assert width == (len(report.audio["0/mixture"][0]) - 256) // 64 + 1


@pytest.fixture(scope="module")
def full(trained):
    """As --mode=evaluate."""
    task, state = trained
    step = evaluation.make_eval_step(task, task.config, mesh(1))
    batches = task.eval_data(test=True)["dev"]
    return evaluation.evaluate(task, step, state.variables, "dev", batches, mesh(1))


def test_each_mode_has_its_line_and_columns(report, full):
    """The same mixtures as in training's evaluations; here the loudest is known by its own sound,
    and hardly lost in a noisy enrolment."""
    assert report.scalars.keys() < full.scalars.keys()
    for name, value in report.scalars.items():
        if name != "audio_seconds_per_second":
            assert full.scalars[name] == pytest.approx(value, abs=1e-3, nan_ok=True), name
    words = [
        "with an enrolment: median ",
        "with another voice or noise in the enrolment: median ",
        "without one, of the loudest voice: median ",
        "self-enrolled, of the loudest voice: median ",
    ]
    for line, said in zip(full.lines, words):
        assert line.startswith(f"dev SI-SDRi {said}")
        assert ", below 0 dB " in line
    assert len([line for line in report.lines if " SI-SDRi " in line]) == 2
    assert "(12 mixtures, 4 voices)" in full.lines[3]
    rows = list(csv.DictReader(full.files["dev.csv"].splitlines()))
    for prefix in ("", "noisy_", "blind_", "self_"):
        filled = [row for row in rows if row[f"{prefix}si_sdri"]]
        if prefix in ("", "noisy_"):
            filled = [row for row in filled if row["present"] == "1"]
            assert len(filled) == sum(row["present"] == "1" for row in rows)
        gains = [float(row[f"{prefix}si_sdri"]) for row in filled]
        wrong = [float(row[f"{prefix}wrong_speaker"]) for row in filled]
        scalars = full.scalars
        assert np.median(gains) == pytest.approx(scalars[f"{prefix}si_sdri_median"], abs=0.01)
        assert np.mean(wrong) == pytest.approx(scalars[f"{prefix}wrong_speaker_rate"])
    for row in rows:
        # 0.8 s at most, of which an enrolment takes 0.576.
        alone = float(row["self_enrolment_seconds"]) > 0
        assert alone or row["self_si_sdri"] == row["blind_si_sdri"]
    print(full.lines, full.files["dev.csv"])
    assert 1 < full.scalars["noisy_si_sdri_median"] < full.scalars["si_sdri_median"] + 1


def test_an_enrolment_is_disturbed_by_somebody_who_is_not_in_the_mixture(tmp_path):
    task = make_task(tmp_path, **{"mixing.enrolment_snr_db": (3.0, 3.0)})
    drawn = data.full(task.parts["dev"], task.config, None)
    plain = task.drawn("dev")
    found = voices.corpus()
    for i in range(len(plain)):
        row, again = drawn.draw(i, None, {}), drawn.draw(i, None, {})
        np.testing.assert_array_equal(row["sources"], plain.draw(i, None, {})["sources"])
        np.testing.assert_array_equal(row["disturbed"], again["disturbed"])
        added = row["disturbed"] - row["enrolment"]
        ratio = np.sum(np.square(row["enrolment"])) / np.sum(np.square(added))
        assert 10 * np.log10(ratio) == pytest.approx(3.0, abs=0.01)
        here = {int(k) // 3 for k in (row["target_index"], *row["interferer_index"])}
        # Each voice is a band of its own.
        spectrum = np.abs(np.fft.rfft(added))
        place = np.argmax(spectrum) * voices.RATE_HZ / len(added)
        assert round((place - 500) / 800) not in here
    assert len(found.ids) == len(plain)
    noisy = surroundings.Surroundings(
        {"hiss": examples.Companion(clips.Hiss(), 1.0)}, {"hiss": (0.0, 0.0)}, voices.RATE_HZ
    )
    flat = data.full(task.parts["dev"], task.config, noisy)
    kinds = set()
    for i in range(len(plain)):
        row = flat.draw(i, None, {})
        spectrum = np.abs(np.fft.rfft(row["disturbed"] - row["enrolment"]))
        kinds.add(bool(spectrum.max() > 20 * np.median(spectrum)))
    assert kinds == {True, False}  # voices, and noise
    alone = dataclasses.replace(
        drawn, crops=dataclasses.replace(drawn.crops, labels=-np.ones(12, np.int32))
    )
    row = alone.draw(0, None, {})
    np.testing.assert_array_equal(row["disturbed"], row["enrolment"])


def test_another_enrolment_gives_the_other_voice(trained):
    task, state = trained
    one, other = (0.05 * x / np.std(x) for x in (voices.voice(0, 0.8, 7), voices.voice(3, 0.8, 8)))
    lengths = jnp.full(2, len(one))
    mixture = jnp.float32(np.stack([one + other] * 2))
    enrolments = jnp.float32(np.stack([voices.voice(0, 0.8, 9), voices.voice(3, 0.8, 9)]))
    found = jax.jit(
        lambda v: task.model.apply(
            v, mixture, lengths, enrolments, lengths, train=False, mask=lengths > 0
        )[0]
    )(state.variables)
    likeness = np.abs([[np.corrcoef(x, y)[0, 1] for y in (one, other)] for x in found])
    assert likeness[0, 0] > likeness[0, 1] + 0.3
    assert likeness[1, 1] > likeness[1, 0] + 0.3


def test_eight_devices_train_and_evaluate_as_one(trained, report):
    """Sums in another order, over one step: float32 to five digits."""
    task, state = trained
    batch = next(iter(task.train_data()))
    host = jax.device_get(state)
    states, losses = [], []
    for devices in (1, 8):
        start = parallel.place(host, mesh(devices))
        step = trainer.make_train_step(task, task.config, mesh(devices))
        after, sums = step(start, parallel.global_batch(batch, mesh(devices)))
        states.append(jax.device_get(after.params))
        losses.append(metrics.finalize(sums)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, many in zip(*map(jax.tree.leaves, states), strict=True):
        # An update of Adam hangs on the sign of a gradient that is all but 0.
        assert np.mean(np.abs(one - many) > 1e-5) < 0.01
    step = evaluation.make_eval_step(task, task.config, mesh(8))
    variables = parallel.place(host, mesh(8)).variables
    batches = task.eval_data()["dev"]
    found = evaluation.evaluate(task, step, variables, "dev", batches, mesh(8))
    for name in ("si_sdri_median", "si_sdri_mean", "blind_si_sdri_median"):
        assert found.scalars[name] == pytest.approx(report.scalars[name], abs=1e-3)


def test_without_a_cue_the_loudest_voice_is_the_target(tmp_path):
    """All cues hidden: enrolments are without effect, and so is the order of the voices."""
    task = make_task(tmp_path, **{"cue.dropout": 1.0, "mixing.absent": 0.5})
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = {k: jnp.asarray(v) for k, v in next(iter(task.train_data())).items()}
    batch["row"] = jnp.arange(len(batch["mask"]))

    @jax.jit
    def loss(batch):
        terms, _ = task.loss(variables, batch, jax.random.key(1), 0, train=True)
        return {name: (term.total, term.count) for name, term in terms.items()}

    def extraction(batch):
        return {k: v for k, v in loss(batch).items() if k != "speaker_loss"}

    found = extraction(batch)
    assert not batch["present"].all()
    assert found["si_sdr_loss"][1] == 2 * batch["mask"].sum()  # of those too whose target is absent
    others = {
        **batch,
        "enrolment": batch["enrolment"][:, ::-1],
        "sources": batch["sources"][:, :, ::-1],
        "present": ~batch["present"],
    }
    for name, values in extraction(others).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-5)


def test_each_mixture_of_a_training_batch_has_two_targets(tmp_path):
    """The loss of a batch is that of its mixtures with the target, and with the other voice."""
    task = make_task(tmp_path, **{"cue.dropout": 0.0, "mixing.absent": 0.3})
    batch = {k: jnp.asarray(v) for k, v in next(iter(task.train_data())).items()}
    batch["row"] = jnp.arange(len(batch["mask"]))
    both, rows = extraction.of_both(batch), len(batch["mask"])
    for name, values in batch.items():
        if name != "row":
            np.testing.assert_array_equal(both[name][:rows], values)
    np.testing.assert_array_equal(both["sources"][rows:, :, 0], batch["sources"][:, :, 1])
    np.testing.assert_array_equal(both["sources"].sum(2)[rows:], batch["sources"].sum(2))
    np.testing.assert_array_equal(both["enrolment"][rows:], batch["other_enrolment"])
    np.testing.assert_array_equal(both["speaker"][rows:], batch["other_speaker"])
    assert not batch["present"].all()
    assert both["present"][rows:].all()
    assert len(set(both["row"].tolist())) == 2 * rows


def test_nothing_behind_the_length_that_was_drawn_counts(tmp_path):
    """Loss and gradient of mixtures of drawn lengths are those with rubbish behind them, and those
    of shorter rows are what they are without the padding. Half of the enrolments are hidden, so
    that the loudest voice is looked for too."""
    task = make_task(tmp_path, **{"cue.dropout": 0.5, "mixing.shortest_seconds": 0.2})
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = {k: jnp.asarray(v) for k, v in next(iter(task.train_data())).items()}
    batch["row"] = jnp.arange(len(batch["mask"]))
    lengths = batch["sources_lengths"]
    real = jnp.flatnonzero(batch["mask"])
    drawn = lengths[real]
    assert 1600 <= drawn.min() < drawn.max() <= 4800 == batch["sources"].shape[1]

    def terms_of(params, batch):
        state = {**variables, "params": params}
        found, _ = task.loss(state, batch, jax.random.key(1), 0, train=True)
        totals = {name: (term.total, term.count) for name, term in found.items()}
        return sum(term.weight * term.total / term.count for term in found.values()), totals

    slopes_of = jax.jit(jax.value_and_grad(terms_of, has_aux=True))

    def both(batch):
        (_, totals), slope = slopes_of(variables["params"], batch)
        return totals, slope

    behind = jnp.arange(batch["sources"].shape[1])[None, :] >= lengths[:, None]
    rubbish = jnp.where(behind[:, :, None], jnp.array([7.0, -50.0]), batch["sources"])
    (found, slope), (other, other_slope) = both(batch), both({**batch, "sources": rubbish})
    assert jnp.any(rubbish != batch["sources"])
    jax.tree.map(np.testing.assert_array_equal, (found, slope), (other, other_slope))
    # The shorter ones, alone: the numbers of a sum in another order.
    short = real[jnp.argsort(drawn)[:3]]
    rows = {name: values[short] for name, values in batch.items()}
    cut = {**rows, "sources": rows["sources"][:, : int(lengths[short].max())]}
    padded, alone = both(rows)[0], both(cut)[0]
    for name, values in padded.items():
        np.testing.assert_allclose(alone[name], values, rtol=1e-5)


def test_another_run_gives_its_network_and_only_the_same_speakers_their_weights(tmp_path):
    task = make_task(tmp_path)
    fresh, found = (jax.jit(task.init)(jax.random.key(seed)) for seed in (0, 1))
    own = task.checkpoint_meta()
    for meta, speakers in ((own, found), ({**own, "speakers": "others"}, fresh)):
        adopted = task.adopt(fresh, found, meta)["params"]
        for name, tree in adopted.items():
            expected = (speakers if name == "speakers" else found)["params"][name]
            jax.tree.map(np.testing.assert_array_equal, tree, expected)
    with pytest.raises(errors.UserError, match="trained on other speakers"):
        task.check_checkpoint(meta)
    with pytest.raises(errors.UserError, match=r"augment.speeds=\[1.0, 0.9\], not \[1.0\]"):
        task.check_checkpoint({**own, "speeds": [1.0, 0.9]})


def outputs(**changes) -> dict:
    """Four mixtures: one well done, one failed, one of the wrong speaker, one without target."""
    ratios = {"mixture_si_sdr": [[0.0, 0]] * 4, "blind_si_sdr": [[1, 2]] * 4}
    given = {
        **ratios,
        "si_sdr": [[10.0, -9], [-1, -8], [-6, 5], [0, 3]],
        "index": [0, 3, 6, 9],
        "mask": [True] * 4,
        "present": [True, True, True, False],
        "noisy": [False, True, True, False],
        "snr_db": [1.0, -4.0, -1.0, 0.0],
        "target_index": [0, 3, 6, 9],
        "enrolment_index": [1, 4, 7, 10],
        "interferer_index": [[3], [0], [0], [0]],
        "loudest": [0, 1, 0, 1],
        "level_db": [0.0, 0.0, 0.0, -20.0],
        "seconds": [1.0] * 4,
    }
    return {name: np.array(values) for name, values in {**given, **changes}.items()}


def test_the_report_counts_failures_and_wrong_speakers_of_those_present(tmp_path):
    task = make_task(tmp_path)
    found = task.report("dev", [outputs()])
    expected = {
        "mixtures": 4,
        "si_sdri_median": -1.0,
        "si_sdri_mean": 1.0,
        "failure_rate": 2 / 3,
        "wrong_speaker_rate": 1 / 3,
        "blind_si_sdri_median": 1.5,
        "absent_level_db_median": -20.0,
    }
    for name, value in expected.items():
        assert found.scalars[name] == pytest.approx(value), name
    assert (found.scalars["si_sdri_median_low"], found.scalars["si_sdri_median_high"]) == (-6, 10)
    groups = list(csv.DictReader(found.files["dev_groups.csv"].splitlines()))
    assert [(g["kind"], g["group"], g["mixtures"]) for g in groups] == [
        ("SNR", "-5 to -2.5 dB", "1"),
        ("SNR", "-2.5 to 0 dB", "1"),
        ("SNR", "0 to 2.5 dB", "1"),
        ("enrolment", "clean", "1"),
        ("enrolment", "noisy", "2"),
    ]
    assert [g["failure_rate"] for g in groups] == ["1", "1", "0", "0", "1"]
    assert groups[-1]["median"] == "-3.5"
    assert groups[-1]["wrong_speaker_rate"] == "0.5"
    assert "dev SNR 0 to 2.5 dB: median 10.0 dB" in "\n".join(found.lines)
    with_bss = outputs(sdr=[9.0, 1, 2, np.nan], sir=[1.0] * 4, sar=[2.0] * 4)
    found = task.report("dev", [with_bss])
    assert (found.scalars["sdr_median"], found.scalars["sar_median"]) == (2.0, 2.0)
    assert "sdr,sir,sar" in found.files["dev.csv"]


def test_noise_is_no_speaker(tmp_path):
    """A column more than there are voices: nearer to it than to the target is not the wrong one."""
    far = outputs()
    noise = np.full((4, 1), 20.0)
    far |= {n: np.hstack([far[n], noise]) for n in ("si_sdr", "mixture_si_sdr", "blind_si_sdr")}
    found, without = (make_task(tmp_path).report("dev", [x]).scalars for x in (far, outputs()))
    assert found == without


def test_settings_that_cannot_be_are_said_before_data_are_opened(tmp_path):
    for change, message in (
        ({"mixing.overlap": (0.0, 1.0)}, r"config\.mixing\.overlap"),
        ({"loss.si_sdr": -1.0}, r"config\.loss"),
        ({"modes": ("given", "loud")}, r"config\.modes=\('given', 'loud'\): of given, noisy"),
        ({"model.kind": "large"}, r"config\.model\.kind='large' is unknown"),
        ({"data.crop_seconds": 0.0}, r"config\.data\.crop_seconds=0\.0 has to be above 0"),
        ({"data.batch_rows": -8}, r"config\.data\.batch_rows=-8 has to be above 0"),
        ({"mixing.shortest_seconds": 2.0}, r"shortest_seconds=2 is 0 .* from 0\.1 to .*=1\."),
        ({"mixing.shortest_seconds": -1.0}, r"config\.mixing\.shortest_seconds=-1 is 0"),
        ({"cue.dropout": 5.0}, r"config\.cue\.dropout=5\.0 is a share"),
        ({"cue.size": 0}, r"config\.cue\.size=0"),
        ({"cue.channels": 0}, r"config\.cue\.channels=0 has to be 1 at least"),
        ({"cue.num_mels": -1}, r"config\.cue\.num_mels=-1 has to be 1 at least"),
        ({"model.causal.cycle": 0}, r"config\.model\.causal: features=32, .* cycle=0 have to be"),
        *(
            (
                {"model.kind": kind, f"model.{kind}.{name}": 0},
                rf"model\.{kind}: .*{name}=0.* have to",
            )
            for kind, names in SIZES.items()
            for name in names
        ),
        (
            {"model.kind": "lite", "model.lite.convs": ((3, 0),)},
            r"config\.model\.lite: convs=\(\(3, 0\),\): taps and channels have to be 1",
        ),
        (
            {"model.kind": "voicefilter", "model.voicefilter.hop_ms": 0.0},
            r"config\.model\.voicefilter: need 0 < window_size <= num_fft and hop_size > 0",
        ),
        ({"model.causal.hop_ms": 0.01}, r"config\.model\.causal: need .* hop_size > 0"),
    ):
        config = quickstart.get_config("debug")
        config.update_from_flattened_dict(change)
        with pytest.raises(errors.UserError, match=message):
            separation_task.make_task(workdir.freeze(config), tmp_path)
    wrong = {"augment.hiss.probability": 0.5, "augment.hiss.snr_db": (9.0, 3.0)}
    with pytest.raises(errors.UserError, match=r"config\.augment\.hiss\.snr_db=\(9\.0, 3\.0\)"):
        make_task(tmp_path, **wrong).prepare()
    with pytest.raises(errors.UserError, match="4 speaker"):
        make_task(tmp_path, **{"mixing.interferers": (1, 4)}).prepare()


def test_a_product_with_the_hessian(tmp_path):
    """Through the causal network, compressed spectra, SI-SDR and the speakers of the cues."""
    task = make_task(tmp_path)
    off, skew = slopes.gaps(task, next(iter(task.train_data())))
    assert off < 1e-5
    assert skew < 1e-7
