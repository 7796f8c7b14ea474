"""Solvers whose programs are lowered for another platform, and for a file."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
import numpy as np

import pseudojvp as pj


# Definite and tridiagonal.
MATRIX = np.array([[4.0, 1.0, 0.0], [1.0, 5.0, 2.0], [0.0, 2.0, 6.0]])
VECTOR = np.array([1.0, -2.0, 3.0])
WEIGHTS = np.array([2.0, 1.0, -1.0])
_ENTRIES = np.ones((3, 3))
_LOWER = np.tril(_ENTRIES)
_DIAGONAL = np.eye(3)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A solver of `operator(matrix)`, which reads the entries of `mask`.

    `unchecked`: the library calls of its program on a CPU that JAX does not promise to
    keep.
    """

    solver: lx.AbstractLinearSolver
    operator: Callable
    mask: np.ndarray = dataclasses.field(default_factory=lambda: _ENTRIES)
    unchecked: tuple[str, ...] = ()

    def value(self, matrix, vector, throw=False):
        """⟨w, A⁻¹b⟩."""
        operator = self.operator(matrix * self.mask)
        solution = pj.linear_solve(operator, vector, self.solver, throw=throw)
        return jnp.sum(WEIGHTS * solution.value)

    def truth(self):
        """The value, and its derivatives with respect to A and b."""
        inverse = np.linalg.inv(MATRIX * self.mask)
        ct_vector = inverse.T @ WEIGHTS
        ct_matrix = -np.outer(ct_vector, inverse @ VECTOR) * self.mask
        return WEIGHTS @ inverse @ VECTOR, (ct_matrix, ct_vector)


def _dense(*tags):
    return lambda matrix: lx.MatrixLinearOperator(matrix, tags)


def _sparse(mask, *tags):
    row, col = np.nonzero(mask)

    def operator(matrix):
        entries = matrix[row, col], row, col, (3, 3)
        return pj.SparseLinearOperator(entries, tags)

    return operator


def _diagonal(matrix):
    return lx.DiagonalLinearOperator(jnp.diag(matrix))


_DEFINITE = _dense(lx.positive_semidefinite_tag)
_SPARSE = _sparse(_ENTRIES, lx.positive_semidefinite_tag)
_TOLERANCES = {"rtol": 1e-13, "atol": 1e-13}
_INCOMPLETE = pj.incomplete_cholesky(_SPARSE(jnp.asarray(MATRIX)))
_REFLECTORS = ("lapack_dormqr_ffi",)
_PIVOTS = ("lapack_dgeqp3_ffi", "lapack_dormqr_ffi")

CASES = {
    "LU": Case(pj.AutoLinearSolver(True), _dense()),
    "Cholesky": Case(pj.Cholesky(), _DEFINITE),
    "Triangular": Case(pj.Triangular(), _dense(lx.lower_triangular_tag), _LOWER),
    "Tridiagonal": Case(pj.Tridiagonal(), _dense(lx.tridiagonal_tag)),
    "QR": Case(pj.QR(), _dense(), unchecked=_REFLECTORS),
    "CholeskyQR": Case(pj.CholeskyQR(), _dense()),
    "PivotedQR": Case(pj.AutoLinearSolver(False), _dense(), unchecked=_PIVOTS),
    "SVD": Case(pj.SVD(), _dense()),
    "Normal(Cholesky)": Case(pj.Normal(pj.Cholesky()), _dense()),
    "Normal(CG)": Case(pj.Normal(pj.CG(**_TOLERANCES)), _dense()),
    "CG": Case(pj.CG(**_TOLERANCES), _DEFINITE),
    "MINRES": Case(pj.MINRES(**_TOLERANCES), _DEFINITE),
    "GMRES": Case(pj.GMRES(**_TOLERANCES), _dense()),
    "FlexibleCG": Case(pj.FlexibleCG(**_TOLERANCES, preconditioner=jnp.tanh), _DEFINITE),
    "FlexibleGMRES": Case(
        pj.FlexibleGMRES(**_TOLERANCES, preconditioner=jnp.tanh), _dense()
    ),
    "LearnedCG": Case(pj.LearnedCG(9, **_TOLERANCES), _DEFINITE),
    "BiCGStab": Case(pj.BiCGStab(**_TOLERANCES), _dense()),
    "LSMR": Case(pj.LSMR(**_TOLERANCES), _dense()),
    "Neumann": Case(pj.Neumann(500, scale=0.15), _dense()),
    "SparseTriangular": Case(pj.SparseTriangular(), _sparse(_LOWER), _LOWER),
    "CG(incomplete_cholesky)": Case(
        pj.CG(**_TOLERANCES, preconditioner=_INCOMPLETE), _SPARSE
    ),
    "lineax.Diagonal": Case(lx.Diagonal(), _diagonal, _DIAGONAL),
    "lineax.GMRES": Case(
        lx.GMRES(**_TOLERANCES, max_steps=9), _dense(), unchecked=_REFLECTORS
    ),
    "lineax.LSMR": Case(lx.LSMR(**_TOLERANCES), _dense()),
}
