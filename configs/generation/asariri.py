"""The three GANs of asariri (2018) on voices: vanilla_gan, cgan and began.

Layers and widths as there (28.0 million parameters of the vanilla generator and 63.5 of cgan's at
32 x 32, grey, of 740 numbers), its defects mended (generation/asariri.py). Adam at 1e-3 (0.4),
sigmoid cross-entropy, one update each; began: 2e-4 (0.5), the generator at five times that, gamma
0.75, lambda 1e-3. The discriminators of vanilla_gan and began do not hear the voice, so that
nothing makes their faces fit: cgan's does.
Command: python -m generation.main --config=configs/generation/asariri.py --workdir=runs/asariri
Sizes: --config.picture.size=28, 32, 64 or 128; --config.picture.channels=3: colour.
Hardware: one GPU (not run at this size).
Argument: cgan (the default), vanilla_gan, began; debug, or began-debug (narrow networks, a few
dozen steps).
Expected: no figure yet.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings

_KINDS = ("cgan", "vanilla_gan", "began")


def get_config(argument: str = "") -> ConfigDict:
    """At 32 x 32, grey."""
    kind, debug = quickstart.chosen("asariri.py", argument, _KINDS)
    config = settings.default_config()
    config.data.update({"hours": 1.0, "eval_hours": 0.15, "batch_rows": 32})
    config.data.update({"crop_seconds": 5.0, "eval_seconds": 5.0})
    config.voice.kind = "mfcc"  # 640 numbers, and 100 of noise
    config.picture.update({"size": 32, "channels": 1})
    config.model.update({"kind": kind, "noise": 100, "width": 64})
    config.model.most = 1024 if kind == "cgan" else 512
    config.loss.update({"wrong_pairs": False, "r1": 0.0})
    config.loss.kind = "began" if kind == "began" else "non_saturating"
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.update({"learning_rate": 1e-3, "b1": 0.4, "b2": 0.999})
    if kind == "began":
        config.optimizer.b1 = config.discriminator_optimizer.b1 = 0.5
        config.discriminator_optimizer.learning_rate = 2e-4
    config.update({"total_steps": 20_000, "log_every": 50, "evaluate_every": 1000})
    config.update({"checkpoint_every": 1000, "ema_decay": 0.0})
    if debug:
        quickstart.shrink(config)
    return config
