"""A small x-vector with AAM-softmax on the embedded corpus, in minutes on a laptop.

Data: an hour of eSpeak NG's synthetic voices, rendered on first use. Evaluated on voices that are
not in training, all pairs of recordings. Synthetic speech: the figure says nothing about real
speakers.
Command: python -m speaker.main --config=configs/speaker/quickstart.py --workdir=runs/speaker
Hardware: 2 CPU cores.
Argument: debug (tiny model, a few dozen steps, several checkpoints).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from speaker import settings


def get_config(size: str = "") -> ConfigDict:
    """Chosen for EER after a few minutes on 2 cores."""
    if size not in ("", "debug"):
        raise ValueError(f"quickstart.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 1.0, "eval_hours": 0.1, "batch_rows": 64, "crop_seconds": 1.5})
    config.features.num_mels = 40
    config.model.update({"channels": 128, "pooled_channels": 384, "embedding_size": 128})
    config.loss.update({"margin_start_step": 200, "margin_end_step": 600})
    config.optimizer.update({"schedule": "cosine", "learning_rate": 3e-3, "warmup_steps": 100})
    config.optimizer.update({"clip_norm": 5.0, "weight_decay": 0.01})
    config.update({"total_steps": 1000, "log_every": 25, "evaluate_every": 500})
    config.update({"checkpoint_every": 250, "ema_decay": 0.99})
    if size == "debug":
        shrink(config)
    return config


def shrink(config: ConfigDict) -> None:
    """A tiny network and a few dozen steps on a minute of the embedded corpus."""
    config.data.update({"kind": "embedded", "train": ("train",), "eval": ("dev",), "test": ()})
    config.data.update({"hours": 0.02, "eval_hours": 0.01, "batch_rows": 16, "num_workers": 0})
    config.data.update({"voices": 8, "eval_voices": 4, "min_seconds": 0.4, "crop_seconds": 1.0})
    config.features.update({"kind": "log_mel", "num_mels": 24})
    small = {"channels": 16, "pooled_channels": 32, "embedding_size": 16}
    if config.model.kind == "resnet":
        small |= {"channels": 4, "depth": 18, "num_blocks": (), "widths": ()}
    config.model.update(small)
    config.loss.update({"margin_start_step": 5, "margin_end_step": 20})
    config.optimizer.update({"schedule": "constant", "warmup_steps": 5, "clip_norm": 5.0})
    config.optimizer.learning_rate = min(config.optimizer.learning_rate, 0.02)
    config.update({"total_steps": 30, "log_every": 5, "evaluate_every": 15})
    config.update({"checkpoint_every": 10, "dtype": "float32"})
