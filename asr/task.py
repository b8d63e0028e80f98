"""The recognition task: what the trainer needs to train, evaluate and report a `Recognizer`."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from asr import ctc, data, filterbank, model, penalties, prediction, targets, transducer, wer
from asr import settings as settings_lib
from asr import tokenizer as tokenizer_lib
from common import (
    errors,
    files,
    metrics,
    optim,
    package,
    parallel,
    pictures,
    sections,
    state,
    steps,
)
from common.audio import augment, frontend, io
from common.data import records, splits
from common.nn import masking
from common.task import Batch, Metrics, Report

log = logging.getLogger(__name__)

PAIRS = 5  # shown at the end of an evaluation
_HEARD = ("tokens", "lengths", "frames", "token_log_probs", "truncated")  # of `Hypotheses`
# Each takes random numbers of its own; a new one goes to the end.
KEYS = ("masks", "dropout", "warp", *augment.ADDED, "gain")


@dataclasses.dataclass(frozen=True)
class AsrTask(splits.SplitTask, steps.SupervisedTask):
    """See `common.task.Task`. `parts` are the splits of the data by name."""

    config: Any
    workdir: pathlib.Path
    parts: Mapping  # of splits.Split; a checker of its values would open them
    name: str = "asr"
    work_metric: str = "audio_seconds"

    @functools.cached_property
    def tokenizer(self) -> tokenizer_lib.Tokenizer:
        """The one in the work directory, where the first training puts it."""
        return tokenizer_lib.load_tokenizer(self.workdir / "tokenizer")

    def prepare(self) -> None:
        settings = self.config.tokenizer
        wanted = tokenizer_lib.TokenizerConfig(
            settings.kind, settings.vocab_size, case=self.config.data.case
        )
        texts = self.train_split.texts
        tokenizer_lib.train_tokenizer(texts, wanted, self.workdir / "tokenizer")
        bank = model.front_end_config(self.config)
        learned = isinstance(bank, filterbank.FilterbankConfig)
        if learned and bank.rank and bank.start == "mel":
            filterbank.say_what_is_kept(filterbank.mel_filters(bank), bank)
        self.eval_data()

    @property
    def best_metric(self) -> tuple[str, str, str]:
        return next(iter(self.config.data.eval), ""), "wer", "min"

    @functools.cached_property
    def model(self) -> model.Recognizer:
        return model.make_model(self.config, self.tokenizer.vocab_size)

    @functools.cached_property
    def spec_augment(self) -> augment.SpecAugmentConfig:
        return sections.build(augment.SpecAugmentConfig, self.config.augment)

    @functools.cached_property
    def explanation(self) -> targets.Explanation:
        return targets.Explanation(self)

    def recordings(self, audio: Sequence[np.ndarray]) -> Batch:
        return targets.batch_of(audio)

    def init(self, key: jax.Array) -> state.Variables:
        return model.init(self.model, key)

    @functools.cached_property
    def optimizer(self) -> optim.Optimizer:
        """With the learned filter bank's own rate (`config.features.rate`, `frozen_steps`)."""
        settings, features = self.config.optimizer, self.config.features
        slower = features.rate != 1 or features.frozen_steps > 0
        if features.kind != "learned" or not slower:
            return optim.make_optimizer(settings, self.config.total_steps, self.sharded)
        own = (features.rate, features.frozen_steps)
        filters = ("basis", "mixing") if features.rank else ("kernel",)
        factors = tuple((f"filterbank/{name}", *own) for name in filters)
        settings = ConfigDict(
            {**settings.to_dict(), "rate_factors": (*settings.rate_factors, *factors)}
        )
        return optim.make_optimizer(settings, self.config.total_steps, self.sharded)

    def checkpoint_meta(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.digest, "starts_as_log_mel": True}

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        self.tokenizer.check_digest(meta["tokenizer"])
        if self.config.features.kind == "learned" and not meta.get("starts_as_log_mel"):
            raise errors.UserError(
                f"The learned filter bank in {self.workdir} is of an older version, whose features "
                "were others: no pre-emphasis, a floor 50 dB higher and another low-pass. "
                "This version cannot go on with it: train anew, with another --workdir."
            )

    def _distortions(self, batch: Batch, key: Any) -> tuple[Any, dict[str, Any]]:
        """Audio of training rows, distorted, and what else is to happen inside the model."""
        settings = self.config.augment
        keys = {
            name: parallel.row_keys(jax.random.fold_in(key, i), batch["row"])
            for i, name in enumerate(KEYS, start=1)
        }
        audio = augment.add_rooms_and_noise(
            batch["audio"], batch["audio_lengths"], batch, keys, settings
        )
        if settings.gain_db:
            audio = augment.change_gain(audio, keys["gain"], tuple(settings.gain_db))
        options: dict[str, Any] = {"dropout_keys": keys["dropout"]}

        def distort(features: jax.Array, lengths: jax.Array) -> jax.Array:
            if settings.warps:
                centres_hz = self.model.front_end.centres_hz()
                features = augment.warp_frequency(
                    features, keys["warp"], centres_hz, settings.warps
                )
            return augment.spec_augment(features, lengths, keys["masks"], self.spec_augment)

        if settings.warps or settings.freq_masks or settings.time_masks:
            options["distort"] = distort
        return audio, options

    def _terms(
        self, found: tuple[Any, ...], batch: Batch, *, fastemit: float = 0.0
    ) -> tuple[dict[str, metrics.Term], Metrics]:
        """The terms of the loss, and the metrics.

        FastEmit is for training alone: with it the gradient is not that of the value, and so has no
        Hessian.
        """
        lengths, joint, logits = found
        decoder, mask = self.config.decoder, batch["mask"]
        label_lengths = masking.fold_row_mask(batch["labels_lengths"], mask)
        terms, sums = {}, {}
        if joint is not None:
            rows = transducer.rnnt_loss(
                *joint,
                batch["labels"],
                lengths,
                label_lengths,
                dtype=self.model.dtype,
                fastemit=fastemit,
            )
            terms["transducer_loss"] = metrics.Term(*metrics.ratio(rows, mask))
        if logits is not None:
            value = ctc.ctc_loss(logits, lengths, batch["labels"], label_lengths)
            weight = decoder.ctc_weight if joint is not None else 1.0
            terms["ctc_loss"] = metrics.Term(*metrics.ratio(value.loss, mask), weight)
            sums["ctc_impossible"] = metrics.ratio(value.impossible, mask)
        seconds = masking.fold_row_mask(batch["audio_lengths"], mask).astype(jnp.float32)
        seconds = jnp.sum(seconds) / self.config.data.sample_rate_hz
        sums["audio_seconds"] = metrics.Ratio(seconds, jnp.ones(()))
        return terms, sums

    def loss(
        self, variables: state.Variables, batch: Batch, key: Any, step: Any, *, train: bool
    ) -> tuple[dict[str, metrics.Term], tuple[Metrics, state.Variables]]:
        decoder = self.config.decoder
        audio, options = batch["audio"], {}
        if train:
            audio, options = self._distortions(batch, key)
            if decoder.noise_std > 0 and decoder.loss == "transducer":
                std = jnp.where(step >= decoder.noise_start_step, decoder.noise_std, 0.0)
                noisy = prediction.variational_noise(
                    variables["params"], jax.random.fold_in(key, 100), std
                )
                variables = {**variables, "params": noisy}
        found, new_state = self.model.apply(
            variables,
            audio,
            batch["audio_lengths"],
            batch["labels"],
            train=train,
            mask=batch["mask"],
            mutable=["batch_stats"],
            **options,
        )
        fastemit = decoder.fastemit if train else 0.0
        terms, sums = self._terms(found, batch, fastemit=fastemit)
        if train:
            encoder = variables["params"]["encoder"]
            settings = self.config.regularize
            terms |= penalties.terms(settings, self.model.encoder_config, encoder)
        return terms, (sums, new_state)

    def eval_step(
        self, variables: state.Variables, batch: Batch
    ) -> tuple[Metrics, Mapping[str, jax.Array]]:
        scored, found = self.model.apply(
            variables,
            batch["audio"],
            batch["audio_lengths"],
            batch["labels"],
            mask=batch["mask"],
            **self._search,
            method="evaluate",
        )
        terms, sums = self._terms(scored, batch)
        outputs = {name: getattr(found, name) for name in _HEARD}
        return {**metrics.of_terms(terms), **sums}, outputs

    @property
    def _search(self) -> dict[str, Any]:
        decoder = self.config.decoder
        return {"max_symbols": decoder.max_symbols, "blank_penalty": decoder.blank_penalty}

    def recognize(self, variables: state.Variables, batch: Batch) -> Mapping[str, jax.Array]:
        """The outputs of `eval_step` for {"features", "features_lengths", "mask"}: see
        `model.Recognizer.recognize`."""
        found = self.model.apply(
            variables,
            batch["features"],
            batch["features_lengths"],
            mask=batch["mask"],
            **self._search,
            method="recognize",
        )
        return {name: getattr(found, name) for name in _HEARD}

    def train_data(self) -> Any:
        beside = splits.companions(self.config, self.workdir)
        return data.batches(
            self.train_split, self.tokenizer, self.config, train=True, beside=beside
        )

    def eval_batches(self, split: str) -> Any:
        return data.batches(self.parts[split], self.tokenizer, self.config, train=False)

    def texts(self, outputs: Mapping[str, np.ndarray]) -> list[str]:
        """The transcript of every row."""
        return [
            self.tokenizer.decode(row[:length])
            for row, length in zip(outputs["tokens"], outputs["lengths"])
        ]

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        words, chars, found, cut = [], [], [], 0
        for batch in outputs:
            rows = zip(self.texts(batch), batch["index"], batch["mask"], batch["truncated"])
            for text, index, real, limited in rows:
                if not real:
                    continue
                found.append(int(index))
                cut += int(limited)
                record = self.parts[split].written_at(int(index))
                reference = self.tokenizer.normalize(record["text"])
                heads = (record["id"], reference, text)
                words.append(wer.score(*heads, unit="word", speaker=record["speaker"]))
                chars.append(wer.score(*heads, unit="char", speaker=record["speaker"]))
        words.sort(key=lambda score: score.id)
        counts, letters = wer.total(words), wer.total(chars)
        bounds = wer.interval(words)
        shown = words[:: max(1, len(words) // PAIRS)][:PAIRS]
        lines = [wer.describe(f"{split} WER", counts, bounds)]
        lines += [wer.describe(f"{split} CER", letters)]
        listed, usable = len(self.parts[split].source), len(self.parts[split].index)
        lines.append(f"  {len(words)} of {listed} utterances scored")
        if len(words) < listed:
            lines[-1] += (
                f"; {listed - usable} rejected (named in the work directory's rejected.tsv), "
                f"{usable - len(words)} not readable any more (named in warnings above)"
            )
        if cut:
            lines.append(
                f"  {cut} with more than two labels a frame: the search ended there, the rest is "
                "missing"
            )
        for score in shown:
            lines += [f"  ref  {score.reference}", f"  hyp  {score.hypothesis}"]
        scalars = {
            "wer": counts.rate,
            "cer": letters.rate,
            "wer_low": bounds.low,
            "wer_high": bounds.high,
            "substitutions": counts.subs,
            "insertions": counts.ins,
            "deletions": counts.dels,
            "utterances": len(words),
            "utterances_listed": listed,
            "utterances_cut": cut,
        }
        tables = {f"{files.safe_name(split)}.tsv": wer.as_tsv(words)}
        return Report(
            scalars,
            lines,
            *self._example(split, found),
            files=tables,
            over=self.parts[split].identity,
        )

    def _example(
        self, split: str, found: Sequence[int]
    ) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
        """The first recording of those scored, to be seen and heard, as long as it can be read."""
        if not found:
            return {}, {}
        rate = self.config.data.sample_rate_hz
        record = self.parts[split].source[min(found)]
        try:
            audio = records.load_record(record, rate, splits.channel(self.config.data))
        except io.AudioError as error:
            log.warning("%s: no example is shown: %s", split, error)
            return {}, {}
        audio = audio[: 10 * rate]
        shown = frontend.LogMelConfig(sample_rate_hz=rate)
        size = np.array([len(audio)], np.int32)
        features, _ = jax.jit(frontend.log_mel, static_argnums=2)(audio[None], size, shown)
        image = pictures.spectrogram(np.asarray(features[0]))
        return {"features": image}, {"audio": (audio, rate)}


def check_augment(config: Any) -> None:
    """Raises UserError for distortions that cannot be, or that the front end cannot have."""
    speeds = tuple(config.augment.speeds)
    if not all(0.1 <= speed <= 10 for speed in speeds):
        raise errors.UserError(
            f"config.augment.speeds={speeds}: each lies between 0.1 and 10, for instance "
            "(0.9, 1.0, 1.1), or ()."
        )
    warps, features = tuple(config.augment.warps), config.features
    if warps and features.kind == "learned" and features.start != "mel":
        raise errors.UserError(
            f"config.augment.warps={warps} needs bands in the order of their frequencies, but "
            f"config.features.start is {features.start!r}: set it to 'mel', or "
            '--config.augment.warps="()"'
        )
    if warps and (len(warps) != 2 or not 0 < warps[0] <= warps[1]):
        raise errors.UserError(
            f"config.augment.warps={warps}: give the lowest and the highest factor, for instance "
            "(0.8, 1.25), or ()."
        )


def make_task(config: Any, workdir: pathlib.Path) -> AsrTask:
    """The task of a config; settings that exclude each other are said, no data are opened."""
    model.front_end_config(config)
    check_augment(config)
    penalties.check(config.regularize, model.encoder_config(config))
    parts = splits.Splits(config, workdir, require_text=True, whole=True)
    return AsrTask(config, workdir, parts)


def close(task: AsrTask, workdir: pathlib.Path, reports: Mapping[str, Report]) -> None:
    """The last words of a run: error rates, examples, and where things lie."""
    for split, report in reports.items():
        print("\n".join(report.lines))
        print(f"  all utterances: {workdir / 'results' / f'{files.safe_name(split)}.tsv'}")
    if task.config.data.kind in splits.EMBEDDED:
        print("These are synthetic voices: the figures say nothing about real speech.")
    print(f"Checkpoints: {workdir / 'checkpoints'}   curves: {workdir / 'metrics.jsonl'}")
    print(f"Next: python -m asr.transcribe --workdir={workdir} YOUR_FILES.wav")


PACKAGE = package.Package(
    "asr",
    settings_lib.default_config,
    make_task,
    close,
    changeable=("data", "parallel", "decoder.max_symbols", "decoder.blank_penalty"),
    fixed=("data.sample_rate_hz", "data.case", "data.train"),
)
