from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import lineax as lx
from jaxtyping import Array, PyTree

from .._misc import check_options, tree_conj
from .cholesky import Cholesky
from .lu import LU
from .pivoted_qr import PivotedQR
from .qr import QR
from .svd import SVD
from .triangular import Triangular
from .tridiagonal import Tridiagonal


# Backends with a pivoted QR factorisation in JAX.
_PIVOTING = ("cpu", "gpu", "cuda", "rocm")


class AutoState(eqx.Module):
    solver: eqxi.Static
    state: PyTree[Any]


class AutoLinearSolver(lx.AbstractLinearSolver[AutoState]):
    """Picks a solver from the shape and the tags of the operator.

    - `well_posed=True`: `lineax.Diagonal(well_posed=True)`, [`pseudojvp.Tridiagonal`][],
        [`pseudojvp.Triangular`][], [`pseudojvp.Cholesky`][] (tagged positive or negative
        definite) or else [`pseudojvp.LU`][]. A non-square operator is an error.
    - `well_posed=None`: [`pseudojvp.QR`][] if not square, else as for `True`, except
        that a diagonal operator may be singular.
    - `well_posed=False`: `lineax.Diagonal` if diagonal, else [`pseudojvp.PivotedQR`][]
        ([`pseudojvp.SVD`][] on a backend without it, the TPU). Any shape, any rank.

    The choice is that of `lineax.AutoLinearSolver`, but for pivoted QR in the place of
    the SVD; unlike there, the statistics of the chosen solver (`stats["rank"]`,
    `stats["rcond"]`) are passed on, and derivatives take the rules of the chosen solver.

    **Arguments:**

    - `well_posed`: `True`, `False` or `None`, as above; no default.

    Takes no `options`, as none of these solvers does.

    **Raises:** `ValueError` for any other value, a non-square operator under
    `well_posed=True`, or an option.
    """

    well_posed: bool | None

    def __check_init__(self):
        if self.well_posed not in (True, False, None):
            raise ValueError(
                f"`AutoLinearSolver(well_posed=...)` got {self.well_posed!r}. Pass "
                "`True`, `False` or `None`."
            )

    def select_solver(
        self, operator: lx.AbstractLinearOperator
    ) -> lx.AbstractLinearSolver:
        """Returns the solver that `operator` will be handed to."""
        square = operator.in_size() == operator.out_size()
        if self.well_posed is True and not square:
            raise ValueError(
                "Cannot use `AutoLinearSolver(well_posed=True)` with a non-square "
                f"operator, of shape ({operator.out_size()}, {operator.in_size()}). For "
                "a least-squares problem pass `solver=AutoLinearSolver("
                "well_posed=False)`, or `solver=QR()` if it has full rank."
            )
        # A single entry is diagonal in name only, and its solver should tell the rank.
        single = self.well_posed is False and operator.in_size() <= 1
        if lx.is_diagonal(operator) and square and not single:
            return lx.Diagonal(well_posed=self.well_posed is True)
        if self.well_posed is False:
            return PivotedQR() if jax.default_backend() in _PIVOTING else SVD()
        if not square:
            return QR()
        if lx.is_tridiagonal(operator):
            return Tridiagonal()
        if lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator):
            return Triangular()
        if lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(operator):
            return Cholesky()
        return LU()

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> AutoState:
        check_options(self, options)
        solver = self.select_solver(operator)
        return AutoState(eqxi.Static(solver), solver.init(operator, options))

    def compute(
        self, state: AutoState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        return state.solver.value.compute(state.state, vector, options)

    def transpose(self, state: AutoState, options: dict[str, Any]):
        transposed, options = state.solver.value.transpose(state.state, options)
        return AutoState(state.solver, transposed), options

    def conj(self, state: AutoState, options: dict[str, Any]):
        # Entry by entry, as each state it may hold allows. Not by `solver.conj`: that of
        # `lineax.LU` flips its transpose flag (lineax 0.1.1).
        arrays, rest = eqx.partition(state.state, eqx.is_inexact_array)
        conjugated = eqx.combine(tree_conj(arrays), rest)
        return AutoState(state.solver, conjugated), options

    def assume_full_rank(self) -> bool:
        return self.well_posed is not False
