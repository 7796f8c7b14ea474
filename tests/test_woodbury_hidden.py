"""What `Woodbury` says where A, what is added and the sum are all nearly singular.

The truth is of 50 digits.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import mpmath as mp
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


_SIZE, _RANK, _CASES = 6, 3, 60
_KINDS = {"diagonal": lx.DiagonalLinearOperator, "dense": lx.MatrixLinearOperator}
pytestmark = pytest.mark.slow


def _system(rng, kind, dtype, hidden):
    """(A, as vectors or a matrix, U, V, C, b); of a sum near singular if `hidden`."""
    draw = lambda *shape: (
        rng.standard_normal(shape)
        + (1j * rng.standard_normal(shape) if dtype is complex else 0)
    )
    first = 10.0 ** -rng.integers(0, 15 if hidden else 7)
    values = np.r_[first, np.linspace(1, 2, _SIZE - 1)]
    bases = [np.linalg.qr(draw(_SIZE, _SIZE))[0] for _ in range(2)]
    a = values.astype(dtype) if kind == "diagonal" else bases[0] * values @ bases[1]
    left, right, core = draw(_SIZE, _RANK), draw(_SIZE, _RANK), draw(_RANK, _RANK)
    if hidden:  # I + C Vᴴ A⁻¹U is a small multiple of the identity
        matrix = np.diag(a) if kind == "diagonal" else a
        inner = right.conj().T @ np.linalg.solve(matrix, left)
        core = -np.linalg.inv(inner) * (1 + 10.0 ** -rng.integers(0, 18))
    return a, left, right, core, draw(_SIZE)


def _truth(a, left, right, core, vector):
    """x and its condition: the error that rounding of the parts makes, in eps."""
    exact = lambda m: mp.matrix(np.asarray(m, complex).tolist())
    rounded = lambda m: np.array(m.tolist(), complex)
    a = np.diag(a) if a.ndim == 1 else a
    with mp.workdps(50):
        matrix = exact(a) + exact(left) * exact(core) * exact(right).H
        inverse = matrix**-1
        solution = rounded(inverse * exact(vector[:, None]))[:, 0]
        inverse = rounded(inverse)
    of_parts = np.abs(a) + np.abs(left) @ np.abs(core) @ np.abs(right).T
    moved = np.abs(inverse) @ (of_parts @ np.abs(solution) + np.abs(vector))
    return solution, np.max(moved) / np.max(np.abs(solution))


def _solved(kind, dtype, hidden):
    """(whether it is successful, the relative error, the condition) by case."""
    rng = np.random.default_rng(0)
    systems = [_system(rng, kind, dtype, hidden) for _ in range(_CASES)]

    @jit
    @jax.vmap
    def solve(a, left, right, core, vector):
        operator = pj.LowRankUpdate(_KINDS[kind](a), left, right, core)
        solution = pj.linear_solve(operator, vector, pj.Woodbury(), throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    parts = zip(*systems, strict=True)
    values, kept = map(np.asarray, solve(*(jnp.asarray(np.stack(p)) for p in parts)))
    truths = [_truth(*system) for system in systems]
    truths, conditions = map(np.stack, zip(*truths, strict=True))
    truths = truths if dtype is complex else np.real(truths)
    errors = np.max(np.abs(values - truths), axis=1) / np.max(np.abs(truths), axis=1)
    return kept, errors, conditions


_EACH = [(kind, dtype) for kind in _KINDS for dtype in (float, complex)]


@pytest.mark.parametrize(("kind", "dtype"), _EACH)
def test_no_answer_without_a_digit_is_successful(kind, dtype):
    kept, errors, conditions = _solved(kind, dtype, hidden=True)
    assert np.count_nonzero(conditions > 1e13) > _CASES / 4
    assert np.max(errors, where=kept, initial=0) < 0.1


@pytest.mark.parametrize(("kind", "dtype"), _EACH)
def test_no_sum_of_good_condition_is_refused(kind, dtype):
    kept, errors, conditions = _solved(kind, dtype, hidden=False)
    good = conditions < 1e4
    assert np.count_nonzero(good) > _CASES / 4
    assert np.all(kept[good])
    assert np.max(errors[good]) < 1e-10
