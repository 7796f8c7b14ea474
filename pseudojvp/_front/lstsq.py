"""`lstsq` and `pinv`: the signatures of NumPy, on arrays."""

import dataclasses
import math

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, Integer, Num, Real

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled
from .._base.checks import check_solver
from .._base.tree import at_least_single, one_or_nan
from .._map.adjoints import AbstractAdjoint, check_adjoint
from .._map.factorised import Factorised, implicit
from .._operator import SparseMatrix
from .._operator.sparse import is_sparse
from .._solver import PivotedQR
from .._solver.known_blocks import with_known_blocks
from .._solver.orthogonal.pivoted_qr import PivotedQRState
from .._solver.orthogonal.svd import SVDState
from .arrays import (
    as_real,
    check_rcond,
    check_shapes,
    dense,
    promote,
    rcond_beside,
    resolve,
    TRUNCATING,
)


# The states that tell a rank.
_RANKED = PivotedQRState | SVDState


def lstsq(
    a: Num[ArrayLike, "m n"] | Bool[ArrayLike, "m n"] | SparseMatrix,
    b: Num[ArrayLike, "m *k"] | Bool[ArrayLike, "m *k"],
    rcond: Real[ArrayLike, ""] | None = None,
    *,
    damp: Real[ArrayLike, ""] | None = None,
    weights: Real[ArrayLike, " m"] | None = None,
    solver: lx.AbstractLinearSolver | None = None,
    throw: bool = True,
    adjoint: AbstractAdjoint = implicit,
) -> tuple[
    Inexact[Array, "n *k"],
    Real[Array, " k"],
    Integer[Array, ""],
    Real[Array, " min(m,n)"],
]:
    """Returns the least-squares solution of a x = b, as `jax.numpy.linalg.lstsq` does.

        min ‖diag(weights) (b − a x)‖² + damp² ‖x‖²

    If there are several solutions, x is the one of minimum norm.

    **Arguments:**

    - `a`: array of shape `(m, n)`, of any shape and rank; or a sparse matrix (`BCOO`,
        `BCSR` or SciPy's) of up to a million entries, counting zeros. A sparse matrix is
        made dense, because rank and singular values need it; its gradient has its
        pattern.
    - `b`: array of shape `(m,)`, or `(m, k)` for k right-hand sides, which share one
        factorisation. Both are promoted to one floating or complex dtype, as by
        `jax.numpy`.
    - `rcond`: singular values at most `rcond` times the largest one count as zero; a
        number without unit. It applies to the matrix that is solved with, which is
        diag(weights) a with damp I stacked below; for `rank`, to diag(weights) a.
        Defaults to `None`: the `rcond` of `solver` if that is set, else `eps` times the
        larger dimension of that matrix. A negative value means `eps`.
    - `damp`: a real scalar, in the units of diag(weights) a. Defaults to `None`, no
        damping.
    - `weights`: real, of shape `(m,)`; they multiply the residual *before* it is squared,
        like `w` of `numpy.polyfit`: 1/σ for measurements of standard deviation σ.
        Defaults to `None`, all one.
    - `solver`: any solver of [`pseudojvp.linear_solve`][] that takes a dense matrix of
        that shape. Defaults to `None`, [`pseudojvp.PivotedQR`][]. [`pseudojvp.SVD`][] is
        slower and determines ranks more sharply; [`pseudojvp.QR`][] is faster, and needs
        full rank. Pass `rcond` only with a solver that has this field and has not set it.
    - `throw`: whether an error is raised at run time, in the primal and in derivatives,
        if the input has NaN or Inf, or if the solver fails (as `QR()` does if the matrix
        lacks full rank). If `False`, x, the residuals and their derivatives are NaN.
        Defaults to `True`.
    - `adjoint`: how x is differentiated, as for [`pseudojvp.linear_solve`][]. If a solver
        is unrolled, the residuals are those of its last iterate. Defaults to
        `ImplicitAdjoint()`.

    **Returns:** the tuple `(x, residuals, rank, s)`:

    - `x`: of shape `(n,)` or `(n, k)`.
    - `residuals`: of shape `(1,)` or `(k,)`, real: the minimum of the display above,
        including weights and damping. Returned for every shape and rank; NumPy returns an
        empty array for some.
    - `rank`: an integer scalar, the rank of diag(weights) a to within `rcond`: the rank
        that the solver found, if it finds one; otherwise, or with `damp`, counted in `s`.
    - `s`: the `min(m, n)` singular values of diag(weights) a, largest first; NaN if that
        matrix is not finite.

    Cost: one factorisation, then one application of its factors for x and half of one for
    the residuals. `s` needs a singular value decomposition of its own (except with
    `SVD()` and no damping, which already has it); under `jax.vmap` the matrices are
    decomposed one after the other. Under `jax.jit` unused outputs cost nothing; outside
    it, all four are computed.

    **Derivatives:** of x and of the residuals, with respect to `a`, `b`, `damp` and
    `weights`, forward and reverse, of every order, along paths of constant rank. Equal
    singular values do no harm. x costs what [`pseudojvp.linear_solve`][] costs. A JVP or
    VJP of the residuals takes no solve, only products with the tangent of a, since d‖r‖²
    = 2 Re⟨r, db − da x⟩. `s` has the derivatives of `jax.numpy.linalg.svd`, and `rank`
    has none.

    **Raises:** `TypeError` or `ValueError` at trace time for arguments of another shape,
    dtype or type; a run-time error as `throw` says.

    **Sources:** Björck, *Numerical Methods for Least Squares Problems* (1996), sections
    1.2 and 2.7 (damping as a stacked matrix); Golub & Pereyra, SIAM J. Numer. Anal. 10
    (1973), section 4, for the derivative of the residual.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    a, b = jnp.array([[1.0, 1.0], [1.0, 1.0]]), jnp.array([1.0, 3.0])  # rank 1
    x, residuals, rank, s = pj.lstsq(a, b)
    print(x.round(2), residuals.round(2), rank)  # [1. 1.] [2.] 1
    gradient = jax.grad(lambda b: pj.lstsq(a, b)[0].sum())(b)
    print(gradient.round(2))  # [0.5 0.5]
    ```
    """
    check_adjoint(adjoint, "lstsq")
    solver = PivotedQR() if solver is None else solver
    check_solver(solver, "lstsq")
    rcond = rcond_beside(solver, rcond, "lstsq")
    if is_sparse(a):
        a = dense(a, "lstsq", "use `sparse_lstsq`")
    a, b = promote("lstsq", a=a, b=b)
    check_shapes(a, b, "lstsq")
    given = a.dtype
    if given.itemsize == 2 and rcond is None and isinstance(solver, TRUNCATING):
        rcond = float(jnp.finfo(given).eps)  # above the rounding of entries
    a, b = at_least_single(a), at_least_single(b)
    solver = with_known_blocks(solver, a)
    if damp is not None:
        damp = as_real(damp, "lstsq(damp=...)", (), a.dtype)
    if weights is not None:
        weights = as_real(weights, "lstsq(weights=...)", a.shape[:1], a.dtype)
    x, residuals, rank, s = _lstsq(a, b, rcond, damp, weights, solver, throw, adjoint)
    if given.itemsize == 2:
        x, residuals, s = (array.astype(given) for array in (x, residuals, s))
    return x, residuals, rank, s


