"""What `Woodbury` says where A, the capacitance matrix or the sum is ill-conditioned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit
from test_low_rank import normal

import pseudojvp as pj


SIZE = 12
RESULTS = lx.RESULTS
_ONES = jnp.ones(SIZE)
_FIRST = jnp.eye(SIZE)[:, :1]
_BASIS = np.linalg.qr(normal(0, (SIZE, SIZE), float))[0]
_VECTOR = jnp.asarray(normal(1, (SIZE,), float))


def diagonal(first):
    return lx.DiagonalLinearOperator(_ONES.at[0].set(first))


def dense(first):
    """With the singular value `first` beside ones, of the first vector of the basis."""
    values = np.r_[first, np.ones(SIZE - 1)]
    return lx.MatrixLinearOperator(jnp.asarray(_BASIS * values @ _BASIS.T))


@jit
def solve(operator, vector):
    solution = pj.linear_solve(operator, vector, throw=False)
    loss = lambda operator: jnp.sum(pj.linear_solve(operator, vector, throw=False).value)
    gradient = jax.grad(
        lambda u: loss(pj.LowRankUpdate(operator.operator, u, operator.V, operator.C))
    )(operator.U)
    return solution.value, solution.result._value, solution.stats, gradient


def told(operator):
    """(the relative error, the result, statistics, the gradient in U)."""
    value, result, stats, gradient = solve(operator, _VECTOR)
    matrix = np.asarray(operator.as_matrix())
    try:
        want = np.linalg.solve(matrix, _VECTOR)
    except np.linalg.LinAlgError:
        want = np.full(SIZE, np.nan)
    error = np.linalg.norm(value - want) / np.linalg.norm(want)
    result = next(
        r
        for r in (
            RESULTS.successful,
            RESULTS.breakdown,
            RESULTS.singular,
            RESULTS.stagnation,
        )
        if r._value == result
    )
    return error, result, stats, gradient


@pytest.mark.ci("*")
@pytest.mark.parametrize("first", [1e-6, 1e-10, 1e-13])
@pytest.mark.parametrize("of", [diagonal, dense])
def test_refinement_gives_the_digits_that_an_ill_conditioned_a_takes(of, first):
    u = _FIRST if of is diagonal else jnp.asarray(_BASIS[:, :1])
    error, result, stats, gradient = told(pj.LowRankUpdate(of(first), u))
    assert result == RESULTS.successful
    assert error < 1e-14
    assert stats["num_refinements"] > 0
    assert stats["reciprocal_condition"] > 0.1
    matrix = np.asarray(of(1.0).as_matrix()) + np.asarray(u @ u.T)  # but for `first`
    x, y = np.linalg.solve(
        matrix - np.asarray((1 - first) * u @ u.T), np.stack([_VECTOR, np.ones(SIZE)], 1)
    ).T
    want = -np.outer(y, x @ u) - np.outer(x, y @ u)
    np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-12)


@pytest.mark.ci("*")
@pytest.mark.parametrize("first", [1e-17, 1e-20, 1e-30])
def test_it_says_that_digits_are_lost_to_an_ill_conditioned_a(first):
    error, result, _, gradient = told(pj.LowRankUpdate(diagonal(first), _FIRST))
    assert error > 1e-3
    assert result == RESULTS.stagnation
    assert jnp.all(jnp.isnan(gradient))


@pytest.mark.parametrize("of", [diagonal, dense])
@pytest.mark.slow  # a second each
def test_it_says_that_a_is_singular_where_the_sum_is_not(of):
    u = _FIRST if of is diagonal else jnp.asarray(_BASIS[:, :1])
    _, result, _, gradient = told(pj.LowRankUpdate(of(0.0), u))
    assert result == RESULTS.breakdown
    assert jnp.all(jnp.isnan(gradient))


@pytest.mark.ci("*")
@pytest.mark.parametrize("size", [1e4, 1e10, 1e12])
def test_an_ill_conditioned_capacitance_matrix_is_refined_or_told(size):
    """Two large updates that cancel: the sum has a condition number of twenty."""
    u = normal(2, (SIZE, 1), float)
    both = jnp.asarray(np.hstack([u, u + normal(3, (SIZE, 1), float) / size]))
    core = jnp.asarray(size * np.diag([1.0, -1]))
    operator = pj.LowRankUpdate(diagonal(1.0), both, None, core)
    assert np.linalg.cond(operator.as_matrix()) < 100
    error, result, stats, _ = told(operator)
    assert stats["capacitance_reciprocal_condition"] < 1e-7
    assert (result == RESULTS.successful) == (error < 1e-10)
    assert (result == RESULTS.successful) == (size < 1e5)


@pytest.mark.ci("*")
@pytest.mark.parametrize("sum_", [0.0, 1e-17, 1e-15])
def test_it_says_that_the_sum_is_singular(sum_):
    core = jnp.array([[sum_ - 1.0]])
    _, result, _, gradient = told(pj.LowRankUpdate(diagonal(1.0), _FIRST, None, core))
    assert result == RESULTS.singular
    assert jnp.all(jnp.isnan(gradient))


def test_it_says_that_the_sum_is_singular_where_the_capacitance_matrix_is_not():
    """Two tiny entries of D, of which one column repairs one."""
    d = lx.DiagonalLinearOperator(_ONES.at[:2].set(1e-20))
    _, result, stats, _ = told(pj.LowRankUpdate(d, jnp.ones((SIZE, 1))))
    assert stats["capacitance_reciprocal_condition"] > 0.1
    assert result != RESULTS.successful


@pytest.mark.slow  # a second
def test_rows_and_columns_of_any_scale_are_no_failure():
    scale = np.logspace(0, -10, SIZE)
    d = lx.DiagonalLinearOperator(jnp.asarray(scale**2))
    u = jnp.asarray(scale[:, None] * normal(4, (SIZE, 2), float))
    error, result, _, _ = told(pj.LowRankUpdate(d, u))
    assert result == RESULTS.successful
    assert error < 1e-12


def _rows_of_any_units():
    """A small first block that the update repairs, and large rows beside it."""
    first = np.array([1e-13, 1, 1, 1e14]), np.array([[1.0], [2], [3], [0]])
    block = np.r_[normal(8, (25, 25), float), np.zeros((25, 25))]
    return [first, (np.repeat([1e-9, 1e9], 25), block)]


@pytest.mark.default("DiagonalLinearOperator-0")
@pytest.mark.ci("*")
@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("of", [lx.DiagonalLinearOperator, jnp.diag])
def test_the_residual_of_small_rows_counts_beside_large_ones(case, of):
    diagonal, u = _rows_of_any_units()[case]
    matrix = np.diag(diagonal) + u @ u.T
    vector = jnp.asarray(matrix @ np.arange(1.0, len(u) + 1))
    operator = pj.LowRankUpdate(of(jnp.asarray(diagonal)), jnp.asarray(u))
    got = pj.linear_solve(operator, vector, throw=False)
    error = np.max(np.abs(got.value - np.linalg.solve(matrix, vector)))
    assert (got.result == RESULTS.successful) == (error < 1e-9)
    adjoint = pj.linear_solve(operator.transpose(), vector, throw=False)
    error = np.max(np.abs(adjoint.value - np.linalg.solve(matrix, vector)))
    assert (adjoint.result == RESULTS.successful) == (error < 1e-9)


@pytest.mark.ci("*")
@pytest.mark.parametrize("size", [1.0, 1e8])
@pytest.mark.parametrize("first", [1e-3, 1e-17])
def test_the_units_of_columns_hide_no_residual(first, size):
    """Two columns of an update, and a solution whose entries differ in size as well."""
    units = np.logspace(-1, 1, SIZE) ** np.log10(size)
    rng = np.random.default_rng(12)
    left, right = rng.standard_normal((2, SIZE, 2))
    a = np.asarray(dense(first).matrix)
    matrix = (a + left @ right.T) * units
    operator = pj.LowRankUpdate(
        jnp.asarray(a * units), jnp.asarray(left), jnp.asarray(units[:, None] * right)
    )
    got = pj.linear_solve(operator, _VECTOR, throw=False)
    want = np.linalg.solve(matrix / units, _VECTOR)
    error = np.max(np.abs(got.value * units - want)) / np.max(np.abs(want))
    assert (got.result == RESULTS.successful) == (first > 1e-15)
    assert error < 1e-10 or got.result != RESULTS.successful


def test_a_row_of_zeros_in_the_solution_is_no_failure():
    """By a solver that leaves rounding there."""
    blocks = np.zeros((SIZE, SIZE))
    blocks[:6, :6], blocks[6:, 6:] = normal(9, (6, 6), float), normal(10, (6, 6), float)
    u, vector = np.zeros((SIZE, 1)), np.zeros(SIZE)
    u[:6], vector[:6] = 1, np.arange(1.0, 7)
    operator = pj.LowRankUpdate(jnp.asarray(blocks), jnp.asarray(u))
    solver = pj.Woodbury(pj.SVD())
    got = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    assert got.result == RESULTS.successful
    want = np.linalg.solve(blocks + u @ u.T, vector)
    np.testing.assert_allclose(got.value, want, rtol=0, atol=1e-12)


@pytest.mark.ci("*")
@pytest.mark.parametrize("core", [np.zeros((2, 2)), np.ones((2, 2))])
def test_a_singular_c_is_no_failure(core):
    u = jnp.asarray(normal(5, (SIZE, 2), float))
    error, result, _, _ = told(
        pj.LowRankUpdate(diagonal(1.0), u, None, jnp.asarray(core))
    )
    assert result == RESULTS.successful
    assert error < 1e-13


@pytest.mark.slow  # a second
def test_an_update_of_no_columns_is_none():
    error, result, _, _ = told(pj.LowRankUpdate(diagonal(1.0), jnp.zeros((SIZE, 0))))
    assert (result, error) == (RESULTS.successful, 0)


@pytest.mark.ci("*")
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_units_of_the_system_do_not_matter(scale):
    operator = pj.LowRankUpdate(diagonal(2.0), jnp.asarray(normal(5, (SIZE, 2), float)))
    scaled = scale * operator
    got = pj.linear_solve(scaled, _VECTOR, throw=False)
    want = np.linalg.solve(operator.as_matrix(), _VECTOR)
    assert got.result == RESULTS.successful
    np.testing.assert_allclose(got.value * scale, want, rtol=1e-12)


@pytest.mark.default("A")
@pytest.mark.ci("*")
@pytest.mark.parametrize("part", ["A", "U", "V", "C"])
def test_nan_in_a_part_is_told(part):
    parts = {
        "A": _ONES,
        "U": _FIRST,
        "V": _FIRST,
        "C": jnp.ones((1, 1)),
    }
    parts[part] = parts[part].at[0].set(jnp.nan)
    operator = pj.LowRankUpdate(
        lx.DiagonalLinearOperator(parts["A"]), parts["U"], parts["V"], parts["C"]
    )
    assert pj.linear_solve(operator, _VECTOR, throw=False).result != RESULTS.successful


@pytest.mark.slow  # a second
def test_too_few_steps_for_what_is_updated_are_told_or_made_up_for():
    root = normal(6, (SIZE, SIZE), float)
    a = jnp.asarray(root @ root.T / SIZE + 0.1 * np.eye(SIZE))
    a = lx.MatrixLinearOperator(a, lx.positive_semidefinite_tag)
    operator = pj.LowRankUpdate(a, jnp.asarray(normal(7, (SIZE, 1), float)))
    want = np.linalg.solve(operator.as_matrix(), _VECTOR)
    for steps in (1, 5):
        solver = pj.Woodbury(pj.CG(1e-10, max_steps=steps))
        got = pj.linear_solve(operator, _VECTOR, solver, throw=False)
        error = np.linalg.norm(got.value - want) / np.linalg.norm(want)
        assert (got.result == RESULTS.successful) == (error < 1e-8)


@pytest.mark.slow  # a second
def test_a_number_of_steps_is_what_was_asked_for():
    a = lx.TaggedLinearOperator(
        lx.DiagonalLinearOperator(_VECTOR**2 + 1), lx.positive_semidefinite_tag
    )
    solver = pj.Woodbury(pj.CG(0.0, 0.0, max_steps=2))
    got = pj.linear_solve(pj.LowRankUpdate(a, _FIRST), _VECTOR, solver, throw=False)
    assert got.result == RESULTS.successful
    assert got.stats["num_steps"] == 2


@pytest.mark.untyped
def test_bad_input_is_told():
    with pytest.raises(TypeError, match=r"`Woodbury\(solver=...\)` got 3"):
        pj.Woodbury(3)
    with pytest.raises(ValueError, match="`Woodbury` solves with a `LowRankUpdate`"):
        pj.linear_solve(jnp.eye(3), jnp.ones(3), pj.Woodbury())
    operator = pj.LowRankUpdate(diagonal(1.0), _FIRST)
    with pytest.raises(ValueError, match=r"`Woodbury` was given the unknown option"):
        pj.linear_solve(operator, _VECTOR, pj.Woodbury(), options={"y0": _VECTOR})
    wide = pj.LowRankUpdate(jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="`Woodbury` may only be used for linear solves"):
        pj.linear_solve(wide, jnp.ones(2), pj.Woodbury())


@pytest.mark.parametrize(
    ("first", "message"),
    [(0.0, "could not solve with A, without its update"), (1e-20, "lost its digits")],
)
@pytest.mark.slow  # a second each
def test_the_error_says_what_is_ill_conditioned(first, message):
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        pj.linear_solve(pj.LowRankUpdate(diagonal(first), _FIRST), _VECTOR)


def test_the_error_says_that_the_sum_is_singular():
    operator = pj.LowRankUpdate(diagonal(1.0), _FIRST, None, jnp.array([[1e-15 - 1]]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="condition number of A . U C V"):
        pj.linear_solve(operator, _VECTOR)
