"""A streaming extractor for AN4's 66 training speakers, and any others beside them.

Data: manifests of AN4 (CMU census data, 16 kHz) with the columns utt, path, speaker, split; several
    with commas between: one with a 5 s crop each of 125 LibriSpeech speakers beside it. Noise,
    music and room responses are folders. Evaluated on fixed lists of mixtures.
Command: python -m separation.main --config=configs/separation/an4.py --workdir=runs/an4_separation
    --config.data.root=an4.tsv,libri_crops.tsv --config.data.audio_root=DIR
    --config.data.lists=dev.tsv,dev_noisy.tsv --config.augment.noise.root=DIR/noise/esc10
Hardware: 2 CPU cores.
Argument: debug (tiny, on the embedded corpus).
"""

from ml_collections import ConfigDict

from configs.separation import quickstart
from separation import settings


def get_config(size: str = "") -> ConfigDict:
    """Two voices at -5 to 5 dB, as in the lists, half of the time with noise."""
    if size not in ("", "debug"):
        raise ValueError(f"an4.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"kind": "manifest", "root": "", "train": ("train",), "eval": ()})
    config.data.update({"batch_rows": 16, "crop_seconds": 2.5, "enrolment_seconds": 3.0})
    config.augment.noise.update({"probability": 0.5, "snr_db": (0.0, 15.0)})
    config.augment.music.update({"probability": 0.2, "snr_db": (0.0, 15.0)})
    config.augment.rir.update({"probability": 0.3})
    config.mixing.update({"absent": 0.05, "overlap": (0.6, 1.0)})
    if size == "debug":
        quickstart.shrink(config)
    return config
