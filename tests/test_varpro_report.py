"""The report of a fit has its numbers under their names, and warns of what is wrong."""

import dataclasses
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import varpro_cases as cases

import pseudojvp as pj


WEIGHTS = cases.WEIGHTS.at[5].set(0.0)
_NIST = pathlib.Path(__file__).parents[1] / "examples" / "nist_strd.json"


@pytest.fixture(scope="module", name="fit")
def _fit():
    return cases.fit(weights=WEIGHTS)


@pytest.fixture(scope="module", name="report")
def _report(fit):
    return fit.summary(0.9)


def _standard_deviations(fit):
    statistics = fit.statistics()
    return statistics.theta_standard_deviation, statistics.coefficient_standard_deviation


@pytest.mark.slow  # a second
def test_names_are_those_of_the_pytree(report):
    assert list(report.theta.name) == ["rate", "width[0]"]
    assert list(report.coefficients.name) == ["c[0]", "c[1]", "c[2]"]


def test_intervals_are_quantiles_of_student_times_standard_deviations(fit, report):
    t = scipy.stats.t.ppf(0.95, 15 - 5)
    values = cases.raveled(fit.theta), fit.coefficients
    for estimates, value, deviation in zip(
        (report.theta, report.coefficients),
        values,
        _standard_deviations(fit),
        strict=True,
    ):
        np.testing.assert_array_equal(estimates.value, value)
        np.testing.assert_allclose(estimates.standard_deviation, deviation, rtol=1e-14)
        np.testing.assert_allclose(estimates.lower, value - t * deviation, rtol=1e-12)
        np.testing.assert_allclose(estimates.upper, value + t * deviation, rtol=1e-12)
        np.testing.assert_allclose(
            estimates.relative_error, deviation / abs(value), rtol=1e-12
        )


def test_data_of_weight_zero_do_not_count(report):
    assert (report.data, report.parameters, report.degrees_of_freedom) == (15, 5, 10)


def test_r_squared_is_about_the_weighted_mean(report):
    square, data = np.asarray(WEIGHTS) ** 2, np.asarray(cases.DATA)
    mean = np.average(data, weights=square)
    total = np.sum(square * (data - mean) ** 2)
    np.testing.assert_allclose(
        report.r_squared, 1 - report.chi_square / total, rtol=1e-12
    )


