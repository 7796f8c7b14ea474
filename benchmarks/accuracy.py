"""How large are the errors of a solution and its derivatives, in units of κ eps?

`python -m benchmarks.accuracy` prints Markdown tables for ill-conditioned problems: ours
beside lineax, JAX and, where it is installed, PyTorch. With `--page docs/accuracy.md`
they replace what stands behind the marker of that page.
"""

import argparse
import contextlib
import dataclasses
import functools as ft
import importlib.metadata
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp

from . import report
from .ill_conditioned import make_problem, Problem, relative_error


torch: Any
try:
    import torch
except ImportError:
    torch = None


_SEEDS = range(3)
_BOUND = 100
_CONDITIONS = {"float64": (1.0, 1e4, 1e8, 1e12), "float32": (1.0, 1e3, 1e6)}
_QUANTITIES = ("x", "x′", "x″")
_MARKER = "<!-- What follows is written by `python -m benchmarks.accuracy`. -->"


Outcome = tuple[list[np.ndarray], bool]


@dataclasses.dataclass(frozen=True)
class Workload:
    """- `shape`: rows, columns and rank.
    - `residual`: whether b has a part outside the range of A, as long as that within.
    - `contenders`: by the head of the column, from a problem and the order of the highest
        derivative to ([x, x′, ...], whether the solver calls itself successful).
    """

    title: str
    shape: tuple[int, int, int]
    residual: bool
    contenders: dict[str, Callable[[Problem, int], Outcome]]


def _along(coefficients, t):
    return coefficients[0] + t * (coefficients[1] + t * coefficients[2])


def _in_jax(solve: Callable):
    """By nested `jax.jvp`; `solve` is from A, b to x and whether that was successful."""

    @ft.partial(jax.jit, static_argnums=2)
    def program(matrix, vector, order):
        def function(t):
            x, successful = solve(_along(matrix, t), _along(vector, t))
            return (x,), successful

        for _ in range(order):
            function = _with_tangent(function)
        return function(jnp.zeros((), matrix.dtype))

    def run(problem: Problem, order: int) -> Outcome:
        values, successful = program(problem.matrix, problem.vector, order)
        return [np.asarray(value) for value in values], bool(successful)

    return run


def _with_tangent(function: Callable):
    def extended(t):
        direction = (jnp.ones_like(t),)
        values, tangents, aux = jax.jvp(function, (t,), direction, has_aux=True)
        return (*values, tangents[-1]), aux

    return extended


def _in_torch(function: Callable):
    """By reverse mode, entry by entry. PyTorch has no `result`: it answers or raises.

    Nested `torch.func.jvp` of `torch.linalg.solve` is wrong (2.13.0): 1 in the place of 2
    for the second derivative of 1 / (1 + t) at zero.
    """

    def run(problem: Problem, order: int) -> Outcome:
        matrix, vector = map(torch.from_numpy, (problem.matrix, problem.vector))
        t = torch.zeros((), dtype=matrix.dtype, requires_grad=True)
        values = [function(_along(matrix, t), _along(vector, t))]
        for _ in range(order):
            gradients = [
                torch.autograd.grad(entry, t, create_graph=True)[0]
                for entry in values[-1]
            ]
            values.append(torch.stack(gradients))
        return [value.detach().numpy() for value in values], True

    return run


def _by_solver(linear_solve: Callable, solver: lx.AbstractLinearSolver):
    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        solution = linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    return _in_jax(solve)


def _by_function(function: Callable):
    return _in_jax(lambda matrix, vector: (function(matrix, vector), True))


_ours = ft.partial(_by_solver, pseudojvp.linear_solve)
_lineax = ft.partial(_by_solver, lx.linear_solve)
_any_shape = {
    "ours `QR`": _ours(pseudojvp.QR()),
    "ours `CholeskyQR`": _ours(pseudojvp.CholeskyQR()),
    "ours `PivotedQR`": _ours(pseudojvp.PivotedQR()),
    "ours `SVD`": _ours(pseudojvp.SVD()),
    "ours `Normal(Cholesky)`": _ours(pseudojvp.Normal(pseudojvp.Cholesky())),
    "lineax `QR`": _lineax(lx.QR()),
    "lineax `SVD`": _lineax(lx.SVD()),
    "lineax `Normal(Cholesky)`": _lineax(lx.Normal(lx.Cholesky())),
    "`jnp.linalg.lstsq`": _by_function(lambda a, b: jnp.linalg.lstsq(a, b)[0]),
}
_square = {
    "ours `LU`": _ours(pseudojvp.LU()),
    "ours `QR`": _ours(pseudojvp.QR()),
    "ours `PivotedQR`": _ours(pseudojvp.PivotedQR()),
    "ours `SVD`": _ours(pseudojvp.SVD()),
    "lineax `LU`": _lineax(lx.LU()),
    "lineax `QR`": _lineax(lx.QR()),
    "lineax `SVD`": _lineax(lx.SVD()),
    "`jnp.linalg.solve`": _by_function(jnp.linalg.solve),
}
if torch is not None:
    _any_shape["`torch.linalg.lstsq`"] = _in_torch(
        lambda a, b: torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
    )
    _square["`torch.linalg.solve`"] = _in_torch(torch.linalg.solve)

