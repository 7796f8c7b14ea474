"""Tolerances, history, progress, options and trees: the same for every Krylov solver."""

import inspect

import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import lineax.internal as lxi
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 6
MAKE = {
    "CG": pj.CG,
    "MINRES": pj.MINRES,
    "LSMR": pj.LSMR,
    "GMRES": pj.GMRES,
    "BiCGStab": pj.BiCGStab,
    "FlexibleCG": pj.FlexibleCG,
    "FlexibleGMRES": pj.FlexibleGMRES,
}
MATRIX = krylov.hermitian(0, False, np.linspace(1, 9, SIZE))
VECTOR = krylov.random(1, False, SIZE)

each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def _solve(solver, vector=VECTOR, matrix=MATRIX):
    return krylov.solve(matrix, vector, solver, krylov.PSD)


@pytest.mark.default("GMRES", "LSMR")
@pytest.mark.ci("*")
@each
def test_default_tolerance_is_a_relative_residual_of_1e10(make):
    value, successful, *_ = _solve(make())
    residual = np.linalg.norm(VECTOR - MATRIX @ value)
    assert successful
    assert residual <= 1.01e-10 * np.linalg.norm(VECTOR)


@pytest.mark.default("LSMR", "BiCGStab")
@pytest.mark.ci("*")
@each
def test_history_is_the_residual_after_each_step_and_nan_at_the_end(make):
    value, successful, _, stats = _solve(make(1e-8, max_steps=30, history=True))
    norms, steps = stats["residual_norms"], int(stats["num_steps"])
    assert successful
    assert norms.shape == (30,)
    assert np.isfinite(norms[:steps]).all()
    assert np.isnan(norms[steps:]).all()
    residual = np.linalg.norm(VECTOR - MATRIX @ value)
    np.testing.assert_allclose(norms[steps - 1], residual, rtol=1e-3, atol=1e-12)


@each
def test_no_history_unless_asked_for(make):
    assert "residual_norms" not in _solve(make())[3]


@pytest.mark.default("GMRES")
@pytest.mark.ci("*")
@pytest.mark.parametrize("make", [pj.CG, pj.GMRES], ids=["CG", "GMRES"])
def test_progress_prints_a_line_for_the_worst_of_a_batch(make, capsys):
    solver = make(1e-10, progress=2)
    solve = lambda vector: pj.linear_solve(
        krylov.operator(MATRIX, krylov.PSD), vector, solver
    )
    vectors = jnp.stack([VECTOR, 0 * VECTOR])
    steps = jax.jit(jax.vmap(lambda b: solve(b).stats["num_steps"]))(vectors)
    jax.effects_barrier()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == int(steps.max()) // 2
    assert lines[0].startswith(f"{make.__name__}: step 2, residual ")


@pytest.mark.ci("*")
@each
def test_gradient_does_not_vanish_under_an_absolute_tolerance(make):
    # The units of `atol` are those of b, not those of a cotangent.
    operator = krylov.operator(MATRIX, krylov.PSD)
    total = lambda b: (
        1e-12 * jnp.sum(pj.linear_solve(operator, b, make(1e-10, 1e-6)).value)
    )
    gradient = jax.jit(jax.grad(total))(VECTOR)
    truth = 1e-12 * np.linalg.solve(MATRIX, np.ones(SIZE))
    assert krylov.relative_error(gradient, truth) < 1e-8


