"""Priors on θ and c: the fit is SciPy's of all parameters with rows for what is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as spo
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj


TIMES = jnp.linspace(0, 5, 30)
START = np.array([0.2, 1.0])
MEAN, PRECISION = np.array([0.4, 2.5]), np.array([[2.0, 0.5], [0.5, 1.0]])
C_MEAN = np.array([[1.0, 1, 1], [2, 2, 2]])
C_PRECISIONS = {
    "diagonal": np.array([0.3, 0.7]),
    "matrix": np.array([[0.3, 0.1], [0.1, 0.7]]),
}


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


def _data(columns):
    rng = np.random.default_rng(0)
    exact = np.exp(-np.outer(TIMES, [0.5, 3.0])) @ rng.uniform(1, 3, (2, columns))
    return exact + 0.02 * rng.standard_normal((30, columns))


DATA = _data(3)
DIRECTION = np.random.default_rng(1).standard_normal(DATA.shape)
WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, 30)


def fit(data=DATA, **keywords):
    return pj.varpro(decays, data, START, TIMES, **keywords)


def by_scipy(data, mean, c_precision):
    """All parameters together; with its Jacobian there."""
    columns = data.reshape(30, -1)
    precision = np.diag(c_precision) if c_precision.ndim == 1 else c_precision
    roots = [np.linalg.cholesky(p).T for p in (PRECISION, precision)]

    def residual(p):
        c = p[2:].reshape(2, -1)
        r = WEIGHTS[:, None] * (columns - np.exp(-np.outer(TIMES, p[:2])) @ c)
        of_c = roots[1] @ (c - mean.reshape(2, -1))
        return np.concatenate([r.ravel(), roots[0] @ (p[:2] - MEAN), of_c.ravel()])

    start = np.concatenate([[0.5, 3.0], np.ones(2 * columns.shape[1])])
    tolerances = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    return spo.least_squares(residual, start, "cs", **tolerances)


@pytest.mark.slow  # a program each
@pytest.mark.parametrize("precision", C_PRECISIONS)
@pytest.mark.parametrize("columns", [None, 3])
def test_fit_and_statistics_are_those_of_all_parameters_with_rows(columns, precision):
    first = 0 if columns is None else slice(None)
    data, mean, known = DATA[:, first], C_MEAN[:, first], C_PRECISIONS[precision]
    got = fit(
        data,
        weights=WEIGHTS,
        prior=(MEAN, PRECISION),
        coefficient_prior=(mean, known),
    )
    expected = by_scipy(data, mean, known)
    assert cases.successful(got)
    assert_close(got.cost, expected.cost, 1e-12)
    assert_close(got.theta, expected.x[:2], 1e-6)
    assert_close(got.coefficients.ravel(), expected.x[2:], 1e-6)
    assert got.residual.shape == data.shape
    freedom = len(expected.fun) - len(expected.x)
    covariance = np.linalg.inv(expected.jac.T @ expected.jac)
    covariance *= 2 * expected.cost / freedom
    errors = got.statistics()
    assert errors.degrees_of_freedom == freedom
    assert_close(errors.theta_covariance, covariance[:2, :2], 1e-6)
    deviation = np.sqrt(np.diag(covariance))[2:]
    assert_close(errors.coefficient_standard_deviation.ravel(), deviation, 1e-6)
    assert_close(
        got.predict(TIMES).value, decays(got.theta, TIMES) @ got.coefficients, 1e-12
    )


@pytest.mark.slow  # a program
def test_many_columns_are_compressed_and_the_prior_counts_once():
    data = _data(200)
    got = fit(data, prior=(MEAN, 1e4))
    # With weights for each column they are not.
    each = fit(data, prior=(MEAN, 1e4), weights=np.ones((30, 200)))
    assert_close(got.theta, each.theta, 1e-9)
    assert_close(
        got.statistics().theta_covariance, each.statistics().theta_covariance, 1e-7
    )
    assert got.statistics().degrees_of_freedom == 30 * 200 + 2 - 2 * 200 - 2


@pytest.mark.slow  # a program
def test_precision_of_zero_is_no_prior():
    got, free = fit(prior=(MEAN, 0.0), coefficient_prior=(0.0, 0.0)), fit()
    assert_close(got.theta, free.theta, 1e-9)
    errors, expected = got.statistics(), free.statistics()
    assert errors.degrees_of_freedom == expected.degrees_of_freedom
    assert_close(errors.theta_covariance, expected.theta_covariance, 1e-7)


@pytest.mark.slow  # a program
def test_ridge_makes_more_coefficients_than_data_determinate():
    """Where each is the ridge solution of its θ."""

    def basis(theta, times):
        return jnp.exp(-jnp.outer(times, theta * jnp.arange(1.0, 41.0)))

    y = DATA[:, 0]
    start = np.array(0.3)
    got = pj.varpro(basis, y, start, TIMES, coefficient_prior=(0.0, 0.1), fixed=True)
    phi = np.asarray(basis(start, TIMES))
    ridge = np.linalg.solve(phi.T @ phi + 0.1 * np.eye(40), phi.T @ y)
    assert_close(got.coefficients, ridge, 1e-10)


@pytest.mark.slow  # programs of derivatives
def test_derivatives_with_respect_to_data_and_prior_are_those_of_refits():
    def theta(data, mean):
        return fit(data, prior=(mean, PRECISION), coefficient_prior=(0.0, 0.1)).theta

    solve, h = jit(theta), 1e-5
    data, mean = jnp.asarray(DATA), jnp.asarray(MEAN)
    of_data, of_mean = jit(jax.jacrev(theta, (0, 1)))(data, mean)
    step = h * DIRECTION
    refits = (solve(data + step, mean) - solve(data - step, mean)) / (2 * h)
    assert_close(jnp.einsum("qmk,mk->q", of_data, DIRECTION), refits, 1e-6)
    refits = (solve(data, mean + h) - solve(data, mean - h)) / (2 * h)
    assert_close(of_mean.sum(axis=1), refits, 1e-6)


@pytest.mark.slow  # a program of a batch
def test_members_of_a_batch_have_the_prior():
    fits = pj.varpro_batch(decays, DATA.T, START, TIMES, prior=(MEAN, PRECISION))
    one = fit(DATA[:, 1], prior=(MEAN, PRECISION))
    assert_close(fits.theta[1], one.theta, 1e-9)
    expected = one.statistics().theta_covariance
    assert_close(fits[1].statistics().theta_covariance, expected, 1e-8)
    assert_close(fits.statistics().theta_covariance[1], expected, 1e-8)


@pytest.mark.slow  # a program of many starts
def test_best_of_many_starts_has_the_prior_and_the_bounds():
    keywords = {
        "prior": (MEAN, PRECISION),
        "coefficient_prior": (0.0, 0.1),
        "coefficient_bounds": (0.0, np.inf),
    }
    starts = np.stack([START, 2 * START, START[::-1]])
    found = pj.varpro_multistart(decays, DATA, starts, TIMES, **keywords)
    one = fit(**keywords)
    assert_close(found.best.cost, one.cost, 1e-10)
    assert_close(found.best.residual, one.residual, 1e-6)
    assert_close(
        found.best.statistics().theta_covariance, one.statistics().theta_covariance, 1e-6
    )
    with pytest.raises(ValueError, match="a fit with priors"):
        one.profile("theta[0]")


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("mistake", "error", "match"),
    [
        ({"prior": 3}, TypeError, r"prior=...\)` got int. Pass a pair"),
        ({"prior": (np.nan, 1.0)}, ValueError, "a mean that is NaN or infinite"),
        ({"prior": (0.0, -1.0)}, ValueError, "a precision that is negative"),
        ({"prior": (0.0, -PRECISION)}, ValueError, "a negative eigenvalue"),
        ({"prior": (0.0, np.inf)}, ValueError, "use `fixed` for what is known exactly"),
        ({"prior": (np.zeros(3), 1.0)}, ValueError, r"a leaf of shape \(3,\)"),
        ({"coefficient_prior": 1.0}, TypeError, r"coefficient_prior=...\)` got float"),
        ({"coefficient_prior": (0.0, np.ones(3))}, ValueError, r"of shape \(3,\) for 2"),
        ({"coefficient_prior": (np.ones(3), 1.0)}, ValueError, r"mean of shape \(3,\)"),
        ({"coefficient_prior": (0.0, 1j)}, TypeError, "precision of complex128"),
        ({"coefficient_prior": (1j, 1.0)}, TypeError, "complex128 beside real data"),
        ({"prior": (1j, 1.0)}, TypeError, r"prior\[0\]=...\)` got complex128. Pass real"),
    ],
)
def test_mistake_raises(mistake, error, match):
    with pytest.raises(error, match=match):
        fit(**mistake)
