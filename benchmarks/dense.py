"""The programs, problems and references that the benchmarks of dense matrices share."""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
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


def tagged(program, tags):
    """The same program with `tags` on its operators."""

    def with_tags(linear_solve, solver):
        def tag(operator, vector, solver):
            return linear_solve(
                lx.MatrixLinearOperator(operator.as_matrix(), tags), vector, solver
            )

        return program(tag, solver)

    return with_tags


def solve_many(linear_solve, solver):
    """x = A†b for the rows b."""
    return jax.vmap(solve(linear_solve, solver), in_axes=(None, 0))


def gradient_many(linear_solve, solver):
    """The gradient of Σ <c, A†b> over the rows b and c."""
    run = solve_many(linear_solve, solver)

    def loss(matrix, vectors, weights):
        return jnp.sum(weights * run(matrix, vectors))

    return jax.grad(loss, argnums=(0, 1))


def tangents(linear_solve, solver):
    """x' for many A'."""
    run = solve(linear_solve, solver)

    def push_forward(matrix, vector, t_matrices):
        def t_solution(t_matrix):
            return jax.jvp(lambda a: run(a, vector), (matrix,), (t_matrix,))[1]

        return jax.vmap(t_solution)(t_matrices)

    return push_forward


def _lstsq(matrix, vector):
    return jnp.linalg.lstsq(matrix, vector)[0]


def _by_qr(matrix, vector):
    if matrix.shape[0] >= matrix.shape[1]:
        q, r = jnp.linalg.qr(matrix)
        return jsl.solve_triangular(r, q.T @ vector)
    q, r = jnp.linalg.qr(matrix.T)
    return q @ jsl.solve_triangular(r, vector, trans="T")


def _by_gram(matrix, vector):
    if matrix.shape[0] >= matrix.shape[1]:
        return jsl.cho_solve(jsl.cho_factor(matrix.T @ matrix), matrix.T @ vector)
    return matrix.T @ jsl.cho_solve(jsl.cho_factor(matrix @ matrix.T), vector)


def solve_square(matrix, vector):
    return jnp.linalg.solve(matrix, vector)


# What one would write without a library for it, differentiated by JAX.
BY_NUMPY = {"lstsq": _lstsq, "qr": _by_qr, "cho_solve of AᵀA": _by_gram}


def random_problem(rows, cols, seed=0, count=None):
    """A of Gaussian entries, b, and c, or `count` of them: NumPy float64."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, cols))
    batch = () if count is None else (count,)
    return (
        matrix,
        rng.standard_normal((*batch, rows)),
        rng.standard_normal((*batch, cols)),
    )


def tangents_problem(rows, cols, count):
    """A, b, and tangents of A."""
    rng = np.random.default_rng(0)
    shapes = (rows, cols), (rows,), (count, rows, cols)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def reference_solution(matrix, vector):
    return np.linalg.lstsq(matrix, vector.T, rcond=1e-10)[0].T


def reference_gradient(matrix, vector, weights):
    inverse = np.linalg.pinv(matrix, rcond=1e-10)
    ct_matrix, ct_columns = reference.cotangents(
        matrix, inverse, np.atleast_2d(vector).T, np.atleast_2d(weights).T
    )
    return ct_matrix, ct_columns.T.reshape(vector.shape)


def reference_tangents(matrix, vector, t_matrices):
    inverse = np.linalg.pinv(matrix)
    return np.stack(
        [
            reference.solution_tangent(matrix, inverse, vector, t_matrix)
            for t_matrix in t_matrices
        ]
    )
