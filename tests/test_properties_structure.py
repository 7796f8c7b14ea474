"""Random systems in other clothes: operators on pytrees, nested `vmap`, true tags."""

import functools as ft
import math

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit
from claims import Cell, DTYPES, SQUARE, TALL, WIDE
from hypothesis import given, settings, strategies as st
from strategies import direction, FIXED, numbers, systems, t_solution

import pseudojvp as pj


F8, C8, C16, F4 = DTYPES
# Shapes of the leaves of vectors of four and of three numbers: one leaf has none.
LEAVES = {4: ((2, 1), (0, 3), (2,)), 3: ((), (1, 2))}


def split(flat, axis=0):
    """The leaves of a vector, or of the vectors along `axis` of a matrix."""
    shapes = LEAVES[flat.shape[axis]]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    rest = flat.shape[:axis], flat.shape[axis + 1 :]
    pieces = jnp.split(flat, ends, axis=axis)
    return [
        piece.reshape(*rest[0], *shape, *rest[1])
        for piece, shape in zip(pieces, shapes, strict=True)
    ]


def join(leaves):
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def _structure(size, dtype):
    return jax.eval_shape(lambda: split(jnp.zeros(size, dtype)))


def pytree_operator(matrix, tags):
    rows, _ = matrix.shape
    blocks = [split(block, axis=block.ndim - 1) for block in split(matrix)]
    return lx.PyTreeLinearOperator(blocks, _structure(rows, matrix.dtype), tags)


def function_operator(matrix, tags):
    product = lambda x: split(matrix @ join(x))
    structure = _structure(matrix.shape[1], matrix.dtype)
    return lx.FunctionLinearOperator(product, structure, tags)


def jacobian_operator(matrix, tags):
    """The Jacobian of y ↦ A (y + y²) at zero is A."""
    function = lambda y, matrix: split(matrix @ (join(y) + join(y) ** 2))
    point = split(jnp.zeros(matrix.shape[1], matrix.dtype))
    return lx.JacobianLinearOperator(function, point, matrix, tags)


def sum_operator(matrix, tags):
    three, two = (jnp.asarray(scalar, matrix.dtype) for scalar in (3, 2))
    total = pytree_operator(matrix, ()) * three - function_operator(matrix, ()) * two
    return lx.TaggedLinearOperator(total, tags)


def composed_operator(matrix, tags):
    """A = (A 2)(1/2), with a diagonal operator in the middle."""
    half = split(jnp.full(matrix.shape[1], 0.5, matrix.dtype))
    product = pytree_operator(2 * matrix, ()) @ lx.DiagonalLinearOperator(half)
    return lx.TaggedLinearOperator(product, tags)


TREES = {
    "pytree": (pytree_operator, Cell("PivotedQR", TALL, C16)),
    "function": (function_operator, Cell("QR", WIDE, F8)),
    "jacobian": (jacobian_operator, Cell("SVD", TALL, F8)),
    "sum": (sum_operator, Cell("Normal(CG)", TALL, C16)),
    "composition": (composed_operator, Cell("Normal(Cholesky)", WIDE, C8)),
}


@ft.cache
def compiled_tree(name):
    """x and its tangent, flat."""
    make_operator, cell = TREES[name]
    solver = cell.claim.solver(cell.dtype)

    def solve(matrix, vector):
        operator = make_operator(matrix, ())
        solution = pj.linear_solve(operator, split(vector), solver, throw=False)
        return join(solution.value)

    return jit(lambda primals, tangents: jax.jvp(solve, primals, tangents))


def draw_moving(cell, data):
    """A system and a direction."""
    system = data.draw(systems(cell, scaled=False, condition=10.0))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    t_matrix = direction(rng, cell.claim, system, cell.dtype).astype(cell.dtype)
    t_vector = numbers(rng, cell.shape[:1], cell.dtype, False).astype(cell.dtype)
    return system, t_matrix, t_vector


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", TREES)
@settings(FIXED, max_examples=40)
@given(data=st.data())
def test_solution_and_tangent_do_not_depend_on_the_tree(name, data):
    cell = TREES[name][1]
    system, t_matrix, t_vector = draw_moving(cell, data)
    primals, tangents = (system.matrix, system.vector), (t_matrix, t_vector)
    value, t_value = compiled_tree(name)(primals, tangents)
    assert system.relative_error(value, cell) <= 1
    want = t_solution(system, t_matrix, t_vector)
    # Up to three nested solves, each with the bound of one.
    inverse = np.linalg.norm(system.pseudoinverse)
    moved = np.linalg.norm(t_matrix) * inverse * (1 + system.vector_norm)
    growth = system.condition ** (2 * cell.claim.power)
    bound = 1000 * cell.claim.unit(cell.dtype) * growth
    bound = bound * inverse * (moved + np.linalg.norm(t_vector))
    assert np.linalg.norm(np.asarray(t_value) - want) <= bound


