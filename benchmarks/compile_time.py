"""How long does a gradient take to trace, lower and compile (seconds)?

From empty caches, once, after one that is not counted.
"""

import time

import jax
import lineax as lx

import pseudojvp as pj

from . import contenders, dense
from .harness import Pair


_TOLERANCES = {"rtol": 1e-8, "atol": 1e-8}
_POSITIVE = lx.positive_semidefinite_tag
_TALL = (200, 20)
_SQUARE = (20, 20)

_CASES = (
    (pj.AutoLinearSolver(True), lx.AutoLinearSolver(True), _SQUARE, ()),
    (pj.AutoLinearSolver(False), lx.AutoLinearSolver(False), _TALL, ()),
    (pj.LU(), lx.LU(), _SQUARE, ()),
    (pj.Cholesky(), lx.Cholesky(), _SQUARE, _POSITIVE),
    (pj.Triangular(), lx.Triangular(), _SQUARE, lx.lower_triangular_tag),
    (pj.Tridiagonal(), lx.Tridiagonal(), _SQUARE, lx.tridiagonal_tag),
    (pj.QR(), lx.QR(), _TALL, ()),
    (pj.CholeskyQR(), lx.QR(), _TALL, ()),
    (pj.PivotedQR(), lx.SVD(), _TALL, ()),
    (pj.SVD(), lx.SVD(), _TALL, ()),
    (pj.Normal(pj.Cholesky()), lx.Normal(lx.Cholesky()), _TALL, ()),
    (pj.Normal(pj.CG(**_TOLERANCES)), lx.Normal(lx.CG(**_TOLERANCES)), _TALL, ()),
    (pj.CG(**_TOLERANCES), lx.CG(**_TOLERANCES), _SQUARE, _POSITIVE),
    (pj.GMRES(**_TOLERANCES), lx.GMRES(**_TOLERANCES), _SQUARE, ()),
    (pj.BiCGStab(**_TOLERANCES), lx.BiCGStab(**_TOLERANCES), _SQUARE, ()),
    (pj.LSMR(**_TOLERANCES), lx.LSMR(**_TOLERANCES), _TALL, ()),
)


def _seconds(linear_solve, solver, tags, arguments) -> float:
    program = dense.tagged(dense.gradient, tags)(linear_solve, solver)
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(program).lower(*arguments).compile()
    return time.perf_counter() - start


def pair(ours, same, shape, tags) -> Pair:
    arguments = dense.random_problem(*shape)
    return Pair(
        "gradient",
        contenders.describe(ours),
        contenders.describe(same),
        _seconds(pj.linear_solve, ours, tags, arguments),
        _seconds(lx.linear_solve, same, tags, arguments),
    )


def pairs() -> list[Pair]:
    pair(*_CASES[0])
    return [pair(*case) for case in _CASES]
