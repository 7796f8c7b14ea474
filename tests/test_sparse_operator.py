"""`SparseLinearOperator`: what it is made from, and its products, beside NumPy."""

import re

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import sparse_cases as cases
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._kernel.row_sums import by_rows, in_turn
from pseudojvp._operator import as_operator


_each_case = pytest.mark.parametrize("name", cases.CASES)


def _rtol(dtype):
    return 1e-5 if dtype == np.float32 else 1e-12


def _products(operator, vector, covector):
    return operator.mv(vector), operator.T.mv(covector), operator.as_matrix()


@pytest.mark.default("wide", "complex", "empty_rows", "no_cols", "long_rows")
@pytest.mark.ci("*")
@_each_case
def test_products_are_those_of_the_dense_matrix(name):
    matrix = cases.dense(*cases.CASES[name])
    operator = pj.SparseLinearOperator(cases.CASES[name])
    vector = cases.random_array(matrix.shape[1], matrix.dtype, 3)
    covector = cases.random_array(matrix.shape[0], matrix.dtype, 4)
    got = jit(_products)(operator, vector, covector)
    for value, want in zip(
        got, (matrix @ vector, matrix.T @ covector, matrix), strict=True
    ):
        assert value.dtype == matrix.dtype
        atol = _rtol(matrix.dtype) * np.max(np.abs(want), initial=1)
        np.testing.assert_allclose(value, want, rtol=0, atol=atol)


@pytest.mark.default("wide", "complex", "empty_rows", "no_cols", "long_rows")
@pytest.mark.ci("*")
@_each_case
def test_products_with_traced_indices_are_those_of_the_dense_matrix(name):
    data, row, col, shape = cases.CASES[name]
    matrix = cases.dense(data, row, col, shape)
    vector = cases.random_array(shape[1], matrix.dtype, 3)
    covector = cases.random_array(shape[0], matrix.dtype, 4)

    @jit
    def run(data, row, col, *vectors):
        return _products(pj.SparseLinearOperator((data, row, col, shape)), *vectors)

    got = run(data, row, col, vector, covector)
    for value, want in zip(
        got, (matrix @ vector, matrix.T @ covector, matrix), strict=True
    ):
        atol = _rtol(matrix.dtype) * np.max(np.abs(want), initial=1)
        np.testing.assert_allclose(value, want, rtol=0, atol=atol)


def test_matrix_of_zeros_gives_zeros():
    data, row, col, shape = cases.CASES["tall"]
    operator = pj.SparseLinearOperator((0 * data, row, col, shape))
    np.testing.assert_array_equal(operator.mv(np.ones(shape[1])), np.zeros(shape[0]))


@pytest.mark.parametrize("make", [cases.padded_bcoo, cases.padded_bcsr])
def test_padding_is_no_part_of_the_matrix(make):
    matrix, entries = make()
    want = cases.dense(*entries)
    np.testing.assert_array_equal(matrix.todense(), want)
    operator = pj.SparseLinearOperator(matrix)
    got = jit(_products)(operator, np.arange(3.0), np.arange(4.0))
    assert_close(got[0], want @ np.arange(3.0), 1e-12)
    assert_close(got[1], want.T @ np.arange(4.0), 1e-12)
    np.testing.assert_array_equal(got[2], want)


@pytest.mark.parametrize("make", [cases.padded_bcoo, cases.padded_bcsr])
def test_padding_of_a_matrix_traced_by_jit_is_no_part_of_it(make):
    matrix, entries = make()
    want = cases.dense(*entries)
    run = jit(lambda matrix, *v: _products(pj.SparseLinearOperator(matrix), *v))
    got = run(matrix, np.arange(3.0), np.arange(4.0))
    assert_close(got[0], want @ np.arange(3.0), 1e-12)
    assert_close(got[1], want.T @ np.arange(4.0), 1e-12)
    np.testing.assert_array_equal(got[2], want)


@pytest.mark.parametrize("kind", ["coo", "csr", "csc", "lil", "dok", "bsr", "dia"])
def test_scipy_matrix_of_any_format_is_taken(kind):
    matrix = cases.from_scipy(kind)
    operator = pj.SparseLinearOperator(matrix)
    np.testing.assert_allclose(operator.as_matrix(), matrix.toarray(), rtol=1e-14)


def test_scipy_array_is_taken():
    matrix = scipy.sparse.csr_array(np.diag([1.0, 2.0]))
    np.testing.assert_array_equal(
        pj.SparseLinearOperator(matrix).as_matrix(), matrix.toarray()
    )


