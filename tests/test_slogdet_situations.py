"""`slogdet` where a matrix is singular, small, batched or narrow, and what it costs."""

import re

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, count_primitive, jit
from sparse_cases import random_array

import pseudojvp as pj


DIRECT = {
    "LU": pj.LU(),
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "PivotedQR": pj.PivotedQR(),
    "Cholesky": pj.Cholesky(),
    "Triangular": pj.Triangular(),
    "Tridiagonal": pj.Tridiagonal(),
    "Diagonal": lx.Diagonal(well_posed=True),
    "SparseLU": pj.SparseLU(),
    "SparseTriangular": pj.SparseTriangular(),
}
_TAGS = {
    "Cholesky": lx.positive_semidefinite_tag,
    "Triangular": lx.lower_triangular_tag,
    "Tridiagonal": lx.tridiagonal_tag,
    "Diagonal": lx.diagonal_tag,
}
_EACH = pytest.mark.parametrize("name", DIRECT)
SINGULAR = np.ones((3, 3))


def operator_of(name, matrix):
    """An operator that the solver takes, and the matrix of it."""
    size = len(matrix)
    if "Triangular" in name:
        matrix = matrix * np.tri(size).astype(matrix.dtype)
    if name == "Tridiagonal":
        matrix = matrix * (np.tri(size, k=1) * np.tri(size, k=1).T).astype(matrix.dtype)
    if name == "Diagonal":
        matrix = np.diag(np.diag(matrix))
    if name == "Cholesky":
        matrix = matrix @ matrix.conj().T
    if "Sparse" in name:
        row, col = np.nonzero(matrix)
        entries = matrix[row, col], row, col, matrix.shape
        return pj.SparseLinearOperator(entries), matrix
    return lx.MatrixLinearOperator(jnp.asarray(matrix), _TAGS.get(name, ())), matrix


def both(told):
    return np.array([complex(told.sign), complex(told.logabsdet)])


def logabsdet(solver, **kwargs):
    return lambda matrix: pj.slogdet(matrix, solver, **kwargs).logabsdet


