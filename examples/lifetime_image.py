"""Fits a fluorescence lifetime image: two decays in each pixel, Poisson weights.

Each pixel counts photons in 128 time bins after a laser pulse,

    counts ≈ a₁ exp(−t/τ₁) + a₂ exp(−t/τ₂) + background,

with lifetimes and amplitudes of its own. `pseudojvp.varpro_batch` fits all pixels in one
call: θ = (log τ₁, log τ₂), and the three amplitudes are eliminated. The variance of a
count is its mean, so that the weights of a pixel are 1/√mean: of the counts themselves
in a first call, and of the fit of that in a second, because a bin that by chance has few
photons would otherwise count for too much.

The script fits a synthetic image of 64 x 64 pixels, times SciPy's `curve_fit` on a sample
of them, and draws maps of truth, fit and error:

    python examples/lifetime_image.py [--output lifetime_image.png]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

import pseudojvp as pj


PIXELS = 64  # along each side
TIMES = np.linspace(0, 12.5, 128, endpoint=False)  # ns: between pulses of 80 MHz
START = np.log([0.5, 4.0])  # of log τ, τ in ns
SAMPLE = 48  # pixels fitted by SciPy


def decays(theta, times):
    background = jnp.ones_like(times)
    return jnp.column_stack([jnp.exp(-times[:, None] / jnp.exp(theta)), background])


def truth():
    """Returns τ₁, τ₂ (ns), the share of a₁ and the photons of each pixel: cells."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS] / PIXELS
    cells = [(0.30, 0.34, 0.21), (0.70, 0.30, 0.17), (0.60, 0.72, 0.23)]
    body, nucleus = np.zeros_like(x), np.zeros_like(x)
    for centre_x, centre_y, radius in cells:
        distance = np.hypot(x - centre_x, (y - centre_y) * 1.15) / radius
        body = np.maximum(body, 1 / (1 + np.exp(12 * (distance - 1))))
        nucleus = np.maximum(nucleus, 1 / (1 + np.exp(25 * (distance - 0.42))))
    tau1 = 0.45 + 0.25 * body
    tau2 = 2.4 + 0.9 * x + 0.7 * nucleus
    share = 0.35 + 0.3 * body - 0.35 * nucleus
    photons = 3e4 + 1.5e5 * body + 4e4 * nucleus
    return tau1, tau2, share, photons


def make_image(rng):
    """Returns the true maps, stacked, and the counts (pixels, bins)."""
    tau1, tau2, share, photons = truth()
    shape = share[..., None] * np.exp(-TIMES / tau1[..., None])
    shape += (1 - share[..., None]) * np.exp(-TIMES / tau2[..., None])
    mean = photons[..., None] * shape / shape.sum(axis=-1, keepdims=True)
    counts = rng.poisson(mean + 5).reshape(PIXELS**2, TIMES.size)
    return np.stack([tau1, tau2, share]), counts.astype(float)


def fit_image(counts):
    """Returns the fit of all pixels, with weights from a first fit."""
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    first = pj.varpro_batch(decays, counts, START, TIMES, weights=weights, throw=False)
    mean = counts - first.residual / weights
    weights = 1 / jnp.sqrt(jnp.maximum(mean, 1))
    return pj.varpro_batch(
        decays, counts, first.theta, TIMES, weights=weights, throw=False
    )


def maps_with_errors(fit):
    """Returns τ₁, τ₂, the share of a₁, and their standard deviations: (3, pixels)."""
    errors = fit.statistics(absolute_sigma=True)

    def quantities(theta, coefficients):
        share = coefficients[0] / (coefficients[0] + coefficients[1])
        return jnp.append(jnp.exp(theta), share)

    def deviations(theta, coefficients, theta_cov, cross_cov, coefficient_cov):
        by_theta, by_c = jax.jacobian(quantities, (0, 1))(theta, coefficients)
        covariance = by_theta @ theta_cov @ by_theta.T + by_c @ coefficient_cov @ by_c.T
        mixed = by_c @ cross_cov @ by_theta.T
        return jnp.sqrt(jnp.diagonal(covariance + mixed + mixed.T))

    values = jax.vmap(quantities)(fit.theta, fit.coefficients)
    deviation = jax.vmap(deviations)(
        fit.theta,
        fit.coefficients,
        errors.theta_covariance,
        errors.cross_covariance,
        errors.coefficient_covariance,
    )
    return np.asarray(values.T), np.asarray(deviation.T)


