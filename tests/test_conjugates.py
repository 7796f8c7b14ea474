"""Complex functions that conjugate, which have no complex matrix: told, or solved."""

import equinox as eqx
import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


def _random(seed, *shape):
    return krylov.random(seed, True, *shape)


def _with_conjugate():
    first, second = _random(7, 5, 5), _random(8, 5, 5)
    mv = lambda x: first @ x + second @ jnp.conj(x)
    return lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct((5,), complex)), mv


CONJUGATING = {
    "LU": pj.LU(),
    "Normal(LU)": pj.Normal(pj.LU()),
    "QR": pj.QR(),
    "PivotedQR": pj.PivotedQR(),
    "SVD": pj.SVD(),
    "LSMR": pj.LSMR(1e-13),
    "Normal(CG)": pj.Normal(pj.CG(1e-12, 1e-12)),
}


@pytest.mark.default("LU", "LSMR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", CONJUGATING)
def test_conjugate_in_a_complex_function_is_told_or_solved(name):
    operator, mv = _with_conjugate()
    vector = jnp.asarray(_random(9, 5))
    solution = pj.linear_solve(operator, vector, CONJUGATING[name], throw=False)
    if name in ("LSMR", "Normal(CG)"):
        np.testing.assert_allclose(mv(solution.value), vector, atol=1e-8)
    else:
        assert solution.result == lx.RESULTS.breakdown


@pytest.mark.slow  # a second
def test_conjugate_in_one_of_several_leaves_or_functions_is_told():
    first, second = _random(13, 5, 5), _random(14, 5, 5)
    structure = jax.ShapeDtypeStruct((5,), complex)

    def mv(x):  # leaves of other units
        told = first[2:] @ x + second[2:] @ jnp.conj(x)
        return {"a": 1e10 * (first[:2] @ x), "b": told}

    parts = lx.FunctionLinearOperator(mv, structure)
    diagonal = lx.FunctionLinearOperator(
        lambda x: first[0] * jnp.conj(x), structure, lx.diagonal_tag
    )
    one = jnp.ones(5, complex)
    for operator in (parts, diagonal, diagonal @ diagonal):
        vector = {"a": one[:2], "b": one[2:]} if operator is parts else one
        solver = pj.QR() if operator is parts else pj.AutoLinearSolver(True)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        assert solution.result == lx.RESULTS.breakdown
    state = lx.LU().init(_with_conjugate()[0], {})
    solution = pj.linear_solve(
        _with_conjugate()[0], one, lx.LU(), state=state, throw=False
    )
    assert solution.result == lx.RESULTS.breakdown


@pytest.mark.slow  # three seconds
def test_conjugate_in_an_implicit_derivative_is_told():
    _, mv = _with_conjugate()
    root = jnp.asarray(_random(15, 5))

    def function(inputs):
        del inputs
        return root, None

    def rewrite(root, _, inputs):
        return mv(root) - inputs[0]

    def solve(theta):
        adjoint = pj.PseudoinverseAdjoint(throw=False)
        return adjoint.apply(function, rewrite, (theta,), frozenset())[0]

    _, tangent = jax.jvp(solve, (mv(root),), (jnp.ones(5, complex),))
    assert not jnp.isfinite(tangent).any()


def test_error_of_a_conjugate_says_what_to_do():
    with pytest.raises(eqx.EquinoxRuntimeError, match="not linear over the complex"):
        pj.linear_solve(_with_conjugate()[0], jnp.ones(5, complex), pj.LU())


@pytest.mark.slow  # a second
def test_factors_of_a_conjugating_function_tell_of_it():
    factorised = pj.factorise(_with_conjugate()[0], pj.LU(), throw=False)
    assert factorised.result == lx.RESULTS.breakdown
    projected = pj.project(
        _with_conjugate()[0], jnp.ones(5, complex), pj.LU(), throw=False
    )
    assert np.isnan(projected.projection.real).all()
    assert np.isnan(projected.projection.imag).all()


@pytest.mark.slow  # a second
def test_error_of_a_fit_with_a_conjugating_basis_says_so():
    def basis(theta, times):
        decay = jnp.exp(-theta * times).astype(complex)
        mv = lambda c: decay * c[0] + jnp.conj(c[0])
        return lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct((1,), complex))

    times = jnp.linspace(0.0, 1.0, 8)
    data = jnp.exp(-2 * times).astype(complex)
    with pytest.raises(eqx.EquinoxRuntimeError, match="basis conjugates"):
        pj.varpro(basis, data, jnp.array(1.0), times)


def test_linear_function_of_complex_vectors_is_as_before():
    square = _random(10, 5, 5)
    structure = jax.ShapeDtypeStruct((5,), complex)
    operator = lx.FunctionLinearOperator(lambda x: square @ x, structure)
    vector = _random(11, 5)
    value = pj.linear_solve(operator, vector, pj.LU()).value
    np.testing.assert_allclose(value, np.linalg.solve(square, vector), rtol=1e-10)
