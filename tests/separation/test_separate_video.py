"""`python -m separation.separate_video`: a voice and a film of each person in view."""

import contextlib
import pathlib
import resource
import types

import av
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from common import errors, workdir
from common.audio import io
from common.data import stored_faces
from common.video import frames, muxing
from configs.separation import audiovisual_quickstart, visualvoice
from separation import separate_video
from tests import films
from tests.separation.test_prepare_video import FRAMES, boxes, drawing, encode, scene, table
from tests.separation.test_watching import GRAIN


class Task:
    """Gives the mixture as loud as the mouth is bright, where it is seen."""

    def __init__(self):
        self.config = workdir.freeze(audiovisual_quickstart.get_config("debug"))

    def extracted(self, variables, batch, mixture, lengths, name):
        shown = jnp.mean(batch["mouth"].astype(jnp.float32), axis=(2, 3)) * batch["mouth_seen"]
        return mixture * jnp.repeat(shown, GRAIN, axis=1) / 255


@pytest.fixture
def run(command, monkeypatch, capsys):
    found = types.SimpleNamespace(task=Task(), variables={})
    monkeypatch.setattr(separate_video.trained, "load", lambda *_, **__: found)

    def call(*options):
        words = ["separate_video", "--workdir=none", *map(str, options)]
        monkeypatch.setattr("sys.argv", words)
        code = 0
        try:
            separate_video.main()
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr()

    return call


def test_everybody_in_view_gets_a_voice_and_a_film(tmp_path, run):
    """Two people, a film without a face, a file that is none: the others go on."""
    one, two = drawing("one"), drawing("two")
    folder = tmp_path / "in"
    folder.mkdir()
    film = encode(folder / "pair.mp4", scene((one, 60, 120), (two, 300, 110)))
    encode(folder / "empty.mp4", scene((one, 60, 120)))
    (folder / "text.mp4").write_text("no film")
    lines = boxes("pair", 60, 120) + boxes("pair", 300, 110)
    csv = table(tmp_path / "faces.csv", [*lines, "other,0,1,1,9,9"])
    out = tmp_path / "out"
    code, said = run("--input", folder, "--out", out, "--faces", csv)
    assert code == 1
    assert "2 people in 1 of 3 films" in said.out
    for word in ("empty", "text"):
        assert word in said.err
    assert (out / "sheet-01.png").is_file()
    assert (out / "rejected.tsv").read_text().count("\n") == 3
    mixture = io.load_audio(film, sample_rate_hz=16_000)
    for number, mouth in ((1, one), (2, two)):
        voice, rate = soundfile.read(out / f"pair~{number}.wav", dtype="float32")
        assert (len(voice), rate) == (len(mixture), 16_000)
        loud = np.repeat(mouth.mean(axis=(1, 2)) / 255, GRAIN)[: len(voice)]
        np.testing.assert_allclose(voice[: len(loud)], mixture[: len(loud)] * loud, atol=0.004)
        with av.open(str(out / f"pair~{number}.mp4")) as made, av.open(str(film)) as source:
            pictures = [bytes(p) for p in made.demux(made.streams.video[0]) if p.size]
            assert pictures == [bytes(p) for p in source.demux(source.streams.video[0]) if p.size]
        heard = io.load_audio(out / f"pair~{number}.mp4", sample_rate_hz=16_000)
        both = min(len(heard), len(voice))
        assert abs(len(heard) - len(voice)) < 2048  # AAC has frames of 1024
        assert np.corrcoef(heard[:both], voice[:both])[0, 1] > 0.95


def test_all_that_was_asked_for_is_there(tmp_path, run):
    film = encode(tmp_path / "one.mp4", scene((drawing("one"), 60, 120)))
    csv = table(tmp_path / "faces.csv", boxes("one", 60, 120))
    code, said = run("--input", film, "--out", tmp_path / "out", "--faces", csv)
    assert code == 0
    assert not said.err.count("Not separated")
    assert {path.name for path in (tmp_path / "out").glob("one*")} == {"one.wav", "one.mp4"}
    other = table(tmp_path / "other.csv", boxes("one", 60, 120))
    with pytest.raises(errors.UserError, match="prepared in another way; what differs: finder"):
        separate_video.run(arguments(film, tmp_path / "out", other))
    code, said = run("--input", tmp_path / "nothing", "--out", tmp_path / "empty")
    assert code == 1
    assert "nothing" in said.err