@compiled
@with_auto_axes
def _lstsq(a, b, rcond, damp, weights, solver, throw, adjoint):
    real_dtype = jnp.finfo(a.dtype).dtype
    columns = b if b.ndim == 2 else b[:, None]
    if weights is not None:
        scale = weights.astype(a.dtype)[:, None]
        a, columns = scale * a, scale * columns
    stacked = a
    if damp is not None:
        identity = jnp.eye(a.shape[1], dtype=a.dtype)
        stacked = jnp.concatenate([a, damp.astype(a.dtype) * identity])
        columns = jnp.pad(columns, ((0, a.shape[1]), (0, 0)))
    if isinstance(solver, TRUNCATING):
        solver = dataclasses.replace(solver, rcond=resolve(rcond, stacked))
    operator = lx.MatrixLinearOperator(stacked)
    adjoint = adjoint.for_solve(operator, columns)
    factorised, _ = Factorised.create(operator, solver, throw=throw, adjoint=adjoint)
    state = factorised.state

    def solve(column, key=None):
        own = factorised.with_key(key)
        x = own.solve(column)
        # On its own, so that neither the residual nor its tangents cost anything where
        # only x is used. What the two have in common, the solve, XLA computes once.
        x_again, r, *_ = own.nan_if_failed().apply(column, residual=True)
        if r is None:  # zero, but it hangs on the solve, and so do its derivatives
            return x, jnp.sum(0 * x.real)
        if factorised.unrolls:  # r is not orthogonal to the range
            return x, jnp.vdot(r, r).real
        return x, _squared_norm(r, x_again, stacked, column)

    if columns.shape[1] == 0:  # `throw` cannot reduce over nothing
        x, residuals = jnp.zeros((a.shape[1], 0), a.dtype), jnp.zeros(0, real_dtype)
    elif b.ndim == 1:
        x, residuals = jtu.tree_map(lambda leaf: leaf[..., None], solve(columns[:, 0]))
    else:
        keys = factorised.keys(columns.shape[1])
        x, residuals = jax.vmap(solve, in_axes=(1, 0), out_axes=(1, 0))(columns, keys)
    if isinstance(state, SVDState) and damp is None:
        s = _with_values(a, state.singular_values)
    else:
        s = _singular_values(a)
    if isinstance(state, _RANKED) and damp is None:
        rank = state.rank
    else:
        rank = jnp.sum(s > resolve(rcond, a) * jnp.max(s, initial=0))
    return x if b.ndim == 2 else x[:, 0], residuals, rank, s


@jax.custom_jvp
def _squared_norm(r, x, matrix, vector) -> Real[Array, ""]:
    """‖r‖² for the residual r = b − A x of least squares."""
    del x, matrix, vector
    return jnp.vdot(r, r).real


