"""The speaker task: crops, padding, devices, trials, and what it says of bad data."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from common import checkpoint, errors, metrics, parallel, starting, trainer, workdir
from common import evaluation as evaluation_lib
from common import state as state_lib
from common.data import buckets, classes, pipeline, records, speech, splits
from configs.speaker import quickstart
from speaker import data, embed, evaluation, head
from speaker import task as speaker_task
from tests.common import restoring, slopes

RATE_HZ = 16000
SPEAKERS = ("ann", "bob", "cid", "dee")
ROWS = 8


def voice(speaker: int, seconds: float, seed: int) -> np.ndarray:
    """A buzz with its own pitch and formant, and some noise."""
    rng = np.random.default_rng([speaker, seed])
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * (110 + 37 * speaker) * k * time) / k for k in range(1, 12))
    formant = np.sin(2 * np.pi * (600 + 500 * speaker) * time)
    return (0.1 * buzz + 0.1 * formant + 0.02 * rng.normal(size=len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus():
    """16 recordings of 0.6 to 2.1 s by four speakers."""
    rows = [
        {
            "id": f"{name}-{i}",
            "audio": voice(s, 0.6 + 0.5 * i, i),
            "sample_rate": RATE_HZ,
            "speaker": name,
        }
        for s, name in enumerate(SPEAKERS)
        for i in range(4)
    ]
    lengths = np.array([len(row["audio"]) for row in rows])
    source = records.RecordList("voices", tuple(rows))
    return splits.Split("train", source, records.Index(np.arange(len(rows)), lengths, RATE_HZ))


def make_task(corpus, tmp_path, **changes):
    config = quickstart.get_config("debug")
    config.data.update({"batch_rows": ROWS, "crop_seconds": 1.0})
    config.update_from_flattened_dict(changes)
    classes.write(corpus, tmp_path)
    parts = {"train": corpus, "dev": corpus}
    return speaker_task.SpeakerTask(workdir.freeze(config), tmp_path, parts)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A task and its state after 60 steps on one device."""
    task = make_task(corpus, tmp_path_factory.mktemp("task"))
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = parallel.place(task.create_state(jax.jit(task.init)(jax.random.key(0))), mesh)
    step = trainer.make_train_step(task, task.config, mesh)
    batches = iter(task.train_data())
    for _ in range(60):
        state, sums = step(state, parallel.global_batch(next(batches), mesh))
    return task, state, metrics.finalize(sums)


def test_it_tells_four_voices_apart(trained):
    task, state, sums = trained
    assert sums["accuracy"] > 0.9
    assert sums["margin"] == pytest.approx(0.2)
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation_lib.make_eval_step(task, task.config, mesh)
    report = evaluation_lib.evaluate(
        task, step, state.variables, "dev", task.eval_data()["dev"], mesh
    )
    assert report.scalars["eer"] < 0.05
    assert "dev EER" in report.lines[0]
    assert "(24 target, 96 non-target trials)" in report.lines[0]
    decide = report.meta
    assert (decide["p_target"], decide["trials"]) == (0.5, 120)
    # The ratios change sign where the two kinds of error are about as frequent.
    assert -decide["offset"] / decide["slope"] == pytest.approx(decide["eer_threshold"], abs=0.2)


def test_scores_that_say_nothing_are_not_calibrated(corpus, tmp_path, caplog):
    task = make_task(corpus, tmp_path)
    rows = {"index": np.arange(16), "mask": np.ones(16, bool), "embedding": np.ones((16, 3))}
    with caplog.at_level("INFO"):
        report = task.report("dev", [rows])
    assert report.meta == {}
    assert "The scores cannot be calibrated: the score is the same" in caplog.text


def test_the_best_checkpoint_is_that_of_the_lowest_eer(corpus, tmp_path):
    """Embeddings of random voices, of the speakers' own, and of something between them."""
    task = make_task(corpus, tmp_path)
    split, name, mode = task.best_metric
    noise = np.random.default_rng(0).normal(size=(16, 4))
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", keep_last=1, best_mode=mode)
    for step, share in enumerate((1.0, 0.0, 0.4), 1):
        voices = (1 - share) * np.repeat(np.eye(4), 4, axis=0) + share * noise
        rows = {"index": np.arange(16), "mask": np.ones(16, bool), "embedding": voices}
        score = task.report(split, [rows]).scalars[name]
        saver.save(step, restoring.make_state(step), None, {}, score)
    saver.close()
    loader = checkpoint.Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert (loader.steps(), loader.best_step()) == ([2, 3], 2)


