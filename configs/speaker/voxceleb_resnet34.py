"""ResNet34 on VoxCeleb2-dev with the settings of wespeaker's recipe v2, and its large-margin stage.

Wang et al., "Wespeaker", ICASSP 2023; thin ResNet34, mean and deviation over time, AAM-softmax.
Data: --config.data.root holds vox2/dev (speaker/video/utterance; converted from m4a: see
    common/data/voxceleb.py) and vox1/test, or what --config.data.train and .eval name; trials of
    VoxCeleb1-O by --config.data.trials=veri_test2.txt. Noise (MUSAN) and rooms (RIRS_NOISES) by
    --config.augment.{noise,music,babble,rir}.root.
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
    config.data.update({"batch_rows": ROWS, "crop_seconds": 2.0, "num_workers": 8})
    config.features.update({"num_mels": 80, "normalize": "mean", "compat": "kaldi"})
    config.augment.speeds = (1.0, 0.9, 1.1)
    # Each for a fifth of the rows, so that about 60 % get some (the recipe: 60 % get one).
    for name, snr_db in (("noise", (0.0, 15.0)), ("music", (5.0, 15.0)), ("babble", (13.0, 20.0))):
        config.augment[name].update({"probability": 0.2, "snr_db": snr_db})
    config.augment.rir.probability = 0.2
    config.model.update(model)
    config.loss.update({"kind": "aam", "margin": 0.2, "scale": 32.0, "growth": "exponential"})
    # At the starts of the epochs 20 and 40, which the recipe counts from 1.
    config.loss.update({"margin_start_step": 19 * EPOCH, "margin_end_step": 39 * EPOCH})
    # The recipe's 0.1 for 64 rows grows with the batch.
    config.optimizer.update({"name": "sgd", "momentum": 0.9, "nesterov": True})
    config.optimizer.update({"learning_rate": 0.1 * ROWS / 64, "final_ratio": 5e-4})
    config.optimizer.update({"schedule": "exponential", "warmup_steps": 6 * EPOCH})
    config.optimizer.weight_decay = 1e-4  # on matrices; the recipe's is on all parameters
    config.update({"total_steps": 150 * EPOCH, "log_every": 100, "evaluate_every": EPOCH})
    config.update({"checkpoint_every": 1000, "keep_best": 3})
    config.ema_decay = 0.9999  # in place of the mean of the last ten epochs' weights
    if argument.endswith("lm"):
        rows = 128  # of two GPUs, as above
        epoch = 1_092_009 // rows
        config.data.update({"batch_rows": rows, "crop_seconds": 6.0})
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
