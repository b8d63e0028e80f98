"""How fast a streaming network is, hop by hop on one thread, as a listener meets it.

    python -m separation.bench --workdir=runs/separation [--seconds=60]

Noise goes through the network one hop at a time, as fast as it can; --seconds=7200 is two hours of
it, whose memory should not grow. The process may use one core only, so XLA has one thread. A
network that sees lips is shown 25 pictures of a mouth a second, whose time counts with the hops
that wait for them.
"""

import os
import pathlib
import time

import numpy as np
from jaxtyping import Float

from common import app, errors
from separation import enhancer as enhancer_lib
from separation import films, sight

_WARM_HOPS = 20


def resident_mib() -> float:
    """Resident memory of this process (Linux), NaN elsewhere."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def hops(enhancer: enhancer_lib.Enhancer, seconds: float) -> tuple[Float[np.ndarray, "n"], float]:
    """What each hop of so much sound takes, as a share of the hop, and MiB resident before."""
    enhancer.check_streams()
    extractor = enhancer.extractor
    hop_seconds = extractor.hop_size / enhancer.sample_rate_hz
    nobody = enhancer.cue_of(np.zeros(0, np.float32))
    state, rng = enhancer.start(nobody), np.random.default_rng(0)
    sound = (0.05 * rng.standard_normal((256, 1, extractor.hop_size))).astype(np.float32)
    watched, shown = enhancer.watched(), 0
    mouths = rng.integers(0, 256, (_WARM_HOPS, *films.MOUTH), np.uint8)
    taken = np.zeros(max(1, round(seconds / hop_seconds)))
    for k in range(-_WARM_HOPS, len(taken)):
        if k == 0:
            memory = resident_mib()
        started, motion = time.perf_counter(), None
        if watched is not None:
            end = (k + _WARM_HOPS + 1) * extractor.hop_size
            while shown <= sight.latest_picture(end, enhancer.sample_rate_hz):
                watched.show(mouths[shown % len(mouths)])
                shown += 1
            motion = watched.at_hops(extractor.hop_size)
        state, out = enhancer.step(state, sound[k % 256], motion)
        np.asarray(out)
        if k >= 0:
            taken[k] = time.perf_counter() - started
    return taken / hop_seconds, memory


def measure(enhancer: enhancer_lib.Enhancer, seconds: float) -> list[str]:
    """Lines with latency, times of hops, real-time factor and memory."""
    taken, memory = hops(enhancer, seconds)
    hop_ms = 1000 * enhancer.extractor.hop_size / enhancer.sample_rate_hz
    middle, rare, worst = hop_ms * np.percentile(taken, [50, 99, 100])
    return [
        f"algorithmic latency   {enhancer.latency_ms:g} ms, a hop is {hop_ms:g} ms",
        f"one hop, one thread   p50 {middle:.2f} ms   p99 {rare:.2f} ms   worst {worst:.2f} ms   "
        f"({len(taken):,} hops, {np.mean(taken > 1):.2%} take longer than a hop)",
        f"real-time factor      {taken.mean():.4f}",
        f"resident memory       {memory:.0f} MiB before, {resident_mib():.0f} after",
        *(["with 25 pictures of a mouth a second"] if enhancer.sees_lips else []),
    ]


def main() -> None:
    """The command line."""
    parser = app.parser("separation.bench", __doc__)
    app.add_run(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="of sound (60)")
    args = parser.parse_args()

    def work() -> None:
        if not 0 < args.seconds < float("inf"):
            raise errors.UserError(f"--seconds={args.seconds:g} must be positive and finite.")
        if hasattr(os, "sched_setaffinity"):  # before XLA counts its threads
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        network = enhancer_lib.load(args.workdir, step=args.checkpoint)
        print("\n".join(measure(network, args.seconds)))

    app.command("separation.bench", work)


if __name__ == "__main__":
    main()
