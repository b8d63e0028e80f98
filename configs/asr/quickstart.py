"""A small ContextNet with a transducer on the embedded corpus, in minutes on a laptop.

Data: three hours of eSpeak NG's synthetic voices, rendered on first use. Evaluated on voices and on
sentences that are not in training. Synthetic speech: the figure says nothing about real speech.
Command: make quickstart, or
         python -m asr.main --config=configs/asr/quickstart.py --workdir=runs/quickstart
Hardware: 2 CPU cores.
Argument: debug (tiny model, a few dozen steps, several checkpoints).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from asr import settings


def get_config(size: str = "") -> ConfigDict:
    """Chosen for WER after a few minutes on 2 cores."""
    if size not in ("", "debug"):
        raise ValueError(f"quickstart.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 3.0, "eval_hours": 0.1, "num_buckets": 3, "batch_seconds": 53.0})
    config.features.num_mels = 40
    # Voices never heard are what is hard here: the vocal tract is warped. Masks and dropout only
    # slowed so short a training down, and a higher learning rate hastened it.
    config.augment.update({"freq_masks": 0, "time_masks": 0, "warps": (0.75, 1.33)})
    # Utterances are never cut as closely as these: silence at the ends, noise, other levels.
    config.augment.silence.probability = 0.5
    config.augment.hiss.probability = 0.75
    config.augment.gain_db = (-20.0, 6.0)
    config.tokenizer.update({"kind": "unigram", "vocab_size": 256})
    config.encoder.blocks = (
        (1, 96, 2),
        (2, 96, 2),
        (2, 128, 2),
        (3, 160, 1),
        (3, 160, 1),
        (1, 192, 1),
    )
    config.decoder.update({"embedding": 64, "lstm": 96, "joint": 96, "ctc_weight": 0.3})
    config.decoder.blank_penalty = 0.5
    config.optimizer.update({"schedule": "cosine", "learning_rate": 1e-2, "warmup_steps": 300})
    config.optimizer.update({"b2": 0.99, "clip_norm": 20.0, "weight_decay": 0.01})
    config.update({"total_steps": 3400, "log_every": 25, "evaluate_every": 1700})
    config.update({"checkpoint_every": 850, "ema_decay": 0.995})
    if size == "debug":
        shrink(config)
    return config


def shrink(config: ConfigDict) -> None:
    """Makes any recogniser's config tiny: the same kind of model, in under a minute on 2 cores."""
    config.data.update({"kind": "embedded", "root": "", "train": ("train",), "eval": ("dev",)})
    config.data.update({"hours": 0.02, "eval_hours": 0.01, "num_buckets": 2, "num_workers": 0})
    config.data.update({"batch_seconds": 24.0, "max_seconds": 30.0})
    config.tokenizer.update({"kind": "char", "vocab_size": 0})
    config.encoder.update({"blocks": ((1, 24, 2), (2, 24, 2), (1, 32, 1)), "pointwise_ranks": ()})
    config.encoder.dropout_rate = 0.0
    config.augment.update({"speeds": (), "warps": (), "freq_masks": 0, "time_masks": 0})
    config.augment.gain_db = ()
    config.augment.silence.probability = config.augment.hiss.probability = 0.0
    config.optimizer.weight_decay = 0.0
    config.decoder.update({"embedding": 8, "lstm": 16, "joint": 24, "noise_start_step": 5})
    config.decoder.blank_penalty = 0.0
    config.optimizer.update({"schedule": "constant", "learning_rate": 2e-3, "warmup_steps": 5})
    config.update({"total_steps": 30, "log_every": 5, "evaluate_every": 15, "checkpoint_every": 10})
