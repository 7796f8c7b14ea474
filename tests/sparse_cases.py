"""Sparse matrices of the tests: entries, and the dense matrix they stand for."""

import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import pseudojvp as pj


def entries(rows, cols, nse, dtype=float, seed=0):
    """(data, row, col, shape): unsorted, and with several entries in one place."""
    rng = np.random.default_rng(seed)
    row, col = rng.integers(0, max(rows, 1), nse), rng.integers(0, max(cols, 1), nse)
    if nse > 2:
        row[-1], col[-1] = row[0], col[0]
    return random_array(nse, dtype, seed + 1), row, col, (rows, cols)


def random_array(shape, dtype=float, seed=0):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        array = array + 1j * rng.standard_normal(shape)
    return array.astype(dtype)


def dense(data, row, col, shape):
    matrix = np.zeros(shape, np.asarray(data).dtype)
    inside = (row < shape[0]) & (col < shape[1])
    np.add.at(matrix, (row[inside], col[inside]), data[inside])
    return matrix


def long_rows():
    """A row of 90 entries, one of 40, some without any: summed in pieces."""
    data, row, col, shape = entries(40, 100, 260)
    row = row.copy()
    row[:90], row[90:130] = 7, 3
    row[row > 35] = 0
    return data, row, col, shape


CASES = {
    "tall": entries(7, 4, 15),
    "wide": entries(3, 6, 9),
    "square": entries(5, 5, 11),
    "complex": entries(5, 4, 12, complex),
    "float32": entries(4, 4, 8, np.float32),
    "empty_rows": (np.arange(1.0, 4.0), np.array([3, 3, 1]), np.array([0, 2, 1]), (5, 4)),
    "no_entries": entries(3, 4, 0),
    "no_rows": entries(0, 3, 0),
    "no_cols": entries(3, 0, 0),
    "long_rows": long_rows(),
}


def padded_bcoo():
    """A BCOO with two entries of padding, whose data are not zero, and what it is."""
    data, row, col, shape = entries(4, 3, 6)
    row[2], col[2], row[4], col[4] = *shape, *shape
    indices = jnp.asarray(np.stack([row, col], axis=1))
    return jsparse.BCOO((jnp.asarray(data), indices), shape=shape), (
        data,
        row,
        col,
        shape,
    )


def padded_bcsr():
    """A BCSR with two entries past the last row, and what it is."""
    data = np.arange(1.0, 7.0)
    indices, indptr = np.array([1, 0, 2, 2, 3, 3]), np.array([0, 1, 1, 3, 4])
    shape = (4, 3)
    arrays = tuple(map(jnp.asarray, (data, indices, indptr)))
    row = np.array([0, 2, 2, 3, 4, 4])
    return jsparse.BCSR(arrays, shape=shape), (data, row, indices, shape)


def from_scipy(kind):
    data, row, col, shape = CASES["tall"]
    return getattr(scipy.sparse.coo_matrix((data, (row, col)), shape), f"to{kind}")()


def with_data(operator, data):
    return pj.SparseLinearOperator((data, operator.sparsity), operator.tags)
