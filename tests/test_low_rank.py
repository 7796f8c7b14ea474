"""`LowRankUpdate`: A + U C Vᴴ by its parts, against the dense sum of NumPy."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


PSD, NSD = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag
SIZE, RANK = 5, 2
DTYPES = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def normal(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


def parts(dtype, rows=SIZE, cols=SIZE):
    shapes = (rows, cols), (rows, RANK), (cols, RANK), (RANK, RANK)
    return [normal(seed, shape, dtype) for seed, shape in enumerate(shapes)]


def dense(a, u, v, c):
    return a + u @ c @ v.conj().T


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@DTYPES
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (6, 4), (3, 5)])
def test_products_and_matrix_are_those_of_the_dense_sum(dtype, shape):
    given = parts(dtype, *shape)
    operator, expected = pj.LowRankUpdate(*given), dense(*given)
    x, y = normal(8, shape[1:], dtype), normal(9, shape[:1], dtype)
    close(operator.mv(jnp.asarray(x)), expected @ x)
    close(operator.as_matrix(), expected)
    close(operator.transpose().as_matrix(), expected.T)
    close(operator.T.mv(jnp.asarray(y)), expected.T @ y)
    close(lx.conj(operator).as_matrix(), expected.conj())
    close(lx.materialise(lx.linearise(operator)).as_matrix(), expected)


@DTYPES
def test_bands_are_those_of_the_dense_sum(dtype):
    given = parts(dtype)
    operator, expected = pj.LowRankUpdate(*given), dense(*given)
    close(lx.diagonal(operator), np.diag(expected))
    for band, offset in zip(lx.tridiagonal(operator), (0, -1, 1), strict=True):
        close(band, np.diag(expected, offset))


@DTYPES
def test_what_is_left_out_is_u_and_the_identity(dtype):
    a, u, v, c = parts(dtype)
    close(pj.LowRankUpdate(a, u).as_matrix(), a + u @ u.conj().T)
    close(pj.LowRankUpdate(a, u, v).as_matrix(), a + u @ v.conj().T)
    close(pj.LowRankUpdate(a, u, None, c).as_matrix(), a + u @ c @ u.conj().T)


@DTYPES
def test_multiples_are_updates(dtype):
    given = parts(dtype)
    operator = pj.LowRankUpdate(*given)
    for multiple, factor in ((3.0 * operator, 3), (operator / 2.0, 0.5), (-operator, -1)):
        assert isinstance(multiple, pj.LowRankUpdate)
        close(multiple.as_matrix(), factor * dense(*given))
    plain = 3.0 * pj.LowRankUpdate(given[0], given[1])
    close(plain.as_matrix(), 3 * (given[0] + given[1] @ given[1].conj().T))


@pytest.mark.slow  # a second
def test_vectors_may_be_pytrees():
    structure = jax.eval_shape(lambda: {"a": jnp.zeros(2), "b": jnp.zeros((3, 1))})
    scale = lambda tree: {"a": 2 * tree["a"], "b": 3 * tree["b"]}
    a = lx.FunctionLinearOperator(scale, structure)
    u = normal(0, (SIZE, RANK), float)
    operator = pj.LowRankUpdate(a, u)
    x = normal(1, SIZE, float)
    image = operator.mv({"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2:, None])})
    expected = np.diag([2.0, 2, 3, 3, 3]) + u @ u.T
    close(jnp.concatenate([image["a"], image["b"][:, 0]]), expected @ x)
    close(operator.as_matrix(), expected)


_DIAGONAL = lx.DiagonalLinearOperator(jnp.arange(1.0, SIZE + 1))
_POSITIVE = lx.TaggedLinearOperator(_DIAGONAL, PSD)
_NEGATIVE = lx.TaggedLinearOperator(-_DIAGONAL, NSD)
_U, _V = (jnp.asarray(normal(seed, (SIZE, RANK), float)) for seed in (0, 1))


def _core(*tags):
    return lx.MatrixLinearOperator(jnp.eye(RANK), tags)


def test_it_is_definite_where_the_parts_are():
    of = lambda *given: pj.LowRankUpdate(*given)
    positive = [of(_POSITIVE, _U), of(_POSITIVE, _U, None, _core(PSD))]
    positive += [2.0 * positive[0], -of(_NEGATIVE, _U, None, _core(NSD))]
    positive += [positive[0].T, lx.conj(positive[0])]
    negative = [of(_NEGATIVE, _U, None, _core(NSD)), -positive[0]]
    assert all(map(lx.is_positive_semidefinite, positive))
    assert all(map(lx.is_negative_semidefinite, negative))
    assert all(map(lx.is_symmetric, positive + negative))
    unknown = [of(_DIAGONAL, _U), of(_POSITIVE, _U, _V), of(_NEGATIVE, _U)]
    unknown += [of(_POSITIVE, _U, None, jnp.eye(RANK)), of(_POSITIVE, _U, _U)]
    unknown += [of(_POSITIVE, _U, None, _core(NSD))]
    assert not any(map(lx.is_positive_semidefinite, unknown))
    assert not any(map(lx.is_negative_semidefinite, unknown))


def test_it_is_symmetric_or_hermitian_where_the_parts_are():
    symmetric = lx.symmetric_tag
    core = lx.MatrixLinearOperator(jnp.array([[0.0, 1], [1, 0]]), symmetric)
    assert lx.is_symmetric(pj.LowRankUpdate(_DIAGONAL, _U, None, core))
    assert not lx.is_symmetric(pj.LowRankUpdate(_DIAGONAL, _U, _V))
    a = lx.MatrixLinearOperator(jnp.eye(SIZE, dtype=complex), pj.hermitian_tag)
    hermitian = pj.LowRankUpdate(a, jnp.asarray(1j * np.asarray(_U)))
    assert pj.hermitian_tag in hermitian.tags
    assert not lx.is_symmetric(hermitian)
    matrix = hermitian.as_matrix()
    close(matrix, matrix.conj().T)


def test_it_is_taken_for_no_other_structure():
    checks = (
        lx.is_diagonal,
        lx.is_tridiagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.has_unit_diagonal,
    )
    assert not any(check(pj.LowRankUpdate(_DIAGONAL, _U)) for check in checks)


def test_parts_take_the_dtype_of_the_operator():
    a = lx.DiagonalLinearOperator(jnp.ones(SIZE, complex))
    assert pj.LowRankUpdate(a, _U).as_matrix().dtype == complex
    narrow = lx.DiagonalLinearOperator(jnp.ones(SIZE, jnp.float32))
    assert pj.LowRankUpdate(narrow, np.ones((SIZE, 1))).U.dtype == jnp.float32


@pytest.mark.untyped
def test_bad_parts_are_told():
    of = pj.LowRankUpdate
    with pytest.raises(ValueError, match=r"For one column, pass `u\[:, None\]`"):
        of(_DIAGONAL, jnp.ones(SIZE))
    with pytest.raises(ValueError, match=r"`LowRankUpdate\(U=...\)` got an array"):
        of(_DIAGONAL, jnp.ones((SIZE + 1, 1)))
    with pytest.raises(ValueError, match=r"`LowRankUpdate\(V=...\)` got an array"):
        of(_DIAGONAL, _U, jnp.ones((SIZE - 1, RANK)))
    with pytest.raises(ValueError, match="the same number of columns"):
        of(_DIAGONAL, _U, jnp.ones((SIZE, RANK + 1)))
    with pytest.raises(ValueError, match=r"`LowRankUpdate\(C=...\)` got shape \(3, 3\)"):
        of(_DIAGONAL, _U, None, jnp.eye(3))
    with pytest.raises(ValueError, match=r"takes U for V, but A has shape \(4, 5\)"):
        of(jnp.ones((4, 5)), jnp.ones((4, 2)))
    with pytest.raises(TypeError, match="complex numbers beside a real A"):
        of(_DIAGONAL, _U.astype(complex))
    with pytest.raises(TypeError, match="complex numbers beside a real A"):
        1j * of(_DIAGONAL, _U)
    with pytest.raises(TypeError, match=r"`LowRankUpdate\(operator=...\)` got a str"):
        of("A", _U)
    structure = jax.eval_shape(lambda: (jnp.zeros(1), jnp.zeros(1, complex)))
    mixed = lx.FunctionLinearOperator(lambda tree: tree, structure)
    with pytest.raises(ValueError, match="real and complex leaves"):
        of(mixed, jnp.ones((2, 1)))
