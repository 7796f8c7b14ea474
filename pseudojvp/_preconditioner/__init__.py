from .amg import amg as amg
from .block_jacobi import block_jacobi as block_jacobi
from .chebyshev import chebyshev as chebyshev
from .factorised_inverse import factorised_inverse as factorised_inverse
from .incomplete import (
    incomplete_cholesky as incomplete_cholesky,
    incomplete_lu as incomplete_lu,
)
from .jacobi import jacobi as jacobi
from .losses import (
    condition_number as condition_number,
    inverse_residual as inverse_residual,
    kaporin_number as kaporin_number,
)
from .network import PreconditionerNetwork as PreconditionerNetwork
from .nystrom import nystrom as nystrom
from .woodbury import woodbury as woodbury
