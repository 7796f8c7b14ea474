"""Times a workload's contenders in turns, in one process, and measures their errors."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.tree_util as jtu
import lineax as lx
import numpy as np

import pseudojvp


# Those of OpenBLAS, of which SciPy and NumPy bring one each, wait for some milliseconds.
_PAUSE_S = 0.02


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row of the table: one program, run by ours and by lineax's solvers.

    - `arguments`: makes the problem data, NumPy arrays. They enter `jit` as arguments.
    - `program`: from `(linear_solve, solver)` to the function of the arguments that is
        compiled and timed. Ours and lineax differ in these two values alone.
    - `reference`: the outcome, from the same arguments, by dense NumPy formulas.
    - `ours`, `same`: our solver and lineax's of the same kind.
    - `others`: further solvers of lineax that can do the job.
    - `tolerance`: the relative error up to which an outcome counts as right.
    """

    name: str
    arguments: Callable[[], tuple[np.ndarray, ...]]
    program: Callable[[Callable, lx.AbstractLinearSolver], Callable]
    reference: Callable[..., Any]
    ours: lx.AbstractLinearSolver
    same: lx.AbstractLinearSolver
    others: tuple[lx.AbstractLinearSolver, ...] = ()
    tolerance: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one contender took; times are for one call, compiled and warm.

    - `median_ms`, `quartiles_ms`: over the rounds.
    - `ratio`: its time over ours, the median over the rounds: above 1, ours is faster.
    - `error`: the largest relative error, in the 2-norm, of an array of the outcome.
    - `compile_s`: tracing, lowering and compiling from empty caches, the faster of two.
    """

    solver: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: float
    error: float
    compile_s: float


@dataclasses.dataclass(frozen=True)
class Row:
    """The measurements of one workload, over `rounds` rounds.

    - `fastest`: the fastest of lineax's solvers whose error is within the tolerance;
        `None` if there is none.
    """

    name: str
    rounds: int
    tolerance: float
    ours: Measurement
    same: Measurement
    others: tuple[Measurement, ...]

    @property
    def fastest(self) -> Measurement | None:
        peers = (self.same, *self.others)
        able = [peer for peer in peers if peer.error <= self.tolerance]
        return min(able, key=lambda peer: peer.ratio, default=None)


def measure(workload: Workload, rounds: int) -> Row:
    """Returns the row of `workload`: every contender once a round, `rounds` times."""
    arguments = workload.arguments()
    reference = workload.reference(*arguments)
    arguments = jax.block_until_ready(jax.device_put(arguments))
    contenders = [
        (pseudojvp.linear_solve, workload.ours),
        *((lx.linear_solve, peer) for peer in (workload.same, *workload.others)),
    ]
    programs = [workload.program(*contender) for contender in contenders]
    compiled, compile_s = zip(
        *(_compile(program, arguments) for program in programs), strict=True
    )
    errors = [relative_error(call(*arguments), reference) for call in compiled]
    counts = [calls_a_sample(call, arguments) for call in compiled]
    milliseconds = np.array(
        [
            [
                sample(call, arguments, calls)
                for call, calls in zip(compiled, counts, strict=True)
            ]
            for _ in range(rounds)
        ]
    )  # (rounds, contenders)
    ratios = np.median(milliseconds / milliseconds[:, :1], axis=0)
    lower, median, upper = np.percentile(milliseconds, [25, 50, 75], axis=0)
    ours, same, *others = (
        Measurement(
            solver=_describe(solver),
            median_ms=float(median[i]),
            quartiles_ms=(float(lower[i]), float(upper[i])),
            ratio=float(ratios[i]),
            error=errors[i],
            compile_s=compile_s[i],
        )
        for i, (_, solver) in enumerate(contenders)
    )
    return Row(workload.name, rounds, workload.tolerance, ours, same, tuple(others))


def _compile(program: Callable, arguments: tuple) -> tuple[Callable, float]:
    seconds = []
    for _ in range(2):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = jax.jit(program).lower(*arguments).compile()
        seconds.append(time.perf_counter() - start)
    return compiled, min(seconds)


def sample(call: Callable, arguments: tuple, calls: int) -> float:
    """The time of one call in milliseconds, averaged over `calls` calls on end.

    After a pause, in which the threads that the last contender left waiting in a busy
    loop fall asleep, and a call that is not counted.
    """
    time.sleep(_PAUSE_S)
    jax.block_until_ready(call(*arguments))
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call(*arguments))
    return 1e3 * (time.perf_counter() - start) / calls


def calls_a_sample(call: Callable, arguments: tuple) -> int:
    """Enough calls for a sample of 3 ms, well above what the clock and a switch cost."""
    warm = min(sample(call, arguments, 1) for _ in range(3))
    return min(max(math.ceil(3 / warm), 1), 50)


def relative_error(outcome, reference) -> float:
    """The largest ‖outcome − reference‖ / ‖reference‖ over the arrays; NaN if any is."""

    def error(value, true):
        return np.linalg.norm(np.asarray(value) - true) / np.linalg.norm(true)

    return float(np.max(jtu.tree_leaves(jtu.tree_map(error, outcome, reference))))


def _describe(solver: lx.AbstractLinearSolver) -> str:
    """`Normal(Cholesky())`: the solver's name with the solvers inside it."""
    inside = ", ".join(
        _describe(value)
        for value in vars(solver).values()
        if isinstance(value, lx.AbstractLinearSolver)
    )
    return f"{type(solver).__name__}({inside})"
