"""Systems whose numbers are awkward: tiny, zero, repeated, of a rank that hides."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sps
from checks import assert_close, jit
from drop_in_cases import conditioned, matrix_of, random_array
from situations import assert_right

import pseudojvp as pj


SIZE = 6
KRYLOV = {
    "CG": pj.CG,
    "CG-singular": ft.partial(pj.CG, well_posed=False),
    "MINRES": ft.partial(pj.MINRES, well_posed=True),
    "MINRES-singular": pj.MINRES,
    "GMRES": pj.GMRES,
    "BiCGStab": pj.BiCGStab,
    "FlexibleCG": pj.FlexibleCG,
    "FlexibleGMRES": pj.FlexibleGMRES,
    "LSMR": ft.partial(pj.LSMR, well_posed=True),
    "LSMR-singular": pj.LSMR,
    "Normal(CG)": lambda **tolerances: pj.Normal(pj.CG(**tolerances)),
}


@pytest.mark.ci("*")
@pytest.mark.parametrize("size", [1e-13, 1e-30], ids=str)
@pytest.mark.parametrize("name", KRYLOV)
def test_gradient_for_a_tiny_cotangent_does_not_underflow(name, size):
    matrix = matrix_of("positive", SIZE, np.dtype("float32"))
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix), lx.positive_semidefinite_tag)
    aided = not ("singular" in name or "Normal" in name)
    options = {"preconditioner": pj.jacobi(operator)} if aided else {}
    solver = KRYLOV[name](rtol=1e-6, atol=0.0)

    @jit
    @jax.grad
    def gradient(vector):
        solution = pj.linear_solve(operator, vector, solver, options=options, throw=False)
        return jnp.float32(size) * jnp.sum(solution.value)

    got = gradient(100 * jnp.ones(SIZE, jnp.float32)).astype(float) / size
    # Single precision; the tolerance is one of the residual.
    assert_close(got, np.linalg.solve(matrix.astype(float), np.ones(SIZE)), 1e-4)


_TALL = conditioned((7, 4), [1, 2, 3, 4], float, 5)
_ZERO, _OUTSIDE = np.zeros(7), np.linalg.svd(_TALL)[0][:, 5]


@pytest.mark.ci("*")
@pytest.mark.parametrize("vector", [_ZERO, _OUTSIDE], ids=["zero", "orthogonal"])
@pytest.mark.parametrize("with_guess", [False, True], ids=["no-y0", "y0"])
def test_vector_without_a_part_in_the_range_gives_zero(vector, with_guess):
    options = {"y0": jnp.ones(4)} if with_guess else {}

    def solve(vector):
        solver = pj.LSMR(rtol=1e-12, atol=1e-12, well_posed=True)
        return pj.linear_solve(_TALL, vector, solver, options=options, throw=False)

    solution = jit(solve)(vector)
    assert solution.result == lx.RESULTS.successful
    np.testing.assert_allclose(solution.value, np.zeros(4), atol=1e-11)
    jacobian = jit(jax.jacrev(lambda vector: solve(vector).value))(vector)
    np.testing.assert_allclose(jacobian, np.linalg.pinv(_TALL), atol=1e-10)


@pytest.mark.parametrize("with_guess", [False, True], ids=["no-y0", "y0"])
@pytest.mark.slow  # three seconds each
def test_damped_least_squares_do_not_depend_on_a_first_guess(with_guess):
    dense = _TALL * (np.abs(_TALL) > 0.3)
    matrix = sps.csr_array(dense)
    vector = jnp.asarray(random_array((7,), float, 6))
    options = {"y0": 10 * jnp.ones(4)} if with_guess else None
    operator = pj.SparseLinearOperator(matrix)
    place = matrix.tocoo().coords

    def solve(inputs):
        data, damp = inputs[:-1], inputs[-1]
        entries = pj.SparseLinearOperator((data, operator.sparsity))
        return pj.sparse_lstsq(entries, vector, damp=damp, options=options, throw=False)

    def truth(inputs):
        a = np.zeros((7, 4))
        a[place] = inputs[:-1]
        return np.linalg.solve(a.T @ a + inputs[-1] ** 2 * np.eye(4), a.T @ vector)

    # LSMR's default tolerance.
    assert_right(solve, truth, np.append(matrix.data, 0.5), rtol=1e-6)


_PAIRS = np.triu_indices(4, 1)


def _laplacian(weights, numpy=np):
    """Of the graph of four nodes, with a weight on each of its six edges."""
    edges = np.zeros((6, 4))
    edges[np.arange(6), _PAIRS[0]], edges[np.arange(6), _PAIRS[1]] = 1, -1
    return numpy.asarray(edges.T) @ (weights[:, None] * edges)


LAPLACE = {
    "PivotedQR": pj.PivotedQR(),
    "SVD": pj.SVD(),
    "CG": pj.CG(1e-11, 1e-11, well_posed=False),
    "MINRES": pj.MINRES(1e-12, 1e-12),
    "LSMR": pj.LSMR(1e-12, 1e-12),
    "Auto(False)": pj.AutoLinearSolver(False),
}


@pytest.mark.default("SVD-equal")
@pytest.mark.ci("*")
@pytest.mark.parametrize("weights", ["equal", "path"])
@pytest.mark.parametrize("name", LAPLACE)
def test_potentials_on_a_graph_and_their_derivative_for_its_weights(name, weights):
    """Singular by construction, and for equal weights with one eigenvalue thrice."""
    at = {"equal": np.ones(6), "path": np.array([1.0, 0, 0, 2, 0, 3])}[weights]
    vector = np.array([1.0, -2.0, 0.5, 3.0])  # not in the range

    def solve(weights):
        tag = lx.positive_semidefinite_tag
        operator = lx.MatrixLinearOperator(_laplacian(weights, jnp), tag)
        return pj.linear_solve(operator, vector, LAPLACE[name], throw=False).value

    assert_right(solve, lambda w: np.linalg.pinv(_laplacian(w)) @ vector, at)


@pytest.mark.slow  # a second
def test_pseudoinverse_of_a_graph_and_its_derivative():
    truth = lambda weights: np.linalg.pinv(_laplacian(weights))
    assert_right(lambda w: pj.pinv(_laplacian(w, jnp)), truth, np.ones(6))


@pytest.mark.slow  # a second
def test_jacobian_of_the_pseudoinverse_of_a_matrix_with_a_row_of_zeros():
    def pseudoinverse(p):
        row = jnp.stack([-p, jnp.ones_like(p)]) / (1 + p**2)
        return pj.pinv(jnp.stack([jnp.zeros(2), row]))

    # The pseudoinverse of a row is its conjugate over the square of its length.
    truth = lambda p: np.array([[0, -p], [0, 1]])
    assert_right(pseudoinverse, truth, 2.0)


@pytest.mark.slow  # two seconds
def test_least_squares_find_the_rank_of_integers_that_depend_on_each_other():
    rows = np.array([[0, 2, 0, 0, 1, 0], [1, 0, 1, 0, 0, 4], [0, 0, 0, 2, 3, 0]])
    matrix = np.append(rows, [[0.0, 1, 0, 1, 2, 0]], axis=0).T  # (first + last) / 2
    vector = np.array([1.0, 0, 0, 0, 0, 0])
    x, _, rank, _ = pj.lstsq(matrix, vector)
    assert rank == 3
    inverse = np.linalg.pinv(matrix, rcond=1e-10)
    np.testing.assert_allclose(x, inverse @ vector, atol=1e-12)
    jacobian = jax.jacrev(lambda b: pj.lstsq(matrix, b)[0])(vector)
    np.testing.assert_allclose(jacobian, inverse, atol=1e-12)


@pytest.mark.parametrize("solve", [pj.sparse_solve, pj.sparse_lstsq])
def test_entries_in_one_place_that_cancel_leave_no_regular_matrix(solve):
    row, col = np.array([0, 1, 1, 2, 1]), np.array([0, 1, 1, 2, 0])
    data = np.array([1.0, 2.0, -2.0, 1.0, 1.0])  # the second pivot is 2 − 2
    vector = np.array([1.0, 2.0, 3.0])
    matrix = pj.SparseLinearOperator((data, row, col, (3, 3)))
    got = solve(matrix, vector, throw=False)
    dense = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    want = {
        pj.sparse_solve: np.full(3, np.nan),
        pj.sparse_lstsq: np.linalg.pinv(dense) @ vector,
    }
    np.testing.assert_allclose(got, want[solve], atol=1e-12)
