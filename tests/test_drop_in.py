"""`pseudojvp.linear_solve` in the place of `lineax.linear_solve`: the primal solve."""

import functools
import inspect

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 4


def _relative_error(got, want):
    return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


def _accuracy(dtype):
    return 100 * cases.TOLERANCE[dtype]  # condition number below 10, squared by Normal


def _problem(case, dtype):
    matrix = cases.matrix_of(case.kind, SIZE, dtype)
    vector = cases.random_array((SIZE,), dtype, 7)
    return matrix, vector, case.make(cases.TOLERANCE[dtype])


def test_signature_is_that_of_lineax_with_one_keyword_more():
    ours = dict(inspect.signature(pj.linear_solve).parameters)
    theirs = inspect.signature(lx.linear_solve).parameters
    assert ours.pop("adjoint").kind is inspect.Parameter.KEYWORD_ONLY
    assert list(ours) == list(theirs)
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]


def test_defaults_are_those_of_lineax():
    ours = dict(inspect.signature(pj.linear_solve).parameters)
    theirs = inspect.signature(lx.linear_solve).parameters
    assert ours.pop("adjoint").default == pj.ImplicitAdjoint()
    has_default = lambda p: p.default is not inspect.Parameter.empty
    assert list(map(has_default, ours.values())) == list(
        map(has_default, theirs.values())
    )
    assert ours["solver"].default == pj.AutoLinearSolver(well_posed=True)
    assert theirs["solver"].default == lx.AutoLinearSolver(well_posed=True)
    assert ours["options"].default is theirs["options"].default is None
    assert ours["throw"].default is theirs["throw"].default is True


@pytest.mark.parametrize("name", ["QR", "SVD", "CG", "Normal", "AutoLinearSolver"])
def test_solver_takes_the_arguments_of_lineax_in_its_order(name):
    ours = list(inspect.signature(getattr(pj, name)).parameters.items())
    theirs = list(inspect.signature(getattr(lx, name)).parameters.items())
    assert [key for key, _ in ours[: len(theirs)]] == [key for key, _ in theirs]


# Not for CG, which has default tolerances, of Euclidean norms.
@pytest.mark.parametrize("name", ["QR", "SVD", "Normal", "AutoLinearSolver"])
def test_solver_has_the_defaults_of_lineax(name):
    ours = list(inspect.signature(getattr(pj, name)).parameters.values())
    theirs = list(inspect.signature(getattr(lx, name)).parameters.values())
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]


def test_default_solver_refuses_a_non_square_operator():
    operator = lx.MatrixLinearOperator(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"AutoLinearSolver\(well_posed=False\)"):
        pj.linear_solve(operator, jnp.ones(3))


def test_default_solver_solves_a_square_system():
    matrix = cases.matrix_of("general", SIZE, np.dtype(float))
    vector = cases.random_array((SIZE,), float, 7)
    solution = pj.linear_solve(lx.MatrixLinearOperator(jnp.asarray(matrix)), vector)
    assert _relative_error(solution.value, np.linalg.solve(matrix, vector)) < 1e-13


_OTHERS = pytest.mark.ci("*")  # a program each


@pytest.mark.default(
    *("Normal(Cholesky)-complex128", "CG-negative-complex128", "Neumann-complex128"),
    *("Auto(False)-complex128", "Auto(True)-tridiagonal-*", "lx.LU-*", "lx.Triangular-*"),
)
@_OTHERS
@pytest.mark.parametrize(
    ("case", "dtype"),
    cases.params(cases.REAL, "float64") + cases.params(cases.OURS, "complex128"),
)
def test_well_posed_system_is_solved_successfully(case, dtype):
    matrix, vector, solver = _problem(case, dtype)
    operator = cases.operator_of(matrix, case.kind)
    solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    assert isinstance(solution, lx.Solution)
    assert solution.result == lx.RESULTS.successful
    truth = np.linalg.solve(matrix, vector)
    assert _relative_error(solution.value, truth) < _accuracy(dtype)


@pytest.mark.default("SVD-complex64")
@_OTHERS
@pytest.mark.parametrize(
    ("case", "dtype"), cases.params(cases.FEW, "float32", "complex64")
)
def test_single_precision_system_is_solved_in_single_precision(case, dtype):
    matrix, vector, solver = _problem(case, dtype)
    operator = cases.operator_of(matrix, case.kind)
    solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    assert solution.value.dtype == dtype
    truth = np.linalg.solve(matrix.astype("complex128"), vector)
    assert _relative_error(solution.value, truth) < _accuracy(dtype)


