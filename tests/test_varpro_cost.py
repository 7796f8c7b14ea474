"""What a Jacobian and a fit compute, read off the compiled programs."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import varpro_cases as cases
from checks import assert_close

import pseudojvp as pj


Q, M, N = 7, 30, 5
POINTS = jnp.linspace(0.0, 1.0, M)
THETA = jnp.linspace(0.2, 1.4, Q)


def wide_basis(theta, points):
    """n columns of q parameters, all of which depend on all."""
    phases = jnp.outer(points, jnp.arange(1.0, N + 1))
    return sum(jnp.sin(rate * phases + i) for i, rate in enumerate(theta))


def compiled(function, *inputs):
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*inputs).compile(compiler_options=options)


def sizes(text):
    """Numbers of entries of all floating-point arrays in a program."""
    shapes = re.findall(r"[fc]\d+\[([\d,]+)\]", text)
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


def factorisations(text):
    """Calls of LAPACK: a pivoted QR, and what its solver makes of the factor."""
    return re.findall(r'custom_call_target="lapack_d(geqrf|geqp3|gesdd)', text)


@pytest.fixture(scope="module")
def programs():
    """Of the coefficients, the exact Jacobian, and ∂Φ/∂θ as it must not be."""
    data = jnp.asarray(cases.noise(M, 1.0, 8))
    function = pj.projected_residual(wide_basis, data)
    functions = function.coefficients, function.jacobian, jax.jacfwd(wide_basis)
    return [
        compiled(lambda *inputs, f=f: f(*inputs), THETA, POINTS).as_text()
        for f in functions
    ]


@pytest.mark.slow  # two seconds
def test_jacobian_never_has_the_tangents_of_the_basis_at_once(programs):
    _, jacobian, tensor = programs
    assert max(sizes(tensor)) >= Q * M * N
    assert max(sizes(jacobian)) < Q * M * N


@pytest.mark.slow  # a second
def test_jacobian_takes_one_factorisation(programs):
    coefficients, jacobian, _ = programs
    assert factorisations(coefficients).count("geqp3") == 1
    assert sorted(factorisations(jacobian)) == sorted(factorisations(coefficients))


COLUMNS = 40
MANY = cases.columns(COLUMNS)


slow = pytest.mark.slow  # one more program


@pytest.fixture(scope="module")
def many():
    """The program of a fit to more columns than rows, and what it returns."""

    def fit(data):
        return cases.fit(data, cases.WEIGHTS)

    program = compiled(fit, MANY)
    return program.as_text(), program(MANY)


@slow
def test_fit_of_many_columns_has_no_jacobian_of_all(many):
    text, _ = many
    assert max(sizes(text)) < 16 * COLUMNS * cases.SIZE


@slow
def test_fit_of_many_columns_is_stationary_in_all(many):
    """By dense pseudoinverses of all columns."""
    _, fit = many
    assert cases.successful(fit)

    def cost(rate, width):
        theta = {"rate": jnp.asarray(rate), "width": jnp.asarray([width])}
        a = cases.WEIGHTS[:, None] * cases.basis(theta, cases.POINTS)
        b = np.asarray(cases.WEIGHTS[:, None] * MANY)
        return np.sum((b - a @ (np.linalg.pinv(a) @ b)) ** 2)

    rate, width = cases.raveled(fit.theta)
    step = 1e-3
    least = cost(rate, width)
    for move in ((step, 0), (0, step)):
        up, down = (
            cost(rate + move[0], width + move[1]),
            cost(rate - move[0], width - move[1]),
        )
        # The minimum of the parabola through three points: off by step³.
        assert abs((up - down) / (up + down - 2 * least)) * step / 2 < 1e-5
    assert_close(fit.cost, least / 2, 1e-12)


@slow
def test_fit_of_many_columns_has_the_coefficients_of_each(many):
    _, fit = many
    a = cases.WEIGHTS[:, None] * cases.basis(fit.theta, cases.POINTS)
    want = np.linalg.pinv(a) @ np.asarray(cases.WEIGHTS[:, None] * MANY)
    assert_close(fit.coefficients, want, 1e-12)
    assert_close(fit.residual, cases.WEIGHTS[:, None] * MANY - a @ want, 1e-12)


@slow
def test_pixels_of_a_lifetime_image_take_few_steps():
    """Of two decays and a background: 6.5 on average. A first damping 1000 times larger,
    the optimiser's own, makes it some 27.
    """
    rng = np.random.default_rng(0)
    times = np.linspace(0, 12.5, 128, endpoint=False)
    lifetimes = rng.uniform([0.4, 2.4], [0.7, 4.0], (32, 2))[:, None, :]
    shares = rng.uniform(0.3, 0.7, (32, 1))
    decays = np.exp(-times[:, None] / lifetimes)
    mean = 2e3 * (shares * decays[..., 0] + (1 - shares) * decays[..., 1]) + 5
    counts = rng.poisson(mean).astype(float)

    def basis(theta, times):
        columns = jnp.exp(-jnp.outer(times, jnp.exp(-theta)))
        return jnp.column_stack([columns, jnp.ones_like(times)])

    start, weights = np.log([0.5, 4.0]), 1 / np.sqrt(mean)
    fits = pj.varpro_batch(basis, counts, start, times, weights=weights, throw=False)
    steps = fits.stats["num_steps"]
    assert (fits.result == optx.RESULTS.successful).all()
    assert np.mean(steps) <= 10
    assert np.max(steps) <= 24
