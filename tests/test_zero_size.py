"""Operators without rows or columns: zero or empty solutions, and derivatives."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit
from claims import CLAIMS

import pseudojvp as pj


ANY_SHAPE = (
    *("QR", "CholeskyQR", "PivotedQR", "SVD", "Normal(Cholesky)", "Normal(CG)"),
    "Auto(False)",
)
SQUARE = [
    name
    for name, claim in CLAIMS.items()
    if (claim.square or claim.kind != "general")
    and not claim.consistent
    and claim.kind != "tridiagonal"  # lineax's has no products if it is empty
]
SHAPES = [(0, 3), (3, 0), (0, 0)]
_any_shape = [
    pytest.param(name, shape, id=f"{name}-{shape[0]}x{shape[1]}")
    for name in ANY_SHAPE
    for shape in SHAPES
]
_square = [pytest.param(name, (0, 0), id=name) for name in SQUARE]
each_empty = pytest.mark.parametrize(("name", "shape"), _any_shape + _square)


def _solve(name):
    claim = CLAIMS[name]

    def solve(matrix, vector):
        operator = claim.operator(matrix)
        return pj.linear_solve(operator, vector, claim.make(1e-8), throw=False)

    return solve


def _arrays(shape):
    return jnp.zeros(shape), jnp.arange(1.0, shape[0] + 1)


@pytest.mark.default(
    "QR-3x0",
    "CholeskyQR-0x3",
    "PivotedQR-3x0",
    "SVD-0x3",
    "Normal(Cholesky)-0x3",
    "LU",
    "Triangular",
    "Cholesky",
)
@pytest.mark.ci("*")
@each_empty
def test_solution_of_an_empty_system_is_zero_and_successful(name, shape):
    solution = _solve(name)(*_arrays(shape))
    np.testing.assert_array_equal(solution.value, np.zeros(shape[1]))
    assert solution.result == lx.RESULTS.successful


@pytest.mark.default("QR-3x0", "CholeskyQR-0x3", "LU")
@pytest.mark.ci("*")
@each_empty
def test_derivatives_of_an_empty_system_are_zero(name, shape):
    value = lambda matrix, vector: _solve(name)(matrix, vector).value
    loss = lambda matrix, vector: jnp.sum(value(matrix, vector) ** 2 + 1)

    @jit
    def derivatives(matrix, vector):
        primals, tangents = (matrix, vector), (matrix + 1, vector + 1)
        _, t_value = jax.jvp(value, primals, tangents)
        gradient = jax.grad(loss, argnums=(0, 1))
        return t_value, jax.jvp(gradient, primals, tangents)

    for leaf in jax.tree.leaves(derivatives(*_arrays(shape))):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


@pytest.mark.default("QR-(0, 3)", "PivotedQR-(3, 0)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["QR", "CholeskyQR", "PivotedQR", "SVD"])
def test_batch_of_empty_systems(name, shape):
    matrix, vector = _arrays(shape)
    batched = jax.vmap(lambda m, v: _solve(name)(m, v).value)
    got = jit(batched)(jnp.stack([matrix] * 2), jnp.stack([vector] * 2))
    np.testing.assert_array_equal(got, np.zeros((2, shape[1])))


@pytest.mark.default("CholeskyQR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "CholeskyQR", "PivotedQR", "SVD"])
def test_empty_batch_of_systems(name):
    batched = jax.vmap(lambda m, v: _solve(name)(m, v).value)
    assert jit(batched)(jnp.zeros((0, 4, 3)), jnp.zeros((0, 4))).shape == (0, 3)


@pytest.mark.default("*-(3, 0)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["PivotedQR", "SVD"])
def test_rank_of_an_empty_system_is_zero(name, shape):
    assert _solve(name)(*_arrays(shape)).stats["rank"] == 0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("name", ["LU", "Auto(True)", "Triangular", "Neumann"])
def test_empty_system_that_is_not_square_is_refused(name, shape):
    with pytest.raises(ValueError, match=r"square"):
        _solve(name)(*_arrays(shape))
