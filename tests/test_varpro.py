"""`varpro` finds the solution of the full problem, that SciPy finds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import varpro_cases as cases
from checks import assert_close

import pseudojvp as pj


# From (1.2, 0.6), and coefficients that are not at the solution.
FULL_START = np.array([1.2, 0.6, 1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def fitted():
    return cases.fit()


@pytest.fixture(scope="module")
def truth():
    inputs = cases.DATA, cases.WEIGHTS, cases.POINTS
    return cases.FullProblem().solve(FULL_START, *inputs)


@pytest.mark.slow  # a second
def test_fit_is_the_solution_of_the_full_problem(fitted, truth):
    assert cases.successful(fitted)
    assert_close(cases.unknowns(fitted), truth, 1e-10)


@pytest.mark.slow  # a second
def test_residual_is_that_of_the_full_problem(fitted, truth):
    inputs = cases.DATA, cases.WEIGHTS, cases.POINTS
    want = cases.FullProblem().residual(truth, *inputs)
    assert_close(fitted.residual, want, 1e-9)
    assert_close(fitted.cost, 0.5 * jnp.sum(want**2), 1e-10)


def test_theta_has_the_structure_of_the_start(fitted):
    assert jax.tree.structure(fitted.theta) == jax.tree.structure(cases.START)
    shapes = jax.tree.map(jnp.shape, fitted.theta)
    assert shapes == {"rate": (), "width": (1,)}


def test_rank_and_stats_tell_what_happened(fitted):
    assert fitted.rank == 3
    assert fitted.stats["max_steps"] == 256
    assert 0 < fitted.stats["num_steps"] < 256
    assert fitted.stats["relative_offset"] < 1e-6


def test_numpy_arrays_and_lists_are_data_as_well(fitted):
    fit = cases.fit(cases.DATA.tolist(), np.asarray(cases.WEIGHTS))
    assert_close(cases.unknowns(fit), cases.unknowns(fitted), 1e-12)


def test_sums_of_many_scales_fit_alike(fitted):
    """‖W y‖² over- or underflows."""
    for scale in (1e-300, 1e-170, 1e170, 1e300):
        fit = cases.fit(scale * cases.DATA)
        assert cases.successful(fit)
        assert_close(fit.theta["rate"], fitted.theta["rate"], 1e-10)
        assert_close(fit.coefficients / scale, fitted.coefficients, 1e-10)


def test_scale_of_the_weights_does_not_matter(fitted):
    """1e±200: their squares over- and underflow."""
    for scale in (1e-200, 1e-150, 1e150, 1e200):
        fit = cases.fit(weights=scale * cases.WEIGHTS)
        assert cases.successful(fit)
        assert_close(cases.unknowns(fit), cases.unknowns(fitted), 1e-10)


@pytest.mark.parametrize("rate", [0.0, 1e-20, 1e-15, 1e-6, 100.0])
def test_success_means_stationary_from_starts_of_any_scale(rate, fitted):
    start = {**cases.START, "rate": jnp.array(rate)}
    fit = cases.fit(start=start)
    assert cases.successful(fit)
    assert_close(fit.theta["rate"], fitted.theta["rate"], 1e-6)  # of a shallow start


@pytest.mark.parametrize("rate", [1e-9, 1e-12])
def test_no_success_where_the_scale_of_the_start_stops_the_search(rate):
    fit = cases.fit(start={**cases.START, "rate": jnp.array(rate)})
    assert not cases.successful(fit)
    assert fit.stats["relative_offset"] > 0.1


@pytest.mark.slow  # one more program
def test_oleary_and_rust_example():
    """Comput. Optim. Appl. 54 (2013), section 5; the solution is SciPy's."""
    times = jnp.array([0, 0.1, 0.22, 0.31, 0.46, 0.50, 0.63, 0.78, 0.85, 0.97])
    data = [6.9842, 5.1851, 2.8907, 1.4199, -0.2473]
    data = jnp.array([*data, -0.5243, -1.0156, -1.0260, -0.9165, -0.6805])
    weights = jnp.array([1, 1, 1, 0.5, 0.5, 1, 0.5, 1, 0.5, 0.5])

    def basis(alpha, t):
        first = jnp.exp(-alpha[1] * t) * jnp.cos(alpha[2] * t)
        return jnp.stack([first, jnp.exp(-alpha[0] * t) * jnp.cos(alpha[1] * t)], axis=1)

    start = jnp.array([0.5, 2.0, 3.0])
    fit = pj.varpro(basis, data, start, times, weights=weights)
    full = cases.FullProblem(basis=basis, start=start)
    want = full.solve(np.array([1.0, 2.5, 4.0, 6.0, 1.0]), data, weights, times)
    assert_close(cases.unknowns(fit), want, 1e-9)


@pytest.mark.slow  # one more program
def test_offset_of_one_column_is_fitted():
    """Of the two minima, at rates 0.7 and 1.5, the lower one."""
    data = cases.DATA + cases.offset({"rate": 0.8}, cases.POINTS)
    inputs = data, cases.WEIGHTS, cases.POINTS
    fit = cases.fit(data, offset=cases.offset)
    full = cases.FullProblem(offset=cases.offset)
    minima = [full.solve(np.array([rate, 0.6, 1, 1, 1]), *inputs) for rate in (0.7, 1.5)]
    costs = [np.sum(full.residual(minimum, *inputs) ** 2) for minimum in minima]
    want = minima[np.argmin(costs)]
    assert cases.successful(fit)
    assert_close(cases.unknowns(fit), want, 1e-9)


