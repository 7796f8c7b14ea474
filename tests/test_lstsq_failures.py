"""`lstsq`: mistakes raise while JAX traces, failures raise or are NaN at run time."""

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pseudojvp as pj


A = np.array([[2.0, 1.0], [1.0, 3.0], [0.0, 1.0]])
B = np.array([1.0, 2.0, 3.0])
DEFICIENT = np.ones((3, 2))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        ((A.tolist(), B), {}, TypeError, r"lstsq\(a=...\)` got a list.*an array"),
        ((A, B.tolist()), {}, TypeError, r"lstsq\(b=...\)` got a list.*an array"),
        (("abc", B), {}, TypeError, r"lstsq\(a=...\)` got a str"),
        ((A[None], B), {}, ValueError, r"shape \(1, 3, 2\).*`jax.vmap`"),
        ((B, B), {}, ValueError, r"shape \(3,\). A matrix has shape"),
        ((A, B[:2]), {}, ValueError, r"shape \(2,\).*Pass `b` of shape \(3,\) or"),
        ((A, B[None, None]), {}, ValueError, r"shape \(1, 1, 3\).*Pass `b`"),
        ((A, np.array(1.0)), {}, ValueError, r"shape \(\).*Pass `b`"),
        ((A, B), {"solver": "qr"}, TypeError, r"solver=...\)` got 'qr'. Pass an inst"),
        ((A, B), {"solver": pj.QR}, TypeError, r"solver=...\)` got .*Pass an instance"),
        ((A, B, 0.1), {"solver": pj.QR()}, ValueError, "`QR`, which takes `a` to have f"),
        ((A, B, 0.1), {"solver": pj.LSMR()}, ValueError, "`LSMR`, which has no cutoff"),
        ((A, B, 0.1), {"solver": pj.SVD(0.2)}, ValueError, "its own. Drop one of"),
        ((A, B, "small"), {}, TypeError, "got 'small'. Pass a real number"),
        ((A, B, B), {}, TypeError, r"lstsq\(rcond=...\)` got .*Pass a real number"),
        ((A, B), {"weights": B[:2]}, ValueError, r"weights=...\)` got the shape \(2,\)"),
        (
            (A, B),
            {"weights": 2.0},
            ValueError,
            r"got the shape \(\). Pass the shape \(3,",
        ),
        ((A, B), {"weights": 1j * B}, TypeError, r"weights=...\)` got complex"),
        ((A, B), {"weights": "yes"}, TypeError, r"weights=...\)` got a str"),
        ((A, B), {"damp": 1j}, TypeError, r"damp=...\)` got a complex"),
        ((A, B), {"damp": jnp.array(1j)}, TypeError, r"damp=...\)` got complex"),
        ((A, B), {"damp": B}, ValueError, r"damp=...\)` got the shape \(3,\)"),
        ((A, B), {"damp": "0.1"}, TypeError, r"damp=...\)` got a str"),
    ],
)
def test_mistake_raises(args, kwargs, error, match):
    with pytest.raises(error, match=match):
        pj.lstsq(*args, **kwargs)


def spoilt(array, bad):
    copy = array.copy()
    copy[(1,) * array.ndim] = bad
    return copy


@pytest.mark.default("*-qr")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_raises(name, bad):
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite"):
        pj.lstsq(A, spoilt(B, bad), solver=cases.LSTSQ[name])
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite|singular"):
        pj.lstsq(spoilt(A, bad), B, solver=cases.LSTSQ[name])


def test_qr_of_a_deficient_matrix_raises():
    with pytest.raises(eqx.EquinoxRuntimeError, match="(?i)singular|rank"):
        pj.lstsq(DEFICIENT, B, solver=pj.QR())


@pytest.mark.default("*-svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_matrix_gives_nan_without_throw(name, bad):
    x, residuals, rank, s = pj.lstsq(
        spoilt(A, bad), B, solver=cases.LSTSQ[name], throw=False
    )
    assert np.isnan(np.concatenate([x, residuals, s])).all()
    assert rank == 0


@pytest.mark.default("svd")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_non_finite_vector_spoils_its_own_column_only(name):
    b = np.stack([B, spoilt(B, np.nan), B], axis=1)
    x, residuals, rank, s = pj.lstsq(A, b, solver=cases.LSTSQ[name], throw=False)
    np.testing.assert_array_equal(np.isnan(residuals), [False, True, False])
    assert np.isnan(x[:, 1]).all()
    want = np.linalg.lstsq(A, B, None)
    np.testing.assert_allclose(x[:, 2], want[0], rtol=1e-13)
    assert rank == 2
    np.testing.assert_allclose(s, want[3], rtol=1e-13)


def test_qr_of_a_deficient_matrix_gives_nan_without_throw():
    x, residuals, *_ = pj.lstsq(DEFICIENT, B, solver=pj.QR(), throw=False)
    assert np.isnan(np.concatenate([x, residuals])).all()


@pytest.mark.default("qr")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_one_bad_member_of_a_batch_spoils_only_itself(name):
    a = np.stack([A, spoilt(A, np.inf), A, A])
    b = np.stack([B, B, spoilt(B, np.nan), B])

    @jax.jit
    @jax.vmap
    def value_and_gradient(a, b):
        def loss(a, b):
            x, residuals, _, s = pj.lstsq(a, b, solver=cases.LSTSQ[name], throw=False)
            return jnp.sum(x) + residuals[0], s

        (value, s), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(a, b)
        return value, s, gradient

    value, s, gradient = value_and_gradient(a, b)
    grad_a, grad_b = map(np.asarray, gradient)
    x, residuals, _, want_s = np.linalg.lstsq(A, B, None)
    np.testing.assert_array_equal(np.isnan(value), [False, True, True, False])
    np.testing.assert_allclose(value[3], x.sum() + residuals[0], rtol=1e-13)
    np.testing.assert_array_equal(np.isnan(s[:, 0]), [False, True, False, False])
    np.testing.assert_allclose(s[2], want_s, rtol=1e-13)
    assert np.isnan(grad_a[1:3]).all()
    assert np.isnan(grad_b[1:3]).all()
    assert np.isfinite(grad_a[[0, 3]]).all()
    assert np.isfinite(grad_b[[0, 3]]).all()


@pytest.mark.parametrize("which", [0, 1], ids=["solution", "residuals"])
def test_tangent_of_a_failed_solve_is_nan_without_throw(which):
    def push_forward(a):
        solve = lambda a: pj.lstsq(a, B, solver=pj.QR(), throw=False)[which]
        return jax.jvp(solve, (a,), (np.ones_like(A),))[1]

    push_forward = jax.jit(push_forward)
    assert np.isnan(push_forward(DEFICIENT)).all()
    assert np.isfinite(push_forward(A)).all()


def test_gradient_of_a_failed_solve_raises_with_throw():
    loss = lambda a: jnp.sum(pj.lstsq(a, B, solver=pj.QR())[0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="(?i)singular|rank"):
        eqx.filter_jit(jax.grad(loss))(jnp.asarray(DEFICIENT))


@pytest.mark.parametrize("part", [0, 1])
def test_each_part_alone_tells_of_a_singular_square_matrix(part):
    def one(matrix, vector):
        return pj.lstsq(matrix, vector, solver=pj.QR())[part]

    with pytest.raises(Exception, match="reciprocal condition number"):
        jax.block_until_ready(jax.jit(one)(np.ones((3, 3)), np.ones(3)))
