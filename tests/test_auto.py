"""Which solver `AutoLinearSolver` picks, and what it passes on."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


def _tagged(*tags, shape=(3, 3)):
    return lx.MatrixLinearOperator(jnp.eye(*shape), tags)


DIAGONAL = lx.DiagonalLinearOperator(jnp.ones(3))
TRIDIAGONAL = lx.TridiagonalLinearOperator(jnp.ones(3), jnp.ones(2), jnp.ones(2))
SQUARE = {
    "plain": (_tagged(), pj.LU),
    "symmetric": (_tagged(lx.symmetric_tag), pj.LU),
    "diagonal": (DIAGONAL, lx.Diagonal),
    "tagged-diagonal": (_tagged(lx.diagonal_tag), lx.Diagonal),
    "tridiagonal": (TRIDIAGONAL, pj.Tridiagonal),
    "lower": (_tagged(lx.lower_triangular_tag), pj.Triangular),
    "upper": (_tagged(lx.upper_triangular_tag), pj.Triangular),
    "positive": (_tagged(lx.positive_semidefinite_tag), pj.Cholesky),
    "negative": (_tagged(lx.negative_semidefinite_tag), pj.Cholesky),
}
square = pytest.mark.parametrize(
    ("operator", "expected"), SQUARE.values(), ids=SQUARE.keys()
)


@square
@pytest.mark.parametrize("well_posed", [True, None])
def test_square_operator_gets_the_solver_of_its_tags(operator, expected, well_posed):
    solver = pj.AutoLinearSolver(well_posed).select_solver(operator)
    assert type(solver) is expected


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])
def test_none_takes_qr_if_not_square(shape):
    solver = pj.AutoLinearSolver(None).select_solver(_tagged(shape=shape))
    assert type(solver) is pj.QR


@pytest.mark.parametrize(
    "shape", [(5, 3), (3, 5), (3, 3)], ids=["tall", "wide", "square"]
)
def test_false_takes_pivoted_qr_of_any_shape(shape):
    solver = pj.AutoLinearSolver(False).select_solver(_tagged(shape=shape))
    assert type(solver) is pj.PivotedQR


@pytest.mark.parametrize("well_posed", [True, None, False])
def test_diagonal_operator_may_be_singular_unless_well_posed(well_posed):
    solver = pj.AutoLinearSolver(well_posed).select_solver(DIAGONAL)
    assert type(solver) is lx.Diagonal
    assert solver.well_posed is (well_posed is True)


@pytest.mark.default("None")
@pytest.mark.ci("*")
@pytest.mark.parametrize("well_posed", [None, False])
def test_singular_diagonal_operator_gets_its_pseudoinverse(well_posed):
    operator = lx.DiagonalLinearOperator(jnp.array([2.0, 0.0, -4.0]))
    solution = pj.linear_solve(operator, jnp.ones(3), pj.AutoLinearSolver(well_posed))
    np.testing.assert_allclose(solution.value, [0.5, 0.0, -0.25])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])
def test_true_refuses_a_non_square_operator(shape):
    with pytest.raises(ValueError, match="non-square"):
        pj.AutoLinearSolver(True).select_solver(_tagged(shape=shape))


@pytest.mark.untyped
def test_other_values_of_well_posed_are_refused():
    with pytest.raises(ValueError, match="Pass `True`, `False` or `None`"):
        pj.AutoLinearSolver("yes")


def test_statistics_of_the_chosen_solver_are_passed_on():
    matrix = np.diag([1.0, 2.0, 0.0])[:, :2] @ np.ones((2, 4))
    solver = pj.AutoLinearSolver(False)
    solution = pj.linear_solve(matrix, np.ones(3), solver, throw=False)
    assert solution.stats["rank"] == 1


@pytest.mark.default("plain", "diagonal", "tridiagonal", "positive")
@pytest.mark.ci("*")
@square
def test_condition_of_the_chosen_solver_is_passed_on(operator, expected):
    solver = pj.AutoLinearSolver(True)
    stats = pj.linear_solve(operator, jnp.ones(3), solver, throw=False).stats
    assert ("reciprocal_condition" in stats) is (expected is not lx.Diagonal)


def test_full_rank_is_assumed_unless_told_otherwise():
    assumed = [pj.AutoLinearSolver(w).assume_full_rank() for w in (True, None, False)]
    assert assumed == [True, True, False]


SOLVABLE = {
    "plain": (np.array([[0.0, 2.0], [1.0, 1.0]]), ()),
    "lower": (np.array([[2.0, 0.0], [1.0, 4.0]]), lx.lower_triangular_tag),
    "upper": (np.array([[2.0, 1.0], [0.0, 4.0]]), lx.upper_triangular_tag),
    "positive": (np.array([[2.0, 1.0], [1.0, 3.0]]), lx.positive_semidefinite_tag),
    "negative": (-np.array([[2.0, 1.0], [1.0, 3.0]]), lx.negative_semidefinite_tag),
}


@pytest.mark.default("plain", "negative", "upper")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("matrix", "tag"), SOLVABLE.values(), ids=SOLVABLE.keys())
def test_default_solver_solves_by_the_tag(matrix, tag):
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix), tag)
    vector = np.array([1.0, -2.0])
    solution = pj.linear_solve(operator, vector)
    np.testing.assert_allclose(matrix @ solution.value, vector, atol=1e-13)
