from .auto import AutoLinearSolver as AutoLinearSolver
from .bicgstab import BiCGStab as BiCGStab
from .cg import CG as CG
from .cholesky import Cholesky as Cholesky
from .cholesky_qr import CholeskyQR as CholeskyQR, smallest_rcond as smallest_rcond
from .direct import AbstractDirectSolver as AbstractDirectSolver
from .gmres import GMRES as GMRES
from .klu import KLU as KLU
from .krylov import AbstractKrylovSolver as AbstractKrylovSolver
from .lsmr import LSMR as LSMR
from .lu import LU as LU
from .minres import hermitian_tag as hermitian_tag, MINRES as MINRES
from .neumann import Neumann as Neumann
from .normal import Normal as Normal
from .pivoted_qr import PivotedQR as PivotedQR
from .qr import QR as QR
from .sparse_triangular import SparseTriangular as SparseTriangular
from .svd import SVD as SVD
from .transpose_pair import TransposePair as TransposePair
from .triangular import Triangular as Triangular
from .tridiagonal import Tridiagonal as Tridiagonal
