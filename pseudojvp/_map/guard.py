"""What a failed solve says when it raises: what was called, what it saw, what to do."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._solver import (
    CG,
    CholeskyQR,
    Neumann,
    Normal,
    PivotedQR,
    smallest_reciprocal_condition,
    SVD,
)
from .rows import Problem


_RESULTS = lx.RESULTS
_NOT_SQUARED = "`QR()` does not square the condition number."
_UNKNOWN = "failed. Try another solver."
_ANY_RANK = "Use `PivotedQR()` or `SVD()`, which take any rank."
# A failure is told to the host as one integer: the code of the result, and below it the
# leading bits of a number that is not negative, as a float32.
_NUMBER_BITS = 26
_DROPPED_BITS = 31 - _NUMBER_BITS


def raise_if_failed(
    problem: Problem, result: lx.RESULTS, stats: dict[str, Any], tree: PyTree
) -> PyTree:
    """Returns `tree`, with a run-time error if `result` is not `successful`.

    The message is made on the host, where a solve has failed. Only a scalar goes through
    the branch: no array is held back, copied or gathered for it.
    """
    failed = result != _RESULTS.successful
    number = jnp.maximum(_number(stats), 0).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(number, jnp.int32) >> _DROPPED_BITS
    told = jnp.where(failed, (_code(result).astype(jnp.int32) << _NUMBER_BITS) | bits, 0)
    one = jnp.ones((), jnp.float32)
    one = eqx.branched_error_if(one, failed, told, _Messages.of(problem, stats))
    return jtu.tree_map(lambda leaf: _with(one, leaf), tree)


def _with(one: Float[Array, ""], leaf: Array) -> Array:
    """`leaf` itself; under `EQX_ON_ERROR=nan` NaN or the largest integer."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf * one.astype(leaf.dtype)
    return jnp.where(one == 1, leaf, jnp.iinfo(leaf.dtype).max)


def _code(result: lx.RESULTS):
    (code,) = jtu.tree_leaves(result)
    return code


def _number(stats: dict[str, Any]) -> Array:
    """What a message may tell beside the result."""
    numbers = (_scalar(stats, name) for name in ("reciprocal_condition", "rank"))
    return next((number for number in numbers if number is not None), jnp.array(0))


def _scalar(stats: dict[str, Any], name: str) -> Array | None:
    """A statistic, if the solver has it: yours may have another of the same name."""
    value = stats.get(name)
    return value if isinstance(value, jax.Array) and value.ndim == 0 else None


class _Singular(NamedTuple):
    """What to say of an estimate that is at most `limit`."""

    limit: float
    whose: str
    zero: str
    advice: str


@dataclasses.dataclass(frozen=True)
class _Messages(Sequence[str]):
    """The message for what `raise_if_failed` tells the host."""

    subject: str
    kinds: tuple[tuple[int, str], ...]
    singular: _Singular | None
    full_rank: int | None  # of the matrix that `PivotedQR` found a rank of

    @classmethod
    def of(cls, problem: Problem, stats: dict[str, Any]) -> "_Messages":
        rows, cols = problem.operator.out_size(), problem.operator.in_size()
        solver = problem.solver
        of = " of a derivative" if problem.derivative else ""
        subject = (
            f"The linear solve{of} with `{_name(solver)}` and an operator of shape "
            f"{rows, cols}"
        )
        singular = None
        estimate = _scalar(stats, "reciprocal_condition")
        if estimate is not None and jnp.issubdtype(estimate.dtype, jnp.floating):
            singular = _near_singular(solver, rows, cols, estimate.dtype)
        full_rank = min(rows, cols) if isinstance(solver, PivotedQR) else None
        kinds = tuple((int(_code(kind)), saw) for kind, saw in _kinds(solver))
        return cls(subject, kinds, singular, full_rank)

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, told):
        bits = (told << _DROPPED_BITS) & (2**31 - 1)
        number = float(np.array(bits, np.int32).view(np.float32))
        code = told >> _NUMBER_BITS
        if code == int(_code(_RESULTS.singular)):
            if self.singular is not None and number <= self.singular.limit:
                return f"{self.subject} {self._estimate(number, *self.singular)}"
            if self.full_rank is not None and number > 0:  # none if not finite
                return f"{self.subject} {self._pivots(int(number))}"
        return f"{self.subject} {dict(self.kinds).get(code, _UNKNOWN)}"

    def _estimate(self, estimate, limit, whose, zero, advice) -> str:
        value = f"is about {estimate:.1e}" if estimate > 0 else zero
        return (
            f"needs full rank, but the reciprocal condition number of {whose} {value}; "
            f"at most {limit:.0e} counts as singular. {advice}"
        )

    def _pivots(self, rank) -> str:
        return (
            f"found rank {rank} of {self.full_rank}, but its pivots do not reveal the "
            "rank, or the solution overflows. Use `SVD()` in the former case."
        )


