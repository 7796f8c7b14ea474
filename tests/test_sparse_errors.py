"""Odd and singular matrices and bad arguments of `sparse_solve` and `sparse_lstsq`."""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import jit

import pseudojvp as pj


_VECTOR = np.arange(1.0, 6.0)
_SYMMETRIC = (
    np.diag(np.arange(3.0, 8.0)) + np.diag(np.ones(4), 1) + np.diag(np.ones(4), -1)
)
_SYMMETRIC[0, 4] = _SYMMETRIC[4, 0] = 0.5
_GENERAL = _SYMMETRIC + np.diag(np.ones(3), 2)
_TRIANGLE = np.tril(_GENERAL)


def _operator(matrix, tags=(), pattern=None):
    row, col = np.nonzero(matrix if pattern is None else pattern)
    return pj.SparseLinearOperator((matrix[row, col], row, col, matrix.shape), tags)


def _without_row(matrix, number=2):
    matrix = matrix.copy()
    matrix[number] = 0
    return matrix


# For each default solver of `sparse_solve`: a matrix, and its tags.
_DEFAULTS = {
    "triangular": (_TRIANGLE, ()),
    "definite": (_SYMMETRIC, lx.positive_semidefinite_tag),
    "symmetric": (_SYMMETRIC, lx.symmetric_tag),
    "general": (_GENERAL, ()),
}
# So small a matrix is solved as a dense one, but with options by products with it.
_OPTIONS = {"dense": None, "products": {"y0": np.zeros(5)}}
_each_way = pytest.mark.parametrize("options", _OPTIONS.values(), ids=_OPTIONS)


@pytest.mark.default("symmetric-dense")
@pytest.mark.ci("*")
@_each_way
@pytest.mark.parametrize("name", _DEFAULTS)
def test_empty_row_is_never_solved_in_silence(name, options):
    matrix, tags = _DEFAULTS[name]
    matrix = _without_row(_without_row(matrix).T) if name == "symmetric" else matrix
    operator = _operator(_without_row(matrix), tags)
    x = pj.sparse_solve(operator, _VECTOR, options=options, throw=False)
    assert np.all(np.isnan(x))
    with pytest.raises(RuntimeError, match="The linear solve with"):
        pj.sparse_solve(operator, _VECTOR, options=options)


@pytest.mark.default("definite-dense")
@pytest.mark.ci("*")
@_each_way
@pytest.mark.parametrize("name", _DEFAULTS)
def test_stored_zeros_are_never_solved_in_silence(name, options):
    pattern, tags = _DEFAULTS[name]
    operator = _operator(np.zeros((5, 5)), tags, pattern)
    x = pj.sparse_solve(operator, _VECTOR, options=options, throw=False)
    assert np.all(np.isnan(x))
    with pytest.raises(RuntimeError, match="The linear solve with"):
        pj.sparse_solve(operator, _VECTOR, options=options)


@_each_way
def test_matrix_without_entries_is_never_solved_in_silence(options):
    nothing = np.zeros(0), np.zeros(0, int), np.zeros(0, int), (5, 5)
    operator = pj.SparseLinearOperator(nothing)
    x = pj.sparse_solve(operator, _VECTOR, options=options, throw=False)
    assert np.all(np.isnan(x))


@pytest.mark.parametrize("solver", [None, pj.MINRES()], ids=["default", "MINRES"])
def test_symmetric_matrix_with_an_empty_row_gets_the_pseudoinverse_solution(solver):
    matrix = _without_row(_without_row(_SYMMETRIC).T)
    operator = _operator(matrix, lx.symmetric_tag)
    x = pj.sparse_lstsq(operator, _VECTOR, solver, throw=False)
    np.testing.assert_allclose(x, np.linalg.pinv(matrix) @ _VECTOR, atol=1e-9)


@pytest.mark.default("5-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [None, pj.LSMR()], ids=["default", "LSMR"])
@pytest.mark.parametrize("rows", [3, 5])
def test_least_squares_of_a_matrix_with_an_empty_row_is_the_pseudoinverse(rows, solver):
    matrix = _without_row(_GENERAL[:rows])
    x = pj.sparse_lstsq(_operator(matrix), _VECTOR[:rows], solver)
    want = np.linalg.pinv(matrix) @ _VECTOR[:rows]
    np.testing.assert_allclose(x, want, atol=1e-8)


@pytest.mark.parametrize(
    ("solve", "rows", "cols", "columns"),
    [
        (pj.sparse_solve, 5, 5, (0,)),
        (pj.sparse_solve, 0, 0, ()),
        (pj.sparse_lstsq, 5, 3, (0,)),
        (pj.sparse_lstsq, 0, 3, ()),
        (pj.sparse_lstsq, 3, 0, (2,)),
    ],
)
def test_system_without_rows_columns_or_right_hand_sides_has_zeros(
    solve, rows, cols, columns
):
    operator = _operator(_GENERAL[:rows, :cols])
    x = solve(operator, np.ones((rows, *columns)))
    np.testing.assert_array_equal(x, np.zeros((cols, *columns)))


@pytest.mark.parametrize("solver", [None, pj.LSMR()], ids=["default", "LSMR"])
def test_least_squares_of_stored_zeros_is_zero(solver):
    operator = _operator(np.zeros((5, 5)), pattern=_without_row(_GENERAL))
    x = pj.sparse_lstsq(operator, _VECTOR, solver)
    np.testing.assert_array_equal(x, np.zeros(5))


@pytest.mark.default("symmetric-*")
@pytest.mark.ci("*")
@_each_way
@pytest.mark.parametrize("name", _DEFAULTS)
def test_nan_in_the_entries_is_never_solved_in_silence(name, options):
    matrix, tags = _DEFAULTS[name]
    operator = _operator(np.where(matrix == 1, np.nan, matrix), tags)
    x = pj.sparse_solve(operator, _VECTOR, options=options, throw=False)
    assert np.all(np.isnan(x))


def _twice(matrix):
    """A BCOO with each entry in two parts, 0.3 and 0.7 of it."""
    row, col = np.nonzero(matrix)
    data = np.concatenate([0.3 * matrix[row, col], 0.7 * matrix[row, col]])
    indices = np.stack([np.tile(row, 2), np.tile(col, 2)], axis=1)
    return jsparse.BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=matrix.shape)


