"""The laws of `lineax.AbstractLinearSolver`, and our solvers in `lineax.linear_solve`."""

import functools

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj
from pseudojvp._map.traits import has_traits
from pseudojvp._solver import AbstractFactorisation


SIZE = 3
TOL = 1e-12
CASES = cases.params({**cases.OURS, **cases.AUTO}, "complex128")
# A program each.
_FEW = pytest.mark.default(
    "*QR-complex128", "*Normal(Cholesky)-complex128", "*CG-negative-complex128"
)
_CI = pytest.mark.ci("*")
_SHAPES = pytest.mark.parametrize("shape", [(4, 2), (2, 4)], ids=["tall", "wide"])
_ANY_SHAPE = {
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "Normal(Cholesky)": pj.Normal(lx.Cholesky()),
    "Normal(LU)": pj.Normal(lx.LU()),
    "Normal(CG)": pj.Normal(pj.CG(TOL, TOL)),
    "Normal(QR)": pj.Normal(pj.QR()),
    "Normal(Auto)": pj.Normal(pj.AutoLinearSolver(well_posed=True)),
    "Auto(None)": pj.AutoLinearSolver(well_posed=None),
}


def test_every_solver_has_traits_or_factorises():
    """One that was forgotten would be slower, or miss a NaN, without a word."""
    around_others = {pj.AutoLinearSolver, pj.SparseLU}
    every = {
        value
        for value in (getattr(pj, name) for name in pj.__all__)
        if isinstance(value, type) and issubclass(value, lx.AbstractLinearSolver)
    }
    for solver in every - around_others:
        assert issubclass(solver, AbstractFactorisation) or has_traits(solver), solver


def _setting(case, dtype):
    matrix = cases.matrix_of(case.kind, SIZE, dtype)
    vector = cases.random_array((SIZE,), dtype, 7)
    return matrix, vector, case.make(TOL), cases.operator_of(matrix, case.kind)


# Of a state: once, which gives another system, and twice, which changes nothing.
_ONCE = [("transpose",), ("conj",)]
_TWICE = [("transpose", "transpose"), ("conj", "conj")]


def _apply(solver, operator, vector, each_maps):
    """Solves with the state of `operator` after each of `each_maps`; one program."""

    def after(maps, operator, vector):
        state, options = solver.init(operator, {}), {}
        for name in maps:
            state, options = getattr(solver, name)(state, options)
        solution, result, _ = solver.compute(state, vector, options)
        return solution, result == lx.RESULTS.successful

    @jit
    def compute(operator, vector):
        return {maps: after(maps, operator, vector) for maps in each_maps}

    return compute(operator, jnp.asarray(vector))


@functools.cache
def _mapped(case, dtype):
    _, vector, solver, operator = _setting(case, dtype)
    return _apply(solver, operator, vector, _ONCE + _TWICE)


def _assert_solves(answer, want):
    solution, successful = answer
    assert successful
    _assert_close(solution, want)


def _assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.linalg.norm(want))


@_FEW
@_CI
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_transposed_state_solves_the_transposed_system(case, dtype):
    matrix, vector, _, _ = _setting(case, dtype)
    truth = np.linalg.solve(matrix.T, vector)
    _assert_solves(_mapped(case, dtype)["transpose",], truth)


@_FEW
@_CI
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_conjugated_state_solves_the_conjugated_system(case, dtype):
    matrix, vector, _, _ = _setting(case, dtype)
    truth = np.linalg.solve(matrix.conj(), vector)
    _assert_solves(_mapped(case, dtype)["conj",], truth)


@_FEW
@_CI
@pytest.mark.parametrize(("case", "dtype"), cases.params(cases.OURS, "complex128"))
@pytest.mark.parametrize("maps", _TWICE, ids=["transpose", "conj"])
def test_mapping_a_state_twice_changes_nothing(case, dtype, maps):
    matrix, vector, _, _ = _setting(case, dtype)
    _assert_solves(_mapped(case, dtype)[maps], np.linalg.solve(matrix, vector))


@pytest.mark.default("transpose-SVD-tall", "adjoint-Normal(Cholesky)-wide")
@pytest.mark.ci("adjoint-*-tall", "transpose-*-wide", "conj-QR-*")
@_SHAPES
@pytest.mark.parametrize("name", _ANY_SHAPE)
@pytest.mark.parametrize(
    "maps",
    [("transpose",), ("conj",), ("conj", "transpose")],
    ids=["transpose", "conj", "adjoint"],
)
def test_mapped_state_of_a_non_square_operator_is_its_pseudoinverse(name, maps, shape):
    matrix = cases.conditioned(shape, [1.0, 2.0], complex, 3)
    mapped = matrix
    for step in maps:
        mapped = {"transpose": np.transpose, "conj": np.conj}[step](mapped)
    vector = cases.random_array(mapped.shape[:1], complex, 7)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    answer = _apply(_ANY_SHAPE[name], operator, vector, [maps])[maps]
    _assert_solves(answer, np.linalg.pinv(mapped) @ vector)


def _computed(solver, state, vector, options):
    @eqx.filter_jit
    def compute(state, vector, options):
        solution, result, _ = solver.compute(state, vector, options)
        return solution, result == lx.RESULTS.successful

    return compute(state, jnp.asarray(vector), options)


