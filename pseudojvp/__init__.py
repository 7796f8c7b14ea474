from importlib.metadata import version as _version

from ._front.adjoint import PseudoinverseAdjoint as PseudoinverseAdjoint
from ._front.entries import (
    EntriesSolution as EntriesSolution,
    solve_entries as solve_entries,
)
from ._front.factorise import factorise as factorise
from ._front.inverse import InverseLinearOperator as InverseLinearOperator
from ._front.invert import invert as invert
from ._front.linear_solve import linear_solve as linear_solve
from ._front.lsq_linear import lsq_linear as lsq_linear, nnls as nnls
from ._front.lstsq import lstsq as lstsq, pinv as pinv
from ._front.project import project as project
from ._front.shifted import shifted_solve as shifted_solve
from ._front.slogdet import slogdet as slogdet
from ._front.sparse import sparse_lstsq as sparse_lstsq, sparse_solve as sparse_solve
from ._front.warm import (
    warm_solve as warm_solve,
    warm_start as warm_start,
    warm_value_and_grad as warm_value_and_grad,
    WarmStart as WarmStart,
)
from ._map.adjoints import (
    ImplicitAdjoint as ImplicitAdjoint,
    UnrolledAdjoint as UnrolledAdjoint,
)
from ._map.factorised import Factorised as Factorised
from ._map.primitive import linear_solve_p as linear_solve_p
from ._map.stochastic import StochasticAdjoint as StochasticAdjoint
from ._map.truncated import TruncatedAdjoint as TruncatedAdjoint
from ._operator import (
    BlockDiagonal as BlockDiagonal,
    Circulant as Circulant,
    Eigh as Eigh,
    gauss_newton_operator as gauss_newton_operator,
    hessian_operator as hessian_operator,
    Kronecker as Kronecker,
    LowRankUpdate as LowRankUpdate,
    SparseLinearOperator as SparseLinearOperator,
    Toeplitz as Toeplitz,
)
from ._operator.adjoint import hermitian_tag as hermitian_tag
from ._operator.damped import damped as damped
from ._preconditioner import (
    condition_number as condition_number,
    incomplete_cholesky as incomplete_cholesky,
    incomplete_lu as incomplete_lu,
    inverse_residual as inverse_residual,
    kaporin_number as kaporin_number,
    PreconditionerNetwork as PreconditionerNetwork,
)
from ._preconditioner.amg import amg as amg
from ._preconditioner.block_jacobi import block_jacobi as block_jacobi
from ._preconditioner.chebyshev import chebyshev as chebyshev
from ._preconditioner.factorised_inverse import factorised_inverse as factorised_inverse
from ._preconditioner.jacobi import jacobi as jacobi
from ._preconditioner.nystrom import nystrom as nystrom
from ._preconditioner.woodbury import woodbury as woodbury
from ._solver import (
    AutoLinearSolver as AutoLinearSolver,
    BiCGStab as BiCGStab,
    CG as CG,
    Cholesky as Cholesky,
    CholeskyQR as CholeskyQR,
    FlexibleCG as FlexibleCG,
    FlexibleGMRES as FlexibleGMRES,
    FunctionSolver as FunctionSolver,
    GMRES as GMRES,
    LearnedCG as LearnedCG,
    LSMR as LSMR,
    LU as LU,
    MINRES as MINRES,
    Neumann as Neumann,
    Normal as Normal,
    PivotedQR as PivotedQR,
    QR as QR,
    SparseLU as SparseLU,
    SparseTriangular as SparseTriangular,
    SVD as SVD,
    Triangular as Triangular,
    Tridiagonal as Tridiagonal,
    Woodbury as Woodbury,
)
from ._varpro import (
    projected_residual as projected_residual,
    SharedAndOwn as SharedAndOwn,
    varpro as varpro,
    varpro_batch as varpro_batch,
    varpro_multistart as varpro_multistart,
    varpro_starts as varpro_starts,
    VarProBatch as VarProBatch,
    VarProEstimates as VarProEstimates,
    VarProFit as VarProFit,
    VarProPrediction as VarProPrediction,
    VarProProfile as VarProProfile,
    VarProReport as VarProReport,
    VarProStarts as VarProStarts,
    VarProStatistics as VarProStatistics,
)


__version__ = _version("pseudojvp")
