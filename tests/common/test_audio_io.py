"""Decoding: formats, channels, rates, excerpts, headers that lie, and what cannot be read."""

import io as std_io
import os
import pathlib
import pickle
import socket
import threading

import numpy as np
import pytest
import soundfile
import soxr

from common import errors
from common.audio import io, mp3

RATE_HZ = 16000
PCM_STEP = 1 / 32768


def sweep(seconds: float = 2.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A tone gliding from 200 Hz to 2 kHz on the 16-bit grid."""
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * (200 * time + 1800 / (2 * seconds) * time**2))
    return (np.rint(tone * 32768) / 32768).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("wav", "DOUBLE"), ("flac", "PCM_16")],
)
def test_lossless_formats_give_back_the_samples(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sweep(), RATE_HZ, subtype=subtype)
    audio = io.load_audio(path, sample_rate_hz=RATE_HZ)
    assert audio.dtype == np.float32
    # libsndfile writes x * 32767 and reads n / 32768: up to one step at full scale.
    np.testing.assert_allclose(
        audio, sweep(), atol=0 if suffix == "wav" and "PCM" not in subtype else PCM_STEP
    )
    assert io.probe(path) == io.AudioInfo(RATE_HZ, 1, len(audio))
    assert io.probe(path).seconds == 2.0


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_lossy_formats_come_close(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sweep(), RATE_HZ)
    audio = io.load_audio(path, sample_rate_hz=RATE_HZ)
    assert len(audio) == len(sweep())
    # A tone through a perceptual codec at its default quality: well above 20 dB.
    noise = np.sum((audio - sweep())[800:-800] ** 2) / np.sum(sweep() ** 2)
    assert 10 * np.log10(noise) < -20


def test_channels(tmp_path):
    path = tmp_path / "stereo.wav"
    left, right = sweep(), 0.5 * sweep()[::-1]
    soundfile.write(path, np.stack([left, right], 1), RATE_HZ, subtype="FLOAT")
    np.testing.assert_array_equal(io.load_audio(path, sample_rate_hz=RATE_HZ, channel=1), right)
    mean = io.load_audio(path, sample_rate_hz=RATE_HZ)
    np.testing.assert_allclose(mean, (left + right) / 2, atol=1e-7)
    given = {"sample_rate_hz": RATE_HZ, "source_rate_hz": RATE_HZ, "channel": 1}
    np.testing.assert_array_equal(io.load_audio(right, **given), right)  # it is chosen already
    with pytest.raises(io.AudioError, match="channel 1 wanted, but it has 1"):
        io.load_audio(right[:, None], **given)
    with pytest.raises(io.AudioError, match=r"stereo\.wav: channel 2 wanted, but it has 2"):
        io.load_audio(path, sample_rate_hz=RATE_HZ, channel=2)


def test_arrays_are_scaled_and_resampled():
    load = lambda x, **kw: io.load_audio(x, sample_rate_hz=8000, source_rate_hz=8000, **kw)  # noqa: E731
    np.testing.assert_array_equal(load(np.array([-32768, 0, 16384], np.int16)), [-1, 0, 0.5])
    np.testing.assert_array_equal(load(np.array([0, 128, 192], np.uint8)), [-1, 0, 0.5])
    np.testing.assert_array_equal(load(np.array([-(2**31), 2**30], np.int32)), [-1, 0.5])
    np.testing.assert_array_equal(load(np.array([[0.5, 1.5], [1, 0]])), [1.0, 0.5])
    audio = io.load_audio(sweep(), sample_rate_hz=8000, source_rate_hz=RATE_HZ)
    np.testing.assert_array_equal(audio, soxr.resample(sweep(), RATE_HZ, 8000))
    with pytest.raises(ValueError, match="source_rate_hz"):
        io.load_audio(sweep(), sample_rate_hz=8000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("wanted_hz", [16000, 22050])
def test_an_excerpt_equals_the_stretch_of_the_whole(tmp_path, suffix, wanted_hz):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sweep(), RATE_HZ)
    whole = io.load_audio(path, sample_rate_hz=wanted_hz)
    for start, duration in ((0.0, 0.25), (0.7313, 0.5), (1.6, 3.0), (1.9, None)):
        part = io.load_audio(path, sample_rate_hz=wanted_hz, start=start, duration=duration)
        end = None if duration is None else round((start + duration) * wanted_hz)
        expected = whole[round(start * wanted_hz) : end]
        assert len(part) == len(expected)
        # soxr's filter is cut at 50 ms; its tail there is below half a 16-bit step.
        np.testing.assert_allclose(part, expected, atol=PCM_STEP / 2)


def test_an_excerpt_reads_only_what_it_needs(tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(sweep(), 30), RATE_HZ)
    read, decoded = io._Stream.read, []

    def counting(self, *args, **kwargs):
        block = read(self, *args, **kwargs)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(io._Stream, "read", counting)
    io.load_audio(path, sample_rate_hz=8000, start=50.0, duration=1.0)
    assert sum(decoded) < 1.2 * RATE_HZ


def test_mp3_without_a_true_length_is_read_whole(tmp_path):
    good, bare, glued = tmp_path / "good.mp3", tmp_path / "bare.mp3", tmp_path / "glued.mp3"
    soundfile.write(good, sweep(5.0), RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.5)
    data = good.read_bytes()
    headless = data[mp3.parse_header(data[:4]).num_bytes :]
    bare.write_bytes(headless)
    glued.write_bytes(data + headless)
    # The fault this guards against: libsndfile believes the first frame's bit rate.
    assert soundfile.info(bare).frames < 80000 / 2
    for path, times in ((good, 1), (bare, 1), (glued, 2)):
        audio = io.load_audio(path, sample_rate_hz=RATE_HZ)
        # Up to four frames of 576 samples of encoder delay and padding remain.
        assert 0 <= len(audio) - times * 80000 < times * 4 * 576
        assert abs(io.probe(path).num_samples - len(audio)) < 1000
        assert np.abs(audio[-4000:]).max() > 0.2
    part = io.load_audio(bare, sample_rate_hz=RATE_HZ, start=3.0, duration=0.5)
    whole = io.load_audio(bare, sample_rate_hz=RATE_HZ)
    np.testing.assert_allclose(part, whole[48000:56000], atol=1e-6)


def test_mp3_that_begins_with_silence_states_no_more_than_there_is(tmp_path):
    path = tmp_path / "a.mp3"
    quiet = np.concatenate([np.zeros(RATE_HZ, np.float32), sweep(5.0)])
    soundfile.write(path, quiet, RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.5)
    data = path.read_bytes()
    path.write_bytes(data[mp3.parse_header(data[:4]).num_bytes :])
    # The first frame, of silence, is smaller than the others: a length guessed from it is too long.
    assert soundfile.info(path).frames > 1.05 * len(quiet)
    audio = io.load_audio(path, sample_rate_hz=RATE_HZ, max_seconds=6.2)
    assert 0 <= len(audio) - len(quiet) < 4 * 576
    assert abs(io.probe(path).num_samples - len(audio)) < 1000


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "AIFF", "AU", "NIST"])
def test_the_stated_length_of_a_cut_off_file(tmp_path, kind):
    path = tmp_path / "a"
    soundfile.write(path, np.stack([sweep()] * 2, 1), RATE_HZ, format=kind, subtype="PCM_16")
    whole = io.probe(path)
    assert whole == io.AudioInfo(RATE_HZ, 2, 2 * RATE_HZ)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    assert io.probe(path).num_samples == pytest.approx(whole.num_samples, rel=2e-3)
    assert io.probe(data[: len(data) // 3]) == io.probe(path)
    # What is there can still be read: to refuse it is for those who know the length.
    assert len(io.load_audio(path, sample_rate_hz=RATE_HZ)) < 2 * RATE_HZ / 3


@pytest.mark.parametrize("stated", [0x7FFFF000, 0xFFFFFFFF])
def test_wav_from_a_pipe_states_no_length(tmp_path, stated):
    path = tmp_path / "a.wav"
    soundfile.write(path, sweep(), RATE_HZ)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = stated.to_bytes(4, "little")
    path.write_bytes(data)
    assert io.probe(path).num_samples == 2 * RATE_HZ


@pytest.mark.parametrize("claimed", [0, (1 << 36) - 1, 64000])
def test_flac_with_a_wrong_length_is_read_whole(tmp_path, claimed):
    path = tmp_path / "a.flac"
    soundfile.write(path, sweep(), RATE_HZ)
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | claimed >> 32  # STREAMINFO: 36 bits of total samples
    data[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    data[26:42] = bytes(16)  # no checksum
    path.write_bytes(data)
    np.testing.assert_array_equal(io.load_audio(path, sample_rate_hz=RATE_HZ), sweep())
    part = io.load_audio(path, sample_rate_hz=RATE_HZ, start=1.0, duration=0.5)
    np.testing.assert_array_equal(part, sweep()[16000:24000])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_bytes_are_read_as_their_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([sweep(), 0.5 * sweep()], 1), RATE_HZ)
    data = path.read_bytes()
    if suffix == "mp3":  # one that is corrected
        data = data[mp3.parse_header(data[:4]).num_bytes :]
        path.write_bytes(data)
    upload = std_io.BytesIO(data)
    upload.seek(100)  # whoever read its head
    for options in ({}, {"start": 0.5, "duration": 1.0, "channel": 1}):
        expected = io.load_audio(path, sample_rate_hz=8000, **options)
        for source in (data, upload):
            audio = io.load_audio(source, sample_rate_hz=8000, **options)
            np.testing.assert_array_equal(audio, expected)
    assert io.probe(data) == io.probe(upload) == io.probe(path)
    with pytest.raises(io.AudioError, match="bytes: the file has 0 bytes"):
        io.load_audio(b"", sample_rate_hz=8000)
    with pytest.raises(io.AudioError, match="bytes: cannot be decoded as audio"):
        io.probe(b"<html></html>" * 100)


def test_a_limit_of_seconds(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(sweep(), 10), RATE_HZ)
    lying = bytearray(path.read_bytes())
    lying[21] &= 0xF0  # STREAMINFO: as if from a pipe, it states no length
    lying[22:26] = bytes(4)
    lying[26:42] = bytes(16)
    read, decoded = io._Stream.read, []

    def counting(self, *args, **kwargs):
        block = read(self, *args, **kwargs)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(io._Stream, "read", counting)
    monkeypatch.setattr(io, "_BLOCK", RATE_HZ)
    message = r"longer than the limit of 2\.5 s"
    for source, most in ((path, 0), (path.read_bytes(), 0), (bytes(lying), 3 * RATE_HZ)):
        decoded.clear()
        with pytest.raises(io.AudioError, match=message):
            io.load_audio(source, sample_rate_hz=8000, max_seconds=2.5)
        assert sum(decoded) <= most
    with pytest.raises(io.AudioError, match=rf"array: {message}"):
        io.load_audio(sweep(3.0), sample_rate_hz=8000, source_rate_hz=RATE_HZ, max_seconds=2.5)
    # What counts is the stretch that is wanted.
    for options in ({"duration": 2.5}, {"start": 17.6}, {"start": 0.7313, "duration": 2.5}):
        audio = io.load_audio(path, sample_rate_hz=8000, max_seconds=2.5, **options)
        assert len(audio) == pytest.approx(20000, abs=800)
    with pytest.raises(io.AudioError, match=message):
        io.load_audio(path, sample_rate_hz=8000, max_seconds=2.5, start=17.4)
    with pytest.raises(ValueError, match="max_seconds"):
        io.load_audio(path, sample_rate_hz=8000, max_seconds=0.0)


def test_names_that_are_not_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", sweep(), RATE_HZ)
    (tmp_path / "a.wav").rename(path)
    for name in (path, str(path)):
        assert len(io.load_audio(name, sample_rate_hz=RATE_HZ)) == len(sweep())
        assert io.probe(name).num_samples == len(sweep())
    path.write_bytes(b"no audio")
    for name in (path, path.with_name("\udce9t\ud800.wav"), path.with_name("a\0b.wav")):
        for read in (io.probe, lambda p: io.load_audio(p, sample_rate_hz=RATE_HZ)):
            with pytest.raises(io.AudioError) as caught:
                read(name)
            str(caught.value).encode()  # a terminal prints it
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert io.printable(path).endswith("/caf\\xe9.wav")
    assert io.printable("\ud800ä.wav") == "\\ud800ä.wav"


def test_what_the_system_does_not_let_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    soundfile.write("locked.wav", sweep(), RATE_HZ)
    pathlib.Path("locked.wav").chmod(0)
    pathlib.Path("ring.wav").symlink_to("ring.wav")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket.wav")
    os.mkfifo("pipe.wav")
    monkeypatch.setattr(io, "_PIPE_SECONDS", 0.1)
    cases = {
        "locked.wav": r"cannot be opened \(Permission denied\)",
        "ring.wav": r"cannot be opened \(Too many levels",
        "socket.wav": r"cannot be opened \(No such device",
        "pipe.wav": "nothing came through",
        "/dev/zero": "is a device",
        "locked.wav/a.wav": r"cannot be opened \(Not a directory",
    }
    root = os.geteuid() == 0
    if root:  # root may read all
        os.seteuid(65534)
    try:
        for name, reason in cases.items():
            for read in (io.probe, lambda p: io.load_audio(p, sample_rate_hz=RATE_HZ)):
                with pytest.raises(io.AudioError, match=f"{name}: .*{reason}"):
                    read(name)
    finally:
        if root:
            os.seteuid(0)
        listening.close()


def test_a_pipe_is_read(tmp_path):
    pipe, path = tmp_path / "pipe", tmp_path / "a.flac"
    os.mkfifo(pipe)
    soundfile.write(path, sweep(20.0), RATE_HZ)  # more than a pipe holds at once
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    audio = io.load_audio(pipe, sample_rate_hz=RATE_HZ)
    writer.join()
    np.testing.assert_array_equal(audio, io.load_audio(path, sample_rate_hz=RATE_HZ))


SHORTEN = (
    b"NIST_1A\n   1024\nsample_count -i 16000\nsample_rate -i 16000\nsample_n_bytes -i 2\n"
    b"channel_count -i 1\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
).ljust(1024) + b"ajkg"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.wav", None, "no such file"),
        ("empty.wav", b"", "the file has 0 bytes"),
        ("text.flac", b"this is not audio\n" * 20, "cannot be decoded as audio"),
        ("noise.raw", bytes(1000), "headerless"),
        ("old.sph", SHORTEN, "shorten compression is not supported"),
    ],
)
def test_unreadable_files_name_file_and_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (io.probe, lambda p: io.load_audio(p, sample_rate_hz=RATE_HZ)):
        with pytest.raises(io.AudioError, match=reason) as caught:
            read(path)
        assert str(path) in str(caught.value)
        restored = pickle.loads(pickle.dumps(caught.value))
        assert str(restored) == str(caught.value)


def test_damaged_content(tmp_path):
    folder, cut, nan, no_samples = (tmp_path / n for n in ("d.wav", "c.flac", "n.wav", "z.wav"))
    folder.mkdir()
    with pytest.raises(io.AudioError, match="directory"):
        io.probe(folder)
    soundfile.write(cut, sweep(), RATE_HZ)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(io.AudioError, match=r"c\.flac: cannot be decoded"):
        io.load_audio(cut, sample_rate_hz=RATE_HZ)
    soundfile.write(nan, np.array([0, np.nan, np.inf, 1], np.float32), RATE_HZ, subtype="FLOAT")
    with pytest.raises(io.AudioError, match="2 of 4 samples are NaN or infinite"):
        io.load_audio(nan, sample_rate_hz=RATE_HZ)
    soundfile.write(no_samples, np.zeros(0, np.float32), RATE_HZ)
    with pytest.raises(io.AudioError, match="empty"):
        io.load_audio(no_samples, sample_rate_hz=RATE_HZ)
    soundfile.write(no_samples, sweep(), RATE_HZ)
    with pytest.raises(io.AudioError, match=r"past the end of the recording"):
        io.load_audio(no_samples, sample_rate_hz=RATE_HZ, start=2.0)
    with pytest.raises(ValueError, match="duration"):
        io.load_audio(no_samples, sample_rate_hz=RATE_HZ, duration=0.0)


def test_check_audio():
    assert io.check_audio(sweep()) == ()
    assert io.check_audio(np.zeros(10)) == ("silent",)
    with pytest.raises(io.AudioError, match=r"clip 7: empty"):
        io.check_audio(np.zeros(0), name="clip 7")
    with pytest.raises(io.AudioError, match="1 of 3 samples"):
        io.check_audio(np.array([0, 1, -np.inf]))
    assert io.check_audio(np.array([1e4, -1e4])) == ()
    assert io.check_audio(np.array([-32768, 20000], np.int16)) == ()


@pytest.mark.parametrize("wanted_hz", [8000, 16000])
def test_values_beyond_any_sample(tmp_path, wanted_hz):
    path = tmp_path / "a.wav"
    garbage = sweep()
    garbage[7] = -1e30
    soundfile.write(path, garbage, RATE_HZ, subtype="FLOAT")
    # Resampled it would be many: what is counted is the file's own.
    with pytest.raises(io.AudioError) as caught:
        io.load_audio(path, sample_rate_hz=wanted_hz)
    reason = "1 of 32000 samples lies beyond any possible value (1e+30)"
    assert str(caught.value) == f"{path}: {reason}"
    assert io.load_audio(path, sample_rate_hz=wanted_hz, start=1.0).size
    soundfile.write(path, 3 * 32768 * sweep(), RATE_HZ, subtype="FLOAT")
    with pytest.raises(io.AudioError, match=r"samples lie .*16-bit integers that were not scaled"):
        io.load_audio(path, sample_rate_hz=wanted_hz)


def test_write_wav_round_trip_and_atomic(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.wav"
    io.write_wav(path, sweep(), RATE_HZ)
    np.testing.assert_array_equal(io.load_audio(path, sample_rate_hz=RATE_HZ), sweep())
    io.write_wav(path, np.array([-2.0, 2.0], np.float32), RATE_HZ)
    clipped = io.load_audio(path, sample_rate_hz=RATE_HZ)
    np.testing.assert_array_equal(clipped, [-1, 32767 / 32768])

    def fails(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(pathlib.Path, "write_bytes", fails)
    with pytest.raises(errors.UserError, match=r"a\.wav cannot be written \(No space"):
        io.write_wav(path, sweep(), RATE_HZ)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.wav"]


def test_sphere_files_of_others(speech_data):
    folder = speech_data / "reference" / "sphere"
    assert io.probe(folder / "cen5-mewl-b.sph") == io.AudioInfo(16000, 1, 59200)
    audio = io.load_audio(folder / "cen5-mewl-b.sph", sample_rate_hz=16000)
    # The extremes stand in the file's own header: sample_max 11336, sample_min -6362.
    assert audio.max() * 32768 == 11336
    assert audio.min() * 32768 == -6362
    assert io.probe(folder / "stereo.sph") == io.AudioInfo(8000, 2, 8000)
    left, right, mean = (
        io.load_audio(folder / "stereo.sph", sample_rate_hz=16000, channel=c)
        for c in (0, 1, "mean")
    )
    assert len(left) == 16000
    np.testing.assert_allclose(mean, (left + right) / 2, atol=1e-6)


def test_flac_keeps_the_samples_of_16_bits(tmp_path):
    audio = np.array([0.0, 0.5, -0.25, 2.0, -2.0], np.float32)
    io.write_flac(tmp_path / "new" / "a.flac", audio, 16000)
    assert soundfile.info(tmp_path / "new" / "a.flac").format == "FLAC"
    found = io.load_audio(tmp_path / "new" / "a.flac", sample_rate_hz=16000)
    np.testing.assert_array_equal(found, np.float32([0.0, 0.5, -0.25, 1 - 2**-15, -1.0]))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_recording_converted_block_by_block_is_the_whole_one(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(io, "_BLOCK", 1000)
    audio = np.random.default_rng(0).normal(size=(rate // 2 + 7, 2)) * 0.1
    soundfile.write(tmp_path / "a.wav", audio, rate)
    expected = io.load_audio(tmp_path / "a.wav", sample_rate_hz=16_000)
    count, peak = io.convert_to_flac(tmp_path / "a.wav", tmp_path / "a.flac", sample_rate_hz=16_000)
    found, found_rate = soundfile.read(tmp_path / "a.flac")
    assert (count, found_rate) == (len(expected), 16_000)
    assert peak == pytest.approx(np.abs(expected).max(), abs=1e-6)
    np.testing.assert_allclose(found, expected, atol=0.51 / 32768)
    with pytest.raises(io.AudioError, match="no such file"):
        io.convert_to_flac(tmp_path / "b.wav", tmp_path / "b.flac", sample_rate_hz=16_000)
    assert not (tmp_path / "b.flac").exists()
