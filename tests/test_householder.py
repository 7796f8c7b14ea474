"""Householder reflectors, and the columns of Q, against LAPACK's Q and the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pseudojvp._kernel.householder import Reflectors


DTYPES = ("float32", "float64", "complex64", "complex128")
_dtypes = pytest.mark.parametrize("dtype", DTYPES)
_counts = pytest.mark.parametrize("count", [1, 8, 9])


def _random(rng, dtype, *shape):
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def _hostile(dtype):
    """Full rank, zero columns, rank one, graded, triangular already, zero."""
    rng = np.random.default_rng(0)
    full = _random(rng, dtype, 7, 4)
    grades = np.logspace(0, 30, 4).astype(np.finfo(dtype).dtype)
    rank_one = np.outer(full[:, 0], full[0])
    matrices = full, full * [0, 1, 0, 1], rank_one, full * grades, np.triu(full), 0 * full
    return np.stack(matrices).astype(dtype)


def _apply(matrix, short, long):
    """R, and Q c and Q^H v for the rows of `short` and `long`."""
    reflectors = Reflectors.of(matrix)
    q_short, qh_long = jax.vmap(reflectors.mv), jax.vmap(reflectors.adjoint_mv)
    return reflectors.r, q_short(short), qh_long(long)


_applied = jax.jit(jax.vmap(_apply))


def _applied_to_hostile(dtype, count):
    matrices, rng = _hostile(dtype), np.random.default_rng(1)
    short, long = (_random(rng, dtype, len(matrices), count, k) for k in (4, 7))
    return matrices, short, long, *map(np.asarray, _applied(matrices, short, long))


@pytest.mark.default("8-complex128", "9-float32")
@pytest.mark.ci("1-float64", "9-complex64")
@_dtypes
@_counts
def test_products_are_those_of_lapacks_q(dtype, count):
    matrices, short, long, _, q_short, qh_long = _applied_to_hostile(dtype, count)
    q = np.stack([scipy.linalg.qr(matrix, mode="economic")[0] for matrix in matrices])
    assert q_short.dtype == dtype
    bound = 50 * np.finfo(dtype).eps
    assert np.abs(q_short - short @ q.mT).max() <= bound
    assert np.abs(qh_long - long @ q.conj()).max() <= bound


@pytest.mark.default("complex128")
@pytest.mark.ci("float32")
@_dtypes
def test_many_products_with_one_factorisation_are_those_of_lapacks_q(dtype):
    """As many vectors as columns: Q itself is formed."""
    matrices, short, long, *_ = _applied_to_hostile(dtype, 9)
    applied = jax.jit(_apply)
    for i, matrix in enumerate(matrices):
        q = scipy.linalg.qr(matrix, mode="economic")[0]
        _, q_short, qh_long = applied(matrix, short[i], long[i])
        bound = 50 * np.finfo(dtype).eps
        assert np.abs(q_short - short[i] @ q.T).max() <= bound
        assert np.abs(qh_long - long[i] @ q.conj()).max() <= bound


@pytest.mark.default("8-complex128")
@pytest.mark.ci("1-float32", "9-float64")
@_dtypes
@_counts
def test_products_with_r_give_the_matrix_to_working_precision(dtype, count):
    matrix = _hostile(dtype)[0]

    @jax.jit
    def products(matrix):
        reflectors = Reflectors.of(matrix)
        columns = jnp.tile(reflectors.r, count)  # `count` copies, side by side
        return jax.vmap(reflectors.mv, 1, 1)(columns)

    got = products(matrix)
    error = np.abs(got - np.tile(matrix, count)).max()
    assert error <= 50 * np.finfo(dtype).eps


@pytest.mark.default("complex128")
@pytest.mark.ci("*")
@_dtypes
def test_adjoint_is_the_adjoint(dtype):
    _, short, long, _, q_short, qh_long = _applied_to_hostile(dtype, 8)
    left = np.sum(long.conj() * q_short, axis=-1)
    right = np.sum(qh_long.conj() * short, axis=-1)
    assert np.abs(left - right).max() <= 100 * np.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(3, 0), (0, 0)], ids=str)
def test_no_reflectors_give_the_vector(shape):
    reflectors = Reflectors.of(jnp.zeros(shape))
    np.testing.assert_array_equal(reflectors.mv(jnp.zeros(0)), np.zeros(shape[0]))
