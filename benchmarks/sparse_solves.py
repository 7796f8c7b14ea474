"""What does a sparse solve with its gradient cost, from 10^3 to 10^6 unknowns (s, MiB)?

The Poisson equation A u = f on a square (or a cube), and the gradient of <w, u> with
respect to the stored entries of A and to f. The iterations go to a relative residual of
1e-8. Each contender runs on each size in a process of its own, which is ended after
`--limit` seconds; what was not reached, is not installed or did not converge stays in the
table. With `--models` it times harder problems of 10^5 unknowns instead, with several
preconditioners and beside SciPy's direct solver. Writes `results.sparse_solves.*` or
`results.sparse_models.*`: Markdown, JSON and, of the former, a picture.

    python -m benchmarks.sparse_solves [--models] [--limit 40] [--only SUBSTRING]
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools as ft
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.sparse as jsparse
import jax.experimental.sparse.linalg
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import lineax as lx
import numpy as np
import scipy.sparse.linalg
from matplotlib.figure import Figure

import pseudojvp as pj

from . import report, sparse_problems
from .harness import relative_error


_RTOL = 1e-8
_SIDES = {2: (32, 100, 317, 1000), 3: (10, 22, 47, 100)}
_DEFINITE = lx.positive_semidefinite_tag
_MODEL_SIDE, _MODEL_SIZE = 317, 100_000


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


_EXPLANATION = """\
The residual is relative. The error is that of the gradient with respect to the entries,
against a sine transform for Poisson's equation, and against SciPy's direct solver for the
others (so zero in its own row). Set-up is the preconditioner, and not in the times of the
solves; nor is compiling. Memory: what the compiled gradient asks for, and how far the
process rises when that runs for the first time.
"""

# What a contender is: from the matrix to `solve` (entries, f) -> u, traced by JAX, with
# whatever else `solve` takes; or to two calls, the solve and the solve with its gradient.


def _operator(matrix, tags=_DEFINITE):
    return pj.SparseLinearOperator(matrix, tags)


def _ours(matrix, solver, preconditioner=None, tags=_DEFINITE):
    operator = _operator(matrix, tags)
    built = {} if preconditioner is None else {"preconditioner": preconditioner(operator)}

    def solve(data, vector, options):
        moved = pj.SparseLinearOperator((data, operator.sparsity), operator.tags)
        solution = pj.linear_solve(moved, vector, solver, options=options, throw=False)
        return solution.value, solution.stats.get("num_steps")

    return solve, built


def _jax_krylov(name, **settings):
    """A solver of `jax.scipy.sparse.linalg` on BCSR, the fastest of JAX's own formats."""
    function = getattr(jax.scipy.sparse.linalg, name)

    def contender(matrix):
        indices, starts = jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr)

        def solve(data, vector, _):
            sparse = jsparse.BCSR((data, indices, starts), shape=matrix.shape)
            return function(lambda u: sparse @ u, vector, tol=_RTOL, **settings)[0], None

        return solve, {}

    return contender


def _jax_spsolve(matrix):
    indices, starts = jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr)
    spsolve = jax.experimental.sparse.linalg.spsolve
    return lambda data, vector, _: (spsolve(data, indices, starts, vector), None), {}


def _klujax(matrix):
    klujax = importlib.import_module("klujax")
    row, col = map(jnp.asarray, matrix.tocoo().coords)
    return lambda data, vector, _: (klujax.solve(row, col, data, vector), None), {}


def _on_pattern(matrix, adjoint, solution):
    entries = matrix.tocoo()
    return -adjoint[entries.row] * solution[entries.col]


def _scipy_splu(matrix, vector, weights):
    def solve():
        return scipy.sparse.linalg.splu(matrix.tocsc()).solve(vector)

    def both():
        factors = scipy.sparse.linalg.splu(matrix.tocsc())
        solution, adjoint = factors.solve(vector), factors.solve(weights, "T")
        return solution, _on_pattern(matrix, adjoint, solution)

    return solve, both


def _scipy_cg(matrix, vector, weights):
    run = ft.partial(scipy.sparse.linalg.cg, matrix, rtol=_RTOL, maxiter=10**5)

    def both():
        solution, adjoint = run(vector)[0], run(weights)[0]
        return solution, _on_pattern(matrix, adjoint, solution)

    return lambda: run(vector)[0], both


