"""Streams that see: the same as the network on the whole, late pictures, and the live command."""

import contextlib
import functools

import jax
import numpy as np
import pytest

from common import errors
from common.audio import io
from common.data import prepared_films, stored_faces
from common.video import crops, finding, following, frames, tracking
from configs.separation import audiovisual_quickstart
from separation import bench, enhancer, films, live, sight
from tests import films as films_made
from tests.separation import test_enhancer
from tests.separation.test_prepare_video import drawing
from tests.separation.test_prepare_video import scene as scene_of

RATE_HZ = test_enhancer.RATE_HZ
SECONDS = 1.3
FRAMES = 33  # of so many seconds


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    changes = {"model.causal.num_layers": 2, "sight.face": True, "sight.pictures": 2}
    folder = tmp_path_factory.mktemp("seen")
    return test_enhancer.make(folder, audiovisual_quickstart, **changes)


@pytest.fixture(scope="module")
def scene():
    """(mixture, mouths, portraits)"""
    rng = np.random.default_rng(1)
    mouths = rng.integers(0, 255, (FRAMES, *films.MOUTH), np.uint8)
    return (
        test_enhancer.noise(SECONDS),
        mouths,
        rng.integers(0, 255, (2, *films.FACE), np.uint8),
    )


def whole(network, mixture, mouths, there, face=None):
    """What the network makes of all at once, with the null cue."""
    faces = np.zeros((1, 2, *films.FACE), np.uint8) if face is None else face[None]
    shown = sight.Seen(mouths[None], there[None], faces, np.full((1, 2), face is not None))
    lengths = np.array([len(mixture)])
    none = np.zeros((1, RATE_HZ), np.float32), np.zeros(1, np.int32)
    apply = jax.jit(functools.partial(network._net.apply, train=False))
    found, _ = apply(
        *(network.variables, mixture[None], lengths, *none), mask=np.ones(1, bool), seen=shown
    )
    return np.asarray(found)[0]


@pytest.mark.parametrize("hop", [100, 640, 5000])
def test_a_stream_that_sees_equals_the_network_on_the_whole(network, scene, hop):
    """Each picture is shown when its middle is over; some are not in view; more than lips."""
    mixture, mouths, face = scene
    there = np.arange(FRAMES) % 5 > 0
    expected = whole(network, mixture, mouths, there, face)
    stream, shown, parts = network.stream(face=face), 0, []
    for first in range(0, len(mixture), hop):
        while shown <= min(sight.latest_picture(first + hop, RATE_HZ), FRAMES - 1):
            stream.show(mouths[shown] if there[shown] else None)
            shown += 1
        parts.append(stream(mixture[first : first + hop]))
    found = np.concatenate([*parts, stream.flush()])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for other in (
        whole(network, mixture, mouths, there),
        whole(network, mixture, mouths, there & False, face),
        whole(network, mixture, mouths[::-1], there, face),
    ):
        assert np.abs(expected - other).max() > 1e-4


def test_late_pictures_serve_what_comes_after_them(network, scene):
    mixture, mouths, _ = scene
    half = 16 * 640
    stream = network.stream()
    parts = [stream(mixture[:half])]  # nothing seen yet
    for mouth in mouths:
        stream.show(mouth)
    found = np.concatenate([*parts, stream(mixture[half:]), stream.flush()])
    blind = whole(network, mixture, mouths, np.zeros(FRAMES, bool))
    late = stream.delay_samples + network.extractor.hop_size
    np.testing.assert_allclose(found[: half - late], blind[: half - late], atol=1e-5)
    assert np.abs(found[half:] - blind[half:]).max() > 1e-4


def test_what_cannot_be_shown_is_refused(network, scene, tmp_path):
    with pytest.raises(errors.UserError, match="is 96x96 uint8, grey, not 88x88 uint8"):
        network.stream().show(np.zeros((88, 88), np.uint8))
    blind = test_enhancer.make(tmp_path, **{"model.causal.num_layers": 1})
    with pytest.raises(errors.UserError, match="sees no lips"):
        blind.stream().show(None)
    with pytest.raises(errors.UserError, match="sees no faces"):
        blind.stream(face=scene[2])