def test_crops_are_stretches_of_the_recording(corpus, tmp_path):
    task = make_task(corpus, tmp_path)
    places = set()
    batches = iter(task.train_data())
    for _ in range(6):
        batch = next(batches)
        for row in np.flatnonzero(batch["mask"]):
            whole = corpus.source[int(batch["index"][row])]
            assert task.classes[batch["label"][row]] == whole["speaker"]
            length = batch["audio_lengths"][row]
            assert length == min(len(whole["audio"]), RATE_HZ)
            windows = np.lib.stride_tricks.sliding_window_view(whole["audio"], length)
            hits = np.flatnonzero((windows == batch["audio"][row, :length]).all(1))
            assert len(hits) == 1
            places.add(int(hits[0]))
    assert len(places) > 10


def test_the_seed_orders_the_crops(corpus, tmp_path):
    def first(seed):
        return next(iter(make_task(corpus, tmp_path, seed=seed).train_data()))

    zero, again, one = first(0), first(0), first(1)
    np.testing.assert_array_equal(zero["audio"], again["audio"])
    assert zero["index"].tolist() != one["index"].tolist()


def test_crops_are_the_same_for_any_host(corpus):
    """Two processes hold the halves of the rows of one."""
    crops = speech.SpeechCrops(corpus.source, corpus.index, np.arange(16, dtype=np.int32), RATE_HZ)
    shape = buckets.Bucket(ROWS, {"audio": RATE_HZ})
    sizes = {"audio": np.minimum((corpus.index.seconds * RATE_HZ).astype(int) + 1, RATE_HZ)}

    def stream(process, count):
        options = {"process_index": process, "process_count": count}
        return iter(pipeline.train_batches(crops, (shape,), sizes, seed=3, **options))

    whole, halves = stream(0, 1), [stream(0, 2), stream(1, 2)]
    for _ in range(5):
        batch, parts = next(whole), [next(half) for half in halves]
        for name in batch:
            both = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(batch[name], both)


def test_other_speeds_are_other_speakers(corpus, tmp_path):
    """A crop at speed 1.25 is the crop of 1.25 times its length, resampled, under its own class."""
    task = make_task(corpus, tmp_path, **{"augment.speeds": (1.0, 0.8, 1.25)})
    variables = jax.eval_shape(task.init, jax.random.key(0))
    assert variables["params"]["head"]["weights"].shape[0] == 12
    assert task.classes == SPEAKERS
    found = {}
    batches = iter(task.train_data())
    for _ in range(8):
        batch = next(batches)
        for row in np.flatnonzero(batch["mask"]):
            number, speaker = divmod(int(batch["label"][row]), 4)
            whole = corpus.source[int(batch["index"][row])]
            assert SPEAKERS[speaker] == whole["speaker"]
            speed = (1.0, 0.8, 1.25)[number]
            length = int(batch["audio_lengths"][row])
            assert abs(length - min(len(whole["audio"]) / speed, RATE_HZ)) <= 1
            # The pitch, whose harmonics are as strong as itself, is `speed` times as high.
            spectrum = np.abs(np.fft.rfft(batch["audio"][row, :length] * np.hanning(length)))
            pitch = np.argmax(spectrum > spectrum.max() / 2) * RATE_HZ / length
            assert pitch == pytest.approx((110 + 37 * speaker) * speed, abs=5)
            found.setdefault(number, []).append(speaker)
    assert set(found) == {0, 1, 2}
    for speeds in ((0.9, 1.0), (1.0, 1.0), (1.0, -1.0), ()):
        with pytest.raises(errors.UserError, match=r"the first one is 1.0"):
            _ = make_task(corpus, tmp_path, **{"augment.speeds": speeds}).model


