from .as_operator import (
    as_operator as as_operator,
    Matrix as Matrix,
    SparseMatrix as SparseMatrix,
)
from .curvature import (
    gauss_newton_operator as gauss_newton_operator,
    hessian_operator as hessian_operator,
)
from .damped import damped as damped
from .sparse import SparseLinearOperator as SparseLinearOperator
