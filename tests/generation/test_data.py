"""Pairs of voices and faces: who is in them, what is drawn, what cannot be used."""

import pickle

import numpy as np
import pytest

from common import errors
from common.audio import io
from common.data import embedded
from common.data.embedded import voices
from generation import data, images
from tests.generation import people as toy


def test_nobody_is_in_two_parts_of_the_embedded_people():
    """Not even a vocal tract, whatever the seed and the number of voices."""
    parts = {name: voices.draw_voices(name, voices.capacity(name), 3) for name in embedded.SPLITS}
    for kind in ("id", "variant"):
        sets = [{getattr(voice, kind) for voice in some} for some in parts.values()]
        assert sum(map(len, sets)) == len(set.union(*sets))


def test_who_lacks_a_voice_or_a_face_is_left_out_by_name(tmp_path, caplog):
    faces = toy.Flags((*toy.NAMES[1:], "gus"))
    task = toy.make_task(tmp_path, faces=faces)
    assert task.classes == toy.NAMES[1:]
    assert "train: 1 people without a face are left out: ann" in caplog.text
    assert "train: 1 people without a voice are left out: gus" in caplog.text
    assert set(task.train_split.speakers) == set(toy.NAMES[1:])
    with pytest.raises(errors.UserError, match="have 1 people in common"):
        toy.make_task(tmp_path / "other", faces=toy.Flags(("ann",)))


def test_people_who_were_in_training_are_named(tmp_path, caplog):
    task = toy.make_task(tmp_path)
    task.prepare()
    assert "dev: 6 of its people are in the training data too (ann, ...)" in caplog.text


def test_a_pair_is_of_one_person_and_the_other_picture_is_not(tmp_path):
    task = toy.make_task(tmp_path)
    batches = iter(task.train_data())
    both = [next(batches), next(batches)]  # of an epoch: 16 rows and 2
    batch = max(both, key=lambda batch: batch["mask"].sum())
    assert batch["audio"].shape == (16, 8000)
    assert batch["face"].shape == batch["other_face"].shape == (16, 8, 8, 3)
    for row in np.flatnonzero(batch["mask"]):
        assert batch["label"][row] != batch["other_label"][row]
        for name, label in (("face", "label"), ("other_face", "other_label")):
            mean = batch[name][row].mean((0, 1))
            assert np.abs(mean - toy.colour(int(batch[label][row]))).max() < 2
        record = task.train_split.source[int(batch["index"][row])]
        assert record["speaker"] == task.classes[batch["label"][row]]
    # Mirrored or not, and of either picture.
    slopes = {float(np.sign(face[:, -1].mean() - face[:, 0].mean())) for face in batch["face"]}
    assert slopes == {-1.0, 1.0}


def test_independent_pictures_are_of_anybody(tmp_path):
    changes = {"data.independent": True, "model.conditional": False, "loss.wrong_pairs": False}
    task = toy.make_task(tmp_path, changes)
    batches = iter(task.train_data())
    same = []
    for _ in range(12):
        batch = next(batches)
        same += (batch["label"] == batch["other_label"])[batch["mask"]].tolist()
    assert 0.05 < np.mean(same) < 0.35  # 1 in 6 of 100


def test_evaluation_seats_every_person(tmp_path):
    task = toy.make_task(tmp_path)
    (split,) = task.eval_data().values()
    rows = [
        {name: value[i] for name, value in batch.items()}
        for batch in split
        for i in np.flatnonzero(batch["mask"])
    ]
    assert [(int(r["person"]), int(r["turn"])) for r in rows] == [
        (p, t) for p in range(6) for t in range(2)
    ]
    first, second = rows[:2]
    # Its probe is the next recording, which is the voice of the next turn.
    np.testing.assert_array_equal(first["probe"], second["audio"])
    assert np.abs(first["probe"] - first["audio"]).max() > 0.01
    again = [batch for batch in task.eval_data()["dev"]]
    np.testing.assert_array_equal(again[0]["face"][0], first["face"])


def test_short_recordings_are_repeated(tmp_path):
    task = toy.make_task(tmp_path, {"data.crop_seconds": 2.0})
    pairs = data.pairs(task.train_split, toy.Flags(), task.config, train=True)
    row = pairs.audio(0, None)
    whole = len(task.train_split.source[0]["audio"])
    np.testing.assert_array_equal(row["audio"][whole : 2 * whole], row["audio"][:whole])
    assert len(row["audio"]) == 32000


def test_it_pickles_without_the_pictures_that_it_has_read(tmp_path):
    task = toy.make_task(tmp_path)
    pairs = data.pairs(task.train_split, toy.Flags(), task.config, train=True)
    before = len(pickle.dumps(pairs))
    row = pairs.draw(3, np.random.default_rng(1), {})
    assert len(pickle.dumps(pairs)) == before
    again = pickle.loads(pickle.dumps(pairs)).draw(3, np.random.default_rng(1), {})
    for name, value in row.items():
        np.testing.assert_array_equal(again[name], value)


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path, caplog):
    train = toy.corpus()
    rows = [dict(train.source[i]) for i in range(len(train.source))]
    rows[4]["audio"] = np.zeros_like(rows[4]["audio"])
    source = type(train.source)("voices", rows)
    train = type(train)("train", source, train.index)
    task = toy.make_task(
        tmp_path, {"data.max_bad_share": 0.9}, faces=toy.Flags(broken=("fay",)), train=train
    )
    batches = iter(task.train_data())
    seen = [batch["label"][batch["mask"]] for batch in (next(batches) for _ in range(4))]
    assert {"ann", "bob"} <= {task.classes[k] for k in np.concatenate(seen)}
    assert "bob-1: is silent: there is no voice to make a face of" in caplog.text
    assert "fay/" in caplog.text
    assert "this is no picture that can be read" in caplog.text
    for row in rows:
        row["audio"] = np.zeros_like(row["audio"])
    none = type(train)("train", type(source)("voices", rows), train.index)
    with pytest.raises(
        errors.UserError, match=r"voices: in the first .* there is anything to hear"
    ):
        data.first_recordings(none, toy.Flags(), task.config, 8)
    with pytest.raises(io.AudioError, match="is silent"):
        data.check_voice(np.zeros(16000, np.float32), "x.wav")
    with pytest.raises(images.ImageError):
        toy.Flags(broken=("fay",))("fay", 0)
