"""Turns a network that wespeaker trained into a work directory.

    python -m speaker.wespeaker voxceleb_resnet34_LM --workdir=runs/resnet34
    python -m speaker.verify a.wav b.wav --workdir=runs/resnet34

MODEL is a published checkpoint, unpacked: a folder with avg_model.pt and config.yaml, or another
.pt with a config.yaml beside it. XVEC, ECAPA_TDNN and ResNet are read, PyTorch is not needed. The
work directory serves every command that takes one, and config.init_from; its embeddings are those
of wespeaker (of recordings up to 120 s, which wespeaker never cuts). The weights of the training
speakers are left out, whose names the checkpoint does not hold; there is no calibration either,
which an evaluation while training makes.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import traverse_util
from ml_collections import ConfigDict

from common import app, checkpoint, errors, files, torch_file, workdir
from common import state as state_lib
from common.data import classes
from common.nn import residual
from speaker import model, resnet, settings, task

# In place of the training speakers. No recording's speaker has this name.
SPEAKERS = "(unknown: converted from wespeaker)\n"

_POOLINGS = {"TSTP": "mean+std", "TAP": "mean", "TSDP": "std", "ASTP": "attentive_local"}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_DEPTHS = {f"ResNet{depth}": depth for depth in resnet.DEPTHS}
_ECAPAS = tuple(f"ECAPA_TDNN_{form}{size}" for form in ("", "GLOB_") for size in ("c512", "c1024"))
_GROUPS = 8  # of channels in ECAPA's Res2Net convolutions
_NAMED = 6  # arrays in a message

Arrays = Mapping[str, np.ndarray]


class ConversionError(errors.UserError):
    """A checkpoint that cannot be converted."""


def convert(arrays: Arrays, description: Mapping[str, Any]) -> tuple[ConfigDict, dict[str, Any]]:
    """The config and the variables of a network from wespeaker's state dict and its config.yaml.

    Raises ConversionError: another network, or arrays that are missing, too many, or of another
    shape than the network's.
    """
    arrays = {
        name.removeprefix("module."): array
        for name, array in arrays.items()
        if not name.removeprefix("module.").startswith("projection.")
        and not name.endswith("num_batches_tracked")
    }
    config = _config(arrays, description)
    net = model.make_model(config, 2)
    shapes = jax.eval_shape(lambda key: model.init(net, key), jax.random.key(0))
    wanted = {
        path: shapes_leaf.shape
        for name in ("params", "batch_stats")
        for path, shapes_leaf in traverse_util.flatten_dict(shapes[name], sep="/").items()
        if path.startswith("encoder/")
    }
    modules, orders = _correspondence(config)
    found, used, wrong = {}, set(), []
    for path, shape in wanted.items():
        module, leaf = path.removeprefix("encoder/").rsplit("/", 1)
        key = f"{modules[module]}.{_LEAVES.get(leaf, leaf)}"
        used.add(key)
        if key not in arrays:
            wrong.append(f"{key} is missing")
            continue
        outputs, inputs = orders.get(module, (slice(None), slice(None)))
        try:
            array = _arranged(arrays[key], outputs, inputs)
        except IndexError:  # of fewer channels
            array = arrays[key]
        if array.shape != shape:
            wrong.append(f"{key} has the shape {list(arrays[key].shape)}")
        collection = "batch_stats" if leaf in ("mean", "var") else "params"
        found[f"{collection}/{path}"] = array.astype(np.float32)
    wrong += [f"{key} is not of this network" for key in arrays if key not in used]
    if wrong:
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ConversionError(
            f"The checkpoint is not a {description['model']} as its config.yaml describes it: "
            f"{'; '.join(wrong[:_NAMED])}{more}. Use the config.yaml that was published with it."
        )
    return config, traverse_util.unflatten_dict(found, sep="/")


def _arranged(array: np.ndarray, outputs: Any, inputs: Any) -> np.ndarray:
    """An array of theirs [outputs, inputs, taps] as ours, [taps, inputs, outputs].

    In two dimensions their taps go over frequency, then time. One tap over time has no axis here.
    """
    array = array[outputs]
    if array.ndim == 1:
        return array
    turned = array[:, inputs].T
    return turned[0] if turned.ndim == 3 and turned.shape[0] == 1 else turned


def _config(arrays: Arrays, description: Mapping[str, Any]) -> ConfigDict:
    """The settings of a network; channels are counted in its arrays."""
    name, arguments = description.get("model"), dict(description.get("model_args") or {})
    dataset = dict(description.get("dataset_args") or {})
    features = arguments.pop("feat_dim", 80)
    fbank = {"num_mel_bins": features, "frame_shift": 10, "frame_length": 25}
    fbank |= dataset.get("fbank_args") or {}
    normalization = {"norm_mean": True, "norm_var": False} | (dataset.get("cmvn_args") or {})
    pooling = arguments.pop("pooling_func", "ASTP" if name in _ECAPAS else "TSTP")
    arguments.pop("embed_dim", None)

    def refuse(what: Any, known: str) -> None:
        raise ConversionError(f"config.yaml has {what}, which is not converted; {known} is.")

    def size(key: str) -> int:
        if key not in arrays:
            raise ConversionError(
                f"The checkpoint is not a {name} as its config.yaml describes it: {key} is missing."
            )
        return arrays[key].shape[0]

    if name not in ("XVEC", *_ECAPAS, *_DEPTHS):
        refuse(f"model: {name}", f"one of {', '.join(('XVEC', *_ECAPAS, *_DEPTHS))}")
    if pooling not in _POOLINGS:
        refuse(f"pooling_func: {pooling}", f"one of {', '.join(_POOLINGS)}")
    if (frontend := dataset.get("frontend", "fbank")) != "fbank":
        refuse(f"frontend: {frontend}", "fbank")
    if not dataset.get("cmvn", True) or normalization != {"norm_mean": True, "norm_var": False}:
        refuse("other features than with their mean subtracted (cmvn, cmvn_args)", "that")
    if fbank["num_mel_bins"] != features:
        refuse(f"feat_dim: {features} and num_mel_bins: {fbank['num_mel_bins']}", "one number")

    config = settings.default_config()
    config.data.sample_rate_hz = dataset.get("resample_rate", 16000)
    # wespeaker takes a recording whole. Here longer ones than two minutes go in pieces.
    config.data.max_eval_seconds = 120.0
    config.optimizer.schedule = "constant"  # nothing was trained; any schedule that is valid
    config.features.update({"num_mels": features, "normalize": "mean", "compat": "kaldi"})
    config.features.update({"window": "hamming", "window_ms": float(fbank["frame_length"])})
    config.features.hop_ms = float(fbank["frame_shift"])
    config.model.update({"deviation": "sample", "pooling": _POOLINGS[pooling]})
    if name == "XVEC":
        sizes = {"channels": size("frame_1.conv_1d.weight"), "padding": "valid"}
        sizes |= {"pooled_channels": size("frame_5.conv_1d.weight")}
        sizes |= {"kind": "xvector", "embedding_size": size("seg_2.weight")}
        for layer in ("hid_dim", "stats_dim"):
            arguments.pop(layer, None)
    elif name in _DEPTHS:
        if arguments.pop("two_emb_layer", False):
            refuse("two_emb_layer: True", "False")
        sizes = {"kind": "resnet", "depth": _DEPTHS[name], "channels": size("conv1.weight")}
        sizes |= {"embedding_size": size("seg_1.weight")}
    else:
        if "GLOB" in name and pooling == "ASTP":
            config.model.pooling = "attentive"
        sizes = {"kind": "ecapa", "channels": size("layer1.conv.weight")}
        sizes |= {"pooled_channels": size("conv.weight"), "embedding_size": size("linear.weight")}
        sizes |= {"embedding_norm": bool(arguments.pop("emb_bn", False))}
    config.model.update(sizes)
    if arguments:
        refuse(f"model_args with {', '.join(arguments)}", "what its recipes give")
    return config


def _correspondence(
    config: ConfigDict,
) -> tuple[dict[str, str], dict[str, tuple[np.ndarray | slice, np.ndarray | slice]]]:
    """Their name of each module of the encoder; and where channels are in another order, those of
    theirs (outputs, inputs) that are ours 0, 1, ..."""
    net, every = config.model, slice(None)
    attention = f"pooling/{net.pooling}"
    modules = {f"{attention}/frame": "pool.linear1", f"{attention}/score": "pool.linear2"}
    orders = {}
    if net.kind == "xvector":
        for i in range(1, 6):
            modules |= {f"tdnn{i}/conv": f"frame_{i}.conv_1d", f"tdnn{i}/norm": f"frame_{i}.bn"}
        modules |= {"tdnn6/affine": "seg_1", "norm6": "seg_bn_1", "tdnn7/affine": "seg_2"}
    elif net.kind == "resnet":
        modules |= {"stem/conv": "conv1", "stem/norm": "bn1", "embedding/affine": "seg_1"}
        num_blocks, bottleneck = resnet.DEPTHS[net.depth]
        for stage, number in enumerate(num_blocks, start=1):
            for i in range(number):
                ours, theirs = f"stage{stage}_block{i + 1}", f"layer{stage}.{i}"
                for j in (1, 2, 3):
                    modules[f"{ours}/conv{j}/conv"] = f"{theirs}.conv{j}"
                    modules[f"{ours}/conv{j}/norm"] = f"{theirs}.bn{j}"
                modules[f"{ours}/shortcut/conv"] = f"{theirs}.shortcut.0"
                modules[f"{ours}/shortcut/norm"] = f"{theirs}.shortcut.1"
        # Pooled are [channels, frequencies] there, [frequencies, channels] here.
        channels = net.channels * 8 * (residual.EXPANSION if bottleneck else 1)
        shape = (channels, -(-config.features.num_mels // 8))
        order = np.arange(shape[0] * shape[1]).reshape(shape).T.ravel()
        both = np.concatenate([order, order + len(order)])
        orders["embedding/affine"] = (every, order if net.pooling in ("mean", "std") else both)
        orders |= {f"{attention}/frame": (every, order), f"{attention}/score": (order, every)}
    else:
        modules |= {"stem/conv": "layer1.conv", "stem/norm": "layer1.bn", "aggregate": "conv"}
        modules |= {"pooling_norm": "bn", "embedding/affine": "linear", "embedding/norm": "bn2"}
        # The channels that pass a block's Res2Net unchanged are its last there, its first here.
        order = np.roll(np.arange(net.channels), net.channels // _GROUPS)
        for i in (1, 2, 3):
            ours, theirs = f"block{i}", f"layer{i + 1}.se_res2block"
            for name, number in (("expand", 0), ("merge", 2)):
                modules[f"{ours}/{name}/conv"] = f"{theirs}.{number}.conv"
                modules[f"{ours}/{name}/norm"] = f"{theirs}.{number}.bn"
            for j in range(_GROUPS - 1):
                modules[f"{ours}/res2/group{j + 2}/conv"] = f"{theirs}.1.convs.{j}"
                modules[f"{ours}/res2/group{j + 2}/norm"] = f"{theirs}.1.bns.{j}"
            modules[f"{ours}/se/squeeze"] = f"{theirs}.3.linear1"
            modules[f"{ours}/se/excite"] = f"{theirs}.3.linear2"
            orders |= {f"{ours}/expand/{part}": (order, every) for part in ("conv", "norm")}
            orders[f"{ours}/merge/conv"] = (every, order)
        if net.pooling == "attentive":  # one map of [frame, mean, deviation] there
            modules[f"{attention}/context"] = "pool.linear1"
            orders[f"{attention}/frame"] = (every, slice(net.pooled_channels))
            orders[f"{attention}/context"] = (every, slice(net.pooled_channels, None))
    return modules, orders


def read(path: pathlib.Path) -> tuple[Arrays, dict[str, Any]]:
    """The state dict and the config.yaml of a published checkpoint.

    `path` is its folder or its .pt. Raises UserError for what is not there or not such a file.
    """
    weights = path / "avg_model.pt" if path.is_dir() else path
    described = weights.with_name("config.yaml")
    for file in (weights, described):
        if not file.is_file():
            raise ConversionError(
                f"{file} is not there. MODEL is the folder of a published checkpoint, unpacked, "
                "with avg_model.pt and config.yaml, or a .pt beside a config.yaml."
            )
    try:
        description = yaml.safe_load(described.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConversionError(f"{described} cannot be read: {error}") from error
    if not isinstance(description, dict) or "model" not in description:
        raise ConversionError(f"{described} is no config of wespeaker: it names no model.")
    arrays = torch_file.read(weights)
    for wrapper in ("state_dict", "model"):
        if isinstance(arrays, Mapping) and isinstance(arrays.get(wrapper), Mapping):
            arrays = arrays[wrapper]
    if not isinstance(arrays, Mapping) or not all(
        isinstance(array, np.ndarray) for array in arrays.values()
    ):
        raise ConversionError(f"{weights} holds no state dict: a dict of arrays by their names.")
    return arrays, description


def write(folder: pathlib.Path, config: ConfigDict, variables: dict[str, Any]) -> None:
    """Makes a work directory with one checkpoint, of step 0. UserError if there is one already."""
    with workdir.Lock(folder):
        if (folder / "config.json").exists() or (folder / "checkpoints").exists():
            raise ConversionError(f"{folder} is a work directory already: name a new --workdir.")
        files.write_text(folder / classes.FILE, SPEAKERS)
        meta = task.make_task(workdir.freeze(config), folder).checkpoint_meta()
        variables = jax.tree.map(jnp.asarray, variables)
        params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
        saver = checkpoint.Checkpointer(folder / "checkpoints")
        train_state = state_lib.TrainState(jnp.zeros((), jnp.int32), params, rest, (), None)
        saver.save(0, train_state, None, meta, None)
        saver.close()
        workdir.save_config(folder, task.PACKAGE.name, config)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = app.parser("speaker.wespeaker", __doc__)
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="folder, or .pt")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="to be made")
    args = parser.parse_args(argv)

    def work() -> None:
        folder = args.workdir.expanduser()
        arrays, description = read(args.model.expanduser())
        config, variables = convert(arrays, description)
        write(folder, config, variables)
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        print(
            f"{description['model']}, {config.model.embedding_size} dimensions, {count:,} "
            f"parameters: {folder}"
        )

    app.command("speaker.wespeaker", work)


if __name__ == "__main__":
    main()
