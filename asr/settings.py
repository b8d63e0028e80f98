"""Every setting of a recogniser with its default; configs/asr/*.py start from here."""

from ml_collections import ConfigDict

from common import optim, trainer
from common.data import splits


def default_config() -> ConfigDict:
    """ContextNet-S with a transducer on log-mel features, as in the paper, without any data."""
    config = trainer.default_config()
    config.optimizer = optim.default_config()
    config.optimizer.update({"schedule": "noam", "learning_rate": 2.5e-3, "warmup_steps": 15000})
    config.data = splits.default_config()
    config.data.update(
        {
            "case": "upper",  # of transcripts: upper, lower, keep
            "num_buckets": 4,
            "batch_seconds": 240.0,  # audio in one global batch, padding included
        }
    )
    config.features = ConfigDict(
        {
            "kind": "log_mel",  # or learned: a filter bank on the waveform (asr/filterbank.py)
            "num_mels": 80,
            "window_ms": 25.0,
            "hop_ms": 10.0,
            # none, mean, utterance, causal (frames so far); learned: also batch
            "normalize": "utterance",
            "compat": "default",  # log_mel: or kaldi
            "preemphasis": 0.97,
            "floor": 1e-6,  # least energy, before the logarithm
            # The others: learned. See asr.filterbank.FilterbankConfig.
            "rank": 0,  # basis filters, 0 = dense
            "filter_ms": 0.0,  # length of filters, 0 = window_ms
            "filters": "pairs",  # cosine and sine; single, max_pooled
            "pooling": 4,  # energies a frame, low-passed to one
            "pool": "gaussian",  # the low-pass: learned (its widths), hann
            "compression": "log",  # pcen
            "start": "mel",  # random
            "rate": 1.0,  # of the filters, times the learning rate; 0: they stay
            "frozen_steps": 0,  # so long they stay
        }
    )
    config.augment = ConfigDict(
        {
            "speeds": (),  # e.g. (0.9, 1.0, 1.1): every recording at each of them
            # Vocal tract length: lowest and highest factor of frequency, e.g. (0.85, 1.18).
            "warps": (),
            # Zeros around a recording: before and after it together, at most so many seconds.
            "silence": {"probability": 0.0, "seconds": 0.5},
            "gain_db": (),  # lowest and highest, e.g. (-20.0, 6.0)
            "freq_masks": 1,
            "freq_width": 27,
            "time_masks": 10,
            "time_ratio": 0.05,  # widest time mask over the utterance
        }
    )
    config.augment.update(splits.default_augment())
    config.tokenizer = ConfigDict({"kind": "unigram", "vocab_size": 1000})  # char, unigram, bpe
    config.encoder = ConfigDict(
        {
            "alpha": 0.5,  # S; M is 1, L is 2
            "num_convs": 5,
            "kernel_size": 5,
            "strided_blocks": (3, 7, 14),
            "blocks": (),  # rows (convs, channels, stride[, kernel]) in place of the paper's table
            "conv": "separable",  # spectro_temporal (rank-R filters), dense
            "rank": 1,
            "pointwise_rank_fraction": 1.0,  # below 1: low-rank 1x1 maps
            "pointwise_ranks": (),  # written by asr.lowrank
            "se_reduction": 8,  # 0 = no squeeze-and-excitation
            "se_window": 0,  # frames; 0 = the utterance
            "causal": False,
            "dropout_rate": 0.0,
            "remat": False,  # keep only the outputs of blocks: less memory, one forward pass more
        }
    )
    # Weights of terms on the factors of low-rank layers of the encoder (asr/penalties.py).
    config.regularize = ConfigDict({"orthogonality": 0.0, "nuclear_norm": 0.0})
    config.decoder = ConfigDict(
        {
            "loss": "transducer",  # or ctc
            "ctc_weight": 0.0,  # of an auxiliary CTC loss beside the transducer
            "embedding": 640,
            "lstm": 640,
            "num_layers": 1,
            "joint": 640,
            "fastemit": 0.0,
            "noise_std": 0.0,  # variational noise on the prediction network's weights
            "noise_start_step": 0,
            "max_symbols": 5,  # greedy search: labels per frame at most
            "blank_penalty": 0.0,  # greedy search: nats off blank, against left out words
        }
    )
    config.dtype = "float32"  # of the computation: or bfloat16; parameters stay float32
    return config
