"""Sums, products and multiples of structured operators: their class, tags and numbers."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from structured_cases import CASES, definite, normal, path_of, tagged

import pseudojvp as pj
from pseudojvp._operator.damped_kronecker import DampedKronecker


def _matrix(*shape, seed=0):
    return jnp.asarray(normal(np.random.default_rng([seed, *shape]), shape, True))


def _identity(operator):
    return lx.IdentityLinearOperator(operator.in_structure())


def assert_is(operator, kind, dense):
    assert type(operator) is kind
    np.testing.assert_allclose(operator.as_matrix(), dense, rtol=0, atol=1e-12)
    vector = np.arange(1.0, 1 + operator.in_size()).astype(operator.in_structure().dtype)
    product = operator.mv(jnp.asarray(vector))
    np.testing.assert_allclose(product, dense @ vector, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in CASES if "toeplitz" not in name])
@pytest.mark.ci("*")
def test_multiples_and_quotients_keep_the_class(name):
    operator = path_of(name, True).operator(0.0)
    dense = np.asarray(operator.as_matrix())
    kind = type(operator)
    assert_is(2.5 * operator, kind, 2.5 * dense)
    assert_is(operator / 4, kind, dense / 4)
    assert_is(-operator, kind, -dense)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.ci("*")
@pytest.mark.default("eigh", "toeplitz-wide")
def test_complex_multiples_are_those_of_the_dense_form(name):
    operator = path_of(name, True).operator(0.0)
    dense = np.asarray(operator.as_matrix())
    multiple = (1 + 2j) * operator
    np.testing.assert_allclose(multiple.as_matrix(), (1 + 2j) * dense, atol=1e-12)
    assert pj.hermitian_tag not in getattr(multiple, "tags", ())


def test_product_of_kronecker_products_that_fit_is_one():
    a, b, c, d = _matrix(2, 3), _matrix(3, 2), _matrix(3, 2), _matrix(2, 4)
    product = pj.Kronecker(a, b) @ pj.Kronecker(c, d)
    assert_is(product, pj.Kronecker, np.kron(a, b) @ np.kron(c, d))
    other = pj.Kronecker(a, b) @ pj.Kronecker(_matrix(6, 2))
    assert type(other) is lx.ComposedLinearOperator


def test_sum_of_kronecker_products_with_all_but_one_factor_in_common_is_one():
    a, b = tagged(_matrix(3, 3)), tagged(_matrix(2, 2))
    c = tagged(_matrix(2, 2, seed=1))
    dense_a, dense_b, dense_c = (np.asarray(m.as_matrix()) for m in (a, b, c))
    total = pj.Kronecker(a, b) + pj.Kronecker(a, c)
    assert_is(total, pj.Kronecker, np.kron(dense_a, dense_b + dense_c))
    total = pj.Kronecker(a, b) - pj.Kronecker(a, b)
    np.testing.assert_allclose(total.as_matrix(), np.zeros((6, 6)), atol=1e-13)
    other = pj.Kronecker(a, b) + pj.Kronecker(c, a)
    assert type(other) is lx.AddLinearOperator


def test_hermitian_kronecker_product_plus_identity_is_damped():
    product = pj.Kronecker(tagged(_matrix(3, 3)), tagged(_matrix(2, 2)))
    dense = np.asarray(product.as_matrix())
    damped = product + 0.5 * _identity(product)
    assert_is(damped, DampedKronecker, dense + 0.5 * np.eye(6))
    assert_is(damped + _identity(product), DampedKronecker, dense + 1.5 * np.eye(6))
    assert pj.hermitian_tag in damped.T.tags
    general = pj.Kronecker(_matrix(3, 3), _matrix(2, 2))
    assert type(general + _identity(general)) is lx.AddLinearOperator


def test_definite_kronecker_product_stays_so_by_known_signs():
    a, b = definite(_matrix(3, 3)), definite(_matrix(2, 2))
    product = pj.Kronecker(a, b)
    assert lx.is_positive_semidefinite(product)
    assert lx.is_positive_semidefinite(product.damped(0.5))
    assert not lx.is_positive_semidefinite(product.damped(-0.5))
    assert lx.is_positive_semidefinite(product.factored_damped(0.5))
    assert lx.is_negative_semidefinite(-product)
    assert lx.is_positive_semidefinite(pj.Kronecker(-1 * a, -1 * b))
    assert lx.is_positive_semidefinite(product.T)


@pytest.mark.slow
def test_sums_and_products_of_block_diagonal_operators_are_of_blocks():
    a, b = _matrix(3, 2, 2), _matrix(3, 3)
    c, d = _matrix(3, 2, 2, seed=1), _matrix(3, 3, seed=1)
    first, second = pj.BlockDiagonal(a, b), pj.BlockDiagonal(c, d)
    dense, other = np.asarray(first.as_matrix()), np.asarray(second.as_matrix())
    assert_is(first + second, pj.BlockDiagonal, dense + other)
    assert_is(first - second, pj.BlockDiagonal, dense - other)
    assert_is(first @ second, pj.BlockDiagonal, dense @ other)
    shifted = first + 0.5 * _identity(first)
    assert_is(shifted, pj.BlockDiagonal, dense + 0.5 * np.eye(9))
    assert shifted.runs[0].count == 3


def test_neighbouring_equal_blocks_are_one_batch():
    blocks = [lx.MatrixLinearOperator(_matrix(2, 2, seed=seed)) for seed in range(3)]
    operator = pj.BlockDiagonal(*blocks, _matrix(3, 3), _matrix(2, 3, 3))
    assert [run.count for run in operator.runs] == [3, 3]
    tagged_apart = pj.BlockDiagonal(blocks[0], tagged(_matrix(2, 2)))
    assert [run.count for run in tagged_apart.runs] == [None, None]


def test_batched_operators_are_the_blocks_of_a_block_diagonal_one():
    diagonals = _matrix(3, 2)
    operator = pj.BlockDiagonal(lx.DiagonalLinearOperator(diagonals), batched=True)
    assert_is(operator, pj.BlockDiagonal, np.diag(np.asarray(diagonals).reshape(-1)))
    assert lx.is_diagonal(operator)


@pytest.mark.slow
def test_powers_of_eigenvalues_are_those_of_the_matrix():
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(normal(rng, (5, 5), True))
    values = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    operator = pj.Eigh(values, vectors, tags=lx.positive_semidefinite_tag)
    dense = (vectors * values) @ vectors.conj().T
    root = operator.power(0.5)
    assert lx.is_positive_semidefinite(root)
    assert_is(root @ root, pj.Eigh, dense)
    assert_is(operator.power(3), pj.Eigh, dense @ dense @ dense)
    assert_is(operator.power(-2), pj.Eigh, np.linalg.inv(dense @ dense))
    assert_is(operator + operator.power(2), pj.Eigh, dense + dense @ dense)


def test_definiteness_of_eigenvalues_is_kept_where_signs_are_known():
    tag = lx.positive_semidefinite_tag
    operator = pj.Eigh(jnp.ones(2), jnp.eye(2), tags=tag)
    assert lx.is_positive_semidefinite(2 * operator)
    assert lx.is_negative_semidefinite(-operator)
    assert lx.is_positive_semidefinite(operator + _identity(operator))
    assert not lx.is_positive_semidefinite(operator - _identity(operator))


@pytest.mark.slow
def test_16_bits_become_32():
    half = jnp.ones((2, 2), jnp.bfloat16)
    operators = (
        pj.Kronecker(half, half),
        pj.BlockDiagonal(half, jnp.ones((3, 2, 2), jnp.bfloat16)),
        pj.Eigh(half[0], half),
        pj.Circulant(half[0]),
        pj.Toeplitz(half[0]),
    )
    for operator in operators:
        assert operator.as_matrix().dtype == jnp.float32
        assert (2 * operator).in_structure().dtype == jnp.float32


@pytest.mark.slow
def test_pseudoinverses_leave_out_what_is_below_the_cutoff():
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(normal(rng, (5, 3), True))
    operator = pj.Eigh(np.array([2.0, 0.0, -1.0]), vectors)
    dense = np.asarray(operator.as_matrix())
    assert_is(operator.pseudoinverse(), pj.Eigh, np.linalg.pinv(dense, rcond=1e-10))
    shifted = operator + _identity(operator)
    want = np.linalg.pinv(dense + np.eye(5), rcond=1e-10)
    assert_is(shifted.pseudoinverse(), pj.Eigh, want)
    circulant = pj.Circulant(np.array([1.0, -1.0, 1e-9, 0.0]))
    dense = np.asarray(circulant.as_matrix())
    for rcond in (1e-3, 1e-12):
        want = np.linalg.pinv(dense, rcond=rcond)
        got = circulant.pseudoinverse(rcond)
        np.testing.assert_allclose(got.as_matrix(), want, rtol=1e-6)
        solver = pj.AutoLinearSolver(False, rcond=rcond)
        x = pj.linear_solve(circulant, jnp.arange(4.0), solver).value
        np.testing.assert_allclose(x, want @ np.arange(4.0), rtol=1e-6)


@pytest.mark.slow
def test_circulant_and_toeplitz_sums_and_products_keep_their_class():
    c, d, r = _matrix(5), _matrix(5, seed=1), _matrix(5, seed=2)
    first, second, toeplitz = pj.Circulant(c), pj.Circulant(d), pj.Toeplitz(c, r)
    dense, other, third = (np.asarray(op.as_matrix()) for op in (first, second, toeplitz))
    assert_is(first + second, pj.Circulant, dense + other)
    assert_is(first @ second, pj.Circulant, dense @ other)
    assert_is(first - 2 * _identity(first), pj.Circulant, dense - 2 * np.eye(5))
    assert_is(toeplitz + second, pj.Toeplitz, third + other)
    assert_is(second + toeplitz, pj.Toeplitz, other + third)
    assert_is(toeplitz - toeplitz.T, pj.Toeplitz, third - third.T)
    assert_is(1j * toeplitz, pj.Toeplitz, 1j * third)
    assert_is(toeplitz + 2 * _identity(toeplitz), pj.Toeplitz, third + 2 * np.eye(5))
    diagonal = lx.DiagonalLinearOperator(c)
    for operator, matrix in ((first, dense), (toeplitz, third)):
        total = operator + diagonal
        np.testing.assert_allclose(total.as_matrix(), matrix + np.diag(np.asarray(c)))


def test_nearest_circulant_matrix_is_the_one_of_the_least_squares_problem():
    toeplitz = pj.Toeplitz(_matrix(5), _matrix(5, seed=1))
    dense = np.asarray(toeplitz.as_matrix())
    basis = [np.roll(np.eye(5), k, axis=0).reshape(-1) for k in range(5)]
    want, *_ = np.linalg.lstsq(np.stack(basis, axis=1), dense.reshape(-1))
    np.testing.assert_allclose(toeplitz.circulant().column, want, atol=1e-13)
