"""VoiceFilter-Lite (arXiv:2009.04323): the features of one voice, in front of a small recogniser.

Data: an hour of eSpeak NG's voices, rendered on first use; another voice talks during 30 to 100 %
of each mixture at -5 to 5 dB, and half of the mixtures have white or coloured noise at 1 to 10 dB
(the paper's range). Synthetic speech: the figures say nothing about real speakers.
Command: python -m separation.main --config=configs/separation/lite.py --workdir=runs/lite
Then WER before and after, by a run of configs/asr/quickstart.py, whose 40 bands these are:
    python -m separation.main --workdir=runs/lite --mode=evaluate \
        --config.judges.recogniser=runs/quickstart
For another recogniser --config.model.lite takes its settings of config.features.
Hardware: 2 CPU cores.
Argument: debug (tiny, a few dozen steps).
Expected: about 10 minutes of one core; it does not help the recogniser yet (benchmarks/RESULTS.md).
"""

from ml_collections import ConfigDict

from configs.separation import quickstart
from separation import settings


def get_config(size: str = "") -> ConfigDict:
    """A small network for the features of configs/asr/quickstart.py."""
    if size not in ("", "debug"):
        raise ValueError(f"lite.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 1.0, "eval_hours": 0.1, "batch_rows": 8, "crop_seconds": 2.0})
    config.data.update({"enrolment_seconds": 3.0, "max_eval_mixtures": 100})
    config.mixing.overlap = (0.3, 1.0)
    config.augment.hiss.update({"probability": 0.5, "snr_db": (1.0, 10.0)})
    config.cue.update({"channels": 96, "dropout": 0.0})
    config.model.kind = "lite"
    config.model.lite.update({"num_mels": 40, "lstm_size": 192})
    config.optimizer.update({"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 50})
    config.optimizer.clip_norm = 5.0
    config.update({"total_steps": 1800, "log_every": 25, "evaluate_every": 600})
    config.update({"checkpoint_every": 600, "ema_decay": 0.99, "bss_eval": False})
    if size == "debug":
        quickstart.shrink_run(config)
        quickstart.shrink_cue(config)
        config.model.lite.update({"convs": ((3, 2),), "lstm_size": 16, "num_layers": 1})
        config.model.lite.hidden_size = 8
    return config
