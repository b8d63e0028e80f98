"""Films as pictures in time with their sound; faces followed, cut out, and read from tables."""

import json

import numpy as np
import PIL.Image
import pytest

from common.data import records
from common.video import crops, face_tables, finding, frames, tracking
from tests import films

COUNT = 50
TIMES = np.arange(COUNT) / 25


def shown(path) -> list[int]:
    return [films.number(one) for one in frames.pictures(path, frames.sound_start(path))]


def test_pictures_of_25_a_second_are_the_films_own(tmp_path):
    path = films.encode(tmp_path / "a.mkv", films.numbered(COUNT), TIMES, films.tone(2))
    assert shown(path) == list(range(COUNT))
    found = list(frames.pictures(path, 0.0))
    assert [one.index for one in found] == [one.number for one in found] == list(range(COUNT))
    assert not any(one.held for one in found)


def test_dropped_pictures_are_held_and_time_goes_on(tmp_path):
    there = [k for k in range(COUNT) if k % 7 not in (3, 4)]
    pictures = films.numbered(COUNT)[there]
    path = films.encode(tmp_path / "a.mkv", pictures, TIMES[there], films.tone(2))
    expected = [max(k for k in there if k <= place) for place in range(COUNT)]
    assert shown(path) == expected
    held = [one.held for one in frames.pictures(path, 0.0)]
    assert held == [place not in there for place in range(COUNT)]


@pytest.mark.parametrize("rate", [12.5, 24, 29.97, 50, 60])
def test_other_rates_show_what_is_on_the_screen_in_the_middle_of_each_40_ms(tmp_path, rate):
    count = round(2 * rate)
    times = np.arange(count) / rate
    path = films.encode(tmp_path / "a.mkv", films.numbered(count), times, films.tone(2), rate=rate)
    middles = (np.arange(COUNT) + 0.5) / 25
    found = np.array(shown(path))[:COUNT]
    # Matroska counts in milliseconds, of which one decides nothing.
    assert (times[found] <= middles[: len(found)] + 0.002).all()
    assert (times[found] + 1 / rate >= middles[: len(found)] - 0.002).all()
    assert len(found) >= COUNT - 1


def test_time_counts_from_the_first_sample_of_the_sound(tmp_path):
    """A film whose sound starts 0.2 s after its pictures: those before are heard by nobody."""
    path = films.encode(
        tmp_path / "a.mkv", films.numbered(COUNT), TIMES, films.tone(1.8), sound_start=0.2
    )
    assert shown(path) == list(range(5, COUNT))


def test_pictures_that_begin_late_leave_places_out(tmp_path):
    path = films.encode(tmp_path / "a.mkv", films.numbered(20), TIMES[:20] + 1.0, films.tone(2))
    found = list(frames.pictures(path, frames.sound_start(path)))
    assert [one.number for one in found] == list(range(25, 45))
    assert films.number(found[0]) == 0


