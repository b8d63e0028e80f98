"""`common.serve` under an application of one route: who may ask, how much, and the end."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

import pytest

pytest.importorskip("fastapi", reason="servers are optional: see requirements-dev.txt")
import fastapi
import httpx2
from websockets import exceptions as websocket_exceptions
from websockets.sync import client as websocket

from common import errors
from common.serve import app, measures, running, settings, sockets, store
from tests import commands, serving

LIMITS = settings.Limits(upload_bytes=1000, requests=1, idle_seconds=0.5)


@contextlib.asynccontextmanager
async def nothing():
    yield


def application(made_for: settings.Settings) -> fastapi.FastAPI:
    """Counts bytes; fails where they are "fail"; echoes the header of a websocket."""
    measured = measures.Measures("toy")
    made = app.make(
        "Toy",
        "",
        pages=app.PAGES,
        settings=made_for,
        measured=measured,
        health=lambda: {"status": "ok"},
        work=nothing,
    )

    @made.post("/size", dependencies=app.TOKEN)
    async def size(request: fastapi.Request) -> int:
        data = await request.body()
        if data == b"fail":
            raise RuntimeError("as asked")
        if data == b"mend":
            raise errors.UserError("Mend this.")
        return len(data)

    @made.websocket("/echo")
    async def echo(socket: fastapi.WebSocket) -> None:
        async with sockets.serving(socket, made_for, measured) as talk:
            await talk.send(await talk.header())

    return made


def served(token: str = ""):
    made_for = settings.Settings(token, LIMITS)
    return serving.served(application(made_for), made_for)


@pytest.fixture(scope="module")
def url():
    with served() as found:
        yield found


def test_a_token_is_asked_for_by_what_is_not_public():
    with served("sesame") as url, httpx2.Client(base_url=url) as client:
        for path, status in (("health", 200), ("docs", 307), ("openapi.json", 200), ("size", 401)):
            assert client.get(path).status_code == status
        assert client.get("metrics").status_code == 401
        for given, status in (("Bearer sesame", 200), ("Bearer ses", 401), ("sesame", 401)):
            answer = client.post("size", content=b"abc", headers={"authorization": given})
            assert answer.status_code == status
        assert "Authorization: Bearer TOKEN" in answer.json()["detail"]
        for header, headers in (
            ({"token": "sesame"}, {}),
            ({}, {"Authorization": "Bearer sesame"}),
        ):
            with websocket.connect(
                url.replace("http", "ws") + "echo", additional_headers=headers
            ) as talk:
                talk.send(json.dumps(header))
                assert json.loads(talk.recv(60)) == {}
        for header in ({"token": "other"}, {"token": None}, {}):
            assert end(url, json.dumps(header))[0] == 4401


def end(url: str, first: str | bytes, **headers: str) -> tuple[int, str]:
    """How a websocket ends that begins so."""
    with websocket.connect(url.replace("http", "ws") + "echo", additional_headers=headers) as talk:
        talk.send(first)
        try:
            while True:
                talk.recv(60)
        except websocket_exceptions.ConnectionClosed as closed:
            return closed.rcvd.code, closed.rcvd.reason


def test_a_websocket_begins_with_a_header(url):
    message = "the first frame has to be an object in JSON"
    for first in ("hello", "3", "[" * 100_000, b"{}", b"\xff\xfe"):
        assert end(url, first) == (4400, message)
    assert end(url, "{}") == (1000, "")


def test_pages_of_other_sites_and_other_names_are_refused(url):
    """A page can be made to name this machine as its own site (DNS rebinding)."""
    own = urllib.parse.urlsplit(url).netloc
    for headers, status in (
        ({"host": "evil.example"}, 403),
        ({"host": own, "origin": "http://evil.example"}, 403),
        ({"host": own, "origin": "null"}, 403),
        ({"host": own, "origin": f"http://{own}"}, 200),
    ):
        assert httpx2.post(url + "size", content=b"a", headers=headers).status_code == status
    with pytest.raises(websocket_exceptions.InvalidStatus):
        end(url, "{}", Origin="http://evil.example")


def test_a_body_is_broken_off_where_it_is_too_large_or_stops(url, caplog):
    assert httpx2.post(url + "size", content=bytes(1000)).json() == 1000
    pieces = (bytes(300) for _ in range(10))
    for content in (bytes(1001), pieces):  # the length is stated, or it is not
        answer = httpx2.post(url + "size", content=content)
        assert answer.status_code == 413
        assert answer.json() == {"detail": "more than 1000 bytes, the limit of an upload"}
    place = urllib.parse.urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(place.hostname, place.port)) as stopped:
        stopped.putrequest("POST", "/size")
        stopped.putheader("content-length", "500")
        stopped.endheaders(b"a")
        # It is the one request with a body that may be there at once.
        other = httpx2.post(url + "size", content=b"b")
        assert (other.status_code, other.headers["retry-after"]) == (503, "1")
        answer = stopped.getresponse()
        assert answer.status == 408
        assert json.loads(answer.read()) == {"detail": "nothing came for 0.5 s"}
    with socket.create_connection((place.hostname, place.port)) as gone:
        gone.sendall(b"POST /size HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\nabc")
    with socket.create_connection((place.hostname, place.port)) as junk:
        junk.sendall(b"\x00\xff no HTTP at all \r\n\r\n")
        assert junk.recv(99).startswith(b"HTTP/1.1 400")
    until = time.monotonic() + 60
    while httpx2.post(url + "size", content=b"c").status_code != 200:
        assert time.monotonic() < until
    assert not caplog.text.count("Traceback")


def test_failures_are_one_message_and_the_server_lives(url, caplog):
    answer = httpx2.post(url + "size", content=b"mend")
    assert (answer.status_code, answer.json()) == (422, {"detail": "Mend this."})
    answer = httpx2.post(url + "size", content=b"fail")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "this server failed; its log says more"}
    until = time.monotonic() + 60
    while "as asked" not in caplog.text:  # it is logged after the answer
        assert time.monotonic() < until
        time.sleep(0.01)
    text = httpx2.get(url + "metrics").text
    assert 'toy_requests_total{route="/size",status="500"} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_pages_come_with_their_rules_and_nothing_beside_them(url):
    answer = httpx2.get(url, follow_redirects=True)
    assert answer.status_code in (200, 404)  # the toy has no page of its own
    answer = httpx2.get(url + "docs", follow_redirects=True)
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    for path in ("page/../app.py", "page/%2e%2e/app.py", "shared//etc/passwd"):
        assert httpx2.get(url + path).status_code == 404


def test_the_oldest_makes_room():
    kept = store.Store(2)
    first, second = kept.add(1), kept.add(2)
    assert kept.get(first) == 1  # so that the second is the oldest
    third = kept.add(3)
    assert [kept.get(first), kept.get(third), len(kept)] == [1, 3, 2]
    with pytest.raises(KeyError):
        kept.get(second)


def test_what_cannot_be_served_is_one_message(monkeypatch, tmp_path):
    serve = ("separation.serve", f"--workdir={tmp_path}")
    monkeypatch.delenv(settings.TOKEN_VARIABLE, raising=False)
    with contextlib.closing(running.listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = commands.message(*serve, f"--port={port}")
    assert f"127.0.0.1:{port} cannot be listened at: it is in use" in said
    assert "lies outside 0 to 65535" in commands.message(*serve, "--port=70000")
    assert "--host=0.0.0.0 lets others in: give --token" in commands.message(
        *serve, "--host=0.0.0.0"
    )
    assert "streams=0 has to be above 0" in commands.message(*serve, "--max-streams=0")
    assert "cannot be listened at" in commands.message(*serve, "--host=no.such.host", "--token=x")
    monkeypatch.setitem(settings.PACKAGES, "no_such_package", "no-such-package")
    assert commands.message(*serve) == (
        "separation.serve: A server needs no-such-package: pip install no-such-package"
    )


def test_a_signal_lets_requests_end():
    """Both what is being sent and the exit code."""
    program = (
        "from common.serve import running, settings\n"
        "from tests.common import test_serve\n"
        "place = running.listen('127.0.0.1', 0)\n"
        "print(running.url(place), flush=True)\n"
        "made_for = settings.Settings()\n"
        "running.run(test_serve.application(made_for), place, made_for.limits)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=commands.ROOT, text=True, stdout=subprocess.PIPE
    ) as process:
        place = urllib.parse.urlsplit(process.stdout.readline().strip())
        with contextlib.closing(http.client.HTTPConnection(place.hostname, place.port)) as begun:
            begun.putrequest("POST", "/size")
            begun.putheader("content-length", "3")
            begun.endheaders(b"a")
            httpx2.get(place.geturl() + "health")  # it is being served by now
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            begun.send(b"bc")
            assert begun.getresponse().read() == b"3"
        assert process.wait(60) == 0
