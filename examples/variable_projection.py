"""Shows variable projection, the main job of `linear_solve`, on the NIST problems.

Each model is y ≈ A(θ) c: nonlinear in a few parameters θ, linear in the rest, c. For
any θ the best c is A(θ)†y, so that only θ is left to fit, and what is minimised is the
projected residual

    r(θ) = y − A(θ) A(θ)†y,

written below as it stands: `linear_solve` with `QR()`, then a product. Its derivative,
which Golub and Pereyra (1973) found by hand, comes from JAX. Optimistix's
Levenberg–Marquardt method fits θ, from both of NIST's starting points, and a few
Gauss–Newton steps give the last digits.

The script prints the fitted parameters beside the certified ones, times the projected
Jacobian beside the same code on `lineax.linear_solve`, and draws data and fits:

    python examples/variable_projection.py [--output variable_projection.png]

The data (`nist_strd.json`) are from the Statistical Reference Datasets, Nonlinear Least
Squares Regression, of the National Institute of Standards and Technology, Information
Technology Laboratory (NIST/ITL StRD), https://www.itl.nist.gov/div898/strd/: works of
the US Government, in the public domain.
"""

import argparse
import functools as ft
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from matplotlib.figure import Figure
from nist_models import gaussians, load_problems, Problem

import pseudojvp


CERTIFIED_DIGITS = 11  # NIST prints no more
REQUIRED_DIGITS = 6
POLISHING_STEPS = 5
REPEATS = 50

PSEUDOJVP = (pseudojvp.linear_solve, pseudojvp.QR())
LINEAX = (lx.linear_solve, lx.QR())


def best_coefficients(matrix, y, library=PSEUDOJVP):
    """Returns c = A†y."""
    linear_solve, solver = library
    # Optimistix takes a tangent of this at zeros: a failed solve must not raise.
    return linear_solve(lx.MatrixLinearOperator(matrix), y, solver, throw=False).value


def projected_residual(matrix, y, library=PSEUDOJVP):
    """Returns y − A A†y."""
    return y - matrix @ best_coefficients(matrix, y, library)


class Fit(NamedTuple):
    parameters: np.ndarray
    rss: float
    curve: np.ndarray


class Progress:
    """One line a fit: on a terminal it follows the steps, and it ends as the outcome."""

    def __init__(self):
        self._label = ""
        self._began = 0.0
        self._live = sys.stdout.isatty()

    def begin(self, label: str) -> None:
        self._label, self._began = label, time.perf_counter()
        self._follow("compiling")

    def __call__(self, *, num_steps, loss_this_step, **_) -> None:
        """Called by Optimistix at every step, with pairs of a name and a value."""
        jax.debug.callback(self._show, num_steps[1], loss_this_step[1])

    def end(self, outcome: str) -> None:
        jax.effects_barrier()
        seconds = time.perf_counter() - self._began
        start = "\r" if self._live else ""
        print(f"{start}{self._label}: {outcome}, {seconds:4.1f} s", flush=True)

    def _show(self, step, loss) -> None:
        self._follow(f"step {step:3d}, ‖r‖/‖y‖ {np.sqrt(2 * loss):9.3e}")

    def _follow(self, text: str) -> None:
        if self._live:
            print(f"\r{self._label}: {text}", end="", flush=True)


