"""Orders two and three in every mix of forward and reverse, along Σ weights |x(t)|²."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, derivatives, jit
from problems import CORE, each, marking_slow, Problem, PROBLEMS
from truth import loss_derivatives, solution_derivatives


pytestmark = pytest.mark.grid


# One with full rank of each orientation, and one deficient of each: third derivatives
# of these are in the default run.
THIRD = [
    "tall-complex-QR",
    "wide-complex-QR",
    "tall-deficient-complex-SVD",
    "wide-deficient-real-SVD",
    "square-complex-lineax.LU",
    "definite-complex-CG",
]
THIRD_REVERSE = ["tall-complex-QR", "wide-deficient-real-SVD"]
THRICE_REVERSE = [*THIRD, "wide-deficient-complex-PivotedQR"]


def weights(problem: Problem):
    return 1.0 + np.arange(problem.path.right.shape[-1])


def loss(problem: Problem):
    def function(t):
        solution = problem.solve(t, t)
        return jnp.sum(weights(problem) * jnp.abs(solution) ** 2)

    return function


def forward(function):
    return lambda t: jax.jvp(function, (t,), (1.0,))[1]


reverse = jax.grad


@ft.cache
def second_derivatives(name):
    function = loss(PROBLEMS[name])
    mixes = lambda t: {
        "jvp of vjp": forward(reverse(function))(t),
        "vjp of jvp": reverse(forward(function))(t),
        "vjp of vjp": reverse(reverse(function))(t),
    }
    return jit(mixes)(0.0)


@pytest.mark.parametrize("mix", ["jvp of vjp", "vjp of jvp", "vjp of vjp"])
@marking_slow(lambda problem: not problem.core)
def test_second_derivative_by(problem, mix):
    want = loss_derivatives(problem.path, weights(problem))[2]
    got = second_derivatives(problem.name)[mix]
    assert got == pytest.approx(want, rel=problem.rtol)


@marking_slow(lambda problem: problem.name not in THIRD, names=CORE)
def test_third_tangent(problem):
    got = jit(derivatives(lambda t: problem.solve(t, t), 3))(0.0)[3]
    assert_close(got, solution_derivatives(problem.path)[3], 10 * problem.rtol)


@marking_slow(lambda problem: problem.name not in THIRD_REVERSE, names=CORE)
def test_third_derivative_by_jvp_of_vjp_of_jvp(problem):
    got = jit(forward(reverse(forward(loss(problem)))))(0.0)
    want = loss_derivatives(problem.path, weights(problem))[3]
    assert got == pytest.approx(want, rel=10 * problem.rtol)


@pytest.mark.slow  # three reverse passes: up to a minute of compiling each
@each(THRICE_REVERSE)
def test_third_derivative_by_vjp_of_vjp_of_vjp(problem):
    got = jit(reverse(reverse(reverse(loss(problem)))))(0.0)
    want = loss_derivatives(problem.path, weights(problem))[3]
    assert got == pytest.approx(want, rel=10 * problem.rtol)
