"""What `warm_solve` and its kin say of bad input."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


A = lx.MatrixLinearOperator(jnp.eye(3), lx.positive_semidefinite_tag)
B = jnp.ones(3)
CG = pj.CG()


def solve(operator=A, vector=B, warm=None, solver=CG, **kwargs):
    warm = pj.warm_start(A) if warm is None else warm
    return pj.warm_solve(operator, vector, warm, solver, **kwargs)


@pytest.mark.untyped
@pytest.mark.parametrize("memory", [0, -1, 2.0, True])
def test_a_memory_is_a_positive_integer(memory):
    with pytest.raises(ValueError, match=r"`warm_start\(memory=...\)` got"):
        pj.warm_start(A, memory=memory)


@pytest.mark.untyped
def test_a_state_is_a_warm_start():
    with pytest.raises(TypeError, match=r"`warm_solve\(warm=...\)` got a tuple"):
        solve(warm=(B, B))


@pytest.mark.parametrize(
    "solver", [pj.LU(), pj.LSMR(), pj.MINRES(), pj.AutoLinearSolver(True), pj.QR()]
)
def test_a_solver_that_takes_no_first_guess_is_refused(solver):
    with pytest.raises(ValueError, match=f"got the solver `{type(solver).__name__}`"):
        solve(solver=solver)


def test_a_first_guess_of_your_own_is_refused():
    with pytest.raises(ValueError, match="makes a first guess itself"):
        solve(options={"y0": B})


def test_an_operator_that_is_not_square_is_refused():
    wide = jnp.ones((2, 3))
    solver = pj.LSMR(well_posed=True)
    with pytest.raises(ValueError, match=r"an operator of shape \(2, 3\)"):
        pj.warm_solve(wide, jnp.ones(2), pj.warm_start(wide), solver)


def test_a_state_of_another_solve_is_refused():
    with pytest.raises(ValueError, match="got solutions of structure"):
        solve(warm=pj.warm_start(jnp.eye(4)))
    with pytest.raises(ValueError, match="goes through `jax.vmap`"):
        solve(warm=pj.warm_start(A, batch=2))


def test_a_function_that_loses_the_state_is_told():
    step = pj.warm_value_and_grad(lambda t, warm: (t**2, None))
    with pytest.raises(ValueError, match="Return `value, warm`"):
        step(jnp.array(1.0), pj.warm_start(A))


def test_a_vector_of_another_structure_is_refused():
    with pytest.raises(ValueError, match="structures do not match: `warm_solve`"):
        solve(vector=jnp.ones(4))


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="unknown option"):
        jax.jit(lambda: solve(options={"preconditoner": A})[0].value)()


@pytest.mark.untyped
@pytest.mark.parametrize("batch", [-1, 1.5, (2, True), [2]])
def test_a_batch_is_a_number_of_solves(batch):
    with pytest.raises(ValueError, match=r"`warm_start\(batch=...\)` got"):
        pj.warm_start(A, batch=batch)


def loss(parameters, warm):
    operator = lx.MatrixLinearOperator(parameters * jnp.eye(3), A.tags)
    solution, warm = pj.warm_solve(operator, B, warm, CG)
    return jnp.sum(solution.value), warm


@pytest.mark.parametrize(
    ("function", "parameters", "warm", "error", "message"),
    [
        (loss, jnp.array(1), pj.warm_start(A), TypeError, "none is floating-point"),
        (loss, 1.0, B, TypeError, "got a state of ArrayImpl"),
        (lambda t, warm: t**2, 1.0, pj.warm_start(A), TypeError, "Return `value, warm`"),
        (
            lambda t, warm: (t**2, pj.warm_start(A, memory=2)),
            1.0,
            pj.warm_start(A),
            ValueError,
            "got a function that takes the state",
        ),
    ],
    ids=["integer", "array", "value", "memory"],
)
def test_a_step_says_what_it_cannot_take(function, parameters, warm, error, message):
    with pytest.raises(error, match=message):
        pj.warm_value_and_grad(function)(parameters, warm)


@pytest.mark.parametrize("two", [2.0, np.array(2.0)], ids=["python", "numpy"])
@pytest.mark.slow  # a second each
def test_numbers_that_are_no_jax_arrays_are_differentiated_too(two):
    _, gradient, _ = pj.warm_value_and_grad(loss)(two, pj.warm_start(A))
    np.testing.assert_allclose(gradient, -3 / 4, rtol=1e-12)
