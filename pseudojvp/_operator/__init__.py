from .as_operator import (
    as_operator as as_operator,
    Matrix as Matrix,
    SparseMatrix as SparseMatrix,
)
from .damped import damped as damped
from .sparse import SparseLinearOperator as SparseLinearOperator
