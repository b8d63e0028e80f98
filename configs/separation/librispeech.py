"""VoiceFilter on LibriSpeech's clean 460 hours: the published network, which does not stream.

Paper: Wang et al., VoiceFilter, Interspeech 2019 (arXiv:1810.04826): the layers of table 1 on 601
    bins, windows of 25 ms every 10 ms, compressed magnitudes as the loss. What differs: the cue is
    of an encoder that learns beside the network to tell the training speakers apart, where the
    paper's was trained before and on many more; each mixture trains both of its voices, at -5 to
    5 dB, where the paper adds recordings as they are. Batch, rate and steps are ours.
Data: the LibriSpeech tree as it unpacks (https://www.openslr.org/12): train-clean-100,
    train-clean-360 and dev-clean. Google's list of 5,567 mixtures (dev-other too): dev_tuples.csv
    of https://github.com/google/speaker-id, in publications/VoiceFilter/dataset/LibriSpeech.
Command: python -m separation.main --config=configs/separation/librispeech.py \
         --config.data.root=/data/LibriSpeech --workdir=runs/voicefilter
    and then python -m separation.main --workdir=runs/voicefilter --mode=evaluate \
         --config.data.lists=google=dev_tuples.csv
Hardware: an accelerator of 40 GB or more. --mode=estimate says 33 GiB (on a CPU) and 10.3 TMAC a
    step, so that 100,000 steps at 30 TFLOP/s take 19 hours: calculated, not run.
Argument: debug (tiny, on the embedded corpus).
Expected: the paper reports a median SDR of 12.6 dB from 2.5 dB (mean 17.9 from 10.1), with its own
    encoder; public ports 10.2 dB and less. Not yet run by us on LibriSpeech.
"""

from ml_collections import ConfigDict

from configs.separation import quickstart
from separation import settings


def get_config(size: str = "") -> ConfigDict:
    """The paper's network and loss; what it leaves open is ours."""
    if size not in ("", "debug"):
        raise ValueError(f"librispeech.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    use_clean_460(config)
    config.mixing.overlap = (0.5, 1.0)
    config.cue.update({"channels": 512, "size": 256, "dropout": 0.0})
    config.model.kind = "voicefilter"
    config.model.voicefilter.num_fft = 1200
    config.loss.update({"complex": 0.0, "si_sdr": 0.0})
    if size == "debug":
        quickstart.shrink(config)
    return config


def use_clean_460(config: ConfigDict) -> None:
    """LibriSpeech's data, and how long to train on them."""
    config.data.update({"kind": "librispeech", "root": "", "num_workers": 8})
    config.data.update({"train": ("train-clean-100", "train-clean-360"), "eval": ("dev-clean",)})
    config.data.update({"batch_rows": 16, "crop_seconds": 3.0, "enrolment_seconds": 5.0})
    config.data.max_eval_mixtures = 400
    config.optimizer.clip_norm = 5.0
    config.update({"total_steps": 100_000, "log_every": 100, "evaluate_every": 5000})
    config.update({"checkpoint_every": 1000, "keep_best": 3, "ema_decay": 0.999})
