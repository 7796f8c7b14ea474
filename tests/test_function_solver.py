"""`FunctionSolver`, and functions as the solvers of `sparse_solve` and `sparse_lstsq`."""

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from checks import assert_close, jit
from krylov import pinv_tangent, random

import pseudojvp as pj


RESULTS = lx.RESULTS
_VECTOR = np.arange(1.0, 6.0)


def _square(is_complex=False):
    pattern = np.random.default_rng(0).random((5, 5)) < 0.6
    return random(1, is_complex, 5, 5) * pattern + 4 * np.eye(5)


def _spsolve(A, b):
    """As a user would call SciPy."""

    def on_host(*arrays):
        data, row, col, b = map(np.asarray, arrays)
        matrix = scipy.sparse.csc_array((data, (row, col)), shape=(b.size, b.size))
        return scipy.sparse.linalg.spsolve(matrix, b)

    shape = jax.ShapeDtypeStruct(b.shape, b.dtype)
    arrays = A.data, A.sparsity.row, A.sparsity.col, b
    return jax.pure_callback(on_host, shape, *arrays, vmap_method="sequential")


def _bicgstab(A, b):
    return jax.scipy.sparse.linalg.bicgstab(A.mv, b, tol=1e-13)[0]


def _pinv(A, b):
    return jnp.linalg.pinv(A.as_matrix(), rtol=1e-10) @ b


def _sparse(dense):
    return jsparse.BCOO.fromdense(jnp.asarray(dense))


@pytest.mark.ci("*")
@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "columns"])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("solve", [_spsolve, _bicgstab], ids=["spsolve", "bicgstab"])
def test_function_as_solver_and_its_gradient_are_dense(solve, is_complex, columns):
    dense = _square(is_complex)
    sparse, B = _sparse(dense), jnp.asarray(random(2, is_complex, 5, *columns))
    weights = random(3, is_complex, 5, *columns)

    @jit
    def run(data, B):
        def loss(data, B):
            moved = jsparse.BCOO((data, sparse.indices), shape=sparse.shape)
            x = pj.sparse_solve(moved, B, solve, throw=False)
            return jnp.sum(weights * x).real, x

        return jax.grad(loss, (0, 1), has_aux=True)(data, B)

    (of_data, of_vector), x = run(sparse.data, B)
    want, adjoint = np.linalg.solve(dense, B), np.linalg.solve(dense.T, weights)
    outer = np.tensordot(adjoint, want, (-1, -1)) if columns else np.outer(adjoint, want)
    assert_close(x, want, 1e-10)
    assert_close(of_vector, adjoint, 1e-10)
    assert_close(of_data, -outer[np.nonzero(dense)], 1e-10)


def test_second_derivative_of_a_solve_by_a_callback_is_the_dense_one():
    dense = _square()
    sparse, direction = _sparse(dense), random(4, False, np.count_nonzero(dense))
    step = np.zeros((5, 5))
    step[np.nonzero(dense)] = direction

    def path(t):
        data = sparse.data + t * direction
        moved = jsparse.BCOO((data, sparse.indices), shape=sparse.shape)
        return pj.sparse_solve(moved, _VECTOR, _spsolve, throw=False)

    first = lambda t: jax.jvp(path, (t,), (1.0,))[1]
    got = jit(lambda t: jax.jvp(first, (t,), (1.0,))[1])(0.0)
    moved = np.linalg.solve(dense, step)
    assert_close(got, 2 * moved @ moved @ np.linalg.solve(dense, _VECTOR), 1e-11)


_SHAPES = {"tall": (5, 3), "wide": (3, 5), "deficient": (5, 4)}


def _rectangular(name, is_complex):
    rows, cols = _SHAPES[name]
    inner = 2 if name == "deficient" else min(rows, cols)
    factors = (random(5, is_complex, rows, inner), random(6, is_complex, inner, cols))
    t_factors = [random(7 + i, is_complex, *f.shape) for i, f in enumerate(factors)]
    (left, right), (t_left, t_right) = factors, t_factors
    return left @ right, t_left @ right + left @ t_right


@pytest.mark.ci("*")
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("name", _SHAPES)
def test_least_squares_by_a_function_and_its_tangent_are_the_dense_ones(name, is_complex):
    dense, t_dense = _rectangular(name, is_complex)
    b, t_b = (jnp.asarray(random(seed, is_complex, len(dense))) for seed in (9, 10))
    place = np.nonzero(np.ones(dense.shape))

    def solve(matrix, b):
        sparse = pj.SparseLinearOperator((matrix[place], *place, dense.shape))
        return pj.sparse_lstsq(sparse, b, _pinv, throw=False)

    run = jit(lambda *primals: jax.jvp(solve, primals, (jnp.asarray(t_dense), t_b)))
    x, t_x = run(jnp.asarray(dense), b)
    assert_close(x, np.linalg.pinv(dense, rcond=1e-9) @ b, 1e-11)
    assert_close(t_x, pinv_tangent(dense, t_dense, b, t_b), 1e-10)


