"""The engine of streams: what is not live waits for them, but not for ever."""

import asyncio
import contextlib
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from separation import self_enrolment, streams
from tests.separation import test_enhancer


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return test_enhancer.make(tmp_path_factory.mktemp("causal"))


class Order:
    """In place of the network: what was done, in which order; `gate` holds the first work."""

    def __init__(self, network) -> None:
        self.engine = streams.Engine(network, 2)
        self.engine._slots.advance = self.advance
        self.done: list[object] = []
        self.begun, self.gate = threading.Event(), threading.Event()

    def advance(self, slots, is_new, audio, cues, has_new_cue):
        del slots, is_new, cues, has_new_cue
        self.done.append(audio.shape)
        return audio

    def work(self, name: str) -> str:
        self.begun.set()
        assert self.gate.wait(60)
        self.done.append(name)
        return name.upper()


@contextlib.asynccontextmanager
async def running(engine):
    task = asyncio.create_task(engine.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def contest(order: Order) -> list[str]:
    """Two works and, while the first is done, hops of two streams."""
    engine = order.engine
    ones = [engine.open(np.zeros(3, np.float32)) for _ in range(2)]
    async with running(engine):
        works = [asyncio.create_task(engine.between(lambda x=x: order.work(x))) for x in "ab"]
        await asyncio.to_thread(order.begun.wait, 60)
        for hops, stream in enumerate(ones, 1):
            await stream.put(np.zeros(hops * engine.hop_size, np.float32))
        order.gate.set()
        found = await asyncio.gather(*works)
        assert len(await ones[1].get()) == engine.hop_size  # of two: the first one is early
    return found


def test_what_is_not_live_waits_while_a_stream_does(network):
    """Both streams share the first step; the second one's other hop comes before the work too."""
    order = Order(network)
    assert asyncio.run(contest(order)) == ["A", "B"]
    hop = order.engine.hop_size
    assert order.done == ["a", (2, hop), (1, hop), "b"]


def test_what_waited_long_has_its_turn_between_steps(network, monkeypatch):
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.0)
    order = Order(network)
    asyncio.run(contest(order))
    hop = order.engine.hop_size
    assert order.done == ["a", "b", (2, hop), (1, hop)]


def test_work_that_fails_or_comes_too_late_says_so(network):
    async def talk():
        engine = streams.Engine(network, 1)
        async with running(engine):
            with pytest.raises(ZeroDivisionError):
                await engine.between(lambda: 1 / 0)
            assert await engine.between(lambda: 7) == 7
        with pytest.raises(streams.Broken, match="has stopped"):
            await engine.between(lambda: 7)

    asyncio.run(talk())


def test_a_cue_is_changed_in_one_row_from_a_hop_on(network):
    """As in a stream by itself; the row beside it goes on as it was."""
    hop, rng = network.extractor.hop_size, np.random.default_rng(0)
    audio = np.float32(0.1 * rng.normal(size=(6, 2, hop)))
    cues = np.float32(rng.normal(size=(3, network.cue(None).shape[1])))
    slots, found = streams.Slots(network, 2), []
    for k, chunk in enumerate(audio):
        mine = cues[[2 if k >= 3 else 0, 1]]
        rows = [0, 1], [k == 0] * 2, chunk, mine, [k in (0, 3), k == 0]
        found.append(slots.advance(*rows))
    for row in range(2):
        state = network.start(jnp.asarray(cues[row : row + 1]))
        for k, chunk in enumerate(audio):
            if k == 3 and row == 0:
                state = network.with_cue(state, jnp.asarray(cues[2:]))
            state, expected = network.step(state, chunk[row : row + 1])
            np.testing.assert_allclose(found[k][row], expected[0], atol=1e-6)


def test_a_stream_enrols_itself_once(network, monkeypatch):
    """By what it gave itself, which is enough of a voice here whatever it is."""
    monkeypatch.setattr(self_enrolment, "_OVER_REST", 0.0)
    monkeypatch.setattr(streams, "_PATIENCE_SECONDS", 0.0)
    mixture = test_enhancer.noise(6.0)
    null = np.asarray(network.cue(None))[0]

    async def talk():
        engine = streams.Engine(network, 1)
        async with running(engine):
            stream = engine.open(null, self_enroll=True)
            parts, changed = [], []
            for first in range(0, len(mixture), 4000):
                await stream.put(mixture[first : first + 4000])
                parts.append(await stream.get())
                changed.append(stream.cue is not null)
            stream.end()
            while (rest := await stream.get()) is not None:
                parts.append(rest)
            engine.close(stream)
            return np.concatenate(parts), stream.cue, changed

    voice, cue, changed = asyncio.run(talk())
    assert len(voice) == len(mixture)
    assert not changed[0]
    assert changed[-1]
    collector = network.collector()
    collector.put(mixture[: len(voice)], voice)
    np.testing.assert_allclose(cue, network.cue_of(collector.enrolment)[0], atol=1e-5)


def test_a_stream_that_goes_before_it_enrols_itself_leaves_the_engine_alone(network, monkeypatch):
    """It is closed during the step whose output would be enough of its voice."""

    class Full(self_enrolment.Collector):
        def put(self, mixture, voice):
            self._kept = [voice] * self._most

    monkeypatch.setattr(network, "collector", lambda: Full(16000, 16000))
    engine, begun, gate = streams.Engine(network, 1), threading.Event(), threading.Event()

    def advance(slots, is_new, audio, cues, has_new_cue):
        begun.set()
        assert gate.wait(60)
        return audio

    monkeypatch.setattr(engine._slots, "advance", advance)

    async def talk():
        async with running(engine):
            stream = engine.open(np.zeros(16, np.float32), self_enroll=True)
            await stream.put(np.zeros(2 * engine.hop_size, np.float32))
            await asyncio.to_thread(begun.wait, 60)
            engine.close(stream)
            gate.set()
            assert await engine.between(lambda: 7) == 7

    asyncio.run(talk())
