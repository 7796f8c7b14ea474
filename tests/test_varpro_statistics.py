"""Covariances and bands are blocks of the inverse of JᵀJ of the full problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._varpro.statistics import student_quantile


Q = cases.SIZE
DATA = cases.columns(2)
# Seven data do not count.
WEIGHTS = jnp.stack([cases.WEIGHTS, cases.WEIGHTS[::-1]], axis=1)
WEIGHTS = WEIGHTS.at[3:10, 1].set(0.0)
ELSEWHERE = jnp.linspace(-0.5, 4.0, 7)


class Case:
    """A fit with the covariance of all unknowns, and the model at other points."""

    def __init__(self, data, weights, offset, absolute):
        self.fit = cases.fit(data, weights, offset=offset)
        self.statistics = self.fit.statistics(absolute_sigma=absolute)
        self.prediction = self.fit.predict(ELSEWHERE, 0.9, absolute_sigma=absolute)
        full = cases.FullProblem(offset=offset)
        self.unknowns = cases.unknowns(self.fit)
        inputs = self.unknowns, data, weights, cases.POINTS
        jacobian, residual = jit(lambda *i: (full.jacobian(*i), full.residual(*i)))(
            *inputs
        )
        counted = int(np.count_nonzero(np.broadcast_to(weights.T, data.T.shape)))
        self.freedom = counted - self.unknowns.size
        student, normal = (
            scipy.stats.t.ppf(0.95, self.freedom),
            scipy.stats.norm.ppf(0.95),
        )
        self.quantile = normal if absolute else student
        self.chi_square = np.sum(np.asarray(residual) ** 2) / self.freedom
        scale = 1.0 if absolute else self.chi_square
        self.covariance = scale * np.linalg.inv(jacobian.T @ jacobian)
        shape = (ELSEWHERE.size, *data.shape[1:])
        elsewhere = lambda p: -full.residual(p, jnp.zeros(shape), jnp.ones(7), ELSEWHERE)
        self.value, derivative = jit(lambda p: (elsewhere(p), jax.jacfwd(elsewhere)(p)))(
            self.unknowns
        )
        along = np.einsum("...i,ij,...j", derivative, self.covariance, derivative)
        self.deviation = np.sqrt(along)

    def blocks(self, matrix):
        """Those of θ and the coefficients of each column."""
        k = (self.unknowns.size - Q) // 3
        columns = [[*range(Q), *range(Q + 3 * j, Q + 3 * j + 3)] for j in range(k)]
        out = np.stack([matrix[np.ix_(i, i)] for i in columns])
        return out[0] if self.fit.coefficients.ndim == 1 else out


VECTOR = cases.DATA, cases.WEIGHTS.at[5].set(0.0), None
COLUMNS = DATA, WEIGHTS, cases.offset_of_two_columns
CASES = [
    pytest.param((*VECTOR, False), id="vector", marks=pytest.mark.slow),  # more programs
    pytest.param((*VECTOR, True), id="vector-absolute", marks=pytest.mark.slow),
    pytest.param((*COLUMNS, False), id="columns"),
]


@pytest.fixture(scope="module", params=CASES, name="case")
def _case(request):
    return Case(*request.param)


@pytest.mark.slow  # two seconds
def test_degrees_of_freedom_do_not_count_zero_weights(case):
    assert case.statistics.degrees_of_freedom == case.freedom


@pytest.mark.slow  # three seconds
def test_reduced_chi_square(case):
    assert_close(case.statistics.reduced_chi_square, case.chi_square, 1e-10)


def test_covariance_of_theta(case):
    want = case.covariance[:Q, :Q]
    assert_close(case.statistics.theta_covariance, want, 1e-9)


def test_covariance_of_the_coefficients(case):
    want = case.blocks(case.covariance)[..., Q:, Q:]
    assert_close(case.statistics.coefficient_covariance, want, 1e-9)


def test_covariance_of_coefficients_and_theta(case):
    want = case.blocks(case.covariance)[..., Q:, :Q]
    assert_close(case.statistics.cross_covariance, want, 1e-9)


def test_standard_deviations(case):
    want = np.sqrt(np.diag(case.covariance))
    assert_close(case.statistics.theta_standard_deviation, want[:Q], 1e-9)
    got = case.statistics.coefficient_standard_deviation
    assert got.shape == case.fit.coefficients.shape
    assert_close(got.T.reshape(-1), want[Q:], 1e-9)


def test_correlation(case):
    deviation = np.sqrt(np.diag(case.covariance))
    want = case.blocks(case.covariance / np.outer(deviation, deviation))
    assert_close(case.statistics.correlation, want, 1e-9)


def test_prediction_is_the_model_elsewhere(case):
    assert_close(case.prediction.value, case.value, 1e-12)


def test_deviation_of_the_prediction_is_that_of_the_delta_method(case):
    assert_close(case.prediction.standard_deviation, case.deviation, 1e-9)


def test_band_is_a_quantile_of_student_or_of_the_normal_distribution(case):
    prediction = case.prediction
    half = case.quantile * prediction.standard_deviation
    assert_close(prediction.upper, prediction.value + half, 1e-9)
    assert_close(prediction.lower, prediction.value - half, 1e-9)


@pytest.mark.slow  # one more program
def test_absolute_sigma_does_not_look_at_the_residual():
    fit = cases.fit()
    relative, absolute = fit.statistics(), fit.statistics(absolute_sigma=True)
    for name in ("theta_covariance", "coefficient_covariance", "cross_covariance"):
        want = getattr(relative, name) / relative.reduced_chi_square
        assert_close(getattr(absolute, name), want, 1e-12)


@pytest.mark.slow  # one more program
def test_statistics_and_prediction_are_compiled_once_for_all_settings():
    calls = []

    def basis(theta, points):
        calls.append(points)
        return cases.basis(theta, points)

    fit = pj.varpro(basis, cases.DATA, cases.START, cases.POINTS, throw=False)
    fit.statistics()
    before = len(calls)
    fit.statistics(absolute_sigma=True)
    assert len(calls) == before
    fit.predict(ELSEWHERE)
    # Of the statistics, no more: those at the data are compiled.
    assert all(points.shape == ELSEWHERE.shape for points in calls[before:])
    before = len(calls)
    fit.predict(ELSEWHERE, 0.5, absolute_sigma=True)
    assert len(calls) == before


@pytest.mark.slow  # one more program
def test_covariance_of_theta_that_is_not_determined_is_nan():
    fit = cases.fit(0 * cases.DATA)  # c = 0, and θ does not matter
    assert np.isnan(fit.statistics(absolute_sigma=True).theta_covariance).all()


def test_statistics_of_a_failed_fit_are_nan():
    _, weights, offset = COLUMNS
    found = cases.fit(DATA.at[3].set(jnp.nan), weights, offset=offset).statistics()
    assert np.isnan(found.theta_covariance).all()
    assert np.isnan(found.coefficient_covariance).all()
    assert np.isnan(found.theta_standard_deviation).all()


@pytest.mark.parametrize("counted", [3, 4])
def test_without_degrees_of_freedom_nothing_is_known(counted):
    """Of twice as many data, 6 coefficients and 2 parameters."""
    data, weights, offset = COLUMNS
    fit = cases.fit(data, weights.at[counted:].set(0.0), offset=offset)
    statistics = fit.statistics()
    assert statistics.degrees_of_freedom <= 0
    assert not np.isfinite(statistics.reduced_chi_square)
    assert not np.isfinite(statistics.theta_standard_deviation).any()
    assert not np.isfinite(statistics.coefficient_standard_deviation).any()


LEVELS = np.array([0.01, 0.5, 0.95, 0.999])
FREEDOMS = np.array([1, 2, 3, 10, 100, 1000, 10**6])[:, None]


@pytest.mark.parametrize(
    ("dtype", "levels", "rtol"),
    [
        (jnp.float64, LEVELS, 1e-9),
        (jnp.float32, LEVELS[1:3], 1e-4),  # of single precision in the tail of 0.05
    ],
)
def test_quantile_of_student(dtype, levels, rtol):
    quantile = jnp.vectorize(lambda level, nu: student_quantile(level, nu, dtype))
    levels, freedoms = np.broadcast_arrays(levels, FREEDOMS)
    got = jit(quantile)(jnp.asarray(levels, dtype), freedoms)
    assert got.dtype == dtype
    want = scipy.stats.t.ppf(0.5 * (1 + levels), freedoms)
    np.testing.assert_allclose(got, want, rtol=rtol)


def test_quantile_of_student_without_freedom_is_nan():
    quantile = jit(lambda freedom: student_quantile(0.95, freedom, jnp.float64))
    assert np.isnan(quantile(jnp.array(0)))


@pytest.fixture(scope="module", name="complex_case")
def _complex_case():
    """The fit, and the covariance of (θ, Re c, Im c) from the problem in real numbers."""
    fit = pj.varpro(
        cases.complex_basis, cases.COMPLEX_DATA, cases.COMPLEX_START, cases.POINTS
    )

    def value(p, points):
        c = jax.lax.complex(p[4:6], p[6:8])
        return cases.complex_basis(p[:4], points) @ c

    parts = lambda p: jnp.concatenate(
        [value(p, cases.POINTS).real, value(p, cases.POINTS).imag]
    )
    p = jnp.concatenate([fit.theta, fit.coefficients.real, fit.coefficients.imag])
    jacobian = np.asarray(jit(jax.jacfwd(parts))(p))
    variance = np.sum(np.abs(value(p, cases.POINTS) - cases.COMPLEX_DATA) ** 2) / (32 - 8)
    covariance = variance * np.linalg.inv(jacobian.T @ jacobian)
    elsewhere = jit(jax.jacfwd(lambda p: value(p, ELSEWHERE)))(p)
    along = np.einsum("pi,ij,pj->p", elsewhere, covariance, elsewhere.conj())
    return fit, covariance, np.sqrt(along.real)


@pytest.mark.slow  # programs of its own
def test_complex_covariances(complex_case):
    fit, covariance, _ = complex_case
    statistics = fit.statistics()
    assert statistics.degrees_of_freedom == 24
    assert_close(statistics.theta_covariance, covariance[:4, :4], 1e-9)
    as_complex = np.eye(8)[4:6] + 1j * np.eye(8)[6:8]  # c of (θ, Re c, Im c)
    want = as_complex @ covariance @ as_complex.conj().T
    assert_close(statistics.coefficient_covariance, want, 1e-9)
    assert_close(statistics.cross_covariance, (as_complex @ covariance)[:, :4], 1e-9)


@pytest.mark.slow  # programs of its own
def test_complex_prediction_has_a_deviation_and_no_band(complex_case):
    fit, _, deviation = complex_case
    prediction = fit.predict(ELSEWHERE)
    assert_close(prediction.standard_deviation, deviation, 1e-9)
    assert prediction.lower is None
    assert prediction.upper is None


@pytest.mark.slow  # programs of its own
def test_overparametrised_theta_has_no_covariance():
    """Only rate + extra matters."""

    def basis(theta, points):
        return cases.basis({**theta, "rate": theta["rate"] + theta["extra"]}, points)

    start = {**cases.START, "extra": jnp.array(0.1)}
    fit = pj.varpro(basis, cases.DATA, start, cases.POINTS)
    want = cases.fit(weights=None).theta["rate"]
    assert_close(fit.theta["rate"] + fit.theta["extra"], want, 1e-9)
    statistics = fit.statistics()
    assert np.isnan(statistics.theta_covariance).all()
    assert statistics.degrees_of_freedom == 16 - 3 - 2