def fit_by_scipy(counts):
    """Returns the lifetimes of some pixels, all five parameters fitted together."""

    def model(times, log_tau1, log_tau2, a1, a2, background):
        fast, slow = np.exp(-times / np.exp(log_tau1)), np.exp(-times / np.exp(log_tau2))
        return a1 * fast + a2 * slow + background

    fits = []
    for pixel in counts:
        start = [*START, pixel[0] / 2, pixel[0] / 2, pixel[-1]]
        weights = {"sigma": np.sqrt(np.maximum(pixel, 1)), "absolute_sigma": True}
        best, _ = curve_fit(model, TIMES, pixel, start, **weights)
        mean = np.maximum(model(TIMES, *best), 1)
        weights["sigma"] = np.sqrt(mean)
        best, _ = curve_fit(model, TIMES, pixel, best, **weights)
        fits.append(np.sort(np.exp(best[:2])))
    return np.array(fits)


def draw(true_maps, fitted, errors, output: pathlib.Path) -> None:
    shape = (3, PIXELS, PIXELS)
    fitted, errors = fitted.reshape(shape), errors.reshape(shape)
    titles = ("short lifetime τ₁ (ns)", "long lifetime τ₂ (ns)", "share of a₁")
    figure = Figure(figsize=(11.5, 9.2), layout="constrained")
    axes = figure.subplots(3, 3)
    for column, title in enumerate(titles):
        low, high = true_maps[column].min(), true_maps[column].max()
        margin = 0.1 * (high - low)
        limits = {"vmin": low - margin, "vmax": high + margin, "cmap": "viridis"}
        axes[0, column].imshow(true_maps[column], **limits)
        image = axes[1, column].imshow(fitted[column], **limits)
        figure.colorbar(image, ax=axes[:2, column], shrink=0.7, pad=0.02)
        scores = (fitted[column] - true_maps[column]) / errors[column]
        image = axes[2, column].imshow(scores, vmin=-4, vmax=4, cmap="RdBu_r")
        figure.colorbar(image, ax=axes[2, column], shrink=0.9, pad=0.02)
        axes[0, column].set_title(title, fontweight="bold")
    for row, label in zip(axes, ("truth", "fit", "error / its σ"), strict=True):
        row[0].set_ylabel(label, fontsize=12)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    figure.suptitle(f"Fluorescence lifetime image: {PIXELS**2} fits in one call")
    figure.savefig(output, dpi=75)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    true_maps, counts = make_image(np.random.default_rng(0))

    began = time.perf_counter()
    fit = jax.block_until_ready(fit_image(counts))
    with_compiling = time.perf_counter() - began
    began = time.perf_counter()
    fit = jax.block_until_ready(fit_image(counts))
    seconds = time.perf_counter() - began
    failed = int(jnp.sum(fit.result != optx.RESULTS.successful))
    print(
        f"varpro_batch: {PIXELS**2} pixels, twice each, in {seconds:.2f} s "
        f"({with_compiling:.1f} s with compiling); {failed} failed"
    )

    sample = np.random.default_rng(1).choice(PIXELS**2, SAMPLE, replace=False)
    began = time.perf_counter()
    by_scipy = fit_by_scipy(counts[sample])
    a_pixel = (time.perf_counter() - began) / SAMPLE
    print(
        f"SciPy curve_fit: {1e3 * a_pixel:.1f} ms a pixel on a sample of {SAMPLE}, or "
        f"{a_pixel * PIXELS**2:.1f} s for all of them, extrapolated: "
        f"{a_pixel * PIXELS**2 / seconds:.0f} times as long"
    )

    fitted, errors = maps_with_errors(fit)
    scores = (fitted - true_maps.reshape(3, -1)) / errors
    spread = np.std(scores, axis=1)
    print(f"Error over its standard deviation: {spread.round(3)} for τ₁, τ₂ and share")
    difference = np.max(np.abs(np.sort(fitted[:2, sample].T) / by_scipy - 1))
    print(f"Largest relative difference of a lifetime from SciPy's: {difference:.1e}")
    draw(true_maps, fitted, errors, output)
    print(f"Wrote {output}.")

    assert failed == 0, f"{failed} pixels failed"
    assert np.all(np.abs(spread - 1) < 0.1), spread
    assert difference < 1e-2, difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("lifetime_image.png")
    )
    main(parser.parse_args().output)