def _near_singular(solver, rows: int, cols: int, dtype) -> _Singular:
    size, whose, advice = max(rows, cols), "A", _ANY_RANK
    if isinstance(solver, Normal):
        size, whose = min(rows, cols), "its Gram matrix"
        advice = f"{_NOT_SQUARED} {advice}"
    limit = float(jnp.finfo(dtype).eps) * size
    zero = "is zero, or an entry is non-finite (NaN or Inf)"
    if isinstance(solver, CholeskyQR):
        limit, advice = smallest_reciprocal_condition(dtype), f"{_NOT_SQUARED} {advice}"
        zero = "is too small for its Gram matrix, or an entry is non-finite (NaN or Inf)"
    return _Singular(limit, whose, zero, advice)


def _kinds(solver: lx.AbstractLinearSolver) -> list[tuple[lx.RESULTS, str]]:
    """Each kind of failure, with what `solver` means by it and what to do."""
    breakdown = "broke down. Try another solver."
    if isinstance(solver, CG | lx.CG):
        breakdown = (
            "broke down: A is not definite, or the tolerance is below what rounding "
            "allows. Use `LU()` for an indefinite A, `CG(..., well_posed=False)` for a "
            "singular one, or a larger tolerance."
        )
    elif isinstance(solver, Neumann):
        breakdown = (
            "diverges: its terms grow. Use a smaller `scale`, or a preconditioner."
        )
    singular = (
        "gave non-finite values or did not converge: A is singular, or an entry of it "
        f"is NaN or Inf. {_ANY_RANK}"
    )
    if isinstance(solver, PivotedQR):
        singular = (
            "found no rank: an entry of A is non-finite (NaN or Inf), or its pivots do "
            "not reveal the rank. Use `SVD()` in the latter case."
        )
    elif isinstance(solver, SVD):
        singular = (
            "gave non-finite values: an entry of A is NaN or Inf, or the solution "
            "overflows. Check A."
        )
    return [
        (
            _RESULTS.max_steps_reached,
            "did not converge: the maximum number of solver steps was reached. Use more "
            "steps, a larger tolerance or a preconditioner.",
        ),
        (_RESULTS.singular, singular),
        (_RESULTS.breakdown, breakdown),
        (
            _RESULTS.stagnation,
            "stagnated: its residual does not meet the tolerance. Use a preconditioner, "
            "a larger tolerance, or a larger `restart` of `GMRES`.",
        ),
        (_RESULTS.conlim, "stopped: the condition number of A is above `conlim`."),
        (
            _RESULTS.nonfinite_input,
            "received non-finite values (NaN or Inf) in its vector. Check what the "
            "vector is computed from.",
        ),
    ]


def _name(solver: lx.AbstractLinearSolver) -> str:
    inner = f"{_name(solver.inner_solver)}" if isinstance(solver, Normal) else ""
    return f"{type(solver).__name__}({inner})"
