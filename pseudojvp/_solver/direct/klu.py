from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.dtypes
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, Int, Real

from ..._base.checks import check_options, check_square
from ..._base.optional import import_optional
from ..._kernel.condition import full_rank_result, reciprocal_condition
from ..._operator import SparseLinearOperator


# KLU's wrapper raises at an exact zero pivot, `throw=False` or not. With entries a + iτu,
# for a fixed random u, what cancels exactly leaves τ: seen in the estimate of the
# condition number, and never in the digits of a solution.
_TAU = 2.0**-100

# A backward error in units of eps, above which a solution is refined once, and above n
# times which it is no solution.
_ALLOWED = 10.0


class KLUState(eqx.Module):
    """A, or a batch of such, with each position once.

    Indices equal to the size of A are padding.
    """

    row: Int[Array, " nnz"]
    col: Int[Array, " nnz"]
    data: Inexact[Array, "*batch nnz"]
    padded: bool = eqx.field(static=True)


class KLU(lx.AbstractLinearSolver[KLUState]):
    """Solves sparse square nonsingular systems by KLU, a sparse LU factorisation.

    KLU permutes A to block triangular form and factorises the blocks, with partial
    pivoting and an ordering that keeps the fill low. It was made for circuits, and is
    good for any sparse A whose factors stay sparse: for PDEs in two dimensions up to some
    10⁵ unknowns; in three dimensions precondition an iteration instead.

    It needs the package `klujax` (`pip install "pseudojvp[klu]"`) and runs on the CPU
    only, in double precision: JAX has to have `jax_enable_x64` set. Importing
    klujax sets it; here the import is put off until a `KLU()` is made, and JAX's settings
    are as before when it returns. A single-precision operator is solved in double
    precision and the solution rounded.

    A handle of klujax on a factorisation does not outlive the compiled program that made
    it, nor may it be stored in one. So the state is A itself, and every application
    factorises again: all right-hand sides of one application (those of a `jax.vmap` among
    them) at once. An estimate of the reciprocal condition number of A with its rows
    scaled comes with each application, from eight columns more, and is
    `stats["reciprocal_condition"]`. At most `eps * n` means that A is singular to working
    precision; the result is then `RESULTS.singular`. To tell an exactly singular A from
    the factors, they are complex also for a real A (twice the time); a complex A is
    solved as a real one of twice the size, some eight times the time.

    KLU may take a pivot of a thousandth of its column, with which b − A x can lose half
    of its digits. So each application ends with a look at b − A x. If an entry of it is
    above 10 eps times the largest of |A| |x| + |b|, a step of iterative refinement
    follows, with a second factorisation; if it then is above 10 eps n times that, the
    result is `RESULTS.singular`, and `stats["reciprocal_condition"]` is zero.

    Indices that are traced, that name a place twice or padding, or that let A be singular
    for any entries, are first sorted, at every application of `init`: some three times
    the time in all for a mesh in two dimensions.

    Takes no `options`. Cost: one factorisation for the primal, one for a JVP and one for
    a VJP; twice that where refined.

    **Raises:** `ImportError` if klujax is not there; `ValueError` at trace time for an
    operator that is not sparse or not square, an option, or JAX without double precision.

    **Sources:** Davis & Palamadai Natarajan, *Algorithm 907: KLU, a direct sparse solver
    for circuit simulation problems*, ACM Trans. Math. Softw. 37 (2010); Gudmundsson,
    Kenney & Laub, *Small-sample statistical estimates for matrix norms*, SIAM J. Matrix
    Anal. Appl. 16 (1995), for the estimate.
    """

    def __check_init__(self):
        _klujax()

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> KLUState:
        check_options(self, options)
        check_square(self, operator)
        while isinstance(operator, lx.TaggedLinearOperator):
            operator = operator.operator
        if not isinstance(operator, SparseLinearOperator):
            raise ValueError(
                f"`KLU()` takes a `SparseLinearOperator`, but `operator` is a "
                f"{type(operator).__name__}. Use `LU()` for a dense one."
            )
        if jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
            raise ValueError(
                "`KLU()` computes in double precision, which JAX has switched off. Set "
                '`jax.config.update("jax_enable_x64", True)` first.'
            )
        sparsity, data = operator.sparsity, operator.data
        if sparsity.distinct and sparsity.nonsingular:
            return KLUState(sparsity.row, sparsity.col, data, padded=False)
        row, col, position = _distinct_positions(
            sparsity.row, sparsity.col, operator.out_size()
        )
        data = jnp.zeros(row.size, data.dtype).at[position].add(data, mode="drop")
        return KLUState(row, col, data, padded=True)

    def compute(
        self, state: KLUState, vector: Inexact[Array, " n"], options: dict[str, Any]
    ) -> tuple[Inexact[Array, " n"], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        dtype = vector.dtype
        if vector.size == 0:
            stats = {"reciprocal_condition": jnp.ones((), dtype)}
            return vector, lx.RESULTS.successful, stats
        columns = vector[:, None]
        matrix = state
        if jnp.iscomplexobj(state.data):
            matrix, columns = _real_system(state, columns)
        (solved,), (estimate,) = _solve(
            _with_data(matrix, matrix.data[None].astype(jnp.float64)),
            columns[None].astype(jnp.float64),
        )
        solution = solved[:, 0]
        if jnp.iscomplexobj(state.data):
            solution = jax.lax.complex(*jnp.split(solution, 2))
        estimate = estimate.astype(jnp.finfo(dtype).dtype)
        result = full_rank_result(estimate, vector.size, vector.size)
        return solution.astype(dtype), result, {"reciprocal_condition": estimate}

    def transpose(self, state: KLUState, options: dict[str, Any]):
        return KLUState(state.col, state.row, state.data, state.padded), options

    def conj(self, state: KLUState, options: dict[str, Any]):
        return _with_data(state, state.data.conj()), options

    def assume_full_rank(self) -> bool:
        return True


def _klujax() -> ModuleType:
    return import_optional("klujax", "KLU()", "klu")


def _distinct_positions(row, col, size: int):
    """Each position once, those of the diagonal too, and where each entry is among them.

    Padding is in the place of what is there already. With the diagonal, since KLU takes
    no pattern that is singular for any choice of the entries.
    """
    # Else XLA would sort known indices as it compiles, 30 s for 10⁵.
    row, col = jax.lax.optimization_barrier((row, col))
    nse = row.size
    diagonal = jnp.arange(size, dtype=row.dtype)
    row, col = jnp.concatenate([row, diagonal]), jnp.concatenate([col, diagonal])
    order = jnp.lexsort((row, col))
    row, col = row[order], col[order]
    first = jnp.append(True, (jnp.diff(row) != 0) | (jnp.diff(col) != 0))
    (start_of_group,) = jnp.nonzero(first, size=row.size)
    position = start_of_group[jnp.cumsum(first) - 1]
    position = jnp.zeros_like(position).at[order].set(position)[:nse]
    return jnp.where(first, row, size), jnp.where(first, col, size), position


def _real_system(matrix: KLUState, columns):
    """[[Re A, −Im A], [Im A, Re A]] and [Re B; Im B]."""
    size, data = len(columns), matrix.data
    # Padding has to stay beyond the last row.
    above = [jnp.where(i < size, i, 2 * size) for i in (matrix.row, matrix.col)]
    below = [jnp.where(i < size, i + size, 2 * size) for i in (matrix.row, matrix.col)]
    (row, col), (row_below, col_right) = above, below
    real = KLUState(
        jnp.concatenate([row, row, row_below, row_below]),
        jnp.concatenate([col, col_right, col, col_right]),
        jnp.concatenate([data.real, -data.imag, data.imag, data.real]),
        matrix.padded,
    )
    return real, jnp.concatenate([columns.real, columns.imag])


@jax.custom_batching.custom_vmap
def _solve(
    matrix: KLUState, columns: Real[Array, "b n k"]
) -> tuple[Real[Array, "b n k"], Real[Array, " b"]]:
    """A⁻¹ C, and the reciprocal condition number of A with its rows scaled, for each A.

    The entries of b matrices are the rows of `matrix.data`.
    """

    def for_each(function, *args):
        one = lambda data, *args: function(_with_data(matrix, data), *args)
        return jax.vmap(one)(matrix.data, *args)

    x, estimate = for_each(_estimated_solve, columns)
    error = for_each(_backward_error, columns, x)

    def refine(x):
        x = x + for_each(_correction, columns, x)
        return x, for_each(_backward_error, columns, x)

    # KLU takes pivots of a thousandth of their column.
    poor = jnp.any(error > _ALLOWED)
    x, error = jax.lax.cond(poor, refine, lambda x: (x, error), x)
    return x, jnp.where(error <= _ALLOWED * columns.shape[1], estimate, 0)


@_solve.def_vmap
def _(axis_size, batched, matrix, columns):
    """A batch of vectors becomes more columns: klujax would factorise for each."""
    of_matrix, of_columns = batched
    if of_matrix.row or of_matrix.col:
        raise ValueError(
            "`KLU()` cannot batch over sparsity patterns. Under `jax.vmap`, let the "
            "entries vary and the pattern be the same."
        )
    if not of_matrix.data:
        columns = jnp.moveaxis(columns, 0, -1)
        solved, estimate = _solve(matrix, columns.reshape(*columns.shape[:2], -1))
        solved = jnp.moveaxis(solved.reshape(columns.shape), -1, 0)
        return (solved, estimate), (True, False)
    if not of_columns:
        columns = jnp.broadcast_to(columns, (axis_size, *columns.shape))
    matrix = _with_data(matrix, jnp.concatenate(matrix.data))
    solved, estimate = _solve(matrix, jnp.concatenate(columns))
    estimate = estimate.reshape(columns.shape[:2])
    return (solved.reshape(columns.shape), estimate), (True, True)


def _with_data(matrix: KLUState, data) -> KLUState:
    return KLUState(matrix.row, matrix.col, data, matrix.padded)


def _rows_scaled(matrix: KLUState, columns):
    """A and C with each row divided by the largest entry of A in it."""
    largest = jnp.zeros(len(columns))
    largest = largest.at[matrix.row].max(jnp.abs(matrix.data), mode="drop")
    largest = jnp.where(largest > 0, largest, 1)
    data = matrix.data / largest.at[matrix.row].get(mode="fill", fill_value=1)
    return _with_data(matrix, data), columns / largest[:, None]


def _product(matrix: KLUState, x: Real[Array, "n k"]) -> Real[Array, "n k"]:
    terms = matrix.data[:, None] * x.at[matrix.col].get(mode="fill", fill_value=0)
    return jnp.zeros_like(x).at[matrix.row].add(terms, mode="drop")


def _estimated_solve(matrix: KLUState, columns: Real[Array, "n k"]):
    """A⁻¹ C, from one factorisation with the columns of the estimate."""
    matrix, columns = _rows_scaled(matrix, columns)
    transposed = KLUState(matrix.col, matrix.row, matrix.data, matrix.padded)
    size, count = columns.shape
    solved = []

    def solve(probes):
        out = _factorise_and_solve(matrix, jnp.concatenate([columns, probes], axis=1))
        solved.append(out[:, :count].real)
        return out[:, count:]

    squares = _product(_with_data(matrix, matrix.data**2), jnp.ones((size, 1)))
    # That of Aᴴ with its columns scaled, which asks for A⁻¹.
    estimate = reciprocal_condition(
        jnp.sqrt(squares[:, 0]),
        lambda v: _product(transposed, v[:, None])[:, 0],
        lambda v: _product(matrix, v[:, None])[:, 0],
        columns.dtype,
        solve,
    )
    return solved[0], estimate


def _backward_error(matrix: KLUState, columns, x) -> Real[Array, ""]:
    """The largest entry of C − A X in eps, relative to those of |A| |X| + |C|."""
    matrix, columns = _rows_scaled(matrix, columns)
    absolute = _with_data(matrix, jnp.abs(matrix.data))
    terms = jnp.max(_product(absolute, jnp.abs(x)) + jnp.abs(columns), axis=0)
    error = jnp.max(jnp.abs(columns - _product(matrix, x)), axis=0)
    error = error / jnp.where(terms > 0, terms, 1) / jnp.finfo(x.dtype).eps
    # A column of C that is not finite spoils only itself.
    return jnp.max(error, initial=0, where=jnp.isfinite(error))


def _correction(matrix: KLUState, columns, x):
    matrix, columns = _rows_scaled(matrix, columns)
    return _factorise_and_solve(matrix, columns - _product(matrix, x)).real


def _factorise_and_solve(matrix: KLUState, columns):
    """(A + iτU)⁻¹ C by klujax, which takes each position once, and no padding."""
    row, col, size = matrix.row, matrix.col, len(columns)
    noise = jax.random.uniform(jax.random.key(0), (row.size,), columns.dtype, 1, 2)
    data = jax.lax.complex(matrix.data, _TAU * noise)
    columns = columns.astype(data.dtype)
    if matrix.padded:
        # [[A, 0], [0, I]], with the padding as zeros next to the diagonal of I.
        more = row.size + 1
        below = jnp.arange(size, size + more, dtype=row.dtype)
        padding = row == size
        data = jnp.concatenate([jnp.where(padding, 0, data), jnp.ones(more, data.dtype)])
        row = jnp.concatenate([jnp.where(padding, below[:-1], row), below])
        col = jnp.concatenate([jnp.where(padding, below[1:], col), below])
        columns = jnp.pad(columns, ((0, more), (0, 0)))
    return _klujax().solve(row, col, data, columns)[:size]
