"""How long does the gradient of 10,000 small problems take under `jax.vmap` (ms)?"""

import jax
import numpy as np

from . import contenders, dense, limits, torch_peers
from .harness import Workload


_COUNT = 10_000
_ROWS = 32
_COLS = 8


def _problem():
    rng = np.random.default_rng(0)
    return tuple(
        rng.standard_normal((_COUNT, *shape))
        for shape in ((_ROWS, _COLS), (_ROWS,), (_COLS,))
    )


def _gradient(linear_solve, solver):
    return jax.vmap(dense.gradient(linear_solve, solver))


def _reference(*arguments):
    problems = zip(*arguments, strict=True)
    gradients = [dense.reference_gradient(*problem) for problem in problems]
    return tuple(map(np.stack, zip(*gradients, strict=True)))


# Here any may.
_SOLVERS = tuple(ours.solver for ours in contenders.FULL_RANK)

workloads = (
    Workload(
        f"{_COUNT:,} problems of {_ROWS} x {_COLS}: gradient",
        _problem,
        _reference,
        (
            *contenders.solvers(
                _gradient,
                contenders.FULL_RANK,
                numpy=dense.BY_NUMPY,
                limit=limits.batched_gradient,
                may_hang=(*map(contenders.describe, _SOLVERS), *dense.BY_NUMPY),
            ),
            *torch_peers.peers(torch_peers.gradient, torch_peers.FULL_RANK),
        ),
    ),
)
