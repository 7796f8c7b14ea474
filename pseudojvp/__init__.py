from importlib.metadata import version as _version

from ._adjoint import PseudoinverseAdjoint as PseudoinverseAdjoint
from ._invert import invert as invert
from ._linear_solve import linear_solve as linear_solve
from ._lstsq import lstsq as lstsq, pinv as pinv
from ._operator import damped as damped, SparseLinearOperator as SparseLinearOperator
from ._primitive import linear_solve_p as linear_solve_p
from ._project import project as project
from ._solver import (
    AutoLinearSolver as AutoLinearSolver,
    CG as CG,
    Cholesky as Cholesky,
    LU as LU,
    Neumann as Neumann,
    Normal as Normal,
    PivotedQR as PivotedQR,
    QR as QR,
    SparseTriangular as SparseTriangular,
    SVD as SVD,
    Triangular as Triangular,
    Tridiagonal as Tridiagonal,
)


__version__ = _version("pseudojvp")
