"""Tangents along paths of constant rank, against exact Taylor arithmetic in NumPy."""

import jax
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, derivatives, jit
from problems import CORE, each, PROBLEMS
from programs import alone
from truth import central_difference, solution_derivatives

import pseudojvp as pj


ALL = tuple(PROBLEMS)
# b(t) leaves the range of A(t) unless both move.
CORE_OF_ANY_VECTOR = [name for name in CORE if "consistent" not in name]


# The pseudoinverse of a path that `truth.py` uses, against `numpy.linalg.pinv`.
@pytest.mark.parametrize(
    ("order", "rtol"),
    # The error of the differences: rounding over step^order.
    [(0, 1e-13), (1, 1e-9), (2, 1e-7), (3, 1e-5)],
)
@each(ALL)
def test_truth_agrees_with_central_differences_of_pinv(problem, order, rtol):
    def solution(t):
        matrix, vector = np.asarray(problem.matrix(t)), np.asarray(problem.vector(t))
        return np.linalg.pinv(matrix, rcond=1e-8) @ vector

    want = central_difference(solution, order)
    assert_close(solution_derivatives(problem.path)[order], want, rtol)


@each(ALL)
def test_every_problem_is_well_conditioned(problem):
    rank = problem.path.left.shape[-1]
    singular_values = np.linalg.svd(problem.matrix(0.0), compute_uv=False)
    assert singular_values[0] / singular_values[rank - 1] < 50


@pytest.mark.shows("solution")
@each(ALL)
def test_solution_is_pseudoinverse_times_vector(problem):
    want = np.linalg.pinv(problem.matrix(0.0), rcond=1e-8) @ problem.vector(0.0)
    assert_close(alone(problem.name).x, want, problem.rtol)


@pytest.mark.shows("jvp")
@each(ALL)
def test_tangent_along_path_of_constant_rank(problem):
    want = solution_derivatives(problem.path)[1]
    assert_close(alone(problem.name).t_x, want, problem.rtol)


@pytest.mark.shows("second derivative")
@each(ALL)
def test_second_tangent_along_path_of_constant_rank(problem):
    want = solution_derivatives(problem.path)[2]
    assert_close(alone(problem.name).tt_x, want, problem.rtol)


@each(CORE_OF_ANY_VECTOR, "nightly")
def test_tangents_with_respect_to_operator_alone(problem):
    got = jit(derivatives(lambda t: problem.solve(t, 0.0), 2))(0.0)
    want = solution_derivatives(problem.path, vector_moves=False)[:3]
    assert_close(np.stack(got), want, problem.rtol)


@each(CORE_OF_ANY_VECTOR, "nightly")
def test_tangents_with_respect_to_vector_alone(problem):
    got = jit(derivatives(lambda t: problem.solve(0.0, t), 2))(0.0)
    want = solution_derivatives(problem.path, operator_moves=False)[:3]
    assert_close(np.stack(got), want, problem.rtol)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), pj.PivotedQR()],
    ids=lambda solver: type(solver).__name__,
)
def test_tangent_is_linear_in_a_vector_of_any_size(solver):
    """1e170 is Inf in single precision, and its square is in double."""
    problem = PROBLEMS["tall-real-QR"]

    def tangent(scale):
        def solution(t):
            operator = lx.MatrixLinearOperator(problem.matrix(t))
            return pj.linear_solve(operator, scale * problem.vector(t), solver).value

        return jax.jvp(solution, (0.0,), (1.0,))[1]

    tangent = jit(tangent)
    want = solution_derivatives(problem.path)[1]
    for scale in (1e-170, 1e170):
        assert_close(np.asarray(tangent(scale)) / scale, want, 1e-12)
