"""How much temporary memory takes the compiled gradient of 64 right-hand sides (MiB)?"""

import jax
import lineax as lx

import pseudojvp as pj

from . import contenders, dense
from .contenders import Ours
from .harness import Pair


_CASES = {
    (2000, 100): (*contenders.FULL_RANK, Ours(pj.PivotedQR(), lx.SVD())),
    (100, 2000): contenders.FULL_RANK,
    (200, 200): (Ours(pj.LU(), lx.LU()),),
}


def _mebibytes(linear_solve, solver, shape) -> float:
    program = dense.gradient_many(linear_solve, solver)
    arguments = dense.random_problem(*shape, count=64)
    analysis = jax.jit(program).lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes / 2**20


def pairs() -> list[Pair]:
    return [
        Pair(
            f"{shape[0]} x {shape[1]}",
            contenders.describe(each.solver),
            contenders.describe(each.same),
            _mebibytes(pj.linear_solve, each.solver, shape),
            _mebibytes(lx.linear_solve, each.same, shape),
        )
        for shape, ours in _CASES.items()
        for each in ours
    ]
