"""Norms of vectors of any size, against NumPy in extended precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from pseudojvp._kernel.norms import power_of_two, two_norm


dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _sizes(dtype):
    info = np.finfo(dtype)
    exponents = np.linspace(info.minexp + 3, info.maxexp - 1, 40)
    return (2.0 ** exponents.astype(np.longdouble)).astype(dtype)


@dtypes
def test_power_is_even_and_within_a_factor_of_two(dtype):
    for size in _sizes(dtype):
        power = np.asarray(power_of_two(jnp.array([0, -size, size / 3])))
        mantissa, exponent = np.frexp(power)
        assert power.dtype == dtype
        assert mantissa == 0.5
        assert exponent % 2 == 1
        assert 0.5 <= size / power <= 2
        assert 1 / power > 0


@dtypes
@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_power_for_what_has_no_size_is_finite_with_its_inverse(dtype, value):
    power = np.asarray(power_of_two(jnp.full(3, value, dtype)))
    assert np.isfinite(power)
    assert np.isfinite(1 / power)


def test_power_of_a_tree_is_that_of_its_largest_part():
    tree = {"a": jnp.float32(3), "b": jnp.array([1 - 70j, 5]), "c": jnp.zeros(0)}
    assert power_of_two(tree) == 64


def test_powers_of_columns():
    matrix = jnp.array([[1.0, 0.1, 300.0], [0.0, 0.3, 1.0]])
    np.testing.assert_array_equal(power_of_two(matrix, axis=0), [1, 0.25, 256])


@dtypes
def test_norm_of_a_vector_of_any_size(dtype):
    shape = np.array([3, -4, 0, 12], dtype)
    for size in _sizes(dtype)[:-3]:
        want = 13 * np.longdouble(size)
        vector = (shape * size).astype(dtype)
        if np.isfinite(vector).all() and want < np.finfo(dtype).max:
            got = np.longdouble(two_norm(jnp.asarray(vector)))
            assert abs(got - want) <= 4 * np.finfo(dtype).eps * want


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_norm_is_not_finite_where_the_vector_is_not(bad):
    assert not np.isfinite(two_norm(jnp.array([1.0, bad])))


def test_norm_of_nothing_is_zero():
    assert two_norm(jnp.zeros(0)) == 0
