"""Text to label ids and back: characters or sentencepiece (unigram, BPE), trained at first run.

In every kind id 0 is the blank of the transducer and of CTC and id 1 stands for characters that
the training text did not have; the pieces follow. sentencepiece counts its unknown as 0, so its
ids are shifted by one here and nowhere else.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsInt

import sentencepiece

from common import errors, files

Kind = Literal["char", "unigram", "bpe"]
Case = Literal["upper", "lower", "keep"]

BLANK, UNKNOWN = "<blank>", "<unk>"
BLANK_ID, UNKNOWN_ID = 0, 1
UNKNOWN_SURFACE = "⁇"  # what an unknown id reads as, in every kind
_JSON, _MODEL = "tokenizer.json", "sentencepiece.model"
_SPACE = "▁"  # how sentencepiece writes a space inside a piece


class TokenizerError(errors.UserError, ValueError):
    """A tokenizer that cannot be trained, read or used with this checkpoint; says what to do."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """`vocab_size` counts every id, blank and unknown included.

    Sentencepiece kinds have exactly that many; "char" has at most that many (0: no limit) and
    keeps the most frequent characters.
    """

    kind: Kind = "unigram"
    vocab_size: int = 128
    case: Case = "keep"


def normalize(text: str, case: Case = "keep") -> str:
    """Unicode NFKC, plain apostrophes, single spaces, none at the ends, and one case.

    Punctuation stays: whether it is to be recognised is a choice of the data, not of this function.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'")
    text = " ".join(text.split())
    return {"upper": text.upper, "lower": text.lower, "keep": lambda: text}[case]()


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How a set of texts fits a vocabulary: see `Tokenizer.coverage`."""

    texts: int
    empty: int
    unknown: Mapping[str, int]

    @property
    def message(self) -> str:
        """One line for the log, "" when every text is covered."""
        parts = []
        if self.unknown:
            most = sorted(self.unknown.items(), key=lambda item: (-item[1], item[0]))
            named = ", ".join(f"{c!r} (U+{ord(c):04X}) x {n}" for c, n in most[:10])
            more = f" and {len(most) - 10} others" if len(most) > 10 else ""
            parts.append(
                f"{sum(self.unknown.values())} characters are not in the tokenizer's vocabulary "
                f"and become {UNKNOWN}: {named}{more}"
            )
        if self.empty:
            parts.append(f"{self.empty} texts are empty")
        return f"of {self.texts} texts, {'; '.join(parts)}" if parts else ""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Maps text to label ids and back; immutable, picklable, equal when `digest` is equal.

    `pieces[i]` is the text of id i; `model` is the serialised sentencepiece model, b"" for "char".
    """

    kind: Kind
    case: Case
    pieces: tuple[str, ...]
    model: bytes = dataclasses.field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids, blank included: the width of the output layer."""
        return len(self.pieces)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides `encode` and `decode`."""
        facts = [self.kind, self.case, self.pieces, hashlib.sha256(self.model).hexdigest()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @functools.cached_property
    def _alphabet(self) -> frozenset[str]:
        return frozenset("".join(self.pieces[UNKNOWN_ID + 1 :]).replace(_SPACE, " ")) | {" "}

    def __getstate__(self) -> dict[str, Any]:
        """Only the fields travel to a worker process; what is derived is built there again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def normalize(self, text: str) -> str:
        """`normalize` with this tokenizer's case: `encode` does it itself, references need it."""
        return normalize(text, self.case)

    def encode(self, text: str) -> list[int]:
        """Label ids of a text, never blank; [] for an empty text."""
        text = self.normalize(text)
        if self.kind == "char":
            return [self._ids.get(c, UNKNOWN_ID) for c in text]
        return [i + 1 for i in self._processor.encode(text)]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of label ids; blanks are left out, unknown reads as "⁇".

        Raises ValueError for an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        wrong = [i for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise ValueError(
                f"label id {wrong[0]} is outside this tokenizer's vocabulary of {self.vocab_size}; "
                f"the ids come from a model trained with another tokenizer"
            )
        ids = [i for i in ids if i != BLANK_ID]
        if self.kind == "char":
            text = "".join(UNKNOWN_SURFACE if i == UNKNOWN_ID else self.pieces[i] for i in ids)
        else:
            text = self._processor.decode([i - 1 for i in ids])
        return " ".join(text.split())

    def coverage(self, texts: Iterable[str]) -> Coverage:
        """Counts empty texts and characters without an id; log its `message` when not empty."""
        number, empty, unknown = 0, 0, collections.Counter()
        for text in texts:
            text = self.normalize(text)
            number += 1
            empty += not text
            unknown.update(c for c in text if c not in self._alphabet)
        return Coverage(number, empty, dict(unknown))

    def check_digest(self, expected: str) -> None:
        """Raises TokenizerError unless `expected`, from a checkpoint, is our digest."""
        if expected != self.digest:
            raise TokenizerError(
                f"the checkpoint was trained with tokenizer {expected[:12]}, but this one is "
                f"{self.digest[:12]} ({self.kind}, {self.vocab_size} ids): its outputs would be "
                f"read as the wrong words. Restore the tokenizer folder of the run that wrote the "
                f"checkpoint, or train in a new work directory"
            )


def train_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, folder: pathlib.Path | str | None
) -> Tokenizer:
    """The tokenizer of `folder`, or at first run one trained on `texts` and saved there.

    The order of the texts does not matter: the same texts give the same bytes, so that several
    processes may each train on one shared folder. `texts` is not read when the folder already
    holds a tokenizer. With `folder` None nothing is read or written.

    Raises TokenizerError when the saved one has another config, when there is no text, and when
    the text cannot give `vocab_size` pieces (the message has the largest or smallest possible).
    """
    if folder is not None and (pathlib.Path(folder) / _JSON).exists():
        tokenizer = load_tokenizer(folder)
        _check_config(tokenizer, config, pathlib.Path(folder))
        return tokenizer
    texts = sorted(filter(None, (normalize(text, config.case) for text in texts)))
    if not texts:
        raise TokenizerError(
            "the tokenizer has no text to learn from: every training transcript is empty; check "
            "that the training source has transcripts"
        )
    tokenizer = _train_char(texts, config) if config.kind == "char" else _train_spm(texts, config)
    if folder is not None:
        save_tokenizer(tokenizer, folder)
    return tokenizer


def _check_config(tokenizer: Tokenizer, config: TokenizerConfig, folder: pathlib.Path) -> None:
    wants, has = dataclasses.asdict(config), dataclasses.asdict(config)
    has.update(kind=tokenizer.kind, case=tokenizer.case)
    limit = config.vocab_size
    if config.kind != "char" or 0 < limit < tokenizer.vocab_size:
        has["vocab_size"] = tokenizer.vocab_size
    differing = ", ".join(
        f"{k} {has[k]!r} (config: {wants[k]!r})" for k in wants if has[k] != wants[k]
    )
    if differing:
        raise TokenizerError(
            f"the tokenizer in {folder} has {differing}; set the config back, or start in a new "
            f"work directory (a model trained with one tokenizer cannot go on with another)"
        )


def _train_char(texts: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    by_frequency = sorted(counts, key=lambda c: (-counts[c], c))
    if config.vocab_size:
        if config.vocab_size < UNKNOWN_ID + 2:
            raise TokenizerError(
                f"tokenizer vocab_size={config.vocab_size} leaves no room for a character beside "
                f"{BLANK} and {UNKNOWN}: use {len(counts) + 2} for all, or 0 for no limit"
            )
        by_frequency = by_frequency[: config.vocab_size - 2]
    return Tokenizer("char", config.case, (BLANK, UNKNOWN, *sorted(by_frequency)), b"")


def _train_spm(texts: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size - 1,  # without our blank
            character_coverage=1.0,
            unk_id=UNKNOWN_ID - 1,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_surface=UNKNOWN_SURFACE,
            normalization_rule_name="identity",  # `normalize` has done it
            max_sentence_length=max(len(text.encode()) for text in texts) + 1,  # none is skipped
            num_threads=1,  # the order of summation is part of the result
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(_explain(str(error), config)) from None
    pieces = _pieces(model.getvalue())
    return Tokenizer(config.kind, config.case, pieces, model.getvalue())


def _pieces(model: bytes) -> tuple[str, ...]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = tuple(processor.id_to_piece(i) for i in range(processor.get_piece_size()))
    return (BLANK, UNKNOWN, *pieces[UNKNOWN_ID:])


def _explain(error: str, config: TokenizerConfig) -> str:
    """Sentencepiece's refusals in our numbers, which count the blank."""
    what = f"tokenizer kind={config.kind!r} vocab_size={config.vocab_size}"
    if found := re.search(r"too high.*<= (\d+)", error):
        return (
            f"{what}: the training text allows at most {int(found[1]) + 1}; set vocab_size to that"
        )
    if found := re.search(r"required_chars\. -?\d+ vs (\d+)", error):
        return (
            f"{what}: the training text has so many different characters that at least "
            f"{int(found[1]) + 1} are needed; set vocab_size to that or more, or kind='char'"
        )
    return f"{what} cannot be trained: {error}"


def save_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path | str) -> None:
    """Write model, then description, each to a temporary name and renamed: all or nothing."""
    folder = pathlib.Path(folder)
    description = {
        "kind": tokenizer.kind,
        "case": tokenizer.case,
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.digest,
        "vocabulary": tokenizer.pieces,
    }
    text = json.dumps(description, ensure_ascii=False, indent=1) + "\n"
    model = [(_MODEL, tokenizer.model)] if tokenizer.model else []
    for name, content in [*model, (_JSON, text.encode())]:
        with files.replacing(folder / name) as temporary:
            temporary.write_bytes(content)


def load_tokenizer(folder: pathlib.Path | str) -> Tokenizer:
    """Read what `save_tokenizer` wrote; TokenizerError when it is missing or damaged."""
    folder = pathlib.Path(folder)
    try:
        facts = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        model = b"" if facts["kind"] == "char" else (folder / _MODEL).read_bytes()
        tokenizer = Tokenizer(facts["kind"], facts["case"], tuple(facts["vocabulary"]), model)
        intact = tokenizer.digest == facts["sha256"]
    except FileNotFoundError as error:
        raise TokenizerError(
            f"no tokenizer in {folder}: {pathlib.Path(error.filename).name} is missing. The first "
            f"training run writes it; copy it from there together with the checkpoints"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{folder / _JSON} is damaged ({error}); restore the folder from the run that wrote it"
        ) from None
    if not intact:
        raise TokenizerError(
            f"the tokenizer in {folder} is damaged or was edited: its sha256 is "
            f"{tokenizer.digest[:12]}, recorded is {facts['sha256'][:12]}; restore the folder from "
            f"the run that wrote it"
        )
    return tokenizer
