"""An x-vector with AAM-softmax for AN4's 66 training speakers, and any others beside them.

Data: manifests of AN4 (CMU census data, 16 kHz) with the columns utt, path, speaker, split; several
with commas between, here with one 5 s crop each of 125 LibriSpeech speakers.
Command: python -m speaker.main --config=configs/speaker/an4.py --workdir=runs/an4_speaker
    --config.data.root=an4.tsv,libri_crops.tsv --config.data.audio_root=DIR
    --config.data.trials=an4_dev.txt
    --config.augment.noise.root=noise --config.augment.rir.root=rir (optional)
Hardware: 2 CPU cores.
Arguments: xvector, resnet, ecapa; debug (tiny, on the embedded corpus).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from speaker import settings


def get_config(argument: str = "xvector") -> ConfigDict:
    """Chosen for the EER of `an4_dev` after about ten minutes on 2 cores."""
    config = settings.default_config()
    config.data.update({"kind": "manifest", "min_seconds": 0.1, "batch_rows": 64})
    config.model.update({"channels": 256, "pooled_channels": 768, "embedding_size": 192})
    config.augment.speeds = (1.0, 0.9, 1.1)
    config.augment.update({"freq_masks": 1, "time_masks": 1})
    config.augment.noise.update({"probability": 0.5, "snr_db": (0.0, 20.0)})
    config.loss.update({"margin_start_step": 300, "margin_end_step": 900})
    config.optimizer.update({"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 100})
    config.optimizer.update({"clip_norm": 5.0, "weight_decay": 0.05})
    config.update({"total_steps": 1500, "log_every": 50, "evaluate_every": 500})
    config.update({"checkpoint_every": 500, "ema_decay": 0.99})
    return config