BATCHES = {  # which of (A, b) the outer and the inner `vmap` go over
    "both-both": ((0, 0), (0, 0)),
    "operator-vector": ((0, None), (None, 0)),
    "vector-operator": ((None, 0), (0, None)),
    "both-vector": ((0, 0), (None, 0)),
    "vector-both": ((None, 0), (0, 0)),
    "vector-vector": ((None, 0), (None, 0)),
}
NESTED = {
    "QR": Cell("QR", TALL, F8),
    "PivotedQR": Cell("PivotedQR", WIDE, C16),
    "CG": Cell("CG", SQUARE, F8),
    "LU": Cell("LU", SQUARE, C8),
    "Normal(Cholesky)": Cell("Normal(Cholesky)", WIDE, F4),
    "SVD": Cell("SVD", SQUARE, F8),
    "Neumann": Cell("Neumann", SQUARE, C16),
    "Triangular": Cell("Triangular", SQUARE, C8),
}
OUTER, INNER = 2, 3


@ft.cache
def compiled_nested(name, batch):
    cell = NESTED[name]
    solver = cell.claim.solver(cell.dtype)

    def solve(matrix, vector):
        operator = cell.claim.operator(matrix)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    outer, inner = BATCHES[batch]
    return jit(jax.vmap(jax.vmap(solve, inner), outer))


@pytest.mark.ci(
    "PivotedQR-*", "*-both-both", "*-operator-vector"
)  # six compilations for each solver
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NESTED)
@settings(FIXED, max_examples=15)
@given(data=st.data())
def test_nested_vmap_solves_each_member(name, batch, data):
    cell = NESTED[name]
    members = [
        [data.draw(systems(cell, scaled=False, condition=20.0)) for _ in range(INNER)]
        for _ in range(OUTER)
    ]
    outer, inner = BATCHES[batch]

    def of(field, outer_axis, inner_axis):
        """What the batched solve gets: the first member stands for an axis not there."""
        array = np.stack([[getattr(m, field) for m in row] for row in members])
        array = array if inner_axis == 0 else array[:, 0]
        return array if outer_axis == 0 else array[0]

    matrices = of("matrix", outer[0], inner[0])
    vectors = of("vector", outer[1], inner[1])
    value, successful = compiled_nested(name, batch)(matrices, vectors)
    assert np.all(successful)
    for i in range(OUTER):
        for j in range(INNER):
            owner = members[i if outer[0] == 0 else 0][j if inner[0] == 0 else 0]
            other = members[i if outer[1] == 0 else 0][j if inner[1] == 0 else 0]
            member = owner.with_vector(other.vector)
            assert member.relative_error(value[i, j], cell) <= 1


DIAGONAL, TRIDIAGONAL = lx.diagonal_tag, lx.tridiagonal_tag
LOWER, UPPER = lx.lower_triangular_tag, lx.upper_triangular_tag
POSITIVE, SYMMETRIC = lx.positive_semidefinite_tag, lx.symmetric_tag
# All true of a diagonal matrix of positive numbers.
TAGS = {
    "none": (),
    "symmetric": (SYMMETRIC,),
    "positive": (POSITIVE,),
    "diagonal": (DIAGONAL,),
    "tridiagonal-positive": (TRIDIAGONAL, POSITIVE),
    "lower-upper": (LOWER, UPPER),
    "upper-symmetric": (UPPER, SYMMETRIC),
    "diagonal-positive-lower": (DIAGONAL, POSITIVE, LOWER),
}


@ft.cache
def compiled_tagged(tags, well_posed):
    solver = pj.AutoLinearSolver(well_posed)

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, TAGS[tags])
        return pj.linear_solve(operator, vector, solver, throw=False).value

    return jit(solve)


@pytest.mark.default(
    "positive-any", "diagonal-*", "tridiagonal-*-well-posed", "upper-*-any"
)
@pytest.mark.ci("*")
@pytest.mark.parametrize("well_posed", [True, False], ids=["well-posed", "any"])
@pytest.mark.parametrize("tags", TAGS)
@settings(FIXED, max_examples=40)
@given(data=st.data())
def test_true_tag_does_not_change_the_solution(tags, well_posed, data):
    entries = st.floats(0.25, 4)
    diagonal = np.array(data.draw(st.tuples(entries, entries, entries), label="A"))
    vector = np.array(data.draw(st.tuples(*[st.floats(-1, 1)] * 3), label="b"))
    value = compiled_tagged(tags, well_posed)(np.diag(diagonal), vector)
    np.testing.assert_allclose(value, vector / diagonal, rtol=1e-14, atol=1e-15)
