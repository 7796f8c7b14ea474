"""What `Woodbury` keeps of a low-rank update."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import lineax as lx
from jaxtyping import Array, Bool, Inexact, PyTree, Real

from ..._operator import LowRankUpdate


class WoodburyState(eqx.Module):
    """M = A + U C Vᴴ with the solver's state for A: what is solved with is Mᵀ if
    `transposed`.

    - `solved`: A⁻¹U.
    - `weights`: (I + C Vᴴ A⁻¹U)⁻¹ C.
    - `size`: |M v| for a unit vector v.
    - `result`: of the solves for `solved`, `breakdown` if there are none.
    - `estimate`: the reciprocal condition number of M, NaN if lost digits hide it;
        `None` if A is solved with by iterations.
    - `lost`: whether the formula has no digits left that could be refined, so that
        nobody knows the condition of M.
    - `capacitance`: that of I + C Vᴴ A⁻¹U, its columns scaled.
    """

    operator: LowRankUpdate
    inner: PyTree[Any]
    solved: Inexact[Array, "n k"]
    weights: Inexact[Array, "k k"]
    size: Real[Array, ""]
    result: lx.RESULTS
    estimate: Real[Array, ""] | None
    lost: Bool[Array, ""]
    capacitance: Real[Array, ""]
    transposed: eqxi.Static
    structures: eqxi.Static
