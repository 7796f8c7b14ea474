"""Several data sets in one fit: what SciPy finds for all parameters of all together."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize as spo
import scipy.special
from checks import assert_close, jit

import pseudojvp as pj


TIMES = np.linspace(0, 5, 24), np.linspace(0, 3, 17)
RATES, LEVEL = np.array([0.5, 3.0]), 0.3
AMPLITUDES = np.array([2.0, 1.0]), np.array([[1.0, 2.0, 0.3], [0.5, -1.0, 0.3]])
OUTLIERS = 5, (9, 1)


def model(theta, times):
    """Decays of shared rates; those of the second data set lie on lines of its own."""
    decays = jnp.exp(-jnp.outer(times, theta.shared["rates"]))
    if theta.own is None:
        return decays
    return decays + theta.own["level"] * jnp.asarray(times)[:, None]


def shift(theta, times):
    return 0.1 * jnp.cos(theta.shared["rates"][0] * times)


def start(rates=(0.4, 2.0), level=0.2):
    rates = jnp.asarray(rates, float)
    return pj.SharedAndOwn({"rates": rates}, (None, {"level": jnp.asarray(level)}))


def _numpy_models(rates, level):
    first, second = (np.exp(-np.outer(times, rates)) for times in TIMES)
    return first, second + level * TIMES[1][:, None]


def _data():
    rng = np.random.default_rng(0)
    exact = zip(_numpy_models(RATES, LEVEL), AMPLITUDES, strict=True)
    data = [phi @ c for phi, c in exact]
    return tuple(y + 0.02 * rng.standard_normal(y.shape) for y in data)


DATA = _data()
WEIGHTS = tuple(np.random.default_rng(3).uniform(0.5, 2, size) for size in (24, (17, 3)))
PARAMETERS = 3


def split(p):
    return p[:2], p[2], p[3:5], p[5:].reshape(2, 3)


def residual(p, data=DATA, weights=WEIGHTS, offset=False):
    rates, level, *cs = split(p)
    parts = []
    for d, (phi, c) in enumerate(zip(_numpy_models(rates, level), cs, strict=True)):
        r = data[d] - phi @ c
        if offset:
            of_times = 0.1 * np.cos(rates[0] * TIMES[d])
            r = r - (of_times if r.ndim == 1 else of_times[:, None])
        parts.append(np.ravel(weights[d] * r))
    return np.concatenate(parts)


def by_scipy(function=residual, **keywords):
    tolerances = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    first = np.concatenate([RATES, [LEVEL], *map(np.ravel, AMPLITUDES)])
    return spo.least_squares(function, first, "3-point", **tolerances, **keywords)


def fit(data=DATA, theta0=None, *, weights=WEIGHTS, **keywords):
    theta0 = start() if theta0 is None else theta0
    return pj.varpro(model, data, theta0, TIMES, weights=weights, **keywords)


def student(freedom):
    """Of 95 %."""
    return scipy.special.stdtrit(freedom, 0.975)


def numbers(found):
    """θ and then all coefficients."""
    theta, _ = jax.flatten_util.ravel_pytree(found.theta)
    return np.concatenate([theta, *map(np.ravel, found.coefficients)])


@ft.cache
def plain():
    return fit()


@pytest.mark.slow  # two seconds
def test_fit_is_that_of_all_parameters_together():
    got, expected = plain(), by_scipy()
    assert_close(numbers(got), expected.x, 1e-6)
    assert_close(got.cost, expected.cost, 1e-12)
    for mine, given in zip(got.residual, DATA, strict=True):
        assert mine.shape == given.shape
    assert_close(np.concatenate([np.ravel(r) for r in got.residual]), expected.fun, 1e-6)
    assert [np.ravel(rank).tolist() for rank in got.rank] == [[2], [2, 2, 2]]


@pytest.mark.slow  # three seconds
def test_errors_are_those_of_all_parameters_together():
    got, expected = plain().statistics(), by_scipy()
    freedom = expected.fun.size - expected.x.size
    covariance = np.linalg.inv(expected.jac.T @ expected.jac)
    covariance = covariance * 2 * expected.cost / freedom
    deviations = np.sqrt(np.diag(covariance))
    assert int(got.degrees_of_freedom) == freedom
    assert_close(got.theta_covariance, covariance[:3, :3], 1e-5)
    assert_close(got.theta_standard_deviation, deviations[:3], 1e-5)
    first, second = got.coefficient_standard_deviation
    assert_close(first, deviations[3:5], 1e-5)
    assert_close(second, deviations[5:].reshape(2, 3), 1e-5)
    assert_close(got.coefficient_covariance[0], covariance[3:5, 3:5], 1e-5)
    assert_close(got.cross_covariance[1][2], covariance[7::3, :3][:2], 1e-5)


def test_bands_are_those_of_all_parameters_together():
    points = np.array([0.5, 4.0]), np.array([0.1, 1.0, 2.5])
    got, expected = plain().predict(points), by_scipy()
    covariance = np.linalg.inv(expected.jac.T @ expected.jac)
    covariance = covariance * 2 * expected.cost / (75 - 11)

    def curve(p):
        rates, level, c, many = split(p)
        second = np.exp(-np.outer(points[1], rates)) + level * points[1][:, None]
        return np.concatenate(
            [np.exp(-np.outer(points[0], rates)) @ c, np.ravel(second @ many)]
        )

    slopes = spo.approx_fprime(expected.x, curve, 1e-7)
    deviation = np.sqrt(np.einsum("pi,ij,pj->p", slopes, covariance, slopes))
    both = [np.ravel(np.asarray(part.value)) for part in got]
    assert_close(np.concatenate(both), curve(expected.x), 1e-6)
    both = [np.ravel(np.asarray(part.standard_deviation)) for part in got]
    assert_close(np.concatenate(both), deviation, 1e-4)


def test_report_names_what_is_shared_and_whose_the_rest_is():
    report = plain().summary()
    assert list(report.theta.name) == [
        "shared.rates[0]",
        "shared.rates[1]",
        "own[1].level",
    ]
    assert list(report.coefficients.name[:3]) == ["c[0][0]", "c[0][1]", "c[1][0, 0]"]
    assert (report.data, report.parameters, report.rank, report.columns) == (75, 11, 4, 4)
    r = np.asarray(by_scipy().fun)
    log_weights = sum(np.sum(np.log(w**2)) for w in WEIGHTS)
    likelihood = 75 * (np.log(2 * np.pi * (r @ r) / 75) + 1) - log_weights
    assert_close(report.aic, likelihood + 2 * 12, 1e-8)
    strongest = report.correlations[0]
    of_sets = plain().statistics().correlation
    largest = max(np.max(np.abs(np.triu(m, 1))) for c in of_sets for m in [np.asarray(c)])
    assert_close(abs(strongest[2]), largest, 1e-10)
    assert len(set(report.correlations)) == len(report.correlations)


@pytest.mark.slow
def test_derivatives_are_those_of_refits():
    rng = np.random.default_rng(4)
    direction = tuple(rng.standard_normal(y.shape) for y in DATA)

    def of_data(step):
        data = tuple(y + step * d for y, d in zip(DATA, direction, strict=True))
        found = fit(data)
        theta, _ = jax.flatten_util.ravel_pytree(found.theta)
        return jnp.concatenate([theta, *(jnp.ravel(c) for c in found.coefficients)])

    _, forward = jit(lambda step: jax.jvp(of_data, (step,), (1.0,)))(0.0)
    h = 1e-4
    differences = [(of_data(s * h) - of_data(-s * h)) / (2 * s * h) for s in (1, 2)]
    expected = (4 * differences[0] - differences[1]) / 3
    assert_close(forward, expected, 1e-6)
    weights = jnp.asarray(rng.standard_normal(11))
    reverse = jit(jax.grad(lambda step: of_data(step) @ weights))(0.0)
    assert_close(reverse, forward @ weights, 1e-10)


@pytest.mark.slow
def test_second_derivatives_are_those_of_refits():
    def of_data(step):
        return fit((DATA[0] * (1 + step), DATA[1])).theta.shared["rates"][1]

    got = jit(jax.grad(jax.grad(of_data)))(0.0)
    h = 1e-2
    slopes = [jit(jax.grad(of_data))(s * h) for s in (-2.0, -1.0, 1.0, 2.0)]
    expected = (slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / (12 * h)
    assert_close(got, expected, 1e-5)


@pytest.mark.slow
def test_fit_of_outliers():
    data = DATA[0].copy(), DATA[1].copy()
    for part, where in zip(data, OUTLIERS, strict=True):
        part[where] += 0.5
    got = fit(data, loss="soft_l1", f_scale=0.02)
    in_units = lambda p: residual(p, data) / 0.02
    expected = by_scipy(in_units, loss="soft_l1")
    assert_close(numbers(got), expected.x, 1e-6)
    assert_close(got.cost, expected.cost * 0.02**2, 1e-10)


@pytest.mark.slow
def test_gradient_of_a_fit_of_outliers_is_that_of_refits():
    data = DATA[0].copy(), DATA[1]
    data[0][5] += 0.5

    def rate(step):
        moved = data[0], data[1] + step * jnp.cos(jnp.asarray(TIMES[1]))[:, None]
        return fit(moved, loss="cauchy", f_scale=0.05).theta.shared["rates"][1]

    h = 1e-4
    slopes = [(rate(s * h) - rate(-s * h)) / (2 * s * h) for s in (1, 2)]
    assert_close(jit(jax.grad(rate))(0.0), (4 * slopes[0] - slopes[1]) / 3, 1e-6)


@pytest.mark.slow
def test_coefficients_between_bounds_of_one_data_set():
    got = fit(coefficient_bounds=((None, np.zeros(2)), (None, np.inf)))
    # With the one at its bound left out by hand.
    free = np.delete(np.arange(11), 9)

    def without(p):
        full = np.zeros(11)
        full[free] = p
        return residual(full)

    first = np.concatenate([RATES, [LEVEL], *map(np.ravel, AMPLITUDES)])[free]
    found = spo.least_squares(without, first, "3-point", xtol=1e-15, ftol=1e-15)
    assert_close(numbers(got)[free], found.x, 1e-6)
    assert numbers(got)[9] == 0
    assert not np.any(got.held_coefficients[0])
    assert np.flatnonzero(got.held_coefficients[1]).tolist() == [4]


@pytest.mark.slow
def test_priors_count_once():
    of_rates, of_c = (np.array([0.4, 2.5]), 30.0), (0.5, 7.0)
    theta_prior = (
        pj.SharedAndOwn({"rates": of_rates[0]}, (None, {"level": 0.0})),
        pj.SharedAndOwn({"rates": np.full(2, of_rates[1])}, (None, {"level": 0.0})),
    )
    got = fit(prior=theta_prior, coefficient_prior=((of_c[0], None), (of_c[1], None)))

    def with_rows(p):
        of_theta = np.sqrt(of_rates[1]) * (p[:2] - of_rates[0])
        return np.concatenate(
            [residual(p), of_theta, np.sqrt(of_c[1]) * (p[3:5] - of_c[0])]
        )

    expected = by_scipy(with_rows)
    assert_close(numbers(got), expected.x, 1e-6)
    assert_close(got.cost, expected.cost, 1e-12)
    statistics = got.statistics()
    freedom = 75 + 4 - 11
    assert int(statistics.degrees_of_freedom) == freedom
    covariance = (
        np.linalg.inv(expected.jac.T @ expected.jac) * 2 * expected.cost / freedom
    )
    deviations = np.sqrt(np.diag(covariance))
    assert_close(statistics.theta_standard_deviation, deviations[:3], 1e-5)
    assert_close(statistics.coefficient_standard_deviation[0], deviations[3:5], 1e-5)


@pytest.mark.slow
def test_offsets_and_data_of_weight_zero():
    weights = WEIGHTS[0].copy(), WEIGHTS[1].copy()
    weights[0][3], weights[1][4, 1] = 0, 0
    data = DATA[0].copy(), DATA[1].copy()
    data[0][3], data[1][4, 1] = 1e3, -1e3
    got = fit(data, weights=weights, offset=shift)
    expected = by_scipy(lambda p: residual(p, data, weights, offset=True))
    assert_close(numbers(got), expected.x, 1e-6)
    assert int(got.statistics().degrees_of_freedom) == 73 - 11


@pytest.mark.slow
def test_one_offset_and_one_basis_for_one_data_set_each():
    flat = lambda theta, times: jnp.stack([jnp.ones_like(times), times], axis=1)
    got = pj.varpro(
        (lambda rates, times: jnp.exp(-jnp.outer(times, rates)), flat),
        (DATA[0], DATA[1][:, 0]),
        jnp.array([0.2, 1.0]),
        TIMES,
        offset=(None, lambda rates, times: jnp.exp(-rates[0] * times)),
    )

    def together(p):
        first = np.exp(-np.outer(TIMES[0], p[:2])) @ p[2:4]
        second = np.exp(-p[0] * TIMES[1]) + p[4] + p[5] * TIMES[1]
        return np.concatenate([DATA[0] - first, DATA[1][:, 0] - second])

    begin = np.array([0.5, 3.0, 2, 1, 0, 0])
    expected = spo.least_squares(together, begin, "3-point", xtol=1e-15, ftol=1e-15)
    assert_close(numbers(got), expected.x, 1e-6)


@pytest.mark.slow
def test_columns_of_one_data_set_are_compressed_alone():
    """Of more columns than rows, in one of two data sets."""
    rng = np.random.default_rng(5)
    phi = _numpy_models(RATES, LEVEL)[1]
    many = phi @ rng.uniform(1, 2, (2, 40)) + 0.02 * rng.standard_normal((17, 40))
    data = DATA[0], many
    got = pj.varpro(model, data, start(), TIMES)
    # The same, by weights of each column, of which none is compressed.
    whole = pj.varpro(model, data, start(), TIMES, weights=(None, np.ones((17, 40))))
    assert_close(numbers(got), numbers(whole), 1e-8)
    first, second = got.statistics(), whole.statistics()
    assert_close(first.theta_covariance, second.theta_covariance, 1e-8)
    assert_close(first.cross_covariance[1], second.cross_covariance[1], 1e-7)


@pytest.mark.slow
def test_one_of_several_may_be_complex():
    def oscillation(theta, times):
        wave = jnp.exp(jax.lax.complex(-theta[0] * times, theta[1] * times))
        return wave[:, None]

    def decay(theta, times):
        return jnp.exp(-theta[0] * times)[:, None]

    rng = np.random.default_rng(6)
    truth = jnp.array([0.5, 4.0])
    first = np.asarray(oscillation(truth, TIMES[0])) @ np.array([1 - 0.5j])
    first = first + 0.05 * (rng.standard_normal(24) + 1j * rng.standard_normal(24))
    second = np.asarray(decay(truth, TIMES[1])) @ np.array([2.0])
    second = second + 0.05 * rng.standard_normal(17)
    got = pj.varpro((oscillation, decay), (first, second), jnp.array([0.4, 3.8]), TIMES)

    def together(p):
        wave = np.exp((-p[0] + 1j * p[1]) * TIMES[0]) * (p[2] + 1j * p[3])
        r = first - wave
        return np.concatenate([r.real, r.imag, second - p[4] * np.exp(-p[0] * TIMES[1])])

    begin = np.array([0.5, 4.0, 1, -0.5, 2])
    expected = spo.least_squares(together, begin, "3-point", xtol=1e-15, ftol=1e-15)
    assert_close(got.theta, expected.x[:2], 1e-6)
    assert_close(got.coefficients[0][0], expected.x[2] + 1j * expected.x[3], 1e-6)
    assert_close(got.coefficients[1][0], expected.x[4], 1e-6)
    statistics = got.statistics()
    covariance = np.linalg.inv(expected.jac.T @ expected.jac) * 2 * expected.cost / 60
    deviations = np.sqrt(np.diag(covariance))
    assert int(statistics.degrees_of_freedom) == 60
    assert_close(statistics.theta_standard_deviation, deviations[:2], 1e-5)
    table = got.summary().coefficients
    assert np.isnan(table.lower[0])
    half = table.upper[1] - got.coefficients[1][0]
    assert_close(half, student(60) * deviations[4], 1e-5)
    assert f"[{table.lower[1]:.6g}, {table.upper[1]:.6g}]" in str(got.summary())
    both = np.hypot(*deviations[2:4])
    assert_close(statistics.coefficient_standard_deviation[0][0], both, 1e-5)


@pytest.mark.slow
def test_bounded_and_fixed_parameters():
    own = pj.SharedAndOwn({"rates": False}, (None, {"level": True}))
    got = fit(theta0=start(level=0.25), fixed=own)
    assert int(got.held.own[1]["level"]) == 2
    expected = by_scipy(lambda p: residual(np.concatenate([p[:2], [0.25], p[3:]])))
    assert_close(got.cost, expected.cost, 1e-10)
    upper = pj.SharedAndOwn({"rates": np.array([np.inf, 2.0])}, (None, {"level": np.inf}))
    bounded = fit(bounds=(0.0, upper))
    assert float(bounded.theta.shared["rates"][1]) == 2.0
    assert bounded.held.shared["rates"].tolist() == [0, 1]


@pytest.mark.slow
def test_profiles_of_theta_and_of_a_coefficient():
    """The ends are where SciPy's fits of the others have risen by t² s²/2."""
    got = plain()
    freedom, cost = 64, float(got.cost)
    for name, place in (("shared.rates[1]", 1), ("c[0][1]", 4), ("c[1][1, 2]", 10)):
        found = got.profile(name)
        rise = found.quantile**2 * (2 * cost / freedom) / 2
        for end in (found.lower, found.upper):
            held = lambda p, end=end, place=place: residual(np.insert(p, place, end))
            others = np.delete(numbers(got), place)
            again = spo.least_squares(held, others, "3-point", xtol=1e-15, ftol=1e-15)
            assert_close(again.cost - cost, rise, 1e-4)


