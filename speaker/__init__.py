"""Speaker recognition: x-vector, ResNet and ECAPA-TDNN with margin losses.

from speaker import load
network = load("runs/speaker")
network.compare("a.wav", "b.wav").probability
"""

from typing import Any


def load(workdir: Any, *, step: int | None = None) -> Any:
    """The network of a work directory, see `speaker.embed.Embedder`."""
    from speaker import embed  # not before it is wanted: data workers import this package too

    return embed.Embedder(workdir, step)
