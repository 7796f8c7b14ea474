from .as_operator import (
    as_operator as as_operator,
    Matrix as Matrix,
    SparseMatrix as SparseMatrix,
)
from .block_diagonal import BlockDiagonal as BlockDiagonal
from .circulant import Circulant as Circulant
from .curvature import (
    gauss_newton_operator as gauss_newton_operator,
    hessian_operator as hessian_operator,
)
from .damped import damped as damped
from .eigh import Eigh as Eigh
from .kronecker import Kronecker as Kronecker
from .low_rank import LowRankUpdate as LowRankUpdate
from .sparse import SparseLinearOperator as SparseLinearOperator
from .toeplitz import Toeplitz as Toeplitz
