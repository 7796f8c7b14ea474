"""`invert`: the (pseudo)inverse as an operator, and its algebra."""

import inspect

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 3
CASES = cases.params({**cases.FEW, "LU": cases.THEIRS["lx.LU"]}, "complex128")
_SHAPES = pytest.mark.parametrize("shape", [(4, 2), (2, 4)], ids=["tall", "wide"])
_ANY_SHAPE = [pj.QR(), pj.SVD(), pj.Normal(lx.Cholesky())]
_NAMES = ["QR", "SVD", "Normal"]


def _inverse(case, matrix):
    operator = cases.operator_of(matrix, case.kind)
    return pj.invert(operator, case.make(1e-13), throw=False)


def _assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * np.linalg.norm(want))


def test_signature_is_that_of_lineax_with_one_keyword_more():
    ours = dict(inspect.signature(pj.invert).parameters)
    theirs = inspect.signature(lx.invert).parameters
    assert ours.pop("adjoint").kind is inspect.Parameter.KEYWORD_ONLY
    assert list(ours) == list(theirs)
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]


@pytest.mark.default("QR-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_product_is_the_solution(case, dtype):
    matrix = cases.matrix_of(case.kind, SIZE, dtype)
    vector = cases.random_array((SIZE,), dtype, 7)

    @jax.jit
    def product(matrix, vector):
        inverse = _inverse(case, matrix)
        assert isinstance(inverse, lx.AbstractLinearOperator)
        return inverse.mv(vector)

    _assert_close(product(matrix, vector), np.linalg.solve(matrix, vector))


@pytest.mark.default("SVD-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_matrix_transpose_and_conjugate_are_those_of_the_inverse(case, dtype):
    matrix = cases.matrix_of(case.kind, SIZE, dtype)
    truth = np.linalg.inv(matrix)

    @jax.jit
    def matrices(matrix):
        inverse = _inverse(case, matrix)
        operators = (inverse, inverse.transpose(), lx.conj(inverse))
        return [operator.as_matrix() for operator in operators]

    as_is, transposed, conjugated = matrices(matrix)
    _assert_close(as_is, truth)
    _assert_close(transposed, truth.T)
    _assert_close(conjugated, truth.conj())


@pytest.mark.default("Normal-wide")
@pytest.mark.ci("*")
@_SHAPES
@pytest.mark.parametrize("solver", _ANY_SHAPE, ids=_NAMES)
def test_matrix_of_a_non_square_inverse_is_the_pseudoinverse(solver, shape):
    matrix = cases.conditioned(shape, [1.0, 2.0], complex, 3)

    @jax.jit
    def matrices(matrix):
        inverse = pj.invert(matrix, solver, throw=False)
        assert (inverse.out_size(), inverse.in_size()) == shape[::-1]
        return inverse.as_matrix(), inverse.T.as_matrix()

    as_is, transposed = matrices(matrix)
    truth = np.linalg.pinv(matrix)
    _assert_close(as_is, truth)
    _assert_close(transposed, truth.T)


def test_inverse_composes_with_other_operators():
    matrix = cases.matrix_of("general", SIZE, float)
    other = cases.random_array((SIZE, SIZE), float, 4)

    @jax.jit
    def composed(matrix, other):
        inverse = pj.invert(matrix, pj.QR(), throw=False)
        operator = inverse @ lx.MatrixLinearOperator(other) + 2 * inverse.T
        return operator.as_matrix()

    inv = np.linalg.inv(matrix)
    _assert_close(composed(matrix, other), inv @ other + 2 * inv.T)


def test_inverse_of_the_inverse_is_the_operator():
    matrix = cases.matrix_of("general", SIZE, float)
    vector = cases.random_array((SIZE,), float, 7)

    @jax.jit
    def solve_with_inverse(matrix, vector):
        inverse = pj.invert(matrix, pj.QR(), throw=False)
        return pj.linear_solve(inverse, vector, pj.QR(), throw=False).value

    _assert_close(solve_with_inverse(matrix, vector), matrix @ vector)


def test_inverse_preconditions_another_solve():
    matrix = cases.matrix_of("positive", SIZE, float)
    operator = cases.operator_of(matrix, "positive")
    solver = pj.CG(1e-10, 1e-10)

    @jax.jit
    def solve(operator, vector):
        options = {"preconditioner": pj.invert(operator, throw=False)}
        return pj.linear_solve(operator, vector, solver, options=options, throw=False)

    solution = solve(operator, jnp.ones(SIZE))
    assert solution.stats["num_steps"] <= 2
    _assert_close(solution.value, np.linalg.solve(matrix, np.ones(SIZE)))


def _identity(tags):
    return lx.MatrixLinearOperator(jnp.eye(2), tags)


def _abstract_inverse(*arguments):
    """The inverse without its numbers: nothing is compiled."""
    return eqx.filter_eval_shape(pj.invert, *arguments)


_QUERIES = {
    "symmetric": (lx.symmetric_tag, lx.is_symmetric),
    "diagonal": (lx.diagonal_tag, lx.is_diagonal),
    "lower": (lx.lower_triangular_tag, lx.is_lower_triangular),
    "upper": (lx.upper_triangular_tag, lx.is_upper_triangular),
    "positive": (lx.positive_semidefinite_tag, lx.is_positive_semidefinite),
    "negative": (lx.negative_semidefinite_tag, lx.is_negative_semidefinite),
}


@pytest.mark.parametrize("name", _QUERIES)
def test_inverse_inherits_the_tag(name):
    tag, query = _QUERIES[name]
    operator = _identity(tag)
    assert query(_abstract_inverse(operator, pj.QR()))


def test_inverse_of_a_tridiagonal_operator_is_not_tridiagonal():
    operator = lx.TridiagonalLinearOperator(jnp.ones(3) * 3, jnp.ones(2), jnp.ones(2))
    assert not lx.is_tridiagonal(_abstract_inverse(operator))


def test_unit_diagonal_is_inherited_by_triangular_operators():
    tags = (lx.lower_triangular_tag, lx.unit_diagonal_tag)
    assert lx.has_unit_diagonal(_abstract_inverse(_identity(tags)))


def test_unit_diagonal_is_not_inherited_by_full_operators():
    operator = _identity(lx.unit_diagonal_tag)
    assert not lx.has_unit_diagonal(_abstract_inverse(operator, pj.QR()))


def test_inverse_maps_between_structures():
    blocks = {
        "a": (jnp.eye(2), jnp.zeros((2, 1))),
        "b": (jnp.zeros((1, 2)), jnp.eye(1) * 4),
    }
    structure = {
        "a": jax.ShapeDtypeStruct((2,), float),
        "b": jax.ShapeDtypeStruct((1,), float),
    }

    @jax.jit
    def product(blocks, vector):
        operator = lx.PyTreeLinearOperator(blocks, structure)
        return pj.invert(operator, pj.QR(), throw=False).mv(vector)

    first, second = product(blocks, {"a": jnp.ones(2), "b": jnp.ones(1)})
    _assert_close(first, np.ones(2))
    _assert_close(second, np.full(1, 0.25))


def test_failed_inverse_raises_in_its_product():
    inverse = pj.invert(jnp.zeros((2, 2)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite"):
        eqx.filter_jit(inverse.mv)(jnp.ones(2))


def test_failed_inverse_is_silent_without_throw():
    inverse = pj.invert(jnp.zeros((2, 2)), throw=False)
    assert not np.isfinite(inverse.mv(jnp.ones(2))).all()


@pytest.mark.default("SVD-*", "Normal(Cholesky)-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_inverses_of_a_batch_are_those_of_its_members(case, dtype):
    matrices = np.stack([cases.matrix_of(case.kind, SIZE, dtype, seed=s) for s in (1, 4)])

    @jax.jit
    @jax.vmap
    def first_column(matrix):
        operator = cases.operator_of(matrix, case.kind)
        inverse = pj.invert(operator, case.make(1e-13), throw=False)
        return inverse.mv(jnp.zeros(SIZE, dtype).at[0].set(1))

    _assert_close(first_column(matrices), np.linalg.inv(matrices)[:, :, 0])
