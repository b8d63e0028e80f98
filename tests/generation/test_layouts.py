"""Voices and faces as they lie on disks: who is in which part, what cannot be used."""

import itertools
import logging
import pickle

import numpy as np
import pytest

from common import errors, workdir
from common.data import classes, pipeline
from configs.generation import quickstart
from generation import dividing, fitting, images, labelled, portraits
from generation import task as generation_task
from tests.generation import layouts
from tests.generation import people as toy


def make_task(folder, **settings):
    """A debug task; settings with __ in place of dots."""
    config = quickstart.get_config("debug")
    config.data.update({"crop_seconds": 0.5, "eval_seconds": 0.5, "max_bad_share": 0.3})
    config.picture.size = 8
    config.loss.update({"contrast": 0.0, "augment": ()})  # where a test does not ask for them
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config.update_from_flattened_dict(given)
    config = fitting.completed(workdir.freeze(config))
    return generation_task.make_task(config, folder)


ASARIRI = {"data__kind": "folder", "faces__kind": "folder", "data__split_by": "person"}
ASARIRI |= {
    "data__pool": ("audio",),
    "picture__size": 0,
    "picture__channels": 0,
    "data__test": ("test",),
}


def asariri(tmp_path, faces="images_c_32x32", **settings):
    root = str(tmp_path / "data")
    given = {**ASARIRI, "data__root": root, "faces__root": f"{root}/{faces}", **settings}
    return make_task(tmp_path / "run", **given)


def parts_of(task):
    return {name: set(task.parts[name].speakers) for name in dividing.PARTS}


def disjoint(parts):
    return all(not one & other for one, other in itertools.combinations(parts.values(), 2))


def test_the_seeds_layout_is_read_with_unequal_counts_and_divided_by_person(tmp_path):
    layouts.asariri(tmp_path / "data")
    task = asariri(tmp_path)
    assert (task.config.picture.size, task.config.picture.channels) == (32, 3)
    parts = parts_of(task)
    assert disjoint(parts)
    assert set.union(*parts.values()) == set(toy.NAMES)
    assert {name: len(some) for name, some in parts.items()} == {"train": 2, "dev": 2, "test": 2}
    faces = task.parts.faces("train")
    assert {name: faces.count(name) for name in toy.NAMES} == {
        name: 2 + k % 3 for k, name in enumerate(toy.NAMES)
    }
    # All parts together are all recordings, once each.
    positions = np.concatenate([task.parts[name].index.positions for name in dividing.PARTS])
    assert sorted(positions) == list(range(3 * 3 + 3 * 4))
    both = task.parts["train+dev"]
    assert set(both.speakers) == parts["train"] | parts["dev"]


def test_the_name_of_a_folder_says_size_and_channels(tmp_path):
    for name, form in {
        "images_bw_64x64": (64, 1),
        "Images_c_28x28": (28, 3),
        "images_color_128x128": (128, 3),
        "Images_bw_back_32x32": (32, 1),
        "minist_bw_28x28": (28, 1),
        "/data/cifar10_c_32x32/": (32, 3),
        "faces": None,
        "abc_32x32": None,
    }.items():
        assert images.form_of(name) == form, name
    with pytest.raises(errors.UserError, match="64 x 32: they have to be square"):
        images.form_of("images_c_64x32")
    with pytest.raises(errors.UserError, match=r"nothing says what 0 stands for.*not '.*/faces'"):
        asariri(tmp_path, faces="faces")
    with pytest.raises(errors.UserError, match="32 x 32 in colour, and config"):
        asariri(tmp_path, picture__size=64, picture__channels=1)
    layouts.asariri(tmp_path / "data", faces="images_bw_28x28")
    task = asariri(tmp_path, faces="images_bw_28x28")
    task.prepare()
    (batch,) = [next(iter(task.eval_data()["dev"]))]
    assert batch["face"].shape[1:] == (28, 28, 1)


def test_voxceleb_is_joined_with_vggface_by_the_table_and_split_by_letter(tmp_path, caplog):
    root = layouts.voxceleb(tmp_path / "data")
    layouts.write_face(root / "faces" / "Zoe_Bell" / "1.jpg", 0, 0)
    given = {
        **{"data__kind": "voxceleb", "data__root": str(root), "data__pool": ("wav",)},
        **{"faces__kind": "folder", "faces__root": f"{root}/faces", "data__test": ("test",)},
        "faces__names": f"{root}/vox1_meta.csv",
    }
    task = make_task(tmp_path / "run", data__split_by="letter", **given)
    parts = parts_of(task)
    assert parts == {
        "dev": {"id10001", "id10002"},  # A.J._Buckley, Bob_Dole
        "test": {"id10003", "id10004"},  # Cher, Eva_Green
        "train": {"id10005", "id10006"},  # Fay_Wray, Gus_Hall
    }
    assert disjoint(parts)
    assert "1 people without a voice are left out: Zoe_Bell" in caplog.text
    face = task.parts.faces("train")("id10003", 0)
    assert np.abs(face[20].mean(0) - toy.colour(2)).max() < 5
    assert disjoint(parts_of(make_task(tmp_path / "b", data__split_by="person", **given)))
    for k in range(6):
        layouts.write_face(root / "by_id" / f"id{10001 + k}" / "1.jpg", k, 0)
    nameless = {**given, "faces__names": "", "faces__root": f"{root}/by_id"}
    parts = make_task(tmp_path / "c", data__split_by="letter", **nameless).parts
    with pytest.raises(errors.UserError, match=r"fewer than two .* for dev\. Are they named"):
        parts["dev"]


