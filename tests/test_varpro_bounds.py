"""Bounds on θ, and parameters that are fixed."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize as spo
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._varpro import optimise


TIMES = np.linspace(0, 5, 60)
START = np.array([0.2, 1.0])


def decays(rates, times):
    return jnp.exp(-jnp.outer(times, rates))


def _noise(seed):
    return np.random.default_rng(seed).standard_normal(60)


DATA = np.exp(-np.outer(TIMES, [0.5, 3.0])) @ np.array([2.0, 1.0]) + 0.01 * _noise(0)
# Where each of the two rates ends: free (0) or at a bound.
BOUNDS = {
    "free": ((0.0, 10.0), [0, 0]),
    "one-sided": ((-np.inf, np.array([1.0, 2.0])), [0, 1]),
    "upper": ((np.array([0.1, 0.1]), np.array([0.3, 5.0])), [1, 0]),
    "both": ((np.array([0.1, 0.9]), np.array([0.3, 1.1])), [1, 0]),
    "lower": ((np.array([0.1, 1.0]), np.array([0.15, 9.0])), [1, -1]),
    "equal": ((np.array([0.2, 0.5]), np.array([0.2, 5.0])), [-1, 0]),
}


def bounded(data, bounds, start):
    return pj.varpro(decays, data, start, TIMES, bounds=bounds, throw=False)


compiled = jit(bounded)


def limits(name):
    return [np.array(np.broadcast_to(b, 2), float) for b in BOUNDS[name][0]]


def fit_between(name, data=DATA, start=START, fit=compiled):
    lower, upper = limits(name)
    start = np.clip(start, lower, upper)
    return fit(*jax.tree.map(jnp.asarray, (data, (lower, upper), start)))


def by_scipy(name, data=DATA):
    """All four parameters together, with the bounds a hair apart where they are equal."""
    lower, upper = limits(name)
    upper = np.where(upper > lower, upper, lower + 1e-13)
    infinite = np.full(2, np.inf)

    def residual(p):
        return data - np.exp(-np.outer(TIMES, p[:2])) @ p[2:]

    start = np.clip(START, lower, upper)
    c, *_ = np.linalg.lstsq(np.exp(-np.outer(TIMES, start)), data, rcond=None)
    return spo.least_squares(
        residual,
        np.append(start, c),
        jac="cs",
        bounds=(np.append(lower, -infinite), np.append(upper, infinite)),
        method="dogbox",
        ftol=1e-15,
        xtol=1e-15,
        gtol=1e-15,
    )


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.slow  # a second each
def test_bounded_fit_is_that_of_all_parameters_by_scipy(name):
    fit, expected = fit_between(name), by_scipy(name)
    assert cases.successful(fit)
    assert_close(fit.cost, expected.cost, 1e-9)
    assert_close(cases.unknowns(fit), expected.x, 1e-5)
    lower, upper = limits(name)
    at_bound = np.where(fit.held < 0, lower, np.where(fit.held > 0, upper, fit.theta))
    np.testing.assert_array_equal(fit.theta, at_bound)  # exactly
    assert np.all((lower <= fit.theta) & (fit.theta <= upper))


@pytest.mark.parametrize("name", ["upper", "lower", "equal"])
@pytest.mark.slow  # a second each
def test_what_is_at_a_bound_is_named(name):
    assert fit_between(name).held.tolist() == BOUNDS[name][1]


def test_start_at_both_bounds_is_left():
    fit = fit_between("upper", start=[0.3, 5.0])
    assert_close(fit.theta, fit_between("upper").theta, 1e-9)


@pytest.mark.slow  # a second
def test_model_is_never_called_outside():
    seen = []

    def basis(rates, times):
        jax.debug.callback(lambda rates: seen.append(np.asarray(rates)), rates)
        return decays(rates, times)

    pj.varpro(basis, DATA, START, TIMES, bounds=BOUNDS["upper"][0], throw=False)
    jax.effects_barrier()
    lower, upper = BOUNDS["upper"][0]
    assert len(seen) > 5
    assert all(np.all((lower <= rates) & (rates <= upper)) for rates in seen)


@pytest.mark.slow  # a program in another precision
def test_single_precision_stays_inside():
    lower, upper = (np.asarray(b, np.float32) for b in BOUNDS["upper"][0])
    data, start = np.asarray(DATA, np.float32), np.asarray(START, np.float32)
    fit = pj.varpro(decays, data, start, np.float32(TIMES), bounds=(lower, upper))
    assert fit.theta.dtype == np.float32
    assert fit.theta[0] == upper[0]
    assert_close(fit.theta, fit_between("upper").theta, 1e-3)


@pytest.mark.slow  # three seconds
def test_derivative_is_that_of_refits_and_holds_what_is_at_a_bound():
    direction, h = _noise(1), 1e-5
    theta = lambda data: fit_between("upper", data).theta
    traced = lambda data: fit_between("upper", data, fit=bounded).theta
    jacobian = jit(jax.jacfwd(traced))(DATA)
    reverse = jit(jax.jacrev(traced))(DATA)
    refits = (theta(DATA + h * direction) - theta(DATA - h * direction)) / (2 * h)
    assert_close(jacobian @ direction, refits, 1e-6)
    assert_close(reverse, jacobian, 1e-12)
    assert not jacobian[0].any()


@pytest.mark.slow  # a program of another adjoint
def test_adjoint_of_optimistix_has_the_same_derivative(monkeypatch):
    # Optimistix takes no closures, such as what checks annotations.
    for name in ("_search", "_stationarity"):
        monkeypatch.setattr(optimise, name, inspect.unwrap(getattr(optimise, name)))
    lower, upper = map(jnp.asarray, BOUNDS["upper"][0])

    def theta(data):
        adjoint = optx.ImplicitAdjoint()
        return pj.varpro(
            decays, data, START, TIMES, bounds=(lower, upper), adjoint=adjoint
        ).theta

    expected = jit(
        jax.jacrev(lambda data: fit_between("upper", data, fit=bounded).theta)
    )(DATA)
    assert_close(jit(jax.jacrev(theta))(DATA), expected, 1e-7)


@pytest.mark.slow  # two programs of statistics
def test_statistics_are_those_of_the_free_parameters():
    fit = pj.varpro(decays, DATA, START, TIMES, bounds=BOUNDS["upper"][0])

    def slow_part(theta, times):
        return decays(jnp.stack([jnp.array(0.3), theta]), times)

    alone = pj.varpro(slow_part, DATA, np.array(1.0), TIMES)
    errors, expected = fit.statistics(), alone.statistics()
    assert errors.degrees_of_freedom == expected.degrees_of_freedom == 57
    assert_close(
        errors.theta_standard_deviation[1], expected.theta_standard_deviation[0], 1e-9
    )
    assert_close(
        errors.coefficient_standard_deviation,
        expected.coefficient_standard_deviation,
        1e-9,
    )
    assert errors.theta_standard_deviation[0] == 0
    assert np.isfinite(errors.correlation).all()
    band, other = fit.predict(TIMES), alone.predict(TIMES)
    assert_close(band.standard_deviation, other.standard_deviation, 1e-9)


@pytest.mark.slow  # a program of a batch
def test_members_of_a_batch_have_bounds_of_their_own_that_bind():
    data = np.stack([DATA, 2 * DATA, DATA + np.exp(-0.2 * TIMES)])
    fits = pj.varpro_batch(decays, data, START, TIMES, bounds=BOUNDS["upper"][0])
    each = [fit_between("upper", member) for member in data]
    assert_close(fits.theta, np.stack([fit.theta for fit in each]), 1e-8)
    np.testing.assert_array_equal(fits.held, [fit.held for fit in each])
    np.testing.assert_array_equal(fits[2].held, each[2].held)


def fit_fixed(rate, fixed):
    start = {**cases.START, "rate": rate}
    return pj.varpro(
        cases.basis, cases.DATA, start, cases.POINTS, fixed=fixed, weights=cases.WEIGHTS
    )


FIXED = {"rate": True, "width": False}


@pytest.mark.slow  # a program of another model
def test_fixed_parameters_are_constants_of_the_model():
    fit = fit_fixed(jnp.array(0.9), FIXED)

    def basis(width, points):
        return cases.basis({"rate": jnp.array(0.9), "width": width}, points)

    start = cases.START["width"]
    alone = pj.varpro(basis, cases.DATA, start, cases.POINTS, weights=cases.WEIGHTS)
    assert fit.theta["rate"] == 0.9
    assert_close(fit.theta["width"], alone.theta, 1e-10)
    assert_close(fit.coefficients, alone.coefficients, 1e-10)
    assert (fit.held["rate"], fit.held["width"].tolist()) == (2, [0])
    errors, expected = fit.statistics(), alone.statistics()
    assert errors.degrees_of_freedom == expected.degrees_of_freedom
    assert_close(
        errors.theta_standard_deviation[1], expected.theta_standard_deviation[0], 1e-9
    )
    assert errors.theta_standard_deviation[0] == 0


@pytest.mark.slow  # a program of derivatives
def test_derivative_with_respect_to_a_fixed_parameter_is_that_of_refits():
    unknowns = lambda rate: cases.unknowns(fit_fixed(rate, FIXED))
    given = jit(jax.jacrev(unknowns))(jnp.array(0.9))
    h = 1e-5
    refits = (jit(unknowns)(0.9 + h) - jit(unknowns)(0.9 - h)) / (2 * h)
    assert_close(given, refits, 1e-6)


def test_fit_without_a_free_parameter_is_the_linear_solution():
    fit = fit_fixed(jnp.array(0.9), fixed=True)
    theta = {**cases.START, "rate": jnp.array(0.9)}
    a = np.asarray(cases.WEIGHTS)[:, None] * cases.basis(theta, cases.POINTS)
    expected = np.linalg.pinv(a) @ (cases.WEIGHTS * cases.DATA)
    assert_close(fit.coefficients, expected, 1e-10)
    assert fit.rank == 3
    assert cases.successful(fit)
    assert fit.stats["num_steps"] == 0


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("mistake", "error", "match"),
    [
        ({"bounds": (1.0, 0.0)}, ValueError, r"\[1.0, 0.0\] for `theta\[0\]`.*lower ≤"),
        ({"bounds": (np.nan, 1.0)}, ValueError, r"for `theta\[0\]`.*neither NaN"),
        ({"bounds": (0.5, 2.0)}, ValueError, r"starts `theta\[0\]` at 0.2, outside"),
        ({"bounds": 3}, TypeError, r"bounds=...\)` got int. Pass a pair"),
        ({"bounds": (np.zeros(3), 9.0)}, ValueError, r"got a leaf of shape \(3,\)"),
        ({"bounds": ({}, 9.0)}, ValueError, "the same structure, or a scalar"),
        ({"bounds": (np.inf, np.inf)}, ValueError, r"bounds \[inf, inf\] for `theta"),
        ({"bounds": (1j, 9.0)}, TypeError, "got complex128. Pass real numbers"),
        (
            {"bounds": (0.0, 9.0), "optimiser": optx.BFGS(1e-5, 1e-5)},
            ValueError,
            "cannot keep θ within bounds",
        ),
        ({"fixed": 1.0}, TypeError, r"fixed=...\)` got a leaf of float. Pass booleans"),
        ({"fixed": {"r": True}}, ValueError, "the same structure, or a scalar"),
    ],
)
def test_mistake_raises(mistake, error, match):
    with pytest.raises(error, match=match):
        jax.eval_shape(lambda: pj.varpro(decays, DATA, START, TIMES, **mistake).theta)


def test_an_array_for_a_part_with_several_arrays_raises():
    start = {"a": START, "b": START}
    fit = lambda: pj.varpro(
        lambda theta, times: decays(theta["a"] + theta["b"], times),
        DATA,
        start,
        TIMES,
        bounds=(np.zeros(2), 9.0),
    )
    with pytest.raises(ValueError, match=r"shape \(2,\) for .* or a scalar for all of"):
        fit()


@pytest.mark.slow  # two programs
def test_a_scalar_stands_for_a_whole_part_of_theta():
    start = pj.SharedAndOwn({"rate": 0.3}, ({"rate": 2.0, "shift": 0.1}, {"rate": 2.0}))
    whole = pj.SharedAndOwn(
        {"rate": False}, ({"rate": True, "shift": True}, {"rate": True})
    )
    highest = pj.SharedAndOwn({"rate": 0.4}, ({"rate": 9.0, "shift": 9.0}, {"rate": 9.0}))

    def basis(theta, times):
        rates = jnp.stack([theta.shared["rate"], theta.own["rate"]])
        return decays(rates, times - theta.own.get("shift", 0.0))

    def fit(fixed, upper):
        both = DATA, DATA
        args = TIMES, TIMES
        return pj.varpro(basis, both, start, args, fixed=fixed, bounds=(0.0, upper))

    parts = fit(pj.SharedAndOwn(False, True), pj.SharedAndOwn(0.4, (9.0, {"rate": 9.0})))
    expected = fit(whole, highest)
    assert jax.tree.leaves(parts.held) == jax.tree.leaves(expected.held) == [1, 2, 2, 2]
    assert parts.theta.shared["rate"] == 0.4
    assert_close(parts.cost, expected.cost, 1e-12)


def test_bounds_known_at_run_time_alone_are_told():
    lower = jnp.array([0.5, 0.5])  # above the start
    fit = compiled(jnp.asarray(DATA), (lower, 9 + lower), jnp.asarray(START))
    assert fit.result == optx.RESULTS.nonfinite_input
    assert np.isnan(fit.theta).any()


@pytest.mark.slow  # a program that raises
def test_bounds_known_at_run_time_alone_raise():
    fit = lambda upper: pj.varpro(decays, DATA, START, TIMES, bounds=(0.0, upper)).theta
    with pytest.raises(eqx.EquinoxRuntimeError, match="a start outside of them"):
        eqx.filter_jit(fit)(jnp.array(0.5))
