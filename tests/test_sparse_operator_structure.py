"""`SparseLinearOperator`: what lineax asks of an operator, compositions, and errors."""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import sparse_cases as cases
from checks import jit

import pseudojvp as pj


# On both sides of the diagonal.
_ENTRIES = cases.entries(4, 4, 9, seed=1)


def _square(tags=(), dtype=float):
    return pj.SparseLinearOperator(cases.entries(4, 4, 9, dtype, seed=1), tags)


def _other():
    return lx.MatrixLinearOperator(jnp.asarray(cases.random_array((4, 4), seed=7)))


COMPOSED = {
    "sum": lambda op: op + _other(),
    "sum_of_sparse": lambda op: op + op.T,
    "difference": lambda op: op - _other(),
    "product": lambda op: op @ _other(),
    "product_of_sparse": lambda op: op @ op.T,
    "scaled": lambda op: 2.0 * op,
    "divided": lambda op: op / 3.0,
    "negative": lambda op: -op,
    "tagged": lambda op: lx.TaggedLinearOperator(op, lx.symmetric_tag),
    "linearised": lx.linearise,
    "materialised": lx.materialise,
    "conjugate": lx.conj,
    "transposed": lambda op: op.T.T,
    "identity_product": lambda op: lx.IdentityLinearOperator(op.out_structure()) @ op,
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composition_multiplies_as_its_matrix(name):
    composed = COMPOSED[name](_square())
    vector = np.arange(4.0)
    product, matrix = jit(lambda op, v: (op.mv(v), op.as_matrix()))(composed, vector)
    np.testing.assert_allclose(product, matrix @ vector, atol=1e-12)


_DENSE = {
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a @ b,
    "difference": lambda a, b: a - b,
    "scaled": lambda a, b: 2 * a,
    "product_of_sparse": lambda a, b: a @ a.T,
}


@pytest.mark.parametrize("name", _DENSE)
def test_matrix_of_a_composition_is_that_of_dense_matrices(name):
    matrix = cases.dense(*_ENTRIES)
    want = _DENSE[name](matrix, np.asarray(_other().as_matrix()))
    composed = COMPOSED[name](_square())
    np.testing.assert_allclose(composed.as_matrix(), want, atol=1e-12)
    np.testing.assert_allclose(composed.T.as_matrix(), want.T, atol=1e-12)


def test_conjugate_conjugates_the_entries():
    operator = _square(dtype=complex)
    want = np.conj(cases.dense(*cases.entries(4, 4, 9, complex, seed=1)))
    np.testing.assert_array_equal(lx.conj(operator).as_matrix(), want)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (1, 1), (0, 2)])
def test_diagonal_is_that_of_the_matrix(shape):
    entries = cases.entries(*shape, 12 if 0 not in shape else 0)
    got = lx.diagonal(pj.SparseLinearOperator(entries))
    np.testing.assert_allclose(got, np.diagonal(cases.dense(*entries)), atol=1e-14)


def test_tridiagonal_are_the_three_bands_of_the_matrix():
    entries = cases.entries(4, 4, 14)
    got = lx.tridiagonal(pj.SparseLinearOperator(entries))
    matrix = cases.dense(*entries)
    for band, offset in zip(got, (0, -1, 1), strict=True):
        np.testing.assert_allclose(band, np.diagonal(matrix, offset), atol=1e-14)


def test_structures_have_the_shape_and_dtype_of_the_matrix():
    operator = pj.SparseLinearOperator(cases.entries(3, 5, 6, np.float32))
    assert operator.in_structure() == jax.ShapeDtypeStruct((5,), np.float32)
    assert operator.out_structure() == jax.ShapeDtypeStruct((3,), np.float32)


CHECKS = {
    "symmetric": (lx.is_symmetric, lx.symmetric_tag),
    "diagonal": (lx.is_diagonal, lx.diagonal_tag),
    "tridiagonal": (lx.is_tridiagonal, lx.tridiagonal_tag),
    "lower": (lx.is_lower_triangular, lx.lower_triangular_tag),
    "upper": (lx.is_upper_triangular, lx.upper_triangular_tag),
    "unit": (lx.has_unit_diagonal, lx.unit_diagonal_tag),
    "positive": (lx.is_positive_semidefinite, lx.positive_semidefinite_tag),
    "negative": (lx.is_negative_semidefinite, lx.negative_semidefinite_tag),
}


@pytest.mark.parametrize("name", CHECKS)
def test_tag_is_believed_where_the_indices_are_traced(name):
    check, tag = CHECKS[name]
    data, row, col, shape = _ENTRIES

    def run(row, col):
        operator = pj.SparseLinearOperator((data, row, col, shape), tag)
        assert check(operator)
        assert not check(pj.SparseLinearOperator((data, row, col, shape)))
        return row

    jax.make_jaxpr(run)(row, col)


def _banded(offset):
    return np.ones(3), np.arange(3), np.arange(3) + offset, (4, 4)


@pytest.mark.parametrize(
    ("offset", "holds"),
    [
        (0, {"symmetric", "diagonal", "tridiagonal", "lower", "upper"}),
        (1, {"tridiagonal", "upper"}),
    ],
)
def test_bands_are_seen_from_the_indices(offset, holds):
    operator = pj.SparseLinearOperator(_banded(offset))
    assert {name for name, (check, _) in CHECKS.items() if check(operator)} == holds