def test_what_cannot_be_used_is_named_with_a_reason(tmp_path):
    pictures = films.numbered(COUNT)

    def reason(path) -> str:
        with pytest.raises(frames.FilmError) as refused:
            list(frames.pictures(path, frames.sound_start(path)))
        assert str(path) in str(refused.value)
        return refused.value.reason

    assert reason(films.encode(tmp_path / "mute.mkv", pictures, TIMES, None)) == "no sound"
    (tmp_path / "text.mp4").write_text("no film" * 100)
    assert reason(tmp_path / "text.mp4").startswith("unreadable (its format is not known")
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "empty (0 bytes)"
    assert reason(tmp_path / "none.mp4") == "missing file"
    assert reason(tmp_path).startswith("unreadable")
    whole = films.encode(tmp_path / "whole.mkv", pictures, TIMES, films.tone(2)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    assert reason(tmp_path / "cut.mkv").startswith("cut off (")
    noise = np.random.default_rng(0).integers(0, 255, (COUNT, 96, 128), np.uint8)
    options = {"movflags": "faststart"}
    for name, kind in {"front": options, "back": {}}.items():
        made = films.encode(
            *(tmp_path / f"{name}.mp4", noise, TIMES, films.tone(2)),
            codec="libx264",
            sound_codec="aac",
            options=kind,
        ).read_bytes()
        (tmp_path / f"{name}.mp4").write_bytes(made[: len(made) // 2])
    assert reason(tmp_path / "back.mp4").startswith("unreadable")
    assert reason(tmp_path / "front.mp4").startswith(("cut off", "damaged"))


def test_films_of_phones_are_turned_upright(tmp_path):
    """A film that is stored lying, with a matrix in its header that turns it by 90 degrees."""
    pictures = np.zeros((COUNT, 48, 64), np.uint8)
    pictures[:, :, :32] = 200
    path = films.encode(
        *(tmp_path / "a.mp4", pictures, TIMES, films.tone(2)), codec="libx264", sound_codec="aac"
    )
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    one = 1 << 16
    clockwise = [0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30]
    data[place : place + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in clockwise)
    path.write_bytes(bytes(data))
    first = next(frames.pictures(path, 0.0))
    grey = first.grey()[0]
    assert grey.shape == (64, 48)
    assert grey[:24].min() > 150 > 50 > grey[40:].max()
    rgb = np.asarray(first.rgb())
    assert rgb.shape == (64, 48, 3)
    assert np.abs(rgb.mean(2) - grey).max() < 5


def face(x: float, y: float, size: float = 40.0, **more) -> finding.Face:
    return finding.Face((float(x), float(y), size, size), **more)


def test_tracks_follow_overlap_and_end_with_the_sight_or_the_shot():
    tracker = tracking.Tracker(every=5)
    for number in range(0, 100, 5):
        left = [face(10 + number / 5, 10)] if number < 60 else []
        tracker.add(number, [face(200 - number / 5, 12), *left])
    one, other = tracker.finish(100)
    assert (one.first, one.last, other.first, other.last) == (0, 56, 0, 100)
    np.testing.assert_allclose(one.boxes[:56, 0], 10 + np.arange(56) / 5, atol=1e-9)
    assert one.seen.sum() == 12
    np.testing.assert_array_equal(np.flatnonzero(other.seen), np.arange(0, 100, 5))


def test_a_short_miss_is_bridged_and_a_long_one_is_not():
    tracker = tracking.Tracker(every=5)
    for number in [*range(0, 20, 5), *range(40, 60, 5), *range(100, 120, 5)]:
        tracker.add(number, [face(number, 10)])
    first, second = tracker.finish(120)
    assert (first.first, first.last, second.first, second.last) == (0, 56, 100, 120)
    assert first.boxes[30, 0] == pytest.approx(30)


def test_a_cut_ends_all_tracks():
    tracker, rng = tracking.Tracker(every=1), np.random.default_rng(0)
    shots = [rng.integers(0, 255, (12, 16), np.uint8) for _ in range(2)]
    for number in range(40):
        noisy = np.clip(shots[number // 20] + rng.normal(0, 3, (12, 16)), 0, 255)
        if tracker.is_cut(noisy.astype(np.uint8)):
            tracker.cut(number)
        tracker.add(number, [face(10, 10)])
    assert [(one.first, one.last) for one in tracker.finish(40)] == [(0, 20), (20, 40)]


def test_persons_of_a_table_are_followed_by_name():
    tracker = tracking.Tracker(every=1)
    for number in range(10):
        x = 50 * number  # too far for any overlap
        tracker.add(number, [face(x, 0, person="b"), face(x, 5, person="a")])
    tracks = tracker.finish(10)
    assert [(len(one), one.person) for one in tracks] == [(10, "b"), (10, "a")]


def track(boxes=None, landmarks=None, count=20) -> tracking.Track:
    if boxes is None:
        boxes = np.tile([0.0, 0.0, 1.0, 1.0], (count, 1))
    return tracking.Track(0, np.asarray(boxes, float), landmarks, np.ones(len(boxes), bool))


def test_landmarks_are_aligned_to_the_mean_face():
    """68 points of a face that is turned, scaled and shifted: the crop turns, scales and shifts."""
    rng = np.random.default_rng(1)
    mean = rng.uniform(0, 256, 68) + 1j * rng.uniform(0, 256, 68)
    mean[[33, 36, 39, 42, 45]] = 129 + 137j, 92.5 + 94.5j, 113 + 95j, 145.5 + 94.5j, 166.5 + 93.5j
    turn = 1.7 * np.exp(0.3j)
    there = turn * mean + (40 - 30j)
    points = np.tile(np.stack([there.real, there.imag], 1), (20, 1, 1))
    views = crops.mouth_views(track(landmarks=points))
    np.testing.assert_allclose(views.steps, turn)
    np.testing.assert_allclose(views.centres, there[48:68].mean())


def test_five_landmarks_a_box_and_68_points_give_one_scale_and_place():
    """A mean face, seen by each of the three ways, within 6 % of the crop."""
    five = np.array([[102, 94.3], [156.4, 93.6], [128.3, 127.7], [107.2, 157.2], [152.2, 157.0]])
    marks = crops.mouth_views(track(landmarks=np.tile(five, (20, 1, 1))))
    boxes = crops.mouth_views(track(boxes=[finding.box_of(five)] * 20))
    assert abs(marks.steps[0]) == pytest.approx(1, abs=0.02)
    assert abs(boxes.steps[0]) == pytest.approx(1, abs=0.06)
    assert abs(marks.centres[0] - boxes.centres[0]) < 0.06 * 96
    assert abs(marks.centres[0] - (129.3 + 157.8j)) < 2


def test_a_crop_is_the_picture_scaled_and_turned():
    ramp = np.arange(200)[:, None] * 0.6 + np.arange(300) * 0.4
    picture = PIL.Image.fromarray(ramp.astype(np.float32))
    for step in (1.0, 0.7 * np.exp(0.5j), 2.4 * np.exp(-0.2j)):
        views = crops.Views(np.array([150 + 90j]), np.array([step + 0j]), 40)
        found = np.asarray(views.cut(picture, 0))
        u = np.arange(40) + 0.5 - 20
        places = 150 + 90j + step * (u + 1j * u[:, None])
        expected = (places.imag - 0.5) * 0.6 + (places.real - 0.5) * 0.4
        np.testing.assert_allclose(found, expected, atol=1e-2)


def test_outside_of_the_picture_its_edge_goes_on():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (60, 80, 3), np.uint8)
    views = crops.Views(np.array([70 + 50j]), np.array([1 + 0j]), 40)
    found = np.asarray(views.cut(PIL.Image.fromarray(pixels), 0))
    expected = np.pad(pixels, ((0, 10), (0, 10), (0, 0)), "edge")[30:70, 50:90]
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_crops_are_steady_where_boxes_are_not():
    rng = np.random.default_rng(0)
    boxes = np.tile([100.0, 50.0, 80.0, 80.0], (60, 1)) + rng.normal(0, 2, (60, 4))
    boxes[30] += 40  # one wrong sight
    centres = crops.mouth_views(track(boxes=boxes)).centres
    # Of one sight 1.3 px in x and y, 40 where it is wrong; a median's error is half of that.
    assert np.abs(centres - (140.8 + 114.96j)).max() < 4


def test_two_faces_in_one_crop_are_noticed():
    near = track(boxes=[[0, 0, 80, 80]] * 20)
    assert crops.intruded(near, [track(boxes=[[20, 60, 60, 60]] * 20)]) == 1
    assert crops.intruded(near, [track(boxes=[[200, 0, 80, 80]] * 20)]) == 0


def picture(number: int, seconds: float) -> frames.Picture:
    return frames.Picture(number, None, number, seconds, False)


def test_tables_in_their_usual_forms(tmp_path):
    plain = tmp_path / "plain.csv"
    plain.write_text("video,Frame,x,y,w,h\na/1.mp4,3,10,20,30,40\nb/1,3,1,2,3,4\nb/1,3,9,9,9,9\n")
    tables = face_tables.FaceTables(plain)
    assert tables.names_films
    [one] = tables.of("/somewhere/a/1.mp4").find(picture(3, 0.12))
    assert one.box == (10, 20, 30, 40)
    assert len(tables.of("/x/b/1.mkv").find(picture(3, 0.12))) == 2
    assert tables.of("/x/b/1.mkv").find(picture(4, 0.16)) == []
    assert len(tables.of("/x/c/1.mkv")) == 0
    # OpenFace: one file a film, blanks before names, frames from 1 but times from 0.
    names = [f"x_{k}" for k in range(68)] + [f"y_{k}" for k in range(68)]
    points = np.random.default_rng(0).uniform(100, 200, (68, 2))
    points[36:42], points[42:48] = (120, 100), (160, 100)
    values = ", ".join(f"{v:.3f}" for v in points.T.ravel())
    folder = tmp_path / "openface"
    folder.mkdir()
    (folder / "film.csv").write_text(
        f"frame, face_id, timestamp, confidence, success, {', '.join(names)}\n"
        f"1, 0, 0.000, 0.98, 1, {values}\n2, 0, 0.040, 0.1, 0, {values}\n"
    )
    table = face_tables.FaceTables(folder).of("clips/film.mp4")
    [one] = table.find(picture(0, 0.0))
    assert one.person == "0"
    np.testing.assert_allclose(one.landmarks, points, atol=1e-3)
    assert one.box[2] == pytest.approx(finding.BOX_PER_EYES * 40, rel=1e-4)
    assert table.find(picture(1, 0.04)) == []
    corners = tmp_path / "corners.csv"
    corners.write_text("time,x1,y1,x2,y2\n0.5,10,20,40,60\n")
    assert not face_tables.FaceTables(corners).names_films
    [one] = face_tables.FaceTables(corners).of("any.mp4").find(picture(12, 0.48))
    assert one.box == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frame,a\n1,2\n", "a box"),
        (
            ",".join(f"c{k}" for k in range(700)) + "\n",
            r"x_67, y_67 as OpenFace.* c19, \.\.\. \(700",
        ),
        ("frame,x,y,w,h\n1,2,3,4\n", "line 2: 4 fields"),
        ("frame,x,y,w,h\n1,2,3,x,4\n", "line 2: w is 'x'"),
        ("frame,x,y,w,h\n1,2,3,0,4\n", "line 2: the box is empty"),
    ],
)
def test_tables_that_cannot_be_read_say_where(tmp_path, text, says):
    path = tmp_path / "faces.csv"
    path.write_text(text)
    with pytest.raises(records.DataError, match=says):
        face_tables.FaceTables(path)
    with pytest.raises(records.DataError, match="no table or folder"):
        face_tables.FaceTables(tmp_path / "none.csv")


def points_68() -> np.ndarray:
    """A face with its eyes at (120, 100) and (160, 100) and its mouth around (140, 150)."""
    points = np.random.default_rng(0).uniform(100, 200, (68, 2))
    points[36:42], points[42:48] = (120, 100), (160, 100)
    points[48:68] = np.random.default_rng(1).uniform((131, 141), (149, 159), (20, 2))
    return points


def test_landmarks_frame_by_frame(tmp_path):
    """As users of face_alignment keep them: NPY and JSON of a film, in their usual nestings."""
    points = points_68()
    nothing = np.full((68, 2), np.nan)
    deep = np.concatenate([points, np.ones((68, 1))], 1)
    kept = {
        "a.npy": np.stack([points, nothing, points]),
        "b.npy": np.stack([points, nothing, points])[:, None],
        "c.npy": np.stack([deep, np.full((68, 3), np.nan), deep]),
        "d.json": [points.tolist(), None, [points.tolist()]],
        "e.json": {"2": points.tolist(), "0": [points.tolist()], "1": []},
    }
    for name, value in kept.items():
        path = tmp_path / name
        if name.endswith("npy"):
            np.save(path, value)
        else:
            path.write_text(json.dumps(value))
        assert not face_tables.FaceTables(path).names_films
        film = f"/clips/{path.stem}.mp4"
        for tables in (face_tables.FaceTables(path), face_tables.FaceTables(tmp_path)):
            assert tables.file_of(film) == path
            table = tables.of(film)
            assert [len(table.find(picture(k, k / 25))) for k in range(4)] == [1, 0, 1, 0]
            [one] = table.find(picture(2, 0.08))
            np.testing.assert_allclose(one.landmarks, points)
            assert one.box[2] == pytest.approx(finding.BOX_PER_EYES * 40)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("a.npy", np.zeros((3, 12, 2)), "frame 0: it holds no landmarks.* 1 x 12 x 2 numbers"),
        ("a.npy", np.zeros((3, 68, 2)), "frame 0: the eyes lie in one place"),
        ("a.npy", np.array([None, np.zeros((68, 2))], object), r"a\.npy cannot be read .*pickle"),
        ("a.json", [[[1, 2], [3]]], "frame 0: it holds no landmarks"),
        ("a.json", {"one": []}, r"a\.json cannot be read as landmarks.*'one'"),
        ("a.json", 3, r"a\.json cannot be read as landmarks"),
    ],
)
def test_landmarks_that_are_none_say_where(tmp_path, name, value, says):
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, value, allow_pickle=True)
    else:
        path.write_text(json.dumps(value))
    with pytest.raises(records.DataError, match=says) as said:
        face_tables.FaceTables(path)
    assert "\n" not in str(said.value)


