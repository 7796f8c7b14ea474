"""The named list of problems: paths A(t) x(t) = b(t) of constant rank, with a solver.

A(t) = L(t) R(t), where L has independent columns and R independent rows; L, R and b are
polynomials in t. The singular values of A(0) lie between 1 and 4, so that tolerances
can be tight. Add a problem here and every property is tested for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


class Path(NamedTuple):
    """Coefficients in t, lowest degree first."""

    left: np.ndarray  # (4, rows, rank)
    right: np.ndarray  # (4, rank, cols)
    vector: np.ndarray  # (degree + 1, rows)


class Problem(NamedTuple):
    name: str
    path: Path
    solver: lx.AbstractLinearSolver
    tags: Any = ()
    make_operator: Callable = lx.MatrixLinearOperator
    make_options: Callable = lambda operator: {}
    rtol: float = 1e-10
    core: bool = False  # takes part in the tests that take long to compile
    long: bool = False  # takes long to compile itself: loops within loops

    def matrix(self, t):
        return _evaluate(self.path.left, t) @ _evaluate(self.path.right, t)

    def vector(self, t):
        return _evaluate(self.path.vector, t)

    def solve_arrays(self, matrix, vector, **kwargs):
        operator = self.make_operator(matrix, self.tags)
        options = self.make_options(operator)
        return pj.linear_solve(
            operator, vector, self.solver, options=options, throw=False, **kwargs
        ).value

    def solve(self, t_operator, t_vector):
        return self.solve_arrays(self.matrix(t_operator), self.vector(t_vector))


def _evaluate(coefficients, t):
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = coefficient + t * value
    return jnp.asarray(value)


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


def _random(rng, is_complex, *shape):
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if is_complex else values


def _factor(rng, is_complex, rows, rank):
    """A polynomial whose constant term has singular values from 1 to 2."""
    coefficients = 0.2 * _random(rng, is_complex, 4, rows, rank)
    q, _ = np.linalg.qr(_random(rng, is_complex, rows, rank))
    coefficients[0] = q * np.linspace(1, 2, rank)
    return coefficients


def _masked(rng, is_complex, mask):
    """A square polynomial with the zeros of `mask` and a strong diagonal."""
    coefficients = 0.2 * _random(rng, is_complex, 4, 5, 5) * mask
    coefficients[0] += np.diag(np.linspace(1, 2, 5))
    return coefficients


_SHAPES = {
    "tall": (7, 4, 4),
    "wide": (4, 7, 4),
    "square": (5, 5, 5),
    "tall-deficient": (7, 4, 2),
    "wide-deficient": (4, 7, 2),
    "square-deficient": (5, 5, 3),
    "definite": (5, 5, 5),
    "negative-definite": (5, 5, 5),
    "semidefinite": (5, 5, 3),
    "negative-semidefinite": (5, 5, 3),
    "consistent-semidefinite": (5, 5, 3),
    "diagonal": (5, 5, 5),
    "diagonal-deficient": (5, 5, 3),
    "tridiagonal": (5, 5, 5),
    "lower-triangular": (5, 5, 5),
    "upper-triangular": (5, 5, 5),
}
_MASKS = {
    "diagonal": np.eye(5),
    "diagonal-deficient": np.eye(5),
    "tridiagonal": np.tri(5, k=1) * np.tri(5, k=1).T,
    "lower-triangular": np.tri(5),
    "upper-triangular": np.tri(5).T,
}
_TAGS = {
    "definite": lx.positive_semidefinite_tag,
    "negative-definite": lx.negative_semidefinite_tag,
    "semidefinite": lx.positive_semidefinite_tag,
    "negative-semidefinite": lx.negative_semidefinite_tag,
    "consistent-semidefinite": lx.positive_semidefinite_tag,
    "diagonal": lx.diagonal_tag,
    "diagonal-deficient": lx.diagonal_tag,
    "tridiagonal": lx.tridiagonal_tag,
    "lower-triangular": lx.lower_triangular_tag,
    "upper-triangular": lx.upper_triangular_tag,
}


def _multiply(left, right):
    """The product of two polynomials."""
    terms = [
        sum(left[i] @ right[k - i] for i in range(k + 1) if i < 4 and k - i < len(right))
        for k in range(len(left) + len(right) - 1)
    ]
    return np.stack(terms)


def _path(kind, is_complex):
    rows, cols, rank = _SHAPES[kind]
    rng = np.random.default_rng(list(_SHAPES).index(kind))
    vector = _random(rng, is_complex, 4, rows)
    if kind in _MASKS:
        left = _masked(rng, is_complex, _MASKS[kind])[:, :, :rank]
        right = np.zeros((4, rank, cols), left.dtype)
        right[0] = np.eye(rank, cols)
        return Path(left, right, vector)
    left = _factor(rng, is_complex, rows, rank)
    if "definite" not in kind:
        right = _factor(rng, is_complex, cols, rank).conj().swapaxes(1, 2)
        return Path(left, right, vector)
    right = left.conj().swapaxes(1, 2) * (-1 if "negative" in kind else 1)
    if "consistent" in kind:
        vector = _multiply(left, _multiply(right, vector[:, :, None]))[:, :, 0]
    return Path(left, right, vector)


def _problem(kind, field, label, solver, **kwargs):
    path = _path(kind, field == "complex")
    return Problem(f"{kind}-{field}-{label}", path, solver, _TAGS.get(kind, ()), **kwargs)


def _landweber(operator):
    """P = A^H; with `scale` below, every eigenvalue of I − scale P A is at most 0.88."""
    matrix = operator.as_matrix()
    return {"preconditioner": lx.MatrixLinearOperator(matrix.conj().T)}


def _problems():
    cg = pj.CG(rtol=1e-13, atol=1e-13, max_steps=100)
    singular_cg = pj.CG(rtol=1e-11, atol=1e-11, max_steps=100, well_posed=False)
    # The eigenvalues of A lie between 1 and 4: 2 / (1 + 4) is the best scale, with rate
    # 0.6. Those of A^H A between 1 and 16: 2 / 17, with rate 0.88.
    neumann = pj.Neumann(num_terms=80, scale=0.4)
    landweber = pj.Neumann(num_terms=350, scale=2 / 17)
    projected = {"make_options": _landweber}
    iterative = {"rtol": 1e-8}  # stops at a residual of 1e-13 to 1e-11, thrice amplified
    nested = {"rtol": 1e-8, "long": True}
    core = {"core": True}
    rows = [
        ("tall", "real complex", "QR", pj.QR(), core),
        ("wide", "real complex", "QR", pj.QR(), core),
        ("square", "real complex", "QR", pj.QR(), {}),
        ("tall", "complex", "CholeskyQR", pj.CholeskyQR(), core),
        ("wide", "real complex", "CholeskyQR", pj.CholeskyQR(), {}),
        ("square", "real", "CholeskyQR", pj.CholeskyQR(), {}),
        ("tall", "complex", "SVD", pj.SVD(), {}),
        ("wide", "real", "SVD", pj.SVD(), {}),
        ("tall-deficient", "real complex", "SVD", pj.SVD(), core),
        ("wide-deficient", "real complex", "SVD", pj.SVD(), core),
        ("square-deficient", "real complex", "SVD", pj.SVD(), {}),
        ("semidefinite", "complex", "SVD", pj.SVD(), {}),
        ("tall", "complex", "PivotedQR", pj.PivotedQR(), {}),
        ("wide", "real", "PivotedQR", pj.PivotedQR(), {}),
        ("tall-deficient", "real complex", "PivotedQR", pj.PivotedQR(), core),
        ("wide-deficient", "real complex", "PivotedQR", pj.PivotedQR(), core),
        ("square-deficient", "real complex", "PivotedQR", pj.PivotedQR(), {}),
        ("square", "complex", "LU", pj.LU(), core),
        ("definite", "complex", "Cholesky", pj.Cholesky(), {}),
        ("negative-definite", "real", "Cholesky", pj.Cholesky(), {}),
        ("lower-triangular", "complex", "Triangular", pj.Triangular(), {}),
        ("tridiagonal", "real", "Tridiagonal", pj.Tridiagonal(), {}),
        ("tall", "complex", "Normal(ours)", pj.Normal(pj.Cholesky()), {}),
        (
            "wide-deficient",
            "real",
            "Normal(PivotedQR)",
            pj.Normal(pj.PivotedQR(1e-9)),
            {},
        ),
        ("tall", "real complex", "Normal(Cholesky)", pj.Normal(lx.Cholesky()), {}),
        ("wide", "real complex", "Normal(Cholesky)", pj.Normal(lx.Cholesky()), {}),
        ("tall", "complex", "Normal(LU)", pj.Normal(lx.LU()), core),
        ("wide", "complex", "Normal(LU)", pj.Normal(lx.LU()), {}),
        ("tall", "complex", "Normal(QR)", pj.Normal(pj.QR()), {}),
        ("tall", "real complex", "Normal(CG)", pj.Normal(cg), core | iterative),
        ("wide", "real complex", "Normal(CG)", pj.Normal(cg), iterative),
        ("tall-deficient", "complex", "Normal(SVD)", pj.Normal(pj.SVD(1e-9)), core),
        ("wide-deficient", "complex", "Normal(SVD)", pj.Normal(pj.SVD(1e-9)), core),
        ("tall-deficient", "real", "Normal(CG)", pj.Normal(singular_cg), nested),
        ("wide-deficient", "complex", "Normal(CG)", pj.Normal(singular_cg), nested),
        ("definite", "real complex", "CG", cg, core | iterative),
        ("negative-definite", "complex", "CG", cg, iterative),
        ("semidefinite", "real complex", "CG", singular_cg, nested),
        ("negative-semidefinite", "complex", "CG", singular_cg, nested),
        ("definite", "real complex", "Neumann", neumann, {}),
        ("consistent-semidefinite", "real complex", "Neumann", neumann, core),
        ("tall", "real", "Landweber", landweber, projected),
        ("wide", "complex", "Landweber", landweber, projected),
        ("tall-deficient", "complex", "Landweber", landweber, projected),
        ("wide-deficient", "real", "Landweber", landweber, projected),
        ("square", "complex", "Auto(True)", pj.AutoLinearSolver(True), {}),
        ("definite", "real", "Auto(True)", pj.AutoLinearSolver(True), {}),
        ("tridiagonal", "complex", "Auto(True)", pj.AutoLinearSolver(True), {}),
        ("tall", "complex", "Auto(None)", pj.AutoLinearSolver(None), {}),
        ("upper-triangular", "real", "Auto(None)", pj.AutoLinearSolver(None), {}),
        ("wide-deficient", "complex", "Auto(False)", pj.AutoLinearSolver(False), {}),
        ("diagonal-deficient", "real", "Auto(False)", pj.AutoLinearSolver(False), {}),
        ("square", "complex", "lineax.LU", lx.LU(), core),
        ("definite", "complex", "lineax.Cholesky", lx.Cholesky(), {}),
        ("negative-definite", "real", "lineax.Cholesky", lx.Cholesky(), {}),
        ("tall", "complex", "lineax.QR", lx.QR(), {}),
        ("wide", "real", "lineax.QR", lx.QR(), {}),
        ("tall-deficient", "complex", "lineax.SVD", lx.SVD(), {}),
        ("wide-deficient", "real", "lineax.SVD", lx.SVD(), {}),
        ("definite", "complex", "lineax.CG", lx.CG(1e-13, 1e-13), iterative),
        ("square", "real", "lineax.GMRES", lx.GMRES(1e-13, 1e-13), iterative),
        ("tall", "real", "lineax.LSMR", lx.LSMR(1e-13, 1e-13), nested),
        ("wide", "complex", "lineax.Normal(LU)", lx.Normal(lx.LU()), {}),
        ("diagonal-deficient", "complex", "lineax.Diagonal", lx.Diagonal(), {}),
        ("diagonal", "complex", "lineax.Diagonal", lx.Diagonal(True), {}),
        ("lower-triangular", "complex", "lineax.Triangular", lx.Triangular(), {}),
        ("tridiagonal", "real", "lineax.Tridiagonal", lx.Tridiagonal(), {}),
        ("tall", "complex", "Pinv(True)", Pinv(True), {}),
        ("wide", "complex", "Pinv(True)", Pinv(True), core),
        ("square", "real", "Pinv(True)", Pinv(True), {}),
        ("tall-deficient", "real", "Pinv(False)", Pinv(False), {}),
        ("wide-deficient", "complex", "Pinv(False)", Pinv(False), core),
    ]
    return [
        _problem(kind, field, label, solver, **kwargs)
        for kind, fields, label, solver, kwargs in rows
        for field in fields.split()
    ]


PROBLEMS = {problem.name: problem for problem in _problems()}
CORE = [name for name, problem in PROBLEMS.items() if problem.core]


def each(names):
    """Parametrises a test by problems, under their names."""
    return pytest.mark.parametrize(
        "problem", [pytest.param(PROBLEMS[name], id=name) for name in names]
    )


def marking_slow(condition, names=tuple(PROBLEMS)):
    """As `each`, with the problems that fulfil `condition` marked slow."""
    slow = pytest.mark.slow  # several seconds of compiling for each of fifty problems
    return pytest.mark.parametrize(
        "problem",
        [
            pytest.param(
                PROBLEMS[name], id=name, marks=slow if condition(PROBLEMS[name]) else ()
            )
            for name in names
        ],
    )
