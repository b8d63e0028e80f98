"""Memory of the classification head on each device, dense and class-sharded, as XLA counts it.

python -m benchmarks.speaker_head_memory [--devices 8] [--rows 512]

Compiles the real training step (momentum SGD) of a tiny encoder with embeddings of 256 dimensions
for so many devices, which the host pretends to be, and runs nothing. Without the head the step
takes what the first line says.
"""

import argparse
import pathlib
import tempfile

import jax
import numpy as np

from common import parallel, trainer, workdir
from configs.speaker import quickstart
from speaker import head
from speaker import task as speaker_task


def step_memory(num_classes: int, rows: int, *, sharded: bool) -> tuple[int, int]:
    """(bytes that stay on a device from step to step, bytes of temporaries in a step)."""
    config = quickstart.get_config("debug")
    config.model.embedding_size = 256
    config.update({"ema_decay": 0.0})
    config.optimizer.update({"name": "sgd", "momentum": 0.9, "weight_decay": 0.0})
    config.loss.sharded = sharded
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "speakers.txt").write_text("".join(f"{i:07d}\n" for i in range(num_classes)))
        task = speaker_task.SpeakerTask(workdir.freeze(config), folder, {})
        _ = task.classes
    mesh = parallel.make_mesh()
    template = jax.eval_shape(lambda: task.create_state(task.init(jax.random.key(0))))
    batch = {
        "audio": jax.ShapeDtypeStruct((rows, 3200), np.float32),
        "audio_lengths": jax.ShapeDtypeStruct((rows,), np.int32),
        "label": jax.ShapeDtypeStruct((rows,), np.int32),
        "mask": jax.ShapeDtypeStruct((rows,), bool),
        "index": jax.ShapeDtypeStruct((rows,), np.int32),
    }
    step = trainer.make_train_step(task, task.config, mesh)
    found = step.lower(template, batch).compile().memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 100_000, 1_000_000])
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    mib = 1 << 20
    print(f"{args.devices} devices, {args.rows} rows, 256 dimensions, float32, momentum SGD; MiB")
    print(
        "| classes | head | state | temporaries | weights, gradients, moments, scores by formula |"
    )
    print("|---|---|---|---|---|")
    for classes in args.classes:
        for sharded in (False, True):
            kept, temporary = step_memory(classes, args.rows, sharded=sharded)
            parts = head.head_memory(
                classes, 256, args.rows, args.devices, sharded=sharded, moments=1
            )
            print(
                f"| {classes:,} | {'sharded' if sharded else 'dense'} | {kept / mib:,.0f} | "
                f"{temporary / mib:,.0f} | {', '.join(f'{part / mib:,.0f}' for part in parts)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
