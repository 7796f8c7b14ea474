"""`TruncatedAdjoint`: the series itself, and the bound of its bias."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from test_unrolled import assert_close, positive, vector

import pseudojvp as pj


def cotangents(A, b, ct, solver, adjoint):
    """The solution, and the cotangents of A and b."""

    def solve(A, b):
        return pj.linear_solve(A, b, solver, adjoint=adjoint, throw=False).value

    value, pull = jax.vjp(solve, A, b)
    return value, *pull(ct)


def series(A, scale, terms):
    """N, as a matrix."""
    size = len(A)
    return scale * sum(
        np.linalg.matrix_power(np.eye(size) - scale * A, k) for k in range(terms + 1)
    )


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", [float, complex], ids=["float", "complex"])
def test_the_cotangent_is_the_series_and_within_its_bound(dtype):
    rng = np.random.default_rng(0)
    A = positive(6, rng, dtype, condition=20.0) + 0.3 * jnp.triu(
        jnp.ones((6, 6), dtype), 1
    )
    b, ct = vector(6, rng, dtype), vector(6, rng, dtype)
    scale = 2 / 21
    terms = [0, 1, 5, 20]
    given = jax.jit(
        lambda A, b, ct: [
            cotangents(A, b, ct, pj.LU(), pj.TruncatedAdjoint(k, scale)) for k in terms
        ]
    )(A, b, ct)
    # JAX's cotangents are not conjugated.
    exact = np.linalg.solve(np.array(A).T, ct)
    q = np.linalg.norm(np.eye(6) - scale * np.array(A), 2)
    for k, (value, ct_A, ct_b) in zip(terms, given, strict=True):
        assert_close(value, np.linalg.solve(A, b), rtol=1e-12)
        expected = series(np.array(A), scale, k).T @ ct
        assert_close(ct_b, expected, rtol=1e-12)
        assert_close(ct_A, -np.outer(expected, value), rtol=1e-12)
        bias = np.linalg.norm(ct_b - exact)
        assert bias <= q ** (k + 1) * np.linalg.norm(exact)


SHAPES = [pytest.param((7, 4), id="tall"), pytest.param((4, 7), id="wide")]


@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", SHAPES)
def test_of_other_shapes_it_is_the_series_of_the_normal_equations(shape):
    rng = np.random.default_rng(1)
    A, b = jnp.asarray(rng.standard_normal(shape)), vector(shape[0], rng)
    ct = vector(shape[1], rng)
    values = np.linalg.svd(A, compute_uv=False)
    scale = 2 / (values[0] ** 2 + values[-1] ** 2)
    q = 1 - scale * values[-1] ** 2

    def pull(adjoint):
        return cotangents(A, b, ct, pj.QR(), adjoint)

    terms = [2, 10, 2000]
    given = jax.jit(lambda: [pull(pj.TruncatedAdjoint(k, scale)) for k in terms])()
    value, ct_A, ct_b = pull(pj.ImplicitAdjoint())
    r, g = b - A @ value, np.linalg.pinv(A.T @ A) @ ct
    for k, (_, given_A, given_b) in zip(terms, given, strict=True):
        bias = q ** (k + 1)
        assert np.linalg.norm(given_b - ct_b) <= bias * np.linalg.norm(ct_b) + 1e-10
        by_b = bias * np.linalg.norm(ct_b) * np.linalg.norm(value)
        if shape[0] > shape[1]:
            bound = by_b + 3 * bias * np.linalg.norm(r) * np.linalg.norm(g)
        else:
            lam = np.linalg.pinv(A @ A.T) @ b
            bound = by_b + 3 * bias * np.linalg.norm(lam) * np.linalg.norm(ct)
        assert np.linalg.norm(given_A - ct_A) <= bound + 1e-9


@pytest.mark.slow
def test_forward_mode_is_the_transpose_of_reverse_mode():
    rng = np.random.default_rng(2)
    A, b, ct = positive(5, rng, condition=10.0), vector(5, rng), vector(5, rng)
    t_A, t_b = jnp.asarray(rng.standard_normal((5, 5))), vector(5, rng)
    adjoint = pj.TruncatedAdjoint(3, 0.15)
    solve = lambda A, b: pj.linear_solve(A, b, adjoint=adjoint, throw=False).value
    _, tangent = jax.jvp(solve, (A, b), (t_A, t_b))
    _, ct_A, ct_b = cotangents(A, b, ct, pj.LU(), adjoint)
    pulled = jnp.vdot(ct_A, t_A) + jnp.vdot(ct_b, t_b)
    np.testing.assert_allclose(ct @ tangent, pulled, rtol=1e-12)


@pytest.mark.slow
def test_a_series_that_diverges_is_nan():
    A = 3 * jnp.eye(3)
    _, ct_A, ct_b = cotangents(
        A, jnp.ones(3), jnp.ones(3), pj.LU(), pj.TruncatedAdjoint(5, 1.0)
    )
    assert np.isnan(ct_A).all()
    assert np.isnan(ct_b).all()


@pytest.mark.parametrize("adjoint", [pj.TruncatedAdjoint(3)], ids=["truncated"])
def test_a_second_derivative_is_an_error(adjoint):
    def loss(A):
        return jnp.sum(pj.linear_solve(A, jnp.ones(3), adjoint=adjoint).value)

    twice = jax.grad(lambda A: jnp.sum(jax.grad(loss)(A) ** 2))
    with pytest.raises(ValueError, match="differentiated twice"):
        twice(jnp.eye(3))


def test_bad_settings_are_an_error():
    with pytest.raises(ValueError, match="at least 0"):
        pj.TruncatedAdjoint(-1)
    A, b = jnp.eye(3), jnp.ones(3)
    for front in (pj.lstsq, lambda *a, **k: pj.linear_solve(*a, pj.SVD(), **k)):
        with pytest.raises(ValueError, match="takes A to have full rank"):
            front(A, b, adjoint=pj.TruncatedAdjoint(3))


@pytest.mark.untyped
@pytest.mark.parametrize("make", [pj.TruncatedAdjoint, pj.StochasticAdjoint])
def test_a_scale_that_leaves_no_series_is_an_error_or_nan(make):
    """Zero would be a derivative of zero, without a word."""
    first = 3 if make is pj.TruncatedAdjoint else jax.random.key(0)

    def gradient(scale):
        solve = lambda b: pj.linear_solve(
            jnp.eye(3), b, adjoint=make(first, scale=scale), throw=False
        )
        return jax.grad(lambda b: jnp.sum(solve(b).value))(jnp.ones(3))

    for scale in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="zero or NaN"):
            make(first, scale=scale)
    with pytest.raises(TypeError, match="Pass a real number"):
        make(first, scale=1j)
    with pytest.raises(ValueError, match="Pass a scalar"):
        gradient(jnp.ones(2))
    assert np.isnan(jax.jit(gradient)(0.0)).all()


def test_a_negative_scale_is_that_of_a_negative_definite_operator():
    A = -jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    adjoint = pj.TruncatedAdjoint(60, -0.5)
    gradient = jax.grad(lambda b: jnp.sum(pj.linear_solve(A, b, adjoint=adjoint).value))(
        jnp.ones(3)
    )
    np.testing.assert_allclose(gradient, -1 / np.arange(1.0, 4), rtol=1e-12)


@pytest.mark.untyped
def test_a_number_of_terms_that_is_no_integer_is_an_error():
    with pytest.raises(TypeError, match="Pass a Python integer"):
        pj.TruncatedAdjoint(2.0)


@pytest.mark.slow
def test_sparse_fronts_take_it():
    A = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 2.0, 3.0]))).as_matrix()
    A = A.at[0, 1].set(0.5)
    pattern = np.nonzero(np.array(A))
    adjoint = pj.TruncatedAdjoint(60, 0.5)
    data = A[pattern]

    def front(name):
        def loss(data):
            sparse = pj.SparseLinearOperator((data, *pattern, (3, 3)))
            if name == "solve":
                return jnp.sum(pj.sparse_solve(sparse, jnp.ones((3, 2)), adjoint=adjoint))
            damp, solver = 1.0, pj.LSMR(well_posed=True)
            less = pj.TruncatedAdjoint(400, 0.1)
            x = pj.sparse_lstsq(sparse, jnp.ones(3), solver, damp=damp, adjoint=less)
            return jnp.sum(x)

        return jax.grad(loss)(data)

    dense = lambda data: jnp.zeros((3, 3)).at[pattern].set(data)
    of_solve = lambda data: 2 * jnp.sum(jnp.linalg.solve(dense(data), jnp.ones(3)))

    def of_lstsq(data):
        A = dense(data)
        return jnp.sum(jnp.linalg.solve(A.T @ A + jnp.eye(3), A.T @ jnp.ones(3)))

    assert_close(front("solve"), jax.grad(of_solve)(data), rtol=1e-8)
    assert_close(front("lstsq"), jax.grad(of_lstsq)(data), rtol=1e-8)
