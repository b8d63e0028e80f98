"""The streaming extractor that sees lips and a face too, on synthetic talking faces.

Data: an hour of eSpeak NG's voices with drawn mouths and portraits, rendered on first use, mixed
anew in every step. Evaluated on people who are not in training. Drawings and synthetic speech: the
figures say nothing about real people.
Command: python -m separation.main --config=configs/separation/audiovisual_quickstart.py \
         --workdir=runs/seen
Hardware: 2 CPU cores.
Argument: debug (tiny model, a few dozen steps), or heard (the same without lips and faces).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from configs.separation import quickstart


def get_config(size: str = "") -> ConfigDict:
    """The quickstart's extractor with two more cues, each of which may be missing."""
    if size not in ("", "debug", "heard"):
        raise ValueError(
            f"audiovisual_quickstart.py:{size}: the argument is debug, heard or nothing"
        )
    config = quickstart.get_config("debug" if size == "debug" else "")
    config.data.kind = "embedded_faces"
    config.mixing.absent = 0.0
    config.cue.dropout = 0.5
    config.sight.update({"lips": size != "heard", "face": size != "heard", "dropout": 0.2})
    if size == "debug":
        config.sight.update({"widths": (4, 8), "size": 8})
    return config
