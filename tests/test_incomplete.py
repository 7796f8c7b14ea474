"""`incomplete_cholesky` and `incomplete_lu` against the textbook loops in NumPy."""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import jit

import pseudojvp as pj


SIZE = 9

factorisers = pytest.mark.parametrize(
    "factorise", [pj.incomplete_cholesky, pj.incomplete_lu], ids=["cholesky", "lu"]
)
dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def _matrix(dtype=float, seed=0, size=SIZE):
    """Sparse, diagonally dominant, with a pattern that is not symmetric."""
    rng = np.random.default_rng(seed)
    entries = rng.standard_normal((size, size))
    if dtype is complex:
        entries = entries + 1j * rng.standard_normal((size, size))
    kept = rng.random((size, size)) < 0.35
    return np.where(kept, entries, 0) + 6 * np.eye(size)


def _hermitian(dtype=float, seed=0):
    matrix = _matrix(dtype, seed)
    return matrix + matrix.conj().T


def _stored(matrix, pattern=None):
    row, col = np.nonzero(matrix if pattern is None else pattern)
    return matrix[row, col], row, col, matrix.shape


def _ilu(matrix):
    """L and U of ILU(0), row by row (Saad, algorithm 10.4)."""
    out, pattern = matrix.copy(), matrix != 0
    size = len(out)
    for i in range(1, size):
        for k in range(i):
            if pattern[i, k]:
                out[i, k] /= out[k, k]
                for j in range(k + 1, size):
                    if pattern[i, j]:
                        out[i, j] -= out[i, k] * out[k, j]
    return np.tril(out, -1) + np.eye(size), np.triu(out)


def _ic(matrix):
    """L of IC(0) with L Lᴴ near A, column by column."""
    out, size = np.tril(matrix), len(matrix)
    pattern = out != 0
    for k in range(size):
        out[k, k] = np.sqrt(out[k, k])
        out[k + 1 :, k] /= out[k, k]
        for j in range(k + 1, size):
            for i in range(j, size):
                if pattern[i, j]:
                    out[i, j] -= out[i, k] * out[j, k].conj()
    return out


def _compiled(factorise, pattern, batched=False, **options):
    """The matrices of P and Pᵀ and the shift, for traced numbers on a known pattern."""
    _, row, col, shape = _stored(pattern, pattern != 0)

    def matrices(matrix):
        operator = factorise((matrix[row, col], row, col, shape), **options)
        return operator.as_matrix(), operator.transpose().as_matrix(), operator.shift

    return jit(jax.vmap(matrices)) if batched else jit(matrices)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_incomplete_lu_is_the_row_by_row_elimination_on_the_pattern(dtype):
    matrix = _matrix(dtype)
    lower, upper = _ilu(matrix)
    assert np.abs(lower @ upper - matrix).max() > 0.01  # there is fill to leave out
    got, transpose, shift = _compiled(pj.incomplete_lu, matrix)(matrix)
    np.testing.assert_allclose(got, np.linalg.inv(lower @ upper), atol=1e-14)
    np.testing.assert_allclose(transpose, got.T, atol=1e-14)
    assert shift == 0


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_incomplete_cholesky_is_the_column_by_column_one_on_the_pattern(dtype):
    matrix = _hermitian(dtype)
    lower = _ic(matrix)
    assert np.abs(lower @ lower.conj().T - matrix).max() > 0.01
    got, transpose, shift = _compiled(pj.incomplete_cholesky, matrix)(matrix)
    np.testing.assert_allclose(got, np.linalg.inv(lower @ lower.conj().T), atol=1e-14)
    np.testing.assert_allclose(transpose, got.T, atol=1e-14)
    assert shift == 0


@pytest.mark.default("lu")
@pytest.mark.ci("*")
@factorisers
def test_full_pattern_gives_the_inverse(factorise):
    matrix = _hermitian() + 0.1
    got, _, _ = _compiled(factorise, matrix)(matrix)
    np.testing.assert_allclose(got, np.linalg.inv(matrix), atol=1e-14)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_sweeps_are_the_truncated_series_of_each_factor(dtype):
    matrix = _matrix(dtype)
    lower, upper = _ilu(matrix)
    pivots = np.diag(upper)
    strict_lower, strict_upper = lower - np.eye(SIZE), upper / pivots[:, None]
    strict_upper = strict_upper - np.eye(SIZE)
    series = lambda n: np.eye(SIZE) - n + n @ n
    want = series(strict_upper) @ np.diag(1 / pivots) @ series(strict_lower)
    got, transpose, _ = _compiled(pj.incomplete_lu, matrix, sweeps=2)(matrix)
    np.testing.assert_allclose(got, want, atol=1e-14)
    np.testing.assert_allclose(transpose, got.T, atol=1e-14)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_incomplete_cholesky_with_sweeps_is_positive_definite(dtype):
    matrix = _hermitian(dtype)
    got, _, _ = _compiled(pj.incomplete_cholesky, matrix, sweeps=1)(matrix)
    np.testing.assert_allclose(got, got.conj().T, atol=1e-14)
    assert np.linalg.eigvalsh(got)[0] > 0


def _indefinite():
    return _hermitian() - 9 * np.eye(SIZE)


