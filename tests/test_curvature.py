"""`hessian_operator` and `gauss_newton_operator` beside the matrices that JAX makes."""

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


_RNG = np.random.default_rng(0)
_INPUTS = _RNG.standard_normal((9, 3))
_TARGETS = _RNG.standard_normal(9)
_X = {"a": jnp.asarray(_RNG.standard_normal((3, 2))), "b": (jnp.array([0.3, -0.2]),)}
_FLAT, _unravel = jfu.ravel_pytree(_X)
_VECTOR = jnp.asarray(_RNG.standard_normal(_FLAT.size))
_PSD = lx.positive_semidefinite_tag


def _model(x):
    hidden = jnp.tanh(_INPUTS @ x["a"])
    return {"y": hidden @ x["b"][0]}


def _loss(z):
    return jnp.sum(jnp.logaddexp(0.0, z["y"]) - _TARGETS * z["y"])


def _fn(x, ridge=0.1):
    flat, _ = jfu.ravel_pytree(x)
    return _loss(_model(x)) + ridge * jnp.sum(flat**2)


def _dense_hessian(flat, ridge=0.1):
    return jax.hessian(lambda flat: _fn(_unravel(flat), ridge))(flat)


def _dense_gauss_newton(flat):
    jacobian = jax.jacobian(lambda flat: _model(_unravel(flat))["y"])(flat)
    hessian = jax.hessian(lambda y: _loss({"y": y}))(_model(_unravel(flat))["y"])
    return jacobian.T @ hessian @ jacobian


_OPERATORS = {
    "hessian": (lambda **options: pj.hessian_operator(_fn, _X, **options), 0),
    "gauss_newton": (
        lambda **options: pj.gauss_newton_operator(_model, _loss, _X, **options),
        1,
    ),
}
_each_operator = pytest.mark.parametrize("name", _OPERATORS)


def _dense(name):
    return np.asarray([_dense_hessian, _dense_gauss_newton][_OPERATORS[name][1]](_FLAT))