@pytest.mark.slow
def test_batches_and_starts_are_the_single_fits():
    rng = np.random.default_rng(7)
    batch = tuple(
        np.stack([y, y + 0.02 * rng.standard_normal(y.shape), y[...] * 1.5]) for y in DATA
    )
    fits = pj.varpro_batch(model, batch, start(), TIMES, weights=WEIGHTS)
    assert len(fits) == 3
    for i in range(3):
        alone = fit(tuple(part[i] for part in batch))
        assert_close(numbers(fits[i]), numbers(alone), 1e-8)
        covariance = fits[i].statistics().theta_covariance
        assert_close(covariance, alone.statistics().theta_covariance, 1e-8)
    assert fits.statistics().coefficient_covariance[1].shape == (3, 3, 2, 2)
    assert fits.predict(TIMES)[1].value.shape == (3, 17, 3)
    chunks = ((part[:2], part[2:]) for part in batch)
    streamed = list(
        pj.varpro_batch(
            model, iter(list(zip(*chunks, strict=True))), start(), TIMES, weights=WEIGHTS
        )
    )
    rates = np.concatenate([np.asarray(s.theta.shared["rates"]) for s in streamed])
    assert_close(rates, fits.theta.shared["rates"], 1e-12)

    starts = jax.tree.map(lambda a, b: jnp.stack([a, b]), start(), start((0.6, 3.5), 0.4))
    tried = pj.varpro_multistart(model, DATA, starts, TIMES, weights=WEIGHTS)
    assert int(tried.count) == 2
    assert_close(numbers(tried.best), numbers(plain()), 1e-8)
    assert_close(tried.best.residual[1], plain().residual[1], 1e-8)
    deviations = tried.best.statistics().theta_standard_deviation
    assert_close(deviations, plain().statistics().theta_standard_deviation, 1e-6)


