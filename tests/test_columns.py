"""Several right-hand sides: one loop, products with a block, each column its own end."""

import functools as ft
import re

import jax
import krylov
import numpy as np
import pytest

import pseudojvp as pj


SIZE, COLUMNS = 8, 5
SOLVERS = {
    "CG": pj.CG(1e-10),
    "MINRES": pj.MINRES(1e-10),
    "LSMR": pj.LSMR(1e-10),
    "GMRES": pj.GMRES(1e-10, restart=6),  # its own arrays are not of the shape of A
    "BiCGStab": pj.BiCGStab(1e-10),
    "FlexibleCG": pj.FlexibleCG(1e-10, memory=6),
    "FlexibleGMRES": pj.FlexibleGMRES(1e-10, restart=6),
}
_BASIS = krylov.orthonormal(0, False, SIZE, SIZE)
MATRIX = _BASIS * np.linspace(1, 3, SIZE) @ _BASIS.T
MATRIX = (MATRIX + MATRIX.T) / 2
# In invariant subspaces of growing dimension, so that each takes one step more.
VECTORS = np.stack([_BASIS[:, : k + 1].sum(1) for k in range(COLUMNS)])

each = pytest.mark.parametrize("name", SOLVERS)
pytestmark = pytest.mark.ci("*")


def _solve(name, matrix, vector):
    operator = krylov.operator(matrix, krylov.PSD)
    solution = pj.linear_solve(operator, vector, SOLVERS[name], throw=False)
    successful = solution.result == krylov.SUCCESSFUL
    return solution.value, solution.stats["num_steps"], successful


@ft.cache
def _lowered(name):
    columns = jax.vmap(ft.partial(_solve, name), in_axes=(None, 0))
    return jax.jit(columns).lower(MATRIX, VECTORS)


@ft.cache
def _columns(name):
    compiled = _lowered(name).compile({"xla_backend_optimization_level": 0})
    return jax.tree.map(np.asarray, compiled(MATRIX, VECTORS))


@each
def test_all_columns_run_in_one_loop(name):
    assert len(re.findall(r"stablehlo\.while", _lowered(name).as_text())) == 1


@each
def test_products_are_those_of_one_matrix_with_a_block_of_columns(name):
    # No batch of matrices: that would be a copy of A for each column.
    text = _lowered(name).as_text()
    block = rf"tensor<{SIZE}x{SIZE}xf64>, tensor<{COLUMNS}x{SIZE}xf64>"
    assert re.search(block, text)
    assert not re.search(rf"dot_general.*tensor<{COLUMNS}x{SIZE}x{SIZE}xf64>", text)


@each
def test_columns_stop_at_the_steps_of_the_single_solves(name):
    value, steps, successful = _columns(name)
    alone = jax.jit(
        ft.partial(_solve, name), compiler_options={"xla_backend_optimization_level": 0}
    )
    singles = [jax.tree.map(np.asarray, alone(MATRIX, b)) for b in VECTORS]
    np.testing.assert_array_equal(steps, [single[1] for single in singles])
    np.testing.assert_allclose(value, [single[0] for single in singles], rtol=1e-12)
    assert len(set(steps.tolist())) == COLUMNS
    assert successful.all()


@each
def test_columns_are_solved(name):
    value, _, _ = _columns(name)
    truth = np.linalg.solve(MATRIX, VECTORS.T).T
    assert krylov.relative_error(value, truth) < 1e-9
