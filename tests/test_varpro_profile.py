"""Profile-likelihood intervals, against published ones and against SciPy."""

import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import scipy.optimize as spo
import scipy.stats
import varpro_cases as cases
from matplotlib.figure import Figure

import pseudojvp as pj


matplotlib.use("Agg")

_NIST = pathlib.Path(__file__).parents[1] / "examples" / "nist_strd.json"

# Biochemical oxygen demand (Bates & Watts 1988, appendix A4.1), and the profiles of
# A (1 − exp(−exp(lrc) time)) that R has in its reference output of `profile.nls`
# (tests/Examples/stats-Ex.Rout.save): τ, A and lrc.
TIMES = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
DEMAND = np.array([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])
OF_A = """
-3.0873 13.59751 0.14033
-2.4957 14.46884 0.01607
-1.8906 15.41836 -0.11787
-1.2634 16.49088 -0.26877
-0.6080 17.75662 -0.44553
0.4998 20.52853 -0.80750
0.9465 22.06851 -0.98233
1.3780 23.98253 -1.17103
1.7908 26.44552 -1.37431
2.1841 29.75928 -1.59599
2.5559 34.43804 -1.84209
2.9028 41.42542 -2.12176
"""
OF_LRC = """
-2.9550 42.395076 -2.184153
-2.5201 33.446683 -1.836926
-2.0570 28.124205 -1.547326
-1.5710 24.656989 -1.293871
-1.0653 22.245847 -1.063030
-0.5412 20.482887 -0.845157
0.5539 18.095015 -0.420487
1.1022 17.273414 -0.207623
1.6298 16.621533 0.007939
2.1335 16.086803 0.234850
2.6052 15.638807 0.485009
3.0276 15.265409 0.779458
"""


def saturation(theta, times):
    return -jnp.expm1(-jnp.exp(theta["lrc"]) * times)[:, None]


def _demand(basis=saturation, start=-0.5, **keywords):
    return pj.varpro(basis, DEMAND, {"lrc": start}, TIMES, throw=False, **keywords)


@pytest.fixture(scope="module", name="demand")
def _fit_of_demand():
    return _demand()


def by_scipy(residual, unknowns, place, freedom, confidence=0.95, variance=None):
    """The ends, by fits of all other unknowns and a root of the sum of squares."""
    unknowns = np.asarray(unknowns)
    least = np.sum(residual(unknowns) ** 2)
    variance = least / freedom if variance is None else variance
    t = scipy.stats.t.ppf(0.5 + confidence / 2, freedom)
    jacobian = jax.jit(jax.jacfwd(lambda p: residual(p, jnp)))

    def rise(value):
        whole = lambda p: np.insert(p, place, value)
        found = spo.least_squares(
            lambda p: residual(whole(p)),
            np.delete(unknowns, place),
            jac=lambda p: np.delete(np.asarray(jacobian(whole(p))), place, axis=1),
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
        )
        return 2 * found.cost - least - t**2 * variance

    j = np.asarray(jacobian(unknowns))
    deviation = np.sqrt(variance * np.linalg.inv(j.T @ j)[place, place])
    ends = []
    for sign in (-1, 1):
        far = unknowns[place] + sign * deviation
        while rise(far) < 0:
            far += sign * deviation
        ends.append(spo.brentq(rise, unknowns[place], far, xtol=1e-10, rtol=1e-12))
    return np.array(ends)


def assert_ends(profile, want):
    """To 1e-6 of their distance from the estimate."""
    distance = np.abs(want - profile.value)
    assert np.all(np.abs([profile.lower, profile.upper] - want) < 1e-6 * distance)


@pytest.mark.slow  # the programs of two profiles
@pytest.mark.parametrize(
    ("name", "table", "column"), [("c[0]", OF_A, 1), ("lrc", OF_LRC, 2)]
)
def test_signed_roots_are_those_published_for_the_oxygen_demand(
    demand, name, table, column
):
    table = np.array([line.split() for line in table.split("\n")[1:-1]], float)
    profile = demand.profile(name, values=table[:, column])
    places = np.searchsorted(profile.values, table[:, column])
    np.testing.assert_array_equal(profile.values[places], table[:, column])
    # Four digits behind the point are published; lrc has five.
    np.testing.assert_allclose(profile.root[places], table[:, 0], atol=6e-5)
    np.testing.assert_allclose(profile.theta[places, 0], table[:, 2], atol=2e-5)


