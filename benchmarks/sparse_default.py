"""Which solver is the default for general A: BiCGStab, or GMRES with which restart?

Nonsymmetric systems with the default tolerances, relative residuals of 1e-10 in float64
and 1e-5 in float32, of each solver: the products with A that it took (two a step of
BiCGStab), the milliseconds of the warm compiled solve, and the residual that it reached,
taken in float64. A solve that was not `successful` is in italics, with its result.

    python -m benchmarks.sparse_default [--only SUBSTRING]
"""

import argparse
import functools as ft
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.io
import scipy.sparse

import pseudojvp as pj

from . import report, sparse_problems


_SIDE = 100
_MOST_STEPS = 10_000
_REAL = ("west0067", "pores_1", "bfwa62", "utm300", "impcol_a", "young1c", "fs_183_1")
_FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "data" / "suitesparse"
_SOLVERS = {
    "BiCGStab()": pj.BiCGStab(max_steps=_MOST_STEPS),
    "GMRES()": pj.GMRES(max_steps=_MOST_STEPS),
    "GMRES(restart=50)": pj.GMRES(max_steps=_MOST_STEPS, restart=50),
}


class Outcome(NamedTuple):
    """What one solver made of one problem; `failure` is empty for a success."""

    products: int
    milliseconds: float
    residual: float
    failure: str


def _dominant(size: int, dominance: float) -> scipy.sparse.csr_array:
    """Five random entries a row; the diagonal is `dominance` times their sum."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(size), 5), rng.integers(0, size, 5 * size)
    others = scipy.sparse.csr_array(
        (rng.standard_normal(5 * size), place), shape=(size, size)
    )
    total = abs(others).sum(axis=1)
    return scipy.sparse.csr_array(others + scipy.sparse.diags_array(dominance * total))


def _rotation(size: int, speed: float) -> scipy.sparse.csr_array:
    """I + speed (S − Sᵀ) for the shift S: eigenvalues up and down from 1."""
    values = [-speed * np.ones(size - 1), np.ones(size), speed * np.ones(size - 1)]
    return scipy.sparse.csr_array(scipy.sparse.diags_array(values, offsets=[-1, 0, 1]))


def _problems() -> Iterator[tuple[str, Callable, Callable | None]]:
    """Name, matrix and preconditioner."""
    for peclet in (1.0, 10.0, 100.0, 1e3, 1e4):
        matrix = ft.partial(sparse_problems.convection_diffusion, _SIDE, peclet)
        name = f"convection-diffusion, Péclet {peclet:g}"
        yield name, matrix, None
        yield f"{name}, `incomplete_lu`", matrix, pj.incomplete_lu
    for dominance in (1.0, 1.5):
        matrix = ft.partial(_dominant, _SIDE**2, dominance)
        yield f"random, diagonal {dominance:g} times the others", matrix, None
    for speed in (1.0, 10.0):
        yield f"I + {speed:g} (S − Sᵀ)", ft.partial(_rotation, _SIDE**2, speed), None
    for name in _REAL:
        matrix = ft.partial(scipy.io.mmread, _FOLDER / f"{name}.mtx")
        yield name, matrix, None
        yield f"{name}, `incomplete_lu`", matrix, pj.incomplete_lu


def _measure(matrix, solver, preconditioner, dtype) -> Outcome:
    matrix = scipy.sparse.csr_array(matrix)
    vector = np.random.default_rng(0).standard_normal(matrix.shape[0])
    if np.iscomplexobj(matrix.data):
        dtype = np.result_type(dtype, np.complex64)
    operator = pj.SparseLinearOperator(matrix.astype(dtype))
    options = {}
    if preconditioner is not None:
        options["preconditioner"] = preconditioner(operator)

    @jax.jit
    def solve(operator, vector, options):
        solution = pj.linear_solve(operator, vector, solver, options=options, throw=False)
        return solution.value, solution.result, solution.stats["num_steps"]

    run = lambda: jax.block_until_ready(
        solve(operator, jnp.asarray(vector.astype(dtype)), options)
    )
    value, result, steps = run()
    seconds = []
    while len(seconds) < 3 or (sum(seconds) < 0.3 and len(seconds) < 15):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    residual = np.linalg.norm(vector - matrix @ np.asarray(value, matrix.dtype))
    residual /= np.linalg.norm(vector)
    failed = [
        name.replace("_", " ")
        for name in ("breakdown", "stagnation", "max_steps_reached", "singular")
        if result == getattr(lx.RESULTS, name)
    ]
    each = 2 if isinstance(solver, pj.BiCGStab) else 1
    milliseconds = 1e3 * float(np.median(seconds))
    return Outcome(each * int(steps), milliseconds, float(residual), "".join(failed))


def _cell(outcome: Outcome) -> str:
    products, milliseconds, residual, failure = outcome
    text = f"{products}; {milliseconds:.3g}; {residual:.0e}"
    return f"*{failure}: {text}*" if failure else text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the problem's name")
    only = parser.parse_args().only
    jax.config.update("jax_enable_x64", True)
    print("; ".join(f"{key}: {value}" for key, value in report.environment().items()))
    print("\nProducts with A; milliseconds; relative residual.\n")
    print(f"| problem | dtype | {' | '.join(_SOLVERS)} |")
    print("|---|---|" + "---|" * len(_SOLVERS), flush=True)
    successes = dict.fromkeys(_SOLVERS, 0)
    for name, create, preconditioner in _problems():
        if only not in name:
            continue
        matrix = create()
        for dtype in (np.float64, np.float32):
            cells = []
            for label, solver in _SOLVERS.items():
                outcome = _measure(matrix, solver, preconditioner, dtype)
                successes[label] += not outcome.failure
                cells.append(_cell(outcome))
            print(f"| {name} | {dtype.__name__} | {' | '.join(cells)} |", flush=True)
    print("\nSuccessful: " + ", ".join(f"{n} by {key}" for key, n in successes.items()))


if __name__ == "__main__":
    main()
