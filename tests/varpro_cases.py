"""A separable model and its full problem, in which c is a parameter like the others."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import scipy.optimize as spo
from checks import jit

import pseudojvp as pj


POINTS = jnp.linspace(0.0, 3.0, 16)
START = {"rate": jnp.array(1.2), "width": jnp.array([0.6])}
SIZE = 2  # of θ
_TRUTH = {"rate": jnp.array(0.8), "width": jnp.array([0.4])}
_COEFFICIENTS = np.array([2.0, 1.0, 0.3])


def basis(theta, points):
    bump = jnp.exp(-((points - 1.5) ** 2) / (2 * theta["width"][0] ** 2))
    return jnp.stack([jnp.exp(-theta["rate"] * points), bump, 1 + 0 * points], axis=1)


def offset(theta, points):
    return 0.2 * jnp.sin(theta["rate"] * points)


def complex_basis(theta, points):
    """Two damped oscillations."""
    exponents = jax.lax.complex(-theta[:2], theta[2:])
    return jnp.exp(jnp.outer(points.astype(exponents.dtype), exponents))


def offset_of_two_columns(theta, points):
    return jnp.outer(offset(theta, points), jnp.array([1.0, -2.0]))


def noise(shape, size, seed):
    return size * np.random.default_rng(seed).normal(size=shape)


DATA = jnp.asarray(basis(_TRUTH, POINTS) @ _COEFFICIENTS + noise(16, 0.05, 0))
WEIGHTS = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2.0, 16))


def columns(count, seed=2):
    """Data of `count` columns with coefficients of their own."""
    coefficients = _COEFFICIENTS[:, None] + noise((3, count), 0.5, seed)
    exact = basis(_TRUTH, POINTS) @ coefficients
    return jnp.asarray(exact + noise((16, count), 0.05, seed + 1))


COMPLEX_TRUTH = jnp.array([0.3, 0.5, 2.0, 5.0])
COMPLEX_START = jnp.array([0.2, 0.6, 1.9, 5.2])
COMPLEX_DATA = jnp.asarray(
    np.asarray(complex_basis(COMPLEX_TRUTH, POINTS)) @ np.array([1 + 1j, 2 - 0.5j])
    + noise(16, 0.05, 3)
    + 1j * noise(16, 0.05, 4)
)


def successful(fit):
    return np.asarray(fit.result == optx.RESULTS.successful)


def raveled(theta):
    return jax.flatten_util.ravel_pytree(theta)[0]


def unknowns(fit):
    """θ and then c, column by column, as `FullProblem` has them."""
    return jnp.concatenate([raveled(fit.theta), fit.coefficients.T.reshape(-1)])


@dataclasses.dataclass(eq=False)
class FullProblem:
    """r(p) = W (y − offset − Φ c) of p = (θ, c), without elimination."""

    basis: object = basis
    offset: object = None
    start: object = dataclasses.field(default_factory=lambda: START)

    def residual(self, p, data, weights, points):
        flat, unravel = jax.flatten_util.ravel_pytree(self.start)
        theta = unravel(p[: flat.size])
        phi = self.basis(theta, points)
        k = 1 if data.ndim == 1 else data.shape[1]
        c = p[flat.size :].reshape(k, phi.shape[1]).T
        value = (phi @ c).reshape(data.shape)
        if self.offset is not None:
            shift = self.offset(theta, points)
            value = value + (shift if shift.ndim == data.ndim else shift[:, None])
        return (weights if weights.ndim == data.ndim else weights[:, None]) * (
            data - value
        )

    def flat_residual(self, p, *inputs):
        return self.residual(p, *inputs).reshape(-1)

    def gradient(self, p, *inputs):
        cost = lambda p: 0.5 * jnp.sum(self.residual(p, *inputs) ** 2)
        return jax.grad(cost)(p)

    def hessian(self, p, *inputs):
        return jax.jacfwd(self.gradient)(p, *inputs)

    def jacobian(self, p, *inputs):
        return jax.jacfwd(self.flat_residual)(p, *inputs)

    def solve(self, p, *inputs):
        """SciPy's solution, and then Newton steps to the last digit."""
        functions = self.flat_residual, self.jacobian, self.gradient, self.hessian
        evaluate = jit(lambda p, *inputs: [f(p, *inputs) for f in functions])
        found = spo.least_squares(
            lambda p: np.asarray(evaluate(p, *inputs)[0]),
            np.asarray(p),
            jac=lambda p: np.asarray(evaluate(p, *inputs)[1]),
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
        ).x
        for _ in range(3):
            _, _, gradient, hessian = evaluate(found, *inputs)
            found -= np.linalg.solve(hessian, gradient)
        return found

    def tangents(self, p, *inputs):
        """∂p/∂inputs by the implicit function theorem."""
        mixed = jit(jax.jacfwd(self.gradient, argnums=(1, 2, 3)))(p, *inputs)
        hessian = jit(self.hessian)(p, *inputs)
        return tuple(-np.linalg.solve(hessian, m) for m in mixed)


def fit(data=DATA, weights=WEIGHTS, points=POINTS, start=START, **keywords):
    """All calls without keywords share one compiled program."""
    keywords = {"adjoint": pj.PseudoinverseAdjoint(throw=False), **keywords}
    keywords = {"throw": False, **keywords}
    return pj.varpro(basis, data, start, points, weights=weights, **keywords)
