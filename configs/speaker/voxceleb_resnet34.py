"""ResNet34 on VoxCeleb2-dev with the settings of wespeaker's recipe v2, and its large-margin stage.

Wang et al., "Wespeaker", ICASSP 2023; thin ResNet34, mean and deviation over time, AAM-softmax.
Data: --config.data.root holds vox2/dev (speaker/video/utterance; converted from m4a: see
    common/data/voxceleb.py) and vox1/test, or what --config.data.train and .eval name; trials of
    VoxCeleb1-O by --config.data.trials=veri_test2.txt. Noise (MUSAN) and rooms (RIRS_NOISES) by
    --config.augment.{noise,music,babble,rir}.root.
Deviations from the recipe (examples/voxceleb/v2 of wespeaker; conf/resnet.yaml and resnet_lm.yaml):
    no dither of the training samples (there 1 step of 16 bits); weight decay on matrices alone
    (there on every parameter); each distortion for 20 % of the rows by itself, so that some get
    several and 59 % at least one (there 60 % get one: half of them a room, the others a noise,
    music or one voice drawn by file), babble of 3 to 7 voices at 13 to 20 dB (there one voice at 10
    to 30 dB), and levels that are not set anew (there the distorted peak is 1); recordings under
    1 s stay in, and crops come from all of a recording (there from 8 s of it drawn before); first
    weights from He's normal distribution (there PyTorch's uniform ones); a running average of the
    weights in place of the mean of those of the last ten epochs (of none in the large-margin
    stage); scores are plain cosines (there less the mean embedding of VoxCeleb2-dev, then AS-norm).
Command: python -m speaker.main --config=configs/speaker/voxceleb_resnet34.py --workdir=runs/r34
    then --config=configs/speaker/voxceleb_resnet34.py:lm --config.init_from=runs/r34
Arguments: lm (large-margin stage); debug, debug-lm (tiny, on the embedded corpus).
Hardware: one GPU or more; hours and error rates: not run here.
"""

from ml_collections import ConfigDict

from configs.speaker import quickstart
from speaker import settings

# VoxCeleb2-dev: 1,092,009 recordings of 5,994 speakers.
ROWS = 256
EPOCH = 1_092_009 // ROWS


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument` as in the module's docstring."""
    return recipe(argument, {"kind": "resnet", "depth": 34, "channels": 32, "embedding_size": 256})


def recipe(argument: str, model: dict[str, object]) -> ConfigDict:
    """wespeaker's settings for any network."""
    if argument not in ("", "lm", "debug", "debug-lm"):
        raise ValueError(f"{argument}: the argument is lm, debug, debug-lm or nothing")
    config = settings.default_config()
    config.data.update({"kind": "voxceleb", "train": ("vox2/dev",), "eval": ("vox1/test",)})
    # 200 frames: the last one starts at 1.99 s and lasts 25 ms.
    config.data.update({"batch_rows": ROWS, "crop_seconds": 2.015, "num_workers": 8})
    config.data.eval_batch_seconds = 480.0  # for accelerators; a CPU is faster with 20
    config.features.update({"num_mels": 80, "normalize": "mean", "compat": "kaldi"})
    config.features.window = "hamming"
    config.augment.speeds = (1.0, 0.9, 1.1)
    for name, snr_db in (("noise", (0.0, 15.0)), ("music", (5.0, 15.0)), ("babble", (13.0, 20.0))):
        config.augment[name].update({"probability": 0.2, "snr_db": snr_db})
    config.augment.rir.probability = 0.2
    config.model.update({"zero_init_residual": False, "deviation": "sample", **model})
    config.loss.update({"kind": "aam", "margin": 0.2, "scale": 32.0, "growth": "exponential"})
    # At the starts of the epochs 20 and 40, which the recipe counts from 1.
    config.loss.update({"margin_start_step": 19 * EPOCH, "margin_end_step": 39 * EPOCH})
    # The recipe's 0.1 for 64 rows grows with the batch.
    config.optimizer.update({"name": "sgd", "momentum": 0.9, "nesterov": True})
    config.optimizer.update({"learning_rate": 0.1 * ROWS / 64, "final_ratio": 5e-4})
    config.optimizer.update({"schedule": "exponential", "warmup_steps": 6 * EPOCH})
    config.optimizer.weight_decay = 1e-4
    config.update({"total_steps": 150 * EPOCH, "log_every": 100, "evaluate_every": EPOCH})
    config.update({"checkpoint_every": 1000, "keep_best": 3})
    config.ema_decay = 0.9999
    if argument.endswith("lm"):
        rows = 128  # of two GPUs, as above
        epoch = 1_092_009 // rows
        config.data.update({"batch_rows": rows, "crop_seconds": 6.015})
        config.augment.speeds = (1.0,)
        config.loss.update({"margin": 0.5, "margin_start_step": 0, "margin_end_step": 0})
        config.optimizer.update({"learning_rate": 1e-4 * rows / 64, "final_ratio": 0.25})
        config.optimizer.warmup_steps = epoch
        config.update({"total_steps": 5 * epoch, "evaluate_every": epoch})
    if argument.startswith("debug"):
        margins = config.loss.margin_end_step > 0
        quickstart.shrink(config)
        if not margins:
            config.loss.update({"margin_start_step": 0, "margin_end_step": 0})
    return config
