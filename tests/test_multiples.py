"""Multiples whose numbers are of another dtype than what they multiply."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


_RNG = np.random.default_rng(0)
_TALL = _RNG.standard_normal((5, 3))
_DEFINITE = _TALL.T @ _TALL + np.eye(3)
_FACTOR = 1.0 + 2.0j
_B = _RNG.standard_normal(5) + 1j * _RNG.standard_normal(5)
_POSITIVE = lx.positive_semidefinite_tag


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # lineax's products ask for it
        yield


def _over_reals(matrix, vector):
    stacked = np.concatenate([matrix.real, matrix.imag])
    return np.linalg.lstsq(stacked, np.concatenate([vector.real, vector.imag]))[0]


_MAKE = {
    "product": lambda operator, c: operator * c,
    "quotient": lambda operator, c: operator / (1 / c),
    "sum": lambda operator, c: operator + operator * (c - 1),
    "of a multiple": lambda operator, c: 2.0 * (operator * (c / 2)),
}
_SOLVERS = {
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "Normal(Cholesky)": pj.Normal(pj.Cholesky()),
    "LSMR": pj.LSMR(1e-13),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.ci("*")
@pytest.mark.parametrize("make", _MAKE.values(), ids=_MAKE)
@pytest.mark.parametrize("solver", _SOLVERS.values(), ids=_SOLVERS)
def test_complex_multiple_of_a_real_operator_is_solved_over_the_reals(solver, make):
    def loss(number):
        operator = make(lx.MatrixLinearOperator(jnp.asarray(_TALL)), number)
        x = pj.linear_solve(operator, jnp.asarray(_B), solver).value
        return jnp.sum(x**2), x

    (_, x), slope = jax.value_and_grad(loss, has_aux=True)(jnp.array(_FACTOR))
    np.testing.assert_allclose(x, _over_reals(_FACTOR * _TALL, _B), rtol=1e-9)
    step = 1e-6
    truth = lambda number: np.sum(_over_reals(number * _TALL, _B) ** 2)
    by_real = truth(_FACTOR + step) - truth(_FACTOR - step)
    by_imaginary = truth(_FACTOR + 1j * step) - truth(_FACTOR - 1j * step)
    want = (by_real - 1j * by_imaginary) / (2 * step)
    np.testing.assert_allclose(slope, want, rtol=1e-6)


def test_complex_multiple_of_a_real_operator_wants_a_complex_vector():
    operator = lx.MatrixLinearOperator(jnp.asarray(_TALL)) * _FACTOR
    with pytest.raises(ValueError, match="structures do not match.*complex128"):
        pj.linear_solve(operator, jnp.ones(5), pj.QR())


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda operator: 2.0 * operator, 2.0),
        (lambda operator: operator / jnp.array(2.0), 0.5),
        (lambda operator: operator + 2.0 * operator, 3.0),
        (lambda operator: 3.0 * (2.0 * operator), 6.0),
    ],
    ids=["product", "quotient", "sum", "of a multiple"],
)
def test_multiple_of_a_narrower_operator_keeps_its_dtype(dtype, make, factor):
    matrix = jnp.asarray(_DEFINITE, dtype)
    exact = np.asarray(matrix, float)
    operator = make(lx.MatrixLinearOperator(matrix, _POSITIVE))
    x = pj.linear_solve(operator, jnp.ones(3, dtype), pj.CG()).value
    assert x.dtype == jnp.dtype(dtype)
    tolerance = 1e-4 if dtype == "float32" else 0.1
    want = np.linalg.solve(factor * exact, np.ones(3))
    np.testing.assert_allclose(np.asarray(x, float), want, rtol=tolerance)


@pytest.mark.slow  # two seconds
def test_narrower_multiple_by_a_traced_number_is_a_preconditioner():
    operator = lx.MatrixLinearOperator(jnp.asarray(_DEFINITE, jnp.float32), _POSITIVE)
    inverse = lx.MatrixLinearOperator(
        jnp.asarray(np.linalg.inv(_DEFINITE), jnp.float32), _POSITIVE
    )

    @jax.jit
    def solve(number):
        scaled = lx.TaggedLinearOperator(number * inverse, _POSITIVE)
        options = {"preconditioner": scaled}
        vector = jnp.ones(3, jnp.float32)
        return pj.linear_solve(operator, vector, pj.CG(), options=options).value

    want = np.linalg.solve(_DEFINITE, np.ones(3))
    np.testing.assert_allclose(solve(jnp.array(0.5)), want, rtol=1e-4)


_MIXED = {
    "a": jax.ShapeDtypeStruct((2,), "float32"),
    "b": jax.ShapeDtypeStruct((2,), "d"),
}
_STRICT = {
    "Auto": pj.AutoLinearSolver(True),
    "LU": pj.LU(),
    "QR": pj.QR(),
    "PivotedQR": pj.PivotedQR(),
    "CG": pj.CG(),
    "MINRES": pj.MINRES(1e-5),
    "LSMR": pj.LSMR(1e-5),
    "Normal(CG)": pj.Normal(pj.CG(1e-5, 1e-5)),
}


def _mixed():
    mv = lambda x: {"a": 2 * x["a"], "b": 3 * x["b"]}
    with jax.numpy_dtype_promotion("standard"):  # lineax's check of the tag asks for it
        return lx.FunctionLinearOperator(mv, _MIXED, _POSITIVE)


@pytest.mark.default("Auto")
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", _STRICT.values(), ids=_STRICT)
def test_definite_operator_of_two_precisions_under_strict_promotion(solver):
    operator = _mixed()

    def solve(vector):
        with jax.numpy_dtype_promotion("strict"):
            return pj.linear_solve(operator, vector, solver).value

    vector = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)}
    x, pull_back = jax.vjp(solve, vector)
    for tree in (x, pull_back(vector)[0]):
        np.testing.assert_allclose(tree["a"], 1 / 2, rtol=1e-5)
        np.testing.assert_allclose(tree["b"], 1 / 3, rtol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_multiple_of_two_precisions_keeps_both_and_its_tags():
    vector = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)}
    x = pj.linear_solve(0.1 * _mixed(), vector, pj.CG()).value
    assert (x["a"].dtype, x["b"].dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(x["b"], 1 / 0.3, rtol=1e-5)


@pytest.mark.ci("*")
@pytest.mark.parametrize("number", [2.0, -2.0])
def test_a_real_multiple_of_a_complex_operator_of_parts_is_as_definite(number):
    identity = lx.MatrixLinearOperator(jnp.eye(2, dtype=complex), _POSITIVE)
    diagonal = lx.TaggedLinearOperator(
        lx.DiagonalLinearOperator(jnp.ones(4, complex)), _POSITIVE
    )
    kronecker = pj.Kronecker(identity, identity)
    update = pj.LowRankUpdate(diagonal, jnp.ones((4, 1), complex))
    holds = lx.is_positive_semidefinite if number > 0 else lx.is_negative_semidefinite
    for operator in (
        update,
        pj.LowRankUpdate(update, jnp.ones((4, 1), complex)),
        pj.LowRankUpdate(kronecker, jnp.ones((4, 1), complex)),
        pj.BlockDiagonal(kronecker, kronecker),
    ):
        assert holds(operator * number)
        assert holds(operator / number)
        assert not holds(operator * complex(number))


@pytest.mark.untyped
@pytest.mark.parametrize("other", ["a", None, lx.MatrixLinearOperator(jnp.eye(3))])
def test_a_low_rank_update_times_what_is_no_number_is_told(other):
    operator = pj.LowRankUpdate(jnp.eye(3), jnp.ones((3, 1)))
    with pytest.raises(
        TypeError, match="`LowRankUpdate` was multiplied with, or divided"
    ):
        operator * other
