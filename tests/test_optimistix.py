"""Our solvers inside Optimistix: in its methods, in its adjoint, in a residual."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from checks import jit

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


def _root(method, linear_solver):
    solver = method(rtol=1e-10, atol=1e-10, linear_solver=linear_solver)
    start = jnp.array([1.2, 0.8])  # near enough for Chord, whose Jacobian stays
    find = lambda a: optx.root_find(_root_function, solver, start, a).value
    return jit(find)(2.0)


@pytest.mark.default("Auto(None)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", SQUARE)
def test_newton_finds_the_root(name):
    root = _root(optx.Newton, SQUARE[name])
    np.testing.assert_allclose(root, [np.sqrt(2), 1 / np.sqrt(2)], rtol=1e-9)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
# Without Normal(CG): Chord carries the state, in which it takes no jaxpr.
@pytest.mark.parametrize("name", [*DIRECT, "Auto(None)"])
def test_chord_finds_the_root(name):
    root = _root(optx.Chord, SQUARE[name])
    np.testing.assert_allclose(root, [np.sqrt(2), 1 / np.sqrt(2)], rtol=1e-9)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "Normal(CG)", "Auto(None)"])
def test_implicit_adjoint_of_a_root_is_right(name):
    @jit
    @jax.jacrev
    def jacobian(a):
        newton = optx.Newton(rtol=1e-10, atol=1e-10)
        adjoint = optx.ImplicitAdjoint(linear_solver=SQUARE[name])
        start = jnp.array([1.0, 1.0])
        return optx.root_find(_root_function, newton, start, a, adjoint=adjoint).value

    truth = [0.5 / np.sqrt(2), -0.5 * 2**-1.5]
    np.testing.assert_allclose(jacobian(2.0), truth, rtol=1e-9)


@pytest.mark.default("Neumann")
@pytest.mark.ci("*")
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

    @jit
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


@pytest.mark.default("GaussNewton-SVD", "LevenbergMarquardt-Normal(Cholesky)")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("method", "name"),
    [
        (optx.GaussNewton, "QR"),
        (optx.GaussNewton, "SVD"),
        (optx.GaussNewton, "Normal(Cholesky)"),
        (optx.LevenbergMarquardt, "QR"),
        (optx.LevenbergMarquardt, "Normal(Cholesky)"),
        (optx.Dogleg, "QR"),
        (optx.Dogleg, "SVD"),
    ],
)
def test_least_squares_fit_is_the_minimum(method, name):
    solver = method(rtol=1e-10, atol=1e-10, linear_solver=DIRECT[name])
    fit = jit(lambda data: optx.least_squares(_residuals, solver, START, data).value)(
        DATA
    )
    got = [fit["scale"], fit["rate"]]
    # The methods stop when steps and decreases are below 1e-10.
    np.testing.assert_allclose(got, _fitted(DATA), rtol=1e-6)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", DIRECT)
def test_gradient_through_a_least_squares_fit_is_right(name):
    @jit
    @jax.grad
    def gradient(data):
        solver = optx.GaussNewton(rtol=1e-12, atol=1e-12, linear_solver=DIRECT[name])
        adjoint = optx.ImplicitAdjoint(linear_solver=DIRECT[name])
        fit = optx.least_squares(_residuals, solver, START, data, adjoint=adjoint)
        return fit.value["rate"]

    direction = np.cos(np.arange(6.0))
    truth = _differences(_fitted, DATA, direction)[1]
    np.testing.assert_allclose(gradient(DATA) @ direction, truth, rtol=1e-7)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), pj.Normal(pj.CG(1e-12, 1e-12)), lx.QR()],
    ids=["QR", "SVD", "Normal(CG)", "lx.QR"],
)
def test_residual_that_solves_without_throwing_runs_in_levenberg_marquardt(solver):
    # Optimistix evaluates tangents on operators that are filled with zeros.
    def residuals(rate, data):
        basis = jnp.exp(-rate * TIMES)[:, None]
        solution = pj.linear_solve(basis, data, solver, throw=False)
        return data - basis @ solution.value

    method = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
    start = jnp.array(0.5)
    fit = jit(lambda data: optx.least_squares(residuals, method, start, data).value)
    np.testing.assert_allclose(fit(DATA), _fitted(DATA)[1], rtol=1e-6)  # as above


@pytest.mark.slow  # a loop within a loop
def test_problem_within_the_residual_of_another_runs_without_throwing():
    # Outside: the a at which the root (√a, 1/√a) has a ratio of 3. Inside: the root.
    def residual(a, _):
        newton = optx.Newton(rtol=1e-12, atol=1e-12, linear_solver=pj.QR())
        adjoint = pj.PseudoinverseAdjoint(pj.QR(), throw=False)
        start = jnp.array([1.2, 0.8])
        root = optx.root_find(
            _root_function, newton, start, a, adjoint=adjoint, throw=False
        ).value
        return root[0] / root[1] - 3

    method = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
    find = jit(lambda start: optx.least_squares(residual, method, start).value)
    np.testing.assert_allclose(find(2.0), 3, rtol=1e-9)


@pytest.mark.slow  # derivatives of derivatives in a loop
def test_gradient_through_variable_projection_is_right():
    @jit
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


def _deficient_residuals(y, data):
    """The same fit, with a scale that is a product of two parameters."""
    return y["left"] * y["right"] * jnp.exp(-y["rate"] * TIMES) - data


DEFICIENT_START = {name: jnp.array(1.0) for name in ("left", "right", "rate")}


@pytest.mark.default("Dogleg")
@pytest.mark.ci("*")
@pytest.mark.parametrize("method", [optx.GaussNewton, optx.Dogleg])
def test_least_squares_fit_with_a_rank_deficient_jacobian_is_the_minimum(method):
    solver = method(rtol=1e-10, atol=1e-10, linear_solver=pj.SVD())
    residuals, start = _deficient_residuals, DEFICIENT_START
    fit = jit(lambda data: optx.least_squares(residuals, solver, start, data).value)(DATA)
    got = [fit["left"] * fit["right"], fit["rate"]]
    np.testing.assert_allclose(got, _fitted(DATA), rtol=1e-6)  # as above


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [pj.QR(), lx.LU()], ids=["QR", "lx.LU"])
def test_implicit_adjoint_of_bfgs_is_right(solver):
    @jit
    @jax.grad
    def gradient(data):
        loss = lambda y, data: jnp.sum(_residuals(y, data) ** 2)
        bfgs = optx.BFGS(rtol=1e-12, atol=1e-12)
        adjoint = optx.ImplicitAdjoint(linear_solver=solver)
        return optx.minimise(loss, bfgs, START, data, adjoint=adjoint).value["rate"]

    direction = np.cos(np.arange(6.0))
    truth = _differences(_fitted, DATA, direction)[1]
    np.testing.assert_allclose(gradient(DATA) @ direction, truth, rtol=1e-7)


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "adjoint",
    [
        optx.ImplicitAdjoint(linear_solver=pj.AutoLinearSolver(well_posed=False)),
        pj.PseudoinverseAdjoint(),
    ],
    ids=["ImplicitAdjoint", "PseudoinverseAdjoint"],
)
def test_gradient_of_a_fit_with_a_singular_hessian_is_right(adjoint):
    @jit
    @jax.jacrev
    def gradients(data):
        method = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12)
        fit = optx.least_squares(
            _deficient_residuals, method, DEFICIENT_START, data, adjoint=adjoint
        ).value
        return jnp.stack([fit["left"] * fit["right"], fit["rate"]])

    direction = np.cos(np.arange(6.0))
    truth = _differences(_fitted, DATA, direction)
    np.testing.assert_allclose(gradients(DATA) @ direction, truth, rtol=1e-7)
