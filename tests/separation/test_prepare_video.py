"""`python -m separation.prepare_video`: films of drawings, cut by tables; real ones by OpenCV."""

import json
import pathlib
import pickle

import numpy as np
import pytest
import soundfile

from common.audio import io
from common.data import indexing, manifest, prepared_films, records, stored_faces
from common.data.embedded import faces, visemes
from common.video import crops
from separation import prepare_video
from tests import commands, films

FRAMES = 80
SIDE = 96 / 0.69  # of a box whose mouth crop has the scale of the drawings


def drawing(name: str, count: int = FRAMES) -> np.ndarray:
    """A mouth that speaks, uint8[n, 96, 96]."""
    phones = [(40.0 * k, phone) for k, phone in enumerate(["a", "m", "i", "u", "p"] * count)]
    track = visemes.mouth_track(phones[:count], 40.0 * count, strength=1.0)
    return faces.draw_mouths(faces.make_face(name, 120.0, 100.0), track[:count], name)


def scene(*mouths: tuple[np.ndarray, int, int], size=(240, 480)) -> np.ndarray:
    """Pictures with mouths at (left, top)."""
    pictures = np.full((len(mouths[0][0]), *size), 90, np.uint8)
    for mouth, left, top in mouths:
        pictures[:, top : top + 96, left : left + 96] = mouth
    return pictures


def box(left: int, top: int) -> str:
    """x,y,w,h of the face whose mouth is at (left, top)."""
    x = left + 48 - SIDE / 2 - 0.01 * SIDE
    y = top + 48 - SIDE / 2 - 0.312 * SIDE
    return f"{x},{y},{SIDE},{SIDE}"


def table(path: pathlib.Path, lines: list[str]) -> pathlib.Path:
    path.write_text("\n".join(["film,frame,x,y,w,h", *lines]) + "\n")
    return path


def boxes(film: str, left: int, top: int, count: int = FRAMES, every: int = 5) -> list[str]:
    return [f"{film},{k},{box(left, top)}" for k in range(0, count, every)]


def encode(path: pathlib.Path, pictures: np.ndarray, sound="tone", **options) -> pathlib.Path:
    sound = films.tone(len(pictures) / 25) if isinstance(sound, str) else sound
    settings = {"codec": "libx264", "sound_codec": "aac", **options}
    return films.encode(path, pictures, np.arange(len(pictures)) / 25, sound, **settings)


def prepared(command, monkeypatch, capsys, *options) -> str:
    """What the command prints; run in this process."""
    monkeypatch.setattr("sys.argv", ["prepare_video", *map(str, options)])
    prepare_video.main()
    return capsys.readouterr().out


@pytest.fixture
def run(command, monkeypatch, capsys):
    return lambda *options: prepared(command, monkeypatch, capsys, *options)


def test_crops_are_the_mouths_that_were_drawn_and_are_read_back(tmp_path, run):
    """Two people in one film: each in a record of their own, in time, in place and to scale."""
    one, two = drawing("one"), drawing("two")
    film = encode(tmp_path / "pair.mp4", scene((one, 60, 120), (two, 300, 110)))
    csv = table(tmp_path / "faces.csv", boxes("pair", 60, 120) + boxes("pair", 300, 110))
    out = tmp_path / "out"
    said = run(film, "--faces", csv, "--out", out, "--jobs", 2)
    assert "2 people in 1 of 1 films" in said
    assert (out / "sheet-01.png").is_file()
    assert "2 of them are in view together with others: trainings leave them out" in said
    with pytest.raises(records.DataError, match="nobody is alone in view"):
        prepared_films.PreparedFilms(out, alone=True)
    source = prepared_films.PreparedFilms(out)
    assert source.together == 2
    assert [record["id"] for record in source] == ["pair~1", "pair~2"]
    for record, mouth in zip(source, (one, two)):
        video = record["video"]
        assert (len(video), video.shape, video.dtype) == (FRAMES, (FRAMES, 96, 96), np.uint8)
        # The mouths move by a grey level from picture to picture, x264 errs by a third of one.
        error = np.abs(np.asarray(video).astype(int) - mouth).mean()
        late = np.abs(video[1:].astype(int) - mouth[:-1]).mean()
        assert 2 * error < late, (error, late)
        assert error < 1
        np.testing.assert_array_equal(video[[5, 70, 6]], np.asarray(video)[[5, 70, 6]])
        np.testing.assert_array_equal(video[-1], np.asarray(video)[-1])
        face = np.asarray(record["face"])
        assert (face.shape, face.dtype) == ((5, 224, 224, 3), np.uint8)
        assert record["face"].shape == face.shape
        assert face[:, 150:190].std() > 5  # where the mouth is; all else is one grey
        assert pickle.loads(pickle.dumps(record)) == record
        audio = records.load_record(record, 16_000)
        assert len(audio) == FRAMES * 640
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    samples, rate = soundfile.read(out / "audio" / "pair.flac", dtype="float32")
    expected = io.load_audio(film, sample_rate_hz=16_000)
    np.testing.assert_allclose(samples, expected, atol=1 / 32768)
    assert rate == 16_000
    # The same file is a manifest for those who want the sound alone.
    assert len(manifest.read_manifest(out / "manifest.tsv")) == 2