@pytest.mark.parametrize("map_name", ["transpose", "conj"])
@pytest.mark.parametrize("place", ["field", "options"])
def test_preconditioner_of_neumann_is_mapped_with_the_state(map_name, place):
    matrix = cases.matrix_of("general", SIZE, complex)
    error = cases.random_array((SIZE, SIZE), complex, 5) / 40
    preconditioner = lx.MatrixLinearOperator(jnp.asarray(np.linalg.inv(matrix) + error))
    fields = {"field": {"preconditioner": preconditioner}, "options": {}}[place]
    options = {"field": {}, "options": {"preconditioner": preconditioner}}[place]
    solver = pj.Neumann(60, **fields)
    vector = cases.random_array((SIZE,), complex, 7)
    state = solver.init(lx.MatrixLinearOperator(jnp.asarray(matrix)), options)
    state, options = getattr(solver, map_name)(state, options)
    got, successful = _computed(solver, state, vector, options)
    mapped = {"transpose": np.transpose, "conj": np.conj}[map_name](matrix)
    assert successful
    _assert_close(got, np.linalg.solve(mapped, vector))


@pytest.mark.default("CG-options-transpose")
@pytest.mark.ci("*")
@pytest.mark.parametrize("map_name", ["transpose", "conj"])
@pytest.mark.parametrize("place", ["field", "options"])
@pytest.mark.parametrize("wrap", [lambda s: s, pj.Normal], ids=["CG", "Normal(CG)"])
def test_preconditioner_of_cg_is_mapped_with_the_state(map_name, place, wrap):
    matrix = cases.matrix_of("positive", SIZE, complex)
    diagonal = cases.operator_of(np.diag(1 / np.diag(matrix)), "positive")
    fields = {"field": {"preconditioner": diagonal}, "options": {}}[place]
    options = {"field": {}, "options": {"preconditioner": diagonal}}[place]
    solver = wrap(pj.CG(TOL, TOL, **fields))
    vector = cases.random_array((SIZE,), complex, 7)
    state = solver.init(cases.operator_of(matrix, "positive"), options)
    state, options = getattr(solver, map_name)(state, options)
    got, successful = _computed(solver, state, vector, options)
    mapped = {"transpose": np.transpose, "conj": np.conj}[map_name](matrix)
    assert successful
    _assert_close(got, np.linalg.solve(mapped, vector))


@pytest.mark.default("QR-*")
@_CI
@pytest.mark.parametrize(("case", "dtype"), cases.params(cases.FEW, "float64"))
def test_solver_and_its_derivatives_are_right_within_lineax(case, dtype):
    matrix, vector, solver, _ = _setting(case, dtype)
    t_matrix = cases.direction_of(case.kind, SIZE, dtype, 11)
    t_vector, weights = cases.random_array((2, SIZE), dtype, 12)

    def solve(matrix, vector):
        return lx.linear_solve(cases.operator_of(matrix, case.kind), vector, solver).value

    @eqx.filter_jit
    def derivatives(primals, tangents, weights):
        solution, tangent = jax.jvp(solve, primals, tangents)
        _, pullback = jax.vjp(solve, *primals)
        return solution, tangent, pullback(weights)

    primals = (jnp.asarray(matrix), jnp.asarray(vector))
    tangents = (jnp.asarray(t_matrix), jnp.asarray(t_vector))
    got, t_got, (ct_matrix, ct_vector) = derivatives(primals, tangents, weights)
    solution = np.linalg.solve(matrix, vector)
    t_solution = np.linalg.solve(matrix, t_vector - t_matrix @ solution)
    _assert_close(got, solution)
    _assert_close(t_got, t_solution)
    paired = np.sum(ct_matrix * t_matrix) + np.sum(ct_vector * t_vector)
    _assert_close(paired, weights @ t_solution)


@pytest.mark.default("Normal(LU)-wide")
@pytest.mark.ci("*")
@_SHAPES
@pytest.mark.parametrize("name", _ANY_SHAPE)
def test_non_square_solve_is_right_within_lineax(name, shape):
    matrix = cases.conditioned(shape, [1.0, 2.0], complex, 3)
    vector = cases.random_array(shape[:1], complex, 7)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    solution = lx.linear_solve(operator, jnp.asarray(vector), _ANY_SHAPE[name])
    _assert_close(solution.value, np.linalg.pinv(matrix) @ vector)


@pytest.mark.default("SVD-*", "Neumann-tol-*")
@_CI
@pytest.mark.parametrize(("case", "dtype"), cases.params(cases.FEW, "float64"))
def test_state_passes_through_a_loop(case, dtype):
    matrix, vector, solver, operator = _setting(case, dtype)
    arrays, rest = eqx.partition(solver.init(operator, {}), eqx.is_array)

    @jax.jit
    def solve_twice(arrays, vector):
        def body(carry):
            index, arrays, vector = carry
            state = eqx.combine(arrays, rest)
            solution = pj.linear_solve(operator, vector, solver, state=state)
            return index + 1, eqx.filter(solution.state, eqx.is_array), solution.value

        return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, arrays, vector))[2]

    truth = np.linalg.solve(matrix, np.linalg.solve(matrix, vector))
    _assert_close(solve_twice(arrays, jnp.asarray(vector)), truth)


def test_automatic_solver_picks_the_namesake_of_what_lineax_picks():
    for kind, tags in cases.TAGS.items():
        operator = cases.operator_of(cases.matrix_of(kind, SIZE, float), kind)
        for well_posed in (True, None):
            ours = pj.AutoLinearSolver(well_posed).select_solver(operator)
            theirs = lx.AutoLinearSolver(well_posed).select_solver(operator)
            assert type(ours).__name__ == type(theirs).__name__, (kind, tags)


def test_automatic_solver_passes_the_rank_on():
    matrix = cases.conditioned((4, 3), [1.0, 2.0], float, 3)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    solver = pj.AutoLinearSolver(well_posed=False)
    assert pj.linear_solve(operator, jnp.ones(4), solver).stats["rank"] == 2