def test_speakers_come_equally_often_whatever_they_recorded(corpus, tmp_path):
    """ann has four recordings and the others one each: by utterance she comes four times."""
    few = splits.Split(
        "train",
        corpus.source,
        records.Index(np.array([0, 1, 2, 3, 4, 8, 12]), corpus.index.lengths[:7], RATE_HZ),
    )
    counts = {}
    for sampler in ("utterance", "speaker"):
        task = make_task(few, tmp_path, **{"data.sampler": sampler})
        batches = iter(task.train_data())
        batch = next(batches)  # one epoch: 7 rows, or twice each speaker
        labels = batch["label"][batch["mask"]]
        counts[sampler] = np.bincount(labels, minlength=4).tolist()
        rows = batch["index"][batch["mask"]]
        names = [corpus.source[int(i)]["speaker"] for i in rows]
        assert task.names(rows) == [corpus.source[int(i)]["id"] for i in rows]
        assert names == [SPEAKERS[i] for i in labels]
        later = [next(batches) for _ in range(12)]
        seen = {int(i) for batch in later for i in batch["index"][batch["mask"]]}
        assert seen == {0, 1, 2, 3, 4, 8, 12}
    assert counts == {"utterance": [4, 1, 1, 1], "speaker": [2, 2, 2, 2]}
    with pytest.raises(errors.UserError, match="choose utterance or speaker"):
        make_task(few, tmp_path, **{"data.sampler": "chapter"}).train_data()


def test_long_recordings_give_their_first_seconds(corpus, tmp_path):
    task = make_task(corpus, tmp_path, **{"data.max_eval_seconds": 1.0})
    seen = []
    for batch in task.eval_data()["dev"]:
        for row in np.flatnonzero(batch["mask"]):
            whole = corpus.source[int(batch["index"][row])]["audio"]
            length = batch["audio_lengths"][row]
            assert length == min(len(whole), RATE_HZ)
            np.testing.assert_array_equal(batch["audio"][row, :length], whole[:length])
            seen.append(int(batch["index"][row]))
    assert sorted(seen) == list(range(16))


def test_a_padded_recording_has_the_embedding_that_it_has_alone(trained):
    task, state, _ = trained
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation_lib.make_eval_step(task, task.config, mesh)
    audio = voice(1, 0.9, 9)

    def embed(rows, size):
        batch = {
            "audio": np.full((rows, size), np.nan, np.float32),
            "audio_lengths": np.full(rows, len(audio), np.int32),
            "label": np.zeros(rows, np.int32),
            "mask": np.arange(rows) == 0,
            "index": np.arange(rows, dtype=np.int32),
        }
        batch["audio"][0, : len(audio)] = audio
        _, out = step(state.variables, parallel.global_batch(batch, mesh))
        return np.asarray(out["embedding"])

    alone, padded = embed(1, len(audio)), embed(3, 2 * len(audio))
    scale = np.abs(alone).max()
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-5 * scale)
    assert not padded[1:].any()


def test_a_step_on_four_devices_equals_one(corpus, tmp_path):
    task = make_task(corpus, tmp_path, **{"augment.freq_masks": 1, "augment.time_masks": 1})
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = next(iter(task.train_data()))
    results = []
    for devices in (1, 4):
        mesh = parallel.make_mesh(jax.devices()[:devices])
        step = trainer.make_train_step(task, task.config, mesh)
        state = parallel.place(task.create_state(variables), mesh)
        state, sums = step(state, parallel.global_batch(batch, mesh))
        kept = jax.device_get((state.model_state, state.params))
        results.append((metrics.finalize(sums), kept[0], kept[1]))
    (one, statistics, params), (four, statistics_four, params_four) = results
    for name in set(one) - {"audio_seconds"}:
        # Sums over rows in another order.
        np.testing.assert_allclose(one[name], four[name], rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        statistics,
        statistics_four,
    )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(params_four)):
        # Adam's first step is the sign of the gradient times the rate: one that is zero but for
        # rounding may point either way.
        assert np.mean(np.abs(a - b) > 1e-4) < 0.02


