"""The programs that the benchmarks of dense matrices share."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from . import reference


def solve(linear_solve, solver):
    """x = A†b."""

    def run(matrix, vector):
        return linear_solve(lx.MatrixLinearOperator(matrix), vector, solver).value

    return run


def gradient(linear_solve, solver):
    """The gradient of <c, A†b> with respect to A and b."""
    run = solve(linear_solve, solver)

    def loss(matrix, vector, weights):
        return jnp.sum(weights * run(matrix, vector))

    return jax.grad(loss, argnums=(0, 1))


def random_problem(rows, cols, seed):
    """A of Gaussian entries, b, and c: NumPy float64."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, cols))
    return matrix, rng.standard_normal(rows), rng.standard_normal(cols)


def reference_solution(matrix, vector):
    return np.linalg.lstsq(matrix, vector, rcond=1e-10)[0]


def reference_gradient(matrix, vector, weights):
    inverse = np.linalg.pinv(matrix, rcond=1e-10)
    ct_matrix, ct_vector = reference.cotangents(
        matrix, inverse, vector[:, None], weights[:, None]
    )
    return ct_matrix, ct_vector[:, 0]
