"""ContextNet-S with low-rank filters on LibriSpeech 960 h, for comparison with `librispeech.py:s`.

Argument, one of several separate choices (see asr/contextnet.py and asr/filterbank.py):
  wave        learned waveform front end, filter bank H = B A of rank 24 (400 taps, 80 filters)
  original1, original2   as the first layers of Idiap's LR-CNN: 80 filters of 30 taps every 10
              samples, the largest of a frame of 10 ms (there of 30 samples), and spectro-temporal
              filters of rank 1 or 2 on them
  filter1, filter2, filter4   spectro-temporal filters of rank R in place of the separable ones
  pointwise   1x1 maps P = U V^T of a quarter of the rank (break-even is a half)
  debug       `filter2` and `pointwise` ranks on a tiny model and the embedded corpus
Idea: Idiap-RR-11-2019's low-rank filters; the rank-1 filter has as many parameters as the separable
one, so savings come from `pointwise` (asr.lowrank prints the counts).
Command: python -m asr.main --config=configs/asr/librispeech_lowrank.py:pointwise \
         --config.data.root=/data/LibriSpeech --workdir=runs/librispeech_lowrank
Expected: not yet run by us.
"""

from ml_collections import ConfigDict

from configs.asr import librispeech

CHOICES = ("wave", "original1", "original2", "filter1", "filter2", "filter4", "pointwise", "debug")


def get_config(choice: str = "pointwise") -> ConfigDict:
    """`librispeech.py:s` with one thing changed."""
    if choice not in CHOICES:
        raise ValueError(f"librispeech_lowrank.py:{choice}: the argument is {', '.join(CHOICES)}")
    config = librispeech.get_config("debug" if choice == "debug" else "s")
    if choice == "wave":
        # Single filters: of pairs, which are twice as many, rank 24 keeps less (RESULTS).
        config.features.update({"kind": "learned", "rank": 24, "filters": "single", "pooling": 8})
    elif choice.startswith("original"):
        bank = {"filters": "max_pooled", "filter_ms": 30 / 16, "pooling": 16}
        config.features.update({"kind": "learned", **bank})
        config.encoder.update({"conv": "spectro_temporal", "rank": int(choice[-1])})
    elif choice == "debug":
        config.encoder.update({"conv": "spectro_temporal", "rank": 2})
    elif choice.startswith("filter"):
        config.encoder.update({"conv": "spectro_temporal", "rank": int(choice[-1])})
    else:
        config.encoder.pointwise_rank_fraction = 0.25
    return config
