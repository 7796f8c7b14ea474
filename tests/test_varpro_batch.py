"""`varpro_batch`: many fits in chunks, each as alone."""

import contextlib
import inspect
import io

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import pseudojvp as pj


_X = np.linspace(0, 3, 12)
_RATES = np.random.default_rng(0).uniform([0.4, 2.5], [0.8, 4.0], (7, 2))
_NOISE = 0.01 * np.random.default_rng(1).standard_normal((7, 12))
_DATA = np.exp(-_RATES[:, None, :] * _X[:, None]) @ [1.0, 2.0] + _NOISE
_START = np.array([0.5, 3.0])
_WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, (7, 12))
_BAD = 4


def _decays(theta, x):
    return jnp.exp(-jnp.outer(x, theta))


def _fit_all(**keywords):
    """Chunks of 3, 3 and 1, the middle one with a member that is NaN."""
    data = _DATA.copy()
    data[_BAD, 3] = np.nan
    settings = {"weights": _WEIGHTS, "batch_size": 3, "progress": True, "throw": False}
    return pj.varpro_batch(_decays, data, _START, _X, **(settings | keywords))


@pytest.fixture(scope="module")
def shown():
    """The fits, and what was on the screen."""
    with contextlib.redirect_stderr(io.StringIO()) as screen:
        fits = _fit_all()
        jax.block_until_ready(fits.theta)
        jax.effects_barrier()
    return fits, screen.getvalue()


@pytest.fixture(scope="module")
def fits(shown):
    return shown[0]


@pytest.fixture(scope="module")
def alone():
    """Fits of the first and of the last member, one by one."""

    def fit(i):
        weights = _WEIGHTS[i]
        return pj.varpro(_decays, _DATA[i], _START, _X, weights=weights, throw=False)

    return {i: fit(i) for i in (0, 6)}


@pytest.mark.parametrize("member", [0, 6])
@pytest.mark.parametrize("field", ["theta", "coefficients", "residual", "cost"])
@pytest.mark.slow  # two seconds each
def test_member_is_fitted_as_alone(fits, alone, member, field):
    got, truth = getattr(fits, field)[member], getattr(alone[member], field)
    np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.slow  # a second
def test_failed_member_is_told_and_is_the_only_one(fits):
    failed = np.asarray(fits.result != optx.RESULTS.successful)
    np.testing.assert_array_equal(failed, np.arange(7) == _BAD)


def test_every_other_member_is_near_its_true_rates(fits):
    good = np.arange(7) != _BAD
    np.testing.assert_allclose(fits.theta[good], _RATES[good], atol=0.3)


@pytest.mark.slow  # one more program
def test_member_by_index_has_the_statistics_of_the_fit_alone(fits, alone):
    got, truth = fits[6].statistics(), alone[6].statistics()
    np.testing.assert_allclose(got.theta_covariance, truth.theta_covariance, rtol=1e-8)
    assert got.degrees_of_freedom == 8


@pytest.mark.slow  # one more program
def test_statistics_of_all_members_have_the_batch_in_front(fits, alone):
    got, truth = fits.statistics(), alone[0].statistics()
    assert got.coefficient_covariance.shape == (7, 2, 2)
    np.testing.assert_allclose(
        got.coefficient_covariance[0], truth.coefficient_covariance, rtol=1e-8
    )


@pytest.mark.slow  # two more programs
def test_predictions_of_all_members_have_the_batch_in_front(fits, alone):
    points = np.linspace(0, 5, 4)
    got, truth = fits.predict(points), alone[6].predict(points)
    np.testing.assert_allclose(got.upper[6], truth.upper, rtol=1e-8)


def test_batch_has_a_length(fits):
    assert len(fits) == 7


def test_bar_counts_the_chunks(shown):
    assert "3/3" in shown[1]


@pytest.mark.slow  # one more program
def test_starts_and_args_may_differ_between_members():
    x = np.stack([_X, _X + 0.1])
    data = np.exp(-_RATES[:2, None, :] * x[..., None]) @ [1.0, 2.0]
    fits = pj.varpro_batch(
        _decays,
        data,
        1.1 * _RATES[:2],
        x,
        in_axes={"theta0": 0, "args": 0},
    )
    np.testing.assert_allclose(fits.theta, _RATES[:2], rtol=1e-8)


def test_defaults_are_those_of_a_single_fit():
    single, batch = (
        inspect.signature(f).parameters for f in (pj.varpro, pj.varpro_batch)
    )
    own = {"in_axes", "batch_size"}
    assert set(batch) - set(single) == own
    for name in set(batch) - own:
        assert batch[name].default == single[name].default


@pytest.mark.slow  # one more program
def test_shared_weights_are_those_of_each_member(alone):
    weights = _WEIGHTS[6]
    fits = pj.varpro_batch(_decays, _DATA[4:], _START, _X, weights=weights)
    np.testing.assert_allclose(fits.theta[2], alone[6].theta, rtol=1e-9)


@pytest.mark.slow  # a second
def test_throw_names_what_was_wrong():
    adjoint = pj.PseudoinverseAdjoint(throw=False)  # the program of `fits`
    with pytest.raises(Exception, match="got NaN, Inf or a negative weight"):
        jax.block_until_ready(_fit_all(throw=True, adjoint=adjoint).theta)


@pytest.mark.slow  # compiles a fit and its derivative: about 30 s on a busy machine
def test_gradient_with_respect_to_the_data_is_that_of_single_fits():
    def of_batch(data):
        return jnp.sum(pj.varpro_batch(_decays, data, _START, _X, batch_size=2).theta)

    def of_one(data):
        return jnp.sum(pj.varpro(_decays, data, _START, _X).theta)

    got = jax.jit(jax.grad(of_batch))(jnp.asarray(_DATA[:3]))
    truth = jax.jit(jax.grad(of_one))(jnp.asarray(_DATA[2]))
    np.testing.assert_allclose(got[2], truth, rtol=1e-8)


@pytest.mark.slow  # two more programs
@pytest.mark.optimised
def test_memory_beside_data_and_results_is_that_of_a_chunk():
    def temporary(batch):
        data = jnp.zeros((batch, 12))
        run = lambda data: pj.varpro_batch(_decays, data, _START, _X, batch_size=4).theta
        compiled = jax.jit(run).lower(data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(8), temporary(800)
    # The residuals of all members are among the results, here not asked for.
    assert large - small < 3 * 800 * 12 * 8


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"data": np.ones(12)}, r"shape \(members, m\)"),
        ({"data": np.ones((0, 12))}, "without empty axes"),
        ({"batch_size": 0}, "batch_size=...\\)` got 0"),
        ({"in_axes": {"data": 0}}, "got the keys \\['data'\\]"),
        ({"in_axes": {"args": 1}}, "got the axis 1 for `args`"),
        ({"in_axes": {"theta0": 0}}, "beside 7 members"),
        ({"theta0": np.ones(7)}, "one number for each, or 7 for all"),
        ({"theta0": np.array([1, 2])}, "leaf of dtype int64"),
    ],
)
def test_bad_arguments_are_named(keywords, match):
    arguments = {"data": _DATA, "theta0": _START, "args": _X} | keywords
    with pytest.raises((TypeError, ValueError), match=match):
        pj.varpro_batch(_decays, **arguments)


def test_weights_that_may_be_batched_or_shared_are_an_error():
    weights = np.ones((12, 12))
    with pytest.raises(ValueError, match="batched or shared"):
        pj.varpro_batch(_decays, np.ones((12, 12, 12)), _START, _X, weights=weights)
