"""`woodbury`: a preconditioner of A + U C Vᴴ from one of A, against dense NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from test_low_rank import close, dense, DTYPES, parts, RANK, SIZE

import pseudojvp as pj


PSD = lx.positive_semidefinite_tag


@DTYPES
def test_it_is_the_inverse_of_what_p_inverts_with_the_update(dtype):
    a, u, v, c = parts(dtype)
    a = a + 5 * np.eye(SIZE)
    operator = pj.woodbury(np.linalg.inv(a), u, v, c)
    expected = np.linalg.inv(dense(a, u, v, c))
    close(operator.as_matrix(), expected)
    close(operator.transpose().as_matrix(), expected.T)
    close(lx.conj(operator).as_matrix(), expected.conj())


@DTYPES
def test_it_is_definite_where_the_parts_are(dtype):
    _, u, v, _ = parts(dtype)
    p = lx.MatrixLinearOperator(
        jnp.asarray(np.diag([0.5, 1, 2, 3, 4]).astype(dtype)), PSD
    )
    operator = pj.woodbury(p, u)
    assert lx.is_positive_semidefinite(operator)
    matrix = np.linalg.inv(np.asarray(p.as_matrix())) + u @ u.conj().T
    close(operator.as_matrix(), np.linalg.inv(matrix))
    assert not lx.is_positive_semidefinite(pj.woodbury(p, u, v))
    core = lx.MatrixLinearOperator(2 * jnp.eye(RANK, dtype=dtype), PSD)
    assert lx.is_positive_semidefinite(pj.woodbury(p, u, None, core))


@pytest.mark.slow  # a second
def test_it_preconditions_a_sum_of_which_only_one_part_has_a_preconditioner():
    """D with a few large columns: `jacobi` of D alone leaves their eigenvalues."""
    rng = np.random.default_rng(0)
    diagonal = np.logspace(0, 4, 60)
    u = 100 * rng.standard_normal((60, 3))
    noise = rng.standard_normal((60, 60))
    a = np.diag(diagonal) + 0.1 * noise @ noise.T / 60
    operator = lx.MatrixLinearOperator(jnp.asarray(a + u @ u.T), PSD)
    vector = jnp.asarray(rng.standard_normal(60))
    p = pj.jacobi(lx.MatrixLinearOperator(jnp.asarray(a), PSD))

    def steps(preconditioner):
        solver = pj.CG(1e-8, preconditioner=preconditioner)
        solution = pj.linear_solve(operator, vector, solver)
        want = np.linalg.solve(a + u @ u.T, vector)
        np.testing.assert_allclose(solution.value, want, atol=1e-6 * np.abs(want).max())
        return int(solution.stats["num_steps"])

    assert 2 * steps(pj.woodbury(p, u)) < steps(p)


def test_it_is_a_constant():
    _, u, _, _ = map(jnp.asarray, parts(float))
    entry = lambda u: pj.woodbury(jnp.eye(SIZE), u).as_matrix()[0, 0]
    np.testing.assert_array_equal(jax.grad(entry)(u), 0)


def test_vectors_may_be_pytrees():
    structure = jax.eval_shape(lambda: (jnp.zeros(2), jnp.zeros((3, 1))))
    halved = lambda tree: jax.tree.map(lambda leaf: 0.5 * leaf, tree)
    p = lx.FunctionLinearOperator(halved, structure, PSD)
    u = parts(float)[1]
    operator = pj.woodbury(p, u)
    assert eqx.tree_equal(operator.in_structure(), structure)
    close(operator.as_matrix(), np.linalg.inv(2 * np.eye(SIZE) + u @ u.T))


def test_bad_parts_are_told():
    with pytest.raises(ValueError, match=r"`woodbury\(operator=...\)` got an operator"):
        pj.woodbury(jnp.ones((3, 4)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"`LowRankUpdate\(U=...\)` got an array"):
        pj.woodbury(jnp.eye(3), jnp.ones((4, 1)))