def test_a_film_with_too_few_people_is_named_and_the_others_go_on(tmp_path, run):
    one = drawing("one")
    encode(tmp_path / "in" / "a.mp4", scene((one, 60, 120)))
    encode(tmp_path / "in" / "b.mp4", scene((one, 60, 120), (drawing("two"), 300, 110)))
    lines = boxes("a", 60, 120) + boxes("b", 60, 120) + boxes("b", 300, 110)
    config = visualvoice.get_config("debug")
    config.model.visualvoice.context = True
    separate_video.trained.load().task.config = workdir.freeze(config)
    out = tmp_path / "out"
    csv = table(tmp_path / "faces.csv", lines)
    code, said = run("--input", tmp_path / "in", "--out", out, "--faces", csv)
    assert code == 1
    assert "2 people in 1 of 2 films" in said.out
    assert "1 number of people: a" in said.err
    assert "separates two people, and 1 are in view" in (out / "rejected.tsv").read_text()
    assert {path.name for path in out.glob("*.wav")} == {"b~1.wav", "b~2.wav"}


def arguments(film, out, faces):
    words = ["--workdir=none", f"--input={film}", f"--out={out}", f"--faces={faces}"]
    return separate_video._parser().parse_args(words)


def test_a_film_is_never_replaced_by_a_voice(tmp_path, run):
    """DIR is where a film lies, and one person in view has its name: the others go on."""
    one, out = drawing("one"), tmp_path / "out"
    film = encode(out / "one.mp4", scene((one, 60, 120)))
    other = encode(tmp_path / "in" / "two.mp4", scene((one, 60, 120)))
    before = film.read_bytes()
    csv = table(tmp_path / "faces.csv", boxes("one", 60, 120) + boxes("two", 60, 120))
    code, said = run("--input", film, other, "--out", out, "--faces", csv)
    assert code == 1
    assert film.read_bytes() == before
    assert "1 people in 1 of 2 films" in said.out
    assert "1 output in the place of a film: one" in said.err
    [line] = (out / "rejected.tsv").read_text().splitlines()[1:]
    assert line.startswith("one\t")
    assert "would be replaced by what is made of it" in line
    assert {path.name for path in out.glob("*.wav")} == {"two.wav"}
    # Nor is another one that was asked for.
    in_the_way = encode(out / "two~1.mp4", scene((one, 60, 120)))
    before = in_the_way.read_bytes()
    pair = encode(tmp_path / "b" / "two.mp4", scene((one, 60, 120), (drawing("two"), 300, 110)))
    lines = boxes("two", 60, 120) + boxes("two", 300, 110) + boxes("two~1", 60, 120)
    csv = table(tmp_path / "b" / "faces.csv", lines)
    (out / "films.json").unlink()
    code, said = run("--input", pair, in_the_way, "--out", out, "--faces", csv)
    assert in_the_way.read_bytes() == before
    assert "1 output in the place of a film: two" in said.err
    assert "1 people in 1 of 2 films" in said.out


def test_a_network_of_another_rate_is_said_before_any_work(tmp_path, run):
    config = audiovisual_quickstart.get_config("debug")
    config.data.sample_rate_hz = 8000
    separate_video.trained.load().task.config = workdir.freeze(config)
    film = encode(tmp_path / "one.mp4", scene((drawing("one"), 60, 120)))
    csv = table(tmp_path / "faces.csv", boxes("one", 60, 120))
    with pytest.raises(errors.UserError, match=r"none is of 8000 Hz, .*sample_rate_hz=16000"):
        separate_video.run(arguments(film, tmp_path / "out", csv))
    assert not (tmp_path / "out").exists()


def test_what_was_not_taken_is_written_where_the_command_ends_early(tmp_path, run, monkeypatch):
    encode(tmp_path / "in" / "a.mp4", scene((drawing("one"), 60, 120)), sound=None)
    encode(tmp_path / "in" / "b.mp4", scene((drawing("one"), 60, 120)))
    csv = table(tmp_path / "faces.csv", boxes("a", 60, 120) + boxes("b", 60, 120))

    def full(*_):
        raise errors.UserError("b.wav cannot be written (No space left on device).")

    monkeypatch.setattr(separate_video, "separate", full)
    with pytest.raises(errors.UserError, match="No space left"):
        separate_video.run(arguments(tmp_path / "in", tmp_path / "out", csv))
    [line] = (tmp_path / "out" / "rejected.tsv").read_text().splitlines()[1:]
    assert line.startswith("a\t")
    assert "no sound" in line


