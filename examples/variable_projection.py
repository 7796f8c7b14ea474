"""Shows variable projection on the NIST problems: parameters and standard deviations.

Each model is y ≈ offset(θ) + Φ(θ) c: nonlinear in a few parameters θ, linear in the rest.
`pseudojvp.varpro` eliminates c, so that only θ needs a start and a search. The script
fits from both of NIST's starts with the default settings, compares parameters and
standard deviations with the certified ones, and draws data and fits:

    python examples/variable_projection.py [--all] [--output variable_projection.png]

With `--all` it takes all 27 problems, and some minutes, most of them for compiling 20
models. `nist_models.py` has the models. Three are fitted in parameters in which they are
separable, and the results are carried back: standard deviations by the Jacobian of that
map.

The data (`nist_strd.json`) are from the Statistical Reference Datasets, Nonlinear Least
Squares Regression, of the National Institute of Standards and Technology, Information
Technology Laboratory (NIST/ITL StRD), https://www.itl.nist.gov/div898/strd/: works of
the US Government, in the public domain.
"""

import argparse
import math
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from matplotlib.figure import Figure
from nist_models import carry_back, load_problems, Problem

import pseudojvp as pj


SELECTED = ("Lanczos2", "Lanczos3", "Gauss1", "Gauss2", "Gauss3", "Roszman1", "MGH09")
CERTIFIED_DIGITS = 11  # NIST prints no more
REQUIRED_DIGITS = 6
# The residual of Lanczos1 is 1e-13 of its data. Rounding these to float64, and what is
# computed from them, leaves two to three digits of it, and so of the deviations.
REQUIRED_DEVIATION_DIGITS = {"Lanczos1": 2.5}


class Fit(NamedTuple):
    parameters: np.ndarray
    deviation: np.ndarray
    steps: int
    converged: bool
    curve: np.ndarray


def fit_problem(problem: Problem, start: np.ndarray) -> Fit:
    model = problem.model
    theta0 = model.theta(jnp.asarray(start))
    fit = pj.varpro(
        model.basis, problem.y, theta0, problem.x, offset=model.offset, throw=False
    )
    parameters, deviation = carry_back(problem, fit)
    curve = fit.predict(curve_points(problem)).value
    converged = bool(fit.result == optx.RESULTS.successful)
    steps = int(fit.stats["num_steps"])
    return Fit(parameters, deviation, steps, converged, np.asarray(curve))


def curve_points(problem: Problem) -> np.ndarray:
    if problem.x.ndim == 2:  # two variables: the points of the data
        return problem.x
    return np.linspace(problem.x.min(), problem.x.max(), 400)


def agreeing_digits(fitted, certified) -> float:
    """Returns −log10 of the largest relative error, but at most the certified digits."""
    error = np.max(np.abs(fitted - certified) / np.abs(certified))
    return -math.log10(max(error, 10.0**-CERTIFIED_DIGITS)) if error < np.inf else 0.0


def digits_of(problem: Problem, fit: Fit) -> tuple[float, float]:
    """Returns the digits of the worst parameter and of the worst standard deviation."""
    return (
        agreeing_digits(fit.parameters, problem.certified),
        agreeing_digits(fit.deviation, problem.certified_deviation),
    )


def draw(problems: list[Problem], all_fits: list[list[Fit]], output: pathlib.Path):
    columns = math.ceil(math.sqrt(1.5 * len(problems)))
    rows = math.ceil(len(problems) / columns)
    size = (3.1 * columns, 2.6 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for problem, fits in zip(problems, all_fits, strict=True):
        panel = next(panels)
        x, dots = problem.x, {"s": np.clip(900 / problem.x.size, 4, 16), "zorder": 3}
        dots |= {"facecolor": "white", "edgecolor": "tab:blue"}
        if x.ndim == 1:
            curve = curve_points(problem)
            panel.plot(curve, fits[0].curve, color="tab:orange", lw=3, label="start 1")
            panel.plot(curve, fits[1].curve, "--", color="k", lw=1, label="start 2")
            panel.scatter(x, problem.y, **dots, label="data")
        else:
            panel.scatter(fits[0].curve, problem.y, **dots)
            panel.axline((problem.y.mean(),) * 2, slope=1, color="tab:orange", lw=3)
            panel.set(xlabel="fitted", ylabel="observed")
        worst = np.min([digits_of(problem, fit) for fit in fits], axis=0)
        panel.set_title(problem.name, loc="left", fontweight="bold")
        digits = f"digits {worst[0]:.1f}, σ {worst[1]:.1f}"
        panel.set_title(digits, loc="right", fontsize=8, color="0.35")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels:
        panel.axis("off")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", frameon=False, ncols=3)
    figure.suptitle("NIST nonlinear regression problems, fitted by variable projection")
    figure.savefig(output, dpi=100)


def main(output: pathlib.Path, every: bool) -> None:
    jax.config.update("jax_enable_x64", True)
    problems = [p for p in load_problems() if every or p.name in SELECTED]
    print("problem   start  steps  digits of parameters  of deviations  seconds  result")
    all_fits = []
    for problem in problems:
        fits = []
        for number, start in enumerate(problem.starts, 1):
            began = time.perf_counter()
            fit = fit_problem(problem, start)
            seconds = time.perf_counter() - began
            of_parameters, of_deviations = digits_of(problem, fit)
            print(
                f"{problem.name:9}{number:6}{fit.steps:7}{of_parameters:22.1f}"
                f"{of_deviations:15.1f}{seconds:9.2f}  "
                + ("converged" if fit.converged else "NOT converged"),
                flush=True,
            )
            fits.append(fit)
        all_fits.append(fits)
    draw(problems, all_fits, output)
    print(f"Wrote {output}.")

    for problem, fits in zip(problems, all_fits, strict=True):
        for fit in fits:
            of_parameters, of_deviations = digits_of(problem, fit)
            required = REQUIRED_DEVIATION_DIGITS.get(problem.name, REQUIRED_DIGITS)
            assert fit.converged, problem.name
            assert of_parameters >= REQUIRED_DIGITS, (problem.name, of_parameters)
            assert of_deviations >= required, (problem.name, of_deviations)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="fit all 27 problems")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("variable_projection.png")
    )
    arguments = parser.parse_args()
    main(arguments.output, arguments.all)
