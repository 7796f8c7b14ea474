"""Solvers, and matrices with the truth of the saddle point map of each."""

import functools
from typing import Any, NamedTuple

import lineax as lx
import numpy as np

import pseudojvp as pj
from pseudojvp._map.rows import Problem


PSD = lx.positive_semidefinite_tag
NSD = lx.negative_semidefinite_tag
TOL = 1e-12  # of the iterative solvers


MASKS = {
    "diagonal": np.eye(4),
    "lower": np.tri(4),
    "upper": np.tri(4).T,
    "tridiagonal": np.tri(4, k=1) * np.tri(4, k=1).T,
}


class Case(NamedTuple):
    label: str  # of the solver
    kind: str
    solver: Any
    shape: tuple[int, int]
    rank: int
    tags: Any = ()
    options: Any = lambda matrix: {}
    sparse: bool = False
    mask: str | None = None  # where its entries are
    tier: str = "default"

    @property
    def name(self):
        return f"{self.label}-{self.kind}"


def _landweber(matrix):
    return {"preconditioner": lx.MatrixLinearOperator(matrix.conj().T)}


TALL, WIDE, SQUARE = (5, 3), (3, 5), (4, 4)
NORMAL_CG = pj.Normal(pj.CG(TOL, TOL, max_steps=200))
SINGULAR_CG = pj.CG(TOL, TOL, max_steps=200, well_posed=False)
NORMAL_SINGULAR_CG = pj.Normal(SINGULAR_CG)


def _tall_and_wide(label, solver, **kwargs):
    yield Case(label, "tall", solver, TALL, 3, **kwargs)
    yield Case(label, "wide", solver, WIDE, 3, **{"tier": "slow", **kwargs})


def _deficient(label, solver, **kwargs):
    yield Case(label, "tall-deficient", solver, TALL, 2, **{"tier": "slow", **kwargs})
    yield Case(label, "wide-deficient", solver, WIDE, 2, **kwargs)


def square(label, solver, kind="square", **kwargs):
    return Case(label, kind, solver, SQUARE, 4, **kwargs)


DENSE = [
    Case("QR", "tall", pj.QR(), TALL, 3),
    Case("QR", "wide", pj.QR(), WIDE, 3),
    square("QR", pj.QR()),
    *_tall_and_wide("CholeskyQR", pj.CholeskyQR()),
    Case("SVD", "tall", pj.SVD(), TALL, 3, tier="slow"),
    *_deficient("SVD", pj.SVD()),
    Case("SVD", "square-deficient", pj.SVD(), SQUARE, 2, tier="slow"),
    Case("PivotedQR", "tall-deficient", pj.PivotedQR(), TALL, 2),
    Case("PivotedQR", "wide-deficient", pj.PivotedQR(), WIDE, 2, tier="slow"),
    *_tall_and_wide("Normal(Cholesky)", pj.Normal(lx.Cholesky())),
    square("Normal(Cholesky)", pj.Normal(lx.Cholesky()), tier="slow"),
    *_tall_and_wide("Normal(LU)", pj.Normal(lx.LU())),
    Case("Normal(QR)", "tall", pj.Normal(pj.QR()), TALL, 3, tier="slow"),
    Case(
        "Normal(PivotedQR)",
        "wide-deficient",
        pj.Normal(pj.PivotedQR(1e-8)),
        WIDE,
        2,
        tier="slow",
    ),
    *_deficient("Normal(SVD)", pj.Normal(pj.SVD(1e-8))),
    Case("Auto", "tall", pj.AutoLinearSolver(None), TALL, 3),
    Case("Auto", "wide-deficient", pj.AutoLinearSolver(False), WIDE, 2, tier="slow"),
    square("LU", pj.LU()),
    square("Cholesky", pj.Cholesky(), tags=PSD),
    square("Cholesky", pj.Cholesky(), "negative", tags=NSD, tier="slow"),
    square("Triangular", pj.Triangular(), tags=lx.lower_triangular_tag, mask="lower"),
    square("Tridiagonal", pj.Tridiagonal(), tags=lx.tridiagonal_tag, mask="tridiagonal"),
    square(
        "SparseTriangular",
        pj.SparseTriangular(),
        tags=lx.upper_triangular_tag,
        mask="upper",
        sparse=True,
    ),
    square("SparseLU", pj.SparseLU(), sparse=True),
    square("lx.LU", lx.LU()),
    square("lx.Cholesky", lx.Cholesky(), tags=PSD),
    square("lx.Cholesky", lx.Cholesky(), "negative", tags=NSD, tier="slow"),
    square("lx.Diagonal", lx.Diagonal(), tags=lx.diagonal_tag, mask="diagonal"),
    square("lx.Triangular", lx.Triangular(), tags=lx.lower_triangular_tag, mask="lower"),
    square(
        "lx.Tridiagonal", lx.Tridiagonal(), tags=lx.tridiagonal_tag, mask="tridiagonal"
    ),
    *_tall_and_wide("lx.QR", lx.QR()),
    *_deficient("lx.SVD", lx.SVD()),
    Case("lx.Normal(LU)", "tall", lx.Normal(lx.LU()), TALL, 3),
    Case("lx.Normal(Cholesky)", "wide", lx.Normal(lx.Cholesky()), WIDE, 3),
    Case("lx.Auto", "tall", lx.AutoLinearSolver(None), TALL, 3),
]
ITERATIVE = [
    Case("Normal(CG)", "tall", NORMAL_CG, TALL, 3),
    Case("Normal(CG)", "wide", NORMAL_CG, WIDE, 3, tier="slow"),
    *_deficient("Normal(CG)", NORMAL_SINGULAR_CG, tier="nightly"),
    square("CG", pj.CG(TOL, TOL, max_steps=200), tags=PSD),
    square("CG", pj.CG(TOL, TOL, max_steps=200), "negative", tags=NSD, tier="nightly"),
    Case("CG", "deficient", SINGULAR_CG, SQUARE, 2, PSD, tier="slow"),
    square("MINRES", pj.MINRES(TOL, TOL, well_posed=True), tags=PSD, tier="slow"),
    Case("MINRES", "deficient", pj.MINRES(TOL, TOL), SQUARE, 2, NSD, tier="slow"),
    square("GMRES", pj.GMRES(TOL, TOL)),
    square("FlexibleCG", pj.FlexibleCG(TOL, TOL), tags=PSD, tier="slow"),
    square("FlexibleGMRES", pj.FlexibleGMRES(TOL, TOL), tier="slow"),
    square("BiCGStab", pj.BiCGStab(TOL, TOL), tier="slow"),
    Case("LSMR", "tall", pj.LSMR(TOL, TOL, well_posed=True), TALL, 3, tier="slow"),
    *_deficient("LSMR", pj.LSMR(TOL, TOL), tier="slow"),
    square("Neumann", pj.Neumann(300, scale=0.5), tags=PSD),
    square("Neumann", pj.Neumann(300, scale=-0.5), "negative", tags=NSD, tier="slow"),
    square("Landweber", pj.Neumann(300, scale=0.3), options=_landweber, tier="slow"),
    *_deficient("Landweber", pj.Neumann(300, scale=0.3), options=_landweber),
    square("lx.CG", lx.CG(TOL, TOL, max_steps=200), tags=PSD),
    square("lx.GMRES", lx.GMRES(TOL, TOL), tier="slow"),
    square("lx.BiCGStab", lx.BiCGStab(TOL, TOL), tier="slow"),
    Case("lx.LSMR", "tall", lx.LSMR(TOL, TOL), TALL, 3, tier="slow"),
]
CASES = DENSE + ITERATIVE