def fit_problem(problem: Problem, progress: Progress) -> list[Fit]:
    """Fits from every start; the first fit of a problem compiles for the others."""
    optimiser = optx.LevenbergMarquardt(rtol=1e-12, atol=1e-12, verbose=progress)

    # θ in units of its start and y in units of its norm: the damping and the tolerances
    # of Optimistix do not know the scale of a problem.
    def scaled_residual(scaled_theta, args):
        start, x, y = args
        matrix = problem.matrix(scaled_theta * start, x)
        return projected_residual(matrix, y) / jnp.linalg.norm(y)

    # The method compares sums of squares, in which a change of θ below √eps is lost in
    # rounding. Undamped steps from its optimum, with the same Jacobian, have no such
    # floor.
    def gauss_newton_step(_, scaled_theta, args):
        residual = scaled_residual(scaled_theta, args)
        jacobian = jax.jacfwd(scaled_residual)(scaled_theta, args)
        return scaled_theta - best_coefficients(jacobian, residual)

    @jax.jit
    def evaluate(scaled_theta, args, x_curve):
        step = ft.partial(gauss_newton_step, args=args)
        scaled_theta = jax.lax.fori_loop(0, POLISHING_STEPS, step, scaled_theta)
        start, x, y = args
        theta = scaled_theta * start
        matrix = problem.matrix(theta, x)
        coefficients = best_coefficients(matrix, y)
        rss = jnp.sum((y - matrix @ coefficients) ** 2)
        return theta, coefficients, rss, problem.matrix(theta, x_curve) @ coefficients

    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    fits = []
    for number, parameters in enumerate(problem.starts, 1):
        progress.begin(f"{problem.name:<8} start {number}")
        start = jnp.asarray(parameters[problem.nonlinear])
        ones, args = jnp.ones_like(start), (start, x, y)
        solution = optx.least_squares(scaled_residual, optimiser, ones, args, throw=False)
        theta, coefficients, rss, curve = evaluate(
            solution.value, args, curve_points(problem)
        )
        fitted = np.empty_like(problem.certified)
        fitted[problem.nonlinear] = theta
        fitted[problem.linear] = coefficients
        fits.append(Fit(fitted, float(rss), np.asarray(curve)))
        converged = solution.result == optx.RESULTS.successful
        said = "converged" if converged else "NOT converged"
        steps = int(solution.stats["num_steps"])
        progress.end(f"{steps:3d} steps, RSS {rss:.5e}, {said}")
    return fits


def curve_points(problem: Problem) -> np.ndarray:
    return np.linspace(problem.x.min(), problem.x.max(), 400)


# The table of fitted and certified values.


def agreeing_digits(fitted, certified):
    """Returns −log10 of the relative error, but no more digits than are certified."""
    error = np.abs(fitted - certified) / np.abs(certified)
    return -np.log10(np.maximum(error, 10.0**-CERTIFIED_DIGITS))


def print_table(problems: list[Problem], all_fits: list[list[Fit]]) -> None:
    for problem, fits in zip(problems, all_fits, strict=True):
        print(f"\n{problem.name}: {problem.formula}")
        heads = "".join(f"{f'from start {i}':>20} digits" for i in (1, 2))
        print(f"{'':14}{'certified':>18}{heads}")
        for i, certified in enumerate(problem.certified):
            kind = "linear" if i in problem.linear else "nonlinear"
            values = [fit.parameters[i] for fit in fits]
            print_row(f"b{i + 1}", kind, certified, values)
        print_row("RSS", "", problem.certified_rss, [fit.rss for fit in fits])


def print_row(name: str, kind: str, certified: float, values: list[float]) -> None:
    cells = "".join(
        f"{value:20.10e} {agreeing_digits(value, certified):6.1f}" for value in values
    )
    print(f"{name:4}{kind:10}{certified:18.10e}{cells}")


# The projected Jacobian, timed.


