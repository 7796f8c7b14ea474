"""Derivatives and batches of `linear_solve` as lineax's own users write them."""

import functools

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


SIZE = 3
TOL = 1e-13
_SKIPPED = {"Auto(None)", "Auto(False)", "Neumann"}  # twins of the others here
CASES = {
    **{name: case for name, case in cases.OURS.items() if name not in _SKIPPED},
    "Auto(True)-diagonal": cases.AUTO["Auto(True)-diagonal"],
    **{
        name: cases.THEIRS[name]
        for name in (
            "lx.QR",
            "lx.Cholesky",
            "lx.Tridiagonal",
            "lx.Triangular",
            "lx.BiCGStab",
        )
    },
}
# Programs of seconds each.
FEW = pytest.mark.default("CG-negative")
ONE = pytest.mark.default("Normal(Cholesky)")
OTHERS = pytest.mark.ci("*")
EVERY = pytest.mark.parametrize("name", CASES)
_DIRECT = pytest.mark.parametrize(
    "solver", [pj.QR(), pj.SVD(), lx.LU()], ids=["QR", "SVD", "LU"]
)


class _Setting:
    """One compiled program per solver: values and derivatives, along t (E, c)."""

    def __init__(self, name):
        case, dtype = CASES[name], complex
        self.kind, self.solver = case.kind, case.make(TOL)
        self.matrix = cases.matrix_of(case.kind, SIZE, dtype)
        self.t_matrix = cases.direction_of(case.kind, SIZE, dtype, 11)
        self.vector, self.t_vector, self.weights = cases.random_array((3, SIZE), dtype, 7)

    def solve(self, matrix, vector):
        operator = cases.operator_of(matrix, self.kind)
        return pj.linear_solve(operator, vector, self.solver, throw=False).value

    def truth(self):
        """x, x' and x'' along (A + tE, b + tc), from A x'' = −2 E x'."""
        value = np.linalg.solve(self.matrix, self.vector)
        t_value = np.linalg.solve(self.matrix, self.t_vector - self.t_matrix @ value)
        return value, t_value, np.linalg.solve(self.matrix, -2 * self.t_matrix @ t_value)

    @property
    def primals(self):
        return jnp.asarray(self.matrix), jnp.asarray(self.vector)

    @property
    def tangents(self):
        return jnp.asarray(self.t_matrix), jnp.asarray(self.t_vector)


def _assert_close(got, want, tol=1e-9):
    np.testing.assert_allclose(got, want, rtol=0, atol=tol * np.linalg.norm(want))


@functools.cache
def _computed(name):
    setting = _Setting(name)

    @jax.jit
    def derivatives(primals, tangents, weights):
        push = lambda *primals: jax.jvp(setting.solve, primals, tangents)
        (value, tangent), (_, second) = jax.jvp(push, primals, tangents)
        pulled = jax.vjp(setting.solve, *primals)[1](weights)
        return value, tangent, second, pulled

    weights = jnp.asarray(setting.weights)
    return setting, derivatives(setting.primals, setting.tangents, weights)


@FEW
@OTHERS
@EVERY
def test_jvp_is_right(name):
    setting, (_, tangent, _, _) = _computed(name)
    _assert_close(tangent, setting.truth()[1])


@FEW
@OTHERS
@EVERY
def test_jvp_of_jvp_is_right(name):
    setting, (_, _, second, _) = _computed(name)
    _assert_close(second, setting.truth()[2], tol=1e-7)  # an iterative primal, twice


@FEW
@OTHERS
@EVERY
def test_vjp_is_right(name):
    setting, (_, _, _, (ct_matrix, ct_vector)) = _computed(name)
    paired = np.sum(ct_matrix * setting.t_matrix) + np.sum(ct_vector * setting.t_vector)
    _assert_close(paired, np.sum(setting.weights * setting.truth()[1]))


@ONE
@OTHERS
@EVERY
def test_vmap_of_jvp_of_a_batch_of_operators_and_vectors_is_right(name):
    setting = _Setting(name)
    scales = np.array([1.0, 2.0, -0.5], complex)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def batch(primals, scale):
        tangents = jax.tree.map(lambda t: scale * t, setting.tangents)
        return jax.jvp(setting.solve, primals, tangents)[1]

    _assert_close(batch(setting.primals, scales), np.outer(scales, setting.truth()[1]))


