"""`nnls`: the signature and the answers of SciPy."""

import bounded_cases as cases
import jax
import numpy as np
import pytest
import scipy.optimize

import pseudojvp as pj


A, B = cases.normal(np.random.default_rng(2), 12, 5)


@pytest.mark.slow  # a second
def test_solution_and_norm_are_those_of_scipy():
    x, norm = pj.nnls(A, B)
    expected, expected_norm = scipy.optimize.nnls(A, B)
    assert np.any(expected > 0)
    np.testing.assert_array_equal(x == 0, expected == 0)
    np.testing.assert_allclose(x, expected, rtol=1e-12)
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-13)


@pytest.mark.ci("*")
@pytest.mark.parametrize("system", cases.SYSTEMS)
def test_batch_has_the_norms_of_scipy(system):
    a, b = cases.batch(system, (30, 8), 100)
    x, norm = jax.jit(jax.vmap(pj.nnls))(a, b)
    expected = [scipy.optimize.nnls(a, b)[1] for a, b in zip(a, b, strict=True)]
    assert np.all(x >= 0)
    np.testing.assert_allclose(norm, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_many_right_hand_sides_are_those_one_by_one():
    columns = np.random.default_rng(3).standard_normal((12, 4))
    x, norm = pj.nnls(A, columns)
    assert x.shape == (5, 4)
    expected = [scipy.optimize.nnls(A, column) for column in columns.T]
    np.testing.assert_allclose(x.T, [x for x, _ in expected], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(norm, [norm for _, norm in expected], rtol=1e-12)


@pytest.mark.slow
def test_norm_does_not_overflow():
    x, norm = pj.nnls(A, 1e200 * B)
    expected = pj.nnls(A, B)
    np.testing.assert_allclose(norm / 1e200, expected[1], rtol=1e-12)
    np.testing.assert_allclose(x / 1e200, expected[0], rtol=1e-12)


@pytest.mark.slow
def test_norm_is_nan_without_throw():
    x, norm = pj.nnls(A, B * np.nan, throw=False)
    assert np.isnan(norm)
    assert np.all(np.isnan(x))


@pytest.mark.untyped
def test_trace_time_errors_name_nnls():
    with pytest.raises(ValueError, match=r"`nnls\(b=...\)` got an array of shape \(3,\)"):
        pj.nnls(A, B[:3])