def test_somebody_of_a_prepared_film_is_heard_and_seen_live(
    network, scene, tmp_path, monkeypatch, capsys, command
):
    mixture, mouths, face = scene
    lead = test_enhancer.noise(0.5, seed=5)  # before the person is in view
    io.write_wav(tmp_path / "film.wav", np.concatenate([lead, mixture]), RATE_HZ)
    with stored_faces.MouthWriter(tmp_path / "one.h5") as writer:
        for mouth in mouths:
            writer.add(mouth)
    stored_faces.write_portraits(tmp_path / "one.png", face)
    columns = ("id", "audio", "offset", "duration", "mouth", "face", "portraits", "film")
    row = ("film~1", "film.wav", 0.5, SECONDS, "one.h5", "one.png", 2, "film.mp4")
    lines = ["\t".join(map(str, line)) for line in (columns, row)]
    (tmp_path / prepared_films.MANIFEST).write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(enhancer, "load", lambda *_, **__: network)

    def call(*options):
        words = ["live", "--workdir=x", f"--prepared={tmp_path}", *options]
        monkeypatch.setattr("sys.argv", words)
        live.main()

    out = tmp_path / "voice.wav"
    call("--person=film~1", f"--output={out}")
    assert "real-time factor" in capsys.readouterr().out
    found = io.load_audio(out, sample_rate_hz=RATE_HZ)
    heard = io.load_audio(
        tmp_path / "film.wav", sample_rate_hz=RATE_HZ, start=0.5, duration=SECONDS
    )
    expected = whole(network, heard, mouths, np.ones(FRAMES, bool), face)
    np.testing.assert_allclose(found, expected, atol=5e-5)  # 16 bits
    for options, message in (
        (("--person=bob", f"--output={out}"), "nobody in .* is called that; there are film~1"),
        (("--person=film~1",), "--output: with --person give a WAV file"),
        ((f"--output={out}",), "--prepared and --person go together"),
        (("--person=film~1", "--input=a.wav", f"--output={out}"), "the sound is that of the film"),
        (("--person=film~1", f"--output={tmp_path / 'film.wav'}"), "would be replaced"),
    ):
        with pytest.raises(SystemExit, match=message):
            call(*options)
    # Who is not looked at is not read; what is looked at has to be readable.
    changes = {"model.causal.num_layers": 1, "sight.face": True, "sight.lips": False}
    of_faces = test_enhancer.make(tmp_path / "run", audiovisual_quickstart, **changes)
    blind = test_enhancer.make(tmp_path / "run", **{"model.causal.num_layers": 1})
    (tmp_path / "one.h5").write_bytes(b"no pictures")
    for other, message in (
        (of_faces, ""),
        (blind, "--person: this network sees nothing"),
        (network, r"film~1: its pictures cannot be read \(.*one.h5 is no HDF5 file"),
    ):
        monkeypatch.setattr(enhancer, "load", lambda *_, other=other, **__: other)
        ended = pytest.raises(SystemExit, match=message) if message else contextlib.nullcontext()
        with ended:
            call("--person=film~1", f"--output={out}")


BOX = (74.0, 60.0, 139.0, 139.0)


class Finder:
    """One face in its place, in place of OpenCV."""

    step = every = 5

    def find(self, picture):
        return [finding.Face(BOX)]


