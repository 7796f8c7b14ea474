"""The pseudoinverse solution and its derivatives by dense NumPy formulas (real A).

With x = A†b, r = b − A x, P = A†A and a path of constant rank (Golub & Pereyra 1973,
theorem 4.3),

    x' = A†b' − A†A'x + A†A†^T A'^T r + (I − P) A'^T A†^T x.                        (*)

Columns of b are right-hand sides.
"""

import numpy as np


def solution_tangent(matrix, inverse, rhs, t_matrix):
    """x' of (*) for A' = `t_matrix`; `inverse` is A†."""
    x = inverse @ rhs
    residual = rhs - matrix @ x
    z = t_matrix.T @ (inverse.T @ x)
    within = -inverse @ (t_matrix @ x) + inverse @ (inverse.T @ (t_matrix.T @ residual))
    return within + z - inverse @ (matrix @ z)


def residual_tangent(matrix, inverse, rhs, t_matrix):
    """r' = −A'x − A x', with x' of (*)."""
    t_solution = solution_tangent(matrix, inverse, rhs, t_matrix)
    return -t_matrix @ (inverse @ rhs) - matrix @ t_solution


def cotangents(matrix, inverse, rhs, ct_solution):
    """The gradient of <ct_solution, x> with respect to A and b: the adjoint of (*)."""
    x = inverse @ rhs
    residual = rhs - matrix @ x
    ct_rhs = inverse.T @ ct_solution
    outside = ct_solution - matrix.T @ ct_rhs  # (I − P) of the cotangent
    ct_matrix = (
        -ct_rhs @ x.T + residual @ (inverse @ ct_rhs).T + (inverse.T @ x) @ outside.T
    )
    return ct_matrix, ct_rhs


def inverse_by_gram(matrix):
    """A† of a large, well-conditioned A with independent columns, without an SVD."""
    return np.linalg.solve(matrix.T @ matrix, matrix.T)
