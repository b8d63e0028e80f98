"""The streaming extractor (32 ms) on LibriSpeech's clean 460 hours, half of the time with noise.

Paper: none; see separation/causal.py for what its layers are taken from.
Data: the LibriSpeech tree, and Google's list, as in librispeech.py. Noise, music and room responses
    are folders of your own, MUSAN and RIRS_NOISES for instance; without them mixtures are clean.
Command: python -m separation.main --config=configs/separation/librispeech_causal.py \
         --config.data.root=/data/LibriSpeech --config.augment.noise.root=/data/musan/noise \
         --config.augment.rir.root=/data/RIRS_NOISES/simulated_rirs --workdir=runs/causal
    and then evaluated as in librispeech.py; clean only: --config.augment.noise.probability=0
    --config.augment.music.probability=0 --config.augment.rir.probability=0
Hardware: any accelerator, and cores to read with (config.data.num_workers). --mode=estimate says
    4.3 GiB and 0.27 TMAC a step, 100,000 of which at 5 TFLOP/s take 3 hours: calculated, not run,
    and without the reading of 256 excerpts for each.
Argument: debug (tiny, on the embedded corpus).
Expected: unknown, not yet run by us on LibriSpeech. Others' causal networks reach 8.1
    (Conv-TasNet) and 10.0 dB SI-SDRi (DP-SkiM) on Libri2Mix after train-clean-100 (PureSound's
    README): other mixtures, without noise.
"""

from ml_collections import ConfigDict

from configs.separation import librispeech, quickstart
from separation import settings


def get_config(size: str = "") -> ConfigDict:
    """The default network, with noise as in an4.py."""
    if size not in ("", "debug"):
        raise ValueError(f"librispeech_causal.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    librispeech.use_clean_460(config)
    config.data.batch_rows = 64
    config.model.causal.dtype = "bfloat16"
    config.augment.noise.update({"probability": 0.5, "snr_db": (0.0, 15.0)})
    config.augment.music.update({"probability": 0.2, "snr_db": (0.0, 15.0)})
    config.augment.rir.update({"probability": 0.3})
    config.mixing.update({"absent": 0.05, "overlap": (0.6, 1.0)})
    if size == "debug":
        quickstart.shrink(config)
    return config
