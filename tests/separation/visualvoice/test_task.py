"""VisualVoice as a task: what its losses are given, what is shown in each mode, and the command."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import errors, workdir
from common.metrics import Term
from configs.separation import visualvoice
from separation import extraction, films, mixing, modes, task
from separation.visualvoice import losses, network, pictures
from tests import commands
from tests.separation.test_mixing import around
from tests.separation.test_sight import filmed

B, FRAMES, SAMPLES = 3, 25, 16000


def make(tmp_path, argument="debug", **changes):
    config = visualvoice.get_config(argument)
    config.update_from_flattened_dict(changes)
    return task.make_task(workdir.freeze(config), tmp_path)


@pytest.fixture(scope="module")
def batch() -> dict[str, jax.Array]:
    """Three training rows of `filmed`, whose films say of which recording they are."""
    found = filmed()
    whole = dataclasses.replace(found.config, overlap=(1.0, 1.0))
    return rows_of(dataclasses.replace(found, config=whole))


def rows_of(found: mixing.Mixtures) -> dict[str, jax.Array]:
    found = dataclasses.replace(found, again=True, num_enrolment=SAMPLES)
    rows = [found.draw(i, np.random.default_rng(i), {}) for i in (0, 3, 6)]
    stacked = {n: np.stack([row[n] for row in rows]) for n in rows[0] if n != "id"}
    size = np.full(B, SAMPLES, np.int32)
    known = {"sources_lengths": size, "enrolment_lengths": size, "row": np.arange(B)}
    found = stacked | known | {"mask": np.ones(B, bool)}
    return {name: jnp.asarray(x) for name, x in found.items()}


def given(made, batch, monkeypatch, train=True) -> dict:
    """What `losses.terms` is called with."""
    seen = {}

    def terms(net, audio, lengths, mask, mouth, mouth_present, faces, face_present, *rest, **kw):
        seen.update(audio=audio, lengths=lengths, mouth=mouth, mouth_present=mouth_present)
        seen.update(faces=faces, face_present=face_present, train=kw["train"])
        return {"mask_loss": Term(jnp.zeros(()), jnp.ones(()), 1.0)}

    monkeypatch.setattr(losses, "terms", terms)
    made.loss({"params": {}}, batch, jax.random.key(0), 0, train=train)
    return seen


def test_the_losses_see_three_clips_and_two_faces(tmp_path, batch, monkeypatch):
    seen = given(make(tmp_path), batch, monkeypatch)
    assert seen["audio"].shape == (B, 3, SAMPLES)
    np.testing.assert_array_equal(seen["audio"][:, 0], batch["sources"][:, :, 0])
    np.testing.assert_array_equal(seen["audio"][:, 1], batch["enrolment"])
    np.testing.assert_array_equal(seen["audio"][:, 2], batch["sources"][:, :, 1])
    assert seen["mouth"].shape == (B, 3, FRAMES, 88, 88)
    assert seen["mouth_present"].shape == (B, 3, FRAMES)
    assert seen["faces"].shape == (B, 2, 1, *films.FACE)
    # A1 and A2 are other recordings of one person, B is of another person.
    assert (batch["target_index"] != batch["enrolment_index"]).all()
    assert (batch["target_index"] // 2 == batch["enrolment_index"] // 2).all()
    assert (batch["target_index"] // 2 != batch["interferer_index"][:, 0] // 2).all()
    for name, index in (
        ("mouth", batch["target_index"]),
        ("enrolment_mouth", batch["enrolment_index"]),
        ("other_mouth", batch["interferer_index"][:, 0]),
    ):
        assert (batch[name][:, :, 0, 0] == (index + 1)[:, None]).all(), name


def test_in_enhancement_the_third_clip_is_the_noise(tmp_path, monkeypatch):
    alone = mixing.MixingConfig(interferers=(0, 0))
    batch = rows_of(dataclasses.replace(filmed(), config=alone, around=around()))
    assert not [name for name in batch if name.startswith("other_")]
    made = make(tmp_path, "enhance")
    seen = given(made, batch, monkeypatch)
    for i, clip in enumerate((batch["sources"][:, :, 0], batch["enrolment"])):
        np.testing.assert_array_equal(seen["audio"][:, i], clip)
    np.testing.assert_array_equal(seen["audio"][:, 2], batch["sources"][:, :, 1])
    assert np.std(seen["audio"][:, 2]) > 0
    assert seen["mouth"].shape[:2] == (B, 2)
    assert seen["faces"].shape[:2] == (B, 1)
    assert set(modes.table(made.config)) == {"given", "lips", "face", "shuffled"}


def test_networks_without_a_cue_are_not_shown_it(tmp_path, batch, monkeypatch):
    for argument, lip, face in (("lip", True, False), ("face", False, True)):
        seen = given(make(tmp_path, argument), batch, monkeypatch)
        assert (seen["mouth"] is not None, seen["faces"] is not None) == (lip, face)


def test_pictures_are_changed_by_row_in_training_alone(tmp_path, batch, monkeypatch):
    """A row's pictures hang on its number, not on its place among the devices' rows."""
    made = make(tmp_path)
    rng = np.random.default_rng(0)
    names = [name for name in batch if name.endswith(("mouth", "face"))]
    drawn = {n: jnp.asarray(rng.integers(0, 255, batch[n].shape, np.uint8)) for n in names}
    whole = given(made, batch | drawn, monkeypatch)
    some = {n: x[1:] for n, x in (batch | drawn).items()}
    part = given(made, some, monkeypatch)
    for name in ("mouth", "faces"):
        np.testing.assert_array_equal(part[name], whole[name][1:])
    plain = given(made, batch | drawn, monkeypatch, train=False)
    for name in ("mouth", "faces"):
        assert np.abs(plain[name] - whole[name]).max() > 0.1
    middle = (drawn["mouth"][:, :, 4:92, 4:92] / 255 - 0.421) / 0.165
    np.testing.assert_allclose(plain["mouth"][:, 0], middle, atol=1e-5)


def test_a_film_is_cut_and_turned_as_a_whole():
    film = np.zeros((64, 6, *films.MOUTH), np.uint8)
    film += np.arange(96, dtype=np.uint8)[None, None, None, :]
    film += 100 * (np.arange(96) >= 48).astype(np.uint8)[None, None, :, None]
    found = pictures.mouths(jnp.asarray(film), jax.random.split(jax.random.key(0), 64))
    values = np.round((np.asarray(found) * 0.165 + 0.421) * 255).astype(int)
    assert (values == values[:, :1]).all()  # all pictures of a film alike
    left, right = values[:, 0, 0, 0], values[:, 0, 0, -1]
    turned = left > right
    assert 16 < turned.sum() < 48
    assert set(np.minimum(left, right)) == set(range(9))
    above = (values[:, 0, :, 0] % 200 < 100).sum(axis=1)
    assert set(above) == set(range(40, 49))


def test_colours_stay_between_black_and_white():
    face = np.random.default_rng(0).integers(0, 255, (8, 2, *films.FACE), np.uint8)
    face = jnp.asarray(face)
    plain = np.asarray(pictures.faces(face))
    found = np.asarray(pictures.faces(face, jax.random.split(jax.random.key(0), 8)))
    assert found.min() >= plain.min() - 1e-3
    assert found.max() <= plain.max() + 0.1
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(found, plain))


@pytest.mark.parametrize("name", list(modes.SEEN))
def test_each_mode_shows_what_it_says(tmp_path, batch, monkeypatch, name):
    made = make(tmp_path)
    table = modes.table(made.config)
    assert set(table) == {"given", "lips", "face", "shuffled", "swapped"}
    if name not in table:
        return
    seen = {}

    def apply(self, variables, mixture, lengths, mouth, mouth_seen, face, face_seen, *, train):
        seen.update(mouth=mouth, lips=mouth_seen, face=face, shown=face_seen)
        return mixture[:, None]

    monkeypatch.setattr(network.VisualVoice, "apply", apply)
    whole = batch | {"strange_mouth": batch["mouth"] * 0 + 200}
    whole["strange_mouth_seen"] = batch["mouth_seen"]
    mixture = batch["sources"].sum(2)
    made.extracted({}, whole, mixture, batch["sources_lengths"], name)
    mode = table[name]
    assert bool(jnp.any(seen["lips"])) == ("lips" in mode.shows)
    assert bool(jnp.any(seen["shown"])) == ("face" in mode.shows)
    whose = {"shuffled": "strange_mouth", "swapped": "other_mouth"}.get(name, "mouth")
    np.testing.assert_array_equal(seen["mouth"][:, 0], pictures.mouths(whole[whose]))


def test_settings_that_do_not_go_together(tmp_path):
    for changes, message in (
        ({"mixing.absent": 0.1}, r"config\.mixing\.absent=0\.1, but VisualVoice is trained on"),
        ({"mixing.interferers": (1, 2)}, r"config\.mixing\.interferers"),
        ({"model.visualvoice.enhancement": True}, r"trained on mixtures of a whole clip and noise"),
        ({"model.visualvoice.num_fft": 100}, r"config\.model\.visualvoice: num_fft=100"),
        (
            {"model.visualvoice.hop_ms": 5.0},
            r"hop_ms=5: 4 hops would be 20 ms, but they are beside",
        ),
        ({"model.visualvoice.hop_ms": 0.0}, "visualvoice: need 0 < window_size"),
        ({"sight.pictures": 0}, r"config\.sight\.pictures=0: 1 at least"),
        ({"loss.visualvoice.mask": 0.0}, r"config\.loss: mask=0\.0"),
    ):
        with pytest.raises(errors.UserError, match=message):
            make(tmp_path, **changes)


def test_noise_that_training_would_not_hear_is_refused(tmp_path):
    made = make(tmp_path, **{"augment.hiss.probability": 1.0})
    with pytest.raises(errors.UserError, match=r"config\.augment\.hiss: VisualVoice of two voices"):
        made.prepare()


def test_two_clips_of_one_person_are_of_one_length(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extraction.SeparationTask, "prepare", lambda self: None)
    make(tmp_path).prepare()
    assert not caplog.text
    make(tmp_path, **{"data.crop_seconds": 4.0}).prepare()
    assert "crop_seconds=4, enrolment_seconds=1: VisualVoice trains on two clips" in caplog.text


def test_how_loud_noise_is_in_training_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extraction.SeparationTask, "prepare", lambda self: None)
    changes = {"model.visualvoice.enhancement": True, "mixing.interferers": (0, 0)}
    changes["augment.hiss.probability"] = 1.0
    with caplog.at_level("INFO"):
        make(tmp_path).prepare()
        assert "snr_db of config.augment" not in caplog.text
        make(tmp_path, **changes).prepare()
    assert "in training noise has 2 times the amplitude of the voice" in caplog.text


def test_another_runs_networks_are_taken_where_they_fit(tmp_path, caplog):
    made, count = make(tmp_path), jnp.zeros(3)
    fresh = {"params": {"unet": {"a": count}, "lip_net": {"b": count}}, "batch_stats": {"unet": {}}}
    found = {"params": {"unet": {"a": count + 1}, "lip_net": {"b": jnp.zeros(4)}},
             "batch_stats": {"unet": {}}}  # fmt: skip
    with caplog.at_level("INFO"):
        taken = made.adopt(fresh, found, {})
    np.testing.assert_array_equal(taken["params"]["unet"]["a"], 1)
    assert taken["params"]["lip_net"] is fresh["params"]["lip_net"]
    assert "these begin anew: lip_net" in caplog.text
    with pytest.raises(errors.UserError, match=r"has none of this one's networks \(unet, lip_net"):
        made.adopt(fresh, {"params": {"extractor": {}}}, {})


@pytest.mark.slow
def test_a_voice_in_noise_from_the_command(tmp_path):
    """Trains and evaluates without anybody else in the mixtures; noise has to be asked for."""
    run, config = tmp_path / "run", "--config=configs/separation/visualvoice.py:debug"
    alone = [config, "--config.model.visualvoice.enhancement=True"]
    alone += ["--config.mixing.interferers=(0,0)", "--config.total_steps=4"]
    alone += ["--config.evaluate_every=4", f"--workdir={run}"]
    assert "without noise" in commands.message("separation.main", *alone)
    commands.run("separation.main", *alone, "--config.augment.hiss.probability=1.0")
    said = commands.run("separation.main", f"--workdir={run}", "--mode=evaluate").stdout
    assert "by the lips of somebody else" in said
    assert "another speaker" not in said
    assert "other's lips" not in said


@pytest.mark.slow
def test_from_the_command_to_scores(tmp_path):
    """Trains, evaluates in all modes, and scores pairs whose list it takes again."""
    run = tmp_path / "run"
    config = "--config=configs/separation/visualvoice.py:debug"
    small = [f"--config.{name}_every=4" for name in ("evaluate", "checkpoint")]
    commands.run("separation.main", f"--workdir={run}", config, "--config.total_steps=4", *small)
    said = commands.run("separation.main", f"--workdir={run}", "--mode=evaluate").stdout
    for mode in ("with all cues", "by lips alone", "by a face alone", "the other's lips"):
        assert mode in said
    scored = ("separation.evaluate", f"--workdir={run}")
    commands.run(*scored, "--pairs=2", "--seconds=1")
    folder = run / "results" / "pairs"
    text = (folder / "pairs-dev.csv").read_text()
    assert len(text.splitlines()) == 5
    listed = f"--list={folder / 'pairs-dev-1.tsv'}"
    commands.run(*scored, listed, f"--out={tmp_path / 'again'}")
    assert (tmp_path / "again" / "pairs-dev.csv").read_text() == text
    assert "--seed is of drawn pairs" in commands.message(*scored, listed, "--seed=1")
    assert "ORACLE GAIN" in commands.run(*scored, listed, "--oracle_gain").stdout
    assert (folder / "pairs-dev.txt").read_text().count("mean sdri") == 2
