"""What the map and its guard have to know of a solver, beside its row: one table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx

from .._base.order import after, after_in_batch
from .._solver import (
    AbstractFactorisation,
    AbstractKrylovSolver,
    CG,
    Cholesky,
    CholeskyQR,
    FlexibleCG,
    FlexibleGMRES,
    FunctionSolver,
    LearnedCG,
    MINRES,
    Neumann,
    Normal,
    PivotedQR,
    QR,
    Randomised,
    ShiftedSolver,
    smallest_reciprocal_condition,
    Structured,
    SVD,
    Unrolled,
    Woodbury,
)


TERM = "{term}"  # where a message names it
_ANY_RANK = "Use `PivotedQR()` or `SVD()`, which take any rank."
_OF_THE_SUM = "Use `LU()` or another solver of the sum."
_NOT_SQUARED = "`QR()` does not square the condition number."


def _of_full_rank(rows: int, cols: int, dtype) -> float:
    return float(jnp.finfo(dtype).eps) * max(rows, cols)


def _of_a_gram_matrix(rows: int, cols: int, dtype) -> float:
    return float(jnp.finfo(dtype).eps) * min(rows, cols)


class Traits(NamedTuple):
    """Of the map first, then of a failure.

    - `projects`: P y takes a product, and no solve, beside the other blocks.
    - `hermitian`: A⁻ᴴ is A⁻¹.
    - `within_row_space`: it is the adjoint of A† there only, so that w is projected.
    - `multiplies`: it multiplies by A, and does not read its entries.
    - `finds_nonfinite`: it notices a NaN in an entry of A that no solution shows.
    - `breakdown`, `singular`, `stagnation`: what these results mean, and what to do.
    - `limit(rows, cols, dtype)`: reciprocal condition numbers up to it are singular;
        `whose` they are, what a `zero` means, and `advice`.
    - `numbers`: the statistics of which the first that is there goes into a message.
    - `pivots`: the statistic `rank` is of pivots that need not reveal it.
    """

    projects: bool = False
    hermitian: bool = False
    within_row_space: bool = False
    multiplies: bool = False
    finds_nonfinite: bool = False
    breakdown: str = "broke down. Try another solver."
    singular: str = (
        "gave non-finite values or did not converge: A is singular, or an entry of it "
        f"is NaN or Inf. {_ANY_RANK}"
    )
    stagnation: str = (
        "stagnated: its residual does not meet the tolerance. Use a preconditioner, a "
        "larger tolerance, or a larger `restart` of `GMRES`."
    )
    limit: Callable[[int, int, Any], float] = _of_full_rank
    whose: str = "A"
    zero: str = "is zero, or an entry is non-finite (NaN or Inf): look in A first"
    advice: str = _ANY_RANK
    pivots: bool = False
    numbers: tuple[str, ...] = ("reciprocal_condition", "rank")


_INDEFINITE = (
    "broke down: A is not definite, or the tolerance is below what rounding allows. Use "
    "`LU()` for an indefinite A, `CG(..., well_posed=False)` for a singular one, or a "
    "larger tolerance."
)
_TRAITS: tuple[tuple[type | tuple[type, ...], Traits], ...] = (
    (
        PivotedQR,
        Traits(
            projects=True,
            pivots=True,
            singular="found no rank: an entry of A is non-finite (NaN or Inf), or its "
            "pivots do not reveal the rank. Use `SVD()` in the latter case.",
        ),
    ),
    (
        SVD,
        Traits(
            projects=True,
            singular="gave non-finite values: an entry of A is NaN or Inf, or the "
            "solution overflows. Check A.",
        ),
    ),
    (
        CholeskyQR,
        Traits(
            limit=lambda rows, cols, dtype: smallest_reciprocal_condition(dtype),
            zero="is too small for its Gram matrix, or an entry is non-finite (NaN or "
            "Inf)",
            advice=f"{_NOT_SQUARED} {_ANY_RANK}",
        ),
    ),
    (
        Normal,
        Traits(
            limit=_of_a_gram_matrix,
            whose="its Gram matrix",
            advice=f"{_NOT_SQUARED} {_ANY_RANK}",
        ),
    ),
    (
        CG,
        Traits(
            hermitian=True, multiplies=True, finds_nonfinite=True, breakdown=_INDEFINITE
        ),
    ),
    (lx.CG, Traits(hermitian=True, multiplies=True, breakdown=_INDEFINITE)),
    (
        FlexibleCG,
        Traits(
            hermitian=True,
            multiplies=True,
            finds_nonfinite=True,
            breakdown="broke down: A is not definite, its preconditioner gives zero or "
            "NaN, or the tolerance is below what rounding allows. Use `LU()` for an "
            "indefinite A, another preconditioner, or a larger tolerance.",
        ),
    ),
    (
        FlexibleGMRES,
        Traits(
            multiplies=True,
            finds_nonfinite=True,
            stagnation="stagnated: its residual does not meet the tolerance. Use another "
            "preconditioner (`adjoint_preconditioner` is that of gradients), a larger "
            "tolerance, or a larger `restart`.",
            singular="gave non-finite values: A is singular, an entry of it is NaN or "
            "Inf, or the preconditioner returns NaN or Inf.",
        ),
    ),
    (
        LearnedCG,
        Traits(
            hermitian=True,
            multiplies=True,
            finds_nonfinite=True,
            breakdown="broke down: A is not definite. Use `LU()` or `MINRES()` for an "
            "indefinite A.",
            singular="gave non-finite values: A is singular, an entry of it is NaN or "
            "Inf, or its numbers let it diverge. Use `CG()`, or learn them again.",
        ),
    ),
    (MINRES, Traits(hermitian=True, multiplies=True, finds_nonfinite=True)),
    (AbstractKrylovSolver, Traits(multiplies=True, finds_nonfinite=True)),
    ((lx.BiCGStab, lx.GMRES, lx.LSMR), Traits(multiplies=True)),
    (
        (Cholesky, lx.Cholesky),
        Traits(
            hermitian=True,
            zero="is zero, A is not definite as its tag says, or an entry is non-finite "
            "(NaN or Inf)",
            advice="Use `LU()` if A is indefinite. `PivotedQR()` and `SVD()` take any "
            "rank.",
        ),
    ),
    (
        Structured,
        Traits(
            breakdown="broke down: the vectors of an `Eigh` are not orthonormal, or an "
            "iterative solver of a part did.",
            advice="Use `AutoLinearSolver(well_posed=False)`, which takes any rank.",
        ),
    ),
    (
        FunctionSolver,
        Traits(
            multiplies=True,
            finds_nonfinite=True,
            singular="got non-finite values from its function: A is singular, an entry "
            "of it is NaN or Inf, or the function failed.",
            stagnation="got no solution from its function: b − A x does not meet the "
            "tolerance, or x is not the solution of minimum norm. Let the function solve "
            "to a smaller residual, or pass a larger `rtol`.",
        ),
    ),
    (
        Woodbury,
        Traits(
            finds_nonfinite=True,
            breakdown="could not solve with A, without its update: A is singular, or an "
            f"entry is NaN or Inf. A + U C Vᴴ need not be singular. {_OF_THE_SUM}",
            singular="gave non-finite values: A + U C Vᴴ or the capacitance matrix I + C "
            f"Vᴴ A⁻¹U is singular. {_OF_THE_SUM}",
            stagnation="lost its digits: the residual of A + U C Vᴴ does not meet the "
            "tolerance. A or the capacitance matrix I + C Vᴴ A⁻¹U is ill-conditioned; "
            f"A + U C Vᴴ need not be. {_OF_THE_SUM}",
            whose="A + U C Vᴴ",
        ),
    ),
    (
        Randomised,
        Traits(
            multiplies=True,
            breakdown="broke down: a term outgrew the first (`scale` is too large), or "
            'A is not definite. Use a smaller `scale`, or `method="neumann"` for an '
            "indefinite A.",
        ),
    ),
    (
        Neumann,
        Traits(
            multiplies=True,
            within_row_space=True,
            numbers=("num_steps",),
            breakdown=f"diverges: its terms grow{TERM}. Use a smaller `scale`, or a "
            "preconditioner.",
        ),
    ),
)


def traits_of(solver: lx.AbstractLinearSolver) -> Traits:
    """Those of its class; of one that is not in the table, what holds for any."""
    if isinstance(solver, ShiftedSolver | Unrolled):
        solver = solver.inner_solver
    return next((row for kind, row in _TRAITS if isinstance(solver, kind)), Traits())


def has_traits(solver: type[lx.AbstractLinearSolver]) -> bool:
    """Whether a class of solvers is in the table."""
    return any(issubclass(solver, kind) for kind, _ in _TRAITS)


def factorises(solver: lx.AbstractLinearSolver) -> bool:
    """Whether what the state says of A holds for each solve with it."""
    if isinstance(solver, Structured):
        return all(map(factorises, solver.inner_solvers))
    inner = solver.inner_solver if isinstance(solver, Normal) else solver
    return isinstance(inner, AbstractFactorisation)


def order_of(*solvers: lx.AbstractLinearSolver) -> Callable:
    """What orders library calls of the map: also without `jax.vmap`, if one batches."""
    return after if any(map(_batches, solvers)) else after_in_batch


def _batches(solver: lx.AbstractLinearSolver) -> bool:
    if isinstance(solver, Structured):
        return solver.batches
    blocks = solver.blocks if isinstance(solver, QR | PivotedQR) else None
    return blocks not in (None, 1)
