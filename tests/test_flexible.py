"""What `FlexibleCG` and `FlexibleGMRES` promise with any preconditioner."""

import equinox as eqx
import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import pseudojvp as pj


SIZE = 8
RESULTS = lx.RESULTS

both = pytest.mark.parametrize("make", [pj.FlexibleCG, pj.FlexibleGMRES])


def bent(vector):
    """P v = v (1 + 0.3 tanh(10 v / |v|)): near the identity, and not linear."""
    return vector * (1 + 0.3 * jnp.tanh(10 * vector / jnp.linalg.norm(vector)))


def bent_complex(vector):
    bend = 1 + 0.3 * jnp.tanh(10 * jnp.abs(vector) / jnp.linalg.norm(vector))
    return vector * bend.astype(vector.dtype)


def _residual(matrix, value, vector):
    return np.linalg.norm(vector - matrix @ value) / np.linalg.norm(vector)


@pytest.mark.slow  # a second
def test_preconditioner_that_is_not_linear_takes_at_most_half_more_than_cg():
    matrix = krylov.hermitian(0, False, np.geomspace(1, 1e4, 50))
    vector = krylov.random(1, False, 50)
    _, plain, _, of_cg = krylov.solve(matrix, vector, pj.CG(), krylov.PSD)
    for memory in (40, 50):  # 196 and 50 steps
        solver = pj.FlexibleCG(preconditioner=bent, memory=memory)
        value, successful, _, stats = krylov.solve(matrix, vector, solver, krylov.PSD)
        assert plain
        assert successful
        assert _residual(matrix, value, vector) < 1.1e-10
        assert stats["num_steps"] <= min(1.5 * 159, 1.5 * of_cg["num_steps"])


def _poisson(side):
    band = scipy.sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(side, side))
    return scipy.sparse.kronsum(band, band).tocsr()


def _two_grid(side):
    """Damped Jacobi, the coarse grid of half the side exactly, damped Jacobi."""
    fine = _poisson(side)
    coarse = side // 2
    line = np.zeros((side, coarse))
    for j in range(coarse):
        line[2 * j : 2 * j + 3, j] = [0.5, 1.0, 0.5][: side - 2 * j]
    up = np.kron(line, line)
    inverse = np.linalg.inv(up.T @ (fine @ up))
    fine = pj.SparseLinearOperator(fine, tags=krylov.PSD)

    def smoothed(x, residual):
        return x + 0.2 * (residual - fine.mv(x))

    def precondition(residual):
        x = smoothed(jnp.zeros_like(residual), residual)
        x = x + up @ (inverse @ (up.T @ (residual - fine.mv(x))))
        return smoothed(x, residual)

    return fine, precondition


@pytest.mark.optimised
@pytest.mark.ci("*")
@both
def test_two_grid_takes_at_most_35_steps_of_a_poisson_problem(make):
    operator, precondition = _two_grid(32)
    vector = krylov.random(0, False, 32 * 32)
    solver = make(1e-10, preconditioner=precondition)
    solution = pj.linear_solve(operator, vector, solver)
    plain = pj.linear_solve(operator, vector, pj.CG(1e-10))
    truth = scipy.sparse.linalg.spsolve(_poisson(32).tocsc(), vector)
    assert krylov.relative_error(solution.value, truth) < 1e-8
    assert solution.stats["num_steps"] <= 35
    assert plain.stats["num_steps"] >= 100


class Network(eqx.Module):
    """A preconditioner with numbers of its own."""

    weights: jax.Array

    def __call__(self, vector):
        return vector + 0.1 * jnp.tanh(self.weights @ vector + 1)


def _definite(is_complex):
    return krylov.hermitian(0, is_complex, np.linspace(1, 4, SIZE))


CASES = {
    "FlexibleCG-real": (pj.FlexibleCG(1e-12, preconditioner=bent), False),
    "FlexibleCG-complex": (pj.FlexibleCG(1e-12, preconditioner=bent_complex), True),
    "FlexibleGMRES-real": (pj.FlexibleGMRES(1e-12, preconditioner=bent), False),
    "FlexibleGMRES-complex": (
        pj.FlexibleGMRES(
            1e-12, preconditioner=bent_complex, adjoint_preconditioner=bent_complex
        ),
        True,
    ),
    "Normal(FlexibleCG)-complex": (
        pj.Normal(pj.FlexibleCG(1e-13, preconditioner=bent_complex)),
        True,
    ),
}