@pytest.mark.ci("*")
@_each_operator
def test_products_matrix_and_transpose_are_those_of_the_dense_one(name):
    operator, dense = _OPERATORS[name][0](damping=0.5), _dense(name)
    dense = dense + 0.5 * np.eye(len(dense))
    product, _ = jfu.ravel_pytree(jit(lambda v: operator.mv(v))(_unravel(_VECTOR)))
    np.testing.assert_allclose(product, dense @ _VECTOR, rtol=1e-12, atol=1e-12)
    turned, _ = jfu.ravel_pytree(operator.transpose().mv(_unravel(_VECTOR)))
    np.testing.assert_allclose(turned, dense @ _VECTOR, rtol=1e-12, atol=1e-12)
    assert operator.in_structure() == jax.eval_shape(lambda: _X)
    np.testing.assert_allclose(operator.as_matrix(), dense, rtol=1e-12, atol=1e-12)


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("hessian", pj.MINRES(1e-13)),
        ("hessian", pj.LSMR(1e-13)),
        ("hessian", pj.LU()),
        ("gauss_newton", pj.CG(1e-13, 0.0)),
        ("gauss_newton", pj.Cholesky()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_inverse_products_are_those_of_the_dense_one(name, solver):
    operator, dense = _OPERATORS[name][0](damping=0.5), _dense(name)
    solve = jit(lambda v: pj.linear_solve(operator, _unravel(v), solver).value)
    value, _ = jfu.ravel_pytree(solve(_VECTOR))
    want = np.linalg.solve(dense + 0.5 * np.eye(len(dense)), _VECTOR)
    np.testing.assert_allclose(value, want, rtol=1e-9, atol=1e-10)


def test_inverse_product_of_a_singular_gauss_newton_matrix_is_the_shortest():
    operator = pj.gauss_newton_operator(_model, _loss, _X)
    value = pj.linear_solve(operator, _unravel(_VECTOR), pj.PivotedQR()).value
    want = np.linalg.pinv(_dense_gauss_newton(_FLAT), rcond=1e-12) @ _VECTOR
    np.testing.assert_allclose(jfu.ravel_pytree(value)[0], want, rtol=1e-7)


@pytest.mark.slow  # three seconds of compiling
def test_derivatives_reach_point_damping_and_what_the_function_closes_over():
    def solve(flat, ridge, damping):
        operator = pj.hessian_operator(
            lambda x: _fn(x, ridge), _unravel(flat), damping=damping
        )
        value = pj.linear_solve(operator, _unravel(_VECTOR), pj.LU()).value
        return jnp.sum(jfu.ravel_pytree(value)[0] ** 2)

    def truth(flat, ridge, damping):
        matrix = _dense_hessian(flat, ridge) + damping * jnp.eye(flat.size)
        return jnp.sum(jnp.linalg.solve(matrix, _VECTOR) ** 2)

    point = _FLAT, jnp.array(0.2), jnp.array(0.7)
    got = jit(jax.grad(solve, (0, 1, 2)))(*point)
    for value, want in zip(got, jax.grad(truth, (0, 1, 2))(*point), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-9)
    second = jit(jax.grad(jax.grad(solve, 1), 2))(*point)
    want = jax.grad(jax.grad(truth, 1), 2)(*point)
    np.testing.assert_allclose(second, want, rtol=1e-9)


@pytest.mark.slow
def test_batch_of_points():
    points = jnp.stack([_FLAT, 0.5 * _FLAT])

    def product(flat):
        operator = pj.gauss_newton_operator(_model, _loss, _unravel(flat), damping=0.1)
        value = pj.linear_solve(operator, _unravel(_VECTOR), pj.CG(1e-12, 0.0)).value
        return jfu.ravel_pytree(value)[0]

    for value, flat in zip(jit(jax.vmap(product))(points), points, strict=True):
        matrix = _dense_gauss_newton(flat) + 0.1 * np.eye(_FLAT.size)
        np.testing.assert_allclose(value, np.linalg.solve(matrix, _VECTOR), rtol=1e-7)


def test_tags():
    assert lx.is_symmetric(pj.hessian_operator(_fn, _X))
    assert not lx.is_positive_semidefinite(pj.hessian_operator(_fn, _X))
    tagged = pj.hessian_operator(_fn, _X, tags=_PSD, damping=1.0)
    assert lx.is_positive_semidefinite(tagged)
    assert lx.is_symmetric(tagged)
    assert lx.is_positive_semidefinite(pj.gauss_newton_operator(_model, _loss, _X))


def test_hessian_that_is_indefinite_is_told_by_cg():
    saddle = lambda x: jnp.sum(jnp.array([1.0, -2.0]) * x**2)
    operator = pj.hessian_operator(saddle, jnp.ones(2), tags=_PSD)
    solution = pj.linear_solve(operator, jnp.ones(2), pj.CG(), throw=False)
    assert solution.result == lx.RESULTS.breakdown


_MLP = eqx.nn.MLP(2, "scalar", 3, 1, key=jax.random.key(0))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pj.hessian_operator(lambda x: x, jnp.ones(2)), ValueError, "scalar"),
        (lambda: pj.hessian_operator(lambda x: 1j * x, 1.0), ValueError, "real scalar"),
        (lambda: pj.hessian_operator(jnp.sum, jnp.ones(2, complex)), TypeError, "real"),
        (lambda: pj.hessian_operator(jnp.sum, jnp.ones(2, int)), TypeError, "floating"),
        (lambda: pj.hessian_operator(lambda _: 0.0, _MLP), TypeError, "partition"),
        (lambda: pj.hessian_operator(lambda _: 0.0, ()), ValueError, "without arrays"),
        (
            lambda: pj.hessian_operator(jnp.sum, jnp.ones(2), damping=jnp.ones(2)),
            ValueError,
            r"damping=.*real scalar",
        ),
        (
            lambda: pj.gauss_newton_operator(jnp.sin, jnp.cos, jnp.ones(2)),
            ValueError,
            r"gauss_newton_operator\(loss=.*scalar",
        ),
        (
            lambda: pj.gauss_newton_operator(
                lambda x: (x, jnp.arange(2)), lambda z: jnp.sum(z[0]), jnp.ones(2)
            ),
            TypeError,
            r"gauss_newton_operator\(model=.*among the predictions",
        ),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_matrix_of_many_predictions_is_made_without_the_hessian_of_the_loss():
    inputs = jnp.ones((3000, 2))
    model = lambda x: inputs @ x
    loss = lambda z: jnp.sum(z**2)
    operator = pj.gauss_newton_operator(model, loss, jnp.ones(2))
    made = jax.make_jaxpr(lambda: operator.as_matrix())()
    sizes = [np.prod(v.aval.shape) for e in made.jaxpr.eqns for v in e.outvars]
    assert max(sizes) <= 2 * 3000
    np.testing.assert_allclose(operator.as_matrix(), 6000.0 * np.ones((2, 2)))


@pytest.mark.untyped
def test_a_function_has_to_be_one():
    with pytest.raises(TypeError, match="Pass a function"):
        pj.hessian_operator(3, jnp.ones(2))