def test_films_bring_their_portraits(tmp_path):
    layouts.films(tmp_path / "data")
    given = {"data__kind": "films", "faces__kind": "films", "data__root": str(tmp_path / "data")}
    task = make_task(tmp_path / "run", **given)
    task.prepare()
    assert task.classes == ("s1", "s2", "s3", "s4")
    assert set(task.parts["dev"].speakers) == {"s5", "s6"}
    faces = task.parts.faces("train")
    assert faces.count("s2") == 4  # two films with two portraits each
    np.testing.assert_array_equal(faces("s2", 3)[0, 0], toy.colour(1).astype(np.uint8))
    again = pickle.loads(pickle.dumps(faces))
    np.testing.assert_array_equal(again("s4", 0), faces("s4", 0))
    by_person = make_task(tmp_path / "b", **given, data__split_by="person")
    assert disjoint(parts_of(by_person))
    (tmp_path / "data" / "face" / "s2_1.png").unlink()
    with pytest.raises(images.ImageError, match="s2_1: its portraits cannot be read"):
        again("s2", 3)


def test_the_parts_of_the_embedded_people_are_disjoint_in_a_pool_too(tmp_path):
    given = {"data__voices": 12, "data__pool": ("train",), "data__split_by": "person"}
    assert disjoint(parts_of(make_task(tmp_path, **given)))


def test_a_division_follows_from_the_names_alone():
    names = [f"p{k}" for k in range(40)]
    of = dividing.by_person(names)
    counts = {part: list(of.values()).count(part) for part in dividing.PARTS}
    assert counts == {"train": 32, "dev": 4, "test": 4}
    assert dividing.by_person(names[::-1]) == of
    with pytest.raises(errors.UserError, match=r"5 people .* it takes 6"):
        dividing.by_person(names[:5])


def test_the_same_people_say_other_things_in_other_parts(tmp_path):
    layouts.asariri(tmp_path / "data")
    task = asariri(tmp_path, data__split_by="recording", voice__kind="class")
    assert set(map(frozenset, parts_of(task).values())) == {frozenset(toy.NAMES)}
    positions = [set(task.parts[name].index.positions.tolist()) for name in dividing.PARTS]
    assert disjoint(dict(enumerate(positions)))
    assert sum(map(len, positions)) == 21
    classes.write(task.train_split, task.workdir)
    task.eval_data()  # whose people are those of the training
    few = dividing.by_recording(["a", "b", "c", "d", "e"], ["x", "y", "x", "y", "x"])
    assert few[1] == few[3] == ""
    assert sorted(few) == ["", "", "dev", "test", "train"]


def test_classes_have_the_pictures_of_their_part_and_one_speaker_in_all(tmp_path):
    held = layouts.cifar10(tmp_path / "cifar10")
    layouts.speakers(tmp_path / "data", 4)
    given = {
        **{"data__kind": "folder", "data__root": str(tmp_path / "data"), "data__pool": ("audio",)},
        **{"faces__kind": "cifar10", "faces__root": str(tmp_path / "cifar10")},
    }
    task = make_task(tmp_path / "run", data__split_by="recording", **given)
    task.prepare()
    assert task.classes == ("p00", "p01", "p02")  # the fourth speaks for no class
    for part, name in (("train", "train"), ("test", "dev")):
        pictures, labels = held[part]
        faces = task.parts.faces(name)
        assert faces.count("p01") == (labels == 1).sum()
        np.testing.assert_array_equal(faces("p01", 1), pictures[labels == 1][1])
    with pytest.raises(errors.UserError, match="split_by=person nobody is"):
        make_task(tmp_path / "b", data__split_by="person", **given)
    silent = {**given, "data__kind": "none", "voice__kind": "class"}
    with pytest.raises(errors.UserError, match="split_by=person divides people"):
        make_task(tmp_path / "c", **silent, data__split_by="person")


