"""`sparse_solve` and `sparse_lstsq`: gradients on the pattern of the matrix."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, Real

from .._base.call import compiled
from .._base.checks import check_solver
from .._base.host import raise_if
from .._base.inexact import as_inexact
from .._base.tree import one_or_nan
from .._map.adjoints import AbstractAdjoint, check_adjoint
from .._map.factorised import Factorised, implicit
from .._operator import SparseLinearOperator
from .._operator.damped import damped
from .._operator.sparse import is_sparse
from .._solver import (
    AbstractKrylovSolver,
    FunctionSolver,
    is_function,
    LSMR,
    TransposePair,
)
from .._solver.auto import default_solver
from .._solver.options import check_tolerances


_ZERO_DAMP = (
    "`sparse_lstsq(damp=...)` got zero, but takes [A; damp I] to have full rank. Leave "
    "`damp` out for none."
)


def sparse_solve(
    A: SparseLinearOperator | Any,
    B: Inexact[ArrayLike, "n *k"],
    solver: lx.AbstractLinearSolver | Callable | None = None,
    transpose_solver: lx.AbstractLinearSolver | Callable | None = None,
    *,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    options: dict[str, Any] | None = None,
    tags: object | frozenset[object] = frozenset(),
    throw: bool = True,
    adjoint: AbstractAdjoint = implicit,
) -> Inexact[Array, "n *k"]:
    """Returns the solution X of A X = B for a square sparse A.

    A is taken to be nonsingular, unless `solver` allows another rank; if A may be
    singular, use `sparse_lstsq`. Adjoint solves are with Aᵀ by construction, even if only
    `solver` is given.

    **Arguments:**

    - `A`: `(n, n)`; a `BCOO` or `BCSR` of `jax.experimental.sparse`, a SciPy sparse
        matrix, or a [`pseudojvp.SparseLinearOperator`][]. The operator is sorted once,
        when it is built; the others are sorted at each call.
    - `B`: `(n,)`, or `(n, k)` for k right-hand sides, which run in one loop, each until
        it has converged. In the dtype of A.
    - `solver`: any solver that [`pseudojvp.linear_solve`][] takes, or a function
        `solve(A, b)` that returns x, which becomes a [`pseudojvp.FunctionSolver`][].
        Defaults to `None`, the choice of `AutoLinearSolver(well_posed=True)` by the
        pattern and the tags: up to a million entries, counting zeros, it treats A as a
        dense matrix; above that it iterates with products with A and Aᵀ, to a relative
        residual of 1e-10 (1e-5 in less than double precision). With `options` it always
        iterates.
    - `transpose_solver`: another solver for Aᵀ, used in derivatives. Defaults to `None`,
        the same as `solver`.
    - `rtol`, `atol`: `≥ 0`; the tolerances of the default solver if it is iterative, and
        of the check on what a function returned: |b − A x| ≤ atol + rtol |b|. Derivatives
        use only `rtol`, relative to their own right-hand sides. A direct solver is
        accurate to rounding. Default to `None`, those of the default solver. If you pass
        a solver, set its own tolerances instead.
    - `options`: run-time options of the solver, such as `{"preconditioner": P}` or
        `{"y0": first_guess}`. The adjoint solve uses Pᵀ. Defaults to none.
    - `tags`: what is known about A, such as `lineax.symmetric_tag`, in addition to the
        tags of an operator. Defaults to none.
    - `throw`: whether a solve that did not converge raises at run time, here and in
        derivatives. If `False`, X is NaN where the solve failed. Defaults to `True`.
    - `adjoint`: how the solution is differentiated, as for
        [`pseudojvp.linear_solve`][]. Defaults to `ImplicitAdjoint()`.

    **Returns:** X, with the shape of B.

    **Derivatives:** with respect to A and B, forward and reverse, of every order. The
    cotangent of A has the pattern and the format of A, so memory is proportional to its
    stored entries. Cost: one solve for a JVP, one with Aᵀ for a VJP (three each with
    `MINRES()`, which allows a singular A).

    **Raises:** `TypeError` for a dense A, or different dtypes of A and B; `ValueError`
    for shapes that do not match, indices out of range, `rtol` or `atol` together with a
    solver, and for an operator that the solver cannot take; a run-time error as `throw`
    says.

    **Sources:** Giles, *Collected matrix derivative results* (2008), section 2.3.1.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    row, col = jnp.array([0, 0, 1]), jnp.array([0, 1, 1])
    A = lambda data: pj.SparseLinearOperator((data, row, col, (2, 2)))
    data, b = jnp.array([2.0, 1.0, 4.0]), jnp.array([3.0, 4.0])
    print(pj.sparse_solve(A(data), b).round(2))  # [1. 1.]
    gradient = jax.grad(lambda data: pj.sparse_solve(A(data), b).sum())(data)
    print(gradient)  # [-0.5   -0.5   -0.125]
    ```
    """
    check_adjoint(adjoint, "sparse_solve")
    operator = _as_sparse(A, tags, "sparse_solve")
    if operator.in_size() != operator.out_size():
        raise ValueError(
            f"`sparse_solve(A=...)` got shape {(operator.out_size(), operator.in_size())}"
            ". Pass a square matrix; for others use `sparse_lstsq`."
        )
    columns = _right_hand_side(operator, B, "sparse_solve")
    options = {} if options is None else options
    tolerances = _tolerances("sparse_solve", rtol=rtol, atol=atol)
    if solver is None:
        solver = _with_tolerances(default_solver(operator, True, options), tolerances)
    else:
        solver = _as_solver(solver, tolerances, True, "sparse_solve")
    if transpose_solver is not None:
        transpose_solver = _as_solver(transpose_solver, tolerances, True, "sparse_solve")
        solver = TransposePair(solver, transpose_solver)
    return _solve_columns(operator, columns, solver, options, throw, None, adjoint)


def sparse_lstsq(
    A: SparseLinearOperator | Any,
    B: Inexact[ArrayLike, "m *k"],
    solver: lx.AbstractLinearSolver | Callable | None = None,
    *,
    damp: Real[ArrayLike, ""] | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    options: dict[str, Any] | None = None,
    tags: object | frozenset[object] = frozenset(),
    throw: bool = True,
    adjoint: AbstractAdjoint = implicit,
) -> Inexact[Array, "n *k"]:
    """Returns the least-squares solution of A X = B for a sparse A of any shape and rank.

        min ‖A X − B‖² + damp² ‖X‖²

    If there are several solutions, X is the one of minimum norm.

    **Arguments:**

    - `A`: `(m, n)`, as for [`pseudojvp.sparse_solve`][].
    - `B`: `(m,)` or `(m, k)`, in the dtype of A.
    - `solver`: any solver of rectangular operators that [`pseudojvp.linear_solve`][]
        takes, or a function `solve(A, b)` that returns A†b, which becomes a
        [`pseudojvp.FunctionSolver`][]. With `damp`, the function gets the operator [A;
        damp I] and the pair (b, zeros), and also the transpose of that operator and one
        vector of the size of x. Defaults to `None`: the choice of
        `AutoLinearSolver(well_posed=False)` without `damp`, which takes no `options`;
        `LSMR(well_posed=True)` with `damp`.
    - `damp`: a real scalar in the units of A; differentiable. [A; damp I] must have full
        rank, so `damp` must not be zero, nor so small that it is lost in the rounding of
        A. Defaults to `None`, no damping.
    - `rtol`, `atol`, `options`, `tags`: as for `sparse_solve`, with the same defaults.
    - `throw`: as for `sparse_solve`; a `damp` of zero is also a failure. Defaults to
        `True`.
    - `adjoint`: as for `sparse_solve`. Defaults to `ImplicitAdjoint()`.

    **Returns:** X, `(n,)` or `(n, k)`.

    **Derivatives:** with respect to A, B and `damp`, forward and reverse, of every order,
    along paths of constant rank; those of A have its pattern, as for `sparse_solve`.
    Cost: up to three solves for a JVP or a VJP; one if `damp` is given.

    **Raises:** as `sparse_solve`; `ValueError` for a `damp` that is not a scalar or is
    the number zero, `TypeError` for a complex one.

    **Sources:** Fong & Saunders, *LSMR: an iterative algorithm for sparse least-squares
    problems*, SIAM J. Sci. Comput. 33 (2011); Golub & Pereyra, SIAM J. Numer. Anal. 10
    (1973), theorem 4.3, for the derivative.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj
    import scipy.sparse

    A = scipy.sparse.csr_array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])  # rank 1
    print(pj.sparse_lstsq(A, jnp.array([1.0, 3.0, 5.0])).round(2))  # [2. 0.]
    ```
    """
    check_adjoint(adjoint, "sparse_lstsq")
    operator = _as_sparse(A, tags, "sparse_lstsq")
    columns = _right_hand_side(operator, B, "sparse_lstsq")
    options = {} if options is None else options
    damp = _check_damp(damp)
    tolerances = _tolerances("sparse_lstsq", rtol=rtol, atol=atol)
    if solver is not None:
        solver = _as_solver(solver, tolerances, damp is not None, "sparse_lstsq")
    elif damp is not None:
        solver = LSMR(well_posed=True, **tolerances)
    else:
        solver = _with_tolerances(default_solver(operator, False, options), tolerances)
    return _solve_columns(operator, columns, solver, options, throw, damp, adjoint)


@compiled
def _solve_columns(
    operator: lx.AbstractLinearOperator,
    B: Inexact[Array, "m *k"],
    solver: lx.AbstractLinearSolver,
    options: dict[str, Any],
    throw: bool,
    damp: Real[Array, ""] | None,
    adjoint: AbstractAdjoint,
) -> Inexact[Array, "n *k"]:
    zeros = jnp.zeros(operator.in_size(), B.dtype)
    if B.size == 0 or zeros.size == 0:  # no rows, no columns or no right-hand sides
        return jnp.zeros((zeros.size, *B.shape[1:]), B.dtype)
    if damp is not None:
        damp = damp.astype(jnp.finfo(B.dtype).dtype)
        operator = damped(operator, _nonzero(damp, throw))
    adjoint = adjoint.for_solve(operator, B)
    factorised, _ = Factorised.create(
        operator, solver, options, throw=throw, adjoint=adjoint
    )

    def solve(column, key=None):
        own = factorised.with_key(key)
        return own.solve(column if damp is None else (column, zeros))

    if B.ndim == 1:
        return solve(B)
    keys = factorised.keys(B.shape[1])
    return jax.vmap(solve, in_axes=(1, 0), out_axes=1)(B, keys)


def _nonzero(damp: Real[Array, ""], throw: bool) -> Real[Array, ""]:
    """`damp`; for zero an error, or NaN, which fails the solve and its derivatives."""
    if throw:
        one = raise_if((damp == 0).astype(jnp.int32), ("", _ZERO_DAMP))
        damp = damp * one.astype(damp.dtype)
    return damp * one_or_nan(damp != 0).astype(damp.dtype)


def _tolerances(caller: str, **given: Any) -> dict[str, Any]:
    """Those that were given."""
    check_tolerances(caller, **given)
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if jnp.ndim(value) != 0:
            raise ValueError(f"`{caller}({name}=...)` got {value}. Pass a scalar.")
    return given


def _with_tolerances(
    solver: lx.AbstractLinearSolver, tolerances: dict[str, Any]
) -> lx.AbstractLinearSolver:
    if isinstance(solver, AbstractKrylovSolver):
        return dataclasses.replace(solver, **tolerances)
    return solver


def _as_solver(
    solver: Any, tolerances: dict[str, Any], well_posed: bool, caller: str
) -> lx.AbstractLinearSolver:
    if is_function(solver):
        return FunctionSolver(solver, well_posed=well_posed, **tolerances)
    check_solver(solver, caller)
    if tolerances:
        raise ValueError(
            f"`{caller}` got `{'` and `'.join(tolerances)}` beside "
            f"`{type(solver).__name__}`, which has tolerances of its own or none. Pass "
            "them to the solver, or leave the solver out."
        )
    return solver


def _check_damp(damp: Any) -> Real[Array, ""] | None:
    if damp is None:
        return None
    if isinstance(damp, int | float) and damp == 0:
        raise ValueError(_ZERO_DAMP)
    damp = jnp.asarray(damp)
    if damp.ndim != 0:
        raise ValueError(
            f"`sparse_lstsq(damp=...)` got an array of shape {damp.shape}. Pass a "
            "scalar; for a batch of them use `jax.vmap`."
        )
    if jnp.iscomplexobj(damp):
        raise TypeError(f"`sparse_lstsq(damp=...)` got {damp}. Pass a real number.")
    return damp


def check_sparse(A: Any, caller: str) -> None:
    if not (isinstance(A, SparseLinearOperator) or is_sparse(A)):
        shape = getattr(A, "shape", None)
        what = type(A).__name__ if shape is None else f"{type(A).__name__} {shape}"
        raise TypeError(
            f"`{caller}(A=...)` got a {what}. Pass a `BCOO`, a `BCSR`, a SciPy sparse "
            "matrix or a `SparseLinearOperator`; for a dense one use `linear_solve` or "
            "`lstsq`."
        )


def _as_sparse(A: Any, tags: Any, caller: str) -> SparseLinearOperator:
    check_sparse(A, caller)
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