def test_pictures_that_begin_after_the_sound_keep_their_places(tmp_path, run):
    """Nobody is in view before the first picture, however soon after the sound it comes."""
    late, times = 7, np.arange(FRAMES) / 25
    shown = scene((drawing("one"), 60, 120))
    coding = {"codec": "libx264", "sound_codec": "aac"}
    film = tmp_path / "late.mkv"
    films.encode(film, shown, times + late / 25, films.tone(4), **coding)
    csv = table(tmp_path / "faces.csv", boxes("late", 60, 120))
    run(film, "--faces", csv, "--out", tmp_path / "out")
    [record] = prepared_films.PreparedFilms(tmp_path / "out")
    assert record["start"] == pytest.approx(late / 25)
    assert len(record["video"]) == FRAMES
    assert record["duration"] == pytest.approx(FRAMES / 25)


@pytest.mark.parametrize("first", [0, 1])
def test_lines_at_frames_of_a_film_of_50_a_second(tmp_path, run, first):
    """Three lines, 8 frames apart, then two that are missing. A line is of four pictures of 25 a
    second. Those of `first=0` or those of 1 are at frames that no picture is of."""
    count = 2 * FRAMES
    film = films.encode(
        tmp_path / "fast.mkv",
        scene((drawing("one", count), 60, 120)),
        np.arange(count) / 50,
        films.tone(count / 50),
        rate=50,
    )
    lines = boxes("fast", 60, 120, count, every=1)
    lines = [lines[first + 8 * k] for k in range(count // 8) if k % 5 < 3]
    csv = table(tmp_path / "faces.csv", lines)
    run(film, "--faces", csv, "--out", tmp_path / "out", "--min_seconds", 2)
    [row] = manifest.read_rows(tmp_path / "out" / "manifest.tsv")
    seen = int(row[1]["frames"])  # up to the last line: the next one is missing
    assert seen == pytest.approx(8 * 17 / 2, abs=1)
    assert float(row[1]["found"]) == pytest.approx(12 * 4 / seen, abs=0.001)


def test_a_second_start_goes_on_and_a_changed_film_is_made_again(tmp_path, run, monkeypatch):
    mouth = drawing("one")
    for name in "ab":
        encode(tmp_path / "films" / "x" / f"{name}.mp4", scene((mouth, 60, 120)))
    csv = table(tmp_path / "f.csv", boxes("x/a", 60, 120) + boxes("x/b", 60, 120))
    options = (tmp_path / "films", "--faces", csv, "--out", tmp_path / "out", "--jobs", 1)
    first = run(*options, "--speakers", "folder")
    source = prepared_films.PreparedFilms(tmp_path / "out")
    assert [(r["id"], r["speaker"]) for r in source] == [("x/a", "x"), ("x/b", "x")]
    made = []
    whole = prepare_video.preparing.prepare

    def counted(film, *others):
        made.append(pathlib.Path(film).stem)
        return whole(film, *others)

    monkeypatch.setattr(prepare_video.preparing, "prepare", counted)
    (tmp_path / "out" / "mouths" / "x" / ".a.h5.12ab34cd.tmp").write_text("left by a killed one")
    assert run(*options, "--speakers", "folder") == first
    assert not made
    assert not list((tmp_path / "out").rglob("*.tmp"))
    encode(tmp_path / "films" / "x" / "b.mp4", scene((mouth, 60, 120))[:70])
    assert run(*options) != first
    assert made == ["b"]
    (tmp_path / "out" / "mouths" / "x" / "a.h5").unlink()
    run(*options)
    assert made == ["b", "a"]
    source = prepared_films.PreparedFilms(tmp_path / "out")
    assert [len(r["video"]) for r in source] == [80, 70]
    assert [r["speaker"] for r in source] == ["x/a", "x/b"]
    table(csv, boxes("x/a", 60, 120))
    assert "1 no face: x/b" in run(*options)
    assert made == ["b", "a", "a", "b"]
    said = commands.message("separation.prepare_video", *options, "--portraits", 3)
    assert "what differs: portraits" in said


def test_what_cannot_be_used_is_counted_and_named_and_the_others_go_on(tmp_path, run):
    mouth = drawing("one")
    here = scene((mouth, 60, 120))
    clips = tmp_path / "clips"
    for name in ("good", "nobody", "mute", "silent", "short", "crowd", "pair", "closed"):
        sound = {"mute": None, "silent": np.zeros(FRAMES * 640)}.get(name, "tone")
        count = 50 if name == "short" else FRAMES
        shown = np.repeat(here[:1], FRAMES, axis=0) if name == "closed" else here[:count]
        encode(clips / f"{name}.mp4", shown, sound)
    whole = (clips / "good.mp4").read_bytes()
    (clips / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / "text.mkv").write_text("no film")
    (clips / "notes.txt").write_text("no film either, and not called one")
    alone = ("good", "mute", "silent", "short", "closed")
    lines = [line for n in alone for line in boxes(n, 60, 120)]
    lines += boxes("crowd", 60, 120) + boxes("crowd", 110, 125)
    lines += boxes("pair", 60, 120) + boxes("pair", 300, 110, count=30)
    csv = table(tmp_path / "faces.csv", lines)
    out = tmp_path / "out"
    said = run(clips, tmp_path / "none.mp4", "--faces", csv, "--out", out)
    source = prepared_films.PreparedFilms(out)
    assert [record["id"] for record in source] == ["closed", "good", "pair"]
    # Who was not taken, for being in view too shortly, may be heard all the same.
    alone = prepared_films.PreparedFilms(out, alone=True)
    assert [record["id"] for record in alone] == ["closed", "good"]
    rows = [line.split("\t") for line in (out / "rejected.tsv").read_text().splitlines()[1:]]
    assert {pathlib.Path(path).name: reason for _, path, reason in rows if "pair" not in path} == {
        "none.mp4": "missing file",
        "crowd.mp4": "two faces in one crop (in 100% of pictures)",
        "half.mp4": "unreadable (its format is not known, or its header is damaged)",
        "mute.mp4": "no sound",
        "nobody.mp4": "no face (no line of it in faces.csv)",
        "short.mp4": "shorter than a window (50 of 64 pictures)",
        "silent.mp4": "no sound (every sample is zero)",
        "text.mkv": "unreadable (its format is not known, or its header is damaged)",
    }
    assert next(row for row in rows if "pair" in row[1])[0].startswith("pair 0.00-1.")
    assert "3 people in 3 of 10 films" in said
    assert "Lips that hardly move (closed, or a frozen picture): closed.\n" in said
    assert "2 no sound: mute, silent" in said
    assert not list(out.rglob(".*.tmp"))
    assert {p.name for p in (out / "audio").iterdir()} == {
        f"{name}.flac" for name in ("closed", "good", "pair")
    }


def test_lists_name_films_and_what_is_known_of_them(tmp_path, run):
    encode(tmp_path / "data" / "s1" / "clip.mp4", scene((drawing("one"), 60, 120)))
    (tmp_path / "list.tsv").write_text(
        "clip\tspeaker\tgender\tsplit\tvideo\ttext\n"
        "s1_clip\ts1\tf\tdev\ts1/clip.mp4\tHELLO THERE\n"
        "s2_clip\ts2\tm\tdev\ts2/clip.mp4\tHELLO\n"
        "s1_clip\ts3\tf\tdev\ts1/clip.mp4\tHELLO THERE\n"
    )
    csv = table(tmp_path / "faces.csv", boxes("clip", 60, 120))
    out = tmp_path / "out"
    run(tmp_path / "list.tsv", "--root", tmp_path / "data", "--faces", csv, "--out", out)
    [record] = prepared_films.PreparedFilms(out, {"split": "dev"})
    known = {name: record[name] for name in ("id", "speaker", "gender", "text")}
    assert known == {"id": "s1_clip", "speaker": "s1", "gender": "f", "text": "HELLO THERE"}
    rejected = (out / "rejected.tsv").read_text()
    assert "missing file" in rejected
    assert "given twice; what counts is the first time (speaker s1, gender f, " in rejected


def test_an_index_takes_prepared_films_and_rejects_damaged_ones_by_name(tmp_path, run, caplog):
    clips = tmp_path / "clips"
    names = [f"c{k}" for k in range(5)]
    for name in names:
        encode(clips / f"{name}.mp4", scene((drawing("one"), 60, 120)))
    csv = table(tmp_path / "faces.csv", [line for n in names for line in boxes(n, 60, 120)])
    out = tmp_path / "out"
    run(clips, "--faces", csv, "--out", out)
    mouths = out / "mouths"
    (mouths / "c1.h5").unlink()
    (mouths / "c2.h5").write_bytes((mouths / "c0.h5").read_bytes()[:3000])
    for name, shape in {"c3": (FRAMES, 88, 88), "c4": (40, 96, 96)}.items():
        import h5py

        with h5py.File(mouths / f"{name}.h5", "w") as file:
            file["data"] = np.zeros(shape, np.uint8)
    source = prepared_films.PreparedFilms(out)
    index = indexing.build_index(
        source,
        cache=None,
        rejected_tsv=tmp_path / "rejected.tsv",
        sample_rate_hz=16_000,
        min_seconds=0.1,
        max_seconds=30,
        require_text=False,
        max_bad_share=1,
        num_workers=2,
        progress=False,
        inspect=stored_faces.inspect,
    )
    assert [source[int(k)]["id"] for k in index.positions] == ["c0"]
    reasons = {one.id: one.reason for one in index.rejected}
    assert reasons["c1"].startswith("missing file")
    assert [one.path for one in index.rejected if one.id == "c1"] == [str(mouths / "c1.h5")]
    assert reasons["c2"].startswith("unreadable (OSError")
    size = "uint8 of 80 x 88 x 88, not uint8 of n x 96 x 96"
    assert reasons["c3"] == f"wrong pictures ({mouths / 'c3.h5'}: {size})"
    assert reasons["c4"] == f"wrong length ({mouths / 'c4.h5'}: 40 pictures, the sound 80)"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--jobs", 0), "--jobs=0: at least 1"),
        (("--min_seconds", 0.1), "fewer than --portraits"),
        (("--min_seconds", "nan"), "--min_seconds=nan: above 0"),
        (("--min_face", 2), "no share of the picture"),
        (("--faces", "none.csv"), "no table or folder none.csv"),
    ],
)
def test_wrong_options_are_one_message(tmp_path, options, says):
    encode(tmp_path / "a.mp4", scene((drawing("one", 10), 60, 120)))
    where = (tmp_path / "a.mp4", "--out", tmp_path / "out")
    assert says in commands.message("separation.prepare_video", *where, *options)