@pytest.mark.ci("*")
@pytest.mark.shows("jvp", "vjp")
@pytest.mark.parametrize("name", CASES)
def test_derivatives_to_second_order_are_those_of_the_inverse(name):
    solver, is_complex = CASES[name]
    positive = "CG" in name and "Normal" not in name
    matrix, t_matrix = (
        (_definite(is_complex), krylov.hermitian(3, is_complex, np.linspace(-1, 1, SIZE)))
        if positive
        else (
            krylov.general(0, is_complex, SIZE),
            krylov.random(3, is_complex, SIZE, SIZE),
        )
    )
    vector, t_vector, weights = krylov.random(1, is_complex, 3, SIZE)
    tags = krylov.PSD if positive else ()

    def solve(matrix, vector, inverse=None):
        if inverse is not None:
            return inverse(matrix) @ vector
        return pj.linear_solve(krylov.operator(matrix, tags), vector, solver).value

    def derivatives(function):
        def tangent(matrix, vector):
            return jax.jvp(function, (matrix, vector), (t_matrix, t_vector))[1]

        primals = jnp.asarray(matrix), jnp.asarray(vector)
        second = jax.jvp(tangent, primals, (t_matrix, t_vector))
        return second, jax.vjp(function, *primals)[1](jnp.asarray(weights))

    got = krylov.compiled(derivatives)(solve)
    want = krylov.compiled(derivatives)(lambda a, b: solve(a, b, jnp.linalg.inv))
    for leaf, truth in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert krylov.relative_error(leaf, truth) < 1e-8


@pytest.mark.ci("*")
@both
def test_numbers_within_a_preconditioner_have_a_derivative_of_zero(make):
    matrix, vector = _definite(False), krylov.random(1, False, SIZE)
    weights = jnp.asarray(krylov.random(2, False, SIZE, SIZE))
    operator = krylov.operator(matrix, krylov.PSD)

    def total(weights, scale, vector):
        network = Network(weights)
        closing = lambda v: scale * network(v)
        given = pj.linear_solve(operator, vector, make(1e-12, preconditioner=network))
        options = {"preconditioner": closing}
        closed = pj.linear_solve(operator, vector, make(1e-12), options=options)
        return jnp.sum(given.value) + jnp.sum(closed.value)

    grads = jax.jit(jax.grad(total, (0, 1, 2)))(weights, jnp.array(2.0), vector)
    assert np.all(np.asarray(grads[0]) == 0)
    assert grads[1] == 0
    truth = 2 * np.linalg.solve(matrix, np.ones(SIZE))
    assert krylov.relative_error(grads[2], truth) < 1e-8


@pytest.mark.ci("*")
@both
def test_batches_of_vectors_and_matrices_are_each_solved(make):
    matrices = np.stack([_definite(False), 1e3 * _definite(False)])
    vectors = krylov.random(1, False, 2, SIZE)
    solver = make(preconditioner=lambda v: bent(1e-3 * v))
    values, successful, _ = krylov.solve_all(matrices, vectors, solver, krylov.PSD)
    assert successful.all()
    truth = np.linalg.solve(matrices, vectors[..., None])[..., 0]
    assert krylov.relative_error(values, truth) < 1e-9


@pytest.mark.slow  # a loop within a loop to compile
@both
def test_preconditioner_that_is_an_iteration_with_the_operator_itself(make):
    matrix = krylov.hermitian(0, False, np.geomspace(1, 1e3, 30))
    vector = krylov.random(1, False, 30)

    def total(matrix):
        operator = krylov.operator(matrix, krylov.PSD)
        few = pj.CG(0.0, 0.0, max_steps=5)
        inner = lambda v: pj.linear_solve(operator, v, few, throw=False).value
        solution = pj.linear_solve(operator, vector, make(1e-12, preconditioner=inner))
        return jnp.sum(solution.value), solution.stats["num_steps"]

    gradient = krylov.compiled(jax.grad(total, has_aux=True))
    gradient, steps = gradient(jnp.asarray(matrix))
    adjoint = np.linalg.solve(matrix, np.ones(30))
    truth = -np.outer(adjoint, np.linalg.solve(matrix, vector))
    assert krylov.relative_error(gradient, truth) < 1e-8
    assert steps < 150  # without restarts 30, the number of unknowns