@pytest.mark.slow  # the programs of two profiles
def test_ends_of_the_oxygen_demand_are_those_of_scipy(demand):
    def residual(p, xp=np):
        return DEMAND - p[1] * (1 - xp.exp(-xp.exp(p[0]) * TIMES))

    unknowns = [demand.theta["lrc"], demand.coefficients[0]]
    for place, name in enumerate(("lrc", "c[0]")):
        profile = demand.profile(name)
        assert_ends(profile, by_scipy(residual, unknowns, place, 4))
        assert profile.warnings == []
        # Published points at ±2.7764: the linear interval would end at 26.1.
    assert 34.43804 < profile.upper < 41.42542
    assert 13.59751 < profile.lower < 14.46884
    np.testing.assert_allclose(profile.linear_upper, 26.0724, atol=1e-4)


@pytest.mark.slow  # the programs of two profiles
def test_ends_of_a_nist_problem_are_those_of_scipy():
    problem = json.loads(_NIST.read_text(encoding="utf-8"))["problems"]["Misra1a"]
    x, y = np.array(problem["x"]), np.array(problem["y"])
    basis = lambda theta, x: -jnp.expm1(-theta * x)[:, None]
    fit = pj.varpro(basis, y, problem["start2"][1], x, throw=False)
    b1, b2 = problem["certified"]
    # In units of the certified values, for SciPy's differences of scale.
    residual = lambda p, xp=np: y + p[1] * b1 * xp.expm1(-p[0] * b2 * x)
    for place, (name, unit) in enumerate((("theta", b2), ("c[0]", b1))):
        profile = fit.profile(name)
        at = [fit.theta / b2, fit.coefficients[0] / b1]
        assert_ends(profile, unit * by_scipy(residual, at, place, 12))


@pytest.mark.slow  # the programs of three profiles
@pytest.mark.parametrize(("name", "place"), [("rate", 0), ("width[0]", 1), ("c[1]", 3)])
def test_ends_with_offset_weights_and_other_coefficients(name, place):
    weights = cases.WEIGHTS.at[5].set(0.0)
    fit = cases.fit(weights=weights, offset=cases.offset)
    full = cases.FullProblem(offset=cases.offset)
    inputs = cases.DATA, weights, cases.POINTS
    residual = lambda p, xp=np: xp.asarray(full.flat_residual(jnp.asarray(p), *inputs))
    want = by_scipy(residual, cases.unknowns(fit), place, 15 - 5, 0.9)
    assert_ends(fit.profile(name, 0.9), want)


@pytest.mark.slow  # the programs of two profiles
@pytest.mark.parametrize(("name", "place"), [("width[0]", 1), ("c[1, 1]", 2 + 3 + 1)])
def test_ends_with_columns_of_their_own_weights(name, place):
    data = cases.columns(2)
    weights = jnp.stack([cases.WEIGHTS, cases.WEIGHTS[::-1]], axis=1).at[3:6, 1].set(0)
    offset = cases.offset_of_two_columns
    fit = cases.fit(data, weights, offset=offset)
    full = cases.FullProblem(offset=offset)
    inputs = data, weights, cases.POINTS
    residual = lambda p, xp=np: xp.asarray(full.flat_residual(jnp.asarray(p), *inputs))
    want = by_scipy(residual, cases.unknowns(fit), place, 29 - 8)
    assert_ends(fit.profile(name), want)


@pytest.mark.slow  # a program more
def test_ends_of_the_only_coefficient_of_one_of_two_columns():
    data = np.stack([DEMAND, 1.5 * DEMAND[::-1] ** 0.5], axis=1)
    fit = pj.varpro(saturation, data, {"lrc": -0.5}, TIMES, throw=False)
    shape = lambda p, xp: 1 - xp.exp(-xp.exp(p[0]) * TIMES)
    residual = lambda p, xp=np: xp.concatenate(
        [data[:, i] - p[1 + i] * shape(p, xp) for i in (0, 1)]
    )
    unknowns = [fit.theta["lrc"], *fit.coefficients[0]]
    assert_ends(fit.profile("c[0, 1]"), by_scipy(residual, unknowns, 2, 12 - 3))


@pytest.mark.slow  # programs of complex numbers
def test_ends_of_theta_of_complex_data():
    fit = pj.varpro(
        cases.complex_basis, cases.COMPLEX_DATA, cases.COMPLEX_START, cases.POINTS
    )

    def residual(p, xp=np):
        phi = cases.complex_basis(jnp.asarray(p[:4]), cases.POINTS)
        r = cases.COMPLEX_DATA - phi @ jax.lax.complex(*jnp.split(jnp.asarray(p[4:]), 2))
        return xp.concatenate([xp.asarray(r.real), xp.asarray(r.imag)])

    c = fit.coefficients
    unknowns = np.concatenate([fit.theta, c.real, c.imag])
    want = by_scipy(residual, unknowns, 2, 32 - 8)
    assert_ends(fit.profile("theta[2]"), want)
    with pytest.raises(ValueError, match="of a complex coefficient, which has no int"):
        fit.profile("c[0]")


