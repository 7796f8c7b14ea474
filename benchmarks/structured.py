"""What is gained by solving an operator by its structure (milliseconds)?

Each with the gradient of a loss with respect to all that the operator is made of and to
b, beside the same of the dense matrix (where it fits into memory) and beside SciPy, which
has no gradient. The contenders take turns in one process; errors are relative residuals
|b − A x| / |b| of the solution, A applied by its parts.

    python -m benchmarks.structured [--rounds 5] [--only SUBSTRING]
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg

import pseudojvp as pj

from . import turns


_DENSE = 4000  # rows, up to which the dense matrix is solved as well


class Problem(NamedTuple):
    """`make` takes `arrays` to the operator; `scipy` solves with them and b."""

    arrays: tuple[np.ndarray, ...]
    make: Callable
    scipy: Callable | None = None


def _kronecker(size: int) -> Problem:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, size, size)) / size**0.5 + 2 * np.eye(size)

    def by_hand(a, b, vector):
        inner = scipy.linalg.solve(a, vector.reshape(size, size))
        return scipy.linalg.solve(b, inner.T).T.reshape(-1)

    return Problem(tuple(factors), pj.Kronecker, by_hand)


def _damped(size: int) -> Problem:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, size, size)) / size**0.5

    def make(a, b, damping):
        gram = lambda a: lx.MatrixLinearOperator(a @ a.T, lx.positive_semidefinite_tag)
        return pj.Kronecker(gram(a), gram(b)).damped(damping)

    return Problem((*factors, np.array(0.1)), make)


def _blocks(count: int, size: int) -> Problem:
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((count, size, size)) / size**0.5 + 2 * np.eye(size)

    def by_hand(blocks, vector):
        return np.linalg.solve(blocks, vector.reshape(count, size, 1)).reshape(-1)

    return Problem((blocks,), pj.BlockDiagonal, by_hand)


def _column(size: int) -> np.ndarray:
    """Of a definite matrix, with long correlations."""
    lags = np.minimum(np.arange(size), size - np.arange(size))
    column = np.exp(-lags / 20)
    column[0] += 0.1
    return column


def _circulant(size: int) -> Problem:
    return Problem((_column(size),), pj.Circulant, scipy.linalg.solve_circulant)


def _toeplitz(size: int) -> Problem:
    make = lambda column: pj.Toeplitz(column, tags=lx.positive_semidefinite_tag)
    column = _column(2 * size)[:size]
    return Problem((column,), make, scipy.linalg.solve_toeplitz)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "Kronecker of two 60 x 60": lambda: _kronecker(60),
    "Kronecker of two 100 x 100": lambda: _kronecker(100),
    "damped Kronecker of two 100 x 100": lambda: _damped(100),
    "2000 blocks of 8 x 8": lambda: _blocks(2000, 8),
    "circulant, 3000": lambda: _circulant(3000),
    "circulant, 100,000": lambda: _circulant(100_000),
    "Toeplitz, 1000": lambda: _toeplitz(1000),
    "Toeplitz, 10,000": lambda: _toeplitz(10_000),
    "Toeplitz, 100,000": lambda: _toeplitz(100_000),
}


def _jobs(problem: Problem, *, dense: bool) -> dict[str, Callable]:
    def solve(arrays, vector):
        operator = problem.make(*arrays)
        if dense:
            definite = lx.is_positive_semidefinite(operator)
            tags = lx.positive_semidefinite_tag if definite else ()
            operator = lx.MatrixLinearOperator(operator.as_matrix(), tags)
        return pj.linear_solve(operator, vector, throw=False).value

    loss = lambda arrays, vector, weights: weights @ solve(arrays, vector)
    return {
        "solve": lambda arrays, vector, _: solve(arrays, vector),
        "solve and gradient": jax.grad(loss, (0, 1)),
    }


def measure(name: str, rounds: int) -> None:
    problem = PROBLEMS[name]()
    operator = problem.make(*map(jnp.asarray, problem.arrays))
    size = operator.in_size()
    vector, weights = np.random.default_rng(1).standard_normal((2, size))
    arguments = jax.device_put((problem.arrays, vector, weights))
    contenders = {"by structure": _jobs(problem, dense=False)}
    if size <= _DENSE:
        contenders["dense"] = _jobs(problem, dense=True)
    by_hand = problem.scipy
    for job in ("solve", "solve and gradient"):
        calls = {}
        for who, jobs in contenders.items():
            compiled = jax.jit(jobs[job]).lower(*arguments).compile()
            calls[who] = ft.partial(compiled, *arguments)
        errors = dict.fromkeys(calls, np.nan)
        if job == "solve":
            # Levinson's recursion takes minutes for 100,000.
            if by_hand is not None and (size < 50_000 or "Toeplitz" not in name):
                calls["SciPy"] = ft.partial(by_hand, *problem.arrays, vector)
            for who, call in calls.items():
                residual = vector - np.asarray(operator.mv(jnp.asarray(call())))
                errors[who] = np.linalg.norm(residual) / np.linalg.norm(vector)
        turns.take_turns(f"{name}: {job}", calls, errors, rounds)


if __name__ == "__main__":
    turns.measure_named(__doc__, PROBLEMS, measure)
