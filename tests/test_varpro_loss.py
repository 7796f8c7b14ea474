"""Robust losses and counts: the fit is that of SciPy in all parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as spo
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj


TIMES = jnp.linspace(0, 5, 60)
START = np.array([0.4, 2.5])
LOSSES = ["soft_l1", "huber", "cauchy", "arctan"]
SCALE = 0.05
SLOW = pytest.mark.slow  # a program each


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


def _data():
    rng = np.random.default_rng(0)
    exact = np.exp(-np.outer(TIMES, [0.5, 3.0]))
    data = exact @ np.array([2.0, 1.0]) + 0.02 * rng.standard_normal(60)
    data[[5, 20, 33]] += [1.0, -0.7, 1.5]
    counts = rng.poisson(exact @ np.array([400.0, 300.0])).astype(float)
    return data, rng.uniform(0.5, 2, 60), counts, rng.standard_normal(60)


DATA, WEIGHTS, COUNTS, DIRECTION = _data()


def fit(data, **keywords):
    return pj.varpro(decays, data, START, TIMES, f_scale=SCALE, **keywords)


def full_residual(p, data=DATA):
    return WEIGHTS * (data - np.exp(-np.outer(TIMES, p[:2])) @ p[2:])


def newton(cost, p):
    """To the last digit."""
    cost = jax.jit(cost)
    for _ in range(5):
        hessian, gradient = jax.hessian(cost)(p), jax.grad(cost)(p)
        p = p - np.linalg.solve(hessian, gradient)
    return p


def rho_of(loss):
    def huber(z):
        return jnp.where(z > 1, 2 * jnp.sqrt(z) - 1, z)

    return {
        "soft_l1": lambda z: 2 * (jnp.sqrt(1 + z) - 1),
        "huber": huber,
        "cauchy": jnp.log1p,
        "arctan": jnp.arctan,
    }[loss]


@SLOW
@pytest.mark.parametrize("loss", LOSSES)
def test_robust_fit_is_that_of_all_parameters_by_scipy(loss):
    got = fit(DATA, weights=WEIGHTS, loss=loss)
    tolerances = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 2000}
    expected = spo.least_squares(
        full_residual, [0.5, 3, 2, 1], "cs", loss=loss, f_scale=SCALE, **tolerances
    )

    def cost(p):
        r = WEIGHTS * (DATA - jnp.exp(-jnp.outer(TIMES, p[:2])) @ p[2:])
        return 0.5 * SCALE**2 * jnp.sum(rho_of(loss)((r / SCALE) ** 2))

    assert cases.successful(got)
    assert_close(got.cost, expected.cost, 1e-10)
    assert_close(got.cost, cost(cases.unknowns(got)), 1e-12)
    # SciPy's own point is good to half of the digits of its cost.
    assert_close(cases.unknowns(got), newton(cost, expected.x), 1e-8)


@SLOW
@pytest.mark.parametrize("rows", [1, 3])
def test_function_is_that_of_its_name(rows):
    def soft_l1(z):
        value = 2 * (jnp.sqrt(1 + z) - 1)
        return value if rows == 1 else jnp.stack([value, 1 / jnp.sqrt(1 + z), 0 * z])

    got = fit(DATA, weights=WEIGHTS, loss=soft_l1)
    want = fit(DATA, weights=WEIGHTS, loss="soft_l1")
    assert_close(cases.unknowns(got), cases.unknowns(want), 1e-9)


@SLOW
@pytest.mark.parametrize("loss", ["soft_l1", "cauchy"])
def test_derivative_is_that_of_refits_to_second_order(loss):
    def unknowns(data):
        return cases.unknowns(fit(data, weights=WEIGHTS, loss=loss))

    data, h = jnp.asarray(DATA), 1e-4
    solve = jit(unknowns)
    slope = lambda data: jax.jvp(unknowns, (data,), (jnp.asarray(DIRECTION),))[1]
    first = jit(slope)
    # Of fourth order in h, since h² is not small beside 1e-6.
    along = lambda f, h: (f(data + h * DIRECTION) - f(data - h * DIRECTION)) / (2 * h)
    refits = (4 * along(solve, h / 2) - along(solve, h)) / 3
    assert_close(first(data), refits, 1e-6)
    reverse = jit(jax.jacrev(unknowns))(data)
    assert_close(reverse @ DIRECTION, first(data), 1e-9)
    second = jit(lambda data: jax.jvp(slope, (data,), (jnp.asarray(DIRECTION),))[1])
    refits = (4 * along(first, h / 2) - along(first, h)) / 3
    assert_close(second(data), refits, 1e-5)


@SLOW
def test_derivative_with_respect_to_the_size_of_outliers_is_that_of_refits():
    def unknowns(size):
        loss = {"loss": "soft_l1", "f_scale": size, "weights": WEIGHTS}
        return cases.unknowns(pj.varpro(decays, DATA, START, TIMES, **loss))

    size, h = jnp.array(SCALE), 1e-3 * SCALE
    forward, reverse = jax.jit(jax.jacfwd(unknowns)), jax.jit(jax.jacrev(unknowns))

    def equations(p):  # of the minimum, by all unknowns and f

        def cost(p, size):
            residual = WEIGHTS * (DATA - decays(p[:2], TIMES) @ p[2:])
            z = (residual / size) ** 2
            return 0.5 * size**2 * jnp.sum(rho_of("soft_l1")(z))

        return jax.hessian(cost)(p, size), jax.jacobian(jax.grad(cost), 1)(p, size)

    hessian, mixed = equations(unknowns(size))
    expected = -np.linalg.solve(hessian, mixed)
    assert_close(forward(size), expected, 1e-6)
    assert_close(reverse(size), expected, 1e-6)
    refits = (unknowns(size + h) - unknowns(size - h)) / (2 * h)
    assert_close(refits, expected, 1e-3)  # of few digits, as an independent sign


@SLOW
def test_complex_data_are_fitted_by_their_magnitudes_and_have_no_derivative():
    data = jnp.asarray(DATA + 0.5j * DATA[::-1])
    theta = lambda data: fit(data, loss="soft_l1").theta
    got = fit(data, loss="soft_l1")

    def cost(p):
        shapes = decays(p[:2], TIMES).astype(complex)
        residual = data - shapes @ jax.lax.complex(p[2:4], p[4:])
        z = (residual.real**2 + residual.imag**2) / SCALE**2
        return jnp.sum(rho_of("soft_l1")(z))

    c = got.coefficients
    found = jnp.concatenate([got.theta, c.real, c.imag])
    assert np.max(np.abs(jax.grad(cost)(found))) < 1e-6
    with pytest.raises(TypeError, match="no derivative for complex data. Fit real and"):
        jax.jvp(theta, (data,), (data,))


@SLOW
def test_counts_are_fitted_by_their_likelihood():
    got = fit(COUNTS, loss="poisson")

    def cost(p):
        mean = jnp.exp(-jnp.outer(TIMES, p[:2])) @ p[2:]
        return jnp.sum(mean - COUNTS * jnp.log(mean))

    expected = newton(cost, cases.unknowns(got))
    assert cases.successful(got)
    assert_close(cases.unknowns(got), expected, 1e-9)
    # Fisher's information of the mean.
    mean, jacobian = (
        f(lambda p: jnp.exp(-jnp.outer(TIMES, p[:2])) @ p[2:])(expected)
        for f in (lambda g: g, jax.jacfwd)
    )
    covariance = np.linalg.inv(jacobian.T @ (jacobian / mean[:, None]))
    errors = got.statistics(absolute_sigma=True)
    assert_close(errors.theta_covariance, covariance[:2, :2], 1e-7)
    deviance = COUNTS * np.log(np.where(COUNTS > 0, COUNTS, 1) / mean) - (COUNTS - mean)
    assert_close(got.cost, np.sum(deviance), 1e-10)


@SLOW
def test_two_columns_have_weights_of_their_own():
    data = np.stack([DATA, DATA[::-1] + 1], axis=1)
    got = fit(data, loss="huber")

    def cost(p):
        r = data - jnp.exp(-jnp.outer(TIMES, p[:2])) @ p[2:].reshape(2, 2).T
        return jnp.sum(rho_of("huber")((r / SCALE) ** 2))

    assert cases.successful(got)
    gradient = jax.grad(cost)(cases.unknowns(got))
    assert np.abs(gradient).max() < 1e-7 * float(cost(cases.unknowns(got)))


@SLOW
def test_bounds_and_priors_hold_beside_a_loss():
    """At the point where it ends, to first order."""
    got = fit(
        DATA,
        loss="soft_l1",
        bounds=(np.array([0.4, 2.5]), np.array([9.0, 3.0])),
        prior=(np.array([0.45, 0.0]), np.array([1e3, 0.0])),
        coefficient_bounds=(0.0, 1.7),
    )
    assert cases.successful(got)
    np.testing.assert_array_equal(got.held, [0, -1])
    np.testing.assert_array_equal(got.held_coefficients, [1, 0])

    def cost(p):
        r = DATA - jnp.exp(-jnp.outer(TIMES, p[:2])) @ p[2:]
        robust = SCALE**2 * jnp.sum(rho_of("soft_l1")((r / SCALE) ** 2))
        return 0.5 * robust + 0.5 * 1e3 * (p[0] - 0.45) ** 2

    p = cases.unknowns(got)
    assert_close(got.cost, cost(p), 1e-11)
    gradient = jax.grad(cost)(p)
    assert np.abs(gradient[np.array([0, 3])]).max() < 1e-7  # of the free ones
    assert gradient[1] > 0
    assert gradient[2] < 0


@SLOW
def test_members_of_a_batch_and_starts_have_the_loss():
    one = fit(DATA, loss="huber")
    fits = pj.varpro_batch(
        decays,
        np.stack([DATA, 2 * DATA, DATA]),
        START,
        TIMES,
        loss="huber",
        f_scale=SCALE,
    )
    assert_close(fits.theta[0], one.theta, 1e-9)
    expected = one.statistics().theta_covariance
    assert_close(fits[0].statistics().theta_covariance, expected, 1e-6)
    starts = np.stack([START, 1.1 * START])
    best = pj.varpro_multistart(
        decays, DATA, starts, TIMES, loss="huber", f_scale=SCALE
    ).best
    assert_close(best.residual, one.residual, 1e-7)
    assert_close(best.statistics().theta_covariance, expected, 1e-6)
    with pytest.raises(ValueError, match="another loss than squares"):
        one.profile("theta[0]")


@SLOW
def test_fixed_arrays_are_taken_by_batches_and_starts():
    fixed = np.array([True, False])
    one = pj.varpro(decays, DATA, START, TIMES, fixed=fixed)
    fits = pj.varpro_batch(decays, DATA[None], START, TIMES, fixed=fixed)
    assert_close(fits.theta[0], one.theta, 1e-9)
    starts = pj.varpro_multistart(decays, DATA, START[None], TIMES, fixed=fixed)
    assert_close(starts.best.theta, one.theta, 1e-9)


@pytest.mark.slow  # two seconds
def test_linear_loss_is_the_same_program():
    def program(**keywords):
        data = jax.ShapeDtypeStruct((60,), float)
        solve = lambda y: pj.varpro(decays, y, START, TIMES, throw=False, **keywords)
        return str(jax.make_jaxpr(lambda y: solve(y).theta)(data))

    assert program(loss="linear", f_scale=3.0) == program()


@SLOW
def test_start_near_a_minimum_of_a_loss_that_is_not_convex_ends_there():
    """Where a search of squares from that start would leave it: they find 0.1 and 4.2."""
    rng, times = np.random.default_rng(3), np.linspace(0, 20, 240)

    def basis(theta, times):
        return jnp.column_stack([decays(1 / theta, times), jnp.ones_like(times)])

    truth, c = np.array([1.2, 6.0]), np.array([3.0, 2.0, 0.4])
    struck = rng.random(240) < 0.1
    strikes = np.where(struck, rng.exponential(1.0, 240) + 0.3, 0)
    data = np.asarray(basis(truth, times)) @ c + strikes
    data += 0.03 * rng.standard_normal(240)

    def residual(p):
        return np.asarray(basis(p[:2], times)) @ p[2:] - data

    scipy = spo.least_squares(
        residual, [*truth, *c], loss="cauchy", f_scale=0.045, xtol=1e-15, ftol=1e-15
    )
    found = pj.varpro(basis, data, truth, times, loss="cauchy", f_scale=0.045)
    assert abs(scipy.x[0] - 1.2) < 0.1
    assert_close(found.theta, scipy.x[:2], rtol=1e-5)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("mistake", "match"),
    [
        ({"loss": "l1"}, r"loss=...\)` got 'l1'. Pass 'linear'"),
        ({"loss": 3}, r"loss=...\)` got 3. Pass 'linear'"),
        ({"loss": "huber", "f_scale": 0.0}, r"f_scale=...\)` got 0.0. Pass a positive"),
        ({"loss": "huber", "f_scale": np.ones(2)}, r"of shape \(2,\). Pass a positive"),
        ({"loss": "poisson", "data": -COUNTS}, "data that are no counts"),
    ],
)
def test_mistake_raises(mistake, match):
    arguments = {"data": DATA, **mistake}
    with pytest.raises(ValueError, match=match):
        pj.varpro(decays, theta0=START, args=TIMES, **arguments)
