"""`slogdet` of operators that are no matrix, and which entries its derivatives are of."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit
from sparse_cases import random_array

import pseudojvp as pj
from pseudojvp._kernel.determinant import parity


MATRIX = random_array((4, 4), float, 3)
INVERSE = np.linalg.inv(MATRIX)


def check(told, matrix, rtol=1e-13):
    sign, logabsdet = np.linalg.slogdet(matrix)
    assert_close(np.array([told.sign, told.logabsdet]), np.array([sign, logabsdet]), rtol)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_parity_is_the_determinant_of_the_permutation(size):
    permutation = np.random.default_rng(size).permutation(size)
    want = round(np.linalg.det(np.eye(size)[permutation]))
    assert parity(jnp.asarray(permutation)) == want


def blocks(matrix):
    """A 4 x 4 matrix as one between dictionaries."""
    parts = {"a": {"a": matrix[0, 0], "b": matrix[0, 1:]}, "b": {}}
    parts["b"] = {"a": matrix[1:, 0], "b": matrix[1:, 1:]}
    space = {"a": jax.ShapeDtypeStruct((), float), "b": jax.ShapeDtypeStruct((3,), float)}
    return lx.PyTreeLinearOperator(parts, space)


def function(matrix):
    space = jax.ShapeDtypeStruct((4,), float)
    return lx.FunctionLinearOperator(lambda vector: matrix @ vector, space)


def jacobian(matrix):
    return lx.JacobianLinearOperator(lambda x, _: matrix @ x, jnp.ones(4))


def composed(matrix):
    return 2.0 * (lx.MatrixLinearOperator(matrix) @ function(jnp.eye(4) / 2))


@pytest.mark.parametrize("make", [blocks, function, jacobian, composed])
@pytest.mark.parametrize("solver", [pj.LU(), pj.PivotedQR()], ids=["LU", "PivotedQR"])
@pytest.mark.ci("*")
def test_operator_of_any_kind_has_determinant_and_gradient(make, solver):
    logabsdet = lambda matrix: pj.slogdet(make(matrix), solver).logabsdet
    gradient = jit(jax.grad(logabsdet))(MATRIX)
    assert_close(gradient, INVERSE.T, 1e-13)
    check(pj.slogdet(make(MATRIX), solver), MATRIX)


def test_identity_has_determinant_one():
    operator = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((3,), np.float32))
    told = pj.slogdet(operator)
    assert tuple(told) == (1, 0)
    assert told.logabsdet.dtype == np.float32


def test_operator_over_the_reals_has_the_determinant_of_real_and_imaginary_parts():
    space = {"z": jax.ShapeDtypeStruct((), complex), "r": jax.ShapeDtypeStruct((), float)}
    mv = lambda v: {
        "z": (1 + 2j) * v["z"] + (3 + 0j) * v["r"].astype(complex),
        "r": 4 * v["r"] + v["z"].real,
    }
    operator = lx.FunctionLinearOperator(mv, space)
    check(pj.slogdet(operator), np.array([[4.0, 1, 0], [3, 1, -2], [0, 2, 1]]))


def test_operator_with_a_conjugate_has_no_determinant():
    space = jax.ShapeDtypeStruct((2,), complex)
    operator = lx.FunctionLinearOperator(jnp.conj, space)
    assert np.all(np.isnan(pj.slogdet(operator, throw=False)))
    with pytest.raises(RuntimeError, match="not linear over the complex numbers"):
        pj.slogdet(operator)


def test_derivative_of_a_triangular_matrix_is_that_of_its_diagonal():
    def logabsdet(matrix):
        operator = lx.MatrixLinearOperator(matrix, lx.lower_triangular_tag)
        return pj.slogdet(operator).logabsdet

    gradient = jax.grad(logabsdet)(np.tril(MATRIX))
    assert_close(gradient, np.diag(1 / np.diag(MATRIX)), 1e-15)


def test_unit_diagonal_is_not_read():
    tags = lx.unit_diagonal_tag, lx.lower_triangular_tag
    told = pj.slogdet(lx.MatrixLinearOperator(np.tril(MATRIX, -1), tags))
    assert tuple(told) == (1, 0)


@pytest.mark.slow
def test_long_tridiagonal_matrix_has_the_determinant_of_the_dense_one():
    rng = np.random.default_rng(0)
    bands = [rng.standard_normal(size) for size in (300, 299, 299)]

    def logabsdet(bands):
        return pj.slogdet(lx.TridiagonalLinearOperator(*bands)).logabsdet

    dense = lambda bands: (
        jnp.linalg.slogdet(
            jnp.diag(bands[0]) + jnp.diag(bands[1], -1) + jnp.diag(bands[2], 1)
        ).logabsdet
    )
    for got, want in zip(jax.grad(logabsdet)(bands), jax.grad(dense)(bands), strict=True):
        assert_close(got, want, 1e-11)


@pytest.mark.slow
def test_gradient_of_a_large_sparse_determinant_keeps_no_inverse():
    size = 600
    row, col = np.r_[0:size, 1:size, : size - 1], np.r_[0:size, : size - 1, 1:size]
    data = np.r_[np.full(size, 3.0), np.full(2 * size - 2, -1.0)]

    def logabsdet(data):
        operator = pj.SparseLinearOperator((data, row, col, (size, size)))
        return pj.slogdet(operator, pj.SparseLU()).logabsdet

    gradient = jax.jit(jax.grad(logabsdet))
    assert f"{size}x{size}" not in gradient.lower(data).as_text()
    dense = np.zeros((size, size))
    dense[row, col] = data
    assert_close(gradient(data), np.linalg.inv(dense)[col, row], 1e-13)
