from importlib.metadata import version as _version

from ._invert import invert as invert
from ._linear_solve import linear_solve as linear_solve
from ._primitive import linear_solve_p as linear_solve_p
from ._solver import (
    AutoLinearSolver as AutoLinearSolver,
    CG as CG,
    Neumann as Neumann,
    Normal as Normal,
    QR as QR,
    SVD as SVD,
)


__version__ = _version("pseudojvp")
