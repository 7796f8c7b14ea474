"""The types of the blocks of the map inside `jax.shard_map`.

Each of the two spaces of A has axes of the mesh over which its vectors vary: those of the
vectors that came, and those that A brings in. A product that sums over an axis (`psum`)
brings none. Where the rows of A are spread over the devices and its adjoint sums, vectors
of the codomain vary and those of the domain do not.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .._base.axes import as_varying, is_manual, largest, ordered, varying_axes
from .._base.structure import Structure
from .._operator.adjoint import adjoint
from .._operator.function import Spread
from .._operator.sparse import untagged
from .._solver import AbstractKrylovSolver, LSMR, Normal
from .rows import Blocks, Problem, spaces


def check_spread(operator: lx.AbstractLinearOperator, solver: Any) -> None:
    """That a solver sums over the devices which have a part of A each."""
    spread = Spread.of(operator)
    if not spread.any:
        return
    inner = solver.inner_solver if isinstance(solver, Normal) else None
    if not isinstance(solver, LSMR) and not isinstance(inner, AbstractKrylovSolver):
        raise ValueError(
            f"`{type(solver).__name__}` got an operator of which each device has a part, "
            f"along the axes {ordered(spread.any)} of the mesh. Use `LSMR()` or "
            "`Normal(CG())`, which take products alone and sum over the axes."
        )
    rows, cols = operator.out_size(), operator.in_size()
    if (spread.codomain and rows < cols) or (spread.domain and rows > cols):
        raise ValueError(
            f"`{type(solver).__name__}` got an operator of which each device has a part "
            f"of shape {rows, cols}, along the axes {ordered(spread.any)} of the mesh. "
            "A part has to be no shorter than the side that is not spread: use fewer "
            "devices."
        )


def varying_alike(problem: Problem, rhs: Blocks) -> tuple[Problem, Blocks]:
    """The problem with the axes of its spaces, and the vectors varying over them."""
    if not is_manual():
        return problem, rhs
    codomain, domain = _axes(problem, rhs)
    problem = dataclasses.replace(problem, axes=Blocks(codomain, domain, domain))
    return problem, typed(problem, rhs)


def typed(problem: Problem, blocks: Blocks) -> Blocks:
    """The blocks, varying over the axes of their spaces."""
    if problem.axes is None:
        return blocks
    return Blocks(*map(as_varying, problem.axes, blocks))


def sharded_as(problem: Problem, rhs: Blocks, out: Blocks) -> Blocks:
    """Abstract blocks, over explicit axes of a mesh each sharded as its space.

    That is as a vector of it that came, or as this side of a matrix.
    """
    explicit = lambda aval: len(aval.sharding.mesh.explicit_axes) > 0
    if not any(map(explicit, jtu.tree_leaves(out))):
        return out
    matrix = untagged(problem.operator)
    codomain, domain = rhs.codomain, rhs.domain
    if isinstance(matrix, lx.MatrixLinearOperator) and matrix.matrix.ndim == 2:
        sharding: Any = matrix.matrix.sharding
        rows, cols = sharding.spec or (None, None)
        if problem.from_adjoint:
            rows, cols = cols, rows
        sides = PartitionSpec(rows), PartitionSpec(cols), PartitionSpec(cols)
    else:
        sides = None, None, None
    of_domain = rhs.projection if domain is None else domain

    def put(block, given, side):
        if block is None:
            return None
        if given is not None:
            return jtu.tree_map(_put, block, given)
        return jtu.tree_map(lambda aval: _put(aval, side), block)

    return Blocks(*map(put, out, (codomain, of_domain, of_domain), sides))


def _put(aval: Any, like: Any) -> Any:
    spec = like if isinstance(like, PartitionSpec | None) else like.sharding.spec
    if spec is None:
        return aval
    return aval.update(sharding=NamedSharding(aval.sharding.mesh, spec))


def checked(problem: Problem, out: Blocks) -> Blocks:
    """What a solver returned, of the types of the spaces; an error of any other."""
    if problem.axes is None:
        return out
    for axes, block in zip(problem.axes, out, strict=True):
        more = ordered(varying_axes(block) - axes)
        if more:
            raise ValueError(
                f"A solve inside `jax.shard_map` varies over the axes {more} of the "
                "mesh, and neither operator nor vector does: a preconditioner, a first "
                "guess, a state or a tolerance is different on each device. Pass "
                f"`jax.lax.pcast(vector, {more}, to='varying')` for a solve on "
                "each device, or sum over the axes where that was made."
            )
    return typed(problem, out)


def shared(problem: Problem, told: Array) -> Array:
    """The largest of those that devices tell which share one solution."""
    if problem.axes is None:
        return told
    return largest(told, problem.axes.codomain ^ problem.axes.domain)


def _axes(problem: Problem, rhs: Blocks) -> tuple[frozenset, frozenset]:
    """Of codomain and domain: the smallest which the map does not leave."""
    codomain = varying_axes(rhs.codomain)
    domain = varying_axes((rhs.domain, rhs.projection, problem.options.get("y0")))
    operator = problem.operator
    of_operator = varying_axes(operator)
    if of_operator <= codomain & domain or not of_operator:
        return codomain | domain, codomain | domain
    structures = spaces(problem)
    square = Structure.of(structures.codomain) == Structure.of(structures.domain)
    forward, backward = operator.mv, lambda vector: adjoint(operator).mv(vector)
    if problem.from_adjoint:
        forward, backward = backward, forward
    while True:
        before = codomain, domain
        codomain |= _axes_of_image(forward, structures.domain, domain)
        if square:
            codomain = domain = codomain | domain
        else:
            domain |= _axes_of_image(backward, structures.codomain, codomain)
        if (codomain, domain) == before:
            return before


def _axes_of_image(mv, structure: PyTree, axes: frozenset) -> frozenset:
    def image():
        zeros = jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
        return mv(as_varying(axes, zeros))

    return varying_axes(jax.eval_shape(image))
