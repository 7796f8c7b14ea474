"""Fits time-resolved spectra by global analysis: four decays shared by 512 wavelengths.

The absorbance change at each of 1000 delays and 512 wavelengths is

    ΔA(t, λ) ≈ Σᵢ cᵢ(λ) (exp(−t/τᵢ) ∗ Gaussian)(t − t₀),

with four lifetimes, time zero and the width of the instrument response for all
wavelengths, and a decay-associated spectrum cᵢ(λ) for each lifetime: 6 parameters and
2048 coefficients, which `pseudojvp.varpro` eliminates. It takes the table of data as it
is, one column for each wavelength.

The script fits synthetic data, times SciPy's `least_squares` with finite differences on
the same projected residual, and draws the spectra with their 95 % bands:

    python examples/global_analysis.py [--output global_analysis.png]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares
from scipy.special import log_ndtr

import pseudojvp as pj


LIFETIMES = np.array([0.35, 4.0, 45.0, 600.0])  # ps
TIME_ZERO, WIDTH = 0.08, 0.09  # ps
NOISE = 0.6  # mOD
TIMES = np.concatenate(  # ps
    [np.linspace(-1, 2, 400, endpoint=False), np.geomspace(2, 2500, 600)]
)
WAVELENGTHS = np.linspace(420, 740, 512)  # nm
# As one would guess by eye: lifetimes by decades, a response of 0.2 ps.
START = {"log_lifetime": np.log([0.1, 1.0, 10.0, 100.0]), "zero": 0.0, "width": 0.2}


def convolved_decays(theta, times):
    """Returns ½ exp(k²s²/2 − k t) erfc((k s − t/s)/√2), k = 1/τ, in its stable form."""
    s = theta["width"]
    t, k = times[:, None] - theta["zero"], jnp.exp(-theta["log_lifetime"])
    # ½ erfc is the normal distribution function. Its logarithm neither overflows where
    # exp does nor underflows where erfc does.
    log_cdf = jax.scipy.special.log_ndtr(t / s - k * s)
    return jnp.exp(0.5 * (k * s) ** 2 - k * t + log_cdf)


def true_spectra():
    """Returns the four decay-associated spectra in mOD, (4, wavelengths)."""

    def band(centre, width):
        return np.exp(-0.5 * ((WAVELENGTHS - centre) / width) ** 2)

    return np.stack(
        [
            9 * band(600, 45) - 6 * band(480, 25),
            -7 * band(530, 22) + 5 * band(660, 35),
            6 * band(505, 30) - 4 * band(620, 30),
            8 * band(560, 50) - 5 * band(455, 18),
        ]
    )


def make_data(rng):
    theta = {
        "log_lifetime": jnp.log(LIFETIMES),
        "zero": jnp.array(TIME_ZERO),
        "width": jnp.array(WIDTH),
    }
    clean = np.asarray(convolved_decays(theta, TIMES)) @ true_spectra()
    return clean + NOISE * rng.standard_normal(clean.shape)


def fit_by_scipy(data):
    """Returns lifetimes, time zero and width; the spectra are eliminated by NumPy."""

    def residual(theta):
        s, k = theta[5], np.exp(-theta[:4])
        t = TIMES[:, None] - theta[4]
        basis = np.exp(0.5 * (k * s) ** 2 - k * t + log_ndtr(t / s - k * s))
        spectra, *_ = np.linalg.lstsq(basis, data, rcond=None)
        return (basis @ spectra - data).ravel()

    start = [*START["log_lifetime"], START["zero"], START["width"]]
    fit = least_squares(residual, start)
    # Nothing tells one decay from another: they may have changed places.
    lifetimes = np.sort(np.exp(fit.x[:4]))
    return np.array([*lifetimes, fit.x[4], fit.x[5]]), fit.cost


def draw(data, fit, deviation, output: pathlib.Path) -> None:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplot_mosaic(
        "aabb\nccbb", height_ratios=(1.25, 1), width_ratios=(1, 1, 1.25, 1.25)
    )
    axes["a"].set_xscale("symlog", linthresh=1, linscale=0.8)
    limit = np.quantile(np.abs(data), 0.999)
    image = axes["a"].pcolormesh(
        TIMES, WAVELENGTHS, data.T, cmap="RdBu_r", vmin=-limit, vmax=limit,
        rasterized=True,
    )  # fmt: skip
    figure.colorbar(image, ax=axes["a"], label="ΔA (mOD)", pad=0.01)
    axes["a"].set(xlabel="delay (ps)", ylabel="wavelength (nm)")
    axes["a"].set_title("Data: 1000 delays x 512 wavelengths", loc="left")

    fitted = data - np.asarray(fit.residual)
    axes["c"].set_xscale("symlog", linthresh=1, linscale=0.8)
    for wavelength, colour in ((480, "tab:blue"), (530, "tab:green"), (620, "tab:red")):
        i = np.argmin(np.abs(WAVELENGTHS - wavelength))
        axes["c"].plot(TIMES, data[:, i], ".", ms=2, alpha=0.35, color=colour)
        axes["c"].plot(TIMES, fitted[:, i], color=colour, label=f"{wavelength} nm")
    axes["c"].set(xlabel="delay (ps)", ylabel="ΔA (mOD)", xlim=(TIMES[0], TIMES[-1]))
    axes["c"].legend(frameon=False, ncols=3)
    axes["c"].set_title("Traces and fit", loc="left")

    lifetimes = np.exp(fit.theta["log_lifetime"])
    for i, (spectrum, true) in enumerate(
        zip(np.asarray(fit.coefficients), true_spectra(), strict=True)
    ):
        band = 1.96 * np.asarray(deviation[i])
        label = f"τ = {lifetimes[i]:.3g} ps"
        axes["b"].fill_between(
            WAVELENGTHS, spectrum - band, spectrum + band, color=f"C{i}", alpha=0.4, lw=0
        )
        axes["b"].plot(WAVELENGTHS, spectrum, color=f"C{i}", lw=0.8, label=label)
        name = "truth" if i == 3 else None
        axes["b"].plot(WAVELENGTHS, true, "--", color="k", lw=0.9, label=name)
    axes["b"].axhline(0, color="0.6", lw=0.6, zorder=0)
    axes["b"].set(xlabel="wavelength (nm)", ylabel="amplitude (mOD)")
    axes["b"].set_xlim(WAVELENGTHS[0], WAVELENGTHS[-1])
    axes["b"].legend(frameon=False)
    axes["b"].set_title("Decay-associated spectra, 95 % bands", loc="left")
    for name in "bc":
        axes[name].spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    data = make_data(np.random.default_rng(0))

    began = time.perf_counter()
    fit = jax.block_until_ready(pj.varpro(convolved_decays, data, START, TIMES))
    with_compiling = time.perf_counter() - began
    began = time.perf_counter()
    fit = jax.block_until_ready(pj.varpro(convolved_decays, data, START, TIMES))
    seconds = time.perf_counter() - began
    steps = int(fit.stats["num_steps"])
    print(
        f"varpro: {data.shape[0]} x {data.shape[1]} data, {steps} steps, "
        f"{seconds:.2f} s ({with_compiling:.1f} s with compiling)"
    )
    began = time.perf_counter()
    by_scipy, scipy_cost = fit_by_scipy(data)
    scipy_seconds = time.perf_counter() - began
    print(
        f"SciPy least_squares of the same residual, finite differences: "
        f"{scipy_seconds:.2f} s, {scipy_seconds / seconds:.1f} times as long; cost "
        f"{scipy_cost:.4f}, of varpro {fit.cost:.4f}"
    )

    statistics = fit.statistics()
    # In the order of `ravel_pytree`: log lifetimes, width, time zero.
    *by_lifetime, width_error, zero_error = statistics.theta_standard_deviation
    lifetimes = np.exp(fit.theta["log_lifetime"])
    fitted = np.array([*lifetimes, fit.theta["zero"], fit.theta["width"]])
    errors = np.array([*(lifetimes * np.array(by_lifetime)), zero_error, width_error])
    true = np.array([*LIFETIMES, TIME_ZERO, WIDTH])
    names = [*(f"lifetime {i}" for i in range(1, 5)), "time zero", "width"]
    for name, value, error, right in zip(names, fitted, errors, true, strict=True):
        print(f"{name:11}{value:12.5f} ± {error:.5f} ps   (true {right:g})")

    deviation = statistics.coefficient_standard_deviation
    scores = (fit.coefficients - true_spectra()) / deviation
    inside = float(jnp.mean(jnp.abs(scores) < 1.96))
    print(f"The 95 % bands hold {100 * inside:.1f} % of the true spectra")
    draw(data, fit, deviation, output)
    print(f"Wrote {output}.")

    assert np.all(np.abs(fitted - true) < 4 * errors), (fitted - true) / errors
    assert np.allclose(fitted, by_scipy, rtol=1e-4), fitted / by_scipy
    assert 0.9 < inside < 0.99, inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("global_analysis.png")
    )
    main(parser.parse_args().output)
