from .batch import varpro_batch as varpro_batch, VarProBatch as VarProBatch
from .data_sets import SharedAndOwn as SharedAndOwn
from .fit import varpro as varpro, VarProFit as VarProFit
from .multistart import (
    varpro_multistart as varpro_multistart,
    varpro_starts as varpro_starts,
    VarProStarts as VarProStarts,
)
from .profile import VarProProfile as VarProProfile
from .report import (
    VarProEstimates as VarProEstimates,
    VarProReport as VarProReport,
)
from .residual import (
    projected_residual as projected_residual,
    ProjectedResidual as ProjectedResidual,
)
from .statistics import (
    VarProPrediction as VarProPrediction,
    VarProStatistics as VarProStatistics,
)
