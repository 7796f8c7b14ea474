"""Gradients through the Krylov solvers, in operator and vector, against dense NumPy."""

from typing import Any, NamedTuple

import jax
import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


RTOL = 1e-12


class Case(NamedTuple):
    solver: lx.AbstractLinearSolver
    matrix: np.ndarray
    t_matrix: np.ndarray
    tags: Any = ()
    preconditioner: np.ndarray | None = None


def _square(solver, is_complex, preconditioned=False):
    matrix = krylov.general(0, is_complex, 6)
    near = np.linalg.inv(matrix) + krylov.random(2, is_complex, 6, 6) / 50
    preconditioner = near if preconditioned else None
    t_matrix = krylov.random(1, is_complex, 6, 6)
    return Case(solver, matrix, t_matrix, (), preconditioner)


def _product(solver, is_complex, rows, cols, rank):
    """Along A = L R of constant rank."""
    left, right = (
        krylov.orthonormal(0, is_complex, rows, rank),
        2 * krylov.orthonormal(1, is_complex, cols, rank),
    )
    t_left = krylov.random(2, is_complex, rows, rank)
    t_right = krylov.random(3, is_complex, cols, rank)
    t_matrix = t_left @ right.conj().T + left @ t_right.conj().T
    return Case(solver, left @ right.conj().T, t_matrix)


def _hermitian(solver, is_complex, eigenvalues, preconditioned=False):
    """Along A = L D L^H of constant inertia."""
    size, rank = 6, len(eigenvalues)
    left = krylov.orthonormal(0, is_complex, size, rank)
    t_left = krylov.random(1, is_complex, size, rank)
    half = left * np.asarray(eigenvalues) @ t_left.conj().T
    matrix = left * np.asarray(eigenvalues) @ left.conj().T
    preconditioner = None
    if preconditioned:
        factor = krylov.general(2, is_complex, size)
        preconditioner = factor @ factor.conj().T
    return Case(solver, matrix, half + half.conj().T, pj.hermitian_tag, preconditioner)


def _preconditioned(case, is_complex):
    size = min(case.matrix.shape)
    return case._replace(preconditioner=krylov.general(5, is_complex, size))


_MINRES, _LSMR = pj.MINRES(RTOL), pj.LSMR(RTOL)
_MINRES_FULL = pj.MINRES(RTOL, well_posed=True)
_LSMR_FULL = pj.LSMR(RTOL, well_posed=True)
_INDEFINITE = [2.0, -1.5, 1.0, -1.0, 1.2, 0.8]
CASES = {
    "GMRES-real": _square(pj.GMRES(RTOL), False),
    "GMRES-preconditioned-complex": _square(pj.GMRES(RTOL), True, True),
    "GMRES(3)-preconditioned-real": _square(pj.GMRES(RTOL, restart=3), False, True),
    "BiCGStab-preconditioned-real": _square(pj.BiCGStab(RTOL), False, True),
    "BiCGStab-complex": _square(pj.BiCGStab(RTOL), True),
    "MINRES-full-rank-complex": _hermitian(_MINRES_FULL, True, _INDEFINITE),
    "MINRES-preconditioned-real": _hermitian(_MINRES_FULL, False, _INDEFINITE, True),
    "MINRES-deficient-real": _hermitian(_MINRES, False, [2.0, -1.0, 1.5]),
    "MINRES-deficient-complex": _hermitian(_MINRES, True, [2.0, -1.0, 1.5]),
    "LSMR-tall-real": _product(_LSMR, False, 7, 4, 4),
    "LSMR-wide-deficient-real": _product(_LSMR, False, 4, 7, 2),
    "LSMR-tall-deficient-complex": _product(_LSMR, True, 7, 4, 2),
    "LSMR-tall-preconditioned-real": _preconditioned(
        _product(_LSMR_FULL, False, 7, 4, 4), False
    ),
    "LSMR-wide-preconditioned-complex": _preconditioned(
        _product(_LSMR_FULL, True, 4, 7, 4), True
    ),
}


@pytest.mark.default(
    *("LSMR-tall-real", "MINRES-deficient-real", "GMRES-real"),
    "BiCGStab-complex",
)
@pytest.mark.shows("jvp", "vjp")
@pytest.mark.ci("GMRES*", "BiCGStab*", "MINRES-full-rank-complex")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tangents_and_cotangents_are_those_of_the_pseudoinverse(case):
    rows, cols = case.matrix.shape
    is_complex = np.iscomplexobj(case.matrix)
    vector, t_vector = krylov.random(10, is_complex, 2, rows)
    weights = krylov.random(11, is_complex, cols)
    options = {}
    if case.preconditioner is not None:
        tags = krylov.PSD if case.tags else ()
        options["preconditioner"] = krylov.operator(case.preconditioner, tags)

    def solve(matrix, vector):
        operator = krylov.operator(matrix, case.tags)
        solution = pj.linear_solve(
            operator, vector, case.solver, options=options, throw=False
        )
        return solution.value

    def derivatives(primals, tangents):
        value, tangent = jax.jvp(solve, primals, tangents)
        return value, tangent, jax.vjp(solve, *primals)[1](weights)

    value, tangent, (ct_matrix, ct_vector) = jax.jit(
        derivatives, compiler_options={"xla_backend_optimization_level": 0}
    )((case.matrix, vector), (case.t_matrix, t_vector))
    truth = krylov.pinv_tangent(case.matrix, case.t_matrix, vector, t_vector)
    assert krylov.relative_error(value, krylov.pinv(case.matrix) @ vector) < 1e-9
    assert krylov.relative_error(tangent, truth) < 1e-8
    paired = np.sum(ct_matrix * case.t_matrix) + np.sum(ct_vector * t_vector)
    assert krylov.relative_error(paired.real, np.sum(weights * truth).real) < 1e-8
