"""`python -m separation.separate_video`: a voice and a film of each person in view."""

import types

import av
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from common import errors, workdir
from common.audio import io
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


def test_a_film_is_never_replaced_by_its_voice(tmp_path, run):
    """DIR is where the film lies, and one person in view has its name."""
    film = encode(tmp_path / "one.mp4", scene((drawing("one"), 60, 120)))
    before = film.read_bytes()
    csv = table(tmp_path / "faces.csv", boxes("one", 60, 120))
    with pytest.raises(errors.UserError, match="would be replaced by what is made of it"):
        separate_video.run(arguments(film, tmp_path, csv))
    assert film.read_bytes() == before


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
