"""The named list of problems: paths A(t) x(t) = b(t) of constant rank, with a solver.

Add a problem here and its value, JVP, VJP, second derivative, a batch of each and a
failure are tested: by default, in CI too, or before a release, as the problem says.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
import pytest
from paths import evaluate, Path, path_of, TAGS

import pseudojvp as pj


class Problem(NamedTuple):
    name: str
    label: str  # of the solver
    tier: str  # when its tests run: "default", "slow" (in CI too) or "nightly"
    path: Path
    solver: lx.AbstractLinearSolver
    tags: Any = ()
    make_operator: Callable = lx.MatrixLinearOperator
    make_options: Callable = lambda operator: {}
    rtol: float = 1e-10
    core: bool = False  # takes part in the tests that take long to compile
    long: bool = False  # takes long to compile itself: loops within loops

    def matrix(self, t):
        return evaluate(self.path.left, t) @ evaluate(self.path.right, t)

    def vector(self, t):
        return evaluate(self.path.vector, t)

    def linear_solve(self, matrix, vector, **kwargs) -> lx.Solution:
        operator = self.make_operator(matrix, self.tags)
        options = self.make_options(operator)
        return pj.linear_solve(
            operator, vector, self.solver, options=options, throw=False, **kwargs
        )

    def solve_arrays(self, matrix, vector, **kwargs):
        return self.linear_solve(matrix, vector, **kwargs).value

    def solve(self, t_operator, t_vector):
        return self.solve_arrays(self.matrix(t_operator), self.vector(t_vector))


class Pinv(lx.AbstractLinearSolver):
    """A solver of its own, unknown to the library: the dense pseudoinverse."""

    full_rank: bool

    def init(self, operator, options):
        return jnp.linalg.pinv(operator.as_matrix(), rtol=1e-8)

    def compute(self, state, vector, options):
        return state @ vector, lx.RESULTS.successful, {}

    def transpose(self, state, options):
        return state.T, options

    def conj(self, state, options):
        return state.conj(), options

    def assume_full_rank(self):
        return self.full_rank


def _landweber(operator):
    """P = A^H; with `scale` below, every eigenvalue of I − scale P A is at most 0.88."""
    matrix = operator.as_matrix()
    return {"preconditioner": lx.MatrixLinearOperator(matrix.conj().T)}


def _updated(matrix, tags):
    """A as a low-rank update of another matrix."""
    del tags
    rows = jnp.arange(1.0, 1 + matrix.shape[0]) / matrix.shape[0]
    left = jnp.stack([rows, rows**2], 1).astype(matrix.dtype)
    right = jnp.stack([1 - rows, rows**3], 1).astype(matrix.dtype)
    return pj.LowRankUpdate(matrix - left @ right.conj().T, left, right)


def _row(kind, label, solver, *, default="", ci="", nightly="", **kwargs):
    """The problems of a kind and a solver, by when their fields are tested."""
    for tier, fields in (("default", default), ("slow", ci), ("nightly", nightly)):
        for field in fields.split():
            path = path_of(kind, field == "complex")
            name, tags = f"{kind}-{field}-{label}", TAGS.get(kind, ())
            yield Problem(name, label, tier, path, solver, tags, **kwargs)


def _problems():
    cg = pj.CG(rtol=1e-13, atol=1e-13, max_steps=100)
    singular_cg = pj.CG(rtol=1e-11, atol=1e-11, max_steps=100, well_posed=False)
    # The eigenvalues of A lie between 1 and 4: 2 / (1 + 4) is the best scale, with rate
    # 0.6. Those of A^H A between 1 and 16: 2 / 17, with rate 0.88.
    neumann = pj.Neumann(num_terms=80, scale=0.4)
    few_terms = pj.Neumann(num_terms=16, scale=0.95)  # of eigenvalues from 1 to 1.1
    landweber = pj.Neumann(num_terms=350, scale=2 / 17)
    projected = {"make_options": _landweber}
    iterative = {"rtol": 1e-8}  # stops at a residual of 1e-13 to 1e-11, thrice amplified
    nested = {"rtol": 1e-8, "long": True}
    core = {"core": True}
    rows = [
        _row("tall", "QR", pj.QR(), default="complex", ci="real", **core),
        _row("wide", "QR", pj.QR(), ci="complex", nightly="real", **core),
        _row("square", "QR", pj.QR(), nightly="real complex"),
        _row("tall", "CholeskyQR", pj.CholeskyQR(), default="complex", **core),
        _row("wide", "CholeskyQR", pj.CholeskyQR(), ci="real", nightly="complex"),
        _row("square", "CholeskyQR", pj.CholeskyQR(), nightly="real"),
        _row("tall", "SVD", pj.SVD(), nightly="complex"),
        _row("wide", "SVD", pj.SVD(), nightly="real"),
        _row("tall-deficient", "SVD", pj.SVD(), ci="real", nightly="complex", **core),
        _row("wide-deficient", "SVD", pj.SVD(), default="complex", ci="real", **core),
        _row("square-deficient", "SVD", pj.SVD(), nightly="real complex"),
        _row("semidefinite", "SVD", pj.SVD(), nightly="complex"),
        _row("tall", "PivotedQR", pj.PivotedQR(), nightly="complex"),
        _row("wide", "PivotedQR", pj.PivotedQR(), nightly="real"),
        _row(
            "tall-deficient",
            "PivotedQR",
            pj.PivotedQR(),
            nightly="real complex",
            **core,
        ),
        _row(
            "wide-deficient",
            "PivotedQR",
            pj.PivotedQR(),
            default="real",
            nightly="complex",
            **core,
        ),
        _row("square-deficient", "PivotedQR", pj.PivotedQR(), nightly="real complex"),
        _row("square", "LU", pj.LU(), default="complex", **core),
        _row("definite", "Cholesky", pj.Cholesky(), default="complex"),
        _row("negative-definite", "Cholesky", pj.Cholesky(), ci="real"),
        _row("lower-triangular", "Triangular", pj.Triangular(), default="complex"),
        _row("tridiagonal", "Tridiagonal", pj.Tridiagonal(), default="real"),
        _row("tall", "Normal(ours)", pj.Normal(pj.Cholesky()), default="complex"),
        _row(
            "wide-deficient",
            "Normal(PivotedQR)",
            pj.Normal(pj.PivotedQR(1e-09)),
            default="real",
        ),
        _row(
            "tall",
            "Normal(Cholesky)",
            pj.Normal(lx.Cholesky()),
            default="complex",
            nightly="real",
        ),
        _row(
            "wide",
            "Normal(Cholesky)",
            pj.Normal(lx.Cholesky()),
            ci="real",
            nightly="complex",
        ),
        _row("tall", "Normal(LU)", pj.Normal(lx.LU()), default="complex", **core),
        _row("wide", "Normal(LU)", pj.Normal(lx.LU()), nightly="complex"),
        _row("tall", "Normal(QR)", pj.Normal(pj.QR()), default="complex"),
        _row(
            "tall",
            "Normal(CG)",
            pj.Normal(cg),
            default="complex",
            nightly="real",
            **core,
            **iterative,
        ),
        _row("wide", "Normal(CG)", pj.Normal(cg), nightly="real complex", **iterative),
        _row(
            "tall-deficient",
            "Normal(SVD)",
            pj.Normal(pj.SVD(1e-09)),
            default="complex",
            **core,
        ),
        _row(
            "wide-deficient",
            "Normal(SVD)",
            pj.Normal(pj.SVD(1e-09)),
            nightly="complex",
            **core,
        ),
        _row(
            "tall-deficient",
            "Normal(CG)",
            pj.Normal(singular_cg),
            nightly="real",
            **nested,
        ),
        _row(
            "wide-deficient",
            "Normal(CG)",
            pj.Normal(singular_cg),
            nightly="complex",
            **nested,
        ),
        _row(
            "definite", "CG", cg, default="complex", nightly="real", **core, **iterative
        ),
        _row("negative-definite", "CG", cg, nightly="complex", **iterative),
        _row("semidefinite", "CG", singular_cg, nightly="real complex", **nested),
        _row("negative-semidefinite", "CG", singular_cg, nightly="complex", **nested),
        _row("definite", "Neumann", neumann, ci="real", nightly="complex"),
        _row(
            "consistent-semidefinite",
            "Neumann",
            neumann,
            default="complex",
            nightly="real",
            **core,
        ),
        _row(
            "consistent-clustered-semidefinite", "Neumann", few_terms, nightly="complex"
        ),
        _row("tall", "Landweber", landweber, nightly="real", **projected),
        _row("wide", "Landweber", landweber, nightly="complex", **projected),
        _row("tall-deficient", "Landweber", landweber, default="complex", **projected),
        _row("wide-deficient", "Landweber", landweber, ci="real", **projected),
        _row("square", "Auto(True)", pj.AutoLinearSolver(True), default="complex"),
        _row("definite", "Auto(True)", pj.AutoLinearSolver(True), ci="real"),
        _row("tridiagonal", "Auto(True)", pj.AutoLinearSolver(True), nightly="complex"),
        _row("tall", "Auto(None)", pj.AutoLinearSolver(None), default="complex"),
        _row("upper-triangular", "Auto(None)", pj.AutoLinearSolver(None), ci="real"),
        _row(
            "wide-deficient", "Auto(False)", pj.AutoLinearSolver(False), nightly="complex"
        ),
        _row(
            "diagonal-deficient",
            "Auto(False)",
            pj.AutoLinearSolver(False),
            default="real",
        ),
        _row(
            "square",
            "Woodbury",
            pj.Woodbury(),
            default="complex",
            ci="real",
            make_operator=_updated,
        ),
        _row("square", "lineax.LU", lx.LU(), default="complex", **core),
        _row("definite", "lineax.Cholesky", lx.Cholesky(), default="complex"),
        _row("negative-definite", "lineax.Cholesky", lx.Cholesky(), nightly="real"),
        _row("tall", "lineax.QR", lx.QR(), default="complex"),
        _row("wide", "lineax.QR", lx.QR(), ci="real"),
        _row("tall-deficient", "lineax.SVD", lx.SVD(), default="complex"),
        _row("wide-deficient", "lineax.SVD", lx.SVD(), nightly="real"),
        _row(
            "definite", "lineax.CG", lx.CG(1e-13, 1e-13), default="complex", **iterative
        ),
        _row(
            "square", "lineax.GMRES", lx.GMRES(1e-13, 1e-13), default="real", **iterative
        ),
        _row("square", "lineax.LSMR", lx.LSMR(1e-13, 1e-13), ci="real", **nested),
        _row("tall", "lineax.LSMR", lx.LSMR(1e-13, 1e-13), nightly="real", **nested),
        _row("wide", "lineax.Normal(LU)", lx.Normal(lx.LU()), default="complex"),
        _row("diagonal-deficient", "lineax.Diagonal", lx.Diagonal(), ci="complex"),
        _row("diagonal", "lineax.Diagonal", lx.Diagonal(True), default="complex"),
        _row("lower-triangular", "lineax.Triangular", lx.Triangular(), default="complex"),
        _row("tridiagonal", "lineax.Tridiagonal", lx.Tridiagonal(), default="real"),
        _row("tall", "Pinv(True)", Pinv(True), default="complex"),
        _row("wide", "Pinv(True)", Pinv(True), ci="complex", **core),
        _row("square", "Pinv(True)", Pinv(True), nightly="real"),
        _row("tall-deficient", "Pinv(False)", Pinv(False), ci="real"),
        _row("wide-deficient", "Pinv(False)", Pinv(False), default="complex", **core),
    ]
    return [problem for row in rows for problem in row]


PROBLEMS = {problem.name: problem for problem in _problems()}
CORE = [name for name, problem in PROBLEMS.items() if problem.core]


def marks_of(*tiers):
    """The mark of the latest of "default", "slow" and "nightly"."""
    latest = max(tiers, key=("default", "slow", "nightly").index)
    return () if latest == "default" else getattr(pytest.mark, latest)


def each(names, tier="default", others=None):
    """Parametrises a test by problems, under their names.

    They run when the problem says, or when `tier` says, if that is later; those that are
    not core when `others` says.
    """
    return pytest.mark.parametrize(
        "problem",
        [
            pytest.param(
                problem,
                id=problem.name,
                marks=marks_of(problem.tier, tier if problem.core else others or tier),
            )
            for problem in map(PROBLEMS.__getitem__, names)
        ],
    )