def test_aic_and_bic_are_of_the_likelihood_at_its_maximum(fit, report):
    counted = np.asarray(WEIGHTS) > 0
    weights, r = np.asarray(WEIGHTS)[counted], np.asarray(fit.residual)[counted]
    sigma = np.sqrt(np.mean(r**2)) / weights
    log_likelihood = np.sum(scipy.stats.norm.logpdf(r / weights, scale=sigma))
    np.testing.assert_allclose(report.aic, 2 * 6 - 2 * log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(
        report.bic, 6 * np.log(15) - 2 * log_likelihood, rtol=1e-12
    )


def test_of_known_deviations_aic_is_chi_square_and_the_parameters(fit):
    report = fit.summary(0.9, absolute_sigma=True)
    chi_square = np.sum(np.asarray(fit.residual) ** 2)
    np.testing.assert_allclose(report.aic, chi_square + 2 * 5, rtol=1e-12)
    np.testing.assert_allclose(report.bic, chi_square + 5 * np.log(15), rtol=1e-12)
    half = (report.theta.upper - report.theta.lower) / 2
    want = scipy.stats.norm.ppf(0.95) * report.theta.standard_deviation
    np.testing.assert_allclose(half, want, rtol=1e-9)


def test_correlations_are_the_strongest_first_with_their_names(fit, report):
    matrix = np.asarray(fit.statistics().correlation)
    names = [*report.theta.name, *report.coefficients.name]
    assert len(report.correlations) == np.sum(
        np.abs(matrix[np.triu_indices(5, 1)]) >= 0.1
    )
    for a, b, value in report.correlations:
        assert value == matrix[names.index(a), names.index(b)]
    magnitudes = [abs(value) for *_, value in report.correlations]
    assert magnitudes == sorted(magnitudes, reverse=True)


def test_a_good_fit_has_no_warnings(report):
    assert report.successful
    assert report.failure == ""
    assert report.warnings == []


def test_text_has_a_line_for_each_number(report):
    text = str(report)
    assert text.startswith("Fit by variable projection: converged\n15 data, 5 parameters")
    for name in (*report.theta.name, *report.coefficients.name):
        assert f"\n  {name} " in text
    assert "90 % interval" in text


def test_html_has_the_same_cells_escaped(report):
    text = report._repr_html_()
    assert "<td>width[0]</td>" in text
    assert f"<td>{report.theta.value[0]:.6g}</td>" in text
    names = np.array(["<b>", "width"], dtype=object)
    odd = dataclasses.replace(report, theta=report.theta._replace(name=names))
    assert "<td>&lt;b&gt;</td>" in odd._repr_html_()


@pytest.mark.slow  # a program more
def test_coefficients_of_columns_have_two_indices():
    fit = cases.fit(cases.columns(2), jnp.stack([WEIGHTS, cases.WEIGHTS], axis=1))
    report = fit.summary()
    names = [f"c[{i}, {j}]" for i in range(3) for j in range(2)]
    assert list(report.coefficients.name) == names
    np.testing.assert_array_equal(report.coefficients.value, fit.coefficients.ravel())
    deviation = fit.statistics().coefficient_standard_deviation
    np.testing.assert_allclose(
        report.coefficients.standard_deviation, deviation.ravel(), rtol=1e-12
    )
    correlation = np.asarray(fit.statistics().correlation)
    told = {(a, b): value for a, b, value in report.correlations}
    assert told["rate", "c[0, 1]"] == correlation[1, 0, 2]
    assert told["c[0, 0]", "c[2, 0]"] == correlation[0, 2, 4]
    assert report.data == 31
    square, data = (
        np.stack([WEIGHTS, cases.WEIGHTS], 1) ** 2,
        np.asarray(cases.columns(2)),
    )
    total = np.sum(square * (data - np.average(data, 0, square)) ** 2)
    np.testing.assert_allclose(
        report.r_squared, 1 - report.chi_square / total, rtol=1e-12
    )


@pytest.mark.slow  # a program more
def test_r_squared_leaves_out_a_column_of_weight_zero():
    weights = jnp.stack([jnp.zeros(16), cases.WEIGHTS], axis=1)
    report = cases.fit(cases.columns(2), weights).summary()
    data = np.asarray(cases.columns(2))[:, 1]
    square = np.asarray(cases.WEIGHTS) ** 2
    total = np.sum(square * (data - np.average(data, weights=square)) ** 2)
    expected = 1 - report.chi_square / total
    assert 0.5 < expected < 1
    np.testing.assert_allclose(report.r_squared, expected, rtol=1e-12)


@pytest.mark.slow  # programs of complex numbers
def test_complex_coefficients_have_deviations_and_no_interval():
    fit = pj.varpro(
        cases.complex_basis, cases.COMPLEX_DATA, cases.COMPLEX_START, cases.POINTS
    )
    report = fit.summary()
    assert (report.data, report.parameters) == (32, 8)
    np.testing.assert_array_equal(report.coefficients.value, fit.coefficients)
    assert np.all(np.isnan(report.coefficients.lower))
    assert np.all(report.coefficients.standard_deviation > 0)
    assert np.all(report.theta.lower < report.theta.value)
    assert "j" in str(report)


@pytest.mark.slow  # two programs
def test_report_of_a_nist_problem_has_the_certified_numbers():
    problem = json.loads(_NIST.read_text(encoding="utf-8"))["problems"]["Misra1a"]
    saturation = lambda theta, x: -jnp.expm1(-theta["b2"] * x)[:, None]
    start = {"b2": problem["start2"][1]}
    report = pj.varpro(saturation, problem["y"], start, np.array(problem["x"])).summary()
    b1, b2 = problem["certified"]
    deviations = problem["certified_standard_deviation"]
    assert list(report.theta.name) == ["b2"]
    np.testing.assert_allclose(report.theta.value, b2, rtol=1e-9)
    np.testing.assert_allclose(report.coefficients.value, b1, rtol=1e-9)
    np.testing.assert_allclose(report.theta.standard_deviation, deviations[1], rtol=1e-7)
    got = report.coefficients.standard_deviation
    np.testing.assert_allclose(got, deviations[0], rtol=1e-7)
    rss = problem["certified_residual_sum_of_squares"]
    np.testing.assert_allclose(report.chi_square, rss, rtol=1e-9)
    assert report.degrees_of_freedom == 12
    assert "238.942" in str(report)


def test_summary_within_a_program_is_refused(fit):
    with pytest.raises(TypeError, match="while JAX traces. Call it outside"):
        eqx.filter_jit(lambda fit: fit.summary())(fit)


def test_summary_of_fits_with_a_batch_axis_is_refused(fit):
    fits = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fit)
    with pytest.raises(ValueError, match=r"`cost` has the shape \(2,\). Take one"):
        fits.summary()


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_outside_of_0_and_1_is_refused(fit, confidence):
    with pytest.raises(ValueError, match=r"`VarProFit.summary\(confidence=...\)` got"):
        fit.summary(confidence)
