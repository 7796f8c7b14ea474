"""Fits the fluorescence of one sample in two instruments: shared rates, own responses.

A streak camera sees 200 delays up to 1.5 ns at 24 wavelengths, with a narrow response;
photon counting sees 150 delays up to 20 ns in 4 bands, with a broad one. The intensity in
each is

    I(t, λ) ≈ Σᵢ cᵢ(λ) (exp(−t/τᵢ) ∗ Gaussian)(t − t₀),    cᵢ(λ) ≥ 0:

three lifetimes τᵢ of both, time zero t₀ and width of the response of each, and spectra
that are not negative. Neither instrument determines all lifetimes: the first sees too
little of the slowest, the second is too slow for the fastest. `pseudojvp.varpro` fits
both together, and each alone beside it:

    python examples/two_instruments.py [--output two_instruments.png]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pseudojvp as pj


LIFETIMES = np.array([0.04, 0.5, 4.0])  # ns
ZEROS, WIDTHS = (0.012, 0.15), (0.01, 0.12)  # ns, of the two instruments
TIMES = (  # ns
    np.concatenate(
        [np.linspace(-0.05, 0.15, 120, endpoint=False), np.linspace(0.15, 1.5, 80)]
    ),
    np.linspace(-0.5, 20, 150),
)
WAVELENGTHS = np.linspace(440, 640, 24), np.array([470.0, 510.0, 550.0, 600.0])  # nm
NOISE = 0.04, 0.02
NAMES = "streak camera", "photon counting"


def convolved_decays(theta, times):
    """Returns ½ exp(k²s²/2 − k t) erfc((k s − t/s)/√2), k = 1/τ, in its stable form."""
    k = jnp.exp(-theta.shared["log_lifetime"])
    s = jnp.exp(theta.own["log_width"])
    t = times[:, None] - theta.own["zero"]
    log_cdf = jax.scipy.special.log_ndtr(t / s - k * s)
    return jnp.exp(0.5 * (k * s) ** 2 - k * t + log_cdf)


def theta_of(lifetimes, zeros, widths):
    """Returns θ: lifetimes are shared, each instrument has its own response."""
    own = tuple(
        {"zero": jnp.asarray(zero), "log_width": jnp.log(width)}
        for zero, width in zip(zeros, widths, strict=True)
    )
    return pj.SharedAndOwn({"log_lifetime": jnp.log(lifetimes)}, own)


def true_spectra(wavelengths):
    """Returns the spectra of the three components, (3, wavelengths): none is negative."""
    band = lambda centre, width: np.exp(-0.5 * ((wavelengths - centre) / width) ** 2)
    return np.stack([band(480, 18), 0.9 * band(520, 22), 0.7 * band(580, 25)])


def make_data(rng):
    truth = theta_of(LIFETIMES, ZEROS, WIDTHS)
    data = []
    for number, own in enumerate(truth.own):
        theta = pj.SharedAndOwn(truth.shared, own)
        clean = convolved_decays(theta, TIMES[number]) @ true_spectra(WAVELENGTHS[number])
        noise = NOISE[number] * rng.standard_normal(clean.shape)
        data.append(np.asarray(clean) + noise)
    return tuple(data)


def fit_alone(number, data, start):
    """Returns the errors of the lifetimes, relative, from one instrument alone."""
    fit = pj.varpro(
        convolved_decays,
        (data[number],),
        pj.SharedAndOwn(start.shared, (start.own[number],)),
        (TIMES[number],),
        weights=(np.full(len(TIMES[number]), 1 / NOISE[number]),),
        coefficient_bounds=(0, np.inf),
    )
    errors = fit.statistics(absolute_sigma=True).theta_standard_deviation
    return np.asarray(errors[:3])


def draw(data, fit, output: pathlib.Path) -> None:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplot_mosaic("aac\nbbc", width_ratios=(1, 1, 1.2))
    shown = ((470, "tab:blue"), (515, "tab:green"), (600, "tab:red"))
    for number, name in enumerate("ab"):
        weight = 1 / NOISE[number]
        fitted = data[number] - np.asarray(fit.residual[number]) / weight
        for wavelength, colour in shown:
            i = np.argmin(np.abs(WAVELENGTHS[number] - wavelength))
            label = f"{WAVELENGTHS[number][i]:.0f} nm"
            axes[name].plot(TIMES[number], data[number][:, i], ".", ms=3, color=colour)
            axes[name].plot(TIMES[number], fitted[:, i], color=colour, label=label)
        axes[name].set(xlabel="time (ns)", ylabel="intensity")
        axes[name].set_title(f"{NAMES[number]}: data and fit", loc="left")
        axes[name].legend(frameon=False)
    deviations = fit.statistics(absolute_sigma=True).coefficient_standard_deviation
    fine = np.linspace(440, 640, 200)
    for i, true in enumerate(true_spectra(fine)):
        lifetime = float(np.exp(fit.theta.shared["log_lifetime"][i]))
        axes["c"].plot(fine, true, color=f"C{i}", lw=0.8, ls="--")
        for number, mark in enumerate("os"):
            axes["c"].errorbar(
                WAVELENGTHS[number],
                fit.coefficients[number][i],
                1.96 * np.asarray(deviations[number][i]),
                fmt=mark,
                ms=4 + 3 * number,
                mfc="none" if number else None,
                color=f"C{i}",
                label=None if number else f"τ = {lifetime:.3g} ns",
            )
    axes["c"].set(xlabel="wavelength (nm)", ylabel="amplitude", ylim=(-0.1, 1.3))
    axes["c"].set_title("Spectra; squares: photon counting", loc="left")
    axes["c"].legend(frameon=False)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    data = make_data(np.random.default_rng(0))
    # As one would guess by eye.
    start = theta_of(np.array([0.1, 1.0, 10.0]), (0.0, 0.0), (0.02, 0.2))

    began = time.perf_counter()
    fit = pj.varpro(
        convolved_decays,
        data,
        start,
        TIMES,
        weights=tuple(
            np.full(len(times), 1 / noise)
            for times, noise in zip(TIMES, NOISE, strict=True)
        ),
        coefficient_bounds=(0, np.inf),
    )
    seconds = time.perf_counter() - began
    at_bound = sum(int(np.sum(held != 0)) for held in fit.held_coefficients)
    count = sum(c.size for c in fit.coefficients)
    print(
        f"Both together: {int(fit.stats['num_steps'])} steps, {seconds:.1f} s with "
        f"compiling; {at_bound} of {count} amplitudes are zero"
    )
    together = fit.statistics(absolute_sigma=True)
    errors = np.asarray(together.theta_standard_deviation[:3])
    alone = [fit_alone(number, data, start) for number in range(2)]
    fitted = np.exp(np.asarray(fit.theta.shared["log_lifetime"]))
    print(
        f"{'':14}{'fit':>9}{'truth':>9}{'error of both':>16}{NAMES[0]:>16}{NAMES[1]:>18}"
    )
    for i, (value, true) in enumerate(zip(fitted, LIFETIMES, strict=True)):
        parts = "".join(
            f"{100 * e[i]:{width}.2f} %" for e, width in zip(alone, (14, 16), strict=True)
        )
        print(f"lifetime {i} ns {value:9.4f}{true:9.4f}{100 * errors[i]:14.2f} %{parts}")
    draw(data, fit, output)
    print(f"Wrote {output}.")

    scores = np.log(fitted / LIFETIMES) / errors
    assert np.all(np.abs(scores) < 4), scores
    assert all(np.min(c) >= 0 for c in fit.coefficients)
    assert at_bound > 0
    # NaN where one instrument alone does not determine a lifetime at all.
    assert not any(np.any(e < 0.99 * errors) for e in alone), (errors, alone)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("two_instruments.png")
    )
    main(parser.parse_args().output)
