"""Warm starts in the training of a Gaussian process, beside cold ones.

`benchmarks/warm_starts.py` is the same of 2000 points, and counts adjoint solves too.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE, PROBES, STEPS, RATE = 120, 4, 30, 0.01
RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-3, 3, (SIZE, 2))
VALUES = np.sin(2 * POINTS[:, 0]) * np.cos(POINTS[:, 1]) + 0.1 * RNG.standard_normal(SIZE)
SIGNS = RNG.choice([-1.0, 1.0], (PROBES, SIZE))
SQUARES = np.sum((POINTS[:, None] - POINTS[None]) ** 2, axis=-1)


def kernel(parameters):
    """A Matérn kernel of smoothness 3/2, of logarithms."""
    length, amplitude, noise = jnp.exp(parameters)
    distances = jnp.sqrt(3 * np.maximum(SQUARES, 1e-12)) / length
    smooth = amplitude * (1 + distances) * jnp.exp(-distances)
    return smooth + noise * jnp.eye(SIZE)


def log_likelihood(parameters):
    matrix = np.asarray(kernel(parameters))
    _, logabsdet = np.linalg.slogdet(matrix)
    quadratic = VALUES @ np.linalg.solve(matrix, VALUES)
    return -0.5 * (quadratic + logabsdet + SIZE * np.log(2 * np.pi))


def train(memory):
    """The parameters at the end, and the products of the solves; cold for zero."""

    def loss(parameters, warm):
        matrix = kernel(parameters)
        a = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        solver = pj.CG(1e-6)

        def solve(vector, warm):
            if memory == 0:
                solution = pj.linear_solve(a, vector, solver, throw=False)
            else:
                solution, warm = pj.warm_solve(a, vector, warm, solver, throw=False)
            return solution.value, warm, solution.stats["num_steps"] + memory

        of_values, of_signs = warm
        by_values, of_values, products = solve(jnp.asarray(VALUES), of_values)
        by_signs, of_signs, more = jax.vmap(solve)(jnp.asarray(SIGNS), of_signs)
        trace = jnp.sum(jax.lax.stop_gradient(by_signs) * (SIGNS @ matrix)) / PROBES
        value = 0.5 * (VALUES @ by_values + trace)
        return value, (of_values, of_signs), products + jnp.sum(more)

    step = pj.warm_value_and_grad(loss, has_aux=True)

    def adam(carry, count):
        parameters, first, second, warm = carry
        _, gradient, warm, products = step(parameters, warm)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = jnp.sqrt(second / (1 - 0.999**count)) + 1e-8
        parameters = parameters - RATE * first / (1 - 0.9**count) / scale
        return (parameters, first, second, warm), products

    start, zeros = jnp.log(jnp.array([1.0, 1.0, 0.03])), jnp.zeros(3)
    state = lambda batch: pj.warm_start(SQUARES, memory=max(memory, 1), batch=batch)
    carry = start, zeros, zeros, (state(()), state(PROBES))
    run = jax.jit(lambda carry: jax.lax.scan(adam, carry, jnp.arange(1.0, STEPS + 1)))
    (parameters, *_), products = run(carry)
    return parameters, int(jnp.sum(products))


@pytest.mark.slow
@pytest.mark.optimised
def test_warm_starts_take_less_than_half_of_the_products_to_the_same_likelihood():
    (cold, products), (warm, fewer) = train(0), train(3)
    assert fewer < 0.45 * products
    np.testing.assert_allclose(log_likelihood(warm), log_likelihood(cold), rtol=1e-3)
    np.testing.assert_allclose(warm, cold, atol=1e-4)
