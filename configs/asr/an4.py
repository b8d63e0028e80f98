"""A small ContextNet with a transducer on AN4 (CMU census data, 0.63 h of training speech).

Data: a manifest with the columns path, split (train, dev), text and speaker (over whom the interval
      of the word error rate is, or over utterances without it); relative paths start at
      --config.data.audio_root, by default the manifest's folder.
Command: python -m asr.main --config=configs/asr/an4.py --config.data.root=/data/an4/an4.tsv \
         --workdir=runs/an4
Or:      python -m asr.main --config=configs/asr/an4.py:synthetic --workdir=runs/synthetic
         and the command above with --config.init_from=encoder=runs/synthetic \
         --config.total_steps=3000: the encoder has then heard 3 h of 640 synthetic voices before.
Argument: synthetic (the embedded corpus in place of AN4, with the same network); debug (tiny, on
      the embedded corpus).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from asr import settings
from configs.asr import quickstart


def get_config(size: str = "") -> ConfigDict:
    """Tuned on the dev split (the first 100 training utterances)."""
    if size not in ("", "synthetic", "debug"):
        raise ValueError(f"an4.py:{size}: the argument is synthetic, debug or nothing")
    config = settings.default_config()
    config.data.update({"kind": "manifest", "root": "", "train": ("train",), "eval": ("dev",)})
    config.data.update({"max_seconds": 8.0, "num_buckets": 3, "batch_seconds": 60.0})
    # No SpecAugment: with it this little network learns half as fast (benchmarks/RESULTS.md).
    config.augment.update({"speeds": (0.9, 1.0, 1.1), "freq_masks": 0, "time_masks": 0})
    config.augment.silence.probability = 0.5
    config.augment.hiss.probability = 0.5
    config.augment.gain_db = (-20.0, 6.0)
    config.tokenizer.update({"kind": "char", "vocab_size": 0})
    config.encoder.blocks = (
        (1, 96, 2),
        (2, 128, 2),
        (3, 192, 1),
        (3, 192, 1),
        (3, 192, 1),
        (1, 256, 1),
    )
    config.encoder.dropout_rate = 0.15
    config.decoder.update({"embedding": 64, "lstm": 128, "joint": 96, "ctc_weight": 0.5})
    config.optimizer.update({"schedule": "cosine", "learning_rate": 4e-3, "warmup_steps": 200})
    config.optimizer.update({"clip_norm": 5.0, "weight_decay": 0.02})
    config.update({"total_steps": 2500, "log_every": 50, "evaluate_every": 500})
    config.update({"checkpoint_every": 500, "ema_decay": 0.998})
    if size == "synthetic":
        config.data.update({"kind": "embedded", "hours": 3.0, "voices": 640, "eval_hours": 0.1})
        config.augment.speeds = (1.0,)
        config.update({"evaluate_every": 1250, "checkpoint_every": 1250})
    if size == "debug":
        quickstart.shrink(config)
    return config
