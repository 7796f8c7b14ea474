"""Calls outside of `jax.jit`: compiled once, and errors that can be read."""

import concurrent.futures
import gc
import logging
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj
from pseudojvp._base.call import compiled


_MATRIX = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.5, 1.0, 5.0]])
_VECTOR = np.array([1.0, 2.0, 3.0])
_SINGULAR = np.ones((3, 3))
_FAILED = "needs full rank, but the reciprocal condition number of A is"


def _counted():
    """A compiled function of an array and anything, and what it was traced for."""
    traced = []

    @compiled
    def function(array, anything):
        traced.append(anything)
        return {"sum": jnp.sum(array), "same": array, "anything": anything}

    return function, traced


def test_equal_structures_are_traced_once():
    function, traced = _counted()
    for scale in (1.0, 2.0, 3.0):
        assert function(scale * _VECTOR, ("a", None))["sum"] == 6 * scale
    assert traced == [("a", None)]


@pytest.mark.parametrize("other", ["b", ("a",), 2])
def test_other_static_leaves_or_trees_are_traced_anew(other):
    function, traced = _counted()
    for anything in ("a", other, "a", other):
        assert function(_VECTOR, anything)["anything"] == anything
    assert traced == ["a", other]


def test_what_is_static_belongs_to_the_shapes_that_it_was_traced_for():
    size = compiled(lambda array: (array.shape[0], 2 * array))
    for length in (2, 3, 2):
        static, array = size(np.ones(length))
        assert (static, array.shape) == (length, (length,))


def test_weak_types_are_kept():
    function, _ = _counted()
    assert function(jnp.asarray(2.0), "a")["same"].weak_type
    assert not function(jnp.asarray(2.0, float), "a")["same"].weak_type


def test_unhashable_static_leaf_is_an_error_that_says_so():
    function, _ = _counted()
    with pytest.raises(ValueError, match="Non-hashable static arguments"):
        function(_VECTOR, {1, 2})


def test_function_operator_is_traced_in_its_first_solve_only():
    traced = []

    def mv(x):
        traced.append(x)
        return jnp.asarray(_MATRIX) @ x

    def solve(vector):
        structure = jax.ShapeDtypeStruct((3,), float)
        operator = lx.FunctionLinearOperator(mv, structure)
        return pj.linear_solve(operator, vector, pj.LU()).value

    first, count = solve(_VECTOR), len(traced)
    second = solve(2 * _VECTOR)
    assert len(traced) == count + 1  # the operator itself traces `mv` when it is made
    np.testing.assert_allclose(first, np.linalg.solve(_MATRIX, _VECTOR), rtol=1e-12)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-12)


def test_tracers_take_the_same_door():
    solve = lambda matrix, vector: pj.linear_solve(matrix, vector, pj.LU()).value
    inverse = np.linalg.inv(_MATRIX)
    x = inverse @ _VECTOR
    np.testing.assert_allclose(jax.jit(solve)(_MATRIX, _VECTOR), x, rtol=1e-12)
    vectors = np.stack([_VECTOR, 2 * _VECTOR])
    np.testing.assert_allclose(
        jax.vmap(lambda v: solve(_MATRIX, v))(vectors), np.stack([x, 2 * x]), rtol=1e-12
    )
    weights = np.array([1.0, -2.0, 0.5])
    loss = lambda matrix, vector: weights @ solve(matrix, vector)
    ct_matrix, ct_vector = jax.grad(loss, argnums=(0, 1))(_MATRIX, jnp.asarray(_VECTOR))
    np.testing.assert_allclose(ct_vector, inverse.T @ weights, rtol=1e-12)
    np.testing.assert_allclose(ct_matrix, -np.outer(inverse.T @ weights, x), rtol=1e-12)


def test_constants_within_jit_are_staged():
    solve = lambda scale: scale * pj.linear_solve(_MATRIX, _VECTOR, pj.LU()).value
    assert "linear_solve" in str(jax.make_jaxpr(solve)(2.0))


def _raises(matrix, vector=_VECTOR):
    with pytest.raises(eqx.EquinoxRuntimeError, match=_FAILED):
        pj.linear_solve(jnp.asarray(matrix), vector, pj.LU())


def test_failure_is_told_at_every_call_and_solves_go_on():
    solution = np.linalg.solve(_MATRIX, _VECTOR)
    for _ in range(2):
        _raises(_SINGULAR)
        x = pj.linear_solve(jnp.asarray(_MATRIX), _VECTOR, pj.LU()).value
        np.testing.assert_allclose(x, solution, rtol=1e-12)


def test_failure_in_a_program_that_once_succeeded_is_told():
    square = lambda matrix: matrix[:2, :2]
    pj.linear_solve(square(_MATRIX), _VECTOR[:2], pj.LU())
    for _ in range(2):
        _raises(square(_SINGULAR), _VECTOR[:2])


def test_failure_is_raised_by_the_call_and_not_logged(caplog):
    with caplog.at_level(logging.DEBUG):
        _raises(_SINGULAR)
    assert [r for r in caplog.records if "callback" in r.getMessage()] == []
    assert logging.getLogger("jax._src.callback").filters == []


def test_failure_under_eager_differentiation_is_told():
    loss = lambda vector: jnp.sum(pj.linear_solve(_SINGULAR, vector, pj.LU()).value)
    with pytest.raises(eqx.EquinoxRuntimeError, match=_FAILED):
        jax.grad(loss)(jnp.asarray(_VECTOR))


def test_error_of_the_operator_itself_is_told():
    def mv(x):
        return eqx.error_if(x, jnp.any(x > 0), "An entry is positive.")

    operator = lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct((3,), float))
    for _ in range(2):
        with pytest.raises(eqx.EquinoxRuntimeError, match="An entry is positive"):
            pj.linear_solve(operator, _VECTOR, pj.GMRES())


def test_error_that_is_not_of_equinox_is_raised_as_it_is():
    def fails(array):
        raise ArithmeticError("nothing to be done")

    @compiled
    def function(array):
        return jax.pure_callback(fails, jax.ShapeDtypeStruct((), float), array)

    with pytest.raises(jax.errors.JaxRuntimeError, match="nothing to be done"):
        function(_VECTOR)


@pytest.mark.slow  # two seconds
def test_failure_without_jit_is_told():
    with jax.disable_jit(), pytest.raises(RuntimeError, match=_FAILED):
        pj.linear_solve(jnp.asarray(_SINGULAR), _VECTOR, pj.LU())


def test_threads_get_their_own_solutions():
    def solve(size):
        matrix = np.eye(size) + np.triu(np.ones((size, size)))
        x = pj.linear_solve(matrix, matrix @ np.arange(size), pj.LU()).value
        return np.max(np.abs(x - np.arange(float(size))))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(solve, [2, 3, 4, 5] * 8))
    assert max(errors) < 1e-12


@pytest.mark.slow  # a second
def test_array_of_a_finished_call_is_freed():
    function, _ = _counted()
    array = jnp.asarray(_VECTOR)
    function(array, "a")
    freed = weakref.ref(array)
    del array
    gc.collect()
    assert freed() is None