def few_steps(corpus, tmp_path, devices, **changes):
    """The state after three clipped steps, on the host, and the sums of the last."""
    changes = {"optimizer.name": "sgd", "optimizer.clip_norm": 0.5, "ema_decay": 0.9, **changes}
    task = make_task(corpus, tmp_path, **{"optimizer.warmup_steps": 1, **changes})
    mesh = parallel.make_mesh(jax.devices()[:devices])
    step = trainer.make_train_step(task, task.config, mesh)
    fresh = jax.jit(task.init)(jax.random.key(0))
    state = parallel.place(task.create_state(fresh), mesh, task.sharded)
    batches = iter(task.train_data())
    for _ in range(3):
        state, sums = step(state, parallel.global_batch(next(batches), mesh))
    return state, metrics.finalize(sums)


@pytest.fixture(scope="module")
def dense_steps(corpus, tmp_path_factory):
    return few_steps(corpus, tmp_path_factory.mktemp("dense"), 1)


@pytest.mark.parametrize(
    ("devices", "kind"), [(1, "shard_map"), (2, "pmap"), (4, "shard_map"), (8, "shard_map")]
)
def test_classes_split_over_devices_train_as_undivided_ones(
    corpus, tmp_path, dense_steps, devices, kind
):
    state, sums = few_steps(corpus, tmp_path, devices, **{"loss.sharded": True, "parallel": kind})
    weights = state.params["head"]["weights"]
    assert weights.shape[0] == head.SHARDS
    if kind == "shard_map":
        assert weights.addressable_shards[0].data.shape[0] == head.SHARDS // devices
        moments = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
            if "weights" in jax.tree_util.keystr(path)
        ]
        assert [m.addressable_shards[0].data.shape[0] for m in moments] == [128 // devices]
    other, other_sums = dense_steps
    for name in set(sums) - {"audio_seconds"}:
        np.testing.assert_allclose(sums[name], other_sums[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert sums["grad_norm"] > 0.5  # the gradients are clipped, all shares of them together

    def compare(a, b):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape[0:1] == (head.SHARDS,) and len(b) == len(SPEAKERS):
            a, rest = a[: len(b)], a[len(b) :]
            assert not rest.any()  # padding classes stay as they were
        # Biases before a batch norm have gradients that are zero but for rounding.
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)

    jax.tree.map(compare, (state.params, state.ema), (other.params, other.ema))


def test_classes_split_over_devices_move_to_other_devices(corpus, tmp_path):
    """Saved by eight devices, continued by two: the same state, differently laid out."""
    state, _ = few_steps(corpus, tmp_path, 8, **{"loss.sharded": True})
    task = make_task(corpus, tmp_path, **{"loss.sharded": True, "optimizer.name": "sgd"})
    task = dataclasses.replace(
        task, config=workdir.freeze({**task.config.to_dict(), "ema_decay": 0.9})
    )
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints")
    saver.save(3, state, None, {}, None)
    saver.wait()
    template = jax.eval_shape(task.create_state, jax.eval_shape(task.init, jax.random.key(0)))
    two = parallel.make_mesh(jax.devices()[:2])
    found, _ = saver.restore(template, two, None, task.sharded)
    saver.close()
    assert found.params["head"]["weights"].addressable_shards[0].data.shape[0] == 64
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state))
    three = parallel.make_mesh(jax.devices()[:3])
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints")
    with pytest.raises(errors.UserError, match=r"128 rows .* do not divide over 3 devices"):
        saver.restore(template, three, None, task.sharded)
    assert saver.steps() == [3]  # and it is not called damaged
    variables, _ = saver.load_variables(three)  # to embed, any number of devices will do
    saver.close()
    step = evaluation_lib.make_eval_step(task, task.config, three, sharded=())
    batch = next(iter(data.eval_batches(corpus, task.config)))
    batch = {name: np.concatenate([x[:1]] * 3) for name, x in batch.items()}
    _, out = step(variables, parallel.global_batch(batch, three))
    assert np.isfinite(np.asarray(out["embedding"])).all()


