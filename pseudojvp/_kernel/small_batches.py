"""Kernels for batches of matrices of few columns, in the place of a library call each.

For matrices of eight columns a call of LAPACK takes a microsecond or two, of which the
arithmetic is a tenth. Under `jax.vmap` on the CPU the functions here take each step of
the elimination for all matrices at once, on long vectors; elsewhere, for larger matrices
and for few of them, they are JAX's own, as are their derivatives. The steps are written
out: in a loop each would read and write all of the factor, and take six times as long.
Times are medians on two CPU cores, for 10,000 matrices in float64.
"""

import functools as ft
import math
from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Inexact

from .._base.tree import nan_unless
from .products import matmul


# Matrices of up to so many columns, in batches of at least so many: they would be as fast
# from 16 on, but save a fraction of a millisecond, and take a second more to compile.
_MOST_COLUMNS = 8
_FEWEST = 100
# The products of so many columns are written out in a Gram matrix.
_MOST_LONG = 64


def cholesky(matrix: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """R of A = R^H R, from the upper triangle of A. NaN if A is not definite.

    For 8 x 8, 2 ms; `jax.scipy.linalg`'s takes 4.
    """
    return _cholesky(matrix) if _is_small(matrix) else jsl.cholesky(matrix)


def solve_triangular(
    matrix: Inexact[Array, "n n"],
    columns: Inexact[Array, "n *k"],
    *,
    trans: str = "N",
    lower: bool = False,
    unit_diagonal: bool = False,
) -> Inexact[Array, "n *k"]:
    """A⁻¹ C, A⁻ᵀ C or A⁻ᴴ C, from one triangle of A.

    For 8 x 8, 0.4 ms for one column and 1.6 for eight; `jax.scipy.linalg`'s takes 1.3 to
    3 and 5.
    """
    if not _is_small(matrix):
        return jsl.solve_triangular(
            matrix, columns, trans=trans, lower=lower, unit_diagonal=unit_diagonal
        )
    solve = _solve_triangular(trans, lower, unit_diagonal)
    if columns.ndim == 1:
        return solve(matrix, columns[:, None])[:, 0]
    return solve(matrix, columns)


def gram(rows: Inexact[Array, "short long"]) -> Inexact[Array, "short short"]:
    """A A^H. For 8 x 32, 2.3 ms; a batched product takes 6.8."""
    is_small = 0 < rows.shape[0] <= _MOST_COLUMNS and rows.shape[1] <= _MOST_LONG
    return _gram(rows) if is_small else _library_gram(rows)


def _is_small(matrix: Array) -> bool:
    return 0 < matrix.shape[1] <= _MOST_COLUMNS


def _in_batches(library: Callable, kernel: Callable) -> Callable:
    """`library` for one matrix, `kernel` for a batch of them in the first axis.

    They are functions of a matrix and perhaps of columns. Batched columns of one matrix
    are more columns. The derivatives are those of `library`.
    """

    @jax.custom_batching.custom_vmap
    def apply(matrix, *columns):
        batch = matrix.shape[:-2]
        if math.prod(batch) < _FEWEST:
            return library(matrix, *columns)
        arrays = matrix, *columns
        flat = (array.reshape(-1, *array.shape[-2:]) for array in arrays)
        out = lax.platform_dependent(*flat, cpu=kernel, default=library)
        return out.reshape(*batch, *out.shape[1:])

    @apply.def_vmap
    def _(axis_size, batched, matrix, *columns):
        if not batched[0]:
            (vectors,) = columns
            vectors = jnp.moveaxis(vectors, 0, -2)  # (..., n, batch, k)
            merged = vectors.reshape(*vectors.shape[:-2], -1)
            out = apply(matrix, merged).reshape(vectors.shape)
            return jnp.moveaxis(out, -2, 0), True
        columns = (
            array if is_batched else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, is_batched in zip(columns, batched[1:], strict=True)
        )
        return apply(matrix, *columns), True

    @jax.custom_jvp
    def differentiable(*arguments):
        return apply(*arguments)

    @differentiable.defjvp
    def _(primals, tangents):
        return jax.jvp(library, primals, tangents)

    return differentiable


def _apart(function: Callable) -> Callable:
    """`function`, which XLA does not merge with what is around it.

    Otherwise it computes a step again in each of those that read the outcome: the factor,
    and solves with it, then took twice the time. It drops an `optimization_barrier`
    before that.
    """

    @jax.jit
    @ft.wraps(function)
    def compiled(*arguments):
        with set_xla_metadata(inlineable=None):  # `jax.numpy` has calls of its own
            return function(*arguments)

    @ft.wraps(function)
    def call(*arguments):
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return call


def _last(array: Inexact[Array, "batch rows cols"]) -> Inexact[Array, "rows cols batch"]:
    return jnp.moveaxis(array, 0, -1)


def _first(array: Inexact[Array, "rows cols batch"]) -> Inexact[Array, "batch rows cols"]:
    return jnp.moveaxis(array, -1, 0)


@_apart
def _cholesky_steps(matrix: Inexact[Array, "n n batch"]) -> Inexact[Array, "n n batch"]:
    # In LAPACK's order: a pivot is a difference of two, once rounded. By one subtraction
    # a step, 4 % of singular 3 x 3 matrices of integers ended as regular.
    places = jnp.arange(matrix.shape[0])[:, None]
    rows = []
    for j, rest in enumerate(matrix):
        if rows:
            rest = rest - sum(row[j : j + 1].conj() * row for row in rows)
        root = jnp.sqrt(rest[j : j + 1].real).astype(rest.dtype)
        row = jnp.where(places == j, root, rest / root)
        rows.append(jnp.where(places < j, 0, row))
    # A pivot that is not positive makes NaN of itself, or of the last one.
    return nan_unless(rows[-1][None, -1:].real > 0, jnp.stack(rows))


_cholesky = _in_batches(
    jsl.cholesky, lambda matrices: _first(_cholesky_steps(_last(matrices)))
)


@ft.cache
def _solve_triangular(trans: str, lower: bool, unit_diagonal: bool) -> Callable:
    forward = lower == (trans == "N")

    def library(matrix, columns):
        return jsl.solve_triangular(
            matrix, columns, trans=trans, lower=lower, unit_diagonal=unit_diagonal
        )

    @_apart
    def steps(matrix, rest):
        if trans != "N":
            matrix = jnp.swapaxes(matrix, 0, 1)
        matrix = matrix.conj() if trans == "C" else matrix
        size, solved = matrix.shape[0], []
        for j in range(size) if forward else reversed(range(size)):
            x = rest[0] if forward else rest[-1]
            x = x if unit_diagonal else x / matrix[j, j][None]
            solved.append(x)
            others = matrix[j + 1 :, j] if forward else matrix[:j, j]
            rest = (rest[1:] if forward else rest[:-1]) - others[:, None] * x[None]
        return jnp.stack(solved if forward else solved[::-1])

    def kernel(matrices, columns):
        return _first(steps(_last(matrices), _last(columns)))

    return _in_batches(library, kernel)


def _library_gram(rows):
    return matmul(rows, rows.conj().mT)


@_apart
def _products_of_columns(columns: Inexact[Array, "batch long short"]):
    each = (columns[:, i] for i in range(columns.shape[1]))
    return sum(column[:, :, None] * column.conj()[:, None] for column in each)


_gram = _in_batches(_library_gram, lambda rows: _products_of_columns(rows.mT))
