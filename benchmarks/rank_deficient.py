"""How long do a rank-deficient solve and its gradient take (milliseconds)?"""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg

import pseudojvp as pj

from . import contenders, dense, limits, torch_peers
from .contenders import Ours
from .harness import Workload


def _problem():
    """500 x 100 of rank 60."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((500, 60)) @ rng.standard_normal((60, 100))
    return matrix, rng.standard_normal(500), rng.standard_normal(100)


_OURS = (
    Ours(pj.PivotedQR(), lx.SVD(), limits.householder),
    Ours(pj.SVD(), lx.SVD(), limits.svd),
)


def at(cutoff: float) -> tuple[Workload, ...]:
    """The jobs, where JAX and SciPy take singular values below `cutoff` for zero."""
    by_numpy = {
        "lstsq": lambda a, b: jnp.linalg.lstsq(a, b, rcond=cutoff)[0],
        "pinv": lambda a, b: jnp.linalg.pinv(a, rtol=cutoff) @ b,
    }
    others = {"lineax": (lx.Normal(lx.SVD()),), "numpy": by_numpy}
    return (
        Workload(
            "500 x 100 of rank 60: solve",
            lambda: _problem()[:2],
            dense.reference_solution,
            (
                *contenders.solvers(dense.solve, _OURS, limit=limits.solve, **others),
                *contenders.scipy(
                    lstsq=lambda a, b: scipy.linalg.lstsq(a, b, cond=cutoff)[0]
                ),
                *torch_peers.peers(torch_peers.solve, torch_peers.ANY_RANK),
            ),
        ),
        Workload(
            "500 x 100 of rank 60: gradient",
            _problem,
            dense.reference_gradient,
            (
                *contenders.solvers(
                    dense.gradient, _OURS, limit=limits.gradient, **others
                ),
                *torch_peers.peers(torch_peers.gradient, torch_peers.ANY_RANK),
            ),
        ),
    )


workloads = at(1e-10)
