"""What does a direct sparse solve cost, with its gradient and with 16 columns (ms)?

The contenders take turns in one process. The errors are relative, of x, X, or of the
gradients with respect to the stored entries and b, beside SciPy's SuperLU with a step of
refinement. In each call the last digit of an entry is another, so that no factors can be
found again. Compilation is told first, in seconds of the processor.

    python -m benchmarks.sparse_direct [--rounds 5] [--only SUBSTRING]
"""

import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

import pseudojvp as pj

from . import sparse_problems as problems, turns
from .harness import relative_error


_COLUMNS = 16
_calls = itertools.count()  # of all contenders


def _random(size: int) -> scipy.sparse.csr_array:
    """Three entries a row and a diagonal that dominates none of them."""
    rng = np.random.default_rng(0)
    others = scipy.sparse.random_array((size, size), density=3 / size, rng=rng)
    return scipy.sparse.csr_array(others + scipy.sparse.eye_array(size))


PROBLEMS: dict[str, Callable] = {
    "Poisson, 32 x 32": lambda: problems.poisson(32, 2),
    "Poisson, 100 x 100": lambda: problems.poisson(100, 2),
    "Poisson, 200 x 200": lambda: problems.poisson(200, 2),
    "Poisson, 22 x 22 x 22": lambda: problems.poisson(22, 3),
    "convection-diffusion, 100 x 100": lambda: problems.convection_diffusion(100, 100.0),
    "two materials, 100 x 100": lambda: problems.two_materials(100, 1e6),
    "random, 2000": lambda: _random(2000),
}


def _ours(matrix, solver):
    sparsity = pj.SparseLinearOperator(matrix).sparsity

    def solve(data, vector):
        operator = pj.SparseLinearOperator((data, sparsity))
        return pj.linear_solve(operator, vector, solver, throw=False).value

    return solve


def _klujax(matrix):
    klujax = importlib.import_module("klujax")
    row, col = map(jnp.asarray, matrix.tocoo().coords)
    return lambda data, vector: klujax.solve(row, col, data, vector)


CONTENDERS: dict[str, Callable] = {
    "SparseLU": lambda matrix: _ours(matrix, pj.SparseLU()),
    **({"klujax": _klujax} if importlib.util.find_spec("klujax") else {}),
}


def _jobs(solve) -> dict[str, Callable]:
    """Functions of (data, vector, weights, columns)."""

    def gradient(data, vector, weights, _):
        loss = lambda data, vector: weights @ solve(data, vector)
        return jax.grad(loss, (0, 1))(data, vector)

    return {
        "solve": lambda data, vector, *_: solve(data, vector),
        "solve and gradient": gradient,
        f"{_COLUMNS} columns": lambda data, _, __, columns: jax.vmap(solve, (None, 1), 1)(
            data, columns
        ),
    }


def _scipy_jobs(matrix) -> dict[str, Callable]:
    """The same by hand, in Python."""
    row, col = matrix.tocoo().coords

    def factors(data):
        entries = data, matrix.indices, matrix.indptr
        moved = scipy.sparse.csr_array(entries, shape=matrix.shape)
        return scipy.sparse.linalg.splu(moved.tocsc())

    def gradient(data, vector, weights, _):
        lu = factors(data)
        x, adjoint = lu.solve(vector), lu.solve(weights, "T")
        return -adjoint[row] * x[col], adjoint

    return {
        "solve": lambda data, vector, *_: factors(data).solve(vector),
        "solve and gradient": gradient,
        f"{_COLUMNS} columns": lambda data, _, __, columns: factors(data).solve(columns),
    }


def _reference(matrix, vector, weights, columns):
    lu = scipy.sparse.linalg.splu(matrix.tocsc())
    row, col = matrix.tocoo().coords

    def refined(right, trans="N"):
        product = matrix if trans == "N" else matrix.T
        x = lu.solve(right, trans)
        return x + lu.solve(right - product @ x, trans)

    x, adjoint = refined(vector), refined(weights, "T")
    return x, (-adjoint[row] * x[col], adjoint), refined(columns)


def _moving(function: Callable, data: np.ndarray, *others) -> Callable:
    """Calls with data that differ in the last digits of the first entry."""

    def call():
        moved = data.copy()
        moved[0] *= 1 + 2**-52 * (next(_calls) % 2**16)
        return function(moved, *others)

    return call


def measure(name: str, rounds: int) -> None:
    matrix = PROBLEMS[name]()
    rng = np.random.default_rng(1)
    arrays = (
        *rng.standard_normal((2, len(matrix.indptr) - 1)),
        rng.standard_normal((matrix.shape[0], _COLUMNS)),
    )
    by_hand = _scipy_jobs(matrix)
    ours = {who: _jobs(make(matrix)) for who, make in CONTENDERS.items()}
    references = _reference(matrix, *arrays)
    for job, reference in zip(by_hand, references, strict=True):
        calls = {}
        for who, jobs in ours.items():
            start = time.process_time()
            compiled = jax.jit(jobs[job]).lower(matrix.data, *arrays).compile()
            print(f"{who}: compiled in {time.process_time() - start:.2f} s")
            calls[who] = _moving(compiled, matrix.data, *arrays)
        calls["SciPy's splu by hand"] = _moving(by_hand[job], matrix.data, *arrays)
        errors = {who: relative_error(call(), reference) for who, call in calls.items()}
        turns.take_turns(f"{name}: {job}", calls, errors, rounds)


if __name__ == "__main__":
    turns.measure_named(__doc__, PROBLEMS, measure)
