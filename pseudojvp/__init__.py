import importlib
import typing
from importlib.metadata import version as _version


# What is public is imported where it is first used: a program pays for what it takes.
# This is how type checkers and the documentation see it, `_MODULES` what Python does.
if typing.TYPE_CHECKING:
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
    from ._preconditioner.amg import amg as amg
    from ._preconditioner.block_jacobi import block_jacobi as block_jacobi
    from ._preconditioner.chebyshev import chebyshev as chebyshev
    from ._preconditioner.factorised_inverse import (
        factorised_inverse as factorised_inverse,
    )
    from ._preconditioner.incomplete import (
        incomplete_cholesky as incomplete_cholesky,
        incomplete_lu as incomplete_lu,
    )
    from ._preconditioner.jacobi import jacobi as jacobi
    from ._preconditioner.losses import (
        condition_number as condition_number,
        inverse_residual as inverse_residual,
        kaporin_number as kaporin_number,
    )
    from ._preconditioner.network import PreconditionerNetwork as PreconditionerNetwork
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
    from ._varpro.batch import varpro_batch as varpro_batch, VarProBatch as VarProBatch
    from ._varpro.data_sets import SharedAndOwn as SharedAndOwn
    from ._varpro.fit import VarProFit as VarProFit
    from ._varpro.multistart import (
        varpro_multistart as varpro_multistart,
        varpro_starts as varpro_starts,
        VarProStarts as VarProStarts,
    )
    from ._varpro.profile import VarProProfile as VarProProfile
    from ._varpro.report import (
        VarProEstimates as VarProEstimates,
        VarProReport as VarProReport,
    )
    from ._varpro.residual import projected_residual as projected_residual
    from ._varpro.statistics import (
        VarProPrediction as VarProPrediction,
        VarProStatistics as VarProStatistics,
    )
    from ._varpro.varpro import varpro as varpro


_MODULES = {
    "_front.adjoint": "PseudoinverseAdjoint",
    "_front.entries": "EntriesSolution solve_entries",
    "_front.factorise": "factorise",
    "_front.inverse": "InverseLinearOperator",
    "_front.invert": "invert",
    "_front.linear_solve": "linear_solve",
    "_front.lsq_linear": "lsq_linear nnls",
    "_front.lstsq": "lstsq pinv",
    "_front.project": "project",
    "_front.shifted": "shifted_solve",
    "_front.slogdet": "slogdet",
    "_front.sparse": "sparse_lstsq sparse_solve",
    "_front.warm": "warm_solve warm_start warm_value_and_grad WarmStart",
    "_map.adjoints": "ImplicitAdjoint UnrolledAdjoint",
    "_map.factorised": "Factorised",
    "_map.primitive": "linear_solve_p",
    "_map.stochastic": "StochasticAdjoint",
    "_map.truncated": "TruncatedAdjoint",
    "_operator": (
        "BlockDiagonal Circulant Eigh gauss_newton_operator hessian_operator "
        "Kronecker LowRankUpdate SparseLinearOperator Toeplitz"
    ),
    "_operator.adjoint": "hermitian_tag",
    "_operator.damped": "damped",
    "_preconditioner.amg": "amg",
    "_preconditioner.block_jacobi": "block_jacobi",
    "_preconditioner.chebyshev": "chebyshev",
    "_preconditioner.factorised_inverse": "factorised_inverse",
    "_preconditioner.incomplete": "incomplete_cholesky incomplete_lu",
    "_preconditioner.jacobi": "jacobi",
    "_preconditioner.losses": "condition_number inverse_residual kaporin_number",
    "_preconditioner.network": "PreconditionerNetwork",
    "_preconditioner.nystrom": "nystrom",
    "_preconditioner.woodbury": "woodbury",
    "_solver": (
        "AutoLinearSolver BiCGStab CG Cholesky CholeskyQR FlexibleCG FlexibleGMRES "
        "FunctionSolver GMRES LearnedCG LSMR LU MINRES Neumann Normal PivotedQR QR "
        "SparseLU SparseTriangular SVD Triangular Tridiagonal Woodbury"
    ),
    "_varpro.batch": "varpro_batch VarProBatch",
    "_varpro.data_sets": "SharedAndOwn",
    "_varpro.fit": "VarProFit",
    "_varpro.multistart": "varpro_multistart varpro_starts VarProStarts",
    "_varpro.profile": "VarProProfile",
    "_varpro.report": "VarProEstimates VarProReport",
    "_varpro.residual": "projected_residual",
    "_varpro.statistics": "VarProPrediction VarProStatistics",
    "_varpro.varpro": "varpro",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

if not typing.TYPE_CHECKING:
    __all__ = [*_HOMES]

__version__ = _version("pseudojvp")


def __getattr__(name: str) -> typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
