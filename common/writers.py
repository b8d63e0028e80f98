"""Where numbers, pictures and sounds of a run go: terminal, metrics.jsonl, TensorBoard, wandb.

Only one process writes (`is_writer`); in the others every call does nothing. The numbers are host
values: nothing here waits for a device. A destination that fails in mid-run (disk full, network)
gives one warning and the training goes on; `metrics.jsonl` then tries again with every line.
"""

import contextlib
import io
import itertools
import json
import logging
import math
import os
import pathlib
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, SupportsFloat

import numpy as np
import PIL.Image
import tqdm
from jaxtyping import Float, Shaped

from common import files, pictures

WandbMode = Literal["disabled", "offline", "online"]

_log = logging.getLogger(__name__)


class TerminalHandler(logging.Handler):
    """A logging handler whose lines go above a progress bar and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


def write_line(text: str) -> None:
    """One line on stderr that leaves a progress bar whole."""
    tqdm.tqdm.write(text, file=sys.stderr)


class Progress:
    """How far a loop is: a bar on a terminal, a plain line every `line_seconds` elsewhere.

    The remaining time is estimated from the steps of this process alone, so it is right after a
    resume too. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        *,
        enabled: bool = True,
        stream: io.TextIOBase | None = None,
        line_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._step = total, initial
        self._stream = sys.stderr if stream is None else stream
        self._line_seconds, self._clock = line_seconds, clock
        self._enabled = enabled
        self._bar = None
        self._first: tuple[int, float] | None = None  # excludes compilation, in the first step
        self._last_line = -math.inf
        if enabled and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total, initial=initial, unit="step", file=self._stream, dynamic_ncols=True
            )

    def update(self, step: int, scalars: Mapping[str, SupportsFloat] | None = None) -> None:
        """`step` steps are done; `scalars` (loss, audio seconds per second) are shown beside."""
        moved, self._step = step - self._step, step
        if not self._enabled:
            return
        shown = _aligned(scalars or {})
        if self._bar is not None:
            if shown:
                self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(moved)
            return
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        if now - self._last_line >= self._line_seconds or step >= self._total:
            self._last_line = now
            share = 100 * step / max(self._total, 1)
            line = f"step {step}/{self._total} {share:3.0f} %  eta {self._eta(now)}  {shown}"
            print(line.rstrip(), file=self._stream, flush=True)

    def _eta(self, now: float) -> str:
        first_step, first_time = self._first
        if self._step >= self._total:
            return "0:00:00"
        if self._step <= first_step or now <= first_time:
            return "?"
        seconds = (self._total - self._step) * (now - first_time) / (self._step - first_step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Writers:
    """All destinations of one run behind one set of methods; see the module's docstring.

    `resume_step` is the step of the checkpoint that the run starts from (0 for a fresh one): what a
    lost run wrote beyond it is taken back, so that no step stands twice. None (evaluation) only
    appends. `config` goes to wandb's page; `project` and `wandb` choose its place and mode.
    """

    def __init__(
        self,
        workdir: pathlib.Path | str,
        *,
        config: Mapping[str, Any] | None = None,
        is_writer: bool = True,
        terminal: bool = True,
        jsonl: bool = True,
        tensorboard: bool = True,
        wandb: WandbMode = "disabled",
        project: str = "speech",
        resume_step: int | None = None,
    ):
        self._workdir = pathlib.Path(workdir)
        self._terminal = terminal and is_writer
        self._destinations: list[_Destination] = []
        self._scaled: set[str] = set()  # pictures of a wrong scale that were named
        if not is_writer:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        if jsonl:
            self._destinations.append(_Jsonl(self._workdir / "metrics.jsonl", resume_step))
        if tensorboard:
            self._destinations.append(_TensorBoard(self._workdir / "tensorboard", resume_step))
        if wandb != "disabled":
            try:
                self._destinations.append(
                    _Wandb(self._workdir, config, wandb, project, resume_step or 0)
                )
            except Exception as error:  # not installed, not logged in, no network: all the same
                _log.warning(
                    "wandb did not start, the run goes on without it (metrics.jsonl and "
                    "TensorBoard have everything): %s. Log in with `wandb login`, or use "
                    "mode 'offline' and `wandb sync` later",
                    _one_line(error),
                )

    def scalars(self, step: int, split: str, values: Mapping[str, SupportsFloat]) -> None:
        """Numbers of one step; those of any split but "train" also go to the terminal as one line.

        Every value becomes a Python float. Raises ValueError for the reserved names. In the name of
        a split, and in texts, bytes that are not UTF-8 are written as `\\udce9`.
        """
        split = _text(split)
        reserved = {"step", "split"} & set(values)
        if reserved:
            raise ValueError(f"metrics of split {split!r} may not be named {sorted(reserved)}")
        plain = {name: float(value) for name, value in values.items()}
        if self._terminal and split != "train":
            write_line(f"{split:<8} step {step:>7}  {_aligned(plain)}")
        self._each("scalars", int(step), split, plain)

    def image(self, step: int, name: str, image: Shaped[np.ndarray, "..."]) -> None:
        """A picture [h,w,3] (RGB), or [h,w,1] or [h,w] (grey): uint8, or floats in 0..1.

        The first row is the uppermost. Floats outside are clipped, with a warning where they are
        of another scale. Raises ValueError for other shapes and types. See `pictures.spectrogram`.
        """
        name, image = _text(name), np.asarray(image)
        pixels = pictures.rgb(image)
        if image.dtype != np.uint8 and np.nanmax(image, initial=0) > 2 and name not in self._scaled:
            self._scaled.add(name)
            _log.warning(
                "The picture %s holds floats up to %.4g: 0..1 is expected, what is above is white. "
                "Divide it, or give uint8.",
                name,
                np.nanmax(image),
            )
        self._each("image", int(step), name, pixels)

    def audio(
        self, step: int, name: str, audio: Float[np.ndarray, "t"], sample_rate_hz: int
    ) -> None:
        """A mono signal in -1..1; what lies outside is clipped, not scaled."""
        signal = np.clip(np.nan_to_num(np.asarray(audio, np.float32)), -1, 1)
        self._each("audio", int(step), _text(name), signal, int(sample_rate_hz))

    def text(self, step: int, name: str, text: str) -> None:
        """A passage of text, for example references beside hypotheses."""
        self._each("text", int(step), _text(name), _text(text))

    def log(self, text: str) -> None:
        """One line for whoever watches; it is not stored."""
        if self._terminal:
            write_line(text)

    def progress(self, total: int, initial: int = 0, **settings: Any) -> Progress:
        """A `Progress` from step `initial` to `total`, silent where this process does not write."""
        return Progress(total, initial, enabled=self._terminal, **settings)

    def flush(self) -> None:
        """Make what was written visible to readers; call it before a checkpoint is saved."""
        self._each("flush")

    def close(self, exit_code: int = 0) -> None:
        """Finish every destination; a second call does nothing."""
        self._each("close", exit_code)
        self._destinations = []

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self.close(exit_code=0 if kind is None else 1)

    def _each(self, method: str, *arguments: Any) -> None:
        for destination in list(self._destinations):
            call = getattr(destination, method, None)
            try:
                if call is not None:
                    call(*arguments)
            except destination.failures as error:
                _log.warning(
                    "%s cannot be written, the run goes on without it: %s",
                    destination.name,
                    _one_line(error),
                )
                self._destinations.remove(destination)
                with contextlib.suppress(*destination.failures):
                    destination.close(1)


class _Destination:
    """Has those of scalars, image, audio, text, flush and close (see `Writers`) that it can do."""

    name: str = ""
    failures: tuple[type[Exception], ...] = (OSError,)  # what does not stop a run


class _Jsonl(_Destination):
    """One JSON object a line: step, split, then floats; NaN and infinities are written as null."""

    name = "metrics.jsonl"

    def __init__(self, path: pathlib.Path, resume_step: int | None):
        _take_back(path, resume_step)
        self._file = path.open("ab", buffering=0)
        self._warned = False

    def scalars(self, step: int, split: str, values: Mapping[str, SupportsFloat]) -> None:
        plain = {name: v if math.isfinite(v) else None for name, v in values.items()}
        line = json.dumps({"step": step, "split": split, **plain}, allow_nan=False) + "\n"
        # One unbuffered write: a killed process leaves at most this line unfinished, and a full
        # disk none, because what did fit is taken back.
        end = os.fstat(self._file.fileno()).st_size
        content = line.encode()
        try:
            if self._file.write(content) != len(content):
                raise OSError("no space left on the device")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            if not self._warned:
                self._warned = True
                _log.warning(
                    "metrics.jsonl: the line of step %d was lost (%s); later ones are tried again",
                    step,
                    _one_line(error),
                )

    def close(self, exit_code: int) -> None:
        self._file.close()


class _TensorBoard(_Destination):
    """Event files in tensorboardX's format, written in this thread.

    Not its SummaryWriter: that hands events to a thread through a queue of ten, and blocks the
    training for ever once the thread has died, for example of a full disk.
    """

    name = "TensorBoard"
    _flush_seconds = 20.0
    _numbers = itertools.count()

    def __init__(self, folder: pathlib.Path, resume_step: int | None):
        from tensorboardX import event_file_writer, proto, summary  # slow to import

        self._summary, self._event = summary, proto.event_pb2.Event
        self._flushed = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs that start within one second must not share a file.
        suffix = f".{os.getpid()}.{next(self._numbers)}"
        self._file = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        if resume_step is not None:
            started = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
            self._write(resume_step + 1, session_log=started)  # hides later events of older files
        self.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))
        if time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def scalars(self, step: int, split: str, values: Mapping[str, SupportsFloat]) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(f"{split}/{name}", value))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        self._write(step, summary=self._summary.audio(name, audio, sample_rate_hz))

    def text(self, step: int, name: str, text: str) -> None:
        self._write(step, summary=self._summary.text(name, text))

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self, exit_code: int) -> None:
        self._file.close()