@ONE
@OTHERS
@EVERY
def test_vmap_of_vmap_is_right(name):
    setting = _Setting(name)
    matrices = np.stack([cases.matrix_of(setting.kind, SIZE, complex, s) for s in (0, 4)])
    vectors = np.stack([setting.vector, setting.t_vector, setting.weights])

    @jax.jit
    def batch(matrices, vectors):
        over_vectors = jax.vmap(setting.solve, in_axes=(None, 0))
        return jax.vmap(over_vectors, in_axes=(0, None))(matrices, vectors)

    truth = np.linalg.solve(matrices[:, None], vectors[None, :, :, None])[..., 0]
    _assert_close(batch(matrices, vectors), truth)


@pytest.mark.default("LU")
@OTHERS
@_DIRECT
def test_linear_transpose_with_respect_to_the_vector_is_the_transposed_solve(solver):
    matrix = cases.conditioned((SIZE, SIZE), [1.0, 2.0, 3.0], complex, 3)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix))
    solve = lambda b: pj.linear_solve(operator, b, solver, throw=False).value
    weights = cases.random_array((SIZE,), complex, 7)
    (got,) = jax.jit(jax.linear_transpose(solve, weights))(weights)
    _assert_close(got, np.linalg.solve(matrix.T, weights))


@pytest.mark.default("SVD")
@OTHERS
@_DIRECT
def test_state_given_from_outside_changes_no_derivative(solver):
    matrix = jnp.asarray(cases.matrix_of("general", SIZE, float))
    vector = jnp.asarray(cases.random_array((SIZE,), float, 7))
    state = solver.init(lx.MatrixLinearOperator(matrix), {})

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        solution = pj.linear_solve(operator, vector, solver, state=state, throw=False)
        return jnp.sum(solution.value)

    ct_matrix, ct_vector = gradient(matrix, vector)
    adjoint = np.linalg.solve(matrix.T, np.ones(SIZE))
    _assert_close(ct_vector, adjoint)
    _assert_close(ct_matrix, -np.outer(adjoint, np.linalg.solve(matrix, vector)))


@pytest.mark.default("QR")
@OTHERS
@_DIRECT
def test_state_made_from_a_traced_operator_changes_no_derivative(solver):
    matrix = jnp.asarray(cases.matrix_of("general", SIZE, float))

    @jax.jit
    @jax.grad
    def gradient(matrix):
        operator = lx.MatrixLinearOperator(matrix)
        state = solver.init(jax.lax.stop_gradient(operator), {})
        vector = jnp.ones(SIZE)
        solution = pj.linear_solve(operator, vector, solver, state=state, throw=False)
        return jnp.sum(solution.value)

    inv = np.linalg.inv(matrix)
    truth = -np.outer(inv.T @ np.ones(SIZE), inv @ np.ones(SIZE))
    _assert_close(gradient(matrix), truth)


def test_gradient_through_vmap_takes_cotangents_that_are_symbolic_zeros():
    # Only one leaf of the solution is used: the cotangent of the other is symbolic.
    structure = jax.eval_shape(lambda: (jnp.ones(1), jnp.ones(1)))
    multiply = lambda x: (2 * x[0], 4 * x[1])
    operator = lx.FunctionLinearOperator(multiply, structure)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(first, second):
        solve = lambda *b: pj.linear_solve(operator, b, pj.QR(), throw=False).value
        used, _ = jax.vmap(solve)(first, second)
        return jnp.sum(used)

    of_first, of_second = gradient(jnp.ones((3, 1)), jnp.ones((3, 1)))
    np.testing.assert_allclose(of_first, np.full((3, 1), 0.5))
    np.testing.assert_array_equal(of_second, np.zeros((3, 1)))


def test_gradient_for_a_solution_that_is_not_used_is_zero():
    def loss(matrix, vector):
        solution = pj.linear_solve(matrix, vector, pj.QR(), throw=False)
        return jnp.sum(vector) + 0 * jnp.sum(jax.lax.stop_gradient(solution.value))

    gradients = jit(jax.grad(loss, argnums=(0, 1)))(jnp.eye(2), jnp.ones(2))
    np.testing.assert_array_equal(gradients[0], np.zeros((2, 2)))
    np.testing.assert_array_equal(gradients[1], np.ones(2))


