"""How long do one solve and one gradient take, factorisation included (milliseconds)?"""

import lineax as lx
import numpy as np
import scipy.linalg

import pseudojvp as pj

from . import contenders, dense, limits, torch_peers
from .contenders import Ours
from .harness import Workload


def _square():
    matrix, vector, weights = dense.random_problem(200, 200)
    # A Gaussian square matrix has eigenvalues of size up to √200: the shift keeps them
    # away from zero.
    return matrix + 20 * np.eye(200), vector, weights


def _pair(name, problem, ours, numpy, scipy, torch):
    """A row for the solve and a row for the gradient."""
    solve = Workload(
        f"{name}: solve",
        lambda: problem()[:2],
        dense.reference_solution,
        (
            *contenders.solvers(dense.solve, ours, numpy=numpy, limit=limits.solve),
            *contenders.scipy(**scipy),
            *torch_peers.peers(torch_peers.solve, torch),
        ),
    )
    gradient = Workload(
        f"{name}: gradient",
        problem,
        dense.reference_gradient,
        (
            *contenders.solvers(dense.gradient, ours, numpy=numpy, limit=limits.gradient),
            *torch_peers.peers(torch_peers.gradient, torch),
        ),
    )
    return solve, gradient


workloads = (
    *_pair(
        "tall 2000 x 100",
        lambda: dense.random_problem(2000, 100),
        contenders.FULL_RANK,
        dense.BY_NUMPY,
        {
            "lstsq": lambda a, b: scipy.linalg.lstsq(a, b)[0],
            "lstsq by gelsy": lambda a, b: scipy.linalg.lstsq(
                a, b, lapack_driver="gelsy"
            )[0],
        },
        torch_peers.FULL_RANK,
    ),
    *_pair(
        "square 200 x 200",
        _square,
        (
            Ours(
                pj.AutoLinearSolver(well_posed=True),
                lx.AutoLinearSolver(well_posed=True),
                limits.lu,
            ),
            Ours(pj.LU(), lx.LU(), limits.lu),
            contenders.QR,
        ),
        {"solve": dense.solve_square},
        {"solve": scipy.linalg.solve},
        torch_peers.SQUARE,
    ),
)
