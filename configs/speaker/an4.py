"""A small speaker network for AN4's 66 training speakers, and any others beside them.

Data: manifests of AN4 (CMU census data, 16 kHz) with the columns utt, path, speaker, split; several
    with commas between, for the expected figures one with a 5 s crop each of 125 LibriSpeech
    speakers.
Command: python -m speaker.main --config=configs/speaker/an4.py --workdir=runs/an4_speaker
    --config.data.root=an4.tsv,libri_crops.tsv --config.data.audio_root=DIR
    --config.data.trials=an4_dev.txt
Hardware: 2 CPU cores.
Arguments: resnet (the most accurate here, and the default), ecapa, xvector: the network, trained
    with AAM-softmax; lm: large-margin stage of the ResNet, with --config.init_from=DIR; debug
    (tiny, on the embedded corpus).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs.speaker import quickstart
from speaker import settings

NETWORKS = {
    "resnet": {"kind": "resnet", "channels": 8, "depth": 34, "embedding_size": 128},
    "ecapa": {"kind": "ecapa", "channels": 64, "pooled_channels": 192, "embedding_size": 128},
    "xvector": {
        "kind": "xvector",
        "channels": 256,
        "pooled_channels": 768,
        "pooling": "attentive",
        "embedding_size": 256,
    },
}


def get_config(argument: str = "resnet") -> ConfigDict:
    """Chosen for the error rates of `an4_dev` after minutes on 2 cores."""
    if argument not in (*NETWORKS, "lm", "debug"):
        raise ValueError(f"an4.py:{argument}: the argument is {', '.join(NETWORKS)}, lm or debug")
    config = settings.default_config()
    config.data.kind = "manifest"
    config.data.update({"batch_rows": 32, "crop_seconds": 1.5})
    # The mean of a recording tells one voice from another where all are recorded alike.
    # Windows of 50 ms tell neighbouring harmonics of a high voice apart, and so its pitch.
    config.features.update({"num_mels": 80, "window_ms": 50.0, "normalize": "running"})
    config.augment.speeds = (1.0, 0.9, 1.1)
    config.augment.update({"freq_masks": 1, "time_masks": 1, "time_ratio": 0.15})
    config.model.update(NETWORKS.get(argument, NETWORKS["resnet"]))
    config.loss.update({"margin_start_step": 200, "margin_end_step": 480, "growth": "linear"})
    config.optimizer.update({"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 100})
    config.optimizer.update({"clip_norm": 5.0, "weight_decay": 0.05})
    config.update({"total_steps": 800, "log_every": 50, "evaluate_every": 100})
    config.update({"checkpoint_every": 200, "ema_decay": 0.99})
    if argument in ("ecapa", "xvector"):  # More steps, and yet less time than the ResNet.
        config.loss.margin_end_step = 800
        config.update({"total_steps": 1600, "evaluate_every": 200})
    if argument == "xvector":
        config.optimizer.learning_rate = 4e-3
    if argument == "lm":
        config.data.update({"batch_rows": 16, "crop_seconds": 3.0})
        config.augment.speeds = (1.0,)
        config.loss.update({"margin": 0.5, "margin_start_step": 0, "margin_end_step": 0})
        config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 20})
        config.update({"total_steps": 100, "evaluate_every": 50})
    if argument == "debug":
        quickstart.shrink(config)
    return config
