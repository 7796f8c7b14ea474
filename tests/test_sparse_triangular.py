"""`SparseTriangular`: substitution in sparse triangular systems, beside NumPy."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import sparse_cases as cases
from checks import jit

import pseudojvp as pj


_SOLVER = pj.SparseTriangular()
_TAGS = {True: lx.lower_triangular_tag, False: lx.upper_triangular_tag}


def _entries(size, nse, lower, dtype=float, seed=0):
    """Unsorted, with entries in one place, and a diagonal from 1 to 2."""
    rng = np.random.default_rng(seed)
    row, col = rng.integers(0, size, (2, nse))
    row, col = (
        (np.maximum if lower else np.minimum)(row, col),
        np.where((row >= col) == lower, col, row),
    )
    data = 0.3 * cases.random_array(nse, dtype, seed + 1)
    ends = np.arange(size)
    diagonal = 1 + rng.random(size)
    return (
        np.concatenate([data, diagonal.astype(dtype)]),
        np.concatenate([row, ends]),
        np.concatenate([col, ends]),
        (size, size),
    )


def _long():
    """A last row of 60 entries, which is summed in pieces."""
    size = 30
    data, row, col, shape = _entries(size, 60, lower=True)
    row = np.concatenate([np.full(60, size - 1), row[60:]])
    return data, row, col, shape


CASES = {
    "lower": (_entries(6, 12, lower=True), True),
    "upper": (_entries(6, 12, lower=False), False),
    "complex": (_entries(5, 9, lower=True, dtype=complex), True),
    "one": (_entries(1, 0, lower=True), True),
    "diagonal": (_entries(4, 0, lower=True), True),
    "long": (_long(), True),
}
_each_case = pytest.mark.parametrize("name", CASES)


def _solve(operator, vector, throw=True):
    return pj.linear_solve(operator, vector, _SOLVER, throw=throw)


@pytest.mark.ci("*")
@_each_case
def test_solutions_and_derivatives_are_those_of_the_dense_matrix(name):
    (data, row, col, shape), _ = CASES[name]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    vector = cases.random_array(shape[0], data.dtype, 5)
    weights = cases.random_array(shape[0], data.dtype, 6)
    t_data = cases.random_array(data.size, data.dtype, 7)
    solve = lambda data, vector: _solve(cases.with_data(operator, data), vector).value

    @jit
    def run(data, vector, weights, t_data):
        value, pullback = jax.vjp(solve, data, vector)
        tangent = jax.jvp(lambda data: solve(data, vector), (data,), (t_data,))[1]
        return value, pullback(weights), tangent

    value, (ct_data, ct_vector), tangent = run(data, vector, weights, t_data)
    matrix, t_matrix = (cases.dense(each, row, col, shape) for each in (data, t_data))
    x, adjoint = np.linalg.solve(matrix, vector), np.linalg.solve(matrix.T, weights)
    np.testing.assert_allclose(value, x, rtol=1e-10)
    np.testing.assert_allclose(ct_vector, adjoint, rtol=1e-10)
    np.testing.assert_allclose(ct_data, -adjoint[row] * x[col], rtol=1e-10)
    want = np.linalg.solve(matrix, -t_matrix @ x)
    np.testing.assert_allclose(tangent, want, rtol=1e-9)


@pytest.mark.default("upper", "complex")
@pytest.mark.ci("*")
@_each_case
def test_traced_indices_give_the_same_solutions(name):
    (data, row, col, shape), lower = CASES[name]
    vectors = cases.random_array((2, shape[0]), data.dtype, 5)

    @jit
    def run(data, row, col, vector, covector):
        operator = pj.SparseLinearOperator((data, row, col, shape), _TAGS[lower])
        return _solve(operator, vector).value, _solve(operator.T, covector).value

    value, transposed = run(data, row, col, *vectors)
    matrix = cases.dense(data, row, col, shape)
    np.testing.assert_allclose(value, np.linalg.solve(matrix, vectors[0]), rtol=1e-10)
    np.testing.assert_allclose(
        transposed, np.linalg.solve(matrix.T, vectors[1]), rtol=1e-10
    )


def test_transpose_is_solved_with():
    entries, _ = CASES["lower"]
    operator = pj.SparseLinearOperator(entries).T
    vector = np.arange(1.0, 7.0)
    want = np.linalg.solve(cases.dense(*entries).T, vector)
    np.testing.assert_allclose(_solve(operator, vector).value, want, rtol=1e-10)


@pytest.mark.slow  # one more program
def test_hessian_of_a_solve():
    (data, row, col, shape), _ = CASES["lower"]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    vector, t_data = np.arange(1.0, 7.0), cases.random_array(data.size, seed=7)
    loss = lambda d: jnp.sum(_solve(cases.with_data(operator, d), vector).value)
    product = jit(lambda d, t: jax.jvp(jax.grad(loss), (d,), (t,))[1])(data, t_data)
    matrix, t_matrix = (cases.dense(each, row, col, shape) for each in (data, t_data))
    x, adjoint = np.linalg.solve(matrix, vector), np.linalg.solve(matrix.T, np.ones(6))
    t_x = -np.linalg.solve(matrix, t_matrix @ x)
    t_adjoint = -np.linalg.solve(matrix.T, t_matrix.T @ adjoint)
    want = -t_adjoint[row] * x[col] - adjoint[row] * t_x[col]
    np.testing.assert_allclose(product, want, rtol=1e-9, atol=1e-12)


def test_vmap_over_vectors():
    entries, _ = CASES["long"]
    operator = pj.SparseLinearOperator(entries)
    vectors = cases.random_array((3, 30), seed=5)
    run = jax.vmap(lambda vector: _solve(operator, vector).value)
    np.testing.assert_allclose(
        jit(run)(vectors), np.linalg.solve(cases.dense(*entries), vectors.T).T, rtol=1e-9
    )


def test_vmap_over_data():
    (data, row, col, shape), _ = CASES["lower"]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    batch, vector = np.stack([data, 2 * data]), np.arange(1.0, 7.0)
    run = jax.vmap(lambda data: _solve(cases.with_data(operator, data), vector).value)
    want = [np.linalg.solve(cases.dense(d, row, col, shape), vector) for d in batch]
    np.testing.assert_allclose(jit(run)(batch), want, rtol=1e-10)


@pytest.mark.slow  # two seconds
def test_unit_diagonal_is_taken_as_ones():
    (data, row, col, shape), _ = CASES["lower"]
    rest = row != col
    data = np.concatenate([data[rest], np.ones(6)])
    row, col = (np.concatenate([index[rest], np.arange(6)]) for index in (row, col))
    operator = pj.SparseLinearOperator((data, row, col, shape), lx.unit_diagonal_tag)
    matrix = cases.dense(data, row, col, shape)
    want = np.linalg.solve(matrix, np.ones(6))
    np.testing.assert_allclose(_solve(operator, np.ones(6)).value, want, rtol=1e-12)


def test_operator_tagged_afterwards_is_taken():
    entries, _ = CASES["upper"]
    operator = pj.SparseLinearOperator(entries)
    tagged = lx.TaggedLinearOperator(operator, lx.upper_triangular_tag)
    want = np.linalg.solve(cases.dense(*entries), np.ones(6))
    np.testing.assert_allclose(_solve(tagged, np.ones(6)).value, want, rtol=1e-10)


_SINGULAR = {
    "zero": np.array([1.0, 0.0, 2.0]),
    "tiny": np.array([1.0, 1e-20, 1.0]),
    "nan": np.array([1.0, np.nan, 1.0]),
}


@pytest.mark.parametrize("name", _SINGULAR)
def test_diagonal_of_no_inverse_is_singular(name):
    data = np.concatenate([_SINGULAR[name], [1.0]])
    row, col = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])
    operator = pj.SparseLinearOperator((data, row, col, (3, 3)))
    solution = _solve(operator, np.ones(3), throw=False)
    assert solution.result == lx.RESULTS.singular


def test_missing_entry_of_the_diagonal_is_singular():
    entries = np.ones(3), np.array([0, 1, 2]), np.array([0, 0, 2]), (3, 3)
    solution = _solve(pj.SparseLinearOperator(entries), np.ones(3), throw=False)
    assert solution.result == lx.RESULTS.singular


def test_missing_entry_of_the_diagonal_raises_with_throw():
    entries = np.ones(3), np.array([0, 1, 2]), np.array([0, 0, 2]), (3, 3)
    with pytest.raises(RuntimeError, match="SparseTriangular.*needs full rank"):
        _solve(pj.SparseLinearOperator(entries), np.ones(3))


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (lx.MatrixLinearOperator(jnp.eye(2), lx.lower_triangular_tag), "Use `Triangular"),
        (pj.SparseLinearOperator(cases.entries(3, 2, 4)), "square matrices"),
        (pj.SparseLinearOperator(cases.entries(4, 4, 9, seed=1)), "not tagged"),
    ],
    ids=["dense", "not_square", "not_triangular"],
)
def test_unfit_operator_is_an_error(operator, match):
    with pytest.raises(ValueError, match=match):
        _solve(operator, np.ones(operator.out_size()))


def test_unknown_option_is_an_error():
    operator = pj.SparseLinearOperator(CASES["one"][0])
    with pytest.raises(ValueError, match="unknown option"):
        pj.linear_solve(operator, np.ones(1), _SOLVER, options={"y0": np.ones(1)})
