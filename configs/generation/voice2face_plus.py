"""Face from voice, as voice2face (Wen et al. 2019) with what has been learned about GANs since.

A residual generator whose norms hear the voice; a projection discriminator that also sees real
faces with another's voice; penalties on real and fake pictures (R1, R2); an average of the
generator; DiffAugment; InfoNCE between voices and faces and AM-softmax over the training people,
which the discriminator learns on real faces and the generator has to satisfy.
Each can be left out: --config.model.residual=False (the generator of voice2face),
--config.loss.wrong_pairs=False, --config.model.conditional=False (with wrong_pairs=False),
--config.loss.r1=0., --config.loss.r2=0., --config.ema_decay=0., --config.loss.augment="()",
--config.loss.contrast=0., --config.loss.identity=0.
Commands: python -m generation.main --config=configs/generation/voice.py --workdir=runs/voice
python -m generation.main --config=configs/generation/voice2face_plus.py --workdir=runs/plus
--config.voice.workdir=runs/voice
Hardware: one GPU (not run at this size); small: 2 CPU cores.
Argument: small (at 32 x 32 on the statistics of the embedded voices, as quickstart.py); debug
(narrow networks, a few dozen steps).
Expected: see benchmarks/RESULTS.md (small).
"""

from ml_collections import ConfigDict

from configs.generation import quickstart, voice2face
from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """At 64 x 64, on the data and the voice encoder of `voice2face.py`."""
    if size not in ("", "small", "debug"):
        raise ValueError(f"voice2face_plus.py:{size}: the argument is small, debug or nothing")
    config = settings.default_config()
    published = voice2face.get_config()
    config.data.update(published.data)
    config.data.update({"independent": False, "batch_rows": 64})
    config.picture.size = 64
    config.voice.update(published.voice)
    config.model.update({"kind": "voice2face_plus", "width": 32, "most": 256, "noise": 64})
    config.model.update({"discriminator_width": 32, "discriminator_most": 256})
    config.loss.update({"wrong_pairs": True, "r1": 0.5, "r2": 0.5, "r1_every": 8})
    config.loss.update({"identity": 0.2, "contrast": 0.2})
    config.loss.augment = ("colour", "translation", "cutout")
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.update({"learning_rate": 2e-4, "b1": 0.0, "b2": 0.99})
    config.update({"total_steps": 50_000, "log_every": 50, "evaluate_every": 2500})
    config.update({"checkpoint_every": 2500, "ema_decay": 0.999})
    if size == "small":
        laptop = quickstart.get_config()
        config.data.update(laptop.data)
        config.picture.size = laptop.picture.size
        config.voice.update(laptop.voice)
        config.model.update({"width": 8, "most": 32, "noise": 32, "embedding": 8})
        config.model.update({"discriminator_width": 8, "discriminator_most": 32})
        config.loss.update(laptop.loss)
        config.loss.update({"r2": 0.2, "identity": 0.2})
        for optimizer in (config.optimizer, config.discriminator_optimizer):
            optimizer.learning_rate = 1e-3
        config.update({"total_steps": 1600, "log_every": 50, "evaluate_every": 400})
        config.update({"checkpoint_every": 400, "ema_decay": 0.995})
    if size == "debug":
        quickstart.shrink(config)
        config.picture.size = 16
        config.voice.kind = "statistics"
    return config
