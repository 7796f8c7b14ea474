"""Functions closed by Equinox, inside `jax.shard_map`.

Equinox closes a function for arguments of one type, of which the axes of a mesh are a
part, and refuses any other.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.tree_util as jtu
from jaxtyping import PyTree

from .axes import as_varying, is_manual, manual_axes, varying_axes
from .evaluate import evaluated


def closed(function: Callable, structure: PyTree[jax.ShapeDtypeStruct]) -> Callable:
    """`function`, of one argument, with all that it closes over as a pytree.

    On a mesh for an argument that is the same on each device, and for one that is not.
    """
    if not is_manual():
        return _Closed(eqx.filter_closure_convert(function, structure), None)
    varying = jax.eval_shape(lambda tree: as_varying(manual_axes(), tree), structure)
    return _Closed(
        eqx.filter_closure_convert(function, structure),
        eqx.filter_closure_convert(function, varying),
    )


def is_closed(function: Any) -> bool:
    """Whether Equinox has closed it, for arguments of one type."""
    return getattr(function, "jaxpr", None) is not None


def call(function: Any, argument: PyTree) -> Any:
    """`function` of an argument of the type that it was closed for, if it was."""
    if not is_closed(function):
        return getattr(function, "fn", function)(argument)
    leaves = jtu.tree_leaves(argument)
    if is_manual():
        program = jex.jaxpr_as_fun(jex.ClosedJaxpr(function.jaxpr, function.consts))
        out = program(*leaves)
    else:
        out = evaluated(function.jaxpr, function.consts, leaves)
    return jtu.tree_unflatten(jtu.tree_structure(function.out_struct), out)


class _Closed(eqx.Module):
    same: Callable
    varying: Callable | None

    def __call__(self, argument: PyTree) -> Any:
        axes = varying_axes(argument)
        if not axes or self.varying is None:
            return call(self.same, argument)
        return call(self.varying, as_varying(manual_axes(), argument))
