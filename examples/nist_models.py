"""Builds the matrices A(θ) of the NIST models, and reads the problems that use them.

A model is y ≈ A(θ) c. Each function below returns A(θ), (observations, linear), with its
columns in the order of the linear parameters in `nist_strd.json`, which says where the
data come from.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


Theta = Float[Array, " nonlinear"]
Data = Float[Array, " observations"]
Matrix = Float[Array, "observations linear"]


def saturation(theta: Theta, x: Data) -> Matrix:
    return 1 - exponentials(theta, x)


def exponentials(theta: Theta, x: Data) -> Matrix:
    return jnp.exp(-jnp.outer(x, theta))


def constant_and_exponentials(theta: Theta, x: Data) -> Matrix:
    return jnp.column_stack([jnp.ones_like(x), exponentials(theta, x)])


def exponential_and_gaussians(theta: Theta, x: Data) -> Matrix:
    background = exponentials(theta[:1], x)
    return jnp.column_stack([background, gaussians(theta[1::2], theta[2::2], x)])


def constant_and_cycles(theta: Theta, x: Data) -> Matrix:
    periods = jnp.concatenate([jnp.array([12.0]), theta])  # months
    angles = 2 * jnp.pi * x[:, None] / periods
    waves = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=2)
    return jnp.column_stack([jnp.ones_like(x), waves.reshape(x.size, -1)])


def cubic_over_cubic(theta: Theta, x: Data) -> Matrix:
    powers = jnp.vander(x, 4, increasing=True)
    return powers / (1 + powers[:, 1:] @ theta)[:, None]


def gaussians(centres, widths, x: Data) -> Matrix:
    return jnp.exp(-(((x[:, None] - centres) / widths) ** 2))


# A(θ) and the axes of the data.
MODELS = {
    "Misra1a": (saturation, "pressure", "volume"),
    "Lanczos2": (exponentials, "x", "y (generated)"),
    "MGH17": (constant_and_exponentials, "x", "y (generated)"),
    "Gauss1": (exponential_and_gaussians, "x", "y (generated)"),
    "ENSO": (constant_and_cycles, "time (months)", "pressure difference"),
    "Thurber": (cubic_over_cubic, "log density", "electron mobility"),
    "BoxBOD": (saturation, "incubation time (days)", "oxygen demand (mg/l)"),
}


class Problem(NamedTuple):
    name: str
    formula: str
    matrix: Callable[[Theta, Data], Matrix]
    axes: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    linear: list[int]  # where c stands among all parameters
    nonlinear: list[int]  # where θ stands
    starts: list[np.ndarray]  # all parameters, of which only θ is needed
    certified: np.ndarray
    certified_rss: float


def load_problems() -> list[Problem]:
    path = pathlib.Path(__file__).with_name("nist_strd.json")
    entries = json.loads(path.read_text(encoding="utf-8"))["problems"]
    return [_as_problem(name, entry) for name, entry in entries.items()]


def _as_problem(name: str, entry: dict) -> Problem:
    matrix, *axes = MODELS[name]
    indices = range(len(entry["certified"]))
    linear = [i for i in indices if f"b{i + 1}" in entry["linear_parameters"]]
    return Problem(
        name=name,
        formula=entry["model"],
        matrix=matrix,
        axes=tuple(axes),
        x=np.asarray(entry["x"]),
        y=np.asarray(entry["y"]),
        linear=linear,
        nonlinear=[i for i in indices if i not in linear],
        starts=[np.asarray(entry[key]) for key in ("start1", "start2")],
        certified=np.asarray(entry["certified"]),
        certified_rss=entry["certified_residual_sum_of_squares"],
    )
