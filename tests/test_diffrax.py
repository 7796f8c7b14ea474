"""Our solvers inside Diffrax: in the stages of a stiff method, in a steady state."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from checks import assert_close, jit
from scipy.integrate import solve_ivp

import pseudojvp as pj


pytestmark = pytest.mark.slow  # a Diffrax program takes several seconds to compile


STIFFNESS, END = 50.0, 2.0


@pytest.fixture(autouse=True)
def _promotion_as_by_default():
    """Diffrax 0.7.2 multiplies the time with a direction that is an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _van_der_pol(t, y, mu):
    return jnp.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def _end_of_van_der_pol(mu, linear_solver):
    # Tight root finding: the gradient of a stage presumes that its root was found.
    root_finder = diffrax.VeryChord(1e-10, 1e-10, linear_solver=linear_solver)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_van_der_pol),
        diffrax.Kvaerno5(root_finder=root_finder),
        0.0,
        END,
        0.01,
        jnp.array([2.0, 0.0]),
        args=mu,
        stepsize_controller=diffrax.PIDController(1e-9, 1e-9),
        max_steps=128,
    )
    return solution.ys[0]


@pytest.fixture(scope="module")
def van_der_pol():
    """(y, dy/dμ) at the end, from SciPy and the variational equation."""

    def field(t, z):
        (y, v), (s, r) = z[:2], z[2:]
        bend = 1 - y**2
        tangent = -(2 * STIFFNESS * y * v + 1) * s + STIFFNESS * bend * r + bend * v
        return [v, STIFFNESS * bend * v - y, r, tangent]

    start = [2.0, 0.0, 0.0, 0.0]
    path = solve_ivp(field, (0, END), start, method="Radau", rtol=1e-11, atol=1e-13)
    return path.y[:2, -1], path.y[2:, -1]


@pytest.mark.parametrize(
    "linear_solver",
    [pj.SVD(), pj.AutoLinearSolver(well_posed=None)],
    ids=["SVD", "Auto(None)"],
)
def test_stiff_solve_is_right(linear_solver, van_der_pol):
    got = jit(lambda mu: _end_of_van_der_pol(mu, linear_solver))(STIFFNESS)
    # The steps have a relative tolerance of 1e-9, and errors add up.
    np.testing.assert_allclose(got, van_der_pol[0], rtol=1e-7)


def test_gradient_of_a_stiff_solve_is_right(van_der_pol):
    function = lambda mu: _end_of_van_der_pol(mu, pj.QR())[0]
    got = jit(jax.value_and_grad(function))(STIFFNESS)
    truth = [array[0] for array in van_der_pol]
    # The error control of the steps is that of the values, not of the derivative.
    np.testing.assert_allclose(got, truth, rtol=1e-5)


def _steady_state(field, start, args, linear_solver):
    steady = diffrax.steady_state_event(1e-10, 1e-10, optx.max_norm)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Heun(),
        0.0,
        jnp.inf,
        0.2,
        start,
        args=args,
        event=diffrax.Event(steady),
        adjoint=diffrax.ImplicitAdjoint(linear_solver=linear_solver),
        max_steps=1000,
    )
    return solution.ys[0]


COUPLING = np.array([[2.0, 0.5], [-0.3, 3.0]])
STEADY = np.array([0.4, -0.3])


@pytest.mark.parametrize(
    "linear_solver",
    [pj.QR(), pj.SVD(), pj.Normal(pj.CG(1e-12, 1e-12))],
    ids=["QR", "SVD", "Normal(CG)"],
)
def test_gradient_of_a_steady_state_is_right(linear_solver):
    field = lambda t, y, inflow: inflow - COUPLING @ y - y**3
    inflow = COUPLING @ STEADY + STEADY**3
    function = lambda inflow: _steady_state(field, jnp.zeros(2), inflow, linear_solver)
    got = jit(jax.jacrev(function))(inflow)
    truth = np.linalg.inv(COUPLING + np.diag(3 * STEADY**2))
    assert_close(got, truth, 1e-8)


@pytest.mark.parametrize(
    "linear_solver",
    [pj.SVD(), pj.AutoLinearSolver(well_posed=False)],
    ids=["SVD", "Auto(False)"],
)
def test_gradient_of_a_singular_steady_state_has_least_norm(linear_solver):
    # y₀ = θ y₁ in the end; of the ray (θ, 1) only the direction is determined.
    field = lambda t, y, theta: jnp.array([-1.0, 1.0]) * (y[0] - theta * y[1])
    start, theta = jnp.array([0.3, 1.2]), 0.7
    function = lambda theta: _steady_state(field, start, theta, linear_solver)
    got = jit(jax.jacrev(function))(theta)
    length = np.linalg.norm(1.5 / (1 + theta) * np.array([theta, 1.0]))
    truth = length * np.array([1.0, -theta]) * (1 + theta**2) ** -1.5
    assert_close(got, truth, 1e-8)
