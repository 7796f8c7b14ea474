"""`projected_residual`: (I − A A†) b, its Jacobians, and optimisers that use it."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize as spo
import varpro_cases as cases
from checks import assert_close, jit
from truth import central_difference

import pseudojvp as pj


# Duplicated on purpose: rank 3 of 4 for every θ.
def deficient_basis(theta, points):
    phi = cases.basis(theta, points)
    return jnp.concatenate([phi, phi[:, :1]], axis=1)


DATA = cases.columns(2)
WEIGHTS = np.stack([cases.WEIGHTS, cases.WEIGHTS[::-1]], axis=1)
SETTINGS = {
    "plain": (cases.basis, cases.DATA, None, None),
    "weighted": (cases.basis, cases.DATA, WEIGHTS[:, 0], None),
    "offset": (cases.basis, cases.DATA, WEIGHTS[:, 0], cases.offset),
    "columns-share-weights": (cases.basis, DATA, WEIGHTS[:, 0], cases.offset),
    "many-columns": (cases.basis, cases.columns(20), WEIGHTS[:, 0], cases.offset),
    "columns-have-weights": (cases.basis, DATA, WEIGHTS, cases.offset),
    "deficient": (deficient_basis, cases.DATA, WEIGHTS[:, 0], None),
    "deficient-columns-have-weights": (deficient_basis, DATA, WEIGHTS, None),
}


def jacobian_of(function):
    return jit(lambda *inputs: function.jacobian(*inputs))


def unravel(flat):
    return {"rate": flat[0], "width": flat[1:]}


POINT = np.array([1.1, 0.5])


def dense(setting, flat):
    """r and c by dense pseudoinverses, column by column."""
    basis, data, weights, offset = SETTINGS[setting]
    theta = unravel(jnp.asarray(flat))
    phi = np.asarray(basis(theta, cases.POINTS))
    b = np.asarray(data) if data.ndim == 2 else np.asarray(data)[:, None]
    if offset is not None:
        b = b - np.asarray(offset(theta, cases.POINTS))[:, None]
    w = np.ones(b.shape) if weights is None else weights
    w = w if w.ndim == 2 else np.repeat(w[:, None], b.shape[1], 1)
    pairs = [(w[:, j, None] * phi, w[:, j] * b[:, j]) for j in range(b.shape[1])]
    c = [np.linalg.pinv(a, rcond=1e-10) @ b for a, b in pairs]
    r = [b - a @ c for (a, b), c in zip(pairs, c, strict=True)]
    shaped = lambda columns: np.stack(columns, -1) if data.ndim == 2 else columns[0]
    return shaped(r), shaped(c)


def slow_if_covered(setting):
    """Settings whose parts are in others."""
    covered = setting != "columns-have-weights"
    return pytest.param(setting, marks=pytest.mark.slow if covered else ())


@pytest.fixture(scope="module", params=map(slow_if_covered, SETTINGS))
def evaluated(request):
    """Residual, coefficients and both Jacobians of one setting."""
    basis, data, weights, offset = SETTINGS[request.param]

    def evaluate(theta, points):
        of = lambda jacobian: pj.projected_residual(
            basis, data, weights=weights, offset=offset, jacobian=jacobian
        )
        exact, kaufman = of("exact"), of("kaufman")
        return (
            exact(theta, points),
            exact.coefficients(theta, points),
            exact.jacobian(theta, points),
            kaufman.jacobian(theta, points),
        )

    theta = unravel(jnp.asarray(POINT))
    return request.param, jit(evaluate)(theta, cases.POINTS)


@pytest.mark.slow  # two seconds
def test_residual_and_coefficients_are_those_of_the_dense_pseudoinverse(evaluated):
    setting, (residual, coefficients, *_) = evaluated
    want = dense(setting, POINT)
    assert_close(residual, want[0], 1e-12)
    assert_close(coefficients, want[1], 1e-12)


def test_residual_of_more_columns_than_rows_is_that_of_the_dense_pseudoinverse():
    basis, data, weights, offset = SETTINGS["many-columns"]
    residual = pj.projected_residual(basis, data, weights=weights, offset=offset)
    parts = jit(lambda *inputs: (residual(*inputs), residual.coefficients(*inputs)))
    got = parts(unravel(jnp.asarray(POINT)), cases.POINTS)
    for part, want in zip(got, dense("many-columns", POINT), strict=True):
        assert_close(part, want, 1e-12)


def test_residual_of_many_columns_is_that_of_an_operator_too():
    """It has no columns to be multiplied by."""
    basis, data, weights, offset = SETTINGS["many-columns"]

    def operator(theta, points):
        return lx.MatrixLinearOperator(basis(theta, points))

    residual = pj.projected_residual(operator, data, weights=weights, offset=offset)
    got = jit(residual)(unravel(jnp.asarray(POINT)), cases.POINTS)
    assert_close(got, dense("many-columns", POINT)[0], 1e-12)


@pytest.mark.slow  # a second
def test_exact_jacobian_is_the_difference_of_the_dense_residual(evaluated):
    setting, (*_, jacobian, _) = evaluated
    for index in range(cases.SIZE):
        unit = np.eye(cases.SIZE)[index]
        want = central_difference(lambda t, u=unit: dense(setting, POINT + t * u)[0], 1)
        assert_close(jacobian[..., index], want, 1e-9)


def test_both_jacobians_have_the_same_gradient(evaluated):
    _, (residual, _, exact, kaufman) = evaluated
    gradients = [jnp.tensordot(residual, j, residual.ndim) for j in (exact, kaufman)]
    assert_close(gradients[1], gradients[0], 1e-12)


def test_kaufman_jacobian_is_the_exact_one_less_its_part_in_the_range(evaluated):
    setting, (*_, exact, kaufman) = evaluated
    basis, data, weights, _ = SETTINGS[setting]
    phi = np.asarray(basis(unravel(jnp.asarray(POINT)), cases.POINTS))
    weights = np.ones(16) if weights is None else weights
    shape = (16, data[0].size)
    weights = np.broadcast_to(weights.reshape(16, -1), shape)
    for j, w in enumerate(weights.T):
        a = w[:, None] * phi
        projector = np.eye(16) - a @ np.linalg.pinv(a, rcond=1e-10)
        of_column = [x.reshape(*shape, cases.SIZE)[:, j] for x in (exact, kaufman)]
        assert_close(of_column[1], projector @ of_column[0], 1e-12)
        assert np.abs(of_column[1] - of_column[0]).max() > 1e-3


def test_complex_jacobian_is_the_difference_of_the_dense_residual():
    point = np.asarray(cases.COMPLEX_START)

    def residual(flat):
        a = np.asarray(cases.complex_basis(flat, cases.POINTS))
        b = np.asarray(cases.COMPLEX_DATA)
        return b - a @ (np.linalg.pinv(a) @ b)

    function = pj.projected_residual(cases.complex_basis, cases.COMPLEX_DATA)
    jacobian = jacobian_of(function)(cases.COMPLEX_START, cases.POINTS)
    for index, unit in enumerate(np.eye(4)):
        want = central_difference(lambda t, u=unit: residual(point + t * u), 1)
        assert_close(jacobian[:, index], want, 1e-9)


@pytest.mark.slow  # a second
def test_tangents_are_columns_of_the_jacobian():
    function = pj.projected_residual(cases.basis, cases.DATA)
    theta = unravel(jnp.asarray(POINT))
    both = lambda theta: (
        function.jacobian(theta, cases.POINTS),
        jax.jacfwd(lambda theta: function(theta, cases.POINTS))(theta),
        jax.jacrev(lambda theta: function(theta, cases.POINTS))(theta),
    )
    jacobian, forward, reverse = jit(both)(theta)
    for tree in (forward, reverse):
        columns = jnp.concatenate([tree["rate"][:, None], tree["width"]], axis=1)
        assert_close(columns, jacobian, 1e-12)


@pytest.mark.slow  # one more program
def test_tangents_of_args_and_of_data_are_exact_in_the_kaufman_residual():
    theta = unravel(jnp.asarray(POINT))
    basis, data = cases.basis, cases.DATA

    def residual(t):
        function = pj.projected_residual(basis, data * (1 + t), jacobian="kaufman")
        return function(theta, cases.POINTS * (1 + t))

    def dense_residual(t):
        a = np.asarray(basis(theta, cases.POINTS * (1 + t)))
        b = np.asarray(data) * (1 + t)
        return b - a @ (np.linalg.pinv(a) @ b)

    got = jit(lambda: jax.jvp(residual, (0.0,), (1.0,))[1])()
    assert_close(got, central_difference(dense_residual, 1), 1e-9)


@pytest.mark.slow  # one more program
def test_reverse_of_the_residual_is_exact():
    """Coefficients unused: the transpose of a solve whose other outputs do not matter."""
    theta = unravel(jnp.asarray(POINT))
    function = pj.projected_residual(cases.basis, cases.DATA)

    def scaled(t):
        return function(theta, cases.POINTS * (1 + t))

    def dense_residual(t):
        a = np.asarray(cases.basis(theta, cases.POINTS * (1 + t)))
        b = np.asarray(cases.DATA)
        return b - a @ (np.linalg.pinv(a) @ b)

    assert_close(
        jit(jax.jacrev(scaled))(0.0), central_difference(dense_residual, 1), 1e-9
    )


@pytest.mark.slow  # one more program
def test_residual_has_the_derivative_of_what_the_basis_closes_over():
    theta = unravel(jnp.asarray(POINT))

    def closing(t):
        basis = lambda theta, points: cases.basis(theta, points * (1 + t))
        return pj.projected_residual(basis, cases.DATA)(theta, cases.POINTS)

    def dense_residual(t):
        a = np.asarray(cases.basis(theta, cases.POINTS * (1 + t)))
        b = np.asarray(cases.DATA)
        return b - a @ (np.linalg.pinv(a) @ b)

    got = jit(jax.jacfwd(closing))(0.0)
    assert_close(got, central_difference(dense_residual, 1), 1e-9)


@jit
def residual_of(data, theta, points):
    return pj.projected_residual(cases.basis, data)(theta, points)


@pytest.mark.parametrize("bad", ["data", "basis"])
def test_residual_is_nan_and_never_raises(bad):
    poison = jnp.where(jnp.arange(16) == 3, jnp.nan, 1.0)
    data = cases.DATA * (poison if bad == "data" else 1.0)
    points = cases.POINTS * (poison if bad == "basis" else 1.0)
    assert np.isnan(residual_of(data, cases.START, points)).all()


@pytest.fixture(scope="module")
def truth():
    inputs = cases.DATA, jnp.ones(16), cases.POINTS
    return cases.FullProblem().solve(np.array([0.8, 0.4, 2.0, 1.0, 0.3]), *inputs)


@pytest.mark.slow  # three more programs
def test_scipy_reaches_the_solution_with_residual_and_jacobian(truth):
    function = pj.projected_residual(cases.basis, cases.DATA)
    residual = jit(lambda flat: function(unravel(flat), cases.POINTS))
    jacobian = jit(lambda flat: function.jacobian(unravel(flat), cases.POINTS))
    found = spo.least_squares(
        lambda flat: np.asarray(residual(flat)),
        [1.2, 0.6],
        jac=lambda flat: np.asarray(jacobian(flat)),
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    assert_close(found.x, truth[:2], 1e-7)  # √eps: ftol compares sums of squares
    coefficients = jit(lambda flat: function.coefficients(unravel(flat), cases.POINTS))(
        found.x
    )
    assert_close(coefficients, truth[2:], 1e-7)


@pytest.mark.slow  # the loop of an optimiser
def test_optimistix_reaches_the_solution_with_the_residual(truth):
    function = pj.projected_residual(cases.basis, cases.DATA)
    optimiser = optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
    found = optx.least_squares(function, optimiser, cases.START, cases.POINTS)
    assert_close(cases.raveled(found.value), truth[:2], 1e-7)  # √eps, as above


@pytest.mark.parametrize("jacobian", ["exact", "kaufman"])
@pytest.mark.slow  # a second program for each operator
def test_operator_and_array_have_the_same_jacobian(jacobian):
    def operator(theta, points):
        return lx.MatrixLinearOperator(cases.basis(theta, points))

    got, want = (
        jacobian_of(
            pj.projected_residual(basis, DATA, weights=WEIGHTS, jacobian=jacobian)
        )(cases.START, cases.POINTS)
        for basis in (operator, cases.basis)
    )
    assert_close(got, want, 1e-12)


@pytest.mark.slow  # two seconds
def test_jit_takes_the_function_and_its_methods():
    """As of a plain function: a module with arrays would have no hash."""
    residual = pj.projected_residual(cases.basis, cases.DATA)
    functions = residual, residual.coefficients, residual.jacobian
    theta = unravel(jnp.asarray(POINT))
    *got, jacobian = (jax.jit(f)(theta, cases.POINTS) for f in functions)
    for value, want in zip(got, dense("plain", POINT), strict=True):
        assert_close(value, want, 1e-12)
    first = central_difference(lambda t: dense("plain", POINT + t * np.eye(2)[0])[0], 1)
    assert_close(jacobian[:, 0], first, 1e-9)
