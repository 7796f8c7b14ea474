"""The guard of the map: what is wrong with a solve, and what is said of it.

The map is algebra, and hands on what the solvers say. Here are the looks at what went in
and came out, the NaN of a derivative that failed, and the message of an error.
"""

import dataclasses
import functools as ft
import math
import operator
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, PyTree

from .._base.host import raise_if
from .._base.results import nan_after_failure
from .._base.structure import Structure
from .._base.tree import all_finite, nan_unless, tree_sub
from .._kernel.norms import two_norm
from .._operator.adjoint import is_complex
from .._operator.matrix import functions_in
from .._solver import Normal, Randomised, ShiftedSolver, Unrolled
from .mesh import shared
from .rows import Blocks, Problem
from .traits import factorises, TERM, Traits, traits_of


_RESULTS = lx.RESULTS
_CONJUGATES = (
    "got an operator that is not linear over the complex numbers: A(i v) is not i A v. "
    "Let it take real and imaginary part of x as two real leaves, or use `LSMR()`."
)
_UNKNOWN = "failed. Try another solver."
# A failure is told to the host as one integer: the code of the result, and below it the
# leading bits of a number that is not negative, as a float32.
_NUMBER_BITS = 26
_DROPPED_BITS = 31 - _NUMBER_BITS


class Guard(eqx.Module):
    """How a solve is judged.

    - `throw`: whether a failure raises at run time.
    - `derivative`: the solve belongs to a tangent or a cotangent, which has no `result`:
        it is NaN if it failed.
    - `judged`: a primal solve with the same state has told what is wrong with it. A
        solver that factorises does not say so again.
    - `nan`: a solve that failed, without raising, gives NaN. Within the map, which so
        stays linear for `jax.linear_transpose`.
    """

    throw: bool = eqx.field(static=True)
    derivative: bool = eqx.field(static=True, default=False)
    judged: bool = eqx.field(static=True, default=False)
    nan: bool = eqx.field(static=True, default=False)

    def for_derivative(self, *, of_primal: bool = True) -> "Guard":
        """That of a tangent or cotangent; `of_primal` solve, or where there was none."""
        judged = self.judged or (of_primal and not self.derivative)
        return Guard(self.throw, derivative=True, judged=judged)

    def judge(
        self,
        problem: Problem,
        rhs: Blocks,
        out: Blocks,
        result: lx.RESULTS,
        stats: dict[str, Any],
    ) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
        """Returns what the map gave for `rhs`, once it has been looked at."""
        if self.judged and factorises(problem.solver):
            return out, _RESULTS.successful, {}
        image = None if self.derivative else _image(problem, out)
        sound = all_finite((out, image))
        result = _RESULTS.where(
            (result == _RESULTS.successful) & ~sound, _RESULTS.singular, result
        )
        number = _number(stats, traits_of(problem.solver))
        linear = is_complex_linear(problem)
        if linear is not None:
            result = _RESULTS.where(linear, result, _RESULTS.breakdown)
            number = jnp.where(linear, number.astype(float), jnp.inf)
        told = _if_finite(rhs, _told(result, number), _RESULTS.nonfinite_input)
        told = shared(problem, told)
        result = _result(told >> _NUMBER_BITS, like=result)
        if self.derivative or self.nan:
            out = nan_unless(told == 0, out)
        if self.throw:
            out, result = self._raise_if_failed(problem, told, stats, (out, result))
        if self.derivative:
            stats = {}  # nobody sees them, and they may depend on what is wanted
        return out, result, stats

    def tangent(self, result: lx.RESULTS, tangent: PyTree[Array]) -> PyTree[Array]:
        """`tangent` of a solve that ended in `result`: NaN if it failed."""
        return tangent if self.derivative else nan_after_failure(result, tangent)

    def _raise_if_failed(
        self, problem: Problem, told, stats: dict[str, Any], tree: PyTree
    ) -> PyTree:
        """Returns `tree`, with a run-time error if `told` is not zero.

        The message is made on the host, where a solve has failed. Only a scalar goes
        through the branch: no array is held back, copied or gathered for it.
        """
        messages = _Messages.of(problem, stats, derivative=self.derivative)
        one = raise_if(told, messages)
        return jtu.tree_map(lambda leaf: _with(one, leaf), tree)


