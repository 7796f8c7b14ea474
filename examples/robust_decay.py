"""Fits a decay whose detector is struck now and then: a robust loss beside squares.

    y ≈ c₁ exp(−t/τ₁) + c₂ exp(−t/τ₂) + background

One point in ten is far off, and always above, as cosmic rays and discharges are. Squares
follow them; with `loss="cauchy"` a residual beyond `f_scale` hardly counts. That loss is
not convex: the search starts where `"soft_l1"`, which is, has ended. Both are minimised
in the lifetimes and the three coefficients together, as SciPy's `least_squares` does it,
which is beside.

    python examples/robust_decay.py [--output robust_decay.png]
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


TIMES = np.linspace(0, 20, 240)  # ns
LIFETIMES = np.array([1.2, 6.0])
COEFFICIENTS = np.array([3.0, 2.0, 0.4])
NOISE = 0.03
START = np.log([1.0, 8.0])  # of log τ
SCALE = 1.5 * NOISE


def decays(theta, times):
    background = jnp.ones_like(times)
    return jnp.column_stack([jnp.exp(-times[:, None] / jnp.exp(theta)), background])


def struck_data(rng):
    """Returns the data and which of them are struck."""
    exact = np.asarray(decays(np.log(LIFETIMES), TIMES)) @ COEFFICIENTS
    struck = rng.random(TIMES.size) < 0.1
    strikes = np.where(struck, rng.exponential(1.0, TIMES.size) + 10 * NOISE, 0)
    return exact + NOISE * rng.standard_normal(TIMES.size) + strikes, struck


def fit_by_scipy(y, start):
    """The minimum of the same loss over all five parameters, and its lifetimes."""

    def residual(parameters):
        phi = np.exp(-TIMES[:, None] / np.exp(parameters[:2]))
        return np.column_stack([phi, np.ones_like(TIMES)]) @ parameters[2:] - y

    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    found = least_squares(residual, start, loss="cauchy", f_scale=SCALE, **tight)
    return found.cost, np.exp(found.x[:2])


def draw(y, struck, fits, output: pathlib.Path) -> None:
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(TIMES[~struck], y[~struck], ".", color="0.6", label="data")
    above.plot(TIMES[struck], y[struck], "x", color="tab:red", label="struck")
    exact = np.asarray(decays(np.log(LIFETIMES), TIMES)) @ COEFFICIENTS
    below.axhline(0, color="0.6", linewidth=1)
    for name, fit, colour in fits:
        band = fit.predict(TIMES)
        tau = ", ".join(f"{t:.2f}" for t in np.sort(np.exp(fit.theta)))
        above.plot(TIMES, band.value, color=colour, label=f"{name}: τ = {tau} ns")
        below.plot(TIMES, band.value - exact, color=colour)
        lower, upper = band.lower - exact, band.upper - exact
        below.fill_between(TIMES, lower, upper, color=colour, alpha=0.25, linewidth=0)
    above.set_ylabel("signal")
    above.legend(title=f"true: τ = {LIFETIMES[0]:.2f}, {LIFETIMES[1]:.2f} ns")
    below.set_ylabel("fit − truth, 95 %")
    below.set_xlabel("time (ns)")
    figure.savefig(output, dpi=75)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    y, struck = struck_data(np.random.default_rng(3))
    plain = pj.varpro(decays, y, START, TIMES)
    robust = {"f_scale": SCALE}
    convex = pj.varpro(decays, y, START, TIMES, loss="soft_l1", **robust)
    fit = pj.varpro(decays, y, convex.theta, TIMES, loss="cauchy", **robust)
    print(f"Squares\n\n{plain.summary()}\n\nCauchy's loss\n\n{fit.summary()}\n")

    everything = np.concatenate([fit.theta, fit.coefficients])
    cost, lifetimes = fit_by_scipy(y, everything * 1.02)
    print(f"SciPy, all five parameters: τ = {lifetimes.round(6)}, cost {cost:.9f}")
    print(f"varpro:                     τ = {np.exp(fit.theta)}, cost {fit.cost:.9f}")

    clean = np.exp(pj.varpro(decays, y[~struck], START, TIMES[~struck]).theta)
    errors = [np.abs(np.exp(f.theta) - LIFETIMES) / LIFETIMES for f in (plain, fit)]
    print(f"Without what was struck: τ = {clean}; truth {LIFETIMES}")
    print(f"Relative errors of τ: squares {errors[0].round(3)}, robust {errors[1]}")
    draw(y, struck, [("squares", plain, "tab:orange"), ("Cauchy", fit, "C0")], output)
    print(f"{struck.sum()} of {y.size} were struck; {time.perf_counter() - began:.1f} s")

    assert np.allclose(np.exp(fit.theta), lifetimes, rtol=1e-6)
    assert abs(fit.cost / cost - 1) < 1e-8
    assert np.all(errors[1] < 0.1)
    assert np.any(errors[0] > 0.3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default="robust_decay.png")
    main(parser.parse_args().output)
