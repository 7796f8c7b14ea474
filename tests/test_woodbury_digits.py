"""A determinant by parts has the digits of the dense sum, or is NaN, and is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


_SIZE = 6
_FIRST = 10.0 ** np.array([-2, -3, -4, -5, -6, -7, -8, -10, -12, -14, -16, -17, -20, -30])
_CALLED = {lx.RESULTS.successful._value.item(): "successful"}
_CALLED[lx.RESULTS.stagnation._value.item()] = "stagnation"
_VECTOR = jnp.arange(1.0, _SIZE + 1)


def _updates(seed):
    return np.random.default_rng(seed).standard_normal((2, _SIZE, 3))


def _first_axis(seed):
    del seed
    return np.stack([np.eye(_SIZE)[:, :1]] * 2)


@jit
def _told(diagonals, left, right):
    def of_one(diagonal):
        def slogdet(diagonal):
            a = lx.DiagonalLinearOperator(diagonal)
            return pj.slogdet(pj.LowRankUpdate(a, left, right), throw=False)

        a = lx.DiagonalLinearOperator(diagonal)
        factorised = pj.factorise(pj.LowRankUpdate(a, left, right), throw=False)
        solution = pj.linear_solve(factorised.operator, _VECTOR, throw=False)
        slope = jax.value_and_grad(lambda d: slogdet(d)[::-1], has_aux=True)
        twice = lambda d: (lambda both: (both[1], both))(slope(d))
        second, ((value, sign), first) = jax.jacfwd(twice, has_aux=True)(diagonal)
        return (
            (sign, value, first, second),
            (factorised.result._value, factorised.stats["reciprocal_condition"]),
            (solution.result._value, solution.value),
        )

    return jax.vmap(of_one)(diagonals)


def _error(got, want):
    """Relative to the largest, and zero of what is NaN throughout."""
    got, want = np.asarray(got), np.asarray(want)
    if np.all(np.isnan(got)):
        return 0.0
    return np.max(np.abs(got - want)) / np.max(np.abs(want))


@pytest.mark.ci("*")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("update", [_updates, _first_axis], ids=["random", "axis"])
def test_beside_a_nearly_singular_a_nothing_is_wrong_and_not_told(update, seed):
    left, right = update(seed)
    diagonals = np.full((len(_FIRST), _SIZE), 1.0)
    diagonals[:, 0] = _FIRST
    told = _told(jnp.asarray(diagonals), jnp.asarray(left), jnp.asarray(right))
    for diagonal, *one in zip(diagonals, *jax.tree.leaves(told), strict=True):
        sign, value, slope, second, factors, estimate, result, solution = one
        matrix = np.diag(diagonal) + left @ right.T
        inverse = np.linalg.inv(matrix)
        want = np.linalg.slogdet(matrix)
        assert np.isnan(sign) or sign == want[0]
        assert np.isnan(value) or abs(value - want[1]) < 1e-8
        assert _error(slope, np.diag(inverse)) < 1e-8
        assert _error(second, -inverse * inverse.T) < 1e-6
        known = diagonal[0] >= 1e-3
        assert not (known and np.any(np.isnan(np.r_[value, slope, second.ravel()])))
        # The sum has a condition number below 1e3, and is never called singular.
        assert {int(factors), int(result)} <= set(_CALLED)
        assert np.isnan(estimate) or estimate > 1e-4
        if _CALLED[int(result)] == "successful":
            assert _error(solution, inverse @ np.asarray(_VECTOR)) < 1e-10


def _logabsdet(diagonal, left, right):
    operator = pj.LowRankUpdate(lx.DiagonalLinearOperator(diagonal), left, right)
    return pj.slogdet(operator, throw=False).logabsdet


@pytest.mark.slow
def test_each_row_is_looked_at_in_its_own_units():
    """A second small entry of A, which no column of the update repairs."""
    diagonal = jnp.ones(_SIZE).at[:2].set(1e-10)
    left, right = map(jnp.asarray, _first_axis(0))
    value, gradient = jax.value_and_grad(_logabsdet)(diagonal, left, right)
    np.testing.assert_allclose(value, np.log(1e-10) + np.log1p(1e-10), rtol=1e-13)
    assert jnp.all(jnp.isnan(gradient))


@pytest.mark.slow
def test_a_gradient_that_vanishes_is_no_loss():
    """A reflection, which swaps two coordinates: the diagonal of its inverse is zero."""
    u = jnp.array([[1.0], [-1.0]])
    value, gradient = jax.value_and_grad(_logabsdet)(jnp.ones(2), u, -u)
    np.testing.assert_allclose(value, 0, atol=1e-15)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1e-2, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
def test_of_a_dense_a_every_entry_is_right_or_none(first):
    rng = np.random.default_rng(1)
    basis, other = (np.linalg.qr(rng.standard_normal((_SIZE,) * 2))[0] for _ in range(2))
    a = basis * np.r_[first, np.ones(_SIZE - 1)] @ other
    left, right, _ = np.moveaxis(rng.standard_normal((_SIZE, 2, 3)), 2, 0)
    matrix = a + left @ right.T

    @jit
    def program(a):
        logabsdet = lambda a: (
            pj.slogdet(
                pj.LowRankUpdate(a, jnp.asarray(left), jnp.asarray(right)), throw=False
            ).logabsdet
        )
        slope = jax.grad(logabsdet)
        second = jax.grad(lambda a: jnp.sum(slope(a) ** 2))
        return logabsdet(a), slope(a), second(a)

    value, slope, second = program(jnp.asarray(a))
    inverse = np.linalg.inv(matrix)
    assert np.isnan(value) or abs(value - np.linalg.slogdet(matrix)[1]) < 1e-8
    assert _error(slope, inverse.T) < 1e-8
    assert _error(second, -2 * (inverse @ inverse.T @ inverse).T) < 1e-6
    assert np.any(np.isnan(slope)) == (first < 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("a", [jnp.zeros(_SIZE), jnp.diag(jnp.ones(_SIZE).at[0].set(0))])
def test_the_error_says_that_a_alone_hides_the_determinant(a):
    operator = lx.DiagonalLinearOperator(a) if a.ndim == 1 else a
    with pytest.raises(eqx.EquinoxRuntimeError, match="A without its low-rank update is"):
        pj.slogdet(pj.LowRankUpdate(operator, jnp.eye(_SIZE)[:, :1]))
