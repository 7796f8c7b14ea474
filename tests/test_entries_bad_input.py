"""What `solve_entries` says of input that it cannot take."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from entries_cases import grid
from jax.experimental import sparse

import pseudojvp as pj


A, B = grid(4, 1.0), np.ones(16)
pytestmark = pytest.mark.untyped


def _solve(A=A, b=B, indices=3, *, rtol=1e-6, atol=0.0, **keywords):
    return pj.solve_entries(A, b, indices, rtol=rtol, atol=atol, **keywords)


@pytest.mark.parametrize(
    ("error", "keywords", "message"),
    [
        (TypeError, {"A": jnp.eye(16)}, "Pass a `BCOO`"),
        (TypeError, {"A": lx.MatrixLinearOperator(jnp.eye(16))}, "Pass a `BCOO`"),
        (ValueError, {"A": A[:3]}, "Pass a square matrix"),
        (ValueError, {"b": np.ones(15)}, r"Pass one of shape \(16,\)"),
        (ValueError, {"b": np.ones((16, 2))}, "use `jax.vmap`"),
        (TypeError, {"b": 1j * B}, "Convert one"),
        (ValueError, {"indices": 16}, "got 16, for x"),
        (ValueError, {"indices": [0, -1]}, "got -1, for x"),
        (TypeError, {"indices": 1.0}, "Pass an integer"),
        (TypeError, {"indices": [[1]]}, "1-D array"),
        (ValueError, {"rtol": -1.0}, "non-negative"),
        (TypeError, {"atol": 1j}, "real numbers"),
        (ValueError, {"rtol": np.ones(2)}, "Pass a scalar"),
        (TypeError, {"atol": None}, "Pass a number"),
        (ValueError, {"max_pushes": -1}, "not negative"),
        (ValueError, {"max_pushes": 2.5}, "not negative"),
        (TypeError, {"key": 0}, "Pass one key"),
        (TypeError, {"key": jax.random.split(jax.random.key(0))}, "Pass one key"),
        (ValueError, {"confidence": 1.0}, "between 0 and 1"),
    ],
)
def test_input_that_does_not_fit_is_told_while_tracing(error, keywords, message):
    with pytest.raises(error, match=message):
        _solve(**keywords)


def test_negative_index_of_an_entry_is_told():
    matrix = sparse.BCOO((jnp.ones(1), jnp.array([[0, -1]])), shape=(2, 2))
    with pytest.raises(ValueError, match="index -1"):
        _solve(matrix, np.ones(2), 0)


def _code(result):
    return int(result._value)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_matrix_without_dominance_is_told(shift):
    with pytest.raises(RuntimeError, match="not diagonally dominant"):
        _solve(grid(4, shift))
    solution = _solve(grid(4, shift), throw=False)
    assert _code(solution.result) == _code(lx.RESULTS.singular)
    assert np.isnan(solution.value)
    assert solution.bound == np.inf
    assert solution.pushes == 0


def test_failures_at_run_time_are_told_and_their_derivatives_are_nan():
    @jax.jit
    def solve(b, index, atol):
        return _solve(b=b, indices=index, rtol=0.0, atol=atol, throw=False)

    nonfinite, rounding = map(_code, (lx.RESULTS.nonfinite_input, lx.RESULTS.stagnation))
    assert _code(solve(B, 16, 1e-6).result) == nonfinite
    assert _code(solve(B * np.nan, 3, 1e-6).result) == nonfinite
    assert _code(solve(B, 3, np.nan).result) == nonfinite
    below = solve(B, 3, 1e-20)
    assert _code(below.result) == rounding
    assert below.bound < 1e-12
    gradient = jax.jit(jax.grad(lambda b: solve(b, 3, 1e-20).value))(B)
    assert np.all(np.isnan(gradient))


def test_pushes_that_are_not_enough_raise():
    with pytest.raises(RuntimeError, match="reached `max_pushes`"):
        _solve(max_pushes=2)


def test_second_derivatives_and_those_of_a_tolerance_are_errors():
    value = lambda b: _solve(b=b).value
    with pytest.raises(RuntimeError, match="for a second one"):
        jax.jvp(jax.grad(value), (B,), (B,))
    with pytest.raises(RuntimeError, match="rtol=..., atol=..."):
        jax.grad(lambda rtol: _solve(rtol=rtol).value)(1e-3)
    with pytest.raises(RuntimeError, match="Unexpected cotangent"):
        jax.grad(lambda b: _solve(b=b).bound)(B)


def test_none_of_the_entries_is_none():
    assert _solve(indices=np.zeros(0, int)).value.shape == (0,)
