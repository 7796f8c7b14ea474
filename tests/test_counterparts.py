"""Solvers of lineax run as their counterparts here, unless a state of theirs is given."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


POSITIVE = lx.positive_semidefinite_tag
# Singular, and by rounding not exactly so.
SINGULAR = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
REGULAR = SINGULAR + np.eye(3)
B = np.array([1.0, 0, 0])


class Own(lx.LU):
    """Of a user, who may have changed what it does."""


PAIRS = {
    "LU": (lx.LU(), pj.LU(), ()),
    "QR": (lx.QR(), pj.QR(), ()),
    "SVD": (lx.SVD(1e-3), pj.SVD(1e-3), ()),
    "Cholesky": (lx.Cholesky(), pj.Cholesky(), POSITIVE),
    "Triangular": (lx.Triangular(), pj.Triangular(), lx.lower_triangular_tag),
    "Tridiagonal": (lx.Tridiagonal(), pj.Tridiagonal(), lx.tridiagonal_tag),
    "BiCGStab": (
        lx.BiCGStab(1e-9, 1e-9),
        pj.BiCGStab(1e-9, 1e-9, norm=lx.CG(0.1, 0.1).norm),
        (),
    ),
    "GMRES": (
        lx.GMRES(1e-9, 1e-9),
        pj.GMRES(1e-9, 1e-9, norm=lx.CG(0.1, 0.1).norm, stagnation_iters=20),
        (),
    ),
    "CG": (lx.CG(1e-9, 1e-9), pj.CG(1e-9, 1e-9, norm=lx.CG(0.1, 0.1).norm), POSITIVE),
    "Normal": (lx.Normal(lx.LU()), pj.Normal(pj.LU()), ()),
    "AutoLinearSolver": (lx.AutoLinearSolver(None), pj.AutoLinearSolver(None), ()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_program_is_that_of_the_counterpart(name):
    theirs, ours, tags = PAIRS[name]

    def program(solver):
        def solve(matrix, vector):
            operator = lx.MatrixLinearOperator(matrix, tags)
            return pj.linear_solve(operator, vector, solver).value

        return str(jax.make_jaxpr(jax.grad(lambda *a: jnp.sum(solve(*a))))(REGULAR, B))

    assert "linear_solve" in program(ours)
    # Addresses of functions and the names of the classes aside.
    steps = [
        [line.split("=")[0] for line in program(s).splitlines()] for s in (theirs, ours)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("solver", [lx.LU(), lx.QR(), lx.Normal(lx.LU())], ids=str)
def test_nearly_singular_operator_is_told(solver):
    theirs = lx.linear_solve(lx.MatrixLinearOperator(SINGULAR), B, solver, throw=False)
    ours = pj.linear_solve(SINGULAR, B, solver, throw=False)
    assert theirs.result == lx.RESULTS.successful
    assert ours.result == lx.RESULTS.singular
    assert ours.stats["reciprocal_condition"] < 1e-15


def test_normal_tells_a_singular_gram_matrix_in_lineax_too():
    matrix = np.random.default_rng(0).standard_normal((5, 4)) @ np.diag([1, 1, 1, 0])
    matrix = matrix @ np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    operator = lx.MatrixLinearOperator(matrix)
    for linear_solve in (lx.linear_solve, pj.linear_solve):
        solver = pj.Normal(lx.Cholesky())
        solution = linear_solve(operator, np.ones(5), solver, throw=False)
        assert solution.result == lx.RESULTS.singular


def test_state_of_theirs_is_solved_with_by_theirs():
    operator = lx.MatrixLinearOperator(SINGULAR)
    state = lx.LU().init(operator, {})
    solution = pj.linear_solve(operator, B, lx.LU(), state=state, throw=False)
    assert solution.result == lx.RESULTS.successful
    np.testing.assert_array_equal(solution.state[0][0], state[0][0])


def test_state_of_a_solution_is_taken_back():
    first = pj.linear_solve(REGULAR, B, lx.LU())
    again = pj.linear_solve(REGULAR, B, lx.LU(), state=first.state)
    np.testing.assert_allclose(again.value, np.linalg.solve(REGULAR, B), rtol=1e-12)
    assert "reciprocal_condition" in again.stats


@pytest.mark.default("solver0")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver", [lx.GMRES(1e-9, 1e-9, max_steps=30), lx.LSMR(1e-9, 1e-9)]
)
def test_solver_with_settings_of_another_meaning_stays_theirs(solver):
    stats = pj.linear_solve(REGULAR, B, solver).stats
    theirs = lx.linear_solve(lx.MatrixLinearOperator(REGULAR), B, solver).stats
    assert set(stats) == set(theirs)


def test_class_of_a_user_is_left_alone():
    assert "reciprocal_condition" not in pj.linear_solve(REGULAR, B, Own()).stats
