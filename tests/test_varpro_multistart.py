"""Many starts are fitted as each alone, sorted by their costs, and counted."""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases
from matplotlib.figure import Figure

import pseudojvp as pj


matplotlib.use("Agg")

TIMES = np.linspace(0, 5, 40)
LOWER, UPPER = {"f": 1.0, "g": np.ones(1)}, {"f": 15.0, "g": np.full(1, 15.0)}


def waves(theta, times):
    """Not finite below a frequency of 2."""
    phase = times[:, None] * jnp.stack([theta["f"], theta["g"][0]])[None, :]
    phase = jnp.where(theta["f"] > 2, phase, jnp.nan)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)


_TRUTH = {"f": jnp.array(7.0), "g": jnp.array([12.0])}
_EXACT = np.asarray(waves(_TRUTH, TIMES)) @ np.array([1.0, 0.7, 0.5, 0.1])
DATA = _EXACT + cases.noise(40, 0.1, 0)
WEIGHTS = np.random.default_rng(1).uniform(0.5, 2, 40)
STARTS = pj.varpro_starts(jax.random.key(0), LOWER, UPPER, 24)
FAILED = np.asarray(STARTS["f"]) <= 2


def _fits(data=DATA, starts=STARTS, weights=WEIGHTS, **keywords):
    keywords = {"throw": False, "batch_size": 7, **keywords}
    return pj.varpro_multistart(waves, data, starts, TIMES, weights=weights, **keywords)


@pytest.fixture(scope="module", name="fits")
def _fits_of_all():
    return _fits()


@pytest.mark.slow  # the program of the fits
def test_costs_ascend_and_failed_fits_are_last(fits):
    successful = np.asarray(fits.result == optx.RESULTS.successful)
    number = np.sum(successful)
    assert len(fits) == 24
    assert np.all(successful[:number])
    assert 0 < np.sum(FAILED) <= 24 - number
    assert set(np.flatnonzero(FAILED)) <= set(np.asarray(fits.start)[number:].tolist())
    assert np.all(np.diff(fits.cost[:number]) >= 0)
    assert sorted(fits.start.tolist()) == list(range(24))


@pytest.mark.slow  # one more program
def test_each_fit_is_that_of_its_start_alone(fits):
    one = eqx.filter_jit(
        lambda start: pj.varpro(waves, DATA, start, TIMES, weights=WEIGHTS, throw=False)
    )
    for place in (0, 1, 5, 12):
        start = jax.tree.map(lambda leaf, i=fits.start[place]: leaf[i], STARTS)
        fit = one(start)
        np.testing.assert_allclose(fits.cost[place], fit.cost, rtol=1e-9)
        for name in ("f", "g"):
            np.testing.assert_allclose(
                fits.theta[name][place], fit.theta[name], rtol=1e-6
            )
        np.testing.assert_allclose(
            np.abs(fits.coefficients[place]), np.abs(fit.coefficients), atol=1e-5
        )


@pytest.mark.slow  # the program of the fits
def test_best_has_the_residual_of_the_least_cost(fits):
    best = fits.best
    model = np.asarray(waves(best.theta, TIMES) @ best.coefficients)
    np.testing.assert_allclose(best.residual, WEIGHTS * (DATA - model), atol=1e-12)
    assert best.cost == fits.cost[0] == np.nanmin(fits.cost)
    np.testing.assert_allclose(best.cost, np.sum(best.residual**2) / 2, rtol=1e-12)
    assert np.sort([best.theta["f"], best.theta["g"][0]]).round() == pytest.approx(
        [7, 12]
    )


@pytest.mark.slow  # the program of the fits
def test_starts_that_reached_the_least_cost_are_counted(fits):
    near = np.abs(fits.cost - fits.cost[0]) < 1e-6 * fits.cost[0]
    assert fits.count == np.sum(near)
    assert 0 < fits.count < 24 - np.sum(FAILED)


@pytest.mark.slow  # one more program
def test_residuals_of_zero_are_reached_to_rounding():
    fits = _fits(_EXACT, weights=None)
    assert fits.cost[0] < 1e-25
    assert fits.count == np.sum(fits.cost[fits.result == optx.RESULTS.successful] < 1e-22)
    assert fits.count > 1


@pytest.mark.slow  # one more program
def test_a_negative_cost_is_reached_as_well():
    loss = lambda z: -jnp.exp(-z)
    found = _fits(starts={"f": STARTS["f"][:4], "g": STARTS["g"][:4]}, loss=loss)
    assert found.cost[0] < 0
    cost = np.asarray(found.cost)
    assert found.count == np.sum(cost - cost[0] <= 1e-6 * -cost[0])
    assert found.count >= 1


@pytest.mark.slow  # one more program
def test_columns_share_their_starts():
    data = np.stack([DATA, 2 * DATA], axis=1)
    fits = _fits(data, batch_size=100)
    assert fits.coefficients.shape == (24, 4, 2)
    assert fits.best.residual.shape == (40, 2)
    model = np.asarray(waves(fits.best.theta, TIMES) @ fits.best.coefficients)
    want = WEIGHTS[:, None] * (data - model)
    np.testing.assert_allclose(fits.best.residual, want, atol=1e-12)


