"""How long do one solve and one gradient take, factorisation included (milliseconds)?"""

import lineax as lx
import numpy as np

import pseudojvp

from . import dense
from .harness import Workload


def _tall():
    return dense.random_problem(2000, 100, seed=0)


def _square():
    matrix, vector, weights = dense.random_problem(200, 200, seed=0)
    # A Gaussian square matrix has eigenvalues of size up to √200: the shift keeps them
    # away from zero.
    return matrix + 20 * np.eye(200), vector, weights


def _pair(name, problem, **solvers):
    """A row for the solve and a row for the gradient."""
    solve = Workload(
        f"{name}: solve",
        lambda: problem()[:2],
        dense.solve,
        dense.reference_solution,
        **solvers,
    )
    gradient = Workload(
        f"{name}: gradient", problem, dense.gradient, dense.reference_gradient, **solvers
    )
    return solve, gradient


workloads = (
    *_pair(
        "tall 2000 x 100, QR",
        _tall,
        ours=pseudojvp.QR(),
        same=lx.QR(),
        others=(lx.Normal(lx.Cholesky()),),
    ),
    *_pair(
        "square 200 x 200, QR",
        _square,
        ours=pseudojvp.QR(),
        same=lx.QR(),
        others=(lx.LU(),),
    ),
    *_pair(
        "square 200 x 200, default solver (LU)",
        _square,
        ours=pseudojvp.AutoLinearSolver(well_posed=True),
        same=lx.AutoLinearSolver(well_posed=True),
    ),
)
