"""Statistics of a solve, which have no derivative: an error instead of a silent zero."""

from typing import Any

import equinox as eqx
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .host import raise_if


# Those that are NaN where nothing was computed. So may their tangents be.
_PADDED = ("residual_norms", "lanczos")


def without_derivative(stats: dict[str, Any], *inputs: PyTree) -> dict[str, Any]:
    """`stats`, which come of `inputs`, and nothing computed but in a derivative of them.

    A cotangent of theirs that is not zero is an error when the program runs: whether it
    is zero need not be known before. In forward mode nobody knows who reads a tangent:
    those of norms and coefficients are NaN, of others zero.
    """
    arrays = jtu.tree_leaves(eqx.filter(inputs, eqx.is_inexact_array))

    def constant(name, leaf):
        if not eqx.is_inexact_array(leaf):
            return leaf
        return statistic_p.bind(leaf, *arrays, name=name)

    return {
        name: jtu.tree_map(lambda leaf, name=name: constant(name, leaf), value)
        for name, value in stats.items()
    }


def _message(name: str) -> str:
    return (
        f'The solve was differentiated through `stats["{name}"]`, which has no '
        "derivative. Differentiate `value`, or pass `adjoint=UnrolledAdjoint()` for that "
        'of `stats["residual_norms"]`; `jax.lax.stop_gradient` makes it a constant.'
    )


def _create_tangent() -> jex.Primitive:
    """The tangent of a statistic, by those of what it comes of; it has no transpose."""
    primitive = jex.Primitive("tangent_of_statistic")

    def fill(leaf, *tangents, name):
        del tangents
        return jnp.full_like(leaf, jnp.nan if name in _PADDED else 0)

    def jvp(primals, tangents, *, name):
        leaf, *inputs = primals
        out = primitive.bind(leaf, *inputs, name=name)
        return out, _bind(leaf, tangents, name)

    def transpose(cotangent, leaf, *inputs, name):
        if isinstance(cotangent, ad.Zero):
            return None, *(None for _ in inputs)
        told = jnp.any(cotangent != 0).astype(jnp.int32)
        one = raise_if(told, ("", _message(name)))

        def zero(x):
            return jnp.zeros(x.aval.shape, x.aval.dtype) * one.astype(x.aval.dtype)

        linear = (ad.is_undefined_primal(x) for x in inputs)
        pairs = zip(inputs, linear, strict=True)
        return None, *(zero(x) if is_linear else None for x, is_linear in pairs)

    primitive.def_impl(fill)
    primitive.def_abstract_eval(lambda leaf, *tangents, name: leaf)
    mlir.register_lowering(primitive, mlir.lower_fun(fill, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = lambda arguments, axes, *, name: (
        primitive.bind(*arguments, name=name),
        axes[0],
    )
    return primitive


def _bind(leaf: Array, tangents: Any, name: str):
    of_leaf, *tangents = tangents
    present = [t for t in tangents if not isinstance(t, ad.Zero)]
    if not present:
        return of_leaf
    return tangent_p.bind(leaf, *present, name=name)


def _create_statistic() -> jex.Primitive:
    primitive = jex.Primitive("statistic")

    def jvp(primals, tangents, *, name):
        leaf = primals[0]
        out = primitive.bind(*primals, name=name)
        return out, _bind(leaf, tangents, name)

    primitive.def_impl(lambda leaf, *inputs, name: leaf)
    primitive.def_abstract_eval(lambda leaf, *inputs, name: leaf)
    mlir.register_lowering(primitive, lambda ctx, leaf, *inputs, name: [leaf])
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = lambda arguments, axes, *, name: (
        primitive.bind(*arguments, name=name),
        axes[0],
    )
    return primitive


tangent_p = _create_tangent()
statistic_p = _create_statistic()
