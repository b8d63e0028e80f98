"""Which side of a pair a GAN knows, and which it makes: a face of a voice, a voice of a face."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from common import metrics, parallel, state, steps
from common.task import Batch, Metrics
from generation import images, judging, matcher, model, sounds

VOICE, FACE = "voice", "face"


@runtime_checkable
class Direction(Protocol):
    """`known` and `made`: VOICE or FACE. `players`: who learns beside the two sides of the game,
    before them; each has the parameters of its name.

    What is made are pictures [b, h, w, c] of values in [-1, 1].
    """

    known: str
    made: str
    players: tuple[steps.Player, ...]

    def condition(self, variables: state.Variables, batch: Batch, key: Any) -> Float[Array, "b d"]:
        """What is known of the rows; in a training step with a `key`, else with None."""

    def real(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Float[Array, "b h w c"], Int[Array, "b"]]:
        """What is to be made of the rows, as it is in the data, and whose it is."""

    def wrong(
        self, variables: state.Variables, batch: Batch, condition: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b d"]]:
        """Two real ones that do not belong together, one of them that of the row."""

    def outputs(
        self, variables: state.Variables, batch: Batch, made: Float[Array, "b n h w c"]
    ) -> dict[str, Array]:
        """Of an evaluation: what the other methods need of it on the host."""

    def judged(
        self, judge: judging.Judge, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What a report of `judging` takes of a batch."""

    def shown(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of some rows: "grid", the pictures of a column of the grid [k, n, h, w, c] in bytes, and
        where sounds are made "sound" [k, t]."""


@dataclasses.dataclass(frozen=True)
class FaceOfVoice:
    """A face is made of what is heard; a wrong one is another's."""

    config: Any
    networks: model.Networks
    known: str = VOICE
    made: str = FACE
    players: tuple[steps.Player, ...] = ()

    def condition(self, variables: state.Variables, batch: Batch, key: Any) -> Float[Array, "b d"]:
        return heard(self.networks, self.config, variables, batch, key)

    def real(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Float[Array, "b h w c"], Int[Array, "b"]]:
        del variables
        name = "other_" if self.config.data.independent else ""
        return images.to_values(batch[f"{name}face"]), batch[f"{name}label"]

    def wrong(
        self, variables: state.Variables, batch: Batch, condition: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b d"]]:
        del variables
        return images.to_values(batch["other_face"]), condition

    def outputs(
        self, variables: state.Variables, batch: Batch, made: Float[Array, "b n h w c"]
    ) -> dict[str, Array]:
        names = ("face", "probe")
        return {"fakes": made, **{name: batch[name] for name in names if name in batch}}

    def judged(
        self, judge: judging.Judge, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Of the voice another recording than the one that the face was made of."""
        return judge.kept(outputs["probe"], images.to_bytes(outputs["fakes"]), outputs["face"])

    def shown(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The real face on top."""
        fakes = images.to_bytes(outputs["fakes"][rows])
        return {"grid": np.concatenate([outputs["face"][rows][:, None], fakes], axis=1)}


@dataclasses.dataclass(frozen=True)
class VoiceOfFace:
    """A stretch of a voice is made of what is seen of a face; a real one of another's is wrong."""

    config: Any
    networks: model.Networks
    known: str = FACE
    made: str = VOICE

    @property
    def players(self) -> tuple[steps.Player, ...]:
        """The face network: to the two sides of the game its vectors are given."""
        return (steps.Player(FACE, self.face_loss, (FACE,)),)

    def face_loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """InfoNCE between faces, whose colours and places are changed a little, and voices."""
        del step
        mask, faces = batch["mask"], images.to_values(batch["face"])
        if train:
            keys = parallel.row_keys(jax.random.fold_in(key, 1), batch["row"])
            faces = matcher.augmented(faces, keys, self.config.model.matcher.colour)
        listened = heard(self.networks, self.config, variables, batch, key if train else None)
        seen, said = self.networks.meet(variables, faces, listened)
        scale = 1.0 / self.config.loss.contrast_temperature
        lost, right = matcher.contrast(said, seen, scale, batch["label"], mask)
        sums = {"face_accuracy": metrics.ratio(right, mask)}
        return {"face_contrast": metrics.Term(*metrics.ratio(lost, mask))}, (sums, {})

    def condition(self, variables: state.Variables, batch: Batch, key: Any) -> Float[Array, "b d"]:
        del key
        return self.networks.look(variables, images.to_values(batch["face"]))

    def real(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Float[Array, "b h w c"], Int[Array, "b"]]:
        stretches = self.networks.stretches
        return stretches.pictures(variables[sounds.SCALES], batch["audio"]), batch["label"]

    def wrong(
        self, variables: state.Variables, batch: Batch, condition: Float[Array, "b d"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b d"]]:
        del condition
        other = self.networks.look(variables, images.to_values(batch["other_face"]))
        return self.real(variables, batch)[0], other

    def outputs(
        self, variables: state.Variables, batch: Batch, made: Float[Array, "b n h w c"]
    ) -> dict[str, Array]:
        """The first one also as the sound that it stands for."""
        stretches = self.networks.stretches
        keys = jax.vmap(jax.random.key)(batch["index"].astype(jnp.uint32))
        return {
            "fakes": made,
            "sound": stretches.sounds(variables[sounds.SCALES], made[:, 0], keys),
            "stretch": self.real(variables, batch)[0],
            "face": batch["face"],
            "probe": batch["probe"][:, : stretches.samples],
        }

    def judged(
        self, judge: judging.Judge, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Sounds, as somebody hears them: whatever the judge's front end is, and with what the
        phases have done to them. The real ones are as long."""
        found = {"made": judge.hear(outputs["sound"]), "real": judge.hear(outputs["probe"])}
        return {FACE: judge.look(outputs["face"]).vectors, **found}

    def shown(self, outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The face on top, then a real stretch of the voice, the made ones below; time to the
        right, low frequencies at the bottom."""
        both = np.concatenate([outputs["stretch"][rows][:, None], outputs["fakes"][rows]], axis=1)
        upright = images.to_bytes(both).swapaxes(2, 3)[:, :, ::-1]
        colour = np.broadcast_to(upright, (*upright.shape[:-1], 3))
        faces = [_mounted(face, colour.shape[2:4]) for face in outputs["face"][rows]]
        faces = np.array(faces, np.uint8).reshape(len(colour), 1, *colour.shape[2:])
        grid = np.concatenate([faces, colour], axis=1)
        return {"grid": grid, "sound": outputs["sound"][rows]}


def _mounted(face: UInt8[np.ndarray, "h w c"], size: tuple[int, int]) -> UInt8[np.ndarray, "y x 3"]:
    """A face in the middle of a white picture."""
    side = min(size)
    face = np.broadcast_to(face, (*face.shape[:2], 3))
    whole = np.full((*size, 3), 255, np.uint8)
    top, left = ((length - side) // 2 for length in size)
    whole[top : top + side, left : left + side] = images.resized(face, side, 3)
    return whole


def heard(
    networks: model.Networks, config: Any, variables: state.Variables, batch: Batch, key: Any
) -> Float[Array, "b d"]:
    """What is heard of the rows; of voices as many samples of each in a training step."""
    if key is None or "audio" not in batch:
        return networks.condition(variables, batch)
    shape = batch["audio"].shape
    count = model.heard_samples(config, jax.random.fold_in(key, 0), shape[1])
    return networks.condition(variables, batch, jnp.full(shape[:1], count))


def make(config: Any, networks: model.Networks) -> Direction:
    """That of `config.model.kind`."""
    of = VoiceOfFace if config.model.kind == "face2voice" else FaceOfVoice
    return of(config, networks)
