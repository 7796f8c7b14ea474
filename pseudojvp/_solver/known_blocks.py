import dataclasses
from typing import Any

import jax
import lineax as lx

from .._operator.sparse import untagged
from .auto import AutoLinearSolver
from .orthogonal.blocks import blocks_for
from .orthogonal.pivoted_qr import PivotedQR
from .orthogonal.qr import QR
from .orthogonal.svd import SVD


BLOCKED = QR | PivotedQR | SVD | AutoLinearSolver


def with_known_blocks(solver: Any, operator: Any) -> Any:
    """The solver with as many row blocks as devices hold a matrix, where none are named.

    To be called where a front is: outside of `jit` the sharding of a matrix is known, and
    within it that over explicit axes, which are not there where the solver is.
    """
    matrix = operator
    if isinstance(operator, lx.AbstractLinearOperator):
        matrix = getattr(untagged(operator), "matrix", None)
    if not isinstance(matrix, jax.Array):
        return solver
    takes_blocks = isinstance(solver, BLOCKED)
    if not takes_blocks or solver.blocks is not None or matrix.ndim != 2:
        return solver
    blocks = blocks_for(None, matrix)
    return solver if blocks == 1 else dataclasses.replace(solver, blocks=blocks)