def test_preconditioner_of_trees_is_called_with_trees():
    matrix, vector = _definite(False), krylov.random(1, False, SIZE)

    def product(tree):
        image = matrix @ jnp.concatenate([tree["a"], tree["b"][0]])
        return {"a": image[:3], "b": (image[3:],)}

    tree = {"a": vector[:3], "b": (vector[3:],)}
    structure = jax.eval_shape(lambda: tree)
    operator = lx.FunctionLinearOperator(product, structure, krylov.PSD)
    halved = lambda tree: jax.tree.map(lambda leaf: jnp.tanh(leaf / 2), tree)
    solver = pj.FlexibleCG(preconditioner=halved)
    value = pj.linear_solve(operator, tree, solver).value
    value = np.concatenate([value["a"], value["b"][0]])
    assert krylov.relative_error(value, np.linalg.solve(matrix, vector)) < 1e-9


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_real_leaves_beside_complex_ones_reach_the_preconditioner_as_they_are():
    matrix = _definite(False)

    def product(pair):
        return 2 * pair[0], matrix.astype(complex) @ pair[1]

    def precondition(pair):
        assert jnp.iscomplexobj(pair[1])
        return jax.tree.map(jnp.copy, pair)

    vector = krylov.random(0, False, SIZE), krylov.random(1, True, SIZE)
    structure = jax.eval_shape(lambda: vector)
    with jax.numpy_dtype_promotion("standard"):  # lineax looks at all leaves as one
        operator = lx.FunctionLinearOperator(product, structure, krylov.PSD)
    solver = pj.FlexibleCG(preconditioner=precondition)
    first, second = pj.linear_solve(operator, vector, solver).value
    assert krylov.relative_error(first, vector[0] / 2) < 1e-9
    assert krylov.relative_error(second, np.linalg.solve(matrix, vector[1])) < 1e-9


@pytest.mark.ci("*")
@pytest.mark.parametrize("kind", ["general", "ill-conditioned"])
def test_flexible_gmres_with_a_matrix_takes_the_steps_of_gmres(kind):
    values = np.geomspace(1, 1e4 if kind == "ill-conditioned" else 4, SIZE)
    matrix = krylov.with_values(0, True, SIZE, SIZE, values)
    near = np.linalg.inv(matrix) @ (
        np.eye(SIZE) + 0.1 * krylov.random(2, True, SIZE, SIZE)
    )
    vector = krylov.random(3, True, SIZE)
    options = {"preconditioner": krylov.operator(near)}
    value, successful, _, stats = krylov.solve(
        matrix, vector, pj.FlexibleGMRES(1e-8), options=options
    )
    of_gmres = krylov.solve(matrix, vector, pj.GMRES(1e-8), options=options)
    assert successful
    assert stats["num_steps"] == of_gmres[3]["num_steps"]
    assert krylov.relative_error(value, of_gmres[0]) < 1e-6


def test_negative_definite_operator_is_solved():
    matrix, vector = -_definite(True), krylov.random(1, True, SIZE)
    solver = pj.FlexibleCG(preconditioner=bent_complex)
    tags = lx.negative_semidefinite_tag
    value, successful, *_ = krylov.solve(matrix, vector, solver, tags)
    assert successful
    assert _residual(matrix, value, vector) < 1.1e-10


@pytest.mark.parametrize("size", [8, 30])
@pytest.mark.slow  # a second each
def test_network_as_preconditioner_takes_at_most_two_steps_an_unknown(size):
    for seed in range(3):
        draw = np.random.default_rng(seed).normal
        root, weight, vector = (
            draw(size=(size, size)),
            draw(size=(size, size)),
            draw(size=size),
        )
        matrix = root @ root.T + np.eye(size)
        solver = pj.FlexibleCG(
            preconditioner=lambda v, weight=weight: jnp.tanh(weight @ v) + v,
            max_steps=2 * size,
        )
        value, successful, *_ = krylov.solve(matrix, vector, solver, krylov.PSD)
        assert successful
        assert _residual(matrix, value, vector) < 1.1e-10
