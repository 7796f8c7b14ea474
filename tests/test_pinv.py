"""`pinv`: values beside NumPy and `jax.numpy`, derivatives against Taylor arithmetic."""

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from checks import assert_close, derivatives, jit
from paths import Path

import pseudojvp as pj


SHAPES = {
    "tall": ((6, 3), 3),
    "wide": ((3, 6), 3),
    "square": ((3, 3), 3),
    "tall-deficient": ((6, 4), 2),
    "wide-deficient": ((4, 6), 2),
    "row": ((1, 3), 1),
}
each_kind = pytest.mark.parametrize("kind", SHAPES)


@pytest.mark.default("complex64-wide-deficient")
@pytest.mark.ci("float64-tall", "*-tall-deficient", "*-square")
@each_kind
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_agrees_with_numpy(kind, dtype):
    shape, rank = SHAPES[kind]
    a = cases.conditioned(shape, np.linspace(1, 2, rank), np.dtype(dtype), 0)
    got = pj.pinv(a, throw=False)
    tolerance = 10 * cases.TOLERANCE[np.dtype(dtype)]
    np.testing.assert_allclose(got, np.linalg.pinv(a, rcond=1e-5), atol=tolerance)
    assert got.dtype == dtype


@pytest.mark.default(
    "shape0-int32", "shape1-bool", "shape2-complex128", "shape3-int64", "shape4-float32"
)
@pytest.mark.ci("shape1-*")
@pytest.mark.parametrize("dtype", ["int32", "int64", "bool", "float32", "complex128"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 3), (0, 2, 3), (2, 3, 0), (0, 0)])
def test_shapes_and_dtypes_are_those_of_jax_numpy(shape, dtype):
    struct = jax.ShapeDtypeStruct(shape, dtype)
    got, want = jax.eval_shape(pj.pinv, struct), jax.eval_shape(jnp.linalg.pinv, struct)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)


def test_batch_agrees_with_numpy():
    a = cases.random_array((2, 3, 4, 2), complex, 1)
    np.testing.assert_allclose(pj.pinv(a, throw=False), np.linalg.pinv(a), atol=1e-12)


def test_rcond_drops_small_singular_values():
    a = cases.conditioned((6, 3), [1.0, 0.5, 1e-9], float, 0)
    # Pivoting drops a direction that is off by about 1e-9 / 0.5.
    got = pj.pinv(a, np.array(1e-6), throw=False)
    np.testing.assert_allclose(got, np.linalg.pinv(a, 1e-6), atol=1e-7)


@pytest.mark.default("0.001-1")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("rcond", "rank"), [(None, 2), (-1, 3), (1e-3, 1)])
def test_rcond_is_relative_to_the_largest_singular_value(rcond, rank):
    entries = np.array([1.0, 10, 3]) * [1, *[np.finfo(float).eps] * 2]
    a = np.zeros((6, 3))
    np.fill_diagonal(a, entries)
    rcond = None if rcond is None else np.array(rcond)
    kept = np.count_nonzero(np.diagonal(pj.pinv(a, rcond, throw=False)))
    assert kept == rank


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (3, 0, 2)])
def test_empty_matrix_has_an_empty_pseudoinverse(shape):
    assert pj.pinv(np.zeros(shape)).shape == (*shape[:-2], shape[-1], shape[-2])


def test_zero_matrix_is_its_own_pseudoinverse():
    got = pj.pinv(np.zeros((6, 3)), np.array(1e-6), throw=False)
    np.testing.assert_array_equal(got, np.zeros((3, 6)))


def path(kind, dtype):
    (rows, cols), rank = SHAPES[kind]
    left = 0.2 * cases.random_array((4, rows, rank), dtype, 1)
    left[0] = cases.conditioned((rows, rank), np.linspace(1, 2, rank), dtype, 2)
    right = 0.2 * cases.random_array((4, rank, cols), dtype, 3)
    right[0] = cases.conditioned((rank, cols), np.linspace(1, 2, rank), dtype, 4)
    return Path(left, right, np.zeros((1, rows)))


def matrix_at(path, t):
    evaluate = lambda coefficients: sum(c * t**k for k, c in enumerate(coefficients))
    return evaluate(path.left) @ evaluate(path.right)


