"""`LearnedCG`: the steps beside NumPy's, their gradients, and what a solve tells."""

import equinox as eqx
import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit

import pseudojvp as pj
from benchmarks import learned_cg


SIZE, STEPS = 8, 5
RESULTS = lx.RESULTS
CASES = {  # complex, sign, with a preconditioner and a first guess
    "real": (False, 1, False),
    "complex": (True, 1, False),
    "negative": (False, -1, True),
    "complex-aided": (True, 1, True),
}


def _steps_of_numpy(matrix, vector, factors, shifts, preconditioner, guess):
    x, r = guess, vector - matrix @ guess
    z = preconditioner @ r
    p, gamma, norms = z, np.vdot(z, r).real, []
    for factor, shift in zip(factors, shifts, strict=True):
        size = factor * gamma / np.vdot(p, matrix @ p).real
        x, r = x + size * p, r - size * matrix @ p
        z = preconditioner @ r
        gamma, old = np.vdot(z, r).real, gamma
        p = z + (gamma / old + shift) * p
        norms.append(np.linalg.norm(r))
    return x, np.array(norms)


def _learned(factors, shifts, **settings):
    """With numbers of its own."""
    solver = pj.LearnedCG(len(factors), **settings)
    numbers = jnp.asarray(factors), jnp.asarray(shifts)
    return eqx.tree_at(lambda s: (s.factors, s.shifts), solver, numbers)


def _system(is_complex, sign, aided):
    matrix = sign * krylov.hermitian(0, is_complex, np.linspace(1, 9, SIZE))
    vector = krylov.random(1, is_complex, SIZE)
    guess = krylov.random(2, is_complex, SIZE) if aided else np.zeros_like(vector)
    preconditioner = np.diag(np.linspace(0.3, 1, SIZE)) if aided else np.eye(SIZE)
    return matrix, vector, sign * preconditioner.astype(vector.dtype), guess


def _tags(sign):
    return krylov.PSD if sign > 0 else lx.negative_semidefinite_tag


RNG = np.random.default_rng(5)
FACTORS = 1 + 0.2 * RNG.standard_normal(STEPS)
SHIFTS = 0.1 * RNG.standard_normal(STEPS)


@pytest.mark.default("real-first")
@pytest.mark.ci("*")
@pytest.mark.parametrize("numbers", ["first", "other"])
@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_those_of_the_formula_and_of_cg_at_the_first_numbers(name, numbers):
    is_complex, sign, aided = CASES[name]
    matrix, vector, preconditioner, guess = _system(is_complex, sign, aided)
    factors, shifts = FACTORS, SHIFTS
    if numbers == "first":
        factors, shifts = np.ones(STEPS), np.zeros(STEPS)
        solver = pj.LearnedCG(STEPS, history=True)
    else:
        solver = _learned(FACTORS, SHIFTS, history=True)
    options = {}
    if aided:
        definite = lx.MatrixLinearOperator(jnp.asarray(sign * preconditioner), krylov.PSD)
        options = {"preconditioner": definite, "y0": jnp.asarray(guess)}
    value, _, result, stats = krylov.solve(matrix, vector, solver, _tags(sign), options)
    args = factors, shifts, preconditioner, guess
    want, norms = _steps_of_numpy(matrix, vector, *args)
    assert krylov.relative_error(value, want) < 1e-13
    np.testing.assert_allclose(stats["residual_norms"], norms, rtol=1e-11)
    assert result == RESULTS.max_steps_reached
    assert stats["num_steps"] == stats["max_steps"] == STEPS


@pytest.mark.slow  # beside NumPy's steps by default
def test_at_the_first_numbers_it_is_the_solver_cg_to_rounding():
    matrix, vector, *_ = _system(True, 1, False)
    cg = pj.CG(0.0, 0.0, max_steps=STEPS, history=True)
    want = krylov.solve(matrix, vector, cg, krylov.PSD)
    got = krylov.solve(matrix, vector, pj.LearnedCG(STEPS, history=True), krylov.PSD)
    assert krylov.relative_error(got[0], want[0]) < 1e-14
    np.testing.assert_allclose(
        got[3]["residual_norms"], want[3]["residual_norms"], rtol=1e-12
    )


