"""A small conditional GAN draws faces of synthetic voices, on a laptop.

Non-saturating loss, projection discriminator with wrong pairs, InfoNCE between voices and faces
(which is what makes the faces fit: benchmarks/RESULTS.md), R1, pictures of a changed colour,
average of the generator. Data: eSpeak NG's voices with drawn portraits, some factors of which
follow the voice; rendered on first use. Drawings: the figures say nothing about people.
Command: python -m generation.main --config=configs/generation/quickstart.py --workdir=runs/faces
Hardware: 2 CPU cores.
Argument: debug (tiny networks, a few dozen steps, several checkpoints).
Expected: see benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from generation import settings


def get_config(size: str = "") -> ConfigDict:
    """At 32 x 32, of 1,000 people: the corpus of matcher.py, so that it is rendered once."""
    if size not in ("", "debug"):
        raise ValueError(f"quickstart.py:{size}: the argument is debug or nothing")
    config = settings.default_config()
    config.data.update({"hours": 2.0, "voices": 1000, "eval_hours": 0.25, "eval_voices": 96})
    config.data.update({"batch_rows": 32, "crop_seconds": 2.0, "eval_seconds": 3.0})
    config.model.embedding = 8  # as few as the judge's, and for the same reason
    config.loss.update({"contrast": 1.0, "contrast_temperature": 0.2})
    config.loss.update({"augment": ("colour",), "augment_strength": 0.3})
    config.optimizer.learning_rate = 1e-3
    config.discriminator_optimizer.learning_rate = 1e-3
    config.update({"total_steps": 3200, "log_every": 50, "evaluate_every": 400})
    config.update({"checkpoint_every": 400, "ema_decay": 0.995})
    if size == "debug":
        shrink(config)
    return config


def chosen(file: str, argument: str, kinds: tuple[str, ...]) -> tuple[str, bool]:
    """(the one of `kinds` that an argument names, by default the first; whether it says debug)."""
    words = argument.split("-") if argument else []
    kind = next((word for word in words if word in kinds), kinds[0])
    if [*dict.fromkeys(words)] != words or set(words) - {kind, "debug"}:
        raise ValueError(
            f"{file}:{argument}: the argument is debug or nothing, or one of {', '.join(kinds)}, "
            "alone or followed by -debug"
        )
    return kind, "debug" in words


def shrink(config: ConfigDict) -> None:
    """Tiny networks and a few dozen steps on a minute of the embedded corpus."""
    config.data.update({"kind": "embedded", "train": ("train",), "eval": ("dev",), "test": ()})
    config.data.update({"hours": 0.02, "eval_hours": 0.01, "batch_rows": 16, "num_workers": 0})
    config.data.update({"voices": 8, "eval_voices": 4, "min_seconds": 0.4, "crop_seconds": 1.0})
    config.data.update({"eval_seconds": 1.0, "eval_turns": 2, "eval_rows": 8, "vad": "none"})
    config.features.update({"num_mels": 24, "num_fft": 1024})
    config.voice.update({"channels": (16, 16), "size": 8, "crop_frames": (0, 0)})
    config.model.update({"width": 4, "most": 16, "noise": 8, "generator_widths": (16, 8, 8, 8, 8)})
    config.model.update({"face_widths": (8, 8, 8, 8, 8), "embedding": 8})
    config.model.update({"discriminator_width": 4, "discriminator_most": 16})
    config.model.matcher.update({"size": 8, "voice_channels": 16, "face_channels": 4})
    config.samples.update({"people": 4, "faces": 2})
    for name in ("optimizer", "discriminator_optimizer", "face_optimizer"):
        config[name].update({"schedule": "constant", "learning_rate": 2e-3, "warmup_steps": 1})
    config.update({"total_steps": 30, "log_every": 5, "evaluate_every": 15})
    config.update({"checkpoint_every": 10, "ema_decay": min(config.ema_decay, 0.9)})
    config.update({"dtype": "float32"})
