"""ResNet34 with additive-margin softmax on Kaldi folders, with Simple-tklia's hyper-parameters.

Those of its cfg/exemple_speaker.cfg; speaker/SIMPLE_TKLIA.md maps every key of it to ours.
Data: --config.data.root holds Kaldi data folders with feats.scp (30 features), utt2spk, spk2utt;
    --config.data.train=folder,folder and --config.data.eval=folder name them.
Command: python -m speaker.main --config=configs/speaker/kaldi_example.py --workdir=runs/kaldi
    --config.data.root=data --config.data.trials=trials
Arguments: the number of training speakers (5994), which the length of the training hangs on; debug
    (tiny, on the embedded corpus).
Error rates: not run here, and none are published.
"""

from ml_collections import ConfigDict

from configs.speaker import quickstart
from speaker import settings


def get_config(argument: str = "5994") -> ConfigDict:
    """What Simple-tklia calls an iteration is one pass with one recording of every speaker."""
    if argument != "debug" and not (argument.isdigit() and int(argument) > 1):
        raise ValueError(f"kaldi_example.py:{argument}: the argument is debug or a number")
    rows = 128
    speakers = 5994 if argument == "debug" else int(argument)
    steps = -(-speakers // rows)  # of one pass
    config = settings.default_config()
    config.data.update({"kind": "kaldi", "train": ("train",), "eval": ("eval",)})
    config.data.update({"sampler": "speaker", "batch_rows": rows, "crop_seconds": 4.0})
    config.data.update({"num_workers": 8, "max_eval_seconds": 300.0})
    config.data.eval_batch_seconds = 480.0  # for accelerators; a CPU is faster with 20
    config.features.update({"kind": "given", "num_mels": 30, "hop_ms": 10.0, "normalize": "none"})
    config.model.update({"kind": "resnet", "num_blocks": (3, 4, 6, 3), "embedding_size": 256})
    config.model.update({"widths": (32, 64, 128, 256), "zero_init_residual": True})
    config.model.update({"pooling": "mean+std", "embedding_norm": True})
    config.loss.update({"kind": "am", "margin": 0.4, "scale": 30.0})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.2, "momentum": 0.5})
    config.optimizer.update({"schedule": "steps", "factor": 0.5, "warmup_steps": 1})
    config.optimizer.boundaries = tuple(steps * k for k in (1000, 1500, 1750))
    config.update({"seed": 1234, "total_steps": 2000 * steps, "log_every": steps})
    config.update({"evaluate_every": 10 * steps, "checkpoint_every": 10 * steps})
    config.keep_every = 10 * steps  # none is deleted, so that --checkpoint=N finds each, as there
    if argument == "debug":
        quickstart.shrink(config)
    return config
