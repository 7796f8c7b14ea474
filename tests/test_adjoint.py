"""`PseudoinverseAdjoint`: minimum-norm derivatives, singular problems or not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from checks import assert_close, derivatives, jit

import pseudojvp as pj


DEFAULT = pj.PseudoinverseAdjoint()


def on_a_sphere(theta, adjoint=DEFAULT):
    """A root of ‖y‖² = θ in the plane, found along a ray: y = √θ (0.6, 0.8).

    J = 2yᵀ is wide, and its null space is tangent to the circle.
    """
    newton = optx.Newton(1e-13, 1e-13, linear_solver=pj.QR())
    function = lambda y, theta: jnp.array([y @ y - theta])
    start = jnp.array([0.6, 0.8])
    return optx.root_find(function, newton, start, theta, adjoint=adjoint).value


def sphere_truth(theta):
    """y, y', y'', y''' along the ray."""
    factors = [theta**0.5, theta**-0.5 / 2, -(theta**-1.5) / 4, theta**-2.5 * 3 / 8]
    return [factor * np.array([0.6, 0.8]) for factor in factors]


def on_a_ray(theta, adjoint=DEFAULT):
    """A fixed point with y₀ = θ y₁: any multiple of (θ, 1), the one with y₀ + y₁ = 3/2.

    J = f' − 1 is square, of rank 1, and its null space (θ, 1) turns with θ.
    """
    weights = jnp.array([-0.5, 0.5])
    function = lambda y, theta: y + weights * (y[0] - theta * y[1])
    iteration = optx.FixedPointIteration(1e-14, 1e-14)
    start = jnp.array([0.3, 1.2])
    return optx.fixed_point(function, iteration, start, theta, adjoint=adjoint).value


def ray_truth(theta):
    """y, y', y'' with y' orthogonal to the ray: y(t) = r (t, 1)/√(1 + t²) at t = θ."""
    y = 1.5 * np.array([theta, 1.0]) / (1 + theta)
    r, t = np.linalg.norm(y), theta
    first = np.array([1.0, -t]) * (1 + t**2) ** -1.5
    second = np.array([-3 * t, 2 * t**2 - 1]) * (1 + t**2) ** -2.5
    return [y, r * first, r * second]


def minimum(theta, adjoint=DEFAULT):
    """A minimum of (s − θ)² + s⁴, s = y₀ + y₁: a Hessian of rank 1, semidefinite."""

    def loss(y, theta):
        total = jnp.sum(y)
        return (total - theta) ** 2 + total**4

    bfgs = optx.BFGS(1e-12, 1e-12)
    start = jnp.array([0.3, 0.1])
    tags = frozenset({lx.positive_semidefinite_tag})
    return optx.minimise(loss, bfgs, start, theta, adjoint=adjoint, tags=tags).value


def minimum_truth(theta):
    """y' = (s', s')/2 with s' from 2 (s − θ) + 4 s³ = 0."""
    [s] = [z.real for z in np.roots([4, 0, 2, -2 * theta]) if abs(z.imag) < 1e-9]
    return np.full(2, 0.5 / (1 + 6 * s**2))


SUM = np.array([[1.0, 0.5], [-0.4, 2.0], [0.7, 0.3], [1.5, -1.0]])
MERGE = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]])
DATA = np.array([0.5, -0.3, 0.8, 0.1])


def fitted(data, adjoint=DEFAULT):
    """The least-norm fit of tanh(SUM MERGE y), with a residual that stays."""

    def residual(y, data):
        return jnp.tanh(SUM @ (MERGE @ jnp.stack([y["a"], *y["b"]]))) - data

    method = optx.GaussNewton(1e-14, 1e-14, linear_solver=pj.SVD())
    start = {"a": jnp.array(0.0), "b": jnp.zeros(2)}
    fit = optx.least_squares(residual, method, start, data, adjoint=adjoint)
    return jnp.stack([fit.value["a"], *fit.value["b"]])


def fitted_truth(data):
    """Newton's method for the two numbers MERGE y, and the shortest y for them."""
    z = np.zeros(2)
    for _ in range(30):
        fit = np.tanh(SUM @ z)
        slope, residual = 1 - fit**2, fit - data
        curvature = slope**2 - 2 * residual * fit * slope
        hessian = SUM.T @ (curvature[:, None] * SUM)
        z = z - np.linalg.solve(hessian, SUM.T @ (slope * residual))
    return np.linalg.pinv(MERGE) @ z