def _told(result: lx.RESULTS, number: Array) -> Integer[Array, ""]:
    """What the host is told of a solve: zero if it was successful."""
    number = jnp.abs(jnp.maximum(number, 0)).astype(jnp.float32)  # NaN may be negative
    bits = jax.lax.bitcast_convert_type(number, jnp.int32) >> _DROPPED_BITS
    told = (_code(result).astype(jnp.int32) << _NUMBER_BITS) | bits
    return jnp.where(result == _RESULTS.successful, 0, told)


def _if_finite(tree: PyTree[Array], told: Integer[Array, ""], otherwise: lx.RESULTS):
    """`told` if all entries of `tree` are finite, or `otherwise`, the largest code.

    As a maximum over the entries, because XLA keeps what comes of a reduction, and
    computes all else anew for each who reads it.
    """
    code = _code(otherwise).astype(jnp.int32) << _NUMBER_BITS
    for leaf in jtu.tree_leaves(tree):
        if leaf.size > 0:
            told = jnp.max(jnp.where(jnp.isfinite(leaf), told, code))
    return told


def _image(problem: Problem, out: Blocks):
    """A x, if a solver can miss a NaN in an entry of A that it never reads."""
    solver = problem.solver
    finds_it = factorises(solver) or traits_of(solver).finds_nonfinite
    if finds_it or problem.operator.in_size() == 0:
        return None
    solution = out.codomain if problem.from_adjoint else out.domain
    return None if solution is None else problem.operator.mv(solution)


def is_complex_linear(problem: Problem) -> Bool[Array, ""] | None:
    """Whether A(i v) is i A v for each function in A; `None` if that is no question.

    A solver that reads a function as a matrix would never see a conjugate in it. One that
    multiplies alone is right, or says that it stagnates.
    """
    solver = problem.solver
    inner = solver.inner_solver if isinstance(solver, Normal) else solver
    functions = [part for part in functions_in(problem.operator) if is_complex(part)]
    if traits_of(inner).multiplies or not functions:
        return None
    return ft.reduce(operator.and_, map(_turns, functions))


def _turns(function: lx.AbstractLinearOperator) -> Bool[Array, ""]:
    structure = Structure.of(function.in_structure())
    probe = np.random.default_rng(0).standard_normal(structure.size)
    vector = structure.unravel(jnp.asarray(probe, structure.dtype))
    turn = lambda tree: jtu.tree_map(lambda leaf: jnp.array(1j, leaf.dtype) * leaf, tree)
    image = turn(function.mv(vector))
    change = tree_sub(function.mv(turn(vector)), image)
    linear = jnp.array(True)
    for difference, leaf in zip(*map(jtu.tree_leaves, (change, image)), strict=True):
        # Not so for NaN, which is told as such.
        linear &= ~(two_norm(difference) > structure.eps**0.5 * two_norm(leaf))
    return linear


