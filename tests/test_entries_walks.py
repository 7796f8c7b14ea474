"""Random walks of `solve_entries`, for what pushes leave where dominance is weak."""

import jax
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from entries_cases import dominant, exact

import pseudojvp as pj
from pseudojvp._kernel import walks
from pseudojvp._kernel.entry import ordered, System
from pseudojvp._kernel.pushes import product_and_error, Side


CASES = [
    pytest.param("rows", np.float64, None, marks=pytest.mark.slow),
    ("columns", np.complex128, 2),
]
cases = pytest.mark.parametrize(("by", "dtype", "entries_of_b"), CASES)


def _pushed(by, dtype, entries_of_b):
    """Both sides after a few pushes, and what is left of x_3."""
    rng = np.random.default_rng(5)
    A, b = dominant(rng, 100, 0.05, by, dtype, entries_of_b=entries_of_b)
    row, col = np.nonzero(A)
    system = System(row, col, A[row, col], 100)
    of_vector = Side(system.of_c, b, right=system.by_rows)
    left, right = ordered(system.unit(3), of_vector)
    for side in (left, right):
        while side.sparse and side.pushes < 20:
            side.push(20)
        side.look()
    value, _ = product_and_error(left, right)
    return left, right, exact(A, b)[3] - value


@cases
def test_walks_are_unbiased(by, dtype, entries_of_b):
    left, right, want = _pushed(by, dtype, entries_of_b)
    rng, seen = np.random.default_rng(0), left.was_read.copy()
    batches = [walks._batch(left, right, rng, seen, 10**9)[0] for _ in range(40)]
    scores = np.concatenate(batches)
    for part in (np.real, np.imag)[: 1 + np.iscomplexobj(scores)]:
        error = part(scores).mean() - float(part(want))
        assert abs(error) < 4 * part(scores).std() / np.sqrt(scores.size)


@cases
def test_interval_holds_as_often_as_it_says(by, dtype, entries_of_b):
    left, right, want = _pushed(by, dtype, entries_of_b)
    proved = left.one_norm * right.largest
    misses = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        walked = walks.walk(left, right, rng, 0.1 * proved, 0.05, 10**9)
        assert walked.bound <= 0.1 * proved
        misses += abs(walked.mean - want) > walked.bound
    assert misses <= 1


def test_walks_take_over_where_pushes_end():
    """A random graph, where nothing is local."""
    rng, size = np.random.default_rng(0), 2000
    row, col = np.repeat(np.arange(size), 4), rng.integers(0, size, 4 * size)
    A = scipy.sparse.csr_array((-np.ones(4 * size), (row, col)))
    A = A + scipy.sparse.diags_array(np.full(size, 4.1))
    b = 1 + rng.uniform(size=size)
    want = scipy.sparse.linalg.spsolve(A.tocsc(), b)[5]
    limits = {"rtol": 0.0, "atol": 1.0, "max_pushes": 100_000}

    def solve(b, key):
        return pj.solve_entries(A, b, 5, key=key, throw=False, **limits)

    pushed = pj.solve_entries(A, b, 5, throw=False, **limits)
    walked = jax.jit(solve)(b, jax.random.key(0))
    assert pushed.bound > 4
    assert walked.bound <= 1
    assert walked.walks >= 1024
    assert not walked.whole
    assert abs(walked.value - want) <= walked.bound
    assert solve(b, jax.random.PRNGKey(0)).value == walked.value
    with pytest.raises(RuntimeError, match="key="):
        jax.grad(lambda b: solve(b, jax.random.key(0)).value)(b)


def test_walks_that_are_too_long_are_told():
    A = (
        scipy.sparse.eye_array(50) * (1 + 1e-7)
        - scipy.sparse.eye_array(50).tocsr()[np.roll(np.arange(50), 1)]
    )
    solution = pj.solve_entries(
        A, np.ones(50), 3, rtol=1e-3, atol=0.0, key=jax.random.key(0), throw=False
    )
    assert solution.walks == 0
    assert int(solution.result._value) == int(lx.RESULTS.max_steps_reached._value)
    assert abs(solution.value - 1e7) <= solution.bound