def saved(folder, task, seed=7):
    """A checkpoint of step 3 of a new state, as another run would have left it."""
    folder.mkdir(exist_ok=True)
    workdir.save_config(folder, "speaker", task.config)
    state = task.create_state(jax.jit(task.init)(jax.random.key(seed)))
    saver = checkpoint.Checkpointer(folder / "checkpoints")
    saver.save(3, state, None, task.checkpoint_meta(), None)
    saver.close()
    return jax.device_get(state.params)


def test_large_margin_training_starts_from_another_run(corpus, tmp_path):
    """Three speeds, then one: the encoder and the classes at speed 1 go on, moments start anew."""
    mesh = parallel.make_mesh(jax.devices()[:2])
    first = make_task(corpus, tmp_path, **{"augment.speeds": (1.0, 0.9, 1.1)})
    old = saved(tmp_path / "first", first)

    def start(task):
        return jax.device_get(starting.first_state(task, task.config, mesh))

    changes = {"init_from": str(tmp_path / "first"), "loss.margin": 0.5, "loss.sharded": True}
    begun = start(make_task(corpus, tmp_path, **changes))
    assert int(begun.step) == 0
    weights = begun.params["head"]["weights"]
    # The checkpoint's averaged variables, which at step 0 are the variables.
    np.testing.assert_array_equal(weights[:4], old["head"]["weights"][:4])
    assert weights.shape[0] == 128
    assert not weights[4:].any()
    jax.tree.map(np.testing.assert_array_equal, begun.params["encoder"], old["encoder"])
    few = splits.Split(
        "train", corpus.source, records.Index(np.arange(12), corpus.index.lengths[:12], RATE_HZ)
    )
    (tmp_path / "few").mkdir()
    other = start(make_task(few, tmp_path / "few", **(changes | {"loss.sharded": False})))
    assert other.params["head"]["weights"].shape[0] == 3
    assert not np.isin(other.params["head"]["weights"], weights).any()
    with pytest.raises(errors.UserError, match="these arrays differ") as told:
        start(make_task(corpus, tmp_path, **(changes | {"model.embedding_size": 8})))
    assert "config.init_from" in str(told.value)
    workdir.save_config(tmp_path / "few", "asr", first.config)
    with pytest.raises(errors.UserError, match="belongs to the task 'asr'"):
        start(make_task(corpus, tmp_path, init_from=str(tmp_path / "few")))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        # Rows of other centers or speeds are not the rows of these classes.
        ({"loss.sub_centers": 3}, {}),
        ({"augment.speeds": (1.0, 0.9, 1.1)}, {"loss.sub_centers": 3}),
        ({"loss.sharded": True}, {"augment.speeds": (1.0, 0.9, 1.1)}),
    ],
)
def test_class_weights_of_another_form_are_not_taken(corpus, tmp_path, first, then):
    old = saved(tmp_path / "first", make_task(corpus, tmp_path, **first))
    task = make_task(corpus, tmp_path, init_from=str(tmp_path / "first"), **then)
    mesh = parallel.make_mesh(jax.devices()[:1])
    begun = jax.device_get(starting.first_state(task, task.config, mesh).params)
    fresh = jax.device_get(jax.jit(task.init)(state_lib.stream_key(0, "init", 0)))["params"]
    np.testing.assert_allclose(begun["head"]["weights"], fresh["head"]["weights"], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, begun["encoder"], old["encoder"])


def test_no_message_between_devices_is_as_long_as_the_classes(corpus, tmp_path):
    """The step exchanges embeddings, a few numbers a row, and the encoder's gradients."""
    task = make_task(corpus, tmp_path, **{"loss.sharded": True})
    batch = next(iter(task.train_data()))
    (tmp_path / "speakers.txt").write_text("".join(f"{i:06d}\n" for i in range(100_000)))
    task = dataclasses.replace(task)
    mesh = parallel.make_mesh(jax.devices()[:4])
    template = jax.eval_shape(lambda: task.create_state(task.init(jax.random.key(0))))
    step = trainer.make_train_step(task, task.config, mesh)
    text = step.lower(template, batch).compile().as_text()
    longest = 0
    for line in text.splitlines():
        if re.search(r"= .*\b(all-gather|all-reduce|reduce-scatter|all-to-all)(-start)?\(", line):
            left = line.split("=", 1)[1].split("(", 1)[0] if "=(" not in line else line
            for shape in re.findall(r"[fsu]32\[([0-9,]*)\]", left):
                longest = max(longest, int(np.prod([int(n) for n in shape.split(",") if n])))
    encoder = sum(leaf.size for leaf in jax.tree.leaves(template.params["encoder"]))
    assert 0 < longest <= encoder + 100


