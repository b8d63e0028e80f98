"""Seconds of ContextNet training steps (encoder forward, backward, Adam), and of its layers.

    python -m benchmarks.contextnet_layers

Beside PyTorch: `python -m benchmarks.training_speed --labels=0`.
"""

import argparse
import functools
import json
import time


def encoder_step_seconds(alpha: float, rows: int, frames: int, steps: int, dtype: str):
    """Seconds of each of `steps` training steps after two that warm up."""
    import jax
    import jax.numpy as jnp
    import optax

    from asr import contextnet

    model = contextnet.ContextNet(contextnet.contextnet(alpha, dtype=jnp.dtype(dtype)))
    features = jax.random.normal(jax.random.key(0), (rows, frames, 80))
    lengths = jnp.full((rows,), frames, jnp.int32)
    batch = (features, lengths)  # arguments of the step: a constant mask would be folded away
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), *batch)
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(1e-3)

    def loss(params, stats, features, lengths):
        (y, _), new = model.apply(
            {"params": params, "batch_stats": stats},
            features,
            lengths,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.mean(jnp.square(y.astype(jnp.float32))), new["batch_stats"]

    def step(params, stats, state, features, lengths):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, features, lengths)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), stats, state

    state = optimizer.init(params)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(params, stats, state, *batch).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        params, stats, state = jax.block_until_ready(compiled(params, stats, state, *batch))
        seconds.append(time.perf_counter() - start)
    return {
        "framework": "jax",
        "parameters": contextnet.count_parameters(params),
        "compile_seconds": compile_seconds,
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "seconds": seconds[2:],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    sizes = (args.alpha, args.rows, args.frames, args.steps, args.dtype)
    print(json.dumps(encoder_step_seconds(*sizes)))


if __name__ == "__main__":
    main()
