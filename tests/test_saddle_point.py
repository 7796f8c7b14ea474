"""Each row of the dispatch against the dense pseudoinverse of [[I, A], [A^H, 0]]."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit
from problems import marks_of

import pseudojvp as pj
from pseudojvp._primitive import bind
from pseudojvp._saddle_point import Blocks, Problem


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
    yield Case(label, "wide", solver, WIDE, 3, **kwargs)


def _deficient(label, solver, **kwargs):
    yield Case(label, "tall-deficient", solver, TALL, 2, **kwargs)
    yield Case(label, "wide-deficient", solver, WIDE, 2, **kwargs)


def _square(label, solver, kind="square", **kwargs):
    return Case(label, kind, solver, SQUARE, 4, **kwargs)


DENSE = [
    *_tall_and_wide("QR", pj.QR()),
    _square("QR", pj.QR(), tier="slow"),
    *_tall_and_wide("CholeskyQR", pj.CholeskyQR()),
    Case("SVD", "tall", pj.SVD(), TALL, 3, tier="slow"),
    *_deficient("SVD", pj.SVD()),
    Case("SVD", "square-deficient", pj.SVD(), SQUARE, 2, tier="slow"),
    Case("PivotedQR", "tall-deficient", pj.PivotedQR(), TALL, 2),
    Case("PivotedQR", "wide-deficient", pj.PivotedQR(), WIDE, 2, tier="slow"),
    *_tall_and_wide("Normal(Cholesky)", pj.Normal(lx.Cholesky())),
    _square("Normal(Cholesky)", pj.Normal(lx.Cholesky()), tier="slow"),
    *_tall_and_wide("Normal(LU)", pj.Normal(lx.LU()), tier="slow"),
    *_deficient("Normal(SVD)", pj.Normal(pj.SVD(1e-8))),
    Case("Auto", "tall", pj.AutoLinearSolver(None), TALL, 3),
    Case("Auto", "wide-deficient", pj.AutoLinearSolver(False), WIDE, 2, tier="slow"),
    _square("LU", pj.LU()),
    _square("Cholesky", pj.Cholesky(), tags=PSD),
    _square("Cholesky", pj.Cholesky(), "negative", tags=NSD, tier="slow"),
    _square("Triangular", pj.Triangular(), tags=lx.lower_triangular_tag, mask="lower"),
    _square("Tridiagonal", pj.Tridiagonal(), tags=lx.tridiagonal_tag, mask="tridiagonal"),
    _square(
        "SparseTriangular",
        pj.SparseTriangular(),
        tags=lx.upper_triangular_tag,
        mask="upper",
        sparse=True,
    ),
    _square("KLU", pj.KLU(), sparse=True),
    _square("lx.LU", lx.LU()),
    _square("lx.Cholesky", lx.Cholesky(), tags=PSD),
    _square("lx.Cholesky", lx.Cholesky(), "negative", tags=NSD, tier="slow"),
    _square("lx.Diagonal", lx.Diagonal(), tags=lx.diagonal_tag, mask="diagonal"),
    _square("lx.Triangular", lx.Triangular(), tags=lx.lower_triangular_tag, mask="lower"),
    _square(
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
    *_deficient("Normal(CG)", NORMAL_SINGULAR_CG, tier="slow"),
    _square("CG", pj.CG(TOL, TOL, max_steps=200), tags=PSD),
    _square("CG", pj.CG(TOL, TOL, max_steps=200), "negative", tags=NSD, tier="slow"),
    Case("CG", "deficient", SINGULAR_CG, SQUARE, 2, PSD, tier="slow"),
    _square("MINRES", pj.MINRES(TOL, TOL, well_posed=True), tags=PSD),
    Case("MINRES", "deficient", pj.MINRES(TOL, TOL), SQUARE, 2, NSD, tier="slow"),
    _square("GMRES", pj.GMRES(TOL, TOL)),
    _square("BiCGStab", pj.BiCGStab(TOL, TOL)),
    Case("LSMR", "tall", pj.LSMR(TOL, TOL, well_posed=True), TALL, 3, tier="slow"),
    *_deficient("LSMR", pj.LSMR(TOL, TOL), tier="slow"),
    _square("Neumann", pj.Neumann(300, scale=0.5), tags=PSD),
    _square("Neumann", pj.Neumann(300, scale=-0.5), "negative", tags=NSD, tier="slow"),
    _square("Landweber", pj.Neumann(300, scale=0.3), options=_landweber, tier="slow"),
    *_deficient("Landweber", pj.Neumann(300, scale=0.3), options=_landweber),
    _square("lx.CG", lx.CG(TOL, TOL, max_steps=200), tags=PSD),
    _square("lx.GMRES", lx.GMRES(TOL, TOL), tier="slow"),
    _square("lx.BiCGStab", lx.BiCGStab(TOL, TOL), tier="slow"),
    Case("lx.LSMR", "tall", lx.LSMR(TOL, TOL), TALL, 3, tier="slow"),
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


def by_name(cases, tier="default"):
    """Parametrises a test by cases; they run when they say, or later if `tier` does."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=marks_of(case.tier, tier))
            for case in cases
        ],
    )


