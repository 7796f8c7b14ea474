"""What does a sparse solve with its gradient cost, from 10^3 to 10^6 unknowns (s, MiB)?

The Poisson equation A u = f on a square (or a cube), and the gradient of <w, u> with
respect to the stored entries of A and to f. The iterations go to a relative residual of
1e-8. Each contender runs on each size in a process of its own, which is ended after
`--limit` seconds of processor time, of two cores together; what was not reached, is not
installed or did not converge stays in the table. With `--models` it times harder problems
of 10^5 unknowns instead, with several preconditioners and beside SciPy's direct solver.
Writes `results.sparse_solves.*` or `results.sparse_models.*`: Markdown, JSON and, of the
former, a picture.

    python -m benchmarks.sparse_solves [--models] [--limit 40] [--only SUBSTRING]
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

from . import report
from .sparse_cells import Cell, run
from .sparse_contenders import CALLED, DIRECT, MODEL_SIDE, MODEL_SIZE, MODELS, TRACED
from .sparse_report import as_markdown, draw, EXPLANATION


_SIDES = {2: (32, 100, 317, 1000), 3: (10, 22, 47, 100)}


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
        for contender in (*TRACED, *CALLED)
    ]


def _model_tasks() -> list[dict[str, Any]]:
    tasks = []
    for name, (_, contenders) in MODELS.items():
        square = name != "Poisson, cube"
        side, dimension = (MODEL_SIDE, 2) if square else (47, 3)
        size = MODEL_SIZE if name.startswith("graph") else side**dimension
        shared = {"problem": name, "dimension": dimension, "side": side, "unknowns": size}
        singular = name.startswith("graph")
        compared = (*contenders, *(() if singular else (DIRECT,)))
        tasks += [shared | {"contender": contender} for contender in compared]
    return tasks


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
            cell = run(task, limit)
        if cell.note.startswith("over") and cell.both_s is None:
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
    parser.add_argument("--limit", type=float, default=40, help="processor seconds (40)")
    parser.add_argument("--only", default="", help="part of 'PROBLEM: SOLVER, UNKNOWNS'")
    folder = pathlib.Path(__file__).parent
    parser.add_argument("--output", type=pathlib.Path, default=folder)
    arguments = parser.parse_args()
    tasks = _model_tasks() if arguments.models else _cost_tasks(arguments.dimensions)
    named = lambda task: "{problem}: {contender}, {unknowns}".format(**task)
    tasks = [task for task in tasks if arguments.only in named(task)]
    cells = measure(tasks, arguments.limit)
    header = report.environment()
    stated = "; ".join(f"{key}: {value}" for key, value in header.items())
    table = f"# Sparse solves\n\n{stated}\n\n{EXPLANATION}{as_markdown(cells)}"
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
