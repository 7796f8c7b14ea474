"""Solutions of random systems: right where a solver claims them, never silently wrong."""

import functools as ft

import jax
import lineax as lx
import numpy as np
import pytest
from checks import jit
from claims import CLAIMS, each_cell, SCALES
from hypothesis import given, settings, strategies as st
from strategies import FIXED, numbers, systems

import pseudojvp as pj


# The others are wrappers of these, or related to them.
CORE = (
    *("QR", "PivotedQR", "SVD", "LU", "Cholesky", "Tridiagonal", "CholeskyQR"),
    *("CG", "CG-singular", "Neumann"),
)
INVERTED = ("PivotedQR", "Normal(Cholesky)")  # a second program each


def solve(cell, matrix, vector):
    """(x, the result, the rank if the solver tells it)."""
    solver = cell.claim.solver(cell.dtype)
    operator = cell.claim.operator(matrix)
    solution = pj.linear_solve(operator, vector, solver, throw=False)
    return solution.value, solution.result, solution.stats.get("rank", -1)


@ft.cache
def compiled(cell):
    return jit(ft.partial(solve, cell))


@ft.cache
def compiled_pseudoinverse(cell):
    """The matrix of b ↦ x."""

    def pseudoinverse(matrix):
        columns = np.eye(matrix.shape[0], dtype=cell.dtype)
        one = lambda column: solve(cell, matrix, column)[0]
        return jax.vmap(one, out_axes=1)(columns)

    return jit(pseudoinverse)


@pytest.mark.default(
    "SVD-4x3-float64",
    "LU-3x3-complex64",
    "Cholesky-3x3-complex128",
    "Tridiagonal-6x6-complex128",
    "CG-3x3-complex64",
    "CG-singular-6x6-complex128",
    "Neumann-3x3-complex64",
    "CholeskyQR-6x2-complex64",
)
@pytest.mark.ci("*")
@each_cell(default=CORE)
@settings(FIXED, max_examples=50)
@given(data=st.data())
def test_claimed_system_is_solved_with_the_pseudoinverse(cell, data):
    system = data.draw(systems(cell))
    value, result, _ = compiled(cell)(system.matrix, system.vector)
    assert result == lx.RESULTS.successful
    assert system.relative_error(value, cell) <= 1


@each_cell(default=CORE)
@settings(FIXED, max_examples=100)
@given(data=st.data())
def test_successful_result_is_right_whatever_the_system(cell, data):
    system = data.draw(systems(cell, claimed=False))
    value, result, _ = compiled(cell)(system.matrix, system.vector)
    error = system.relative_error(value, cell)
    assert error <= 1 or result != lx.RESULTS.successful


@each_cell(("SVD", "PivotedQR", "Auto(False)"))
@settings(FIXED, max_examples=50)
@given(data=st.data())
def test_rank_is_told(cell, data):
    system = data.draw(systems(cell))
    assert compiled(cell)(system.matrix, system.vector)[2] == system.rank


@each_cell([label for label in CLAIMS if CLAIMS[label].scalable], default=CORE)
@settings(FIXED, max_examples=50)
@given(data=st.data())
def test_scale_of_the_operator_changes_neither_result_nor_rank(cell, data):
    system = data.draw(systems(cell, claimed=False, scaled=False))
    limit = SCALES[cell.dtype]
    scale = cell.dtype.type(
        2.0 ** data.draw(st.integers(-limit, limit), label="exponent")
    )
    _, result, rank = compiled(cell)(system.matrix, system.vector)
    _, scaled_result, scaled_rank = compiled(cell)(scale * system.matrix, system.vector)
    assert result == scaled_result
    assert rank == scaled_rank


@each_cell([label for label in CLAIMS if not CLAIMS[label].consistent], default=INVERTED)
@settings(FIXED, max_examples=30)
@given(data=st.data())
def test_solution_operator_fulfils_the_penrose_conditions(cell, data):
    claim, dtype = cell.claim, cell.dtype
    system = data.draw(systems(cell, scaled=False, condition=30.0))
    a = system.unscaled
    x = np.asarray(compiled_pseudoinverse(cell)(system.matrix), a.dtype)
    growth = system.condition ** (1 + claim.power) * max(1, 1 / system.norm)
    bound = 1000 * claim.unit(dtype) * growth
    assert np.linalg.norm(a @ x @ a - a) <= bound * system.norm
    assert np.linalg.norm(x @ a @ x - x) <= bound * np.linalg.norm(system.pseudoinverse)
    assert np.linalg.norm((a @ x).conj().T - a @ x) <= bound
    assert np.linalg.norm((x @ a).conj().T - x @ a) <= bound


MEMBERS = 500


@ft.cache
def compiled_batch(name, dtype):
    """Of semidefinite systems: which of them are said to be solved."""
    claim = CLAIMS[name]
    solver = claim.solver(dtype)

    def successful(matrix, vector):
        solution = pj.linear_solve(claim.operator(matrix), vector, solver, throw=False)
        return solution.result == lx.RESULTS.successful

    return jit(jax.vmap(successful))


@pytest.mark.default("Cholesky-float64", "CG-negative-complex64")
@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("name", ["CG", "Cholesky", "CG-negative"])
@settings(FIXED, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_singular_system_without_solution_is_never_successful(name, dtype, seed):
    # 3 x 3 matrices of rank two, and their null vectors as b: exact small integers.
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    factors = numbers(rng, (MEMBERS, 3, 2), dtype, True)
    null = np.cross(factors[..., 0], factors[..., 1]).conj()
    factors, null = (array[np.any(null, axis=1)] for array in (factors, null))
    sign = -1 if CLAIMS[name].kind == "negative" else 1
    matrices = sign * factors @ factors.conj().swapaxes(1, 2)
    batch = np.resize(matrices, (MEMBERS, 3, 3)), np.resize(null, (MEMBERS, 3))
    successful = compiled_batch(name, dtype)(*(array.astype(dtype) for array in batch))
    assert not np.any(successful)
