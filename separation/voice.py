"""The network of a work directory of `speaker.main`, as the encoder of voice cues.

It stays as it was trained, as in VoiceFilter (Wang et al. 2019, section 2.1), and is kept in the
checkpoints of the separation network, its settings beside them: its own work directory is needed
until the first checkpoint only.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from common import errors, parts, trained, workdir
from speaker import model as speaker_model
from speaker import settings as speaker_settings
from speaker import task as speaker_task

FOLDER = "cue"  # in the work directory: the settings of the speaker network
_TASK = "speaker"


class Voice(NamedTuple):
    """A speaker network and the work directory of its training."""

    network: speaker_model.SpeakerNet
    folder: pathlib.Path

    def fresh(self, key: Key[Array, ""]) -> Mapping[str, Any]:
        """Variables of the right shapes, without those of the head."""
        audio, lengths = jnp.zeros((1, 8000)), jnp.full((1,), 8000, jnp.int32)
        mask = jnp.ones((1,), bool)
        embed = functools.partial(self.network.init, method="embed", train=False)
        return dict(embed(key, audio, lengths, mask=mask))

    def embed(
        self, variables: Mapping[str, Any], audio: Float[Array, "b t"], lengths: Int[Array, "b"]
    ) -> Float[Array, "b d"]:
        """Embeddings; 0 where the length is."""
        mask = lengths > 0
        return self.network.apply(variables, audio, lengths, train=False, mask=mask, method="embed")

    def trained(self) -> Mapping[str, Any]:
        """The variables of its best checkpoint, as `fresh` has them."""
        found = trained.load(speaker_task.PACKAGE, self.folder)
        template = jax.eval_shape(self.fresh, jax.random.key(0))
        return parts.like(found.variables, template)


def keep_settings(folder: str, beside: pathlib.Path) -> None:
    """Those of the speaker network, beside the checkpoints that will hold it."""
    (beside / FOLDER).mkdir(parents=True, exist_ok=True)
    workdir.save_config(beside / FOLDER, _TASK, _config(folder))


def open_voice(folder: str, beside: pathlib.Path, sample_rate_hz: int) -> Voice:
    """The network of `config.cue.workdir`, by the settings that lie `beside` the checkpoints.

    Raises UserError: no such work directory, of another task, of another rate, without audio.
    """
    kept = workdir.has_checkpoints(beside) and (beside / FOLDER).is_dir()
    config = _config(str(beside / FOLDER) if kept else folder)
    rate = config.data.sample_rate_hz
    if rate != sample_rate_hz:
        raise errors.UserError(
            f"config.cue.workdir={folder}: it was trained at {rate} Hz, and the mixtures are at "
            f"config.data.sample_rate_hz={sample_rate_hz}."
        )
    if config.features.kind == "given":
        raise errors.UserError(
            f"config.cue.workdir={folder}: its features were computed elsewhere, so that it cannot "
            "hear an enrolment. Name one that was trained on audio."
        )
    return Voice(speaker_model.make_model(config, 2), pathlib.Path(folder).expanduser())


def _config(folder: str) -> Any:
    def load(path: pathlib.Path) -> Any:
        return workdir.load_config(path, _TASK, speaker_settings.default_config())

    return workdir.of_setting("config.cue.workdir", folder, _TASK, load)