@pytest.mark.ci("Normal(Cholesky)-*")
@_OTHERS
@pytest.mark.parametrize(("case", "dtype"), cases.params(cases.OURS, "float64"))
def test_state_of_init_serves_a_second_vector(case, dtype):
    matrix, vector, solver = _problem(case, dtype)
    operator = cases.operator_of(matrix, case.kind)
    state = solver.init(operator, {})

    @eqx.filter_jit
    def solve_both(state, vector):
        solve = functools.partial(pj.linear_solve, solver=solver, throw=False)
        first = solve(operator, vector, state=state)
        return solve(operator, 2 * vector, state=first.state).value

    truth = np.linalg.solve(matrix, 2 * vector)
    got = solve_both(state, jnp.asarray(vector))
    assert _relative_error(got, truth) < _accuracy(dtype)


_ANY_RANK = {
    "SVD": pj.SVD(),
    "Auto(False)": pj.AutoLinearSolver(well_posed=False),
    "Normal(SVD)": pj.Normal(pj.SVD(rcond=1e-12)),
    "Normal(CG-singular)": pj.Normal(pj.CG(1e-12, 1e-12, well_posed=False)),
    "lx.SVD": lx.SVD(),
    "lx.Auto(False)": lx.AutoLinearSolver(well_posed=False),
}
_FULL_RANK = {
    "QR": pj.QR(),
    "Auto(None)": pj.AutoLinearSolver(well_posed=None),
    "Normal(Cholesky)": pj.Normal(lx.Cholesky()),
    "Normal(CG)": pj.Normal(pj.CG(1e-12, 1e-12)),
    "Normal(Auto)": pj.Normal(pj.AutoLinearSolver(well_posed=True)),
    "lx.QR": lx.QR(),
    "lx.LSMR": lx.LSMR(1e-12, 1e-12),
    "lx.Normal(lx.Cholesky)": lx.Normal(lx.Cholesky()),
    **_ANY_RANK,
}


@pytest.mark.default("QR-wide", "Normal(Auto)-tall", "lx.QR-wide")
@_OTHERS
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])
@pytest.mark.parametrize("name", _FULL_RANK)
def test_non_square_system_has_the_pseudoinverse_solution(name, shape):
    matrix = cases.conditioned(shape, [1.0, 1.5, 2.0], float, 3)
    vector = cases.random_array(shape[:1], float, 7)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    solver = _FULL_RANK[name]
    solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    truth = np.linalg.pinv(matrix) @ vector
    assert _relative_error(solution.value, truth) < 1e-9  # LSMR stops at 1e-12 of ‖A^T r‖


@pytest.mark.default("Auto(False)-square", "lx.SVD-wide")
@_OTHERS
@pytest.mark.parametrize(
    "shape", [(5, 3), (3, 5), (4, 4)], ids=["tall", "wide", "square"]
)
@pytest.mark.parametrize("name", _ANY_RANK)
def test_singular_system_has_the_pseudoinverse_solution(name, shape):
    matrix = cases.conditioned(shape, [1.0, 2.0], float, 3)
    vector = cases.random_array(shape[:1], float, 7)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    solver = _ANY_RANK[name]
    solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    truth = np.linalg.pinv(matrix, rcond=1e-10) @ vector
    assert _relative_error(solution.value, truth) < 1e-10


@pytest.mark.default("wide")
@_OTHERS
@pytest.mark.parametrize(
    "shape", [(5, 3), (3, 5), (4, 4)], ids=["tall", "wide", "square"]
)
def test_normal_cg_takes_a_consistent_singular_system(shape):
    matrix = cases.conditioned(shape, [1.0, 2.0], float, 3)
    vector = matrix @ np.ones(shape[1])
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    solver = _FULL_RANK["Normal(CG)"]
    solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    truth = np.linalg.pinv(matrix, rcond=1e-10) @ vector
    assert _relative_error(solution.value, truth) < 1e-10


def test_singular_diagonal_system_has_the_pseudoinverse_solution():
    operator = lx.DiagonalLinearOperator(jnp.array([2.0, 0.0, 4.0]))
    solver = pj.AutoLinearSolver(well_posed=None)
    solution = pj.linear_solve(operator, jnp.ones(3), solver)
    np.testing.assert_array_equal(solution.value, [0.5, 0.0, 0.25])


