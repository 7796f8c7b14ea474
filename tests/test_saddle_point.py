"""Each row of the dispatch against the dense pseudoinverse of [[I, A], [A^H, 0]]."""

import functools
import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj
from pseudojvp._primitive import bind
from pseudojvp._saddle_point import Blocks, Problem


pytestmark = pytest.mark.grid


PSD = lx.positive_semidefinite_tag
NSD = lx.negative_semidefinite_tag
TOL = 1e-12  # of the iterative solvers


class Case(NamedTuple):
    name: str
    solver: Any
    shape: tuple[int, int]
    rank: int
    tags: Any = ()
    options: Any = lambda matrix: {}


def _landweber(matrix):
    return {"preconditioner": lx.MatrixLinearOperator(matrix.conj().T)}


TALL, WIDE, SQUARE = (5, 3), (3, 5), (4, 4)
NORMAL_CG = pj.Normal(pj.CG(TOL, TOL, max_steps=200))
NORMAL_SINGULAR_CG = pj.Normal(pj.CG(TOL, TOL, max_steps=200, well_posed=False))
DENSE = [
    Case("QR-tall", pj.QR(), TALL, 3),
    Case("QR-wide", pj.QR(), WIDE, 3),
    Case("QR-square", pj.QR(), SQUARE, 4),
    Case("SVD-tall", pj.SVD(), TALL, 3),
    Case("SVD-tall-deficient", pj.SVD(), TALL, 2),
    Case("SVD-wide-deficient", pj.SVD(), WIDE, 2),
    Case("SVD-square-deficient", pj.SVD(), SQUARE, 2),
    Case("Normal(Cholesky)-tall", pj.Normal(lx.Cholesky()), TALL, 3),
    Case("Normal(Cholesky)-wide", pj.Normal(lx.Cholesky()), WIDE, 3),
    Case("Normal(Cholesky)-square", pj.Normal(lx.Cholesky()), SQUARE, 4),
    Case("Normal(LU)-tall", pj.Normal(lx.LU()), TALL, 3),
    Case("Normal(LU)-wide", pj.Normal(lx.LU()), WIDE, 3),
    Case("Normal(SVD)-tall-deficient", pj.Normal(pj.SVD(1e-8)), TALL, 2),
    Case("Normal(SVD)-wide-deficient", pj.Normal(pj.SVD(1e-8)), WIDE, 2),
    Case("Auto-tall", pj.AutoLinearSolver(None), TALL, 3),
    Case("Auto-wide-deficient", pj.AutoLinearSolver(False), WIDE, 2),
    Case("LU", lx.LU(), SQUARE, 4),
    Case("Cholesky", lx.Cholesky(), SQUARE, 4, PSD),
    Case("Cholesky-negative", lx.Cholesky(), SQUARE, 4, NSD),
    Case("lx.QR-tall", lx.QR(), TALL, 3),
    Case("lx.QR-wide", lx.QR(), WIDE, 3),
    Case("lx.SVD-tall-deficient", lx.SVD(), TALL, 2),
    Case("lx.SVD-wide-deficient", lx.SVD(), WIDE, 2),
    Case("lx.Normal(LU)-tall", lx.Normal(lx.LU()), TALL, 3),
    Case("lx.Normal(Cholesky)-wide", lx.Normal(lx.Cholesky()), WIDE, 3),
    Case("lx.Auto-tall", lx.AutoLinearSolver(None), TALL, 3),
]
ITERATIVE = [
    Case("Normal(CG)-tall", NORMAL_CG, TALL, 3),
    Case("Normal(CG)-wide", NORMAL_CG, WIDE, 3),
    Case("Normal(CG)-tall-deficient", NORMAL_SINGULAR_CG, TALL, 2),
    Case("Normal(CG)-wide-deficient", NORMAL_SINGULAR_CG, WIDE, 2),
    Case("CG", pj.CG(TOL, TOL, max_steps=200), SQUARE, 4, PSD),
    Case("CG-negative", pj.CG(TOL, TOL, max_steps=200), SQUARE, 4, NSD),
    Case("CG-deficient", NORMAL_SINGULAR_CG.inner_solver, SQUARE, 2, PSD),
    Case("Neumann", pj.Neumann(300, scale=0.5), SQUARE, 4, PSD),
    Case("Neumann-negative", pj.Neumann(300, scale=-0.5), SQUARE, 4, NSD),
    Case("Landweber-square", pj.Neumann(300, scale=0.3), SQUARE, 4, (), _landweber),
    Case("Landweber-tall", pj.Neumann(300, scale=0.3), TALL, 2, (), _landweber),
    Case("Landweber-wide", pj.Neumann(300, scale=0.3), WIDE, 2, (), _landweber),
    Case("lx.CG", lx.CG(TOL, TOL, max_steps=200), SQUARE, 4, PSD),
]
CASES = DENSE + ITERATIVE
# Which of (v, w, y) are given and which of (r, x, P y) are wanted; the others are `None`.
BITS = tuple(itertools.product([False, True], repeat=3))
PATTERNS = tuple(p for p in itertools.product(BITS, BITS) if any(p[0][:2]) and any(p[1]))
FULL_RANK_PATTERNS = tuple(p for p in PATTERNS if not (p[0][2] or p[1][2]))
FEW_PATTERNS = (
    ((True, False, False), (True, False, False)),
    ((False, True, True), (False, True, True)),
    ((True, True, True), (True, True, True)),
)

dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def _normal_entries(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


@functools.cache
def _matrix(case: Case, dtype) -> np.ndarray:
    """A matrix with singular values between 1 and 2, definite where tagged so."""
    rng = np.random.default_rng(5)
    rows, cols = case.shape
    left, _ = np.linalg.qr(_normal_entries(rng, (rows, case.rank), dtype))
    right, _ = np.linalg.qr(_normal_entries(rng, (cols, case.rank), dtype))
    right = left if case.tags else right
    sign = -1.0 if case.tags is NSD else 1.0
    return sign * (left * np.linspace(1, 2, case.rank)) @ right.conj().T


def _enters_from_adjoint(case: Case) -> bool:
    rows, cols = case.shape
    return cols > rows and case.rank == rows


def _truth(case: Case, dtype) -> np.ndarray:
    """blockdiag(M†, P) in numpy, for A or for the adjoint of a wide A of full rank."""
    a = _matrix(case, dtype)
    a = a.conj().T if _enters_from_adjoint(case) else a
    rows, cols = a.shape
    saddle = np.block([[np.eye(rows), a], [a.conj().T, np.zeros((cols, cols))]])
    projection = np.linalg.pinv(a, rcond=1e-8) @ a
    truth = np.zeros((rows + 2 * cols,) * 2, dtype)
    truth[: rows + cols, : rows + cols] = np.linalg.pinv(saddle, rcond=1e-8)
    truth[rows + cols :, rows + cols :] = projection
    return truth


def _problem(case: Case, matrix) -> Problem:
    operator = lx.MatrixLinearOperator(matrix, case.tags)
    options = case.options(matrix)
    state = case.solver.init(operator, options)
    return Problem.create(operator, state, options, case.solver, False)


def _split(case: Case, stacked) -> tuple:
    rows, cols = case.shape[::-1] if _enters_from_adjoint(case) else case.shape
    return stacked[:rows], stacked[rows : rows + cols], stacked[rows + cols :]


def _filled(case: Case, blocks: Blocks, like) -> jax.Array:
    """The blocks stacked, with zeros in the place of `None`."""
    zeros = _split(case, jnp.zeros_like(like))
    pairs = zip(blocks, zeros, strict=True)
    return jnp.concatenate([zero if b is None else b for b, zero in pairs])


def _choose(case: Case, stacked, chosen) -> Blocks:
    blocks = _split(case, stacked)
    return Blocks(*(b if use else None for b, use in zip(blocks, chosen, strict=True)))


@functools.cache
def _computed(case: Case, dtype) -> tuple[np.ndarray, np.ndarray]:
    """The blocks (v, w) -> (r, x) as a matrix; whether each column was successful."""
    truth = _truth(case, dtype)

    @eqx.filter_jit
    def columns(matrix, basis):
        problem = _problem(case, matrix)

        def column(unit):
            rhs = _choose(case, unit, (True, True, False))
            out, result, _ = bind(problem, rhs, Blocks(True, True, False))
            return _filled(case, out, unit), result == lx.RESULTS.successful

        return jax.vmap(column)(basis)

    size = truth.shape[0] - len(_split(case, truth)[2])
    basis = np.eye(truth.shape[0], dtype=dtype)[:size]
    out, successful = columns(_matrix(case, dtype), basis)
    return np.asarray(out).T[:size], np.asarray(successful)


@dtypes
@by_name(CASES)
def test_map_is_the_pseudoinverse_of_the_saddle_point_matrix(case, dtype):
    matrix, successful = _computed(case, dtype)
    size = matrix.shape[0]
    np.testing.assert_allclose(matrix, _truth(case, dtype)[:size, :size], atol=1e-10)
    assert successful.all()


@dtypes
@by_name(CASES)
def test_map_is_self_adjoint(case, dtype):
    matrix, _ = _computed(case, dtype)
    rng = np.random.default_rng(6)
    a, b = _normal_entries(rng, (2, matrix.shape[0]), dtype)
    left, right = np.vdot(matrix @ a, b), np.vdot(a, matrix @ b)
    np.testing.assert_allclose(left, right, rtol=1e-10)


def _assert_patterns(case, dtype, patterns):
    truth = _truth(case, dtype)
    stacked = _normal_entries(np.random.default_rng(7), truth.shape[0], dtype)

    @eqx.filter_jit
    def apply(matrix, stacked):
        problem = _problem(case, matrix)
        return [
            bind(problem, _choose(case, stacked, given), Blocks(*wanted))[0]
            for given, wanted in patterns
        ]

    outs = apply(_matrix(case, dtype), stacked)
    for (given, wanted), out in zip(patterns, outs, strict=True):
        masked = _filled(case, _choose(case, stacked, given), stacked)
        expected = _filled(case, _choose(case, truth @ masked, wanted), stacked)
        label = f"given {given}, wanted {wanted}"
        np.testing.assert_allclose(
            _filled(case, out, stacked), expected, atol=1e-10, err_msg=label
        )
        assert not any(
            b is not None for b, want in zip(out, wanted, strict=True) if not want
        )


FULL_RANK = [case for case in CASES if case.solver.assume_full_rank()]
ANY_RANK = [case for case in CASES if not case.solver.assume_full_rank()]
EACH_ROW = ("SVD-tall-deficient", "Normal(SVD)-tall-deficient", "lx.SVD-wide-deficient")


@by_name([case for case in CASES if case.name in EACH_ROW])
def test_every_pattern_of_zero_blocks_of_any_rank(case):
    _assert_patterns(case, complex, PATTERNS)


@by_name([case for case in ANY_RANK if case.name not in EACH_ROW])
def test_some_patterns_of_zero_blocks_of_any_rank(case):
    _assert_patterns(case, complex, FEW_PATTERNS)


@by_name([case for case in FULL_RANK if case in DENSE])
def test_every_pattern_of_zero_blocks_of_full_rank(case):
    _assert_patterns(case, complex, FULL_RANK_PATTERNS)


@by_name([case for case in FULL_RANK if case in ITERATIVE])
def test_solution_and_adjoint_solution_of_iterative_solvers(case):
    solution = ((True, False, False), (False, True, False))
    adjoint_solution = ((False, True, False), (True, False, False))
    _assert_patterns(case, complex, (solution, adjoint_solution))


@by_name([case for case in DENSE if case in FULL_RANK])
def test_projection_is_the_identity_for_independent_columns(case):
    _assert_patterns(case, float, [((False, False, True), (False, False, True))])
