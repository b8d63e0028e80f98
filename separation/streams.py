"""Many streams through one network: hops that are due are advanced together.

`Engine` belongs to an event loop; the network's steps run in a thread of their own. A step takes
every stream that has a hop waiting, so that the batch grows with the load. Rows are padded to a
power of two, and all shapes are compiled before the first stream. What is not live, the steps of
recordings, goes through the same thread `between` those of streams.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from separation import enhancer as separation_enhancer
from separation import hops as separation_hops

log = logging.getLogger(__name__)

_BLOCK_HOPS = (8, 1)  # of each row in one step; more at a time where a stream is behind
_WAITING_SECONDS = 2.0  # of input and of output that a stream may have, beyond that it waits
_PATIENCE_SECONDS = 0.05  # of what is not live, while there is always a stream that waits


class Slots:
    """The states of up to `size` streams, on the device. Each step advances some of them."""

    def __init__(self, enhancer: separation_enhancer.Enhancer, size: int) -> None:
        self._size, self._hop = size, enhancer.extractor.hop_size
        self._step, self._with_cue = enhancer.pure_step, enhancer.pure_with_cue
        self._first, self._variables = enhancer.extractor.initial_state(1), enhancer.variables
        self._cue_size = enhancer.cue_of(np.zeros(0, np.float32)).shape[1]
        self._advance = jax.jit(self._advanced, donate_argnums=1)
        self.reset()

    def reset(self) -> None:
        """Silence everywhere; after a failure, which may have taken the memory with it."""
        # The last one is written by the rows that pad a batch.
        self._states = jax.tree.map(
            lambda x: jnp.repeat(x[None], self._size + 1, axis=0), self._first
        )

    def compile(self) -> None:
        """Runs every shape once."""
        for hops in _BLOCK_HOPS:
            for power in range((self._size - 1).bit_length() + 1):
                audio = np.zeros((1 << power, hops * self._hop), np.float32)
                cues = np.zeros((1 << power, self._cue_size), np.float32)
                self.advance([], [], audio, cues, [])

    def advance(
        self,
        slots: Sequence[int],
        is_new: Sequence[bool],
        audio: Float[np.ndarray, "n t"],
        cues: Float[np.ndarray, "n c"],
        has_new_cue: Sequence[bool],
    ) -> Float[np.ndarray, "n t"]:
        """The next samples of some streams. `is_new` ones start from silence; `has_new_cue` ones
        have the voice of their cue from here on."""
        padding = (1 << (len(audio) - 1).bit_length()) - len(audio)
        index = np.full(len(audio) + padding, self._size, np.int32)
        index[: len(slots)] = slots
        new, other = np.zeros(len(index), bool), np.zeros(len(index), bool)
        new[: len(slots)], other[: len(slots)] = is_new, has_new_cue
        rows = ((0, padding), (0, 0))
        audio, cues = np.pad(audio, rows), np.pad(cues, rows)
        self._states, out = self._advance(
            self._variables, self._states, index, new, audio, cues, other
        )
        return np.asarray(out)[: len(audio) - padding]

    def _advanced(
        self,
        variables: Any,
        states: Any,
        slots: Int[Array, "b"],
        is_new: Bool[Array, "b"],
        audio: Float[Array, "b t"],
        cues: Float[Array, "b c"],
        has_new_cue: Bool[Array, "b"],
    ) -> tuple[Any, Float[Array, "b t"]]:
        def chosen(rows: Bool[Array, "b"], one: Any, other: Any) -> Any:
            def either(x: Array, y: Array) -> Array:
                return jnp.where(rows.reshape(-1, *[1] * (y.ndim - 1)), x, y)

            return jax.tree.map(either, one, other)

        # Whatever the shapes of a state are: each row is a batch of one.
        def with_cues(before: Any) -> Any:
            after = jax.vmap(self._with_cue, (None, 0, 0))(variables, before, cues[:, None])
            return chosen(has_new_cue, after, before)

        first = jax.tree.map(lambda x: x[None], self._first)
        before = chosen(is_new, first, jax.tree.map(lambda stored: stored[slots], states))
        before = jax.lax.cond(jnp.any(has_new_cue), with_cues, lambda before: before, before)
        after, out = jax.vmap(self._step, (None, 0, 0))(variables, before, audio[:, None])
        return jax.tree.map(lambda kept, new: kept.at[slots].set(new), states, after), out[:, 0]


class Broken(Exception):
    """The network failed; the stream is lost."""


class Stream:
    """One stream of an engine, at the model's rate; made by `Engine.open`.

    As `enhancer.Stream`: `put` chunks of any size, `end`, and `get` as many samples as went in.
    """

    def __init__(
        self, slot: int, cue: Float[np.ndarray, "c"], hops: separation_hops.Hops, most_hops: int,
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.slot, self.cue, self.is_new, self.has_new_cue = slot, cue, True, True
        self.due_since = 0.0
        self._hops, self._most, self._wake = hops, most_hops, wake
        self._out: list[Float[np.ndarray, "_"]] = []
        self._out_hops = 0
        self._changed = asyncio.Event()
        self._error: Exception | None = None

    async def put(self, chunk: Float[np.ndarray, "n"]) -> None:
        """Waits while too much waits already."""
        self._add(lambda: self._hops.put(chunk))
        while self._hops.ready >= self._most:
            await self._change()

    def end(self) -> None:
        """No more comes."""
        self._add(self._hops.end)
        self._changed.set()

    async def get(self) -> Float[np.ndarray, "m"] | None:
        """All that is complete, waiting for some; None after the last."""
        while not self._out:
            if self._hops.is_over:
                return None
            await self._change()
        found = np.concatenate(self._out)
        self._out.clear()
        self._out_hops = 0
        self._wake()
        return found

    @property
    def ready(self) -> int:
        """For the engine: hops that may be advanced now; none while the output waits."""
        return self._hops.ready if self._out_hops < self._most else 0

    def take(self, hops: int) -> Float[np.ndarray, "t"]:
        """For the engine: the next hops."""
        self.is_new = self.has_new_cue = False
        return self._hops.take(hops)

    def change(self, cue: Float[np.ndarray, "c"]) -> None:
        """Another voice from the next hop on."""
        self.cue, self.has_new_cue = cue, True

    def give(self, hops: int, out: Float[np.ndarray, "t"]) -> None:
        """For the engine: what they became."""
        out = self._hops.give(out)
        if out.size:
            self._out.append(out)
            self._out_hops += hops
        self.due_since = time.perf_counter()
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """For the engine: there will be nothing more."""
        self._error = error
        self._changed.set()

    def _add(self, add: Callable[[], None]) -> None:
        if not self._hops.ready:
            self.due_since = time.perf_counter()
        add()
        if self._hops.ready:
            self._wake()

    async def _change(self) -> None:
        if self._error is None:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise Broken from self._error


class _Work(NamedTuple):
    """What waits for a time without streams."""

    work: Callable[[], Any]
    since: float
    result: asyncio.Future

    @property
    def is_impatient(self) -> bool:
        return time.perf_counter() - self.since > _PATIENCE_SECONDS


class Engine:
    """Advances all streams of an event loop. `run` has to be running."""

    def __init__(
        self,
        enhancer: separation_enhancer.Enhancer,
        size: int,
        *,
        observe: Callable[[int, int, float], None] = lambda rows, hops, seconds: None,
    ) -> None:
        """`observe` is told rows and hops of each step, and how long the oldest had to wait."""
        extractor = enhancer.extractor
        self.hop_size, self.delay_samples = extractor.hop_size, extractor.delay_samples
        self._most_hops = round(_WAITING_SECONDS * enhancer.sample_rate_hz / self.hop_size)
        self._slots, self._observe, self._enhancer = Slots(enhancer, size), observe, enhancer
        self._enrolling: set[asyncio.Task] = set()
        self._free = list(range(size))
        self._streams: dict[int, Stream] = {}
        self._others: collections.deque[_Work] = collections.deque()
        self._is_over = False
        self._due = asyncio.Event()
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "streams")

    def __len__(self) -> int:
        return len(self._streams)

    def compile(self) -> None:
        """To be called before `run`; takes seconds."""
        self._slots.compile()
        self._enhancer.cue_of(np.zeros(0, np.float32))

    def open(
        self, cue: Float[np.ndarray, "c"], strength: float = 1.0, *, self_enroll: bool = False
    ) -> Stream | None:
        """A new stream, to be closed; None if there are as many as may be.

        With `self_enroll` the cue is changed once, as in `enhancer.Stream`.
        """
        if not self._free:
            return None
        slot, found = self._free.pop(), self._enhancer.collector() if self_enroll else None

        def heard(mixture: Float[np.ndarray, "m"], voice: Float[np.ndarray, "m"]) -> None:
            if not found.is_full:
                found.put(mixture, voice)
                if found.is_full:
                    task = asyncio.create_task(self._enroll(stream, found.enrolment))
                    self._enrolling.add(task)
                    task.add_done_callback(self._enrolling.discard)

        listen = heard if self_enroll else None
        hops = separation_hops.Hops(self.hop_size, self.delay_samples, strength, listen)
        # It may be closed, and its slot another's, before the last of its hops is given.
        stream = Stream(slot, cue, hops, self._most_hops, self._due.set)
        self._streams[slot] = stream
        return stream

    async def _enroll(self, stream: Stream, enrolment: Float[np.ndarray, "n"]) -> None:
        with contextlib.suppress(Broken):
            cue = await self.between(lambda: np.asarray(self._enhancer.cue_of(enrolment))[0])
            stream.change(cue)

    def close(self, stream: Stream) -> None:
        """Its place is free. A step in which it still takes part comes before any of a new one."""
        del self._streams[stream.slot]
        self._free.append(stream.slot)

    async def between(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises, called when no stream waits; it has to be short."""
        if self._is_over:
            raise Broken("the engine has stopped")
        waiting = _Work(work, time.perf_counter(), asyncio.get_running_loop().create_future())
        self._others.append(waiting)
        self._due.set()
        return await waiting.result

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self._due.wait()
                hops, streams = self._next()
                if self._others and (not streams or self._others[0].is_impatient):
                    await self._work(self._others.popleft())
                elif streams:
                    await self._advance(hops, streams)
                else:
                    self._due.clear()
        finally:
            self._is_over = True
            for waiting in self._others:
                waiting.result.cancel()
            self._worker.shutdown()

    async def _work(self, waiting: _Work) -> None:
        loop, result = asyncio.get_running_loop(), waiting.result
        try:
            found = await loop.run_in_executor(self._worker, waiting.work)
        except asyncio.CancelledError:
            result.cancel()
            raise
        except Exception as error:
            if not result.done():
                result.set_exception(error)
        else:
            if not result.done():
                result.set_result(found)

    async def _advance(self, hops: int, streams: list[Stream]) -> None:
        due_since = min(stream.due_since for stream in streams)
        rows = [(one.slot, one.is_new, one.cue, one.has_new_cue) for one in streams]
        slots, is_new, cues, has_new_cue = zip(*rows)
        audio = np.stack([stream.take(hops) for stream in streams])
        work = functools.partial(
            self._slots.advance, slots, is_new, audio, np.stack(cues), has_new_cue
        )
        loop = asyncio.get_running_loop()
        try:
            out = await loop.run_in_executor(self._worker, work)
        except Exception as error:
            log.exception("The network failed; all streams end.")
            for stream in self._streams.values():
                stream.fail(error)
            self._slots.reset()
            return
        self._observe(len(streams), hops, time.perf_counter() - due_since)
        for stream, row in zip(streams, out):
            stream.give(hops, row)

    def _next(self) -> tuple[int, list[Stream]]:
        """The streams to be advanced together, and by how many hops each."""
        due = [stream for stream in self._streams.values() if stream.ready]
        for hops in _BLOCK_HOPS:
            found = [stream for stream in due if stream.ready >= hops]
            # A long block of some streams may not keep those waiting that have a hop each.
            if found and len(found) == len(due):
                return hops, found
        return 0, []
