"""The voice encoder of Wen, Raj and Singh (NeurIPS 2019), trained to tell people apart.

2,670,720 parameters; plain cross-entropy; 64 log-mel bands from 20 to 7200 Hz of 25 ms, normalised
by recording; 3 to 8 s of speech, as many of each voice in a step. Recordings are repeated to 8 s.
Theirs was trained on VoxCeleb1; how is not told: here Adam at 1e-3, falling as half a cosine.
Command: python -m generation.main --config=configs/generation/voice.py --workdir=runs/voice
Hardware: one GPU for VoxCeleb (not run); debug: 2 CPU cores.
Argument: debug (a tiny network, a few dozen steps).
Expected: no figure yet.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """On the embedded voices; see `voice2face.py` for VoxCeleb's settings."""
    if size not in ("", "debug"):
        raise ValueError(f"voice.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 2.0, "eval_hours": 0.15, "batch_rows": 64, "vad": "webrtc"})
    config.data.update({"crop_seconds": 8.0, "eval_seconds": 10.0})
    config.model.kind = "voice"
    config.features.update({"window_ms": 25.0, "normalize": "utterance"})
    config.voice.crop_frames = (300, 800)
    config.loss.wrong_pairs = False
    config.optimizer.update({"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 100})
    config.optimizer.update({"b1": 0.9, "b2": 0.999, "weight_decay": 0.01, "clip_norm": 5.0})
    config.update({"total_steps": 2000, "log_every": 25, "evaluate_every": 500})
    config.update({"checkpoint_every": 250})
    if size == "debug":
        quickstart.shrink(config)
        config.voice.crop_frames = (50, 100)
    return config
