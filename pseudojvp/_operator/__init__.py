from .as_operator import as_operator as as_operator
from .damped import damped as damped
from .sparse import SparseLinearOperator as SparseLinearOperator
