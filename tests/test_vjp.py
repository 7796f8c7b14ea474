"""Cotangents: paired with the true tangent of a path they give the change of x."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, jit
from problems import CORE, each, PROBLEMS
from programs import alone, cotangent, random_like
from truth import pairing, path_tangents, solution_derivatives

import pseudojvp as pj


ALL = tuple(PROBLEMS)
# b(t) leaves the range of A(t) unless both move.
OF_ANY_VECTOR = [name for name in ALL if "consistent" not in name]


@pytest.mark.shows("vjp")
@each(ALL)
def test_vjp_pairs_with_true_tangent(problem):
    answer = alone(problem.name)
    t_matrix, t_vector = path_tangents(problem.path)
    want = pairing((cotangent(problem), solution_derivatives(problem.path)[1]))
    got = pairing((answer.ct_matrix, t_matrix), (answer.ct_vector, t_vector))
    assert got == pytest.approx(want, rel=problem.rtol, abs=problem.rtol)


@each(OF_ANY_VECTOR)
def test_cotangent_of_operator_pairs_with_true_tangent(problem):
    t_matrix, _ = path_tangents(problem.path)
    t_solution = solution_derivatives(problem.path, vector_moves=False)[1]
    want = pairing((cotangent(problem), t_solution))
    got = pairing((alone(problem.name).ct_matrix, t_matrix))
    assert got == pytest.approx(want, rel=problem.rtol, abs=problem.rtol)


@each(OF_ANY_VECTOR)
def test_cotangent_of_vector_is_transposed_pseudoinverse(problem):
    want = np.linalg.pinv(problem.matrix(0.0), rcond=1e-8).T @ cotangent(problem)
    assert_close(alone(problem.name).ct_vector, want, problem.rtol)


@each(CORE, "nightly")
def test_vjp_is_transpose_of_jvp_in_a_direction_off_the_path(problem):
    primals = problem.matrix(0.0), problem.vector(0.0)
    tangents = tuple(random_like(array, 1) for array in primals)
    _, t_solution = jit(lambda *args: jax.jvp(problem.solve_arrays, *args))(
        primals, tangents
    )
    answer = alone(problem.name)
    want = pairing((answer.ct_matrix, tangents[0]), (answer.ct_vector, tangents[1]))
    got = pairing((cotangent(problem), t_solution))
    assert got == pytest.approx(want, rel=problem.rtol, abs=problem.rtol)


@pytest.mark.parametrize("name", ["tall-complex-QR", "wide-deficient-complex-SVD"])
def test_gradient_with_respect_to_vector_alone(name):
    problem = PROBLEMS[name]
    matrix, vector = problem.matrix(0.0), problem.vector(0.0)
    gradient = jax.grad(lambda b: jnp.sum(problem.solve_arrays(matrix, b).imag))
    # Im x = Re(−i x)
    want = np.linalg.pinv(matrix, rcond=1e-8).T @ np.full(matrix.shape[1], -1j)
    assert_close(jit(gradient)(vector), want, problem.rtol)


@pytest.mark.parametrize("name", ["tall-complex-QR", "wide-deficient-complex-SVD"])
def test_gradient_with_respect_to_operator_alone(name):
    problem = PROBLEMS[name]
    vector = problem.vector(0.0)
    gradient = jax.grad(lambda a: jnp.sum(problem.solve_arrays(a, vector).imag))
    t_matrix, _ = path_tangents(problem.path)
    want = solution_derivatives(problem.path, vector_moves=False)[1].imag.sum()
    got = pairing((jit(gradient)(problem.matrix(0.0)), t_matrix))
    assert got == pytest.approx(want, rel=problem.rtol)


@pytest.mark.slow  # a second
def test_gradient_of_full_rank_solve_is_the_closed_form():
    rng = np.random.default_rng(2)
    matrix, vector = rng.standard_normal((6, 3)), rng.standard_normal(6)
    ct_solution = rng.standard_normal(3)
    gradient = jax.grad(
        lambda a: jnp.vdot(ct_solution, pj.linear_solve(a, vector, pj.QR()).value)
    )
    # Golub & Pereyra: A̅ = −A†^H x̅ x^H + r (A^H A)^-1 x̅, as a row.
    pseudoinverse = np.linalg.pinv(matrix)
    solution = pseudoinverse @ vector
    gram_term = pseudoinverse @ pseudoinverse.T @ ct_solution
    want = -np.outer(pseudoinverse.T @ ct_solution, solution)
    want += np.outer(vector - matrix @ solution, gram_term)
    assert_close(jit(gradient)(matrix), want, 1e-12)


def test_gradient_through_inverse_operator():
    rng = np.random.default_rng(3)
    matrix, vector = rng.standard_normal((5, 3)), rng.standard_normal(5)

    @eqx.filter_jit
    @jax.grad
    def gradient(matrix):
        return jnp.sum(pj.invert(lx.MatrixLinearOperator(matrix), pj.QR()).mv(vector))

    pseudoinverse = np.linalg.pinv(matrix)
    solution = pseudoinverse @ vector
    want = -np.outer(pseudoinverse.T @ np.ones(3), solution)
    residual = vector - matrix @ solution
    want += np.outer(residual, pseudoinverse @ pseudoinverse.T @ np.ones(3))
    assert_close(gradient(matrix), want, 1e-12)
