"""Sparse operators built within `jax.jit`: known indices are sorted while it traces."""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import count_primitive, jit

import pseudojvp as pj


# Columns scaled over thirty digits: harmless to substitution, not to a Krylov solver.
_LOWER = np.tril(np.random.default_rng(0).standard_normal((6, 6))) + 3 * np.eye(6)
_LOWER[4, :3] = 0
_LOWER *= 10.0 ** -np.arange(0, 36, 6)
_ROW, _COL = np.nonzero(_LOWER)
_DATA = _LOWER[_ROW, _COL]
_SHAPE = _LOWER.shape
_BCOO = jsparse.BCOO.fromdense(jnp.asarray(_LOWER))
_BCSR = jsparse.BCSR.fromdense(jnp.asarray(_LOWER))

KNOWN = {
    "numpy": lambda data: pj.SparseLinearOperator((data, _ROW, _COL, _SHAPE)),
    "BCOO": lambda data: jsparse.BCOO((data, _BCOO.indices), shape=_SHAPE),
    "BCSR": lambda data: jsparse.BCSR((data, _BCSR.indices, _BCSR.indptr), shape=_SHAPE),
}
_each_known = pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)


def _sorts(function, *arguments):
    return count_primitive("sort", jax.make_jaxpr(function)(*arguments).jaxpr)


@_each_known
def test_known_indices_are_not_sorted_at_run_time(make):
    solve = lambda data: jnp.sum(pj.sparse_solve(make(data), jnp.ones(6)))
    assert _sorts(jax.grad(solve), _DATA) == 0


def test_traced_indices_are_sorted_at_run_time():
    def product(data, row, col):
        operator = pj.SparseLinearOperator((data, row, col, _SHAPE))
        return operator.mv(jnp.ones(6))

    assert _sorts(product, _DATA, _ROW, _COL) == 2  # by rows and by columns


@_each_known
def test_triangle_is_seen_and_solved_by_substitution(make):
    vector = np.arange(1.0, 7.0)
    x = jit(lambda data: pj.sparse_solve(make(data), vector))(_DATA)
    np.testing.assert_allclose(x, np.linalg.solve(_LOWER, vector), rtol=1e-13)


def test_known_indices_of_the_operator_are_concrete():
    @jax.jit
    def total(data):
        sparsity = pj.SparseLinearOperator((data, _ROW, _COL, _SHAPE)).sparsity
        np.testing.assert_array_equal(sparsity.row, _ROW)  # an error for a tracer
        return jnp.sum(data)

    total(_DATA)


def test_incomplete_factorisation_takes_an_operator_built_there():
    symmetric = 4 * np.eye(6) + np.cos(np.subtract.outer(np.arange(6), np.arange(6)))
    row, col = np.nonzero(symmetric)

    @jit
    def precondition(data):
        tag = lx.positive_semidefinite_tag
        operator = pj.SparseLinearOperator((data, row, col, _SHAPE), tag)
        return pj.incomplete_cholesky(operator).as_matrix()

    got = precondition(symmetric[row, col])
    want = np.linalg.inv(symmetric)  # the pattern is full, and so without loss
    np.testing.assert_allclose(got, want, rtol=1e-12)
