import functools as ft
from collections.abc import Collection
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.checks import check_options
from .._operator.adjoint import is_hermitian
from .._operator.sparse import SparseLinearOperator, untagged
from .._operator.toeplitz import Toeplitz
from .circulant import CirculantPreconditioned
from .direct.cholesky import Cholesky
from .direct.diagonal import diagonal_solver
from .direct.lu import LU
from .direct.sparse_triangular import SparseTriangular
from .direct.triangular import Triangular
from .direct.tridiagonal import Tridiagonal
from .krylov.bicgstab import BiCGStab
from .krylov.cg import CG
from .krylov.lsmr import LSMR
from .krylov.minres import MINRES
from .orthogonal.blocks import check_blocks
from .orthogonal.pivoted_qr import PivotedQR
from .orthogonal.qr import QR
from .structured.solver import is_structured, Structured


# Entries of a sparse operator, zeros counted, up to which it is solved as a dense matrix:
# in double precision 8 MB, and some 50 ms for LU on two CPU cores.
DENSE_ENTRIES = 1_000_000


class AutoState(eqx.Module):
    solver: lx.AbstractLinearSolver = eqx.field(static=True)
    state: PyTree[Any]


class AutoLinearSolver(lx.AbstractLinearSolver[AutoState]):
    """Picks a solver from the shape and the tags of the operator.

    - `well_posed=True`: `lineax.Diagonal(well_posed=True)`, [`pseudojvp.Tridiagonal`][],
        [`pseudojvp.Triangular`][], [`pseudojvp.Cholesky`][] (if tagged positive or
        negative definite), or else [`pseudojvp.LU`][]. A non-square operator is an error.
    - `well_posed=None`: [`pseudojvp.QR`][] if not square, else as for `True`, except that
        a diagonal operator may be singular.
    - `well_posed=False`: `lineax.Diagonal` if diagonal, else [`pseudojvp.PivotedQR`][].
        Any shape, any rank.

    A square [`pseudojvp.LowRankUpdate`][] gets [`pseudojvp.Woodbury`][], with a solver
    for the updated operator picked in the same way, unless `well_posed=False` or the
    update has as many columns as unknowns.

    A triangular sparse operator gets [`pseudojvp.SparseTriangular`][] instead of
    `Triangular`. A sparse operator of more than a million entries, counting zeros, is
    never made dense: unless it is diagonal, tridiagonal or triangular, it gets an
    iterative solver with its default tolerances.

    - `well_posed=True`: [`pseudojvp.CG`][] if tagged definite, [`pseudojvp.MINRES`][] if
        symmetric or Hermitian, else [`pseudojvp.BiCGStab`][].
    - `well_posed=None`: [`pseudojvp.LSMR`][] if not square, else as for `True`; both take
        the operator to have full rank.
    - `well_posed=False`: `MINRES` if symmetric or Hermitian, else `LSMR`.

    A [`pseudojvp.Kronecker`][], [`pseudojvp.BlockDiagonal`][], [`pseudojvp.Eigh`][] or
    [`pseudojvp.Circulant`][] is solved by its parts: each part as above, or by its
    eigenvalues, leaving out those of zero unless `well_posed=True`. The statistics are
    those of the whole operator. Tall parts beside wide ones never have full rank: this is
    an error for `True`, and full rank is not assumed otherwise. A
    [`pseudojvp.Toeplitz`][] of up to a million entries is solved as a dense matrix, a
    larger one like a sparse matrix of its size, with a circulant preconditioner.

    For dense operators the choice is that of `lineax.AutoLinearSolver`, with pivoted QR
    instead of the SVD. Unlike there, the statistics of the chosen solver
    (`stats["rank"]`, `stats["reciprocal_condition"]`) are passed on, and derivatives use
    the rules of the chosen solver.

    **Arguments:**

    - `well_posed`: `True`, `False` or `None`, as above; no default.
    - `rcond`: a number without unit, for operators that may be singular: diagonal
        entries, eigenvalues and singular values at most about `rcond` times the largest
        count as zero. For a structured operator it applies to each part alone. Defaults
        to `None`: `eps` times the larger dimension. Not for `well_posed=True`.

    - `blocks`: the `blocks` of `QR` or `PivotedQR`, if one of them is picked. Defaults to
        `None`.

    Takes no `options`: to pass a preconditioner, name the solver. Cost: that of the
    solver picked. Picking it uses only shapes and tags, while JAX traces.

    **Raises:** `ValueError` for any other `well_posed`, for a non-square operator under
    `well_posed=True`, or for an option.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    tall, b = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.array([1.0, 3.0, 5.0])
    any_rank = pj.AutoLinearSolver(well_posed=False)
    print(pj.linear_solve(tall, b, any_rank).value.round(2))  # [1. 1.]
    ```
    """

    well_posed: bool | None
    rcond: float | None = None
    blocks: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_blocks(self)
        if self.well_posed not in (True, False, None):
            raise ValueError(
                f"`AutoLinearSolver(well_posed=...)` got {self.well_posed!r}. Pass "
                "`True`, `False` or `None`."
            )
        if self.rcond is not None and not isinstance(self.rcond, int | float):
            raise TypeError(
                f"`AutoLinearSolver(rcond=...)` got a {type(self.rcond).__name__}. Pass "
                "a Python number, or name a solver, as `PivotedQR(rcond)`."
            )
        if self.rcond is not None and self.well_posed is True:
            raise ValueError(
                f"`AutoLinearSolver(well_posed=True, rcond={self.rcond})`: there is no "
                "cutoff where A is taken for nonsingular. Pass `well_posed=False`."
            )

    def select_solver(
        self, operator: lx.AbstractLinearOperator
    ) -> lx.AbstractLinearSolver:
        """Returns the solver that will be used for `operator`."""
        return default_solver(
            operator, self.well_posed, rcond=self.rcond, blocks=self.blocks
        )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> AutoState:
        check_options(self, options)
        solver = diagonal_solver(self.select_solver(operator), operator)
        return AutoState(solver, solver.init(operator, options))

    def compute(
        self, state: AutoState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        return state.solver.compute(state.state, vector, options)

    def transpose(self, state: AutoState, options: dict[str, Any]):
        transposed, options = state.solver.transpose(state.state, options)
        return AutoState(state.solver, transposed), options

    def conj(self, state: AutoState, options: dict[str, Any]):
        conjugated, options = state.solver.conj(state.state, options)
        return AutoState(state.solver, conjugated), options

    def assume_full_rank(self) -> bool:
        return self.well_posed is not False


@ft.singledispatch
def registered_solver(
    operator: lx.AbstractLinearOperator,
) -> lx.AbstractLinearSolver | None:
    """The solver of a nonsingular operator of a structure of its own; `None` for others.

    Each such solver registers the class of its operator.
    """
    del operator
    return None


def default_solver(
    operator: lx.AbstractLinearOperator,
    well_posed: bool | None,
    options: Collection[str] = (),
    rcond: float | None = None,
    blocks: int | None = None,
) -> lx.AbstractLinearSolver:
    """The solver for `operator` where none is named; an iterative one for `options`.

    What it takes `operator` for depends on `well_posed` alone.
    """
    square = operator.in_size() == operator.out_size()
    if well_posed is True and not square:
        raise ValueError(
            "Cannot use `AutoLinearSolver(well_posed=True)` with a non-square "
            f"operator, of shape ({operator.out_size()}, {operator.in_size()}). For "
            "a least-squares problem pass `solver=AutoLinearSolver("
            "well_posed=False)`, or `solver=QR()` if it has full rank."
        )
    if is_structured(operator) and not options:
        choose = lambda part: default_solver(part, well_posed, rcond=rcond)
        return Structured.of(operator, well_posed, rcond, choose)
    large = operator.in_size() * operator.out_size() > DENSE_ENTRIES
    iterative = len(options) > 0 or (large and _is_sparse(operator))
    # A single entry is diagonal in name only, and its solver should tell the rank.
    single = well_posed is False and operator.in_size() <= 1
    if square and lx.is_diagonal(operator) and not single and not options:
        full_rank = well_posed is True or operator.in_size() == 0
        return lx.Diagonal(well_posed=full_rank, rcond=rcond)
    if well_posed is False:
        if iterative:
            return MINRES() if square and is_hermitian(operator) else LSMR()
        return PivotedQR(rcond, blocks)
    if not square:
        return LSMR(well_posed=True) if iterative else QR(blocks)
    registered = None if options else registered_solver(untagged(operator))
    if registered is not None:
        return registered
    triangular = lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator)
    if not options:
        if lx.is_tridiagonal(operator):
            return Tridiagonal()
        if triangular and isinstance(untagged(operator), SparseLinearOperator):
            return SparseTriangular()
    definite = lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(
        operator
    )
    if iterative and definite:
        return _preconditioned(operator, CG(), options)
    if iterative and is_hermitian(operator):
        return MINRES(well_posed=True)
    if iterative:
        return _preconditioned(operator, BiCGStab(), options)
    if triangular:
        return Triangular()
    return Cholesky() if definite else LU()


def _preconditioned(
    operator: lx.AbstractLinearOperator,
    solver: CG | BiCGStab,
    options: Collection[str],
) -> lx.AbstractLinearSolver:
    if isinstance(untagged(operator), Toeplitz) and not options:
        return CirculantPreconditioned(solver)
    return solver


def _is_sparse(operator: lx.AbstractLinearOperator) -> bool:
    """Whether it is a sparse matrix, or made of some without a dense one."""
    if isinstance(untagged(operator), Toeplitz):
        return True
    stored = SparseLinearOperator, lx.MatrixLinearOperator
    parts = jtu.tree_leaves(operator, is_leaf=lambda part: isinstance(part, stored))
    parts = [part for part in parts if isinstance(part, stored)]
    sparse = [isinstance(part, SparseLinearOperator) for part in parts]
    return any(sparse) and all(sparse)
