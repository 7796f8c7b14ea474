"""Real matrices of `data/suitesparse`: solutions, gradients on the pattern, honesty."""

import functools as ft
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.io
import scipy.sparse

import pseudojvp as pj


_FOLDER = pathlib.Path(__file__).parent / "data" / "suitesparse"
_DEFINITE = lx.positive_semidefinite_tag
_LSMR = pj.LSMR(rtol=1e-12, max_steps=20_000)


class Case(NamedTuple):
    """How a matrix is solved, and the relative error that its gradient may have."""

    solver: lx.AbstractLinearSolver | None = None
    tags: object = ()
    preconditioner: Callable[[Any], Any] | None = None
    tolerance: float = 1e-8


_SQUARE = {
    "bcsstk01": Case(None, _DEFINITE, pj.incomplete_cholesky),
    "lund_a": Case(None, _DEFINITE, pj.incomplete_cholesky),
    "LFAT5": Case(None, _DEFINITE, pj.jacobi),
    "bcspwr03": Case(pj.MINRES(well_posed=True), lx.symmetric_tag),
    "jagmesh7": Case(pj.MINRES(well_posed=True), lx.symmetric_tag),
    "west0067": Case(pj.GMRES(restart=70)),
    "pores_1": Case(None, (), pj.incomplete_lu),
    "bfwa62": Case(None, (), pj.incomplete_lu),
    "utm300": Case(pj.GMRES(restart=150), (), pj.incomplete_lu),
    "impcol_a": Case(pj.SparseLU()),
    "young1c": Case(None, (), pj.incomplete_lu),
}
_ANY_SHAPE = {
    "ash219": Case(pj.LSMR(well_posed=True)),
    "lp_share1b": Case(_LSMR, tolerance=1e-7),  # κ = 1e5
    "lp_e226": Case(_LSMR),
    "GD06_theory": Case(_LSMR),
    "Erdos971": Case(_LSMR),
    "Ragusa16": Case(_LSMR),
    "Tina_AskCal": Case(_LSMR),
}
# Those that are solved once, for all the tests of a solution and of its gradient.
_SQUARE_ONE, _ANY_ONE = "bfwa62", "Ragusa16"
# In CI those that take a few seconds at most.
_SQUARE_FEW = "bcsstk01", "lund_a", "LFAT5", "bcspwr03", "west0067", "pores_1", "impcol_a"
_ANY_FEW = "ash219", "Tina_AskCal"
_each_square = pytest.mark.parametrize("name", _SQUARE)
_each_of_any_shape = pytest.mark.parametrize("name", _ANY_SHAPE)


@ft.cache
def _matrix(name) -> scipy.sparse.coo_array:
    matrix = scipy.sparse.coo_array(scipy.io.mmread(_FOLDER / f"{name}.mtx"))
    return matrix if np.iscomplexobj(matrix.data) else matrix.astype(float)


@ft.cache
def _vectors(name):
    """b and the weights of the loss Re Σ weights x."""
    matrix = _matrix(name)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal(matrix.shape[0]), rng.standard_normal(matrix.shape[1])
    return tuple(vector.astype(matrix.dtype) for vector in vectors)


@ft.cache
def _solved(name):
    """x, and the gradient with respect to the entries and b."""
    matrix, (vector, weights) = _matrix(name), _vectors(name)
    square = name in _SQUARE
    case = (_SQUARE if square else _ANY_SHAPE)[name]
    front = pj.sparse_solve if square else pj.sparse_lstsq
    indices = np.stack(matrix.coords, axis=1)
    options = {}
    if case.preconditioner is not None:
        operator = pj.SparseLinearOperator(matrix, case.tags)
        options["preconditioner"] = case.preconditioner(operator)

    @jax.jit
    def value_and_gradient(data, vector, options):
        def loss(data, vector):
            sparse = jsparse.BCOO((data, indices), shape=matrix.shape)
            arguments = {"options": options, "tags": case.tags, "throw": False}
            x = front(sparse, vector, case.solver, **arguments)
            return jnp.sum(weights * x).real, x

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(data, vector)

    (_, x), gradient = value_and_gradient(jnp.asarray(matrix.data), vector, options)
    return np.asarray(x), *map(np.asarray, gradient)


def _dense_gradient(name):
    """With respect to the entries and b, from dense matrices."""
    matrix, (vector, weights) = _matrix(name), _vectors(name)
    dense = matrix.toarray()
    if name in _SQUARE:
        x, adjoint = np.linalg.solve(dense, vector), np.linalg.solve(dense.T, weights)
        return -(adjoint[matrix.row] * x[matrix.col]), adjoint
    # Golub & Pereyra 1973, theorem 4.3.
    inverse = np.linalg.pinv(dense, rcond=1e-13)
    x, adjoint = inverse @ vector, inverse.T @ weights
    gradient = np.outer(vector - dense @ x, inverse @ adjoint) - np.outer(adjoint, x)
    gradient += np.outer(inverse.T @ x, weights - dense.T @ adjoint)
    return gradient[matrix.coords], adjoint