_WORKLOADS = (
    Workload("Square, 4 x 4", (4, 4, 4), False, _square),
    Workload("Tall, 6 x 4, b in the range", (6, 4, 4), False, _any_shape),
    Workload("Tall, 6 x 4, with a residual", (6, 4, 4), True, _any_shape),
    Workload("Wide, 4 x 6", (4, 6, 4), False, _any_shape),
    Workload("Rank 2, 6 x 4, with a residual", (6, 4, 2), True, _any_shape),
)


def _cells(contender: Callable, problems: list[Problem], eps: float) -> list[str]:
    """x, x′ and x″ of one contender, for problems of one condition number."""
    scores = [_scores(contender, problem, eps) for problem in problems]
    return [_worst(column) for column in zip(*scores, strict=True)]


def _scores(contender: Callable, problem: Problem, eps: float) -> list[float | str]:
    values, successful = _attempt(contender, problem)
    if not successful:
        return ["refused"] * 3
    scores: list[float | str] = ["raises"] * 3
    for i, value in enumerate(values):
        if np.all(np.isfinite(value)):
            error = relative_error(value, problem.derivatives[i])
            scores[i] = error / (eps * problem.amplification[i])
        else:
            scores[i] = "NaN"
    return scores


def _attempt(contender: Callable, problem: Problem) -> Outcome:
    """As many derivatives as there are without an exception."""
    for order in (2, 1, 0):
        with contextlib.suppress(Exception):  # any of JAX, Equinox or PyTorch
            return contender(problem, order)
    return [], True


def _worst(scores: tuple[float | str, ...]) -> str:
    words = [score for score in scores if isinstance(score, str)]
    largest = max((score for score in scores if not isinstance(score, str)), default=0.0)
    if largest > _BOUND:
        return f"**{_power_of_ten(largest)}**"
    if words:
        return max(words, key=("refused", "raises", "NaN").index)
    if largest < 0.001:
        return "<0.001"
    return f"{largest:.0f}" if largest >= 9.5 else f"{largest:.1g}"


def _power_of_ten(number: float) -> str:
    """1, or as in 1e4 and 3e12."""
    return f"{number:.0e}".replace("e+0", "e").replace("e+", "e").removesuffix("e0")


def _section(workload: Workload, dtype: str) -> str:
    eps = float(np.finfo(dtype).eps)
    heads = list(workload.contenders)
    lines = [["", "κ", *heads], ["---", "---:", *["---:"] * len(heads)]]
    columns = {}
    for condition in _CONDITIONS[dtype]:
        problems = [
            make_problem(workload.shape, workload.residual, condition, dtype, seed)
            for seed in _SEEDS
        ]
        for head, contender in workload.contenders.items():
            columns[head, condition] = _cells(contender, problems, eps)
    for i, quantity in enumerate(_QUANTITIES):
        for condition in _CONDITIONS[dtype]:
            entries = [columns[head, condition][i] for head in heads]
            lines.append([quantity, _power_of_ten(condition), *entries])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {workload.title}, {dtype}\n\n{table}\n"


def _header() -> str:
    stated = report.environment()
    stated["dtype"] = " and ".join(_CONDITIONS)
    stated["torch"] = (
        "not installed, so without its columns"
        if torch is None
        else importlib.metadata.version("torch")
    )
    return "; ".join(f"{key}: {value}" for key, value in stated.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Measures errors of solutions and derivatives against mpmath.",
    )
    parser.add_argument(
        "--page", type=pathlib.Path, help="Markdown file to put the tables into"
    )
    page = parser.parse_args().page
    if page is not None and _MARKER not in page.read_text(encoding="utf-8"):
        parser.error(f"{page} has no line {_MARKER!r}")
    jax.config.update("jax_enable_x64", True)
    sections = []
    for dtype in _CONDITIONS:
        for workload in _WORKLOADS:
            start = time.perf_counter()
            sections.append(_section(workload, dtype))
            seconds = time.perf_counter() - start
            print(f"{sections[-1]}\n({seconds:.0f} s)\n", flush=True)
    text = "\n".join([_MARKER, "", _header(), "", *sections])
    if page is not None:
        before, _, _ = page.read_text(encoding="utf-8").partition(_MARKER)
        page.write_text(before + text, encoding="utf-8")


if __name__ == "__main__":
    main()