@contextlib.contextmanager
def files_at_once(more: int):
    """Lets this process open so many files beside those that are open."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in pathlib.Path("/proc/self/fd").iterdir()}
    free = [number for number in range(len(taken) + more + 1) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[more - 1] + 1, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="no list of open files")
def test_a_film_of_more_shots_than_files_may_be_open(tmp_path, run):
    """Another person every 5 pictures, and then another one all the time."""
    tracks, each = 40, 5
    pictures = scene((drawing("one", tracks * each), 60, 120), (drawing("two", 200), 300, 110))
    film = encode(tmp_path / "shots.mp4", pictures)
    lines = [f"{line},{k // each}" for k, line in enumerate(boxes("shots", 60, 120, 200, 1))]
    lines += [f"{line},all" for line in boxes("shots", 300, 110, 200, 1)]
    csv = tmp_path / "faces.csv"
    csv.write_text("\n".join(["film,frame,x,y,w,h,person", *lines]) + "\n")
    out = tmp_path / "out"
    options = ("--faces", csv, "--min_seconds", 0.2, "--portraits", 1)
    with files_at_once(30):
        code, said = run("--input", film, "--out", out, *options)
    assert code == 0, said.err
    assert f"{tracks + 1} people in 1 of 1 films" in said.out
    lengths = {soundfile.info(path).frames for path in out.glob("*.wav")}
    assert len(list(out.glob("*.wav"))) == tracks + 1
    assert lengths == {200 * 640}
    counts = sorted(stored_faces.Mouths(str(path)).shape[0] for path in out.glob("mouths/*"))
    assert counts == [each] * tracks + [tracks * each]


def test_the_sound_of_a_film_begins_where_it_did(tmp_path):
    """The pictures are there from 0.4 s before the first sample on."""
    times = np.arange(FRAMES) / 25
    path = films.encode(
        tmp_path / "late.mkv", films.numbered(FRAMES), times, films.tone(2), sound_start=0.4
    )
    voice = np.zeros(24_000, np.float32)
    voice[8_000:] = 0.3 * np.sin(np.arange(16_000) / 4)
    soundfile.write(tmp_path / "voice.wav", voice, 16_000)
    muxing.with_sound(path, tmp_path / "voice.wav", tmp_path / "out.mp4", zero=0.4)
    with av.open(str(tmp_path / "out.mp4")) as made:
        audio = made.streams.audio[0]
        heard = [(f.pts * f.time_base, f.to_ndarray()[0]) for f in made.decode(audio)]
    loud = next(float(time) for time, block in heard if np.abs(block).max() > 0.1)
    assert loud == pytest.approx(0.4 + 0.5, abs=0.07)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("name", "settings", "codec"),
    [
        # Pictures that are decoded in another order than shown, in a container without that order.
        ("a.mkv", {"codec": "libx264", "coding": {"bf": "3", "b_strategy": "0"}}, "h264"),
        ("a.mp4", {"codec": "libsvtav1", "coding": {"preset": "12"}}, "libdav1d"),  # no encoder
        # What does not stand in an MP4 is encoded again.
        ("a.avi", {"codec": "huffyuv", "pix_fmt": "yuv422p", "sound_codec": "pcm_s16le"}, "h264"),
    ],
)
def test_odd_codecs_keep_their_pictures_in_time(tmp_path, name, settings, codec):
    settings = {"sound_codec": "aac", **settings}
    numbered, times = films.numbered(FRAMES), np.arange(FRAMES) / 25
    try:
        path = films.encode(tmp_path / name, numbered, times, films.tone(FRAMES / 25), **settings)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no {settings['codec']} in this FFmpeg")
    soundfile.write(tmp_path / "voice.wav", films.tone(FRAMES / 25), 16_000)
    zero = frames.sound_start(path)
    muxing.with_sound(path, tmp_path / "voice.wav", tmp_path / "out" / "a.mp4", zero=zero)
    made = tmp_path / "out" / "a.mp4"
    with av.open(str(made)) as container:
        assert container.streams.video[0].codec_context.name == codec
    shown = [films.number(one) for one in frames.pictures(made, frames.sound_start(made))]
    before = [films.number(one) for one in frames.pictures(path, zero)]
    assert len(set(before)) == FRAMES
    assert shown == before


def test_pictures_that_nothing_takes_are_one_message(tmp_path, monkeypatch):
    path = films.encode(tmp_path / "a.mkv", films.numbered(9), np.arange(9) / 25, films.tone(1))
    soundfile.write(tmp_path / "voice.wav", films.tone(1), 16_000)

    def refuse(*_):
        raise ValueError("no encoder")
        yield

    monkeypatch.setattr(muxing, "_copied", refuse)
    with pytest.raises(frames.FilmError, match=r"a\.mkv: cannot be written as an MP4 \(no encod"):
        muxing.with_sound(path, tmp_path / "voice.wav", tmp_path / "out.mp4", zero=0.0)
    assert not (tmp_path / "out.mp4").exists()