def gaussian_mixture(rows: int, cols: int):
    """Returns A(θ) of `cols` Gaussians, θ (centres, then widths), x and noisy y."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, rows)
    centres = np.linspace(0, 1, cols)
    widths = (1 + rng.random(cols)) / cols
    y = gaussians(centres, widths, x) @ rng.standard_normal(cols)
    y += 0.01 * rng.standard_normal(rows)
    theta = np.concatenate([centres, widths])
    return (lambda theta, x: gaussians(theta[:cols], theta[cols:], x)), theta, x, y


def compile_jacobian(library, model, *data):
    """Returns θ, x, y ↦ dr/dθ, compiled, and the seconds that took."""

    def residual(theta, x, y):
        return projected_residual(model(theta, x), y, library)

    began = time.perf_counter()
    compiled = jax.jit(jax.jacfwd(residual)).lower(*data).compile()
    return compiled, time.perf_counter() - began


def time_jacobians(model, *data) -> None:
    """Prints the run times of dr/dθ, taken by turns in one process."""
    data = [jnp.asarray(array) for array in data]
    libraries = (PSEUDOJVP, LINEAX)
    compiled = [compile_jacobian(library, model, *data) for library in libraries]
    jacobians, compile_seconds = zip(*compiled, strict=True)
    ours, lineaxs = (jacobian(*data).block_until_ready() for jacobian in jacobians)
    run_ms = np.empty((REPEATS, len(jacobians)))
    for repeat in range(REPEATS):
        for i, jacobian in enumerate(jacobians):
            began = time.perf_counter()
            jacobian(*data).block_until_ready()
            run_ms[repeat, i] = 1e3 * (time.perf_counter() - began)
    summary = np.quantile(run_ms, (0.25, 0.5, 0.75, 0), axis=0)
    for i, name in enumerate(("pseudojvp", "lineax")):
        low, median, high, fastest = summary[:, i]
        quartiles = f"({low:.3f} to {high:.3f})"
        print(
            f"  {name:10}{median:10.3f} {quartiles:24}{fastest:8.3f}"
            f"{compile_seconds[i]:12.2f}"
        )
    ratio = summary[:, 1] / summary[:, 0]
    difference = jnp.max(jnp.abs(ours - lineaxs)) / jnp.max(jnp.abs(lineaxs))
    print(
        f"  lineax / pseudojvp: {ratio[1]:.2f} (median), {ratio[3]:.2f} (fastest); "
        f"largest relative difference {difference:.1e}"
    )


def time_all(problems: list[Problem]) -> None:
    print(f"\nThe Jacobian of the projected residual, {REPEATS} runs by turns:")
    print(f"{'':12}{'median, ms':>10} {'(quartiles)':24}{'fastest':>8}{'compile, s':>12}")
    gauss = next(problem for problem in problems if problem.name == "Gauss1")
    theta = gauss.certified[gauss.nonlinear]
    print(f"Gauss1: {gauss.x.size} x {len(gauss.linear)}, {theta.size} tangents")
    time_jacobians(gauss.matrix, theta, gauss.x, gauss.y)
    print("Sum of 24 Gaussians: 1000 x 24, 48 tangents")
    time_jacobians(*gaussian_mixture(1000, 24))


# The picture.


def draw(problems: list[Problem], all_fits: list[list[Fit]], output: pathlib.Path):
    figure = Figure(figsize=(14, 6.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, hspace=0.04)
    *panels, legend = figure.subplots(2, 4).flat
    for panel, problem, fits in zip(panels, problems, all_fits, strict=True):
        x = curve_points(problem)
        panel.plot(x, fits[0].curve, color="tab:orange", lw=3, label="fit from start 1")
        panel.plot(x, fits[1].curve, "--", color="k", lw=1, label="fit from start 2")
        size = np.clip(900 / problem.x.size, 4, 16)
        data = {"s": size, "facecolor": "white", "edgecolor": "tab:blue", "zorder": 3}
        panel.scatter(problem.x, problem.y, **data, label="data")
        sizes = f"{len(problem.linear)} linear, {len(problem.nonlinear)} nonlinear"
        panel.set_title(problem.name, loc="left", fontweight="bold")
        panel.set_title(sizes, loc="right", fontsize=9, color="0.35")
        panel.set_xlabel(problem.axes[0])
        panel.set_ylabel(problem.axes[1])
        panel.spines[["top", "right"]].set_visible(False)
    legend.axis("off")
    handles = panels[0].get_legend_handles_labels()
    legend.legend(*handles, loc="center", frameon=False, fontsize=12)
    figure.suptitle("NIST nonlinear regression problems, fitted by variable projection")
    figure.savefig(output, dpi=130)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    problems = load_problems()
    progress = Progress()
    all_fits = [fit_problem(problem, progress) for problem in problems]
    print_table(problems, all_fits)
    time_all(problems)
    draw(problems, all_fits, output)
    print(f"\nWrote {output}.")

    digits = [
        agreeing_digits(fit.parameters, problem.certified)
        for problem, fits in zip(problems, all_fits, strict=True)
        for fit in fits
    ]
    worst = np.min(np.concatenate(digits))
    print(f"Every parameter, from every start, agrees to {worst:.1f} digits or more.")
    assert worst >= REQUIRED_DIGITS, f"only {worst:.1f} digits on some parameter"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("variable_projection.png")
    )
    main(parser.parse_args().output)
