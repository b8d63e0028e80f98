"""What is kept for all runs of a user: rendered speech, what validation found, programs."""

import os
import pathlib


def folder() -> pathlib.Path:
    """$SPEECH_CACHE, or ~/.cache/speech-jax. All in it may be deleted at any time."""
    return pathlib.Path(os.environ.get("SPEECH_CACHE") or "~/.cache/speech-jax").expanduser()
