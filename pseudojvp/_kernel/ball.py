"""x on the rows that a y reads, from those rows alone."""

from typing import Any

import numpy as np

from .._base.optional import import_late
from .bicgstab import krylov
from .pushes import Limits, Side


# The part of the tolerance that is left to iterations on the ball.
_OF_TOLERANCE = 0.1
# How far y goes on where the ball is too small, and how often.
_FURTHER = 0.1
_TIMES = 8


def x_on_ball(of_unit: Side, of_vector: Side, tolerance: float, limits: Limits) -> Any:
    """x̂ with |y|ᵀ |A| |x − x̂| ≤ tolerance; `None` if no ball is local that has it.

    On the rows B that y has touched A_BB x̂ = b_B, and zero elsewhere. As |x| ≤ m for
    m = max |b_j| / d_j, the error is at most e with H e = |b − A x̂| + m |A_B,rest| 1,
    where H is A_BB with |a_jj| on its diagonal and −|a_jk| beside it, an M-matrix. If
    |y|ᵀ|A|e is too large, y goes on, and B grows.
    """
    for _ in range(_TIMES):
        x, error = _on(of_unit, of_vector, tolerance)
        if error <= tolerance:
            return x
        aim = _FURTHER * of_unit.one_norm
        while of_unit.one_norm > aim:
            room = limits.pushes - of_unit.pushes
            if room <= 0 or of_unit.pushed.size > limits.rows:
                return None
            of_unit.push(room)
        of_unit.look()
    return None


def _on(of_unit: Side, of_vector: Side, tolerance: float) -> tuple[Any, float]:
    """x̂ on the ball of y, and |y|ᵀ|A|e."""
    sparse = import_late("scipy.sparse")
    rows, ball = of_unit.rows, np.sort(of_unit.active)
    of_ball = rows.matrix[ball]
    within = of_ball[:, ball]
    sizes, diagonal = abs(within), rows.diagonal[ball]
    gap, m = float(rows.gaps[ball].min()), of_vector.largest
    weights = np.abs(of_unit.solution[ball])
    reach = sizes.T @ weights  # |y|ᵀ|A|, whose columns are all in the ball
    target = _OF_TOLERANCE * tolerance * gap / float(reach.sum())
    rhs = of_vector.rhs[ball]
    x, _ = krylov(within, diagonal, rhs, target)
    rest = np.asarray(abs(of_ball).sum(axis=1) - sizes.sum(axis=1)).ravel()
    told = np.abs(rhs - within @ x) + m * np.maximum(rest, 0)
    comparison = sparse.diags_array(2 * np.abs(diagonal)) - sizes
    error, _ = krylov(comparison, np.abs(diagonal), told, target)
    # H (e + c 1) is at least what e was to solve, for H 1 is at least the gap.
    error = error + max(float(np.max(told - comparison @ error)), 0.0) / gap
    everywhere = np.zeros(of_unit.rhs.size, x.dtype)
    everywhere[ball] = x
    return everywhere, float(np.sum(reach * error))