@pytest.mark.slow  # a program more
def test_known_deviations_have_the_normal_quantile(demand):
    profile = demand.profile("lrc", absolute_sigma=True)
    assert profile.quantile == pytest.approx(scipy.stats.norm.ppf(0.975))
    np.testing.assert_allclose(
        profile.cost - 2 * demand.cost / 2, profile.root**2 / 2, atol=1e-9
    )
    inside = np.interp(profile.lower, profile.values, profile.root)
    np.testing.assert_allclose(inside, -profile.quantile, rtol=1e-4)


@pytest.mark.slow  # a program more
def test_profile_of_a_linear_model_is_the_linear_interval():
    fit = cases.fit(fixed=True)
    profile = fit.profile("c[1]")
    want = np.array([profile.linear_lower, profile.linear_upper])
    assert_ends(profile, want)
    deviation = fit.statistics().coefficient_standard_deviation[1]
    want = (profile.values - profile.value) / deviation
    np.testing.assert_allclose(profile.root, want, atol=1e-6)


@pytest.mark.slow  # a program more
def test_interval_does_not_depend_on_how_the_model_is_written(demand):
    by_rate = lambda theta, times: -jnp.expm1(-theta["lrc"] * times)[:, None]
    profile, other = demand.profile("lrc"), _demand(by_rate, 0.5).profile("lrc")
    np.testing.assert_allclose(other.lower, np.exp(profile.lower), rtol=1e-5)
    np.testing.assert_allclose(other.upper, np.exp(profile.upper), rtol=1e-5)
    assert other.linear_lower < 0 < other.lower


@pytest.mark.slow  # a program more
def test_interval_is_open_where_the_cost_rises_too_little(demand):
    profile = demand.profile("c[0]", 0.999)
    # For A → ∞ the model is a straight line through zero.
    slope = DEMAND @ TIMES / (TIMES @ TIMES)
    line = np.sum((DEMAND - slope * TIMES) ** 2)
    largest = np.sqrt((line - 2 * demand.cost) / (2 * demand.cost / 4))
    assert largest < profile.quantile
    assert np.isfinite(profile.lower)
    assert profile.upper == np.inf
    assert profile.warnings == ["There is no upper end: the cost rises too little."]
    np.testing.assert_allclose(profile.root[-1], largest, rtol=1e-3)


@pytest.mark.slow  # a program more
def test_interval_ends_at_a_bound(demand):
    fit = _demand(bounds=({"lrc": -1.0}, {"lrc": 2.0}))
    profile = fit.profile("lrc", bounds=({"lrc": -1.0}, {"lrc": 2.0}))
    assert profile.lower == -1.0
    assert profile.upper == pytest.approx(demand.profile("lrc").upper, rel=1e-6)
    assert profile.warnings == ["The lower end is the bound."]
    assert np.min(profile.values) >= -1


@pytest.mark.slow  # a program more
def test_other_parameters_stay_within_their_bounds():
    bounds = ({"rate": 0.6, "width": 0.1}, {"rate": 0.85, "width": 2.0})
    start = {"rate": jnp.array(0.8), "width": jnp.array([0.6])}
    fit = cases.fit(start=start, bounds=bounds)
    profile = fit.profile("c[0]", 0.99, bounds=bounds)
    assert np.all((profile.theta[:, 0] >= 0.6) & (profile.theta[:, 0] <= 0.85))
    wider = cases.fit(start=start).profile("c[0]", 0.99)
    assert wider.theta[:, 0].max() > 0.85  # the bound matters
    assert wider.lower <= profile.lower + 1e-6
    assert profile.upper <= wider.upper + 1e-6