def by_name_and_dtype(cases):
    """The complex ones when the case says, the real ones in CI."""
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [
            pytest.param(case, dtype, id=f"{case.name}-{label}", marks=marks)
            for case in cases
            for dtype, label, tier in (
                (complex, "complex", "default"),
                (float, "real", "slow"),
            )
            for marks in [marks_of(case.tier, tier)]
        ],
    )


def _normal_entries(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


@functools.cache
def _matrix(case: Case, dtype, seed=5) -> np.ndarray:
    """A matrix with singular values between 1 and 2, definite where tagged so."""
    rng = np.random.default_rng(seed)
    rows, cols = case.shape
    if case.mask is not None:  # strong diagonal
        noise = 0.2 * _normal_entries(rng, case.shape, dtype) * MASKS[case.mask]
        return noise + np.diag(np.linspace(1, 2, rows))
    left, _ = np.linalg.qr(_normal_entries(rng, (rows, case.rank), dtype))
    right, _ = np.linalg.qr(_normal_entries(rng, (cols, case.rank), dtype))
    right = left if case.tags else right
    sign = -1.0 if case.tags is NSD else 1.0
    return sign * (left * np.linspace(1, 2, case.rank)) @ right.conj().T


def _enters_from_adjoint(case: Case) -> bool:
    rows, cols = case.shape
    return cols > rows and case.rank == rows


def _truth(case: Case, dtype, seed=5) -> np.ndarray:
    """blockdiag(M†, P) in numpy, for A or for the adjoint of a wide A of full rank."""
    a = _matrix(case, dtype, seed)
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
    if case.sparse:
        places = np.ones(case.shape) if case.mask is None else MASKS[case.mask]
        row, col = np.nonzero(places)
        entries = matrix[row, col], row, col, case.shape
        operator = pj.SparseLinearOperator(entries, tags=case.tags)
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


class Computed(NamedTuple):
    """The blocks (v, w) to (r, x)."""

    columns: np.ndarray  # of the map of one A, applied to all unit vectors at once
    successful: np.ndarray
    derivative: np.ndarray  # of one vector, as in a tangent or cotangent
    members: np.ndarray  # of one vector, for each of a batch of A


SEEDS = (5, 8)  # of the batch


def _size(case: Case, dtype) -> int:
    """Of (v, w)."""
    truth = _truth(case, dtype)
    return truth.shape[0] - len(_split(case, truth)[2])


def _random_vector(case: Case, dtype):
    vector = _normal_entries(
        np.random.default_rng(6), _truth(case, dtype).shape[0], dtype
    )
    vector[_size(case, dtype) :] = 0
    return vector


@functools.cache
def _computed(case: Case, dtype) -> Computed:
    size = _size(case, dtype)

    def apply(problem, vector):
        rhs = _choose(case, vector, (True, True, False))
        out, result, _ = bind(problem, rhs, Blocks(True, True, False))
        return _filled(case, out, vector)[:size], result == lx.RESULTS.successful

    @jit
    def compute(matrices, basis, vector):
        problem = _problem(case, matrices[0])
        columns, successful = jax.vmap(lambda unit: apply(problem, unit))(basis)
        derivative, _ = apply(problem.for_derivative(), vector)
        member = lambda matrix: apply(_problem(case, matrix), vector)[0]
        return Computed(columns.T, successful, derivative, jax.vmap(member)(matrices))

    matrices = np.stack([_matrix(case, dtype, seed) for seed in SEEDS])
    basis = np.eye(_truth(case, dtype).shape[0], dtype=dtype)[:size]
    vector = _random_vector(case, dtype)
    return Computed(*map(np.asarray, compute(matrices, basis, vector)))


@by_name_and_dtype(CASES)
def test_map_is_the_pseudoinverse_of_the_saddle_point_matrix(case, dtype):
    computed, size = _computed(case, dtype), _size(case, dtype)
    want = _truth(case, dtype)[:size, :size]
    np.testing.assert_allclose(computed.columns, want, atol=1e-10)
    assert computed.successful.all()


@by_name_and_dtype(CASES)
def test_map_is_self_adjoint(case, dtype):
    matrix = _computed(case, dtype).columns
    rng = np.random.default_rng(6)
    a, b = _normal_entries(rng, (2, matrix.shape[0]), dtype)
    left, right = np.vdot(matrix @ a, b), np.vdot(a, matrix @ b)
    np.testing.assert_allclose(left, right, rtol=1e-10)


@by_name_and_dtype(CASES)
def test_map_of_one_vector_in_a_derivative_is_the_same(case, dtype):
    got, size = _computed(case, dtype).derivative, _size(case, dtype)
    want = _truth(case, dtype) @ _random_vector(case, dtype)
    np.testing.assert_allclose(got, want[:size], atol=1e-10)


@by_name_and_dtype(CASES)
def test_map_of_each_member_of_a_batch(case, dtype):
    got, size = _computed(case, dtype).members, _size(case, dtype)
    truths = [_truth(case, dtype, seed) for seed in SEEDS]
    want = np.stack([(truth @ _random_vector(case, dtype))[:size] for truth in truths])
    np.testing.assert_allclose(got, want, atol=1e-10)


LOOSE = {
    "CG": (pj.CG(1e-2, 0.0, derivative_rtol=1e-12), PSD),
    "Normal(CG)": (pj.Normal(pj.CG(1e-2, 0.0, derivative_rtol=1e-12)), ()),
    "MINRES": (pj.MINRES(1e-2, 0.0, well_posed=True, derivative_rtol=1e-12), PSD),
    "GMRES": (pj.GMRES(1e-2, 0.0, restart=6, derivative_rtol=1e-12), PSD),
    "BiCGStab": (pj.BiCGStab(1e-2, 0.0, derivative_rtol=1e-12), ()),
    "LSMR": (pj.LSMR(1e-2, 0.0, well_posed=True, derivative_rtol=1e-12), ()),
}


@pytest.mark.default("CG", "Normal(CG)", "GMRES")
@pytest.mark.ci("*")  # two loops to compile for each
@pytest.mark.parametrize("name", LOOSE)
def test_derivatives_have_a_tolerance_of_their_own(name):
    solver, tags = LOOSE[name]
    # Large enough that no iteration ends by chance.
    case = Case(name, "loose", solver, (12, 12), 12, tags)
    vector = _normal_entries(np.random.default_rng(9), 12, complex)

    @jit
    def compute(matrix, vector):
        problem = _problem(case, matrix)
        solve = lambda problem: bind(problem, Blocks(vector), Blocks(False, True, False))
        return [solve(p)[0].unknown for p in (problem, problem.for_derivative())]

    loose, tight = compute(_matrix(case, complex), vector)
    want = np.linalg.solve(_matrix(case, complex), vector)
    assert np.abs(loose - want).max() > 1e-6
    np.testing.assert_allclose(tight, want, atol=1e-10)


def test_derivative_takes_no_first_guess():
    case = _square("CG", pj.CG(1e-2, 0.0), tags=PSD)
    problem = _problem(case, jnp.asarray(_matrix(case, float)))
    guess = {"y0": jnp.ones(4), "preconditioner": problem.operator}
    problem = Problem.create(problem.operator, problem.state, guess, case.solver, True)
    assert set(problem.for_derivative().options) == {"preconditioner"}


def _assert_patterns(case, dtype, patterns):
    truth = _truth(case, dtype)
    stacked = _normal_entries(np.random.default_rng(7), truth.shape[0], dtype)

    @jit
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
# One for each row of the dispatch that has its own zeros.
EACH_ROW = ("SVD-tall-deficient", "Normal(SVD)-tall-deficient", "lx.SVD-wide-deficient")


@by_name([case for case in CASES if case.name in EACH_ROW])
def test_every_pattern_of_zero_blocks_of_any_rank(case):
    _assert_patterns(case, complex, PATTERNS)


@pytest.mark.default("PivotedQR-*", "Landweber-wide-deficient")
@pytest.mark.ci("*")
@by_name([case for case in ANY_RANK if case.name not in EACH_ROW])
def test_some_patterns_of_zero_blocks_of_any_rank(case):
    _assert_patterns(case, complex, FEW_PATTERNS)


@pytest.mark.default(
    "QR-tall", "CholeskyQR-wide", "Normal(Cholesky)-tall", "LU-square", "lx.QR-wide"
)
@pytest.mark.ci("*")  # dozens of solves in a program
@by_name([case for case in FULL_RANK if case in DENSE])
def test_every_pattern_of_zero_blocks_of_full_rank(case):
    _assert_patterns(case, complex, FULL_RANK_PATTERNS)


@pytest.mark.default("Normal(CG)-tall", "CG-square")
@pytest.mark.ci("*")  # two loops in a program
@by_name([case for case in FULL_RANK if case in ITERATIVE])
def test_solution_and_adjoint_solution_of_iterative_solvers(case):
    solution = ((True, False, False), (False, True, False))
    adjoint_solution = ((False, True, False), (True, False, False))
    _assert_patterns(case, complex, (solution, adjoint_solution))


@pytest.mark.default("QR-tall", "QR-wide", "LU-square")
@pytest.mark.ci("*")
@by_name([case for case in DENSE if case in FULL_RANK])
def test_projection_is_the_identity_for_independent_columns(case):
    _assert_patterns(case, float, [((False, False, True), (False, False, True))])
