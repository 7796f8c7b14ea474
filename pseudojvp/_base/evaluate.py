"""Traced functions, of arguments on another mesh than they were traced for.

What is traced of arrays over explicit axes of a mesh has them in its types. Within a
solve XLA alone decides how to shard (`auto_axes.py`), and there such types are errors.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .axes import has_explicit_axes
from .retraced import is_retraced, retraced


# Primitives that return what they are given, sharded in another way.
_MOVES = ("mesh_cast", "reshard", "sharding_constraint")


def evaluated(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]
) -> list[Any]:
    """What `jaxpr` returns; its shardings over explicit axes count only among such.

    What is compiled within it by a `jit` of its own keeps the mesh in its types, and so
    is evaluated step by step.
    """
    return _evaluated(jaxpr, consts, arguments, _are_typed((*consts, *arguments)))


def _are_typed(arrays: Sequence[Any]) -> bool:
    """Whether they are on explicit axes; within a solve none is, but for constants."""
    arrays = [array for array in arrays if isinstance(array, jax.Array)]
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    meshes = [mesh for mesh in meshes if not mesh.empty]
    return len(meshes) > 0 and all(len(mesh.explicit_axes) > 0 for mesh in meshes)


def _evaluated(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], typed: bool
) -> list[Any]:
    if not typed:
        consts = [_without_mesh(const) for const in consts]
    given = (*consts, *arguments)
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))
    for step in jaxpr.eqns:
        out = _step_taken(jaxpr, step, known, typed)
        known.update(zip(step.outvars, out, strict=True))
    return [_read(known, atom) for atom in jaxpr.outvars]


def _step_taken(
    jaxpr: jex.Jaxpr, step: jex.JaxprEqn, known: dict, typed: bool
) -> list[Any]:
    name, inputs = step.primitive.name, [_read(known, atom) for atom in step.invars]
    if name in ("jit", "pjit"):
        inner = step.params["jaxpr"]
        return _evaluated(inner.jaxpr, inner.consts, inputs, typed)
    if name in _MOVES and not typed:
        return inputs
    if typed and is_retraced(step):
        return retraced(step, inputs, _evaluated_among_explicit)
    needed = list({atom: None for atom in step.invars if isinstance(atom, jex.Var)})
    used = [var for var in step.outvars if str(var) != "_"]  # others are dropped
    alone = jaxpr.replace(constvars=[], invars=needed, eqns=[step], outvars=used)
    out = iter(_taken_alone(alone, [known[var] for var in needed], typed))
    return [next(out) if var in used else None for var in step.outvars]


def _evaluated_among_explicit(closed: jex.ClosedJaxpr, inputs: list[Any]) -> list[Any]:
    return _evaluated(closed.jaxpr, closed.consts, inputs, typed=True)


def _taken_alone(alone: jex.Jaxpr, arguments: list[Any], typed: bool) -> list[Any]:
    (step,) = alone.eqns
    if not typed and (_made_among_explicit(step) or _names_axes(step.params)):
        if step.primitive.name == "custom_jvp_call" and _is_inexact(alone):
            return _by_own_rule(alone, arguments)
        alone = _untyped(alone)
    return jax.core.eval_jaxpr(alone, (), *arguments)


def _read(known: dict, atom: Any) -> Any:
    return atom.val if isinstance(atom, jex.Literal) else known[atom]


def _without_mesh(const: Any) -> Any:
    known = not isinstance(const, jax.core.Tracer)
    return np.asarray(const) if known and has_explicit_axes(const) else const


def _is_inexact(jaxpr: jex.Jaxpr) -> bool:
    avals: list[Any] = [variable.aval for variable in jaxpr.invars]
    return all(jnp.issubdtype(aval.dtype, jnp.inexact) for aval in avals)


def _by_own_rule(alone: jex.Jaxpr, arguments: list[Any]) -> list[Any]:
    """What a `jax.custom_jvp` returns; its rule is traced for the types of before."""
    avals = [variable.aval for variable in alone.invars]
    given = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))

    @jax.custom_jvp
    def function(*primals):
        return jax.core.eval_jaxpr(_untyped(alone), (), *primals)

    @function.defjvp
    def _(primals, tangents):
        traced = jax.make_jaxpr(lambda *pair: jax.jvp(given, *pair))(avals, avals)
        both = (*primals, *tangents)
        out = _evaluated(traced.jaxpr, traced.consts, both, typed=False)
        return out[: len(out) // 2], out[len(out) // 2 :]

    return function(*arguments)


def _made_among_explicit(step: jex.JaxprEqn) -> bool:
    mesh = getattr(step.ctx, "cur_abstract_mesh", None)  # what JAX does not make public
    return mesh is not None and len(mesh.explicit_axes) > 0


def _names_axes(params: dict) -> bool:
    return any(map(_is_typed, jtu.tree_leaves(params)))


def _is_typed(param: Any) -> bool:
    """Whether an explicit axis of a mesh is named within a parameter of a primitive."""
    if isinstance(param, jex.ClosedJaxpr):
        made = [variable for step in param.jaxpr.eqns for variable in step.outvars]
        if any(map(_made_among_explicit, param.jaxpr.eqns)):
            return True
        return any(_on_explicit(v.aval) for v in (*param.jaxpr.invars, *made))
    return isinstance(param, jax.sharding.NamedSharding) and _explicit(param)


def _on_explicit(aval: Any) -> bool:
    return isinstance(aval, jax.core.ShapedArray) and _explicit(aval.sharding)


def _explicit(sharding: jax.sharding.NamedSharding) -> bool:
    return len(sharding.mesh.explicit_axes) > 0


def _untyped(alone: jex.Jaxpr) -> jex.Jaxpr:
    """A step alone, with no explicit axis in its parameters."""

    def without_types(param):
        if not _is_typed(param):
            return param
        return _traced_again(param) if isinstance(param, jex.ClosedJaxpr) else None

    (step,) = alone.eqns
    here = jax.make_jaxpr(jnp.negative)(0.0).eqns[0].ctx  # has the mesh of where it is
    params = jtu.tree_map(without_types, step.params)
    return alone.replace(eqns=[step.replace(params=params, ctx=here)])


def _traced_again(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    again = lambda *inputs: _evaluated(closed.jaxpr, closed.consts, inputs, typed=False)
    return jax.make_jaxpr(again)(*structs)
