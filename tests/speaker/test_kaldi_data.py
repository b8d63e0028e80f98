"""The speaker task on Kaldi data folders: of features, and of recordings."""

import jax
import kaldi_native_io
import numpy as np
import pytest
import soundfile

from common import errors, evaluation, metrics, parallel, trainer, workdir
from common.data import records
from configs.speaker import quickstart
from speaker import data
from speaker import task as speaker_task

RATE_HZ = 8000
SIZE = 12
SPEAKERS = ("ann", "bob", "cid", "dee")
IDS = {f"{name}-{i}": name for name in SPEAKERS for i in range(4)}


def make_task(config, folder):
    """The task with its data opened, as a training opens them."""
    task = speaker_task.make_task(config, folder)
    task.prepare()
    return task


def movement(key: str, frames: int) -> np.ndarray:
    """Features whose bands swing together as the speaker has it, about a mean that says nothing."""
    speaker, seed = SPEAKERS.index(IDS[key]), list(key.encode())
    shape = np.random.default_rng(speaker).normal(size=SIZE)
    rng = np.random.default_rng(seed)
    swing = rng.normal(size=(frames, 1)) * shape + 0.3 * rng.normal(size=(frames, SIZE))
    return (swing + 5 * rng.normal(size=SIZE)).astype(np.float32)


def lengths() -> dict[str, int]:
    return {key: 60 + 15 * (i % 4) for i, key in enumerate(IDS)}  # 60 to 105 frames


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`train`: features, whose halves are `part0` and `part1`; `wav`: recordings."""
    root = tmp_path_factory.mktemp("kaldi")
    (root / "train").mkdir()
    with kaldi_native_io.FloatMatrixWriter(
        f"ark,scp:{root}/train/feats.ark,{root}/train/feats.scp"
    ) as file:
        for key, frames in lengths().items():
            file.write(key, movement(key, frames))
    (root / "train" / "utt2spk").write_text("".join(f"{k} {s}\n" for k, s in IDS.items()))
    for number in range(2):
        part = root / f"part{number}"
        part.mkdir()
        for name in ("feats.scp", "utt2spk"):
            lines = (root / "train" / name).read_text().splitlines(keepends=True)
            (part / name).write_text("".join(lines[8 * number : 8 * number + 8]))
    (root / "wav").mkdir()
    with (root / "wav" / "wav.scp").open("w") as file:
        for key in IDS:
            rng = np.random.default_rng(list(key.encode()))
            soundfile.write(root / "wav" / f"{key}.wav", 0.1 * rng.normal(size=RATE_HZ), RATE_HZ)
            file.write(f"{key} {key}.wav\n")
    (root / "wav" / "utt2spk").write_text((root / "train" / "utt2spk").read_text())
    return root


def get_config(root, **changes):
    config = quickstart.get_config("debug")
    config.data.update({"kind": "kaldi", "root": str(root), "batch_rows": 8})
    config.data.update({"train": ("part0", "part1"), "eval": ("train",), "crop_seconds": 0.7})
    config.features.update({"kind": "given", "num_mels": SIZE})
    config.update_from_flattened_dict(changes)
    return workdir.freeze(config)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A task and its state after 60 steps on one device, with masks."""
    config = get_config(root, **{"augment.freq_masks": 1, "augment.freq_width": 3})
    task = make_task(config, tmp_path_factory.mktemp("run"))
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = parallel.place(task.create_state(jax.jit(task.init)(jax.random.key(0))), mesh)
    step = trainer.make_train_step(task, config, mesh)
    batches = iter(task.train_data())
    for _ in range(60):
        batch = next(batches)
        assert batch["features"].shape == (8, 70, SIZE)
        state, sums = step(state, parallel.global_batch(batch, mesh))
    return task, state, metrics.finalize(sums)


def test_it_learns_from_given_features(trained):
    task, state, sums = trained
    assert sums["accuracy"] > 0.9
    assert 8 * 0.60 <= sums["audio_seconds"] <= 8 * 0.70
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation.make_eval_step(task, task.config, mesh)
    batches = task.eval_data()["train"]
    report = evaluation.evaluate(task, step, state.variables, "train", batches, mesh)
    assert report.scalars["eer"] < 0.1
    assert "(24 target, 96 non-target trials)" in report.lines[0]


