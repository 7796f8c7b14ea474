"""Sparse LU factorisations on the host, by SciPy's SuperLU."""

import collections
import functools as ft
import math
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int, Real

from .._base.host import called_on_host
from .._base.optional import import_late
from .condition import PROBES, random_signs


# A backward error in units of eps, above which a solution is refined once, and above n
# times which it is no solution.
_ALLOWED = 10.0
_EPS = float(np.finfo(np.float64).eps)

# The newest factors are kept, and older ones up to this many bytes together.
_KEPT_BYTES = 2**29
_BYTES_OF_ANY = 2**12


_NOT_EXPORTED = (
    "`SparseLU()` factorises by a call of the host: `jax.export` cannot serialise it, "
    "and it cannot be lowered for a platform that is not here. Use an iterative solver, "
    "or a dense one."
)


def solve_sparse(
    row: Int[Array, " nse"],
    col: Int[Array, " nse"],
    data: Inexact[Array, " nse"],
    vector: Inexact[Array, " n"],
    *,
    transposed: bool,
) -> tuple[Inexact[Array, " n"], Real[Array, ""]]:
    """Returns A⁻¹ v, or A⁻ᵀ v, and an estimate of the reciprocal condition number of A.

    Entries in one place add up; those with an index n are padding. The estimate is that
    of A with rows and columns scaled. For a singular A it is zero, and the solution NaN;
    NaN is also a solution with a backward error above 10 eps n.

    The factors are found again by the bytes of A, so that a solve and its adjoint share
    them. Under `jax.vmap` the vectors of one matrix are columns of one solve.
    """
    import_late("scipy.sparse.linalg")  # here, where filters of warnings can be kept
    real = jnp.finfo(vector.dtype).dtype
    shapes = (
        jax.ShapeDtypeStruct(vector.shape, vector.dtype),
        jax.ShapeDtypeStruct((), real),
    )
    solve = _ON_HOST[transposed]
    row = called_on_host(row, _NOT_EXPORTED)
    # Each batch is an axis in front: of length one for an array that does not have it.
    return jax.pure_callback(
        solve, shapes, row, col, data, vector, vmap_method="expand_dims"
    )


def sparse_slogdet(
    row: Int[Array, " nse"],
    col: Int[Array, " nse"],
    data: Inexact[Array, " nse"],
    size: int,
) -> tuple[Inexact[Array, ""], Real[Array, ""]]:
    """Returns sign and log |.| of the determinant of A, n × n, by the factors of a solve.

    0 and −inf for a singular A, NaN for one that is not finite.
    """
    import_late("scipy.sparse.linalg")
    shapes = (
        jax.ShapeDtypeStruct((), data.dtype),
        jax.ShapeDtypeStruct((), jnp.finfo(data.dtype).dtype),
    )
    row = called_on_host(row, _NOT_EXPORTED)
    matrix = row, col, data, jnp.array(size)
    return jax.pure_callback(_slogdet_on_host, shapes, *matrix, vmap_method="expand_dims")


def _slogdet_on_host(row, col, data, size):
    size = int(np.ravel(size)[0])
    arrays = tuple(map(np.asarray, (row, col, data)))
    batch = np.broadcast_shapes(*(array.shape[:-1] for array in arrays))
    arrays = [np.broadcast_to(a, (*batch, a.shape[-1])) for a in arrays]
    dtype = arrays[-1].dtype
    sign, logabsdet = np.empty(batch, dtype), np.empty(batch, np.finfo(dtype).dtype)
    with np.errstate(all="ignore"):
        for index in np.ndindex(batch):
            row, col, data = (array[index] for array in arrays)
            lu = _kept.factorised(row, col, data, size)
            sign[index], logabsdet[index] = lu.slogdet
    return sign, logabsdet


def _solve_on_host(row, col, data, vector, transposed: bool):
    matrices = tuple(map(np.asarray, (row, col, data)))
    vector = np.asarray(vector)
    of_matrix = np.broadcast_shapes(*(array.shape[:-1] for array in matrices))
    batch = np.broadcast_shapes(of_matrix, vector.shape[:-1])
    matrices = [np.broadcast_to(a, (*of_matrix, a.shape[-1])) for a in matrices]
    vector = np.broadcast_to(vector, (*batch, vector.shape[-1]))
    solution, estimate = (
        np.empty_like(vector),
        np.empty(batch, np.finfo(vector.dtype).dtype),
    )
    with np.errstate(all="ignore"):  # what overflows is seen in the solution
        for index in np.ndindex(of_matrix):
            row, col, data = (array[index] for array in matrices)
            lu = _kept.factorised(row, col, data, vector.shape[-1])
            one = zip(index, of_matrix, strict=True)
            here = tuple(i if axis > 1 else slice(None) for i, axis in one)
            vectors = vector[here]
            columns = vectors.reshape(-1, vectors.shape[-1]).T
            solution[here] = lu.solve(columns, transposed).T.reshape(vectors.shape)
            estimate[here] = lu.estimate
    return solution, estimate


_ON_HOST = {flag: ft.partial(_solve_on_host, transposed=flag) for flag in (False, True)}