class _Wandb(_Destination):
    """A wandb run whose id stays in `wandb/run_id`, so that a resumed run goes on with it.

    Offline, no run can be resumed: of several parts with one id, what is uploaded last replaces the
    history of those before (wandb issues #3841, #4624, #5865). So each part is a run of its own,
    in one group.
    """

    name = "wandb"
    failures = (Exception,)

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Mapping[str, Any] | None,
        mode: Literal["offline", "online"],
        project: str,
        resume_step: int,
    ):
        import wandb  # slow, and not needed by most runs

        self._wandb = wandb
        self._folder = workdir / "wandb" if mode == "offline" else None
        name = _text(workdir.resolve().name)[:100]  # wandb takes 128 characters
        run_id = _run_id(workdir / "wandb" / "run_id")
        self._group = f"{name}-{run_id}"
        part = f" from step {resume_step}" if self._folder and resume_step else ""
        self._run = wandb.init(
            project=project,
            name=name + part,
            group=self._group,
            id=f"{run_id}-{secrets.token_hex(4)}" if self._folder else run_id,
            dir=str(workdir),
            mode=mode,
            resume=None if self._folder else "allow",
            config=dict(config or {}),
            allow_val_change=True,
            # No capture of the console, which would break the progress bar; no waiting for ever.
            settings=wandb.Settings(
                console="off", silent=mode == "offline", init_timeout=30, login_timeout=30
            ),
        )
        # The step is a value of its own: wandb's counter refuses steps that do not grow, and the
        # evaluation of a step comes before its training line.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._say()

    def _say(self) -> None:
        """Where offline runs lie: wandb is silent, its words would break the progress bar."""
        if self._folder is not None:
            _log.info(
                "wandb is offline: %s. To upload this part and earlier ones, as runs of the group "
                "%s: wandb sync %s",
                pathlib.Path(self._run.settings.sync_dir),
                self._group,
                shlex.quote(str(self._folder)),
            )

    def scalars(self, step: int, split: str, values: Mapping[str, SupportsFloat]) -> None:
        self._run.log({"step": step, **{f"{split}/{name}": v for name, v in values.items()}})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        # Not as an array: of that, wandb would drop an edge of one pixel.
        picture = self._wandb.Image(PIL.Image.fromarray(image))
        self._run.log({"step": step, name: picture})

    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        self._run.log({"step": step, name: self._wandb.Audio(audio, sample_rate=sample_rate_hz)})

    def text(self, step: int, name: str, text: str) -> None:
        table = self._wandb.Table(columns=["text"], data=[[text]])
        self._run.log({"step": step, name: table})

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)
        self._say()


