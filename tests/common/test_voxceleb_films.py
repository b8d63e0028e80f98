"""VoxCeleb2 with mouths: both layouts, lists, what is missing, what is read."""

import pathlib
import pickle

import h5py
import numpy as np
import pytest

from common.audio import io
from common.data import indexing, records, stored_faces, voxceleb_films
from common.video import frames
from tests import films

CLIPS = {
    ("train", "id00012", "AbC_-1"): ("00001", "00002"),
    ("train", "id00013", "xyz"): ("00007",),
    ("val", "id00012", "other"): ("00001",),
}
LAYOUTS = {"code": ("aac", "mouth_roi_hdf5"), "published": ("audio", "mouth_roi")}
LENGTH = 30


def mouth(seed: int, count: int = LENGTH, side: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), np.uint8)


def write_mouth(path: pathlib.Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = values


@pytest.fixture(params=LAYOUTS)
def root(request, tmp_path):
    """A tree of four clips; each film changes from red to blue in its middle."""
    sounds, mouths = LAYOUTS[request.param]
    pictures = np.zeros((LENGTH, 224, 224, 3), np.uint8)
    pictures[: LENGTH // 2, ..., 0] = pictures[LENGTH // 2 :, ..., 2] = 200
    times = np.arange(LENGTH) / 25
    film = films.encode(tmp_path / "a.mp4", pictures, times, None, codec="libx264")
    seed = 0
    for where, names in CLIPS.items():
        for name in names:
            place = pathlib.Path(*where, name)
            write_mouth(tmp_path / mouths / place.with_suffix(".h5"), mouth(seed))
            tone = films.tone(LENGTH / 25).astype(np.float32)
            io.write_wav(tmp_path / sounds / place.with_suffix(".wav"), tone, 16_000)
            target = tmp_path / "mp4" / place.with_suffix(".mp4")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(film.read_bytes())
            seed += 1
    film.unlink()
    return tmp_path


def found(root: pathlib.Path, kind: int, *parts: str) -> pathlib.Path:
    """A file below whichever folder of a kind (0 sound, 1 mouth) is there."""
    names = [names[kind] for names in LAYOUTS.values() if (root / names[kind]).exists()]
    return root.joinpath(names[0], *parts)


def test_a_split_is_read_lazily_and_pickles_as_paths(root):
    (root / "vox2_meta.csv").write_text("VoxCeleb2 ID,VGGFace2 ID,Gender\nid00013,n000013,f\n")
    source = voxceleb_films.VoxCelebFilms(root, "train", portraits=4)
    assert [record.get("gender") for record in source] == [None, None, "f"]
    assert [record["id"] for record in source] == [
        "id00012/AbC_-1/00001.wav",
        "id00012/AbC_-1/00002.wav",
        "id00013/xyz/00007.wav",
    ]
    for seed, record in enumerate(pickle.loads(pickle.dumps(source))):
        assert record["speaker"] == record["id"][:7]
        assert len(record["video"]) == LENGTH
        np.testing.assert_array_equal(np.asarray(record["video"]), mouth(seed))
        np.testing.assert_array_equal(record["video"][3:9], mouth(seed)[3:9])
        face = np.asarray(record["face"])
        assert (face.shape, face.dtype) == ((4, 224, 224, 3), np.uint8)
        # Spread over the clip: two red ones, two blue ones.
        assert (face.mean((1, 2)).argmax(-1) == [0, 0, 2, 2]).all()
    assert source.rejected == ()
    assert len(pickle.dumps(source)) < 5000


def test_portraits_are_decoded_that_are_asked_for(root, monkeypatch):
    """A row with one portrait seeks once."""
    decoded = []
    whole = frames.spread

    def spread(path, count, parts):
        decoded.extend(parts)
        return whole(path, count, parts)

    monkeypatch.setattr(frames, "spread", spread)
    source = voxceleb_films.VoxCelebFilms(root, "train", portraits=5)
    portraits = source[0]["face"]
    every = np.asarray(portraits)
    for key in (1, -1, slice(1, 4), [3, 0], np.array([[0, 4]]), (2, 5), (slice(0, 2), 7, ..., 0)):
        decoded.clear()
        np.testing.assert_array_equal(portraits[key], every[key])
        assert decoded == np.ravel(np.arange(5)[key[0] if isinstance(key, tuple) else key]).tolist()
    assert portraits[[]].shape == (0, 224, 224, 3)
    with pytest.raises(IndexError):
        portraits[5]


def test_lists_of_any_prefix_choose_folders_in_their_order(root):
    entries = ["/checkpoint/vox/mp4/train/id00013/xyz", "mp4/train/id00012/AbC_-1/"]
    voxceleb_films.write_list(root / "train.h5", entries)
    with h5py.File(root / "train.h5") as file:
        read = [entry.decode() for entry in file["videos_path"][:]]
    assert read == entries
    source = voxceleb_films.VoxCelebFilms(root, "train", listed=root / "train.h5")
    assert [record["id"][:7] for record in source] == ["id00013", "id00012", "id00012"]
    voxceleb_films.write_list(root / "one.h5", ["x/mp4/train/id00012/AbC_-1/00002.mp4"] * 2)
    source = voxceleb_films.VoxCelebFilms(root, "train", listed=root / "one.h5")
    assert [record["id"] for record in source] == ["id00012/AbC_-1/00002.wav"]


def test_what_is_missing_is_named_and_counted_and_the_others_go_on(root, tmp_path):
    found(root, 1, "train", "id00012", "AbC_-1", "00002.h5").unlink()
    found(root, 0, "train", "id00013", "xyz", "00007.wav").unlink()
    listed = ["mp4/train/id00012/AbC_-1", "mp4/train/id00013/xyz", "mp4/train/id00099/gone"]
    voxceleb_films.write_list(root / "list.h5", listed)
    source = voxceleb_films.VoxCelebFilms(root, "train", listed=root / "list.h5")
    assert source.counts() == {"missing mouth": 1, "missing sound": 1, "missing folder": 1}
    assert [one.id for one in source.rejected] == [
        "id00012/AbC_-1/00002.wav",
        "id00013/xyz/00007.wav",
        "train/id00099/gone",
    ]
    good = [record for record in source if "problem" not in record]
    np.testing.assert_array_equal(np.asarray(good[0]["video"]), mouth(0))


def indexed(root: pathlib.Path, tmp_path: pathlib.Path) -> records.Index:
    """The index of `train`."""
    return indexing.build_index(
        voxceleb_films.VoxCelebFilms(root, "train"),
        cache=None,
        rejected_tsv=tmp_path / "rejected.tsv",
        sample_rate_hz=16_000,
        min_seconds=0.1,
        max_seconds=30,
        require_text=False,
        max_bad_share=1,
        num_workers=1,
        progress=False,
        inspect=stored_faces.inspect,
    )


def test_an_index_finds_mouths_of_another_size_or_length(root, tmp_path):
    place = ("train", "id00012", "AbC_-1")
    small = found(root, 1, *place, "00002.h5")
    short = found(root, 1, "train", "id00013", "xyz", "00007.h5")
    write_mouth(small, mouth(0, side=88))
    write_mouth(short, mouth(0, count=12))
    index = indexed(root, tmp_path)
    assert index.positions.tolist() == [0]
    assert [one.reason for one in index.rejected] == [
        f"wrong pictures ({small}: uint8 of 30 x 88 x 88, not uint8 of n x 96 x 96)",
        f"wrong length ({short}: 12 pictures, the sound 30)",
    ]


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_an_index_names_damaged_arrays(root, tmp_path, suffix):
    """One that NumPy cannot read does not end the reading of the others."""
    clips = ("id00012/AbC_-1/00001", "id00012/AbC_-1/00002")
    for clip in clips:
        found(root, 1, "train", f"{clip}.h5").unlink()
    other, cut = (root / "mouth_roi" / "train" / f"{clip}{suffix}" for clip in clips)
    other.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npz":
        np.savez(other, roi=mouth(0))
        reason = f"wrong pictures ({other} has no array 'data' (there are: roi))"
    else:
        np.save(other, np.array([None]), allow_pickle=True)
        reason = f"unreadable (OSError: {other} is no NPY file of numbers, or damaged or cut off)"
    write = {".npz": np.savez, ".npy": np.save}[suffix]
    write(cut, mouth(1))
    cut.write_bytes(cut.read_bytes()[: 60 if suffix == ".npy" else 9000])
    index = indexed(root, tmp_path)
    assert index.positions.tolist() == [2]
    assert [one.reason for one in index.rejected] == [
        reason,
        f"unreadable (OSError: {cut} is no {suffix[1:].upper()} file of numbers, or damaged or cut "
        "off)",
    ]


def test_mouths_are_read_from_npz_too_and_refuse_what_they_are_not(tmp_path):
    np.savez(tmp_path / "a.npz", data=mouth(1))
    read = stored_faces.Mouths(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(read[2:5, 10], mouth(1)[2:5, 10])
    assert len(read) == LENGTH
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["frames"] = mouth(1)
    with pytest.raises(ValueError, match=r"no data set 'data' \(there are: frames\)"):
        len(stored_faces.Mouths(str(tmp_path / "b.h5")))
    write_mouth(tmp_path / "c.h5", mouth(1))
    read = stored_faces.Mouths(str(tmp_path / "c.h5"))
    chosen = np.array([7, 3, 3, -1])
    np.testing.assert_array_equal(read[chosen], mouth(1)[chosen])
    np.testing.assert_array_equal(read[-1], mouth(1)[-1])
    keys = (
        5,
        (5, 10),
        (-1, slice(3), 4),
        slice(8, 2, -3),
        (chosen, 10),
        (..., 3),
        mouth(1)[:, 0, 0] > 99,
    )
    for key in keys:
        np.testing.assert_array_equal(read[key], mouth(1)[key])
    with pytest.raises(IndexError):
        read[np.array([30])]


def test_bad_names_and_lists_say_what_to_do(root):
    with pytest.raises(records.DataError, match=r"Splits below .*: train, val"):
        voxceleb_films.VoxCelebFilms(root, "test")
    with pytest.raises(records.DataError, match="There is no list"):
        voxceleb_films.VoxCelebFilms(root, "train", listed=root / "none.h5")
    (root / "text.h5").write_text("no list")
    with pytest.raises(records.DataError, match="no HDF5 file"):
        voxceleb_films.VoxCelebFilms(root, "train", listed=root / "text.h5")
    voxceleb_films.write_list(root / "odd.h5", ["mp4/train/id00012/AbC_-1", "what/is/this"])
    with pytest.raises(records.DataError, match="entry 2: 'what/is/this'"):
        voxceleb_films.VoxCelebFilms(root, "train", listed=root / "odd.h5")
    with h5py.File(root / "other.h5", "w") as file:
        file["paths"] = [1]
    with pytest.raises(records.DataError, match="holds paths"):
        voxceleb_films.VoxCelebFilms(root, "train", listed=root / "other.h5")