@pytest.mark.slow  # one more program, of what the default statistics are of too
def test_columns_with_weights_and_offsets_of_their_own():
    data = cases.columns(2)
    weights = jnp.stack([cases.WEIGHTS, cases.WEIGHTS[::-1]], axis=1)
    offset = cases.offset_of_two_columns
    fit = cases.fit(data, weights, offset=offset)
    full = cases.FullProblem(offset=offset)
    start = np.concatenate([FULL_START[:2], np.ones(6)])
    want = full.solve(start, data, weights, cases.POINTS)
    assert cases.successful(fit)
    assert fit.coefficients.shape == (3, 2)
    np.testing.assert_array_equal(fit.rank, [3, 3])
    assert_close(cases.unknowns(fit), want, 1e-9)


@pytest.mark.slow  # one more program
def test_complex_basis_and_data_fit_real_and_imaginary_parts():
    arguments = cases.complex_basis, cases.COMPLEX_DATA, cases.COMPLEX_START
    fit = pj.varpro(*arguments, cases.POINTS)
    want = _real_problem().solve(
        np.array([0.3, 0.5, 2.0, 5.0, 1.0, 1.0, 2.0, 0.0]),
        _as_real(cases.COMPLEX_DATA),
        jnp.ones(32),
        cases.POINTS,
    )
    assert_close(fit.theta, want[:4], 1e-9)
    parts = jnp.stack([fit.coefficients.real, fit.coefficients.imag], axis=1)
    assert_close(parts.reshape(-1), want[4:], 1e-9)


def _as_real(array):
    return jnp.concatenate([array.real, array.imag])


def _real_problem():
    """With the coefficients (Re c₁, Im c₁, Re c₂, Im c₂)."""

    def basis(theta, points):
        phi = cases.complex_basis(theta, points)
        pairs = jnp.stack([phi, 1j * phi], axis=2).reshape(points.size, 4)
        return _as_real(pairs)

    return cases.FullProblem(basis=basis, start=cases.COMPLEX_START)


@pytest.mark.slow  # one more program for each
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), pj.Normal(pj.Cholesky())],
    ids=["QR", "SVD", "Normal-Cholesky"],
)
def test_solvers_agree(solver, truth):
    fit = cases.fit(solver=solver)
    assert cases.successful(fit)
    assert_close(cases.unknowns(fit), truth, 1e-7)  # Normal squares the condition


@pytest.mark.slow  # one more program for each
@pytest.mark.parametrize("kind", ["dense", "function"])
def test_basis_may_be_an_operator(kind, truth):
    def operator(theta, points):
        phi = cases.basis(theta, points)
        if kind == "dense":
            return lx.MatrixLinearOperator(phi)
        structure = jax.ShapeDtypeStruct((3,), phi.dtype)
        return lx.FunctionLinearOperator(lambda c: phi @ c, structure)

    fit = pj.varpro(
        operator, cases.DATA, cases.START, cases.POINTS, weights=cases.WEIGHTS
    )
    assert_close(cases.unknowns(fit), truth, 1e-9)


@pytest.mark.slow  # one more program
def test_basis_may_be_a_module_with_arrays(truth):
    class Model(eqx.Module):
        points: jax.Array

        def __call__(self, theta, args):
            return cases.basis(theta, self.points)

    model = Model(cases.POINTS)
    fit = pj.varpro(model, cases.DATA, cases.START, weights=cases.WEIGHTS)
    assert_close(cases.unknowns(fit), truth, 1e-9)


# Weights of integers; and more columns than rows, complex beside a real basis.
OTHER_DTYPES = {
    "float32": (cases.DATA.astype(jnp.float32), jnp.arange(1, 17)),
    "complex": (cases.columns(20).astype(complex), cases.WEIGHTS.astype(jnp.float32)),
}


@pytest.mark.default("complex")
@pytest.mark.ci("float32")
@pytest.mark.parametrize("name", OTHER_DTYPES)
def test_dtypes_are_promoted_explicitly(name):
    """Traced under strict promotion, as all tests are; `basis` is of float64."""
    data, weights = OTHER_DTYPES[name]
    options = {"weights": weights, "offset": cases.offset}

    def trace(data):
        fit = cases.fit(data, **options)
        residual = pj.projected_residual(cases.basis, data, **options)
        jacobian = residual.jacobian(fit.theta, cases.POINTS)
        return fit.residual, fit.statistics(), fit.predict(cases.POINTS), jacobian

    residual, statistics, prediction, jacobian = jax.eval_shape(trace, data)
    dtype = np.result_type(data.dtype, np.float64)
    assert residual.dtype == prediction.value.dtype == jacobian.dtype == dtype
    assert statistics.coefficient_covariance.dtype == dtype


@pytest.mark.slow  # one more program
def test_single_precision_is_kept(truth):
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    fit = cases.fit(*single((cases.DATA, cases.WEIGHTS, cases.POINTS, cases.START)))
    assert cases.successful(fit)
    dtypes = {leaf.dtype for leaf in (*fit.theta.values(), fit.coefficients, fit.cost)}
    assert dtypes == {jnp.dtype(jnp.float32)}
    assert_close(cases.unknowns(fit), truth, 1e-4)  # √eps of single precision


@pytest.mark.slow  # one more program
def test_single_precision_data_of_any_scale_fit():
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    others = single((cases.WEIGHTS, cases.POINTS, cases.START))
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        fit = cases.fit(single(cases.DATA * scale), *others)
        assert cases.successful(fit)
        want = cases.fit().theta["rate"]
        assert_close(fit.theta["rate"], want, 1e-4)  # √eps of single precision