def test_all_pairs_are_all_pairs():
    speakers = ["b", "a", "b", "a", "c"]
    found = evaluation.all_pairs(speakers, 100)
    pairs = list(zip(found.enrol_index.tolist(), found.test_index.tolist()))
    assert sorted(pairs) == [(i, j) for i in range(5) for j in range(i + 1, 5)]
    expected = [speakers[i] == speakers[j] for i, j in pairs]
    np.testing.assert_array_equal(found.is_target, expected)


def test_many_pairs_are_thinned_without_building_them():
    """2 * 10^10 pairs: only an enumeration by arithmetic can do this."""
    rng = np.random.default_rng(0)
    number = rng.integers(0, 1000, 200_000)
    found = evaluation.all_pairs([f"{i:04d}" for i in number], 10_000)
    assert found.is_target.sum() == 5000
    assert 9900 <= len(found.is_target) <= 10_000
    same = number[found.enrol_index] == number[found.test_index]
    np.testing.assert_array_equal(found.is_target, same)
    assert (found.enrol_index < found.test_index).all()
    assert len(np.unique(number[found.enrol_index[found.is_target]])) > 900
    assert len(set(zip(found.enrol_index.tolist(), found.test_index.tolist()))) == len(same)


def test_a_trial_list_is_used(trained, tmp_path, corpus):
    task, state, _ = trained
    lines = ["1 ann-0 ann-3", "1 bob-0 bob-2", "0 ann-1 bob-1", "0 cid-0 dee-3"]
    (tmp_path / "trials").write_text("\n".join(lines) + "\n")
    (tmp_path / "more.txt").write_text("bob-0 bob-1 target\nbob-0 ann-1 nontarget\n")
    lists = f"{tmp_path / 'trials'}, {tmp_path / 'more.txt'}"
    listed = make_task(corpus, tmp_path, **{"data.trials": lists})
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation_lib.make_eval_step(task, task.config, mesh)
    batches = listed.eval_data()["dev"]
    report = evaluation_lib.evaluate(listed, step, state.variables, "dev", batches, mesh)
    assert report.lines[0].startswith("dev trials: EER")
    assert "(2 target, 2 non-target trials)" in report.lines[0]
    assert "(1 target, 1 non-target trials)" in report.lines[1]
    assert {"eer", "more_eer", "more_min_dcf_0.01"} <= set(report.scalars)
    rows = [line.split() for line in report.files["dev.trials.scores"].splitlines()]
    assert [row[:2] for row in rows] == [line.split()[1:] for line in lines]
    assert [row[3] == "target" for row in rows] == [line[0] == "1" for line in lines]
    kinds = {kind: [float(r[2]) for r in rows if r[3] == kind] for kind in ("target", "nontarget")}
    assert min(kinds["target"]) > max(kinds["nontarget"])  # the EER above is 0
    twice = make_task(corpus, tmp_path, **{"data.trials": f"{lists},{tmp_path / 'more.txt'}"})
    with pytest.raises(errors.UserError, match="two trial lists of one name"):
        twice.trials("dev")