def test_a_damaged_table_of_one_film_of_several_is_named(tmp_path, run):
    for name in "ab":
        encode(tmp_path / "films" / f"{name}.mp4", scene((drawing("one"), 60, 120)))
        (tmp_path / f"{name}.csv").write_text("frame,x,y,w,h\n0,1,2,3\n")
    lines = [f"{k},{box(60, 120)}" for k in range(FRAMES)]
    (tmp_path / "b.csv").write_text("\n".join(["frame,x,y,w,h", *lines]) + "\n")
    said = run(tmp_path / "films", "--faces", tmp_path, "--out", tmp_path / "out")
    assert "1 people in 1 of 2 films" in said
    assert "1 faces: a" in said
    assert "a.csv, line 2: 4 fields" in (tmp_path / "out" / "rejected.tsv").read_text()


def mean_points(left: int, top: int) -> np.ndarray:
    """68 landmarks, upright and as large as the mean face, whose mouth's middle is that of a
    drawing at (left, top)."""
    rng = np.random.default_rng(0)
    known = crops._MEAN_FACE
    points = np.array([known.get(k, rng.uniform(60, 190) * (1 + 1j)) for k in range(68)])
    points[36:42] += known[36] - points[36:42] + rng.uniform(0, 20, 6)
    points[42:48] += known[42] - points[42:48] + rng.uniform(0, 20, 6)
    for k in known:
        points[k] = known[k]
    points[48:68] = 20 * np.exp(2j * np.pi * np.arange(20) / 20)  # around 0
    points[48:68] += 128 + 180j
    points += complex(left + 48, top + 48) - (128 + 180j)
    return np.stack([points.real, points.imag], 1)


