from .auto import AutoLinearSolver as AutoLinearSolver
from .direct.cholesky import Cholesky as Cholesky
from .direct.identity import Identity as Identity
from .direct.lu import LU as LU
from .direct.sparse_lu import SparseLU as SparseLU
from .direct.sparse_triangular import SparseTriangular as SparseTriangular
from .direct.triangular import Triangular as Triangular
from .direct.tridiagonal import Tridiagonal as Tridiagonal
from .factorisation import (
    AbstractByParts as AbstractByParts,
    AbstractFactorisation as AbstractFactorisation,
    AbstractTelling as AbstractTelling,
    Slogdet as Slogdet,
)
from .function import FunctionSolver as FunctionSolver, is_function as is_function
from .krylov import unrolled_cg as unrolled_cg, unrolled_lanczos as unrolled_lanczos
from .krylov.bicgstab import BiCGStab as BiCGStab
from .krylov.cg import CG as CG
from .krylov.flexible_cg import FlexibleCG as FlexibleCG
from .krylov.flexible_gmres import FlexibleGMRES as FlexibleGMRES
from .krylov.gmres import GMRES as GMRES
from .krylov.iteration import AbstractKrylovSolver as AbstractKrylovSolver
from .krylov.learned_cg import LearnedCG as LearnedCG
from .krylov.lsmr import LSMR as LSMR
from .krylov.minres import MINRES as MINRES
from .krylov.shifted import ShiftedSolver as ShiftedSolver
from .low_rank.woodbury import Woodbury as Woodbury
from .neumann import Neumann as Neumann
from .normal import Normal as Normal
from .options import PreconditioningFunction as PreconditioningFunction
from .orthogonal.cholesky_qr import (
    CholeskyQR as CholeskyQR,
    smallest_reciprocal_condition as smallest_reciprocal_condition,
)
from .orthogonal.pivoted_qr import PivotedQR as PivotedQR
from .orthogonal.qr import QR as QR
from .orthogonal.svd import SVD as SVD
from .randomised import Draws as Draws, Randomised as Randomised
from .structured.solver import Structured as Structured
from .transpose_pair import TransposePair as TransposePair
from .unrolled import iteration_of as iteration_of, Unrolled as Unrolled
