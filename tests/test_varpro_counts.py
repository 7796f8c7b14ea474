"""Counts whose mean is zero, or would be negative, or that do not count."""

import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj


pytestmark = pytest.mark.slow  # a program each

TIMES = np.linspace(0, 5, 30)
START = np.array([0.4, 2.5])


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


MEAN = np.exp(-np.outer(TIMES, [0.5, 3.0])) @ np.array([1000.0, 600.0])
COUNTS = np.random.default_rng(0).poisson(MEAN).astype(float)


def fit(counts, basis=decays, **keywords):
    return pj.varpro(basis, counts, START, TIMES, loss="poisson", **keywords)


def assert_same(got, expected):
    assert cases.successful(got)
    assert_close(got.theta, expected.theta, 1e-8)
    assert_close(got.cost, expected.cost, 1e-10)
    errors, wanted = (f.statistics(absolute_sigma=True) for f in (got, expected))
    assert_close(errors.theta_covariance, wanted.theta_covariance, 1e-7)


def test_what_has_the_weight_zero_need_be_no_count_and_have_no_mean():
    masked = np.isin(np.arange(30), [2, 11])
    kept = TIMES[~masked]
    expected = pj.varpro(decays, COUNTS[~masked], START, kept, loss="poisson")

    def basis(rates, times):
        return decays(rates, times) * jnp.where(masked, -1.0, 1.0)[:, None]

    counts = np.where(masked, -1.0, COUNTS)
    assert_same(fit(counts, basis, weights=np.where(masked, 0.0, 1.0)), expected)


def test_no_count_where_the_model_is_zero_adds_nothing():
    """As before the first photon of a decay with an instrument response."""
    before = np.arange(30) < 4
    expected = pj.varpro(decays, COUNTS[~before], START, TIMES[~before], loss="poisson")

    def basis(rates, times):
        return jnp.where(before[:, None], 0.0, decays(rates, times))

    assert_same(fit(np.where(before, 0.0, COUNTS), basis), expected)


def test_a_fit_that_ends_at_a_mean_that_is_not_positive_is_no_success():
    """Of each fit of few counts: where it is successful, the deviance is stationary.

    Of the last three the mean of a datum is negative after the first search.
    """

    def basis(rates, times):
        return jnp.concatenate([decays(rates, times), jnp.ones((30, 1))], axis=1)

    mean = np.exp(-np.outer(TIMES, [0.8, 4.0])) @ np.array([20.0, -12.0]) + 0.15
    counts = np.random.default_rng(5).poisson(mean, (200, 30)).astype(float)
    counts = counts[[0, 1, 2, 3, 4, 24, 36, 65]]
    start = np.array([0.7, 3.0])
    fits = pj.varpro_batch(basis, counts, start, TIMES, loss="poisson", throw=False)
    successful = np.asarray(fits.result == optx.RESULTS.successful)
    assert np.sum(successful) > 1

    @jit
    def relative_gradient(theta, c, counts):
        mean = basis(theta, TIMES) @ c
        slope = 1 - counts / mean
        of_theta = -TIMES[:, None] * decays(theta, TIMES) * c[None, :2]
        return slope @ of_theta * theta, slope @ basis(theta, TIMES) * c, jnp.min(mean)

    for i in np.flatnonzero(successful):
        *gradient, least = relative_gradient(
            fits.theta[i], fits.coefficients[i], jnp.asarray(counts[i])
        )
        assert least > 0
        assert np.max(np.abs(np.concatenate(gradient))) < 1e-3  # of some 100 counts
    assert np.sum(np.asarray(fits.result == optx.RESULTS.nonfinite)) > 0
