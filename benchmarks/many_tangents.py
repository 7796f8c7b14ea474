"""How long do 32 tangents of one matrix take, by `vmap` of `jvp` (milliseconds)?"""

from . import contenders, dense, limits, torch_peers
from .harness import Workload


workloads = (
    Workload(
        "tall 2000 x 100, 32 tangents of A",
        lambda: dense.tangents_problem(2000, 100, 32),
        dense.reference_tangents,
        (
            *contenders.solvers(
                dense.tangents,
                contenders.FULL_RANK,
                numpy=dense.BY_NUMPY,
                limit=limits.tangents,
                may_hang=contenders.MAY_HANG,
            ),
            *torch_peers.peers(torch_peers.tangents, torch_peers.FULL_RANK),
        ),
    ),
)
