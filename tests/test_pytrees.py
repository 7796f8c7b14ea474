"""Vectors that are pytrees: values and derivatives are those of the flat problem."""

import functools as ft

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, derivatives, jit
from problems import PROBLEMS
from truth import loss_derivatives, solution_derivatives

import pseudojvp as pj


# Seven and four numbers. `ravel_pytree` orders the leaves by key.
TALL = {"a": jnp.zeros(3), "b": (jnp.zeros((2, 1)), jnp.zeros(2))}
SHORT = {"c": jnp.zeros((1, 2)), "d": [jnp.zeros(()), jnp.zeros(1)]}


def flatten(tree):
    return jfu.ravel_pytree(tree)[0]


def unflatten(template, flat):
    template = jax.tree.map(lambda leaf: leaf.astype(flat.dtype), template)
    return jfu.ravel_pytree(template)[1](flat)


def templates(matrix):
    """Of the spaces of b and x."""
    return (TALL, SHORT) if matrix.shape[0] > matrix.shape[1] else (SHORT, TALL)


def in_structure(matrix):
    _, template = templates(matrix)
    return jax.eval_shape(lambda: unflatten(template, matrix[0]))


def pytree_operator(matrix):
    """Blocks of shape `out leaf + in leaf`, in a tree of trees."""
    out_template, in_template = templates(matrix)
    rows = jax.vmap(ft.partial(unflatten, in_template))(matrix)

    def split_rows(block):
        columns = block.reshape(matrix.shape[0], -1)
        trees = jax.vmap(ft.partial(unflatten, out_template), in_axes=1, out_axes=-1)
        shape = block.shape[1:]
        return jax.tree.map(
            lambda leaf: leaf.reshape(*leaf.shape[:-1], *shape), trees(columns)
        )

    # A tree of x within a tree of b.
    by_column = jax.tree.map(split_rows, rows)
    blocks = jax.tree.transpose(
        jax.tree.structure(in_template), jax.tree.structure(out_template), by_column
    )
    out_structure = jax.eval_shape(lambda: unflatten(out_template, matrix[:, 0]))
    return lx.PyTreeLinearOperator(blocks, out_structure)


def function_operator(matrix):
    out_template, _ = templates(matrix)
    product = lambda x: unflatten(out_template, matrix @ flatten(x))
    return lx.FunctionLinearOperator(product, in_structure(matrix))


def jacobian_operator(matrix):
    """The Jacobian of y ↦ A (y + y²) at zero is A."""
    out_template, in_template = templates(matrix)

    def function(y, matrix):
        y = flatten(y)
        return unflatten(out_template, matrix @ (y + y**2))

    point = unflatten(in_template, jnp.zeros_like(matrix[0]))
    return lx.JacobianLinearOperator(function, point, matrix)


MAKERS = [pytree_operator, function_operator, jacobian_operator]
CASES = [
    pytest.param(maker, PROBLEMS[name], id=f"{maker.__name__}-{name}")
    for maker, name in [
        (pytree_operator, "tall-complex-QR"),
        (pytree_operator, "wide-complex-QR"),
        (pytree_operator, "tall-deficient-complex-SVD"),
        (pytree_operator, "tall-real-Normal(CG)"),
        (function_operator, "wide-real-QR"),
        (function_operator, "wide-deficient-complex-SVD"),
        (function_operator, "tall-real-Normal(CG)"),
        (function_operator, "tall-complex-Normal(LU)"),
        (jacobian_operator, "tall-real-QR"),
        (jacobian_operator, "wide-deficient-real-SVD"),
        (jacobian_operator, "tall-real-Normal(CG)"),
        (jacobian_operator, "wide-real-lineax.QR"),
    ]
]
each_case = pytest.mark.parametrize(("make_operator", "problem"), CASES)
_OF_EACH_MAKER = (
    "pytree_operator-tall-complex-QR",
    "function_operator-wide-real-QR",
    "jacobian_operator-tall-real-QR",
)
each_maker = pytest.mark.parametrize(
    ("make_operator", "problem"), [case for case in CASES if case.id in _OF_EACH_MAKER]
)


def solve(make_operator, problem, t):
    matrix = problem.matrix(t)
    out_template, _ = templates(matrix)
    vector = unflatten(out_template, problem.vector(t))
    return pj.linear_solve(
        make_operator(matrix), vector, problem.solver, throw=False
    ).value


def solve_flat(make_operator, problem):
    return lambda t: flatten(solve(make_operator, problem, t))


@pytest.mark.parametrize("make_operator", MAKERS)
@pytest.mark.parametrize("name", ["tall-real-QR", "wide-real-QR"])
def test_operators_of_this_file_have_the_matrix_they_were_made_from(make_operator, name):
    matrix = PROBLEMS[name].matrix(0.0)
    got = jit(lambda matrix: make_operator(matrix).as_matrix())(matrix)
    np.testing.assert_allclose(got, matrix, atol=1e-15)


