"""The recogniser as a task: padding, devices, and that it can learn by heart."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr import data, model
from asr import task as asr_task
from asr import tokenizer as tokenizer_lib
from common import checkpoint, errors, evaluation, flops, metrics, parallel, trainer, workdir
from common.audio import io
from common.data import pipeline, records, splits
from configs.asr import quickstart
from tests.common import restoring, slopes

TEXTS = ("CAT", "DOG", "BIRD", "FISH", "CAT DOG", "BIRD", "DOG", "FISH CAT")
ROWS = len(TEXTS)


def make_task(tmp_path, **decoder):
    config = quickstart.get_config("debug")
    config.decoder.update(decoder)
    return task_of(config, tmp_path)


def task_of(config, tmp_path):
    wanted = tokenizer_lib.TokenizerConfig("char", 0, case="upper")
    tokenizer_lib.train_tokenizer(TEXTS, wanted, tmp_path / "tokenizer")
    return asr_task.AsrTask(workdir.freeze(config), tmp_path, {})


def make_batch(tokenizer, rows=range(ROWS), seconds=1.0):
    """Each text is a sequence of tones, one frequency a letter: enough to tell them apart."""
    size = int(16000 * seconds)
    batch = {
        "audio": np.zeros((len(rows), size), np.float32),
        "audio_lengths": np.zeros(len(rows), np.int32),
        "labels": np.zeros((len(rows), 10), np.int32),
        "labels_lengths": np.zeros(len(rows), np.int32),
        "mask": np.ones(len(rows), bool),
        "index": np.asarray(rows, np.int32),
    }
    for place, row in enumerate(rows):
        text = TEXTS[row]
        time = np.arange(1600) / 16000
        tones = [np.sin(2 * np.pi * (200 + 90 * (ord(c) - 64)) * time) for c in text]
        audio = 0.3 * np.concatenate(tones) + 0.01 * np.random.default_rng(row).normal(
            size=1600 * len(text)
        )
        ids = tokenizer.encode(text)
        batch["audio"][place, : len(audio)] = audio
        batch["audio_lengths"][place] = len(audio)
        batch["labels"][place, : len(ids)] = ids
        batch["labels_lengths"][place] = len(ids)
    return batch


def make_split(task):
    batch = make_batch(task.tokenizer)
    rows = [
        {"id": str(i), "audio": batch["audio"][i], "sample_rate": 16000, "text": text}
        for i, text in enumerate(TEXTS)
    ]
    index = records.Index(np.arange(ROWS), np.full(ROWS, 16000), 16000)
    return splits.Split("train", records.RecordList("tones", tuple(rows)), index)


def test_the_best_checkpoint_is_that_of_the_lowest_wer(tmp_path):
    """All words wrong, all right, some right."""
    task = make_task(tmp_path)
    task = dataclasses.replace(task, parts={"dev": make_split(task)})
    split, name, mode = task.best_metric
    batch = make_batch(task.tokenizer)
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", keep_last=1, best_mode=mode)
    for step, right in enumerate((0, ROWS, 3), 1):
        lengths = np.where(np.arange(ROWS) < right, batch["labels_lengths"], 0)
        rows = {"tokens": batch["labels"], "lengths": lengths}
        rows |= {"index": batch["index"], "mask": batch["mask"], "truncated": np.zeros(ROWS, bool)}
        score = task.report(split, [rows]).scalars[name]
        saver.save(step, restoring.make_state(step), None, {}, score)
    saver.close()
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert (loader.steps(), loader.best_step()) == ([2, 3], 2)


def test_a_split_named_by_its_folder_leaves_its_results_inside(tmp_path):
    """A Kaldi folder may lie anywhere; what is written of it may not."""
    task = make_task(tmp_path)
    task = dataclasses.replace(task, parts={"/corpus/dev": make_split(task)})
    out = {"tokens": np.zeros((ROWS, 1), np.int32), "lengths": np.zeros(ROWS, np.int32)}
    rows = {**out, "index": np.arange(ROWS), "mask": np.ones(ROWS, bool)}
    rows["truncated"] = np.zeros(ROWS, bool)
    report = task.report("/corpus/dev", [rows])
    evaluation.write_files(tmp_path / "results", report.files)
    (written,) = (tmp_path / "results").iterdir()
    assert written.name.startswith("corpus_dev")
    assert written.read_text().count("\n") == 1 + ROWS


def test_the_interval_of_a_report_draws_speakers_whole(tmp_path):
    """One speaker is always understood, the other never: drawn twice, either makes 0 or 100 %."""
    task = make_task(tmp_path)
    split, batch = make_split(task), make_batch(task.tokenizer)
    right = np.arange(ROWS) % 2 == 0
    rows = [{**row, "speaker": "ab"[i % 2]} for i, row in enumerate(split.source)]
    split = dataclasses.replace(split, source=records.RecordList("tones", tuple(rows)))
    task = dataclasses.replace(task, parts={"dev": split})
    found = {"tokens": batch["labels"], "lengths": np.where(right, batch["labels_lengths"], 0)}
    found |= {"index": batch["index"], "mask": batch["mask"], "truncated": np.zeros(ROWS, bool)}
    report = task.report("dev", [found])
    assert (report.scalars["wer_low"], report.scalars["wer_high"]) == (0.0, 1.0)
    assert "[0.00, 100.00 over 2 speakers]" in report.lines[0]


def test_the_seed_orders_the_batches(tmp_path):
    task = make_task(tmp_path)
    split = make_split(task)

    def first(seed):
        config = workdir.freeze({**task.config.to_dict(), "seed": seed})
        return next(iter(data.batches(split, task.tokenizer, config, train=True)))

    zero, again, one = first(0), first(0), first(1)
    assert zero["index"].tolist() == again["index"].tolist() != one["index"].tolist()


def test_an_epoch_has_every_recording_at_every_speed(tmp_path):
    """Each as long as it is played, no batch wider; a resumed stream goes on as it would have."""
    task = make_task(tmp_path)
    config = task.config.to_dict()
    config["augment"]["speeds"] = (0.9, 1.0, 1.25)
    config["data"] |= {"num_buckets": 3, "batch_seconds": 9.0}
    config = workdir.freeze(config)
    first, again = (
        iter(data.batches(make_split(task), task.tokenizer, config, train=True)) for _ in range(2)
    )
    batches = [next(first)]
    again.set_state(first.get_state())
    batches += [next(first) for _ in range(2)]
    seen = []
    for batch in batches:
        lengths = batch["audio_lengths"].tolist()
        assert set(lengths) == {batch["audio"].shape[1]}
        seen += zip(batch["index"].tolist(), lengths)
    assert sorted(seen) == sorted(itertools.product(range(ROWS), (17778, 16000, 12800)))
    for batch in batches[1:]:
        jax.tree.map(np.testing.assert_array_equal, batch, next(again))
    first.close(), again.close()


def test_silence_makes_recordings_longer_and_batches_no_longer_than_them(tmp_path):
    """Half of the recordings of an epoch have some, others in each."""
    task = make_task(tmp_path)
    config = task.config.to_dict()
    config["augment"]["silence"] = {"probability": 0.5, "seconds": 0.5}
    config["data"] |= {"num_buckets": 1, "batch_seconds": 12.0}
    stream = data.batches(make_split(task), task.tokenizer, workdir.freeze(config), train=True)
    seen, widths = [], set()
    with pipeline.opened(stream) as batches:
        while len(seen) < 8 * ROWS:
            batch = next(batches)
            real = batch["mask"]
            seen += zip(batch["index"][real].tolist(), batch["audio_lengths"][real].tolist())
            widths.add(batch["audio"].shape[1])
    assert len(seen) == 8 * ROWS
    for first in range(0, len(seen), ROWS):
        assert sorted(i for i, _ in seen[first : first + ROWS]) == list(range(ROWS))
    lengths = np.array([length for _, length in seen])
    assert (lengths.min(), widths) == (16000, {lengths.max()})
    # Four deviations of a binomial's share.
    assert abs((lengths > 16000).mean() - 0.5) < 4 * (0.25 / len(seen)) ** 0.5
    for i in range(ROWS):
        assert len({length for place, length in seen if place == i}) > 1


def test_a_report_says_what_it_is_over(tmp_path):
    """Of four recordings the first was rejected and the second could not be read any more."""
    names = ["absent.wav", "gone.wav", "c.wav", "d.wav"]
    rows = [{"id": n, "audio": str(tmp_path / n), "text": "CAT"} for n in names]
    for name in names[2:]:
        io.write_wav(tmp_path / name, np.full(16000, 0.1, np.float32), 16000)
    index = records.Index(np.arange(1, 4), np.full(3, 16000), 16000)
    split = splits.Split("dev", records.RecordList("four", rows), index)
    task = dataclasses.replace(make_task(tmp_path), parts={"dev": split})
    tokens = np.array([task.tokenizer.encode("CAT")] * 3, np.int32)
    outputs = {
        "tokens": tokens,
        "lengths": np.full(3, 3),
        "index": np.array([-1, 3, 2]),
        "mask": np.array([False, True, True]),
        "truncated": np.array([True, True, False]),
    }
    report = task.report("dev", [outputs])
    assert report.scalars["wer"] == 0.0
    lines = "\n".join(report.lines)
    assert "2 of 4 utterances scored; 1 rejected" in lines
    assert ", 1 not readable any more" in lines
    assert (report.scalars["utterances"], report.scalars["utterances_listed"]) == (2, 4)
    assert report.scalars["utterances_cut"] == 1  # of the real rows
    assert "1 with more than two labels a frame" in lines
    np.testing.assert_allclose(report.audio["audio"][0], 0.1, atol=1e-4)
    (tmp_path / "c.wav").unlink()
    assert task.report("dev", [outputs]).audio == {}


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    task = make_task(tmp_path_factory.mktemp("task"))
    variables = jax.jit(task.init)(jax.random.key(0))
    return task, variables


def evaluate(task, variables, batch, devices=1):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    step = evaluation.make_eval_step(task, task.config, mesh)
    sums, outputs = step(parallel.place(variables, mesh), parallel.global_batch(batch, mesh))
    sums = {name: value for name, value in sums.items() if name != task.work_metric}
    return metrics.finalize(sums), jax.device_get(outputs)


@pytest.mark.parametrize("blank_penalty", [0.0, 1.0])
def test_a_padded_row_is_worth_what_it_is_worth_alone(recogniser, blank_penalty):
    """With the penalty the untrained network writes as many labels as it may."""
    task, variables = recogniser
    if blank_penalty:
        task = make_task(task.workdir, blank_penalty=blank_penalty)
    whole, out = evaluate(task, variables, make_batch(task.tokenizer))
    alone = []
    for row in (0, 7):
        one = make_batch(task.tokenizer, rows=(row,), seconds=1.3)
        values, single = evaluate(task, variables, one)
        alone.append(values["loss"])
        count = int(single["lengths"][0])
        assert count == out["lengths"][row]
        np.testing.assert_array_equal(single["tokens"][0, :count], out["tokens"][row, :count])
    pair, _ = evaluate(task, variables, make_batch(task.tokenizer, rows=(0, 7)))
    # Losses of 10 to 100 nats in float32 whose sums run in another order.
    np.testing.assert_allclose(np.mean(alone), pair["loss"], rtol=1e-5)
    assert np.isfinite(whole["loss"])


def test_masked_rows_count_nothing(recogniser):
    task, variables = recogniser
    batch = make_batch(task.tokenizer)
    batch["mask"][4:] = False
    batch["audio"][4:] = np.nan
    masked, out = evaluate(task, variables, batch)
    four, _ = evaluate(task, variables, make_batch(task.tokenizer, rows=range(4)))
    np.testing.assert_allclose(masked["loss"], four["loss"], rtol=1e-5)
    assert not out["lengths"][4:].any()


def test_evaluation_on_eight_devices_equals_one(recogniser):
    task, variables = recogniser
    batch = make_batch(task.tokenizer)
    one, out_one = evaluate(task, variables, batch)
    eight, out_eight = evaluate(task, variables, batch, devices=8)
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(out_one["tokens"], out_eight["tokens"])


def train_step_sums(task, variables, devices):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    state = parallel.place(task.create_state(variables), mesh)
    step = trainer.make_train_step(task, task.config, mesh)
    batch = {**make_batch(task.tokenizer), **noise_and_rooms()}
    state, sums = step(state, parallel.global_batch(batch, mesh))
    sums = {name: value for name, value in sums.items() if name != task.work_metric}
    return metrics.finalize(sums), jax.device_get(state.params)


def noise_and_rooms():
    rng = np.random.default_rng(1)
    rooms = rng.normal(size=(ROWS, 800)) * np.exp(-np.arange(800) / 100)
    return {
        "noise": rng.normal(size=(ROWS, 4000)).astype(np.float32),
        "noise_lengths": np.full(ROWS, 4000, np.int32),
        "rir": rooms.astype(np.float32),
        "rir_lengths": np.full(ROWS, 800, np.int32),
    }


def test_noise_rooms_and_warps_reach_the_training_loss_only(recogniser):
    task, variables = recogniser
    config = quickstart.get_config("debug")
    config.augment.warps = (0.8, 1.25)
    distorted = task_of(config, task.workdir)
    batch = {**make_batch(task.tokenizer), "row": np.arange(ROWS, dtype=np.int32)}
    extra = noise_and_rooms()

    def loss(task, batch, train):
        key = jax.random.key(3)
        mesh = parallel.make_mesh(jax.devices()[:1])
        specs = (parallel.REPLICATED, parallel.ROWS)
        step = parallel.data_parallel(
            lambda v, b: (
                metrics.of_terms(task.loss(v, b, key, jnp.zeros((), jnp.int32), train=train)[0])[
                    "loss"
                ].total
            ),
            mesh,
            in_specs=specs,
            out_specs=parallel.REPLICATED,
        )
        return float(step(parallel.place(variables, mesh), parallel.global_batch(batch, mesh)))

    plain = loss(task, batch, True)
    warped = loss(distorted, batch, True)
    noisy = loss(distorted, {**batch, **extra}, True)
    assert len({round(value, 2) for value in (plain, warped, noisy)}) == 3
    assert loss(task, batch, False) == loss(distorted, {**batch, **extra}, False)


@pytest.mark.slow
def test_a_training_step_on_four_devices_equals_one(tmp_path):
    """With every distortion, dropout and variational noise all on."""
    config = quickstart.get_config("debug")
    config.augment.update({"freq_masks": 2, "time_masks": 2})
    config.augment.warps = (0.8, 1.25)
    config.encoder.dropout_rate = 0.1
    config.decoder.update({"noise_std": 0.05, "noise_start_step": 0})
    task = task_of(config, tmp_path)
    variables = jax.jit(task.init)(jax.random.key(0))
    one, params = train_step_sums(task, variables, 1)
    four, params_four = train_step_sums(task, variables, 4)
    for name in one:
        # Batch statistics and sums over rows in another order.
        np.testing.assert_allclose(one[name], four[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params_four)):
        # Adam's first step is the sign of the gradient times the rate: gradients that are zero but
        # for rounding may point either way, so compare all but a few.
        assert np.mean(np.abs(a - b) > 1e-4) < 0.02


def test_operations_of_the_whole_model(tmp_path):
    """Each kernel times the steps that it is applied to; the output layer at every node."""
    task = make_task(tmp_path, loss="transducer", ctc_weight=0.0)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    batch, key = make_batch(task.tokenizer), jax.random.key(0)
    traced = jax.make_jaxpr(lambda *x: task.loss(*x, key, 0, train=False)[0])(variables, batch)
    frames, outputs = 100, 10 + 1
    steps = {
        "encoder/block_0/conv_0": frames // 2,  # its stride is 2
        "encoder/block_1/conv_0": frames // 2,
        "encoder": frames // 4,  # after the last convolution of block 1
        "joint/encoder_projection": frames // 4,
        "joint/prediction_projection": outputs,
        "joint/kernel": frames // 4 * outputs,
        "prediction/lstm_0": outputs,
    }
    by_hand = frames * (512 // 2 + 1) * 40  # mel bands
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/se/" in name and name.endswith("kernel"):
            by_hand += leaf.size  # one mean a row
        # Depthwise filters of few taps are sums of shifted arrays.
        elif name.endswith("kernel") and "depthwise" not in name:
            by_hand += leaf.size * next(n for part, n in steps.items() if name.startswith(part))
    # So are means over true frames, here of the features and their squares; and, at each stride,
    # frames are counted in pairs.
    by_hand += 2 * frames * 40 + frames + frames + frames // 2
    assert flops.count(traced) == 2 * ROWS * by_hand


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["transducer", "ctc"])
def test_it_learns_eight_utterances_by_heart(tmp_path, loss):
    task = make_task(tmp_path, loss=loss)
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = parallel.place(task.create_state(jax.jit(task.init)(jax.random.key(0))), mesh)
    step = trainer.make_train_step(task, task.config, mesh)
    batch = parallel.global_batch(make_batch(task.tokenizer), mesh)
    for _ in range(500):
        state, sums = step(state, batch)
    assert metrics.finalize(sums)["loss"] < 1.0
    _, out = evaluate(task, state.variables, make_batch(task.tokenizer))
    assert task.texts(out) == list(TEXTS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"features.kind": "learned", "features.start": "random", "augment.warps": (0.8, 1.25)},
            "needs bands in the order of their frequencies",
        ),
        ({"augment.warps": (0.8,)}, "lowest and the highest"),
        ({"augment.warps": (1.25, 0.8)}, "lowest and the highest"),
        ({"features.rank": 24}, "features: rank=24 has no effect with kind='log_mel'"),
        ({"features.pooling": 2}, "features: pooling=2 has no effect with kind='log_mel'"),
        ({"features.rate": 0.1}, "features: rate=0.1 has no effect with kind='log_mel'"),
        ({"features.compat": "kaldi", "features.floor": 1e-5}, "no effect with compat='kaldi'"),
        (
            {
                "features.kind": "learned",
                "features.filters": "max_pooled",
                "features.compression": "pcen",
            },
            "compression='pcen' has no effect with filters='max_pooled'",
        ),
        (
            {"features.kind": "learned", "features.rate": 0.0, "features.frozen_steps": 9},
            "frozen_steps=9 has no effect with rate=0.0",
        ),
        ({"features.kind": "learned", "features.rate": -1.0}, "cannot be negative"),
        ({"features.kind": "learned", "features.filter_ms": 30.0}, "exceed the window of 400"),
        ({"features.normalize": "batch"}, "features: normalize='batch'"),
        (
            {"features.kind": "learned", "features.compat": "kaldi"},
            "features: compat='kaldi' has no effect with kind='learned'",
        ),
        ({"features.kind": "learned", "features.normalize": "running"}, "causal, batch"),
        ({"features.kind": "learned", "features.pooling": 3}, "does not divide the hop"),
        ({"encoder.causal": True}, "normalize='utterance' takes the whole recording"),
        ({"augment.speeds": (1.0, 0.0)}, "between 0.1 and 10"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_data_are_touched(tmp_path, changes, words):
    config = quickstart.get_config("debug")
    config.update_from_flattened_dict(changes)
    with pytest.raises(errors.UserError, match=words):
        asr_task.make_task(workdir.freeze(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_filter_bank_of_an_older_version_is_not_taken_for_one_of_this(tmp_path):
    config = quickstart.get_config("debug")
    config.features.kind = "learned"
    task = task_of(config, tmp_path)
    meta = task.checkpoint_meta()
    task.check_checkpoint(meta)
    old = {"tokenizer": meta["tokenizer"]}
    for meta in (old, {**old, "pools_energies": True}):
        with pytest.raises(errors.UserError, match=r"of an older version.*: train anew"):
            task.check_checkpoint(meta)
    make_task(tmp_path).check_checkpoint(old)


@pytest.mark.parametrize("rank", [0, 12])
def test_the_filters_have_a_rate_of_their_own(tmp_path, rank):
    """Frozen they stay to the bit; the widths beside them and the encoder move."""
    config = quickstart.get_config("debug")
    features = {"kind": "learned", "pool": "learned", "rank": rank, "num_mels": 40}
    config.features.update({**features, "rate": 0.5, "frozen_steps": 2})
    config.optimizer.warmup_steps = 1
    task = task_of(config, tmp_path)
    params = jax.jit(task.init)(jax.random.key(0))["params"]
    gradients = jax.tree.map(jnp.ones_like, params)
    tx, state = task.optimizer.tx, task.optimizer.tx.init(params)
    step = jax.jit(tx.update)
    for i in range(4):
        updates, state = step(gradients, state, params)
        bank = updates["filterbank"]
        rates = {name: float(jnp.abs(update).max()) for name, update in bank.items()}
        width = rates.pop("width")
        assert (width > 0) == (i > 0)
        for rate in rates.values():
            if i < 2:
                assert rate == 0.0
            else:
                # Weight decay, of matrices alone, is 1e-3 of the step here at most.
                assert rate == pytest.approx(0.5 * width, rel=0.02)


def test_warps_behind_the_bank_have_the_bands_of_log_mel(tmp_path):
    config = quickstart.get_config("debug")
    bands = model.front_end_config(config).centres_hz()
    config.features.kind = "learned"
    config.augment.warps = (0.8, 1.25)
    task = task_of(config, tmp_path)
    np.testing.assert_allclose(task.model.front_end.centres_hz(), bands)


@pytest.mark.parametrize("kind", ["log_mel", "learned"])
def test_a_causal_model_sees_no_later_audio(tmp_path, kind):
    config = quickstart.get_config("debug")
    config.encoder.causal = True
    config.features.update({"kind": kind, "normalize": "causal"})
    task = task_of(config, tmp_path)
    variables = jax.jit(task.init)(jax.random.key(0))

    @jax.jit
    def encode(audio):
        lengths, mask = jnp.full(1, 16000), jnp.ones(1, bool)
        options = {"train": False, "mask": mask, "method": "encode"}
        return task.model.apply(variables, audio, lengths, **options)[0]

    audio = 0.1 * np.random.default_rng(0).normal(size=(1, 16000)).astype(np.float32)
    before, after = encode(audio), encode(np.where(np.arange(16000) < 8000, audio, 0.0))
    # The frame at 440 ms sees what comes up to 465 ms, with the bank's pooling up to 472.5.
    np.testing.assert_allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert float(jnp.abs(before[:, 13] - after[:, 13]).max()) > 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder.loss": "rnnt"}, "choose transducer or ctc"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
        ({"encoder.conv": "magic"}, "config.encoder"),
    ],
)
def test_unknown_choices_are_named(tmp_path, changes, words):
    config = quickstart.get_config("debug")
    config.update_from_flattened_dict(changes)
    task = task_of(config, tmp_path)
    with pytest.raises(errors.UserError, match=words):
        task.init(jax.random.key(0))


def test_bfloat16_keeps_parameters_and_losses_in_float32(tmp_path):
    config = quickstart.get_config("debug")
    config.dtype = "bfloat16"
    task = task_of(config, tmp_path)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    batch = make_batch(task.tokenizer)
    found = jax.eval_shape(lambda v, b: task.loss(v, b, None, None, train=False), variables, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_evaluation_keeps_what_is_too_long_to_train_on(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = ["id\taudio\ttext\tsplit"]
    for split, seconds in (("train", 1.0), ("train", 3.0), ("dev", 1.0), ("dev", 3.0)):
        name = f"{split}{seconds:g}"
        audio = rng.normal(0, 0.1, int(16000 * seconds)).astype(np.float32)
        io.write_wav(tmp_path / f"{name}.wav", audio, 16000)
        rows.append(f"{name}\t{tmp_path / name}.wav\tCAT\t{split}")
    (tmp_path / "all.tsv").write_text("\n".join(rows) + "\n")
    config = make_task(tmp_path).config.to_dict()
    config["data"] |= {"kind": "manifest", "root": str(tmp_path / "all.tsv")}
    config["data"] |= {"train": ("train",), "eval": ("dev",), "max_bad_share": 0.9}
    config["data"] |= {"max_seconds": 2.0, "batch_seconds": 2.0}
    task = asr_task.make_task(workdir.freeze(config), tmp_path)
    assert task.train_split.ids == ["train1"]
    assert task.parts["dev"].ids == ["dev1", "dev3"]
    found = data.batches(task.parts["dev"], make_task(tmp_path).tokenizer, task.config, train=False)
    assert sum(int(batch["mask"].sum()) for batch in found) == 2
    monkeypatch.setattr(splits, "_WHOLE_SECONDS", 2)
    task = asr_task.make_task(workdir.freeze(config), tmp_path)
    with pytest.raises(records.DataError, match="dev: dev3 lasts 3 s; evaluation leaves nothing"):
        task.parts["dev"]


def test_recordings_to_evaluate_are_not_padded_to_a_few_long_ones(tmp_path):
    """Rows for eight devices: 16 of 1.5 s and 8 of 4 s, where one program takes 24 of 4 s."""
    task = make_task(tmp_path)
    lengths = np.tile([8_000, 24_000, 64_000], 8)
    rows = [
        {"id": str(i), "audio": np.full(n, 0.1, np.float32), "sample_rate": 16000, "text": "CAT"}
        for i, n in enumerate(lengths)
    ]
    index = records.Index(np.arange(24), lengths, 16000)
    split = splits.Split("dev", records.RecordList("long", rows), index)
    config = task.config.to_dict()
    config["data"] |= {"max_seconds": 1.5, "batch_seconds": 3.0}
    batches = list(data.batches(split, task.tokenizer, workdir.freeze(config), train=False))
    scored = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert sorted(scored) == list(range(24))
    assert sum(batch["audio"].size for batch in batches) == 16 * 24_000 + 8 * 64_000


def test_a_product_with_the_hessian(tmp_path):
    """Through transducer, CTC, LSTM and ContextNet; symmetric, because FastEmit, whose gradient is
    not that of its value, is for training alone."""
    task = make_task(tmp_path, fastemit=0.5)
    off, skew = slopes.gaps(task, make_batch(task.tokenizer, rows=range(2)))
    assert off < 1e-6
    assert skew < 1e-9
