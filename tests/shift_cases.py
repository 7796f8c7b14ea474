"""What the tests of `shifted_solve` share: systems, truths, one compiled solve."""

import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 10
SHIFTS = np.array([0.0, 0.1, 1.0, 30.0])
SOLVERS = {
    "CG": pj.CG(1e-12),
    "MINRES": pj.MINRES(1e-12),
    "MINRES(well_posed=True)": pj.MINRES(1e-12, well_posed=True),
}
each = pytest.mark.parametrize("name", SOLVERS)


def definite(is_complex):
    return krylov.hermitian(0, is_complex, np.geomspace(0.5, 20, SIZE))


def solutions(matrix, vector, shifts):
    eye = np.eye(len(vector))
    return np.stack([np.linalg.solve(matrix + s * eye, vector) for s in shifts])


@krylov.compiled
def solved(matrix, vector, shifts, solver, tags=krylov.PSD):
    operator = krylov.operator(matrix, tags)
    return pj.shifted_solve(operator, vector, shifts, solver, throw=False)


def successful(result):
    return np.asarray(result == lx.RESULTS.successful)