@pytest.mark.optimised
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("solver", "call"),
    [
        (pj.LU(), "getrf"),
        (pj.Cholesky(), "potrf"),
        (pj.QR(), "geqrf"),
        (pj.PivotedQR(), "geqp3"),
        (pj.SVD(), "gesdd"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_solve_determinant_and_gradient_share_one_factorisation(solver, call):
    def likelihood(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        factorised = pj.factorise(operator, solver, throw=False)
        return vector @ factorised.solve(vector) + factorised.slogdet().logabsdet

    gradient = jax.jit(jax.value_and_grad(likelihood, (0, 1)))
    text = gradient.lower(jnp.eye(6), jnp.ones(6)).compile().as_text()
    assert len(re.findall(f'custom_call_target="lapack_d{call}', text)) == 1


@pytest.mark.slow  # a second
def test_tangents_of_many_directions_take_one_application_of_the_factors():
    jacobian = jax.make_jaxpr(jax.jacfwd(logabsdet(pj.LU(), throw=False)))(np.eye(3))
    # `linear_solve_batch`: the primitive under the `vmap` over the unit vectors.
    assert count_primitive("linear_solve_batch", jacobian.jaxpr) == 1
    assert count_primitive("linear_solve", jacobian.jaxpr) == 0


@pytest.mark.slow
def test_sparse_solve_determinant_and_gradient_share_one_factorisation(monkeypatch):
    made = []
    kind = "pseudojvp._kernel.superlu._Factorisation"
    original = pj._kernel.superlu._Factorisation
    monkeypatch.setattr(kind, lambda *given: made.append(1) or original(*given))
    index = np.arange(4)

    def likelihood(data):
        sparse = pj.SparseLinearOperator((data, index, index, (4, 4)))
        factorised = pj.factorise(sparse, pj.SparseLU())
        return jnp.sum(factorised.solve(jnp.ones(4))) + factorised.slogdet().logabsdet

    data = np.array([1.0, 2, 3, 5.125])
    _, gradient = jax.value_and_grad(likelihood)(data)
    assert_close(gradient, 1 / data - 1 / data**2, 1e-14)
    assert len(made) == 1


@pytest.mark.default("LU")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["LU", "QR", "PivotedQR", "SVD", "SparseLU"])
def test_batch_of_matrices_has_the_values_and_gradients_of_each(name):
    matrices = random_array((3, 4, 4), complex, 4)
    row, col = np.nonzero(np.ones((4, 4)))

    def told(matrix):
        operator = matrix
        if name == "SparseLU":
            operator = pj.SparseLinearOperator((matrix.reshape(-1), row, col, (4, 4)))
        sign, logabsdet = pj.slogdet(operator, DIRECT[name])
        return logabsdet, sign

    batched = jit(jax.vmap(jax.value_and_grad(told, has_aux=True)))
    (logarithms, signs), gradients = batched(matrices)
    want = np.linalg.slogdet(matrices)
    assert_close(logarithms, want.logabsdet, 1e-13)
    assert_close(signs, want.sign, 1e-13)
    assert_close(gradients, np.linalg.inv(matrices).swapaxes(1, 2), 1e-12)


@pytest.mark.parametrize("solver", [pj.LU(), pj.QR()], ids=["LU", "QR"])
def test_singular_matrix_has_the_determinant_of_jax(solver):
    sign, logabsdet = pj.slogdet(np.zeros((3, 3)), solver)
    assert (sign, logabsdet) == tuple(jnp.linalg.slogdet(jnp.zeros((3, 3))))


def test_sparse_singular_matrix_has_sign_zero():
    for row, col in [([0, 1], [0, 0]), ([0, 0, 1, 1], [0, 1, 0, 1])]:  # by pattern, not
        entries = np.ones(len(row)), np.array(row), np.array(col), (2, 2)
        told = pj.slogdet(pj.SparseLinearOperator(entries), pj.SparseLU())
        assert told == (0, -np.inf)


@pytest.mark.slow  # a second
def test_derivative_at_a_singular_matrix_raises():
    with pytest.raises(RuntimeError, match=r"derivative with `LU\(\)` .* needs full"):
        jax.grad(logabsdet(pj.LU()))(SINGULAR)


def test_derivative_at_a_singular_matrix_is_nan_where_nothing_raises():
    value, gradient = jax.value_and_grad(logabsdet(pj.LU(), throw=False))(SINGULAR)
    assert value == -np.inf
    assert np.all(np.isnan(gradient))


@pytest.mark.default("LU")
@pytest.mark.ci("*")
@_EACH
def test_nan_in_the_matrix_is_told(name):
    operator, _ = operator_of(name, np.where(np.eye(3), np.nan, 1.0))
    told = pj.slogdet(operator, DIRECT[name], throw=False)
    assert np.all(np.isnan(told))
    with pytest.raises(RuntimeError, match=r"determinant with .* non-finite"):
        pj.slogdet(operator, DIRECT[name])


def test_indefinite_matrix_is_told_by_cholesky():
    operator = lx.MatrixLinearOperator(
        jnp.diag(jnp.array([1.0, -1.0])), lx.positive_semidefinite_tag
    )
    assert np.all(np.isnan(pj.slogdet(operator, pj.Cholesky(), throw=False)))
    with pytest.raises(
        RuntimeError, match=r"`Cholesky\(\)` of an operator .* not definite"
    ):
        pj.slogdet(operator, pj.Cholesky())


@pytest.mark.parametrize(
    "solver",
    [
        pj.CG(1e-8, 1e-8),
        pj.LSMR(),
        pj.Neumann(num_terms=3),
        pj.Normal(pj.Cholesky()),
        pj.CholeskyQR(),
        pj.FunctionSolver(lambda operator, vector: vector),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solver_without_factors_is_refused(solver):
    operator = lx.MatrixLinearOperator(jnp.eye(3), lx.positive_semidefinite_tag)
    with pytest.raises(
        TypeError, match=rf"`{type(solver).__name__}\(\)`, which .* `LU\(\)`"
    ):
        pj.slogdet(operator, solver)


@pytest.mark.untyped
def test_operator_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r"`slogdet\(operator=\.\.\.\)` got a str"):
        pj.slogdet("A")
    with pytest.raises(TypeError, match=r"`slogdet\(solver=\.\.\.\)`"):
        pj.slogdet(np.eye(2), "LU")


def test_tall_matrix_is_refused_by_the_default_solver():
    with pytest.raises(ValueError, match="non-square operator, of shape"):
        pj.slogdet(np.ones((3, 2)))


@pytest.mark.default("LU", "Triangular")
@pytest.mark.ci("*")
@_EACH
def test_single_precision_stays_single(name):
    operator, matrix = operator_of(name, random_array((4, 4), np.complex64, 3))
    told = pj.slogdet(operator, DIRECT[name])
    assert (told.sign.dtype, told.logabsdet.dtype) == (np.complex64, np.float32)
    assert_close(both(told), np.array(np.linalg.slogdet(matrix)), 1e-5)


@pytest.mark.parametrize("name", ["LU", "Tridiagonal", "SparseLU"])
def test_narrow_matrix_has_a_determinant_in_single_precision(name):
    operator, matrix = operator_of(name, np.array([[1.0, 2, 0], [3, 5, 1], [0, 2, 4]]))
    narrow = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == float else leaf, operator
    )
    told = pj.slogdet(narrow, DIRECT[name])
    assert told.logabsdet.dtype == told.sign.dtype == np.float32
    assert_close(both(told), np.array(np.linalg.slogdet(matrix)), 1e-5)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", sorted(set(DIRECT) - {"Diagonal"}))
def test_states_of_transpose_and_conjugate_have_its_determinant(name):
    solver = DIRECT[name]
    operator, matrix = operator_of(name, random_array((4, 4), complex, 3))
    state = solver.init(operator, {})
    transposed, _ = solver.transpose(state, {})
    told = pj.factorise(operator.transpose(), solver, state=transposed).slogdet()
    assert_close(both(told), np.array(np.linalg.slogdet(matrix.T)), 1e-13)
    conjugated, _ = solver.conj(state, {})
    told = pj.factorise(lx.conj(operator), solver, state=conjugated).slogdet()
    assert_close(both(told), np.array(np.linalg.slogdet(matrix.conj())), 1e-13)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@_EACH
def test_empty_matrix_has_determinant_one(name):
    operator, _ = operator_of(name, np.zeros((0, 0)))
    told, gradient = jax.value_and_grad(
        lambda operator: pj.slogdet(operator, DIRECT[name]).logabsdet, allow_int=True
    )(operator)
    assert told == 0
    assert pj.slogdet(operator, DIRECT[name]).sign == 1
    assert all(leaf.size == 0 for leaf in jax.tree.leaves(gradient))