def _torch(matrix, vector, weights):
    torch = importlib.import_module("torch")
    package = importlib.import_module("torchsparsegradutils")
    utils = importlib.import_module("torchsparsegradutils.utils.linear_cg")
    settings = utils.LinearCGSettings(max_cg_iterations=10**5, cg_tolerance=_RTOL)
    arrays = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    sparse = torch.sparse_csr_tensor(*arrays, size=matrix.shape).requires_grad_()
    right, weights = torch.from_numpy(vector), torch.from_numpy(weights)

    def solve():
        return package.sparse_generic_solve(
            sparse, right, solve=utils.linear_cg, settings=settings
        )

    def both():
        sparse.grad = None
        solution = solve()
        (weights @ solution).backward()
        return solution.detach().numpy(), sparse.grad.values().numpy()

    return lambda: solve().detach().numpy(), both


_cg, _bicgstab = pj.CG(rtol=_RTOL), pj.BiCGStab(rtol=_RTOL)
_gmres = pj.GMRES(rtol=_RTOL)
_TRACED: dict[str, Callable] = {
    "pseudojvp CG": lambda matrix: _ours(matrix, _cg),
    "pseudojvp CG, amg": lambda matrix: _ours(matrix, _cg, pj.amg),
    "pseudojvp CG, chebyshev": lambda matrix: _ours(
        matrix, _cg, lambda operator: pj.chebyshev(operator, 4)
    ),
    "pseudojvp KLU": lambda matrix: _ours(matrix, pj.KLU()),
    "jax.scipy cg": _jax_krylov("cg", maxiter=10**5),
    "jax.scipy bicgstab": _jax_krylov("bicgstab", maxiter=10**5),
    "jax.scipy gmres": _jax_krylov("gmres", maxiter=10**4),
    "jax.experimental spsolve": _jax_spsolve,
    "klujax": _klujax,
}
_CALLED: dict[str, Callable] = {
    "SciPy splu": _scipy_splu,
    "SciPy cg": _scipy_cg,
    "torchsparsegradutils linear_cg": _torch,
}
_NEEDS = {
    "pseudojvp CG, amg": "pyamg",
    "pseudojvp KLU": "klujax",
    "KLU": "klujax",
    "klujax": "klujax",
    "torchsparsegradutils linear_cg": "torchsparsegradutils",
}


def _general(solver, preconditioner):
    return lambda matrix: _ours(matrix, solver, preconditioner, ())


def _minres(matrix):
    return _ours(matrix, pj.MINRES(rtol=_RTOL), None, lx.symmetric_tag)


def _bounded_cg(preconditioner):
    solver = pj.CG(rtol=_RTOL, max_steps=2000)
    return lambda matrix: _ours(matrix, solver, preconditioner)


_cholesky = ft.partial(pj.incomplete_cholesky, sweeps=3)
_lu = ft.partial(pj.incomplete_lu, sweeps=3)
_ruge_stuben = ft.partial(pj.amg, method="ruge_stuben")


_convection = ft.partial(sparse_problems.convection_diffusion, _MODEL_SIDE, 100.0)
_materials = ft.partial(sparse_problems.two_materials, _MODEL_SIDE, 1e6)
_poissons = {
    "Poisson, square": lambda: sparse_problems.poisson(_MODEL_SIDE, 2),
    "Poisson, cube": lambda: sparse_problems.poisson(47, 3),
}
_DIRECT_2D = {"KLU": lambda matrix: _ours(matrix, pj.KLU(), None, ())}
_MODELS: dict[str, tuple[Callable, dict[str, Callable]]] = {
    **{
        name: (
            matrix,
            {
                "CG": _bounded_cg(None),
                "CG, incomplete_cholesky(sweeps=3)": _bounded_cg(_cholesky),
                "CG, amg": _bounded_cg(pj.amg),
                **(_DIRECT_2D if "square" in name else {}),
            },
        )
        for name, matrix in _poissons.items()
    },
    "convection-diffusion": (
        _convection,
        {
            "BiCGStab": _general(_bicgstab, None),
            "BiCGStab, incomplete_lu(sweeps=3)": _general(_bicgstab, _lu),
            "BiCGStab, amg(method='ruge_stuben')": _general(_bicgstab, _ruge_stuben),
            "GMRES, amg(method='ruge_stuben')": _general(_gmres, _ruge_stuben),
            **_DIRECT_2D,
        },
    ),
    "graph Laplacian, singular": (
        lambda: sparse_problems.graph_laplacian(_MODEL_SIZE),
        {"MINRES": _minres},
    ),
    "two materials, 1 : 10⁶": (
        _materials,
        {
            "CG, 2000 steps at most": _bounded_cg(None),
            "CG, incomplete_cholesky(sweeps=3)": _bounded_cg(_cholesky),
            "CG, amg": _bounded_cg(pj.amg),
            "CG, amg(method='ruge_stuben')": _bounded_cg(_ruge_stuben),
            **_DIRECT_2D,
        },
    ),
}
_DIRECT = "SciPy splu"


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
    if contender in _CALLED.values():
        solve, both = contender(matrix, vector, weights)
    else:
        solve, both = _compile(cell, contender, matrix, vector, weights)
    _forget_peak()
    before = _peak_MiB()
    (solution, gradient), cell.both_s = _timed(both)
    cell.rise_MiB = _peak_MiB() - before
    cell.residual = relative_error(matrix @ np.asarray(solution), vector)
    truth = _on_pattern(matrix, exact(weights, True), exact(vector, False))
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

    def run():
        solution, steps = forward(data, vector, built)
        cell.steps = None if steps is None else int(steps)
        return solution

    return run, lambda: both(data, vector, weights, built)


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


