"""Derivatives of `invert(A).mv` with respect to A, against dense formulas."""

import functools

import drop_in_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 3
CASES = {
    **{name: cases.OURS[name] for name in ("QR", "SVD", "Normal(Cholesky)", "CG")},
    "Normal(SVD)": cases.OURS["Normal(SVD)"],
    "Neumann": cases.OURS["Neumann"],
    "LU": cases.THEIRS["lx.LU"],
}


@functools.cache
def _run(name):
    """Numpy truth and our derivatives of t -> (A + tE)^-1 b, first and second order."""
    case = CASES[name]
    matrix = cases.matrix_of(case.kind, SIZE, complex)
    tangent = cases.direction_of(case.kind, SIZE, complex, 11) / 3
    vector, weights = cases.random_array((2, SIZE), complex, 7)

    def product(matrix):
        operator = cases.operator_of(matrix, case.kind)
        inverse = pj.invert(operator, case.make(1e-13), throw=False)
        return inverse.mv(jnp.asarray(vector))

    def loss(matrix):
        return jnp.sum(jnp.asarray(weights) * product(matrix)).real

    @jax.jit
    def derivatives(matrix, tangent):
        first = lambda matrix: jax.jvp(product, (matrix,), (tangent,))[1]
        t_product, tt_product = jax.jvp(first, (matrix,), (tangent,))
        gradient, t_gradient = jax.jvp(jax.grad(loss), (matrix,), (tangent,))
        return t_product, tt_product, gradient, t_gradient

    got = derivatives(jnp.asarray(matrix), jnp.asarray(tangent))
    inv = np.linalg.inv(matrix)
    step = -inv @ tangent
    solution = inv @ vector
    truth = step @ solution, 2 * step @ step @ solution
    pairings = tuple((weights @ term).real for term in truth)
    paired = tuple(np.sum(np.asarray(g) * tangent).real for g in got[2:])
    return tuple(map(np.asarray, got[:2])), truth, paired, pairings


@pytest.mark.default("*-Normal(Cholesky)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [1, 2])
def test_forward_derivative_is_right(name, order):
    got, truth, _, _ = _run(name)
    got, truth = got[order - 1], truth[order - 1]
    # Second order doubles the loss of digits in the squared condition of `Normal`.
    assert np.linalg.norm(got - truth) < 1e-8 * np.linalg.norm(truth)


@pytest.mark.default("*-Normal(Cholesky)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [1, 2])
def test_gradient_is_right(name, order):
    _, _, paired, pairings = _run(name)
    assert abs(paired[order - 1] - pairings[order - 1]) < 1e-8


@pytest.mark.default("wide-Normal(Cholesky)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "SVD", "Normal(Cholesky)"])
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)], ids=["tall", "wide"])
def test_derivative_of_a_pseudoinverse_is_that_of_differences(name, shape):
    solver = CASES[name].make(1e-13)
    matrix = cases.conditioned(shape, [1.0, 2.0], float, 3)
    tangent = cases.random_array(shape, float, 4)

    @jax.jit
    def derivative(matrix, tangent):
        pseudoinverse = lambda m: pj.invert(m, solver, throw=False).as_matrix()
        return jax.jvp(pseudoinverse, (matrix,), (tangent,))[1]

    # Central differences of fourth order: the error is about 1e-11.
    h = 1e-3
    pinv = lambda t: np.linalg.pinv(matrix + t * tangent)
    truth = (8 * (pinv(h) - pinv(-h)) - (pinv(2 * h) - pinv(-2 * h))) / (12 * h)
    got = derivative(jnp.asarray(matrix), jnp.asarray(tangent))
    assert np.linalg.norm(got - truth) < 1e-8 * np.linalg.norm(truth)


def test_gradient_through_the_matrix_of_an_inverse_is_right():
    matrix = cases.matrix_of("general", SIZE, float)
    inverse = lambda m: pj.invert(m, pj.QR(), throw=False)
    gradient = jax.jit(jax.grad(lambda m: jnp.trace(inverse(m).as_matrix())))
    inv = np.linalg.inv(matrix)
    np.testing.assert_allclose(gradient(jnp.asarray(matrix)), -(inv @ inv).T, rtol=1e-10)


def test_gradient_through_the_transpose_of_an_inverse_is_right():
    matrix = cases.matrix_of("general", SIZE, float)
    vector = np.arange(1.0, SIZE + 1)

    @jax.jit
    @jax.grad
    def gradient(matrix):
        inverse = pj.invert(matrix, pj.QR(), throw=False)
        return jnp.sum(inverse.transpose().mv(jnp.asarray(vector)))

    inv = np.linalg.inv(matrix)
    truth = -np.outer(inv.T @ vector, inv @ np.ones(SIZE))
    np.testing.assert_allclose(gradient(jnp.asarray(matrix)), truth, rtol=1e-10)
