"""No solver is silently wrong: every hostile system x solver x dtype.

All systems of one shape are one batch of one compiled program, good and bad together.
`hostile_judge.py` states what counts as right.
"""

import functools as ft

import hostile
import jax
import lineax as lx
import numpy as np
import pytest
from checks import jit
from hostile_cases import CASES, DTYPES, finds_rank, is_direct, TAGS, tolerance

import pseudojvp as pj


# Their programs are those of other solvers here, or nearly so: in CI only.
TWINS = ("Auto(True)", "Auto(None)", "Auto(False)", "LSMR(well_posed=True)")
TWINS += (
    "FlexibleCG",
    "FlexibleGMRES",
    "lineax.GMRES",
    "lineax.BiCGStab",
    "MINRES(well_posed=True)",
)
TWINS += ("Normal(CG(well_posed=False))", "Normal(CG)", "Normal(PivotedQR)", "Normal(QR)")
# A second program each, of five seconds; of iterative solvers of up to fifteen.
DIFFERENTIATED = ("QR", "Cholesky")


def _marks(name, cell):
    """A program each: hundreds, of a second and more."""
    case = CASES[name]
    if cell == case.default and name not in TWINS:
        return ()
    in_ci = cell in (case.default, case.ci)
    return pytest.mark.slow if in_ci else pytest.mark.nightly


def _marks_of_derivatives(name):
    if name in DIFFERENTIATED:
        return ()
    return pytest.mark.slow if is_direct(CASES[name]) else pytest.mark.nightly


def _grid(choose=lambda case: True):
    return pytest.mark.parametrize(
        ("name", "kind", "dtype"),
        [
            pytest.param(name, kind, dtype, marks=_marks(name, f"{kind}-{dtype}"))
            for name, case in CASES.items()
            for kind in case.kinds.split()
            for dtype in DTYPES
            if choose(case)
        ],
    )


def _solve(name, kind, dtype, matrix, vector):
    operator = lx.MatrixLinearOperator(matrix, TAGS.get(kind, ()))
    solver = CASES[name].make_solver(tolerance(dtype))
    return pj.linear_solve(operator, vector, solver, throw=False)


@ft.cache
def _program(name, kind, dtype):
    def solve(matrix, vector):
        solution = _solve(name, kind, dtype, matrix, vector)
        stats = {key: solution.stats[key] for key in solution.stats if key == "rank"}
        return solution.value, solution.result == lx.RESULTS.successful, stats

    return jit(jax.vmap(solve))


@ft.cache
def _answers(name, kind, dtype):
    """By name of the system: (system, x, whether `successful`, stats)."""
    systems = hostile.systems(kind, dtype)
    answer = _program(name, kind, dtype)(*_stack(systems))
    answer = jax.tree.map(np.asarray, answer)
    return {
        system.name: (system, *jax.tree.map(lambda leaf, i=i: leaf[i], answer))
        for i, system in enumerate(systems)
    }


def _judged(name, kind, dtype):
    return _answers(name, kind, dtype).values()


def _stack(systems):
    return np.stack([s.matrix for s in systems]), np.stack([s.vector for s in systems])


@_grid()
def test_successful_means_the_solution(name, kind, dtype):
    verdict, rtol = CASES[name].verdict, tolerance(dtype)
    silent = {
        system.name: why
        for system, value, successful, stats in _judged(name, kind, dtype)
        if successful and (why := verdict(system, value, stats, rtol))
    }
    assert silent == {}


@_grid(lambda case: case.exact)
def test_good_systems_of_every_scale_are_solved(name, kind, dtype):
    answers = _judged(name, kind, dtype)
    failed = [system.name for system, _, ok, _ in answers if system.good and not ok]
    assert failed == []


@_grid()
def test_bad_members_of_a_batch_spoil_only_themselves(name, kind, dtype):
    systems = hostile.systems(kind, dtype)
    good = [i for i, system in enumerate(systems) if system.good]
    repeated = [systems[i if i in good else good[0]] for i in range(len(systems))]
    alone, _, _ = _program(name, kind, dtype)(*_stack(repeated))
    together = np.stack([_answers(name, kind, dtype)[systems[i].name][1] for i in good])
    np.testing.assert_array_equal(np.asarray(alone)[good], together)


