"""How long does one call outside of `jax.jit` take, at 10 x 10 (milliseconds)?

The operator is there; the solver is found, checks are made and the result is packed in
each call.
"""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg

import pseudojvp as pj

from . import contenders, dense, limits, torch_peers
from .harness import Contender, Workload


_SOLVERS = {
    "AutoLinearSolver": (pj.AutoLinearSolver(True), lx.AutoLinearSolver(True)),
    "LU": (pj.LU(), lx.LU()),
    "QR": (pj.QR(), lx.QR()),
}


def _problem():
    matrix, vector, _ = dense.random_problem(10, 10)
    return matrix + 5 * np.eye(10), vector


def _eager(linear_solve, solver):
    def prepare(matrix, vector):
        operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
        vector = jnp.asarray(vector)
        return lambda: linear_solve(operator, vector, solver).value

    return prepare


def _jax_solve(matrix, vector):
    return ft.partial(jnp.linalg.solve, *jax.device_put((matrix, vector)))


def _contenders():
    for ours, lineax in _SOLVERS.values():
        name, same = map(contenders.describe, (ours, lineax))
        yield Contender("pseudojvp", name, _eager(pj.linear_solve, ours), same)
        yield Contender("lineax", same, _eager(lx.linear_solve, lineax))
        limit = limits.householder if isinstance(ours, pj.QR) else limits.lu
        yield Contender("limit", name, contenders.compiled(limits.solve(limit)))


workloads = (
    Workload(
        "square 10 x 10, outside of `jit`: solve",
        _problem,
        dense.reference_solution,
        (
            *_contenders(),
            Contender("jax", "solve", _jax_solve),
            *contenders.scipy(solve=scipy.linalg.solve),
            *torch_peers.peers(torch_peers.solve, torch_peers.SQUARE),
        ),
    ),
)
