"""Voices of people in a film: windows that fit together, who is in view in each, any length."""

import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, workdir
from configs.separation import audiovisual_quickstart, quickstart, visualvoice
from separation import evaluate, films, pairs, watching
from separation import metrics as separation_metrics
from tests.separation import test_pairs

GRAIN = 640


class Task:
    """Gives the mixture where a mouth is seen, times what the first pixel of it says."""

    def __init__(self, config):
        self.config, self.shapes = config, set()

    def extracted(self, variables, batch, mixture, lengths, name):
        assert name == "given"
        self.shapes.add(mixture.shape)
        said = batch["mouth"][:, :, 0, 0] * batch["mouth_seen"]
        return mixture * jnp.repeat(said, GRAIN, axis=1) + variables


def watcher(config=None) -> watching.Watcher:
    config = config or audiovisual_quickstart.get_config("debug")
    return watching.Watcher(Task(workdir.freeze(config)), jnp.zeros(()))


def person(first: int, frames: int, value: int = 1) -> watching.Person:
    mouth = np.full((frames, *films.MOUTH), value, np.uint8)
    return watching.Person("p", mouth, first, np.zeros((2, *films.FACE), np.uint8))


def heard(found: watching.Watcher, audio: np.ndarray, people) -> np.ndarray:
    pieces = found.voices(lambda start, count: audio[start : start + count], len(audio), people)
    return np.concatenate(list(pieces), axis=1)


