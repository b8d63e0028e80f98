"""The words of a recording in the voice of a face, or of another recording: AdaIN-VC (Chou et al.,
Interspeech 2019) with vectors of voices and faces that lie near each other.

A content encoder hears the source, normalised over time, with bands that are warped at random; the
decoder says it anew by a vector of 8 numbers, that of a face or that of another recording of the
person, by lot, and by the source's F0, moved to the mean that is expected of the person; L1 between
log-mel spectra, InfoNCE between the vectors. Griffin-Lim at the end. Faces need many rows to be
told apart by, and cost little: of four rows one is said.
Command: python -m generation.main --config=configs/generation/revoice.py --workdir=runs/revoice
Then: python -m generation.sample --workdir=runs/revoice --face=face.jpg --say=a.wav --out=voice.wav
Hardware: 2 CPU cores.
Argument: debug (a tiny network, a few dozen steps).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs.generation import quickstart
from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """On the embedded voices and portraits, the corpus of matcher.py: it is rendered once."""
    if size not in ("", "debug"):
        raise ValueError(f"revoice.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 2.0, "voices": 1000, "eval_hours": 0.25, "eval_voices": 96})
    config.data.update({"batch_rows": 128, "crop_seconds": 1.5, "eval_seconds": 3.0})
    config.data.eval_turns = 1
    config.picture.channels = 1  # colours say nothing of a voice
    config.features.update({"num_mels": 80, "max_hz": 7600.0, "window_ms": 32.0})
    config.model.kind, config.model.revoice.said_every = "revoice", 4
    config.loss.update({"wrong_pairs": False, "contrast": 1.0})
    config.optimizer.update({"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 50})
    config.optimizer.update({"b1": 0.9, "b2": 0.98, "weight_decay": 0.02, "clip_norm": 5.0})
    config.update({"total_steps": 2000, "log_every": 25, "evaluate_every": 500})
    config.update({"checkpoint_every": 250, "ema_decay": 0.99})
    if size == "debug":
        quickstart.shrink(config)
        config.model.revoice.update({"width": 16, "code": 8, "blocks": 1, "said_every": 1})
    return config
