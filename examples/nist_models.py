"""Builds the separable form of the 27 NIST models, and reads the problems that use them.

A model is y ≈ offset(θ) + Φ(θ) c. Each function below returns Φ(θ), (observations,
linear). Where the separable form is in other parameters than NIST's b, or the search is
better behaved in others, `Model` says how they are related. `nist_strd.json` says where
the data come from.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import pseudojvp as pj


Theta = Float[Array, " nonlinear"]
Coefficients = Float[Array, " linear"]
Parameters = Float[Array, " all"]
Data = Float[Array, " observations"]
Matrix = Float[Array, "observations linear"]


class Model(NamedTuple):
    """A model as `pseudojvp.varpro` takes it.

    - `basis`: Φ(θ), a function of (θ, x).
    - `offset`: what has no coefficient, a function of (θ, x), or `None`.
    - `theta`: from NIST's parameters to θ; `None` picks those that are not linear.
    - `parameters`: from (θ, c) to NIST's parameters; `None` puts them in their places.
    """

    basis: Callable[[Theta, Data], Matrix]
    offset: Callable[[Theta, Data], Data] | None = None
    theta: Callable[[Parameters], Theta] | None = None
    parameters: Callable[[Theta, Coefficients], Parameters] | None = None


def saturation(theta: Theta, x: Data) -> Matrix:
    return -jnp.expm1(-jnp.outer(x, theta))


def saturation_of_second_order(theta: Theta, x: Data) -> Matrix:
    return 1 - (1 + jnp.outer(x, theta) / 2) ** -2


def saturation_of_half_order(theta: Theta, x: Data) -> Matrix:
    return 1 - (1 + 2 * jnp.outer(x, theta)) ** -0.5


def hyperbolic_saturation(theta: Theta, x: Data) -> Matrix:
    scaled = jnp.outer(x, theta)
    return scaled / (1 + scaled)


def exponentials(theta: Theta, x: Data) -> Matrix:
    return jnp.exp(-jnp.outer(x, theta))


def constant_and_exponentials(theta: Theta, x: Data) -> Matrix:
    return jnp.column_stack([jnp.ones_like(x), exponentials(theta, x)])


def exponential_over_linear(theta: Theta, x: Data) -> Matrix:
    return (jnp.exp(-theta[0] * x) / (1 + theta[1] * x))[:, None]


def exponential_and_gaussians(theta: Theta, x: Data) -> Matrix:
    background = exponentials(theta[:1], x)
    return jnp.column_stack([background, gaussians(theta[1::2], theta[2::2], x)])


def normalised_gaussian(theta: Theta, x: Data) -> Matrix:
    width, centre = theta
    return jnp.exp(-0.5 * ((x - centre) / width) ** 2)[:, None] / width


def power(theta: Theta, x: Data) -> Matrix:
    return x[:, None] ** theta[None, :]


def shifted_power(theta: Theta, x: Data) -> Matrix:
    return ((theta[0] + x) ** (-1 / theta[1]))[:, None]


def degradation(theta: Theta, x: Float[Array, "observations 2"]) -> Matrix:
    time, temperature = x.T
    return jnp.column_stack([jnp.ones_like(time), -time * jnp.exp(-theta * temperature)])


def vapour_pressure(theta: Theta, x: Data) -> Matrix:
    return jnp.exp(theta[0] / (x + theta[1]))[:, None]


def logistic(theta: Theta, x: Data) -> Matrix:
    return 1 / (1 + jnp.exp(theta[0] - theta[1] * x))[:, None]


def generalised_logistic(theta: Theta, x: Data) -> Matrix:
    return logistic(theta, x) ** (1 / theta[2])


def quadratic_over_quadratic(theta: Theta, x: Data) -> Matrix:
    return _rational(theta, x, 3)


def cubic_over_cubic(theta: Theta, x: Data) -> Matrix:
    return _rational(theta, x, 4)


def _rational(theta: Theta, x: Data, columns: int) -> Matrix:
    powers = jnp.vander(x, columns, increasing=True)
    return powers / (1 + powers[:, 1:] @ theta)[:, None]


def enzyme_reaction(theta: Theta, x: Data) -> Matrix:
    return jnp.column_stack([x**2, x]) / (x**2 + theta[0] * x + theta[1])[:, None]


def constant_and_cycles(theta: Theta, x: Data) -> Matrix:
    periods = jnp.concatenate([jnp.array([12.0]), theta])  # months
    angles = 2 * jnp.pi * x[:, None] / periods[None, :]
    waves = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=2)
    return jnp.column_stack([jnp.ones_like(x), waves.reshape(x.size, -1)])


def straight_line(theta: Theta, x: Data) -> Matrix:
    return jnp.column_stack([jnp.ones_like(x), -x])


def quantum_defect(theta: Theta, x: Data) -> Data:
    return -jnp.arctan(theta[0] / (x - theta[1])) / jnp.pi


def gaussians(centres, widths, x: Data) -> Matrix:
    return jnp.exp(-(((x[:, None] - centres[None, :]) / widths[None, :]) ** 2))


_CHWIRUT = Model(
    exponential_over_linear,
    # exp(-b1 x)/(b2 + b3 x) = c exp(-b1 x)/(1 + θ2 x) with c = 1/b2, θ2 = b3/b2.
    theta=lambda b: jnp.stack([b[0], b[2] / b[1]]),
    parameters=lambda theta, c: jnp.stack([theta[0], 1 / c[0], theta[1] / c[0]]),
)
_ENZYME = Model(
    enzyme_reaction,
    # b1 (x² + b2 x) has the coefficients c = (b1, b1 b2).
    theta=lambda b: b[2:],
    parameters=lambda theta, c: jnp.stack([c[0], c[1] / c[0], theta[0], theta[1]]),
)
_EXPONENTIALS = Model(exponentials)
_PEAKS = Model(exponential_and_gaussians)
_SATURATION = Model(saturation)

MODELS = {
    "Misra1a": _SATURATION,
    "Chwirut2": _CHWIRUT,
    "Chwirut1": _CHWIRUT,
    "Lanczos3": _EXPONENTIALS,
    "Gauss1": _PEAKS,
    "Gauss2": _PEAKS,
    "DanWood": Model(power),
    "Misra1b": Model(saturation_of_second_order),
    "Kirby2": Model(quadratic_over_quadratic),
    "Hahn1": Model(cubic_over_cubic),
    "Nelson": Model(degradation),
    "MGH17": Model(constant_and_exponentials),
    "Lanczos1": _EXPONENTIALS,
    "Lanczos2": _EXPONENTIALS,
    "Gauss3": _PEAKS,
    "Misra1c": Model(saturation_of_half_order),
    "Misra1d": Model(hyperbolic_saturation),
    "Roszman1": Model(straight_line, quantum_defect),
    "ENSO": Model(constant_and_cycles),
    "MGH09": _ENZYME,
    "Thurber": Model(cubic_over_cubic),
    "BoxBOD": _SATURATION,
    "Rat42": Model(logistic),
    "MGH10": Model(vapour_pressure),
    "Eckerle4": Model(normalised_gaussian),
    "Rat43": Model(generalised_logistic),
    "Bennett5": Model(shifted_power),
}


class Problem(NamedTuple):
    """One problem, with `model` in full: its `theta` and `parameters` are functions."""

    name: str
    formula: str
    model: Model
    x: np.ndarray
    y: np.ndarray
    starts: list[np.ndarray]  # NIST's parameters, of which only θ is needed
    certified: np.ndarray
    certified_deviation: np.ndarray
    certified_rss: float


def load_problems() -> list[Problem]:
    path = pathlib.Path(__file__).with_name("nist_strd.json")
    entries = json.loads(path.read_text(encoding="utf-8"))["problems"]
    return [_as_problem(name, entry) for name, entry in entries.items()]


def _as_problem(name: str, entry: dict) -> Problem:
    model = MODELS[name]
    if model.parameters is None:
        names = [f"b{i + 1}" for i in range(len(entry["certified"]))]
        linear = [i for i, b in enumerate(names) if b in entry["linear_parameters"]]
        nonlinear = [i for i in range(len(names)) if i not in linear]
        model = _in_place(model, jnp.array(nonlinear), jnp.array(linear))
    y = np.asarray(entry["y"])
    return Problem(
        name=name,
        formula=entry["model"],
        model=model,
        x=np.asarray(entry["x"]),
        y=np.log(y) if entry["model"].startswith("log(y)") else y,
        starts=[np.asarray(entry[key]) for key in ("start1", "start2")],
        certified=np.asarray(entry["certified"]),
        certified_deviation=np.asarray(entry["certified_standard_deviation"]),
        certified_rss=entry["certified_residual_sum_of_squares"],
    )


def _in_place(model: Model, nonlinear, linear) -> Model:
    size = nonlinear.size + linear.size
    return model._replace(
        theta=lambda b: b[nonlinear],
        parameters=lambda theta, c: (
            jnp.zeros(size).at[nonlinear].set(theta).at[linear].set(c)
        ),
    )


def carry_back(problem: Problem, fit: pj.VarProFit) -> tuple[np.ndarray, np.ndarray]:
    """Returns NIST's parameters, and their standard deviations by linear propagation."""
    of, at = problem.model.parameters, (fit.theta, fit.coefficients)
    jacobian = jnp.concatenate(jax.jacobian(of, (0, 1))(*at), axis=1)
    statistics = fit.statistics()
    cross = statistics.cross_covariance
    covariance = jnp.block(
        [
            [statistics.theta_covariance, cross.T],
            [cross, statistics.coefficient_covariance],
        ]
    )
    deviation = jnp.sqrt(jnp.diagonal(jacobian @ covariance @ jacobian.T))
    return np.asarray(of(*at)), np.asarray(deviation)
