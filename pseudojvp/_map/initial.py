"""What a solver keeps of A, on a mesh with explicit axes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.interpreters.ad as ad
import jax.tree_util as jtu
import lineax as lx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._base.axes import as_avals, as_structs, has_explicit_axes, on_mesh_of
from .._base.call import Frame, split
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
        return _of_functions(solver.init, operator, options)
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


@dataclasses.dataclass(eq=False)
class _Program:
    """A function of trees that returns functions: others each time that it is traced."""

    function: Callable
    given: Frame
    returned: list[Frame] = dataclasses.field(default_factory=list)

    def __call__(self, *arrays):
        out, frame = split(self.function(*self.given.filled(arrays)))
        self.returned.append(frame)
        return out


def _of_functions(init: Callable, *arguments: PyTree[Any]) -> PyTree[Any]:
    """`init`, of which the first trace says what is returned beside the arrays."""
    arrays, frame = split(arguments)
    program = _Program(init, frame)
    arrays = _state_of_functions_p.bind(*arrays, program=program)
    return program.returned[0].filled(arrays)


def _impl_of_functions(*arrays, program: _Program):
    return program(*arrays)


def _abstract_eval_of_functions(*avals, program: _Program):
    state = jax.eval_shape(program, *as_structs(avals))
    return _placed(avals, on_mesh_of(avals, as_avals(state)))


def _jvp_of_functions(primals, tangents, *, program: _Program):
    del tangents
    state = _state_of_functions_p.bind(*primals, program=program)
    return state, [ad.Zero(jax.typeof(leaf).to_tangent_aval()) for leaf in state]


_state_of_functions_p = create_vprim(
    "initial_state_of_functions",
    _impl_of_functions,
    _abstract_eval_of_functions,
    _jvp_of_functions,
    _transpose,
)