def test_given_features_are_normalised_and_their_padding_is_not_seen(trained):
    task, state, _ = trained
    features = movement("bob-1", 50)

    def embed(rows, size, shift=0.0):
        inputs = np.full((rows, size, SIZE), np.nan, np.float32)
        inputs[0, :50] = features + shift
        batch = {
            "features": inputs,
            "features_lengths": np.full(rows, 50, np.int32),
            "mask": np.arange(rows) == 0,
        }
        return np.asarray(jax.jit(task.eval_step)(state.variables, batch)[1]["embedding"])

    alone = embed(1, 50)
    scale = np.abs(alone).max()
    padded = embed(3, 80)
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-5 * scale)
    assert not padded[1:].any()
    # The mean over time goes; 3 in float32 leaves rounding.
    np.testing.assert_allclose(embed(1, 50, 3.0), alone, atol=1e-4 * scale)


def test_speakers_can_be_drawn_equally_from_features(root, tmp_path):
    config = get_config(root, **{"data.sampler": "speaker"})
    task = make_task(config, tmp_path)
    batches = iter(task.train_data())
    batch, other = next(batches), next(batches)
    both = np.concatenate([batch["label"], other["label"]])  # an epoch
    np.testing.assert_array_equal(np.bincount(both), [4, 4, 4, 4])
    ids = list(IDS)
    for row in range(8):
        key = ids[int(batch["index"][row])]
        assert task.classes[batch["label"][row]] == IDS[key]
        length = int(batch["features_lengths"][row])
        assert length == min(lengths()[key], 70)
        windows = np.lib.stride_tricks.sliding_window_view(movement(key, lengths()[key]), length, 0)
        same = windows.transpose(0, 2, 1) == batch["features"][row, :length]
        assert same.all((1, 2)).sum() == 1


