"""How long do a rank-deficient solve and its gradient take (milliseconds)?"""

import lineax as lx
import numpy as np

import pseudojvp

from . import dense
from .harness import Workload


def _problem():
    """500 x 100 of rank 60."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((500, 60)) @ rng.standard_normal((60, 100))
    return matrix, rng.standard_normal(500), rng.standard_normal(100)


_solvers = {
    "ours": pseudojvp.PivotedQR(),
    "same": lx.SVD(),
    "others": (lx.Normal(lx.SVD()),),
}

workloads = (
    Workload(
        "500 x 100 of rank 60: solve",
        lambda: _problem()[:2],
        dense.solve,
        dense.reference_solution,
        **_solvers,
    ),
    Workload(
        "500 x 100 of rank 60: gradient",
        _problem,
        dense.gradient,
        dense.reference_gradient,
        **_solvers,
    ),
)
