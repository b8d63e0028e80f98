"""A program written in single precision, computed in double.

Layers, normalisations and losses here say float32 where they mean it: with 64 bits switched on they
still round. So the program is traced as it is, derivatives included, and its operations are carried
out one by one in double precision. Numbers and arrays that it holds are what float32 made of them:
it is the same function, without the rounding on the way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from common import errors

_WIDE = {
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.complex64): np.dtype(np.complex128),
}
# Programs within a program that are carried out in place; whatever rules of differentiation they
# have, the program here is differentiated already.
_INLINE = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# These carry a program for the combination of two numbers: made anew for wider ones.
_SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter_add": jax.lax.scatter_add,
    "scatter_mul": jax.lax.scatter_mul,
    "scatter_min": jax.lax.scatter_min,
    "scatter_max": jax.lax.scatter_max,
}


def in_double(fn: Callable) -> Callable:
    """`fn` with float32 arguments taken, and all it computes done, in float64.

    To be called where 64 bits are on (`jax.enable_x64`), inside `jax.jit` or not. Arguments are
    trees of arrays; `fn` closes over none that are traced. bfloat16 stays what it is. Raises
    UserError for an operation on a program that it does not know.
    """

    def wide(*args: Any) -> Any:
        with jax.enable_x64(False):
            shapes = jax.tree.map(_single, args)
            closed, found = jax.make_jaxpr(fn, return_shape=True)(*shapes)
        flat = [_widened(x) for x in jax.tree.leaves(args)]
        out = _closed(closed, flat)
        return jax.tree.unflatten(jax.tree.structure(found), out)

    return wide


def _single(x: Any) -> jax.ShapeDtypeStruct:
    narrow = {after: before for before, after in _WIDE.items()}
    dtype = jnp.result_type(x)
    if not isinstance(dtype, np.dtype):
        return jax.ShapeDtypeStruct(jnp.shape(x), dtype)
    return jax.ShapeDtypeStruct(jnp.shape(x), narrow.get(dtype, dtype))


def _widened(x: Any) -> Any:
    dtype = _WIDE.get(x.dtype) if hasattr(x, "dtype") else None
    return x if dtype is None else jnp.asarray(x).astype(dtype)


def _closed(closed: Any, args: Sequence[Any]) -> list[Any]:
    return _carried_out(closed.jaxpr, [_widened(x) for x in closed.consts], args)


def _carried_out(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(place: Any) -> Any:
        if isinstance(place, core.Literal):
            dtype = _WIDE.get(getattr(place.aval, "dtype", None), place.aval.dtype)
            return jnp.asarray(place.val, dtype)
        return values[place]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        out = _operation(equation, [read(place) for place in equation.invars])
        values.update(zip(equation.outvars, out, strict=True))
    return [read(place) for place in jaxpr.outvars]


def _operation(equation: Any, args: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _INLINE:
        program = params[_INLINE[name]]
        if isinstance(program, core.Jaxpr):
            return _carried_out(program, [], args)
        return _closed(program, args)
    if name == "scan":
        return _scan(params, args)
    if name == "while":
        return _while(params, args)
    if name == "cond":
        branches = [lambda *x, b=b: tuple(_closed(b, x)) for b in params["branches"]]
        return jax.lax.switch(args[0].astype(jnp.int32), branches, *args[1:])
    if name in _SCATTERS:
        kept = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [_SCATTERS[name](*args, **{key: params[key] for key in kept})]
    if name == "bitcast_convert_type":  # of bits, which have their width
        before = [x.astype(place.aval.dtype) for x, place in zip(args, equation.invars)]
        return [_widened(equation.primitive.bind(*before, **params))]
    if any(isinstance(x, core.Jaxpr | core.ClosedJaxpr) for x in jax.tree.leaves(params)):
        raise errors.UserError(
            f"this network computes {name}, which cannot be done in double precision here: leave "
            "--float64 out."
        )
    wide = {key: _WIDE.get(x, x) if isinstance(x, np.dtype) else x for key, x in params.items()}
    out = equation.primitive.bind(*args, **wide)
    return out if equation.primitive.multiple_results else [out]


def _scan(params: Any, args: list[Any]) -> Sequence[Any]:
    fixed, carried = params["num_consts"], params["num_carry"]
    consts, init, over = args[:fixed], args[fixed : fixed + carried], args[fixed + carried :]

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        out = _closed(params["jaxpr"], [*consts, *carry, *x])
        return tuple(out[:carried]), tuple(out[carried:])

    kept = {key: params[key] for key in ("length", "reverse", "unroll")}
    last, found = jax.lax.scan(body, tuple(init), tuple(over), **kept)
    return [*last, *found]


def _while(params: Any, args: list[Any]) -> Sequence[Any]:
    of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
    cond, body = args[:of_cond], args[of_cond : of_cond + of_body]
    return jax.lax.while_loop(
        lambda carry: _closed(params["cond_jaxpr"], [*cond, *carry])[0],
        lambda carry: tuple(_closed(params["body_jaxpr"], [*body, *carry])),
        tuple(args[of_cond + of_body :]),
    )
