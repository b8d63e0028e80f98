"""The words of a recording in another voice: masks, what follows what, figures, the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, evaluation, metrics, parallel
from common.audio import frontend
from common.data import pipeline
from generation import data, harmonics, judging, matcher, revoice, revoicing, spoken
from tests.generation import people as toy

SMALL = {
    **{"model.kind": "revoice", "loss.wrong_pairs": False, "loss.contrast": 0.2},
    **{"model.revoice.width": 16, "model.revoice.code": 8, "model.revoice.blocks": 1},
    **{"model.revoice.said_every": 2},
    **{"model.matcher.colour": 0.0},  # people are told apart by colour
}


@pytest.fixture(scope="module")
def net():
    matching = matcher.MatcherConfig(size=4, voice_channels=8, face_channels=4)
    front_end = revoice.front_end(frontend.LogMelConfig(num_mels=10, normalize="none"))
    return revoice.Revoicer(revoice.RevoiceConfig(width=12, code=6, blocks=1), matching, front_end)


@pytest.fixture(scope="module")
def variables(net):
    frames, pictures = jnp.zeros((1, 9, 10)), jnp.zeros((1, 8, 8, 1))
    return net.init(jax.random.key(0), frames, jnp.array([9]), pictures, method="everything")


def heights(*shape):
    """Of frames: 100 to 300 Hz, of all periodicities."""
    rng = np.random.default_rng(1)
    hertz, periodicity = rng.uniform(100, 300, shape), rng.uniform(size=shape)
    return jnp.asarray(hertz, jnp.float32), jnp.asarray(periodicity, jnp.float32)


def test_a_padded_row_gives_what_it_gives_alone(net, variables):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 33, 10)), jnp.float32)
    who, lengths = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), jnp.array([33, 20, 0])
    height = heights(3, 33)
    said = net.apply(variables, x, lengths, height, who)
    assert said.shape == x.shape
    for row, length in enumerate(lengths.tolist()):
        np.testing.assert_array_equal(said[row, length:], 0)
        if length:
            alone = x[row : row + 1, :length]
            one, high = jnp.array([length]), tuple(x[row : row + 1, :length] for x in height)
            alone = net.apply(variables, alone, one, high, who[row : row + 1])
            np.testing.assert_allclose(said[row, :length], alone[0], atol=2e-5)


def test_what_stays_the_same_in_a_recording_is_not_in_its_content(net, variables):
    """Neither the level of a band nor how far it moves, only when."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 40, 10)), jnp.float32)
    who, lengths, height = jnp.ones((1, 4)), jnp.array([40]), heights(1, 40)
    other = x * jnp.linspace(1, 3, 10)[None, None] + jnp.linspace(-2, 1, 10)[None, None]
    first, second = (net.apply(variables, one, lengths, height, who) for one in (x, other))
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert np.abs(first - net.apply(variables, x[:, ::-1], lengths, height, who)).max() > 0.1
    assert np.abs(first - net.apply(variables, x, lengths, height, -who)).max() > 0.1


def test_a_voice_is_as_high_as_its_speaker(net, variables):
    """Moved from its own mean to the one that is expected; its melody stays."""
    x, lengths = jnp.zeros((2, 30, 10)), jnp.array([30, 20])
    who, (hertz, periodicity) = jnp.ones((2, 4)), heights(2, 30)
    mean, _ = harmonics.mean(hertz, periodicity)
    said = net.apply(variables, x, lengths, (hertz, periodicity), mean, who, method="say")
    wanted = net.apply(variables, who, method="mean")
    moved = harmonics.moved(hertz, wanted - mean), periodicity
    np.testing.assert_allclose(said, net.apply(variables, x, lengths, moved, who), atol=1e-4)
    lower = hertz / 2, periodicity
    again = net.apply(variables, x, lengths, lower, mean - 1, who, method="say")
    np.testing.assert_allclose(again, said, atol=1e-4)
    np.testing.assert_allclose(harmonics.mean(*moved)[0], wanted, atol=1e-3)