class _Factorisation:
    """The factors of E = R A C, where R and C are diagonal, and an estimate from them.

    R and C are powers of two, by which no digit is lost: E has entries near one.
    """

    def __init__(self, row, col, data, size: int):
        sparse, linalg, graph = map(
            import_late, ("scipy.sparse", "scipy.sparse.linalg", "scipy.sparse.csgraph")
        )
        self.lu, self.estimate, self.nbytes = None, 0.0, _BYTES_OF_ANY
        present = (row < size) & (col < size)
        row, col, data = row[present], col[present], data[present]
        self.finite = bool(np.all(np.isfinite(data)))
        if not self.finite:
            return
        self.rows = _powers_of_two(row, data, size)
        data = data * self.rows[row]
        self.cols = _powers_of_two(col, data, size)
        data = data * self.cols[col]
        self.matrix = sparse.csc_array((data, (row, col)), shape=(size, size))
        # SuperLU may crash at a pattern that is singular for any entries.
        if graph.structural_rank(self.matrix) < size:
            return
        try:
            self.lu = linalg.splu(
                self.matrix,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.1,
                options={"SymmetricMode": True},
            )
        except RuntimeError as error:
            if "singular" not in str(error):
                raise
            return
        self.absolute = abs(self.matrix)
        entries = self.lu.nnz + 2 * self.matrix.nnz
        self.nbytes += entries * (self.matrix.dtype.itemsize + 4)
        self.estimate = self._reciprocal_condition(self.lu)

    def solve(self, columns, transposed: bool):
        """A⁻¹ C or A⁻ᵀ C; NaN for a column with a large backward error."""
        if self.lu is None:
            return np.full(columns.shape, np.nan, columns.dtype)
        first, last, matrix, absolute = self.rows, self.cols, self.matrix, self.absolute
        if transposed:
            first, last, matrix, absolute = last, first, matrix.T, absolute.T
        columns = (first[:, None] * columns).astype(matrix.dtype)
        solve = ft.partial(self.lu.solve, trans="T" if transposed else "N")

        def judged(solved):
            residual = columns - matrix @ solved
            terms = np.max(absolute @ np.abs(solved) + np.abs(columns), axis=0)
            error = np.max(np.abs(residual), axis=0) / np.where(terms > 0, terms, 1)
            return residual, error / _EPS

        solved = solve(columns)
        residual, error = judged(solved)
        if np.any(error > _ALLOWED):
            solved = solved + solve(residual)
            _, error = judged(solved)
        solved = np.where(error <= _ALLOWED * len(columns), solved, np.nan)
        return last[:, None] * solved

    @ft.cached_property
    def slogdet(self):
        """Of A = R⁻¹ E C⁻¹, where E = P L U Q and L has a unit diagonal.

        SciPy keeps L and U as matrices from then on: the memory of the factors again.
        """
        if self.lu is None:
            return (0.0, -np.inf) if self.finite else (np.nan, np.nan)
        pivots, parities = (
            self.lu.U.diagonal(),
            map(_parity, (self.lu.perm_r, self.lu.perm_c)),
        )
        sign = np.prod(pivots / np.abs(pivots)) * np.prod(list(parities))
        scale = np.sum(np.log(self.rows)) + np.sum(np.log(self.cols))
        return sign, np.sum(np.log(np.abs(pivots))) - scale

    def _reciprocal_condition(self, lu) -> float:
        """As `condition.reciprocal_condition`, of E."""
        size = self.matrix.shape[0]
        vectors = np.eye(size) if size <= PROBES else random_signs(size, PROBES)
        image = self.matrix @ vectors[:, 0]
        back = self.matrix.conj().T @ image
        largest = max(np.linalg.norm(back) / np.linalg.norm(image), 1.0)
        inverse_norm = np.linalg.norm(lu.solve(vectors.astype(self.matrix.dtype)))
        estimate = 1 / (largest * inverse_norm * math.sqrt(size / vectors.shape[1]))
        return float(estimate) if np.isfinite(estimate) else 0.0


def _parity(permutation) -> int:
    """The sign of a permutation, by its cycles."""
    graph, sparse = map(import_late, ("scipy.sparse.csgraph", "scipy.sparse"))
    size = len(permutation)
    steps = sparse.coo_array((np.ones(size), (np.arange(size), permutation)))
    cycles, _ = graph.connected_components(steps, directed=False)
    return 1 - 2 * ((size - cycles) % 2)


def _powers_of_two(index, data, size: int):
    """For each row, or column, one over its largest entry, rounded."""
    largest = np.zeros(size)
    np.maximum.at(largest, index, np.abs(data))
    return 2.0 ** -np.clip(np.frexp(largest)[1], -1000, 1000)


class _Kept:
    """The newest factorisations, by what was factorised."""

    def __init__(self, limit: int):
        self._limit, self._nbytes = limit, 0
        self._found = collections.OrderedDict()
        self._lock = threading.Lock()  # the host serves several devices at once

    def factorised(self, row, col, data, size: int) -> _Factorisation:
        data = data.astype(np.complex128 if np.iscomplexobj(data) else np.float64)
        key = size, data.dtype, *(array.tobytes() for array in (row, col, data))
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = _Factorisation(row, col, data, size)
        with self._lock:
            self._nbytes += made.nbytes - self._drop(key)
            self._found[key] = made
            while self._nbytes > self._limit and len(self._found) > 1:
                self._nbytes -= self._drop(next(iter(self._found)))
        return made

    def _drop(self, key) -> int:
        return self._found.pop(key).nbytes if key in self._found else 0


_kept = _Kept(_KEPT_BYTES)