def test_transpose_swaps_what_is_triangular():
    transposed = pj.SparseLinearOperator(_banded(1)).T
    assert lx.is_lower_triangular(transposed)
    assert not lx.is_upper_triangular(transposed)


def test_complex_definite_matrix_is_hermitian_not_symmetric():
    tag = lx.positive_semidefinite_tag
    assert lx.is_symmetric(_square(tag))
    assert not lx.is_symmetric(_square(tag, complex))


_LINE = np.arange(2)
_ONES = np.ones(2)


@pytest.mark.parametrize(
    ("matrix", "error", "match"),
    [
        ((_ONES, _LINE, _LINE + 1, (2, 2)), ValueError, "col index 2, for a matrix of"),
        ((_ONES, _LINE - 1, _LINE, (2, 2)), ValueError, "row index -1, for a matrix of"),
        ((_ONES, _LINE, _LINE[:1], (2, 2)), ValueError, "`col` of shape \\(1,\\)"),
        ((_ONES, _LINE, 1.0 * _LINE, (2, 2)), ValueError, "dtype float64"),
        ((_ONES[None], _LINE, _LINE, (2, 2)), ValueError, "`row` of shape"),
        ((_ONES, _LINE, _LINE, (2, 2, 2)), ValueError, "A matrix has shape"),
        ((np.array(["a", "b"]), _LINE, _LINE, (2, 2)), TypeError, "no array of numbers"),
        (np.eye(2), TypeError, "for a dense array use `lineax.MatrixLinearOperator`"),
        ([[1.0]], TypeError, "got a list"),
    ],
    ids=[
        "col_too_large",
        "row_negative",
        "lengths",
        "float_index",
        "data_2d",
        "shape",
        "strings",
        "dense",
        "list",
    ],
)
def test_unfit_matrix_is_an_error(matrix, error, match):
    with pytest.raises(error, match=match):
        pj.SparseLinearOperator(matrix)


def test_bcoo_index_beyond_padding_is_an_error():
    indices = jnp.array([[0, 0], [3, 0]])
    with pytest.raises(ValueError, match="row index 3.*or 2 for padding"):
        pj.SparseLinearOperator(jsparse.BCOO((jnp.ones(2), indices), shape=(2, 2)))


def test_batched_bcoo_is_an_error():
    indices = jnp.zeros((2, 1, 2), int)
    matrix = jsparse.BCOO((jnp.ones((2, 1)), indices), shape=(2, 2, 2))
    with pytest.raises(ValueError, match="1 batch and 0 dense dimensions"):
        pj.SparseLinearOperator(matrix)


@pytest.mark.parametrize(
    ("shape", "n_dense", "message"),
    [
        ((3,), 0, r"BCOO of shape \(3,\) with 1 axes. .* `matrix.reshape\(1, -1\)`"),
        ((2, 2, 2), 0, r"with 3 axes. A matrix has shape \(rows, cols\)"),
        ((2, 2), 1, r"1 dense dimensions. .*`BCOO.fromdense\(matrix\)`"),
    ],
)
def test_bcoo_that_is_no_matrix_is_an_error_that_says_why(shape, n_dense, message):
    matrix = jsparse.BCOO.fromdense(jnp.ones(shape), n_dense=n_dense)
    with pytest.raises(ValueError, match=message):
        pj.linear_solve(matrix, np.ones(shape[0]))


def test_data_that_do_not_fit_the_sparsity_are_an_error():
    with pytest.raises(ValueError, match="data of shape \\(3,\\) for 9 entries"):
        pj.SparseLinearOperator((np.ones(3), _square().sparsity))


@pytest.mark.parametrize("index", [-1, 5])
def test_traced_index_out_of_range_makes_the_operator_nan(index):
    vector = np.ones(4)
    run = jit(lambda row: pj.SparseLinearOperator((_ONES, row, _LINE, (4, 4))).mv(vector))
    assert np.isnan(run(np.array([0, index])))[0]


@pytest.mark.parametrize(
    "tag", [lx.diagonal_tag, lx.tridiagonal_tag, lx.lower_triangular_tag]
)
def test_tag_that_the_indices_contradict_is_an_error(tag):
    entries = np.ones(1), np.array([0]), np.array([2]), (3, 3)
    with pytest.raises(ValueError, match="has entries on 0 subdiagonals and 2 super"):
        pj.SparseLinearOperator(entries, tag)


def test_unit_diagonal_that_is_not_stored_is_an_error_unless_triangular():
    off_diagonal = np.ones(2), np.array([0, 1]), np.array([1, 0]), (2, 2)
    with pytest.raises(ValueError, match="does not store each entry of its diagonal"):
        pj.SparseLinearOperator(off_diagonal, lx.unit_diagonal_tag)


def test_vector_of_another_shape_is_an_error():
    with pytest.raises(
        ValueError, match="vector of shape \\(3,\\) for a matrix of shape"
    ):
        _square().mv(np.ones(3))


def test_vector_of_another_dtype_is_an_error_in_a_solve():
    with pytest.raises(ValueError, match="structures do not match"):
        pj.linear_solve(_square(), np.ones(4, np.float32))


def test_solver_unfit_for_a_sparse_operator_is_an_error():
    with pytest.raises(ValueError, match="triangular"):
        pj.linear_solve(_square(), np.ones(4), pj.SparseTriangular())
