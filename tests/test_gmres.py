"""What `GMRES` and `BiCGStab` promise of square systems, against dense NumPy."""

import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 8
SOLVERS = {
    "GMRES": pj.GMRES(),
    "GMRES(3)": pj.GMRES(restart=3),
    "BiCGStab": pj.BiCGStab(),
}

each = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
both = pytest.mark.parametrize("name", ["GMRES", "BiCGStab"])


def _residual(matrix, value, vector):
    return np.linalg.norm(vector - matrix @ value) / np.linalg.norm(vector)


@pytest.mark.default("complex128-BiCGStab")
@pytest.mark.ci("*")
@each
@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
def test_nonsymmetric_systems_are_solved(solver, dtype):
    # Half of them with all eigenvalues to the left: `lineax.BiCGStab` breaks down on
    # those in float32.
    is_complex = dtype == "complex128"
    matrices = [
        krylov.general(seed, is_complex, SIZE, 4.0 * (-1) ** seed).astype(dtype)
        for seed in range(12)
    ]
    vectors = krylov.random(100, is_complex, 12, SIZE).astype(dtype)
    value, successful, _ = krylov.solve_all(matrices, vectors, solver)
    tolerance = 1.1e-5 if dtype == "float32" else 1.1e-10
    assert successful.all()
    for matrix, x, vector in zip(matrices, value, vectors, strict=True):
        assert _residual(matrix, x, vector) < tolerance


@pytest.mark.default("GMRES")
@pytest.mark.ci("*")
@both
def test_nonsymmetric_preconditioner_on_the_right_saves_steps(name):
    matrix = krylov.with_values(0, False, SIZE, SIZE, np.geomspace(1, 1e4, SIZE))
    near = np.linalg.inv(matrix) @ (
        np.eye(SIZE) + 1e-3 * krylov.random(2, False, SIZE, SIZE)
    )
    vector = krylov.random(3, False, SIZE)
    options = {"preconditioner": krylov.operator(near)}
    value, successful, _, stats = krylov.solve(
        matrix, vector, SOLVERS[name], options=options
    )
    assert successful
    assert _residual(matrix, value, vector) < 1.1e-10
    assert stats["num_steps"] <= 5


@both
def test_preconditioner_that_hides_the_residual_does_not_make_it_small(name):
    # P r is small where r is not: `lineax.GMRES` would stop on P r.
    matrix = krylov.general(0, False, SIZE)
    hiding = krylov.operator(np.diag(np.geomspace(1, 1e-13, SIZE)))
    vector, options = krylov.random(1, False, SIZE), {"preconditioner": hiding}
    value, successful, *_ = krylov.solve(matrix, vector, SOLVERS[name], options=options)
    assert not successful or _residual(matrix, value, vector) < 1.1e-10


@pytest.mark.default("GMRES(3)", "BiCGStab")
@pytest.mark.ci("*")
@each
def test_inconsistent_singular_systems_are_never_successful(solver):
    matrices = [
        krylov.with_values(seed, True, SIZE, SIZE, np.linspace(1, 2, SIZE - 2))
        for seed in range(12)
    ]
    vectors = krylov.random(100, True, 12, SIZE)
    _, successful, _ = krylov.solve_all(matrices, vectors, solver)
    assert not successful.any()


def test_skew_symmetric_system_is_solved_by_gmres():
    matrix = krylov.random(0, False, SIZE, SIZE)
    matrix, vector = matrix - matrix.T, krylov.random(1, False, SIZE)
    value, successful, *_ = krylov.solve(matrix, vector, SOLVERS["GMRES"])
    assert successful
    assert _residual(matrix, value, vector) < 1.1e-10


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_skew_symmetric_system_breaks_bicgstab_down():
    matrix = krylov.random(0, False, SIZE, SIZE)
    matrix, vector = matrix - matrix.T, krylov.random(1, False, SIZE)
    _, _, result, _ = krylov.solve(matrix, vector, SOLVERS["BiCGStab"])
    assert result == lx.RESULTS.breakdown


def test_restart_too_short_to_move_is_stagnation():
    shift, vector = np.roll(np.eye(SIZE), 1, axis=0), np.eye(SIZE)[0]
    _, _, result, _ = krylov.solve(shift, vector, SOLVERS["GMRES(3)"])
    assert result == lx.RESULTS.stagnation


@pytest.mark.default("BiCGStab")
@pytest.mark.ci("*")
@both
def test_first_guess_saves_steps(name):
    matrix, exact = krylov.general(0, False, SIZE), np.ones(SIZE)
    vector = matrix @ exact
    value, successful, _, stats = krylov.solve(
        matrix, vector, SOLVERS[name], options={"y0": exact}
    )
    assert successful
    assert stats["num_steps"] == 0
    np.testing.assert_array_equal(value, exact)


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
@pytest.mark.parametrize("solver", [pj.GMRES(max_steps=2), pj.BiCGStab(max_steps=2)])
def test_too_few_steps_report_max_steps_reached(solver):
    matrix, vector = krylov.general(0, False, SIZE), krylov.random(1, False, SIZE)
    _, _, result, stats = krylov.solve(matrix, vector, solver)
    assert result == lx.RESULTS.max_steps_reached
    assert stats["num_steps"] == 2


@both
def test_operator_that_is_not_square_is_refused(name):
    with pytest.raises(
        ValueError, match="may only be used for linear solves with square"
    ):
        pj.linear_solve(np.ones((3, 2)), np.ones(3), SOLVERS[name])


def test_restart_below_one_is_refused():
    with pytest.raises(ValueError, match="Pass a positive integer"):
        pj.GMRES(restart=0)
