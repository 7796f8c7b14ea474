"""Whose linear solve, and so whose rule, stands in a derivative: ours or lineax's."""

import diffrax
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import lineax as lx
import lineax.internal as lxi
import numpy as np
import optimistix as optx
import pytest

import pseudojvp as pj


MATRIX = np.array([[2.0, 1.0], [1.0, 3.0]])
VECTOR = jnp.array([1.0, 2.0])


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        is_jaxpr = lambda x: isinstance(x, jex.Jaxpr)
        for leaf in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if isinstance(leaf, jex.ClosedJaxpr):
                yield from _equations(leaf.jaxpr)
            elif isinstance(leaf, jex.Jaxpr):
                yield from _equations(leaf)


def count_solves(function, *args):
    """(solves of ours, solves of lineax); both primitives have the same name."""
    equations = list(_equations(jax.make_jaxpr(function)(*args).jaxpr))
    ours = sum(equation.primitive is pj.linear_solve_p for equation in equations)
    theirs = sum(equation.primitive is lxi.linear_solve_p for equation in equations)
    return ours, theirs


def jvp(function):
    return lambda x: jax.jvp(function, (x,), (x,))


def vjp(function):
    def with_cotangent(x):
        value, pull_back = jax.vjp(function, x)
        return pull_back(value)

    return with_cotangent


def _fixed_point(adjoint):
    """Found without a linear solve, so that those in the jaxpr are the derivative's."""
    iteration = optx.FixedPointIteration(1e-8, 1e-8)
    contraction = lambda y, b: y - 0.2 * (MATRIX @ y - b)
    return lambda b: (
        optx.fixed_point(contraction, iteration, VECTOR, b, adjoint=adjoint).value
    )


def _steady_state(b):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, b: b - MATRIX @ y),
        diffrax.Euler(),
        0.0,
        jnp.inf,
        0.1,
        VECTOR,
        args=b,
        event=diffrax.Event(diffrax.steady_state_event(1e-8, 1e-8, optx.max_norm)),
        adjoint=diffrax.ImplicitAdjoint(linear_solver=pj.QR()),
    )
    return solution.ys[0]


@pytest.mark.parametrize("derivative", [jvp, vjp])
@pytest.mark.parametrize("solver", [pj.QR(), lx.QR()], ids=["QR", "lx.QR"])
def test_our_solve_is_differentiated_by_our_rule_whosever_the_solver(solver, derivative):
    function = lambda b: pj.linear_solve(MATRIX, b, solver).value
    assert count_solves(derivative(function), VECTOR) == (2, 0)


@pytest.mark.parametrize("derivative", [jvp, vjp])
def test_solve_of_lineax_is_differentiated_by_its_rule_with_our_solver(derivative):
    operator = lx.MatrixLinearOperator(jnp.asarray(MATRIX))
    function = lambda b: lx.linear_solve(operator, b, pj.QR()).value
    assert count_solves(derivative(function), VECTOR) == (0, 2)


@pytest.mark.parametrize("derivative", [jvp, vjp])
def test_pseudoinverse_adjoint_is_one_solve_of_ours(derivative):
    function = _fixed_point(pj.PseudoinverseAdjoint())
    assert count_solves(derivative(function), VECTOR) == (1, 0)


@pytest.mark.parametrize("derivative", [jvp, vjp])
def test_implicit_adjoint_with_our_solver_is_one_solve_of_lineax(derivative):
    function = _fixed_point(optx.ImplicitAdjoint(linear_solver=pj.QR()))
    assert count_solves(derivative(function), VECTOR) == (0, 1)


def test_newton_step_with_our_solver_is_a_solve_of_lineax():
    newton = optx.Newton(1e-8, 1e-8, linear_solver=pj.QR())
    function = lambda y, b: MATRIX @ y - b
    find = lambda b: optx.root_find(function, newton, VECTOR, b).value
    assert count_solves(find, VECTOR) == (0, 1)


def test_steady_state_adjoint_with_our_solver_is_one_solve_of_lineax():
    with jax.numpy_dtype_promotion("standard"):  # diffrax needs it
        assert count_solves(vjp(_steady_state), VECTOR) == (0, 1)


def test_residual_of_a_fit_that_solves_has_tangents_by_our_rule():
    def residual(rate, data):
        basis = jnp.exp(-rate * jnp.arange(3.0))[:, None]
        return data - basis @ pj.linear_solve(basis, data, pj.QR(), throw=False).value

    method = optx.GaussNewton(1e-8, 1e-8, linear_solver=pj.SVD())
    data = jnp.array([3.0, 2.0, 1.0])
    fit = lambda data: optx.least_squares(residual, method, jnp.array(0.5), data).value
    ours, theirs = count_solves(fit, data)
    # In each place where the method evaluates the residual: a solve and its tangent.
    assert ours > 0
    assert ours % 2 == 0
    assert theirs == 1  # the step
