"""Where there is no interval to look for, `profile` says why."""

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import scipy.optimize as spo
from matplotlib.figure import Figure

import pseudojvp as pj


matplotlib.use("Agg")

TIMES = np.linspace(0, 5, 30)
NOISE = np.random.default_rng(0).standard_normal(30)
EXACT = np.exp(-np.outer(TIMES, [0.5, 3.0])) @ np.array([2.0, 1.0])
DATA = EXACT + 0.05 * NOISE
START = np.array([0.3, 2.0])


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


def by_name(slow, fast):
    """The model with these paths in θ."""

    def number(theta, path):
        for key in path:
            theta = theta[key]
        return theta

    return lambda theta, times: decays(
        jnp.stack([number(theta, slow), number(theta, fast)]), times
    )


@pytest.mark.slow  # a fit
def test_a_name_of_two_numbers_is_refused():
    theta = {"a": {"b": 0.3}, "a.b": 2.0}
    fit = pj.varpro(by_name(("a", "b"), ("a.b",)), DATA, theta, TIMES)
    with pytest.raises(ValueError, match="of a name that 2 numbers have. Rename"):
        fit.profile("a.b")


@pytest.mark.slow  # a fit
def test_without_a_degree_of_freedom_there_is_no_variance():
    fit = pj.varpro(decays, DATA[::8], START, TIMES[::8], throw=False)
    with pytest.raises(ValueError, match="with 0 degrees of freedom.*absolute_sigma"):
        fit.profile("theta[0]")


@pytest.mark.slow  # a fit
def test_data_that_are_met_to_rounding_leave_no_interval():
    fit = pj.varpro(decays, EXACT, START, TIMES)
    with pytest.raises(ValueError, match="or are met exactly"):
        fit.profile("theta[0]")


@pytest.mark.slow  # the program of a profile
def test_data_without_noise_have_the_interval_of_known_deviations():
    fit = pj.varpro(decays, EXACT, START, TIMES, weights=np.full(30, 20.0))
    profile = fit.profile("theta[0]", 0.9, absolute_sigma=True)

    def rise(rate):
        others = spo.least_squares(
            lambda p: 20 * (np.exp(-np.outer(TIMES, [rate, p[0]])) @ p[1:] - EXACT),
            [3.0, 2.0, 1.0],
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        return 2 * others.cost - 1.6448536269514722**2

    ends = [spo.brentq(rise, 0.5, end, xtol=1e-12) for end in (0.4, 0.6)]
    np.testing.assert_allclose([profile.lower, profile.upper], ends, rtol=1e-6)


@pytest.mark.slow  # the program of a profile
def test_what_is_fixed_stays_outside_of_the_bounds():
    bounds, fixed = (0.0, 4.0), np.array([False, True])
    start = np.array([0.3, 5.0])
    fit = pj.varpro(decays, DATA, start, TIMES, bounds=bounds, fixed=fixed)
    profile = fit.profile("theta[0]", bounds=bounds)
    free = pj.varpro(decays, DATA, start, TIMES, fixed=fixed).profile("theta[0]")
    assert np.all(profile.theta[:, 1] == 5)
    np.testing.assert_allclose(profile.lower, free.lower, rtol=1e-9)
    np.testing.assert_allclose(profile.upper, free.upper, rtol=1e-9)


@pytest.mark.slow  # the program of a profile
def test_a_name_is_drawn_as_it_is():
    theta = {"$x^$": 0.3, "b": 2.0}
    fit = pj.varpro(by_name(("$x^$",), ("b",)), DATA, theta, TIMES)
    figure = Figure()
    axes = fit.profile("$x^$").plot(figure.subplots())
    figure.canvas.draw()  # no formula, which would be a wrong one
    assert axes.get_xlabel() == "$x^$"
    assert not axes.xaxis.label.get_parse_math()
