"""Derivatives of `solve_entries`, against dense formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from entries_cases import dominant, grid
from jax.experimental import sparse

import pseudojvp as pj


# By rows x is solved for on a ball, by columns it is pushed.
CASES = [("rows", np.float64, None), ("columns", np.complex128, 3)]


@pytest.mark.parametrize(("by", "dtype", "entries_of_b"), CASES)
def test_derivatives_are_those_of_the_dense_formula_forward_and_reverse(
    by, dtype, entries_of_b
):
    rng = np.random.default_rng(3)
    A, b = dominant(rng, 300, 0.5, by, dtype, entries_of_b=entries_of_b)
    operator = pj.SparseLinearOperator(scipy.sparse.coo_array(A))
    row, col = operator.sparsity.row, operator.sparsity.col
    indices, rtol = np.array([3, 7]), 1e-7
    weights, t_b = rng.standard_normal(2), rng.standard_normal(300).astype(dtype)
    t_data = np.asarray(operator.data) * rng.uniform(-1, 1, operator.data.size)

    def solve(data, b):
        moved = pj.SparseLinearOperator((data, operator.sparsity))
        atol = jnp.asarray(1e-7 * np.abs(A).min(where=A != 0, initial=1))
        return pj.solve_entries(moved, b, indices, rtol=rtol, atol=atol).value

    @jax.jit
    def everything(data, b):
        loss = lambda data, b: jnp.sum(solve(data, b) * weights.astype(dtype)).real
        forward = jax.jvp(solve, (data, b), (t_data, t_b))[1]
        batch = jax.vmap(jax.grad(loss, 1), (None, 0))(data, jnp.stack([b, 0 * b]))
        return forward, jax.grad(loss, (0, 1))(data, b), batch

    forward, (of_data, of_b), of_columns = everything(operator.data, b)
    inverse = np.linalg.inv(A)
    x, y = inverse @ b, inverse[indices]
    t_A = np.zeros_like(A)
    t_A[row, col] = t_data
    want, ct = y @ (t_b - t_A @ x), weights @ y
    near = lambda got, want: np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    assert near(forward, want)
    assert near(of_b, ct)
    assert near(of_data, -ct[row] * x[col])
    assert near(of_columns, np.stack([ct, ct]))  # at b = 0 too


def test_gradients_are_sparse_and_on_the_pattern_of_a_large_grid():
    A = sparse.BCOO.from_scipy_sparse(grid(40, 4.0))
    b, index = jnp.sin(jnp.arange(1600.0)), 820

    def entry(A, b):
        solution = pj.solve_entries(A, b, index, rtol=0.0, atol=1e-4)
        return solution.value, solution

    (of_A, of_b), solution = sparse.grad(entry, (0, 1), has_aux=True)(A, b)
    assert not solution.whole
    assert of_A.data.shape == A.data.shape
    assert 50 < np.count_nonzero(of_b) < 1000
    lu = scipy.sparse.linalg.splu(grid(40, 4.0).tocsc())
    x, y = lu.solve(np.asarray(b)), lu.solve(np.eye(1600)[index])
    row, col = np.asarray(A.indices).T
    np.testing.assert_allclose(of_b, y, rtol=0, atol=1e-4)
    np.testing.assert_allclose(of_A.data, -y[row] * x[col], rtol=0, atol=1e-4)
