"""Derivatives of a fit are those of the solution of the full problem."""

import inspect

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._varpro import optimise


INPUTS = cases.DATA, cases.WEIGHTS, cases.POINTS
TRANSFORMS = {"forward": jax.jacfwd, "reverse": jax.jacrev}


def solution(*inputs, **keywords):
    fit = cases.fit(*inputs, **keywords)
    return cases.unknowns(fit), fit.residual, fit.cost


@jit
def both_derivatives(data, weights, points, rate):
    """Of the solution, forward and reverse, from one program of the fit."""

    def from_start(*inputs):
        *inputs, rate = inputs
        return solution(*inputs, start={**cases.START, "rate": rate})

    flat, unravel = jax.flatten_util.ravel_pytree((data, weights, points, rate))
    of_flat = lambda flat: cases.raveled(from_start(*unravel(flat)))
    value, push = jax.linearize(of_flat, flat)
    transpose = jax.linear_transpose(push, flat)
    forward = jax.vmap(push, out_axes=1)(jnp.eye(flat.size))
    (reverse,) = jax.vmap(transpose)(jnp.eye(value.size))
    return {"forward": blocks(forward), "reverse": blocks(reverse)}


def blocks(matrix):
    """[of what][with respect to what]"""
    rows = jnp.split(matrix, np.cumsum([5, 16]))
    return [jnp.split(row, np.cumsum([16, 16, 16]), axis=1) for row in rows]


@pytest.fixture(scope="module")
def truth():
    """The solution and ∂(solution)/∂(data, weights, points), not from this library."""
    full = cases.FullProblem()
    p = full.solve(np.array([0.8, 0.4, 2.0, 1.0, 0.3]), *INPUTS)
    return p, full.tangents(p, *INPUTS)


@pytest.fixture(scope="module")
def total_derivatives(truth):
    """Of residual and cost, by the chain rule."""
    p, tangents = truth
    full = cases.FullProblem()

    def of(function):
        along, *partial = jit(jax.jacfwd(function, argnums=(0, 1, 2, 3)))(p, *INPUTS)
        return [part + along @ t for part, t in zip(partial, tangents, strict=True)]

    cost = lambda *inputs: 0.5 * jnp.sum(full.residual(*inputs) ** 2)
    return of(full.residual), of(cost)


@pytest.fixture(scope="module")
def both():
    return both_derivatives(*INPUTS, cases.START["rate"])


@pytest.fixture(scope="module", params=["forward", "reverse"])
def derivatives(request, both):
    return both[request.param]


@pytest.mark.parametrize("index", range(3), ids=["data", "weights", "args"])
@pytest.mark.slow  # three seconds each
def test_solution_moves_as_the_full_problem(derivatives, truth, index):
    assert_close(derivatives[0][index], truth[1][index], 1e-9)


@pytest.mark.parametrize("index", range(3), ids=["data", "weights", "args"])
@pytest.mark.slow  # three seconds each
def test_residual_moves_as_the_full_problem(derivatives, total_derivatives, index):
    assert_close(derivatives[1][index], total_derivatives[0][index], 1e-9)


@pytest.mark.parametrize("index", range(3), ids=["data", "weights", "args"])
def test_cost_moves_as_the_full_problem(derivatives, total_derivatives, index):
    assert_close(jnp.squeeze(derivatives[2][index]), total_derivatives[1][index], 1e-9)


@pytest.mark.ci("reverse")  # a program each
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_do_not_depend_on_the_jacobian(truth, transform):
    def kaufman(*inputs):
        return cases.unknowns(cases.fit(*inputs, jacobian="kaufman"))

    got = jit(TRANSFORMS[transform](kaufman, argnums=(0, 1, 2)))(*INPUTS)
    for part, want in zip(got, truth[1], strict=True):
        assert_close(part, want, 1e-9)


@pytest.mark.slow  # one more program for each
@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_derivatives_of_sums_that_under_or_overflow(truth, scale):
    theta = lambda data: cases.raveled(cases.fit(data).theta)
    got = jit(jax.jacfwd(theta))(scale * cases.DATA)
    assert_close(got * scale, truth[1][0][:2], 1e-9)