def normal_entries(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


@functools.cache
def matrix_of(case: Case, dtype, seed=5) -> np.ndarray:
    """A matrix with singular values between 1 and 2, definite where tagged so."""
    rng = np.random.default_rng(seed)
    rows, cols = case.shape
    if case.mask is not None:  # strong diagonal
        noise = 0.2 * normal_entries(rng, case.shape, dtype) * MASKS[case.mask]
        return noise + np.diag(np.linspace(1, 2, rows))
    left, _ = np.linalg.qr(normal_entries(rng, (rows, case.rank), dtype))
    right, _ = np.linalg.qr(normal_entries(rng, (cols, case.rank), dtype))
    right = left if case.tags else right
    sign = -1.0 if case.tags is NSD else 1.0
    return sign * (left * np.linspace(1, 2, case.rank)) @ right.conj().T


def enters_from_adjoint(case: Case) -> bool:
    rows, cols = case.shape
    return cols > rows and case.rank == rows


def truth_of(case: Case, dtype, seed=5) -> np.ndarray:
    """blockdiag(M†, P) in numpy, for A or for the adjoint of a wide A of full rank."""
    a = matrix_of(case, dtype, seed)
    a = a.conj().T if enters_from_adjoint(case) else a
    rows, cols = a.shape
    saddle = np.block([[np.eye(rows), a], [a.conj().T, np.zeros((cols, cols))]])
    projection = np.linalg.pinv(a, rcond=1e-8) @ a
    truth = np.zeros((rows + 2 * cols,) * 2, dtype)
    truth[: rows + cols, : rows + cols] = np.linalg.pinv(saddle, rcond=1e-8)
    truth[rows + cols :, rows + cols :] = projection
    return truth


def problem_of(case: Case, matrix) -> Problem:
    operator = lx.MatrixLinearOperator(matrix, case.tags)
    if case.sparse:
        places = np.ones(case.shape) if case.mask is None else MASKS[case.mask]
        row, col = np.nonzero(places)
        entries = matrix[row, col], row, col, case.shape
        operator = pj.SparseLinearOperator(entries, tags=case.tags)
    options = case.options(matrix)
    state = case.solver.init(operator, options)
    return Problem.create(operator, state, options, case.solver)
