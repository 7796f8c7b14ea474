"""What structured operators and their solver refuse, and what they tell."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from structured_cases import definite, tagged

import pseudojvp as pj


A, B = jnp.array([[2.0, 1.0], [0.5, 3.0]]), jnp.array([[1.0, 0.0], [2.0, 1.0]])
MIXED = lx.FunctionLinearOperator(
    lambda pair: pair,
    (jax.ShapeDtypeStruct((2,), float), jax.ShapeDtypeStruct((1,), complex)),
)
COMPLEX = lx.FunctionLinearOperator(lambda v: v, jax.ShapeDtypeStruct((2,), complex))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pj.Kronecker(), ValueError, "got no operator"),
        (lambda: pj.BlockDiagonal(), ValueError, "got no operator"),
        (lambda: pj.BlockDiagonal(batched=True), ValueError, "got no operator"),
        (lambda: pj.Kronecker(A, jnp.ones(3)), ValueError, r"shape \(3,\)"),
        (lambda: pj.Kronecker(A, jnp.ones((2, 2, 2))), ValueError, "use `jax.vmap`"),
        (lambda: pj.Kronecker(A, "B"), TypeError, "got a str"),
        (lambda: pj.BlockDiagonal(A, None), TypeError, "got a NoneType"),
        (lambda: pj.Kronecker(A, MIXED), ValueError, "real leaves beside complex"),
        (
            lambda: pj.Kronecker(COMPLEX, lx.DiagonalLinearOperator(jnp.ones(2))),
            ValueError,
            "got operators of dtypes complex128, float64",
        ),
        (lambda: pj.BlockDiagonal(A, batched=True), TypeError, "without `batched`"),
        (
            lambda: pj.BlockDiagonal(
                lx.TridiagonalLinearOperator(jnp.ones(3), jnp.ones(2), jnp.ones(2)),
                batched=True,
            ),
            ValueError,
            "leading axis of one size",
        ),
        (lambda: pj.Kronecker(A, B).damped(0.5), ValueError, "needs Hermitian factors"),
        (
            lambda: pj.Kronecker(definite(A)).damped(jnp.ones(2)),
            ValueError,
            "Pass a scalar",
        ),
        (lambda: pj.Kronecker(definite(A)).damped(1j), TypeError, "complex number"),
        (
            lambda: pj.Kronecker(A, jnp.ones((2, 3))).factored_damped(0.5),
            ValueError,
            "Each has to be square",
        ),
        (
            lambda: pj.Kronecker(A, A, A).factored_damped(0.5, pi=1.0),
            ValueError,
            "is for two factors, and got 3",
        ),
        (lambda: 1j * pj.Kronecker(A, B), TypeError, "complex number"),
        (lambda: pj.Kronecker(A, B) * jnp.ones(2), ValueError, "Pass a scalar"),
        (lambda: pj.Kronecker(A, B) + A, TypeError, "was added to"),
        (lambda: pj.Kronecker(A, jnp.ones((2, 3))).trace(), ValueError, "to be square"),
        (lambda: pj.Eigh(jnp.ones(3), jnp.eye(2)), ValueError, r"shape \(3,\)"),
        (lambda: pj.Eigh(jnp.ones(3), jnp.ones((2, 3))), ValueError, "transposed"),
        (lambda: pj.Eigh(jnp.ones(2, complex), jnp.eye(2)), TypeError, "are real"),
        (lambda: pj.Eigh(jnp.ones(2), A).power(jnp.ones(2)), ValueError, "a scalar"),
        (lambda: pj.Circulant(A), ValueError, r"shape \(2, 2\)"),
        (lambda: pj.Circulant(jnp.ones(0)), ValueError, "at least one"),
        (lambda: pj.Toeplitz(jnp.ones(2), A), ValueError, r"Toeplitz\(row="),
        (
            lambda: pj.Toeplitz(jnp.ones(2), jnp.ones(3)).circulant(),
            ValueError,
            "to be square",
        ),
        (
            lambda: pj.Circulant(jnp.ones(3)) + pj.Circulant(jnp.ones(2)),
            ValueError,
            "Incompatible",
        ),
        (
            lambda: pj.linear_solve(pj.Kronecker(A, B), jnp.ones(3)),
            ValueError,
            "structures do not match",
        ),
        (
            lambda: pj.linear_solve(
                pj.BlockDiagonal(jnp.ones((1, 2)), jnp.ones((2, 1))), jnp.ones(3)
            ),
            ValueError,
            "non-square",
        ),
        (lambda: pj.AutoLinearSolver(False, rcond=A), TypeError, "a Python number"),
        (lambda: pj.AutoLinearSolver(True, rcond=0.1), ValueError, "no cutoff"),
        (
            lambda: pj.linear_solve(
                pj.Circulant(jnp.ones(2)), jnp.ones(2), options={"y0": jnp.ones(2)}
            ),
            ValueError,
            "unknown option",
        ),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(make, error, message):
    with pytest.raises(error, match=message):
        make()


SINGULAR = jnp.array([[1.0, 2.0], [2.0, 4.0]])
NEARLY = jnp.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]])
NAN = jnp.array([[1.0, jnp.nan], [0.0, 1.0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: pj.Kronecker(A, SINGULAR),
        lambda: pj.Kronecker(NEARLY, NEARLY),  # each would do, but not their product
        lambda: pj.Kronecker(A, NAN),
        lambda: pj.Kronecker(tagged(A), tagged(NAN)).damped(1.0),
        lambda: pj.Kronecker(tagged(SINGULAR), tagged(SINGULAR)).damped(0.0),
        lambda: pj.BlockDiagonal(A, A, SINGULAR),
        lambda: pj.BlockDiagonal(A, lx.DiagonalLinearOperator(jnp.array([1.0, 0.0]))),
        lambda: pj.BlockDiagonal(A, NAN),
        lambda: pj.Eigh(jnp.array([1.0, 0.0, 2.0, 3.0]), jnp.eye(4)),
        lambda: pj.Eigh(jnp.ones(2), jnp.eye(4)[:, :2]),
        lambda: pj.Eigh(jnp.array([1.0, jnp.nan, 2.0, 3.0]), jnp.eye(4)),
        lambda: pj.Circulant(jnp.array([1.0, -1.0, 0.0, 0.0])),
        lambda: pj.Circulant(jnp.array([1.0, jnp.inf, 0.0, 0.0])),
        lambda: pj.Toeplitz(jnp.ones(4)),
    ],
    ids=[
        "kronecker",
        "kronecker-by-its-factors",
        "kronecker-nan",
        "damped-nan",
        "damped",
        "blocks",
        "blocks-diagonal",
        "blocks-nan",
        "eigh",
        "eigh-low",
        "eigh-nan",
        "circulant",
        "circulant-inf",
        "toeplitz",
    ],
)
@pytest.mark.default("circulant")
@pytest.mark.ci("*")
def test_singular_or_non_finite_operators_are_told_and_derivatives_are_nan(make):
    operator = make()
    vector = jnp.arange(1.0, 1 + operator.out_size())
    solution = pj.linear_solve(operator, vector, throw=False)
    assert solution.result == lx.RESULTS.singular

    def loss(vector):
        return jnp.sum(pj.linear_solve(operator, vector, throw=False).value)

    assert not np.all(np.isfinite(jax.grad(loss)(vector)))
    with pytest.raises(Exception, match="linear solve with"):
        pj.linear_solve(operator, vector)


def test_vectors_that_are_not_orthonormal_are_told():
    operator = pj.Eigh(jnp.ones(2), A)
    for well_posed in (True, False):
        solver = pj.AutoLinearSolver(well_posed)
        solution = pj.linear_solve(operator, jnp.ones(2), solver, throw=False)
        assert solution.result == lx.RESULTS.breakdown
    with pytest.raises(Exception, match="not orthonormal"):
        pj.linear_solve(operator, jnp.ones(2))


@pytest.mark.default(
    "factors0--1.0-None",
    "factors1--1.0-None",
    "factors3-1.0--1.0",
    "factors4-1.0-0.0",
    "factors5-1.0-nan",
)
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("factors", "damping", "pi"),
    [((A,), -1.0, None), ((A, B), -1.0, None), ((A, A, B), -1.0, None)]
    + [((A, B), 1.0, pi) for pi in (-1.0, 0.0, np.nan)],
)
def test_factored_damping_that_is_negative_makes_the_operator_nan(factors, damping, pi):
    product = pj.Kronecker(*map(definite, factors))
    operator = product.factored_damped(damping, pi=pi)
    assert np.all(np.isnan(operator.as_matrix()))
    solution = pj.linear_solve(operator, jnp.ones(operator.in_size()), throw=False)
    assert solution.result != lx.RESULTS.successful


# Its square is [[2, -1], [-1, 2]], which takes (1, 1) to itself.
HALF = np.sqrt(3) / 2
MIXING = np.array([[HALF + 0.5, 0.5 - HALF], [0.5 - HALF, HALF + 0.5]])


@pytest.mark.parametrize(
    "vectors",
    [
        MIXING,
        np.eye(2) * (1 + 1e-9),
        np.linalg.qr(np.random.default_rng(0).standard_normal((30, 20)))[0] * (1 + 1e-9),
        np.eye(20) + 1e-9 * np.eye(20, k=5),
    ],
    ids=["of-one-length", "scaled", "scaled-many", "turned-many"],
)
def test_vectors_that_are_nearly_orthonormal_are_told(vectors):
    size, count = vectors.shape
    operator = pj.Eigh(jnp.arange(1.0, 1 + count), vectors, 1.0)
    solution = pj.linear_solve(operator, jnp.ones(size), throw=False)
    assert solution.result == lx.RESULTS.breakdown


@pytest.mark.default("float32-5", "complex128-5", "complex128-300")
@pytest.mark.ci("*")
@pytest.mark.parametrize("size", [5, 300])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_vectors_of_a_decomposition_are_orthonormal(size, dtype):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((size, size)).astype(dtype)
    values, vectors = np.linalg.eigh(
        matrix + matrix.T + 4 * size * np.eye(size, dtype=dtype)
    )
    operator = pj.Eigh(values, vectors)
    solution = pj.linear_solve(operator, jnp.ones(size, dtype), throw=False)
    assert solution.result == lx.RESULTS.successful


def test_non_finite_vectors_are_told():
    operator = pj.Kronecker(A, B)
    vector = jnp.array([1.0, jnp.nan, 0.0, 1.0])
    solution = pj.linear_solve(operator, vector, throw=False)
    assert solution.result == lx.RESULTS.nonfinite_input


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (pj.Circulant(jnp.arange(3.0)), (1,)),
        (pj.Toeplitz(jnp.arange(3.0)), (2,)),
        (pj.Kronecker(jnp.eye(2), jnp.eye(2)), (2, 2)),
        (pj.BlockDiagonal(jnp.eye(2), jnp.eye(3)), (6,)),
        (pj.Eigh(jnp.ones(2), jnp.eye(2)), (3,)),
        (pj.Kronecker(tagged(SINGULAR)).damped(1.0), (1,)),
    ],
    ids=lambda it: type(it).__name__,
)
def test_a_vector_of_another_shape_has_no_product(operator, shape):
    with pytest.raises(ValueError, match=r"mv` got a vector of shape"):
        operator.mv(jnp.ones(shape))
