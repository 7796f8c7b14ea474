"""What a report warns of, and what it says of numbers that are held or many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import varpro_cases as cases

import pseudojvp as pj
from pseudojvp._varpro.summary import _cosines


def _decays(theta, times):
    return jnp.exp(-times[:, None] * theta[None, :])


def _decays_of_data(data, start, basis=_decays, **keywords):
    times = jnp.linspace(0.0, 3.0, len(data))
    return pj.varpro(basis, data, jnp.asarray(start), times, throw=False, **keywords)


_TWO = np.exp(-np.linspace(0, 3, 16)) + np.exp(-4 * np.linspace(0, 3, 16))
_NOISY = _TWO + cases.noise(16, 0.01, 7)


@pytest.mark.slow  # a program each
@pytest.mark.parametrize(
    ("data", "start", "keywords", "warnings"),
    [
        pytest.param(
            _NOISY,
            [0.1, 30.0],
            {"max_steps": 1},
            ["The fit failed: it reached `max_steps`"],
            id="failed",
        ),
        pytest.param(
            np.where(np.arange(16) == 3, np.nan, _NOISY),
            [0.5, 8.0],
            {},
            ["The fit failed: it got NaN", "The standard deviations are NaN"],
            id="nan",
        ),
        pytest.param(
            _NOISY[::4],
            [0.8, 3.0],
            {},
            ["No degrees of freedom"],
            id="as-many-parameters-as-data",
        ),
        pytest.param(
            _NOISY,
            [1.5, 1.5],
            {"fixed": True},
            ["W Φ has the rank 1 at the fitted θ, with 2 columns", "Nearly parallel"],
            id="deficient",
        ),
        pytest.param(
            _NOISY,
            [1.5, 1.52],
            {"fixed": True},
            [
                "Correlated by more than 0.99: c[0] and c[1]",
                "Nearly parallel columns of W Φ",
            ],
            id="parallel",
        ),
        pytest.param(
            _NOISY,
            [1.5, 4.0],
            {"bounds": (1.2, 10.0)},
            ["At a bound: theta[0]. Errors are those with it held there."],
            id="bound",
        ),
        pytest.param(
            cases.noise(16, 0.01, 8) + np.exp(-2 * np.linspace(0, 3, 16)),
            [2.0, 5.0],
            {"fixed": True},
            ["Uncertain by more than their value: c[1]"],
            id="uncertain",
        ),
    ],
)
def test_warnings_tell_what_is_wrong(data, start, keywords, warnings):
    report = _decays_of_data(data, start, **keywords).summary()
    for warning in warnings:
        assert any(warning in told for told in report.warnings), report.warnings
    assert "\nWarnings\n" in str(report)
    assert "<li>" in report._repr_html_()


@pytest.mark.slow  # a program more
def test_what_is_held_has_a_remark_instead_of_errors():
    fit = _decays_of_data(
        _NOISY, [1.5, 4.0], bounds=(1.2, 10.0), fixed=np.array([0, 1], bool)
    )
    report = fit.summary()
    assert list(report.theta.remark) == ["at its lower bound", "fixed"]
    assert np.all(np.isnan(report.theta.standard_deviation))
    assert report.parameters == 2
    lines = str(report).splitlines()
    assert any(
        line.split() == ["theta[0]", "1.2", "at", "its", "lower", "bound"]
        for line in lines
    )
    assert any(line.split() == ["theta[1]", "4", "fixed"] for line in lines)


@pytest.mark.parametrize("distance", [0.5, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_cosines_of_columns_are_found_from_the_inverse_of_the_gram_matrix(
    distance, dtype
):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 4)).astype(dtype)
    if dtype == np.complex128:
        a = a * np.exp(1j * rng.normal(size=(1, 4)))
    a[:, 1] = a[:, 0] + distance * a[:, 1]
    a = a * np.array([1e-8, 1.0, 1e6, 1.0])
    r = np.linalg.qr(a / np.linalg.norm(a, axis=0), mode="r")
    size = np.linalg.norm(a, axis=0)
    inverse = np.linalg.inv(r)
    inverse = inverse @ inverse.conj().T / np.outer(size, size)
    want = np.abs(a.conj().T @ a) / np.outer(size, size)
    # (AᴴA)⁻¹ in 16 digits, of a condition number of 1/distance².
    tolerance = 1e-15 / distance**2
    np.testing.assert_allclose(_cosines(inverse), want, atol=max(tolerance, 1e-12))


@pytest.mark.slow  # a program more
def test_coefficients_at_a_bound_have_a_remark_and_do_not_count():
    bounds = np.array([0.0, 1.3]), np.inf
    fit = _decays_of_data(_NOISY, [0.8, 3.0], coefficient_bounds=bounds)
    report = fit.summary()
    free = np.asarray(fit.held_coefficients) == 0
    assert list(report.coefficients.remark) == [
        "" if one else "at its lower bound" for one in free
    ]
    assert np.sum(free) == 1
    assert report.parameters == 3
    held = ", ".join(report.coefficients.name[~free])
    assert f"At a bound: {held}. Errors are" in report.warnings[0]
    assert not any("rank" in warning for warning in report.warnings)
    assert "  at its lower bound\n" in str(report)


@pytest.mark.slow  # a program more
def test_priors_are_no_data_and_leave_no_criteria():
    prior = np.array([1.0, 4.0]), np.array([0.0, 1e3])
    fit = _decays_of_data(_NOISY, [0.8, 3.0], prior=prior)
    report = fit.summary()
    assert (report.data, report.parameters, report.degrees_of_freedom) == (16, 4, 13)
    np.testing.assert_allclose(report.chi_square, np.sum(fit.residual**2), rtol=1e-12)
    assert np.isnan(report.aic)
    assert "AIC" not in str(report).split("Warnings")[0]
    assert "With priors" in report.warnings[-1]
    with pytest.raises(ValueError, match="a fit with priors, or of another loss"):
        fit.profile("theta[0]")


@pytest.mark.slow  # a program more
def test_many_coefficients_are_cut_with_a_line_that_says_so():
    data = np.stack([_NOISY] * 15, axis=1)
    report = _decays_of_data(data, [0.5, 8.0]).summary()
    assert len(report.coefficients.name) == 30
    text = str(report)
    assert "c[1, 4]" in text
    assert "c[1, 5] " not in text
    assert "... and 10 more in `coefficients`" in text


@pytest.mark.slow  # a program more
def test_coefficients_change_their_name_where_theta_has_it():
    basis = lambda theta, times: _decays(theta["c"], times)
    times = jnp.linspace(0.0, 3.0, 16)
    report = pj.varpro(basis, _NOISY, {"c": jnp.array([0.5, 8.0])}, times).summary()
    assert list(report.theta.name) == ["c[0]", "c[1]"]
    assert list(report.coefficients.name) == ["coefficients[0]", "coefficients[1]"]


@pytest.mark.slow  # raises: not kept in the cache
def test_time_belongs_to_the_object_and_not_to_the_pytree():
    assert _decays_of_data(_NOISY, [0.5, 8.0]).summary().seconds is None
    timed = pj.varpro(_decays, _NOISY, np.array([0.5, 8.0]), np.linspace(0, 3, 16))
    again = pj.varpro(_decays, _NOISY, np.array([0.5, 8.0]), np.linspace(0, 3, 16))
    assert timed.summary().seconds > again.summary().seconds > 0
    assert f"{again.summary().seconds:.2g} s" in str(again.summary())
    assert jax.tree.structure(timed) == jax.tree.structure(again)
    assert jax.tree.map(lambda leaf: leaf, timed).summary().seconds is None
