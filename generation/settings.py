"""Every setting of generation with its default; configs/generation/*.py start from here."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from common import optim, trainer
from common.data import splits
from generation import matcher, revoice


def section(cls: type) -> dict[str, Any]:
    """The fields of a config dataclass with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


def default_config() -> ConfigDict:
    """A small conditional GAN at 32 x 32 on the embedded voices and portraits."""
    config = trainer.default_config()
    # Of the generator, or of all there is where nobody plays against it.
    config.optimizer = optim.default_config()
    config.optimizer.update({"schedule": "constant", "warmup_steps": 1, "learning_rate": 5e-4})
    config.optimizer.update({"b1": 0.0, "b2": 0.99, "eps": 1e-8})
    config.discriminator_optimizer = config.optimizer.copy_and_resolve_references()
    # face2voice: of the face network, whose vectors have to settle for the others to learn.
    config.face_optimizer = optim.default_config()
    config.face_optimizer.update({"warmup_steps": 20, "b2": 0.99, "clip_norm": 5.0})
    config.discriminator_updates = 1  # in a row, each on its share of a batch
    config.data = splits.default_config()
    config.data.update(  # of kind "none", without recordings, for pictures with classes
        {
            # How train, dev and test come about. parts: data.train, data.eval and data.test name
            # parts of the data. Else they are "train", "dev" and "test" of those of data.pool:
            # person, a tenth of the people for dev and for test; letter, by the first letter of
            # their names, as Wen et al. (2019); recording, the same people in all.
            "split_by": "parts",
            "pool": (".",),
            "min_seconds": 0.4,
            "max_seconds": 1000.0,
            "vad": "none",  # energy, webrtc: pauses are cut out
            # Whether recordings are decoded once, with their pauses cut out, and kept in the cache.
            "cached": False,
            # Shorter recordings are repeated.
            "crop_seconds": 3.0,
            "eval_seconds": 4.0,
            "batch_rows": 32,
            # Whether pictures are drawn without regard to the voices, as by Wen et al.: then those
            # of the speakers are not used, and "other" is anybody.
            "independent": False,
            # Of each person so many recordings and pictures are evaluated, in batches of so many.
            "eval_turns": 2,
            "eval_rows": 16,
        }
    )
    config.faces = ConfigDict(
        {
            # embedded: the portraits of data.kind=embedded; films: those that the records have;
            # folder: root/<person>/*.{jpeg,jpg,png,bmp,webp}; cifar10, mnist: pictures with
            # classes, for which the first speakers stand where there are recordings.
            "kind": "embedded",
            "root": "",
            # folder: whose pictures lie under another name than that of the speaker. A table of
            # both, as vox1_meta.csv; empty: nobody's.
            "names": "",
        }
    )
    # Pixels of a side, and 3 channels or 1, grey. 0: what the name of faces.root says, as
    # images_bw_64x64 or images_c_64x64, or what pictures with classes have.
    config.picture = ConfigDict({"size": 32, "channels": 3})
    config.features = ConfigDict(
        {
            "num_mels": 64,
            "min_hz": 20.0,
            "max_hz": 7200.0,
            "window_ms": 40.0,
            "hop_ms": 10.0,
            "num_fft": 1024,
            "normalize": "none",  # utterance, for an encoder
        }
    )
    config.voice = ConfigDict(
        {
            # statistics: means and deviations of the bands; encoder: of a trained network; mfcc:
            # cepstra; class: which of the people it is, one-hot; none: noise alone
            "kind": "statistics",
            # The run that trained it (configs/generation/voice.py); it stays as it is, and goes
            # into the checkpoints.
            "workdir": "",
            "channels": (256, 384, 576, 864),
            "size": 64,
            # Frames of a voice that are heard in a training step, as many of each: drawn between
            # these two. (0, 0): all.
            "crop_frames": (0, 0),
            # As in asariri: 16 coefficients of 40 frames of 5 s (data.crop_seconds,
            # data.eval_seconds) are 640 numbers; 98 are 3920.
            "mfcc": {"coefficients": 16, "hop_samples": 2048, "num_fft": 1024},
        }
    )
    config.model = ConfigDict(
        {
            # gan; voice2face, voice2face_plus; vanilla_gan, cgan, began; sngan_projection, r3gan.
            # face2voice makes voices of faces, revoice says a recording in the voice of a face.
            # voice trains an encoder of voices, matcher a net that judges.
            "kind": "gan",
            # gan, voice2face_plus, sngan_projection, r3gan, face2voice: without it the
            # discriminator does not hear the voice, or see the face.
            "conditional": True,
            # Channels at the last resolution, twice as many at each before, but at most `most`.
            # vanilla_gan, cgan, began: of the discriminator's first layer, and of the generator's.
            "width": 16,
            "most": 64,
            # sngan_projection, voice2face_plus: of the discriminator, from its first block on.
            "discriminator_width": 128,
            "discriminator_most": 128,
            "noise": 32,  # numbers that a generator draws; voice2face: as many as it hears
            # voice2face: channels of the layers; the face network is that of face2voice, too
            "generator_widths": (1024, 512, 256, 128, 64),
            "face_widths": (32, 64, 128, 256, 512),
            # voice2face_plus: a residual generator; False: that of voice2face
            "residual": True,
            # Dimensions in which voices and faces meet, of gan and voice2face_plus with
            # loss.contrast (or loss.identity), of face2voice; those of the encoder of face2voice
            # with voice.kind=encoder. Few of them learn fewer training people by heart.
            "embedding": 64,
            "frames": 128,  # face2voice: frames of log-mel (config.features) that are made
            "matcher": section(matcher.MatcherConfig),  # of revoice, too
            "revoice": section(revoice.RevoiceConfig),
        }
    )
    config.loss = ConfigDict(
        {
            "kind": "non_saturating",  # hinge, least_squares, relativistic; began
            "wrong_pairs": True,  # real faces with another's voice are wrong, too
            "r1": 0.2,  # gamma of the gradient penalty on real pictures; 0: none
            "r2": 0.0,  # and on fakes
            "r1_every": 8,  # steps, with so many times the weight; of r2 too
            # Of who it is, on real faces and on fakes with their speakers; voice2face_plus: by
            # AM-softmax, the others by cross-entropy.
            "identity": 0.0,
            "identity_margin": 0.2,
            "identity_scale": 30.0,
            # gan, voice2face_plus, face2voice: InfoNCE between voices and faces, which the
            # discriminator learns on real ones and the generator has to satisfy; revoice: the
            # weight of the same between real ones
            "contrast": 0.0,
            "contrast_temperature": 0.1,  # of the face network of face2voice, too
            # DiffAugment of all that the discriminator sees: colour, translation, cutout
            "augment": (),
            "augment_strength": 1.0,  # 1: as published
            # began: the error of fakes over that of real pictures, and how fast k follows
            "began_gamma": 0.75,
            "began_rate": 1e-3,
        }
    )
    config.samples = ConfigDict({"people": 8, "faces": 4})  # of the grid of an evaluation
    # The run of a net (configs/generation/matcher.py) that says in evaluations which face belongs
    # to which voice. It has to have been trained apart from this one. "": pictures only.
    config.judge = ""
    # revoice: the run of a recogniser (asr.main) that says in evaluations which words are left.
    config.recogniser = ""
    config.dtype = "float32"  # of the GAN's convolutions: or bfloat16
    return config
