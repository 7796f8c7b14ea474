"""What a solver keeps of A, on a mesh with explicit axes."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.tree_util as jtu
import lineax as lx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._base.auto_axes import with_auto_axes
from .._base.axes import as_avals, as_structs, has_explicit_axes, on_mesh_of
from .._base.vprim import create_vprim
from .._operator.matrix import has_functions
from .._solver import FlexibleCG, FlexibleGMRES, FunctionSolver
from .._solver.known_blocks import BLOCKED


def initial_state(
    solver: lx.AbstractLinearSolver,
    operator: lx.AbstractLinearOperator,
    options: dict[str, Any],
) -> PyTree[Any]:
    """`solver.init(operator, options)`, of a constant operator."""
    explicit = has_explicit_axes((operator, options))
    # What they close over is another function each time that it is traced.
    closes = isinstance(solver, FlexibleCG | FlexibleGMRES | FunctionSolver)
    if not explicit or closes or _in_blocks(solver, operator):
        return solver.init(operator, options)
    if has_functions(operator):
        return with_auto_axes(solver.init)(operator, options)
    return eqxi.filter_primitive_bind(_initial_state_p, solver, operator, options)


def _in_blocks(solver, operator) -> bool:
    """Whether row blocks lie on several devices: so does what is kept of them, and
    nothing that comes of the primitive.
    """
    if not isinstance(solver, BLOCKED) or solver.blocks is None:
        return False
    specs = [jax.typeof(leaf).sharding.spec for leaf in jtu.tree_leaves(operator)]
    return any(entry is not None for spec in specs for entry in spec)


def _impl(solver, operator, options):
    return solver.init(operator, options)


@eqxi.filter_primitive_def
def _abstract_eval(solver, operator, options):
    given = solver, operator, options
    state = eqx.filter_eval_shape(_impl, *as_structs(given))
    return _placed(operator, on_mesh_of(given, as_avals(state)))


def _placed(operator: PyTree[Any], state: PyTree[Any]) -> PyTree[Any]:
    """The abstract state, with what has the shape of a sharded A, or of its transpose,
    sharded as that is.
    """
    shardings = {}
    for leaf in jtu.tree_leaves(operator):
        mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
        if any(entry is not None for entry in spec):
            transposed = NamedSharding(mesh, PartitionSpec(*reversed(spec)))
            shardings |= {leaf.shape[::-1]: transposed, leaf.shape: leaf.sharding}
    put = lambda leaf: leaf.update(sharding=shardings.get(leaf.shape, leaf.sharding))
    return jtu.tree_map(put, state) if shardings else state


@eqxi.filter_primitive_jvp
def _jvp(primals, tangents):
    del tangents  # those of a constant
    state = eqxi.filter_primitive_bind(_initial_state_p, *primals)
    return state, jtu.tree_map(lambda _: None, state)


@eqxi.filter_primitive_transpose
def _transpose(inputs, cts):
    raise NotImplementedError  # of a constant


_initial_state_p = create_vprim(
    "initial_state", eqxi.filter_primitive_def(_impl), _abstract_eval, _jvp, _transpose
)
eqxi.register_impl_finalisation(_initial_state_p)
