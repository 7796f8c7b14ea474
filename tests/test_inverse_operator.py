"""The inverse as an operator: its solutions, columns, transposes, and its errors."""

import re

import equinox as eqx
import jax
import jax.experimental.sparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import assert_close, jit
from sparse_cases import random_array

import pseudojvp as pj


MATRIX = random_array((4, 4), complex, 5) + 3 * np.eye(4)
INVERSE = np.linalg.inv(MATRIX)
COLUMNS = random_array((4, 3), complex, 6)
TALL = random_array((5, 2), float, 7)
DIVERGING = jnp.diag(jnp.array([3.0, 1.0]))
NEUMANN = pj.Neumann(num_terms=200)
VARIANTS = {
    "as-is": (lambda inverse: inverse, lambda matrix: matrix),
    "transpose": (lambda inverse: inverse.T, lambda matrix: matrix.T),
    "conj": (lx.conj, np.conj),
    "adjoint": (lambda inverse: lx.conj(inverse.T), lambda matrix: matrix.conj().T),
}
_EACH = pytest.mark.parametrize("variant", VARIANTS)


@pytest.mark.default("wide-QR-adjoint")
@pytest.mark.ci("*")
@_EACH
@pytest.mark.parametrize(
    ("solver", "matrix"),
    [
        (pj.LU(), MATRIX),
        (pj.GMRES(1e-13, 1e-13), MATRIX),
        (pj.QR(), random_array((2, 4), complex, 8)),
        (pj.SVD(), random_array((4, 2), complex, 8)),
    ],
    ids=["LU", "GMRES", "wide-QR", "tall-SVD"],
)
def test_solution_is_that_of_linear_solve(variant, solver, matrix):
    of_inverse, of_matrix = VARIANTS[variant]
    truth = of_matrix(np.linalg.pinv(matrix))

    @jit
    def solve(matrix, columns):
        inverse = of_inverse(pj.invert(matrix, solver, throw=False))
        assert isinstance(inverse, pj.InverseLinearOperator)
        solution = inverse.solve(columns[:, 0])
        products = inverse.mv(columns[:, 0]), inverse.mm(columns), inverse @ columns
        return solution, products, inverse.as_matrix()

    columns = random_array((truth.shape[1], 3), complex, 6)
    solution, (x, block, again), whole = solve(matrix, columns)
    assert isinstance(solution, lx.Solution)
    assert solution.result == lx.RESULTS.successful
    assert solution.stats
    want = truth @ columns
    for got, truth_of in (
        (solution.value, want[:, 0]),
        (x, want[:, 0]),
        (block, want),
        (again, want),
        (whole, truth),
    ):
        assert_close(got, truth_of, 1e-11)


def test_solution_under_jit_and_vmap_tells_its_result_and_steps():
    # The first vector has no part along which the series diverges.
    inverse = pj.invert(DIVERGING, NEUMANN, throw=False)
    vectors = jnp.array([[0.0, 1.0], [1.0, 1.0]])
    solution = jax.jit(jax.vmap(lambda vector: inverse.solve(vector)))(vectors)
    assert solution.stats["num_steps"].tolist() == [200, 27]
    assert (solution.result == lx.RESULTS.successful).tolist() == [True, False]
    assert_close(solution.value[0], vectors[0], 1e-15)


@pytest.mark.slow
def test_solution_has_the_derivatives_of_linear_solve():
    def by(solve):
        def loss(matrix, vector):
            return jnp.sum(jnp.abs(solve(matrix, vector)) ** 2)

        return jit(jax.grad(loss, (0, 1)))(MATRIX, COLUMNS[:, 0])

    got = by(lambda matrix, vector: pj.invert(matrix, throw=False).T.solve(vector).value)
    want = by(lambda matrix, vector: jnp.linalg.solve(matrix.T, vector))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-12)


def test_vector_on_the_right_is_a_product_and_an_operator_a_composition():
    inverse = pj.invert(MATRIX)
    assert_close(inverse @ COLUMNS[:, 0], INVERSE @ COLUMNS[:, 0], 1e-13)
    composed = inverse @ lx.MatrixLinearOperator(jnp.asarray(MATRIX))
    assert isinstance(composed, lx.AbstractLinearOperator)
    assert_close(composed.mv(COLUMNS[:, 0]), COLUMNS[:, 0], 1e-13)
    composed = lx.MatrixLinearOperator(jnp.asarray(MATRIX)) @ inverse
    assert_close(composed.mv(COLUMNS[:, 0]), COLUMNS[:, 0], 1e-13)
    assert_close((inverse @ inverse).as_matrix(), INVERSE @ INVERSE, 1e-13)


