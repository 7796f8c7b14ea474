"""`factorised_inverse` and the network that makes its factor."""

import equinox as eqx
import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


SIZE = 5
PSD = krylov.PSD


@pytest.mark.default("real-scalar", "complex-vector")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "epsilon", [0.3, np.linspace(0.1, 1, SIZE)], ids=["scalar", "vector"]
)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_product_is_that_of_the_dense_matrix(is_complex, epsilon):
    g = krylov.random(0, is_complex, SIZE, SIZE)
    v = krylov.random(1, is_complex, SIZE)

    @jit
    def products(g, epsilon, v):
        P = pj.factorised_inverse(g, epsilon)
        assert lx.is_positive_semidefinite(P)
        return P.mv(v), P.as_matrix(), P.transpose().mv(v), lx.conj(P).mv(v)

    mv, matrix, transposed, conjugate = products(*map(jnp.asarray, (g, epsilon, v)))
    want = g @ g.conj().T + epsilon * np.eye(SIZE)
    np.testing.assert_allclose(matrix, want, rtol=1e-13)
    np.testing.assert_allclose(mv, want @ v, rtol=1e-12)
    np.testing.assert_allclose(transposed, want.T @ v, rtol=1e-12)
    np.testing.assert_allclose(conjugate, want.conj() @ v, rtol=1e-12)


@pytest.mark.slow  # two solves to compile
def test_the_factor_of_the_inverse_solves_in_a_step_and_does_not_enter_derivatives():
    matrix = krylov.hermitian(0, False, np.geomspace(1, 100, SIZE))
    g = np.linalg.cholesky(np.linalg.inv(matrix))
    vector = krylov.random(1, False, SIZE)

    def solve(g, vector):
        options = {"preconditioner": pj.factorised_inverse(g)}
        operator = krylov.operator(jnp.asarray(matrix), PSD)
        return pj.linear_solve(operator, vector, pj.CG(1e-9), options=options)

    @jit
    def compute(g, vector):
        total = lambda g, vector: solve(g, vector).value.sum()
        return solve(g, vector).stats["num_steps"], jax.grad(total, (0, 1))(g, vector)

    steps, (by_factor, by_vector) = compute(*map(jnp.asarray, (g, vector)))
    assert steps == 1
    np.testing.assert_array_equal(by_factor, 0)
    np.testing.assert_allclose(by_vector, np.linalg.inv(matrix).sum(0), rtol=1e-8)


def test_vectors_may_be_trees_and_in_single_precision():
    structure = {
        "a": jax.ShapeDtypeStruct((2,), "float32"),
        "b": jax.ShapeDtypeStruct((), "float32"),
    }
    double = lambda v: jax.tree.map(lambda leaf: 2 * leaf, v)
    G = lx.FunctionLinearOperator(double, structure, lx.symmetric_tag)
    v = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones((), jnp.float32)}
    for epsilon in (0.5, {"a": np.array([0.5, 0.5]), "b": 0.5}):
        out = pj.factorised_inverse(G, epsilon).mv(v)
        assert out["a"].dtype == "float32"
        np.testing.assert_allclose([*out["a"], out["b"]], 4.5)


def test_a_negative_epsilon_that_is_traced_makes_nan():
    mv = lambda epsilon: pj.factorised_inverse(jnp.eye(2), epsilon).mv(jnp.ones(2))
    assert np.isnan(jax.jit(mv)(-0.1)).all()


@pytest.mark.untyped
def test_bad_factors_are_an_error():
    with pytest.raises(ValueError, match="Pass a square G"):
        pj.factorised_inverse(np.ones((3, 2)))
    with pytest.raises(ValueError, match="none below zero"):
        pj.factorised_inverse(np.eye(2), -1.0)
    with pytest.raises(ValueError, match="Pass real numbers"):
        pj.factorised_inverse(np.eye(2), 1j)
    with pytest.raises(ValueError, match="Pass a scalar, or a vector of that structure"):
        pj.factorised_inverse(np.eye(2), np.ones(3))


def _laplacian(side=3):
    """A weighted one of a grid with a boundary: (data, row, col, shape), dense."""
    rng = np.random.default_rng(2)
    number = np.arange(side**2).reshape(side, side)
    pairs = np.concatenate(
        [
            np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()]),
            np.stack([number[:-1].ravel(), number[1:].ravel()]),
        ],
        axis=1,
    )
    matrix = np.zeros((side**2, side**2))
    matrix[pairs[0], pairs[1]] = -np.exp(rng.standard_normal(pairs.shape[1]))
    matrix = matrix + matrix.T
    matrix = matrix + np.diag(0.3 - matrix.sum(1))
    row, col = np.nonzero(matrix)
    return (matrix[row, col], row, col, matrix.shape), matrix


