"""Solvers as iterations that are differentiated step by step.

The loops of the solvers stop by looks at the residual, which have no derivative in
reverse mode. Here is the iteration alone, for a number of steps that is known.
"""

import functools as ft
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Integer, PyTree, Real

from .._base.axes import as_varying, cond, scan, varying_axes
from .._base.checks import check_options
from .._base.tree import in_each_part, one_or_nan, tree_add
from .neumann import has_grown, Neumann, NeumannState, two_norm


class Outcome(NamedTuple):
    """What an iteration ends in."""

    solution: PyTree[Array]
    result: lx.RESULTS
    num_steps: Integer[Array, ""]


class Iteration(NamedTuple):
    """A solver as steps.

    - `start`: what the first step takes, a pytree of arrays.
    - `step`: returns what the next one takes, of the same structure, and the norm of the
        residual then, or `None`.
    - `finish`: of what the last step returned.

    All three are functions that JAX differentiates, of which nothing is a constant that
    depends on A, b, the preconditioner or another number.
    """

    start: PyTree[Array]
    step: Callable[[PyTree[Array]], tuple[PyTree[Array], Real[Array, ""] | None]]
    num_steps: int
    finish: Callable[[PyTree[Array]], Outcome]


@ft.singledispatch
def iteration_of(
    solver: lx.AbstractLinearSolver,
    state: Any,
    vector: PyTree[Array],
    options: dict[str, Any],
) -> Iteration:
    """The steps of `solver.compute`. A class that can be unrolled registers its own."""
    del state, vector, options
    raise ValueError(
        f"`UnrolledAdjoint` got the solver `{type(solver).__name__}`, which is no "
        "iteration that it can unroll. Use `CG`, `MINRES`, `LSMR` or `FlexibleCG` with "
        "`rtol=0, atol=0, max_steps=...`, `LearnedCG`, `Neumann`, or `ImplicitAdjoint()`."
    )


def can_be_unrolled(solver: lx.AbstractLinearSolver) -> bool:
    """Whether its class has registered steps."""
    default = iteration_of.dispatch(object)
    return iteration_of.dispatch(type(solver)) is not default


class Unrolled(lx.AbstractLinearSolver[Any]):
    """`inner_solver` as its steps, which are differentiated."""

    inner_solver: lx.AbstractLinearSolver
    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if not can_be_unrolled(self.inner_solver):
            iteration_of(self.inner_solver, None, None, {})

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]):
        return self.inner_solver.init(operator, options)

    def compute(
        self, state: Any, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        iteration = iteration_of(self.inner_solver, state, vector, options)
        history = getattr(self.inner_solver, "history", False)
        final, norms = _run(iteration, self.checkpoints, history)
        solution, result, taken = iteration.finish(final)
        stats = {"num_steps": taken, "max_steps": iteration.num_steps}
        if norms is not None:
            stats["residual_norms"] = norms
        return solution, result, stats

    def transpose(self, state: Any, options: dict[str, Any]):
        return self.inner_solver.transpose(state, options)

    def conj(self, state: Any, options: dict[str, Any]):
        return self.inner_solver.conj(state, options)

    def assume_full_rank(self) -> bool:
        return self.inner_solver.assume_full_rank()


def hung(tree: PyTree[Array], holds: Bool[Array, ""], *inputs: PyTree) -> PyTree[Array]:
    """`tree`, whose derivatives in the arrays of `inputs` are NaN unless `holds`."""
    arrays = jtu.tree_leaves(eqx.filter(inputs, eqx.is_inexact_array))
    zero = _zero(holds, arrays)
    return jtu.tree_map(lambda leaf: leaf + in_each_part(zero, leaf.dtype), tree)


@jax.custom_jvp
def _zero(holds: Bool[Array, ""], arrays: list[Array]) -> Float[Array, ""]:
    return as_varying(varying_axes((holds, arrays)), jnp.zeros((), jnp.float32))


@_zero.defjvp
def _(primals, tangents):
    # Products, for the cotangent of a `where` would be zero.
    factor = one_or_nan(primals[0]) - 1
    terms = (jnp.sum(t.real * factor.astype(t.real.dtype)) for t in tangents[1])
    out = _zero(*primals)
    return out, sum((term.astype(out.dtype) for term in terms), out)


def _run(iteration: Iteration, checkpoints: int | None, history: bool):
    """What the last step returned, and the norms if they are kept.

    With checkpoints, what so many of the steps took is stored for the reverse pass, and
    the steps between two of them are taken again there.
    """
    count = iteration.num_steps

    def step(carry):
        carry, norm = iteration.step(carry)
        return carry, norm if history else None

    if checkpoints is None or checkpoints >= count:
        return scan(lambda carry, _: step(carry), iteration.start, length=count)
    length = math.ceil(count / checkpoints)
    segments = math.ceil(count / length)

    def body(carry, index):
        if segments * length == count:
            return step(carry)
        return cond(index < count, step, _unmoved(step), carry)

    @ft.partial(jax.checkpoint, prevent_cse=False)
    def segment(carry, first):
        return scan(body, carry, first + jnp.arange(length))

    firsts = length * jnp.arange(segments)
    final, norms = scan(segment, iteration.start, firsts)
    return final, norms if norms is None else norms.reshape(-1)[:count]


def _unmoved(step: Callable) -> Callable:
    """What is handed on in the place of a step beyond the last."""

    def unmoved(carry):
        _, norm = jax.eval_shape(step, carry)
        return carry, None if norm is None else jnp.zeros(norm.shape, norm.dtype)

    return unmoved


@iteration_of.register(Neumann)
def _(solver: Neumann, state: NeumannState, vector, options) -> Iteration:
    if solver.has_tolerance:
        raise ValueError(
            "`UnrolledAdjoint` got `Neumann(rtol=..., atol=...)`, whose number of terms "
            "is found as it runs. Leave the tolerances out, and pass `num_terms`."
        )
    check_options(solver, options, ("preconditioner",))
    first = solver.precondition(state, options, vector)

    def step(carry):
        total, term = carry
        term = solver.error_mv(state, options, term)
        return (tree_add(total, term), term), None

    def finish(carry):
        total, term = carry
        norms = lax.stop_gradient((two_norm(term), two_norm(first)))
        result = lx.RESULTS.where(
            has_grown(*norms), lx.RESULTS.breakdown, lx.RESULTS.successful
        )
        return Outcome(total, result, jnp.array(solver.num_terms))

    return Iteration((first, first), step, solver.num_terms, finish)
