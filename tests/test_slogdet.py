"""`slogdet`: determinants from the factors of a solve, and their derivatives.

The truth is `jnp.linalg.slogdet` of the matrix, and of the Gram matrices of L and R where
A = L R has a deficient rank: the product of its singular values is det(LᴴL)^½ det(RRᴴ)^½.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit
from paths import evaluate, path_of, TAGS
from sparse_cases import dense, random_array

import pseudojvp as pj


SQUARE = {
    "LU": ("square", pj.LU()),
    "QR": ("square", pj.QR()),
    "SVD": ("square", pj.SVD()),
    "PivotedQR": ("square", pj.PivotedQR()),
    "Cholesky": ("definite", pj.Cholesky()),
    "negative-Cholesky": ("negative-definite", pj.Cholesky()),
    "lower-Triangular": ("lower-triangular", pj.Triangular()),
    "upper-Triangular": ("upper-triangular", pj.Triangular()),
    "Tridiagonal": ("tridiagonal", pj.Tridiagonal()),
    "Diagonal": ("diagonal", pj.AutoLinearSolver(well_posed=True)),
    "Diagonal(False)": ("diagonal", pj.AutoLinearSolver(well_posed=None)),
    "Auto(True)": ("square", pj.AutoLinearSolver(well_posed=True)),
    "lineax.LU": ("square", lx.LU()),
}
PSEUDO = {
    "tall-QR": ("tall", pj.QR()),
    "wide-QR": ("wide", pj.QR()),
    "tall-deficient-SVD": ("tall-deficient", pj.SVD()),
    "wide-deficient-SVD": ("wide-deficient", pj.SVD()),
    "square-deficient-SVD": ("square-deficient", pj.SVD()),
    "tall-PivotedQR": ("tall", pj.PivotedQR()),
    "wide-deficient-PivotedQR": ("wide-deficient", pj.PivotedQR()),
    "square-deficient-PivotedQR": ("square-deficient", pj.PivotedQR()),
    "deficient-Diagonal": ("diagonal-deficient", pj.AutoLinearSolver(well_posed=None)),
}
FIELDS = pytest.mark.parametrize("field", ["real", "complex"])
PARAMETERS = np.array([0.1, -0.2])


def parts(kind, field, parameters):
    """L and R at a point of two parameters, which move both."""
    path = path_of(kind, field == "complex")
    first, second = parameters
    left, right = evaluate(path.left, first), evaluate(path.right, first * second)
    return left + second.astype(left.dtype) * evaluate(path.left, first * first), right


def matrix(kind, field, parameters):
    if "definite" in kind:
        left, _ = parts(kind, field, parameters)
        return (-1 if "negative" in kind else 1) * left @ left.conj().T
    left, right = parts(kind, field, parameters)
    return left @ right


def numbers(told):
    """Real and imaginary part of the sign, and the logarithm."""
    sign, logabsdet = told
    return jnp.stack([sign.real, sign.imag, logabsdet])


def all_orders(function):
    """Value and first derivative, by reverse mode, and those of both by forward mode."""

    def first(parameters):
        told = function(parameters)
        return told, jax.jacrev(function)(parameters)

    return jit(lambda parameters: (*first(parameters), *jax.jacfwd(first)(parameters)))


def check(function, truth, rtol=1e-12):
    got = all_orders(lambda p: numbers(function(p)))(PARAMETERS)
    want = all_orders(lambda p: numbers(truth(p)))(PARAMETERS)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, rtol)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", SQUARE)
@FIELDS
def test_determinant_to_second_order(name, field):
    kind, solver = SQUARE[name]

    def function(parameters):
        operator = lx.MatrixLinearOperator(
            matrix(kind, field, parameters), TAGS.get(kind, ())
        )
        return pj.slogdet(operator, solver)

    check(function, lambda p: jnp.linalg.slogdet(matrix(kind, field, p)))


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", PSEUDO)
@FIELDS
def test_pseudo_determinant_to_second_order(name, field):
    kind, solver = PSEUDO[name]

    def function(parameters):
        operator = lx.MatrixLinearOperator(
            matrix(kind, field, parameters), TAGS.get(kind, ())
        )
        return pj.slogdet(operator, solver)

    def truth(parameters):
        left, right = parts(kind, field, parameters)
        grams = left.conj().T @ left, right @ right.conj().T
        both = sum(jnp.linalg.slogdet(gram).logabsdet for gram in grams)
        return jnp.ones((), left.dtype), both / 2

    check(function, truth)


@pytest.mark.ci("*")
@FIELDS
def test_sparse_determinant_to_second_order(field, monkeypatch):
    # With an entry twice, one of padding, and more columns than a chunk.
    monkeypatch.setattr("pseudojvp._map.determinant._CHUNK", 3)
    dtype = complex if field == "complex" else float
    row = np.array([*range(5), 0, 1, 2, 4, 4, 0, 5])
    col = np.array([*range(5), 3, 0, 4, 1, 1, 2, 0])
    start, first, second = random_array((3, 12), dtype, 5)
    start[:5] += 3
    shape = 5, 5

    def data(parameters):
        s, t = parameters.astype(dtype)
        return start + s * first + s * t * second

    def function(parameters):
        coordinates = np.stack([row, col], 1)
        bcoo = jax.experimental.sparse.BCOO((data(parameters), coordinates), shape=shape)
        return pj.slogdet(bcoo, pj.SparseLU())

    def truth(parameters):
        padded = jnp.zeros((6, 5), dtype).at[row, col].add(data(parameters))
        return jnp.linalg.slogdet(padded[:5])

    check(function, truth)
    sign, logabsdet = function(PARAMETERS)
    want = np.linalg.slogdet(dense(data(PARAMETERS), row, col, shape))
    assert_close(np.array([sign, logabsdet]), np.array(want), 1e-13)