@pytest.mark.slow  # a program more
def test_coefficients_stay_between_their_bounds():
    limits = (-np.inf, 1.9)  # 2 without
    fit = cases.fit(coefficient_bounds=limits)
    assert fit.held_coefficients[0] == 1
    profile = fit.profile("rate")
    full = cases.FullProblem()
    inputs = cases.DATA, cases.WEIGHTS, cases.POINTS
    insert = lambda p: jnp.insert(jnp.asarray(p), 2, 1.9)
    residual = lambda p, xp=np: xp.asarray(full.flat_residual(insert(p), *inputs))
    unknowns = np.delete(cases.unknowns(fit), 2)
    want = by_scipy(residual, unknowns, 0, 16 - 4)
    near = np.array([profile.lower, profile.upper])
    # While the bound binds; where it does not, the cost is lower and the end further.
    assert np.isclose(near, want, rtol=1e-6).any()
    assert near[0] <= want[0] + 1e-6
    assert near[1] >= want[1] - 1e-6
    with pytest.raises(ValueError, match="of a fit with `coefficient_bounds`. Call it"):
        fit.profile("c[1]")


@pytest.mark.slow  # programs that are not finite
def test_fits_that_fail_on_the_way_are_told():
    def basis(theta, times):
        return jnp.where(theta["lrc"] > -1.5, saturation(theta, times), jnp.nan)

    fit = _demand(basis)
    profile = fit.profile("lrc", throw=False)
    assert np.isnan(profile.lower)
    assert profile.upper == pytest.approx(0.592315, rel=1e-5)
    assert "found no lower end: fits beyond -1.49" in profile.warnings[0]
    with pytest.raises(RuntimeError, match="found no lower end: fits beyond"):
        fit.profile("lrc")


@pytest.mark.slow  # a program more
def test_a_better_fit_on_the_way_is_told():
    x = np.linspace(-3, 9, 60)
    bump = lambda theta, x: jnp.exp(-((x - theta) ** 2))[:, None]
    data = np.exp(-(x**2)) + 3 * np.exp(-((x - 6) ** 2)) + cases.noise(60, 0.01, 5)
    fit = pj.varpro(bump, data, 0.1, x, throw=False)
    assert abs(fit.theta) < 0.5
    # The ends lie within the valley; values beyond its rim do not.
    assert fit.profile("theta").warnings == []
    profile = fit.profile("theta", values=[5.8], throw=False)
    assert np.isnan([profile.lower, profile.upper]).all()
    assert "the fit is not the best one" in profile.warnings[0]
    with pytest.raises(RuntimeError, match="met the cost .* below"):
        fit.profile("theta", values=[5.8])


@pytest.mark.slow  # a program more
def test_profiles_of_one_number_share_a_program():
    calls = []

    def basis(theta, times):
        calls.append(times)
        return saturation(theta, times)

    fit = _demand(basis)
    fit.profile("lrc")
    before = len(calls)
    fit.profile("lrc", 0.8, values=[-0.1, 0.2])
    fit.profile("lrc", 0.9, absolute_sigma=True)
    assert len(calls) == before


@pytest.mark.slow  # the program of a profile
def test_plot_has_the_curve_and_the_ends(demand):
    profile = demand.profile("lrc")
    axes = profile.plot(Figure().subplots())
    curve, linear, *_ = axes.get_lines()
    np.testing.assert_array_equal(curve.get_xydata().T, [profile.values, profile.root])
    np.testing.assert_array_equal(
        linear.get_xdata(), [profile.linear_lower, profile.linear_upper]
    )
    assert axes.get_xlabel() == "lrc"


@pytest.mark.slow  # several programs
def test_numbers_without_a_profile_are_refused(demand):
    with pytest.raises(ValueError, match=r"'rate'\)` knows the names lrc, c\[0\]."):
        demand.profile("rate")
    with pytest.raises(ValueError, match=r"profile\(confidence=...\)` got 1.5"):
        demand.profile("lrc", 1.5)
    with pytest.raises(ValueError, match=r"batch_size=...\)` got 0. Pass 1"):
        demand.profile("lrc", batch_size=0)
    with pytest.raises(ValueError, match="of a fit that failed: it got NaN"):
        _demand(weights=np.full(6, np.nan)).profile("lrc")
    with pytest.raises(ValueError, match="was called of a fixed number"):
        _demand(fixed=True).profile("lrc")
    with pytest.raises(ValueError, match="at their bounds. Pass `bounds`"):
        _demand(bounds=(-2.0, -0.9), start=-1.0).profile("lrc")
    exact = pj.varpro(
        saturation, np.zeros(6), {"lrc": -0.5}, TIMES, throw=False, fixed=True
    )
    with pytest.raises(ValueError, match="got a standard deviation of 0.0"):
        exact.profile("c[0]")
    double = lambda theta, times: jnp.tile(saturation(theta, times), 2)
    with pytest.raises(ValueError, match="but W Φ has no full rank"):
        _demand(double).profile("c[0]")
