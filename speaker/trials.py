"""Trial and enrolment lists: what is compared with what, and which pairs are of one speaker."""

import array
import dataclasses
import gzip
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from common import errors

log = logging.getLogger(__name__)

_LABELS = {"nontarget": False, "target": True, "0": False, "1": True}
_SHAPES = {
    "voxceleb": "`1 enrol test` or `0 enrol test`",
    "kaldi": "`enrol test target` or `enrol test nontarget`",
}
_LISTED = 5  # names in a message
_LOGGED = 100  # names in the log


class TrialError(errors.UserError, ValueError):
    """A list that cannot be used as it is; the message names file, line and what to do."""


class UnknownIdsError(TrialError):
    """Ids without an embedding: the message names the first few, the log more."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trials:
    """n trials in the order of the file, as positions in the distinct ids of each side.

    `lines` are line numbers, from 1.
    """

    path: str
    enrol_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    enrol_index: Int[np.ndarray, "n"]
    test_index: Int[np.ndarray, "n"]
    is_target: Bool[np.ndarray, "n"]
    lines: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.is_target)


@dataclasses.dataclass(frozen=True, eq=False)
class LocatedTrials:
    """The k trials that can be scored, as rows of two arrays of embeddings.

    `kept` are their positions in the list.
    """

    enrol_index: Int[np.ndarray, "k"]
    test_index: Int[np.ndarray, "k"]
    is_target: Bool[np.ndarray, "k"]
    kept: Int[np.ndarray, "k"]


@dataclasses.dataclass(frozen=True, eq=False)
class Enrolment:
    """Utterances of each enrolled model, and the line that lists them."""

    path: str
    models: Mapping[str, tuple[str, ...]]
    lines: Mapping[str, int]


def read_trials(path: pathlib.Path | str) -> Trials:
    """Reads a trial list, plain or .gz, one trial a line, in one of two forms.

    `1 enrol test` and `0 enrol test` as VoxCeleb, or `enrol test target` and `enrol test
    nontarget` as Kaldi. The first line that fits only one form decides. The enrolled side may name
    utterances or models. A pair may come twice, but not with both labels.

    Raises TrialError: a line of another form, pairs of both labels, an empty or unreadable file.
    """
    form = _form(path)
    # The label is the first field or the last.
    label_at, enrol_at, test_at = (0, 1, 2) if form == "voxceleb" else (2, 0, 1)
    labels = {k: v for k, v in _LABELS.items() if k.isdigit() == (form == "voxceleb")}
    enrol_ids: dict[str, int] = {}
    test_ids: dict[str, int] = {}
    columns = [array.array("i") for _ in range(4)]  # 4 bytes a number, not a Python object
    add_enrol, add_test, add_label, add_line = (column.append for column in columns)
    for number, fields in _read_fields(path):
        label = labels.get(fields[label_at]) if len(fields) == 3 else None
        if label is None:
            _refuse(path, number, fields, form)
        add_enrol(enrol_ids.setdefault(fields[enrol_at], len(enrol_ids)))
        add_test(test_ids.setdefault(fields[test_at], len(test_ids)))
        add_label(label)
        add_line(number)
    enrol_index, test_index, is_target, lines = (np.array(c, np.int32) for c in columns)
    trials = Trials(
        str(path), tuple(enrol_ids), tuple(test_ids),
        enrol_index, test_index, is_target.astype(bool), lines,
    )  # fmt: skip
    _check_labels(trials)
    return trials


def locate(
    trials: Trials,
    enrol_ids: Sequence[str],
    test_ids: Sequence[str],
    *,
    allow_unknown: bool = False,
) -> LocatedTrials:
    """Finds the embeddings of each trial: row i of either side has the i-th of its ids.

    Raises UnknownIdsError when some trial has no embedding on either side; with `allow_unknown`
    such trials are left out and counted in the log. The log lists the ids. TrialError when none is
    left.
    """
    enrol, test = _rows(enrol_ids), _rows(test_ids)
    enrol_rows = np.array([enrol.get(name, -1) for name in trials.enrol_ids], np.int64)
    test_rows = np.array([test.get(name, -1) for name in trials.test_ids], np.int64)
    unknown = [name for name, row in zip(trials.enrol_ids, enrol_rows) if row < 0]
    unknown += [name for name, row in zip(trials.test_ids, test_rows) if row < 0]
    unknown = tuple(dict.fromkeys(unknown))
    enrol_index, test_index = enrol_rows[trials.enrol_index], test_rows[trials.test_index]
    known = (enrol_index >= 0) & (test_index >= 0)
    kept = np.flatnonzero(known)
    if unknown:
        line = trials.lines[np.argmin(known)]
        message = (
            f"{trials.path}:{line}: {len(unknown)} ids of the trial list have no embedding "
            f"({_listed(unknown)}), used in {len(trials) - len(kept)} of {len(trials)} trials"
        )
        _leave_out(unknown, message, "trials", allowed=allow_unknown and len(kept) > 0)
    return LocatedTrials(enrol_index[kept], test_index[kept], trials.is_target[kept], kept)


def _leave_out(names: tuple[str, ...], message: str, what: str, *, allowed: bool) -> None:
    """Says which ids have no embedding. Raises UnknownIdsError unless it is allowed to go on."""
    for name in names[:_LOGGED]:
        log.warning("unknown: %s", name)
    if len(names) > _LOGGED:
        log.warning("unknown: ... and %d more", len(names) - _LOGGED)
    if not allowed:
        raise UnknownIdsError(f"{message}. Extract them, correct the ids, or allow unknown ids.")
    log.warning("%s; these %s are left out", message, what)


def read_enrolment(path: pathlib.Path | str) -> Enrolment:
    """Reads `model utterance utterance ...` lines (Kaldi's spk2utt), plain or .gz.

    Raises TrialError: a model without utterances, listed twice, or with an utterance twice.
    """
    models: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, (model, *utterances) in _read_fields(path):
        if not utterances:
            raise TrialError(
                f"{path}:{number}: model {model!r} has no utterances; write `model utterance "
                "utterance ...`."
            )
        if model in models:
            raise TrialError(
                f"{path}:{number}: model {model!r} was listed on line {lines[model]} already; put "
                "all its utterances on one line."
            )
        repeated = [name for name in dict.fromkeys(utterances) if utterances.count(name) > 1]
        if repeated:
            raise TrialError(
                f"{path}:{number}: model {model!r} lists {repeated[0]!r} more than once; "
                "remove the repetitions."
            )
        models[model], lines[model] = tuple(utterances), number
    return Enrolment(str(path), models, lines)


def enrol(
    enrolment: Enrolment,
    ids: Sequence[str],
    embeddings: Float[np.ndarray, "n d"],
    *,
    allow_unknown: bool = False,
) -> tuple[tuple[str, ...], Float[np.ndarray, "m d"], Int[np.ndarray, "m"]]:
    """(model names, mean embedding, number of utterances averaged) of each model, in file order.

    `ids` name the rows of `embeddings`, which come transformed (centred, of unit length) as they
    are to be compared: cosine takes the means, `plda.score_matrix` the means and the counts.

    Raises UnknownIdsError for utterances without an embedding; with `allow_unknown` they are left
    out, and models that keep none too, counted in the log.
    """
    rows = _rows(ids)
    if len(rows) != len(embeddings):
        raise TrialError(f"{len(rows)} ids name {len(embeddings)} embeddings; give one id a row.")
    missing = {
        name: model
        for model, utterances in enrolment.models.items()
        for name in utterances
        if name not in rows
    }
    found = {
        model: [rows[name] for name in utterances if name in rows]
        for model, utterances in enrolment.models.items()
    }
    found = {model: members for model, members in found.items() if members}
    if missing:
        line, unknown = enrolment.lines[next(iter(missing.values()))], tuple(missing)
        message = (
            f"{enrolment.path}:{line}: {len(missing)} enrolment utterances have no embedding "
            f"({_listed(unknown)}), which leaves {len(found)} of {len(enrolment.models)} models"
        )
        _leave_out(unknown, message, "utterances", allowed=allow_unknown and bool(found))
    counts = np.array([len(members) for members in found.values()])
    members = np.concatenate([np.array(m, np.int64) for m in found.values()])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(np.asarray(embeddings, np.float64)[members], starts)
    return tuple(found), sums / counts[:, None], counts


def _read_fields(path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank; TrialError if there are none."""
    path = pathlib.Path(path)
    empty = True
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        # utf-8-sig: lists saved on Windows begin with a mark that is no part of the first id.
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if fields:
                    empty = False
                    yield number, fields
    except UnicodeDecodeError as error:
        raise TrialError(f"{path}: not a text file in UTF-8 ({error.reason}).") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrialError(f"{path}: cannot be read ({reason}). Check the path.") from error
    if empty:
        raise TrialError(f"{path}: the list is empty. Give one entry a line.")


def _forms(fields):
    if len(fields) != 3:
        return []
    forms = ["voxceleb"] if fields[0] in ("0", "1") else []
    return forms + (["kaldi"] if fields[2] in ("target", "nontarget") else [])


def _form(path):
    for number, fields in _read_fields(path):
        forms = _forms(fields)
        if not forms:
            _refuse(path, number, fields, None)
        if len(forms) == 1:
            return forms[0]
    raise TrialError(
        f"{path}: every line reads as {_SHAPES['voxceleb']} and as {_SHAPES['kaldi']}, because an "
        "utterance is named like a label. Rename it."
    )


def _refuse(path, number, fields, form):
    shown = " ".join(fields)
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    if form and _forms(fields):
        raise TrialError(
            f"{path}:{number}: `{shown}` has another form than the lines before it, which read "
            f"{_SHAPES[form]}. Write the whole list in one form."
        )
    expected = _SHAPES[form] if form else " or ".join(_SHAPES.values())
    raise TrialError(
        f"{path}:{number}: `{shown}` is no trial; expected {expected}, three fields with white "
        "space between. Correct or remove the line."
    )


def _check_labels(trials):
    """One pair may not be both target and non-target."""
    pair = trials.enrol_index.astype(np.int64) * len(trials.test_ids) + trials.test_index
    order = np.argsort(pair, kind="stable")
    same = pair[order][1:] == pair[order][:-1]
    label = trials.is_target[order]
    clash = np.flatnonzero(same & (label[1:] != label[:-1]))
    if len(clash):
        first, second = sorted((order[clash[0]], order[clash[0] + 1]))
        raise TrialError(
            f"{trials.path}:{trials.lines[second]}: `{trials.enrol_ids[trials.enrol_index[first]]} "
            f"{trials.test_ids[trials.test_index[first]]}` has the other label on line "
            f"{trials.lines[first]}. Remove the wrong one."
        )


def _rows(ids):
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) != len(ids):
        repeated = next(name for row, name in enumerate(ids) if rows[name] != row)
        raise TrialError(f"the id {repeated!r} names more than one embedding; ids must be unique.")
    return rows


def _listed(names):
    more = ", ..." if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
