"""How long do 64 right-hand sides of one matrix take under `jax.vmap` (milliseconds)?"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp

from . import dense, reference
from .harness import Workload


def _solve(linear_solve, solver):
    return jax.vmap(dense.solve(linear_solve, solver), in_axes=(None, 0))


def _gradient(linear_solve, solver):
    run = _solve(linear_solve, solver)

    def loss(matrix, vectors, weights):
        return jnp.sum(weights * run(matrix, vectors))

    return jax.grad(loss, argnums=(0, 1))


def _problem(rows, cols):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((rows, cols))
    return matrix, rng.standard_normal((64, rows)), rng.standard_normal((64, cols))


def _reference_solution(matrix, vectors):
    return np.linalg.lstsq(matrix, vectors.T, rcond=None)[0].T


def _reference_gradient(matrix, vectors, weights):
    ct_matrix, ct_vectors = reference.cotangents(
        matrix, np.linalg.pinv(matrix), vectors.T, weights.T
    )
    return ct_matrix, ct_vectors.T


_solvers = {
    "ours": pseudojvp.QR(),
    "same": lx.QR(),
    "others": (lx.Normal(lx.Cholesky()),),
}

workloads = (
    Workload(
        "tall 2000 x 100, 64 right-hand sides: solve",
        lambda: _problem(2000, 100)[:2],
        _solve,
        _reference_solution,
        **_solvers,
    ),
    Workload(
        "tall 2000 x 100, 64 right-hand sides: gradient",
        lambda: _problem(2000, 100),
        _gradient,
        _reference_gradient,
        **_solvers,
    ),
    Workload(
        "wide 100 x 2000, 64 right-hand sides: gradient",
        lambda: _problem(100, 2000),
        _gradient,
        _reference_gradient,
        **_solvers,
    ),
)
