"""What error has the gradient of least squares where singular values come together?

A = Q + δE with orthonormal columns in Q: all singular values of A are equal for δ = 0.
The error is relative, of d(Σ x)/dA, beside 50 digits.

    python -m benchmarks.gradient_error [--picture docs/images/gradient_error.png]
"""

import argparse

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import torch
from matplotlib.figure import Figure

import pseudojvp as pj

from .harness import relative_error
from .report import table


DISTANCES = (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14, 0.0)
_AT_ZERO = 1e-16  # where the picture has δ = 0
_ABOVE = 1e1  # and where it has NaN


def by_jax(solve):
    def gradient(matrix, vector):
        solution = lambda matrix: jnp.sum(solve(matrix, jnp.asarray(vector)))
        return np.asarray(jax.grad(solution)(jnp.asarray(matrix)))

    return gradient


def by_torch(matrix, vector):
    matrix = torch.tensor(matrix, requires_grad=True)
    torch.linalg.lstsq(matrix, torch.tensor(vector)[:, None]).solution.sum().backward()
    return matrix.grad.numpy()


CONTENDERS = {
    "jnp.linalg.lstsq": by_jax(lambda a, b: jnp.linalg.lstsq(a, b)[0]),
    "jnp.linalg.pinv(A) @ b": by_jax(lambda a, b: jnp.linalg.pinv(a) @ b),
    "torch.linalg.lstsq": by_torch,
    "pj.lstsq": by_jax(lambda a, b: pj.lstsq(a, b)[0]),
}


def problem(distance):
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 4)))
    return basis + distance * rng.standard_normal((6, 4)), rng.standard_normal(6)


def true_gradient(matrix, vector):
    """r yᵀ − (A y) xᵀ with y = (AᵀA)⁻¹ 1."""
    with mpmath.workdps(50):
        a, b = mpmath.matrix(matrix.tolist()), mpmath.matrix(vector.tolist())
        inverse = (a.T * a) ** -1
        x, y = inverse * (a.T * b), inverse * mpmath.ones(a.cols, 1)
        gradient = (b - a * x) * y.T - (a * y) * x.T
        return np.array(gradient.tolist(), dtype=float)


def errors(distance):
    """One for each contender; NaN where its gradient is."""
    matrix, vector = problem(distance)
    truth = true_gradient(matrix, vector)
    return [
        float(relative_error(gradient(matrix, vector), truth))
        for gradient in CONTENDERS.values()
    ]


def picture(rows) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.maximum(DISTANCES, _AT_ZERO)
    colors = ("#c9622b", "#999999", "#bbbbbb", "#1f6fb4")
    for name, color, line in zip(CONTENDERS, colors, np.transpose(rows), strict=True):
        lost = np.isnan(line)
        width = 2.4 if name in ("jnp.linalg.lstsq", "pj.lstsq") else 1.2
        axes.loglog(places, np.where(lost, np.nan, line), ".-", color=color, lw=width)
        axes.plot(
            places[lost], np.full(lost.sum(), _ABOVE), "x", color=color, ms=9, mew=2
        )
    notes = {
        "jnp.linalg.lstsq": (1e-7, 3e-6, colors[0]),
        "jnp.linalg.pinv(A) @ b, torch.linalg.lstsq": (2e-14, 4e-14, "#777777"),
        "pj.lstsq": (1e-10, 4e-17, colors[3]),
    }
    for name, (x, y, color) in notes.items():
        axes.annotate(name, (x, y), color=color, fontsize=10)
    axes.annotate("NaN", (_AT_ZERO, _ABOVE), (8, -4), textcoords="offset points")
    axes.set_xticks([_AT_ZERO, 1e-12, 1e-8, 1e-4, 1], ["0", "1e-12", "1e-8", "1e-4", "1"])
    axes.minorticks_off()
    axes.set_ylim(1e-17, 1e2)
    axes.set_xlabel("distance of A to a matrix of equal singular values, such as I")
    axes.set_ylabel("relative error of dx/dA")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", help="where to write the picture")
    arguments = parser.parse_args()
    rows = [errors(distance) for distance in DISTANCES]
    header = ("δ", *CONTENDERS)
    lines = (
        [f"{distance:.0e}", *(f"{error:.1e}" for error in row)]
        for distance, row in zip(DISTANCES, rows, strict=True)
    )
    print(table(header, lines))
    if arguments.picture:
        picture(rows).savefig(arguments.picture, dpi=150)


if __name__ == "__main__":
    main()
