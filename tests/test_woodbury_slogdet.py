"""The determinant of a low-rank update by its parts, against NumPy's of the sum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit
from test_low_rank import DTYPES
from test_woodbury import parts_of, SIZE, tridiagonal

import pseudojvp as pj


@DTYPES
@pytest.mark.ci("*")
def test_value_and_two_derivatives_by_all_parts_are_those_of_the_sum(dtype):
    parts = parts_of(dtype)

    def derivatives(slogdet):
        def functions(parts):
            loss = lambda parts: slogdet(tridiagonal(parts))[1]
            slope = lambda parts: sum(
                jnp.sum(jnp.abs(g) ** 2) for g in jax.grad(loss)(parts)
            )
            sign, value = slogdet(tridiagonal(parts))
            return sign, value, jax.grad(loss)(parts), jax.grad(slope)(parts)

        return jax.tree.leaves(jit(functions)(parts))

    got = derivatives(lambda operator: pj.slogdet(operator, throw=False))
    want = derivatives(lambda operator: jnp.linalg.slogdet(operator.as_matrix()))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-11)


@DTYPES
@pytest.mark.slow  # two seconds each
def test_the_sign_is_that_of_the_sum(dtype):
    parts = parts_of(dtype, shift=0.0)
    got = pj.slogdet(tridiagonal(parts))
    sign, logabsdet = np.linalg.slogdet(tridiagonal(parts).as_matrix())
    np.testing.assert_allclose(got.sign, sign, rtol=1e-12)
    np.testing.assert_allclose(got.logabsdet, logabsdet, rtol=1e-11)


@pytest.mark.slow  # two seconds
def test_one_factorisation_serves_solve_and_determinant():
    a = lx.MatrixLinearOperator(jnp.eye(SIZE) * 3)
    operator = pj.LowRankUpdate(a, jnp.ones((SIZE, 1)))

    def both(operator):
        factorised = pj.factorise(operator, throw=False)
        return factorised.solve(jnp.ones(SIZE)), factorised.slogdet()

    lines = jax.jit(both).lower(operator).as_text().splitlines()
    factorisations = [line for line in lines if "@lapack_dgetrf_ffi" in line]
    assert sum(f"tensor<{SIZE}x{SIZE}xf64>" in line for line in factorisations) == 1
    np.testing.assert_allclose(
        both(operator)[1].logabsdet, np.log(3.0 ** (SIZE - 1) * (3 + SIZE)), rtol=1e-13
    )


@pytest.mark.slow  # a second
def test_an_iterative_solver_of_a_has_none():
    psd = lx.positive_semidefinite_tag
    a = lx.TaggedLinearOperator(lx.DiagonalLinearOperator(jnp.ones(3)), psd)
    with pytest.raises(TypeError, match=r"`slogdet` got the solver `CG\(\)`"):
        pj.slogdet(pj.LowRankUpdate(a, jnp.ones((3, 1))), pj.Woodbury(pj.CG()))


def _singular_to_working_precision():
    first = jnp.eye(SIZE)[:, :1]
    a = lx.DiagonalLinearOperator(jnp.ones(SIZE))
    return pj.LowRankUpdate(a, first, None, jnp.array([[1e-15 - 1.0]]))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.slow  # three seconds each
def test_factors_tell_that_the_sum_is_singular_and_no_derivative_is_made(count):
    part = _singular_to_working_precision()
    operator = part if count == 1 else pj.BlockDiagonal(part, part)
    factorised = pj.factorise(operator, throw=False)
    assert factorised.result == lx.RESULTS.singular
    assert factorised.stats["reciprocal_condition"] < 1e-14
    logabsdet = lambda operator: pj.slogdet(operator, throw=False).logabsdet
    value, gradient = eqx.filter_value_and_grad(logabsdet)(operator)
    np.testing.assert_allclose(value, count * np.log(1e-15), rtol=1e-2)
    assert all(jnp.all(jnp.isnan(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("first", [1e-3, 1e-9])
@pytest.mark.slow  # ten seconds each
def test_derivatives_have_their_digits_or_are_none_beside_a_nearly_singular_a(first):
    def logabsdet(diagonal):
        a = lx.DiagonalLinearOperator(diagonal)
        operator = pj.LowRankUpdate(a, jnp.eye(SIZE)[:, :1])
        return pj.slogdet(operator, throw=False).logabsdet

    diagonal = jnp.ones(SIZE).at[0].set(first)
    value, gradient = jax.value_and_grad(logabsdet)(diagonal)
    second = jax.grad(lambda d: jax.grad(logabsdet)(d)[0])(diagonal)[0]
    np.testing.assert_allclose(value, np.log1p(first), rtol=1e-6)
    lost = first < 1e-6
    assert np.isnan(gradient[0]) == lost
    assert np.isnan(second) == lost
    want = np.nan if lost else 1 / (1 + first)
    np.testing.assert_allclose(gradient[0], want, rtol=1e-11)
    np.testing.assert_allclose(second, -(want**2), rtol=1e-8)


_STRUCTURED = {
    "Kronecker": lambda a: pj.Kronecker(a[:2, :2], a[:3, :3]),
    "Circulant": lambda a: pj.Circulant(a[:6, 0]),
    "Toeplitz": lambda a: pj.Toeplitz(a[:6, 0], a[:6, 0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _STRUCTURED)
def test_updates_of_structured_operators_are_solved_by_their_parts(name):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.standard_normal((6, 6)) + 8 * np.eye(6))
    u, v, b = (jnp.asarray(rng.standard_normal(shape)) for shape in ((6, 2), (6, 2), 6))
    operator = pj.LowRankUpdate(_STRUCTURED[name](matrix), u, v)
    factorised = pj.factorise(operator)
    dense = np.asarray(operator.as_matrix())
    assert_close(factorised.solve(b), np.linalg.solve(dense, b), 1e-12)
    logabsdet = np.linalg.slogdet(dense)[1]
    np.testing.assert_allclose(factorised.slogdet().logabsdet, logabsdet, rtol=1e-12)
