"""What a task gives to the trainer, the evaluator and the analysis tools."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, Key

from common.metrics import Ratio, Term
from common.state import TrainState, Variables

# Arrays with the batch axis first. `mask: bool[b]` marks the real rows; beside each padded sequence
# `<name>` stands `<name>_lengths: int32[b]`; `index: int32[b]` is the record's place in its source.
Batch = Mapping[str, Any]
Metrics = Mapping[str, Ratio]


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation has to say: numbers for the writers, lines for the terminal.

    `images` are what `writers.Writers.image` takes; `samples` are such too, and are also kept as
    samples/<split>-<name>-<step>.png of the work directory. `meta` holds JSON values for later
    commands, kept with the checkpoints (a calibration). `files` are written to the work directory's
    results/: name (`files.safe_name` makes one of a split's) -> text or bytes. `over` tells which
    recordings the numbers are of: those of others are not compared with them for the best
    checkpoint.
    """

    scalars: Mapping[str, float]
    lines: Sequence[str] = ()
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    audio: Mapping[str, tuple[np.ndarray, int]] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str | bytes] = dataclasses.field(default_factory=dict)
    over: str = ""
    samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """A small frozen object built from a config; every method is pure but the data and the report.

    Attributes:
        name: the package, as saved in the work directory ("asr").
        best_metric: (split, metric name, "min" or "max") by which the best checkpoints are kept;
            the last one counts as the best where that split is not evaluated.
        work_metric: the metric whose sum is the work done (throughput), e.g. "audio_seconds".
        sharded: paths ("head/weights") of parameters whose rows lie over the devices.
        num_examples: of how many records of a split the report gets `eval_step`'s examples.
    """

    name: str
    best_metric: tuple[str, str, str]
    work_metric: str
    sharded: tuple[str, ...]
    num_examples: int

    def init(self, key: Key[Array, ""]) -> Variables:
        """Fresh variables: `{"params": ..., "batch_stats": ...}`."""

    def adopt(self, fresh: Variables, found: Variables, meta: Mapping[str, Any]) -> Variables:
        """The variables to start with when `found` come from another run's checkpoint."""

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        """One update on one device inside the mapped axis (`steps.supervised`, ...)."""

    def create_state(self, variables: Variables) -> TrainState:
        """The state at step 0 with the optimizer that `train_step` uses."""

    def eval_step(self, variables: Variables, batch: Batch) -> tuple[Metrics, Mapping[str, Any]]:
        """Sums and counts (added over devices) and outputs with the batch axis first.

        Outputs of all rows come to the host. Those in a mapping `examples` among them (sounds,
        pictures) come of the first `num_examples` records only.
        """

    def keep(self, split: str, outputs: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """What the report takes of a batch's outputs, on the host: what is large becomes figures.

        The outputs are those of all rows of all processes, without `examples`.
        """

    def loss(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], step: Any, *, train: bool
    ) -> tuple[Mapping[str, Term], tuple[Metrics, Variables]]:
        """Its terms by name, sums over this device's real rows, and (metrics, new model state).

        Collections that the new model state does not have stay as they were. `step` is traced:
        schedules (margins, noise) follow it without a new compilation.
        """

    def prepare(self) -> None:
        """Opens and checks the data of a training, and writes what later commands read of it (a
        tokenizer, the names of classes). Without it a task opens data when it is asked for them."""

    def train_data(self) -> Iterable[Batch]:
        """The endless stream of training batches (a grain dataset: its iterator is saved)."""

    def names(self, index: Int[np.ndarray, "n"]) -> Sequence[str]:
        """The training records at these places (the `index` of a batch), as messages name them."""

    def eval_data(self, *, test: bool = False) -> Mapping[str, Iterable[Batch]]:
        """Evaluation batches by split, each record exactly once; `test`: also of `data.test`."""

    def report(
        self,
        split: str,
        outputs: Sequence[Mapping[str, np.ndarray]],
        examples: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> Report:
        """Sums up one evaluation on the host; the same in all processes.

        `outputs` hold all rows of all processes, batch by batch, each with its `index` and `mask`;
        `examples` the rows of the records with the lowest `index`, one by one, in that order.
        """

    def schedule(self, step: int) -> Mapping[str, float]:
        """The learning rates at `step` by their names in the log (`optim.Optimizer`)."""

    def checkpoint_meta(self) -> Mapping[str, Any]:
        """JSON values saved beside every checkpoint, e.g. the digest of a tokenizer."""

    def check_checkpoint(self, meta: Mapping[str, Any]) -> None:
        """Raises a UserError if a checkpoint's `meta` says that it is not of this task."""


class Part(NamedTuple):
    """A token, a word or a speaker on the time axis of a recording, in seconds."""

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Input:
    """Where recordings enter a network; attributions are of the values there.

    `read(variables, batch)` gives values [b, l, ...], their lengths [b] along axis 1, and what
    digital silence of these lengths has there. An entry along axis 1 lasts `seconds`.
    """

    says: str
    seconds: float
    read: Callable[[Variables, Batch], tuple[Array, Int[Array, "b"], Array]]


@dataclasses.dataclass(frozen=True)
class Target:
    """Scalars that attributions explain, one or several of each row.

    `score(variables, batch, given)` evaluates the network with the inputs of `given` (by name) in
    place of its own; [b, n]. Rows depend on nothing but themselves.

    `choose(variables, batch)` gives what is decided at the recording itself and stays on the way
    from a baseline (a hypothesis, the strongest channel), as further entries of the batch.
    `parts(row)` on the host: what lies where; with several scalars, one part for each that counts.
    `numbered` makes the target of a number, "channel:3"; `needs` is an entry that not every batch
    has.
    """

    says: str
    score: Callable[[Variables, Batch, Mapping[str, Array]], Float[Array, "b n"]]
    choose: Callable[[Variables, Batch], Mapping[str, Any]] = lambda variables, batch: {}
    parts: Callable[[Mapping[str, Any]], Sequence[Part]] = lambda row: ()
    numbered: Callable[[int], "Target"] | None = None
    needs: str = ""


class Explanation(Protocol):
    """What can be explained of a task, and by what: by name, the usual one first."""

    inputs: Mapping[str, Input]
    targets: Mapping[str, Target]


@runtime_checkable
class Explained(Protocol):
    """What a task adds for attributions."""

    explanation: Explanation

    def recordings(self, audio: Sequence[Float[np.ndarray, "_"]]) -> Batch:
        """A batch of recordings of which nothing else is known, on the host."""

    def about(self, split: str, index: int) -> Mapping[str, Any]:
        """What is written of the row with this `index`: id, text, speaker, gender, or ""."""