@pytest.mark.default("Normal(CG)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("wrap", [lambda s: s, pj.Normal], ids=["CG", "Normal(CG)"])
def test_derivatives_have_a_tolerance_of_their_own(wrap):
    operator = krylov.operator(MATRIX, krylov.PSD)
    solver = wrap(pj.CG(2.0, derivative_rtol=1e-12))  # one step
    solve = lambda b: pj.linear_solve(operator, b, solver).value
    value, tangent = jax.jit(lambda b: jax.jvp(solve, (b,), (b,)))(VECTOR)
    truth = np.linalg.solve(MATRIX, VECTOR)
    assert krylov.relative_error(value, truth) > 1e-3
    assert krylov.relative_error(tangent, truth) < 1e-10


def test_tolerance_of_derivatives_is_never_larger_than_that_of_the_primal():
    assert pj.GMRES(1e-8, derivative_rtol=1e-2).for_derivative().rtol == 1e-8
    assert pj.GMRES(1e-8, derivative_rtol=1e-9).for_derivative().rtol == 1e-9
    traced = pj.GMRES(jnp.array(1e-8), derivative_rtol=1e-2).for_derivative()
    assert float(traced.rtol) == 1e-8


@each
def test_misspelt_option_is_an_error(make):
    options = {"preconditoner": krylov.operator(MATRIX, krylov.PSD)}
    operator = krylov.operator(MATRIX, krylov.PSD)
    with pytest.raises(ValueError, match=r"unknown option.*preconditoner"):
        pj.linear_solve(operator, VECTOR, make(), options=options)


@each
def test_negative_settings_are_errors(make):
    for name in ("rtol", "atol", "derivative_rtol"):
        with pytest.raises(ValueError, match="must be non-negative"):
            make(**{name: -1.0})
    if make is pj.LSMR:
        with pytest.raises(ValueError, match="must be non-negative"):
            make(conlim=-1.0)
    for name in ("max_steps", "progress"):
        with pytest.raises(ValueError, match="non-negative integer"):
            make(**{name: -1})


@pytest.mark.default("GMRES")
@pytest.mark.ci("*")
@pytest.mark.parametrize("make", [pj.MINRES, pj.LSMR, pj.GMRES, pj.BiCGStab])
def test_vectors_are_trees(make):
    first, second = MATRIX[:2, :2], MATRIX[2:, 2:]

    def product(tree):
        return {"a": (first @ tree["a"][0],), "b": second @ tree["b"]}

    vector = {"a": (VECTOR[:2],), "b": VECTOR[2:]}
    structure = jax.eval_shape(lambda: vector)
    operator = lx.FunctionLinearOperator(product, structure, krylov.PSD)
    value = jax.jit(lambda b: pj.linear_solve(operator, b, make()).value)(vector)
    np.testing.assert_allclose(
        value["a"][0], np.linalg.solve(first, VECTOR[:2]), rtol=1e-8
    )
    np.testing.assert_allclose(value["b"], np.linalg.solve(second, VECTOR[2:]), rtol=1e-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each
def test_nonfinite_vector_is_told(make, bad):
    vector = np.where(np.arange(SIZE) == 2, bad, VECTOR)
    assert _solve(make(), vector)[2] == lx.RESULTS.nonfinite_input


THEIRS = {
    "CG": ("rtol", "atol", "norm", "stabilise_every", "max_steps"),
    "GMRES": ("rtol", "atol", "norm", "max_steps", "restart", "stagnation_iters"),
    "BiCGStab": ("rtol", "atol", "norm", "max_steps"),
    "LSMR": ("rtol", "atol", "norm", "max_steps", "conlim"),
}
theirs = pytest.mark.parametrize("name", THEIRS)


@theirs
def test_positional_arguments_are_those_of_lineax(name):
    parameters = inspect.signature(getattr(lx, name)).parameters
    assert tuple(parameters) == THEIRS[name]
    ours = inspect.signature(MAKE[name]).parameters.values()
    positional = [p.name for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert tuple(positional) == THEIRS[name]


@pytest.mark.untyped
@each
def test_number_of_steps_in_the_place_of_the_norm_is_an_error(make):
    with pytest.raises(TypeError, match="Pass a function from a vector"):
        make(1e-6, 1e-6, 100)


@pytest.mark.default("CG")
@pytest.mark.ci("*")
@each
def test_norm_of_quotients_of_entries_is_what_has_to_be_at_most_one(make):
    # An entry of b is small, and so is what it allows.
    vector = np.where(np.arange(SIZE) == 2, 1e-6, VECTOR)
    value, successful, *_ = _solve(make(1e-4, 0.0, lxi.max_norm), vector)
    residual = np.abs(vector - MATRIX @ value)
    assert successful
    assert np.all(residual <= 1.000001e-4 * np.abs(vector))


@pytest.mark.default("LSMR")
@pytest.mark.ci("*")
@each
def test_norm_may_allow_more_than_the_euclidean_one(make):
    nothing = lambda tree: 0 * lxi.two_norm(tree)
    value, successful, *_ = _solve(make(1e-10, 0.0, nothing))
    assert successful
    np.testing.assert_array_equal(value, 0)


@pytest.mark.default("BiCGStab")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", [name for name in MAKE if name != "CG"])
def test_no_tolerance_runs_max_steps_and_is_what_was_asked_for(name):
    value, successful, _, stats = _solve(MAKE[name](0.0, 0.0, max_steps=2))
    assert successful
    assert stats["num_steps"] == 2
    assert 0 < np.linalg.norm(VECTOR - MATRIX @ value) < np.linalg.norm(VECTOR)


@each
def test_no_stopping_rule_is_an_error(make):
    with pytest.raises(ValueError, match="would never stop"):
        make(0, 0)


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("scale", [-84, 0, 84])
def test_scales_of_operator_and_vector_do_not_matter(dtype, scale):
    # 2^±84: squares over- and underflow in single precision.
    power = np.float32(2.0) ** scale
    matrix, vector = MATRIX.astype(dtype), VECTOR.astype(dtype)
    for make in MAKE.values():
        value, successful, *_ = _solve(make(1e-4), vector * power, matrix * power)
        want, *_ = _solve(make(1e-4), vector, matrix)
        assert successful
        np.testing.assert_array_equal(value, want)


def test_restarts_without_progress_are_counted():
    shift, vector = np.roll(np.eye(SIZE), 1, axis=0), np.eye(SIZE)[0]
    for most in (1, 4):
        solver = pj.GMRES(restart=2, stagnation_iters=most)
        _, _, result, stats = krylov.solve(shift, vector, solver)
        assert result == lx.RESULTS.stagnation
        assert stats["num_steps"] == 2 * most


def test_no_restart_without_progress_is_refused():
    with pytest.raises(ValueError, match="Pass a positive integer"):
        pj.GMRES(stagnation_iters=0)


@pytest.mark.default("GMRES", "CG")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["CG", "GMRES", "BiCGStab"])
def test_first_guess_of_a_zero_vector_is_no_solution(name):
    solution = pj.linear_solve(
        krylov.operator(MATRIX, krylov.PSD),
        np.zeros(SIZE),
        MAKE[name](1e-8, 1e-8),
        options={"y0": np.ones(SIZE)},
    )
    np.testing.assert_allclose(solution.value, 0, atol=1e-8)
