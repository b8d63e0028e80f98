"""Every setting of a speaker network with its default; configs/speaker/*.py start from here."""

from ml_collections import ConfigDict

from common import optim, trainer
from common.data import splits


def default_config() -> ConfigDict:
    """An x-vector with AAM-softmax on log-mel features, without any data."""
    config = trainer.default_config()
    config.optimizer = optim.default_config()
    config.data = splits.default_config()
    config.data.update(
        {
            "min_seconds": 0.4,
            "max_seconds": 1000.0,
            "crop_seconds": 2.0,  # of every training row; shorter recordings are padded
            # utterance: an epoch takes every recording once; speaker: every speaker equally often.
            "sampler": "utterance",
            # none; energy, webrtc: pauses are cut out of recordings (common/audio/vad.py), which
            # are then read whole; kaldi: given features keep the frames that vad.scp names.
            "vad": "none",
            "batch_rows": 128,  # of one global batch
            "num_buckets": 3,  # evaluation takes whole recordings
            "eval_batch_seconds": 20.0,
            "max_eval_seconds": 30.0,  # longer ones give their first seconds
            # Trial lists over the recordings of an evaluation split, with commas between. The best
            # checkpoint goes by the first list of the first split.
            "trials": "",
            "test_trials": "",  # of the splits in `test`, which may be several: "test+enroll"
            "allow_unknown_trials": False,  # of recordings that are not there, or are unusable
            "max_trials": 200_000,  # an evaluation without a trial list: of all pairs
            # AS-norm in evaluations, and in what decides by them: against the means of so many
            # training speakers, of each at most five recordings, embedded before. 0: none.
            "cohort": 0,
        }
    )
    config.features = ConfigDict(
        {
            # log_mel, or given: the data hold features (config.data.kind=kaldi) of `num_mels`
            # dimensions, `hop_ms` apart; `window_ms`, `window` and `compat` then say nothing.
            "kind": "log_mel",
            "num_mels": 80,
            "window_ms": 25.0,
            "hop_ms": 10.0,
            "window": "",  # "": hann, with compat=kaldi povey; hamming, blackman, rectangular
            # none; mean, utterance, causal: of each recording (common/audio/frontend.py); running:
            # less each band's mean over the training data, so that recordings may differ in it.
            "normalize": "mean",
            "compat": "default",  # or kaldi
        }
    )
    config.augment = splits.default_augment()
    # Other speeds are other speakers: (1.0, 0.9, 1.1) makes three of each.
    config.augment.speeds = (1.0,)
    config.augment.update(
        {"freq_masks": 0, "freq_width": 10, "time_masks": 0, "time_ratio": 0.05, "time_width": 20}
    )
    config.model = ConfigDict(
        {
            "kind": "xvector",  # resnet, ecapa
            # 0 and "": what the kind's paper has, see speaker/{xvector,resnet,ecapa}.py.
            "channels": 0,  # x-vector: tdnn1 to tdnn4; ResNet: the first stage; ECAPA: the blocks
            "pooled_channels": 0,  # x-vector: tdnn5; ECAPA: the aggregation
            "depth": 34,  # ResNet: 18, 34, 50, 101, 152, 221, 293; and if it is to be another one,
            "num_blocks": (),  # blocks of each stage
            "widths": (),  # channels of each stage
            "zero_init_residual": True,  # ResNet
            "embedding_norm": False,  # ResNet, ECAPA: batch normalisation of the embedding
            "embedding_layer": "tdnn7",  # x-vector: or tdnn6, as Kaldi extracts from
            "padding": "same",  # x-vector: or valid, without zeros beyond the ends, as wespeaker
            "pooling": "",  # "mean+std", "attentive", any of speaker/pooling.py joined with "+"
            "deviation": "population",  # or sample: divided by frames - 1, as wespeaker
            "embedding_size": 0,
        }
    )
    config.loss = ConfigDict(
        {
            # softmax, l2_softmax, sphereface (scale 1, margin < 1), am, adacos, sphereface2
            "kind": "aam",
            "margin": 0.2,
            "scale": 32.0,
            "fallback": "continuous",  # aam beyond pi - m: or arcface, easy
            # Each device holds a share of the classes instead of all of them (speaker/head.py).
            "sharded": False,
            "sub_centers": 1,  # am, aam
            "top_k": 0,  # am, aam: classes that get a margin of `top_k_ratio` times the margin
            "top_k_ratio": 0.3,
            "angle_multiple": 4,  # sphereface: m of psi
            "sphereface2_type": "C",  # or A
            "positive_weight": 0.7,  # sphereface2: lambda
            "power": 3,  # sphereface2: t
            # The margin grows from 0 between these steps; equal ones: it is there from then on.
            "margin_start_step": 0,
            "margin_end_step": 0,
            "growth": "exponential",  # linear, sphereface: see speaker/margin_schedules.py
            "start_scale": 0.0,  # the scale grows from this one with the margin; 0: it is fixed
        }
    )
    config.dtype = "float32"  # of the encoder's computation: or bfloat16
    return config