def derivatives_along(moving, order):
    """A† and its derivatives at 0, forward over forward."""
    inverse_at = lambda t: pj.pinv(matrix_at(moving, t), 1e-9, throw=False)
    return jit(derivatives(inverse_at, order))(0.0)


@pytest.mark.slow  # seven seconds of compiling each
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("tall-deficient", complex), ("wide-deficient", float), ("square", float)],
)
def test_first_and_second_derivatives_along_a_path(kind, dtype):
    moving = path(kind, dtype)
    series = truth.pseudoinverse_series(moving)
    got = derivatives_along(moving, 2)
    for value, factorial, want in zip(got, (1, 1, 2), series, strict=False):
        assert_close(value, factorial * want, 1e-11)


@pytest.mark.nightly  # half a minute of compiling each
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("tall-deficient", complex), ("wide-deficient", float), ("square", float)],
)
def test_third_derivative_along_a_path(kind, dtype):
    moving = path(kind, dtype)
    want = 6 * truth.pseudoinverse_series(moving)[3]
    assert_close(derivatives_along(moving, 3)[3], want, 1e-11)


@pytest.mark.slow  # nine seconds of compiling each
@pytest.mark.parametrize(
    ("kind", "dtype"), [("tall-deficient", float), ("wide-deficient", complex)]
)
def test_derivatives_in_reverse_along_a_path(kind, dtype):
    moving = path(kind, dtype)
    inverse_at = lambda t: pj.pinv(matrix_at(moving, t), 1e-9, throw=False)
    loss = lambda t: jnp.sum(jnp.abs(inverse_at(t)) ** 2)
    got = jit(jax.value_and_grad(jax.grad(loss)))(0.0)
    series = truth.pseudoinverse_series(moving)
    gram = truth.multiply(truth.adjoint(series), series)
    want = np.trace(gram, axis1=1, axis2=2).real
    np.testing.assert_allclose(got, [want[1], 2 * want[2]], rtol=1e-11)


@jit
def value_and_gradient(a):
    """Of the sum of the entries of each pseudoinverse of a batch."""
    loss = lambda a: jnp.sum(pj.pinv(a, throw=False), axis=(1, 2))
    value, pull_back = jax.vjp(loss, a)
    return value, pull_back(jnp.ones(len(a)))[0]


@pytest.mark.slow  # a second
def test_gradient_of_a_batch_is_that_of_each_member():
    a = cases.random_array((3, 4, 2), float, 1)
    _, gradient = value_and_gradient(a)
    ones = np.ones((2, 4))
    for member, got in zip(a, gradient, strict=True):
        # The adjoint of dA† = −A† dA A† + A† A†^T dA^T (I − A A†), at A of full rank.
        inverse = np.linalg.pinv(member)
        rest = np.eye(4) - member @ inverse
        want = -inverse.T @ ones @ inverse.T + rest @ ones.T @ inverse @ inverse.T
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_equal_singular_values_are_no_matter():
    tangent = cases.random_array((3, 3), float, 1)
    inverse = lambda a: pj.pinv(a, throw=False)
    got = jit(lambda a: jax.jvp(inverse, (a,), (tangent,))[1])(np.eye(3))
    np.testing.assert_allclose(got, -tangent, atol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.slow  # two seconds each
def test_non_finite_matrix_raises(bad):
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite|singular"):
        pj.pinv(np.array([[1.0, bad], [0.0, 1.0], [2.0, 0.0]]))


def test_one_bad_member_of_a_batch_spoils_only_itself():
    a = cases.random_array((3, 4, 2), float, 1)
    a[1, 0, 0] = np.inf
    value, gradient = map(np.asarray, value_and_gradient(a))
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_allclose(value[2], np.linalg.pinv(a[2]).sum(), rtol=1e-12)
    assert np.isnan(gradient[1]).all()
    assert np.isfinite(gradient[[0, 2]]).all()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        (([[1.0]],), TypeError, r"pinv\(a=...\)` got a list. Pass an array"),
        ((np.ones(3),), ValueError, r"got an array of shape \(3,\). Pass a matrix"),
        ((np.ones((3, 2)), "tiny"), TypeError, r"pinv\(rcond=...\)` got 'tiny'. Pass"),
        ((np.ones((3, 2)), 1j), TypeError, r"pinv\(rcond=...\)` got 1j. Pass a real"),
    ],
)
def test_mistake_raises(args, error, match):
    with pytest.raises(error, match=match):
        pj.pinv(*args)