def test_data_are_kept_in_the_order_given():
    data, *_ = cases.CASES["square"]
    operator = pj.SparseLinearOperator(cases.CASES["square"])
    np.testing.assert_array_equal(operator.data, data)
    np.testing.assert_array_equal(operator.T.data, data)


def test_integers_become_the_default_float():
    ones = np.ones(2, int)
    operator = pj.SparseLinearOperator((ones, np.arange(2), np.arange(2), (2, 2)))
    assert operator.data.dtype == jnp.float64


def test_sparsity_of_another_operator_is_taken_with_new_data():
    data, row, col, shape = cases.CASES["square"]
    first = pj.SparseLinearOperator((data, row, col, shape))
    second = pj.SparseLinearOperator((2 * data, first.sparsity))
    np.testing.assert_allclose(second.as_matrix(), 2 * cases.dense(data, row, col, shape))


def test_vmap_over_vectors_is_one_product():
    operator = pj.SparseLinearOperator(cases.CASES["tall"])
    run = jax.vmap(jax.vmap(operator.mv, in_axes=1, out_axes=1), in_axes=2, out_axes=2)
    columns = cases.random_array((4, 3, 2), seed=6)
    jaxpr = jax.make_jaxpr(run)(columns)
    assert str(jaxpr).count("sparse_product") == 1
    want = np.einsum("ij,jkl->ikl", cases.dense(*cases.CASES["tall"]), columns)
    np.testing.assert_allclose(jit(run)(columns), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["long_rows", "empty_rows", "many_short", "complex"])
def test_columns_are_multiplied_as_by_the_dense_matrix(name):
    entries = _many_short() if name == "many_short" else cases.CASES[name]
    matrix = scipy.sparse.coo_array((entries[0], tuple(entries[1:3])), entries[3]).tocsr()
    operator = pj.SparseLinearOperator(entries)
    vectors = cases.random_array((3, matrix.shape[1]), matrix.dtype, 3)
    covectors = cases.random_array((matrix.shape[0], 3), matrix.dtype, 4)

    @jit
    def run(operator, vectors, covectors):
        return jax.vmap(operator.mv)(vectors), jax.vmap(operator.T.mv, 1, 1)(covectors)

    got = run(operator, vectors, covectors)
    np.testing.assert_allclose(got[0], (matrix @ vectors.T).T, atol=1e-12)
    np.testing.assert_allclose(got[1], matrix.T @ covectors, atol=1e-12)


def _many_short():
    """5000 rows of one entry and 100 of twenty: two groups."""
    row = np.concatenate([np.arange(5000), np.repeat(np.arange(5000, 5100), 20)])
    col = np.arange(row.size) % 37
    return cases.random_array(row.size), row, col, (5100, 40)


def test_rows_of_two_lengths_are_two_groups():
    levels = pj.SparseLinearOperator(_many_short()).sparsity.by_row.levels
    shapes = [group.items.shape for groups in levels for group in groups]
    assert shapes == [(1, 5000), (20, 100)]


def test_order_of_the_entries_is_that_of_the_platform():
    operator = pj.SparseLinearOperator(cases.CASES["long_rows"])
    vector = jnp.ones(operator.in_size())
    traced = jax.jit(lambda operator, vector: operator.mv(vector)).trace(operator, vector)

    def is_sorted(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r'stablehlo.scatter"\(.*<{indices_are_sorted = (\w+)', text)

    assert is_sorted("cpu") == ["false"]
    assert is_sorted("tpu") == is_sorted("cuda") == ["true"]