def test_recordings_of_a_kaldi_folder_train(root, tmp_path):
    config = get_config(
        root,
        **{
            "features.kind": "log_mel",
            "data.train": ("wav",),
            "data.eval": ("wav",),
            "data.sample_rate_hz": RATE_HZ,
        },
    )
    task = make_task(config, tmp_path)
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = parallel.place(task.create_state(jax.jit(task.init)(jax.random.key(0))), mesh)
    step = trainer.make_train_step(task, config, mesh)
    batch = next(iter(task.train_data()))
    losses = []
    for _ in range(20):  # must fit one batch
        state, sums = step(state, parallel.global_batch(batch, mesh))
        losses.append(metrics.finalize(sums)["loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_frames_that_vad_names_are_kept(root, tmp_path):
    """Every third frame of each utterance, whole ones in evaluation and crops in training."""
    folder = tmp_path / "voiced"
    folder.mkdir()
    for name in ("feats.scp", "utt2spk"):
        (folder / name).write_text((root / "train" / name).read_text())
    where = f"ark,scp:{folder}/vad.ark,{folder}/vad.scp"
    with kaldi_native_io.FloatVectorWriter(where) as file:
        for key, frames in lengths().items():
            file.write(key, (np.arange(frames) % 3 == 0).astype(np.float32))
    changes = {"data.vad": "kaldi", "data.train": (str(folder),), "data.eval": ("voiced",)}
    changes |= {"data.min_seconds": 0.1}  # of what is kept
    config = get_config(tmp_path, **changes, **{"data.crop_seconds": 0.3})
    task = make_task(config, tmp_path / "run")
    ids, seen = list(IDS), 0
    for batch in task.eval_data()["voiced"]:
        for row in np.flatnonzero(batch["mask"]):
            key = ids[int(batch["index"][row])]
            expected = movement(key, lengths()[key])[::3]
            length = batch["features_lengths"][row]
            np.testing.assert_array_equal(batch["features"][row, :length], expected)
            seen += 1
    assert seen == 16
    batch = next(iter(task.train_data()))
    whole = np.array([lengths()[ids[i]] // 3 for i in batch["index"]])
    np.testing.assert_array_equal(batch["features_lengths"], np.minimum(whole, 30))


def test_pauses_are_left_out_of_recordings(tmp_path, caplog):
    """Two bursts with a pause between them, and a recording that holds no speech at all."""
    (tmp_path / "v").mkdir()
    parts = [(0.5, 0.1), (1.0, 1e-4), (0.5, 0.1)]
    for number, key in enumerate(("ann-0", "ann-1", "bob-0", "bob-1", "bob-2")):
        rng = np.random.default_rng(number)
        levels = np.repeat([level for _, level in parts], [int(s * RATE_HZ) for s, _ in parts])
        if key == "bob-2":
            levels[:] = 1e-4
        audio = levels * rng.normal(size=2 * RATE_HZ)
        soundfile.write(tmp_path / "v" / f"{key}.wav", audio, RATE_HZ, subtype="FLOAT")
        for name, value in (("wav.scp", f"{key}.wav"), ("utt2spk", key[:3])):
            with (tmp_path / "v" / name).open("a") as file:
                file.write(f"{key} {value}\n")
    config = get_config(
        tmp_path,
        **{
            "features.kind": "log_mel",
            "data.train": ("v",),
            "data.eval": ("v",),
            "data.sample_rate_hz": RATE_HZ,
            "data.vad": "energy",
            "data.max_bad_share": 0.5,
        },
    )
    task = make_task(config, tmp_path / "run")
    seen = {}
    for batch in task.eval_data()["v"]:
        for row in np.flatnonzero(batch["mask"]):
            length = int(batch["audio_lengths"][row])
            seen[int(batch["index"][row])] = length
            power = np.square(batch["audio"][row, :length].reshape(-1, 80)).mean(1)
            assert (power > 1e-4).mean() > 0.9
    assert seen.keys() == {0, 1, 2, 3}
    assert all(RATE_HZ <= length < 1.2 * RATE_HZ for length in seen.values())
    assert "bob-2: no speech in it" in caplog.text
    batch = next(iter(task.train_data()))
    lengths = batch["audio_lengths"][batch["mask"]]
    assert set(lengths.tolist()) == {round(0.7 * RATE_HZ)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment.noise.root": "n"}, "config.augment.noise.root: these change waveforms"),
        (
            {"augment.speeds": (1.0, 0.9), "augment.rir.root": "r"},
            "config.augment.rir.root, speeds: these change waveforms",
        ),
        ({"augment.rir.t60_seconds": (0.2, 0.4)}, "config.augment.rir.t60_seconds: these change"),
        ({"features.kind": "mfcc"}, "features.kind='mfcc' is unknown; choose log_mel or given"),
        ({"features.hop_ms": 0.0}, "hop_ms=0.0 must be positive"),
        ({"data.vad": "energy"}, "data.vad='energy': with .*kind=given choose one of none, kaldi"),
        (
            {"features.kind": "log_mel", "data.vad": "kaldi"},
            "data.vad='kaldi': with .*kind=log_mel choose one of none, energy, webrtc",
        ),
        ({"data.vad": "kaldi"}, "has no vad.scp, which config.data.vad=kaldi needs"),
        ({"data.kind": "librispeech"}, "given needs data with features: config.data.kind=kaldi"),
        ({"features.kind": "log_mel"}, "has no wav.scp. It holds features"),
    ],
)
def test_settings_that_exclude_each_other(root, tmp_path, changes, message):
    with pytest.raises(errors.UserError, match=message):
        make_task(get_config(root, **changes), tmp_path)
    assert not (tmp_path / "rejected.tsv").exists()  # said before the data were read


def test_features_of_another_size_are_named_before_training(root, tmp_path):
    config = get_config(root, **{"features.num_mels": 30})
    with pytest.raises(records.DataError, match="the 30 expected; the first is 'ann-0' with 12"):
        make_task(config, tmp_path)
    (tmp_path / "speakers.txt").write_text("ann\nbob\n")
    config = get_config(root, **{"features.normalize": "median"})
    with pytest.raises(errors.UserError, match=r"config.features: normalize='median'"):
        _ = speaker_task.make_task(config, tmp_path).model


def test_the_rate_of_what_recordings_are_made_of(root):
    assert data.sequence(get_config(root, **{"features.hop_ms": 12.5})) == ("features", 80.0)
    audio = get_config(root, **{"features.kind": "log_mel"})
    assert data.sequence(audio) == ("audio", 16000.0)