@pytest.mark.slow
def test_under_vmap_and_in_single_precision():
    scales = jnp.array([1.0, 1.5])
    mapped = jax.vmap(lambda s: fit((s * DATA[0], s * DATA[1])).coefficients[1])(scales)
    assert_close(mapped[1], 1.5 * mapped[0], 1e-7)
    narrow = tuple(y.astype(np.float32) for y in DATA)
    theta0 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), start())
    times = tuple(t.astype(np.float32) for t in TIMES)
    got = pj.varpro(model, narrow, theta0, times)
    assert got.coefficients[1].dtype == jnp.float32
    assert_close(numbers(got), numbers(fit(weights=None)), 1e-3)


@pytest.mark.slow
def test_projected_residual_of_several():
    function = pj.projected_residual(model, DATA, weights=WEIGHTS)
    theta = start(RATES, LEVEL)
    first, second = function(theta, TIMES)
    jacobian = function.jacobian(theta, TIMES)
    assert jacobian[0].shape == (24, 3)
    assert jacobian[1].shape == (17, 3, 3)
    assert not np.any(jacobian[0][:, 2])
    c = function.coefficients(theta, TIMES)
    expected = residual(np.concatenate([RATES, [LEVEL], *map(np.ravel, c)]))
    assert_close(np.concatenate([np.ravel(first), np.ravel(second)]), expected, 1e-12)
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    by_differences = [
        (function(unravel(flat + 1e-6 * unit), TIMES)[1] - second) / 1e-6
        for unit in np.eye(3)
    ]
    assert_close(jacobian[1], np.stack(by_differences, axis=-1), 1e-4)