def _laplacian_of_a_ring():
    ring = np.roll(np.eye(SIZE), 1, axis=0)
    return 2 * np.eye(SIZE) - ring - ring.T  # singular


def _zero_diagonal():
    ring = np.roll(np.eye(SIZE), 1, axis=0)
    return 3 * ring + ring.T + 1e-30 * np.eye(SIZE)


def _empty_row():
    matrix = _hermitian()
    matrix[3] = matrix[:, 3] = 0
    return matrix


@pytest.mark.default("_zero_diagonal")
@pytest.mark.ci("*")
@pytest.mark.parametrize("make", [_indefinite, _zero_diagonal])
def test_incomplete_cholesky_shifts_until_all_pivots_are_positive(make):
    matrix = make()
    got, _, shift = _compiled(pj.incomplete_cholesky, matrix)(matrix)
    assert shift > 0
    assert np.linalg.eigvalsh(got)[0] > 0


def test_incomplete_cholesky_of_the_shifted_matrix_is_what_the_shift_says():
    matrix = _laplacian_of_a_ring() - 0.1 * np.eye(SIZE)
    got, _, shift = _compiled(pj.incomplete_cholesky, matrix)(matrix)
    shifted = matrix + float(shift) * np.diag(np.abs(matrix).sum(axis=1))
    lower = _ic(shifted)
    assert shift > 0
    np.testing.assert_allclose(got, np.linalg.inv(lower @ lower.T), atol=1e-10)


@pytest.mark.default("-1")
@pytest.mark.ci("*")
@pytest.mark.parametrize("sign", [1, -1])
def test_incomplete_lu_shifts_away_from_zero_pivots(sign):
    matrix = sign * _zero_diagonal()
    got, _, shift = _compiled(pj.incomplete_lu, matrix)(matrix)
    assert shift > 0
    assert np.all(np.isfinite(got))


@pytest.mark.default("cholesky")
@pytest.mark.ci("*")
@factorisers
def test_an_empty_row_is_an_identity_row(factorise):
    matrix = _empty_row()
    got, _, shift = _compiled(factorise, matrix)(matrix)
    assert shift == 0
    np.testing.assert_allclose(got[3], np.eye(SIZE)[3], atol=1e-15)


def test_members_of_a_batch_have_shifts_of_their_own():
    good, bad = _hermitian(), _indefinite()
    compiled = _compiled(pj.incomplete_cholesky, good, batched=True)
    got, _, shift = compiled(np.stack([good, bad]))
    lower = _ic(good)
    assert shift[0] == 0 < shift[1]
    np.testing.assert_allclose(got[0], np.linalg.inv(lower @ lower.T), atol=1e-14)


def _bcoo(matrix):
    """With two parts for each entry, and padding."""
    data, row, col, _ = _stored(matrix)
    index = np.stack([np.append(row, [SIZE] * 2), np.append(col, [SIZE] * 2)], axis=1)
    index = np.concatenate([index, index])
    data = np.append(data, [7.0, 7.0])
    return jsparse.BCOO((np.concatenate([0.25 * data, 0.75 * data]), index), shape=(9, 9))


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "convert",
    [
        _bcoo,
        scipy.sparse.csr_array,
        scipy.sparse.coo_matrix,
        jsparse.BCSR.fromdense,
        lambda matrix: pj.SparseLinearOperator(_stored(matrix)),
        lambda matrix: lx.TaggedLinearOperator(
            pj.SparseLinearOperator(_stored(matrix)), lx.symmetric_tag
        ),
    ],
    ids=["BCOO", "csr", "coo", "BCSR", "operator", "tagged"],
)
def test_every_sparse_format_is_taken(convert):
    matrix = _hermitian()
    got = pj.incomplete_cholesky(convert(matrix)).mv(jnp.ones(SIZE))
    lower = _ic(matrix)
    want = np.linalg.solve(lower @ lower.T, np.ones(SIZE))
    np.testing.assert_allclose(got, want, atol=1e-13)


def test_no_tracer_is_differentiated():
    data, row, col, shape = _stored(_hermitian())
    entry = lambda data: pj.incomplete_lu((data, row, col, shape)).mv(jnp.ones(SIZE))[0]
    np.testing.assert_array_equal(jax.jit(jax.grad(entry))(data), np.zeros(data.size))


@factorisers
def test_dense_operators_are_refused(factorise):
    for dense in (jnp.eye(3), lx.MatrixLinearOperator(jnp.eye(3))):
        with pytest.raises(TypeError, match="the stored entries of A"):
            factorise(dense)


@factorisers
def test_operators_that_are_not_square_are_refused(factorise):
    with pytest.raises(ValueError, match="needs a square one"):
        factorise(_stored(np.ones((3, 2))))


@factorisers
def test_traced_indices_are_refused(factorise):
    data, row, col, shape = _stored(_hermitian())
    with pytest.raises(ValueError, match="got traced indices"):
        jax.jit(lambda row: factorise((data, row, col, shape)).mv(jnp.ones(SIZE)))(row)


@factorisers
def test_a_negative_number_of_sweeps_is_refused(factorise):
    with pytest.raises(ValueError, match="It is at least 0"):
        factorise(_stored(_hermitian()), sweeps=-1)
