"""A recording in the voice of a face: lengths, levels, who it is, what is refused; the command."""

import json

import numpy as np
import PIL.Image
import pytest

from common import errors
from common.audio import io
from generation import images, voice_changer
from tests import commands
from tests.generation import makers
from tests.generation import people as toy


@pytest.fixture(scope="module")
def changer(tmp_path_factory):
    return makers.make_changer(tmp_path_factory.mktemp("changer"))


def face(person: int) -> np.ndarray:
    return toy.Flags()(toy.NAMES[person], 0)


def test_it_is_as_long_and_as_loud_as_its_source(changer):
    source = 0.2 * toy.voice(0, 0.77, 0)  # no peak is cut
    said = changer(source, face=face(1))
    assert (said.shape, said.dtype) == (source.shape, np.float32)
    assert np.sqrt(np.mean(said**2)) == pytest.approx(np.sqrt(np.mean(source**2)), rel=0.02)
    np.testing.assert_array_equal(said, changer(source, face=face(1)))
    soft = changer(0.1 * source, face=face(1))
    np.testing.assert_allclose(10 * soft, said, atol=2e-3)
    assert np.abs(said - changer(source, face=face(1), seed=1)).max() > 1e-3


def test_faces_and_voices_are_of_one_space_and_matter(changer):
    source = toy.voice(0, 0.6, 0)
    one, other = changer.seen(face(0)), changer.seen(face(5))
    heard = changer.heard(toy.voice(3, 0.6, 1))
    assert one.shape == heard.shape
    np.testing.assert_allclose([np.linalg.norm(x) for x in (one, other, heard)], 1, rtol=1e-5)
    said = [changer.say(source, who) for who in (one, other, heard)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(said[a] - said[b]).max() > 1e-3
    np.testing.assert_array_equal(changer(source, voice=toy.voice(3, 0.6, 1)), said[2])
    with pytest.raises(ValueError, match="either a face or a voice"):
        changer(source)


def test_samples_of_one_channel_are_that_of_a_network_of_the_second(tmp_path):
    """And a voice may be longer than the words."""
    changes = {**makers.REVOICE, "data.channel": "1"}
    network = voice_changer.VoiceChanger(makers.untrained(tmp_path, changes))
    source, voice = toy.voice(0, 0.6, 0), toy.voice(3, 0.7, 1)
    said = network(source, voice=voice)
    both, stereo = (np.stack([np.zeros_like(x), x], axis=1) for x in (source, voice))
    np.testing.assert_array_equal(network(both, voice=stereo), said)
    assert said.shape == source.shape


def test_long_recordings_are_said_piece_by_piece(changer, monkeypatch):
    """Pieces meet where they should: with a network that repeats what it is given, nothing
    changes."""
    monkeypatch.setattr(voice_changer, "_PIECE_SECONDS", 0.5)
    source, who = toy.voice(2, 1.7, 0), changer.seen(face(0))
    assert changer.say(source, who).shape == source.shape
    pieces = []

    def repeat(audio, who, middle, key):
        pieces.append(len(audio))
        return audio.copy()

    monkeypatch.setattr(changer, "_piece", repeat)
    np.testing.assert_allclose(changer.say(source, who), source, atol=1e-6)
    assert len(pieces) == 4
    assert max(pieces) <= 0.6 * toy.RATE_HZ


def test_what_cannot_be_said_is_named(changer, tmp_path):
    who = changer.seen(face(0))
    with pytest.raises(io.AudioError, match="none: is silent"):
        changer.say(np.zeros(16000, np.float32), who, name="none")
    with pytest.raises(io.AudioError, match=r"0\.10 s are too short"):
        changer.say(toy.voice(0, 0.1, 0), who)
    with pytest.raises(images.ImageError, match="no such picture"):
        changer.seen(tmp_path / "nobody.png")
    sounds = makers.untrained(tmp_path, makers.SOUNDS)
    with pytest.raises(errors.UserError, match=r"'face2voice'.* leave --say out"):
        voice_changer.VoiceChanger(sounds)


@pytest.mark.slow
def test_the_command(tmp_path):
    run, picture = tmp_path / "run", tmp_path / "a.png"
    said = commands.run(
        "generation.main", "--config=configs/generation/revoice.py:debug", f"--workdir={run}"
    )
    assert "figures say nothing about people" in said.stdout
    assert f"--workdir={run} --face=face.jpg --say=a.wav --out=voice.wav" in said.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    dev = [line for line in lines if line["split"] == "dev"][-1]
    assert {"face_error_db", "voice_error_db", "other_face_error_db"} <= set(dev)
    PIL.Image.fromarray(face(0)).resize((64, 64)).save(picture)
    sources = [tmp_path / f"{i}.wav" for i in range(3)]
    for i in (0, 2):
        io.write_wav(sources[i], toy.voice(i, 0.8, 0), toy.RATE_HZ)
    io.write_wav(sources[1], np.zeros(20000, np.float32), 8000)
    out, base = tmp_path / "said.wav", ("generation.sample", f"--workdir={run}")
    by_face = (f"--face={picture}", f"--out={out}")
    commands.run(*base, *by_face, f"--say={sources[0]}")
    assert io.probe(out).num_samples == int(0.8 * toy.RATE_HZ)
    some = [f"--say={source}" for source in (*sources, tmp_path / "none.wav")]
    found = commands.run(*base, *by_face, *some, code=1)
    assert found.stdout.split() == [str(tmp_path / f"said-{i}.wav") for i in (1, 3)]
    assert "1.wav: is silent" in found.stderr
    assert "none.wav" in found.stderr
    assert "2 of 4 recordings were said" in found.stderr
    commands.run(*base, f"--voice={sources[2]}", f"--out={out}", f"--say={sources[0]}")

    def refused(*options):
        return commands.message(*base, *options)

    assert "--say=a.wav" in refused(*by_face)
    png = tmp_path / "a.png"
    assert "--say=a.wav" in refused(f"--voice={sources[0]}", f"--out={png}")
    assert "goes with --face" in refused(*by_face, some[0], "--n=2")
    assert "goes with --face" in refused(some[0], f"--out={out}")
    assert "would be replaced" in refused(f"--face={picture}", some[0], f"--out={sources[0]}")
    assert "ends in .wav" in refused(f"--face={picture}", some[0], f"--out={png}")
    assert "no such picture" in refused(f"--face={tmp_path / 'b.png'}", some[0], f"--out={out}")
