"""The net that judges: which face belongs to which voice.

Trained by itself, on real pairs. On people whom neither it nor a GAN has seen it says how well the
GAN's faces fit their voices (config.judge), and what it can do on real faces.
Command: python -m generation.main --config=configs/generation/matcher.py --workdir=runs/matcher
Hardware: 2 CPU cores.
Argument: debug (a tiny network, a few dozen steps).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """At 32 x 32, on 2 s of the speech of 1,000 people."""
    if size not in ("", "debug"):
        raise ValueError(f"matcher.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 2.0, "voices": 1000, "eval_hours": 0.25, "eval_voices": 96})
    config.data.update({"batch_rows": 128, "crop_seconds": 2.0, "eval_seconds": 3.0})
    config.model.kind = "matcher"
    config.picture.channels = 1  # colours say nothing of a voice
    config.loss.wrong_pairs = False
    config.optimizer.update({"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 50})
    config.optimizer.update({"b1": 0.9, "b2": 0.98, "weight_decay": 0.05, "clip_norm": 5.0})
    config.update({"total_steps": 1600, "log_every": 50, "evaluate_every": 200})
    config.update({"checkpoint_every": 200, "ema_decay": 0.99})
    if size == "debug":
        quickstart.shrink(config)
    return config
