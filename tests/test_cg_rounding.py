"""Singular systems of which rounding leaves little, in single precision."""

import jax
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


_CASES = 200
_LENGTH = 0.1  # of the only singular value


def _unit_vectors(rng, size):
    vectors = rng.normal(size=(_CASES, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@jit
@jax.vmap
def _pulled(matrix, vector, ct_solution):
    solver = pj.Normal(pj.CG(1e-5, 1e-5, well_posed=False))

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        return pj.linear_solve(operator, vector, solver, throw=False).value

    return jax.vjp(solve, matrix, vector)[1](ct_solution)


@pytest.mark.slow  # the largest of these programs to compile
@pytest.mark.parametrize("size_of_vector", [0.0, 1.0])
@pytest.mark.parametrize("rows", [3, 5])
def test_cotangent_nearly_in_the_null_space_of_a_rank_one_matrix(rows, size_of_vector):
    # Aᵀ's product with a cotangent of which a thousandth is in its range: that is rounded
    # by more than the tolerance, and what is outside of the range has no solution.
    rng = np.random.default_rng(0)
    left, right = _unit_vectors(rng, rows), _unit_vectors(rng, 4)
    matrices = (_LENGTH * left[:, :, None] * right[:, None, :]).astype(np.float32)
    vectors = (size_of_vector * rng.normal(size=(_CASES, rows))).astype(np.float32)
    ct = rng.normal(size=(_CASES, 4))
    within = np.sum(ct * right, axis=1, keepdims=True) * right
    ct = (ct - within + 1e-3 * within).astype(np.float32)
    ct_matrices, ct_vectors = map(np.asarray, _pulled(matrices, vectors, ct))

    inverses = np.linalg.pinv(matrices.astype(float), rcond=1e-4)  # (cases, 4, rows)
    apply = lambda matrices, vectors: np.einsum("kij,kj->ki", matrices, vectors)
    outer = lambda left, right: left[:, :, None] * right[:, None, :]
    adjoint = lambda vectors: np.einsum("kij,ki->kj", inverses, vectors)
    x = apply(inverses, vectors)
    r = vectors - apply(matrices.astype(float), x)
    u = adjoint(ct)
    null = ct - apply(inverses, apply(matrices.astype(float), ct))
    want = outer(adjoint(x), null) + outer(r, apply(inverses, u)) - outer(u, x)
    # Rounding of the cotangent of length two, by A† (10) as often as the formula has it.
    assert np.max(np.abs(ct_vectors - u)) <= 2e-4
    assert np.max(np.abs(ct_matrices - want)) <= 2e-2