def _relative(error, of):
    return np.linalg.norm(error) / np.linalg.norm(of)


@pytest.mark.default(_SQUARE_ONE)
@pytest.mark.ci(*_SQUARE_FEW)
@_each_square
def test_relative_residual_of_a_real_square_matrix_is_1e8_at_most(name):
    vector, _ = _vectors(name)
    residual = vector - _matrix(name) @ _solved(name)[0]
    assert _relative(residual, vector) <= 1e-8


@pytest.mark.default(_ANY_ONE)
@pytest.mark.ci(*_ANY_FEW)
@_each_of_any_shape
def test_solution_of_a_real_matrix_is_that_of_the_pseudoinverse(name):
    truth = np.linalg.pinv(_matrix(name).toarray(), rcond=1e-13) @ _vectors(name)[0]
    assert _relative(_solved(name)[0] - truth, truth) <= 1e-8


@pytest.mark.default(_SQUARE_ONE, _ANY_ONE)
@pytest.mark.ci(*_SQUARE_FEW, *_ANY_FEW)
@pytest.mark.parametrize("name", [*_SQUARE, *_ANY_SHAPE])
def test_gradient_of_a_real_matrix_is_the_dense_one_on_its_pattern(name):
    _, of_data, of_vector = _solved(name)
    truth_of_data, truth_of_vector = _dense_gradient(name)
    tolerance = (_SQUARE | _ANY_SHAPE)[name].tolerance
    assert _relative(of_data - truth_of_data, truth_of_data) <= tolerance
    assert _relative(of_vector - truth_of_vector, truth_of_vector) <= tolerance


@pytest.mark.default("west0067-BiCGStab")
@pytest.mark.ci("bcsstk01-*", "west0067-*", "impcol_a-*")
@pytest.mark.parametrize("solver", [pj.BiCGStab(), pj.GMRES()], ids=["BiCGStab", "GMRES"])
@_each_square
def test_a_solve_without_preconditioner_is_successful_only_if_it_is_right(name, solver):
    matrix, (vector, _) = _matrix(name), _vectors(name)
    operator = pj.SparseLinearOperator(matrix)
    solution = pj.linear_solve(operator, vector, solver, throw=False)
    successful = bool(solution.result == lx.RESULTS.successful)
    residual = _relative(vector - matrix @ np.asarray(solution.value), vector)
    assert residual <= 1.1e-10 or not successful


@pytest.mark.ci("GMRES", "BiCGStab")
@pytest.mark.parametrize("solver", [pj.BiCGStab(), pj.GMRES()], ids=["BiCGStab", "GMRES"])
def test_nearly_singular_fs_183_1_is_no_success_and_its_gradient_is_nan(solver):
    matrix, (vector, _) = _matrix("fs_183_1"), _vectors("fs_183_1")

    @jax.jit
    def gradient(data):
        def loss(data):
            sparse = jsparse.BCOO((data, np.stack(matrix.coords, 1)), shape=matrix.shape)
            return jnp.sum(pj.sparse_solve(sparse, vector, solver, throw=False))

        return jax.grad(loss)(data)

    assert np.all(np.isnan(gradient(jnp.asarray(matrix.data))))


def test_sparse_lu_solves_fs_183_1_which_is_solvable_by_its_estimate():
    matrix, (vector, _) = _matrix("fs_183_1"), _vectors("fs_183_1")
    solution = pj.linear_solve(matrix, vector, pj.SparseLU(), throw=False)
    assert solution.result == lx.RESULTS.successful
    x = np.linalg.solve(matrix.toarray(), vector)
    assert _relative(np.asarray(solution.value) - x, x) <= 1e-8


@pytest.mark.default("BiCGStab-Ragusa16")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["Ragusa16", "Tina_AskCal"])
@pytest.mark.parametrize(
    "solver",
    [pj.GMRES(), pj.BiCGStab(), pj.SparseLU()],
    ids=lambda solver: type(solver).__name__,
)
def test_a_singular_matrix_is_no_success_for_a_solver_of_nonsingular_ones(solver, name):
    matrix, (vector, _) = _matrix(name), _vectors(name)
    solution = pj.linear_solve(matrix, vector, solver, throw=False)
    assert solution.result != lx.RESULTS.successful
