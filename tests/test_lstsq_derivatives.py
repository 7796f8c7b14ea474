"""Derivatives of `lstsq` along paths of constant rank, against Taylor arithmetic."""

import functools as ft
from typing import NamedTuple

import drop_in_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from checks import assert_close, derivatives, jit
from paths import Path

import pseudojvp as pj


pytestmark = pytest.mark.slow  # second derivatives: a second or two of compiling each


# Without the branch that raises there is half as much to compile.
lstsq = ft.partial(pj.lstsq, throw=False)


class Case(NamedTuple):
    shape: tuple[int, int]
    rank: int
    dtype: str
    solver: str
    weighted: bool
    damped: bool


CASES = {
    "tall-qr": Case((6, 3), 3, "complex128", "qr", True, False),
    "wide-qr": Case((3, 5), 3, "float64", "qr", False, False),
    "tall-deficient": Case((6, 4), 2, "complex128", "pivoted_qr", True, False),
    "wide-deficient": Case((3, 5), 2, "float64", "pivoted_qr", True, False),
    "square-deficient-svd": Case((4, 4), 2, "float64", "svd", False, False),
    "wide-deficient-damped": Case((3, 4), 2, "complex128", "pivoted_qr", True, True),
    "tall-damped-qr": Case((4, 3), 3, "float64", "qr", False, True),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


class System(NamedTuple):
    """Coefficients in t of A = left @ right, b, the weights and the damping."""

    left: np.ndarray
    right: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    damp: np.ndarray


def system(case):
    (rows, cols), rank, dtype = case.shape, case.rank, np.dtype(case.dtype)
    left = 0.2 * cases.random_array((4, rows, rank), dtype, 1)
    left[0] = cases.conditioned((rows, rank), np.linspace(1, 2, rank), dtype, 2)
    right = 0.2 * cases.random_array((4, rank, cols), dtype, 3)
    right[0] = cases.conditioned((rank, cols), np.linspace(1, 2, rank), dtype, 4)
    weights = 0.2 * cases.random_array((4, rows), float, 5)
    weights[0] += 1.5
    damp = np.array([0.7, 0.3, 0.2, 0.1])
    return System(left, right, cases.random_array((4, rows, 2), dtype, 6), weights, damp)


def evaluate(coefficients, t):
    return sum(coefficient * t**k for k, coefficient in enumerate(coefficients))


def lstsq_at(case, t):
    """x and the residuals."""
    left, right, vectors, weights, damp = (evaluate(c, t) for c in system(case))
    return lstsq(
        left @ right,
        vectors,
        None if case.solver == "qr" else 1e-9,
        damp=damp if case.damped else None,
        weights=weights if case.weighted else None,
        solver=cases.LSTSQ[case.solver],
    )[:2]


def series(case):
    """Taylor coefficients of x and of the least sum of squares, to third order."""
    left, right, vectors, weights, damp = system(case)
    if case.weighted:
        diagonal = weights[:, :, None] * np.eye(case.shape[0])
        left, vectors = truth.multiply(diagonal, left), truth.multiply(diagonal, vectors)
    if case.damped:  # of full column rank: A = A I
        cols = case.shape[1]
        identity = np.eye(cols) * np.array([1.0, 0, 0, 0])[:, None, None]
        bottom = damp[:, None, None] * np.eye(cols)
        left = np.concatenate([truth.multiply(left, right), bottom], axis=1)
        vectors = np.pad(vectors, ((0, 0), (0, cols), (0, 0)))
        right = identity
    inverse = truth.pseudoinverse_series(Path(left, right, vectors))
    x = truth.multiply(inverse, vectors)
    residual = vectors - truth.multiply(truth.multiply(left, right), x)
    gram = truth.multiply(truth.adjoint(residual), residual)
    return x, np.diagonal(gram, axis1=1, axis2=2).real


def along(function):
    """The function and its first two derivatives in t, forward over forward."""
    return derivatives(function, 2)


@each_case
def test_first_and_second_derivatives_along_a_path(case):
    x, residuals = series(case)
    path = jit(along(lambda t: lstsq_at(case, t)))(0.0)
    for order, (got_x, got_residuals) in enumerate(path):
        want = np.concatenate([x[order].ravel(), residuals[order]])
        got = np.concatenate([got_x.ravel(), got_residuals])
        assert_close(got, (1, 1, 2)[order] * want, 1e-11)


@pytest.mark.parametrize("name", ["wide-qr", "tall-deficient", "tall-damped-qr"])
def test_first_and_second_derivatives_of_a_loss_in_reverse(name):
    case = CASES[name]
    weights = np.arange(1.0, 3.0)

    def loss(t):
        x, residuals = lstsq_at(case, t)
        return jnp.sum(jnp.abs(x) ** 2) + jnp.sum(weights * residuals)

    x, residuals = series(case)
    gram = truth.multiply(truth.adjoint(x), x)
    want = np.trace(gram, axis1=1, axis2=2).real + residuals @ weights
    got = jit(jax.value_and_grad(jax.grad(loss)))(0.0)
    np.testing.assert_allclose(got, [want[1], 2 * want[2]], rtol=1e-11)


@pytest.mark.parametrize("name", cases.LSTSQ)
def test_equal_singular_values_are_no_matter(name):
    tangent, b = cases.random_array((3, 3), float, 1), np.array([1.0, 2.0, 3.0])

    @jit
    def path_and_gradient(a):
        solve = lambda t: lstsq(a + t * tangent, b, solver=cases.LSTSQ[name])[:2]
        cotangents = (np.array([1.0, -1.0, 2.0]), np.ones(1))
        gradient = jax.vjp(lambda a: lstsq(a, b, solver=cases.LSTSQ[name])[:2], a)[1]
        return along(solve)(0.0), gradient(cotangents)[0]

    path, gradient = path_and_gradient(np.eye(3))
    want = (b, -tangent @ b, 2 * tangent @ tangent @ b)
    for (x, residuals), value in zip(path, want, strict=True):
        np.testing.assert_allclose(x, value, atol=1e-14)
        np.testing.assert_allclose(residuals, 0, atol=1e-14)
    np.testing.assert_allclose(gradient, -np.outer([1.0, -1.0, 2.0], b), atol=1e-14)


@pytest.mark.parametrize("name", ["pivoted_qr", "svd"])
def test_singular_values_have_their_derivatives(name):
    a, tangent = cases.random_array((2, 5, 3), float, 1)
    b = np.ones(5)

    @jit
    def s_along(a):
        function = lambda t: lstsq(a + t * tangent, b, solver=cases.LSTSQ[name])[3]
        return along(function)(0.0)

    values = lambda t: np.linalg.svd(a + t * tangent, compute_uv=False)
    got = s_along(a)
    np.testing.assert_allclose(got[0], values(0.0), rtol=1e-13)
    for order in (1, 2):  # the difference is good to 1e-11 and 1e-9
        want = truth.central_difference(values, order)
        np.testing.assert_allclose(got[order], want, rtol=1e-7)


def test_residual_of_a_consistent_system_has_gradient_zero():
    a = cases.random_array((5, 3), float, 1)
    loss = lambda a, b: lstsq(a, b)[1][0]
    gradients = jax.grad(loss, (0, 1))(a, a @ np.ones(3))
    np.testing.assert_allclose(
        np.concatenate([g.ravel() for g in gradients]), 0, atol=1e-13
    )


@pytest.mark.parametrize("which", ["a", "b", "damp", "weights"])
def test_gradient_pairs_with_the_tangent_in_each_argument(which):
    arguments = {
        "a": cases.random_array((4, 2), float, 1),
        "b": cases.random_array((4,), float, 2),
        "damp": np.array(0.5),
        "weights": np.array([1.0, 2.0, 0.5, 1.5]),
    }
    tangent = np.asarray(cases.random_array(arguments[which].shape, float, 3))

    def loss(value):
        given = {**arguments, which: value}
        return jnp.sum(lstsq(given.pop("a"), given.pop("b"), **given)[0] ** 3)

    def numpy_loss(t):
        given = {**arguments, which: arguments[which] + t * tangent}
        a, b, squared = given["a"], given["b"], given["weights"] ** 2
        gram = (a.T * squared) @ a + given["damp"] ** 2 * np.eye(2)
        return np.sum(np.linalg.solve(gram, (a.T * squared) @ b) ** 3)

    gradient = jit(jax.grad(loss))(jnp.asarray(arguments[which]))
    want = truth.central_difference(numpy_loss, 1)
    np.testing.assert_allclose(np.sum(gradient * tangent), want, rtol=1e-9)


def test_damping_of_a_deficient_matrix_has_derivative_zero_at_zero():
    a, b = np.ones((3, 2)), np.array([1.0, 2.0, 4.0])
    solve = lambda damp: lstsq(a, b, damp=damp)[0]
    x, first, second = jit(along(solve))(0.0)
    # x = (a^T a + damp^2)^-1 a^T b on the range of a^T, where a^T a is 6.
    np.testing.assert_allclose(x, [7 / 6, 7 / 6], rtol=1e-13)
    np.testing.assert_allclose(first, 0, atol=1e-13)
    np.testing.assert_allclose(second, [-14 / 36, -14 / 36], rtol=1e-12)


def test_hessian_in_the_right_hand_sides_is_that_of_the_projection():
    a, b = cases.random_array((4, 2), float, 1), cases.random_array((4,), float, 2)
    loss = lambda b: lstsq(a, b)[1][0]
    hessian = jit(jax.hessian(loss))(b)
    want = 2 * (np.eye(4) - a @ np.linalg.pinv(a))
    np.testing.assert_allclose(hessian, want, atol=1e-13)