@pytest.mark.parametrize("size", [1, 7, 8, 33])
def test_entries_in_turn_are_by_rows_again(size):
    rows = np.sort(np.random.default_rng(0).integers(0, 5, size))
    turned = in_turn(rows, 5)
    np.testing.assert_array_equal(turned[::4][: size // 4], rows[: size // 4])
    again = by_rows(jnp.asarray(turned))
    np.testing.assert_array_equal(again[:size], rows)
    np.testing.assert_array_equal(again[size:], 5)  # left out of the sums


def test_vmap_over_data_is_one_product():
    data, row, col, shape = cases.CASES["tall"]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    batch, vector = cases.random_array((3, data.size), seed=5), np.arange(4.0)
    run = jax.vmap(lambda data: cases.with_data(operator, data).mv(vector))
    assert str(jax.make_jaxpr(run)(batch)).count("sparse_product") == 1
    want = [cases.dense(one, row, col, shape) @ vector for one in batch]
    np.testing.assert_allclose(jit(run)(batch), want, rtol=1e-12, atol=1e-12)


def test_vmap_over_data_and_vectors_and_then_more_vectors():
    data, row, col, shape = cases.CASES["tall"]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    batch = cases.random_array((3, data.size), seed=5)
    vectors = cases.random_array((3, 2, 4), seed=6)
    one = lambda data, vector: cases.with_data(operator, data).mv(vector)
    run = jit(jax.vmap(jax.vmap(one, in_axes=(None, 0))))
    matrices = np.stack([cases.dense(each, row, col, shape) for each in batch])
    want = np.einsum("bij,bkj->bki", matrices, vectors)
    np.testing.assert_allclose(run(batch, vectors), want, rtol=1e-12, atol=1e-12)


def test_vmap_over_traced_patterns():
    one, two = cases.entries(4, 4, 6, seed=1), cases.entries(4, 4, 6, seed=2)
    stacked = [np.stack(pair) for pair in zip(one[:3], two[:3], strict=True)]
    vector = np.arange(4.0)

    def run(*entries):
        return pj.SparseLinearOperator((*entries, (4, 4))).mv(vector)

    want = [cases.dense(*each) @ vector for each in (one, two)]
    np.testing.assert_allclose(jit(jax.vmap(run))(*stacked), want, atol=1e-13)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_entry_that_is_not_finite_reaches_its_row_and_no_other(value):
    operator = pj.SparseLinearOperator(cases.CASES["empty_rows"])
    product = cases.with_data(operator, operator.data.at[0].set(value)).mv(np.ones(4))
    np.testing.assert_array_equal(np.isfinite(product), [True, True, True, False, True])


def test_vector_that_is_not_finite_reaches_the_rows_of_its_entries_only():
    matrix = cases.dense(*cases.CASES["long_rows"])
    vector = np.where(np.arange(100) == 3, np.inf, 1.0)
    product = pj.SparseLinearOperator(cases.CASES["long_rows"]).mv(vector)
    np.testing.assert_array_equal(np.isfinite(product), matrix[:, 3] == 0)


@pytest.mark.parametrize("make", [cases.padded_bcoo, cases.padded_bcsr])
def test_as_operator_wraps_sparse_matrices(make):
    matrix, _ = make()
    assert isinstance(as_operator(matrix, "f"), pj.SparseLinearOperator)


def test_as_operator_wraps_scipy_matrices():
    operator = as_operator(cases.from_scipy("csr"), "f")
    assert isinstance(operator, pj.SparseLinearOperator)


@pytest.mark.slow  # one more program
def test_invert_takes_a_sparse_matrix():
    matrix = scipy.sparse.diags_array([[1.0, 2.0, 4.0], [1.0, 1.0]], offsets=[0, 1])
    inverse = pj.invert(matrix.tocsr(), pj.LU(), throw=False)
    want = np.linalg.solve(matrix.toarray(), np.ones(3))
    np.testing.assert_allclose(inverse.mv(np.ones(3)), want, rtol=1e-12)


@pytest.mark.slow  # a second
def test_linear_solve_takes_a_bcoo():
    matrix = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 1.0]])
    sparse = jsparse.BCOO.fromdense(matrix)
    solution = pj.linear_solve(sparse, np.ones(3), pj.QR(), throw=False)
    want = np.linalg.solve(matrix, np.ones(3))
    np.testing.assert_allclose(solution.value, want, rtol=1e-12)


def test_nan_in_the_data_of_a_solve_is_never_successful():
    operator = pj.SparseLinearOperator(cases.CASES["square"])
    operator = cases.with_data(operator, operator.data.at[3].set(np.nan))
    for solver in (lx.GMRES(1e-8, 1e-8), pj.SVD()):
        solution = pj.linear_solve(operator, np.ones(5), solver, throw=False)
        assert solution.result != lx.RESULTS.successful


def test_operator_goes_through_filter_jit_as_an_argument():
    operator = pj.SparseLinearOperator(cases.CASES["tall"])
    got = eqx.filter_jit(lambda operator: operator.T.mv(np.ones(7)))(operator)
    want = cases.dense(*cases.CASES["tall"]).T @ np.ones(7)
    np.testing.assert_allclose(got, want, atol=1e-13)