def test_all_are_heard_at_one_loudness():
    rng = np.random.default_rng(0)
    audio = jnp.asarray(rng.normal(size=(3, 100)), jnp.float32)
    lengths = jnp.array([100, 60, 0])
    found = revoice.levelled(audio, lengths)
    louder = revoice.levelled(7 * audio, lengths)
    np.testing.assert_allclose(found, louder, atol=1e-5)
    assert np.sqrt(np.mean(np.square(found[1, :60]))) == pytest.approx(revoice.LEVEL, rel=1e-4)
    np.testing.assert_array_equal(found[1, 60:], 0)
    np.testing.assert_array_equal(found[2], 0)
    loud = revoicing.as_loud(np.asarray(found[0]), np.asarray(audio[0]) / 4)
    assert np.std(loud) == pytest.approx(float(np.std(audio[0])) / 4, rel=0.05)
    assert np.abs(revoicing.as_loud(np.ones(3), 9 * np.ones(3))).max() == 1


def test_errors_are_in_decibels():
    """All bands 3 dB too loud are 3 dB of error, and of cepstra, of which the level does not
    count, none; a slope counts by its root mean square."""
    frames, count = jnp.zeros((2, 5, 20)), jnp.array([5, 3])
    neper = 3 / (10 / np.log(10))
    said = jnp.full((2, 5, 20), neper).at[1, 3:].set(99)

    def both(said):
        sums = revoicing._error_db(said, frames, count), revoicing._cepstral_db(said, frames, count)
        return [float(found.total / found.count) for found in sums]

    np.testing.assert_allclose(both(said), [3, 0], atol=1e-4)
    wave = neper * np.cos(np.pi * 2 * (np.arange(20) + 0.5) / 20)
    said = jnp.broadcast_to(jnp.asarray(wave, jnp.float32)[None, None], (2, 5, 20))
    np.testing.assert_allclose(both(said)[1], 3 / np.sqrt(2), rtol=1e-4)


def test_matching_and_error_rates_of_known_answers():
    """The re-voiced ones are their persons' own, the sources those of the others."""
    people, eye = np.arange(4), np.eye(4, dtype=np.float32)
    other = (people + 1) % 4
    batch = {
        **{"person": people, "turn": 0 * people, "source_person": other},
        **{"mask": np.ones(4, bool), "judged_seen": eye, "judged_real": eye},
        **{"judged_face": eye, "judged_voice": eye},
        **{"judged_natural": eye[other], "judged_copied": eye[other]},
    }
    found = revoicing.matched("dev", [batch], ["f", "f", "m", "m"])
    said = found.scalars
    assert (said["face_match_2"], said["face_moved"], said["real_match_2"]) == (1, 1, 1)
    assert (said["natural_moved"], said["face_same_gender_match_2"]) == (0, 1)
    assert said["natural_match_2"] == pytest.approx(1 / 3)  # tied with two of three, below one
    assert any("control, the source as it was" in line for line in found.lines)
    assert said["shuffled_face_match_2"] == 0.5
    assert any("control, re-voiced by others' faces" in line for line in found.lines)
    batch |= {"words": np.array([2, 0, 4, 4])}
    batch |= {f"wrong_{name}": np.array([1, 9, 0, 1]) for name in revoicing.SIGNALS}
    rates, (line,) = revoicing.error_rates("dev", [batch])
    assert rates["face_wer"] == pytest.approx(0.2)
    assert "20.0 %" in line
    assert "10 words of 3 recordings" in line
    batch["words"][:] = 0
    assert revoicing.error_rates("dev", [batch])[0] == {}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make_task(tmp_path_factory.mktemp("small"), SMALL)


def test_rows_have_somebody_elses_words(task):
    pairs = data.pairs(task.parts["dev"], task.parts.faces("dev"), task.config, train=True)
    rows = spoken.Spoken(pairs)
    row = rows.draw(3, np.random.default_rng(0), {"audio": pairs.samples})
    again = rows.draw(3, np.random.default_rng(0), {"audio": pairs.samples})
    assert all(np.array_equal(row[name], again[name]) for name in row)
    assert row["audio"].shape == row["probe"].shape == (8000,)
    dubbed = spoken.Dubbed(data.Seated(pairs, 2))
    for i in range(len(dubbed)):
        row = dubbed.draw(i, None, {"source": 12000})
        assert row["source_person"] != row["person"]
        assert len(row["source"]) <= 12000
        record = task.parts["dev"].source[int(row["source_index"])]
        assert record["speaker"] == toy.NAMES[row["source_person"]]
        np.testing.assert_allclose(row["source"], record["audio"][:12000], atol=1e-6)


