"""Pages of a server in a real browser, whose microphone is a file."""

import contextlib
import pathlib
import shutil

import numpy as np
import pytest

pytest.importorskip("playwright", reason="a browser is optional: see requirements-dev.txt")
from playwright import sync_api

from common.audio import io

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDED = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)


@contextlib.contextmanager
def browser(microphone: pathlib.Path | None = None):
    """A page that may hear, and what went wrong on it; nothing may."""
    flags = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    if microphone is not None:
        flags += [
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}",
        ]
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = chromium.new_page()
        page.set_default_timeout(20_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on(
            "console",
            lambda said: wrong.append(said.text) if said.type == "error" else None,
        )
        yield page, wrong
        chromium.close()


def wav(name: str, samples: np.ndarray, rate: int) -> dict:
    """A recording to be chosen in a field for files."""
    return {"name": name, "mimeType": "audio/wav", "buffer": io.wav_bytes(samples, rate)}


def wait_for(page, place: str, text: str) -> None:
    """Until an element holds this text."""
    page.locator(place).filter(has_text=text).wait_for()
