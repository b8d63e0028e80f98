"""`generation.serve`: uploads and voices that are followed, by real clients, and bad ones."""

import contextlib
import io as bytes_io
import json
import re
import time

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
import httpx2
import soundfile
from websockets import exceptions as websocket_exceptions
from websockets.sync import client as websocket

from common import errors
from common.audio import io
from common.serve import settings as serve_settings
from generation import api, images, listening
from tests import serving
from tests.generation import makers
from tests.generation import people as toy

RATE_HZ = toy.RATE_HZ
SETTINGS = serve_settings.Settings(
    limits=serve_settings.Limits(
        upload_bytes=1 << 19, upload_seconds=5.0, streams=2, stream_seconds=4.0, idle_seconds=2.0
    )
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return makers.make(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def url(network):
    with serving.served(api.service(network, SETTINGS).application(), SETTINGS) as found:
        yield found


@pytest.fixture(scope="module")
def http(url):
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def wav(samples: np.ndarray, rate: int = RATE_HZ) -> bytes:
    file = bytes_io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def picture(data: bytes) -> np.ndarray:
    with PIL.Image.open(bytes_io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def sheet(network, audio: np.ndarray, count: int, seed: int, columns: int) -> np.ndarray:
    """What is to be seen of the voice in this."""
    heard = listening.heard(network, audio, "a.wav")
    faces = network.drawn(np.tile(heard, (count, 1)), network.noise(seed, count))
    return images.sheet([list(faces[i : i + columns]) for i in range(0, count, columns)])


@contextlib.contextmanager
def opened(url: str, **header):
    """A websocket after its header was sent."""
    address = url.replace("http", "ws") + "live"
    with websocket.connect(address, open_timeout=60, close_timeout=1) as talk:
        talk.send(json.dumps({"rate": RATE_HZ, "format": "float32", **header}))
        yield talk


def said(talk) -> tuple[list, int, str]:
    """All frames to the end, with code and reason of that."""
    frames = []
    try:
        while True:
            frame = talk.recv(60)
            frames.append(frame if isinstance(frame, bytes) else json.loads(frame))
    except websocket_exceptions.ConnectionClosed as closed:
        return frames, closed.rcvd.code, closed.rcvd.reason


def counted(http: httpx2.Client, name: str) -> float:
    """A figure of /metrics; 0 where it is not there yet."""
    answer = http.get("/metrics").raise_for_status()
    found = re.search(rf"^{re.escape(name)} (\S+)$", answer.text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_an_upload_becomes_faces(http, network):
    voice = toy.voice(1, 2.5, 0)
    drawn = counted(http, 'generation_faces_total{way="upload"}')
    for count, columns in ((1, 1), (4, 2), (5, 3), (16, 4)):
        data = {"count": str(count), "seed": "7"}
        answer = http.post("/faces", files={"file": ("a.wav", wav(voice))}, data=data)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        expected = sheet(network, voice, count, 7, columns)
        np.testing.assert_array_equal(picture(answer.content), expected)
    assert counted(http, 'generation_faces_total{way="upload"}') == drawn + 26
    assert counted(http, 'generation_audio_seconds_total{way="upload"}') >= 10
    default = http.post("/faces", files={"file": wav(voice)}).content
    np.testing.assert_array_equal(picture(default), sheet(network, voice, 1, 0, 1))
    stereo = wav(np.stack([voice[::2], voice[::2] / 2], axis=1), RATE_HZ // 2)
    found = http.post("/faces", files={"file": stereo}).content
    heard = io.load_audio(stereo, sample_rate_hz=RATE_HZ)
    np.testing.assert_array_equal(picture(found), sheet(network, heard, 1, 0, 1))


def test_a_face_follows_a_voice(url, http, network):
    """Cut anywhere; a step of silence brings no face, and what is left at the end counts."""
    audio = np.concatenate(
        [toy.voice(1, 1.0, 0), np.zeros(RATE_HZ, np.float32), toy.voice(1, 1.3, 1)]
    )
    data, sizes = audio.astype("<f4").tobytes(), np.random.default_rng(0).integers(1, 9000, 999)
    with opened(url, seed=3) as talk:
        ready = json.loads(talk.recv(60))
        assert ready == {"rate": RATE_HZ, "format": "float32", "step_seconds": 1.0}
        for size in sizes:
            talk.send(data[:size])
            if not (data := data[size:]):
                break
        talk.send('{"end": true}')
        frames, code, _ = said(talk)
    assert code == 1000
    texts = [frame for frame in frames if isinstance(frame, dict)]
    assert [text["heard_seconds"] for text in texts] == [1.0, 2.0, 3.0, 3.3]
    assert [text["voice_seconds"] for text in texts] == pytest.approx([1, 1, 2, 2.3], abs=0.05)
    assert [type(frame) for frame in frames[:4]] == [dict, bytes, dict, dict]
    faces = [picture(frame) for frame in frames if isinstance(frame, bytes)]
    assert len(faces) == 3
    np.testing.assert_array_equal(faces[0], sheet(network, audio[:RATE_HZ], 1, 3, 1))
    without = np.concatenate([audio[:RATE_HZ], audio[2 * RATE_HZ :]])
    np.testing.assert_array_equal(faces[-1], sheet(network, without, 1, 3, 1))
    assert counted(http, 'generation_audio_seconds_total{way="stream"}') >= 3.3
    assert counted(http, 'generation_streams_ended_total{reason="done"}') >= 1


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_stream_of_another_rate_and_form_is_heard(url, rate):
    samples = np.round(3000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype("<i2")
    with opened(url, rate=rate, format="pcm16") as talk:
        talk.send(samples.tobytes())
        talk.send('{"end": true}')
        frames, code, _ = said(talk)
    assert code == 1000
    assert frames[-2]["heard_seconds"] == 1.0
    assert picture(frames[-1]).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("header", "sent", "code", "reason"),
    [
        ({"rate": 100}, [], 4400, "rate: 100 Hz lie outside"),
        ({"format": "mp3"}, [], 4400, "format: one of pcm16, float32"),
        ({"seed": -1}, [], 4400, "seed: a whole number from 0 to 2147483647"),
        ({"seed": 2**31}, [], 4400, "seed: a whole number"),
        ({"seed": True}, [], 4400, "seed: a whole number"),
        ({"count": 4}, [], 4400, "unknown in the first frame: count"),
        ({}, ["hello"], 4400, 'samples are binary frames; the only text is {"end": true}'),
        ({}, [b"123", '{"end": true}'], 4400, "the stream ended within a sample"),
        ({}, [np.full(3, np.nan, "<f4").tobytes()], 4400, "stream: 3 of 3 samples are NaN"),
        ({}, [bytes(4 * RATE_HZ)] * 5, 4413, "more than 64000 samples, the limit of a stream"),
        ({}, [b"12"], 4408, "nothing came for 2 s"),
    ],
)
def test_a_stream_that_cannot_go_on_ends_with_a_reason(url, header, sent, code, reason):
    with opened(url, **header) as talk:
        for frame in sent:
            talk.send(frame)
        found = said(talk)
    assert found[1] == code
    assert found[2].startswith(reason)


def test_a_silent_stream_has_no_face(url):
    with opened(url) as talk:
        talk.send(bytes(4 * 2 * RATE_HZ))
        talk.send('{"end": true}')
        frames, code, _ = said(talk)
    assert code == 1000
    assert not [frame for frame in frames if isinstance(frame, bytes)]
    assert frames[-1] == {"heard_seconds": 2.0, "voice_seconds": 0.0}


def test_one_stream_too_many_is_refused_and_places_become_free_again(url, http):
    with contextlib.ExitStack() as stack:
        for _ in range(SETTINGS.limits.streams):
            stack.enter_context(opened(url)).recv(60)
        assert http.get("/health").json()["streams"] == 2
        with opened(url) as talk:
            assert said(talk)[1:] == (4429, "there are 2 streams, the limit; try again later")
    until = time.monotonic() + 60
    while http.get("/health").json()["streams"]:
        assert time.monotonic() < until, "a stream was not closed"
        time.sleep(0.01)


def test_bad_uploads_are_one_message_each(http):
    good, rng = toy.voice(0, 1.0, 0), np.random.default_rng(0)
    nan = good.copy()
    nan[7] = np.nan
    for data, status, message in (
        (wav(np.zeros(20000, np.float32)), 422, "a.wav: is silent: there is no voice"),
        (wav(good[:3000]), 422, "a.wav: 0.19 s of speech are too short to make a face of"),
        (wav(nan), 422, "a.wav: 1 of 16000 samples are NaN or infinite"),
        (wav(good[:0]), 422, "a.wav: empty"),
        (wav(good, 100), 422, "a.wav: 100 Hz lie outside"),
        (wav(toy.voice(0, 5.1, 0)), 422, "a.wav: longer than the limit of 5 s"),
        (b"", 422, "a.wav: the file has 0 bytes"),
        (wav(good)[:30], 422, "a.wav: cannot be decoded as audio"),
        (bytes(1 << 20), 413, "more than 524288 bytes, the limit of an upload"),
    ):
        answer = http.post("/faces", files={"file": ("a.wav", data)})
        found = answer.json()["detail"]
        assert (answer.status_code, found[: len(message)]) == (status, message)
    for form in ({}, {"data": {"file": "text"}}, {"files": {"other": wav(good)}}):
        answer = http.post("/faces", **form)
        assert (answer.status_code, answer.json()["detail"][:6]) == (422, "file: ")
    for name, values in {
        "count": ("0", "17", "x", "1.5"),
        "seed": ("-1", "x", str(2**31)),
    }.items():
        for value in values:
            answer = http.post("/faces", files={"file": wav(good)}, data={name: value})
            assert (answer.status_code, answer.json()["detail"][: len(name)]) == (422, name)
    for _ in range(20):
        answer = http.post("/faces", files={"file": rng.bytes(rng.integers(1, 5000))})
        assert answer.status_code == 422, answer.text
    assert http.post("/faces", files={"file": wav(good)}).status_code == 200


def test_a_network_that_hears_nothing_is_refused_at_the_start(tmp_path):
    network = makers.make(tmp_path, {"voice.kind": "class"})
    with pytest.raises(errors.UserError, match="hears nothing: draw with it by python -m"):
        api.service(network, SETTINGS)
