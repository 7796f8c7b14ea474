"""What does a solve with a low-rank update of a tridiagonal matrix cost (ms)?

Beside dense LU of the sum, with and without forming it, in turns in one process. The
errors are relative, of x, or of the gradients with respect to all parts, beside NumPy's
dense solve.

    python -m benchmarks.low_rank [--rounds 7]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj

from . import turns
from .harness import relative_error


def _parts(size: int, rank: int):
    rng = np.random.default_rng(0)
    diagonal = rng.standard_normal(size) + 6
    bands = rng.standard_normal((2, size - 1))
    return diagonal, *bands, *rng.standard_normal((2, size, rank))


def _operator(diagonal, lower, upper, left, right) -> pj.LowRankUpdate:
    a = lx.TridiagonalLinearOperator(diagonal, lower, upper)
    return pj.LowRankUpdate(a, left, right)


def _woodbury(parts, vector):
    return pj.linear_solve(_operator(*parts), vector, throw=False).value


def _formed(parts, vector):
    return jnp.linalg.solve(_operator(*parts).as_matrix(), vector)


def _dense(parts) -> np.ndarray:
    diagonal, lower, upper, left, right = parts
    bands = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
    return bands + left @ right.T


def _solution(parts, vector):
    return np.linalg.solve(_dense(parts), vector)


def _gradient(parts, vector):
    """That of the sum of x."""
    matrix, left, right = _dense(parts), parts[-2], parts[-1]
    x = np.linalg.solve(matrix, vector)
    y = -np.linalg.solve(matrix.T, np.ones(len(vector)))
    return (
        y * x,
        y[1:] * x[:-1],
        y[:-1] * x[1:],
        np.outer(y, right.T @ x),
        np.outer(x, left.T @ y),
    )


def measure(size: int, rank: int, rounds: int) -> None:
    parts = _parts(size, rank)
    vector = np.random.default_rng(1).standard_normal(size)
    matrix = _dense(parts)
    ways: dict[str, Callable] = {"Woodbury": _woodbury, "LU of the sum": _formed}
    for job, reference in (("solve", _solution), ("gradient", _gradient)):
        calls = {}
        for who, solve in ways.items():
            function = solve
            if job == "gradient":
                loss = lambda parts, vector, solve=solve: jnp.sum(solve(parts, vector))
                function = jax.grad(loss)
            compiled = jax.jit(function).lower(parts, vector).compile()
            calls[who] = lambda compiled=compiled: compiled(parts, vector)
        expected = reference(parts, vector)
        errors = {who: relative_error(call(), expected) for who, call in calls.items()}
        if job == "solve":
            bare = jax.jit(jnp.linalg.solve).lower(matrix, vector).compile()
            calls["LU of a given sum"] = lambda bare=bare: bare(matrix, vector)
            errors["LU of a given sum"] = relative_error(bare(matrix, vector), expected)
        turns.take_turns(f"{size} unknowns, rank {rank}: {job}", calls, errors, rounds)


def main() -> None:
    arguments = turns.parse(__doc__, 7).parse_args()
    jax.config.update("jax_enable_x64", True)
    turns.print_header()
    for size, rank in ((400, 1), (2000, 1), (2000, 20)):
        measure(size, rank, arguments.rounds)


if __name__ == "__main__":
    main()