@pytest.mark.parametrize("form", ["openface", "npy"])
def test_landmarks_of_another_tool_say_where_the_mouth_is(tmp_path, run, form):
    """OpenFace's table, or an array: the crop is the drawing around the middle of points 48-67,
    whatever the box would be, and follows it."""
    mouth, lefts = drawing("one"), 60 + 2 * (np.arange(FRAMES) // 4)
    pictures = np.full((FRAMES, 240, 480), 90, np.uint8)
    for picture, drawn, left in zip(pictures, mouth, lefts):
        picture[120:216, left : left + 96] = drawn
    encode(tmp_path / "film.mp4", pictures)
    points = np.stack([mean_points(left, 120) for left in lefts])
    faces = tmp_path / "faces"
    faces.mkdir()
    if form == "npy":
        np.save(faces / "film.npy", points)
    else:
        names = [f"{axis}_{k}" for axis in "xy" for k in range(68)]
        header = ", ".join(["frame", "face_id", "timestamp", "confidence", "success", *names])
        lines = [
            f"{k + 1}, 0, {k / 25:.3f}, 0.98, 1, {', '.join(f'{v:.1f}' for v in one.T.ravel())}"
            for k, one in enumerate(points)
        ]
        (faces / "film.csv").write_text("\n".join([header, *lines]) + "\n")
    out = tmp_path / "out"
    said = run(tmp_path / "film.mp4", "--faces", faces, "--out", out)
    assert "1 people in 1 of 1 films" in said
    [record] = prepared_films.PreparedFilms(out)
    found = np.asarray(record["video"]).astype(int)
    assert len(found) == FRAMES
    inner = (slice(12, -12), slice(24, 72), slice(24, 72))  # beside ends, where smoothing bends
    assert np.abs(found - mouth)[inner].mean() < 4
    shifted = np.roll(mouth, 4, axis=2)
    assert np.abs(found - shifted)[inner].mean() > 2 * np.abs(found - mouth)[inner].mean()


def test_a_table_of_one_film_is_not_taken_for_two(tmp_path):
    for name in "ab":
        encode(tmp_path / f"{name}.mp4", scene((drawing("one", 10), 60, 120)))
    (tmp_path / "faces.csv").write_text(f"frame,x,y,w,h\n0,{box(60, 120)}\n")
    options = (tmp_path / "a.mp4", tmp_path / "b.mp4", "--faces", tmp_path / "faces.csv")
    said = commands.message("separation.prepare_video", *options, "--out", tmp_path / "out")
    assert "no column that names films" in said


def test_opencv_finds_the_face_of_a_real_clip(tmp_path, run, speech_data):
    pytest.importorskip("cv2")
    out = tmp_path / "out"
    run(speech_data / "av" / "grid" / "s1" / "bbif1a.mpg", "--out", out)
    [record] = prepared_films.PreparedFilms(out)
    assert len(record["video"]) == 75
    note = json.loads((out / "films" / "bbif1a.json").read_text())
    [person] = note["people"]
    assert person["found"] == 1
    assert person["others"] == 0
    assert person["motion"] > 1
    # What moves in the crop is the mouth: its centre more than its edge.
    moving = np.asarray(record["video"]).astype(float).std(0)
    assert moving[36:60, 28:68].mean() > 1.5 * moving[:12].mean()
