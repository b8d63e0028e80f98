"""Speed of the data pipeline alone, by number of worker processes (0: threads of this process).

    python -m benchmarks.feeding PATH [--root DIR] [--workers 0 1 2 4]

PATH is a manifest (.tsv, .jsonl) or a LibriSpeech tree. Every record is decoded, resampled,
padded into its bucket and handed over, and nothing is done with it. The time until the first batch
(starting the workers) stands apart; the rates are those of whole epochs after it.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from common.data import buckets, indexing, librispeech, manifest, pipeline, speech
from common.data import examples as examples_lib


def measure(
    examples: examples_lib.Examples,
    shapes: tuple[buckets.Bucket, ...],
    sizes: dict[str, np.ndarray],
    num_workers: int,
    epochs: int,
) -> tuple[float, float, int, int]:
    """(seconds until the first batch, seconds of the epochs after it, records, samples)."""
    rows = tuple(shape.rows for shape in shapes)
    plan = pipeline.EpochPlan(
        rows, buckets.assign(shapes, sizes, len(examples)), seed=0, shuffle=True
    )
    dataset = pipeline.train_batches(examples, shapes, sizes, seed=0, num_workers=num_workers)
    iterator = iter(dataset)
    start = time.perf_counter()
    next(iterator)
    first = time.perf_counter()
    count = samples = 0
    # What was read ahead at either end is a few batches of many.
    for _ in range(epochs * plan.num_batches):
        batch = next(iterator)
        count += int(batch["mask"].sum())
        samples += int(batch["audio_lengths"].sum())
    seconds = time.perf_counter() - first
    iterator.close()
    return first - start, seconds, count, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=pathlib.Path, help="manifest or LibriSpeech tree")
    parser.add_argument("--root", type=pathlib.Path, help="where a manifest's paths start")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--sample_rate_hz", type=int, default=16_000)
    parser.add_argument("--batch_seconds", type=float, default=160.0)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    if args.path.is_dir():
        source = librispeech.read_tree(args.path)
    else:
        source = manifest.read_manifest(args.path, root=args.root)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = indexing.build_index(
            source,
            cache=None,
            rejected_tsv=pathlib.Path(folder) / "rejected.tsv",
            sample_rate_hz=args.sample_rate_hz,
            min_seconds=0.1,
            max_seconds=min(40.0, args.batch_seconds),
            require_text=False,
            max_bad_share=0.5,
            num_workers=2,
            progress=True,
        )
        validation = time.perf_counter() - start
    examples = speech.SpeechExamples(source, index.positions, args.sample_rate_hz)
    sizes = {"audio": index.lengths}
    shapes = buckets.choose_buckets(
        sizes,
        primary="audio",
        num_buckets=4,
        max_total=round(args.batch_seconds * args.sample_rate_hz),
        rows_multiple_of=1,
    )
    one = buckets.choose_buckets(
        sizes,
        primary="audio",
        num_buckets=1,
        max_total=round(args.batch_seconds * args.sample_rate_hz),
        rows_multiple_of=1,
    )
    print(
        f"{len(index)} records, {index.seconds.sum() / 3600:.2f} h; "
        f"validated in {validation:.1f} s; "
        f"padding {buckets.padding_share(shapes, sizes, 'audio'):.1%} in {len(shapes)} buckets, "
        f"{buckets.padding_share(one, sizes, 'audio'):.1%} in one"
    )
    print("| workers | first batch s | records | seconds | records/s | audio s/s |")
    print("|---|---|---|---|---|---|")
    for num_workers in args.workers:
        first, seconds, count, samples = measure(examples, shapes, sizes, num_workers, args.epochs)
        audio_seconds = samples / args.sample_rate_hz
        print(
            f"| {num_workers} | {first:.2f} | {count} | {seconds:.3f} | {count / seconds:.0f} "
            f"| {audio_seconds / seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