@pytest.mark.ci("*")
@pytest.mark.parametrize("well_posed", [True, False])
@pytest.mark.parametrize("name", ["tall", "wide"])
def test_blocks_of_the_map_by_a_function_are_those_of_the_pseudoinverse(name, well_posed):
    dense, _ = _rectangular(name, True)
    v, w = random(11, True, len(dense)), random(12, True, dense.shape[1])

    @jit
    def run(v, w):
        solver = pj.FunctionSolver(_pinv, well_posed=well_posed)
        factorised = pj.factorise(dense, solver, throw=False)
        return (
            factorised.solve(v),
            factorised.residual(v),
            factorised.adjoint_solve(w),
            factorised.gram_inverse(w),
            factorised.project(w),
        )

    p = np.linalg.pinv(dense)
    want = p @ v, v - dense @ p @ v, p.conj().T @ w, p @ p.conj().T @ w, p @ dense @ w
    for got, truth in zip(run(v, w), want, strict=True):
        np.testing.assert_allclose(got, truth, atol=1e-12)


@pytest.mark.slow  # a second
def test_function_works_within_lineax_and_its_state_conjugates():
    matrix, vector = jnp.asarray(_square(True)), jnp.asarray(random(2, True, 5))
    solver = pj.FunctionSolver(_pinv)
    operator = lx.MatrixLinearOperator(matrix)
    x = lx.linear_solve(operator, vector, solver).value
    np.testing.assert_allclose(x, np.linalg.solve(matrix, vector))
    state, _ = solver.conj(*solver.transpose(solver.init(operator, {}), {}))
    x, result, _ = solver.compute(state, vector, {})
    np.testing.assert_allclose(x, np.linalg.solve(matrix.conj().T, vector))
    assert result == RESULTS.successful


@pytest.mark.ci("*")
@pytest.mark.parametrize("transform", [lambda f: f, jit], ids=["eager", "jit"])
def test_what_a_function_closes_over_may_be_traced_and_is_a_constant(transform):
    dense = _square()
    row, col = np.nonzero(dense)

    def loss(data):
        A = pj.SparseLinearOperator((data, row, col, (5, 5)))
        inverse = pj.jacobi(A)  # within, so that it depends on the data

        def solve(A, b):
            return jax.scipy.sparse.linalg.bicgstab(A.mv, b, tol=1e-13, M=inverse.mv)[0]

        return jnp.sum(pj.sparse_solve(A, _VECTOR, solve))

    got = transform(jax.vmap(jax.grad(loss)))(jnp.asarray(dense[None, row, col]))
    x, adjoint = np.linalg.solve(dense, _VECTOR), np.linalg.solve(dense.T, np.ones(5))
    np.testing.assert_allclose(got[0], -adjoint[row] * x[col], rtol=1e-9)


@pytest.mark.slow  # a second
def test_gradient_solves_with_the_transpose_by_the_function_for_it():
    dense = _square()
    A, only = _sparse(dense), {"A": dense, "A^T": dense.T}

    def solve_with(name):
        return lambda A, b: jnp.linalg.solve(only[name], b)  # of no use for the other

    loss = lambda b: jnp.sum(pj.sparse_solve(A, b, solve_with("A"), solve_with("A^T")))
    slope = jax.grad(loss)(jnp.asarray(_VECTOR))
    np.testing.assert_allclose(slope, np.linalg.solve(dense.T, np.ones(5)))


@pytest.mark.slow  # a second
def test_zero_vector_has_the_solution_zero_whatever_the_function_makes_of_it():
    solve = lambda A, b: _pinv(A, b) * (jnp.sum(b) / jnp.sum(b))
    x = pj.sparse_solve(_sparse(_square()), jnp.zeros(5), solve)
    np.testing.assert_array_equal(x, np.zeros(5))
    masked = lambda b: jnp.sum(0 * pj.sparse_solve(_sparse(_square()), b, solve))
    np.testing.assert_array_equal(jax.grad(masked)(jnp.asarray(_VECTOR)), np.zeros(5))


def test_traced_numbers_of_a_function_that_is_a_tree_are_constants():
    class Shifted(eqx.Module):
        shift: jax.Array

        def __call__(self, A, b):
            return jnp.linalg.solve(A.as_matrix() + self.shift * jnp.eye(b.size), b)

    A = _sparse(_square())
    solve = jit(lambda shift: pj.sparse_solve(A, _VECTOR, Shifted(shift), throw=False))
    np.testing.assert_allclose(solve(0.0), np.linalg.solve(_square(), _VECTOR))
    assert np.all(np.isnan(solve(1e-3)))


@pytest.mark.slow  # two seconds
def test_function_is_called_once_a_solve_and_once_more_for_the_shortest_solution():
    calls = []

    def counted(A, b):
        def on_host(matrix, b):
            calls.append(len(b))
            return np.linalg.lstsq(matrix, b)[0]

        shape = jax.ShapeDtypeStruct((A.in_size(),), b.dtype)
        return jax.pure_callback(on_host, shape, A.as_matrix(), b)

    def count(front, dense):
        calls.clear()
        A, b = scipy.sparse.csr_array(dense), jnp.asarray(_VECTOR)
        solve = jit(lambda b: jax.vjp(lambda b: front(A, b, counted), b)[0])
        solve(b).block_until_ready()
        primal = len(calls)
        slope = jit(jax.grad(lambda b: jnp.sum(front(A, b, counted))))
        slope(b).block_until_ready()
        return primal, len(calls) - primal

    assert count(pj.sparse_solve, _square()) == (1, 2)
    assert count(pj.sparse_lstsq, _square()) == (2, 4)
