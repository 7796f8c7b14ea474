"""What a failed solve says when it raises: what was called, what it saw, what to do."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from ._saddle_point import Problem
from ._solver import CG, CholeskyQR, Neumann, Normal, PivotedQR, smallest_rcond, SVD


_RESULTS = lx.RESULTS
# A message is a constant of the compiled program. So the estimate of the reciprocal
# condition number is told as a power of ten, and there is one message for each; so there
# is for each rank, up to a limit.
_SMALLEST_DECADE = 40
_LARGEST_RANK = 200
_NOT_SQUARED = "`QR()` does not square the condition number."
_ANY_RANK = "Use `PivotedQR()` or `SVD()`, which take any rank."


def raise_if_failed(
    problem: Problem, result: lx.RESULTS, stats: dict[str, Any], tree: PyTree
) -> PyTree:
    """Returns `tree`, with a run-time error if `result` is not `successful`."""
    rows, cols = problem.operator.out_size(), problem.operator.in_size()
    solver = _name(problem.solver)
    of = " of a derivative" if problem.derivative else ""
    subject = (
        f"The linear solve{of} with `{solver}` and an operator of shape {rows, cols}"
    )

    messages = [f"{subject} failed. Try another solver."]
    index = jnp.array(0)
    for kind, saw in _kinds(problem.solver):
        index = jnp.where(result == kind, len(messages), index)
        messages.append(f"{subject} {saw}")
    # The primal has said what is wrong with A, before any derivative.
    if "rcond" in stats and not problem.derivative:
        rcond = stats["rcond"]
        size, whose, advice = max(rows, cols), "A", _ANY_RANK
        if isinstance(problem.solver, Normal):
            size, whose = min(rows, cols), "its Gram matrix"
            advice = f"{_NOT_SQUARED} {advice}"
        limit = float(jnp.finfo(rcond.dtype).eps) * size
        zero = "is zero, or an entry is non-finite (NaN or Inf)"
        if isinstance(problem.solver, CholeskyQR):
            limit, advice = smallest_rcond(rcond.dtype), f"{_NOT_SQUARED} {advice}"
            zero = (
                "is too small for its Gram matrix, or an entry is non-finite (NaN or Inf)"
            )
        decade = jnp.round(-jnp.log10(jnp.where(rcond > 0, rcond, 1)))
        decade = jnp.where(rcond > 0, decade, _SMALLEST_DECADE)
        decade = jnp.clip(decade, 0, _SMALLEST_DECADE)
        seen = (result == _RESULTS.singular) & (rcond <= limit)
        index = jnp.where(seen, len(messages) + decade.astype(index.dtype), index)
        estimates = [f"is about 1e-{decade}" for decade in range(_SMALLEST_DECADE)]
        estimates.append(zero)
        messages += [
            f"{subject} needs full rank, but the reciprocal condition number of {whose} "
            f"{estimate}; at most {limit:.0e} counts as singular. {advice}"
            for estimate in estimates
        ]
    if isinstance(problem.solver, PivotedQR) and min(rows, cols) <= _LARGEST_RANK:
        # None is found in a matrix that is not finite.
        seen = (result == _RESULTS.singular) & (stats["rank"] > 0)
        place = len(messages) + stats["rank"].astype(index.dtype) - 1
        index = jnp.where(seen, place, index)
        messages += [
            f"{subject} found rank {rank} of {min(rows, cols)}, but its pivots do not "
            "reveal the rank, or the solution overflows. Use `SVD()` in the former case."
            for rank in range(1, min(rows, cols) + 1)
        ]
    failed = result != _RESULTS.successful
    return eqx.branched_error_if(tree, failed, jnp.where(failed, index, 0), messages)


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
        singular = "gave non-finite values: an entry of A is NaN or Inf. Check A."
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
