"""`separation.serve`: uploads and streams of a real server by real clients, and bad ones."""

import contextlib
import io as bytes_io
import json
import re
import socket
import time
import urllib.parse

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
import httpx2
import soundfile
from websockets import client as websocket_client
from websockets import exceptions as websocket_exceptions
from websockets import uri as websocket_uri
from websockets.sync import client as websocket

from common.audio import io
from common.serve import settings as serve_settings
from separation import api
from tests import serving
from tests.separation import test_enhancer

RATE_HZ = 16000
SETTINGS = serve_settings.Settings(
    limits=serve_settings.Limits(
        upload_bytes=1 << 19, upload_seconds=5.0, streams=4, stream_seconds=4.0, stored=3,
        idle_seconds=2.0, send_seconds=0.5,
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return test_enhancer.make(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def url(network):
    with serving.served(api.Service(network, SETTINGS).application(), SETTINGS) as found:
        yield found


@pytest.fixture(scope="module")
def http(url):
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def wav(samples: np.ndarray, rate: int = RATE_HZ) -> bytes:
    file = bytes_io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def enrolled(http: httpx2.Client, samples: np.ndarray) -> str:
    answer = http.post("/voices", files={"file": ("ann.wav", wav(samples))})
    assert answer.status_code == 201, answer.text
    return answer.json()["voice"]


@contextlib.contextmanager
def opened(url: str, **header):
    """A websocket after its header was sent."""
    address = url.replace("http", "ws") + "stream"
    with websocket.connect(address, open_timeout=60, close_timeout=1) as talk:
        talk.send(json.dumps({"rate": RATE_HZ, "format": "float32", **header}))
        yield talk


def received(talk) -> tuple[bytes, dict]:
    """All samples, and what was said at the end."""
    parts = []
    while isinstance(frame := talk.recv(60), bytes):
        parts.append(frame)
    return b"".join(parts), json.loads(frame)


def refusal(talk) -> tuple[int, str]:
    """Close code and reason, which was said in a frame before."""
    said = []
    try:
        while True:
            said.append(talk.recv(60))
    except websocket_exceptions.ConnectionClosed as closed:
        code, reason = closed.rcvd.code, closed.rcvd.reason
    if 4400 <= code != 4408:
        assert json.loads(said[-1])["error"].startswith(reason)
    return code, reason


def counted(http: httpx2.Client, name: str) -> float:
    """A figure of /metrics; 0 where it is not there yet."""
    answer = http.get("/metrics").raise_for_status()
    found = re.search(rf"^{re.escape(name)} (\S+)$", answer.text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_an_upload_becomes_the_voice_that_was_enrolled(http, network):
    """As in Python, to the rounding of 16 bits; at the recording's rate and of its length."""
    mixture = test_enhancer.noise(1.3, 22050)
    enrolment = test_enhancer.noise(1.5, seed=1)
    expected = network(mixture, 22050, enrolment, RATE_HZ)
    voice = enrolled(http, enrolment)
    for form in (
        {"files": {"file": ("m.wav", wav(mixture, 22050))}, "data": {"voice": voice}},
        {"files": {"file": wav(mixture, 22050), "enrolment": wav(enrolment)}},
    ):
        answer = http.post("/enhance", **form)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "audio/wav"
        assert io.probe(answer.content) == io.AudioInfo(22050, 1, len(mixture))
        found = io.load_audio(answer.content, sample_rate_hz=22050)
        np.testing.assert_allclose(found, expected, atol=1 / 32768)
    data = {"voice": voice, "strength": "0.25"}
    answer = http.post("/enhance", files={"file": wav(mixture, 22050)}, data=data)
    found = io.load_audio(answer.content, sample_rate_hz=22050)
    np.testing.assert_allclose(found, expected / 4 + mixture * 3 / 4, atol=1 / 32768)
    other = http.post("/enhance", files={"file": wav(mixture, 22050)}).content
    found = io.load_audio(other, sample_rate_hz=22050)
    np.testing.assert_allclose(found, network(mixture, 22050), atol=1 / 32768)
    own = http.post("/enhance", files={"file": wav(mixture, 22050)}, data={"self_enroll": "true"})
    found = io.load_audio(own.content, sample_rate_hz=22050)
    expected = network(mixture, 22050, self_enroll=True)
    np.testing.assert_allclose(found, expected, atol=1 / 32768)
    both = {"voice": voice, "self_enroll": "true"}
    answer = http.post("/enhance", files={"file": wav(mixture, 22050)}, data=both)
    assert (answer.status_code, answer.json()["detail"][:12]) == (422, "self_enroll ")
    uploads = {"file": wav(mixture, 22050), "enrolment": wav(mixture)}
    answer = http.post("/enhance", files=uploads, data={"voice": voice})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("voice or enrolment: give one of both, or none")
    assert http.post("/enhance", files=uploads).status_code == 200
    assert http.delete(f"/voices/{voice}").status_code == 204
    again = http.post("/enhance", files={"file": wav(mixture)}, data={"voice": voice})
    assert again.status_code == 404
    assert "no voice of this name" in again.json()["detail"]


def test_streams_beside_each_other_equal_the_whole_recording(url, http, network):
    """1e-5 as for `Stream`; bytes are cut anywhere, and four streams share steps."""
    enrolment = test_enhancer.noise(1.5, seed=1)
    names = [enrolled(http, enrolment), None, None, None]
    strengths = [1, 0.25, 0, 1.0]
    mixtures = [test_enhancer.noise(0.7 + 0.3 * i, seed=i) for i in range(4)]
    with contextlib.ExitStack() as stack:
        talks = [
            stack.enter_context(opened(url, voice=name, strength=strength))
            for name, strength in zip(names, strengths)
        ]
        found = list(streamed(talks, mixtures))
    for i, (samples, end) in enumerate(found):
        assert end == {"samples": len(mixtures[i])}
        enrolled_for = enrolment if i == 0 else None
        expected = network(mixtures[i], RATE_HZ, enrolled_for, strength=float(strengths[i]))
        np.testing.assert_allclose(samples, expected, atol=1e-5)
    assert counted(http, 'separation_audio_seconds_total{way="stream"}') >= 4.6


def streamed(talks, mixtures):
    """What comes of recordings that are sent at once, cut anywhere."""
    rng = np.random.default_rng(0)
    for talk in talks:
        ready = json.loads(talk.recv(60))
        assert ready["delay_ms"] + ready["hop_ms"] == 32
    left = [mixture.tobytes() for mixture in mixtures]
    while any(left):
        for i, talk in enumerate(talks):
            size = rng.integers(1, 9000)
            if left[i]:
                talk.send(left[i][:size])
            left[i] = left[i][size:]
    for talk in talks:
        talk.send('{"end": true}')
        data, end = received(talk)
        yield np.frombuffer(data, "<f4"), end


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_stream_of_another_rate_has_its_length_and_tone(url, rate):
    seconds = np.arange(rate + 17) / rate
    tone = np.round(8000 * np.sin(2 * np.pi * 440 * seconds)).astype("<i2")
    with opened(url, rate=rate, format="pcm16") as talk:
        talk.recv(60)
        talk.send(tone.tobytes())
        talk.send('{"end": true}')
        found = np.frombuffer(received(talk)[0], "<i2").astype(float)
    assert found.shape == tone.shape
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert np.argmax(spectrum) * rate / len(found) == pytest.approx(440, rel=0.02)


@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        (["hello"], 4400, 'samples are binary frames; the only text is {"end": true}'),
        ([b"123", '{"end": true}'], 4400, "the stream ended within a sample"),
        ([np.full(3, np.nan, "<f4").tobytes()], 4400, "stream: 3 of 3 samples are NaN"),
        ([bytes(4 * RATE_HZ)] * 5, 4413, "more than 64000 samples, the limit of a stream"),
        ([bytes((1 << 20) + 1)], 1009, ""),
        ([b"12"], 4408, "nothing came for 2 s"),
    ],
)
def test_a_stream_that_cannot_go_on_ends_with_a_reason(url, frames, code, reason):
    with opened(url) as talk:
        talk.recv(60)
        for frame in frames:
            talk.send(frame)
        found = refusal(talk)
    assert found[0] == code
    assert found[1].startswith(reason)


@pytest.mark.parametrize(
    ("header", "code", "reason"),
    [
        ({"rate": 100}, 4400, "rate: 100 Hz lie outside"),
        ({"rate": "16000"}, 4400, "rate: the samples per second, a whole number"),
        ({"format": "mp3"}, 4400, "format: one of pcm16, float32"),
        ({"format": ["pcm16"]}, 4400, "format: one of pcm16, float32"),
        ({"strength": 1.1}, 4400, "strength: a number from 0"),
        ({"self_enroll": 1}, 4400, "self_enroll: true or false"),
        ({"self_enroll": True, "voice": "x"}, 4400, "self_enroll goes without a voice"),
        ({"strength": float("nan")}, 4400, "strength: a number from 0"),
        ({"strength": True}, 4400, "strength: a number from 0"),
        ({"speed": 2}, 4400, "unknown in the first frame: speed"),
        ({"voice": "nobody"}, 4404, "no voice of this name"),
        ({"voice": 3}, 4404, "no voice of this name"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(url, header, code, reason):
    with opened(url, **header) as talk:
        found = refusal(talk)
    assert found[0] == code
    assert found[1].startswith(reason)


def test_one_stream_too_many_is_refused_and_places_become_free_again(url, http):
    with contextlib.ExitStack() as stack:
        for _ in range(SETTINGS.limits.streams):
            stack.enter_context(opened(url)).recv(60)
        assert http.get("/health").json()["streams"] == SETTINGS.limits.streams
        with opened(url) as talk:
            assert refusal(talk) == (4429, "there are 4 streams, the limit; try again later")
    waits_for_no_streams(http)


def waits_for_no_streams(http) -> None:
    until = time.monotonic() + 60
    while http.get("/health").json()["streams"]:
        assert time.monotonic() < until, "a stream was not closed"
        time.sleep(0.01)


def test_a_client_that_goes_in_mid_chunk_leaves_nothing(url, http):
    before = counted(http, 'separation_streams_ended_total{reason="gone"}')
    with opened(url) as talk:
        talk.recv(60)
        talk.send(bytes(4001))
        # The head of a binary frame of 1000 bytes, its mask, and ten of its bytes.
        talk.socket.sendall(b"\x82\xfe\x03\xe8" + b"mask" + bytes(10))
        talk.socket.shutdown(socket.SHUT_RDWR)
    waits_for_no_streams(http)
    assert counted(http, 'separation_streams_ended_total{reason="gone"}') == before + 1


def test_a_client_that_does_not_read_is_dropped(url, http):
    """Its system takes 4 kB; of what comes to megabytes the server keeps seconds at most."""
    before = counted(http, 'separation_streams_ended_total{reason="slow"}')
    place = urllib.parse.urlsplit(url)
    talk = websocket_client.ClientProtocol(websocket_uri.parse_uri(f"ws://{place.netloc}/stream"))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((place.hostname, place.port))

        def send():
            connection.sendall(b"".join(talk.data_to_send()))

        talk.send_request(talk.connect())
        send()
        while talk.state is talk.state.CONNECTING:  # nothing is read after this
            talk.receive_data(connection.recv(1))
        talk.send_text(json.dumps({"rate": 192_000, "format": "float32"}).encode())
        for _ in range(14):
            talk.send_binary(bytes(192_000))
        with contextlib.suppress(ConnectionError):  # it is closed then
            send()
            while http.get("/health").json()["streams"]:
                talk.send_binary(bytes(2))  # or it would be idle
                send()
                time.sleep(0.05)
        waits_for_no_streams(http)
    assert counted(http, 'separation_streams_ended_total{reason="slow"}') == before + 1


def test_bad_uploads_are_one_message_each(http):
    good, rng = wav(test_enhancer.noise(1.5)), np.random.default_rng(0)
    nan = test_enhancer.noise(1.5)
    nan[7] = np.nan
    for path, data, status, message in (
        ("/voices", wav(test_enhancer.noise(0.9)), 422, "0.90 s are too short to know a voice by"),
        ("/voices", wav(np.zeros(20000, np.float32)), 422, "silent"),
        ("/voices", wav(nan), 422, "1 of 24000 samples are NaN or infinite"),
        ("/enhance", wav(nan), 422, "1 of 24000 samples are NaN or infinite"),
        ("/enhance", wav(np.zeros(0, np.float32)), 422, "empty"),
        ("/enhance", wav(test_enhancer.noise(1.0), 100), 422, "100 Hz lie outside"),
        ("/enhance", wav(test_enhancer.noise(5.1, 16000)), 422, "longer than the limit of 5 s"),
        ("/enhance", b"", 422, "0 bytes"),
        ("/enhance", good[:30], 422, "cannot be decoded as audio"),
        ("/enhance", bytes(1 << 20), 413, "more than 524288 bytes, the limit of an upload"),
    ):
        answer = http.post(path, files={"file": ("a.wav", data)})
        assert (answer.status_code, message in answer.json()["detail"]) == (status, True), (
            answer.text
        )
    for form in ({}, {"data": {"file": "text"}}, {"files": {"other": good}}):
        answer = http.post("/enhance", **form)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("file: ")
    for strength in ("1.5", "nan", "loud"):
        answer = http.post("/enhance", files={"file": good}, data={"strength": strength})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("strength: ")
    for _ in range(40):
        answer = http.post("/enhance", files={"file": rng.bytes(rng.integers(1, 5000))})
        assert answer.status_code == 422, answer.text
    answer = http.post("/enhance", content=rng.bytes(999), headers={"content-type": "x/y"})
    assert answer.status_code == 422
    assert http.post("/enhance", files={"file": good}).status_code == 200


def test_the_oldest_voice_makes_room(http):
    names = [enrolled(http, test_enhancer.noise(1.0, seed=i)) for i in range(4)]
    assert http.get("/health").json()["voices"] == 3
    assert [http.delete(f"/voices/{name}").status_code for name in names] == [404] + [204] * 3


def test_a_step_that_fails_ends_its_streams_and_no_others(network, caplog):
    service = api.Service(network, SETTINGS)
    with serving.served(service.application(), SETTINGS) as url:
        advance = service._engine._slots.advance

        def fail(*_):
            service._engine._slots.advance = advance
            raise RuntimeError("out of memory")

        service._engine._slots.advance = fail
        with opened(url) as talk:
            talk.recv(60)
            talk.send(bytes(4 * RATE_HZ))
            assert refusal(talk) == (1011, "this server failed; its log says more")
        assert "out of memory" in caplog.text
        mixture = test_enhancer.noise(0.5)
        with opened(url) as talk:
            ((found, _),) = streamed([talk], [mixture])
        np.testing.assert_allclose(found, network(mixture, RATE_HZ), atol=1e-5)


def test_a_network_that_sees_everything_takes_uploads_only(tmp_path):
    network = test_enhancer.make(tmp_path, **{"model.kind": "voicefilter"})
    with serving.served(api.Service(network, SETTINGS).application(), SETTINGS) as url:
        with opened(url) as talk:
            assert refusal(talk)[1].endswith("cannot stream")
        assert httpx2.get(url + "health").json()["status"] == "ok"
