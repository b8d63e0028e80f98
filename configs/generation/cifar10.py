"""CIFAR-10 by class: SNGAN with a projection discriminator, or R3GAN in small.

sngan (Miyato et al. 2018, Miyato and Koyama 2018): residual networks of 256 and 128 channels,
hinge loss, five updates of the discriminator on 64 pictures each to one of the generator (on all
320 of them; theirs on 128), Adam at 2e-4 (0.5, 0.999), 100,000 steps.
r3gan (Huang et al. 2024): relativistic pairing loss, R1 and R2 at 0.05 in every step, Adam at 2e-4
(0, 0.9), average of the generator. Theirs has 768 channels, batches of 512, a schedule of all of
these and augmentation.
Command: python -m generation.main --config=configs/generation/cifar10.py --workdir=runs/cifar10
--config.faces.root=DIR
Hardware: one GPU (not run).
Argument: sngan (the default), r3gan; debug, or r3gan-debug (narrow networks, a few dozen steps on
the embedded voices and portraits).
Expected: no figure yet. Published FIDs of 50,000 pictures: SNGAN 9.01 (StudioGAN), R3GAN 1.96.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings

_KINDS = {"sngan": "sngan_projection", "r3gan": "r3gan"}


def get_config(argument: str = "") -> ConfigDict:
    """At 32 x 32, in colour."""
    name, debug = quickstart.chosen("cifar10.py", argument, tuple(_KINDS))
    config = settings.default_config()
    config.data.kind, config.faces.kind, config.voice.kind = "none", "cifar10", "class"
    config.data.eval = ("test",)
    config.model.kind = _KINDS[name]
    config.loss.update({"wrong_pairs": False, "r1": 0.0})
    if name == "sngan":
        config.data.batch_rows, config.discriminator_updates = 320, 5
        config.model.update({"width": 256, "most": 256, "noise": 128})
        config.loss.kind = "hinge"
        rates = {"learning_rate": 2e-4, "b1": 0.5, "b2": 0.999}
        config.ema_decay = 0.0
    else:
        config.data.batch_rows = 128
        config.model.update({"width": 128, "most": 256, "noise": 64})
        config.loss.update({"kind": "relativistic", "r1": 0.05, "r2": 0.05, "r1_every": 1})
        rates = {"learning_rate": 2e-4, "b1": 0.0, "b2": 0.9}
        config.ema_decay = 0.999
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.update(rates)
    config.samples.people = 10
    config.update({"total_steps": 100_000, "log_every": 100, "evaluate_every": 5000})
    config.checkpoint_every = 5000
    if debug:
        quickstart.shrink(config)
        config.faces.kind, config.voice.kind = "embedded", "statistics"
        config.discriminator_updates = min(2, config.discriminator_updates)
        config.picture.size = 16
    return config
