"""Is a single solve or gradient of any shape slower than by lineax's same solver (ms)?"""

import lineax as lx
import numpy as np

import pseudojvp as pj

from . import contenders, dense
from .contenders import Ours
from .harness import Workload


_LU = Ours(pj.LU(), lx.LU())
_CHOLESKY = Ours(pj.Cholesky(), lx.Cholesky())
_CASES = (
    (contenders.QR, ((50, 50), (500, 500), (2000, 100), (2000, 500), (100, 2000))),
    (contenders.CHOLESKY, ((2000, 100), (20000, 200), (100, 2000))),
    (contenders.NORMAL, ((200, 50), (2000, 500))),
    (_LU, ((50, 50), (200, 200), (1000, 1000), (2000, 2000))),
    (_CHOLESKY, ((200, 200), (2000, 2000))),
)


def _problem(rows, cols, solver):
    matrix, vector, weights = dense.random_problem(rows, cols)
    if solver is _CHOLESKY:
        matrix = matrix @ matrix.T / rows + np.eye(rows)
    elif rows == cols:
        matrix = matrix + 2 * np.sqrt(rows) * np.eye(rows)
    return matrix, vector, weights


def _pair(solver, rows, cols):
    """A row for the solve and a row for the gradient."""
    name = f"{rows} x {cols}, {contenders.describe(solver.solver)}"
    tags = lx.positive_semidefinite_tag if solver is _CHOLESKY else ()
    solve = Workload(
        f"{name}: solve",
        lambda: _problem(rows, cols, solver)[:2],
        _reference_solution,
        contenders.solvers(dense.tagged(dense.solve, tags), (solver,)),
    )
    gradient = Workload(
        f"{name}: gradient",
        lambda: _problem(rows, cols, solver),
        _reference_gradient,
        contenders.solvers(dense.tagged(dense.gradient, tags), (solver,)),
    )
    return solve, gradient


def _reference_solution(matrix, vector):
    if matrix.shape[0] == matrix.shape[1]:
        return np.linalg.solve(matrix, vector)
    return dense.reference_solution(matrix, vector)


def _reference_gradient(matrix, vector, weights):
    if matrix.shape[0] != matrix.shape[1]:
        return dense.reference_gradient(matrix, vector, weights)
    ct_vector = np.linalg.solve(matrix.T, weights)
    return -np.outer(ct_vector, np.linalg.solve(matrix, vector)), ct_vector


workloads = tuple(
    workload
    for solver, shapes in _CASES
    for shape in shapes
    for workload in _pair(solver, *shape)
)
