"""Our solvers inside Optimistix: as its linear solver, in its adjoint, in a residual."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import pseudojvp as pj


SQUARE = {
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "Normal(Cholesky)": pj.Normal(lx.Cholesky()),
    "Normal(CG)": pj.Normal(pj.CG(1e-12, 1e-12)),
    "Auto(None)": pj.AutoLinearSolver(well_posed=None),
}
DIRECT = {name: SQUARE[name] for name in ("QR", "SVD", "Normal(Cholesky)")}
TIMES = np.linspace(0.0, 2.0, 6)
SCALE, RATE = 2.0, 0.7
DATA = SCALE * np.exp(-RATE * TIMES) + 0.05 * np.cos(9 * TIMES)


def _root_function(y, a):
    """Zero at y = (√a, 1/√a), with a component that couples both."""
    return jnp.array([y[0] ** 2 - a, y[0] * y[1] - 1])


def _residuals(y, data):
    return y["scale"] * jnp.exp(-y["rate"] * TIMES) - data


START = {"scale": jnp.array(1.0), "rate": jnp.array(0.5)}


def _fitted(data):
    """The least-squares parameters by Newton's method on the normal equations."""
    rate = RATE
    for _ in range(100):
        basis = np.exp(-rate * TIMES)
        scale = basis @ data / (basis @ basis)
        residual = scale * basis - data
        jacobian = np.stack([basis, -scale * TIMES * basis], axis=1)
        rate -= np.linalg.lstsq(jacobian, residual, rcond=None)[0][1]
    return np.array([scale, rate])


def _differences(function, data, direction, step=1e-4):
    """A central difference of fourth order, with an error near 1e-10."""
    at = lambda t: function(data + t * direction)
    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize("name", SQUARE)
def test_newton_finds_the_root(name):
    solver = optx.Newton(rtol=1e-10, atol=1e-10, linear_solver=SQUARE[name])
    solution = optx.root_find(_root_function, solver, jnp.array([1.0, 1.0]), 2.0)
    np.testing.assert_allclose(solution.value, [np.sqrt(2), 1 / np.sqrt(2)], rtol=1e-9)


@pytest.mark.parametrize("name", SQUARE)
def test_implicit_adjoint_of_a_root_is_right(name):
    @jax.jit
    @jax.jacrev
    def jacobian(a):
        newton = optx.Newton(rtol=1e-10, atol=1e-10)
        adjoint = optx.ImplicitAdjoint(linear_solver=SQUARE[name])
        start = jnp.array([1.0, 1.0])
        return optx.root_find(_root_function, newton, start, a, adjoint=adjoint).value

    truth = [0.5 / np.sqrt(2), -0.5 * 2**-1.5]
    np.testing.assert_allclose(jacobian(2.0), truth, rtol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        pj.CG(1e-12, 1e-12),
        pj.Neumann(200, scale=0.25, rtol=1e-12),
        pj.AutoLinearSolver(well_posed=True),
    ],
    ids=["CG", "Neumann", "Auto(True)"],
)
def test_implicit_adjoint_of_a_definite_fixed_point_is_right(solver):
    coupling = jnp.array([[2.0, 0.5], [0.5, 3.0]])
    function = lambda y, a: coupling @ y + y**3 - a

    @jax.jit
    @jax.jacrev
    def jacobian(a):
        newton = optx.Newton(rtol=1e-11, atol=1e-11)
        adjoint = optx.ImplicitAdjoint(linear_solver=solver)
        tags = frozenset({lx.positive_semidefinite_tag})
        start = jnp.zeros(2)
        return optx.root_find(
            function, newton, start, a, adjoint=adjoint, tags=tags
        ).value

    root = np.array([0.4, -0.3])
    right_side = np.asarray(coupling) @ root + root**3
    truth = np.linalg.inv(np.asarray(coupling) + np.diag(3 * root**2))
    np.testing.assert_allclose(jacobian(jnp.asarray(right_side)), truth, rtol=1e-9)


@pytest.mark.parametrize("method", [optx.GaussNewton, optx.LevenbergMarquardt])
@pytest.mark.parametrize("name", DIRECT)
def test_least_squares_fit_is_the_minimum(method, name):
    solver = method(rtol=1e-10, atol=1e-10, linear_solver=DIRECT[name])
    value = optx.least_squares(_residuals, solver, START, jnp.asarray(DATA)).value
    got = [value["scale"], value["rate"]]
    # The methods stop when steps and decreases are below 1e-10.
    np.testing.assert_allclose(got, _fitted(DATA), rtol=1e-6)


@pytest.mark.parametrize("name", DIRECT)
def test_gradient_through_a_least_squares_fit_is_right(name):
    @jax.jit
    @jax.grad
    def gradient(data):
        solver = optx.GaussNewton(rtol=1e-12, atol=1e-12, linear_solver=DIRECT[name])
        adjoint = optx.ImplicitAdjoint(linear_solver=DIRECT[name])
        fit = optx.least_squares(_residuals, solver, START, data, adjoint=adjoint)
        return fit.value["rate"]

    direction = np.cos(np.arange(6.0))
    truth = _differences(_fitted, DATA, direction)[1]
    np.testing.assert_allclose(gradient(DATA) @ direction, truth, rtol=1e-7)


@pytest.mark.parametrize(
    "solver",
    [
        pj.QR(),
        pj.SVD(),
        pj.Normal(lx.Cholesky()),
        pj.Normal(pj.CG(1e-12, 1e-12)),
        lx.QR(),
    ],
    ids=["QR", "SVD", "Normal(Cholesky)", "Normal(CG)", "lx.QR"],
)
def test_residual_that_solves_without_throwing_runs_in_levenberg_marquardt(solver):
    # Optimistix evaluates tangents on operators that are filled with zeros.
    def residuals(rate, data):
        basis = jnp.exp(-rate * TIMES)[:, None]
        solution = pj.linear_solve(basis, data, solver, throw=False)
        return data - basis @ solution.value

    method = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
    fit = optx.least_squares(residuals, method, jnp.array(0.5), jnp.asarray(DATA))
    np.testing.assert_allclose(fit.value, _fitted(DATA)[1], rtol=1e-6)  # as above


def test_gradient_through_variable_projection_is_right():
    @jax.jit
    @jax.grad
    def gradient(data):
        def residuals(rate, data):
            basis = jnp.exp(-rate * TIMES)[:, None]
            solution = pj.linear_solve(basis, data, pj.QR(), throw=False)
            return data - basis @ solution.value

        method = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12, linear_solver=pj.QR())
        adjoint = optx.ImplicitAdjoint(linear_solver=pj.AutoLinearSolver(well_posed=None))
        start = jnp.array(0.5)
        return optx.least_squares(residuals, method, start, data, adjoint=adjoint).value

    direction = np.cos(np.arange(6.0))
    truth = _differences(_fitted, DATA, direction)[1]
    np.testing.assert_allclose(gradient(DATA) @ direction, truth, rtol=1e-6)