def test_scores_are_normalised_against_training_speakers(trained, tmp_path, corpus):
    """AS-norm in a loop, with the two nearest of three speakers; what is kept says the same."""
    _, state, _ = trained
    task = make_task(corpus, tmp_path, **{"data.cohort": 3})
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation_lib.make_eval_step(task, task.config, mesh)
    reports, embeddings = {}, {}
    for split, batches in task.eval_data().items():
        reports[split] = evaluation_lib.evaluate(task, step, state.variables, split, batches, mesh)
        for batch in batches:
            rows = jax.device_get(step(state.variables, parallel.global_batch(batch, mesh))[1])
            for place, row in zip(rows["index"][rows["mask"]], rows["embedding"][rows["mask"]]):
                embeddings[split, corpus.ids[place]] = row / np.linalg.norm(row)
    assert list(reports) == ["train-cohort", "dev"]
    assert reports["dev"].lines[0].startswith("dev AS-norm against 3 speakers: EER")
    cohort = [
        np.mean([row for (split, name), row in embeddings.items()
                 if split == "train-cohort" and name.startswith(speaker)], axis=0)
        for speaker in SPEAKERS[:3]
    ]  # fmt: skip
    cohort = [row / np.linalg.norm(row) for row in cohort]

    def expected(*pair):
        score = pair[0] @ pair[1]
        nearest = [np.sort([row @ other for other in cohort])[-2:] for row in pair]
        return np.mean([(score - n.mean()) / n.std() for n in nearest])

    fields = [line.split("\t") for line in reports["dev"].files["dev.scores"].splitlines()]
    rows = [[embeddings["dev", name] for name in line[:2]] for line in fields]
    found = np.array([float(line[2]) for line in fields])
    np.testing.assert_allclose(found, [expected(*pair) for pair in rows], rtol=2e-3, atol=2e-3)
    decision = embed.decision(reports["dev"].meta, "", reports["train-cohort"].meta["means"])
    again = [float(decision.scores(a[None], b[None])[0, 0]) for a, b in rows[:5]]
    np.testing.assert_allclose(again, found[:5], rtol=2e-3, atol=2e-3)
    with pytest.raises(errors.UserError, match="two speakers at least"):
        make_task(corpus, tmp_path, **{"data.cohort": 1}).eval_data()


def test_a_cohort_is_bounded_and_spread():
    speakers = np.repeat([f"s{i}" for i in range(6)], [1, 9, 2, 5, 3, 20])
    places = evaluation.cohort_places(speakers, 3)
    assert np.unique(speakers[places], return_counts=True)[1].tolist() == [1, 2, 3]
    assert set(speakers[places]) == {"s0", "s2", "s4"}
    assert len(evaluation.cohort_places(speakers, 100)) == 1 + 5 + 2 + 5 + 3 + 5


def test_a_trial_list_may_name_files(tmp_path, corpus):
    rows = tuple(row | {"path": f"wav/{row['id']}.wav"} for row in corpus.source)
    split = splits.Split("dev", records.RecordList("voices", rows), corpus.index)
    lines = ["1 wav/ann-0.wav wav/ann-3.wav", "0 wav/ann-1.wav wav/bob-1.wav"]
    (tmp_path / "trials").write_text("\n".join(lines) + "\n")
    found = evaluation.find_trials(split, str(tmp_path / "trials"), 10)["trials"]
    assert found.enrol_index.tolist() == [0, 1]
    assert found.test_index.tolist() == [3, 5]


def test_trials_that_the_data_contradict_or_do_not_have(tmp_path, corpus, caplog):
    lines = ["1 ann-0 bob-1", "0 ann-0 ann-1", "0 ann-0 eve-1"]
    (tmp_path / "trials").write_text("\n".join(lines) + "\n")
    listed = str(tmp_path / "trials")
    with pytest.raises(errors.UserError, match=r"eve-1.*allow_unknown_trials goes on"):
        evaluation.find_trials(corpus, listed, 10)
    found = evaluation.find_trials(corpus, listed, 10, allow_unknown=True)["trials"]
    assert found.kept.tolist() == [0, 1]
    assert "no intervals by speaker" in caplog.text
    embeddings = np.eye(16, 3, dtype=np.float32) + 1
    scalars, lines, *_ = evaluation.measure(
        embeddings, np.ones(16, bool), found, np.asarray(corpus.speakers)
    )
    assert "eer" in scalars
    assert "eer_low" not in scalars
    assert "[" not in lines[0]