def read_metrics(path: pathlib.Path | str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, null read as NaN; an unfinished last line is left out."""
    lines = [line for _, line in _lines(pathlib.Path(path)) if line is not None]
    return [{k: math.nan if v is None else v for k, v in line.items()} for line in lines]


def _lines(path: pathlib.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line as written and as parsed, None for one that is not a whole object with a step."""
    with path.open("rb") as file:
        for raw in file:
            try:
                parsed = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                parsed = None
            whole = isinstance(parsed, dict) and isinstance(parsed.get("step"), int)
            yield raw, parsed if whole else None


def _take_back(path: pathlib.Path, resume_step: int | None) -> None:
    """Drop broken lines and those beyond `resume_step` (None: keep all); all or nothing.

    What a run goes back over is kept in metrics.dropped.jsonl: a damaged checkpoint may cost days.
    """
    if not path.exists():
        return
    last = math.inf if resume_step is None else resume_step
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beyond, broken = [], False
    try:
        with temporary.open("wb") as file:
            for raw, parsed in _lines(path):
                if parsed is None:
                    broken = True
                elif parsed["step"] <= last:
                    file.write(raw)
                else:
                    beyond.append(raw)
            file.flush()
            os.fsync(file.fileno())
        if beyond:
            with path.with_suffix(".dropped.jsonl").open("ab") as file:
                file.writelines(beyond)
                file.flush()
                os.fsync(file.fileno())
        if beyond or broken:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _run_id(path: pathlib.Path) -> str:
    """The id that this file keeps, made at first."""
    if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    files.write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def _aligned(values: Mapping[str, SupportsFloat]) -> str:
    """`loss 0.1234    wer 0.08`: lines below each other have their names below each other."""
    return "  ".join(f"{name} {float(value):<9.4g}" for name, value in values.items()).rstrip()


def _text(text: str) -> str:
    """What every destination can hold: protocol buffers and wandb refuse lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