def test_columns_of_a_tree_are_those_of_its_leaves():
    blocks = {"a": {"a": jnp.eye(2), "b": jnp.zeros((2,))}, "b": {}}
    blocks["b"] = {"a": jnp.ones(2), "b": jnp.array(2.0)}
    space = {"a": jax.ShapeDtypeStruct((2,), float), "b": jax.ShapeDtypeStruct((), float)}
    inverse = pj.invert(lx.PyTreeLinearOperator(blocks, space))
    block = inverse.mm({"a": jnp.ones((2, 3)), "b": jnp.arange(3.0)})
    assert_close(block["a"], np.ones((2, 3)), 1e-15)
    assert_close(block["b"], (np.arange(3) - 2) / 2, 1e-15)
    with pytest.raises(ValueError, match="`inverse.mm` got .* takes columns of vectors"):
        inverse.mm({"a": jnp.ones((2, 3)), "b": jnp.ones(2)})


def test_no_columns_have_no_products():
    assert pj.invert(TALL, pj.QR()).mm(np.zeros((5, 0))).shape == (2, 0)


@pytest.mark.parametrize("shape", [(), (3, 2), (4, 1, 1)])
def test_block_of_another_shape_is_refused(shape):
    with pytest.raises((TypeError, ValueError), match="`inverse"):
        pj.invert(MATRIX) @ np.zeros(shape, complex)


def test_list_on_the_right_is_refused():
    with pytest.raises(TypeError, match="`inverse @ other` got a list with 0 axes"):
        pj.invert(MATRIX) @ [1.0, 2.0, 3.0, 4.0]


def test_columns_of_another_dtype_are_refused_by_mm():
    with pytest.raises(ValueError, match="`inverse.mm` got .*the dtype of the latter"):
        pj.invert(MATRIX).mm(np.zeros((4, 2), np.float32))


@pytest.mark.parametrize(
    "convert", [scipy.sparse.csr_matrix, jax.experimental.sparse.BCOO.fromdense]
)
@pytest.mark.slow  # a second each
def test_sparse_matrix_on_the_right_is_refused(convert):
    with pytest.raises(TypeError, match="Densify it"):
        pj.invert(MATRIX) @ convert(np.eye(4, dtype=complex))


def test_numpy_array_on_the_left_is_refused():
    with pytest.raises(TypeError, match="unsupported operand|not supported"):
        COLUMNS[:, 0] @ pj.invert(MATRIX)


def test_symmetric_inverse_is_its_transpose_and_a_hermitian_one_is_tagged():
    symmetric = lx.MatrixLinearOperator(jnp.eye(2), lx.symmetric_tag)
    inverse = pj.invert(symmetric)
    assert inverse.T is inverse
    hermitian = lx.MatrixLinearOperator(jnp.eye(2, dtype=complex), pj.hermitian_tag)
    assert pj.hermitian_tag in pj.invert(hermitian).tags


_FAILING = {
    "mv": lambda inverse: inverse.mv(jnp.ones(2)),
    "transpose": lambda inverse: inverse.T.mv(jnp.ones(2)),
    "conj": lambda inverse: lx.conj(inverse).mv(jnp.ones(2)),
    "mm": lambda inverse: inverse.mm(jnp.eye(2)),
    "solve": lambda inverse: inverse.solve(jnp.ones(2)),
    "as_matrix": lambda inverse: inverse.as_matrix(),
    "composed": lambda inverse: (inverse @ inverse).mv(jnp.ones(2)),
}


def _told(function, *arguments):
    """The type of an error, and the sentence that says what failed."""
    with pytest.raises(RuntimeError) as error:
        function(*arguments)
    (sentence,) = re.findall(r"The linear solve .*preconditioner\.", str(error.value))
    return type(error.value), sentence


@pytest.mark.default("transpose")
@pytest.mark.ci("*")
@pytest.mark.parametrize("call", _FAILING)
def test_error_is_that_of_linear_solve_and_names_the_term(call):
    want = _told(lambda: pj.linear_solve(DIVERGING, jnp.ones(2), NEUMANN))
    assert _told(_FAILING[call], pj.invert(DIVERGING, NEUMANN)) == want
    assert want[0] is eqx.EquinoxRuntimeError
    # 2^27 is above 1/√eps.
    assert "terms grow, and term 27 is above the first or not finite." in want[1]


@pytest.mark.slow
def test_conlim_of_lsmr_is_told_by_the_inverse():
    matrix = np.diag([1.0, 1e-6])
    inverse = pj.invert(matrix, pj.LSMR(conlim=1e3), throw=False)
    assert inverse.solve(np.ones(2)).result == lx.RESULTS.conlim
    with pytest.raises(RuntimeError, match="the condition number of A is above `conlim`"):
        pj.invert(matrix, pj.LSMR(conlim=1e3)) @ np.ones(2)


def test_solution_of_a_function_comes_out_of_jit():
    structure = jax.ShapeDtypeStruct((3,), jnp.float64)
    tag = lx.positive_semidefinite_tag
    operator = lx.FunctionLinearOperator(lambda v: 2 * v, structure, tag)
    solver = pj.FlexibleCG(preconditioner=jnp.tanh)
    solve = jax.jit(lambda vector: pj.invert(operator, solver).solve(vector))
    assert_close(solve(jnp.arange(3.0)).value, np.arange(3.0) / 2, 1e-9)
