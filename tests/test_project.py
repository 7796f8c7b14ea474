"""`project`: A A†b and b − A A†b from every solver, with derivatives."""

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import truth
from checks import assert_close, derivatives, jit
from problems import each

import pseudojvp as pj


_EXACT = ["wide-complex-QR", "square-real-QR", "square-complex-lineax.LU"]
_FEW = ["tall-complex-QR", "tall-deficient-complex-Normal(SVD)", "wide-complex-QR"]
_NAMES = [
    "tall-deficient-complex-SVD",
    "wide-deficient-real-SVD",
    "tall-complex-Normal(LU)",
    "semidefinite-real-CG",
    "definite-complex-CG",
    "wide-deficient-real-Landweber",
    "wide-deficient-complex-Auto(False)",
    "diagonal-deficient-real-Auto(False)",
    "tall-complex-lineax.QR",
    "tall-deficient-complex-lineax.SVD",
    "wide-deficient-complex-Pinv(False)",
]
# One to two seconds of compiling each.
_each_derivative = pytest.mark.parametrize(
    "problem",
    [
        *each(["tall-complex-Normal(LU)"]).args[1],
        *each(
            [
                "tall-complex-QR",
                "wide-complex-QR",
                "tall-deficient-complex-SVD",
                "wide-deficient-complex-Auto(False)",
            ],
            "slow",
        ).args[1],
    ],
)


def split(problem, matrix, vector, **kwargs):
    operator = problem.make_operator(matrix, problem.tags)
    options = problem.make_options(operator)
    return pj.project(
        operator, vector, problem.solver, options=options, throw=False, **kwargs
    )


def series(problem):
    """Taylor coefficients of A A†b and b − A A†b."""
    path = problem.path
    matrix = truth.multiply(_padded(path.left), _padded(path.right))
    vector = _padded(path.vector)[..., None]
    x = truth.multiply(truth.pseudoinverse_series(path), vector)
    projection = truth.multiply(matrix, x)
    return projection[..., 0], (vector - projection)[..., 0]


def _padded(coefficients):
    """To third order, at t = 0."""
    missing = max(0, 4 - len(coefficients))
    rest = [(0, 0)] * (coefficients.ndim - 1)
    return np.pad(coefficients, [(0, missing), *rest])[:4]


@pytest.mark.parametrize(
    "problem", [*each(_FEW).args[1], *each(_NAMES + _EXACT[1:], "slow").args[1]]
)
def test_parts_are_those_of_the_dense_pseudoinverse(problem):
    solve = jit(lambda t: split(problem, problem.matrix(t), problem.vector(t)))
    projection, residual = solve(0.0)
    want_projection, want_residual = series(problem)
    scale = np.abs(problem.path.vector[0]).max()
    tolerance = problem.rtol * scale
    np.testing.assert_allclose(projection, want_projection[0], atol=tolerance)
    np.testing.assert_allclose(residual, want_residual[0], atol=tolerance)


@each(_EXACT)
def test_residual_of_independent_rows_is_exactly_zero(problem):
    b = problem.vector(0.0)
    projection, residual = split(problem, problem.matrix(0.0), b)
    np.testing.assert_array_equal(residual, np.zeros_like(b))
    np.testing.assert_array_equal(projection, b)


@_each_derivative
def test_first_and_second_derivatives_along_a_path(problem):
    zeroth = lambda t: split(problem, problem.matrix(t), problem.vector(t))
    _, *got = jit(derivatives(zeroth, 2))(0.0)
    want_projection, want_residual = series(problem)
    for order, (projection, residual) in enumerate(got, start=1):
        want = np.concatenate([want_projection[order], want_residual[order]])
        assert_close(np.concatenate([projection, residual]), order * want, 1e-10)


@_each_derivative
def test_gradient_of_the_variable_projection_functional(problem):
    def loss(t):
        _, residual = split(problem, problem.matrix(t), problem.vector(t))
        return jnp.sum(jnp.abs(residual) ** 2)

    got = jit(jax.value_and_grad(jax.grad(loss)))(0.0)
    _, residual = series(problem)
    column = residual[..., None]
    squared = truth.multiply(truth.adjoint(column), column)[:, 0, 0].real
    want = np.array([squared[1], 2 * squared[2]])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.default("QR", "PivotedQR")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), pj.PivotedQR()],
    ids=lambda solver: type(solver).__name__,
)
def test_residual_is_orthogonal_to_an_ill_conditioned_range(solver):
    a = cases.conditioned((8, 4), [1.0, 1e-4, 1e-8, 1e-12], float, 0)
    b = cases.random_array((8,), float, 3)
    _, residual = pj.project(a, b, solver, throw=False)
    np.testing.assert_allclose(a.T @ residual, 0, atol=1e-15)
    assert np.linalg.norm(residual) > 0.1


def test_unpacks_and_has_two_named_fields():
    result = pj.project(jnp.ones((3, 1)), jnp.array([1.0, 2.0, 6.0]), throw=False)
    projection, residual = result
    assert result._fields == ("projection", "residual")
    np.testing.assert_allclose(projection, [3.0, 3.0, 3.0], rtol=1e-14)
    np.testing.assert_allclose(residual, [-2.0, -1.0, 3.0], rtol=1e-14)


