"""Each row of the dispatch against the dense pseudoinverse of [[I, A], [A^H, 0]]."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit
from problems import marks_of
from saddle_point_cases import (
    Case,
    CASES,
    DENSE,
    enters_from_adjoint,
    ITERATIVE,
    matrix_of,
    normal_entries,
    problem_of,
    PSD,
    square,
    truth_of,
)

import pseudojvp as pj
from pseudojvp._map.guard import Guard
from pseudojvp._map.primitive import bind
from pseudojvp._map.rows import Blocks, Problem


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
    """The complex ones when the case says, the real ones one tier later."""
    later = {"default": "slow", "slow": "nightly", "nightly": "nightly"}
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [
            pytest.param(case, dtype, id=f"{case.name}-{label}", marks=marks_of(tier))
            for case in cases
            for dtype, label, tier in (
                (complex, "complex", case.tier),
                (float, "real", later[case.tier]),
            )
        ],
    )


def _split(case: Case, stacked) -> tuple:
    rows, cols = case.shape[::-1] if enters_from_adjoint(case) else case.shape
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
    """The blocks (v, w, y) to (r, x, P y)."""

    columns: np.ndarray  # of the map of one A, applied to all unit vectors at once
    successful: np.ndarray
    derivative: np.ndarray  # of one vector, as in a tangent or cotangent
    members: np.ndarray  # of one vector, for each of a batch of A


SEEDS = (5, 8)  # of the batch
ALL = (True, True, True)
PRIMAL = Guard(throw=False)
DERIVATIVE = PRIMAL.for_derivative(of_primal=False)


def _random_vector(case: Case, dtype):
    size = truth_of(case, dtype).shape[0]
    return normal_entries(np.random.default_rng(6), size, dtype)


@functools.cache
def _computed(case: Case, dtype) -> Computed:
    def apply(problem, vector, guard=PRIMAL):
        out, result, _ = bind(problem, _choose(case, vector, ALL), Blocks(*ALL), guard)
        return _filled(case, out, vector), result == lx.RESULTS.successful

    @jit
    def compute(matrices, basis, vector):
        problem = problem_of(case, matrices[0])
        columns, successful = jax.vmap(lambda unit: apply(problem, unit))(basis)
        derivative, _ = apply(problem.for_derivative(), vector, DERIVATIVE)
        member = lambda matrix: apply(problem_of(case, matrix), vector)[0]
        return Computed(columns.T, successful, derivative, jax.vmap(member)(matrices))

    matrices = np.stack([matrix_of(case, dtype, seed) for seed in SEEDS])
    vector = _random_vector(case, dtype)
    basis = np.eye(len(vector), dtype=dtype)
    return Computed(*map(np.asarray, compute(matrices, basis, vector)))


@by_name_and_dtype(CASES)
def test_map_is_the_pseudoinverse_of_the_saddle_point_matrix(case, dtype):
    computed = _computed(case, dtype)
    np.testing.assert_allclose(computed.columns, truth_of(case, dtype), atol=1e-10)
    assert computed.successful.all()


@by_name_and_dtype(CASES)
def test_map_is_self_adjoint(case, dtype):
    matrix = _computed(case, dtype).columns
    rng = np.random.default_rng(6)
    a, b = normal_entries(rng, (2, matrix.shape[0]), dtype)
    left, right = np.vdot(matrix @ a, b), np.vdot(a, matrix @ b)
    np.testing.assert_allclose(left, right, rtol=1e-10)


@by_name_and_dtype(CASES)
def test_map_of_one_vector_in_a_derivative_is_the_same(case, dtype):
    want = truth_of(case, dtype) @ _random_vector(case, dtype)
    np.testing.assert_allclose(_computed(case, dtype).derivative, want, atol=1e-10)


@by_name_and_dtype(CASES)
def test_map_of_each_member_of_a_batch(case, dtype):
    vector = _random_vector(case, dtype)
    want = [truth_of(case, dtype, seed) @ vector for seed in SEEDS]
    np.testing.assert_allclose(_computed(case, dtype).members, want, atol=1e-10)


LOOSE = {
    "CG": (pj.CG(1e-2, 0.0, derivative_rtol=1e-12), PSD),
    "Normal(CG)": (pj.Normal(pj.CG(1e-2, 0.0, derivative_rtol=1e-12)), ()),
    "MINRES": (pj.MINRES(1e-2, 0.0, well_posed=True, derivative_rtol=1e-12), PSD),
    "GMRES": (pj.GMRES(1e-2, 0.0, restart=6, derivative_rtol=1e-12), PSD),
    "FlexibleCG": (pj.FlexibleCG(1e-2, 0.0, derivative_rtol=1e-12), PSD),
    "FlexibleGMRES": (
        pj.FlexibleGMRES(1e-2, 0.0, restart=6, derivative_rtol=1e-12),
        PSD,
    ),
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
    vector = normal_entries(np.random.default_rng(9), 12, complex)

    @jit
    def compute(matrix, vector):
        problem = problem_of(case, matrix)
        wanted = Blocks(False, True, False)
        solve = lambda problem: bind(problem, Blocks(vector), wanted, PRIMAL)[0].domain
        return [solve(p) for p in (problem, problem.for_derivative())]

    loose, tight = compute(matrix_of(case, complex), vector)
    want = np.linalg.solve(matrix_of(case, complex), vector)
    assert np.abs(loose - want).max() > 1e-8
    np.testing.assert_allclose(tight, want, atol=1e-10)


def test_derivative_takes_no_first_guess():
    case = square("CG", pj.CG(1e-2, 0.0), tags=PSD)
    problem = problem_of(case, jnp.asarray(matrix_of(case, float)))
    guess = {"y0": jnp.ones(4), "preconditioner": problem.operator}
    problem = Problem.create(problem.operator, problem.state, guess, case.solver)
    assert set(problem.for_derivative().options) == {"preconditioner"}


def _assert_patterns(case, dtype, patterns):
    truth = truth_of(case, dtype)
    stacked = normal_entries(np.random.default_rng(7), truth.shape[0], dtype)

    @jit
    def apply(matrix, stacked):
        problem = problem_of(case, matrix)
        return [
            bind(problem, _choose(case, stacked, given), Blocks(*wanted), PRIMAL)[0]
            for given, wanted in patterns
        ]

    outs = apply(matrix_of(case, dtype), stacked)
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
@pytest.mark.slow  # two seconds
def test_every_pattern_of_zero_blocks_of_any_rank(case):
    _assert_patterns(case, complex, PATTERNS)


@pytest.mark.default("PivotedQR-tall-deficient", "Landweber-wide-deficient")
@pytest.mark.ci("*")
@by_name([case for case in ANY_RANK if case.name not in EACH_ROW])
def test_some_patterns_of_zero_blocks_of_any_rank(case):
    _assert_patterns(case, complex, FEW_PATTERNS)


@pytest.mark.default(
    *("QR-tall", "QR-wide", "CholeskyQR-tall", "Normal(Cholesky)-tall", "LU-square"),
    "lx.QR-tall",
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