@_grid(finds_rank)
def test_zero_matrix_has_the_solution_zero(name, kind, dtype):
    for vector in ("generic", "consistent"):
        _, value, successful, stats = _answers(name, kind, dtype)[f"zero-{vector}"]
        assert successful
        assert stats["rank"] == 0
        assert not value.any()


@_grid(finds_rank)
def test_scale_of_a_deficient_matrix_does_not_matter(name, kind, dtype):
    systems = hostile.systems(kind, dtype)
    factors = [1.0, *(hostile.scales(dtype)[scale] for scale in hostile.MODEST)]
    (matrix, vector), *_ = [s[1:3] for s in systems if s.name == "deficient-generic"]
    batch = [matrix * matrix.dtype.type(factor) for factor in factors]
    batch += [matrix] * (len(systems) - len(batch))  # the program that is compiled
    vectors = np.stack([vector] * len(systems))
    value, successful, stats = _program(name, kind, dtype)(np.stack(batch), vectors)
    assert successful.all()
    np.testing.assert_array_equal(stats["rank"], 7)
    value = np.asarray(value)[: len(factors)] * np.array(factors)[:, None]
    # The digits of A do not change, but those of an estimate may; κ² eps for Normal.
    rtol = 1e-3 if dtype == "float32" else 1e-9
    assert np.abs(value - value[0]).max() <= rtol * np.abs(value[0]).max()


def _derivative_cases(choose=lambda case: True):
    return pytest.mark.parametrize(
        ("name", "kind"),
        [
            pytest.param(
                name,
                case.default.rpartition("-")[0],  # the kind
                marks=_marks_of_derivatives(name),
            )
            for name, case in CASES.items()
            if choose(case)
        ],
    )


@_derivative_cases()
def test_derivatives_are_nan_where_the_solve_failed(name, kind):
    failed = [s for s, _, ok, _ in _answers(name, kind, "float64").values() if not ok]
    for leaf in _derivatives(name, kind, failed):
        assert (np.isnan(leaf) | _unread(kind, leaf)).all()


def _unread(kind, leaf):
    """The entries of a cotangent of A that its product does not read: zero, not NaN."""
    rows, cols = map(np.arange, leaf.shape[-2:])
    outside = np.abs(np.subtract.outer(rows, cols)) > 1
    return (kind == "tridiagonal") & (leaf.ndim == 3) & outside


@_derivative_cases(is_direct)
def test_derivatives_are_finite_where_the_solve_succeeded(name, kind):
    solved = [
        s
        for s, _, ok, _ in _answers(name, kind, "float64").values()
        if ok and "times" not in s.name  # 1e150 squared would overflow
    ]
    finite = [np.isfinite(leaf).all() for leaf in _derivatives(name, kind, solved)]
    assert all(finite)


def _derivatives(name, kind, systems):
    """(tangents of x along generic directions, cotangents of A and of b), stacked."""
    padded = (systems * len(hostile.systems(kind, "float64")))[: _batch_size(kind)]
    matrices, vectors = _stack(padded)
    rng = np.random.default_rng(0)
    directions = [rng.standard_normal(array.shape[1:]) for array in (matrices, vectors)]
    ct = rng.standard_normal(matrices.shape[2])
    out = _derivative_program(name, kind)(matrices, vectors, *directions, ct)
    return [np.asarray(leaf)[: len(systems)] for leaf in out]


def _batch_size(kind):
    return len(hostile.systems(kind, "float64"))


@ft.cache
def _derivative_program(name, kind):
    def derivatives(matrix, vector, t_matrix, t_vector, ct):
        solve = lambda m, v: _solve(name, kind, "float64", m, v).value
        _, tangent = jax.jvp(solve, (matrix, vector), (t_matrix, t_vector))
        return tangent, *jax.vjp(solve, matrix, vector)[1](ct)

    return jit(jax.vmap(derivatives, in_axes=(0, 0, None, None, None)))
