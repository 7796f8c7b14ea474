"""`factorise`: the blocks of the pseudoinverse map by name, with derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import truth
from checks import assert_close, count_primitive, derivatives, jit
from problems import PROBLEMS

import pseudojvp as pj


_NAMES = [
    "tall-complex-QR",
    "wide-complex-QR",
    "wide-deficient-complex-PivotedQR",
    "square-complex-QR",
    "wide-complex-CholeskyQR",
    "tall-deficient-complex-SVD",
    "wide-real-PivotedQR",
    "square-complex-LU",
    "definite-complex-Cholesky",
    "wide-complex-Normal(Cholesky)",
    "tall-complex-Normal(LU)",
    "wide-deficient-complex-Normal(SVD)",
    "definite-complex-CG",
    "diagonal-deficient-real-Auto(False)",
    "tall-complex-Auto(None)",
    "wide-real-lineax.QR",
]
TALL = np.array([[1.0, 2], [3, 4], [5, 7]])
ONES = np.ones(3)


def _vectors(problem):
    rng = np.random.default_rng(3)
    matrix = problem.matrix(0.0)
    return rng.standard_normal((2, matrix.shape[1])).astype(matrix.dtype)


def blocks(problem, t):
    """All five, at A(t) and b(t), one after the other in one vector."""
    w, y = _vectors(problem)
    operator = problem.make_operator(problem.matrix(t), problem.tags)
    factorised = pj.factorise(operator, problem.solver)
    b = problem.vector(t)
    parts = (
        factorised.solve(b),
        factorised.residual(b),
        factorised.adjoint_solve(w),
        factorised.gram_inverse(w),
        factorised.project(y),
    )
    return jnp.concatenate(parts)


def series(problem):
    """Their Taylor coefficients, to second order."""
    path, (w, y) = problem.path, _vectors(problem)
    pad = lambda c: np.pad(c, [(0, max(0, 4 - len(c)))] + [(0, 0)] * (c.ndim - 1))[:4]
    constant = lambda v: pad(v[None, :, None])
    matrix = truth.multiply(pad(path.left), pad(path.right))
    inverse, b = truth.pseudoinverse_series(path), pad(path.vector)[..., None]
    x = truth.multiply(inverse, b)
    adjoint = truth.multiply(truth.adjoint(inverse), constant(w))
    parts = (
        x,
        b - truth.multiply(matrix, x),
        adjoint,
        truth.multiply(inverse, adjoint),
        truth.multiply(inverse, truth.multiply(matrix, constant(y))),
    )
    return np.concatenate(parts, axis=1)[..., 0]


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _NAMES)
def test_blocks_and_their_derivatives_are_those_of_the_dense_pseudoinverse(name):
    problem = PROBLEMS[name]
    got = jit(derivatives(lambda t: blocks(problem, t), 2))(0.0)
    want = series(problem)
    for order, factor in enumerate((1, 1, 2)):
        assert_close(got[order], factor * want[order], 100 * problem.rtol)


@pytest.mark.default("solve", "gram_inverse")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "name", ["solve", "residual", "adjoint_solve", "gram_inverse", "project"]
)
def test_gradient_in_the_vector_is_the_adjoint(name):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3, 5)) + 1j * rng.standard_normal((3, 5))
    inverse = np.linalg.pinv(matrix)
    maps = {
        "solve": inverse,
        "residual": np.zeros((3, 3)),
        "adjoint_solve": inverse.conj().T,
        "gram_inverse": inverse @ inverse.conj().T,
        "project": inverse @ matrix,
    }
    out, size = maps[name].shape
    cotangent = rng.standard_normal(out) + 1j * rng.standard_normal(out)

    def loss(vector):
        value = getattr(pj.factorise(matrix, pj.QR()), name)(vector)
        return jnp.sum(cotangent * value).real

    got = jax.grad(loss)(np.ones(size, complex))
    np.testing.assert_allclose(got, maps[name].T @ cotangent, atol=1e-12)


def test_factors_are_computed_once():
    def all_of(matrix, b, w):
        factorised = pj.factorise(matrix, pj.QR())
        columns = jax.vmap(factorised.solve, 1, 1)(b)
        return columns, jax.vmap(factorised.gram_inverse)(w)

    jaxpr = jax.make_jaxpr(all_of)(TALL, np.ones((3, 4)), np.eye(2)).jaxpr
    assert count_primitive("geqrf", jaxpr) == 1
    columns, covariance = all_of(TALL, np.eye(3), np.eye(2))
    np.testing.assert_allclose(columns, np.linalg.pinv(TALL), atol=1e-13)
    np.testing.assert_allclose(covariance, np.linalg.inv(TALL.T @ TALL), rtol=1e-11)


def test_a_factorised_operator_goes_through_jit_and_vmap():
    matrices = np.stack([TALL, 2 * TALL])
    factorised = jax.vmap(lambda matrix: pj.factorise(matrix, pj.SVD()))(matrices)
    solve = eqx.filter_jit(eqx.filter_vmap(lambda f: f.solve(ONES)))
    want = np.linalg.pinv(matrices) @ ONES
    np.testing.assert_allclose(solve(factorised), want, rtol=1e-12)


def test_vectors_are_pytrees_of_the_operator():
    function = lambda x: (x["a"] + 2 * x["b"], x["b"])
    structure = {key: jax.ShapeDtypeStruct((2,), np.float64) for key in "ab"}
    operator = lx.FunctionLinearOperator(function, structure)
    factorised = pj.factorise(operator, pj.QR())
    x = factorised.solve((np.array([5.0, 8]), np.array([2.0, 3])))
    np.testing.assert_allclose(x["a"], [1, 2], atol=1e-13)
    w = factorised.adjoint_solve({"a": np.ones(2), "b": np.ones(2)})
    np.testing.assert_allclose(w, [[1, 1], [-1, -1]], atol=1e-13)


@pytest.mark.default("shape1")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_identity_between_two_sizes(shape):
    rows, cols = (jax.ShapeDtypeStruct((size,), np.float64) for size in shape)
    factorised = pj.factorise(lx.IdentityLinearOperator(cols, rows))
    eye = np.eye(*shape)
    b, w = np.arange(1.0, shape[0] + 1), np.arange(1.0, shape[1] + 1)
    np.testing.assert_array_equal(factorised.solve(b), eye.T @ b)
    np.testing.assert_array_equal(factorised.residual(b), b - eye @ eye.T @ b)
    np.testing.assert_array_equal(factorised.adjoint_solve(w), eye @ w)
    np.testing.assert_array_equal(factorised.gram_inverse(w), eye.T @ eye @ w)
    np.testing.assert_array_equal(factorised.project(w), eye.T @ eye @ w)


def test_result_and_stats_tell_of_the_factors():
    singular = np.ones((3, 3))
    told = pj.factorise(singular, pj.LU())
    assert told.result == lx.RESULTS.singular
    assert told.stats["reciprocal_condition"] < 1e-15
    assert pj.factorise(singular, pj.SVD()).result == lx.RESULTS.successful
    assert pj.factorise(singular, pj.PivotedQR()).stats["rank"] == 1
    normal = pj.factorise(np.ones((4, 2)), pj.Normal(pj.Cholesky()))
    assert normal.result == lx.RESULTS.singular
    assert pj.factorise(TALL, pj.LSMR()).result == lx.RESULTS.successful
    assert pj.factorise(TALL, pj.LSMR()).stats == {}


_METHODS = ("solve", "residual", "adjoint_solve", "gram_inverse", "project")


@pytest.mark.default("solve", "project")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _METHODS)
def test_failures_are_raised_or_nan(name):
    # Of a square A, which leaves no residual, too.
    def call(throw):
        factorised = pj.factorise(np.ones((3, 3)), pj.LU(), throw=throw)
        return getattr(factorised, name)(ONES)

    with pytest.raises(eqx.EquinoxRuntimeError, match="reciprocal condition number"):
        call(True)
    assert np.isnan(call(False)).all()


@pytest.mark.parametrize("name", _METHODS)
def test_nan_in_the_vector_is_told(name):
    factorised = pj.factorise(TALL, pj.QR())
    size = 3 if name in ("solve", "residual") else 2
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite values"):
        getattr(factorised, name)(np.full(size, np.nan))


@pytest.mark.parametrize("name", _METHODS)
def test_vector_of_another_structure_is_an_error_that_names_the_method(name):
    factorised = pj.factorise(TALL, pj.QR())
    with pytest.raises(ValueError, match=rf"do not match: `{name}`.*\(5,\)"):
        getattr(factorised, name)(np.ones(5))


@pytest.mark.untyped
def test_what_is_no_operator_or_solver_is_an_error():
    with pytest.raises(TypeError, match=r"`factorise\(operator=...\)` got a list"):
        pj.factorise([[1.0]])
    with pytest.raises(TypeError, match=r"`factorise\(solver=...\)`"):
        pj.factorise(TALL, pj.QR)
    with pytest.raises(ValueError, match="unknown option"):
        pj.factorise(TALL, pj.QR(), options={"y0": ONES})


def test_state_is_taken():
    operator = lx.MatrixLinearOperator(TALL)
    state = pj.QR().init(operator, {})
    factorised = pj.factorise(operator, pj.QR(), state=state)
    want = np.linalg.pinv(TALL) @ ONES
    np.testing.assert_allclose(factorised.solve(ONES), want, rtol=1e-12)


@pytest.mark.parametrize("throw", [True, False])
def test_a_solve_is_linear_for_jax(throw):
    factorised = pj.factorise(TALL, pj.QR(), throw=throw)
    (got,) = jax.linear_transpose(factorised.solve, ONES)(np.arange(2.0))
    np.testing.assert_allclose(got, np.linalg.pinv(TALL).T @ np.arange(2.0), atol=1e-13)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["project", "residual"])
def test_what_is_known_without_a_solve_hangs_on_one(name):
    def of(matrix, vector):
        return getattr(pj.factorise(matrix, pj.LU(), throw=False), name)(vector)

    for derivative in (jax.jacfwd, jax.jacrev):
        assert np.isnan(derivative(of)(np.ones((3, 3)), ONES)).all()
    regular = TALL.T @ TALL
    (got,) = jax.linear_transpose(lambda b: of(regular, b), ONES[:2])(ONES[:2])
    np.testing.assert_array_equal(got, ONES[:2] if name == "project" else 0 * ONES[:2])