def _work(task: dict[str, Any]) -> None:
    """Measures one cell, and prints it as JSON after each part."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    cell = Cell(task["problem"], task["contender"], task["unknowns"])
    tell = lambda cell: print(json.dumps(dataclasses.asdict(cell)), flush=True)
    name, dimension, side = task["problem"], task["dimension"], task["side"]
    models = name in _MODELS
    matrix = _MODELS[name][0]() if models else sparse_problems.poisson(side, dimension)
    vectors = np.random.default_rng(0).standard_normal((2, matrix.shape[0]))
    if name.startswith("graph"):
        vectors -= vectors.mean(axis=1, keepdims=True)
    contenders = (_MODELS[name][1] if models else _TRACED) | _CALLED
    package = _NEEDS.get(cell.contender)
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


def _run(task: dict[str, Any], limit: float) -> Cell:
    """The cell that a process of its own measures, as far as it gets in `limit` s."""
    command = [sys.executable, "-m", __spec__.name, "--task", json.dumps(task)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    late = False
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        process.kill()
        printed, _ = process.communicate()
    cell = Cell(task["problem"], task["contender"], task["unknowns"])
    for line in printed.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            cell = Cell(**json.loads(line))
    if late:
        cell.note = f"over {limit:g} s"
    elif process.returncode != 0:
        cell.note = f"ended with {process.returncode}"  # killed: out of memory
    elif cell.residual is not None and not cell.residual <= 2 * _RTOL:
        cell.note = "not converged"
    return cell


def _cost_tasks(dimensions: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "problem": f"Poisson, {dimension}-D",
            "dimension": dimension,
            "side": side,
            "unknowns": side**dimension,
            "contender": contender,
        }
        for dimension in dimensions
        for side in _SIDES[dimension]
        for contender in (*_TRACED, *_CALLED)
    ]


def _model_tasks() -> list[dict[str, Any]]:
    tasks = []
    for name, (_, contenders) in _MODELS.items():
        square = name != "Poisson, cube"
        side, dimension = (_MODEL_SIDE, 2) if square else (47, 3)
        size = _MODEL_SIZE if name.startswith("graph") else side**dimension
        shared = {"problem": name, "dimension": dimension, "side": side, "unknowns": size}
        singular = name.startswith("graph")
        compared = (*contenders, *(() if singular else (_DIRECT,)))
        tasks += [shared | {"contender": contender} for contender in compared]
    return tasks


def as_markdown(cells: list[Cell]) -> str:
    """Returns a line for each cell."""
    columns = {
        "solver": lambda cell: cell.contender,
        "unknowns": lambda cell: f"{cell.unknowns:,}",
        "steps": lambda cell: "" if cell.steps is None else f"{cell.steps}",
        "set-up, s": lambda cell: _number(cell.setup_s),
        "compile, s": lambda cell: _number(cell.compile_s),
        "solve, s": lambda cell: _number(cell.forward_s),
        "with gradient, s": lambda cell: _number(cell.both_s),
        "residual": lambda cell: _number(cell.residual, ".0e"),
        "error of the gradient": lambda cell: _number(cell.error, ".0e"),
        "temporary, MiB": lambda cell: _number(cell.temporary_MiB),
        "peak rise, MiB": lambda cell: _number(cell.rise_MiB),
        "note": lambda cell: cell.note,
    }
    lines = []
    for problem in dict.fromkeys(cell.problem for cell in cells):
        lines += [f"\n**{problem}**\n", f"| {' | '.join(columns)} |"]
        lines.append("|---|" + "---:|" * (len(columns) - 2) + "---|")
        for cell in cells:
            if cell.problem == problem:
                row = " | ".join(column(cell) for column in columns.values())
                lines.append(f"| {row} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str = ".2g") -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if form == ".2g" and value >= 10 else f"{value:{form}}"


def draw(cells: list[Cell], output: pathlib.Path) -> None:
    """Time of a solve with its gradient, and memory, over the unknowns."""
    cells = [cell for cell in cells if cell.problem == "Poisson, 2-D"]
    colors = {
        "pseudojvp CG": "#3f51b5",
        "pseudojvp CG, amg": "#d81b60",
        "pseudojvp CG, chebyshev": "#7986cb",
        "pseudojvp KLU": "#00897b",
        "jax.scipy cg": "#f57c00",
        "jax.scipy bicgstab": "#ffb74d",
        "jax.scipy gmres": "#a1887f",
        "jax.experimental spsolve": "#6d4c41",
        "klujax": "#4db6ac",
        "SciPy splu": "#212121",
        "SciPy cg": "#757575",
        "torchsparsegradutils linear_cg": "#c62828",
    }
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"both_s": "solve and gradient (s)", "rise_MiB": "rise of peak memory (MiB)"}
    for panel, (field, title) in zip(panels, titles.items(), strict=True):
        for name, color in colors.items():
            points = [
                (cell.unknowns, getattr(cell, field))
                for cell in cells
                if cell.contender == name and getattr(cell, field)
            ]
            if points:
                ours = name.startswith("pseudojvp")
                style = {"lw": 2.4, "marker": "o"} if ours else {"lw": 1.4, "marker": "s"}
                dashes = "-" if ours else "--"
                panel.loglog(
                    *zip(*points, strict=True),
                    dashes,
                    color=color,
                    ms=4.5,
                    label=name,
                    **style,
                )
        panel.set_title(title, loc="left", fontweight="bold")
        panel.set_xlabel("unknowns")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle("2-D Poisson equation, to a relative residual of 1e-8", x=0.3)
    figure.savefig(output, dpi=90)


def measure(tasks: list[dict[str, Any]], limit: float) -> list[Cell]:
    """Returns the cells, and prints each as it comes."""
    cells, late = [], set()
    start = time.perf_counter()
    for task in tasks:
        series = task["problem"], task["contender"]
        if series in late:
            shared = {key: task[key] for key in ("problem", "contender", "unknowns")}
            cell = Cell(**shared, note="not run: a smaller one took too long")
        else:
            cell = _run(task, limit)
        if cell.note.startswith("over"):
            late.add(series)
        cells.append(cell)
        elapsed = time.perf_counter() - start
        line = as_markdown([cell]).splitlines()[-1]
        print(f"[{elapsed:.0f} s] {cell.problem} {line}", flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", action="store_true", help="harder problems instead")
    parser.add_argument("--dimensions", type=int, nargs="*", default=[2], choices=[2, 3])
    parser.add_argument("--limit", type=float, default=40, help="seconds a process (40)")
    parser.add_argument("--only", default="", help="a part of '<problem>: <solver>'")
    folder = pathlib.Path(__file__).parent
    parser.add_argument("--output", type=pathlib.Path, default=folder)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        _work(json.loads(arguments.task))
        return
    tasks = _model_tasks() if arguments.models else _cost_tasks(arguments.dimensions)
    named = lambda task: f"{task['problem']}: {task['contender']}"
    tasks = [task for task in tasks if arguments.only in named(task)]
    cells = measure(tasks, arguments.limit)
    header = report.environment()
    stated = "; ".join(f"{key}: {value}" for key, value in header.items())
    table = f"# Sparse solves\n\n{stated}\n\n{_EXPLANATION}{as_markdown(cells)}"
    print(f"\n{table}")
    stem = "results.sparse_models" if arguments.models else "results.sparse_solves"
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{stem}.md").write_text(table)
    as_dicts = {"environment": header, "cells": list(map(dataclasses.asdict, cells))}
    (arguments.output / f"{stem}.json").write_text(json.dumps(as_dicts, indent=2) + "\n")
    if not arguments.models:
        draw(cells, arguments.output / f"{stem}.png")


if __name__ == "__main__":
    main()
