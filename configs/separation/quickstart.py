"""A streaming extractor on mixtures of two synthetic voices, in minutes on a laptop.

Data: an hour of eSpeak NG's voices, rendered on first use, mixed anew in every step at -5 to 5 dB.
Evaluated on voices that are not in training. Synthetic speech: the figures say nothing about real
speakers.
Command: python -m separation.main --config=configs/separation/quickstart.py --workdir=runs/sep
Hardware: 2 CPU cores.
Argument: debug (tiny model, a few dozen steps, several checkpoints).
Expected: about 7 minutes; median SI-SDRi 0.7 dB, another speaker in 12 % (benchmarks/RESULTS.md).
"""

from ml_collections import ConfigDict

from separation import settings


def get_config(size: str = "") -> ConfigDict:
    """A small streaming network on an hour of speech."""
    if size not in ("", "debug"):
        raise ValueError(f"quickstart.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 1.0, "eval_hours": 0.1, "batch_rows": 8, "crop_seconds": 2.0})
    config.data.update({"enrolment_seconds": 3.0, "max_eval_seconds": 5.0})
    config.data.update({"max_eval_mixtures": 100})
    config.mixing.absent = 0.05
    config.cue.channels = 96
    config.model.causal.update({"features": 192, "num_layers": 12})
    config.optimizer.update({"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 50})
    config.optimizer.clip_norm = 5.0
    config.update({"total_steps": 1000, "log_every": 25, "evaluate_every": 250})
    config.update({"checkpoint_every": 250, "ema_decay": 0.99, "bss_eval": False})
    if size == "debug":
        shrink(config)
    return config


def shrink(config: ConfigDict) -> None:
    """A tiny network and a few dozen steps on a minute of the embedded corpus."""
    shrink_run(config)
    shrink_cue(config)
    config.model.causal.update({"features": 32, "num_layers": 2})
    config.model.quality.update({"channels": 8, "num_blocks": 2, "bands": 8, "hidden": 16})
    small = {"num_fft": 512, "channels": 2, "last_channels": 2, "lstm_size": 8, "hidden_size": 16}
    config.model.voicefilter.update(small)


def shrink_run(config: ConfigDict) -> None:
    """A few dozen steps of any network on a minute of the embedded corpus."""
    config.data.update({"kind": "embedded", "train": ("train",), "eval": ("dev",), "test": ()})
    config.data.update({"hours": 0.02, "eval_hours": 0.01, "batch_rows": 8, "num_workers": 0})
    config.data.update({"voices": 8, "eval_voices": 4, "min_seconds": 0.4, "crop_seconds": 1.0})
    config.data.update({"enrolment_seconds": 1.0, "max_eval_seconds": 2.0, "num_buckets": 1})
    config.data.max_eval_mixtures = 8
    config.mixing.update({"interferers": (1, 1), "absent": 0.1})
    config.optimizer.update({"schedule": "constant", "learning_rate": 5e-3, "warmup_steps": 5})
    config.update({"total_steps": 30, "log_every": 5, "evaluate_every": 15})
    config.update({"checkpoint_every": 10, "ema_decay": 0.0, "bss_eval": False})


def shrink_cue(config: ConfigDict) -> None:
    """A tiny encoder of enrolments."""
    config.cue.update({"num_mels": 24, "channels": 16, "size": 16})
