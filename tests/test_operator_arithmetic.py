"""Multiples and sums of operators: what is known of them, and who takes them."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sps

import pseudojvp as pj


_DEFINITE = np.array([[4.0, 1.0, 0.0], [1.0, 5.0, 2.0], [0.0, 2.0, 6.0]])
_HERMITIAN = _DEFINITE + 1j * np.array([[0, 1, 0], [-1, 0, 2], [0, -2, 0]])
_VECTOR = np.array([1.0, -2.0, 3.0])
_POSITIVE, _NEGATIVE = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag


def _dense(matrix, tag=_POSITIVE):
    return lx.MatrixLinearOperator(jnp.asarray(matrix), tag)


def _sparse(matrix, tag=_POSITIVE):
    return pj.SparseLinearOperator(sps.csr_array(matrix), tag)


def _function(matrix, tag=_POSITIVE):
    matrix = jnp.asarray(matrix)
    structure = jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype)
    return lx.FunctionLinearOperator(lambda x: matrix @ x, structure, tag)


_each_kind = pytest.mark.parametrize(
    "make", [_dense, _sparse, _function], ids=["dense", "sparse", "function"]
)
_ARITHMETIC = {
    "2 A": (lambda a: 2.0 * a, 2.0),
    "A 2": (lambda a: a * np.float64(2.0), 2.0),
    "A / 2": (lambda a: a / jnp.array(2.0), 0.5),
    "-A": (lambda a: -a, -1.0),
    "-2 A": (lambda a: -2.0 * a, -2.0),
    "-(A / -2)": (lambda a: -(a / -2.0), 0.5),
    "A + 2 A": (lambda a: a + 2.0 * a, 3.0),
    "2 A - (-A)": (lambda a: 2.0 * a - (-a), 3.0),
    "3 (A + A / 2)": (lambda a: 3.0 * (a + a / 2.0), 4.5),
    "tagged": (lambda a: 2.0 * lx.TaggedLinearOperator(a, lx.symmetric_tag), 2.0),
}
_each_arithmetic = pytest.mark.parametrize("name", _ARITHMETIC)


@pytest.mark.default("dense-2 A - (-A)")
@pytest.mark.ci("*")
@_each_arithmetic
@_each_kind
def test_definite_multiples_and_sums_are_solved_by_cg(make, name):
    arithmetic, factor = _ARITHMETIC[name]
    solver = pj.CG(rtol=1e-13, atol=1e-13)

    @jax.value_and_grad
    def loss(vector):
        solution = pj.linear_solve(arithmetic(make(_DEFINITE)), vector, solver)
        return jnp.sum(solution.value)

    value, gradient = loss(jnp.asarray(_VECTOR))
    inverse = np.linalg.inv(factor * _DEFINITE)
    np.testing.assert_allclose(value, (inverse @ _VECTOR).sum(), rtol=1e-10)
    np.testing.assert_allclose(gradient, inverse.sum(axis=0), rtol=1e-10)


def _checks(operator):
    """What lineax knows of it."""
    checks = lx.is_positive_semidefinite, lx.is_negative_semidefinite, lx.is_symmetric
    return tuple(check(operator) for check in checks)


_NUMBERS = {
    "2": (2.0, (True, False, True)),
    "-2": (-2.0, (False, True, True)),
    "array": (jnp.array(-0.5), (False, True, True)),
    "zero": (0.0, (False, False, True)),
}
_OURS = {
    "sparse": lambda: _sparse(_DEFINITE),
    "chebyshev": lambda: pj.chebyshev(_sparse(_DEFINITE)),
    "incomplete_cholesky": lambda: pj.incomplete_cholesky(_sparse(_DEFINITE)),
}


@pytest.mark.default("sparse-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize("number", _NUMBERS)
@pytest.mark.parametrize("name", _OURS)
def test_multiple_of_our_operators_keeps_what_holds_of_it(name, number):
    operator, (factor, known) = _OURS[name](), _NUMBERS[number]
    multiple = factor * operator
    assert _checks(multiple) == known
    assert _checks(multiple.transpose()) == known
    want = factor * np.asarray(operator.as_matrix())
    np.testing.assert_allclose(multiple.as_matrix(), want, rtol=1e-12)


@pytest.mark.default("sparse")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _OURS)
def test_quotient_of_our_operators_keeps_what_holds_of_it(name):
    operator = _OURS[name]()
    assert _checks(operator / -2.0) == (False, True, True)
    assert _checks(-operator) == (False, True, True)
    got = jnp.stack([(operator / -2.0).as_matrix(), (-operator).as_matrix()])
    want = -np.asarray(operator.as_matrix())
    np.testing.assert_allclose(got, [want / 2, want], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_multiple_of_a_sparse_operator_has_its_dtype(dtype):
    operator = _sparse(_DEFINITE.astype(dtype))
    multiples = 2.0 * operator, operator * np.float64(2.0), operator / jnp.array(2)
    assert {multiple.data.dtype for multiple in multiples} == {np.dtype(dtype)}


def test_complex_multiple_of_a_real_sparse_operator_is_complex_and_symmetric_alone():
    multiple = 1j * _sparse(_DEFINITE)
    assert _checks(multiple) == (False, False, True)
    np.testing.assert_allclose(multiple.as_matrix(), 1j * _DEFINITE)


def test_multiple_by_nan_is_not_definite():
    assert _checks(float("nan") * _sparse(_DEFINITE)) == (False, False, True)


def test_sign_of_a_python_number_is_known_within_jit():
    @jax.jit
    def solve(data, vector):
        row, col = np.nonzero(_DEFINITE)
        operator = pj.SparseLinearOperator((data, row, col, (3, 3)), _POSITIVE)
        solver = pj.CG(1e-13, 1e-13, preconditioner=3.0 * pj.chebyshev(operator))
        return pj.linear_solve(-2.0 * operator, vector, solver).value

    got = solve(_DEFINITE[np.nonzero(_DEFINITE)], _VECTOR)
    np.testing.assert_allclose(got, np.linalg.solve(-2 * _DEFINITE, _VECTOR), rtol=1e-10)


def test_derivative_with_respect_to_the_number_in_a_multiple():
    @jax.grad
    def gradient(number):
        operator = number * _sparse(_DEFINITE)
        return jnp.sum(pj.linear_solve(operator, _VECTOR, throw=False).value)

    want = -np.linalg.solve(_DEFINITE, _VECTOR).sum() / 4
    np.testing.assert_allclose(gradient(2.0), want, rtol=1e-9)


def test_multiple_of_a_sparse_operator_is_taken_as_sparse():
    got = pj.sparse_solve(2.0 * _sparse(_DEFINITE), _VECTOR, pj.SparseLU())
    np.testing.assert_allclose(got, np.linalg.solve(2 * _DEFINITE, _VECTOR), rtol=1e-12)


def test_inverse_of_a_definite_multiple_is_tagged_definite():
    assert lx.is_negative_semidefinite(pj.invert(-2.0 * _dense(_DEFINITE)))


def test_preconditioner_of_a_definite_multiple_is_definite():
    assert lx.is_positive_semidefinite(pj.chebyshev(2.0 * _dense(_DEFINITE)))


@pytest.mark.default("dense-2 A", "sparse-3 (A + A / 2)")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["2 A", "A / 2", "-A", "A + 2 A", "3 (A + A / 2)"])
@pytest.mark.parametrize("make", [_dense, _sparse], ids=["dense", "sparse"])
def test_hermitian_multiples_and_sums_are_solved_by_minres(make, name):
    arithmetic, factor = _ARITHMETIC[name]
    operator = arithmetic(make(_HERMITIAN, pj.hermitian_tag))
    solver = pj.MINRES(rtol=1e-13, atol=1e-13, well_posed=True)
    vector = jnp.asarray(_VECTOR + 1j)
    # lineax's product of real and complex numbers is none of strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        got = jax.jit(lambda b: pj.linear_solve(operator, b, solver).value)(vector)
    want = np.linalg.solve(factor * _HERMITIAN, vector)
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("make", [_dense, _sparse], ids=["dense", "sparse"])
def test_complex_multiple_of_a_hermitian_operator_is_not_hermitian(make):
    with pytest.raises(ValueError, match="tagged as neither"):
        pj.MINRES().init(1j * make(_HERMITIAN, pj.hermitian_tag), {})


def _solve(solver):
    def solve(number):
        operator = number * _dense(_DEFINITE)
        return pj.linear_solve(operator, _VECTOR, solver, throw=False).value

    return solve


@pytest.mark.parametrize("solver", [pj.CG(), pj.Cholesky()], ids=["CG", "Cholesky"])
def test_error_for_a_multiple_of_unknown_sign_says_which_tag_to_add(solver):
    with pytest.raises(ValueError, match="Arithmetic.*MulLinearOperator.*positive_semid"):
        jax.jit(_solve(solver))(2.0)


def test_error_for_a_complex_product_asks_for_the_hermitian_tag():
    operator = lx.MatrixLinearOperator(jnp.eye(2, dtype=complex), pj.hermitian_tag)
    product = operator @ operator
    with pytest.raises(ValueError, match=r"Arithmetic.*pseudojvp\.hermitian_tag\)` has"):
        pj.linear_solve(product, jnp.ones(2, complex), pj.MINRES())


def test_error_for_a_product_says_which_tag_to_add():
    operator = _dense(_DEFINITE) @ _dense(_DEFINITE)
    with pytest.raises(ValueError, match="ComposedLinearOperator.*symmetric_tag"):
        pj.linear_solve(operator, _VECTOR, pj.MINRES())
    with pytest.raises(ValueError, match="ComposedLinearOperator.*tridiagonal_tag"):
        pj.linear_solve(operator, _VECTOR, pj.Tridiagonal())
    with pytest.raises(ValueError, match="ComposedLinearOperator.*positive_semidefinite"):
        pj.nystrom(operator, 2, jax.random.key(0))


@pytest.mark.parametrize(
    "solver", [pj.CG(), pj.MINRES(well_posed=True)], ids=["CG", "MINRES"]
)
def test_error_for_a_preconditioner_of_unknown_sign_says_which_tag_to_add(solver):
    @jax.jit
    def solve(number):
        options = {"preconditioner": number * pj.jacobi(_dense(_DEFINITE))}
        operator = _dense(_DEFINITE)
        return pj.linear_solve(operator, _VECTOR, solver, options=options).value

    with pytest.raises(ValueError, match="MulLinearOperator.*positive_semidefinite_tag"):
        solve(2.0)


def test_error_without_arithmetic_says_nothing_of_it():
    with pytest.raises(ValueError, match="tagged as neither") as error:
        pj.linear_solve(_dense(_DEFINITE, ()), _VECTOR, pj.CG())
    assert "Arithmetic" not in str(error.value)


@pytest.mark.parametrize("name", _OURS)
def test_product_with_an_array_is_an_error(name):
    with pytest.raises(ValueError, match=r"array of shape \(3,\). Pass a scalar"):
        _OURS[name]() * jnp.ones(3)
