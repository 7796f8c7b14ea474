"""Measures one contender on one problem: a cell of `benchmarks.sparse_solves`.

Each is measured in a process of its own, which this module is the program of.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import itertools
import json
import math
import pathlib
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg

from . import sparse_problems
from .harness import relative_error
from .sparse_contenders import CALLED, MODELS, NEEDS, on_pattern, RTOL, TRACED


@dataclasses.dataclass
class Cell:
    """What one contender took on one problem. `None` is what was not reached.

    - `setup_s`: outside of the timings: a preconditioner; compiling is `compile_s`.
    - `forward_s`, `both_s`: the solve, and the solve with its gradient: medians of warm
        calls, or the first one if it took longer than a second.
    - `residual`: |f − A u| / |f|.
    - `error`: of the gradient with respect to the entries, relative, in the 2-norm.
    - `temporary_MiB`: what the compiled gradient asks for beside input and output.
    - `rise_MiB`: of the memory of the process at its peak, above what it was just before
        the compiled gradient, or the call that it is, ran for the first time.
    """

    problem: str
    contender: str
    unknowns: int
    note: str = ""
    steps: int | None = None
    setup_s: float | None = None
    compile_s: float | None = None
    forward_s: float | None = None
    both_s: float | None = None
    residual: float | None = None
    error: float | None = None
    temporary_MiB: float | None = None
    rise_MiB: float | None = None


def _forget_peak() -> None:
    """From here on the peak is that of what follows (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_MiB() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024  # kB


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What the call returns first, and the median of as many as fit into a second."""
    outcome, seconds = None, []
    while sum(seconds) < 1 and len(seconds) < 15:
        start = time.perf_counter()
        current = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
        outcome = current if outcome is None else outcome
    if len(seconds) > 2:
        del seconds[0]  # the caches were cold
    return outcome, float(np.median(seconds))


def _measure(cell: Cell, matrix, vector, weights, exact, contender, tell) -> None:
    """Fills in the cell, and tells after each part, should the time run out."""
    if contender in CALLED.values():
        solve, both = contender(matrix, vector, weights)
    else:
        solve, both = _compile(cell, contender, matrix, vector, weights)
    _forget_peak()
    before = _peak_MiB()
    (solution, gradient), cell.both_s = _timed(both)
    cell.rise_MiB = _peak_MiB() - before
    cell.residual = relative_error(matrix @ np.asarray(solution), vector)
    truth = on_pattern(matrix, exact(weights, True), exact(vector, False))
    cell.error = relative_error(gradient, truth)
    tell(cell)
    _, cell.forward_s = _timed(solve)
    tell(cell)


def _compile(cell: Cell, contender, matrix, vector, weights):
    start = time.perf_counter()
    solve, built = jax.block_until_ready(contender(matrix))
    cell.setup_s = time.perf_counter() - start

    def with_gradient(data, vector, weights, built):
        def loss(data, vector):
            solution, _ = solve(data, vector, built)
            return weights @ solution, solution

        (_, solution), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            data, vector
        )
        return solution, gradient[0]

    start = time.perf_counter()
    data, vector, weights = map(jnp.asarray, (matrix.data, vector, weights))
    forward = jax.jit(solve).lower(data, vector, built).compile()
    both = jax.jit(with_gradient).lower(data, vector, weights, built).compile()
    cell.compile_s = time.perf_counter() - start
    memory = both.memory_analysis()
    cell.temporary_MiB = memory.temp_size_in_bytes / 2**20

    count = itertools.count()

    def moved():
        """In the last digits of an entry: no factors of a call before are found again."""
        return data.at[0].multiply(1 + 2**-52 * next(count))

    def run():
        solution, steps = forward(moved(), vector, built)
        cell.steps = None if steps is None else int(steps)
        return solution

    return run, lambda: both(moved(), vector, weights, built)


def _exact(name: str, matrix, side: int, dimension: int) -> Callable:
    """From a vector, and whether A is transposed, to the solution without iteration."""
    if name.startswith("Poisson"):
        return lambda vector, _: sparse_problems.solve_poisson(side, dimension, vector)
    singular = name.startswith("graph")
    kept = matrix[1:, 1:] if singular else matrix
    factors = scipy.sparse.linalg.splu(kept.tocsc())

    def solve(vector, transposed):
        if singular:
            solution = np.append(0, factors.solve(vector[1:]))
            return solution - solution.mean()
        return factors.solve(vector, "T" if transposed else "N")

    return solve


def work(task: dict[str, Any]) -> None:
    """Measures one cell, and prints it as JSON after each part."""
    seconds = math.ceil(task["limit"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    cell = Cell(task["problem"], task["contender"], task["unknowns"])
    tell = lambda cell: print(json.dumps(dataclasses.asdict(cell)), flush=True)
    name, dimension, side = task["problem"], task["dimension"], task["side"]
    models = name in MODELS
    matrix = MODELS[name][0]() if models else sparse_problems.poisson(side, dimension)
    vectors = np.random.default_rng(0).standard_normal((2, matrix.shape[0]))
    if name.startswith("graph"):
        vectors -= vectors.mean(axis=1, keepdims=True)
    contenders = (MODELS[name][1] if models else TRACED) | CALLED
    package = NEEDS.get(cell.contender)
    if package is not None and importlib.util.find_spec(package) is None:
        cell.note = "not installed"
        tell(cell)
        return
    tell(cell)
    exact = _exact(name, matrix, side, dimension)
    try:
        _measure(cell, matrix, *vectors, exact, contenders[cell.contender], tell)
    except Exception as error:  # another library's, of any type: it stays in the table
        cell.note = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
        tell(cell)


def run(task: dict[str, Any], limit: float) -> Cell:
    """The cell that a process of its own measures, as far as it gets.

    It has `limit` seconds of processor time, which other work on the machine does not
    shorten, and twenty times that in all.
    """
    task = task | {"limit": limit}
    command = [sys.executable, "-m", __spec__.name, json.dumps(task)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        printed, _ = process.communicate(timeout=20 * limit)
        late = process.returncode == -signal.SIGXCPU
    except subprocess.TimeoutExpired:
        late = True
        process.kill()
        printed, _ = process.communicate()
    cell = Cell(task["problem"], task["contender"], task["unknowns"])
    for line in printed.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            cell = Cell(**json.loads(line))
    if late:
        cell.note = f"over {limit:g} s"  # of the processor
    elif process.returncode != 0:
        cell.note = f"ended with {process.returncode}"  # killed: out of memory
    elif cell.residual is not None and not cell.residual <= 2 * RTOL:
        cell.note = "not converged"
    return cell


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