def test_recordings_without_an_embedding_are_left_out(tmp_path, corpus):
    task = make_task(corpus, tmp_path)
    rows = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)

    def report(without):
        index = np.setdiff1d(np.arange(16), without)
        out = {"mask": np.ones(len(index), bool), "index": index, "embedding": rows[index]}
        return task.report("dev", [out])

    whole, part = report([]), report([3, 9])
    assert "left out" not in " ".join(whole.lines)
    assert "29 trials left out: recordings without an embedding" in part.lines[1]
    assert part.meta["trials"] == 16 * 15 // 2 - 29
    assert part.scalars["eer"] != whole.scalars["eer"]


def test_a_split_of_both_kinds_has_both_lists(tmp_path, corpus):
    for name in ("one", "two"):
        (tmp_path / name).write_text("1 ann-0 ann-1\n0 ann-0 bob-1\n")
    task = make_task(
        corpus,
        tmp_path,
        **{"data.trials": str(tmp_path / "one"), "data.test_trials": str(tmp_path / "two")},
        **{"data.test": ("dev",)},
    )
    assert list(task.trials("dev")) == ["one", "two"]


def test_bad_data_is_named(tmp_path, corpus):
    rows = tuple({k: v for k, v in row.items() if k != "speaker"} for row in corpus.source)
    nameless = splits.Split("train", records.RecordList("voices", rows), corpus.index)
    with pytest.raises(errors.UserError, match=r"voices: record 'ann-0' names no speaker"):
        classes.write(nameless, tmp_path)
    with pytest.raises(errors.UserError, match=r"speakers.txt cannot be read"):
        classes.read(tmp_path)
    with pytest.raises(errors.UserError, match="choose one of xvector, resnet, ecapa"):
        make_task(corpus, tmp_path, **{"model.kind": "dvector"}).init(jax.random.key(0))
    other = make_task(corpus, tmp_path)
    with pytest.raises(errors.UserError, match="other speakers"):
        other.check_checkpoint({"speakers": "0"})
    faster = make_task(corpus, tmp_path, **{"augment.speeds": (1.0, 1.1)})
    with pytest.raises(errors.UserError, match=r"speeds=\[1.0, 1.1\], not \[1.0\]"):
        other.check_checkpoint(faster.checkpoint_meta())
    three = splits.Split(
        "train",
        corpus.source,
        records.Index(np.arange(12), corpus.index.lengths[:12], RATE_HZ),
    )
    (tmp_path / "checkpoints" / "15").mkdir(parents=True)
    with pytest.raises(errors.UserError, match=r"lack 1 \(dee\) and have 0 new"):
        classes.write(three, tmp_path)
    assert classes.read(tmp_path) == SPEAKERS  # and nothing was written over it
    with pytest.raises(errors.UserError, match="'ann-0' names no speaker"):
        evaluation.find_trials(nameless, "", 100)
    alone = splits.Split(
        "dev", corpus.source, records.Index(np.arange(4), corpus.index.lengths[:4], RATE_HZ)
    )
    with pytest.raises(errors.UserError, match="6 of 6 trials are target trials"):
        evaluation.find_trials(alone, "", 100)
    with pytest.raises(errors.UserError, match="batch_rows=10 does not divide by 8"):
        make_task(corpus, tmp_path, **{"data.batch_rows": 10}).train_data()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("resnet", {"model.channels": 4, "model.depth": 18}),
        (
            "ecapa",
            {"model.channels": 16, "model.pooled_channels": 24, "model.pooling": "attentive"},
        ),
    ],
)
def test_every_kind_of_encoder_has_shapes(corpus, tmp_path, kind, changes):
    task = make_task(corpus, tmp_path, **{"model.kind": kind, **changes})
    variables = jax.eval_shape(task.init, jax.random.key(0))
    assert variables["params"]["head"]["weights"].shape == (4, 16)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.kind": "resnet", "model.channels": 4, "model.num_blocks": (1, 1)}
        | {"model.widths": (4, 6)},
    ],
    ids=["xvector", "resnet"],
)
def test_a_product_with_the_hessian(corpus, tmp_path, changes):
    """Through margins, pooling, and the convolutions that have gradients of their own."""
    task = make_task(corpus, tmp_path, **changes)
    off, skew = slopes.gaps(task, next(iter(task.train_data())))
    assert off < 1e-5
    assert skew < 1e-7
