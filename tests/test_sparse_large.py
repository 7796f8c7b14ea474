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
import scipy.fft
import scipy.sparse
import scipy.sparse.linalg
import scipy.spatial

import pseudojvp as pj


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


def _line(side):
    values = [-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)]
    return scipy.sparse.diags_array(values, offsets=[-1, 0, 1])


def _vectors(size):
    return np.random.default_rng(0).standard_normal((2, size))


def _poisson(side, dimension, preconditioner):
    """-Δu on a cube, u = 0 around it: by finite differences, times the mesh width²."""
    matrix = _line(side)
    for _ in range(dimension - 1):
        matrix = scipy.sparse.kronsum(matrix, _line(side))
    eigenvalues = 4 * np.sin(np.pi * np.arange(1, side + 1) / (2 * side + 2)) ** 2
    grids = np.meshgrid(*[eigenvalues] * dimension, indexing="ij")

    def exact(vector, transposed):
        modes = scipy.fft.dstn(vector.reshape([side] * dimension), type=1)
        return scipy.fft.idstn(modes / sum(grids), type=1).ravel()

    vectors = _vectors(side**dimension)
    matrix = scipy.sparse.csr_array(matrix)
    return Problem(matrix, *vectors, exact, pj.CG(), preconditioner, _DEFINITE)


def _by_splu(matrix):
    factors = scipy.sparse.linalg.splu(matrix.tocsc())
    return lambda vector, transposed: factors.solve(vector, "T" if transposed else "N")


def _convection_diffusion(side=317, peclet=100.0):
    """-Δu + v·∇u with a wind v in a circle; upwind differences, so not symmetric."""
    place = np.linspace(0, 1, side + 2)[1:-1]
    x, y = np.meshgrid(place, place, indexing="ij")
    wind = 4 * peclet / (side + 1) * np.stack([x * (x - 1) * (1 - 2 * y)] * 2)
    wind[1] = -4 * peclet / (side + 1) * y * (y - 1) * (1 - 2 * x)
    backward = scipy.sparse.eye_array(side) - scipy.sparse.eye_array(side, k=-1)
    matrix = scipy.sparse.kronsum(_line(side), _line(side))
    identity = scipy.sparse.eye_array(side)
    along = (
        lambda d: scipy.sparse.kron(d, identity),
        lambda d: scipy.sparse.kron(identity, d),
    )
    for v, difference in zip(wind, along, strict=True):
        rightward = scipy.sparse.diags_array(np.maximum(v, 0).ravel())
        leftward = scipy.sparse.diags_array(np.maximum(-v, 0).ravel())
        matrix = matrix + rightward @ difference(backward)
        matrix = matrix + leftward @ difference(backward.T)
    matrix = scipy.sparse.csr_array(matrix)
    vectors = _vectors(side**2)
    return Problem(matrix, *vectors, _by_splu(matrix), pj.BiCGStab(), pj.incomplete_lu)


def _graph_laplacian(size=100_000):
    """Of the six nearest neighbours of random points: singular. Sums are zero."""
    rng = np.random.default_rng(0)
    points = rng.random((size, 2))
    _, neighbours = scipy.spatial.cKDTree(points).query(points, 7)
    row, col = np.repeat(np.arange(size), 6), neighbours[:, 1:].ravel()
    entries = rng.uniform(0.5, 1.5, row.size), (row, col)
    weights = scipy.sparse.csr_array(entries, shape=(size, size))
    weights = weights.maximum(weights.T)
    assert scipy.sparse.csgraph.connected_components(weights)[0] == 1
    matrix = scipy.sparse.csr_array(scipy.sparse.csgraph.laplacian(weights))
    grounded = _by_splu(matrix[1:, 1:])

    def exact(vector, transposed):
        solution = np.append(0, grounded(vector[1:], False))
        return solution - solution.mean()

    vectors = _vectors(size)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return Problem(matrix, *vectors, exact, pj.MINRES(rtol=1e-9), None, lx.symmetric_tag)


def _two_materials(side=317, contrast=1e6):
    """-div(κ ∇u) with κ of 1 or `contrast` in squares like those of a chessboard."""
    tile = np.arange(side) // 16
    conductivity = np.where((tile[:, None] + tile) % 2 == 0, 1.0, contrast)
    number = np.arange(side**2).reshape(side, side)
    row, col, data = [], [], []
    for axis in range(2):
        one, other = np.arange(side - 1), np.arange(1, side)
        pair = [number.take(index, axis).ravel() for index in (one, other)]
        sides = [conductivity.take(index, axis).ravel() for index in (one, other)]
        between = 2 / (1 / sides[0] + 1 / sides[1])
        row += [pair[0], pair[1], pair[0], pair[1]]
        col += [pair[1], pair[0], pair[0], pair[1]]
        data += [-between, -between, between, between]
    boundary = np.zeros((side, side))
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        boundary[edge] += 2 * conductivity[edge]
    row.append(number.ravel())
    col.append(number.ravel())
    data.append(boundary.ravel())
    entries = np.concatenate(data), (np.concatenate(row), np.concatenate(col))
    matrix = scipy.sparse.csr_array(entries, shape=(side**2,) * 2)
    solver = pj.CG(rtol=1e-9, max_steps=2000)
    vectors = _vectors(side**2)
    preconditioner = ft.partial(pj.amg, method="ruge_stuben")
    return Problem(matrix, *vectors, _by_splu(matrix), solver, preconditioner, _DEFINITE)


_PROBLEMS = {
    "poisson-2d": lambda: _poisson(317, 2, pj.amg),
    "poisson-3d": lambda: _poisson(47, 3, ft.partial(pj.incomplete_cholesky, sweeps=3)),
    "convection-diffusion": _convection_diffusion,
    "graph-laplacian": _graph_laplacian,
    "two-materials": _two_materials,
}
_problems = pytest.mark.parametrize("name", _PROBLEMS)
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