def test_a_film_is_heard_and_seen_picture_by_picture(
    network, tmp_path, monkeypatch, capsys, command
):
    """In place of a camera: the network on the whole with the mouths of that box."""
    monkeypatch.setattr(enhancer, "load", lambda *_, **__: network)
    monkeypatch.setattr(live.finding, "Cascade", Finder)
    pictures = scene_of((drawing("one", FRAMES), 96, 130))
    film = films_made.encode(
        *(tmp_path / "film.mkv", pictures, np.arange(FRAMES) / 25, test_enhancer.noise(SECONDS))
    )

    def call(*options):
        monkeypatch.setattr("sys.argv", ["live", "--workdir=x", *map(str, options)])
        live.main()

    out = tmp_path / "voice.wav"
    call(f"--video={film}", f"--output={out}")
    said = capsys.readouterr().out
    assert f"Lips in {FRAMES} of {FRAMES} pictures" in said
    boxes = np.tile(BOX, (FRAMES, 1))
    track = tracking.Track(0, boxes, None, np.ones(FRAMES, bool))
    shown = list(frames.pictures(film, 0.0))
    views = crops.mouth_views(track)
    mouths = [crops.as_array(views.cut(one.rgb(), 0).convert("L")) for one in shown]
    face = crops.as_array(crops.face_views(track).cut(shown[0].rgb(), 0))
    heard = io.load_audio(film, sample_rate_hz=RATE_HZ)
    faces = sight.Seen(
        np.stack(mouths)[None],
        np.ones((1, FRAMES), bool),
        np.stack([face, face])[None],
        np.array([[True, False]]),
    )
    none = np.zeros((1, RATE_HZ), np.float32), np.zeros(1, np.int32)
    apply = jax.jit(functools.partial(network._net.apply, train=False))
    expected, _ = apply(
        *(network.variables, heard[None], np.array([len(heard)]), *none),
        mask=np.ones(1, bool),
        seen=faces,
    )
    found = io.load_audio(out, sample_rate_hz=RATE_HZ)
    np.testing.assert_allclose(found, np.asarray(expected)[0], atol=5e-5)  # 16 bits
    kept = film.read_bytes()
    for options, message in (
        ((f"--video={film}",), "--output: with --video give a WAV file"),
        ((f"--video={film}", "--camera=0", f"--output={out}"), "--video is in place of a --camera"),
        ((f"--video={film}", "--input=a.wav", f"--output={out}"), "the sound is that of the film"),
        (("--camera=0", "--input=a.wav", f"--output={out}"), "--camera goes with a microphone"),
        ((f"--video={tmp_path / 'no.mp4'}", f"--output={out}"), r"no\.mp4: missing file"),
    ):
        with pytest.raises(SystemExit, match=message):
            call(*options)
    monkeypatch.setattr(Finder, "find", lambda *_: [])
    with pytest.raises(SystemExit, match=r"film\.mkv: no face"):
        call(f"--video={film}", f"--output={out}")
    assert film.read_bytes() == kept


def test_a_camera_shows_its_newest_mouth_whenever_a_picture_is_due(network):
    class Newest(following.Camera):
        def __init__(self):
            self.asked = 0

        @property
        def mouth(self):
            self.asked += 1
            return np.full(films.MOUTH, self.asked, np.uint8)

    camera = Newest()
    hop = network.extractor.hop_size
    channel, sound = live.Channel(hop), test_enhancer.noise(0.5)
    sound = sound[: len(sound) // hop * hop]
    for first in range(0, len(sound), hop):
        channel.callback(sound[first : first + hop, None], np.zeros((hop, 1)), hop, None, None)
    live.run(network.stream(), channel, len(sound) / RATE_HZ, RATE_HZ, camera)
    assert camera.asked == sight.latest_picture(len(sound), RATE_HZ) + 1


def test_the_bench_shows_a_mouth_to_who_sees_lips(network, monkeypatch):
    """As often as a film would: 0.8 s, and the hops before that do not count."""
    shown, watched = [], network.watched

    def counted():
        found = watched()
        monkeypatch.setattr(found, "show", lambda mouth: shown.append(mouth.shape))
        return found

    monkeypatch.setattr(network, "watched", counted)
    lines = bench.measure(network, 0.8)
    assert lines[-1] == "with 25 pictures of a mouth a second"
    hops = round(0.8 / 0.016) + bench._WARM_HOPS
    hop_size = network.extractor.hop_size
    assert shown == [films.MOUTH] * (sight.latest_picture(hops * hop_size, RATE_HZ) + 1)
