"""The GAN's task: what the trainer needs to train, evaluate and show it; and the package."""

import dataclasses
import functools
import logging
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import errors, metrics, optim, package, state, steps
from common import workdir as workdir_lib
from common.data import classes as classes_lib
from common.data import splits
from common.task import Batch, Metrics, Report
from generation import (
    data,
    directions,
    encoders,
    fid,
    film,
    fitting,
    genders,
    images,
    inception,
    judging,
    labelled,
    losses,
    model,
    paired,
    revoicing,
    showing,
    sounds,
    voice,
)
from generation import game as game_lib
from generation import settings as settings_lib

log = logging.getLogger(__name__)

_SCALED_BY = 256  # recordings


@dataclasses.dataclass(frozen=True)
class GanTask(paired.PairedTask):
    """See `common.task.Task`. With `fid_network` evaluations also say FID and KID."""

    averaged: tuple[str, ...] = ("generator", directions.FACE)
    fid_network: inception.Inception | None = dataclasses.field(default=None, compare=False)

    def prepare(self) -> None:
        super().prepare()
        if self.config.voice.kind == "encoder" and not self._has_checkpoints:
            voice.keep_settings(
                self.config.voice.workdir, self.workdir, settings_lib.default_config()
            )

    @property
    def _has_checkpoints(self) -> bool:
        return workdir_lib.has_checkpoints(self.workdir)

    @property
    def best_metric(self) -> tuple[str, str, str]:
        """Without a judge the last checkpoint: losses of a game say nothing of the pictures."""
        if not self.config.judge:
            return "", "", "max"
        return next(iter(self.config.data.eval), ""), "match_2", "max"

    @functools.cached_property
    def networks(self) -> model.Networks:
        config = self.config
        people = config.model.kind == "voice2face" or config.loss.identity > 0
        people = people or config.voice.kind == "class"
        return model.make_gan(self.config, self._encoder_config, len(self.classes) if people else 0)

    @functools.cached_property
    def direction(self) -> directions.Direction:
        return directions.make(self.config, self.networks)

    @functools.cached_property
    def _encoder_config(self) -> Any:
        """The config of the run of the voice encoder."""
        settings = self.config.voice
        if settings.kind != "encoder":
            return None
        if not (settings.workdir or self._has_checkpoints):
            raise errors.UserError(
                "config.voice.workdir is empty: train an encoder of voices first, with "
                "python -m generation.main --config=configs/generation/voice.py --workdir=DIR, "
                "and name its DIR."
            )
        kept = self._has_checkpoints and (self.workdir / voice.FOLDER).is_dir()
        folder = self.workdir / voice.FOLDER if kept else settings.workdir
        found = voice.settings_of(folder, settings_lib.default_config())
        if found.data.sample_rate_hz != self.config.data.sample_rate_hz:
            raise errors.UserError(
                f"config.voice.workdir={settings.workdir}: it was trained at "
                f"{found.data.sample_rate_hz} Hz, not config.data.sample_rate_hz="
                f"{self.config.data.sample_rate_hz}."
            )
        return found

    @functools.cached_property
    def _frozen(self) -> dict[str, Any]:
        """The collections that no training changes: the trained encoder, the scales of cepstra and
        of sounds. Those of a run that has checkpoints are there."""
        kind, scaled = self.config.voice.kind, {}
        if self._has_checkpoints:
            return {}
        if kind == "mfcc":
            scaled[voice.FROZEN] = self.networks.hearing.scales
        if self.networks.stretches is not None:
            scaled[sounds.SCALES] = self.networks.stretches.scales
        found = {}
        with jax.ensure_compile_time_eval():
            if kind == "encoder":
                found[voice.FROZEN] = voice.of_run(PACKAGE, self.config.voice.workdir)
            if scaled:
                split, faces = self.train_split, self.parts.faces("+".join(self.config.data.train))
                audio = data.first_recordings(split, faces, self.config, _SCALED_BY)
                found |= {name: jax.jit(scales)(audio) for name, scales in scaled.items()}
            return jax.device_get(found)

    def init(self, key: jax.Array) -> state.Variables:
        variables = self.networks.init(key)
        if self.config.loss.kind == "began":
            variables[losses.BALANCE] = {"k": jnp.zeros(())}
        return {**variables, **self._frozen}

    @functools.cached_property
    def game(self) -> game_lib.Game:
        return game_lib.Game(self.config, self.networks, self.direction)

    @functools.cached_property
    def optimizer(self) -> optim.Optimizer:
        config = self.config
        groups = {
            "discriminator": optim.Group(
                config.discriminator_optimizer, ("discriminator",), config.discriminator_updates
            ),
            "generator": optim.Group(config.optimizer, ("generator",)),
        }
        for player in self.direction.players:
            groups[player.name] = optim.Group(config.face_optimizer, player.of)
        return optim.make_optimizers(groups, config.total_steps)

    @functools.cached_property
    def train_step(self) -> steps.Step:
        updates = self.config.discriminator_updates
        players = (
            *self.direction.players,
            steps.Player(
                "discriminator", self.game.discriminator_loss, ("discriminator",), updates
            ),
            steps.Player("generator", self.loss, ("generator",)),
        )
        return steps.adversarial(
            players,
            self.optimizer.tx,
            accumulate=self.config.accumulate,
            ema_decay=self.config.ema_decay,
        )

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """The generator's."""
        terms, (sums, new) = self.game.generator_loss(variables, batch, key, step, train=train)
        return terms, ({"pictures": self._work(batch), **sums}, new)

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, Any]]:
        """Pictures of every row with the same noises each time, beside the real one; what is heard
        again in another turn has other noises."""
        condition = self.direction.condition(variables, batch, None)
        keys = jax.vmap(jax.random.key)(batch["index"].astype(jnp.uint32))

        faces = self.config.samples.faces

        def fakes(number: int) -> jax.Array:
            def noise(key: jax.Array, again: jax.Array) -> jax.Array:
                own = jax.random.fold_in(key, again * faces + number)
                return jax.random.normal(own, (self.networks.noise,))

            return self.networks.generate(
                variables, condition, jax.vmap(noise)(keys, batch["again"])
            )

        made = jnp.stack([fakes(n) for n in range(faces)], axis=1)
        outputs = {name: batch[name] for name in ("person", "turn")}
        outputs |= self.direction.outputs(variables, batch, made)
        return {"pictures": self._work(batch)}, outputs

    @functools.cached_property
    def judge(self) -> judging.Judge | None:
        """Who says which face belongs to which voice; opened when it is first asked."""
        if not self.config.judge:
            return None
        return judging.open_judge(PACKAGE, self.config)

    @functools.cached_property
    def gender_of_faces(self) -> genders.Regression | None:
        """What tells faces apart, learned from real ones of the training people."""
        name, judge = "+".join(self.config.data.train), self.judge
        try:
            known = dict(zip(data.names_of(self.parts[name]), self.genders_of(name)))
            faces = self.parts.faces(name)
        except errors.UserError as error:
            log.warning("Without the training people the gender of faces is not told: %s", error)
            return None
        return genders.learned_from(faces, known, self.config.picture, judge.features)

    def keep(self, split: str, outputs: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """The judge's vectors, Inception's, and the pictures of the grid with their sounds."""
        kept = {name: outputs[name] for name in ("person", "turn", "mask", "index")}
        if self.judge is not None:
            kept |= self.direction.judged(self.judge, outputs)
        if self.fid_network is not None:
            made = images.to_bytes(outputs["fakes"][:, 0])
            kept |= fid.kept(self.fid_network, outputs["mask"], made, outputs["face"])
        return kept | showing.kept(self.direction, outputs, self.config.samples.people)

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """What is shown of it, and what was measured."""
        del examples
        way, rate = self.direction, self.config.data.sample_rate_hz
        samples, audio = showing.of_outputs(way.made, outputs, rate)
        found = [] if self.judge is None else [self._judgement(split, outputs)]
        if self.fid_network is not None:
            by_class = self.config.faces.kind in labelled.KINDS
            found.append(fid.report(split, outputs, self.fid_network, by_class))
        numbers = {name: x for one in found for name, x in one.scalars.items()}
        lines, over = [line for one in found for line in one.lines], self.parts[split].identity
        return Report(numbers, lines, samples=samples, audio=audio, over=over)

    def _judgement(self, split: str, outputs: Sequence[Mapping[str, np.ndarray]]) -> Report:
        known, names = self.genders_of(split), data.names_of(self.parts[split])
        if self.direction.made == directions.VOICE:
            found = judging.report_of_voices(split, outputs, known)
        else:
            regression = self.gender_of_faces if any(known) else None
            found = judging.report(split, outputs, known, regression)
        learned = {"the judge": self.judge.people, "the network": self.classes}
        seen = judging.said_of_seen(split, names, learned)
        return dataclasses.replace(found, lines=[*found.lines, *filter(None, [seen])])

    def checkpoint_meta(self) -> dict[str, Any]:
        return {
            **_forms(self.config),
            "people": classes_lib.digest(self.classes),
            "voice": self.config.voice.workdir,
        }

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        own = self.checkpoint_meta()
        if meta.get("kind") != own["kind"]:
            raise errors.UserError(
                f"The checkpoint is of a network of kind {meta.get('kind')!r}, and "
                f"config.model.kind={own['kind']!r}: use another --workdir."
            )
        does = "looks at" if "stretch" in own else "makes"
        for form, what, sizes, setting in (
            ("picture", f"{does} pictures", "height, width, channels", "config.picture"),
            ("stretch", "makes stretches", "frames, bands", "config.model.frames or num_mels"),
        ):
            if meta.get(form) != own.get(form):
                then, now = (" x ".join(map(str, found[form])) for found in (meta, own))
                raise errors.UserError(
                    f"The checkpoint {what} of {then} ({sizes}), and {setting} asks for {now}: "
                    "put it back, in config.json too, or use another --workdir."
                )
        if meta["people"] != own["people"]:
            raise errors.UserError(
                f"The checkpoint was trained on other people than the {len(self.classes)} of "
                f"{self.workdir / classes_lib.FILE}: put the file of that run back, or use another "
                "--workdir."
            )


def _forms(config: Any) -> dict[str, Any]:
    """The kind of a network, and the sizes of what it makes or looks at."""
    kind, picture = config.model.kind, config.picture
    found = {"kind": kind, "picture": [picture.size, picture.size, picture.channels]}
    if kind == "face2voice":
        found["stretch"] = [config.model.frames, config.features.num_mels]
    return found


def make_task(config: Any, workdir: pathlib.Path) -> paired.PairedTask:
    """The task of a config. Settings that cannot be are said; no data are opened."""
    model.check(config)
    fitting.check(config)
    losses.adversarial(config.loss.kind)
    data.detector(config)
    kinds = {
        "voice": encoders.VoiceTask,
        "matcher": encoders.MatcherTask,
        "revoice": functools.partial(
            revoicing.RevoiceTask, open_judge=lambda config: judging.open_judge(PACKAGE, config)
        ),
    }
    if config.data.kind == "none":
        parts: Mapping[str, splits.Split] = labelled.Parts(config)
    else:
        parts = splits.Splits(config, workdir, require_text=False)
    return kinds.get(config.model.kind, GanTask)(config, workdir, parts)


def close(task: paired.PairedTask, workdir: pathlib.Path, reports: Mapping[str, Report]) -> None:
    """The last words of a run: figures, and where things lie."""
    for report in reports.values():
        print("\n".join(report.lines))
    if task.config.data.kind in splits.EMBEDDED:
        print("These are synthetic voices and drawings: the figures say nothing about people.")
    if any(report.samples for report in reports.values()):
        films = film.over_training(workdir / "samples")
        print("\n".join([f"  pictures: {workdir / 'samples'}", *map("  film: {}".format, films)]))
    print(f"Checkpoints: {workdir / 'checkpoints'}   curves: {workdir / 'metrics.jsonl'}")
    if isinstance(task, GanTask):
        kind = task.config.voice.kind
        given = {"class": f" --voice={shlex.quote(task.classes[0])}", "none": ""}.get(
            kind, " --voice=a.wav"
        )
        given += " --out=grid.png"
        if task.direction.made == directions.VOICE:
            given = " --face=face.jpg --out=voice.wav"
        print(f"Next: python -m generation.sample --workdir={workdir}{given}")
    if isinstance(task, revoicing.RevoiceTask):
        given = " --face=face.jpg --say=a.wav --out=voice.wav"
        print(f"Next: python -m generation.sample --workdir={workdir}{given}")


PACKAGE = package.Package(
    "generation",
    settings_lib.default_config,
    make_task,
    close,
    changeable=("data", "faces", "judge", "recogniser", "samples", "parallel"),
    fixed=(
        *("data.sample_rate_hz", "data.train", "data.independent"),
        *("data.crop_seconds", "data.batch_rows"),  # of no use without training
    ),
    modes={"evaluate": fid.EVALUATE},
    completed=fitting.completed,
    for_losses=("discriminator",),
)
