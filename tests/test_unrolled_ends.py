"""`UnrolledAdjoint` where steps end early, fail, or are a batch."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from test_unrolled import (
    assert_close,
    cg_by_hand,
    gradients,
    hermitian,
    problem,
    solve,
    STEPPED,
)

import pseudojvp as pj


@pytest.mark.slow
def test_gradients_of_a_batch_are_those_of_its_members():
    A, b, *_ = problem(float)
    solver = pj.CG(**STEPPED)
    batch = jnp.stack([b, jnp.zeros_like(b), A[0]])
    ours = lambda A, b: gradients(lambda A, b: solve(hermitian(A), b, solver).value, A, b)
    by_batch = jax.jit(jax.vmap(ours, (None, 0)))(A, batch)
    one = jax.jit(ours)
    for index in (0, 2):
        member = jax.tree.map(lambda leaf: leaf[index], by_batch)  # noqa: B023
        assert_close(member, one(A, batch[index]), rtol=1e-12)
    assert np.isnan(by_batch[1][1]).all()  # not smooth at b = 0


@pytest.mark.slow
def test_unrolled_steps_end_where_the_residual_is_rounding():
    """In the first three unit vectors: the loop written by hand would divide by zero."""
    A = jnp.diag(jnp.arange(1.0, 9))
    b = jnp.zeros(8).at[:3].set(1.0)
    solver = pj.CG(rtol=0, atol=0, max_steps=20)

    def total(b):
        solution = solve(A, b, solver)
        return jnp.sum(solution.value), solution.stats["num_steps"]

    (value, taken), gradient = jax.value_and_grad(total, has_aux=True)(b)
    assert taken == 3
    np.testing.assert_allclose(value, 1 + 1 / 2 + 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(gradient[:3], [1, 1 / 2, 1 / 3], rtol=1e-8)


@pytest.mark.default("CG")
@pytest.mark.ci("*")
@pytest.mark.parametrize("kind", [pj.CG, pj.FlexibleCG], ids=["CG", "FlexibleCG"])
def test_an_indefinite_matrix_is_told_and_its_derivative_is_nan(kind):
    A = jnp.diag(jnp.array([1.0, -2.0, 3.0, 4.0]))
    solver = kind(rtol=0, atol=0, max_steps=3)

    def ours(b):
        solution = solve(A, b, solver)
        return jnp.sum(solution.value), solution.result == lx.RESULTS.breakdown

    gradient, broke = jax.grad(ours, has_aux=True)(jnp.array([0.1, 2.0, 0.3, 0.1]))
    assert broke
    assert np.isnan(gradient).all()


@pytest.mark.slow
def test_a_function_as_preconditioner_has_the_gradient_of_what_it_closes_over():
    A, b, *_ = problem(float)
    solver = pj.FlexibleCG(**STEPPED)

    def ours(weights):
        P = lambda r: weights * r
        return solve(A, b, solver, preconditioner=P).value

    def by_hand(weights):
        return cg_by_hand(A, b, jnp.diag(weights), jnp.zeros_like(b))[0]

    weights = 1 + 0.1 * jnp.cos(jnp.arange(12.0))
    assert_close(gradients(ours, weights), gradients(by_hand, weights))