@pytest.mark.ci("*")
@_each_way
@pytest.mark.parametrize("name", _DEFAULTS)
def test_parts_of_an_entry_add_up_and_each_has_the_cotangent_of_it(name, options):
    matrix, tags = _DEFAULTS[name]
    twice = _twice(matrix)

    @jit
    def run(data):
        def loss(data):
            moved = jsparse.BCOO((data, twice.indices), shape=matrix.shape)
            arguments = {"options": options, "tags": tags, "throw": False}
            x = pj.sparse_solve(moved, _VECTOR, **arguments)
            return jnp.sum(x), x

        return jax.grad(loss, has_aux=True)(data)

    slope, x = run(twice.data)
    row, col = np.asarray(twice.indices).T
    want = np.linalg.solve(matrix, _VECTOR)
    adjoint = np.linalg.solve(matrix.T, np.ones(5))
    np.testing.assert_allclose(x, want, atol=1e-9)
    np.testing.assert_allclose(slope, -adjoint[row] * want[col], atol=1e-9)


@pytest.mark.default("*-1-*")
@pytest.mark.ci("*")
@_each_way
@pytest.mark.parametrize("index", [-1, 6])
def test_traced_index_out_of_range_is_never_solved_in_silence(index, options):
    row, col = np.nonzero(_GENERAL)

    @jit
    def solve(row):
        stored = _GENERAL[np.nonzero(_GENERAL)], row, col, (5, 5)
        operator = pj.SparseLinearOperator(stored)
        return pj.sparse_solve(operator, _VECTOR, options=options, throw=False)

    assert np.all(np.isfinite(solve(row)))
    assert np.all(np.isnan(solve(np.where(np.arange(row.size) == 4, index, row))))


def test_known_index_out_of_range_is_an_error():
    indices = jnp.array([[0, 0], [1, 7]])
    matrix = jsparse.BCOO((jnp.ones(2), indices), shape=(2, 2))
    for front in (pj.sparse_solve, pj.sparse_lstsq):
        with pytest.raises(ValueError, match="col index 7, for a matrix of shape"):
            front(matrix, np.ones(2))


@pytest.mark.parametrize("dtype", [np.float32, complex])
def test_right_hand_side_of_another_dtype_is_an_error(dtype):
    for front in (pj.sparse_solve, pj.sparse_lstsq):
        with pytest.raises(TypeError, match="got A of dtype float64 and B of dtype"):
            front(_operator(_GENERAL), _VECTOR.astype(dtype))


@pytest.mark.parametrize(
    ("solver", "match"),
    [
        (pj.CG(), "positive or negative definite linear operators"),
        (pj.MINRES(), "symmetric or Hermitian operators"),
        (pj.SparseTriangular(), "only be used for triangular"),
        (pj.Cholesky(), "definite"),
    ],
)
def test_solver_unfit_for_the_tags_is_an_error(solver, match):
    with pytest.raises(ValueError, match=match):
        pj.sparse_solve(_operator(_GENERAL), _VECTOR, solver)


@pytest.mark.default("BiCGStab")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [
        pj.CG(max_steps=2),
        pj.MINRES(max_steps=2, well_posed=True),
        pj.GMRES(max_steps=2),
        pj.BiCGStab(max_steps=2),
        pj.LSMR(max_steps=2),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_what_did_not_converge_is_nan_and_so_is_its_gradient(solver):
    operator = _operator(_SYMMETRIC, lx.positive_semidefinite_tag)

    @jit
    def run(vector):
        solve = lambda b: pj.sparse_solve(operator, b, solver, throw=False)
        value, pullback = jax.vjp(solve, vector)
        return value, pullback(jnp.ones(5))[0]

    value, slope = run(_VECTOR)
    assert np.all(np.isnan(value))
    assert np.all(np.isnan(slope))


def test_tag_spelt_out_is_an_error():
    with pytest.raises(TypeError, match=r"got 'symmetric'.*`lineax.symmetric_tag`"):
        pj.SparseLinearOperator(scipy.sparse.eye_array(3), "symmetric")


def test_lstsq_makes_no_large_sparse_matrix_dense():
    matrix = scipy.sparse.eye_array(1001, format="csr")
    with pytest.raises(ValueError, match=r"1,000,000 entries use `sparse_lstsq`"):
        pj.lstsq(matrix, np.ones(1001))