def test_jvp_with_a_symbolic_zero_tangent_for_the_operator_has_the_vector_term_only():
    matrix = jnp.asarray(cases.matrix_of("general", SIZE, float))
    operator = lx.MatrixLinearOperator(matrix)
    solve = lambda a, b: pj.linear_solve(a, b, pj.QR(), throw=False).value
    no_tangent = jax.tree.map(lambda _: None, operator)
    primals, tangents = (operator, jnp.ones(SIZE)), (no_tangent, jnp.arange(3.0))
    _, tangent = eqx.filter_jit(eqx.filter_jvp)(solve, primals, tangents)
    _assert_close(tangent, np.linalg.solve(matrix, np.arange(3.0)))


def test_jvp_with_a_symbolic_zero_tangent_for_the_vector_has_the_operator_term_only():
    matrix = jnp.asarray(cases.matrix_of("general", SIZE, float))
    operator = lx.MatrixLinearOperator(matrix)
    t_operator = lx.MatrixLinearOperator(jnp.eye(SIZE))
    solve = lambda a, b: pj.linear_solve(a, b, pj.QR(), throw=False).value
    primals, tangents = (operator, jnp.ones(SIZE)), (t_operator, None)
    _, tangent = eqx.filter_jit(eqx.filter_jvp)(solve, primals, tangents)
    _assert_close(
        tangent, -np.linalg.solve(matrix, np.linalg.solve(matrix, np.ones(SIZE)))
    )


@pytest.mark.default("bwd")
@OTHERS
@pytest.mark.parametrize("jac", ["fwd", "bwd"])
def test_derivative_with_respect_to_the_arguments_of_a_jacobian_is_right(jac):
    point = jnp.array([1.0, 2.0])

    def solve(scale):
        function = lambda y, scale: scale * y + 0.1 * jnp.flip(y) ** 2
        operator = lx.JacobianLinearOperator(function, point, scale, jac=jac)
        return pj.linear_solve(operator, jnp.ones(2), pj.QR(), throw=False).value

    _, tangent = jax.jit(lambda s: jax.jvp(solve, (s,), (1.0,)))(3.0)
    matrix = np.array([[3.0, 0.2 * 2], [0.2 * 1, 3.0]])
    _assert_close(tangent, -np.linalg.solve(matrix, np.linalg.solve(matrix, np.ones(2))))


def test_gradient_for_a_value_closed_over_by_a_function_operator_is_right():
    @jax.jit
    @jax.grad
    def gradient(scale):
        multiply = lambda vector: scale * vector
        operator = lx.FunctionLinearOperator(
            multiply, jax.eval_shape(lambda: jnp.ones(2))
        )
        solution = pj.linear_solve(operator, jnp.ones(2), pj.QR(), throw=False)
        return jnp.sum(solution.value)

    _assert_close(gradient(2.0), -2 / 2.0**2)


def test_gradient_through_options_is_zero_for_the_exact_solution():
    matrix = jnp.asarray(cases.matrix_of("positive", SIZE, float))
    operator = cases.operator_of(matrix, "positive")

    @jax.jit
    @jax.grad
    def gradient(guess):
        solution = pj.linear_solve(
            operator,
            jnp.ones(SIZE),
            pj.CG(1e-12, 1e-12),
            options={"y0": guess},
            throw=False,
        )
        return jnp.sum(solution.value)

    np.testing.assert_array_equal(gradient(jnp.ones(SIZE)), np.zeros(SIZE))


@pytest.mark.default("preconditioner")
@OTHERS
@pytest.mark.parametrize("key", ["preconditioner", "y0"])
def test_options_change_no_gradient(key):
    matrix = jnp.asarray(cases.matrix_of("positive", SIZE, float))
    inverse = np.linalg.inv(matrix)
    options = {
        "preconditioner": cases.operator_of(inverse + np.eye(SIZE) / 9, "positive"),
        "y0": jnp.full(SIZE, 3.0),
    }

    @jax.jit
    @jax.grad
    def gradient(vector):
        operator = cases.operator_of(matrix, "positive")
        solver, given = pj.CG(TOL, TOL), {key: options[key]}
        solution = pj.linear_solve(operator, vector, solver, options=given, throw=False)
        return solution.value @ vector

    _assert_close(gradient(jnp.arange(3.0)), 2 * inverse @ np.arange(3.0))
