"""`generation.live`: recordings in place of devices, devices, and none at all."""

import contextlib
import sys
import threading
import types
import webbrowser

import av
import numpy as np
import PIL.Image
import pytest

from common.audio import io
from generation import images, listening, live, maker
from tests import commands
from tests.generation import makers
from tests.generation import people as toy

RATE_HZ = toy.RATE_HZ


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return makers.make(tmp_path_factory.mktemp("network"))


@pytest.fixture
def call(network, command, monkeypatch, tmp_path):
    """Runs the command with this network; gives the picture."""
    monkeypatch.setattr(maker, "load", lambda *_, **__: network)

    def run(*options: object, name: str = "face.png") -> np.ndarray:
        out = tmp_path / name
        live.main(["--workdir=x", f"--out={out}", *map(str, options)])
        with PIL.Image.open(out) as image:
            return np.asarray(image)

    return run


def drawn(network, audio: np.ndarray, seed: int = 0) -> np.ndarray:
    """The picture of the face of all that is said in this."""
    heard = listening.heard(network, audio, "a.wav")
    return images.sheet([[network.drawn(heard[None], network.noise(seed, 1))[0]]])


def test_a_recording_is_heard_as_if_live(network, call, tmp_path, capsys):
    """At 8 kHz; the end is shorter than a step, and counts."""
    audio = np.concatenate([toy.voice(1, 2.0, 0), toy.voice(5, 1.3, 0)])
    io.write_wav(tmp_path / "ann.wav", audio, RATE_HZ)
    film = tmp_path / "film.mp4"
    given = f"--input={tmp_path / 'ann.wav'}", "--seed=3"
    found = call(*given, f"--film={film}")
    said = capsys.readouterr()
    assert said.out.split() == [str(tmp_path / "face.png"), str(film)]
    assert "3.0 s   voice   3.0 s" in said.err
    kept = io.load_audio(tmp_path / "ann.wav", sample_rate_hz=RATE_HZ)
    assert found.shape == (128, 128, 3)
    np.testing.assert_array_equal(found, drawn(network, kept, seed=3))
    with av.open(str(film)) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert len(frames) == 4 + 1  # a step each, and the last one for a second longer
    ends = [drawn(network, kept[: round(n * RATE_HZ)], seed=3) for n in (1.0, 3.3)]
    apart = [[np.abs(frame - end.astype(int)).mean() for end in ends] for frame in frames]
    assert np.argmin([apart[0], apart[3]], axis=1).tolist() == [0, 1]
    assert film.with_suffix(".gif").is_file()
    short = call(*given, "--seconds=2", "--every=0.5", name="short.png")
    np.testing.assert_array_equal(short, drawn(network, kept[: 2 * RATE_HZ], seed=3))


class Device:
    """What live uses of sounddevice: it hears somebody in blocks, then Ctrl-C is pressed."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, audio: np.ndarray) -> None:
        self.audio = audio

    @contextlib.contextmanager
    def InputStream(self, *, callback, blocksize, samplerate, device, channels, dtype):
        assert (samplerate, device, channels, dtype) == (RATE_HZ, "front", 1, "float32")

        def work():
            for first in range(0, len(self.audio), blocksize):
                status = "overflow" if first == 0 else None
                callback(self.audio[first : first + blocksize, None], blocksize, None, status)

        thread = threading.Thread(target=work)
        thread.start()
        yield self
        thread.join()


def test_a_device_is_heard_for_a_while_or_until_it_is_interrupted(
    network, call, monkeypatch, capsys
):
    audio = toy.voice(4, 3.0, 0)
    monkeypatch.setitem(sys.modules, "sounddevice", Device(audio))
    found = call("--input=front", "--seconds=2")
    np.testing.assert_array_equal(found, drawn(network, audio[: 2 * RATE_HZ]))
    said = capsys.readouterr()
    assert "Speak now." in said.out
    assert said.err.rstrip().endswith("xruns 1")
    call("--input=front", "--seconds=2.00002")  # of which a part of a sample is left

    hear = live.Drawing.hear

    def until_ctrl_c(self, samples):
        hear(self, samples)
        if self._voice.heard_seconds >= 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(live.Drawing, "hear", until_ctrl_c)
    found = call("--input=front", name="all.png")
    np.testing.assert_array_equal(found, drawn(network, audio))


def test_it_shows_a_page_that_follows(call, tmp_path, monkeypatch, capsys):
    io.write_wav(tmp_path / "ann.wav", toy.voice(0, 1.0, 0), RATE_HZ)
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) == 1)
    given = f"--input={tmp_path / 'ann.wav'}", "--show"
    call(*given, name="ann's `face`.png")
    assert opened == [(tmp_path / "ann's `face`.html").as_uri()]
    assert "`ann%27s%20%60face%60.png?$" in (tmp_path / "ann's `face`.html").read_text()
    assert "no browser" not in capsys.readouterr().out
    call(*given)
    assert f"no browser here: open {tmp_path / 'face.html'}" in capsys.readouterr().out


def test_what_cannot_be_heard_or_written_is_one_message(call, tmp_path, monkeypatch):
    silent, text = tmp_path / "silent.wav", tmp_path / "text.wav"
    io.write_wav(silent, np.zeros(2 * RATE_HZ, np.float32), RATE_HZ)
    text.write_text("no sound")
    film = tmp_path / "film.mp4"
    film.write_bytes(b"a film")
    for options, message in (
        ([f"--input={silent}"], r"No voice was heard in 2.0 s: there is no face\."),
        ([f"--input={text}"], "text.wav: cannot be decoded as audio"),
        ([f"--input={tmp_path / 'none.wav'}"], "none.wav: no such file"),
        ([f"--input={film}", f"--film={film}"], "would be replaced by what is made of it"),
        ([f"--film={tmp_path / 'a.avi'}"], "give a name that ends in .mp4"),
        (["--every=0"], "--every=0 is not from 0.1 to 60 s"),
        (["--seconds=0"], "--seconds=0 must be positive"),
    ):
        with pytest.raises(SystemExit, match=message):
            call(*options)
    with pytest.raises(SystemExit, match="give a name that ends in"):
        call(f"--input={silent}", name="face.jpeg")
    assert film.read_bytes() == b"a film"
    assert not (tmp_path / "face.png").exists()
    found = commands.message("generation.live", "--seconds=1")
    assert "--workdir and --out are needed" in found


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_that_would_be_another_is_refused(seed, tmp_path):
    options = f"--workdir={tmp_path}", f"--out={tmp_path / 'a.png'}", f"--seed={seed}"
    for command, given in (("sample", "--voice"), ("live", "--input")):
        said = commands.message(f"generation.{command}", *options, f"{given}=a.wav")
        assert f"--seed={seed} is not from 0 to 4294967295." in said


def test_without_devices_it_says_so(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    found = commands.message("generation.live", "--list")
    assert "generation.live: Live sound needs a package: pip install sounddevice" in found
    broken = types.SimpleNamespace(PortAudioError=Device.PortAudioError)

    def no_device(**_):
        raise Device.PortAudioError("Error querying device -1")

    broken.InputStream = no_device
    monkeypatch.setitem(sys.modules, "sounddevice", broken)
    with pytest.raises(SystemExit, match=r"No sound device: Error querying device -1\. --list"):
        call("--seconds=1")
