"""Solves in the programs that people write: loops, branches, nested derivatives."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from checks import assert_close
from drop_in_cases import conditioned, matrix_of, random_array
from situations import assert_right, differences

import pseudojvp as pj


MATRIX = matrix_of("general", 3, float)
DEFINITE = matrix_of("positive", 3, float)
VECTOR = np.array([1.0, -2.0, 0.5])
LU = lx.LU()


def _solution(matrix, vector=VECTOR, solver=LU):
    return pj.linear_solve(matrix, vector, solver, throw=False).value


@pytest.mark.slow  # a second
def test_reverse_mode_through_a_tangent_of_a_batch_of_solves():
    def tangents(x):
        first = lambda z: _solution(MATRIX + z * np.eye(3))[0]
        push = lambda t: jax.jvp(jax.vmap(first), (x,), (t,))[1]
        return jax.vjp(push, jnp.ones_like(x))[1](x)[0]

    def truth(x):
        inverses = np.linalg.inv(MATRIX + x[:, None, None] * np.eye(3))
        return -x * (inverses @ inverses @ VECTOR)[:, 0]

    assert_right(tangents, truth, [2.0, 3.0])


def _root(parameter):
    """y + sin y = M parameter, by Newton's method."""
    y, target = np.zeros(3), MATRIX @ parameter
    for _ in range(50):
        y = y - (y + np.sin(y) - target) / (1 + np.cos(y))
    return y


@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [pj.GMRES(), pj.LSMR(), lx.LU()], ids=repr)
def test_implicit_function_of_jax_takes_a_solve_in_both_modes(solver):
    def root(parameter):
        function = lambda y: y + jnp.sin(y) - MATRIX @ parameter

        def newton(function, y):
            step = lambda _, y: y - function(y) / (1 + jnp.cos(y))
            return jax.lax.fori_loop(0, 50, step, y)

        def tangent_solve(linear, vector):
            operator = lx.FunctionLinearOperator(linear, jax.typeof(vector))
            return _solution(operator, vector, solver)

        return jax.lax.custom_root(function, jnp.zeros(3), newton, tangent_solve)

    assert_right(root, _root, [0.1, 0.2, -0.3])


def test_custom_rule_of_a_root_by_an_iterative_solver_is_transposed():
    @jax.custom_jvp
    def root(parameter):
        step = lambda _, y: y - (y + jnp.sin(y) - MATRIX @ parameter) / (1 + jnp.cos(y))
        return jax.lax.fori_loop(0, 50, step, jnp.zeros(3))

    @root.defjvp
    def _(primals, tangents):
        y = root(*primals)
        product = lambda v: (1 + jnp.cos(y)) * v
        structure = jax.ShapeDtypeStruct(y.shape, y.dtype)
        operator = lx.FunctionLinearOperator(product, structure)
        return y, _solution(operator, MATRIX @ tangents[0], pj.GMRES(1e-12, 1e-12))

    assert_right(root, _root, [0.1, 0.2, -0.3])


_FOUR = np.stack([conditioned((5, 3), [1, 2, 3], float, seed) for seed in range(4)], 1)


@pytest.mark.slow  # a second
def test_least_squares_over_a_batch_axis_in_the_middle():
    columns = random_array((5, 4), float, 9)

    def solutions(matrices):
        solve = lambda a, b: pj.lstsq(a, b, throw=False)[0]
        return jax.vmap(solve, in_axes=(1, 1), out_axes=1)(matrices, columns)

    def truth(matrices):
        inverses = np.linalg.pinv(np.moveaxis(matrices, 1, 0))
        return (inverses @ columns.T[:, :, None])[:, :, 0].T

    assert_right(solutions, truth, _FOUR)


def _cube_root(a, steps=60):
    """M y + y³ = a, by Newton's method."""
    y = np.zeros(3)
    for _ in range(steps):
        y = y - np.linalg.solve(DEFINITE + np.diag(3 * y**2), DEFINITE @ y + y**3 - a)
    return y


def test_solve_in_a_branch_of_a_loop_that_has_converged():
    function = lambda y, a: DEFINITE @ y + y**3 - a

    def root(a):
        def step(y, _):
            residual = function(y, a)
            newton = lambda y: y - _solution(jax.jacfwd(function)(y, a), residual)
            moving = jnp.max(jnp.abs(residual)) > 1e-14
            return jax.lax.cond(moving, newton, lambda y: y, y), None

        return jax.lax.scan(step, jnp.zeros(3), None, length=20)[0]

    assert_right(root, _cube_root, [1.0, -2.0, 3.0])


def test_checkpoint_within_a_loop_recomputes_a_solve_with_what_it_closes_over():
    def chain(matrix):
        operator = lx.MatrixLinearOperator(matrix)
        nothing = jax.checkpoint_policies.nothing_saveable

        @ft.partial(jax.checkpoint, policy=nothing)
        def step(x, _):
            return jnp.sin(_solution(operator, x, pj.QR())), None

        return jax.lax.scan(step, jnp.asarray(VECTOR), None, length=3)[0]

    def truth(matrix):
        x = VECTOR
        for _ in range(3):
            x = np.sin(np.linalg.solve(matrix, x))
        return x

    assert_right(chain, truth, MATRIX)


