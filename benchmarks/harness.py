"""What is measured: a workload, its contenders, and what they took."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np


# Those of OpenBLAS, of which SciPy and NumPy bring one each, wait for some milliseconds.
_PAUSE_S = 0.02


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do the job.

    - `library`: "pseudojvp", a peer, or "limit": the bare factorisation and products,
        whose outcome is not that of the job.
    - `name`: the solver or function. A limit has the name of the solver that it limits.
    - `prepare`: from the problem data, NumPy arrays, to the call that is timed.
    - `same`: the name of lineax's solver of the same kind.
    - `apart`: it may never return, and needs a process of its own.
    """

    library: str
    name: str
    prepare: Callable[..., Callable[[], Any]]
    same: str = ""
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Workload:
    """One job, done by all contenders.

    - `arguments`: makes the problem data, NumPy arrays.
    - `reference`: the outcome, from the same arguments, by dense NumPy formulas.
    - `tolerance`: the relative error up to which an outcome counts as right.
    """

    name: str
    arguments: Callable[[], tuple[np.ndarray, ...]]
    reference: Callable[..., Any]
    contenders: tuple[Contender, ...]
    tolerance: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one contender took.

    - `samples_ms`: one a round, of one call, compiled and warm, up to where it hung.
    - `error`: the largest relative error, in the 2-norm, of an array of the outcome;
        `None` for a limit, or if there is none.
    """

    library: str
    name: str
    same: str
    samples_ms: tuple[float, ...]
    error: float | None
    hung: bool = False

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        lower, upper = np.percentile(self.samples_ms, [25, 75])
        return float(lower), float(upper)

    def over(self, other: "Measurement") -> float:
        """Its time over that of `other`, the median over the rounds that both ended."""
        pairs = zip(self.samples_ms, other.samples_ms, strict=False)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurements of one workload."""

    name: str
    tolerance: float
    measurements: tuple[Measurement, ...]

    def of(self, library: str, name: str = "") -> tuple[Measurement, ...]:
        """Those of a library that came back, of one name if there is one."""
        return tuple(
            measurement
            for measurement in self.measurements
            if measurement.library == library
            and measurement.samples_ms
            and name in ("", measurement.name)
        )

    @property
    def ours(self) -> tuple[Measurement, ...]:
        return self.of("pseudojvp")

    @property
    def our_fastest(self) -> Measurement:
        return min(
            (ours for ours in self.ours if self.is_right(ours)),
            key=lambda ours: ours.median_ms,
        )

    @property
    def fastest_peer(self) -> Measurement | None:
        """The fastest of those whose outcome is right."""
        peers = [
            peer
            for peer in self.measurements
            if peer.library not in ("pseudojvp", "limit") and self.is_right(peer)
        ]
        return min(peers, key=lambda peer: peer.median_ms, default=None)

    def is_right(self, measurement: Measurement) -> bool:
        error = measurement.error
        if error is None or not measurement.samples_ms:  # it hung after the first call
            return False
        return error <= self.tolerance  # not so for NaN


@dataclasses.dataclass(frozen=True)
class Pair:
    """One figure of a solver of ours and of lineax's of the same kind: less is better."""

    job: str
    solver: str
    same: str
    ours: float
    lineax: float

    @property
    def ratio(self) -> float:
        return self.lineax / self.ours if self.ours else float("inf")


def sample(call: Callable[[], Any], calls: int) -> float:
    """The time of one call in milliseconds, averaged over `calls` calls on end.

    After a pause, in which the threads that the last contender left waiting in a busy
    loop fall asleep, and, where a call is short, one that is not counted.
    """
    time.sleep(_PAUSE_S)
    if calls > 1:
        jax.block_until_ready(call())
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start) / calls


def calls_a_sample(call: Callable[[], Any]) -> int:
    """Enough calls for a sample of 3 ms, well above what the clock and a switch cost."""
    warm = min(sample(call, 1) for _ in range(2))
    return min(max(math.ceil(3 / warm), 1), 50)


def relative_error(outcome, reference) -> float:
    """The largest ‖outcome − reference‖ / ‖reference‖ over the arrays; NaN if any is."""

    def error(value, true):
        return np.linalg.norm(np.asarray(value) - true) / np.linalg.norm(true)

    return float(np.max(jtu.tree_leaves(jtu.tree_map(error, outcome, reference))))
