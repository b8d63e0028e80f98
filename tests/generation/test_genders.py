"""Genders as the data say them, and what tells faces of the two apart."""

import dataclasses
import logging

import numpy as np
import pytest
from sklearn import linear_model

from common import errors
from common.data import records, splits
from generation import genders, images
from tests.generation import people as toy


def split(rows):
    """Recordings of (speaker, gender)."""
    listed = [
        {"id": str(i), "audio": np.zeros(9), "speaker": who, "gender": gender}
        for i, (who, gender) in enumerate(rows)
    ]
    index = records.Index(np.arange(len(listed)), np.full(len(listed), 9), 8000)
    return splits.Split("dev", records.RecordList("some", listed), index)


def test_the_gender_is_that_of_the_recordings_else_of_the_table():
    said = split([("a", "f"), ("a", "f"), ("b", None), ("c", "m"), ("c", "f"), ("d", None)])
    found = genders.of_people(said, ("a", "b", "c", "d"), {"a": "m", "b": "m"})
    assert found == ("f", "m", "", "")  # c: recordings disagree


def test_a_task_says_once_whose_gender_is_not_known(tmp_path, caplog):
    task = toy.make_task(tmp_path)
    with caplog.at_level(logging.INFO, "generation"):
        assert task.genders_of("dev") == task.genders_of("dev") == ("",) * 6
    (said,) = (r.getMessage() for r in caplog.records if "gender" in r.getMessage())
    assert said.startswith("dev: of 6 of its 6 people the data do not say the gender")
    table = tmp_path / "vox1_meta.csv"
    lines = [f"{name}\t{name.title()}\t{'mf'[k % 2]}" for k, name in enumerate(toy.NAMES[:5])]
    table.write_text("\n".join(["VoxCeleb1 ID\tVGGFace1 ID\tGender", *lines]) + "\n")
    task = toy.make_task(tmp_path, {"faces.names": str(table)})
    assert task.genders_of("dev") == ("m", "f", "m", "f", "m", "")


def test_the_regression_is_ridge_regression():
    rng = np.random.default_rng(0)
    first = np.arange(30) < 8
    features = rng.normal(size=(30, 4)) * [1, 5, 0.1, 0] + np.where(first, 1, 0)[:, None]
    features[:, 3] = 2.0  # of no use
    found = genders.learned(features, first, 30)
    share = np.where(first, 0.5 / 8, 0.5 / 22)
    mean = share @ features
    deviation = np.sqrt(share @ np.square(features - mean))
    deviation[3] = 1
    reference = linear_model.Ridge(alpha=0.1)
    reference.fit((features - mean) / deviation, np.where(first, 1, -1), sample_weight=share)
    decided = reference.predict((features - mean) / deviation)
    np.testing.assert_allclose(features @ found.weights + found.offset, decided, atol=1e-9)
    np.testing.assert_array_equal(found.of(features), decided > 0)


@dataclasses.dataclass(frozen=True)
class Sided:
    """Pictures of people: women are brighter on top. One cannot be read."""

    name: str = "sided"
    fingerprint: str = "sided"
    mirrored: bool = True
    people: tuple[str, ...] = ()

    def count(self, person):
        return 1 if person == "p03" else 3

    def __call__(self, person, number):
        if (person, number) == ("p04", 1):
            raise images.ImageError("p04", "broken")
        rng = np.random.default_rng([int(person[1:]), number])
        picture = rng.integers(60, 120, (16, 16, 3))
        picture[:8] += 60 * (int(person[1:]) % 2)
        return picture.astype(np.uint8)


def halves(pictures):
    """Mean brightness of the upper and the lower half."""
    assert pictures.shape[1:] == (8, 8, 1)
    return pictures.reshape(len(pictures), 2, -1).mean(2)


def test_it_is_learned_from_pictures_and_tells_others():
    picture = toy.quickstart.get_config("debug").picture
    picture.update({"size": 8, "channels": 1})
    known = {f"p{k:02d}": "mf"[k % 2] for k in range(40)} | {"nobody": ""}
    found = genders.learned_from(Sided(), known, picture, halves)
    assert found.people == 40
    others = [f"p{k}" for k in range(50, 62)]
    real = np.stack([np.concatenate([halves(small(name, n)) for n in (0, 1)]) for name in others])
    made = real.copy()
    made[0] = real[1]  # a man's, brighter on top
    own = ["mf"[k % 2] for k in range(11)] + [""]
    said = genders.report("dev", found, own, made, real)
    assert said.scalars["real_gender_accuracy"] == 1
    assert said.scalars["gender_accuracy"] == pytest.approx((1 + 5 / 6) / 2)
    assert "on 40 training people's, %: made 91.7 (" in said.lines[0]
    assert "real 100.0 (100.0 to 100.0), chance 50" in said.lines[0]


def small(name, number):
    return images.resized(Sided()(name, number), 8, 1)[None]


def test_too_few_people_of_a_gender_teach_nothing():
    picture = toy.quickstart.get_config("debug").picture
    picture.update({"size": 8, "channels": 1})
    known = {f"p{k:02d}": "m" for k in range(9)} | {f"p{k}": "f" for k in (11, 13, 15)}
    assert genders.learned_from(Sided(), known, picture, halves) is None
    assert genders.learned_from(Sided(), {}, picture, halves) is None
    regression = genders.Regression(np.ones(2), 0.0, 9)
    faces = np.zeros((3, 1, 2))
    assert not genders.report("dev", regression, ["f", "m", "m"], faces, faces).lines


def test_an_evaluation_goes_on_without_the_training_people(tmp_path, caplog):
    task = toy.make_task(tmp_path)
    name = "+".join(task.config.data.train)

    class Gone(dict):
        def __missing__(self, key):
            raise errors.UserError(f"There is no folder {key}.")

    object.__setattr__(task, "parts", Gone(dev=task.parts["dev"]))
    object.__setattr__(task, "judge", object())
    assert task.gender_of_faces is None
    assert f"the gender of faces is not told: There is no folder {name}." in caplog.text