def _trained(key=0, size=0.7):
    """As if it were: no weight is zero."""
    network = pj.PreconditionerNetwork(6, 2, key=jax.random.key(key))
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(arrays)
    rng = np.random.default_rng(key)
    leaves = [leaf + size * rng.standard_normal(leaf.shape) for leaf in leaves]
    return eqx.combine(jax.tree.unflatten(treedef, leaves), rest)


@eqx.filter_jit
def _made(network, data, row, col, size):
    """With traced indices."""
    A = pj.SparseLinearOperator((data, row, col, (size, size)), PSD)
    return network(A).as_matrix()


def _as_matrix(network, matrix):
    row, col = np.nonzero(matrix)
    return np.asarray(_made(network, matrix[row, col], row, col, len(matrix)))


@pytest.mark.slow  # three seconds
def test_network_begins_as_a_polynomial():
    _, matrix = _laplacian()
    network = pj.PreconditionerNetwork(6, key=jax.random.key(0))
    scale = np.diag(1 / np.sqrt(np.diag(matrix)))
    off = scale @ matrix @ scale - np.eye(len(matrix))
    factor = 0.5 * np.eye(len(matrix)) - 0.7 * off
    want = scale @ (factor @ factor + 0.2 * np.eye(len(matrix))) @ scale
    np.testing.assert_allclose(_as_matrix(network, matrix), want, rtol=1e-12, atol=1e-14)


@pytest.mark.slow  # two seconds
def test_network_knows_no_order_and_no_scale_of_the_unknowns():
    _, matrix = _laplacian()
    network, rng = _trained(), np.random.default_rng(4)
    order = rng.permutation(len(matrix))
    scale = np.exp(rng.standard_normal(len(matrix)))
    made = _as_matrix(network, matrix)
    permuted = _as_matrix(network, matrix[order][:, order])
    scaled = _as_matrix(network, scale[:, None] * matrix * scale)
    np.testing.assert_allclose(permuted, made[order][:, order], rtol=1e-10)
    np.testing.assert_allclose(scale[:, None] * scaled * scale, made, rtol=1e-10)
    begun = _as_matrix(pj.PreconditionerNetwork(6, key=jax.random.key(0)), matrix)
    assert np.abs(made - begun).max() > 0.1  # the weights do something
    assert np.abs(made - made.T).max() < 1e-12
    np.testing.assert_array_equal(_as_matrix(network, -matrix), made)


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_preconditioner_is_definite_whatever_the_weights(size):
    _, matrix = _laplacian()
    made = _as_matrix(_trained(size=size), matrix)
    assert np.linalg.eigvalsh(made)[0] > 0


@pytest.mark.slow  # five seconds to compile
def test_loss_is_differentiated_in_the_weights_in_a_batch_of_matrices():
    stored, _ = _laplacian()
    data, row, col, shape = stored
    batch = jnp.stack([jnp.asarray(data), jnp.asarray(2 * data + (row == col))])
    network = _trained()
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), arrays)

    @jax.jit
    def loss(arrays):
        def one(data):
            A = pj.SparseLinearOperator((data, row, col, shape), PSD)
            return pj.kaporin_number(A, eqx.combine(arrays, rest)(A))

        return jnp.sum(jax.vmap(one)(batch))

    along = lambda t: loss(jax.tree.map(lambda a, d: a + t * d, arrays, direction))
    slope = jax.grad(along)(0.0)
    step = 1e-6
    np.testing.assert_allclose(
        slope,
        (along(step) - along(-step)) / (2 * step),
        rtol=1e-6,  # of central differences
    )


@pytest.mark.slow  # not compiled
def test_network_takes_what_is_sparse_and_keeps_single_precision():
    stored, matrix = _laplacian()
    made = _trained()(stored).as_matrix()
    np.testing.assert_allclose(made, _as_matrix(_trained(), matrix), rtol=1e-12)
    A = pj.SparseLinearOperator((stored[0].astype("float32"), *stored[1:]), PSD)
    made_of_single = _trained()(A).as_matrix()
    assert made_of_single.dtype == "float32"
    np.testing.assert_allclose(made_of_single, made, rtol=1e-3, atol=1e-4)  # float32


@pytest.mark.untyped
def test_bad_input_of_the_network_is_an_error():
    network = pj.PreconditionerNetwork(key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"`PreconditionerNetwork\(\)` got a"):
        network(jnp.eye(3))
    nothing = np.ones(1), np.zeros(1, int), np.zeros(1, int)
    with pytest.raises(ValueError, match="Pass a square and real one"):
        network((*nothing, (2, 3)))
    with pytest.raises(ValueError, match="Pass a square and real one"):
        network((1j * nothing[0], *nothing[1:], (2, 2)))
    with pytest.raises(ValueError, match=r"\(width=...\)` got 0. It is at least 1"):
        pj.PreconditionerNetwork(0, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"\(depth=...\)` got a float"):
        pj.PreconditionerNetwork(3, 1.0, key=jax.random.key(0))
