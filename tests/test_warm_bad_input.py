"""What `warm_solve` and its kin say of bad input."""

import jax
import jax.numpy as jnp
import lineax as lx
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
