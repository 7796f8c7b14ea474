"""Shifts that `shifted_solve` cannot or may hardly solve for: told, each by itself."""

import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest
from shift_cases import (
    definite,
    each,
    SHIFTS,
    SIZE,
    solutions,
    solved,
    SOLVERS,
    successful,
)

import pseudojvp as pj


RESULTS = lx.RESULTS


@pytest.mark.slow  # a second
def test_shifts_that_make_it_indefinite_or_singular_are_told_each():
    matrix = krylov.hermitian(0, False, np.linspace(1, 2, SIZE))
    vector = krylov.random(1, False, SIZE)
    shifts = np.array([0.5, -1.5, -1.0, np.nan, 2.0])
    solution = solved(matrix, vector, shifts, pj.CG())
    good = np.array([True, False, False, False, True])
    np.testing.assert_array_equal(successful(solution.result), good)
    assert (np.asarray(solution.result == RESULTS.breakdown) == ~good)[1]
    truth = solutions(matrix, vector, shifts[good])
    assert krylov.relative_error(solution.value[good], truth) < 1e-9


@pytest.mark.slow  # a second
def test_minres_takes_indefinite_shifts_and_the_shortest_solution_of_a_singular_one():
    matrix = krylov.hermitian(0, True, np.arange(1.0, SIZE + 1))
    vector = krylov.random(1, True, SIZE)
    shifts = np.array([0.5, -3.0, -4.5])  # not in the range of A - 3 I
    solution = solved(matrix, vector, shifts, pj.MINRES(1e-12), pj.hermitian_tag)
    assert successful(solution.result).all()
    for x, shift in zip(solution.value, shifts, strict=True):
        truth = krylov.pinv(matrix + shift * np.eye(SIZE)) @ vector
        assert krylov.relative_error(x, truth) < 1e-9


@pytest.mark.slow  # beside the main ones
def test_inconsistent_singular_shift_that_was_to_be_nonsingular_is_told():
    matrix = krylov.hermitian(0, False, np.arange(1.0, SIZE + 1))
    vector, shifts = krylov.random(1, False, SIZE), np.array([0.5, -3.0])
    solution = solved(matrix, vector, shifts, pj.MINRES(1e-10, well_posed=True))
    np.testing.assert_array_equal(successful(solution.result), [True, False])


@pytest.mark.slow  # beside the main ones
def test_shift_far_beyond_the_operator_is_solved_beside_the_others():
    matrix, vector = definite(False), krylov.random(1, False, SIZE)
    shifts = np.array([0.1, 1e9, 1e30])
    solution = solved(matrix, vector, shifts, pj.CG(1e-12, max_steps=200))
    truth = solutions(matrix, vector, shifts)
    told = successful(solution.result)
    assert told[1:].all()
    for k in np.flatnonzero(told):
        assert krylov.relative_error(solution.value[k], truth[k]) < 1e-9


@pytest.mark.ci("*")
@each
def test_what_is_not_reached_is_told_and_nan_in_derivatives(name):
    solver = type(SOLVERS[name])(1e-12, max_steps=5)
    matrix, vector = map(jnp.asarray, (definite(False), krylov.random(1, False, SIZE)))

    @krylov.compiled
    def solve(vector):
        def values(vector):
            operator = krylov.operator(matrix, krylov.PSD)
            out = pj.shifted_solve(operator, vector, SHIFTS, solver, throw=False)
            return out.value, (out.result, out.stats["num_steps"])

        return jax.jvp(values, (vector,), (vector,), has_aux=True)

    value, tangent, (result, steps) = solve(vector)
    enough = successful(result)
    assert not enough[0]
    assert (np.asarray(steps) <= 5).all()
    assert np.isfinite(value).all()
    assert np.isnan(tangent[~enough]).all()


@pytest.mark.slow  # a second
def test_failure_raises_with_the_name_of_the_solver():
    operator = krylov.operator(definite(False), krylov.PSD)
    with pytest.raises(Exception, match=r"`ShiftedSolver\(CG\(\)\)` .* broke down"):
        pj.shifted_solve(operator, np.ones(SIZE), np.array([0.0, -1.0]))


@pytest.mark.slow  # beside the main ones
def test_residuals_beyond_what_the_shared_run_reaches_are_refined_or_told():
    size = 60
    matrix = krylov.hermitian(0, False, np.geomspace(1e-6, 1, size))
    vector, shifts = krylov.random(1, False, size), np.geomspace(1e-6, 1, 8)
    for solver in (pj.CG(1e-12), pj.MINRES(1e-12, well_posed=True)):
        solution = solved(matrix, vector, shifts, solver)
        told = successful(solution.result)
        x = np.asarray(solution.value)
        residual = vector[None] - x @ matrix - shifts[:, None] * x
        norms, of_x = np.linalg.norm(residual, axis=1), np.linalg.norm(x, axis=1)
        allowed = 1.1e-11 * np.linalg.norm(vector) + 3e-15 * (1 + shifts) * of_x
        assert (norms[told] <= allowed[told]).all()
        assert told[-4:].all()


def test_bad_input_is_an_error():
    vector = np.ones(SIZE)
    operator = krylov.operator(definite(False), krylov.PSD)

    def refused(error, match, *, operator=operator, shifts=SHIFTS, solver=None):
        solver = pj.CG() if solver is None else solver
        with pytest.raises(error, match=match):
            pj.shifted_solve(operator, vector, shifts, solver)

    refused(TypeError, "got complex numbers", shifts=SHIFTS * 1j, solver=pj.MINRES())
    refused(ValueError, r"shape \(\). Pass one of shape", shifts=1.0)
    refused(ValueError, r"shape \(2, 2\)", shifts=np.ones((2, 2)))
    refused(TypeError, "or solve for each shift by", solver=pj.LU())
    refused(ValueError, "Drop the precond", solver=pj.CG(preconditioner=operator))
    refused(ValueError, r"Use `MINRES\(\)`", solver=pj.CG(well_posed=False))
    refused(ValueError, "tagged as neither", operator=krylov.operator(np.eye(SIZE)))
    wide = krylov.operator(np.ones((SIZE, 3)))
    refused(ValueError, "square matrices", operator=wide)
    with pytest.raises(ValueError, match="structures do not match"):
        pj.shifted_solve(operator, np.ones(3), SHIFTS)
