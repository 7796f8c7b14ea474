from .amg import amg as amg
from .block_jacobi import block_jacobi as block_jacobi
from .chebyshev import chebyshev as chebyshev
from .incomplete import (
    incomplete_cholesky as incomplete_cholesky,
    incomplete_lu as incomplete_lu,
)
from .jacobi import jacobi as jacobi
from .nystrom import nystrom as nystrom
from .woodbury import woodbury as woodbury