def test_bad_pictures_are_counted_listed_and_left_out(tmp_path, caplog):
    root = layouts.asariri(tmp_path / "data") / "images_c_32x32"
    (root / "ann" / "0.jpeg").write_bytes((root / "ann" / "0.jpeg").read_bytes()[:300])
    layouts.write_face(root / "bob" / "1.jpeg", 1, 0, size=9)
    (root / "cid" / "notes.txt").write_text("not one of them")
    for path in (root / "dee").iterdir():
        path.write_bytes(b"text")
    (root / "hal").mkdir()
    with caplog.at_level(logging.WARNING):
        task = asariri(tmp_path, data__split_by="recording")
        found = task.parts.faces("train")
        split = task.parts["train"]
    assert "4 of 18 records rejected (4 bad picture)" in caplog.text
    assert "1 people without a face are left out: dee" in caplog.text
    assert "1 people without a voice are left out: hal" in caplog.text
    assert set(split.speakers) == set(toy.NAMES) - {"dee"}
    assert (found.count("ann"), found.count("bob"), found.count("cid")) == (1, 2, 4)
    listed = (tmp_path / "run" / "rejected.tsv").read_text()
    assert "ann/0.jpeg" in listed
    assert "9 x 9 pixels are too few, it takes 16 x 16" in listed
    with pytest.raises(errors.UserError, match="more than the allowed 5"):
        asariri(tmp_path, data__max_bad_share=0.05).parts["train"]


def test_kept_recordings_are_drawn_as_those_on_the_disk(tmp_path, monkeypatch):
    """With the pauses cut out, and by person: the same rows in the same order."""
    layouts.asariri(tmp_path / "data")
    monkeypatch.setenv("SPEECH_CACHE", str(tmp_path / "cache"))
    found = []
    for cached in (False, True):
        task = asariri(tmp_path, data__cached=cached, data__vad="energy")
        with pipeline.opened(task.train_data()) as batches:
            found.append(next(batches))
    one, other = found
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=0.51 / 32768)
    assert one["mask"].sum() >= 6


def test_folders_of_faces_that_are_none_are_said(tmp_path):
    layouts.asariri(tmp_path / "data")
    with pytest.raises(errors.UserError, match="faces cannot be read"):
        asariri(tmp_path, "faces", picture__size=32, picture__channels=3).parts["train"]
    (tmp_path / "data" / "flat").mkdir()
    with pytest.raises(errors.UserError, match="holds no folders"):
        asariri(tmp_path, "flat", picture__size=32, picture__channels=3).parts["train"]
    other = {"faces__root": f"{tmp_path}/data", "picture__size": 32, "picture__channels": 3}
    with pytest.raises(errors.UserError, match="0 people in common"):
        asariri(tmp_path, **other).parts["train"]
    table = tmp_path / "names.csv"
    table.write_text("id,name\na,b\na,c\n")
    with pytest.raises(errors.UserError, match="line 3: a has another folder here"):
        portraits.read_names(str(table))
    table.write_text("id , name , m\nid00012 ,n000012 ,m\n")
    assert portraits.read_names(str(table)) == {"id00012": "n000012"}


def test_of_two_speakers_with_one_folder_the_other_is_named(tmp_path, caplog):
    root, table = tmp_path / "data", tmp_path / "names.csv"
    layouts.asariri(root)
    (root / "images_c_32x32" / "bob").rename(root / "images_c_32x32" / "Bob_Dole")
    table.write_text("id,name\neve,Bob_Dole\nbob,Bob_Dole\n")
    task = asariri(tmp_path, faces__names=str(table), data__split_by="recording")
    assert set(task.parts["train"].speakers) == set(toy.NAMES) - {"bob"}
    said = "names.csv, line 3: eve and bob are given one folder, Bob_Dole: it is that of eve alone."
    assert said in caplog.text
    assert "1 people without a face are left out: bob" in caplog.text
    flat = task.parts.faces("train")("eve", 0)[20].mean(0)  # not those of the folder eve
    assert np.abs(flat - toy.colour(1)).max() < 5


def test_an_epoch_has_each_picture_of_a_class_once_and_digits_are_not_mirrored(tmp_path, caplog):
    held = layouts.mnist(tmp_path / "m")
    given = {"data__kind": "none", "data__eval": ("test",), "data__batch_rows": 8}
    given |= {"faces__kind": "mnist", "faces__root": str(tmp_path / "m"), "voice__kind": "class"}
    task = make_task(tmp_path / "run", **given, picture__size=0, picture__channels=0)
    task.prepare()
    assert task.classes == tuple("0123456789")
    seen = []
    with pipeline.opened(task.train_data()) as batches:
        for batch in itertools.islice(batches, 4):
            for row in np.flatnonzero(batch["mask"]):
                index = int(batch["index"][row])
                seen.append(index)
                np.testing.assert_array_equal(batch["face"][row], held["train"][0][index])
                assert batch["label"][row] == held["train"][1][index] != batch["other_label"][row]
    assert sorted(seen) == list(range(30))
    rows = []
    for batch in task.eval_data()["test"]:
        rows += zip(*(batch[name][batch["mask"]].tolist() for name in ("person", "turn")))
    assert rows == [(p, t) for p in range(10) for t in range(2)]
    assert "taken more than once" not in caplog.text
    more = make_task(tmp_path / "run", **given, picture__size=28, data__eval_turns=5)
    assert len(list(more.eval_data()["test"])) == -(-50 // 8)
    assert "a class has 3 pictures, fewer than config.data.eval_turns=5" in caplog.text
    assert isinstance(task.parts.faces("test"), labelled.ClassFaces)
