"""wespeaker's checkpoints: a file that it wrote, and its networks in NumPy under its names."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from common import checkpoint, errors, parallel, starting, trained, workdir
from common.analysis import explaining
from configs.speaker import quickstart
from speaker import embed, model, wespeaker
from speaker import task as speaker_task
from tests import commands

# Its class XVEC(8, 4, 6, 5) with random weights, saved by PyTorch 2.13 with a projection.
PUBLISHED = pathlib.Path(__file__).parent / "data" / "wespeaker_xvec"
# What it makes of `recordings()` with the features of its command line (torchaudio).
EMBEDDINGS = [
    [-1.1543028354644775, -0.1208454966545105, 0.9147175550460815, -0.626966655254364],
    [-0.9113469123840332, -0.4601995348930359, 1.4315985441207886, -0.8447427153587341],
    [-1.0147143602371216, -0.1197693943977356, 0.789211630821228, -0.6181344389915466],
]


def recordings():
    rng = np.random.default_rng(0)
    return [rng.integers(-8000, 8000, n).astype(np.int16) for n in (16000, 9000, 24000)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "run"
    config, variables = wespeaker.convert(*wespeaker.read(PUBLISHED))
    wespeaker.write(folder, config, variables)
    return folder


def test_embeddings_are_those_of_wespeaker(converted):
    """From samples to embeddings, alone and in a padded batch."""
    network = embed.Embedder(converted)
    audio = [pcm.astype(np.float32) / 32768 for pcm in recordings()]
    alone = network.embed(audio[1], 16000)
    together = network.embed_loaded(audio)
    # Log-mels differ by up to 1e-4 (its mel filters have float32 corners, cf. test_kaldi.py), and
    # normalisation divides by small deviations of noise.
    np.testing.assert_allclose(together[:, :4], EMBEDDINGS, atol=5e-5)
    np.testing.assert_allclose(alone[:4], EMBEDDINGS[1], atol=5e-5)
    np.testing.assert_allclose(alone, together[1], atol=1e-5)
    assert network.decision is None  # the checkpoint says nothing of a calibration


def test_of_no_classes_attributions_explain_a_cosine(converted):
    task = trained.load(speaker_task.PACKAGE, converted).task
    assert explaining.find_target(task, "")[0] == "cosine"
    with pytest.raises(errors.UserError, match=r"choose cosine \("):
        explaining.find_target(task, "speaker")


def test_a_run_starts_from_it_with_speakers_of_its_own(converted, tmp_path):
    saved = workdir.load_config(converted, "speaker", speaker_task.PACKAGE.default_config())
    config = quickstart.get_config("debug")
    config.update({"features": saved.features, "model": saved.model})
    config.init_from = str(converted)
    (tmp_path / "speakers.txt").write_text("ann\nbob\ncid\n")
    task = speaker_task.SpeakerTask(workdir.freeze(config), tmp_path, {})
    mesh = parallel.make_mesh(jax.devices()[:1])
    state = starting.first_state(task, task.config, mesh)
    loader = checkpoint.Checkpointer(converted / "checkpoints", read_only=True)
    found, _ = loader.load_variables(mesh)
    loader.close()
    same = jax.tree.map(np.array_equal, state.params["encoder"], found["params"]["encoder"])
    assert all(jax.tree.leaves(same))
    assert state.params["head"]["weights"].shape == (3, 5)
    assert "head" not in found["params"]  # the projection, of speakers without names


def test_the_command_says_what_stands_in_the_way(converted, tmp_path):
    there = commands.message("speaker.wespeaker", PUBLISHED, f"--workdir={converted}")
    assert "is a work directory already" in there
    none = commands.message("speaker.wespeaker", tmp_path, f"--workdir={tmp_path / 'run'}")
    assert "avg_model.pt is not there" in none
    shutil.copy(PUBLISHED / "avg_model.pt", tmp_path)
    (tmp_path / "config.yaml").write_text("model: [")
    broken = commands.message("speaker.wespeaker", tmp_path, f"--workdir={tmp_path / 'run'}")
    assert "config.yaml cannot be read" in broken
    assert not (tmp_path / "run").exists()


# wespeaker's networks, with the frequencies before the frames: [c, t] or [c, f, t].


class Random(dict):
    """A state dict of random arrays, made by name."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def affine(self, name, *shape, bias=True):
        scale = 1.2 / np.sqrt(np.prod(shape[1:]))
        self[f"{name}.weight"] = (scale * self.rng.standard_normal(shape)).astype(np.float32)
        if bias:
            self[f"{name}.bias"] = 0.3 * self.rng.standard_normal(shape[0]).astype(np.float32)

    def norm(self, name, size):
        self[f"{name}.weight"] = self.rng.uniform(0.5, 1.5, size).astype(np.float32)
        self[f"{name}.bias"] = 0.3 * self.rng.standard_normal(size).astype(np.float32)
        self[f"{name}.running_mean"] = 0.3 * self.rng.standard_normal(size).astype(np.float32)
        self[f"{name}.running_var"] = self.rng.uniform(0.5, 2.0, size).astype(np.float32)
        self[f"{name}.num_batches_tracked"] = np.array(7)