def evaluated(task, variables):
    """The report on dev, and the sums."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation.make_eval_step(task, task.config, mesh)
    (batches,) = task.eval_data().values()
    kept, sums = [], []
    with pipeline.opened(batches) as rows:
        for batch in rows:
            found, outputs = step(variables, parallel.global_batch(batch, mesh))
            sums.append(found)
            kept.append(task.keep("dev", jax.device_get(outputs)))
    return task.report("dev", kept), metrics.finalize(metrics.merge(sums))


class Ears:
    """Judges by the strength of bands."""

    people = ("bob", "zoe")  # of whom it has learned

    def hear(self, audio):
        power = np.abs(np.fft.rfft(audio, axis=1))[:, 200:2600]
        found = np.log(power.reshape(len(audio), 8, -1).mean(2) + 1e-9)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def look(self, faces):
        found = faces.mean((1, 2)) @ np.ones((faces.shape[-1], 8)) + 1.0
        return judging.Seen(found / np.linalg.norm(found, axis=1, keepdims=True), found)


@pytest.mark.slow
def test_it_learns_who_speaks(tmp_path):
    """The face of another is worse, and re-voiced tones move to those of the face's person."""
    task = toy.make_task(tmp_path, {**SMALL, "model.revoice.width": 32})
    before = jax.jit(task.init)(jax.random.key(0))
    state, _ = toy.trained(task, 250)
    _, fresh = evaluated(task, before)
    report, learned = evaluated(task, state.eval_variables)
    assert learned["face_error_db"] < 0.7 * fresh["face_error_db"]
    assert learned["voice_error_db"] < 0.8 * learned["other_face_error_db"]
    assert learned["face_error_db"] < 0.8 * learned["other_face_error_db"]
    assert set(report.audio) == {
        f"{person}_{name}" for person in range(4) for name in revoicing.SIGNALS
    }


def test_reports_have_sounds_and_figures(task):
    variables = jax.jit(task.init)(jax.random.key(0))
    report, sums = evaluated(task, variables)
    assert {"face_error_db", "voice_cepstral_db", "other_face_error_db"} <= set(sums)
    assert report.lines == []
    sound, rate = report.audio["1_face"]
    assert rate == toy.RATE_HZ
    natural, _ = report.audio["1_natural"]
    assert abs(len(sound) - len(natural)) < 800
    # As loud, or softer where peaks would be cut.
    assert 0 < np.std(sound) < 1.1 * np.std(natural)
    assert np.abs(sound).max() <= 1
    vars(task)["judge"] = Ears()
    try:
        report, _ = evaluated(task, variables)
    finally:
        del vars(task)["judge"]
    assert {"face_match_2", "natural_moved", "real_match_2"} <= set(report.scalars)
    assert report.lines[-1] == (
        "dev: not figures of unseen people: the judge has learned from 1 of these 6 (bob, ...), "
        "the network has learned from 6 of these 6 (ann, ...)."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features.normalize": "utterance"}, "loses the level"),
        ({"model.revoice.warp": (0.3, 1.0)}, "from a factor of 0.5"),
        ({"model.revoice.blocks": 0}, "have to be positive"),
        ({"picture.size": 12}, "multiples of 8"),
        ({"voice.kind": "mfcc"}, "hears log-mel frames"),
    ],
)
def test_settings_that_cannot_be_are_said(tmp_path, changes, words):
    with pytest.raises(errors.UserError, match=words):
        toy.make_task(tmp_path, {**SMALL, **changes})


def test_a_batch_has_whole_groups_of_rows(tmp_path):
    task = toy.make_task(tmp_path, {**SMALL, "model.revoice.said_every": 3})
    with pytest.raises(errors.UserError, match=r"does not divide by .* x .*said_every"):
        task.train_data()


def test_checkpoints_of_other_kinds_are_refused(task, tmp_path):
    task.check_checkpoint(task.checkpoint_meta())
    faces = toy.make_task(tmp_path)
    with pytest.raises(errors.UserError, match="of kind 'gan', not 'revoice'"):
        task.check_checkpoint(faces.checkpoint_meta())
    with pytest.raises(errors.UserError, match="of kind 'revoice'"):
        faces.check_checkpoint(task.checkpoint_meta())


def test_the_front_end_hides_what_is_faint():
    config = frontend.LogMelConfig(normalize="none", num_mels=20)
    silent, _ = frontend.log_mel(jnp.zeros((1, 800)), jnp.array([800]), revoice.front_end(config))
    np.testing.assert_allclose(silent, np.log(1e-4), rtol=1e-5)