def test_points_called_x0_are_no_corners_of_a_box(tmp_path):
    points = points_68()
    names = [f"{axis}{k}" for k in range(68) for axis in "xy"]
    values = ",".join(str(v) for v in points.ravel())
    path = tmp_path / "dlib.csv"
    path.write_text(f"frame,{','.join(names)}\n7,{values}\n")
    [one] = face_tables.FaceTables(path).of("any.mp4").find(picture(7, 0.28))
    np.testing.assert_allclose(one.landmarks, points)
    assert one.box == pytest.approx(finding.box_of(points))


def test_without_opencv_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    finding._cascade_file.cache_clear()
    with pytest.raises(Exception, match=r"pip install 'opencv-python-headless>=4.14,<5'.*--faces"):
        finding.Cascade()
    finding._cascade_file.cache_clear()


def lines_at(*when: float | int, by_time: bool = False) -> face_tables.FaceTable:
    found = face_tables.FaceTable(by_time)
    for k, one in enumerate(when):
        found.put(float(one), face(k, 0))
    return found


@pytest.mark.parametrize(
    ("rate", "by_frame", "by_time"),
    [(25, 8, 8), (50, 4, 8), (60, 8 * 25 / 60, 8), (12.5, 8, 4)],
)
def test_lines_are_apart_in_pictures_of_25_a_second(rate, by_frame, by_time):
    """One every 8 frames, and one every 0.32 s; a frame that is held is one picture."""
    assert lines_at(0, 8, 16, 40).at_rate(float(rate)).every == pytest.approx(by_frame)
    assert lines_at(0, 0.32, 0.64, by_time=True).at_rate(float(rate)).every == pytest.approx(
        by_time
    )
    assert lines_at(0, 1, 2).at_rate(float(rate)).every == 1


def test_a_line_of_a_frame_between_two_pictures_is_found_once():
    table = lines_at(0, 5, 9, 10).at_rate(50.0)
    found = [table.find(picture(k, k / 50)) for k in (0, 2, 4, 6, 8, 10, 10, 12)]
    assert [one[0].box[0] if one else None for one in found] == [
        *(0, None, None, 1, None, 3, 3, None)  # 9 and 10 are of one picture, which is held
    ]
    assert not lines_at(5).find(picture(6, 0.24))  # at 25 a second frames are pictures
    late = lines_at(3, 90).at_rate(50.0)  # the sound begins later: nobody asked before
    assert not late.find(picture(100, 2.0))
