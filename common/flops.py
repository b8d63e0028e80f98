"""What the matrix products and convolutions of a traced function cost."""

import contextlib
import math
import re

import jax
from jax.extend import core


def pieces(total: int, each: int) -> contextlib.AbstractContextManager:
    """Around a `while` that takes `each` pieces of work a pass, `total` of them at most.

    Otherwise the trace does not tell how long it is; the name is seen in profiles too.
    """
    return jax.named_scope(f"{total}_pieces_by_{each}")


def count(jaxpr: core.ClosedJaxpr) -> int:
    """Floating-point operations of one call, products and convolutions only.

    Counted on the trace, not by `Compiled.cost_analysis`, which counts the body of a scan once and
    calls of a GPU's libraries not at all. Of branches the dearest counts. A loop whose length is
    not known before it runs (`while`) counts all its `pieces`, without these 0. Inside `shard_map`
    it is one device's share.
    """
    return _count(jaxpr.jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        parts = [_count(part) for part in core.jaxprs_in_params(equation.params)]
        match equation.primitive.name:
            case "dot_general":
                (summed, _), _ = equation.params["dimension_numbers"]
                left, (out,) = equation.invars[0].aval.shape, equation.outvars
                total += 2 * out.aval.size * math.prod(left[axis] for axis in summed)
            case "conv_general_dilated":
                kernel, (out,) = equation.invars[1].aval, equation.outvars
                features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
                # The zeros between the samples of a dilated input cost nothing.
                zeros = math.prod(equation.params["lhs_dilation"])
                total += 2 * out.aval.size * kernel.size // features // zeros
            case "scan":
                total += equation.params["length"] * sum(parts)
            case "while":
                stack = str(equation.source_info.name_stack)
                for whole, each in re.findall(r"(\d+)_pieces_by_(\d+)", stack)[-1:]:
                    total += sum(parts) * int(whole) // int(each)
            case "cond":
                total += max(parts)
            case _:
                total += sum(parts)
    return total
