"""The embedded corpus: hundreds of synthetic voices that say sentences nobody has to download.

`EmbeddedCorpus("train")` is a source like any other; the first use renders it into a cache. The
speech is eSpeak NG's (see worker.py): results on it are results on synthetic speech and have
to be labelled so. Held-out splits differ from the training split in both voices and sentences.

`python -m common.data.embedded --out DIR --hours H` writes the same as a LibriSpeech-style tree.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import queue
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm

from common import cache as cache_lib
from common import errors, locks
from common.data.embedded import sentences, voices

SAMPLE_RATE_HZ = 16_000
SPLITS = voices.SPLITS
# Part of the cache's key: raise it whenever the same settings give other samples or texts.
_RENDER_VERSION = 1
_UTTERANCES_PER_JOB = 48
_BYTES_PER_HOUR = 3600 * SAMPLE_RATE_HZ * 2


class RenderError(errors.UserError):
    """The corpus cannot be rendered; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """What decides every bit of a corpus: `hours` of training speech, `eval_hours` in dev, test.

    Raises RenderError for hours or numbers of voices that cannot be.
    """

    hours: float = 2.0
    eval_hours: float = 0.15
    seed: int = 0
    train_voices: int = 320
    eval_voices: int = 40

    def __post_init__(self) -> None:
        for name in ("hours", "eval_hours"):
            if not 0 < getattr(self, name) <= 2000:
                raise RenderError(
                    f"{name}={getattr(self, name)} is out of range: give hours of speech above 0,"
                    " at most 2000"
                )
        for split in SPLITS:
            count, most = self.split_voices(split), voices.capacity(split)
            if not 1 <= count <= most:
                raise RenderError(f"{count} voices for {split}: give 1 to {most}")

    def key(self) -> str:
        """The name of the corpus in the cache: a hash of the settings and of the programs."""
        text = json.dumps([dataclasses.asdict(self), _RENDER_VERSION, _espeak_version()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def split_voices(self, split: str) -> int:
        """Number of voices in a split."""
        return self.train_voices if split == "train" else self.eval_voices

    def split_hours(self, split: str) -> float:
        """Hours of speech in a split."""
        return self.hours if split == "train" else self.eval_hours


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A sentence to be spoken."""

    id: str
    voice: voices.Voice
    text: str
    question: bool = False

    def job(self) -> dict:
        """What worker wants to know."""
        return {
            # Lower case: it reads some upper-case words letter by letter.
            "text": self.text.lower() + ("?" if self.question else "."),
            "voice": self.voice.espeak_name,
            "pitch": self.voice.pitch,
            "rate_wpm": self.voice.rate_wpm,
            "range": self.voice.range,
            "level_dbfs": self.voice.level_dbfs,
        }

    def estimated_seconds(self) -> float:
        """Its length before it is spoken; sums over hundreds are good to a few percent."""
        return 0.34 + 0.0573 * len(self.text) * 140 / self.voice.rate_wpm


def _espeak_version() -> str:
    try:
        return importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError:
        raise RenderError(
            "the embedded corpus needs eSpeak NG: pip install espeakng-loader"
        ) from None


def plan(split: str, settings: CorpusSettings) -> list[Utterance]:
    """The utterances of a split: voices take turns until the split is long enough."""
    speakers = voices.draw_voices(split, settings.split_voices(split), settings.seed)
    rng = random.Random(f"turns/{split}/{settings.seed}")
    texts = sentences.sentences(split, settings.seed)
    said = dict.fromkeys(speakers, 0)
    utterances: list[Utterance] = []
    seconds = 0.0
    while True:
        for voice in rng.sample(speakers, len(speakers)):
            text, question = next(texts)
            # Speaker, chapter, number, as in LibriSpeech.
            name = f"{voice.id}-1-{said[voice]:04d}"
            said[voice] += 1
            utterances.append(Utterance(name, voice, text, question))
            seconds += utterances[-1].estimated_seconds()
            if seconds >= settings.split_hours(split) * 3600:
                return utterances


class _Worker:
    """An worker process. A subprocess and not multiprocessing, which would import the main
    module again (and with it JAX) and needs a guard in scripts."""

    def __init__(self) -> None:
        root = str(pathlib.Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # One thread: the worker forks.
        environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.data.embedded.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, job: dict) -> list[dict]:
        """Does what worker.py calls a job; returns what it answers for each utterance or face."""
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        if "done" not in answer:
            ended = f"a rendering process ended unexpectedly (status {self._process.poll()})"
            raise RenderError(f"rendering failed: {answer.get('error', ended)}")
        return answer["done"]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # a job that it did not take any more
            self._process.stdin.close()


@contextlib.contextmanager
def _workers(count: int) -> Iterator[queue.SimpleQueue]:
    idle: queue.SimpleQueue = queue.SimpleQueue()
    started = []
    try:
        for _ in range(count):
            started.append(_Worker())
            idle.put(started[-1])
        yield idle
    finally:
        for worker in started:
            worker.stop()


def speech_job(path: pathlib.Path, utterances: Sequence[Utterance]) -> dict:
    """The job to speak into a file of int16 samples."""
    return {"path": str(path.absolute()), "utterances": [item.job() for item in utterances]}


def run_jobs(
    jobs: Sequence[dict],
    num_workers: int,
    progress: bool,
    *,
    title: str = "rendering speech",
    unit: str = "utterances",
) -> list[list[dict]]:
    """Does all jobs, each by the next idle worker; returns the answers in the order of jobs.

    Raises:
      RenderError: a job failed; the others are stopped.
    """
    total = sum(len(job[unit]) for job in jobs)
    with (
        tqdm.tqdm(total=total, desc=title, unit=f" {unit}", disable=not progress) as bar,
        concurrent.futures.ThreadPoolExecutor(num_workers) as pool,
        _workers(num_workers) as idle,  # stopped first, so that no thread waits for one
    ):

        def run(job: dict) -> list[dict]:
            worker = idle.get()
            try:
                return worker.run(job)
            finally:
                idle.put(worker)

        futures = [pool.submit(run, job) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                bar.update(len(future.result()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def speak(
    utterances: Sequence[Utterance], *, num_workers: int = 1
) -> list[tuple[np.ndarray, list[tuple[int, str]]]]:
    """Speaks without the cache: for each utterance int16[t] at 16 kHz and its (ms, phoneme)s."""
    size = -(-len(utterances) // num_workers)
    parts = [utterances[i : i + size] for i in range(0, len(utterances), max(size, 1))]
    with tempfile.TemporaryDirectory(prefix="speech") as folder:
        jobs = [speech_job(pathlib.Path(folder, f"{i}.i16"), part) for i, part in enumerate(parts)]
        spoken = []
        for job, answers in zip(jobs, run_jobs(jobs, num_workers, False)):
            samples = np.fromfile(job["path"], np.int16)
            ends = np.cumsum([answer["samples"] for answer in answers])
            pieces = np.split(samples, ends[:-1])
            spoken += [
                (piece, [(ms, phone) for ms, phone in answer["phones"]])
                for piece, answer in zip(pieces, answers)
            ]
    return spoken


def render(
    settings: CorpusSettings | None = None,
    cache: pathlib.Path | None = None,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Renders a corpus into the cache unless it is there; returns its folder.

    The folder appears whole or not at all; a second process that wants the same corpus waits for
    the first. It holds `corpus.json` and for each split `records.jsonl` and `audio-*.i16`.

    Raises:
      RenderError: no eSpeak NG, a cache that cannot be written, a full disk.
    """
    settings = settings or CorpusSettings()
    root = pathlib.Path(cache or cache_lib.folder()) / "embedded"

    def write(folder: pathlib.Path) -> None:
        check_space(root, settings)
        render_into(folder, settings, num_workers or os.cpu_count() or 1, progress)

    return write_once(root / settings.key(), "corpus.json", write, progress)


def write_once(
    final: pathlib.Path, last: str, write: Callable[[pathlib.Path], None], progress: bool
) -> pathlib.Path:
    """Has `write` fill the folder `final`, whole or not at all, unless it holds the file `last`.

    Only one process writes, the others wait for it.

    Raises:
      RenderError: the folder cannot be written; or what `write` raises.
    """
    if (final / last).is_file():
        return final
    root = final.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = locks.Lock(root / f"{final.name}.lock")
        with lock.held(math.inf, _say_waiting if progress else None) as alone:
            if (final / last).is_file():  # written while this process waited
                return final
            # Their writers are dead: we hold the lock.
            for stale in root.glob(f"{final.name}.tmp-*") if alone else ():
                shutil.rmtree(stale)
            temporary = root / f"{final.name}.tmp-{secrets.token_hex(4)}"
            temporary.mkdir()
            try:
                write(temporary)
                temporary.rename(final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        raise RenderError(
            f"the embedded corpus cannot be written to {root}: {error.strerror or error};"
            " free space there or set SPEECH_CACHE to another folder"
        ) from error
    return final


def _say_waiting() -> None:
    print("another process renders the same corpus: waiting for it", file=sys.stderr)


def check_space(folder: pathlib.Path, settings: CorpusSettings, share: float = 1.0) -> None:
    """Raises RenderError unless `share` times the corpus's samples fit beside `folder`."""
    needed = (settings.hours + 2 * settings.eval_hours) * _BYTES_PER_HOUR * 1.1 * share
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RenderError(
            f"{settings.hours:g} hours of speech need {needed / 2**30:.1f} GiB and {folder} has"
            f" {free / 2**30:.1f} GiB free; ask for fewer hours or set SPEECH_CACHE elsewhere"
        )


def render_into(
    folder: pathlib.Path, settings: CorpusSettings, num_workers: int, progress: bool
) -> None:
    """Writes a whole corpus into an empty folder, `corpus.json` last."""
    jobs, places = [], []
    for split in SPLITS:
        (folder / split).mkdir()
        utterances = plan(split, settings)
        for start in range(0, len(utterances), _UTTERANCES_PER_JOB):
            part = utterances[start : start + _UTTERANCES_PER_JOB]
            places.append((split, start // _UTTERANCES_PER_JOB))
            jobs.append((folder / split / f"audio-{places[-1][1]:05d}.i16", part))
    spoken_jobs = [speech_job(*job) for job in jobs]
    answers = run_jobs(spoken_jobs, min(num_workers, len(jobs)), progress)
    totals = {split: {"utterances": 0, "seconds": 0.0} for split in SPLITS}
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context((folder / split / "records.jsonl").open("w"))
            for split in SPLITS
        }
        for (split, shard), (_, utterances), spoken in zip(places, jobs, answers):
            offset = 0
            for utterance, answer in zip(utterances, spoken):
                record = {
                    "id": utterance.id,
                    "speaker": utterance.voice.id,
                    "text": utterance.text,
                    "shard": shard,
                    "offset": offset,
                    **answer,
                }
                print(json.dumps(record), file=files[split])
                offset += answer["samples"]
                totals[split]["utterances"] += 1
            totals[split]["seconds"] += offset / SAMPLE_RATE_HZ
    about = {
        "speech": "synthetic, eSpeak NG",
        "espeakng-loader": _espeak_version(),
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "settings": dataclasses.asdict(settings),
        "splits": totals,
    }
    (folder / "corpus.json").write_text(json.dumps(about, indent=2) + "\n")


class EmbeddedCorpus:
    """One split of the embedded corpus as a random-access source of records.

    A record has `id`, `audio` (int16[t]), `sample_rate` (16,000), `text` (words in [A-Z' ]),
    `speaker` (a voice's id, see voices.parse_voice), `gender` ("f" or "m", as the voice is meant to
    sound) and `phones`, the (seconds, mnemonic) at which each of eSpeak NG's phonemes starts. It
    pickles as a path: readers in other processes share nothing. The constructor renders what is not
    in the cache yet.
    """

    def __init__(
        self,
        split: str,
        settings: CorpusSettings | None = None,
        cache: pathlib.Path | None = None,
        *,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        if split not in SPLITS:
            raise RenderError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        folder = render(settings, cache, num_workers=num_workers, progress=progress)
        self.folder = folder / split

    @classmethod
    def at(cls, folder: pathlib.Path) -> "EmbeddedCorpus":
        """The split in a folder that `render` or `render_into` made, e.g. folder/train."""
        corpus = cls.__new__(cls)
        corpus.folder = pathlib.Path(folder)
        return corpus

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the embedded corpus ({self.folder.name})"

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @functools.cached_property
    def _records(self) -> list[dict]:
        with (self.folder / "records.jsonl").open() as lines:
            return [json.loads(line) for line in lines]

    @functools.cached_property
    def _genders(self) -> dict[str, str]:
        speakers = {record["speaker"] for record in self._records}
        return {speaker: voices.parse_voice(speaker).sex.lower() for speaker in speakers}

    def __getstate__(self) -> dict:
        return {"folder": self.folder}  # not the index

    def __len__(self) -> int:
        return len(self._records)

    def entry(self, index: int) -> dict:
        """An utterance's line of `records.jsonl`, without its samples."""
        return self._records[index]

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        path = self.folder / f"audio-{record['shard']:05d}.i16"
        audio = np.fromfile(path, np.int16, record["samples"], offset=2 * record["offset"])
        if audio.size != record["samples"]:
            raise OSError(f"{path} is cut short: delete {self.folder.parent} to render it again")
        return {
            "id": record["id"],
            "audio": audio,
            "sample_rate": SAMPLE_RATE_HZ,
            "text": record["text"],
            "speaker": record["speaker"],
            "gender": self._genders[record["speaker"]],
            "phones": [(ms / 1e3, phone) for ms, phone in record["phones"]],
        }
