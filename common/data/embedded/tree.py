"""The embedded corpus as a LibriSpeech-style tree: `python -m common.data.embedded --out DIR`."""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import shutil
import sys
import tempfile

import soundfile
import tqdm

from common.data import embedded
from common.data.embedded import voices


def write_tree(
    out: pathlib.Path,
    settings: embedded.CorpusSettings,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Renders OUT/{train,dev,test}/speaker/chapter/*.flac, transcripts and OUT/SPEAKERS.TXT.

    OUT appears whole or not at all. Returns the seconds of speech per split.

    Raises:
      RenderError: OUT exists and is not an empty folder, or cannot be written.
    """
    out = pathlib.Path(os.path.abspath(out))  # noqa: PTH100 (keeps symbolic links)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise embedded.RenderError(f"{out} is there and not an empty folder: name another one")
    workers = num_workers or os.cpu_count() or 1
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
        try:
            embedded.check_space(temporary, settings, share=1.7)  # samples and FLAC side by side
            raw, tree = temporary / "raw", temporary / "tree"
            raw.mkdir()
            embedded.render_into(raw, settings, workers, progress)
            seconds = _encode(raw, tree, workers, progress)
            tree.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise embedded.RenderError(f"{out} cannot be written: {error.strerror or error}") from error
    return seconds


def _encode(
    raw: pathlib.Path, tree: pathlib.Path, num_workers: int, progress: bool
) -> dict[str, float]:
    sources = {split: embedded.EmbeddedCorpus.at(raw / split) for split in embedded.SPLITS}
    seconds: dict[str, float] = {}
    speakers = ["; ID | SEX | SUBSET | MINUTES | NAME"]
    with (
        concurrent.futures.ThreadPoolExecutor(num_workers) as pool,  # libsndfile frees the GIL
        tqdm.tqdm(
            total=sum(map(len, sources.values())),
            desc="writing FLAC",
            unit=" utterances",
            disable=not progress,
        ) as bar,
    ):
        for split, source in sources.items():
            lengths: collections.Counter[str] = collections.Counter()
            lines: dict[str, list[str]] = collections.defaultdict(list)

            def encode(index: int, split=split, source=source) -> tuple[str, str, str, float]:
                record = source[index]
                folder = tree / split / record["speaker"] / "1"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{record['id']}.flac"
                soundfile.write(path, record["audio"], record["sample_rate"])
                seconds = record["audio"].size / record["sample_rate"]
                return record["speaker"], record["id"], record["text"], seconds

            for speaker, name, text, length in pool.map(encode, range(len(source))):
                lengths[speaker] += length
                lines[speaker].append(f"{name} {text}\n")
                bar.update()
            for speaker, said in lines.items():
                path = tree / split / speaker / "1" / f"{speaker}-1.trans.txt"
                path.write_text("".join(said))
                voice = voices.parse_voice(speaker)
                name = f"{voice.espeak_name}, synthetic"
                minutes = lengths[speaker] / 60
                speakers.append(f"{speaker} | {voice.sex} | {split} | {minutes:.2f} | {name}")
            seconds[split] = sum(lengths.values())
    (tree / "SPEAKERS.TXT").write_text("\n".join(speakers) + "\n")
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """The command line; ends with a one-line message when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m common.data.embedded",
        description="Render synthetic speech (eSpeak NG) into a LibriSpeech-style tree.",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="new or empty folder")
    parser.add_argument("--hours", type=float, default=2.0, help="of training speech (2)")
    parser.add_argument("--eval-hours", type=float, help="of dev and of test (a tenth of --hours)")
    parser.add_argument("--seed", type=int, default=0, help="of texts and voices (0)")
    parser.add_argument("--workers", type=int, help="rendering processes (one a core)")
    options = parser.parse_args(arguments)
    eval_hours = options.hours / 10 if options.eval_hours is None else options.eval_hours
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers={options.workers}: give at least 1")
    try:
        settings = embedded.CorpusSettings(options.hours, eval_hours, options.seed)
    except embedded.RenderError as error:
        parser.error(str(error))
    try:
        seconds = write_tree(options.out, settings, num_workers=options.workers)
    except embedded.RenderError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: nothing was written")
    for split, length in seconds.items():
        print(f"{options.out / split}: {length / 3600:.2f} hours of synthetic speech")


if __name__ == "__main__":
    main()
