"""`StochasticAdjoint`: unbiased, its variance, its cost, and what it refuses."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from test_unrolled import assert_close, positive, vector

import pseudojvp as pj


SIZE = 6
POSITIVE = lx.positive_semidefinite_tag


def near_identity():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((SIZE, SIZE)) / np.sqrt(SIZE)
    return jnp.eye(SIZE) + 0.3 * jnp.asarray(noise)


def data():
    return jnp.asarray(np.random.default_rng(4).standard_normal((50, SIZE)))


def hessian(rows):
    return rows.T @ rows / len(rows) + 0.5 * jnp.eye(SIZE)


def minibatch(key):
    return lx.MatrixLinearOperator(hessian(data()[jax.random.choice(key, 50, (10,))]))


PROBLEMS = {
    "Neumann": (near_identity, (), {}),
    "CG": (lambda: positive(SIZE, np.random.default_rng(1)), POSITIVE, {"method": "cg"}),
    "minibatches": (
        lambda: hessian(data()),
        (),
        {"scale": 0.5, "operators": minibatch},
    ),
    "rows-and-columns": (near_identity, (), {"num_rows": 2, "num_columns": 3}),
}


def pulled(A, tags, **settings):
    """Two numbers of the cotangents of A and b for a key, and their true values."""
    rng = np.random.default_rng(2)
    b, ct = vector(SIZE, rng), vector(SIZE, rng)
    of_A, of_b = jnp.asarray(rng.standard_normal((SIZE, SIZE))), vector(SIZE, rng)

    def draw(key):
        adjoint = pj.StochasticAdjoint(key, **settings)

        def solve(A, b):
            operator = lx.MatrixLinearOperator(A, tags)
            return pj.linear_solve(operator, b, adjoint=adjoint, throw=False).value

        ct_A, ct_b = jax.vjp(solve, A, b)[1](ct)
        return jnp.stack([jnp.vdot(of_A, ct_A), jnp.vdot(of_b, ct_b)])

    lam = np.linalg.solve(np.array(A).T, ct)
    x = np.linalg.solve(A, b)
    return draw, np.array([-lam @ np.array(of_A) @ x, lam @ np.array(of_b)])


def drawn(draw, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.array(jax.jit(lambda keys: jax.lax.map(draw, keys))(keys))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_cotangents_are_unbiased_over_ten_thousand_keys(name):
    make, tags, settings = PROBLEMS[name]
    draw, expected = pulled(make(), tags, **settings)
    sample = drawn(draw, 10_000)
    z = (sample.mean(0) - expected) / (sample.std(0) / 100)
    assert np.all(np.abs(z) < 3)
    assert np.all(sample.std(0) > 0)


@pytest.mark.slow
def test_variance_is_that_of_one_sample_over_their_number():
    scaled = []
    for samples in (10, 100, 1000):
        draw, _ = pulled(near_identity(), (), num_samples=samples)
        scaled.append(samples * drawn(draw, 400)[:, 1].var())
    # The variance of 400 draws is known to about 7 %.
    assert np.max(scaled) / np.min(scaled) < 1.3


@pytest.mark.slow
def test_products_are_as_many_as_expected():
    calls = []

    def counted(key):
        del key

        def product(v):
            count = lambda v: (calls.append(1), np.zeros_like(v))[1]
            shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
            return 0.5 * v + jax.pure_callback(count, shape, v)

        structure = jax.ShapeDtypeStruct((SIZE,), jnp.float64)
        return lx.FunctionLinearOperator(product, structure, lx.symmetric_tag)

    settings = {"operators": counted, "decay": 0.8, "max_terms": 30, "num_samples": 2}
    draw, _ = pulled(0.5 * jnp.eye(SIZE), (), **settings)
    keys = 1000
    drawn(draw, keys)
    expected = pj.StochasticAdjoint(jax.random.key(0), **settings).expected_products
    np.testing.assert_allclose(expected, 2 * (0.8 - 0.8**31) / 0.2)
    # N has the variance decay / (1 - decay)^2 = 20.
    error = np.sqrt(2 * 20 / keys)
    assert abs(len(calls) / keys - expected) < 3 * error


@pytest.mark.slow  # a second
def test_the_mean_over_lengths_is_the_sum_of_the_series():
    """Of A = (1 − decay) I each term counts one: λ is N + 1 times that of one term."""
    decay = 0.75

    def length(key):
        adjoint = pj.StochasticAdjoint(key, decay=decay, max_terms=8)
        A = (1 - decay) * jnp.eye(2)
        solve = lambda b: pj.linear_solve(A, b, adjoint=adjoint, throw=False).value
        return jax.vjp(solve, jnp.ones(2))[1](jnp.ones(2))[0][0]

    lengths = drawn(length, 2000)
    np.testing.assert_allclose(lengths, np.round(lengths), rtol=1e-12)
    assert lengths.min() == 1
    assert lengths.max() == 9
    at_least = [(lengths > k).mean() for k in range(4)]
    np.testing.assert_allclose(at_least, decay ** np.arange(4), atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neumann", "cg"])
def test_forward_mode_and_complex_numbers(method):
    rng = np.random.default_rng(3)
    A = positive(4, rng, complex, condition=3.0)
    b, ct = vector(4, rng, complex), vector(4, rng, complex)
    operator = lx.MatrixLinearOperator(A, POSITIVE)

    def both(key):
        adjoint = pj.StochasticAdjoint(key, method=method, scale=0.5)
        solve = lambda b: pj.linear_solve(operator, b, adjoint=adjoint).value
        return jax.vjp(solve, b)[1](ct)[0], jax.jvp(solve, (b,), (ct,))[1]

    keys = jax.random.split(jax.random.key(0), 4000)
    reverse, forward = jax.jit(lambda keys: jax.lax.map(both, keys))(keys)
    for sample, matrix in ((reverse, A.T), (forward, A)):
        error = np.abs(sample.mean(0) - np.linalg.solve(matrix, ct))
        assert np.all(error < 4 * sample.std(0) / np.sqrt(4000))


@pytest.mark.slow
def test_fresh_operators_may_depend_on_what_is_differentiated():
    def loss(theta, key):
        def fresh(key):
            del key
            return lx.MatrixLinearOperator(theta * jnp.eye(2))

        adjoint = pj.StochasticAdjoint(key, operators=fresh, decay=0.5)
        A = theta * jnp.eye(2)
        return jnp.sum(pj.linear_solve(A, jnp.ones(2), adjoint=adjoint).value)

    # x = 1 / θ; the series is one term long at θ = 1.
    gradient = jax.jit(jax.grad(loss))(1.0, jax.random.PRNGKey(0))
    np.testing.assert_allclose(gradient, -2.0)


@pytest.mark.slow
def test_rows_and_columns_are_as_few_as_asked_for():
    A, b = near_identity(), jnp.arange(1.0, SIZE + 1)
    adjoint = pj.StochasticAdjoint(jax.random.key(1), num_rows=2, num_columns=1)
    same = pj.StochasticAdjoint(jax.random.key(1))

    def pull(adjoint):
        solve = lambda A, b: pj.linear_solve(A, b, adjoint=adjoint).value
        return jax.vjp(solve, A, b)[1](b)

    ct_A, ct_b = pull(adjoint)
    assert np.count_nonzero(ct_A.any(1)) <= 2
    assert np.count_nonzero(ct_A.any(0)) == 1
    assert_close(ct_b, pull(same)[1], rtol=1e-13)


@pytest.mark.slow  # two seconds
def test_one_key_for_a_batch_is_an_error_and_a_key_each_is_not():
    A = jnp.eye(3)

    def gradient(b, key):
        adjoint = pj.StochasticAdjoint(key)
        solve = lambda b: jnp.sum(pj.linear_solve(A, b, adjoint=adjoint).value)
        return jax.grad(solve)(b)

    batch, key = jnp.ones((4, 3)), jax.random.key(0)
    with pytest.raises(ValueError, match="one key for a batch"):
        jax.vmap(gradient, (0, None))(batch, key)
    keys = jax.random.split(key, 4)
    assert jax.vmap(gradient)(batch, keys).shape == (4, 3)
    # A batch of cotangents is no batch of solves.
    adjoint = pj.StochasticAdjoint(key)
    jacobian = jax.jacrev(lambda b: pj.linear_solve(A, b, adjoint=adjoint).value)(
        batch[0]
    )
    assert_close(jacobian, jnp.eye(3))


@pytest.mark.slow
def test_a_key_that_is_used_again_is_what_jax_can_notice():
    def solve(key, b):
        adjoint = pj.StochasticAdjoint(key)
        return pj.linear_solve(jnp.eye(3), b, adjoint=adjoint).value

    def again(key):
        return jax.lax.scan(lambda b, _: (solve(key, b), None), b, length=2)[0]

    b = jnp.ones(3)
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        solve(key, b)
        with pytest.raises(jax.errors.KeyReuseError):
            solve(key, b)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(again)(jax.random.key(0))
        first, second = jax.random.split(jax.random.key(0))
        pull = jax.grad(lambda b: jnp.sum(solve(first, b) + solve(second, b)))
        np.testing.assert_allclose(pull(b), 2 * np.ones(3))


@pytest.mark.slow  # a second
def test_columns_have_keys_of_their_own():
    A = pj.SparseLinearOperator((jnp.full(3, 0.25), *np.nonzero(np.eye(3)), (3, 3)))
    adjoint = pj.StochasticAdjoint(jax.random.key(0), decay=0.75)

    def loss(B):
        return jnp.sum(pj.sparse_solve(A, B, adjoint=adjoint, throw=False))

    gradient = jax.jit(jax.grad(loss))(jnp.ones((3, 20)))
    assert len(np.unique(np.round(gradient[0]))) > 3


@pytest.mark.slow
def test_a_series_that_diverges_is_nan():
    adjoint = pj.StochasticAdjoint(jax.random.key(0), scale=1e9, decay=0.999)
    solve = lambda b: jnp.sum(
        pj.linear_solve(3 * jnp.eye(3), b, adjoint=adjoint, throw=False).value
    )
    assert np.isnan(jax.grad(solve)(jnp.ones(3))).all()


def test_a_second_derivative_is_an_error():
    adjoint = pj.StochasticAdjoint(jax.random.key(0))
    loss = lambda A: jnp.sum(pj.linear_solve(A, jnp.ones(3), adjoint=adjoint).value)
    with pytest.raises(ValueError, match="`StochasticAdjoint` was differentiated twice"):
        jax.jit(jax.hessian(loss))(jnp.eye(3))


KEY = jax.random.PRNGKey(0)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: pj.StochasticAdjoint(0), TypeError, "Pass a key"),
        (
            lambda: pj.StochasticAdjoint(jax.random.split(jax.random.key(0), 3)),
            ValueError,
            "Pass one key",
        ),
        (lambda: pj.StochasticAdjoint(KEY, method="lu"), ValueError, "Pass `.neumann"),
        (lambda: pj.StochasticAdjoint(KEY, decay=1.0), ValueError, "between"),
        (lambda: pj.StochasticAdjoint(KEY, decay="half"), ValueError, "between"),
        (lambda: pj.StochasticAdjoint(KEY, operators=3), TypeError, "Pass a function"),
        (lambda: pj.StochasticAdjoint(KEY, max_terms=-1), ValueError, "at least 0"),
        (lambda: pj.StochasticAdjoint(KEY, num_samples=0), ValueError, "at least 1"),
        (lambda: pj.StochasticAdjoint(KEY, num_rows=1.5), TypeError, "Python integer"),
        (
            lambda: pj.StochasticAdjoint(KEY, method="cg", operators=minibatch),
            ValueError,
            "directions are of one A",
        ),
    ],
)
def test_bad_settings_are_an_error(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("shape", "solver", "settings", "match"),
    [
        ((4, 3), pj.QR(), {}, "takes a square one"),
        ((3, 3), pj.SVD(), {}, "takes A to have full rank"),
        ((3, 3), pj.LU(), {"method": "cg"}, "tagged neither"),
        ((3, 3), pj.LU(), {"operators": minibatch}, "structure of A"),
    ],
)
def test_an_unfit_system_is_an_error(shape, solver, settings, match):
    adjoint = pj.StochasticAdjoint(KEY, **settings)
    with pytest.raises(ValueError, match=match):
        pj.linear_solve(jnp.ones(shape), jnp.ones(shape[0]), solver, adjoint=adjoint)


def test_a_minibatch_that_is_an_array_is_an_error():
    adjoint = pj.StochasticAdjoint(KEY, operators=lambda key: jnp.eye(3))
    with pytest.raises(TypeError, match="Return an operator"):
        pj.linear_solve(jnp.eye(3), jnp.ones(3), adjoint=adjoint)
