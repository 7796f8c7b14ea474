"""`SparseLinearOperator`: derivatives of products and of solves, on the pattern."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import sparse_cases as cases
from checks import count_primitive, jit
from truth import pairing

import pseudojvp as pj


_each_case = pytest.mark.parametrize(
    "name", ["tall", "wide", "complex", "empty_rows", "long_rows", "no_entries"]
)


def _problem(name):
    data, row, col, shape = cases.CASES[name]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    vector = cases.random_array(shape[1], data.dtype, 3)
    t_data = cases.random_array(data.size, data.dtype, 4)
    t_vector = cases.random_array(shape[1], data.dtype, 5)
    covector = cases.random_array(shape[0], data.dtype, 6)
    return operator, (data, row, col, shape), vector, t_data, t_vector, covector


@_each_case
def test_jvp_of_product(name):
    operator, (data, *place), vector, t_data, t_vector, _ = _problem(name)
    mv = lambda data, vector: cases.with_data(operator, data).mv(vector)
    _, tangent = jit(lambda *args: jax.jvp(mv, args[:2], args[2:]))(
        data, vector, t_data, t_vector
    )
    want = cases.dense(t_data, *place) @ vector + cases.dense(data, *place) @ t_vector
    np.testing.assert_allclose(tangent, want, atol=1e-12)


@_each_case
def test_vjp_of_product_is_on_the_pattern_in_the_order_given(name):
    operator, (data, row, col, shape), vector, _, _, covector = _problem(name)
    mv = lambda data, vector: cases.with_data(operator, data).mv(vector)
    ct_data, ct_vector = jit(lambda ct, *args: jax.vjp(mv, *args)[1](ct))(
        covector, data, vector
    )
    np.testing.assert_allclose(ct_data, covector[row] * vector[col], atol=1e-12)
    want = cases.dense(data, row, col, shape).T @ covector
    np.testing.assert_allclose(ct_vector, want, atol=1e-12)


@_each_case
def test_vjp_of_product_with_the_transpose(name):
    operator, (data, row, col, shape), covector, _, _, vector = _problem(name)
    mv = lambda data, vector: cases.with_data(operator, data).T.mv(vector)
    ct_data, ct_vector = jit(lambda ct, *args: jax.vjp(mv, *args)[1](ct))(
        covector, data, vector
    )
    np.testing.assert_allclose(ct_data, vector[row] * covector[col], atol=1e-12)
    want = cases.dense(data, row, col, shape) @ covector
    np.testing.assert_allclose(ct_vector, want, atol=1e-12)


def test_cotangent_of_padding_is_zero():
    matrix, (_, row, col, shape) = cases.padded_bcoo()
    operator = pj.SparseLinearOperator(matrix)
    loss = lambda data: jnp.sum(cases.with_data(operator, data).mv(np.ones(3)))
    want = ((row < shape[0]) & (col < shape[1])).astype(float)
    np.testing.assert_array_equal(jax.grad(loss)(operator.data), want)


def test_gradient_of_a_bcoo_under_jit_is_that_of_its_data():
    matrix, (_, row, col, shape) = cases.padded_bcoo()
    weights = np.arange(1.0, 5.0)

    def loss(matrix):
        return jnp.sum(weights * pj.SparseLinearOperator(matrix).mv(np.arange(3.0)))

    ct_matrix = jit(jax.grad(loss, allow_int=True))(matrix)
    inside = row < shape[0]
    want = np.zeros(row.size)
    want[inside] = weights[row[inside]] * col[inside]
    np.testing.assert_allclose(ct_matrix.data, want, atol=1e-13)


@pytest.mark.parametrize("traced", [False, True])
def test_hessian_vector_product_and_its_adjoint(traced):
    data, row, col, shape = cases.CASES["tall"]
    weights = np.arange(1.0, 8.0)
    known = pj.SparseLinearOperator((data, row, col, shape)).sparsity

    def loss(data, vector, row, col):
        matrix = (data, row, col, shape) if traced else (data, known)
        return jnp.sum(weights * pj.SparseLinearOperator(matrix).mv(vector) ** 3)

    vector = cases.random_array(4, seed=3)
    t_data, t_vector = (
        cases.random_array(data.size, seed=4),
        cases.random_array(4, seed=5),
    )

    @jit
    def products(data, vector, t_data, t_vector, row, col):
        gradient = lambda *args: jax.grad(loss, (0, 1))(*args, row, col)
        primals, tangents = (data, vector), (t_data, t_vector)
        forward = jax.jvp(gradient, primals, tangents)[1]
        reverse = jax.vjp(gradient, *primals)[1](tangents)
        return forward, reverse

    # g(A, v) = 3 w (A v)², its cotangents g_row v_col and A^T g, moved by Ȧ and v̇.
    matrix, t_matrix = (cases.dense(each, row, col, shape) for each in (data, t_data))
    product, change = matrix @ vector, t_matrix @ vector + matrix @ t_vector
    g, t_g = 3 * weights * product**2, 6 * weights * product * change
    t_ct_data = t_g[row] * vector[col] + g[row] * t_vector[col]
    t_ct_vector = t_matrix.T @ g + matrix.T @ t_g
    for got in products(data, vector, t_data, t_vector, row, col):
        np.testing.assert_allclose(got[0], t_ct_data, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(got[1], t_ct_vector, rtol=1e-10, atol=1e-10)


def test_derivatives_of_every_order_stay_sorted_products():
    data, row, col, shape = cases.CASES["tall"]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    loss = lambda data, vector: jnp.sum(cases.with_data(operator, data).mv(vector) ** 3)

    def second(data, vector, *tangents):
        return jax.jvp(jax.grad(loss, (0, 1)), (data, vector), tangents)[1]

    vector = np.ones(4)
    jaxpr = jax.make_jaxpr(second)(data, vector, data, vector).jaxpr
    assert count_primitive("sparse_product", jaxpr) > 0
    assert count_primitive("scatter-add", jaxpr) == 0
    assert count_primitive("gather", jaxpr) == 0


def test_gradient_over_a_batch_of_vectors():
    operator, (data, row, col, shape), *_ = _problem("tall")
    vectors = cases.random_array((20, 4), seed=8)

    def loss(data):
        return jnp.sum(jax.vmap(cases.with_data(operator, data).mv)(vectors) ** 2)

    products = vectors @ cases.dense(data, row, col, shape).T
    want = np.sum(2 * products[:, row] * vectors[:, col], axis=0)
    np.testing.assert_allclose(jit(jax.grad(loss))(data), want, rtol=1e-11)


def test_gradient_through_a_batch_of_data():
    operator, (data, row, col, shape), vector, *_ = _problem("tall")
    batch = np.stack([data, 2 * data])

    def loss(batch):
        products = jax.vmap(lambda d: cases.with_data(operator, d).mv(vector))(batch)
        return jnp.sum(products**2)

    products = np.stack([cases.dense(d, row, col, shape) @ vector for d in batch])
    want = 2 * products[:, row] * vector[col]
    np.testing.assert_allclose(jit(jax.grad(loss))(batch), want, rtol=1e-11)


def test_real_data_with_a_complex_vector_have_a_real_cotangent():
    operator, (data, _, col, _), *_ = _problem("tall")
    vector = cases.random_array(4, complex, 3)
    loss = lambda data: jnp.sum(cases.with_data(operator, data).mv(vector).real)
    ct_data = jax.grad(loss)(jnp.asarray(data))
    np.testing.assert_allclose(ct_data, vector[col].real, atol=1e-13)


@pytest.mark.default("1")
@pytest.mark.ci("*")
@pytest.mark.optimised
@pytest.mark.parametrize("columns", [1, 24])
def test_memory_of_a_gradient_is_proportional_to_the_entries(columns):
    size, nse = 2000, 8000
    rng = np.random.default_rng(0)
    row, col = rng.integers(0, size, nse), rng.integers(0, size, nse)
    operator = pj.SparseLinearOperator((np.ones(nse), row, col, (size, size)))

    def loss(data, vectors, operator):
        operator = cases.with_data(operator, data)
        return jnp.sum(jax.vmap(operator.mv, 1, 1)(vectors) ** 2)

    vectors = np.ones((size, columns))
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    compiled = gradient.lower(operator.data, vectors, operator).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    # A few arrays like the arguments, and the block of the face `entries` (1 MB): neither
    # size² numbers, 32 MB, nor, beyond that block, nse numbers for each column.
    most = 8 * (4 * nse + 6 * size * columns) + (2_000_000 if columns > 1 else 0)
    assert temporary < most


_SOLVES = {
    "square": (cases.entries(5, 5, 16), pj.QR()),
    "tall": (cases.entries(7, 4, 18, seed=3), pj.QR()),
    "wide": (cases.entries(3, 6, 14, seed=3), pj.SVD()),
    "complex": (cases.entries(5, 5, 18, complex, seed=3), pj.QR()),
}


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _SOLVES)
def test_gradient_of_a_solve_is_the_dense_one_on_the_pattern(name):
    (data, row, col, shape), solver = _SOLVES[name]
    operator = pj.SparseLinearOperator((data, row, col, shape))
    vector = cases.random_array(shape[0], data.dtype, 5)
    weights = cases.random_array(shape[1], data.dtype, 6)
    t_data = cases.random_array(data.size, data.dtype, 7)

    def solve(data, vector):
        return pj.linear_solve(cases.with_data(operator, data), vector, solver).value

    @jit
    def run(data, vector, weights, t_data):
        value, pullback = jax.vjp(solve, data, vector)
        _, tangent = jax.jvp(lambda data: solve(data, vector), (data,), (t_data,))
        return value, tangent, pullback(weights)

    value, tangent, (ct_data, ct_vector) = run(data, vector, weights, t_data)
    place = row, col, shape
    inverse = np.linalg.pinv(cases.dense(data, *place))
    x = inverse @ vector

    def moved(t_data):
        """x' = −A†A'x + A†A†^H A'^H r + (I − A†A) A'^H A†^H x (Golub & Pereyra 1973)."""
        matrix, t_matrix = cases.dense(data, *place), cases.dense(t_data, *place)
        z = t_matrix.conj().T @ (inverse.conj().T @ x)
        adjoint = t_matrix.conj().T @ (vector - matrix @ x)
        rest = inverse @ (inverse.conj().T @ adjoint) - inverse @ (matrix @ z)
        return z + rest - inverse @ (t_matrix @ x)

    np.testing.assert_allclose(value, x, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(tangent, moved(t_data), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(ct_vector, inverse.T @ weights, rtol=1e-8, atol=1e-10)
    for direction in (1, 1j) if np.iscomplexobj(data) else (1,):
        units = direction * np.eye(data.size, dtype=data.dtype)
        want = [pairing((weights, moved(unit))) for unit in units]
        np.testing.assert_allclose((direction * ct_data).real, want, rtol=1e-8, atol=1e-9)


def test_linearised_tangent_operator_multiplies_by_the_tangent():
    operator, (_, row, col, shape), vector, t_data, *_ = _problem("tall")
    t_operator = cases.with_data(operator, jnp.asarray(t_data))
    t_operator = jax.tree.map(
        lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, t_operator
    )
    linear = lx.linearise(lx.TangentLinearOperator(operator, t_operator))
    want = cases.dense(t_data, row, col, shape)
    np.testing.assert_allclose(linear.mv(vector), want @ vector, atol=1e-12)
    covector = cases.random_array(shape[0], seed=9)
    np.testing.assert_allclose(linear.T.mv(covector), want.T @ covector, atol=1e-12)
