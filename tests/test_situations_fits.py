"""Fits of data as they come: channels without signal, masked rows, one start twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize as spo
from checks import assert_close, jit
from drop_in_cases import random_array
from situations import differences
from varpro_cases import successful

import pseudojvp as pj


TIMES = np.linspace(0.0, 5.0, 40)
START = np.array([0.4, 2.0])
RATES, AMPLITUDES = np.array([0.5, 3.0]), np.array([2.0, 1.0])


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


def _numpy_decays(rates, times=TIMES):
    return np.exp(-np.outer(times, rates))


DATA = _numpy_decays(RATES) @ AMPLITUDES + 0.01 * random_array((40,), float, 4)


def _fit(data, start=START, times=TIMES, **keywords):
    return pj.varpro(decays, data, start, times, throw=False, **keywords)


def _covariance(jacobian, residual):
    freedom = jacobian.shape[0] - jacobian.shape[1]
    return np.linalg.inv(jacobian.T @ jacobian) * (residual @ residual) / freedom


@pytest.mark.ci("*")
@pytest.mark.parametrize("start", [0.3, 0.0])
def test_covariance_of_a_parameter_whose_best_value_is_zero(start):
    """Scaling by the parameter, or by a step relative to it, would end in nothing."""
    points = np.linspace(-3.0, 3.0, 41)
    bump = lambda centre, points: jnp.exp(-((points - centre[0]) ** 2) / 2)[:, None]
    data = 2 * np.exp(-(points**2) / 2) + 0.01 * np.cos(7 * points)  # even
    at = jnp.array([start])
    fit = lambda data: pj.varpro(bump, data, at, points, throw=False)
    found = fit(data)
    assert successful(found)
    assert abs(found.theta[0]) < 1e-10
    column = np.exp(-(points**2) / 2)
    amplitude = column @ data / (column @ column)
    jacobian = np.stack([amplitude * points * column, column], axis=1)
    want = _covariance(jacobian, data - amplitude * column)
    errors = found.statistics()
    np.testing.assert_allclose(errors.theta_covariance[0, 0], want[0, 0], rtol=1e-7)
    np.testing.assert_allclose(errors.coefficient_covariance[0, 0], want[1, 1], rtol=1e-7)
    # Of the centre for a datum: by symmetry only that of the odd data is left.
    gradient = jit(jax.grad(lambda data: fit(data).theta[0]))(data)
    slope, bend = amplitude * points * column, amplitude * (points**2 - 1) * column
    hessian = slope @ slope - bend @ (data - amplitude * column)
    assert_close(gradient, slope / hessian, 1e-7)


@pytest.mark.ci("*")
@pytest.mark.parametrize("columns", [None, 60], ids=["one-column", "many-columns"])
def test_rows_of_weight_zero_are_as_if_they_were_not_there(columns):
    data, weights = DATA.copy(), np.ones(40)
    if columns is not None:
        data = data[:, None] + 0.01 * random_array((40, columns), float, 5)
    weights[::5] = 0
    kept = weights > 0
    data[~kept] = 1e3

    @jit
    def all_of_it(data, times, weights):
        fit = _fit(data, times=times, weights=weights)
        errors = fit.statistics()
        covariances = errors.theta_covariance, errors.coefficient_covariance
        fits = fit.theta, fit.coefficients, *covariances, errors.reduced_chi_square
        return fit, fits, errors.degrees_of_freedom

    fit, numbers, freedom = all_of_it(data, TIMES, weights)
    _, want, want_freedom = all_of_it(data[kept], TIMES[kept], weights[kept])
    assert successful(fit)
    assert freedom == want_freedom
    for got, number in zip(numbers, want, strict=True):
        assert_close(got, number, 1e-7)
    total = lambda data: jnp.sum(_fit(data, weights=weights).theta)
    gradient = jit(jax.grad(total))(data)
    np.testing.assert_array_equal(gradient[~kept], 0)
    assert np.abs(gradient[kept]).min() > 0


@pytest.mark.slow  # four seconds
def test_channel_without_signal_has_no_coefficients_and_moves_nothing():
    data = np.stack([DATA, np.zeros(40), 3 * DATA], axis=1)
    fit, without = _fit(data), _fit(data[:, ::2])
    assert successful(fit)
    np.testing.assert_allclose(fit.theta, without.theta, rtol=1e-9)
    np.testing.assert_allclose(fit.coefficients[:, ::2], without.coefficients, rtol=1e-9)
    np.testing.assert_array_equal(fit.coefficients[:, 1], 0)
    assert np.isfinite(fit.statistics().coefficient_standard_deviation).all()

    @jit
    @jax.jacrev
    def jacobian(data):
        return _fit(data).theta

    got = jacobian(data)

    def rates(data):
        def residual(rates):
            phi = _numpy_decays(rates)
            return (data - phi @ np.linalg.lstsq(phi, data, rcond=None)[0]).ravel()

        tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
        return spo.least_squares(residual, fit.theta, jac="3-point", **tight).x

    direction = random_array(data.shape, float, 7)
    slope = differences(rates, data, direction, step=1e-2)
    # Of the search of SciPy, by finite differences.
    assert_close(np.einsum("qmk,mk->q", got, direction), slope, 1e-4)
    np.testing.assert_array_equal(got[:, :, 1], 0)


@pytest.mark.slow  # two seconds
def test_two_rates_that_start_as_one_are_told_by_the_rank():
    fit = _fit(DATA, np.array([1.0, 1.0]))
    assert fit.rank == 1
    assert np.isnan(fit.statistics().theta_standard_deviation).all()
    one = _fit(DATA, np.array([1.0]))
    np.testing.assert_allclose(fit.theta, one.theta[0] * np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(fit.residual, one.residual, atol=1e-9)
    refused = _fit(DATA, np.array([1.0, 1.0]), solver=pj.QR())
    assert refused.result != optx.RESULTS.successful
