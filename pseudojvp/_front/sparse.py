"""`sparse_solve` and `sparse_lstsq`: gradients on the pattern of the matrix."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Real

from .._base.call import compiled
from .._base.checks import check_solver
from .._base.inexact import as_inexact
from .._map.factorised import Factorised
from .._operator import SparseLinearOperator
from .._operator.damped import damped
from .._operator.sparse import is_sparse
from .._solver import BiCGStab, CG, LSMR, MINRES, SparseTriangular, TransposePair
from .._solver.krylov.minres import is_hermitian


def sparse_solve(
    A: SparseLinearOperator | Any,
    B: Inexact[ArrayLike, "n *k"],
    solver: lx.AbstractLinearSolver | None = None,
    transpose_solver: lx.AbstractLinearSolver | None = None,
    *,
    options: dict[str, Any] | None = None,
    tags: object | frozenset[object] = frozenset(),
    throw: bool = True,
) -> Inexact[Array, "n *k"]:
    """Returns X with A X = B for a square sparse A.

    Only products with A and Aᵀ are taken, unless `solver` factorises. The adjoint solve
    is with Aᵀ by construction, also where only `solver` is given.

    **Arguments:**

    - `A`: `(n, n)`; a `BCOO` or `BCSR` of `jax.experimental.sparse`, a SciPy sparse
        matrix, or a [`pseudojvp.SparseLinearOperator`][], which is sorted once where the
        others are at each call.
    - `B`: `(n,)`, or `(n, k)` for k right-hand sides, which run in one loop, each until
        it has converged. Of the dtype of A.
    - `solver`: any solver that [`pseudojvp.linear_solve`][] takes. Defaults to `None`,
        by the tags: [`pseudojvp.SparseTriangular`][] if triangular,
        [`pseudojvp.CG`][] if positive or negative definite,
        [`pseudojvp.MINRES`][] if symmetric (or Hermitian; A may be singular then),
        [`pseudojvp.BiCGStab`][] for all others. Their default tolerances are a relative
        residual of 1e-10, in less than double precision 1e-5.
    - `transpose_solver`: another solver for Aᵀ, in derivatives. Defaults to `None`,
        `solver`.
    - `options`: run-time options of the solver, such as `{"preconditioner": P}`. The
        adjoint solve gets Pᵀ. Defaults to none.
    - `tags`: what is known of A, such as `lineax.symmetric_tag`, beside the tags of an
        operator. Defaults to none.
    - `throw`: whether a solve that did not converge raises at run time, here and in
        derivatives. If `False`, X is NaN where it failed. Defaults to `True`.

    **Returns:** X, of the shape of B.

    **Derivatives:** with respect to A and B, forward and reverse, of every order. The
    cotangent of A has the pattern and the format of A: memory is proportional to its
    stored entries. Cost: one solve for a JVP, one with Aᵀ for a VJP (three with
    `MINRES()`, which allows a singular A).

    **Raises:** `TypeError` for a dense A, or dtypes of A and B that differ; `ValueError`
    for shapes that do not fit, for indices out of range, and what the solver raises for
    an operator that it cannot take; a run-time error as `throw` says.

    **Sources:** Giles, *Collected matrix derivative results* (2008), section 2.3.1.
    """
    operator = _as_sparse(A, tags, "sparse_solve")
    if operator.in_size() != operator.out_size():
        raise ValueError(
            f"`sparse_solve(A=...)` got shape {(operator.out_size(), operator.in_size())}"
            ". Pass a square matrix; for others use `sparse_lstsq`."
        )
    columns = _right_hand_side(operator, B, "sparse_solve")
    options = {} if options is None else options
    if solver is None:
        solver = _solver_by_tags(operator, options)
    check_solver(solver, "sparse_solve")
    if transpose_solver is not None:
        check_solver(transpose_solver, "sparse_solve")
        solver = TransposePair(solver, transpose_solver)
    return _solve_columns(operator, columns, solver, options, throw, None)


def sparse_lstsq(
    A: SparseLinearOperator | Any,
    B: Inexact[ArrayLike, "m *k"],
    solver: lx.AbstractLinearSolver | None = None,
    *,
    damp: Real[ArrayLike, ""] = 0.0,
    options: dict[str, Any] | None = None,
    tags: object | frozenset[object] = frozenset(),
    throw: bool = True,
) -> Inexact[Array, "n *k"]:
    """Returns the least-squares solution of A X = B for a sparse A of any shape and rank.

        min ‖A X − B‖² + damp² ‖X‖²

    X is the solution of minimum norm where there are several.

    **Arguments:**

    - `A`: `(m, n)`, as for [`pseudojvp.sparse_solve`][].
    - `B`: `(m,)` or `(m, k)`, of the dtype of A.
    - `solver`: any solver of rectangular operators that [`pseudojvp.linear_solve`][]
        takes; it gets the operator [A; damp I] where `damp` is given. Defaults to `None`,
        [`pseudojvp.LSMR`][].
    - `damp`: a real scalar in the units of A; differentiable. Defaults to `0.0`, none.
    - `options`, `tags`, `throw`: as for `sparse_solve`.

    **Returns:** X, `(n,)` or `(n, k)`.

    **Derivatives:** with respect to A, B and `damp`, forward and reverse, of every order,
    along constant rank; on the pattern of A as for `sparse_solve`. Up to three solves for
    a JVP or a VJP; one where `damp` is given.

    **Raises:** as `sparse_solve`; `ValueError` for a `damp` that is no scalar.

    **Sources:** Fong & Saunders, *LSMR: an iterative algorithm for sparse least-squares
    problems*, SIAM J. Sci. Comput. 33 (2011); Golub & Pereyra, SIAM J. Numer. Anal. 10
    (1973), theorem 4.3, for the derivative.
    """
    operator = _as_sparse(A, tags, "sparse_lstsq")
    columns = _right_hand_side(operator, B, "sparse_lstsq")
    options = {} if options is None else options
    number = isinstance(damp, int | float)
    damping = None if number and damp == 0 else jnp.asarray(damp)
    if solver is None:
        # [A; damp I] has full rank for any damp but zero, and derivatives are cheaper.
        solver = LSMR(well_posed=number and damping is not None)
    check_solver(solver, "sparse_lstsq")
    return _solve_columns(operator, columns, solver, options, throw, damping)


@compiled
def _solve_columns(
    operator: lx.AbstractLinearOperator,
    B: Inexact[Array, "m *k"],
    solver: lx.AbstractLinearSolver,
    options: dict[str, Any],
    throw: bool,
    damp: Real[Array, ""] | None,
) -> Inexact[Array, "n *k"]:
    zeros = jnp.zeros(operator.in_size(), B.dtype)
    if B.size == 0 or zeros.size == 0:  # no rows, no columns or no right-hand sides
        return jnp.zeros((zeros.size, *B.shape[1:]), B.dtype)
    if damp is not None:
        operator = damped(operator, damp.astype(jnp.finfo(B.dtype).dtype))
    factorised, _ = Factorised.create(operator, solver, options, throw=throw)

    def solve(column):
        return factorised.solve(column if damp is None else (column, zeros))

    if B.ndim == 1:
        return solve(B)
    return jax.vmap(solve, in_axes=1, out_axes=1)(B)


def _as_sparse(A: Any, tags: Any, caller: str) -> SparseLinearOperator:
    if not (isinstance(A, SparseLinearOperator) or is_sparse(A)):
        shape = getattr(A, "shape", None)
        what = type(A).__name__ if shape is None else f"{type(A).__name__} {shape}"
        raise TypeError(
            f"`{caller}(A=...)` got a {what}. Pass a `BCOO`, a `BCSR`, a SciPy sparse "
            "matrix or a `SparseLinearOperator`; for a dense one use `linear_solve` or "
            "`lstsq`."
        )
    tags = frozenset(tags if isinstance(tags, Iterable) else (tags,))
    if isinstance(A, SparseLinearOperator):
        return SparseLinearOperator((A.data, A.sparsity), A.tags | tags)
    return SparseLinearOperator(A, tags)


def _right_hand_side(
    operator: SparseLinearOperator, B: Any, caller: str
) -> Inexact[Array, "m *k"]:
    B = as_inexact(B, f"{caller}(B=...)")
    rows = operator.out_size()
    if B.ndim not in (1, 2) or B.shape[0] != rows:
        raise ValueError(
            f"`{caller}(B=...)` got an array of shape {B.shape} beside A of shape "
            f"{(rows, operator.in_size())}. Pass one of shape ({rows},) or ({rows}, k)."
        )
    if B.dtype != operator.data.dtype:
        raise TypeError(
            f"`{caller}` got A of dtype {operator.data.dtype} and B of dtype {B.dtype}. "
            "Convert one of them."
        )
    return B


def _solver_by_tags(
    operator: SparseLinearOperator, options: dict[str, Any]
) -> lx.AbstractLinearSolver:
    definite = lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(
        operator
    )
    if lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator):
        return SparseTriangular()
    if definite:
        return CG()
    if is_hermitian(operator):
        return MINRES(well_posed="preconditioner" in options or "y0" in options)
    return BiCGStab()
