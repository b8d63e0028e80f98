"""Six people whose pitch and colour go together, in memory, and tasks on them."""

import contextlib
import dataclasses

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from common import evaluation, parallel, trainer, workdir
from common.data import classes, pipeline, records, splits
from configs.generation import quickstart
from generation import images, paired
from generation import task as generation_task

RATE_HZ = 16000
NAMES = ("ann", "bob", "cid", "dee", "eve", "fay")


def voice(person: int, seconds: float, seed: int) -> np.ndarray:
    """A buzz with its own formant, and some noise."""
    rng = np.random.default_rng([person, seed])
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    buzz = sum(np.sin(2 * np.pi * (110 + 25 * person) * k * time) / k for k in range(1, 12))
    formant = np.sin(2 * np.pi * (400 + 600 * person) * time)
    return (0.1 * buzz + 0.1 * formant + 0.01 * rng.normal(size=len(time))).astype(np.float32)


def colour(person: int) -> np.ndarray:
    """From blue to red."""
    share = person / (len(NAMES) - 1)
    return np.array([20 + 210 * share, 60, 230 - 210 * share])


@dataclasses.dataclass(frozen=True)
class Flags:
    """Two pictures of each person: the colour, brighter to one side. `broken` cannot be read."""

    names: tuple[str, ...] = NAMES
    broken: tuple[str, ...] = ()
    name: str = "flags"
    fingerprint: str = "flags"
    mirrored: bool = True

    @property
    def people(self):
        return self.names

    def count(self, person):
        return 2

    def __call__(self, person, number):
        if person in self.broken:
            return images.read(b"no picture", name=f"{person}/{number}.jpeg")
        ramp = np.linspace(-20, 20, 32)[None, :, None] * (1 - 2 * number)
        flat = colour(NAMES.index(person))[None, None]
        return np.clip(flat + ramp + np.zeros((32, 32, 3)), 0, 255).astype(np.uint8)


def corpus(names=NAMES, count: int = 3, name: str = "train") -> splits.Split:
    """`count` recordings of 0.6 s and more of each person."""
    rows = [
        {
            "id": f"{who}-{i}",
            "audio": voice(NAMES.index(who), 0.6 + 0.3 * i, i),
            "sample_rate": RATE_HZ,
            "speaker": who,
        }
        for who in names
        for i in range(count)
    ]
    lengths = np.array([len(row["audio"]) for row in rows])
    source = records.RecordList("voices", tuple(rows))
    return splits.Split(name, source, records.Index(np.arange(len(rows)), lengths, RATE_HZ))


class Given(paired.WithFaces):
    """Faces that are given, whatever the settings say."""

    def __init__(self, parts, faces, task):
        super().__init__(parts, task.config, task.workdir)
        self._given = faces

    def faces(self, name):
        return self._given


def make_task(tmp_path, changes=None, faces=None, train=None):
    """A debug task at 8 x 8 on these people, who are in both parts."""
    config = quickstart.get_config("debug")
    config.data.update({"crop_seconds": 0.5, "eval_seconds": 0.5, "batch_rows": 16})
    config.picture.size = 8
    config.loss.update({"contrast": 0.0, "augment": ()})  # where a test does not ask for them
    config.update_from_flattened_dict(changes or {})
    train = train or corpus()
    config = workdir.freeze(config)
    found = generation_task.make_task(config, tmp_path)
    found = dataclasses.replace(found, recordings={"train": train, "dev": corpus(name="dev")})
    object.__setattr__(found, "parts", Given(found.recordings, faces or Flags(), found))
    classes.write(found.train_split, tmp_path)
    return found


# Adam divides a gradient that is nothing but rounding by its own size: devices would differ.
PLAIN = {
    f"{of}.{name}": value
    for of in ("optimizer", "discriminator_optimizer", "face_optimizer")
    for name, value in {"name": "sgd", "momentum": 0.0, "learning_rate": 0.1}.items()
}


@contextlib.contextmanager
def compiled_anew():
    """Without programs from the cache: see `app.use_compile_cache`."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def trained(task, steps: int, devices: int = 1):
    """The state and the sums after some steps."""
    if devices > 1:
        with compiled_anew():
            return _trained(task, steps, devices)
    return _trained(task, steps, devices)


def _trained(task, steps: int, devices: int):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    state = parallel.place(task.create_state(jax.jit(task.init)(jax.random.key(0))), mesh)
    step = trainer.make_train_step(task, task.config, mesh)
    with pipeline.opened(task.train_data()) as batches:  # its readers would go on for ever
        for _ in range(steps):
            state, sums = step(state, parallel.global_batch(next(batches), mesh))
    return jax.device_get(state), jax.device_get(sums)


def followed(task, state):
    """How far the red and the blue of made faces go with those of the voices' people: two
    correlations, 1 at best."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = evaluation.make_eval_step(task, task.config, mesh)
    (batches,) = task.eval_data().values()
    rows = [
        jax.device_get(step(state.eval_variables, parallel.global_batch(batch, mesh))[1])
        for batch in batches
    ]
    real = np.concatenate([row["mask"] for row in rows])
    people = np.concatenate([row["person"] for row in rows])[real]
    fakes = images.to_bytes(np.concatenate([row["fakes"] for row in rows])[real])
    means = fakes.mean((1, 2, 3))
    wanted = np.array([colour(p) for p in people])
    return [np.corrcoef(means[:, channel], wanted[:, channel])[0, 1] for channel in (0, 2)]
