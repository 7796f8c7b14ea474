"""Unit triangular matrices need not store their diagonal, and nothing reads it."""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit
from sparse_cases import random_array

import pseudojvp as pj


UNIT = lx.unit_diagonal_tag
LOWER, UPPER = lx.lower_triangular_tag, lx.upper_triangular_tag
FULL = random_array((4, 4), float, 1)
VECTOR = random_array((4,), float, 3)
OTHER = random_array((3, 3), float, 4) + 4 * np.eye(3)
SHAPES = {
    "lower": (np.tri(4, k=-1), True),
    "upper": (np.tri(4, k=-1).T, False),
    "bidiagonal": (np.eye(4, k=-1), True),
}


def dense(data, place, tag):
    matrix = jnp.zeros((4, 4)).at[place].set(data)
    return lx.MatrixLinearOperator(matrix, (UNIT, tag))


def tagged(data, place, tag):
    matrix = lx.MatrixLinearOperator(jnp.zeros((4, 4)).at[place].set(data))
    return lx.TaggedLinearOperator(matrix, (UNIT, tag))


def sparse(data, place, tag):
    return pj.SparseLinearOperator((data, *place, (4, 4)), UNIT)


def entries(shape, diagonal):
    """The entries of a matrix whose diagonal is not one, and where they are."""
    mask, lower = SHAPES[shape]
    place = np.nonzero(mask + np.diag(diagonal))
    return (FULL + np.diag(np.arange(2, 6)))[place], place, lower


@pytest.mark.ci("*")
@pytest.mark.parametrize("make", [dense, tagged, sparse])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "diagonal",
    [np.zeros(4), np.array([1, 0, 0, 1]), np.ones(4)],
    ids=["missing", "partial", "junk"],
)
def test_solution_and_gradients_are_those_with_ones(make, shape, diagonal):
    data, place, lower = entries(shape, diagonal)

    def loss(data, vector):
        operator = make(data, place, LOWER if lower else UPPER)
        solution = pj.linear_solve(operator, vector, throw=False)
        return jnp.sum(solution.value**2), (solution.value, solution.result)

    def truth(data, vector):
        matrix = jnp.zeros((4, 4)).at[place].set(data)
        x = jsl.solve_triangular(matrix, vector, lower=lower, unit_diagonal=True)
        return jnp.sum(x**2)

    program = jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (x, result)), gradients = program(data, VECTOR)
    matrix = np.zeros((4, 4))
    matrix[place] = data
    np.fill_diagonal(matrix, 1)
    assert result == lx.RESULTS.successful
    assert_close(x, np.linalg.solve(matrix, VECTOR), 1e-14)
    for got, want in zip(gradients, jax.grad(truth, (0, 1))(data, VECTOR), strict=True):
        assert_close(got, want, 1e-13)


@pytest.mark.parametrize("make", [dense, sparse])
def test_estimate_is_that_of_the_matrix_with_ones(make):
    data, place, _ = entries("lower", np.zeros(4))
    told = pj.factorise(make(data, place, LOWER)).stats["reciprocal_condition"]
    matrix = np.eye(4)
    matrix[place] = data
    explicit = lx.MatrixLinearOperator(jnp.asarray(matrix), LOWER)
    want = pj.factorise(explicit).stats["reciprocal_condition"]
    np.testing.assert_allclose(told, want, rtol=1e-12)


@pytest.mark.slow  # a second
def test_sparse_matrix_is_that_with_ones_everywhere():
    data, place, _ = entries("lower", np.array([1, 0, 0, 0]))
    data[0] = 1  # what is stored there is kept
    operator = sparse(data, place, LOWER)
    matrix = np.eye(4)
    matrix[place] = data
    for multiple, want in ((operator, 1), (2 * operator, 2), (operator.T.T, 1)):
        assert_close(multiple.as_matrix(), want * matrix, 1e-15)
    assert_close(operator.mv(VECTOR), matrix @ VECTOR, 1e-15)
    assert np.all(lx.diagonal(operator) == 1)


def test_sparse_solve_takes_a_triangle_without_its_diagonal():
    data, place, _ = entries("upper", np.zeros(4))
    sparse = jax.experimental.sparse.BCOO((data, np.stack(place, 1)), shape=(4, 4))
    x = pj.sparse_solve(sparse, VECTOR, tags=UNIT)
    matrix = np.eye(4)
    matrix[place] = data
    assert_close(x, np.linalg.solve(matrix, VECTOR), 1e-14)


_SOLVERS = [
    pj.LU(),
    pj.SVD(),
    pj.PivotedQR(),
    pj.LSMR(1e-13, 1e-13),
    pj.Normal(pj.CG(1e-13, 1e-13)),
    pj.SparseLU(),
]