def normalized(state, name, x):
    def over(part):
        return state[f"{name}.{part}"].reshape(-1, *[1] * (x.ndim - 1))

    x = (x - over("running_mean")) / np.sqrt(over("running_var") + 1e-5)
    return x * over("weight") + over("bias")


def linear(state, name, x):
    return state[f"{name}.weight"].reshape(-1, x.shape[0]) @ x + state[f"{name}.bias"].reshape(
        -1, *[1] * (x.ndim - 1)
    )


def conv1d(state, name, x, dilation=1):
    weight, frames = state[f"{name}.weight"], x.shape[1]
    half = dilation * (weight.shape[2] // 2)
    padded = np.pad(x, ((0, 0), (half, half)))
    taps = [padded[:, i * dilation :][:, :frames] for i in range(weight.shape[2])]
    return sum(weight[:, :, i] @ tap for i, tap in enumerate(taps)) + state[f"{name}.bias"][:, None]


def conv2d(state, name, x, stride):
    weight = state[f"{name}.weight"]
    half, size = weight.shape[2] // 2, weight.shape[2]
    padded = np.pad(x, ((0, 0), (half, half), (half, half)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("cftab,ocab->oft", seen[:, ::stride, ::stride], weight)


BLOCKS = (2, 2, 2, 2)  # ResNet18


def resnet18(width, features, size):
    state, widths = Random(0), [width * 2**i for i in range(4)]
    state.affine("conv1", width, 1, 3, 3, bias=False)
    state.norm("bn1", width)
    before = width
    for stage, out in enumerate(widths, start=1):
        for i in range(BLOCKS[stage - 1]):
            name = f"layer{stage}.{i}"
            for j, c in ((1, before), (2, out)):
                state.affine(f"{name}.conv{j}", out, c, 3, 3, bias=False)
                state.norm(f"{name}.bn{j}", out)
            if before != out:
                state.affine(f"{name}.shortcut.0", out, before, 1, 1, bias=False)
                state.norm(f"{name}.shortcut.1", out)
            before = out
    state.affine("seg_1", size, 2 * before * features // 8)
    return state


def resnet18_forward(state, features):
    x = np.maximum(normalized(state, "bn1", conv2d(state, "conv1", features.T[None], 1)), 0)
    for stage in range(1, 5):
        for i in range(BLOCKS[stage - 1]):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = normalized(state, f"{name}.bn1", conv2d(state, f"{name}.conv1", x, stride))
            y = conv2d(state, f"{name}.conv2", np.maximum(y, 0), 1)
            if stride > 1:
                x = conv2d(state, f"{name}.shortcut.0", x, stride)
                x = normalized(state, f"{name}.shortcut.1", x)
            x = np.maximum(normalized(state, f"{name}.bn2", y) + x, 0)
    mean, std = x.mean(-1).ravel(), np.sqrt(x.var(-1, ddof=1) + 1e-7).ravel()
    return linear(state, "seg_1", np.concatenate([mean, std]))


def ecapa(channels, features, pooled, size):
    """With attention that sees the utterance (GLOB) and a norm of the embedding."""
    state, width = Random(1), channels // 8
    state.affine("layer1.conv", channels, features, 5)
    state.norm("layer1.bn", channels)
    for i in (2, 3, 4):
        name = f"layer{i}.se_res2block"
        for j in (0, 2):
            state.affine(f"{name}.{j}.conv", channels, channels, 1)
            state.norm(f"{name}.{j}.bn", channels)
        for j in range(7):
            state.affine(f"{name}.1.convs.{j}", width, width, 3)
            state.norm(f"{name}.1.bns.{j}", width)
        state.affine(f"{name}.3.linear1", 128, channels)
        state.affine(f"{name}.3.linear2", channels, 128)
    state.affine("conv", pooled, 3 * channels, 1)
    state.affine("pool.linear1", 128, 3 * pooled, 1)
    state.affine("pool.linear2", pooled, 128, 1)
    state.norm("bn", 2 * pooled)
    state.affine("linear", size, 2 * pooled)
    state.norm("bn2", size)
    return state


def ecapa_forward(state, features):
    def layer(name, x, dilation=1, numbers=("conv", "bn")):
        conv, norm = numbers
        x = np.maximum(conv1d(state, f"{name}.{conv}", x, dilation), 0)
        return normalized(state, f"{name}.{norm}", x)

    x, outputs = layer("layer1", features.T), []
    for dilation in (2, 3, 4):
        name = f"layer{dilation}.se_res2block"
        groups = np.split(layer(f"{name}.0", x), 8)
        y = np.zeros_like(groups[0])
        for j in range(7):
            groups[j] = y = layer(f"{name}.1", y + groups[j], dilation, (f"convs.{j}", f"bns.{j}"))
        y = layer(f"{name}.2", np.concatenate(groups))
        gate = np.maximum(linear(state, f"{name}.3.linear1", y.mean(1)), 0)
        gate = 1 / (1 + np.exp(-linear(state, f"{name}.3.linear2", gate)))
        x = x + y * gate[:, None]
        outputs.append(x)
    x = np.maximum(conv1d(state, "conv", np.concatenate(outputs)), 0)
    context = [x.mean(1), np.sqrt(x.var(1, ddof=1) + 1e-7)]
    seen = np.concatenate([x, *[np.tile(c[:, None], x.shape[1]) for c in context]])
    scores = linear(state, "pool.linear2", np.tanh(linear(state, "pool.linear1", seen)))
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mean = (weights * x).sum(1)
    std = np.sqrt(np.maximum((weights * x**2).sum(1) - mean**2, 1e-7))
    x = normalized(state, "bn", np.concatenate([mean, std]))
    return normalized(state, "bn2", linear(state, "linear", x))


def description(name, **arguments):
    features = {"num_mel_bins": 16, "frame_length": 25, "frame_shift": 10}
    return {
        "model": name,
        "model_args": {"feat_dim": 16, **arguments},
        "dataset_args": {"resample_rate": 16000, "fbank_args": features},
    }


@pytest.mark.parametrize(
    ("described", "state", "forward"),
    [
        (description("ResNet18"), resnet18(2, 16, 6), resnet18_forward),
        (
            description("ECAPA_TDNN_GLOB_c512", embed_dim=6, emb_bn=True),
            ecapa(16, 16, 10, 6),
            ecapa_forward,
        ),
    ],
    ids=["resnet", "ecapa"],
)
def test_networks_against_numpy(described, state, forward):
    config, variables = wespeaker.convert(state, described)
    encoder = model.make_encoder(workdir.freeze(config))
    variables = {name: tree["encoder"] for name, tree in variables.items()}
    lengths = (31, 20)
    features = np.random.default_rng(2).standard_normal((2, 31, 16)).astype(np.float32)
    features[1, 20:] = np.nan
    got = jax.jit(encoder.apply, static_argnames="train")(
        variables, jnp.asarray(features), jnp.array(lengths), train=False
    )
    state = {name: array.astype(np.float64) for name, array in state.items()}
    for row, length in enumerate(lengths):
        expected = forward(state, features[row, :length].astype(np.float64))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_one_message():
    state, described = resnet18(2, 16, 6), description("ResNet18")
    kernel = state.pop("layer1.0.conv2.weight")
    state["layer1.0.conv9.weight"], state["bn1.bias"] = kernel, np.zeros(3, np.float32)
    state["seg_1.weight"] = np.zeros((6, 8), np.float32)
    with pytest.raises(wespeaker.ConversionError) as refused:
        wespeaker.convert(state, described)
    text = str(refused.value)
    assert "layer1.0.conv2.weight is missing" in text
    assert "bn1.bias has the shape [3]" in text
    assert "seg_1.weight has the shape [6, 8]" in text
    assert "layer1.0.conv9.weight is not of this network" in text
    with pytest.raises(wespeaker.ConversionError, match=r"layer1\.conv\.weight is missing"):
        wespeaker.convert(state, description("ECAPA_TDNN_c512"))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (description("CAMPPlus"), "model: CAMPPlus, which is not converted; one of XVEC, ECAPA"),
        (description("ResNet18", pooling_func="MQMHASTP"), "pooling_func: MQMHASTP"),
        (description("ResNet18", two_emb_layer=True), "two_emb_layer: True"),
        (description("ResNet18", m_channels=64), "model_args with m_channels"),
        (description("ResNet18") | {"dataset_args": {"frontend": "s3prl"}}, "frontend: s3prl"),
        (description("ResNet18") | {"dataset_args": {"cmvn": False}}, "cmvn"),
        (description("ResNet18", feat_dim=80), "feat_dim: 80 and num_mel_bins: 16"),
    ],
)
def test_networks_that_are_not_converted(described, message):
    with pytest.raises(wespeaker.ConversionError, match=message):
        wespeaker.convert(resnet18(2, 16, 6), described)


def test_prefixes_and_wrappers_of_a_state_dict(tmp_path, monkeypatch):
    arrays, described = wespeaker.read(PUBLISHED)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(described))
    (tmp_path / "model_5.pt").touch()
    wrapped = {"model": {f"module.{name}": array for name, array in arrays.items()}, "epoch": 5}
    monkeypatch.setattr(wespeaker.torch_file, "read", lambda path: wrapped)
    found, _ = wespeaker.read(tmp_path / "model_5.pt")
    same = jax.tree.map(
        np.array_equal,
        wespeaker.convert(found, described)[1],
        wespeaker.convert(arrays, described)[1],
    )
    assert all(jax.tree.leaves(same))