def test_steps_are_differentiated_in_numbers_operator_vector_preconditioner_and_guess():
    matrix, vector, _, guess = _system(False, 1, True)
    weights = krylov.random(7, False, SIZE)
    scales = np.linspace(0.3, 1, SIZE)
    start = (FACTORS, SHIFTS, matrix, vector, scales, guess)

    def loss(factors, shifts, matrix, vector, scales, guess):
        solver = _learned(factors, shifts, history=True)
        operator = lx.MatrixLinearOperator(matrix, krylov.PSD)
        diagonal = lx.DiagonalLinearOperator(scales)
        diagonal = lx.TaggedLinearOperator(diagonal, krylov.PSD)
        options = {"preconditioner": diagonal, "y0": guess}
        state = solver.init(operator, options)
        x, _, stats = solver.compute(state, vector, options)
        return weights @ x + jnp.log(stats["residual_norms"]).sum()

    def of_numpy(factors, shifts, matrix, vector, scales, guess):
        args = factors, shifts, np.diag(scales), guess
        x, norms = _steps_of_numpy(matrix, vector, *args)
        return weights @ x + np.log(norms).sum()

    tangents = [krylov.random(20 + k, False, *np.shape(a)) for k, a in enumerate(start)]
    tangents[2] = (tangents[2] + tangents[2].T) / 2

    @jit
    def both(*start):
        gradients = jax.grad(loss, range(6))(*start)
        return gradients, jax.jvp(loss, start, tuple(map(jnp.asarray, tangents)))[1]

    gradients, forward = both(*map(jnp.asarray, start))
    step, parts = 1e-5, []
    for k, tangent in enumerate(tangents):
        moved = [
            of_numpy(*start[:k], start[k] + sign * step * tangent, *start[k + 1 :])
            for sign in (1, -1)
        ]
        parts.append((moved[0] - moved[1]) / (2 * step))
    got = [np.sum(g * t) for g, t in zip(gradients, tangents, strict=True)]
    np.testing.assert_allclose(got, parts, rtol=1e-6)  # of central differences
    np.testing.assert_allclose(forward, sum(got), rtol=1e-11)


def _solution(matrix, vector, factors, shifts):
    operator = lx.MatrixLinearOperator(matrix, krylov.PSD)
    solver = _learned(factors, shifts, rtol=1e-3, derivative_rtol=1e-13)
    return pj.linear_solve(operator, vector, solver, throw=False)


@pytest.mark.ci("*")
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_implicit_derivatives_are_exact_whatever_the_numbers(is_complex):
    matrix = krylov.hermitian(0, is_complex, np.linspace(1, 1.5, SIZE))
    vector = krylov.random(1, is_complex, SIZE)
    t_matrix = krylov.random(3, is_complex, SIZE, SIZE)
    t_matrix = (t_matrix + t_matrix.conj().T) / 2
    t_vector, ct = krylov.random(4, is_complex, 2, SIZE)
    # So good a start that each solve is successful, and x has nearly all digits.
    factors, shifts = 1 + 1e-6 * FACTORS, 1e-6 * SHIFTS

    @jit
    def compute(matrix, vector, t_matrix, t_vector, ct):
        solve = lambda *args: _solution(*args, factors, shifts).value
        second = lambda s: jax.jvp(
            solve, (matrix + s * t_matrix, vector + s * t_vector), (t_matrix, t_vector)
        )[1]
        batch = jax.vmap(solve, (None, 0))(matrix, jnp.stack([vector, t_vector]))
        tangent, curvature = jax.jvp(second, (0.0,), (1.0,))
        return tangent, curvature, jax.vjp(solve, matrix, vector)[1](ct), batch

    args = map(jnp.asarray, (matrix, vector, t_matrix, t_vector, ct))
    tangent, curvature, (ct_matrix, ct_vector), batch = compute(*args)
    inverse = np.linalg.inv(matrix)
    x = np.asarray(batch[0])  # of five steps
    t_x = inverse @ (t_vector - t_matrix @ x)
    assert krylov.relative_error(batch[0], inverse @ vector) < 1e-4
    assert_close(tangent, t_x, 1e-11)
    assert_close(curvature, -2 * inverse @ t_matrix @ t_x, 1e-11)
    adjoint = inverse.T @ ct  # JAX's transpose does not conjugate
    assert_close(ct_vector, adjoint, 1e-11)
    assert_close(ct_matrix, -np.outer(adjoint, x), 1e-11)


HOSTILE = {
    "large": (50 * np.ones(STEPS), np.zeros(STEPS)),
    "huge": (1e200 * np.ones(STEPS), np.ones(STEPS)),
    "nan": (np.full(STEPS, np.nan), np.zeros(STEPS)),
    "idle": (np.zeros(STEPS), np.zeros(STEPS)),
    "back": (-np.ones(STEPS), np.zeros(STEPS)),
}