def _with(one: Float[Array, ""], leaf: Array) -> Array:
    """`leaf` itself; under `EQX_ON_ERROR=nan` NaN or the largest integer."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf * one.astype(leaf.dtype)
    return jnp.where(one == 1, leaf, jnp.iinfo(leaf.dtype).max)


def _code(result: lx.RESULTS):
    (code,) = jtu.tree_leaves(result)
    return code


def _result(code: Integer[Array, ""], like: lx.RESULTS) -> lx.RESULTS:
    (old,) = jtu.tree_leaves(like)
    return jtu.tree_unflatten(jtu.tree_structure(like), [code.astype(old.dtype)])


def _number(stats: dict[str, Any], traits: Traits) -> Array:
    """What a message may tell beside the result."""
    numbers = (_scalar(stats, name) for name in traits.numbers)
    return next((number for number in numbers if number is not None), jnp.array(0))


def _scalar(stats: dict[str, Any], name: str) -> Array | None:
    """A statistic, if the solver has it: yours may have another of the same name."""
    value = stats.get(name)
    return value if isinstance(value, jax.Array) and value.ndim == 0 else None


@dataclasses.dataclass(frozen=True)
class _Messages(Sequence[str]):
    """The message for what `Guard` tells the host."""

    subject: str
    traits: Traits
    full_rank: int
    limit: float | None  # of the estimate of a solver that makes one

    @classmethod
    def of(
        cls, problem: Problem, stats: dict[str, Any], *, derivative: bool
    ) -> "_Messages":
        rows, cols = problem.operator.out_size(), problem.operator.in_size()
        traits = traits_of(problem.solver)
        of = " of a derivative" if derivative else ""
        subject = (
            f"The linear solve{of} with `{_name(problem.solver)}` and an operator of "
            f"shape {rows, cols}"
        )
        limit = None
        estimate = _scalar(stats, "reciprocal_condition")
        if estimate is not None and jnp.issubdtype(estimate.dtype, jnp.floating):
            limit = traits.limit(rows, cols, estimate.dtype)
        return cls(subject, traits, min(rows, cols), limit)

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, told):
        bits = (told << _DROPPED_BITS) & (2**31 - 1)
        number = float(np.array(bits, np.int32).view(np.float32))
        code = told >> _NUMBER_BITS
        if code == int(_code(_RESULTS.breakdown)) and math.isinf(number):
            return f"{self.subject} {_CONJUGATES}"
        if code == int(_code(_RESULTS.singular)):
            if self.limit is not None and number <= self.limit:
                return f"{self.subject} {self._estimate(number)}"
            if self.traits.pivots and 0 < number < math.inf:
                return f"{self.subject} {self._pivots(int(number))}"
        meaning = _meanings(self.traits).get(code, _UNKNOWN)
        return f"{self.subject} {meaning.replace(TERM, _term(number))}"

    def _estimate(self, estimate: float) -> str:
        traits = self.traits
        value = f"is about {estimate:.1e}" if estimate > 0 else traits.zero
        return (
            f"needs full rank, but the reciprocal condition number of {traits.whose} "
            f"{value}; at most {self.limit:.0e} counts as singular. {traits.advice}"
        )

    def _pivots(self, rank: int) -> str:
        return (
            f"found rank {rank} of {self.full_rank}, but its pivots do not reveal the "
            "rank, or the solution overflows. Use `SVD()` in the former case."
        )


def _term(index: float) -> str:
    """That at which a series ended, if it is known."""
    known = 0 < index < math.inf
    return f", and term {index:.0f} is above the first or not finite" if known else ""


def _meanings(traits: Traits) -> dict[int, str]:
    """What each kind of failure means, and what to do."""
    meanings = (
        (
            _RESULTS.max_steps_reached,
            "did not converge: the maximum number of solver steps was reached. Use more "
            "steps, a larger tolerance or a preconditioner.",
        ),
        (_RESULTS.singular, traits.singular),
        (_RESULTS.breakdown, traits.breakdown),
        (_RESULTS.stagnation, traits.stagnation),
        (_RESULTS.conlim, "stopped: the condition number of A is above `conlim`."),
        (
            _RESULTS.nonfinite_input,
            "received non-finite values (NaN or Inf) in its vector. Check what the "
            "vector is computed from.",
        ),
    )
    return {int(_code(kind)): meaning for kind, meaning in meanings}


def _name(solver: lx.AbstractLinearSolver) -> str:
    if isinstance(solver, Randomised):
        return "StochasticAdjoint"
    if isinstance(solver, Unrolled):
        return _name(solver.inner_solver)
    wraps = isinstance(solver, Normal | ShiftedSolver)
    inner = f"{_name(solver.inner_solver)}" if wraps else ""
    return f"{type(solver).__name__}({inner})"
