"""What a job cannot avoid: the bare factorisation, and the products with the matrix.

The outcome is not that of the job: vectors of the problem data stand in for solutions and
residuals of the same shape, and what is small (triangular solves) is left out. Of the
products, those with one matrix are one product with more columns.
"""

import jax.lax as lax
import jax.numpy as jnp


def householder(matrix):
    """LAPACK's `geqrf`."""
    return jnp.linalg.qr(_tall(matrix), mode="raw")


def gram(matrix):
    """The product AᵀA (tall) or AAᵀ (wide), and its Cholesky factor."""
    tall = _tall(matrix)
    return lax.linalg.cholesky(tall.mT @ tall)


def lu(matrix):
    """LAPACK's `getrf`."""
    return lax.linalg.lu(matrix)


def svd(matrix):
    """LAPACK's `gesdd`."""
    return jnp.linalg.svd(matrix, full_matrices=False)


def solve(factorise):
    """Of x = A†b for one b or its rows: the product Aᵀb."""

    def program(matrix, vectors):
        return factorise(matrix), matrix.mT @ vectors.T

    return program


def gradient(factorise):
    """Of the gradient of <c, A†b>: [Aᵀb, Ax, A†ᵀc] and Ā, of rank two for each vector."""

    def program(matrix, vectors, weights):
        tall = _tall(matrix)
        long, short = jnp.atleast_2d(vectors), jnp.atleast_2d(weights)
        if tall is not matrix:
            long, short = short, long
        long2, short2 = jnp.concatenate([long, long]), jnp.concatenate([short, short])
        products = long @ tall, short2 @ tall.T, long2.T @ short2
        return factorise(matrix), products

    return program


def batched_gradient(factorise):
    """The same for many problems of one vector each."""

    def program(matrices, vectors, weights):
        longs = jnp.stack([vectors, vectors[::-1]], axis=1)
        shorts = jnp.stack([weights, weights[::-1]], axis=1)
        products = vectors[:, None] @ matrices, shorts @ matrices.mT, longs.mT @ shorts
        return factorise(matrices), products

    return program


def tangents(factorise):
    """Of x' for many A': A'x, A'ᵀr and, for all at once, Aᵀ(A'x)."""

    def program(matrix, vector, t_matrices):
        count, rows, cols = t_matrices.shape
        forward = (t_matrices.reshape(-1, cols) @ vector[:cols]).reshape(count, rows)
        vectors = jnp.broadcast_to(vector, (count, 1, rows))
        backward = vectors @ t_matrices
        return factorise(matrix), forward @ matrix, backward

    return program


def _tall(matrix):
    return matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
