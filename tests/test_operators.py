"""Every solver over every kind of lineax operator: solutions and first derivatives."""

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import pseudojvp as pj


SIZE = 4
F8 = jnp.dtype("float64")
FLAT = jax.ShapeDtypeStruct((SIZE,), F8)
NESTED = (
    {"a": jax.ShapeDtypeStruct((2, 1), F8), "b": jax.ShapeDtypeStruct((), F8)},
    [jax.ShapeDtypeStruct((1,), F8)],
)


def _matrix(matrix, tags):
    return lx.MatrixLinearOperator(matrix, tags)


def _function(matrix, tags):
    return lx.FunctionLinearOperator(lambda x: matrix @ x, FLAT, tags)


def _jacobian(jac):
    def make(matrix, tags):
        # The Jacobian at `point` is the matrix itself.
        point = jnp.arange(1.0, SIZE + 1)
        function = lambda y, matrix: matrix @ y + jnp.sin(y - point) - (y - point)
        return lx.JacobianLinearOperator(function, point, matrix, tags, jac=jac)

    return make


def _pytree(matrix, tags):
    rows = jnp.split(matrix, [2, 3])
    (r0, r1, r2) = (jnp.split(row, [2, 3], axis=1) for row in rows)

    def leaves(blocks, rows):
        a, b, c = (
            block.reshape(*rows, *cols)
            for block, cols in zip(blocks, ((2, 1), (), (1,)), strict=True)
        )
        return ({"a": a, "b": b}, [c])

    tree = ({"a": leaves(r0, (2, 1)), "b": leaves(r1, ())}, [leaves(r2, (1,))])
    return lx.PyTreeLinearOperator(tree, NESTED, tags)


def _sum(matrix, tags):
    half = lx.MatrixLinearOperator(matrix / 2)
    rest = lx.FunctionLinearOperator(lambda x: matrix @ x / 2, FLAT)
    return lx.TaggedLinearOperator(half + rest, tags)


def _composition(matrix, tags):
    factor = jnp.eye(SIZE).at[0, 1].set(0.5)
    left = lx.MatrixLinearOperator(matrix @ factor)
    right = lx.MatrixLinearOperator(jnp.linalg.inv(factor))
    return lx.TaggedLinearOperator(left @ right, tags)


def _scaled(matrix, tags):
    operator = -(lx.MatrixLinearOperator(-4 * matrix) / 2) * 0.5
    return lx.TaggedLinearOperator(operator, tags)


def _linearised(matrix, tags):
    return lx.linearise(_jacobian("fwd")(matrix, tags))


def _materialised(matrix, tags):
    return lx.materialise(_function(matrix, tags))


def _transposed(matrix, tags):
    return lx.FunctionLinearOperator(lambda x: matrix.T @ x, FLAT, tags).transpose()


OPERATORS = {
    "matrix": _matrix,
    "function": _function,
    "jacfwd": _jacobian("fwd"),
    "jacrev": _jacobian("bwd"),
    "pytree": _pytree,
    "sum": _sum,
    "composition": _composition,
    "scaled": _scaled,
    "linearised": _linearised,
    "materialised": _materialised,
    "transposed": _transposed,
}
SOLVERS = {
    "QR": (pj.QR(), ()),
    "SVD": (pj.SVD(), ()),
    "Normal(Cholesky)": (pj.Normal(lx.Cholesky()), ()),
    "Normal(CG)": (pj.Normal(pj.CG(1e-12, 1e-12)), ()),
    "CG": (pj.CG(1e-12, 1e-12), lx.positive_semidefinite_tag),
    "Neumann": (pj.Neumann(400, scale=0.5), lx.positive_semidefinite_tag),
    "LU": (lx.LU(), ()),
}
_GRID = pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind}-{name}")
        for kind in OPERATORS
        for name in SOLVERS
    ],
)


def _derivatives(kind, name):
    """Value, JVP and VJP of the solve as a function of (matrix, vector)."""
    solver, tags = SOLVERS[name]

    def solve(matrix, flat):
        operator = OPERATORS[kind](matrix, tags)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), operator.out_structure()
        )
        vector = ravel_pytree(zeros)[1](flat)
        return ravel_pytree(pj.linear_solve(operator, vector, solver, throw=False).value)[
            0
        ]

    @eqx.filter_jit
    def run(primals, tangents, weights):
        solution, tangent = jax.jvp(solve, primals, tangents)
        return solution, tangent, jax.vjp(solve, *primals)[1](weights)

    return run


@pytest.mark.default("pytree-LU", "transposed-QR")
@pytest.mark.ci(
    "matrix-Neumann",
    "function-CG",
    "jacfwd-Normal(Cholesky)",
    "jacrev-QR",
    "pytree-Normal(CG)",
    "sum-LU",
    "composition-SVD",
    "scaled-Normal(Cholesky)",
    "linearised-LU",
    "materialised-QR",
)
@_GRID
def test_solution_and_first_derivatives_are_right(kind, name):
    matrix = cases.matrix_of("positive", SIZE, float)
    t_matrix = cases.matrix_of("positive", SIZE, float, seed=5)
    vector, t_vector, weights = cases.random_array((3, SIZE), float, 7)
    solution, tangent, (ct_matrix, ct_vector) = _derivatives(kind, name)(
        (matrix, vector), (t_matrix, t_vector), weights
    )
    truth = np.linalg.solve(matrix, vector)
    t_truth = np.linalg.solve(matrix, t_vector - t_matrix @ truth)
    np.testing.assert_allclose(solution, truth, rtol=1e-9)
    np.testing.assert_allclose(tangent, t_truth, rtol=1e-9)
    adjoint = np.linalg.solve(matrix.T, weights)
    np.testing.assert_allclose(ct_vector, adjoint, rtol=1e-9)
    symmetric = lambda a: a + a.T  # the part that a symmetric tangent sees
    expected = -np.outer(adjoint, truth)
    np.testing.assert_allclose(symmetric(ct_matrix), symmetric(expected), rtol=1e-8)
