"""Every setting of a separation network with its default; configs/separation/*.py start here."""

import dataclasses

from ml_collections import ConfigDict

from common import optim, trainer
from common.data import splits
from separation import causal, cue, losses, mixing, quality, sight, voicefilter
from separation.lite import losses as lite_losses
from separation.lite import network as lite_network
from separation.visualvoice import config as visualvoice_config
from separation.visualvoice import losses as visualvoice_losses

_KNOWN = ("sample_rate_hz", "axis_name")  # the rate from the data


def _section(cls: type) -> dict:
    """The fields of a dataclass with their defaults, without what is known elsewhere."""
    found = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: value for name, value in found.items() if name not in _KNOWN}


def default_config() -> ConfigDict:
    """The streaming extractor on mixtures of two voices, without any data."""
    config = trainer.default_config()
    config.optimizer = optim.default_config()
    config.data = splits.default_config()
    config.data.update(
        {
            "min_seconds": 1.0,
            "max_seconds": 1000.0,
            "crop_seconds": 3.0,  # of a mixture in training, at most (mixing.shortest_seconds)
            "enrolment_seconds": 4.0,  # at most, in evaluations too
            "batch_rows": 16,  # mixtures of one global batch, in each of which two are wanted
            "max_eval_seconds": 8.0,  # of a mixture
            "max_eval_mixtures": 200,  # of a split; 0: each recording is a target once
            "eval_batch_seconds": 64.0,
            # Lists of mixtures to evaluate whole and as they are (see separation/lists.py), each
            # NAME=FILE or FILE; one of the name of a split stands in its place. Their relative
            # paths start at `audio_root`, or where a folder above the list has them. Networks that
            # see take lists of films, which separation.prepare_video prepared in `audio_root`, or
            # in `root` where that is of kind=films.
            "lists": (),
            "num_buckets": 3,
        }
    )
    config.mixing = ConfigDict(_section(mixing.MixingConfig))
    # Noise and rooms of the mixtures, in evaluations too, at these ratios to the target.
    config.augment = splits.default_augment()
    # In training voices are played faster or slower, as other speakers: (1.0, 0.9, 1.1).
    config.augment.speeds = (1.0,)
    config.cue = ConfigDict(_section(cue.CueConfig))
    # A work directory of speaker.main: cues are of its network, as it is, and a linear layer of
    # `size`. "": of an encoder that learns beside the extractor, of these sizes.
    config.cue.workdir = ""
    # The share of training rows whose enrolment is not shown: the loudest voice is their target.
    config.cue.dropout = 0.1
    # Lips and faces as further cues, of data that have them (kind=embedded_faces).
    config.sight = ConfigDict(_section(sight.SightConfig))
    config.model = ConfigDict(
        {
            # or voicefilter, quality, visualvoice, lite; each has a section of its own
            "kind": "causal",
            "causal": _section(causal.CausalConfig),
            "voicefilter": _section(voicefilter.VoiceFilterConfig),
            "quality": _section(quality.QualityConfig),
            "visualvoice": _section(visualvoice_config.VisualVoiceConfig),
            "lite": _section(lite_network.LiteConfig),
        }
    )
    config.loss = ConfigDict(_section(losses.LossConfig))
    config.loss.visualvoice = ConfigDict(_section(visualvoice_losses.LossConfig))
    config.loss.lite = ConfigDict(_section(lite_losses.LiteLossConfig))
    # Of features, in use and in evaluations: config.model.kind=lite.
    config.suppression = ConfigDict(_section(lite_network.SuppressionConfig))
    # What --mode=evaluate measures, each on a line of its own (separation/modes.py); (): all that
    # there are. given, noisy, none, self: mixtures with their enrolments, with another voice or
    # noise in those, with none, and with what comes out by none (all of the mixture once more, as
    # `separation.enhance --self-enroll` has it without --stream). Of networks that see: with all
    # cues, with each alone, with none, with the lips of somebody else (which should not help), and
    # with those of the other speaker (whose voice should come out). In training some of them.
    config.modes = ()
    # Who else judges in --mode=evaluate, before and after: measures whose packages are installed,
    # at 0.1 s of a core for each second of a mixture; a recogniser and a speaker network by their
    # work directories.
    config.judges = ConfigDict(
        {"quality": ("stoi", "estoi", "pesq"), "recogniser": "", "speaker": ""}
    )
    # SDR, SIR and SAR of BSS Eval in every evaluation: up to some seconds for each mixture.
    config.bss_eval = True
    return config
