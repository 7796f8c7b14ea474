from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.dtypes
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, Int, Real

from .._misc import check_options, check_square
from .._operator import SparseLinearOperator
from .._optional import import_optional
from .condition import full_rank_result, reciprocal_condition


# KLU's wrapper raises at an exact zero pivot, `throw=False` or not. With entries a + iτu,
# for a fixed random u, what cancels exactly leaves τ: seen in the estimate of the
# condition number, and never in the digits of a solution.
_TAU = 2.0**-100


class KLUState(eqx.Module):
    """The entries of A. An index equal to the size of A marks padding."""

    row: Int[Array, " nse"]
    col: Int[Array, " nse"]
    data: Inexact[Array, " nse"]


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
    factorises again: all right-hand sides of one application (those of a `jax.vmap`
    among them) at once. An estimate of the reciprocal condition number of A with its
    rows scaled comes with each application, from eight columns more, and is
    `stats["rcond"]`. At most `eps * n` means that A is singular to working precision; the
    result is then `RESULTS.singular`. To tell an exactly singular A from the factors,
    they are complex also for a real A (twice the time); a complex A is solved as a real
    one of twice the size, some eight times the time.

    KLU may take a pivot of a thousandth of its column, with which b − A x can lose half
    of its digits. So each application ends with a step of iterative refinement, which
    factorises once more, and with a look at b − A x: if an entry of it is above
    10 eps n times the largest of |A| |x| + |b|, the result is `RESULTS.singular`, and
    `stats["rcond"]` is zero.

    Takes no `options`. Cost: two factorisations for the primal, two for a JVP and two
    for a VJP.

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
        return KLUState(operator.sparsity.row, operator.sparsity.col, operator.data)

    def compute(
        self, state: KLUState, vector: Inexact[Array, " n"], options: dict[str, Any]
    ) -> tuple[Inexact[Array, " n"], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        dtype = vector.dtype
        if vector.size == 0:
            return vector, lx.RESULTS.successful, {"rcond": jnp.ones((), dtype)}
        row, col, data = state.row, state.col, state.data
        columns = vector[:, None]
        if jnp.iscomplexobj(data):
            row, col, data, columns = _real_system(row, col, data, columns)
        solved, rcond = _solve(
            row, col, data.astype(jnp.float64), columns.astype(jnp.float64)
        )
        solution = solved[:, 0]
        if jnp.iscomplexobj(state.data):
            solution = jax.lax.complex(*jnp.split(solution, 2))
        rcond = rcond.astype(jnp.finfo(dtype).dtype)
        result = full_rank_result(rcond, vector.size, vector.size)
        return solution.astype(dtype), result, {"rcond": rcond}

    def transpose(self, state: KLUState, options: dict[str, Any]):
        return KLUState(state.col, state.row, state.data), options

    def conj(self, state: KLUState, options: dict[str, Any]):
        return KLUState(state.row, state.col, state.data.conj()), options

    def assume_full_rank(self) -> bool:
        return True


def _klujax() -> ModuleType:
    return import_optional("klujax", "KLU()", "klu")


def _real_system(row, col, data, columns):
    """[[Re A, −Im A], [Im A, Re A]] and [Re B; Im B]."""
    size = len(columns)
    # Padding has to stay beyond the last row.
    above = [jnp.where(index < size, index, 2 * size) for index in (row, col)]
    below = [jnp.where(index < size, index + size, 2 * size) for index in (row, col)]
    (row, col), (row_below, col_right) = above, below
    return (
        jnp.concatenate([row, row, row_below, row_below]),
        jnp.concatenate([col, col_right, col, col_right]),
        jnp.concatenate([data.real, -data.imag, data.imag, data.real]),
        jnp.concatenate([columns.real, columns.imag]),
    )


def _solve_columns(
    row: Int[Array, " nse"],
    col: Int[Array, " nse"],
    data: Real[Array, " nse"],
    columns: Real[Array, "n k"],
) -> tuple[Real[Array, "n k"], Real[Array, ""]]:
    """A⁻¹ C, and the reciprocal condition number of A with its rows scaled."""
    size, count = columns.shape

    def rows(values):
        zeros = jnp.zeros((size, *values.shape[1:]))
        return zeros.at[row].add(values, mode="drop")

    largest = jnp.zeros(size).at[row].max(jnp.abs(data), mode="drop")
    largest = jnp.where(largest > 0, largest, 1)
    data = data / largest.at[row].get(mode="fill", fill_value=1)
    columns = columns / largest[:, None]
    solved = []

    def solve(probes):
        """Those of the estimate and `columns` at once: one factorisation."""
        right = jnp.concatenate([columns, probes], axis=1)
        out = _factorise_and_solve(row, col, data, right)
        solved.append(out[:, :count].real)
        return out[:, count:]

    # That of Aᴴ with its columns scaled, which asks for A⁻¹.
    rcond = reciprocal_condition(
        jnp.sqrt(rows(data**2)),
        lambda v: (
            jnp.zeros(size)
            .at[col]
            .add(data * v.at[row].get(mode="fill", fill_value=0), mode="drop")
        ),
        lambda v: rows(data * v.at[col].get(mode="fill", fill_value=0)),
        data.dtype,
        solve,
    )

    # KLU takes pivots of a thousandth of their column, of which b − A x can lose half of
    # its digits: one step of refinement, and no success if that was not enough.
    def product(data, x):
        return rows(data[:, None] * x.at[col].get(mode="fill", fill_value=0))

    (x,) = solved
    x = x + _factorise_and_solve(row, col, data, columns - product(data, x)).real
    error = jnp.abs(columns - product(data, x))
    size_of_terms = product(jnp.abs(data), jnp.abs(x)) + jnp.abs(columns)
    allowed = 10 * size * jnp.finfo(data.dtype).eps * jnp.max(size_of_terms, axis=0)
    # A column of B that is not finite spoils only itself.
    solved_well = jnp.all((error <= allowed) | ~jnp.isfinite(error))
    return x, jnp.where(solved_well, rcond, 0)


@jax.custom_batching.custom_vmap
def _solve(row, col, data, columns):
    return _solve_columns(row, col, data, columns)


@_solve.def_vmap
def _(axis_size, batched, row, col, data, columns):
    """A batch of vectors becomes more columns: klujax would factorise for each."""
    in_axes = [0 if is_batched else None for is_batched in batched]
    if in_axes[0] == 0 or in_axes[1] == 0:
        raise ValueError(
            "`KLU()` cannot batch over sparsity patterns. Under `jax.vmap`, let the "
            "entries vary and the pattern be the same."
        )
    if in_axes[2] == 0:
        return jax.vmap(_solve_columns, in_axes)(row, col, data, columns), (True, True)
    size = columns.shape[1]
    merged = jnp.moveaxis(columns, 0, 1).reshape(size, -1)
    solved, rcond = _solve(row, col, data, merged)
    return (jnp.moveaxis(solved.reshape(size, axis_size, -1), 1, 0), rcond), (True, False)


def _factorise_and_solve(row, col, data, columns):
    """(A + iτU)⁻¹ C by klujax, which takes each position once, and no padding."""
    size = len(columns)
    diagonal = jnp.arange(size, dtype=row.dtype)
    row, col = jnp.concatenate([row, diagonal]), jnp.concatenate([col, diagonal])
    count = row.size
    noise = jax.random.uniform(jax.random.key(0), (count,), data.dtype, 1, 2)
    data = jax.lax.complex(jnp.concatenate([data, jnp.zeros(size)]), _TAU * noise)

    order = jnp.lexsort((col, row))
    row, col, data = row[order], col[order], data[order]
    same = (row[1:] == row[:-1]) & (col[1:] == col[:-1])
    first = jnp.concatenate([jnp.ones(1, bool), ~same])
    group = jnp.cumsum(first) - 1
    totals = jax.ops.segment_sum(data, group, count, indices_are_sorted=True)
    # [[A, 0], [0, I]]: entries added to another, and padding, are zeros below A.
    kept = first & (row < size) & (col < size)
    spare = jnp.arange(count, dtype=row.dtype)
    row = jnp.where(kept, row, size + spare // size)
    col = jnp.where(kept, col, spare % size)
    data = jnp.where(kept, totals[group], 0)
    more = -(-count // size)
    below = jnp.arange(size, size + more, dtype=row.dtype)
    solved = _klujax().solve(
        jnp.concatenate([row, below]),
        jnp.concatenate([col, below]),
        jnp.concatenate([data, jnp.ones(more, data.dtype)]),
        jnp.pad(columns, ((0, more), (0, 0))).astype(data.dtype),
    )
    return solved[:size]
