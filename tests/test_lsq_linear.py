"""`lsq_linear`: the answers of SciPy, and what `stats` say of them."""

import functools as ft

import bounded_cases as cases
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import pseudojvp as pj


EPS = np.finfo(float).eps
SHAPES = {"tall": (30, 8), "square": (8, 8), "wide": (5, 9)}
# Without bounds SciPy truncates nothing, and is wrong for dependent columns.
BOUNDS = {"nonnegative": (0.0, np.inf), "box": (-0.1, 0.2), "above": (-np.inf, 0.1)}
RNG = np.random.default_rng(0)
A, B = cases.normal(RNG, 12, 5)
A[:, 0] *= -1  # so that bounds of both sides bind
LOWER, UPPER = np.full(5, -0.2), np.full(5, 0.15)


@ft.cache
def _solver():
    def solve(a, b, lower, upper):
        solution = pj.lsq_linear(a, b, (lower, upper), throw=False)
        return solution.value, solution.result._value, solution.stats

    return jax.jit(jax.vmap(solve, (0, 0, None, None)))


def _check(system, shape, bounds, members, seed=0):
    """Feasible, and with a residual as small as SciPy's to rounding."""
    a, b = cases.batch(system, shape, members, seed)
    lower, upper = BOUNDS[bounds]
    x, result, stats = jax.tree.map(np.asarray, _solver()(a, b, lower, upper))
    assert np.all(result == 0)
    assert np.all((lower <= x) & (x <= upper))
    mask = stats["active_mask"]
    assert np.all((mask == -1) <= (x == lower))
    assert np.all((mask == 1) <= (x == upper))
    # At a bound and free to rounding is degenerate.
    meets = np.any((mask == 0) & ((x == lower) | (x == upper)), axis=1)
    assert np.all(meets <= stats["degenerate"])
    ours = np.linalg.norm(b - np.einsum("kij,kj->ki", a, x), axis=1)
    theirs = [
        np.linalg.norm(b - a @ cases.by_scipy(a, b, lower, upper).x)
        for a, b in zip(a, b, strict=True)
    ]
    # A residual of exact zero is found to the rounding of x times the size of A.
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=3e-11)


@pytest.mark.ci("*")
@pytest.mark.parametrize("system", cases.SYSTEMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_residual_is_that_of_scipy(bounds, shape, system):
    _check(system, SHAPES[shape], bounds, 40)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounds", ["nonnegative", "box"])
def test_residuals_of_ten_thousand_random_problems_are_those_of_scipy(bounds, shape):
    """In six parts, together with the other shapes and bounds."""
    for seed in range(1, 6):
        _check("normal", SHAPES[shape], bounds, 334, seed)


@pytest.mark.default("PivotedQR")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver", [pj.PivotedQR(), pj.SVD(), lx.SVD()], ids=["PivotedQR", "SVD", "lx.SVD"]
)
def test_solution_and_active_mask_are_those_of_scipy(solver):
    solution = pj.lsq_linear(A, B, (LOWER, UPPER), solver=solver)
    expected = cases.by_scipy(A, B, LOWER, UPPER)
    np.testing.assert_allclose(solution.value, expected.x, rtol=1e-12)
    np.testing.assert_array_equal(solution.stats["active_mask"], expected.active_mask)
    assert set(expected.active_mask) == {-1, 0, 1}
    assert solution.stats["rank"] == np.sum(expected.active_mask == 0)
    assert solution.stats["optimality"] < 1e-13
    assert not solution.stats["degenerate"]


@pytest.mark.slow
def test_without_bounds_it_is_lstsq_of_one_step():
    solution = pj.lsq_linear(A, B)
    np.testing.assert_allclose(solution.value, pj.lstsq(A, B)[0], rtol=1e-13)
    assert solution.stats["num_steps"] == 1
    assert solution.stats["rank"] == 5


@pytest.mark.slow
def test_dependent_free_columns_have_the_solution_of_minimum_norm():
    a = A[:, [0, 0, 1, 2]]
    solution = pj.lsq_linear(a, B, (np.array([-np.inf, -np.inf, 0.5, -np.inf]), None))
    free = np.array([True, True, False, True])
    expected = np.linalg.pinv(a[:, free]) @ (B - 0.5 * a[:, 2])
    np.testing.assert_array_equal(solution.stats["active_mask"] == 0, free)
    np.testing.assert_allclose(solution.value[free], expected, rtol=1e-12)
    assert solution.stats["rank"] == 2


