"""ContextNet S, M or L with a transducer on LibriSpeech 960 h.

Paper: Han et al., ContextNet, Interspeech 2020 (arXiv 2005.03191): 1k word pieces, Adam with the
transformer schedule (peak 0.0025 after 15k steps), SpecAugment, variational noise.
Data: the LibriSpeech tree as it unpacks (https://www.openslr.org/12).
Command: python -m asr.main --config=configs/asr/librispeech.py:s \
         --config.data.root=/data/LibriSpeech --workdir=runs/librispeech_s
Argument: s, m or l (alpha 0.5, 1, 2), or debug (tiny, on the embedded corpus).
Expected: the paper reports 2.9/7.0 (S), 2.4/5.4 (M), 2.1/4.6 (L) % WER on test-clean/test-other
without a language model. Not yet run by us: it needs accelerators for days.
"""

from ml_collections import ConfigDict

from asr import settings
from configs.asr import quickstart

ALPHA = {"s": 0.5, "m": 1.0, "l": 2.0}


def get_config(size: str = "s") -> ConfigDict:
    """Settings of the paper; what it leaves open follows public re-trainings."""
    if size not in (*ALPHA, "debug"):
        raise ValueError(f"librispeech.py:{size}: the argument is s, m, l or debug")
    config = settings.default_config()
    config.data.update(
        {
            "kind": "librispeech",
            "root": "",
            "train": ("train-clean-100", "train-clean-360", "train-other-500"),
            "eval": ("dev-clean", "dev-other"),
            "max_seconds": 25.0,
            "num_buckets": 6,
            "batch_seconds": 2400.0,  # about 200 utterances a step over all devices
            "num_workers": 8,
        }
    )
    config.tokenizer.update({"kind": "unigram", "vocab_size": 1024})
    config.encoder.alpha = ALPHA.get(size, 0.5)
    config.decoder.update({"noise_std": 0.075, "noise_start_step": 20000})
    config.optimizer.update({"weight_decay": 1e-6, "clip_norm": 5.0})
    config.update({"total_steps": 200_000, "log_every": 100, "evaluate_every": 5000})
    config.update({"checkpoint_every": 2000, "keep_best": 3, "ema_decay": 0.999})
    config.dtype = "bfloat16"
    if size == "debug":
        quickstart.shrink(config)
    return config
