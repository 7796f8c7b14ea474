"""Solvers of lineax as their counterparts here, which also say what failed."""

from collections.abc import Callable
from typing import Any

import lineax as lx

from .auto import AutoLinearSolver
from .direct.cholesky import Cholesky
from .direct.lu import LU
from .direct.triangular import Triangular
from .direct.tridiagonal import Tridiagonal
from .krylov.bicgstab import BiCGStab
from .krylov.cg import CG
from .krylov.gmres import GMRES
from .orthogonal.qr import QR
from .orthogonal.svd import SVD


_COUNTERPARTS: dict[type, Callable[[Any], lx.AbstractLinearSolver]] = {
    lx.AutoLinearSolver: lambda solver: AutoLinearSolver(solver.well_posed),
    lx.BiCGStab: lambda solver: BiCGStab(
        solver.rtol, solver.atol, norm=solver.norm, max_steps=solver.max_steps
    ),
    lx.CG: lambda solver: CG(
        solver.rtol,
        solver.atol,
        norm=solver.norm,
        stabilise_every=solver.stabilise_every,
        max_steps=solver.max_steps,
    ),
    lx.Cholesky: lambda _: Cholesky(),
    lx.GMRES: lambda solver: _gmres(solver),
    lx.LU: lambda _: LU(),
    lx.QR: lambda _: QR(),
    lx.SVD: lambda solver: SVD(solver.rcond),
    lx.Triangular: lambda _: Triangular(),
    lx.Tridiagonal: lambda _: Tridiagonal(),
}


def _gmres(solver: lx.GMRES) -> lx.AbstractLinearSolver:
    """Theirs where it counts: its `max_steps` are cycles, and ours steps."""
    if solver.max_steps is not None:
        return solver
    return GMRES(
        solver.rtol,
        solver.atol,
        norm=solver.norm,
        restart=solver.restart,
        stagnation_iters=solver.stagnation_iters,
    )


def counterpart(solver: Any) -> Any:
    """Returns the solver of this library for one of lineax's, any other as it is."""
    convert = _COUNTERPARTS.get(type(solver))
    return solver if convert is None else convert(solver)
