"""Real-time streams at a server, how late their sound comes back, and uploads of random bytes.

    python -m benchmarks.serving --workdir=DIR [--streams 20] [--seconds 60] [--recording 60]

Starts `python -m separation.serve`, and sends from this process. Each client sends 16-bit samples
at 16 kHz, 32 ms at a time when they would be recorded, at a phase of its own. A hop is due back
when its last sample and the network's window were sent; lateness is what goes beyond that. With
--recording one of so many seconds is uploaded beside the streams, again and again. Both processes
share the cores: there is no network between them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import httpx2
import numpy as np
from websockets.asyncio import client as websocket

from common.audio import io

RATE_HZ = 16000
CHUNK = 512
_LATE_MS = 100.0


async def stream(url: str, seconds: float, start: float) -> list[float]:
    """Lateness in ms of every frame that came back. Raises if the stream is not answered whole."""
    late: list[float] = []
    noise = np.random.default_rng(round(start * 1e6)).normal(size=CHUNK) * 3000
    chunk, count = noise.astype("<i2").tobytes(), round(seconds * RATE_HZ / CHUNK)
    async with websocket.connect(url.replace("http", "ws") + "stream", compression=None) as talk:
        await talk.send(json.dumps({"rate": RATE_HZ}))
        ready = json.loads(await talk.recv())
        delay = round(ready["delay_ms"] / 1000 * RATE_HZ)
        await asyncio.sleep(start - time.perf_counter())

        async def send() -> None:
            for i in range(count):
                await asyncio.sleep(start + (i + 1) * CHUNK / RATE_HZ - time.perf_counter())
                await talk.send(chunk)
            await talk.send('{"end": true}')

        sending = asyncio.create_task(send())
        given = 0
        while isinstance(frame := await talk.recv(), bytes):
            now = time.perf_counter()
            given += len(frame) // 2
            # The chunk that had the last sample which this one needs.
            needed = min(-(-(given + delay) // CHUNK), count)
            late.append(1000 * (now - start - needed * CHUNK / RATE_HZ))
        await sending
        if json.loads(frame) != {"samples": count * CHUNK} or given != count * CHUNK:
            raise RuntimeError(f"{given} of {count * CHUNK} samples came back: {frame}")
    return late


async def together(url: str, streams: int, seconds: float) -> list[list[float] | BaseException]:
    begin = time.perf_counter() + 1.0
    phases = np.random.default_rng(0).uniform(0, CHUNK / RATE_HZ, streams)
    work = (stream(url, seconds, begin + phase) for phase in phases)
    return await asyncio.gather(*work, return_exceptions=True)


@contextlib.asynccontextmanager
async def recordings(url: str, seconds: float):
    """Meanwhile uploads noise of so many seconds; gives the seconds that each took."""
    noise = 0.1 * np.random.default_rng(1).normal(size=round(seconds * RATE_HZ))
    data, taken = io.wav_bytes(noise.astype(np.float32), RATE_HZ), []

    async def send() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
            while True:
                begun = time.perf_counter()
                answer = await client.post("enhance", files={"file": data})
                answer.raise_for_status()
                taken.append(time.perf_counter() - begun)

    sending = asyncio.create_task(send()) if seconds else None
    try:
        yield taken
    finally:
        if sending is not None:
            sending.cancel()


async def beside(args: argparse.Namespace, url: str) -> tuple[list, list[float]]:
    async with recordings(url, args.recording) as taken:
        return await together(url, args.streams, args.seconds), taken


def upload(url: str, count: int) -> dict[int, int]:
    """How often each status was the answer to random bytes."""
    rng, statuses = np.random.default_rng(0), {}
    with httpx2.Client(base_url=url, timeout=60) as client:
        for _ in range(count):
            data = rng.bytes(int(10 ** rng.uniform(0, 5.5)))
            status = client.post("enhance", files={"file": ("x.wav", data)}).status_code
            statuses[status] = statuses.get(status, 0) + 1
    return statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--recording", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--uploads", type=int, default=1000)
    args = parser.parse_args()
    command = [sys.executable, "-m", "separation.serve", f"--workdir={args.workdir}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            measure(args, server)
        finally:
            server.terminate()
    print(f"stopped with {server.returncode}")


def measure(args: argparse.Namespace, server: subprocess.Popen) -> None:
    begun = time.perf_counter()
    url = server.stdout.readline().strip()
    httpx2.get(url + "health", timeout=60).raise_for_status()

    def figure(name: str) -> float:
        lines = httpx2.get(url + "metrics", timeout=60).text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(name)))

    def memory() -> str:
        return f"RSS {figure('process_resident_memory_bytes') / 2**20:.0f} MiB"

    print(f"ready after {time.perf_counter() - begun:.1f} s, {memory()}")
    asyncio.run(together(url, args.streams, 2.0))
    print(f"after 2 s of {args.streams} streams: {memory()}")
    before, load = figure("process_cpu_seconds_total"), os.getloadavg()[0]
    found, taken = asyncio.run(beside(args, url))
    after = figure("process_cpu_seconds_total")
    late = np.concatenate([one for one in found if isinstance(one, list)] or [np.zeros(1)])
    failed = [one for one in found if not isinstance(one, list)]
    cpu = (after - before) / args.seconds
    print(
        f"{args.streams} streams, {args.seconds:g} s: {len(failed)} dropped {failed or ''}, "
        f"ms late p50 {np.median(late):.1f} p99 {np.percentile(late, 99):.1f} "
        f"max {late.max():.1f}, "
        f"{np.mean(late > _LATE_MS):.2%} of {len(late)} frames by more than {_LATE_MS:g} ms; "
        f"{cpu:.2f} cores, {memory()}; load before {load:.1f}"
    )
    if args.recording:
        speeds = " ".join(f"{one:.1f}" for one in taken)
        print(f"{len(taken)} uploads of {args.recording:g} s beside them took s: {speeds}")
    for part in range(2):
        statuses = upload(url, args.uploads // 2)
        print(f"random uploads, half {part + 1}: {statuses}, {memory()}")
    print(httpx2.get(url + "health", timeout=60).text)


if __name__ == "__main__":
    main()
