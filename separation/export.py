"""Writes the streaming step of a network as one file, which runs without this code.

    python -m separation.export --workdir=runs/separation --out=step.jaxexport

The file (`common.export`) holds programs of jax.export for the platforms named, the weights, and
what is to be known of them: rate, hop, latency, shapes. `separation.exported("step.jaxexport")`
reads it; so does a program that has only jax, numpy and flatbuffers:

    file = numpy.load("step.jaxexport")
    about = json.loads(str(file["about"]))
    step = jax.jit(jax.export.deserialize(bytearray(file["programs/step"])).call)
    weights = [file[name] for name in about["weights"]]
    state = [file[name] for name in about["state"]]
    for chunk in chunks:  # float32 [1, about["hop_size"]] at about["sample_rate_hz"]
        state, audio = step(weights, state, chunk)  # as many, about["delay_samples"] late

It extracts the voice of --enroll, by default the loudest. For others: `cue` and `with_cue`, see
`PROGRAMS`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from common import app, errors, export, files
from separation import artefact as artefact_lib
from separation import enhancer as enhancer_lib

KIND = artefact_lib.KIND
BLOCK = enhancer_lib.BLOCK_HOPS
# What a file's programs take and give; a batch is one stream.
PROGRAMS = {
    "step": "(weights, state, chunk [1, hop_size]) -> (state, audio [1, hop_size])",
    "block": f"the same of {BLOCK} hops at once",
    "cue": "(weights, enrolment [1, enrolment_samples], filled up with zeros, lengths int32 [1]) "
    "-> cue [1, c]; of length 0: the null cue, for which the loudest voice wins",
    "with_cue": "(weights, state, cue) -> state, for the voice of the cue from there on",
}
_PLATFORMS = ("cpu", "cuda")


def artefact(
    enhancer: enhancer_lib.Enhancer,
    cue: Float[Array, "1 c"],
    platforms: Sequence[str] = _PLATFORMS,
) -> export.Artefact:
    """The programs of a network, its weights, and the state of a stream that begins with `cue`.

    Raises UserError for networks that cannot stream, and for those that see.
    """
    enhancer.check_streams()
    if enhancer.sees_lips or enhancer.sees_face:
        raise errors.UserError(
            "This network sees lips or faces, and exports are of networks that only hear: train "
            "one with config.sight.lips=False and config.sight.face=False."
        )
    # What tells the training speakers apart is of no use any more.
    params = {k: v for k, v in enhancer.variables["params"].items() if k != "speakers"}
    weights, variables_tree = jax.tree.flatten({**enhancer.variables, "params": params})
    # Its memory is not used again: `start` takes another one.
    state, state_tree = jax.tree.flatten(enhancer.start(cue))

    def variables(weights: list[Array]) -> Mapping[str, Any]:
        return jax.tree.unflatten(variables_tree, weights)

    def step(
        weights: list[Array], state: list[Array], chunk: Float[Array, "1 t"]
    ) -> tuple[list[Array], Float[Array, "1 t"]]:
        before = jax.tree.unflatten(state_tree, state)
        after, audio = enhancer.pure_step(variables(weights), before, chunk)
        return jax.tree.leaves(after), audio

    def cue_of(
        weights: list[Array], enrolment: Float[Array, "1 n"], lengths: Int[Array, "1"]
    ) -> Float[Array, "1 c"]:
        return enhancer.pure_cue(variables(weights), enrolment, lengths)

    def with_cue(weights: list[Array], state: list[Array], cue: Float[Array, "1 c"]) -> list[Array]:
        before = jax.tree.unflatten(state_tree, state)
        return jax.tree.leaves(enhancer.pure_with_cue(variables(weights), before, cue))

    hop, rate = enhancer.extractor.hop_size, enhancer.sample_rate_hz
    longest = enhancer.enrolment_samples
    arguments = {
        "step": (step, state, jnp.zeros((1, hop))),
        "block": (step, state, jnp.zeros((1, BLOCK * hop))),
        "cue": (cue_of, jnp.zeros((1, longest)), jnp.zeros(1, jnp.int32)),
        "with_cue": (with_cue, state, cue),
    }
    programs = {
        name: export.program(function, weights, *others, platforms=platforms)
        for name, (function, *others) in arguments.items()
    }
    about = {
        "sample_rate_hz": rate,
        "channel": enhancer.channel,
        "hop_size": hop,
        "block_hops": BLOCK,
        "delay_samples": enhancer.extractor.delay_samples,
        "latency_ms": enhancer.latency_ms,
        "enrolment_samples": longest,
        "weights": [f"weights/{i:04}" for i in range(len(weights))],
        "state": [f"state/{i:04}" for i in range(len(state))],
        "state_shapes": [list(x.shape) for x in state],
        "programs": PROGRAMS,
        "use": __doc__,
    }
    names = [*about["weights"], *about["state"]]
    arrays = dict(zip(names, map(np.asarray, [*weights, *state]), strict=True))
    return export.Artefact(about, programs, arrays)


def main() -> None:
    """The command line."""
    parser = app.parser(KIND, __doc__)
    app.add_run(parser)
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="FILE", help="by default DIR/export/step.jaxexport"
    )
    parser.add_argument(
        "--enroll",
        metavar="FILE",
        action="append",
        help="a recording of the voice that it begins with; may be repeated",
    )
    parser.add_argument(
        "--platforms", nargs="+", choices=export.PLATFORMS, default=_PLATFORMS, help="(cpu cuda)"
    )
    args = parser.parse_args()

    def work() -> None:
        path = args.out or pathlib.Path(args.workdir) / "export" / "step.jaxexport"
        path = path.expanduser()
        files.check_output(path)
        files.check_kept(path, args.enroll or ())
        network = enhancer_lib.load(args.workdir, step=args.checkpoint)
        network.check_streams()
        made = artefact(network, network.cue(args.enroll), tuple(dict.fromkeys(args.platforms)))
        export.write(path, KIND, made)
        about, ms = made.about, 1000 / network.sample_rate_hz
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, for {', '.join(args.platforms)}\n"
            f"  {about['sample_rate_hz']} Hz, hops of {about['hop_size']} samples "
            f"({about['hop_size'] * ms:g} ms), algorithmic latency {about['latency_ms']:g} ms\n"
            f"  Next: from separation import exported; stream = exported({str(path)!r}).stream()"
        )

    app.command(KIND, work)


if __name__ == "__main__":
    main()
