"""Determinants of structured operators, from their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import jit
from structured_cases import CASES, path_of
from truth import central_difference

import pseudojvp as pj


SQUARE = [name for name, case in CASES.items() if True in case.well_posed]
# Whose vectors move off orthonormality, by which no determinant of eigenvalues moves.
VALUES_ALONE = ("eigh", "eigh-shifted")


def _pseudo_logdet(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return np.sum(np.log(values[values > 1e-9 * values[0]]))


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("name", [name for name in SQUARE if name not in VALUES_ALONE])
@pytest.mark.default("circulant-complex")
@pytest.mark.ci("*")
def test_determinant_and_derivatives_are_those_of_the_dense_form(name, is_complex):
    path = path_of(name, is_complex)
    slogdet = lambda t: pj.slogdet(path.operator(t), throw=False)
    logdet = lambda t: slogdet(t).logabsdet

    @jit
    def compute(t):
        slope = jax.grad(logdet)
        turn = jax.jvp(lambda t: slogdet(t).sign, (t,), (1.0,))[1]
        return slogdet(t), slope(t), jax.jvp(slope, (t,), (1.0,))[1], turn

    (sign, size), slope, curvature, turn = compute(0.0)
    matrix = path.matrix(0.0)
    first, second = (central_difference(path.matrix, order, 0.05) for order in (1, 2))
    inverse = np.linalg.inv(matrix)
    want_sign, want_size = np.linalg.slogdet(matrix)
    trace = np.trace(inverse @ first)
    squared = np.trace(inverse @ second - inverse @ first @ inverse @ first)
    np.testing.assert_allclose(sign, want_sign, rtol=1e-12)
    np.testing.assert_allclose(size, want_size, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slope, trace.real, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(curvature, squared.real, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(turn, 1j * want_sign * trace.imag, atol=1e-11)


@pytest.mark.parametrize("name", VALUES_ALONE)
@pytest.mark.ci("eigh", "eigh-shifted")
def test_determinant_of_eigenvalues_moves_with_them_alone(name):
    path = path_of(name, True)
    still = path._replace(slope=(path.slope[0], 0 * path.slope[1]))
    logdet = lambda t: pj.slogdet(still.operator(t)).logabsdet
    matrix, first = still.matrix(0.0), central_difference(still.matrix, 1, 0.05)
    want = np.trace(np.linalg.inv(matrix) @ first).real
    np.testing.assert_allclose(logdet(0.0), np.linalg.slogdet(matrix)[1], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(logdet)(0.0), want, rtol=1e-11)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if False in case.well_posed]
)
@pytest.mark.ci("*")
def test_pseudo_determinant_is_the_product_of_nonzero_singular_values(name):
    path = path_of(name, True)
    matrix = path.matrix(0.0)
    sign, size = pj.slogdet(path.operator(0.0), pj.AutoLinearSolver(False))
    np.testing.assert_allclose(size, _pseudo_logdet(matrix), rtol=1e-11, atol=1e-11)
    if np.linalg.matrix_rank(matrix, tol=1e-9) == matrix.shape[0] == matrix.shape[1]:
        np.testing.assert_allclose(sign, np.linalg.slogdet(matrix)[0], rtol=1e-11)
    else:
        assert sign == 1


@pytest.mark.slow
def test_determinant_of_a_batch_of_products_is_that_of_each():
    rng = np.random.default_rng(0)
    a, b = (
        jnp.asarray(rng.standard_normal((3, 2, 2))),
        jnp.asarray(rng.standard_normal((3, 3, 3))),
    )
    sign, size = jax.vmap(lambda a, b: pj.slogdet(pj.Kronecker(a, b)))(a, b)
    want = np.linalg.slogdet(
        np.stack([np.kron(*pair) for pair in zip(a, b, strict=True)])
    )
    np.testing.assert_allclose(sign, want[0])
    np.testing.assert_allclose(size, want[1], rtol=1e-12)


@pytest.mark.parametrize("vectors", [2 * np.eye(2), np.full((2, 2), np.nan)])
def test_determinant_by_vectors_that_are_not_orthonormal_is_nan(vectors):
    of_values = lambda values: pj.slogdet(pj.Eigh(values, vectors), throw=False)
    logdet = lambda values: of_values(values).logabsdet
    values = jnp.array([1.0, 3.0])
    assert np.all(np.isnan(of_values(values)))
    assert np.all(np.isnan(jax.grad(logdet)(values)))
    assert np.isnan(jax.jvp(logdet, (values,), (values,))[1])
    with pytest.raises(Exception, match="not orthonormal"):
        pj.slogdet(pj.Eigh(values, vectors))
