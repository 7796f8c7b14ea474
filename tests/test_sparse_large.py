"""Sparse systems of 10^5 unknowns: solutions and gradients to a residual of 1e-8.

The truth of the gradients is SciPy's: a fast sine transform or a direct solver.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import pseudojvp as pj
from benchmarks import sparse_problems


# Each solves 10^5 unknowns to the end, forward and backward: 10 to 60 s a problem.
pytestmark = pytest.mark.slow

_DEFINITE = lx.positive_semidefinite_tag


class Problem(NamedTuple):
    """A x = b, the loss <weights, x>, and how it is solved.

    - `exact`: from a vector and whether A is transposed to A†v, without our code.
    """

    matrix: scipy.sparse.csr_array
    vector: np.ndarray
    weights: np.ndarray
    exact: Callable[[np.ndarray, bool], np.ndarray]
    solver: lx.AbstractLinearSolver
    preconditioner: Callable[[pj.SparseLinearOperator], Any] | None = None
    tags: object = ()


def _vectors(size):
    return np.random.default_rng(0).standard_normal((2, size))


def _by_splu(matrix):
    factors = scipy.sparse.linalg.splu(matrix.tocsc())
    return lambda vector, transposed: factors.solve(vector, "T" if transposed else "N")


def _poisson(side, dimension, preconditioner):
    exact = lambda vector, _: sparse_problems.solve_poisson(side, dimension, vector)
    vectors = _vectors(side**dimension)
    matrix = sparse_problems.poisson(side, dimension)
    return Problem(matrix, *vectors, exact, pj.CG(), preconditioner, _DEFINITE)


def _convection_diffusion():
    matrix = sparse_problems.convection_diffusion(317, 100.0)
    vectors = _vectors(317**2)
    return Problem(matrix, *vectors, _by_splu(matrix), pj.BiCGStab(), pj.incomplete_lu)


def _graph_laplacian(size=100_000):
    """Singular: the sums of vectors and solution are zero."""
    matrix = sparse_problems.graph_laplacian(size)
    assert scipy.sparse.csgraph.connected_components(matrix)[0] == 1
    grounded = _by_splu(matrix[1:, 1:])

    def exact(vector, transposed):
        solution = np.append(0, grounded(vector[1:], False))
        return solution - solution.mean()

    vectors = _vectors(size)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return Problem(matrix, *vectors, exact, pj.MINRES(rtol=1e-9), None, lx.symmetric_tag)


def _two_materials():
    matrix = sparse_problems.two_materials(317, 1e6)
    solver = pj.CG(rtol=1e-9, max_steps=2000)
    vectors = _vectors(317**2)
    preconditioner = ft.partial(pj.amg, method="ruge_stuben")
    return Problem(matrix, *vectors, _by_splu(matrix), solver, preconditioner, _DEFINITE)


_PROBLEMS = {
    "poisson-2d": lambda: _poisson(317, 2, pj.amg),
    "poisson-3d": lambda: _poisson(47, 3, ft.partial(pj.incomplete_cholesky, sweeps=3)),
    "convection-diffusion": _convection_diffusion,
    "graph-laplacian": _graph_laplacian,
    "two-materials": _two_materials,
}
_MINUTES = ("convection-diffusion", "graph-laplacian")  # to solve
_problems = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly if name in _MINUTES else ())
        for name in _PROBLEMS
    ],
)
_problem = ft.cache(lambda name: _PROBLEMS[name]())


class Solved(NamedTuple):
    successful: bool
    solution: np.ndarray
    of_data: np.ndarray
    of_vector: np.ndarray


@ft.cache
def _solved(name, preconditioned=True) -> Solved:
    problem = _problem(name)
    operator = pj.SparseLinearOperator(problem.matrix, problem.tags)
    options = {}
    if preconditioned and problem.preconditioner is not None:
        options["preconditioner"] = problem.preconditioner(operator)

    @jax.jit
    def value_and_gradient(data, vector, weights, options):
        def loss(data, vector):
            moved = pj.SparseLinearOperator((data, operator.sparsity), operator.tags)
            solution = pj.linear_solve(
                moved, vector, problem.solver, options=options, throw=False
            )
            successful = solution.result == lx.RESULTS.successful
            return weights @ solution.value, (successful, solution.value)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(data, vector)

    (_, (successful, solution)), (of_data, of_vector) = value_and_gradient(
        operator.data, jnp.asarray(problem.vector), problem.weights, options
    )
    return Solved(bool(successful), *map(np.asarray, (solution, of_data, of_vector)))


def _relative(error, of):
    return np.linalg.norm(error) / np.linalg.norm(of)


@_problems
def test_unknowns_are_at_least_1e5(name):
    assert _problem(name).matrix.shape[1] >= 100_000


@_problems
def test_relative_residual_of_a_large_system_is_1e8_at_most(name, record_property):
    problem, solved = _problem(name), _solved(name)
    residual = problem.vector - problem.matrix @ solved.solution
    record_property("relative_residual", float(_relative(residual, problem.vector)))
    assert solved.successful
    assert _relative(residual, problem.vector) <= 1e-8


@_problems
def test_relative_residual_of_the_adjoint_system_is_1e8_at_most(name, record_property):
    problem, solved = _problem(name), _solved(name)
    residual = problem.weights - problem.matrix.T @ solved.of_vector
    record_property("relative_residual", float(_relative(residual, problem.weights)))
    assert _relative(residual, problem.weights) <= 1e-8


@_problems
def test_gradient_of_a_large_system_is_that_of_the_exact_solutions(name):
    problem, solved = _problem(name), _solved(name)
    x = problem.exact(problem.vector, False)
    adjoint = problem.exact(problem.weights, True)
    entries = problem.matrix.tocoo()
    truth = -adjoint[entries.row] * x[entries.col]
    assert solved.of_data.shape == truth.shape
    assert _relative(solved.of_data - truth, truth) <= 1e-6
    assert _relative(solved.of_vector - adjoint, adjoint) <= 1e-6


def test_without_its_preconditioner_the_case_of_two_materials_does_not_converge():
    solved = _solved("two-materials", preconditioned=False)
    assert not solved.successful
    assert np.all(np.isnan(solved.of_data))
