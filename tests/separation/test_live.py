"""`separation.live`: files in place of devices, blocks that come late, and no device at all."""

import contextlib
import sys
import threading
import types

import numpy as np
import pytest

from common.audio import io
from separation import enhancer, live
from tests import commands
from tests.separation import test_enhancer

RATE_HZ = test_enhancer.RATE_HZ


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    changes = {"model.causal.num_layers": 2}
    return test_enhancer.make(tmp_path_factory.mktemp("live"), **changes)


@pytest.fixture
def call(network, command, monkeypatch):
    """Runs the command with this network."""
    monkeypatch.setattr(enhancer, "load", lambda *_, **__: network)

    def run(*options: object) -> None:
        monkeypatch.setattr("sys.argv", ["live", "--workdir=x", *map(str, options)])
        live.main()

    return run


def test_files_in_place_of_devices_are_what_the_network_makes_of_them(
    network, call, tmp_path, capsys
):
    mixture, enrolment = tmp_path / "mixture.wav", tmp_path / "ann.wav"
    io.write_wav(mixture, test_enhancer.noise(1.3), RATE_HZ)
    io.write_wav(enrolment, test_enhancer.noise(1.5, seed=1), RATE_HZ)
    for dry in (0.0, 0.25):
        out = tmp_path / f"{dry}.wav"
        call(f"--enroll={enrolment}", f"--input={mixture}", f"--output={out}", f"--dry={dry}")
        assert "real-time factor" in capsys.readouterr().out
        found = io.load_audio(out, sample_rate_hz=RATE_HZ)
        expected = network(mixture, enrolment=enrolment, strength=1 - dry)
        np.testing.assert_allclose(found, expected, atol=5e-5)  # 16 bits
    call(f"--input={mixture}", f"--output={out}", "--seconds=1e-9")
    assert io.probe(out).num_samples == 1


def test_what_it_hears_and_knows_is_not_written_over(call, tmp_path):
    heard, enrolment = tmp_path / "heard.wav", tmp_path / "ann.wav"
    for path in (heard, enrolment):
        io.write_wav(path, test_enhancer.noise(1.5), RATE_HZ)
    kept = heard.read_bytes()
    for out in (heard, enrolment):
        with pytest.raises(SystemExit, match="would be replaced by what is made of it"):
            call(f"--enroll={enrolment}", f"--input={heard}", f"--output={out}")
    assert heard.read_bytes() == enrolment.read_bytes() == kept


class Device:
    """What live uses of sounddevice: 40 blocks of noise, one after another."""

    PortAudioError = type("PortAudioError", (Exception,), {})
    latency = (0.01, 0.02)

    def __init__(self, hop: int) -> None:
        self.heard = test_enhancer.noise(40 * hop / RATE_HZ)
        self.hop, self.spoken = hop, []

    @contextlib.contextmanager
    def Stream(self, *, callback, blocksize, samplerate, device, **_):
        assert (blocksize, samplerate, device) == (self.hop, RATE_HZ, (3, "phones"))
        spoken = np.zeros((self.hop, 1), np.float32)

        def work():
            for first in range(0, len(self.heard), self.hop):
                callback(self.heard[first : first + self.hop, None], spoken, self.hop, None, None)
                self.spoken.append(spoken[:, 0].copy())

        thread = threading.Thread(target=work)
        thread.start()
        yield self
        thread.join()


def test_a_device_hears_and_plays(network, call, monkeypatch, capsys):
    """A device that does not wait for the network: what is late is silence, and is counted."""
    device = Device(network.extractor.hop_size)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    seconds = len(device.heard) / RATE_HZ
    call("--input=3", "--output=phones", f"--seconds={seconds}")
    said = capsys.readouterr()
    assert "Latency 64 ms, and 30 ms of the devices." in said.out
    assert len(device.spoken) == 40
    assert not np.concatenate(device.spoken[:3]).any()


def test_blocks_that_come_late_are_counted_and_silent():
    channel = live.Channel(4, spare_hops=1)
    heard, spoken = np.ones((4, 1), np.float32), np.full((4, 1), 9, np.float32)
    for _ in range(2):
        channel.callback(heard, spoken, 4, None, None)
        assert not spoken.any()
    assert channel.xruns == 1  # the spare one was there
    channel.speak(np.arange(6, dtype=np.float32))
    channel.callback(heard, spoken, 4, None, "input overflow")
    np.testing.assert_array_equal(spoken[:, 0], np.arange(4))
    assert channel.xruns == 2
    channel.speak(np.arange(6, 8, dtype=np.float32))
    channel.callback(heard, spoken, 4, None, None)
    np.testing.assert_array_equal(spoken[:, 0], np.arange(4, 8))
    for _ in range(100):
        channel.callback(heard, spoken, 4, None, None)
    assert len(channel.heard) == 64
    assert channel.xruns == 102


def test_missing_devices_and_wrong_flags_are_one_message(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    found = commands.message("separation.live", "--list")
    assert "separation.live: Live sound needs a package: pip install sounddevice" in found
    broken = types.SimpleNamespace(PortAudioError=Device.PortAudioError)

    def no_device(**_):
        raise Device.PortAudioError("Error querying device -1")

    broken.Stream = no_device
    monkeypatch.setitem(sys.modules, "sounddevice", broken)
    with pytest.raises(SystemExit, match=r"No sound device: Error querying device -1\. --list"):
        call("--seconds=1")
    for options, message in (
        (["--dry=2"], "--dry=2 is not from 0 to 1"),
        (["--input=a.wav"], "both WAV files, or both devices"),
        (["--seconds=-1"], "--seconds=-1 must be positive"),
    ):
        with pytest.raises(SystemExit, match=message):
            call(*options)
    assert "--workdir is missing" in commands.message("separation.live", "--seconds=1")
    found = commands.message("separation.bench", "--workdir=x", "--seconds=inf")
    assert "--seconds=inf must be positive and finite" in found
