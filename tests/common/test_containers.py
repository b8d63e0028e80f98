"""What only FFmpeg decodes: lengths, delays, excerpts and damage of M4A, WebM, video and others."""

import fractions
import io as std_io
import subprocess
import sys

import av
import numpy as np
import pytest
import scipy.signal
import soundfile

from common.audio import containers, io


def sweep(seconds: float, rate_hz: int) -> np.ndarray:
    """A tone gliding from 200 Hz to 2 kHz on the 16-bit grid."""
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * (200 * time + 1800 / (2 * seconds) * time**2))
    return (np.rint(tone * 32768) / 32768).astype(np.float32)


class Pipe(std_io.RawIOBase):
    """Takes what is written and cannot go back to write a length, as a browser's recorder."""

    def __init__(self):
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.written += data
        return len(data)


def encode(audio, rate_hz, codec, container, *, file=None, title="", pictures=False, **options):
    """The bytes of a file of `[t]` or `[t, channels]`."""
    channels = audio.reshape(len(audio), -1).T
    layout = "mono" if len(channels) == 1 else "stereo"
    file = file or std_io.BytesIO()
    with av.open(file, "w", format=container, options=options) as out:
        out.metadata["title"] = title
        if pictures:
            video = out.add_stream("mpeg4", rate=25)
            video.width = video.height = 32
        stream = out.add_stream(codec, rate=rate_hz, layout=layout)
        stream.bit_rate = 128_000
        wanted = stream.codec_context.format.name
        pcm = np.ascontiguousarray(np.rint(channels * 32768).astype(np.int16))
        frame = av.AudioFrame.from_ndarray(pcm, "s16p", layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        frame.time_base = fractions.Fraction(1, rate_hz)
        for piece in av.AudioResampler(wanted, layout, rate_hz).resample(frame):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
        if pictures:
            for picture in range(25 * len(audio) // rate_hz):
                black = av.VideoFrame(32, 32, "yuv420p")
                black.pts = picture
                out.mux(video.encode(black))
            out.mux(video.encode(None))
    return bytes(file.written) if isinstance(file, Pipe) else file.getvalue()


def delay(audio: np.ndarray, reference: np.ndarray) -> int:
    """By how many samples `audio` is late."""
    products = scipy.signal.correlate(audio, reference, method="fft")
    return int(np.argmax(products)) - (len(reference) - 1)


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+delay_moov"}


@pytest.mark.parametrize(
    ("codec", "container", "rate_hz", "options", "late", "left"),
    [
        # MP4 states what primes the decoder and what pads the last packet: nothing of it is left.
        ("aac", "ipod", 16000, {}, 0, 0),
        ("aac", "mp4", 44100, {"pictures": True}, 0, 0),
        ("aac", "mp4", 16000, FRAGMENTED, 0, 0),
        ("libopus", "mp4", 48000, {}, 0, 0),
        ("alac", "mov", 44100, {}, 0, 0),
        ("libopus", "webm", 48000, {}, 0, 0),
        ("libopus", "webm", 48000, {"file": Pipe(), "live": "1"}, 0, 0),
        # These state less: a delay of one AAC frame, of MP2 (481) or MP3 (1105), or only the end.
        ("aac", "matroska", 44100, {}, 0, 1024),
        ("aac", "adts", 16000, {}, 1024, 2048),
        ("aac", "mpegts", 16000, {}, 1024, 2048),
        ("aac", "flv", 44100, {}, 1024, 2048),
        ("mp2", "mpeg", 44100, {}, 481, 1152),
        ("libmp3lame", "avi", 44100, {"pictures": True}, 1105, 1152 * 2),
        ("ac3", "ac3", 44100, {}, 256, 1536),
        # The decoder leaves out the delay of Microsoft's encoder, 2048 more than FFmpeg's own has.
        ("wmav2", "asf", 44100, {}, -2048, 2048),
    ],
)
def test_formats(codec, container, rate_hz, options, late, left):
    expected = sweep(2.0, rate_hz)
    data = encode(expected, rate_hz, codec, container, **options)
    audio = io.load_audio(data, sample_rate_hz=rate_hz)
    assert delay(audio, expected) == late
    assert abs(len(audio) - len(expected)) <= left
    info = io.probe(data)
    assert (info.sample_rate_hz, info.channels) == (rate_hz, 1)
    # An index calls it cut off from 0.1 s on.
    assert abs(info.num_samples - len(audio)) < 0.05 * rate_hz
    audio, expected = audio[max(0, late) :], expected[max(0, -late) :]
    same = audio[: len(expected)]
    # Codecs at 128 kbit/s and a clean tone: 0.99 is 17 dB; half a period off would be negative.
    assert np.corrcoef(same, expected[: len(same)])[0, 1] > 0.99


def test_lossless_is_exact(tmp_path):
    stereo = np.stack([sweep(2.0, 44100), 0.5 * sweep(2.0, 44100)[::-1]], 1)
    stereo = (np.rint(stereo * 32768) / 32768).astype(np.float32)
    data = encode(stereo, 44100, "alac", "ipod")
    soundfile.write(tmp_path / "a.wav", stereo, 44100, subtype="FLOAT")
    for options in ({}, {"channel": 1}, {"sample_rate_hz": 16000, "start": 0.3, "duration": 0.9}):
        options = {"sample_rate_hz": 44100} | options
        wav = io.load_audio(tmp_path / "a.wav", **options)
        np.testing.assert_array_equal(io.load_audio(data, **options), wav)
    with pytest.raises(io.AudioError, match="channel 2 wanted, but it has 2"):
        io.load_audio(data, sample_rate_hz=44100, channel=2)
    assert io.probe(data) == io.AudioInfo(44100, 2, len(stereo))


@pytest.mark.parametrize(
    ("codec", "container", "rate_hz"),
    [("aac", "ipod", 16000), ("libopus", "webm", 48000), ("mp2", "mpeg", 44100)],
)
def test_an_excerpt_equals_the_stretch_of_the_whole(codec, container, rate_hz):
    data = encode(sweep(2.0, rate_hz), rate_hz, codec, container)
    for wanted_hz in (rate_hz, 16000, 22050):
        whole = io.load_audio(data, sample_rate_hz=wanted_hz)
        for start, duration in ((0.0, 0.25), (0.7313, 0.5), (1.6, 3.0), (1.9, None)):
            part = io.load_audio(data, sample_rate_hz=wanted_hz, start=start, duration=duration)
            end = None if duration is None else round((start + duration) * wanted_hz)
            expected = whole[round(start * wanted_hz) : end]
            assert len(part) == len(expected)
            # The same samples; resampled, the filter is cut where its tail is half a 16-bit step.
            limit = 0 if wanted_hz == rate_hz else 1 / 65536
            np.testing.assert_allclose(part, expected, atol=limit)
    with pytest.raises(io.AudioError, match="past the end of the recording"):
        io.load_audio(data, sample_rate_hz=16000, start=5.0)


def test_videos_of_others(speech_data):
    rows = [line.split("\t") for line in (speech_data / "av/grid.tsv").read_text().splitlines()]
    found = [dict(zip(rows[0], row)) for row in rows[1:]]
    # The clips that were encoded anew begin 11 ms earlier than the sound that was kept of them.
    clips = [clip for clip in found if clip["re_encoded"] == "no"][::5]
    assert len(clips) == 5
    for clip in clips:
        sound, rate = soundfile.read(speech_data / clip["audio16k"])
        audio = io.load_audio(speech_data / clip["video"], sample_rate_hz=rate)
        assert len(audio) == len(sound)
        # Another resampler at another place of the chain: what differs lies beyond 7 kHz.
        assert np.corrcoef(audio, sound)[0, 1] > 0.9999


def test_cut_off_and_damaged(tmp_path):
    path = tmp_path / "a.m4a"
    sound = sweep(2.0, 16000)
    ending = encode(sound, 16000, "aac", "ipod")
    leading = encode(sound, 16000, "aac", "ipod", **FRAGMENTED)
    middle = len(leading) // 2
    damaged = leading[:middle] + np.random.default_rng(0).bytes(400) + leading[middle + 400 :]
    for content, reason in (
        (ending[:middle], "format is not known, or its header is damaged"),
        (leading[:middle], "damaged or cut off"),
        (damaged, "damaged or cut off"),
        (leading[:30], "header is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(io.AudioError, match=rf"a\.m4a: cannot be decoded .*{reason}"):
            io.load_audio(path, sample_rate_hz=16000)
    packed = encode(sweep(2.0, 44100), 44100, "wavpack", "wv")
    with pytest.raises(io.AudioError, match=r"bytes: .*\(damaged or cut off\)"):
        io.probe(packed[: len(packed) // 2])
    # What is there of a Matroska file can be read, as of a WAV; its header tells of the rest.
    whole = encode(sweep(2.0, 48000), 48000, "libopus", "matroska")
    cut = whole[: len(whole) // 2]
    assert io.probe(cut).num_samples == io.probe(whole).num_samples
    assert 0.8 < io.load_audio(cut, sample_rate_hz=16000).size / 16000 < 1.2


def test_what_holds_no_sound_or_names_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.aac").write_bytes(encode(sweep(0.5, 16000), 16000, "aac", "adts"))
    script = b"ffconcat version 1.0\nfile secret.aac\n"
    with av.open(std_io.BytesIO(script)) as container:  # the fault this guards against
        assert container.streams.audio
    with pytest.raises(io.AudioError, match="bytes: cannot be decoded as audio"):
        io.load_audio(script, sample_rate_hz=16000)
    mute = std_io.BytesIO()
    with av.open(mute, "w", format="mp4") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        out.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(video.encode(None))
    with pytest.raises(io.AudioError, match="it holds no sound"):
        io.probe(mute)


def test_a_title_in_another_encoding():
    data = encode(sweep(0.5, 16000), 16000, "aac", "ipod", title="cafXX")
    data = data.replace(b"cafXX", b"caf\xe9\xe9")
    assert len(io.load_audio(data, sample_rate_hz=16000)) == 8000


def test_a_limit_holds_where_no_header_tells(monkeypatch):
    data = encode(sweep(20.0, 48000), 48000, "libopus", "webm", file=Pipe(), live="1")
    assert len(io.load_audio(data, sample_rate_hz=16000, max_seconds=20.0)) == 20 * 16000
    decoded, block = [], containers.Sound._block
    monkeypatch.setattr(
        containers.Sound, "_block", lambda self, frame: decoded.append(frame) or block(self, frame)
    )
    with pytest.raises(io.AudioError, match=r"bytes: longer than the limit of 1\.5 s"):
        io.load_audio(data, sample_rate_hz=16000, max_seconds=1.5)
    assert sum(frame.samples for frame in decoded) < 1.6 * 48000
    stated = encode(sweep(2.0, 16000), 16000, "aac", "ipod")
    decoded.clear()
    with pytest.raises(io.AudioError, match=r"longer than the limit of 1\.5 s"):
        io.load_audio(stated, sample_rate_hz=16000, max_seconds=1.5)
    assert not decoded


def test_pyav_is_loaded_only_for_what_it_alone_reads(tmp_path):
    for name in ("a.wav", "a.mp3"):
        soundfile.write(tmp_path / name, sweep(0.5, 16000), 16000)
    (tmp_path / "a.m4a").write_bytes(encode(sweep(0.5, 16000), 16000, "aac", "ipod"))
    script = (
        "import sys; from common.audio import io\n"
        "for path in sys.argv[1:]: io.load_audio(path, sample_rate_hz=8000); "
        "print('av' in sys.modules)"
    )
    paths = [str(tmp_path / name) for name in ("a.wav", "a.mp3", "a.m4a")]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "True"]
