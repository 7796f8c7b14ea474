"""How long do 64 right-hand sides of one matrix take under `jax.vmap` (milliseconds)?"""

import scipy.linalg

from . import contenders, dense, limits, torch_peers
from .harness import Workload


_TALL = (2000, 100)
_WIDE = (100, 2000)
_COUNT = 64


def _gradient(name, shape):
    return Workload(
        f"{name}, {_COUNT} right-hand sides: gradient",
        lambda: dense.random_problem(*shape, count=_COUNT),
        dense.reference_gradient,
        (
            *contenders.solvers(
                dense.gradient_many,
                contenders.FULL_RANK,
                numpy=dense.BY_NUMPY,
                limit=limits.gradient,
                may_hang=contenders.MAY_HANG,
            ),
            *torch_peers.peers(torch_peers.gradient, torch_peers.FULL_RANK),
        ),
    )


workloads = (
    Workload(
        f"tall 2000 x 100, {_COUNT} right-hand sides: solve",
        lambda: dense.random_problem(*_TALL, count=_COUNT)[:2],
        dense.reference_solution,
        (
            *contenders.solvers(
                dense.solve_many,
                contenders.FULL_RANK,
                numpy=dense.BY_NUMPY,
                limit=limits.solve,
            ),
            *contenders.scipy(lstsq=lambda a, b: scipy.linalg.lstsq(a, b.T)[0].T),
            *torch_peers.peers(torch_peers.solve, torch_peers.FULL_RANK),
        ),
    ),
    _gradient("tall 2000 x 100", _TALL),
    _gradient("wide 100 x 2000", _WIDE),
)
