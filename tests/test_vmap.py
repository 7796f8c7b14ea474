"""`vmap` of values and derivatives, and derivatives of `vmap`, member by member."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, derivatives, jit
from problems import each, PROBLEMS
from programs import cotangent, in_batch, TIMES
from truth import loss_derivatives, pairing, path_tangents, solution_derivatives

import pseudojvp as pj


ALL = tuple(PROBLEMS)
BATCHED = [
    "tall-complex-QR",
    "wide-real-QR",
    "tall-deficient-complex-SVD",
    "wide-deficient-real-SVD",
    "tall-complex-Normal(LU)",
    "definite-complex-CG",
    "definite-real-Neumann",
    "square-complex-lineax.LU",
    "wide-deficient-complex-Pinv(False)",
]
FACTORS = [  # one operator, many vectors
    "tall-complex-QR",
    "wide-complex-QR",
    "wide-deficient-real-SVD",
    "tall-real-Normal(Cholesky)",
    "definite-complex-CG",
    "square-complex-lineax.LU",
]


def _of_members(problem, order):
    return np.stack([solution_derivatives(problem.path, t)[order] for t in TIMES])


@pytest.mark.shows("batched solution")
@each(ALL, others="slow")
def test_each_member_of_a_batch_is_solved(problem):
    got = in_batch(problem.name).x[:3]
    assert_close(got, _of_members(problem, 0), problem.rtol)


@pytest.mark.shows("batched jvp")
@each(ALL, others="slow")
def test_each_member_of_a_batch_has_its_tangent(problem):
    got = in_batch(problem.name).t_x[:3]
    assert_close(got, _of_members(problem, 1), problem.rtol)


@pytest.mark.shows("batched second derivative")
@each(ALL, others="slow")
def test_each_member_of_a_batch_has_its_second_tangent(problem):
    got = in_batch(problem.name).tt_x[:3]
    assert_close(got, _of_members(problem, 2), problem.rtol)


@pytest.mark.shows("batched vjp")
@each(ALL, others="slow")
def test_each_member_of_a_batch_has_cotangents_that_pair_with_its_tangent(problem):
    answer, ct_solution = in_batch(problem.name), cotangent(problem)
    for member, t in enumerate(TIMES):
        t_matrix, t_vector = path_tangents(problem.path, t)
        want = pairing((ct_solution, solution_derivatives(problem.path, t)[1]))
        of_matrix = answer.ct_matrix[member], t_matrix
        got = pairing(of_matrix, (answer.ct_vector[member], t_vector))
        assert got == pytest.approx(want, rel=problem.rtol, abs=problem.rtol)


@pytest.mark.shows("failure")
@each(ALL, others="slow")
def test_member_with_nan_in_its_matrix_fails_and_no_other(problem):
    results = in_batch(problem.name).result
    np.testing.assert_array_equal(results == lx.RESULTS.successful._value, [1, 1, 1, 0])


@each(ALL, others="slow")
def test_derivatives_of_a_failed_member_are_nan(problem):
    answer = in_batch(problem.name)
    for leaf in (answer.t_x, answer.tt_x, answer.ct_vector):
        assert np.isnan(leaf[3]).all()


def loss(problem):
    return lambda t: jnp.sum(jnp.abs(problem.solve(t, t)) ** 2)


def want_losses(problem, order):
    weights = np.ones(problem.path.right.shape[-1])
    return np.stack([loss_derivatives(problem.path, weights, t)[order] for t in TIMES])


@ft.cache
def vmap_of_derivatives(name):
    problem = PROBLEMS[name]
    member = lambda t: derivatives(jax.grad(loss(problem)), 1)(t)
    return jit(jax.vmap(member))(TIMES)


@ft.cache
def derivatives_of_vmap(name):
    problem = PROBLEMS[name]
    batched = jax.vmap(lambda t: problem.solve(t, t))
    total_loss = lambda times: jnp.sum(jax.vmap(loss(problem))(times))

    def all_of_them(times):
        ones = jnp.ones_like(times)
        _, tangent = jax.jvp(batched, (times,), (ones,))
        gradient, hessian = jax.jvp(jax.grad(total_loss), (times,), (ones,))
        return tangent, gradient, hessian

    return jit(all_of_them)(TIMES)


@each(BATCHED, "slow")  # a second program of a batch for each
def test_vmap_of_vjp(problem):
    got = vmap_of_derivatives(problem.name)[0]
    assert_close(got, want_losses(problem, 1), problem.rtol)


@each(BATCHED, "slow")
def test_vmap_of_jvp_of_vjp(problem):
    got = vmap_of_derivatives(problem.name)[1]
    assert_close(got, want_losses(problem, 2), problem.rtol)


@each(BATCHED, "slow")  # and a third
def test_jvp_of_vmap(problem):
    got = derivatives_of_vmap(problem.name)[0]
    assert_close(got, _of_members(problem, 1), problem.rtol)


@each(BATCHED, "slow")
def test_vjp_of_vmap(problem):
    got = derivatives_of_vmap(problem.name)[1]
    assert_close(got, want_losses(problem, 1), problem.rtol)


@each(BATCHED, "slow")
def test_jvp_of_vjp_of_vmap(problem):
    got = derivatives_of_vmap(problem.name)[2]
    assert_close(got, want_losses(problem, 2), problem.rtol)


@pytest.mark.default("tall-complex-QR")
@pytest.mark.ci("*")
@each(FACTORS)
def test_vmap_over_vectors_with_one_operator(problem):
    matrix = problem.matrix(0.0)
    vectors = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    solve = jax.vmap(problem.solve_arrays, in_axes=(None, 0), out_axes=1)
    want = np.linalg.pinv(matrix, rcond=1e-8)
    assert_close(jit(solve)(matrix, vectors), want, problem.rtol)


@pytest.mark.default("tall-complex-QR")
@pytest.mark.ci("*")
@each(FACTORS)
def test_vmap_over_tangents_of_vector(problem):
    matrix, vector = problem.matrix(0.0), problem.vector(0.0)
    tangents = jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def push_forward(tangent):
        solve = lambda vector: problem.solve_arrays(matrix, vector)
        return jax.jvp(solve, (vector,), (tangent,))[1]

    want = np.linalg.pinv(matrix, rcond=1e-8)
    assert_close(jit(jax.vmap(push_forward))(tangents).T, want, problem.rtol)


@pytest.mark.default("tall-complex-QR")
@pytest.mark.ci("*")
@each(FACTORS)
def test_vmap_over_cotangents_of_vector(problem):
    matrix, vector = problem.matrix(0.0), problem.vector(0.0)
    cotangents = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    solve = lambda vector: problem.solve_arrays(matrix, vector)
    pull_back = lambda cotangent: jax.vjp(solve, vector)[1](cotangent)[0]
    want = np.linalg.pinv(matrix, rcond=1e-8)
    assert_close(jit(jax.vmap(pull_back))(cotangents), want, problem.rtol)


@pytest.mark.parametrize("name", ["tall-real-QR", "wide-real-QR"])
def test_vmap_over_operators_with_one_vector(name):
    problem = PROBLEMS[name]
    vector = problem.vector(0.0)
    matrices = jax.vmap(problem.matrix)(TIMES)
    solve = jax.vmap(problem.solve_arrays, in_axes=(0, None))
    want = np.stack([np.linalg.pinv(matrix) @ vector for matrix in matrices])
    assert_close(jit(solve)(matrices, vector), want, problem.rtol)


@pytest.mark.default("tall-real-QR")
@pytest.mark.ci("*")  # a program each
@pytest.mark.parametrize("name", ["tall-real-QR", "wide-real-SVD", "definite-real-CG"])
def test_jacobian_by_forward_and_reverse_mode_agree(name):
    problem = PROBLEMS[name]
    matrix, vector = problem.matrix(0.0), problem.vector(0.0)
    solve = lambda matrix: problem.solve_arrays(matrix, vector)
    forward, reverse = jit(lambda a: (jax.jacfwd(solve)(a), jax.jacrev(solve)(a)))(matrix)
    assert_close(forward, reverse, problem.rtol)


def semidefinite_batch(members=500):
    """Matrices of rank 3 with eigenvalues 1, 2, 4, and an eigenbasis of each."""
    rng = np.random.default_rng(0)
    bases, _ = np.linalg.qr(rng.standard_normal((members, 5, 5)))
    range_ = bases[:, :, :3]
    matrices = (range_ * np.array([1.0, 2.0, 4.0])) @ range_.swapaxes(1, 2)
    return matrices, bases, rng.standard_normal((members, 5))


def solve_batch(solver, matrices, vectors):
    @jit
    @jax.vmap
    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    return solve(matrices, vectors)


@pytest.mark.default("1e-08")
@pytest.mark.ci("*")  # a program each
@pytest.mark.parametrize("tolerance", [1e-6, 1e-8, 1e-11])
def test_singular_cg_is_accurate_for_every_member_of_a_batch(tolerance):
    matrices, _, vectors = semidefinite_batch()
    solver = pj.CG(tolerance, tolerance, well_posed=False)
    got, successful = solve_batch(solver, matrices, vectors)
    want = np.linalg.pinv(matrices, rcond=1e-8, hermitian=True) @ vectors[..., None]
    assert np.all(successful)
    # The residual of each of two passes, times |A†| = 1 and max |x| of a few.
    assert_close(got, want[..., 0], 10 * tolerance)


def test_neumann_series_of_null_vectors_does_not_count_as_growing():
    matrices, bases, _ = semidefinite_batch()
    solver = pj.Neumann(num_terms=80, scale=0.4)
    _, successful = solve_batch(solver, matrices, bases[:, :, 3])
    assert np.all(successful)
