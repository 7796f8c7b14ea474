"""How long do 32 tangents of one matrix take, by `vmap` of `jvp` (milliseconds)?"""

import jax
import lineax as lx
import numpy as np

import pseudojvp

from . import dense, reference
from .harness import Workload


def _tangents(linear_solve, solver):
    run = dense.solve(linear_solve, solver)

    def push_forward(matrix, vector, t_matrices):
        def t_solution(t_matrix):
            return jax.jvp(lambda a: run(a, vector), (matrix,), (t_matrix,))[1]

        return jax.vmap(t_solution)(t_matrices)

    return push_forward


def _problem():
    rng = np.random.default_rng(0)
    shapes = (2000, 100), (2000,), (32, 2000, 100)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def _reference(matrix, vector, t_matrices):
    inverse = np.linalg.pinv(matrix)
    return np.stack(
        [
            reference.solution_tangent(matrix, inverse, vector, t_matrix)
            for t_matrix in t_matrices
        ]
    )


workloads = (
    Workload(
        "tall 2000 x 100, 32 tangents of A",
        _problem,
        _tangents,
        _reference,
        ours=pseudojvp.QR(),
        same=lx.QR(),
        others=(lx.Normal(lx.Cholesky()),),
    ),
)
