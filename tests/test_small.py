"""Batches of small matrices: the kernels against what they factorise and solve."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj
from pseudojvp._kernel import small_batches as small


BATCH = (25, 4)  # enough of them; fewer go to the library
_dtypes = pytest.mark.parametrize(
    "dtype", ["float32", "float64", "complex64", "complex128"]
)
_sizes = pytest.mark.parametrize("size", [1, 3, 8])


def _random(seed, dtype, *shape):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def _grams(dtype, size):
    matrix = _random(0, dtype, *BATCH, size + 5, size)
    return matrix, matrix.conj().mT @ matrix


_cholesky_of_each = jax.jit(jax.vmap(small.cholesky))


def _batched(function):
    return jax.jit(jax.vmap(jax.vmap(function)))


def _relative_error(got, want):
    assert got.dtype == want.dtype
    return np.abs(got - want).max() / np.abs(want).max() / np.finfo(want.dtype).eps


@pytest.mark.default("8-complex128")
@pytest.mark.ci("3-*")
@_dtypes
@_sizes
def test_gram_matrix_is_the_product(dtype, size):
    matrix, want = _grams(dtype, size)
    assert _relative_error(_batched(small.gram)(matrix.conj().mT), want) <= 5


@pytest.mark.default("8-complex128")
@pytest.mark.ci("3-*")
@_dtypes
@_sizes
def test_products_of_the_cholesky_factor_give_the_matrix(dtype, size):
    _, gram = _grams(dtype, size)
    r = np.asarray(_batched(small.cholesky)(gram))
    assert _relative_error(r.conj().mT @ r, gram) <= 10
    assert np.all(np.tril(r, -1) == 0)


@pytest.mark.default("complex128")
@pytest.mark.ci("float32")
@_dtypes
def test_cholesky_factor_is_of_the_upper_triangle(dtype):
    _, gram = _grams(dtype, 4)
    factorise = _batched(small.cholesky)
    np.testing.assert_array_equal(factorise(np.triu(gram)), factorise(gram))


@pytest.mark.parametrize(
    "diagonal", [[-1, 1, 1], [1, -1, 1], [1, 1, -1], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
)
def test_cholesky_factor_is_nan_if_the_matrix_is_not_definite(diagonal):
    matrices = np.tile(np.eye(3), (100, 1, 1))
    matrices[7] = np.diag(diagonal)
    r = np.asarray(_cholesky_of_each(matrices))
    assert np.isnan(r).all(axis=(1, 2)).tolist() == [i == 7 for i in range(100)]


@pytest.mark.default("-upper-C-8-complex128", "unit-lower-T-3-float32")
@pytest.mark.ci("*-3-complex128")
@_dtypes
@_sizes
@pytest.mark.parametrize("trans", "NTC")
@pytest.mark.parametrize("lower", [False, True], ids=["upper", "lower"])
@pytest.mark.parametrize("unit", [False, True], ids=["", "unit"])
def test_triangular_solves_leave_residuals_of_rounding(dtype, size, trans, lower, unit):
    matrix = _random(0, dtype, *BATCH, size, size)
    columns = _random(1, dtype, *BATCH, size, 3)
    solve = ft.partial(
        small.solve_triangular, trans=trans, lower=lower, unit_diagonal=unit
    )
    x = np.asarray(_batched(solve)(matrix, columns))
    triangle = np.tril(matrix) if lower else np.triu(matrix)
    if unit:
        triangle = np.where(np.eye(size, dtype=bool), 1, triangle)
    op = {"N": triangle, "T": triangle.mT, "C": triangle.conj().mT}[trans]
    scale = np.abs(op) @ np.abs(x) + np.abs(columns)
    residual = np.abs(op @ x - columns) / scale
    assert x.dtype == dtype
    assert residual.max() <= 20 * np.finfo(dtype).eps


_MATRICES = jnp.asarray(_random(0, "float64", 100, 4, 4) + 4 * np.eye(4))
_VECTORS = jnp.asarray(_random(1, "float64", 100, 7, 4))
_solve = small.solve_triangular


@pytest.mark.parametrize(
    "solve",
    [
        pytest.param(jax.vmap(jax.vmap(_solve, (None, 0))), id="vectors-within"),
        pytest.param(jax.vmap(jax.vmap(_solve), (None, 1), 1), id="matrices-within"),
    ],
)
def test_vectors_of_each_matrix_under_two_vmaps(solve):
    want = np.linalg.solve(np.triu(_MATRICES)[:, None], _VECTORS[..., None])[..., 0]
    np.testing.assert_allclose(jax.jit(solve)(_MATRICES, _VECTORS), want, rtol=1e-12)


def test_matrices_with_one_vector():
    solutions = jax.jit(jax.vmap(_solve, (0, None)))(_MATRICES, _VECTORS[0, 0])
    want = np.linalg.solve(np.triu(_MATRICES), _VECTORS[0, 0])
    np.testing.assert_allclose(solutions, want, rtol=1e-12)


def test_derivatives_of_the_kernels():
    """Of log det A = 2 Σ log r_ii, and of 1ᵀ A⁻¹ b."""
    _, gram = _grams("float64", 4)
    b = _random(1, "float64", *BATCH, 4)

    def log_det(matrix):
        return 2 * jnp.sum(jnp.log(jnp.diagonal(small.cholesky(matrix))))

    gradient = _batched(jax.grad(log_det))(gram)
    symmetric = (gradient + gradient.mT) / 2
    np.testing.assert_allclose(symmetric, np.linalg.inv(gram), rtol=1e-9)
    gradient = _batched(jax.grad(lambda a, b: jnp.sum(_solve(a, b)), argnums=1))(gram, b)
    want = np.linalg.solve(np.triu(gram).mT, np.ones(4)[:, None])[..., 0]
    np.testing.assert_allclose(gradient, want, rtol=1e-12)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.CholeskyQR(), pj.Normal(pj.Cholesky())],
    ids=lambda solver: type(solver).__name__,
)
def test_what_is_wrong_with_one_of_a_batch_is_told_of_that_one(solver):
    matrices = _random(0, "float64", 100, 6, 3)
    matrices[3, :, 2] = matrices[3, :, 1]
    matrices[5, 2, 1] = np.nan
    matrices[7, 2, 1] = np.inf
    matrices[9] = 0

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    vectors = _random(1, "float64", 100, 6)
    value, successful = jax.jit(jax.vmap(solve))(matrices, vectors)
    sound = ~np.isin(np.arange(100), [3, 5, 7, 9])
    assert successful.tolist() == sound.tolist()
    want = np.linalg.pinv(matrices[sound]) @ vectors[sound][..., None]
    np.testing.assert_allclose(value[sound], want[..., 0], rtol=1e-9)
