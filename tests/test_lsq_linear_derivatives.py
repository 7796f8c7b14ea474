"""Derivatives of `lsq_linear` and `nnls`: those of SciPy's answers, on the active set."""

import bounded_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from checks import derivatives

import pseudojvp as pj


RNG = np.random.default_rng(0)
A, B = cases.normal(RNG, 12, 5)
A[:, 0] *= -1  # so that bounds of both sides bind
T_A, T_B = cases.normal(RNG, 12, 5)
LOWER, UPPER = np.full(5, -0.2), np.full(5, 0.15)
T_LOWER, T_UPPER = RNG.standard_normal((2, 5))
PATH = ((A, T_A), (B, T_B), (LOWER, T_LOWER), (UPPER, T_UPPER))
STEP = 1e-3


def _at(t):
    return [start + t * direction for start, direction in PATH]


def _along_path(t):
    a, b, lower, upper = _at(t)
    return pj.lsq_linear(a, b, (lower, upper)).value


def _scipy(t):
    return cases.by_scipy(*_at(t)).x


@pytest.fixture(scope="module")
def ours():
    return jax.jit(derivatives(_along_path, 2))(0.0)


@pytest.mark.slow  # a second
def test_first_derivative_along_a_path_is_that_of_scipys_answers(ours):
    far = (_scipy(2 * STEP) - _scipy(-2 * STEP)) / (4 * STEP)
    near = (_scipy(STEP) - _scipy(-STEP)) / (2 * STEP)
    np.testing.assert_allclose(ours[1], (4 * near - far) / 3, rtol=1e-8, atol=1e-9)


@pytest.mark.slow  # a second
def test_second_derivative_along_a_path_is_that_of_scipys_answers(ours):
    def quotient(step):
        return (_scipy(step) - 2 * _scipy(0.0) + _scipy(-step)) / step**2

    # To the rounding 1e-16 / STEP² of the quotient.
    expected = (4 * quotient(STEP) - quotient(2 * STEP)) / 3
    np.testing.assert_allclose(ours[2], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_reverse_mode_is_the_transpose_of_forward_mode():
    solve = lambda a, b, lower, upper: pj.lsq_linear(a, b, (lower, upper)).value
    starts, tangents = zip(*PATH, strict=True)
    cotangent = RNG.standard_normal(5)
    _, tangent = jax.jvp(solve, starts, tangents)
    pulled = jax.vjp(solve, *starts)[1](jnp.asarray(cotangent))
    total = sum(np.sum(p * t) for p, t in zip(pulled, tangents, strict=True))
    np.testing.assert_allclose(total, cotangent @ tangent, rtol=1e-12)


@pytest.mark.slow
def test_hessian_is_symmetric_and_that_of_forward_mode():
    loss = lambda b: jnp.sum(pj.lsq_linear(A, b, (LOWER, UPPER)).value ** 4)
    over_reverse = jax.hessian(loss)(B)
    over_forward = jax.jacfwd(jax.jacfwd(loss))(B)
    np.testing.assert_allclose(over_reverse, over_forward, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_variable_at_its_bound_moves_with_it():
    solve = lambda lower, upper: pj.lsq_linear(A, B, (lower, upper)).value
    mask = np.asarray(pj.lsq_linear(A, B, (LOWER, UPPER)).stats["active_mask"])
    of_lower, of_upper = jax.jacobian(solve, (0, 1))(LOWER, UPPER)
    fixed = mask != 0
    np.testing.assert_array_equal(of_lower[fixed], np.diag(mask == -1)[fixed])
    np.testing.assert_array_equal(of_upper[fixed], np.diag(mask == 1)[fixed])
    # The free ones make up for it: −A_F† A_N.
    free, lower = mask == 0, mask == -1
    expected = -np.linalg.pinv(A[:, free]) @ A[:, lower]
    np.testing.assert_allclose(of_lower[free][:, lower], expected, rtol=1e-12)


@pytest.mark.slow
def test_derivative_with_dependent_free_columns_is_that_of_constant_rank():
    left, right = RNG.standard_normal((12, 2)), RNG.standard_normal((2, 4))
    t_left, t_right = RNG.standard_normal((12, 2)), RNG.standard_normal((2, 4))
    lower = np.array([0.7, -np.inf, -np.inf, -np.inf])

    def solve(t):
        a = (left + t * t_left) @ (right + t * t_right)
        return pj.lsq_linear(a, B, (lower, None)).value

    def truth(t):
        a = (left + t * t_left) @ (right + t * t_right)
        free = np.linalg.pinv(a[:, 1:]) @ (B - 0.7 * a[:, 0])
        return np.array([0.7, *free])

    x, t_x = jax.jvp(solve, (0.0,), (1.0,))
    np.testing.assert_allclose(x, truth(0.0), rtol=1e-11)
    quotient = (truth(1e-5) - truth(-1e-5)) / 2e-5
    np.testing.assert_allclose(t_x, quotient, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_batch_of_gradients_is_that_of_each():
    a, b = cases.batch("normal", (12, 5), 4)
    loss = lambda a, b: jnp.sum(pj.lsq_linear(a, b, (LOWER, UPPER)).value ** 2)
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    for ours, each in zip(
        jax.vmap(gradient)(a, b), zip(*map(gradient, a, b), strict=True), strict=True
    ):
        np.testing.assert_allclose(ours, each, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_gradient_of_the_residual_norm_of_nnls_is_that_of_scipys():
    gradient = jax.grad(lambda t: pj.nnls(A + t * T_A, B + t * T_B)[1])(0.0)
    norm = lambda t: scipy.optimize.nnls(A + t * T_A, B + t * T_B)[1]
    quotient = (norm(1e-5) - norm(-1e-5)) / 2e-5
    np.testing.assert_allclose(gradient, quotient, rtol=1e-8)


@pytest.mark.slow
def test_residual_norm_of_zero_has_the_derivative_zero():
    gradient = jax.grad(lambda b: pj.nnls(np.eye(3), b)[1])(jnp.arange(1.0, 4.0))
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.slow
def test_statistics_have_no_derivative():
    loss = lambda b: pj.lsq_linear(A, b, (LOWER, UPPER)).stats["optimality"]
    with pytest.raises(Exception, match="no derivative"):
        jax.block_until_ready(jax.grad(loss)(B))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_a_failed_search_are_nan_without_throw(mode):
    solve = lambda b: pj.lsq_linear(A, b, (1.0, 0.0), throw=False).value
    assert np.all(np.isnan(mode(solve)(B)))