@pytest.mark.slow  # a second
def test_a_member_that_fails_is_told():
    data = DATA[0], np.where(np.arange(17)[:, None] == 3, np.nan, DATA[1])
    got = fit(data, throw=False)
    assert got.result != optx.RESULTS.successful
    with pytest.raises(Exception, match="got NaN"):
        fit(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": TIMES[:1]}, "a tuple of 1 beside 2 data sets"),
        ({"args": TIMES[0]}, "beside 2 data sets"),
        ({"data": (*DATA, DATA[0])}, "a tuple of 2 beside 3 data sets"),
        ({"data": ()}, "empty tuple"),
        ({"data": DATA[0], "args": TIMES[0]}, "no tuple"),
        ({"weights": (None,)}, "a tuple of 1 beside 2 data sets"),
        ({"weights": (np.ones(5), None)}, "In data set 0"),
        ({"basis": (model,)}, "a tuple of 1 beside 2 data sets"),
        ({"weights": [np.ones(24), np.ones(17)]}, r"weights=...\)` got a list beside 2"),
        ({"weights": [None, np.ones(17)]}, "got a list beside 2 data sets. Pass a tuple"),
        ({"args": list(TIMES)}, "a list of 2 beside 2 data sets. Pass a tuple"),
        ({"data": list(DATA)}, "got a list of arrays. Pass a tuple of them for several"),
        ({"data": (1.0, 2.0)}, r"shape \(\)"),
        ({"coefficient_bounds": ((0, 0, 0), np.inf)}, "a tuple of 3 beside 2"),
        ({"coefficient_bounds": ((1, 0), (0, 1))}, "lower bound above"),
        ({"coefficient_prior": ((0.0,), 1.0)}, "a tuple of 1 beside 2"),
        ({"args": TIMES[::-1]}, "one row for each row"),
    ],
)
def test_bad_input_is_told(change, message):
    keywords = {"basis": model, "data": DATA, "theta0": start(), "args": TIMES} | change
    order = [keywords.pop(name) for name in ("basis", "data", "theta0", "args")]
    with pytest.raises((TypeError, ValueError), match=message):
        pj.varpro(*order, **keywords)


def test_members_of_a_batch_must_be_as_many():
    batch = np.ones((3, 24)), np.ones((2, 17))
    with pytest.raises(ValueError, match="same number of members"):
        pj.varpro_batch(model, batch, start(), TIMES)


def test_plots_have_a_pair_of_axes_for_each():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    axes = plain().plot()
    assert axes.shape == (2, 2)
    assert axes[0, 1].get_title(loc="left") == "data set 1"
    assert len(axes[0, 1].collections) == 3
    with pytest.raises(ValueError, match="for each of 2 data sets"):
        plain().plot(pyplot.subplots(2)[1])
    pyplot.close("all")


def test_a_wrong_prior_of_theta_is_not_said_to_be_of_one_data_set():
    with pytest.raises(ValueError, match="precision that is negative") as told:
        fit(prior=(0.4, -1.0))
    assert not getattr(told.value, "__notes__", [])
