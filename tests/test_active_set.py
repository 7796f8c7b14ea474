"""The kernel of bounded least squares: feasible points, and the conditions of KKT."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from bounded_cases import normal, rank_two, SYSTEMS

from pseudojvp._kernel.active_set import bounded_least_squares


MEMBERS = 50
ROUNDING = 4 * 30 * np.finfo(float).eps  # that of sums of up to 30 terms


def _nonnegative(rng, n):
    del rng
    return np.zeros(n), np.full(n, np.inf)


def _box(rng, n):
    return -rng.random(n), rng.random(n)


def _away_from_zero_and_some_equal(rng, n):
    lower = rng.standard_normal(n)
    return lower, lower + np.where(rng.random(n) < 0.5, 0, rng.random(n))


BOUNDS = {
    f.__name__.strip("_"): f for f in (_nonnegative, _box, _away_from_zero_and_some_equal)
}


@ft.cache
def _solver():
    return jax.jit(jax.vmap(bounded_least_squares))


def _violation(a, b, lower, upper, x):
    """Of the conditions of KKT, relative to the terms of the multipliers."""
    norms = np.linalg.norm(a, axis=0)
    multipliers = a.T @ (b - a @ x) / np.where(norms > 0, norms, 1)
    at_lower, at_upper = x == lower, x == upper
    wrong = np.where(at_lower, np.maximum(multipliers, 0), np.abs(multipliers))
    wrong = np.where(at_upper, np.maximum(-multipliers, 0), wrong)
    wrong = np.where(at_lower & at_upper, 0, wrong)
    size = np.max(np.abs(b) + np.abs(a) @ np.abs(x))
    return np.max(wrong) / (size if size > 0 else 1)


@pytest.mark.default("nonnegative-tall-normal", "box-tall-small_integers")
@pytest.mark.ci("*")
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "shape", [(30, 8), (8, 8), (5, 9)], ids=["tall", "square", "wide"]
)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_solution_is_feasible_and_meets_the_conditions_of_kkt(bounds, shape, system):
    rng = np.random.default_rng(0)
    draws = [
        (*SYSTEMS[system](rng, *shape), *BOUNDS[bounds](rng, shape[1]))
        for _ in range(MEMBERS)
    ]
    a, b, lower, upper = map(np.array, zip(*draws, strict=True))
    solution = _solver()(a, b, lower, upper)
    x = np.asarray(solution.x)
    assert np.all(solution.converged)
    assert np.all((lower <= x) & (x <= upper))
    assert np.all((x == lower) | (x == upper) | np.asarray(solution.free))
    worst = max(map(_violation, a, b, lower, upper, x))
    assert worst < ROUNDING


def test_free_problem_takes_one_step():
    a, b = normal(np.random.default_rng(1), 6, 4)
    bound = np.full(4, np.inf)
    solution = jax.jit(bounded_least_squares)(a, b, -bound, bound)
    assert solution.num_steps == 1
    np.testing.assert_allclose(solution.x, np.linalg.lstsq(a, b)[0], rtol=1e-12)


def test_dependent_free_columns_have_the_solution_of_minimum_norm():
    a, b = rank_two(np.random.default_rng(2), 6, 4)
    lower = np.array([-np.inf, 0.7, -np.inf, -np.inf])
    solution = jax.jit(bounded_least_squares)(a, b, lower, np.full(4, np.inf))
    free = np.array([True, False, True, True])
    np.testing.assert_array_equal(solution.free, free)
    expected = np.linalg.pinv(a[:, free]) @ (b - 0.7 * a[:, 1])
    np.testing.assert_allclose(solution.x[free], expected, rtol=1e-11)


def test_sizes_near_the_ends_of_the_range_do_not_matter():
    a, b = normal(np.random.default_rng(3), 12, 5)
    ones = np.ones(5)
    solve = jax.jit(bounded_least_squares)
    expected = solve(a, b, 0 * ones, np.inf * ones)
    solution = solve(1e200 * a, 1e180 * b, 0 * ones, np.inf * ones)
    assert solution.converged
    np.testing.assert_array_equal(solution.free, expected.free)
    np.testing.assert_allclose(1e20 * solution.x, expected.x, rtol=1e-12)


def test_within_another_loop():
    a, b = normal(np.random.default_rng(4), 12, 5)
    bounds = jnp.zeros(5), jnp.full(5, jnp.inf)

    def body(carry):
        count, _ = carry
        return count + 1, bounded_least_squares(
            jnp.asarray(a), b + 1.0 * count, *bounds
        ).x

    start = 0, jnp.zeros(5)
    _, x = jax.jit(lambda: jax.lax.while_loop(lambda c: c[0] < 3, body, start))()
    expected, _ = scipy.optimize.nnls(a, b + 2)
    np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    a, b = normal(np.random.default_rng(5), 12, 5)
    bounds = jnp.zeros(5, dtype), jnp.full(5, jnp.inf, dtype)
    solution = bounded_least_squares(
        jnp.asarray(a, dtype), jnp.asarray(b, dtype), *bounds
    )
    assert solution.converged
    assert solution.x.dtype == dtype
    expected, _ = scipy.optimize.nnls(a, b)
    np.testing.assert_allclose(solution.x, expected, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("where", ["a", "b", "lower", "crossed"])
def test_invalid_numbers_are_not_converged_and_nan(where):
    a, b = normal(np.random.default_rng(6), 4, 3)
    lower, upper = np.zeros(3), np.ones(3)
    if where == "crossed":
        lower[0] = 2.0
    else:
        {"a": a, "b": b, "lower": lower}[where].flat[0] = np.nan
    solution = jax.jit(bounded_least_squares)(a, b, lower, upper)
    assert not solution.converged
    assert np.all(np.isnan(solution.x))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_fit(shape):
    m, n = shape
    lower = jnp.array([-1.0, 0.5, -2.0])[:n]
    solution = bounded_least_squares(jnp.zeros(shape), jnp.zeros(m), lower, lower + 1)
    assert solution.converged
    np.testing.assert_array_equal(solution.x, [0, 0.5, -1][:n])
