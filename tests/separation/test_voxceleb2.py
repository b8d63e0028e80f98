"""`python -m separation.voxceleb2`: archives as they are published, in, a sub-split out."""

import io as std_io
import pathlib
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import soundfile

from common.data import archives, records, voxceleb_films
from separation import voxceleb2
from tests import commands, films

# speaker/video/clip -> split that its mouth is published in
CLIPS = {
    "id00012/aaa/00001": "train",
    "id00012/aaa/00002": "train",
    "id00012/bbb/00001": "val",
    "id00013/ccc/00001": "train",
    "id00014/ddd/00001": "seen_heard_test",
    "id00012/lost/00001": "",  # no mouth
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of one film, one sound and one mouth."""
    folder = tmp_path_factory.mktemp("contents")
    pictures = np.full((20, 32, 32), 90, np.uint8)
    sound = films.tone(0.8)
    options = {"codec": "libx264", "sound_codec": "aac"}
    film = films.encode(folder / "a.mp4", pictures, np.arange(20) / 25, sound, **options)
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = np.zeros((20, 96, 96), np.uint8)
    return {"mp4": film.read_bytes(), "h5": (folder / "a.h5").read_bytes()}


def zipped(files: dict[str, bytes]) -> bytes:
    out = std_io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = std_io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, std_io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def published(tmp_path, contents) -> pathlib.Path:
    """The archives: films in a ZIP in three parts, sound in a ZIP, mouths in a TAR a split."""
    folder = tmp_path / "archives"
    folder.mkdir()
    archive = zipped({f"dev/mp4/{clip}.mp4": contents["mp4"] for clip in CLIPS})
    third = len(archive) // 3
    for part, start in zip("abc", (0, third, 2 * third)):
        end = None if part == "c" else start + third
        (folder / f"vox2_dev_mp4_parta{part}").write_bytes(archive[start:end])
    sounds = {f"dev/aac/{clip}.m4a": contents["mp4"] for clip in CLIPS}
    (folder / "vox2_dev_aac.zip").write_bytes(zipped(sounds))
    for split in ("train", "val", "seen_heard_test"):
        mouths = {f"{split}/{c}.h5": contents["h5"] for c, own in CLIPS.items() if own == split}
        (folder / f"mouth_roi_{split}.tar.gz").write_bytes(tarred(mouths))
    voxceleb_films.write_list(
        folder / "train.h5",
        [f"/private/mp4/train/{v}" for v in ("id00012/zzz", "id00012/aaa", "id00999/aaa")],
    )
    (tmp_path / "ids.txt").write_text("# chosen\nid00012 m\nid00014,f\n")
    return folder


@pytest.fixture
def run(command, monkeypatch, capsys, published, tmp_path):
    def started(*options) -> str:
        line = ["--ids", tmp_path / "ids.txt", "--archives", published, "--out", tmp_path / "out"]
        monkeypatch.setattr("sys.argv", ["voxceleb2", *map(str, [*line, *options])])
        voxceleb2.main()
        return capsys.readouterr().out

    return started


def tree(folder: pathlib.Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_chosen_people_are_taken_out_restructured_and_listed(run, tmp_path):
    said = run("--jobs", 2)
    out = tmp_path / "out"
    whole = {
        "train/id00012/aaa/00001",
        "train/id00012/aaa/00002",
        "val/id00012/bbb/00001",
        "seen_heard_test/id00014/ddd/00001",
    }
    kinds = {"mp4": "mp4", "aac": "wav", "mouth_roi_hdf5": "h5"}
    expected = {f"{kind}/{clip}.{suffix}" for kind, suffix in kinds.items() for clip in whole}
    lists = {"train.h5", "val.h5", "seen_heard_test.h5"}
    assert tree(out) == expected | lists | {"rejected.tsv", "archives.json"}
    assert "4 clips of 2 of 2 people." in said
    assert "1 missing mouth: id00012/lost/00001" in said
    # The published list names a folder that no archive holds.
    assert "1 missing folder: id00012/zzz" in said
    with h5py.File(out / "train.h5") as file:
        assert file["videos_path"][:].tolist() == [f"{out}/mp4/train/id00012/aaa".encode()]
    audio, rate = soundfile.read(out / "aac/train/id00012/aaa/00001.wav", dtype="int16")
    assert (rate, audio.ndim) == (16_000, 1)
    assert abs(len(audio) - 0.8 * 16_000) < 1100  # AAC pads to whole frames
    source = voxceleb_films.VoxCelebFilms(out, "train", listed=out / "train.h5")
    assert source.rejected == ()
    assert len(source) == 2
    # As the original's code finds the other files of a film.
    for video in out.glob("mp4/*/*/*/*.mp4"):
        assert pathlib.Path(str(video).replace("/mp4/", "/aac/")).with_suffix(".wav").is_file()
        mouths = str(video).replace("/mp4/", "/mouth_roi_hdf5/")
        assert pathlib.Path(mouths).with_suffix(".h5").is_file()


def test_a_list_of_which_nothing_is_there_is_empty(run, tmp_path, published):
    """Neither a list of before nor all folders stand in for it."""
    published_list = (published / "train.h5").read_bytes()
    run()
    out = tmp_path / "out"
    with h5py.File(out / "train.h5") as file:
        assert len(file["videos_path"]) == 1
    for named in (["id00012/zzz", "id00012/yyy"], ["id00999/aaa"]):
        voxceleb_films.write_list(published / "train.h5", [f"mp4/train/{v}" for v in named])
        (out / "train.h5").write_bytes(published_list)  # an older one
        said = run()
        assert f"train.h5: 0 folders ({published}/train.h5 names nothing that is there)" in said
        with pytest.raises(records.DataError, match=r"train\.h5 lists nothing"):
            voxceleb_films.VoxCelebFilms(out, "train", listed=out / "train.h5")
    assert "4 clips of 2 of 2 people." in said
    with h5py.File(out / "val.h5") as file:
        assert len(file["videos_path"]) == 1
    # A list that lies in OUT itself is not emptied.
    voxceleb_films.write_list(out / "train.h5", ["mp4/train/id00012/zzz"])
    before = (out / "train.h5").read_bytes()
    run("--lists", out)
    assert (out / "train.h5").read_bytes() == before


def test_a_second_start_makes_what_is_missing_and_nothing_else(run, tmp_path, published):
    missing = published / "vox2_dev_mp4_partac"
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(SystemExit, match="1 of 5 archives could not be read"):
        run()
    out = tmp_path / "out"
    before = {name: (out / name).stat().st_mtime_ns for name in tree(out) if "/id" in name}
    assert len(before) == 8  # sound and mouths
    missing.write_bytes(content)
    assert "4 clips of 2 of 2 people." in run()
    after = {name: (out / name).stat().st_mtime_ns for name in tree(out) if "/id" in name}
    assert len(after) == 12
    assert before.items() <= after.items()
    assert run() == run()


def test_what_is_no_archive_is_one_line(tmp_path):
    (tmp_path / "vox2_test_mp4.zip").write_bytes(b"cut off")
    [archive] = archives.find(tmp_path)
    with pytest.raises(archives.ArchiveError) as raised:
        list(archive.members(bool))
    [line] = str(raised.value).splitlines()
    assert line.startswith("vox2_test_mp4.zip: no ZIP or TAR, damaged, or a part is missing (file ")


def test_the_published_layout_and_a_split_of_ones_own(run, tmp_path):
    said = run("--layout", "published", "--split", "mine")
    assert "4 clips of 2 of 2 people." in said
    out = tmp_path / "out"
    assert {name.split("/")[0] for name in tree(out) if "/id" in name} == {
        *("mp4", "audio", "mouth_roi"),
    }
    assert len(voxceleb_films.VoxCelebFilms(out, "mine")) == 4
    # What was gone through for one layout was not for another one.
    assert "4 clips of 2 of 2 people." in run()
    assert len(voxceleb_films.VoxCelebFilms(out, "val")) == 1


def test_sound_that_cannot_be_decoded_is_named(run, tmp_path, published, contents):
    sounds = {f"dev/aac/{clip}.m4a": contents["mp4"] for clip in CLIPS}
    sounds["dev/aac/id00014/ddd/00001.m4a"] = b"no sound at all"
    (published / "vox2_dev_aac.zip").write_bytes(zipped(sounds))
    said = run()
    assert "3 clips of 1 of 2 people." in said
    assert "1 missing speaker: id00014" in said
    reasons = dict(
        line.split("\t") for line in (tmp_path / "out/rejected.tsv").read_text().splitlines()
    )
    assert reasons["id00014/ddd/00001"].startswith("sound (cannot be decoded")
    assert reasons["id00012/lost/00001"] == "missing mouth (in no archive)"
    before = (tmp_path / "out/rejected.tsv").read_text()
    assert run() == said  # archives are not gone through again, and what was found is not forgotten
    assert (tmp_path / "out/rejected.tsv").read_text() == before


def test_a_reason_is_forgotten_when_it_has_gone(run, tmp_path, published, contents):
    assert "1 missing mouth: id00012/lost/00001" in run()
    late = {"train/id00012/lost/00001.h5": contents["h5"]}
    (published / "mouth_roi_train_2.tar.gz").write_bytes(tarred(late))
    assert "5 clips of 2 of 2 people." in run()
    assert "lost" not in (tmp_path / "out/rejected.tsv").read_text()


def test_bad_input_is_one_message(tmp_path, published):
    def said(*options) -> str:
        where = {"--archives": published, "--out": tmp_path / "out"}
        given = dict(zip(options[::2], options[1::2]))
        line = [part for pair in (where | given).items() for part in pair]
        return commands.message("separation.voxceleb2", *line)

    (tmp_path / "bad.txt").write_text("id00012\nAnn\n")
    assert "line 2: 'Ann' is no idXXXXX" in said("--ids", tmp_path / "bad.txt")
    (tmp_path / "empty").mkdir()
    ids = ("--ids", tmp_path / "ids.txt")
    assert "holds no .zip" in said(*ids, "--archives", tmp_path / "empty")
    assert "There is no folder" in said(*ids, "--archives", tmp_path / "none")
