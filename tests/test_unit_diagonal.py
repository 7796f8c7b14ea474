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


@pytest.mark.default("missing-lower-sparse")
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