@pytest.mark.default(
    "pytree_operator-tall-deficient-complex-SVD",
    "function_operator-wide-real-QR",
    "jacobian_operator-tall-real-Normal(CG)",
)
@pytest.mark.ci("*-QR")
@each_case
def test_solution_has_the_structure_of_the_unknown(make_operator, problem):
    got = jax.eval_shape(ft.partial(solve, make_operator, problem), 0.0)
    assert got == in_structure(problem.matrix(0.0))


@pytest.mark.default("jacobian_operator-wide-real-lineax.QR")
@pytest.mark.ci(
    "*-SVD", "*_operator-tall-real-Normal(CG)", "pytree_operator-wide-complex-QR"
)
@each_case
def test_solution_and_tangent_of_pytrees(make_operator, problem):
    got = jit(derivatives(solve_flat(make_operator, problem), 1))(0.0)
    want = solution_derivatives(problem.path)[:2]
    assert_close(np.stack(got), want, problem.rtol)


@pytest.mark.ci(
    "pytree_operator-wide-complex-QR",
    "jacobian_operator-wide-real-lineax.QR",
    "function_operator-wide-deficient-complex-SVD",
    "jacobian_operator-tall-real-Normal(CG)",
    "function_operator-tall-complex-Normal(LU)",
)
@each_case
def test_gradient_and_second_derivative_of_pytrees(make_operator, problem):
    solution = solve_flat(make_operator, problem)
    gradient = jax.grad(lambda t: jnp.sum(jnp.abs(solution(t)) ** 2))
    want = loss_derivatives(problem.path, np.ones(problem.path.right.shape[-1]))[1:3]
    assert_close(jit(derivatives(gradient, 1))(0.0), want, problem.rtol)


@pytest.mark.slow  # one to two seconds of compiling each
@each_maker
def test_vmap_of_pytrees(make_operator, problem):
    times = np.array([-0.02, 0.0, 0.03])
    got = jit(jax.vmap(solve_flat(make_operator, problem)))(times)
    want = np.stack([solution_derivatives(problem.path, t)[0] for t in times])
    assert_close(got, want, problem.rtol)


@pytest.mark.default("pytree*")
@pytest.mark.ci("*")
@each_maker
def test_cotangent_of_pytree_vector_is_transposed_pseudoinverse(make_operator, problem):
    matrix = problem.matrix(0.0)
    vector = unflatten(templates(matrix)[0], problem.vector(0.0))

    @jit
    @jax.grad
    def gradient(vector):
        operator = make_operator(matrix)
        solution = pj.linear_solve(operator, vector, problem.solver, throw=False)
        return jnp.sum(flatten(solution.value).real)

    want = np.linalg.pinv(matrix, rcond=1e-8).T @ np.ones(matrix.shape[1])
    assert_close(flatten(gradient(vector)), want, problem.rtol)


def test_leaf_of_zero_tangent_beside_one_that_moves():
    matrix = PROBLEMS["tall-real-QR"].matrix(0.0)

    def function(moving):
        vector = {"a": jnp.ones(3), "b": (moving, jnp.ones(2))}
        operator = pytree_operator(matrix)
        return flatten(pj.linear_solve(operator, vector, pj.QR(), throw=False).value)

    want = np.linalg.pinv(matrix)[:, 3:5]
    got = jit(jax.jacfwd(function))(jnp.ones((2, 1)))[:, :, 0]
    assert_close(got, want, 1e-12)


def test_cotangent_of_a_square_solve_is_a_tree():
    """Of `QR`, which then solves for it in the place of a residual."""
    matrix = PROBLEMS["square-real-QR"].matrix(0.0)
    vector = {"a": jnp.ones((len(matrix) - 1, 1)), "b": jnp.ones(())}
    structure = jax.eval_shape(lambda: vector)

    def solution(vector):
        product = lambda x: unflatten(vector, matrix @ flatten(x))
        operator = lx.FunctionLinearOperator(product, structure)
        return pj.linear_solve(operator, vector, pj.QR(), throw=False).value

    cotangent = jax.tree.map(
        lambda leaf: leaf + jnp.arange(leaf.size, dtype=float).reshape(leaf.shape), vector
    )
    (got,) = jit(lambda v, ct: jax.vjp(solution, v)[1](ct))(vector, cotangent)
    want = np.linalg.solve(matrix.T, flatten(cotangent))
    assert_close(flatten(got), want, 1e-10)


def _small_system(dtypes):
    """Equations of two unknowns that have dtypes of their own, other than those of b."""
    narrow, wide = dtypes
    entries = [[jnp.array(1, narrow), jnp.array(5, wide)]]
    entries += [[jnp.array(-2, narrow), jnp.array(-2, wide)]]
    vector = [jnp.array(3, wide), jnp.array(4, wide)]
    structure = jax.eval_shape(lambda: vector)
    return lx.PyTreeLinearOperator(entries, structure), vector


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("complex64", "complex128")])
def test_unknowns_may_have_other_dtypes_than_equations(dtypes):
    operator, vector = _small_system(dtypes)
    for solver in (pj.LU(), pj.QR(), pj.SVD()):
        value = jax.jit(lambda b, s=solver: pj.linear_solve(operator, b, s).value)(vector)
        assert [leaf.dtype for leaf in value] == list(dtypes)
        np.testing.assert_allclose(value, [-3.25, 1.25], rtol=1e-6)
