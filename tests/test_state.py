"""Derivatives with `state=` given: it is a factorisation to use, not an input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, count_primitive, derivatives, jit
from problems import each
from truth import loss_derivatives, solution_derivatives

import pseudojvp as pj


FEW = ["square-complex-lineax.LU", "tall-complex-lineax.QR"]
MANY = [
    "tall-complex-QR",
    "wide-complex-QR",
    "wide-deficient-complex-SVD",
    "tall-complex-Normal(Cholesky)",
    "tall-complex-Normal(CG)",
    "definite-complex-CG",
    "definite-real-Neumann",
    "square-complex-Auto(True)",
    "wide-deficient-complex-Auto(False)",
    "diagonal-deficient-real-Auto(False)",
    "wide-deficient-complex-Pinv(False)",
]
# Several seconds each, of compiling second derivatives.
each_stateful = pytest.mark.parametrize(
    "problem", [*each(FEW).args[1], *each(MANY, "slow").args[1]]
)
each_vectorised = pytest.mark.parametrize(
    "problem",
    [
        *each(["tall-complex-QR"]).args[1],
        *each(["wide-deficient-complex-SVD", "definite-complex-CG"], "slow").args[1],
    ],
)


def initial_state(problem):
    operator = problem.make_operator(problem.matrix(0.0), problem.tags)
    return problem.solver.init(operator, {})


def solve_with_state(problem, state):
    return lambda t: problem.solve_arrays(
        problem.matrix(t), problem.vector(t), state=state
    )


@each_stateful
def test_tangents_with_given_state(problem):
    got = jit(derivatives(solve_with_state(problem, initial_state(problem)), 2))(0.0)
    want = solution_derivatives(problem.path)[:3]
    assert_close(np.stack(got), want, problem.rtol)


@each_stateful
def test_gradient_and_second_derivative_with_given_state(problem):
    solve = solve_with_state(problem, initial_state(problem))
    gradient = jax.grad(lambda t: jnp.sum(jnp.abs(solve(t)) ** 2))
    weights = np.ones(problem.path.right.shape[-1])
    want = loss_derivatives(problem.path, weights)[1:3]
    assert_close(jit(derivatives(gradient, 1))(0.0), want, problem.rtol)


@each(["tall-real-QR", "wide-deficient-real-SVD", "square-complex-lineax.LU"])
def test_returned_state_solves_again(problem):
    matrix, vector = problem.matrix(0.0), problem.vector(0.0)
    first = problem.linear_solve(matrix, vector)
    second = problem.linear_solve(matrix, 2 * vector, state=first.state)
    want = 2 * np.linalg.pinv(matrix, rcond=1e-8) @ vector
    assert_close(second.value, want, problem.rtol)


@pytest.mark.parametrize(
    ("factorisation", "solver", "rows"),
    [("geqrf", pj.QR(), 7), ("svd", pj.SVD(), 7), ("lu", lx.LU(), 4)],
    ids=["QR", "SVD", "lineax.LU"],
)
@pytest.mark.parametrize(("given", "count"), [(True, 0), (False, 1)])
def test_given_state_saves_the_factorisation(factorisation, solver, rows, given, count):
    matrix, vector = jnp.zeros((rows, 4)), jnp.ones(rows)
    operator = lx.MatrixLinearOperator(matrix)
    states = [eqx.filter_eval_shape(solver.init, operator, {})] if given else []

    def loss(matrix, vector, *states):
        kwargs = {"state": states[0]} if given else {}
        return jnp.sum(pj.linear_solve(matrix, vector, solver, **kwargs).value)

    jaxpr = jax.make_jaxpr(jax.grad(loss))(matrix, vector, *states)
    assert count_primitive(factorisation, jaxpr.jaxpr) == count


@each(["tall-real-QR", "wide-deficient-real-SVD", "definite-real-CG"])
def test_gradient_with_respect_to_state_is_zero(problem):
    state = initial_state(problem)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(state):
        return jnp.sum(solve_with_state(problem, state)(0.0))

    leaves = jax.tree.leaves(gradient(state))
    assert leaves
    assert all(np.all(np.asarray(leaf) == 0) for leaf in leaves)


@each_vectorised
def test_vmap_over_vectors_with_one_state(problem):
    matrix = problem.path.left[0] @ problem.path.right[0]

    @jit
    def solutions(vectors):
        state = initial_state(problem)
        solve = lambda vector: problem.solve_arrays(matrix, vector, state=state)
        return jax.vmap(solve)(vectors)

    got = solutions(np.eye(len(matrix), dtype=matrix.dtype))
    assert_close(got.T, np.linalg.pinv(matrix, rcond=1e-8), problem.rtol)


@each_vectorised
def test_vmap_over_operators_and_states(problem):
    times = np.array([-0.02, 0.0, 0.03])

    @jax.vmap
    def gradient(t):
        operator = problem.make_operator(problem.matrix(t), problem.tags)
        solve = solve_with_state(problem, problem.solver.init(operator, {}))
        return jax.grad(lambda t: jnp.sum(jnp.abs(solve(t)) ** 2))(t)

    weights = np.ones(problem.path.right.shape[-1])
    want = np.stack([loss_derivatives(problem.path, weights, t)[1] for t in times])
    assert_close(jit(gradient)(times), want, problem.rtol)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.CholeskyQR(), pj.PivotedQR(), pj.SVD(), pj.LU(), pj.Normal(pj.QR())],
    ids=["QR", "CholeskyQR", "PivotedQR", "SVD", "LU", "Normal(QR)"],
)
def test_transposed_state_of_a_square_operator_solves_with_its_transpose(
    solver, is_complex
):
    rng = np.random.default_rng(0)
    matrix, vector = rng.standard_normal((4, 4)) + 3 * np.eye(4), np.ones(4)
    matrix = matrix + 1j * rng.standard_normal((4, 4)) if is_complex else matrix
    vector = vector.astype(matrix.dtype)
    weights = rng.standard_normal(4)

    def loss(matrix, solve):
        return jnp.sum(weights * jnp.abs(solve(matrix, vector)) ** 2)

    def ours(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        stopped = lx.MatrixLinearOperator(jax.lax.stop_gradient(matrix))
        state, options = solver.transpose(solver.init(stopped, {}), {})
        solution = pj.linear_solve(
            operator.T, vector, solver, state=state, options=options
        )
        return solution.value

    got = jit(jax.value_and_grad(lambda m: loss(m, ours)))(matrix)
    truth = lambda matrix, vector: jnp.linalg.solve(matrix.T, vector)
    want = jax.value_and_grad(lambda m: loss(m, truth))(matrix)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-9)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(pj.QR(), lx.QR()), (pj.LU(), lx.LU()), (pj.CG(1e-6), lx.CG(1e-6, 1e-6))],
    ids=["QR", "LU", "CG"],
)
def test_state_that_lineax_made_is_an_error_of_our_solver(ours, theirs):
    operator = lx.MatrixLinearOperator(jnp.eye(2), lx.positive_semidefinite_tag)
    state = theirs.init(operator, {})
    name = type(ours).__name__
    with pytest.raises(
        ValueError, match=rf"`{name}` got a `state` of type tuple, .*init"
    ):
        pj.linear_solve(operator, jnp.ones(2), ours, state=state)