@pytest.mark.slow  # the program of the fits
def test_coefficients_keep_their_bounds():
    fits = _fits(coefficient_bounds=(0.3, np.inf))
    assert np.all(fits.coefficients[fits.result == optx.RESULTS.successful] >= 0.3)
    best = fits.best
    assert np.any(best.held_coefficients == -1)
    model = np.asarray(waves(best.theta, TIMES) @ best.coefficients)
    np.testing.assert_allclose(best.residual, WEIGHTS * (DATA - model), atol=1e-12)


@pytest.mark.slow  # the program of the fits
def test_residuals_of_other_fits_are_not_kept(fits):
    assert all(
        leaf.shape[:2] != (24, 40) for leaf in jax.tree.leaves(fits) if eqx.is_array(leaf)
    )


@pytest.mark.slow  # one more program
def test_best_is_a_fit_with_a_report(fits):
    summary = fits.best.summary()
    assert list(summary.theta.name) == ["f", "g[0]"]
    assert summary.successful
    assert summary.degrees_of_freedom == 40 - 6


@pytest.mark.slow  # the program of the fits
def test_plot_has_the_costs_in_three_kinds(fits):
    axes = fits.plot(Figure().subplots())
    dots = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
    np.testing.assert_array_equal(np.concatenate(dots), fits.cost)
    failed = int(np.sum(np.asarray(fits.result != optx.RESULTS.successful)))
    count = int(fits.count)
    assert [len(kind) for kind in dots] == [count, 24 - count - failed, failed]
    missing = int(np.sum(np.isnan(fits.cost)))
    assert missing > 0
    assert axes.get_legend().get_texts()[2].get_text() == (
        f"failed: {failed}, {missing} of them at no cost"
    )


@pytest.mark.slow  # raises: not kept in the cache
def test_only_if_every_start_fails_there_is_an_error():
    some = _fits(throw=True)
    assert some.best.result == optx.RESULTS.successful
    starts = jax.tree.map(lambda leaf: leaf[FAILED], STARTS)
    none = _fits(starts=starts)
    assert none.count == 0
    assert none.best.result != optx.RESULTS.successful
    with pytest.raises(Exception, match="met NaN or Inf: the basis"):
        _fits(starts=starts, throw=True)


@pytest.mark.slow  # a derivative's program
def test_derivatives_are_refused_and_a_fit_from_the_best_has_them(fits):
    with pytest.raises(Exception, match="has no derivative. Fit once more"):
        jax.grad(lambda data: _fits(data).best.theta["f"])(jnp.asarray(DATA))

    def frequency(data):
        start = fits.best.theta
        fit = pj.varpro(waves, data, start, TIMES, weights=WEIGHTS, throw=False)
        return fit.theta["f"]

    slope = jax.grad(frequency)(jnp.asarray(DATA))
    noise = 0.1 * np.linalg.norm(slope)
    assert 0.001 < noise < 0.1


def test_starts_of_different_numbers_are_refused():
    odd = {"f": STARTS["f"], "g": STARTS["g"][:5]}
    with pytest.raises(ValueError, match=r"got leaves of shapes \[\(24,\), \(5, 1\)\]"):
        _fits(starts=odd)
    with pytest.raises(ValueError, match="Put the axis of the starts in front"):
        _fits(starts=_TRUTH)
    with pytest.raises(ValueError, match=r"batch_size=...\)` got 0"):
        _fits(batch_size=0)


@pytest.mark.parametrize("log", [False, True])
def test_each_part_of_a_range_has_one_start(log):
    lower, upper = np.array([[0.1, 1.0]]), np.array([[10.0, 1000.0]])
    starts = pj.varpro_starts(jax.random.key(3), {"a": lower}, {"a": upper}, 50, log=log)
    to = np.log if log else np.asarray
    place = (to(starts["a"]) - to(lower)) / (to(upper) - to(lower)) * 50
    assert place.shape == (50, 1, 2)
    parts = np.sort(np.floor(place[:, 0]), axis=0)
    np.testing.assert_array_equal(parts, np.stack([np.arange(50)] * 2, axis=1))
    assert abs(np.corrcoef(place[:, 0].T)[0, 1]) < 0.5  # each in an order of its own


def test_bounds_of_starts_that_differ_are_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\[\(2,\)\] and \[\(\)\]. Pass the same"):
        pj.varpro_starts(key, np.zeros(2), 1.0, 3)
    with pytest.raises(ValueError, match=r"varpro_starts\(number=...\)` got 0"):
        pj.varpro_starts(key, 0.0, 1.0, 0)
    for lower, upper in ((2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"got the bounds .* lower ≤ upper\."):
            pj.varpro_starts(key, np.array([0.5, lower]), np.array([1.0, upper]), 3)
    with pytest.raises(ValueError, match="0.0 and 1.0.*positive for `log=True`"):
        pj.varpro_starts(key, 0.0, 1.0, 3, log=True)
