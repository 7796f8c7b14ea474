"""Preconditioners and settings that are of no use to the flexible solvers: told."""

import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 8
RESULTS = lx.RESULTS
DEFINITE = krylov.hermitian(0, False, np.linspace(1, 4, SIZE))

both = pytest.mark.parametrize("make", [pj.FlexibleCG, pj.FlexibleGMRES])


BAD = {
    "zero": lambda v: 0 * v,
    "nan": lambda v: jnp.nan * v,
    "orthogonal": lambda v: jnp.roll(v, 1).at[::2].multiply(-1),
    "one-place": lambda v: jnp.where(jnp.arange(SIZE) == 0, v, 0),
}
# Of an even size, (v2, -v1, ...) is orthogonal to (v1, v2, ...): a step may not move.
WANT = {"zero": RESULTS.breakdown, "nan": RESULTS.breakdown}


@pytest.mark.default("nan-FlexibleGMRES")
@pytest.mark.ci("*")
@both
@pytest.mark.parametrize("name", BAD)
def test_successful_is_what_the_true_residual_says(name, make):
    matrix, vector = DEFINITE, krylov.random(1, False, SIZE)
    solver = make(preconditioner=BAD[name], max_steps=200)
    value, successful, *_ = krylov.solve(matrix, vector, solver, krylov.PSD)
    residual = np.linalg.norm(vector - matrix @ value) / np.linalg.norm(vector)
    assert not successful or residual < 1.1e-10
    assert not (successful and name in WANT)


@pytest.mark.parametrize("name", WANT)
def test_breakdown_of_flexible_cg_is_told(name):
    matrix, vector = DEFINITE, krylov.random(1, False, SIZE)
    solver = pj.FlexibleCG(preconditioner=BAD[name])
    value, _, result, _ = krylov.solve(matrix, vector, solver, krylov.PSD)
    assert result == WANT[name]
    assert np.isfinite(value).all()


def test_indefinite_operator_of_flexible_cg_is_told():
    matrix = krylov.hermitian(0, False, np.linspace(-1, 2, SIZE))
    vector = krylov.random(1, False, SIZE)
    solver = pj.FlexibleCG(preconditioner=jnp.tanh)
    assert krylov.solve(matrix, vector, solver, krylov.PSD)[2] == RESULTS.breakdown


@both
def test_preconditioner_of_another_space_is_an_error(make):
    operator = krylov.operator(DEFINITE, krylov.PSD)
    vector = np.ones(SIZE)
    wrong = {
        "shape": lambda v: v[:-1],
        "tree": lambda v: (v, v),
        "dtype": lambda v: v.astype(jnp.float32),
    }
    for function in wrong.values():
        with pytest.raises(ValueError, match="must return a vector of the structure"):
            pj.linear_solve(operator, vector, make(preconditioner=function))
    other = krylov.operator(np.ones((3, 3)))
    with pytest.raises(ValueError, match="so it must map"):
        pj.linear_solve(operator, vector, make(preconditioner=other))
    options = {"preconditioner": wrong["shape"]}
    with pytest.raises(ValueError, match="must return a vector of the structure"):
        pj.linear_solve(operator, vector, make(), options=options)


@pytest.mark.untyped
@both
def test_preconditioner_that_is_no_function_is_an_error(make):
    for given in (np.eye(SIZE), 1.0, jnp.tanh.__class__):
        with pytest.raises(TypeError, match="Pass a function from a vector to a vector"):
            make(preconditioner=given)


def test_settings_below_one_are_errors():
    for name in ("memory", "stabilise_every"):
        with pytest.raises(ValueError, match="Pass a positive integer"):
            pj.FlexibleCG(**{name: 0})
    with pytest.raises(ValueError, match="Pass a positive integer"):
        pj.FlexibleGMRES(restart=0)
    with pytest.raises(ValueError, match=r"`FlexibleCG\(\)` may only be used for pos"):
        pj.linear_solve(np.eye(3), np.ones(3), pj.FlexibleCG())
