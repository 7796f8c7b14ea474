"""Products with tangents of a matrix: their values, derivatives and what they copy."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit
from jax.test_util import check_grads

import pseudojvp as pj
from pseudojvp._map.tangents import matrix_product_p


BATCH, COUNT, ROWS, COLS = 2, 3, 4, 5
MATRIX, LEFT, RIGHT = (BATCH, ROWS, COLS), (BATCH, COUNT, ROWS), (BATCH, COUNT, COLS)
FACES = {
    "rows": (MATRIX, RIGHT, "bij,bkj->bki"),
    "columns": (MATRIX, LEFT, "bij,bki->bkj"),
    "matrix": (LEFT, RIGHT, "bki,bkj->bij"),
}
each_face = pytest.mark.parametrize("face", FACES)


def _arrays(face, dtype=float, *outer):
    rng = np.random.default_rng(0)
    arrays = []
    for shape in FACES[face][:2]:
        array = rng.standard_normal((*outer, *shape))
        if dtype is complex:
            array = array + 1j * rng.standard_normal(array.shape)
        arrays.append(array)
    return arrays


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("count", [1, COUNT])
@each_face
def test_face_is_its_sum(face, batch, count, dtype):
    first, second = (array[:batch] for array in _arrays(face, dtype))
    second = second[:, :count]
    first = first[:, :count] if face == "matrix" else first
    out = matrix_product_p.bind(first, second, face=face)
    np.testing.assert_allclose(out, np.einsum(FACES[face][2], first, second))


_AXES = [(None, 0), (2, None), (0, 2)]


@pytest.mark.parametrize("inner", _AXES)
@pytest.mark.parametrize("outer", _AXES)
@each_face
def test_face_under_nested_vmap_is_its_sum(face, outer, inner):
    """Each argument has the axes that are mapped, and no others."""
    subscripts, out = FACES[face][2].split("->")
    arguments, letters = [], []
    rng = np.random.default_rng(1)
    for number, term in enumerate(subscripts.split(",")):
        shape, letter = list(FACES[face][number]), term
        for axis, name, size in ((inner[number], "y", 6), (outer[number], "x", 7)):
            if axis is not None:
                shape.insert(axis, size)
                letter = letter[:axis] + name + letter[axis:]
        arguments.append(rng.standard_normal(shape))
        letters.append(letter)
    mapped = lambda *args: matrix_product_p.bind(*args, face=face)
    got = jit(jax.vmap(jax.vmap(mapped, inner), outer))(*arguments)
    want = np.einsum(f"{','.join(letters)}->xy{out}", *arguments)
    np.testing.assert_allclose(got, want, atol=1e-14)


@pytest.mark.ci("*")
@each_face
def test_face_has_derivatives_of_every_order(face):
    product = lambda *args: jnp.sin(matrix_product_p.bind(*args, face=face))
    check_grads(product, _arrays(face), order=3, atol=1e-4, rtol=1e-4)


TANGENTS = 32
SOLVERS = {
    "QR": pj.QR(),
    "CholeskyQR": pj.CholeskyQR(),
    "Normal(Cholesky)": pj.Normal(pj.Cholesky()),
    "PivotedQR": pj.PivotedQR(),
}
each_solver = pytest.mark.parametrize("name", SOLVERS)


def _solution(name):
    return lambda a, b: pj.linear_solve(a, b, SOLVERS[name]).value


@pytest.mark.optimised
@pytest.mark.ci("*")  # a large program each
@pytest.mark.parametrize("shape", [(200, 50), (50, 200)], ids=["tall", "wide"])
@each_solver
def test_tangents_of_a_matrix_are_not_copied(name, shape):
    def push_forward(matrix, vector, tangent):
        return jax.jvp(lambda a: _solution(name)(a, vector), (matrix,), (tangent,))[1]

    shapes = shape, shape[:1], (TANGENTS, *shape)
    arguments = [jax.ShapeDtypeStruct(each, float) for each in shapes]
    many = jax.jit(jax.vmap(push_forward, (None, None, 0)))
    memory = many.lower(*arguments).compile().memory_analysis()
    of_tangents = 8 * np.prod(shapes[2])
    assert memory.temp_size_in_bytes < of_tangents / 2


def test_tagged_matrix_takes_the_products_of_a_matrix():
    matrix = np.diag([1.0, 2.0, 3.0]) + 0.1
    vector, tangent = np.arange(3.0), np.ones((3, 3))
    tags = lx.positive_semidefinite_tag

    def solve(matrix):
        operator = lx.TaggedLinearOperator(lx.MatrixLinearOperator(matrix), tags)
        return pj.linear_solve(operator, vector, pj.Cholesky()).value

    _, got = jit(lambda a, t: jax.jvp(solve, (a,), (t,)))(matrix, tangent)
    inverse = np.linalg.inv(matrix)
    np.testing.assert_allclose(got, -inverse @ tangent @ inverse @ vector)
