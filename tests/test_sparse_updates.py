"""The ways to move a sparse matrix along a gradient, as an optimiser does."""

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import jit

import pseudojvp as pj


_RNG = np.random.default_rng(0)
_DENSE = _RNG.standard_normal((5, 5)) * (_RNG.random((5, 5)) < 0.5) + 4 * np.eye(5)
_VECTOR, _RATE, _DECAY = np.arange(1.0, 6.0), 0.3, 0.5
_PLACE = np.nonzero(_DENSE)
_FRONTS = {
    "sparse_solve": pj.sparse_solve,
    "sparse_lstsq": pj.sparse_lstsq,
    "linear_solve": lambda A, b: pj.linear_solve(A, b).value,
}
_CREATE = {"BCOO": lambda matrix: matrix, "operator": pj.SparseLinearOperator}
_each_front = pytest.mark.parametrize("front", _FRONTS.values(), ids=_FRONTS)


def _loss(front):
    return lambda matrix: jnp.sum(front(matrix, _VECTOR) ** 2)


def _dense_gradient(matrix):
    """Of ‖A⁻¹b‖², on the pattern."""
    x = np.linalg.solve(matrix, _VECTOR)
    return -np.outer(np.linalg.solve(matrix.T, 2 * x), x)[_PLACE]


def _with_data(data):
    matrix = np.zeros((5, 5))
    matrix[_PLACE] = data
    return matrix


@pytest.mark.ci("*")
@_each_front
def test_gradients_of_a_sparse_matrix_are_the_dense_one_at_its_data(front):
    loss, matrix = _loss(front), jsparse.BCOO.fromdense(jnp.asarray(_DENSE))
    of_data = lambda d: loss(jsparse.BCOO((d, matrix.indices), shape=matrix.shape))
    ways = {
        "data": jit(jax.grad(of_data))(matrix.data),
        "jax.experimental.sparse.grad": jit(jsparse.grad(loss))(matrix).data,
        "equinox.filter_grad": jit(lambda a: eqx.filter_grad(loss)(a))(matrix).data,
    }
    for way, gradient in ways.items():
        want = _dense_gradient(_DENSE)
        np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-12, err_msg=way)


@pytest.mark.default("operator-linear_solve")
@pytest.mark.ci("*")
@_each_front
@pytest.mark.parametrize("create", _CREATE.values(), ids=_CREATE)
def test_partitioned_matrix_takes_the_updates_of_an_optimiser(front, create):
    matrix = create(jsparse.BCOO.fromdense(jnp.asarray(_DENSE)))
    params, rest = eqx.partition(matrix, eqx.is_inexact_array)
    loss, optimiser = _loss(front), optax.sgd(_RATE, momentum=_DECAY)

    @jit
    def step(params, state):
        gradient = jax.grad(lambda params: loss(eqx.combine(params, rest)))(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    data, dense_momentum = _DENSE[_PLACE], 0
    for _ in range(3):
        params, state = step(params, state)
        dense_momentum = _DECAY * dense_momentum + _dense_gradient(_with_data(data))
        data = data - _RATE * dense_momentum
    moved = eqx.combine(params, rest)
    np.testing.assert_allclose(moved.data, data, rtol=1e-9)
    assert jax.tree.structure(moved) == jax.tree.structure(matrix)
