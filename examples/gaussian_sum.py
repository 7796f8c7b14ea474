"""Fits a sum of 50 Gaussians on a sloping baseline: 100 parameters, 52 coefficients.

The spectrum at 1000 points is

    y ≈ Σᵢ hᵢ exp(−½ ((x − μᵢ)/σᵢ)²) + b₀ + b₁ x.

Centres and widths are θ, and the search starts where a peak finder would leave them, off
by a good part of a width. Heights and baseline need no start: `pseudojvp.varpro`
eliminates them. Such sums have many local minima, and no method that walks downhill finds
the right one from anywhere; it needs a start in which each peak knows its place.

The script fits synthetic data, times SciPy's `least_squares` on all 152 parameters from
the same start, and draws the fit with its 95 % band:

    python examples/gaussian_sum.py [--output gaussian_sum.png]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

import pseudojvp as pj


PEAKS = 50
POINTS = np.linspace(0, 100, 1000)
NOISE = 0.03


def peaks_and_baseline(theta, x):
    scaled = (x[:, None] - theta["centre"]) / jnp.exp(theta["log_width"])
    return jnp.column_stack([jnp.exp(-0.5 * scaled**2), jnp.ones_like(x), x / 100])


def make_data(rng):
    """Returns θ and c that are true, the data, and a start."""
    centres = np.linspace(2, 98, PEAKS) + rng.uniform(-0.5, 0.5, PEAKS)
    widths = rng.uniform(0.4, 0.75, PEAKS)
    theta = {"centre": centres, "log_width": np.log(widths)}
    coefficients = np.append(rng.uniform(0.5, 3, PEAKS), [1.0, 1.5])
    clean = np.asarray(peaks_and_baseline(theta, POINTS)) @ coefficients
    data = clean + NOISE * rng.standard_normal(POINTS.size)
    start = {
        "centre": centres + rng.uniform(-0.3, 0.3, PEAKS),
        "log_width": np.full(PEAKS, np.log(0.6)),
    }
    return theta, coefficients, data, start


def fit_by_varpro(data, start):
    fit = pj.varpro(peaks_and_baseline, data, start, POINTS)
    return jax.block_until_ready(fit)


def fit_by_scipy(data, start):
    """Returns centres, log widths, heights and baseline, all fitted together."""

    def model(parameters):
        centres, log_widths, heights = np.split(parameters[:-2], 3)
        scaled = (POINTS[:, None] - centres) / np.exp(log_widths)
        baseline = parameters[-2] + parameters[-1] * POINTS / 100
        return np.exp(-0.5 * scaled**2) @ heights + baseline

    # The best heights for the start: what SciPy needs, and varpro does without.
    basis = np.asarray(peaks_and_baseline(start, POINTS))
    coefficients, *_ = np.linalg.lstsq(basis, data, rcond=None)
    parameters = np.concatenate([start["centre"], start["log_width"], coefficients])
    return least_squares(lambda parameters: model(parameters) - data, parameters)


def draw(data, fit, output: pathlib.Path) -> None:
    dense = np.linspace(0, 100, 4001)
    band = fit.predict(dense)
    basis = np.asarray(peaks_and_baseline(fit.theta, dense))
    contributions = basis * np.asarray(fit.coefficients)
    baseline = contributions[:, -2:].sum(axis=1)

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplot_mosaic("aa\nbb\ncd", height_ratios=(2, 0.8, 1.7))
    windows = {"a": (0, 100), "c": (20, 32), "d": (66, 78)}
    for name, (left, right) in windows.items():
        size = 2 if name == "a" else 12
        axes[name].scatter(POINTS, data, s=size, color="0.55", label="data", zorder=1)
        for i in range(PEAKS):
            axes[name].fill_between(
                dense, baseline, baseline + contributions[:, i],
                color=f"C{i % 10}", alpha=0.3, lw=0,
            )  # fmt: skip
        axes[name].fill_between(
            dense, band.lower, band.upper, color="tab:red", alpha=0.35, lw=0, label="95 %"
        )
        axes[name].plot(dense, band.value, color="k", lw=0.8, label="fit")
        axes[name].plot(dense, baseline, "--", color="0.3", lw=0.8, label="baseline")
        inside = np.abs(POINTS - (left + right) / 2) <= (right - left) / 2
        axes[name].set(xlim=(left, right), ylim=(0, 1.08 * data[inside].max()))
    axes["a"].legend(frameon=False, ncols=4, loc="upper left")
    axes["a"].set_ylim(0, 1.25 * data.max())
    axes["a"].set_title("A sum of 50 Gaussians", loc="left", fontweight="bold")
    half = np.asarray(band.upper - band.lower) / 2
    axes["b"].scatter(POINTS, fit.residual, s=2, color="tab:blue")
    axes["b"].fill_between(dense, -half, half, color="tab:red", alpha=0.35, lw=0)
    axes["b"].axhline(0, color="k", lw=0.6)
    axes["b"].set(xlim=(0, 100), ylabel="residual")
    for name in "cd":
        axes[name].set_title("closer", loc="left", fontsize=9)
    for panel in axes.values():
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    theta, coefficients, data, start = make_data(np.random.default_rng(0))

    began = time.perf_counter()
    fit = fit_by_varpro(data, start)
    with_compiling = time.perf_counter() - began
    began = time.perf_counter()
    fit = fit_by_varpro(data, start)
    seconds = time.perf_counter() - began
    cost = float(fit.cost)
    print(
        f"varpro: {2 * PEAKS} parameters, {int(fit.stats['num_steps'])} steps, "
        f"{seconds:.2f} s ({with_compiling:.1f} s with compiling), cost {cost:.6f}"
    )
    began = time.perf_counter()
    by_scipy = fit_by_scipy(data, start)
    scipy_seconds = time.perf_counter() - began
    print(
        f"SciPy least_squares: {by_scipy.x.size} parameters, {by_scipy.njev} Jacobians, "
        f"{scipy_seconds:.2f} s, {scipy_seconds / seconds:.1f} times as long, cost "
        f"{by_scipy.cost:.6f}"
    )

    statistics = fit.statistics()
    # In the order of `ravel_pytree`: centres, then log widths.
    true = np.concatenate([theta["centre"], theta["log_width"], coefficients])
    values = [fit.theta["centre"], fit.theta["log_width"], fit.coefficients]
    errors = [
        statistics.theta_standard_deviation,
        statistics.coefficient_standard_deviation,
    ]
    scores = (np.concatenate(values) - true) / np.concatenate(errors)
    inside = np.mean(np.abs(scores) < 1.96)
    print(
        f"Error over its standard deviation: {np.std(scores):.3f} over all "
        f"{true.size}, at most {np.max(np.abs(scores)):.2f}; {100 * inside:.0f} % are "
        "within 1.96"
    )
    draw(data, fit, output)
    print(f"Wrote {output}.")

    assert cost <= by_scipy.cost * (1 + 1e-6), (cost, by_scipy.cost)
    assert np.max(np.abs(scores)) < 5, np.max(np.abs(scores))
    assert 0.9 < inside < 0.99, inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("gaussian_sum.png")
    )
    main(parser.parse_args().output)