@pytest.mark.default("PivotedQR*")
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [pj.PivotedQR(), pj.CG(), pj.LSMR()], ids=repr)
def test_no_tracer_leaks_out_of_a_solve_or_its_derivatives(solver):
    def loss(matrix):
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        return jnp.sum(_solution(operator, VECTOR, solver) ** 2)

    with jax.checking_leaks():
        gradient = jax.jit(jax.vmap(jax.grad(loss)))(DEFINITE[None])[0]
    x = np.linalg.solve(DEFINITE, VECTOR)
    assert_close(gradient, -2 * np.outer(np.linalg.solve(DEFINITE, x), x), 1e-8)


def test_gradient_for_an_operator_is_one_for_each_array_within_it():
    left, right = random_array((3, 5), float, 1), random_array((5, 3), float, 2)
    diagonal = np.array([4.0, 5.0, 6.0])
    product = lx.MatrixLinearOperator(left) @ lx.MatrixLinearOperator(right)
    operator = 2.0 * product + lx.DiagonalLinearOperator(diagonal)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(operator):
        return jnp.sum(_solution(operator))

    def truth(arrays):
        left, right = arrays[:15].reshape(3, 5), arrays[15:30].reshape(5, 3)
        matrix = 2 * left @ right + np.diag(arrays[30:33])
        return np.linalg.solve(matrix, VECTOR).sum()

    got = [leaf for leaf in jax.tree.leaves(gradient(operator)) if leaf.ndim]
    flat = np.concatenate([left.ravel(), right.ravel(), diagonal])
    for leaf, start in zip(got, (0, 15, 30), strict=True):
        direction = np.zeros(33)
        direction[start : start + leaf.size] = random_array((leaf.size,), float, start)
        along = direction[start : start + leaf.size].reshape(leaf.shape)
        slope = differences(truth, flat, direction)
        np.testing.assert_allclose(np.vdot(leaf, along), slope, rtol=1e-7)


@pytest.mark.slow  # two seconds
def test_solves_within_an_associative_scan():
    """x ↦ M⁻¹ x + b for each element: composed in pairs, and in pairs of pairs."""
    vectors = random_array((5, 3), float, 3)

    def last(matrices):
        one, many = jnp.eye(3), jax.vmap(jax.vmap(_solution, (None, 1), 1))
        maps = many(matrices, jnp.broadcast_to(one, (5, 3, 3))), vectors

        def after(first, second):
            (a, b), (c, d) = first, second
            return c @ a, jnp.einsum("nij,nj->ni", c, b) + d

        return jax.lax.associative_scan(after, maps)[1][-1]

    def truth(matrices):
        x = np.zeros(3)
        for matrix, vector in zip(matrices, vectors, strict=True):
            x = np.linalg.solve(matrix, x) + vector
        return x

    assert_right(last, truth, np.stack([MATRIX + k * np.eye(3) for k in range(5)]))


@pytest.mark.slow  # two seconds
def test_gradient_of_a_batch_of_roots_beside_arguments_that_are_integers():
    def roots(targets):
        def function(y, args):
            target, power = args
            cube = jnp.where(power == 3, y**3, y)
            return DEFINITE @ y + cube - target

        def one(target, power):
            newton = optx.Newton(1e-12, 1e-12, linear_solver=pj.LU())
            adjoint = optx.ImplicitAdjoint(linear_solver=pj.PivotedQR())
            args = target, power
            start = jnp.zeros(3)
            return optx.root_find(function, newton, start, args, adjoint=adjoint).value

        return jax.vmap(one)(targets, jnp.array([3, 3]))

    truth = lambda targets: np.stack([_cube_root(target) for target in targets])
    at = np.array([[1.0, -2.0, 3.0], [0.5, 0.2, 2.0]])
    assert_right(roots, truth, at, compiled=eqx.filter_jit)


@pytest.mark.skipif(
    jax.__version_info__[:2] >= (0, 12),
    reason="an error of JAX: the program of one precision gets buffers of the other",
)
@pytest.mark.ci("*")
@pytest.mark.parametrize("solver", [LU, pj.PivotedQR(), pj.LSMR()], ids=repr)
def test_each_call_has_the_precision_that_is_set_at_its_time(solver):
    matrix, vector = matrix_of("general", 5, float), random_array((5,), float, 8)
    total = lambda vector: jnp.sum(_solution(matrix, vector, solver))
    want = np.linalg.solve(matrix, vector), np.linalg.solve(matrix.T, np.ones(5))
    for wide in (True, False, True):
        with jax.enable_x64(wide):
            got = _solution(matrix, vector, solver), jax.grad(total)(jnp.asarray(vector))
            for array, truth in zip(got, want, strict=True):
                assert array.dtype == (np.float64 if wide else np.float32)
                assert_close(array, truth, 1e-6 if wide else 1e-4)  # of the solver
