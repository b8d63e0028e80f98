"""The GAN's task: what the trainer needs to train, evaluate and show it; and the package."""

import dataclasses
import functools
import logging
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import errors, metrics, optim, package, parallel, parts, state, steps
from common import workdir as workdir_lib
from common.data import classes as classes_lib
from common.data import splits
from common.task import Batch, Metrics, Report
from generation import (
    data,
    diff_augment,
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
    matcher,
    model,
    paired,
    revoicing,
    showing,
    sides,
    sounds,
    voice,
    voice2face,
)
from generation import settings as settings_lib
from speaker import margins

log = logging.getLogger(__name__)

_WEIGHT_OF_WRONG = 0.5  # of each of the two kinds of what is not to be believed
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
            steps.Player("discriminator", self.discriminator_loss, ("discriminator",), updates),
            steps.Player("generator", self.loss, ("generator",)),
        )
        return steps.adversarial(
            players,
            self.optimizer.tx,
            accumulate=self.config.accumulate,
            ema_decay=self.config.ema_decay,
        )

    @functools.cached_property
    def _adversarial(self) -> losses.Adversarial:
        return losses.adversarial(self.config.loss.kind)

    def _noise(self, batch: Batch, key: Any) -> jax.Array:
        keys = parallel.row_keys(jax.random.fold_in(key, 1), batch["row"])
        return jax.vmap(lambda key: jax.random.normal(key, (self.networks.noise,)))(keys)

    def _judge(
        self, batch: Batch, key: Any, *, train: bool
    ) -> Callable[..., tuple[sides.Judged, state.Variables]]:
        """judge(variables, pictures, condition, number): what the discriminator says, and the
        variables with its new state. In training, pictures are changed, all of a row alike, and
        passes that move the state have numbers."""
        settings = self.config.loss
        seen = parallel.row_keys(jax.random.fold_in(key, 2), batch["row"])

        def judge(
            variables: state.Variables,
            pictures: jax.Array,
            condition: jax.Array,
            number: int | None,
        ) -> tuple[sides.Judged, state.Variables]:
            if train and settings.augment:
                pictures = diff_augment.augmented(
                    pictures, seen, settings.augment, settings.augment_strength
                )
            training = None if number is None else _training(batch, key, number)
            found, new = self.networks.judge(variables, pictures, condition, training)
            return found, parts.replace(variables, new)

        return judge

    def discriminator_loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """Real pictures against fakes, and against real ones with another's voice or face."""
        settings, mask, game = self.config.loss, batch["mask"], self._adversarial
        condition = self.direction.condition(variables, batch, key if train else None)
        noise = self._noise(batch, key)
        fake, _ = self.networks.play(variables, condition, noise, _training(batch, key, 0))
        real, labels = self.direction.real(variables, batch)
        judge = self._judge(batch, key, train=train)
        of_real, variables = judge(variables, real, condition, 1)
        of_fake, variables = judge(variables, fake, condition, 2)
        told = {"real": of_real.real, "fake": of_fake.real}
        if settings.wrong_pairs:
            of_wrong, variables = judge(
                variables, *self.direction.wrong(variables, batch, condition), 3
            )
            told["wrong"] = of_wrong.real
        new = model.state_of(variables, "discriminator")
        terms, sums = _judgements(game, told, mask)
        if settings.kind == "began":
            k = variables[losses.BALANCE]["k"]
            terms["fake_loss"] = terms["fake_loss"]._replace(weight=-k)
            k, convergence = self._balance(k, told, mask)
            sums = {"balance": metrics.gauge(k), "convergence": metrics.gauge(convergence)}
            new = {**new, losses.BALANCE: {"k": k}}
        found, more = self._who(of_real, labels, batch, "")
        terms, sums = {**terms, **found}, {**sums, **more}

        def logits(pictures: jax.Array) -> jax.Array:
            return judge(variables, pictures, condition, None)[0].real

        for name, gamma, seen in (("r1", settings.r1, real), ("r2", settings.r2, fake)):
            if gamma > 0:
                terms[name] = self._penalty(logits, seen, mask, step, gamma)
        return terms, (sums, new)

    def _who(
        self, judged: sides.Judged, labels: jax.Array, batch: Batch, prefix: str
    ) -> tuple[dict[str, metrics.Term], Metrics]:
        """Whose faces they are: among the training people, and by the voices of the batch."""
        settings, mask, terms, sums = self.config.loss, batch["mask"], {}, {}
        lost = None
        if judged.people is not None:
            lost = voice2face.identity_loss(judged.people, labels)
            right = jnp.argmax(judged.people, axis=1) == labels
        elif judged.centres is not None:
            margin, scale = settings.identity_margin, settings.identity_scale
            kind = margins.MarginConfig("am", margin, scale)
            lost, right, *_ = margins.margin_loss(
                kind, judged.face, judged.centres, labels, margin, scale, mask=mask
            )
        if lost is not None:
            ratio = metrics.ratio(lost, mask)
            terms[f"{prefix}identity_loss"] = metrics.Term(*ratio, settings.identity)
            sums[f"{prefix}identity_accuracy"] = metrics.ratio(right, mask)
        if settings.contrast > 0:
            scale = 1.0 / settings.contrast_temperature
            lost, right = matcher.contrast(judged.voice, judged.face, scale, batch["label"], mask)
            ratio = metrics.ratio(lost, mask)
            terms[f"{prefix}contrast_loss"] = metrics.Term(*ratio, settings.contrast)
            sums[f"{prefix}contrast_accuracy"] = metrics.ratio(right, mask)
        return terms, sums

    def _balance(
        self, k: jax.Array, told: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """BEGAN's next k and its convergence, by the errors of all devices' rows."""
        settings = self.config.loss
        sums = {name: metrics.ratio(lost, mask) for name, lost in told.items()}
        mean = {
            name: jax.lax.stop_gradient(found.total / metrics.at_least_one(found.count))
            for name, found in metrics.psum(sums, parallel.AXIS).items()
        }
        rate = settings.began_rate / self.config.accumulate  # k moves with every micro-batch
        return losses.balanced(k, mean["real"], mean["fake"], settings.began_gamma, rate)

    def _penalty(
        self,
        logits: Callable[[jax.Array], jax.Array],
        seen: jax.Array,
        mask: jax.Array,
        step: Any,
        gamma: float,
    ) -> metrics.Term:
        """At every `r1_every`-th step, when it is worth so many (Karras et al. 2020, B)."""
        every = self.config.loss.r1_every
        due = step % every == 0

        def penalty() -> jax.Array:
            return metrics.ratio(losses.gradient_penalty(logits, seen), mask).total

        total = jax.lax.cond(due, penalty, lambda: jnp.float32(0))
        # In the log it is the mean over all steps, those without it too.
        count = jnp.sum(mask, dtype=jnp.float32)
        return metrics.Term(total, count, 0.5 * gamma * every)

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        """The generator's."""
        del step
        if "row" not in batch:  # outside of a training step
            rows = batch["mask"].shape[0]
            batch = {**batch, "row": parallel.row_numbers(rows)}
        mask, game = batch["mask"], self._adversarial
        condition = self.direction.condition(variables, batch, key if train else None)
        training = _training(batch, key, 0) if train else None
        fake, new = self.networks.play(variables, condition, self._noise(batch, key), training)
        judge = self._judge(batch, key, train=train)
        judged, variables = judge(variables, fake, condition, 1 if train else None)
        logits = judged.real
        if game.relative:
            real, _ = self.direction.real(variables, batch)
            logits -= judge(variables, real, condition, 2 if train else None)[0].real
        terms = {"fooled_loss": metrics.Term(*metrics.ratio(game.fooled(logits), mask))}
        sums = {"pictures": self._work(batch)}
        if train:  # the labels of an evaluation are of other people
            found, more = self._who(judged, batch["label"], batch, "fake_")
            terms, sums = {**terms, **found}, {**sums, **more}
        return terms, (sums, new)

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


def _training(batch: Batch, key: Any, number: int) -> sides.Training:
    """For one network's pass in a step."""
    keys = parallel.row_keys(jax.random.fold_in(key, 3 + number), batch["row"])
    return sides.Training(batch["mask"], keys)


def _judgements(
    game: losses.Adversarial, told: Mapping[str, jax.Array], mask: jax.Array
) -> tuple[dict[str, metrics.Term], Metrics]:
    """The discriminator's terms, and how often it takes pictures for real.

    Where the game is relative, for more real than the row's real one.
    """
    against = told["real"] if game.relative else jnp.zeros_like(told["real"])
    share = _WEIGHT_OF_WRONG if "wrong" in told else 1.0
    terms, sums = {}, {}
    for name, logits in told.items():
        if name == "real" and game.relative:
            continue
        above = logits - against
        lost = (game.real if name == "real" else game.fake)(above)
        weight = 1.0 if name == "real" else share
        terms[f"{name}_loss"] = metrics.Term(*metrics.ratio(lost, mask), weight)
        sums[f"believed_{name}"] = metrics.ratio(above > 0, mask)
    return terms, sums


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
)