def test_integers_become_floats():
    projection, residual = pj.project(np.array([[1], [1]]), np.array([1, 3]), throw=False)
    np.testing.assert_allclose(projection, [2.0, 2.0], rtol=1e-14)
    assert projection.dtype == residual.dtype == np.float64


def test_parts_have_the_tree_of_the_vector():
    matrix = cases.random_array((4, 2), float, 1)

    def mv(x):
        out = matrix @ x
        return {"first": out[:1], "rest": (out[1:],)}

    operator = lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct((2,), float))
    b = cases.random_array((4,), float, 2)
    vector = {"first": jnp.asarray(b[:1]), "rest": (jnp.asarray(b[1:]),)}
    projection, residual = pj.project(operator, vector, throw=False)
    want = matrix @ np.linalg.pinv(matrix) @ b
    np.testing.assert_allclose(projection["first"], want[:1], rtol=1e-12)
    np.testing.assert_allclose(projection["rest"][0], want[1:], rtol=1e-12)
    np.testing.assert_allclose(residual["rest"][0], (b - want)[1:], rtol=1e-12)


def test_state_is_used_again():
    a = lx.MatrixLinearOperator(jnp.asarray(cases.random_array((4, 2), float, 1)))
    other = lx.MatrixLinearOperator(jnp.full((4, 2), jnp.nan))
    b, solver = cases.random_array((4,), float, 2), pj.QR()

    @jax.jit
    def residuals(a, other, b):
        with_state = pj.project(other, b, solver, state=solver.init(a, {}), throw=False)
        return with_state.residual, pj.project(a, b, solver, throw=False).residual

    np.testing.assert_allclose(*residuals(a, other, b), rtol=1e-13)


@pytest.mark.parametrize("sizes", [(3, 3), (5, 3), (3, 5)])
def test_range_of_an_identity_between_spaces_is_its_leading_entries(sizes):
    rows, cols = sizes
    structs = [jax.ShapeDtypeStruct((size,), np.dtype(float)) for size in (cols, rows)]
    operator = lx.IdentityLinearOperator(*structs)
    b = np.arange(1.0, rows + 1)
    projection, residual = pj.project(operator, b)
    kept = np.arange(rows) < cols
    np.testing.assert_array_equal(projection, np.where(kept, b, 0))
    np.testing.assert_array_equal(residual, np.where(kept, 0, b))


_FAILING = {
    "qr-tall": (np.ones((3, 2)), pj.QR()),
    "qr-wide": (np.ones((2, 3)), pj.QR()),
    "qr-square": (np.ones((2, 2)), pj.QR()),
    "lineax-lu": (np.zeros((2, 2)), lx.LU()),
    "svd": (np.full((3, 2), np.nan), pj.SVD()),
}


@pytest.mark.default("qr-wide", "svd", "lineax-lu")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("matrix", "solver"), _FAILING.values(), ids=_FAILING)
def test_failed_solve_gives_nan_without_throw(matrix, solver):
    b = np.arange(1.0, len(matrix) + 1)
    projection, residual = pj.project(matrix, b, solver, throw=False)
    assert np.isnan(np.concatenate([projection, residual])).all()


@pytest.mark.default("qr-wide", "svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("matrix", "solver"), _FAILING.values(), ids=_FAILING)
def test_failed_solve_raises(matrix, solver):
    with pytest.raises(eqx.EquinoxRuntimeError, match="(?i)singular|rank|non-finite"):
        pj.project(matrix, np.arange(1.0, len(matrix) + 1), solver)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["qr-tall", "qr-wide"])
def test_gradient_of_a_failed_solve_is_nan_without_throw(name):
    matrix, solver = _FAILING[name]
    loss = lambda b: jnp.sum(pj.project(matrix, b, solver, throw=False).projection)
    assert np.isnan(jit(jax.grad(loss))(np.ones(len(matrix)))).all()


def test_non_finite_vector_gives_nan_in_its_own_member_only():
    a = cases.random_array((3, 2), float, 1)
    b = np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])
    out = jit(jax.vmap(lambda b: pj.project(a, b, pj.SVD(), throw=False)))(b)
    np.testing.assert_array_equal(np.isnan(out.projection).all(axis=1), [False, True])
    np.testing.assert_array_equal(np.isnan(out.residual).any(axis=1), [False, True])


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        (([[1.0]], np.ones(1)), {}, TypeError, r"project\(operator=...\)` got a list"),
        ((np.ones((3, 2)), np.ones(2)), {}, ValueError, "`project` got a vector"),
        ((np.ones((3, 2)), np.ones(3), "qr"), {}, TypeError, r"project\(solver=...\)`"),
        ((np.ones((3, 2)), np.ones(3)), {"options": {"y": 0}}, ValueError, "unknown"),
    ],
)
def test_mistake_raises(args, kwargs, error, match):
    with pytest.raises(error, match=match):
        pj.project(*args, **kwargs)
