"""Programs go to a file by `jax.export`, and come back with values and derivatives."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sps
from exported_cases import CASES, MATRIX, VECTOR

import pseudojvp as pj


_ARGUMENTS = jnp.asarray(MATRIX), jnp.asarray(VECTOR)


def _back(function, *arguments, unchecked=(), **options):
    """`function` of a program that was serialised."""
    checks = [jax.export.DisabledSafetyCheck.custom_call(call) for call in unchecked]
    exported = jax.export.export(jax.jit(function), disabled_checks=checks)(*arguments)
    return jax.export.deserialize(exported.serialize(**options)).call


@pytest.mark.default("LU", "QR", "CG")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", CASES)
def test_exported_solve_has_the_value_and_the_gradient(name):
    case = CASES[name]
    program = jax.value_and_grad(case.value, (0, 1))
    got = _back(program, *_ARGUMENTS, unchecked=case.unchecked)(*_ARGUMENTS)
    for value, want in zip(
        jax.tree.leaves(got), jax.tree.leaves(case.truth()), strict=True
    ):
        np.testing.assert_allclose(value, want, rtol=1e-9, atol=1e-11)


@pytest.mark.default("QR")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].unchecked])
def test_calls_that_jax_does_not_promise_to_keep_have_to_be_named(name):
    with pytest.raises(ValueError, match="no compatibility guarantees"):
        _back(CASES[name].value, *_ARGUMENTS)


def test_exported_solve_is_differentiated_after_it_came_back():
    case = CASES["LU"]
    back = _back(case.value, *_ARGUMENTS, vjp_order=1)
    got = jax.jit(jax.grad(back, (0, 1)))(*_ARGUMENTS)
    for value, want in zip(got, case.truth()[1], strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-9)


def test_one_program_is_exported_for_all_platforms():
    program = jax.jit(jax.value_and_grad(CASES["SVD"].value, (0, 1)))
    exported = jax.export.export(program, platforms=["cpu", "cuda", "tpu"])(*_ARGUMENTS)
    value, _ = jax.export.deserialize(exported.serialize()).call(*_ARGUMENTS)
    np.testing.assert_allclose(value, CASES["SVD"].truth()[0], rtol=1e-9)


_POINTS = np.linspace(0.0, 3.0, 12)
_THETA, _C = np.array([0.5, 2.0]), np.array([1.0, 3.0])


def _basis(theta, points):
    return jnp.exp(-points[:, None] * theta[None, :])


def _fit(data, **options):
    points, start = jnp.asarray(_POINTS), jnp.array([0.4, 2.5])
    return pj.varpro(_basis, data, start, points, solver=pj.SVD(), **options).theta


@pytest.mark.slow  # two seconds
def test_exported_fit_has_the_value_and_the_gradient():
    phi = np.exp(-np.outer(_POINTS, _THETA))
    data = jnp.asarray(phi @ _C)
    tangent = jax.jacfwd(lambda data: _fit(data, throw=False, x_scale=1.0))
    program = lambda data: (_fit(data, throw=False), tangent(data))
    theta, derivative = _back(program, data)(data)
    np.testing.assert_allclose(theta, _THETA, rtol=1e-8)
    # Of exact data, the Gauss-Newton step of the full problem.
    full = np.concatenate([-_POINTS[:, None] * phi * _C, phi], axis=1)
    np.testing.assert_allclose(derivative, np.linalg.pinv(full)[:2], rtol=1e-5)


_PATTERN = sps.csr_array(MATRIX)


def _damped(damp):
    return jnp.sum(pj.sparse_lstsq(_PATTERN, _ARGUMENTS[1], damp=damp))


_THROWING = {
    "linear_solve": lambda: CASES["LU"].value(*_ARGUMENTS, throw=True),
    "gradient": lambda: jax.grad(CASES["CG"].value)(*_ARGUMENTS, throw=True),
    "lstsq": lambda: pj.lstsq(*_ARGUMENTS),
    "varpro": lambda: _fit(jnp.asarray(_POINTS)),
    "sparse_solve": lambda: pj.sparse_solve(_PATTERN, _ARGUMENTS[1]),
    "sparse_lstsq(damp)": lambda: jax.grad(_damped)(jnp.ones(())),
}


@pytest.mark.untyped
@pytest.mark.parametrize("name", _THROWING)
def test_program_that_raises_cannot_be_exported_and_says_so(name):
    with pytest.raises(NotImplementedError, match="Pass `throw=False`"):
        _back(_THROWING[name])


@pytest.mark.untyped
def test_sparse_lu_cannot_be_exported_and_says_so():
    solve = lambda b: pj.sparse_solve(_PATTERN, b, pj.SparseLU(), throw=False)
    with pytest.raises(NotImplementedError, match="cannot serialise it"):
        _back(solve, _ARGUMENTS[1])


def test_program_that_raises_is_compiled_as_before():
    solve = jax.jit(lambda a, b: pj.linear_solve(a, b).value)
    np.testing.assert_allclose(
        solve(*_ARGUMENTS), np.linalg.solve(MATRIX, VECTOR), rtol=1e-12
    )


def test_unusable_scale_of_a_traced_fit_is_told_by_its_result():
    fit = jax.jit(lambda data, scale: _fit(data, throw=False, x_scale=scale))
    assert np.isnan(fit(jnp.asarray(_POINTS), -1.0)).all()
