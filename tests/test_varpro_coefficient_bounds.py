"""Coefficients between bounds: the fit is that of SciPy's `lsq_linear` in its search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as spo
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj


pytestmark = pytest.mark.slow  # programs of their own

TIMES = np.linspace(0, 5, 60)
START = np.array([0.4, 2.5])
SPECTRA = np.array([[2.0, 1, 0, 1], [1, 0, 1, 0.5], [0, 0.2, 0, 0.1], [-0.1, 0, 0.1, 0]])
DIRECTION = np.random.default_rng(1).standard_normal((60, 4))
NONNEGATIVE = 0.0, np.inf


def basis(rates, times):
    rest = jnp.stack([jnp.ones_like(times), times], axis=1)
    return jnp.concatenate([jnp.exp(-jnp.outer(times, rates)), rest], axis=1)


def _data():
    noise = 0.02 * np.random.default_rng(0).standard_normal((60, 4))
    phi = np.exp(-np.outer(TIMES, [0.5, 3.0]))
    return np.column_stack([phi, np.ones(60), TIMES]) @ SPECTRA + noise


DATA = _data()
WEIGHTS = np.random.default_rng(2).uniform(0.5, 2.0, (60, 4))


def fit(data, weights=None, bounds=NONNEGATIVE, **keywords):
    return pj.varpro(
        basis,
        data,
        START,
        jnp.asarray(TIMES),
        weights=weights,
        coefficient_bounds=bounds,
        **keywords,
    )


def by_scipy(data, weights, lower=0.0, upper=np.inf):
    """θ by differences of residuals that `lsq_linear` leaves."""

    def parts(rates):
        phi = np.column_stack([np.exp(-np.outer(TIMES, rates)), np.ones(60), TIMES])
        for y, w in zip(data.T, weights.T, strict=True):
            a = w[:, None] * phi
            found = spo.lsq_linear(a, w * y, (lower, upper), method="bvls", tol=1e-15)
            yield found.x, w * y - a @ found.x

    residual = lambda rates: np.concatenate([r for _, r in parts(rates)])
    tolerances = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    found = spo.least_squares(residual, START, "3-point", **tolerances)
    return found.x, np.stack([c for c, _ in parts(found.x)], axis=1), found.cost


@pytest.mark.parametrize("weights", [None, WEIGHTS[:, 0], WEIGHTS])
def test_nonnegative_fit_is_that_of_scipy(weights):
    got = fit(DATA, weights)
    full = np.ones_like(DATA) if weights is None else weights.reshape(60, -1)
    full = np.broadcast_to(full, DATA.shape)
    theta, coefficients, cost = by_scipy(DATA, full)
    assert cases.successful(got)
    assert_close(got.cost, cost, 1e-12)
    assert_close(got.theta, theta, 1e-6)
    assert_close(got.coefficients, coefficients, 1e-6)
    held = got.held_coefficients == -1
    assert held.any()
    assert not held.all()
    np.testing.assert_array_equal(held, got.coefficients == 0)
    np.testing.assert_array_equal(got.rank, 4 - held.sum(axis=0))


def test_bounds_on_both_sides_are_those_of_scipy():
    upper = np.array([1.5, 0.8, 0.15, 0.05])
    got = fit(DATA, bounds=(-0.05, upper))
    theta, coefficients, cost = by_scipy(DATA, np.ones_like(DATA), -0.05, upper)
    assert_close(got.cost, cost, 1e-11)  # SciPy's search is by differences
    assert_close(got.theta, theta, 1e-5)
    assert_close(got.coefficients, coefficients, 1e-5)
    assert set(np.unique(got.held_coefficients)) == {-1, 0, 1}


def test_kaufman_and_exact_jacobian_end_at_the_same_point():
    assert_close(fit(DATA, jacobian="kaufman").theta, fit(DATA).theta, 1e-8)


def test_bounds_that_do_not_bind_change_nothing():
    free = pj.varpro(basis, DATA, START, jnp.asarray(TIMES))
    got = fit(DATA, bounds=(-10.0, 10.0))
    assert_close(got.theta, free.theta, 1e-10)
    assert_close(got.coefficients, free.coefficients, 1e-8)
    errors, expected = got.statistics(), free.statistics()
    assert errors.degrees_of_freedom == expected.degrees_of_freedom
    assert_close(errors.theta_covariance, expected.theta_covariance, 1e-7)
    assert_close(errors.coefficient_covariance, expected.coefficient_covariance, 1e-7)


def test_jacobian_of_the_residual_is_that_of_differences():
    residual = pj.projected_residual(basis, DATA, coefficient_bounds=NONNEGATIVE)
    times = jnp.asarray(TIMES)
    given = jit(residual.jacobian)(jnp.asarray(START), times)
    value = jit(lambda theta: residual(theta, times))
    h = 1e-6
    for i, unit in enumerate(np.eye(2)):
        difference = (value(START + h * unit) - value(START - h * unit)) / (2 * h)
        assert_close(given[..., i], difference, 1e-7)
    np.testing.assert_array_equal(
        residual.coefficients(jnp.asarray(START), times) >= 0, True
    )


def test_derivative_is_that_of_refits():
    def unknowns(data):
        return cases.unknowns(fit(data))

    solve = jit(unknowns)
    h = 1e-5
    refits = (solve(DATA + h * DIRECTION) - solve(DATA - h * DIRECTION)) / (2 * h)
    forward = jit(lambda d: jax.jvp(unknowns, (jnp.asarray(DATA),), (d,))[1])(DIRECTION)
    assert_close(forward, refits, 1e-6)
    reverse = jit(jax.jacrev(unknowns))(DATA)
    assert_close(jnp.einsum("qmk,mk->q", reverse, DIRECTION), forward, 1e-9)


def test_derivative_with_respect_to_a_bound_that_binds_is_that_of_refits():
    unknowns = lambda upper: cases.unknowns(fit(DATA, bounds=(0.0, upper)))
    upper, h = jnp.array([9.0, 0.8, 9.0, 9.0]), 1e-6 * np.eye(4)[1]
    refits = (jit(unknowns)(upper + h) - jit(unknowns)(upper - h)) / 2e-6
    assert_close(jit(jax.jacfwd(unknowns))(upper)[:, 1], refits, 1e-6)


@pytest.mark.slow  # programs of robust fits and a derivative
def test_derivative_of_a_robust_fit_with_respect_to_a_bound_is_that_of_refits():
    robust = {"loss": "soft_l1", "f_scale": 0.1}
    unknowns = lambda upper: cases.unknowns(fit(DATA, bounds=(0.0, upper), **robust))
    upper, h = jnp.array([9.0, 0.8, 9.0, 9.0]), 1e-4 * np.eye(4)[1]
    refits = (jit(unknowns)(upper + h) - jit(unknowns)(upper - h)) / 2e-4
    assert np.max(np.abs(refits)) > 0.5
    assert_close(jit(jax.jacfwd(unknowns))(upper)[:, 1], refits, 1e-5)


def test_all_coefficients_at_their_bound_are_an_answer_of_rank_zero():
    got = fit(-1 - DATA[:, 1], throw=False)
    np.testing.assert_array_equal(got.coefficients, 0)
    assert got.rank == 0
    assert cases.successful(got)
    assert_close(got.residual, -1 - DATA[:, 1], 1e-14)


def test_members_of_a_batch_are_fits_of_their_own():
    fits = pj.varpro_batch(
        basis, DATA.T, START, jnp.asarray(TIMES), coefficient_bounds=NONNEGATIVE
    )
    one = fit(DATA[:, 3])
    assert_close(fits.theta[3], one.theta, 1e-7)
    np.testing.assert_array_equal(fits.held_coefficients[3], one.held_coefficients)
    errors, expected = fits[3].statistics(), one.statistics()
    assert_close(errors.theta_covariance, expected.theta_covariance, 1e-6)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("mistake", "error", "match"),
    [
        ({"bounds": (1.0, 0.0)}, ValueError, "a lower bound above the upper"),
        ({"bounds": (np.nan, 0.0)}, ValueError, "or NaN. Pass lower ≤ upper"),
        ({"bounds": (np.inf, np.inf)}, ValueError, r"a lower one of inf"),
        ({"bounds": (np.zeros(3), 1.0)}, ValueError, r"shape \(3,\) for 4 coefficients"),
        ({"bounds": 0.0}, TypeError, "got float. Pass a pair"),
        ({"bounds": (1j, 2.0)}, TypeError, "got complex128. Pass real numbers"),
        ({"solver": pj.QR()}, ValueError, r"solver=QR\(...\)\)`: this solver takes all"),
        ({"data": 1j * DATA}, TypeError, "got complex data"),
    ],
)
def test_mistake_raises(mistake, error, match):
    arguments = {"data": DATA, **mistake}
    with pytest.raises(error, match=match):
        jax.eval_shape(lambda: fit(**arguments).theta)


def test_errors_are_those_without_the_columns_of_what_is_held():
    """What is held has none, exactly: rounding was normalised into correlations."""
    x = np.linspace(0, 1, 40)
    peak = lambda centre: jnp.exp(-(((x - centre) / 0.1) ** 2))

    def peaks(centre, used):
        columns = [peak(centre), peak(0.8), jnp.ones_like(x), jnp.asarray(x)]
        return jnp.stack([columns[j] for j in used], axis=1)

    noise = 0.01 * np.random.default_rng(0).standard_normal(40)
    y = peaks(0.3, range(4)) @ np.array([1.0, -1.0, 0.5, 0.2]) + noise
    lower = np.array([0, 0, -np.inf, -np.inf])
    bounded = pj.varpro(
        lambda centre, _: peaks(centre, range(4)),
        y,
        0.32,
        coefficient_bounds=(lower, np.inf),
    )
    without = pj.varpro(lambda centre, _: peaks(centre, (0, 2, 3)), y, bounded.theta)
    got, want = bounded.statistics(), without.statistics()
    deviations = np.insert(want.coefficient_standard_deviation, 1, 0)
    assert_close(got.coefficient_standard_deviation, deviations, 1e-6)
    assert got.coefficient_standard_deviation[1] == 0
    assert not np.any(got.coefficient_covariance[:, 1])
    correlation = np.insert(np.insert(want.correlation, 2, 0, 0), 2, 0, 1)
    np.testing.assert_allclose(got.correlation, correlation, atol=1e-6)
    named = {name for pair in bounded.summary().correlations for name in pair[:2]}
    assert named >= {"c[0]", "c[2]"}
    assert "c[1]" not in named