def _sparse_twice(data, place, tag):
    """Each entry in two parts."""
    twice = np.tile(place[0], 2), np.tile(place[1], 2)
    return pj.SparseLinearOperator((jnp.tile(data / 2, 2), *twice, (4, 4)), UNIT)


def _sparse_tagged(data, place, tag):
    matrix = pj.SparseLinearOperator((data, *place, (4, 4)))
    return lx.TaggedLinearOperator(matrix, (UNIT, tag))


def _sparse_traced(data, place, tag):
    zero = 0 * data.astype(int)  # traced, where the data are
    row, col = (index + zero for index in place)
    return pj.SparseLinearOperator((data, row, col, (4, 4)), (UNIT, tag))


def _bands(data, place, tag):
    matrix = jnp.zeros((4, 4)).at[place].set(data)
    bands = (jnp.diag(matrix), jnp.diag(matrix, -1), jnp.diag(matrix, 1))
    return lx.TaggedLinearOperator(lx.TridiagonalLinearOperator(*bands), (UNIT, tag))


def _check_ones(solver, make, shape, diagonal):
    data, place, lower = entries(shape, diagonal)
    tag = LOWER if lower else UPPER

    def solve(data):
        value = pj.linear_solve(make(data, place, tag), VECTOR, solver).value
        return jnp.sum(value**2), value

    (_, x), gradient = jit(jax.value_and_grad(solve, has_aux=True))(data)
    matrix = np.zeros((4, 4))
    matrix[place] = data
    np.fill_diagonal(matrix, 1)
    want = np.linalg.solve(matrix, VECTOR)
    assert_close(x, want, 1e-10)
    row, col = place
    of_entries = -np.linalg.solve(matrix.T, 2 * want)[row] * want[col]
    assert_close(gradient, np.where(row == col, 0, of_entries), 1e-9)


@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", _SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("make", [dense, _sparse_twice, _sparse_tagged])
@pytest.mark.parametrize("diagonal", [np.zeros(4), np.ones(4)], ids=["missing", "junk"])
def test_every_solver_takes_the_diagonal_for_ones(solver, make, diagonal):
    if isinstance(solver, pj.SparseLU) and make is dense:
        pytest.skip("it takes sparse matrices alone")
    _check_ones(solver, make, "lower", diagonal)


@pytest.mark.slow  # three seconds
def test_tagged_bands_and_traced_patterns_are_with_ones():
    for make in (_bands, _sparse_traced):
        for diagonal in (np.zeros(4), np.ones(4)):
            _check_ones(pj.SVD(), make, "bidiagonal", diagonal)
    matrix = lx.DiagonalLinearOperator(jnp.full(4, 3.0))
    identity = lx.TaggedLinearOperator(matrix, UNIT)
    assert_close(pj.linear_solve(identity, VECTOR, pj.LU()).value, VECTOR, 1e-15)


@pytest.mark.slow
def test_determinant_is_one_with_every_solver_that_tells_it():
    for make in (dense, _sparse_twice):
        solvers = [pj.LU(), pj.SVD(), pj.PivotedQR()]
        for solver in solvers + [pj.SparseLU()] * (make is not dense):
            for diagonal in (np.zeros(4), np.ones(4)):
                data, place, _ = entries("lower", diagonal)
                told = pj.slogdet(make(data, place, LOWER), solver)
                assert_close(told.sign, 1, 1e-12)
                assert abs(told.logabsdet) < 1e-12


@pytest.mark.parametrize(
    "whole",
    [
        lambda part: pj.Kronecker(part, OTHER),
        lambda part: pj.BlockDiagonal(part, OTHER),
        lambda part: pj.LowRankUpdate(part, FULL[:, :1]),
    ],
    ids=["kronecker", "block-diagonal", "low-rank"],
)
@pytest.mark.slow  # four seconds each
def test_parts_of_an_operator_are_with_ones(whole):
    tags = (LOWER, UNIT)
    stored = np.tril(FULL)
    ones = np.tril(stored, -1) + np.eye(4)
    truth = whole(lx.MatrixLinearOperator(jnp.asarray(ones))).as_matrix()
    vector = random_array((len(truth),), float, 5)
    expected = np.linalg.solve(truth, vector)

    def solution(matrix, solver):
        operator = whole(lx.MatrixLinearOperator(matrix, tags))
        return pj.linear_solve(operator, vector, solver).value

    for solver in (pj.AutoLinearSolver(True), pj.AutoLinearSolver(False), pj.LU()):
        value, gradient = jit(
            lambda matrix, solver=solver: (
                solution(matrix, solver),
                jax.grad(lambda matrix: jnp.sum(solution(matrix, solver)))(matrix),
            )
        )(stored)
        assert_close(value, expected, 1e-12)
        assert not np.any(np.diag(gradient))
