"""Preconditioners as matrices, against dense NumPy."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


PSD = lx.positive_semidefinite_tag
SIZE = 7

dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def _entries(seed, shape, dtype=float):
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


def _definite(dtype=float, seed=0, size=SIZE):
    factor = _entries(seed, (size, size), dtype)
    return factor @ factor.conj().T + np.eye(size)


def _general(dtype=float):
    return _entries(1, (SIZE, SIZE), dtype) + 3 * np.eye(SIZE)


def _stored(matrix):
    row, col = np.nonzero(np.ones(matrix.shape))
    return matrix[row, col], row, col, matrix.shape


def _sparse(matrix):
    return pj.SparseLinearOperator(_stored(matrix))


def _blocks(matrix, block):
    """The inverse of the block diagonal part."""
    out = np.zeros_like(matrix)
    for first in range(0, len(matrix), block):
        part = slice(first, first + block)
        out[part, part] = np.linalg.inv(matrix[part, part])
    return out


def _making(name, matrix):
    operator = lx.MatrixLinearOperator(matrix, PSD)
    return {
        "jacobi": lambda: pj.jacobi(operator),
        "block_jacobi": lambda: pj.block_jacobi(operator, 3),
        "chebyshev": lambda: pj.chebyshev(operator, 3),
        "nystrom": lambda: pj.nystrom(operator, 3, jax.random.key(0), 0.1),
        "incomplete_cholesky": lambda: pj.incomplete_cholesky(_stored(matrix)),
    }[name]()


NAMES = ["jacobi", "block_jacobi", "chebyshev", "nystrom", "incomplete_cholesky"]


@functools.cache
def _matrices(name, dtype):
    """Those of P, Pᵀ and conj(P), the last from the other functions of lineax as well."""

    @jit
    def matrices(matrix):
        operator = _making(name, matrix)
        materialised = lx.materialise(lx.linearise(operator))
        transpose, conjugate = operator.transpose(), lx.conj(operator)
        operators = operator, transpose, conjugate, materialised
        mvs = jax.vmap(operator.mv, 1, 1)(jnp.eye(SIZE, dtype=dtype))
        return [op.as_matrix() for op in operators], mvs, lx.diagonal(operator)

    return matrices(_definite(dtype))


@pytest.mark.default("*-complex")
@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("name", NAMES)
def test_preconditioner_of_a_definite_operator_is_definite(name, dtype):
    (matrix, *_), _, _ = _matrices(name, dtype)
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-13)
    assert np.linalg.eigvalsh(matrix)[0] > 0


@pytest.mark.default("*-complex")
@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("name", NAMES)
def test_transpose_conjugate_and_product_are_those_of_the_matrix(name, dtype):
    (matrix, transpose, conjugate, materialised), mvs, diagonal = _matrices(name, dtype)
    close = lambda got, want: np.testing.assert_allclose(got, want, atol=1e-13)
    close(transpose, matrix.T)
    close(conjugate, matrix.conj())
    close(materialised, matrix)
    close(mvs, matrix)
    close(diagonal, np.diag(matrix))


@pytest.mark.parametrize("name", NAMES)
def test_preconditioner_of_a_definite_operator_is_tagged(name):
    tagged = []

    def trace(matrix):
        operator = _making(name, matrix)
        tagged.extend([operator, operator.transpose(), lx.conj(operator)])

    jax.eval_shape(trace, _definite())
    assert all(map(lx.is_positive_semidefinite, tagged))
    assert all(map(lx.is_symmetric, tagged))


@pytest.mark.default("_sparse-complex")
@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("make", [_sparse, lx.MatrixLinearOperator])
def test_jacobi_is_the_inverse_of_the_diagonal(make, dtype):
    matrix = _general(dtype)
    got = jit(lambda matrix: pj.jacobi(make(matrix)).as_matrix())(matrix)
    np.testing.assert_allclose(got, np.diag(1 / np.diag(matrix)), atol=1e-14)


def test_jacobi_of_a_general_operator_is_not_tagged():
    assert not lx.is_positive_semidefinite(pj.jacobi(_general()))


def test_jacobi_leaves_unknowns_with_a_zero_on_the_diagonal_alone():
    operator = pj.jacobi(np.array([[0.0, 1.0], [1.0, 4.0]]))
    np.testing.assert_array_equal(operator.as_matrix(), np.diag([1.0, 0.25]))


def test_jacobi_of_absolute_values_is_positive_definite():
    operator = pj.jacobi(np.diag([2.0, -4.0, 0.0]), absolute=True)
    np.testing.assert_array_equal(operator.as_matrix(), np.diag([0.5, 0.25, 1.0]))
    assert lx.is_positive_semidefinite(operator)


def test_jacobi_keeps_the_tree_of_the_vectors():
    function = lambda tree: {"a": 2 * tree["a"], "b": (4 * tree["b"][0],)}
    structure = jax.eval_shape(lambda: {"a": jnp.zeros(2), "b": (jnp.zeros((1, 2)),)})
    operator = pj.jacobi(lx.FunctionLinearOperator(function, structure))
    out = operator.mv({"a": jnp.ones(2), "b": (jnp.ones((1, 2)),)})
    np.testing.assert_array_equal(out["a"], [0.5, 0.5])
    np.testing.assert_array_equal(out["b"][0], [[0.25, 0.25]])


@pytest.mark.default("3-_sparse-complex", "10-MatrixLinearOperator-complex")
@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("make", [_sparse, lx.MatrixLinearOperator])
@pytest.mark.parametrize("block", [1, 3, 10])
def test_block_jacobi_inverts_the_diagonal_blocks(make, block, dtype):
    matrix = _general(dtype)
    got = jit(lambda matrix: pj.block_jacobi(make(matrix), block).as_matrix())(matrix)
    np.testing.assert_allclose(got, _blocks(matrix, block), atol=1e-13)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_block_jacobi_of_a_definite_operator_inverts_the_blocks(dtype):
    (got, *_), _, _ = _matrices("block_jacobi", dtype)
    np.testing.assert_allclose(got, _blocks(_definite(dtype), 3), atol=1e-13)


def test_block_jacobi_replaces_a_singular_block_by_its_diagonal():
    matrix = np.diag([1.0, 1.0, 2.0, 4.0])
    matrix[0, 1] = matrix[1, 0] = 1.0
    got = jit(lambda matrix: pj.block_jacobi(matrix, 2).as_matrix())(matrix)
    np.testing.assert_array_equal(got, np.diag([1.0, 1.0, 0.5, 0.25]))


def test_block_jacobi_of_a_symmetric_operator_is_symmetric():
    matrix = _general() + _general().T
    tags = []

    def trace(matrix):
        operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        tags.append(pj.block_jacobi(operator, 3).tags)

    jax.eval_shape(trace, matrix)
    assert tags == [frozenset({lx.symmetric_tag})]


@pytest.mark.default("4-complex")
@pytest.mark.ci("*")
@dtypes
@pytest.mark.parametrize("degree", [0, 1, 4])
def test_chebyshev_is_the_shifted_chebyshev_polynomial(degree, dtype):
    matrix = _definite(dtype)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    lower, upper = 2.0, 1.1 * eigenvalues[-1]
    make = lambda matrix: lx.MatrixLinearOperator(matrix, PSD)
    make_p = lambda matrix: pj.chebyshev(make(matrix), degree, lower, upper)
    got = jit(lambda matrix: make_p(matrix).as_matrix())(matrix)
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    t = np.polynomial.Chebyshev.basis(degree + 1)
    residual = t((middle - eigenvalues) / half) / t(middle / half)
    want = (vectors * ((1 - residual) / eigenvalues)) @ vectors.conj().T
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_default_bounds_of_chebyshev_hold_the_largest_eigenvalue(dtype):
    bound = lambda matrix: pj.chebyshev(lx.MatrixLinearOperator(matrix, PSD)).upper
    matrices = np.stack([_definite(dtype, seed, size=25) for seed in range(20)])
    got = jit(jax.vmap(bound))(matrices)
    largest = np.linalg.eigvalsh(matrices)[:, -1]
    assert np.all(largest <= got)
    assert np.all(got <= 1.5 * largest)


@functools.partial(jit, static_argnums=1)
def _nystrom_matrix(matrix, rank, shift):
    operator = lx.MatrixLinearOperator(matrix, PSD)
    return pj.nystrom(operator, rank, jax.random.key(0), shift).as_matrix()


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_nystrom_of_full_rank_is_the_inverse_up_to_a_factor(dtype):
    matrix, shift = _definite(dtype), 0.5
    got = _nystrom_matrix(matrix, SIZE, shift)
    product = got @ (matrix + shift * np.eye(SIZE))
    factor = product[0, 0].real
    np.testing.assert_allclose(product, factor * np.eye(SIZE), atol=1e-10 * factor)


def test_nystrom_bounds_the_condition_of_a_fast_spectrum():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    matrix = (basis * 0.5 ** np.arange(40)) @ basis.T
    shift = 1e-4
    shifted = matrix + shift * np.eye(40)
    got = _nystrom_matrix((matrix + matrix.T) / 2, 20, shift)
    eigenvalues = np.linalg.eigvals(got @ shifted).real
    assert np.linalg.cond(shifted) > 9000
    assert eigenvalues.max() / eigenvalues.min() < 5


@pytest.mark.parametrize("rank", [0, 2])
def test_nystrom_of_more_columns_than_the_rank_stays_definite(rank):
    factor = _entries(3, (SIZE, rank))
    got = _nystrom_matrix(factor @ factor.T, 5, 0.0)
    assert np.linalg.eigvalsh(got)[0] > 0


def _untagged():
    return lx.MatrixLinearOperator(np.eye(3))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pj.jacobi(np.ones((3, 2))), ValueError, "needs a square one"),
        (lambda: pj.block_jacobi(np.eye(3), 0), ValueError, "It is at least 1"),
        (lambda: pj.block_jacobi(np.eye(3), 1.5), TypeError, "Pass a Python integer"),
        (lambda: pj.block_jacobi(np.ones((3, 2)), 1), ValueError, "a square one"),
        (lambda: pj.chebyshev(_untagged()), ValueError, "positive semidefinite oper"),
        (
            lambda: pj.chebyshev(lx.MatrixLinearOperator(np.eye(3), PSD), -1),
            ValueError,
            "It is at least 0",
        ),
        (
            lambda: pj.chebyshev(lx.MatrixLinearOperator(np.eye(3), PSD), 2, 2.0, 1.0),
            ValueError,
            "0 < lower < upper",
        ),
        (
            lambda: pj.nystrom(_untagged(), 2, jax.random.key(0)),
            ValueError,
            "positive semidefinite oper",
        ),
        (
            lambda: pj.nystrom(_untagged(), 0, jax.random.key(0)),
            ValueError,
            "It is at least 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()