@pytest.mark.default("QR", "LU-ones")
@_OTHERS
@pytest.mark.parametrize(
    ("operator", "solver"),
    [
        (lx.MatrixLinearOperator(jnp.zeros((3, 3))), lx.LU()),
        (lx.MatrixLinearOperator(jnp.ones((4, 2))), pj.QR()),
        (lx.DiagonalLinearOperator(jnp.array([1.0, 0.0])), lx.Diagonal(well_posed=True)),
        (lx.MatrixLinearOperator(jnp.ones((2, 2)), lx.lower_triangular_tag), lx.LU()),
    ],
    ids=["LU", "QR", "Diagonal", "LU-ones"],
)
def test_singular_operator_is_told_in_the_result(operator, solver):
    vector = jnp.ones(operator.out_size())
    solution = pj.linear_solve(operator, vector, solver, throw=False)
    assert solution.result == lx.RESULTS.singular


def test_singular_operator_raises_by_default():
    operator = lx.MatrixLinearOperator(jnp.zeros((3, 3)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite"):
        pj.linear_solve(operator, jnp.ones(3), lx.LU())


_STEPS_ONLY = {
    "CG": pj.CG(rtol=0, atol=0, max_steps=4),
    "Normal(CG)": pj.Normal(pj.CG(rtol=0, atol=0, max_steps=4)),
    "lx.CG": lx.CG(rtol=0, atol=0, max_steps=4),
}


@pytest.mark.default("CG")
@_OTHERS
@pytest.mark.parametrize("name", _STEPS_ONLY)
def test_max_steps_alone_stops_an_iterative_solver(name):
    matrix = cases.matrix_of("positive", SIZE, float)
    operator = cases.operator_of(matrix, "positive")
    vector = cases.random_array((SIZE,), float, 7)
    solver = _STEPS_ONLY[name]
    solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
    assert solution.stats["num_steps"] == 4
    assert _relative_error(solution.value, np.linalg.solve(matrix, vector)) < 1e-8


def test_running_out_of_steps_is_told_in_the_result():
    operator = cases.operator_of(cases.matrix_of("positive", SIZE, float), "positive")
    solver = pj.CG(1e-12, 1e-12, max_steps=2)
    solution = pj.linear_solve(operator, jnp.ones(SIZE), solver, throw=False)
    assert solution.result == lx.RESULTS.max_steps_reached
    assert solution.stats["num_steps"] == solution.stats["max_steps"] == 2


def test_running_out_of_steps_raises_by_default():
    operator = cases.operator_of(cases.matrix_of("positive", SIZE, float), "positive")
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of solver steps"):
        pj.linear_solve(operator, jnp.ones(SIZE), pj.CG(1e-12, 1e-12, max_steps=2))


def test_preconditioner_of_options_is_used():
    matrix = cases.matrix_of("positive", SIZE, float)
    inverse = cases.operator_of(np.linalg.inv(matrix), "positive")
    solution = pj.linear_solve(
        cases.operator_of(matrix, "positive"),
        jnp.ones(SIZE),
        pj.CG(1e-10, 1e-10),
        options={"preconditioner": inverse},
        throw=False,
    )
    assert _relative_error(solution.value, np.linalg.solve(matrix, np.ones(SIZE))) < 1e-12
    assert solution.stats["num_steps"] <= 2


def test_first_guess_of_options_is_used():
    matrix = cases.matrix_of("positive", SIZE, float)
    truth = np.linalg.solve(matrix, np.ones(SIZE))
    solution = pj.linear_solve(
        cases.operator_of(matrix, "positive"),
        jnp.ones(SIZE),
        pj.CG(1e-10, 1e-10),
        options={"y0": jnp.asarray(truth)},
        throw=False,
    )
    assert _relative_error(solution.value, truth) < 1e-12
    assert solution.stats["num_steps"] <= 1


def test_no_nan_is_made_on_the_way_to_a_finite_answer():
    matrix = jnp.asarray(cases.matrix_of("general", SIZE, float))

    @jax.jit
    @jax.grad
    def gradient(matrix):
        return jnp.sum(pj.linear_solve(matrix, jnp.ones(SIZE), pj.QR()).value)

    with jax.debug_nans(True):
        assert np.all(np.isfinite(gradient(matrix)))