@pytest.mark.slow
def test_all_at_their_bounds_have_rank_zero():
    a, b = cases.no_positive_part(np.random.default_rng(2), 30, 20)
    solution = pj.lsq_linear(a, b, (0.0, None))
    np.testing.assert_array_equal(solution.value, np.zeros(20))
    assert solution.stats["rank"] == 0
    assert not solution.stats["degenerate"]


@pytest.mark.slow
def test_equal_bounds_fix_a_variable():
    fixed = LOWER.copy()
    fixed[1] = UPPER[1]
    solution = pj.lsq_linear(A, B, (fixed, UPPER))
    expected = cases.by_scipy(
        np.delete(A, 1, 1), B - A[:, 1] * UPPER[1], LOWER[0], UPPER[0]
    )
    assert solution.value[1] == UPPER[1]
    np.testing.assert_allclose(np.delete(solution.value, 1), expected.x, rtol=1e-12)


def test_bound_at_the_free_minimum_is_degenerate():
    free = np.linalg.lstsq(A, B)[0]
    assert not pj.lsq_linear(A, B, (free - 1e-6, None)).stats["degenerate"]
    lower = np.where(np.arange(5) == 2, free, free - 1)
    assert pj.lsq_linear(A, B, (lower, None)).stats["degenerate"]
    # From the other side: at the bound, with a multiplier that is rounding.
    assert pj.lsq_linear(A, B, (None, free + 4 * EPS)).stats["degenerate"]


@pytest.mark.slow
def test_vector_of_zeros_is_degenerate():
    solution = pj.lsq_linear(A, np.zeros(12), (0.0, None))
    np.testing.assert_array_equal(solution.value, np.zeros(5))
    assert solution.stats["degenerate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "bounds", [(-0.2, 0.15), (LOWER, UPPER), (np.tile(LOWER[:, None], 3), 0.15)]
)
def test_many_right_hand_sides_are_those_one_by_one(bounds):
    columns = np.random.default_rng(1).standard_normal((12, 3))
    solution = pj.lsq_linear(A, columns, bounds)
    assert solution.value.shape == solution.stats["active_mask"].shape == (5, 3)
    assert solution.stats["rank"].shape == solution.result._value.shape == (3,)
    for j, column in enumerate(columns.T):
        expected = pj.lsq_linear(A, column, (LOWER, UPPER))
        np.testing.assert_allclose(solution.value[:, j], expected.value, rtol=1e-12)
        mask = solution.stats["active_mask"][:, j]
        np.testing.assert_array_equal(mask, expected.stats["active_mask"])


@pytest.mark.slow
def test_operator_and_sparse_matrix_are_as_their_matrix():
    expected = pj.lsq_linear(A, B, (LOWER, UPPER)).value
    from_operator = pj.lsq_linear(
        lx.MatrixLinearOperator(jnp.asarray(A)), B, (-0.2, 0.15)
    )
    function = lx.FunctionLinearOperator(
        lambda x: jnp.asarray(A) @ x, jax.ShapeDtypeStruct((5,), jnp.float64)
    )
    from_function = pj.lsq_linear(function, B, (LOWER, UPPER))
    sparse = pj.lsq_linear(BCOO.fromdense(jnp.asarray(A)), B, (LOWER, UPPER))
    for solution in (from_operator, from_function, sparse):
        np.testing.assert_allclose(solution.value, expected, rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int32])
def test_dtypes_are_those_of_lstsq(dtype):
    a, b = (jnp.asarray(np.round(4 * array), dtype) for array in (A, B))
    solution = pj.lsq_linear(a, b, (-0.125, 0.25))
    assert solution.value.dtype == pj.lstsq(a, b)[0].dtype
    expected = cases.by_scipy(np.round(4 * A), np.round(4 * B), -0.125, 0.25)
    np.testing.assert_array_equal(solution.stats["active_mask"], expected.active_mask)
    eps = float(jnp.finfo(solution.value.dtype).eps)
    np.testing.assert_allclose(
        solution.value.astype(np.float64), expected.x, atol=4 * eps
    )


@pytest.mark.slow
def test_units_of_the_columns_do_not_matter_to_full_rank():
    units = np.array([1e-6, 1.0, 1e6, 10.0, 1e-4])
    scaled = pj.lsq_linear(A * units, B, (LOWER / units, UPPER / units))
    expected = pj.lsq_linear(A, B, (LOWER, UPPER))
    np.testing.assert_allclose(scaled.value * units, expected.value, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("columns", [(), (2,), (0,)])
def test_nothing_to_fit(shape, columns):
    m, n = shape
    solution = pj.lsq_linear(np.zeros(shape), np.ones((m, *columns)), (1.0, 2.0))
    np.testing.assert_array_equal(solution.value, np.ones((n, *columns)))
    assert np.all(solution.stats["rank"] == 0)
