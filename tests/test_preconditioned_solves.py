"""Solves with each preconditioner: values, gradients, counts of iterations."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import assert_close, jit

import pseudojvp as pj


PSD = lx.positive_semidefinite_tag
SIDE = 3
SIZE = SIDE**2
KEY = jax.random.key(0)

dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def _poisson(side):
    line = scipy.sparse.diags_array(
        [-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)], offsets=[-1, 0, 1]
    )
    return scipy.sparse.kronsum(line, line).tocoo()


def _system(dtype=float):
    """Entries of a Hermitian matrix on the pattern of a grid, and two vectors."""
    matrix = _poisson(SIDE)
    rng = np.random.default_rng(0)
    numbers = lambda: (
        rng.standard_normal(SIZE)
        + (1j * rng.standard_normal(SIZE) if dtype is complex else 0)
    )
    row, col = matrix.coords
    phase = np.exp(0.5j * np.sign(col - row)) if dtype is complex else 1.0
    data = matrix.data * phase * (1 + 0.1 * (row + col))
    return data, row, col, numbers(), numbers()


def _dense(data, row, col):
    matrix = np.zeros((SIZE, SIZE), data.dtype)
    matrix[row, col] = data
    return matrix


PRECONDITIONERS = {
    "jacobi": lambda stored, operator: pj.jacobi(operator),
    "block_jacobi": lambda stored, operator: pj.block_jacobi(operator, 2),
    "chebyshev": lambda stored, operator: pj.chebyshev(operator, 2),
    "nystrom": lambda stored, operator: pj.nystrom(operator, 4, KEY),
    "incomplete_cholesky": lambda stored, operator: pj.incomplete_cholesky(stored),
    "two-sweeps": lambda stored, operator: pj.incomplete_cholesky(stored, sweeps=2),
}
GENERAL = {
    "jacobi": PRECONDITIONERS["jacobi"],
    "block_jacobi": PRECONDITIONERS["block_jacobi"],
    "incomplete_lu": lambda stored, operator: pj.incomplete_lu(stored),
}


def _solve(data, row, col, vector, make, solver, tags=()):
    stored = data, row, col, (SIZE, SIZE)
    operator = pj.SparseLinearOperator(stored, tags)
    options = {"preconditioner": make(stored, operator)}
    return pj.linear_solve(operator, vector, solver, options=options, throw=False)


def _value_and_gradients(make, solver, tags, row, col, weights):
    def loss(data, vector):
        solution = _solve(data, row, col, vector, make, solver, tags)
        loss = jnp.sum(solution.value * weights).real
        return loss, (solution.value, solution.result == lx.RESULTS.successful)

    return jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def _check(make, solver, tags, data, row, col, vector, weights):
    function = _value_and_gradients(make, solver, tags, row, col, weights)
    (_, (value, successful)), (got_data, got_vector) = function(data, vector)
    inverse = np.linalg.inv(_dense(data, row, col))
    x, adjoint = inverse @ vector, inverse.T @ weights
    assert successful
    assert_close(value, x, 1e-9)
    assert_close(got_vector, adjoint, 1e-8)
    assert_close(got_data, -adjoint[row] * x[col], 1e-8)


@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_cg_gives_the_dense_solution_and_gradients(name, dtype):
    data, row, col, vector, weights = _system(dtype)
    solver = pj.CG(1e-12, 1e-12)
    _check(PRECONDITIONERS[name], solver, PSD, data, row, col, vector, weights)


@pytest.mark.slow
@dtypes
@pytest.mark.parametrize("name", GENERAL)
def test_gmres_gives_the_dense_solution_and_gradients_of_general_systems(name, dtype):
    data, row, col, vector, weights = _system(dtype)
    data = data * (1 + 0.3 * (row < col))
    solver = pj.GMRES(1e-12, 1e-12)
    _check(GENERAL[name], solver, (), data, row, col, vector, weights)


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_minres_takes_absolute_jacobi_for_an_indefinite_system():
    data, row, col, vector, weights = _system()
    data = np.where(row == col, data - 7, data)
    eigenvalues = np.linalg.eigvalsh(_dense((data + 0), row, col))
    assert eigenvalues[0] < 0 < eigenvalues[-1]
    make = lambda stored, operator: pj.jacobi(operator, absolute=True)
    solver = pj.MINRES(1e-12, 1e-12, well_posed=True)
    _check(make, solver, lx.symmetric_tag, data, row, col, vector, weights)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_a_batch_of_matrices_on_one_pattern_is_solved(name):
    data, row, col, vector, _ = _system()
    batch = np.stack([data, 2 * data])
    make, solver = PRECONDITIONERS[name], pj.CG(1e-12, 1e-12)
    solve = lambda data: _solve(data, row, col, vector, make, solver, PSD).value
    got = jit(jax.vmap(solve))(batch)
    want = [np.linalg.solve(_dense(member, row, col), vector) for member in batch]
    np.testing.assert_allclose(got, want, rtol=1e-8)


@jit
def _cg(operator, preconditioner, vector):
    options = {} if preconditioner is None else {"preconditioner": preconditioner}
    solution = pj.linear_solve(operator, vector, pj.CG(1e-10, 1e-10), options=options)
    return solution.value, solution.stats["num_steps"]


# On Poisson's equation on a 32 x 32 grid, of CG to 1e-10 for a random vector: 115 without
# a preconditioner. What is written here is a little above what was counted.
MOST_STEPS = {
    "jacobi": (lambda operator: pj.jacobi(operator), 118),
    "block_jacobi": (lambda operator: pj.block_jacobi(operator, 32), 102),
    "chebyshev": (lambda operator: pj.chebyshev(operator, 4), 32),
    "incomplete_cholesky": (lambda operator: pj.incomplete_cholesky(operator), 46),
    "three-sweeps": (lambda operator: pj.incomplete_cholesky(operator, sweeps=3), 49),
}


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", MOST_STEPS)
def test_iterations_fall_on_the_poisson_equation(name):
    make, most = MOST_STEPS[name]
    matrix = _poisson(32)
    vector = np.random.default_rng(0).standard_normal(1024)
    operator = pj.SparseLinearOperator(matrix, PSD)
    solution, steps = _cg(operator, make(operator), vector)
    assert np.abs(matrix @ np.asarray(solution) - vector).max() < 1e-8
    assert steps <= most


@pytest.mark.slow  # two programs
def test_nystrom_makes_the_iterations_few_for_a_kernel():
    points = np.arange(200) / 20
    kernel = np.exp(-0.5 * np.subtract.outer(points, points) ** 2)
    operator = lx.MatrixLinearOperator(kernel + 1e-4 * np.eye(200), PSD)
    preconditioner = pj.nystrom(lx.MatrixLinearOperator(kernel, PSD), 40, KEY, 1e-4)
    vector = np.random.default_rng(0).standard_normal(200)
    _, plain = _cg(operator, None, vector)
    _, preconditioned = _cg(operator, preconditioner, vector)
    assert plain > 100
    assert preconditioned <= 10