@_squared_norm.defjvp
def _(primals, tangents):
    # ṙ = ḃ − Ȧx − Aẋ, and A^H r = 0: the tangents of r and x are not needed. Those of
    # this tangent are: they come with the primals r and x, by the primitive.
    r, x, _, _ = primals
    _, _, t_matrix, t_vector = tangents
    change = t_vector - jnp.matmul(t_matrix, x, precision=lax.Precision.HIGHEST)
    return _squared_norm(*primals), 2 * jnp.vdot(r, change).real


def _singular_values(matrix: Inexact[Array, "m n"]) -> Real[Array, " k"]:
    # LAPACK's `gesdd` can loop for ever on an Inf.
    finite = jnp.all(jnp.isfinite(matrix))
    values = _finite_singular_values(jnp.where(finite, matrix, 0))
    return values * one_or_nan(finite).astype(values.dtype)


@jax.custom_batching.custom_vmap
def _svd_values(matrix):
    return jnp.linalg.svd(matrix, compute_uv=False)


@_svd_values.def_vmap
def _(size, batched, matrices):
    # One after the other on the CPU: batched LAPACK calls without a data dependency, as
    # beside a factorisation, can deadlock there (jaxlib 0.10.2).
    del size, batched
    at_once = lambda matrices: jnp.linalg.svd(matrices, compute_uv=False)
    in_turn = lambda matrices: lax.map(_svd_values, matrices)
    return lax.platform_dependent(matrices, cpu=in_turn, default=at_once), True


@jax.custom_jvp
def _finite_singular_values(matrix):
    return _svd_values(matrix)


@_finite_singular_values.defjvp
def _(primals, tangents):
    svd = lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)
    return _finite_singular_values(*primals), jax.jvp(svd, primals, tangents)[1]


@jax.custom_jvp
def _with_values(matrix, values) -> Real[Array, " k"]:
    """The singular values of `matrix`, known to be `values`."""
    del matrix
    return values


@_with_values.defjvp
def _(primals, tangents):
    matrix, values = primals
    t_matrix, _ = tangents
    return values, jax.jvp(_singular_values, (matrix,), (t_matrix,))[1]


def pinv(
    a: Num[ArrayLike, "*batch m n"] | Bool[ArrayLike, "*batch m n"],
    rcond: Real[ArrayLike, ""] | None = None,
    *,
    throw: bool = True,
) -> Inexact[Array, "*batch n m"]:
    """Returns the pseudoinverse A† of a matrix, or of each matrix in a batch.

    Like `jax.numpy.linalg.pinv`, but with a pivoted QR factorisation instead of a
    singular value decomposition: A† is the solution for the unit vectors of the shorter
    side.

    **Arguments:**

    - `a`: array of shape `(..., m, n)`, of any shape and rank. Integers become floats.
    - `rcond`: singular values at most `rcond` times the largest one count as zero; a
        number without unit. Defaults to `None`, `eps * max(m, n)`. A negative value means
        `eps`.
    - `throw`: whether NaN or Inf in `a` raises at run time, in the primal and in
        derivatives. If `False`, the pseudoinverse of such a matrix and its derivatives
        are NaN; other matrices in the batch are not affected. Defaults to `True`.

    **Returns:** an array of shape `(..., n, m)`.

    **Derivatives:** with respect to `a`, forward and reverse, of every order, along paths
    of constant rank. Cost: one factorisation, and one application of its factors to
    min(m, n) vectors; two more applications for a JVP and two more for a VJP. To apply A†
    to fewer vectors, [`pseudojvp.lstsq`][] or [`pseudojvp.linear_solve`][] is cheaper.

    **Raises:** `TypeError` or `ValueError` at trace time for arguments of another shape
    or type; a run-time error as `throw` says.

    **Sources:** Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), theorem 4.3, for the
    derivative.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    a = jnp.array([[1.0, 1.0], [1.0, 1.0]])
    print(pj.pinv(a).round(2).tolist())  # [[0.25, 0.25], [0.25, 0.25]]
    ```
    """
    check_rcond(rcond, "pinv")
    (a,) = promote("pinv", a=a)
    if a.ndim < 2:
        raise ValueError(
            f"`pinv(a=...)` got an array of shape {a.shape}. Pass a matrix of shape "
            "(m, n), or a batch of them of shape (..., m, n)."
        )
    return _pinv(a, rcond, throw)


@compiled
def _pinv(a, rcond, throw):
    *batch, m, n = a.shape
    if a.size == 0:
        return jnp.zeros((*batch, n, m), a.dtype)
    if m > n:
        return _pinv(a.conj().mT, rcond, throw).conj().mT

    def one(matrix):
        operator = lx.MatrixLinearOperator(matrix)
        factorised, _ = Factorised.create(operator, PivotedQR(rcond), throw=throw)
        return jax.vmap(factorised.solve, out_axes=1)(jnp.eye(m, dtype=a.dtype))

    inverses = jax.vmap(one)(a.reshape(math.prod(batch), m, n))
    return inverses.reshape(*batch, n, m)
