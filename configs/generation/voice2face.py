"""Face from voice as published: Wen, Raj and Singh, "Face Reconstruction from Voice using
Generative Adversarial Networks", NeurIPS 2019.

Generator of 12,191,875 parameters, face network of 3,310,720 with two linear heads, frozen voice
encoder; sigmoid cross-entropy and cross-entropy of identity on either side; Adam at 2e-4 (0.5,
0.999), 128 voices and as many faces drawn without regard to each other, 50,000 steps, 64 x 64,
faces mirrored at random; no average, no penalty.
Theirs: VoxCeleb1 with faces of VGGFace, 924 people. Here the embedded voices and portraits: give
config.data of another kind for others.
Other than theirs: silence is cut and features are normalised in the stretch that is heard, not in
the whole recording, and the first of the 50,000 steps has a rate of 0.
Commands: python -m generation.main --config=configs/generation/voice.py --workdir=runs/voice
python -m generation.main --config=configs/generation/voice2face.py --workdir=runs/voice2face
--config.voice.workdir=runs/voice
Hardware: one GPU (not run at this size).
Argument: debug (narrow networks, a few dozen steps; also wants a config.voice.workdir).
Expected: no figure yet.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """The published settings."""
    if size not in ("", "debug"):
        raise ValueError(f"voice2face.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 2.0, "eval_hours": 0.15, "batch_rows": 128, "vad": "webrtc"})
    config.data.update({"crop_seconds": 8.0, "eval_seconds": 10.0, "independent": True})
    config.picture.size = 64
    config.model.kind = "voice2face"
    config.voice.update({"kind": "encoder", "crop_frames": (300, 800)})
    config.loss.update({"wrong_pairs": False, "r1": 0.0, "identity": 1.0})
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.update({"learning_rate": 2e-4, "b1": 0.5, "b2": 0.999})
    config.update({"total_steps": 50_000, "log_every": 50, "evaluate_every": 2500})
    config.update({"checkpoint_every": 2500, "ema_decay": 0.0})
    if size == "debug":
        quickstart.shrink(config)
        config.voice.crop_frames = (50, 100)
    return config