def differences(function, at, direction, step=1e-3):
    """A central difference of fourth order, with an error near 1e-12."""
    value = lambda t: function(at + t * direction)
    near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return (8 * near - far) / (12 * step)


def assert_all_close(got, want, rtol):
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, rtol)


@pytest.mark.slow  # a program of three orders
def test_path_of_a_wide_root_has_derivatives_of_three_orders():
    got = jit(derivatives(on_a_sphere, 3))(2.0)
    assert_all_close(got, sphere_truth(2.0), 1e-11)


@pytest.mark.slow  # one more program
def test_path_of_a_singular_fixed_point_has_derivatives_of_two_orders():
    got = jit(derivatives(on_a_ray, 2))(0.7)
    assert_all_close(got, ray_truth(0.7), 1e-11)


@pytest.mark.ci("*")
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivative_is_the_same_in_every_mode(outer, inner):
    assert_close(jit(outer(inner(on_a_ray)))(0.7), ray_truth(0.7)[2], 1e-11)


@pytest.mark.slow  # others show reverse mode by default
def test_reverse_mode_over_a_batch_is_right():
    thetas = jnp.array([0.4, 1.0, 2.5])
    got = jit(jax.vmap(jax.jacrev(on_a_sphere)))(thetas)
    assert_close(got, np.stack([sphere_truth(t)[1] for t in thetas]), 1e-11)


@pytest.mark.slow  # one more program
def test_rank_deficient_fit_has_the_tangent_of_its_least_norm():
    direction = np.array([1.0, 0.5, -1.0, 2.0])
    got = jit(lambda data: jax.jvp(fitted, (data,), (direction,)))(DATA)
    truth = fitted_truth(DATA), differences(fitted_truth, DATA, direction)
    assert_all_close(got, truth, 1e-9)


@pytest.mark.slow  # its tangent is tested by default
def test_rank_deficient_fit_has_the_gradient_of_its_least_norm():
    weights = np.array([1.0, -2.0, 0.5])
    got = jit(jax.grad(lambda data: weights @ fitted(data)))(DATA)
    along = [differences(fitted_truth, DATA, unit) for unit in np.eye(4)]
    assert_close(got, np.stack(along) @ weights, 1e-9)


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [
        pj.AutoLinearSolver(well_posed=False),
        pj.SVD(),
        lx.SVD(),
        pj.Normal(pj.SVD()),
        pj.CG(1e-12, 1e-12, well_posed=False),
        pj.Normal(pj.CG(1e-12, 1e-12, well_posed=False)),
    ],
    ids=["Auto(False)", "SVD", "lx.SVD", "Normal(SVD)", "CG(False)", "Normal(CG(False))"],
)
def test_solver_for_any_rank_serves_a_singular_hessian(solver):
    adjoint = pj.PseudoinverseAdjoint(solver)

    @jit
    def both(theta):
        function = lambda theta: minimum(theta, adjoint)
        return jax.jacfwd(function)(theta), jax.jacrev(function)(theta)

    assert_all_close(both(0.9), [minimum_truth(0.9)] * 2, 1e-9)


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.Normal(lx.Cholesky()), pj.Normal(pj.CG(1e-12, 1e-12))],
    ids=["QR", "Normal(Cholesky)", "Normal(CG)"],
)
def test_solver_for_full_rank_serves_a_wide_root(solver):
    adjoint = pj.PseudoinverseAdjoint(solver)
    got = jit(derivatives(lambda t: on_a_sphere(t, adjoint), 2))(2.0)
    assert_all_close(got, sphere_truth(2.0)[:3], 1e-10)


@pytest.mark.slow  # a Hessian through two loops
def test_what_all_roots_share_has_its_one_hessian():
    def amplitude(theta):
        function = lambda y, theta: jnp.stack([y[0] * y[1] - theta[0] * theta[1] ** 2])
        newton = optx.Newton(1e-13, 1e-13, linear_solver=pj.QR())
        start = jnp.array([1.0, 3.0])
        y = optx.root_find(function, newton, start, theta, adjoint=DEFAULT).value
        return y[0] * y[1]

    got = jit(jax.hessian(amplitude))(jnp.array([2.0, 1.5]))
    assert_close(got, np.array([[0.0, 3.0], [3.0, 4.0]]), 1e-10)