def test_whatever_the_numbers_successful_is_what_the_true_residual_says():
    matrix, vector, *_ = _system(False, 1, False)
    numbers = [(FACTORS, SHIFTS), *HOSTILE.values()]
    factors, shifts = map(np.stack, zip(*numbers, strict=True))
    rtols = np.array([1e-2, 0.5, 1e-10])

    @jit
    def told(factors, shifts, rtol):
        operator = lx.MatrixLinearOperator(jnp.asarray(matrix), krylov.PSD)
        solver = _learned(factors, shifts, rtol=rtol)
        solution = pj.linear_solve(operator, jnp.asarray(vector), solver, throw=False)
        return solution.value, solution.result == RESULTS.successful

    every = jax.vmap(jax.vmap(told, (None, None, 0)), (0, 0, None))
    value, successful = map(np.asarray, every(factors, shifts, rtols))
    residual = np.linalg.norm(vector - value @ matrix.T, axis=-1)
    met = residual <= rtols * np.linalg.norm(vector)
    np.testing.assert_array_equal(successful, met)
    assert met[0].tolist() == [False, True, False]
    assert not met[1:].any()


def test_without_tolerance_a_truncated_solve_is_not_successful():
    matrix, vector, *_ = _system(False, 1, False)
    _, _, result, _ = krylov.solve(matrix, vector, pj.LearnedCG(3, 0.0), krylov.PSD)
    assert result == RESULTS.max_steps_reached


def test_more_steps_than_unknowns_solve_to_rounding():
    matrix, vector, *_ = _system(False, 1, False)
    for b, scale in ((vector, 1e150), (0 * vector, 1.0)):
        solver = pj.LearnedCG(60, 1e-14)
        value, successful, *_ = krylov.solve(scale * matrix, b, solver, krylov.PSD)
        assert successful
        assert_close(scale * value, np.linalg.solve(matrix, b), 1e-13)


def test_indefinite_operator_is_told():
    matrix = krylov.hermitian(0, False, np.linspace(-1, 2, SIZE))
    vector = krylov.random(1, False, SIZE)
    value, _, result, _ = krylov.solve(matrix, vector, pj.LearnedCG(20), krylov.PSD)
    assert result == RESULTS.breakdown
    assert np.isfinite(value).all()


@pytest.mark.slow  # a program that raises is not kept
def test_failure_raises_with_throw():
    operator = krylov.operator(jnp.asarray(_system(False, 1, False)[0]), krylov.PSD)
    with pytest.raises(eqx.EquinoxRuntimeError, match="LearnedCG"):
        pj.linear_solve(operator, jnp.ones(SIZE), pj.LearnedCG(2))


def test_a_tangent_of_the_numbers_is_an_error_of_linear_solve():
    matrix, vector, *_ = _system(False, 1, False)
    loss = lambda factors: jnp.sum(_solution(matrix, vector, factors, SHIFTS).value)
    with pytest.raises(RuntimeError, match="Unexpected tangent"):
        jax.grad(loss)(jnp.asarray(FACTORS))


@pytest.mark.untyped
def test_bad_input_is_an_error():
    for steps in (2.0, True, None):
        with pytest.raises(TypeError, match=r"`LearnedCG\(num_steps=...\)` got a"):
            pj.LearnedCG(steps)
    with pytest.raises(ValueError, match=r"got 0. Pass a positive integer"):
        pj.LearnedCG(0)
    with pytest.raises(ValueError, match="Tolerances must be non-negative"):
        pj.LearnedCG(3, -1.0)
    with pytest.raises(ValueError, match=r"`LearnedCG\(\)` may only be used for pos"):
        pj.linear_solve(np.eye(3), np.ones(3), pj.LearnedCG(3))
    operator = krylov.operator(jnp.eye(3), krylov.PSD)
    options = {"preconditioner": krylov.operator(jnp.eye(3))}
    with pytest.raises(ValueError, match="preconditioner of `LearnedCG` with"):
        pj.linear_solve(operator, jnp.ones(3), pj.LearnedCG(3), options=options)
    with pytest.raises(ValueError, match="unknown option"):
        pj.linear_solve(operator, jnp.ones(3), pj.LearnedCG(3), options={"x0": 1})


def test_progress_is_printed(capfd):
    matrix, vector, *_ = _system(False, 1, False)
    krylov.solve(matrix, vector, pj.LearnedCG(4, progress=2), krylov.PSD)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("LearnedCG: step") == 2


@pytest.mark.slow  # 300 updates
def test_learned_numbers_come_near_minres_in_the_residual_and_gain_no_energy():
    operator = learned_cg.poisson(16)
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.standard_normal((96, 256)))
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
        solver = learned_cg.learn(operator, vectors, 300)
    steps = {"rtol": 0.0, "max_steps": learned_cg.STEPS}
    others = pj.CG(**steps), pj.MINRES(**steps, well_posed=True)
    vectors = learned_cg.held_out(rng, 16, "random")
    told = [learned_cg.told(each, operator, vectors) for each in (solver, *others)]
    (learned, energy), (cg, least_energy), (minres, _) = told
    assert learned < 0.6 * cg
    assert minres < learned < 1.05 * minres
    assert energy > least_energy
