"""Gradients of `sparse_solve` and `sparse_lstsq`: formats, columns, second order."""

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


_FORMATS = {"BCOO": jsparse.BCOO.fromdense, "BCSR": jsparse.BCSR.fromdense}


def _random(rows, cols, dtype=float, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, cols)) * (rng.random((rows, cols)) < 0.6)
    if dtype is complex:
        matrix = matrix + 1j * rng.standard_normal(matrix.shape) * (matrix != 0)
    return matrix + 4 * np.eye(rows, cols)


_SYMMETRIC = _random(5, 5) + _random(5, 5).T - np.diag([0.0, 20.0, 0.0, 0.0, 0.0])
_GMRES, _LSMR = pj.GMRES(rtol=1e-13), pj.LSMR(rtol=1e-13)
# Front, matrix, solver, tags.
_CASES = {
    "general": (pj.sparse_solve, _random(5, 5), _GMRES, ()),
    "symmetric": (pj.sparse_solve, _SYMMETRIC, pj.MINRES(rtol=1e-13), lx.symmetric_tag),
    "complex": (pj.sparse_solve, _random(5, 5, complex), _GMRES, ()),
    "tall": (pj.sparse_lstsq, _random(7, 4), _LSMR, ()),
    "wide": (pj.sparse_lstsq, _random(4, 7), _LSMR, ()),
    "complex-tall": (pj.sparse_lstsq, _random(7, 4, complex), _LSMR, ()),
}


def _solution(dense, vectors):
    """X by dense linear algebra of JAX, for A of full rank."""
    rows, cols = dense.shape
    adjoint = dense.conj().T
    if rows < cols:
        return adjoint @ jnp.linalg.solve(dense @ adjoint, vectors)
    if rows > cols:
        return jnp.linalg.solve(adjoint @ dense, adjoint @ vectors)
    return jnp.linalg.solve(dense, vectors)


def _losses(name, create, columns):
    """Re Σ weights X² as a function of the entries: ours, the dense one; the entries."""
    front, dense, solver, tags = _CASES[name]
    sparse = create(jnp.asarray(dense))
    rng = np.random.default_rng(9)
    vectors = rng.standard_normal((dense.shape[0], *columns)).astype(dense.dtype)
    weights = rng.standard_normal((dense.shape[1], *columns)).astype(dense.dtype)
    place = np.nonzero(dense)

    def ours(data):
        moved = eqx.tree_at(lambda matrix: matrix.data, sparse, data)
        solution = front(moved, vectors, solver, tags=tags, throw=False)
        return jnp.sum(weights * solution**2).real

    def theirs(data):
        moved = jnp.zeros(dense.shape, dense.dtype).at[place].set(data)
        return jnp.sum(weights * _solution(moved, vectors) ** 2).real

    return ours, theirs, sparse.data


@pytest.mark.ci(
    "general-BCOO-vector",
    "complex-tall-BCOO-columns",
    "wide-BCSR-columns",
    "symmetric-BCSR-columns",
    "complex-BCSR-columns",
)
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
@pytest.mark.parametrize("create", _FORMATS.values(), ids=_FORMATS)
@pytest.mark.parametrize("name", _CASES)
def test_gradient_is_the_dense_one_at_the_entries(name, create, columns):
    ours, theirs, data = _losses(name, create, columns)
    got, want = jit(jax.grad(ours))(data), jit(jax.grad(theirs))(data)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.ci("general")  # second derivatives through Krylov loops: compilation
@pytest.mark.parametrize("name", ["general", "symmetric", "complex"])
def test_hessian_vector_product_of_a_square_solve_is_the_dense_one(name):
    ours, theirs, data = _losses(name, jsparse.BCOO.fromdense, ())
    direction = np.random.default_rng(3).standard_normal(data.shape).astype(data.dtype)
    along = lambda loss: jit(lambda d: jax.jvp(jax.grad(loss), (d,), (direction,))[1])
    want = along(theirs)(data)
    np.testing.assert_allclose(along(ours)(data), want, rtol=1e-6, atol=1e-6)


@pytest.mark.ci("*")
@pytest.mark.parametrize("create", _FORMATS.values(), ids=_FORMATS)
def test_lstsq_of_a_sparse_matrix_and_its_gradient_on_the_pattern(create):
    dense = _random(7, 4)
    dense[:, 3] = dense[:, 2] * (dense[:, 2] != 0)  # of rank three
    sparse, vector = create(jnp.asarray(dense)), np.arange(1.0, 8.0)

    @jit
    def run(matrix):
        solve = lambda a: pj.lstsq(a, vector)[0]
        gradient = eqx.filter_grad(lambda a: jnp.sum(solve(a) ** 2))(matrix)
        return solve(matrix), gradient.data

    x, slope = run(sparse)
    inverse = np.linalg.pinv(dense)
    residual = vector - dense @ x
    adjoint = inverse.T @ (2 * x)
    # Golub & Pereyra (1973): the cotangent of A for that of x, 2 x, which lies in the
    # range of A†.
    want = -np.outer(adjoint, x) + np.outer(residual, inverse @ adjoint)
    np.testing.assert_allclose(x, inverse @ vector, rtol=1e-10)
    np.testing.assert_allclose(slope, want[np.nonzero(dense)], atol=1e-10)