def theta_of_scaled_points(s):
    """A decay over points s x, where θ s is constant."""
    points = jnp.linspace(0.0, 3.0, 8)
    data = jnp.exp(-0.8 * points) + cases.noise(8, 0.02, 5)

    def basis(rate, _):
        return jnp.exp(-rate * s * points)[:, None]

    return pj.varpro(basis, data, jnp.array(0.5), throw=False).theta


@pytest.mark.slow  # one more program
def test_what_the_basis_closes_over_has_its_derivative():
    value, derivative = jit(jax.value_and_grad(theta_of_scaled_points))(2.0)
    assert_close(derivative, -value / 2.0, 1e-9)


@pytest.mark.slow  # one more program
def test_what_the_basis_closes_over_has_its_tangent_without_jit():
    value, derivative = jax.jvp(theta_of_scaled_points, (2.0,), (1.0,))
    assert_close(derivative, -value / 2.0, 1e-9)


@pytest.mark.slow  # one more program for each
@pytest.mark.parametrize(("name", "index"), [("residual", 0), ("cost", 1)])
def test_reverse_of_one_field_alone(total_derivatives, name, index):
    """No other output has a cotangent."""

    def of_points(points):
        return getattr(cases.fit(points=points), name)

    got = jit(jax.jacrev(of_points))(cases.POINTS)
    assert_close(got, total_derivatives[index][2], 1e-9)


def test_start_has_derivative_zero(derivatives):
    for part in derivatives:
        np.testing.assert_array_equal(part[3], 0)


def test_failed_fit_has_nan_derivatives():
    data = cases.DATA.at[3].set(jnp.nan)
    got = both_derivatives(data, *INPUTS[1:], cases.START["rate"])
    for mode in ("forward", "reverse"):
        for with_respect_to in range(3):
            assert np.isnan(got[mode][0][with_respect_to]).all()


@pytest.mark.slow  # one more program
def test_module_within_the_basis_has_its_derivative():
    points = jnp.linspace(0.0, 3.0, 8)
    data = jnp.exp(-0.8 * points) + cases.noise(8, 0.02, 5)

    def theta(s):
        basis = jax.tree_util.Partial(
            lambda s, rate, points: jnp.exp(-rate * s * points)[:, None], s
        )
        return pj.varpro(basis, data, jnp.array(0.5), points).theta

    value, derivative = jit(jax.value_and_grad(theta))(2.0)
    assert_close(derivative, -value / 2.0, 1e-9)


@pytest.mark.nightly  # half a minute: two large programs
def test_second_derivative_is_the_difference_of_the_first():
    direction = jnp.asarray(cases.noise(16, 1.0, 6))

    def slope(t):
        along = lambda t: solution(cases.DATA + t * direction, *INPUTS[1:])[0]
        return jax.jvp(along, (t,), (1.0,))[1]

    first = jit(slope)
    second = jit(lambda t: jax.jvp(slope, (t,), (1.0,))[1])(0.0)
    step = 1e-4
    difference = (first(step) - first(-step)) / (2 * step)
    assert_close(second, difference, 1e-5)  # h² of the difference


@pytest.mark.ci("implicit")  # one more program for each
@pytest.mark.parametrize(
    "adjoint",
    [optx.ImplicitAdjoint(), optx.RecursiveCheckpointAdjoint()],
    ids=["implicit", "recursive-checkpoint"],
)
def test_adjoints_of_optimistix_agree(truth, adjoint, monkeypatch):
    # Optimistix takes no closures, such as what checks annotations.
    for name in ("_search", "_stationarity"):
        monkeypatch.setattr(optimise, name, inspect.unwrap(getattr(optimise, name)))

    def theta(data):
        return cases.raveled(cases.fit(data, adjoint=adjoint).theta)

    got = jit(jax.jacrev(theta))(cases.DATA)
    # Through the search, the derivative converges one step behind the value.
    assert_close(got, truth[1][0][:2], 1e-6)
