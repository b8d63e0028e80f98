"""VisualVoice: the voice of whom one sees speak (Gao and Grauman, CVPR 2021, arXiv:2101.03149).

Data: by default the embedded talking faces, drawings with synthetic voices: the figures say nothing
about real people.
Command: python -m separation.main --config=configs/separation/visualvoice.py --workdir=runs/vv
Argument: debug (tiny, a few dozen steps); small (for 2 CPU cores, as the four that follow); lip,
          face or heard (small, with lips alone, a face alone, neither); enhance (small, of one
          voice from noise, which is made; config.augment.noise.root reads some).
Further:  --config.model.visualvoice.context=True (both people go in together), .attention_heads=8
          (self-attention over the 64 steps of the bottleneck), .dtype=bfloat16, .remat=True;
          --config.sight.pictures=5 (the mean of the embeddings of so many portraits).
Hardware: published with 8 GPUs (batch 128, 50,000 steps); small: 2 CPU cores.
Expected: published on VoxCeleb2, of real people: SDR 10.2 dB with both cues, 9.95 lips alone, 7.21
          face alone, 7.85 without (paper, table 1). Ours: benchmarks/RESULTS.md.

As published but for: weight decay is decoupled; the networks of faces and voices begin untrained
(config.init_from takes those of another run).
"""

from ml_collections import ConfigDict

from configs.separation import quickstart
from separation import settings

_SMALL = {
    "lip_front": 8,
    "lip_stages": (16, 32, 64),
    "lip_units": (2, 2, 2),
    "lip_features": 64,
    "tcn_channels": 64,
    "tcn_dilations": (1, 2, 4),
    "face_widths": (8, 16, 32, 64),
    "face_blocks": (1, 1, 1, 1),
    "embedding_size": 32,
    "unet_first": (16, 32),
    "unet_widths": (48, 64, 64, 64, 64, 64),
}
_CUES = {"lip": (True, False), "face": (False, True), "heard": (False, False)}


def get_config(size: str = "") -> ConfigDict:
    """The published sizes, losses and rates."""
    sizes = ("debug", "small", *_CUES, "enhance")
    if size not in ("", *sizes):
        raise ValueError(f"visualvoice.py:{size}: the argument is {', '.join(sizes)} or nothing")
    config = settings.default_config()
    config.data.update({"kind": "embedded_faces", "hours": 10.0, "eval_hours": 0.1})
    config.data.update({"crop_seconds": 2.55, "enrolment_seconds": 2.55, "batch_rows": 128})
    config.data.update({"max_eval_seconds": 5.0, "max_eval_mixtures": 100})
    config.mixing.snr_db = (0.0, 0.0)
    config.model.kind = "visualvoice"
    config.optimizer.update({"schedule": "steps", "boundaries": (30_000, 40_000), "factor": 0.1})
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 0, "weight_decay": 1e-4})
    config.optimizer.update({"b2": 0.999, "eps": 1e-8})
    config.optimizer.rate_factors = (("face_net", 0.1), ("voice_net", 0.1))
    config.update({"total_steps": 50_000, "log_every": 100, "evaluate_every": 1000})
    config.update({"checkpoint_every": 1000, "ema_decay": 0.0, "bss_eval": False})
    if size:
        config.model.visualvoice.update(_SMALL)
        config.data.update({"hours": 1.0, "batch_rows": 8})
        config.optimizer.update({"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 50})
        config.optimizer.rate_factors = ()
        config.update({"total_steps": 1000, "log_every": 25, "evaluate_every": 250})
        config.checkpoint_every = 250
    if size in _CUES:
        lip, face = _CUES[size]
        config.model.visualvoice.update({"lip": lip, "face": face})
    if size == "enhance":
        config.model.visualvoice.enhancement = True
        config.mixing.interferers = (0, 0)
        config.augment.hiss.update({"probability": 1.0, "snr_db": (-6.0, 6.0)})
    if size == "debug":
        quickstart.shrink_run(config)
        config.data.update({"kind": "embedded_faces", "batch_rows": 4, "enrolment_seconds": 1.0})
        config.mixing.absent = 0.0
        config.model.visualvoice.update({"unet_first": (8, 8), "unet_widths": (8,) * 6})
        config.model.visualvoice.update({"lip_units": (1, 1, 1), "tcn_dilations": (1, 2)})
    return config
