"""A small trained network that the commands of speaker recognition share."""

import dataclasses
import pathlib

import numpy as np
import pytest

from common import parallel, trainer, workdir
from common.audio import io
from configs.speaker import quickstart
from speaker import task as speaker_task

RATE_HZ = 16000
SPEAKERS = ("ann", "bob", "cid", "dee", "eve", "fay")


def voice(speaker: int, seconds: float, seed: int) -> np.ndarray:
    """Syllables of a buzz with its own pitch and formant, and noise.

    They come and go, because the mean of the features over time is taken away.
    """
    rng = np.random.default_rng([speaker, seed])
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch = (100 + 31 * speaker) * rng.uniform(0.97, 1.03)
    buzz = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    formant = np.sin(2 * np.pi * (600 + 400 * speaker) * rng.uniform(0.97, 1.03) * time)
    noise = rng.normal(size=len(time))
    syllable = np.sin(2 * np.pi * (4 * time + rng.random())) > 0
    return (0.05 * syllable * (buzz + formant) + 0.01 * noise).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Run:
    """A work directory, and the folder of the recordings `<speaker>-<number>.wav`."""

    workdir: pathlib.Path
    audio: pathlib.Path

    def files(self, *stems: str) -> list[str]:
        return [str(self.audio / f"{stem}.wav") for stem in stems]


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """Six voices; trained on three recordings of each and evaluated, so calibrated, on three."""
    audio, folder = tmp_path_factory.mktemp("voices"), tmp_path_factory.mktemp("run")
    rows = ["id\taudio\tspeaker\tsplit"]
    for s, name in enumerate(SPEAKERS):
        for i in range(7):
            stem = f"{name}-{i}"
            io.write_wav(audio / f"{stem}.wav", voice(s, 0.6 + 0.2 * i, i), RATE_HZ)
            part = "train" if i < 3 else "dev" if i < 6 else "test"
            rows.append(f"{stem}\t{stem}.wav\t{name}\t{part}")
    (audio / "all.tsv").write_text("\n".join(rows) + "\n")
    config = quickstart.get_config("debug")
    config.data.update({"kind": "manifest", "root": str(audio / "all.tsv"), "crop_seconds": 1.0})
    config.data.update({"batch_rows": 16, "max_eval_seconds": 2.0, "eval_batch_seconds": 20.0})
    config.update({"total_steps": 60, "evaluate_every": 60, "checkpoint_every": 60})
    config.update({"ema_decay": 0.0, "seed": 1})
    config.writers.tensorboard = False
    config = workdir.freeze(config)
    task = speaker_task.make_task(config, folder)
    task.prepare()
    trainer.train(task, config, folder, parallel.make_mesh())
    return Run(folder, audio)


def failure(main, *arguments: object) -> str:
    """The message with which a command stops."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, str), "argparse refused the options"
    return stopped.value.code