@pytest.mark.slow  # a second
def test_parameter_that_the_function_closes_over_is_differentiated():
    def root(theta):
        function = lambda y, _: y**3 - theta
        newton = optx.Newton(1e-12, 1e-12)
        return optx.root_find(function, newton, jnp.array(1.0), adjoint=DEFAULT).value

    np.testing.assert_allclose(jit(jax.grad(root))(8.0), 1 / 12, rtol=1e-11)


def test_first_guess_has_derivative_zero():
    def root(start):
        function = lambda y, _: jnp.array([y @ y - 2.0])
        newton = optx.Newton(1e-12, 1e-12, linear_solver=pj.QR())
        return optx.root_find(function, newton, start, adjoint=DEFAULT).value

    got = jit(jax.jacfwd(root))(jnp.array([0.6, 0.8]))
    np.testing.assert_array_equal(got, np.zeros((2, 2)))


def pinned(coefficients, adjoint):
    """The root of c₀ (y₀ − c₁) = 0, y₁ = 3: singular at c₀ = 0, where y₀ stays 1."""

    def function(y, c):
        return jnp.stack([c[0] * (y[0] - c[1]), y[1] - 3])

    newton = optx.Newton(1e-12, 1e-12, linear_solver=pj.SVD())
    start = jnp.array([1.0, 2.0])
    solution = optx.root_find(function, newton, start, coefficients, adjoint=adjoint)
    return solution.value[0]


FULL_RANK = pj.PseudoinverseAdjoint(pj.QR(), throw=False)
REGULAR, SINGULAR = jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0])


@pytest.mark.default("jacrev")
@pytest.mark.ci("*")
@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_failed_derivative_raises_by_default(derivative):
    adjoint = pj.PseudoinverseAdjoint(pj.QR())
    function = eqx.filter_jit(derivative(lambda c: pinned(c, adjoint)))
    with pytest.raises(RuntimeError, match="solve of a derivative with `QR"):
        function(SINGULAR)


@pytest.mark.slow  # a second
def test_second_derivative_alone_of_a_failed_first_is_nan():
    """No first derivative is asked for that would say so."""

    def root(theta):
        # J = [[1, 1], [1, 1 + θ]] is regular for the solver that finds the root only.
        function = lambda y, t: jnp.stack([y[0] + y[1] - t, y[0] + (1 + t) * y[1] - 1])
        newton = optx.Newton(1e-12, 1e-12, linear_solver=pj.SVD())
        start = jnp.array([0.5, 0.5])
        return optx.root_find(function, newton, start, theta, adjoint=FULL_RANK).value

    second = jit(lambda t: derivatives(root, 2)(t)[2])
    assert np.isfinite(second(1.0)).all()
    assert np.isnan(second(1e-17)).all()


@pytest.mark.ci("*")
@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_failed_derivative_without_throw_is_nan_in_its_member_only(derivative):
    function = jax.vmap(derivative(lambda c: pinned(c, FULL_RANK)))
    got = jit(function)(jnp.stack([REGULAR, SINGULAR]))
    np.testing.assert_allclose(got, [[0.0, 1.0], [np.nan, np.nan]], atol=1e-12)


def test_value_does_not_depend_on_whether_its_derivative_fails():
    np.testing.assert_allclose(jit(lambda c: pinned(c, FULL_RANK))(SINGULAR), 1.0)


def test_reverse_mode_through_aux_is_an_error():
    def aux(theta):
        function = lambda y, theta: (y - theta, y * theta)
        newton = optx.Newton(1e-12, 1e-12)
        start = jnp.array(1.0)
        return optx.root_find(
            function, newton, start, theta, has_aux=True, adjoint=DEFAULT
        ).aux

    with pytest.raises(RuntimeError, match="All but `value`"):
        jax.grad(aux)(2.0)


def test_derivative_by_a_number_within_the_solver_is_an_error():
    def root(scale):
        adjoint = pj.PseudoinverseAdjoint(pj.Neumann(5, scale=scale))
        return minimum(0.9, adjoint)

    with pytest.raises(RuntimeError, match="cannot be autodifferentiated"):
        jax.jacfwd(root)(0.1)


@pytest.mark.untyped
def test_solver_that_is_none_is_an_error():
    with pytest.raises(TypeError, match="Pass an instance of a solver"):
        pj.PseudoinverseAdjoint(pj.SVD)
