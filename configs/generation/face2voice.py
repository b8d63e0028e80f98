"""A voice from a face: the face network of Wen et al. (2019), a conditional GAN of log-mel spectra,
Griffin-Lim.

The face network learns to lie nearest to what is heard of the same person (InfoNCE): the frozen
encoder's vector with --config.voice.kind=encoder and --config.voice.workdir=runs/voice, else means
and deviations of the bands. Of its vector and noise the generator makes 128 frames of 80 bands, 1.3
s that sound like somebody and say nothing; the discriminator sees them by projection on the vector,
and real ones with another's face.
Command: python -m generation.main --config=configs/generation/face2voice.py --workdir=runs/voices
Then: python -m generation.sample --workdir=runs/voices --face=face.jpg --out=voice.wav
Hardware: one GPU (not run at this size); debug: 2 CPU cores.
Argument: debug (tiny networks, 0.4 s of sound, a few dozen steps).
Expected: no figure yet.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """On the embedded voices and portraits."""
    if size not in ("", "debug"):
        raise ValueError(f"face2voice.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 2.0, "voices": 1000, "eval_hours": 0.25, "eval_voices": 96})
    config.data.update({"batch_rows": 64, "crop_seconds": 3.0, "eval_seconds": 3.0})
    config.picture.size = 64
    config.features.update({"num_mels": 80, "max_hz": 7600.0, "window_ms": 32.0})
    config.model.update({"kind": "face2voice", "width": 32, "most": 256, "noise": 64})
    config.model.embedding = 8  # as few as the judge's, and for the same reason
    config.loss.update({"wrong_pairs": True, "r1": 0.5, "r1_every": 8})
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.update({"learning_rate": 2e-4, "b1": 0.0, "b2": 0.99})
    config.face_optimizer.update({"learning_rate": 5e-4, "weight_decay": 0.05})
    config.update({"total_steps": 20_000, "log_every": 50, "evaluate_every": 1000})
    config.update({"checkpoint_every": 1000, "ema_decay": 0.999})
    if size == "debug":
        quickstart.shrink(config)
        config.model.frames = 36
    return config
