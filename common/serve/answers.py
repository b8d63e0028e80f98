"""Answers that are no JSON."""

from fastapi import responses


class Wav(responses.Response):
    """A recording."""

    media_type = "audio/wav"


class Png(responses.Response):
    """A picture."""

    media_type = "image/png"