@pytest.mark.parametrize("samples", [1, 639, 16000, 16001, 40_000, 100_123])
def test_windows_are_the_whole(samples):
    found = watcher()
    audio = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    frames = -(-samples // GRAIN)
    voices = heard(found, audio, [person(0, frames), person(0, frames, 3)])
    np.testing.assert_allclose(voices, np.stack([audio, 3 * audio]), atol=1e-5)
    assert found._task.shapes == {(2, found.window)}  # one program whatever the length


def test_who_is_not_in_view():
    found = watcher()
    audio = np.ones(100 * GRAIN, np.float32)
    (voice,) = heard(found, audio, [person(30, 41)])
    seen = np.repeat((np.arange(100) >= 30) & (np.arange(100) < 71), GRAIN)
    np.testing.assert_allclose(voice, seen, atol=1e-5)


def test_a_window_is_all_that_is_read():
    """The memory of a long film is that of a window."""
    found, asked = watcher(), []

    def sound(start: int, count: int) -> np.ndarray:
        asked.append((start, count))
        return np.zeros(count, np.float32)

    people = [person(0, 5)]
    sizes = [piece.shape[1] for piece in found.voices(sound, 300 * GRAIN, people)]
    assert sum(sizes) == 300 * GRAIN
    assert max(count for _, count in asked) == found.window
    assert max(sizes) <= found.window
    assert all(start % GRAIN == 0 for start, _ in asked)


def test_many_people_take_no_more_memory_than_a_few():
    found, audio = watcher(), np.ones(20 * GRAIN, np.float32)
    voices = heard(found, audio, [person(0, 20, value) for value in range(1, 10)])
    np.testing.assert_allclose(voices[:, 100], np.arange(1, 10), rtol=1e-5)
    assert max(rows for rows, _ in found._task.shapes) <= 4


def test_networks_that_cannot():
    with pytest.raises(errors.UserError, match="This network sees nothing"):
        watcher(quickstart.get_config("debug"))
    config = visualvoice.get_config("debug")
    config.model.visualvoice.context = True
    with pytest.raises(errors.UserError, match="separates two people, and 3 are in view"):
        heard(watcher(config), np.zeros(1000, np.float32), [person(0, 2)] * 3)


class Halves(watching.Watcher):
    """Gives the mixture itself, half as loud."""

    def __init__(self):
        self.window, self.grain = 4 * GRAIN, GRAIN

    def voices(self, sound, samples, people):
        yield np.stack([sound(0, samples) / 2] * len(people))


def test_oracle_gain_gives_the_true_level_of_each_window_back():
    rng = np.random.default_rng(1)
    loud = np.repeat([1.0, 0.1, 2.0], 4 * GRAIN)[: 11 * GRAIN]
    voices = rng.normal(size=(2, len(loud))) * np.stack([loud, np.ones(len(loud))])
    voices = voices.astype(np.float32)
    people = [person(0, 11), person(0, 11)]
    plain = evaluate.extracted(Halves(), voices, people)
    np.testing.assert_allclose(plain[0], voices.sum(0) / 2, atol=1e-6)
    leaked = evaluate.extracted_with_oracle_gain(Halves(), voices, people)
    for start in range(0, len(loud), 4 * GRAIN):
        part = slice(start, start + 4 * GRAIN)
        level = [np.sqrt(np.mean(np.square(v[part]))) for v in voices]
        alike = sum(v[part] / own for v, own in zip(voices, level)) / 2
        np.testing.assert_allclose(leaked[0, part], alike * level[0], rtol=1e-3, atol=1e-4)


def test_a_pair_that_cannot_be_is_named_by_its_number(caplog):
    """`pairs.read` has said why; the numbers of the others stay those of the list."""
    lost = pairs.Pair("a", 0.0, "b", 0.0, 0.0, problem="list.tsv, line 2: dev has no 'a'.")
    config = workdir.freeze(audiovisual_quickstart.get_config("debug"))
    clips = evaluate.Clips(test_pairs.split(), config)
    assert not list(evaluate.evaluated(watcher(), clips, [lost], {}, oracle_gain=False))
    assert "Pair 1 is left out: list.tsv, line 2: dev has no 'a'." in caplog.text


def test_scores_and_their_means():
    rng = np.random.default_rng(2)
    voices = rng.normal(size=(2, 8000)).astype(np.float32)
    found = voices + 0.1 * voices[::-1]
    rows = evaluate.scores(found, voices, {"level": lambda clean, other: float("nan")})
    for i, row in enumerate(rows):
        assert row["sdri"] == pytest.approx(row["sdr"] - row["sdr_mixture"])
        assert row["sir"] == pytest.approx(20.0, abs=0.5)
        gain = separation_metrics.si_sdr(found[i], voices[i])
        gain -= separation_metrics.si_sdr(voices.sum(0), voices[i])
        assert row["si_sdri"] == pytest.approx(gain)
        row["speaker"] = "ab"[i]
    means = evaluate.means(rows)
    assert set(means) == {"sdr", "sdr_mixture", "sdri", "sir", "sar", "si_sdri"}
    value, low, high = means["sdr"]
    assert value == pytest.approx(np.mean([row["sdr"] for row in rows]))
    assert low <= value <= high


@pytest.mark.parametrize("options", [["--seed=-1"], ["--seconds=nan"], ["--pairs=0"]])
def test_impossible_draws_are_one_message(command, monkeypatch, options):
    monkeypatch.setattr("sys.argv", ["evaluate", "--workdir=none", *options])
    with pytest.raises(SystemExit, match="are above 0, --seed is not below"):
        evaluate.main()


def test_runs_stand_below_each_other_and_say_what_they_are():
    """Also in the table, whose figures with gains that leak are not those without."""
    row = {"voice": "a0", "other": "b0", "speaker": "a", "seconds": 1.0, "sdr": 2.0, "stoi": 0.5}
    rows = [(0, row), (0, {**row, "voice": "b0", "other": "a0", "speaker": "b", "stoi": 0.7})]
    assert "1  a0 + b0  sdr 2.000  stoi 0.600" in evaluate._text("# run", rows)
    first = evaluate._table("", rows, 1, 0)
    assert first.splitlines()[0] == "run,oracle_gain,pair,voice,other,speaker,seconds,sdr,stoi"
    both = evaluate._table(first, rows, 2, 1)
    assert both.startswith(first)
    assert [line[:8] for line in both.splitlines()[1:]] == ["1,0,1,a0", "1,0,1,b0", "2,1,1,a0",
                                                            "2,1,1,b0"]  # fmt: skip
    other = [(k, {**row, "pesq_wb": 3.0}) for k, row in rows]
    assert len(evaluate._table(both, other, 3, 0).splitlines()) == 3
