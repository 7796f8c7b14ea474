"""A fit that failed tells so, raises only if asked, and has derivatives NaN."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases

import pseudojvp as pj


RESULTS = optx.RESULTS
MAX_STEPS = 50  # more than any search takes that is meant to end


def spoilt_basis(theta, args):
    """Finite only for rates above `args["lowest"]`; zero for a factor of zero."""
    phi = cases.basis(theta, args["points"])
    allowed = theta["rate"] > args["lowest"]
    return args["factor"] * jnp.where(allowed, phi, jnp.nan)


def fit(data=cases.DATA, weights=cases.WEIGHTS, *, start=None, throw=False, **args):
    """One compiled program for all calls."""
    defaults = {"points": cases.POINTS, "lowest": -100.0, "factor": 1.0}
    args = {
        name: jnp.asarray(value, float) for name, value in {**defaults, **args}.items()
    }
    start = {**cases.START, **(start or {})}
    return pj.varpro(
        spoilt_basis,
        data,
        {name: jnp.asarray(value, float) for name, value in start.items()},
        args,
        weights=weights,
        max_steps=MAX_STEPS,
        throw=throw,
        adjoint=pj.PseudoinverseAdjoint(throw=False),
    )


def with_entry(array, value):
    return array.at[3].set(value)


UNUSABLE = {
    "NaN in data": {"data": with_entry(cases.DATA, jnp.nan)},
    "Inf in data": {"data": with_entry(cases.DATA, jnp.inf)},
    "NaN in weights": {"weights": with_entry(cases.WEIGHTS, jnp.nan)},
    "Inf in weights": {"weights": with_entry(cases.WEIGHTS, jnp.inf)},
    "negative weight": {"weights": with_entry(cases.WEIGHTS, -1.0)},
    "NaN data of weight zero": {
        "data": with_entry(cases.DATA, jnp.nan),
        "weights": with_entry(cases.WEIGHTS, 0.0),
    },
    "NaN in theta0": {"start": {"rate": jnp.nan}},
    "Inf in theta0": {"start": {"rate": jnp.inf}},
}
NOT_FINITE = {
    "basis NaN at theta0": {"lowest": 2.0},
    "basis NaN everywhere": {"factor": jnp.nan},
    "basis Inf": {"factor": jnp.inf},
    "args NaN": {"points": with_entry(cases.POINTS, jnp.nan)},
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.slow  # a second each
def test_unusable_input_is_the_result(case):
    assert fit(**UNUSABLE[case]).result == RESULTS.nonfinite_input


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_input_raises_if_asked(case):
    with pytest.raises(eqx.EquinoxRuntimeError, match="NaN, Inf or a negative weight"):
        fit(**UNUSABLE[case], throw=True)


@pytest.mark.parametrize("case", NOT_FINITE)
def test_a_basis_that_is_not_finite_is_the_result(case):
    failed = fit(**NOT_FINITE[case])
    assert failed.result == RESULTS.nonfinite


@pytest.mark.parametrize("case", NOT_FINITE)
def test_a_basis_that_is_not_finite_raises_if_asked(case):
    with pytest.raises(eqx.EquinoxRuntimeError, match="basis or the offset is not fin"):
        fit(**NOT_FINITE[case], throw=True)


def test_search_that_is_stopped_by_nan_is_no_success():
    """The solution, 0.8, is beyond 1, where the basis becomes NaN."""
    failed = fit(lowest=1.0)
    assert not cases.successful(failed)
    assert failed.result != RESULTS.nonfinite_input


def test_search_goes_around_nan_on_its_way():
    """From 3, the first steps overshoot 0.6; the solution is at 0.8."""
    found = fit(start={"rate": 3.0}, lowest=0.6)
    want = fit()
    assert cases.successful(found)
    np.testing.assert_allclose(found.theta["rate"], want.theta["rate"], rtol=1e-9)


def test_stagnation_raises_if_asked():
    with pytest.raises(eqx.EquinoxRuntimeError, match="not stationary in theta"):
        fit(start={"rate": 1e-9}, throw=True)


def test_zero_basis_leaves_the_data():
    found = fit(factor=0.0)
    assert found.rank == 0
    np.testing.assert_array_equal(found.coefficients, 0)
    np.testing.assert_allclose(found.residual, cases.WEIGHTS * cases.DATA, rtol=1e-14)


def test_zero_data_have_zero_coefficients():
    found = fit(0 * cases.DATA)
    assert cases.successful(found)
    np.testing.assert_array_equal(found.coefficients, 0)
    assert found.cost == 0


def test_exact_data_are_fitted_to_rounding():
    theta = {"rate": jnp.array(0.7), "width": jnp.array([0.45])}
    found = fit(cases.basis(theta, cases.POINTS) @ jnp.array([1.0, -2.0, 3.0]))
    assert cases.successful(found)
    np.testing.assert_allclose(found.theta["rate"], 0.7, rtol=1e-12)
    np.testing.assert_allclose(found.coefficients, [1.0, -2.0, 3.0], rtol=1e-12)


@pytest.mark.slow  # one more program
def test_deficient_basis_fails_with_qr():
    def deficient(theta, points):
        phi = cases.basis(theta, points)
        return jnp.concatenate([phi, phi[:, :1]], axis=1)

    arguments = deficient, cases.DATA, cases.START, cases.POINTS
    keywords = {"adjoint": pj.PseudoinverseAdjoint(throw=False), "solver": pj.QR()}
    assert pj.varpro(*arguments, **keywords, throw=False).result == RESULTS.singular
    with pytest.raises(eqx.EquinoxRuntimeError, match="no full rank. Use `solver=Piv"):
        pj.varpro(*arguments, **keywords)


def test_too_few_steps_are_the_result():
    far = {"rate": 100.0, "width": [100.0]}
    failed = fit(start=far)
    assert failed.result == RESULTS.nonlinear_max_steps_reached
    assert failed.stats["num_steps"] == failed.stats["max_steps"] == MAX_STEPS
    assert failed.stats["relative_offset"] > 0.1
    with pytest.raises(eqx.EquinoxRuntimeError, match="Raise `max_steps`"):
        fit(start=far, throw=True)


@pytest.mark.slow  # one more program
def test_throw_raises_under_jit_as_well():
    with pytest.raises(eqx.EquinoxRuntimeError, match="NaN, Inf or a negative weight"):
        eqx.filter_jit(lambda data: fit(data, throw=True).theta)(
            UNUSABLE["NaN in data"]["data"]
        )


@pytest.mark.slow  # one more program
def test_derivatives_raise_if_the_fit_throws():
    def theta(data):
        arguments = cases.basis, data, cases.START, cases.POINTS
        return cases.raveled(pj.varpro(*arguments).theta)

    # The fit and its derivative fail, and either may be the first to say so.
    match = "NaN, Inf or a negative weight|linear solve of a derivative"
    with pytest.raises(eqx.EquinoxRuntimeError, match=match):
        eqx.filter_jit(jax.jacrev(theta))(with_entry(cases.DATA, jnp.nan))
