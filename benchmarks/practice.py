"""What do fits as practitioners have them take, beside the tools they use (seconds)?

Each job is done by `varpro` and by others on the same data: SciPy's `curve_fit` and
`least_squares`, lmfit and pyglotaran, where these are installed (the extra `benchmarks`
has lmfit; pyglotaran wants a virtual environment of its own). The errors of parameters
are relative to those of the first contender. The first answer is that of a new process,
import included; a warm one the median of several calls. The cost is that of the loss, but
lmfit tells that of squares.

    python -m benchmarks.practice [--only JOB] [--rounds 5]
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from .harness import sample
from .turns import parse, print_header


class Answer:
    """θ in ascending order, with its standard deviations, and the least cost."""

    def __init__(self, theta, deviation, cost):
        order = np.argsort(np.asarray(theta))
        self.theta = np.asarray(theta)[order]
        self.deviation = np.asarray(deviation)[order]
        self.cost = float(cost)


TIMES = np.linspace(0, 5, 60)
START = np.array([0.2, 1.0])


def _decay_data(strikes: bool = False):
    rng = np.random.default_rng(0)
    y = np.exp(-np.outer(TIMES, [0.5, 3.0])) @ np.array([2.0, 1.0])
    y += 0.01 * rng.standard_normal(60)
    if strikes:
        y[[7, 21, 44]] += [1.0, -0.5, 0.8]
    return y


def _global_data():
    """200 wavelengths, three species with spectra that are not negative."""
    rng = np.random.default_rng(1)
    waves = np.linspace(0, 1, 200)
    spectra = np.exp(-(((waves - np.array([[0.2], [0.5], [0.8]])) / 0.12) ** 2))
    times = np.linspace(0, 20, 120)
    data = np.exp(-np.outer(times, [0.1, 0.5, 2.0])) @ spectra
    return times, waves, data + 0.02 * rng.standard_normal(data.shape)


def _varpro(data, start, times, **keywords) -> Callable[[], Answer]:
    import jax
    import jax.numpy as jnp

    import pseudojvp as pj

    jax.config.update("jax_enable_x64", True)

    def answer():
        fit = pj.varpro(_decays, data, start, times, **keywords)
        errors = fit.statistics()
        return Answer(fit.theta, errors.theta_standard_deviation, fit.cost)

    def _decays(rates, times):
        return jnp.exp(-times[:, None] * rates)

    return answer


def _model(times, a, b, c, d):
    return c * np.exp(-a * times) + d * np.exp(-b * times)


def _curve_fit(y, **keywords) -> Callable[[], Answer]:
    from scipy.optimize import curve_fit

    def answer():
        p, covariance = curve_fit(_model, TIMES, y, [*START, 1, 1], **keywords)
        cost = 0.5 * np.sum((_model(TIMES, *p) - y) ** 2)
        return Answer(p[:2], np.sqrt(np.diag(covariance))[:2], cost)

    return answer


def _least_squares(y, **keywords) -> Callable[[], Answer]:
    from scipy.optimize import least_squares

    def answer():
        residual = lambda p: _model(TIMES, *p) - y
        found = least_squares(residual, [*START, 1, 1], **keywords)
        inverse = np.linalg.pinv(found.jac.T @ found.jac)
        deviation = np.sqrt(np.diag(inverse) * 2 * found.cost / (60 - 4))
        return Answer(found.x[:2], deviation[:2], found.cost)

    return answer


def _lmfit(y, upper=np.inf, **keywords) -> Callable[[], Answer]:
    import lmfit

    def answer():
        model = lmfit.Model(_model)
        parameters = model.make_params(a=START[0], b=START[1], c=1.0, d=1.0)
        parameters["a"].min = parameters["b"].min = 0
        parameters["b"].max = upper
        found = model.fit(y, parameters, times=TIMES, **keywords)
        both = [found.params[name] for name in "ab"]
        deviation = [np.nan if p.stderr is None else p.stderr for p in both]
        return Answer([p.value for p in both], deviation, 0.5 * found.chisqr)

    return answer


def _glotaran() -> Callable[[], Answer]:
    import xarray as xr
    from glotaran.builtin.megacomplexes.decay import DecayParallelMegacomplex
    from glotaran.model import Model
    from glotaran.optimization.optimize import optimize
    from glotaran.parameter import Parameters
    from glotaran.project import Scheme

    times, waves, data = _global_data()
    described = Model.create_class_from_megacomplexes([DecayParallelMegacomplex])
    model = described(
        megacomplex={
            "m": {
                "type": "decay-parallel",
                "compartments": ["1", "2", "3"],
                "rates": ["k.1", "k.2", "k.3"],
            }
        },
        dataset={"d": {"megacomplex": ["m"]}},
        dataset_groups={"default": {"residual_function": "non_negative_least_squares"}},
    )
    coordinates = [("time", times), ("spectral", waves)]
    dataset = xr.DataArray(data, coords=coordinates).to_dataset(name="data")

    def answer():
        parameters = Parameters.from_dict({"k": [0.05, 0.3, 1.5]})
        result = optimize(Scheme(model, parameters, {"d": dataset}), verbose=False)
        found = [result.optimized_parameters.get(f"k.{i}") for i in (1, 2, 3)]
        deviation = [float(p.standard_error) for p in found]
        return Answer([float(p.value) for p in found], deviation, result.cost)

    return answer


_BOUNDS = [0, 0, -np.inf, -np.inf], [np.inf, 2.0, np.inf, np.inf]
_LOSS = {"loss": "soft_l1", "f_scale": 0.02}
_OURS = {"bounds": (0.0, np.array([np.inf, 2.0]))}


def _varpro_global():
    times, _, data = _global_data()
    start = np.array([0.05, 0.3, 1.5])
    return _varpro(data, start, times, coefficient_bounds=(0, np.inf))


JOBS: dict[str, dict[str, Callable[[], Callable[[], Answer]]]] = {
    "two decays, 60 points": {
        "`varpro`": lambda: _varpro(_decay_data(), START, TIMES),
        "`curve_fit`": lambda: _curve_fit(_decay_data()),
        "lmfit": lambda: _lmfit(_decay_data()),
    },
    "a rate at its bound": {
        "`varpro(bounds=...)`": lambda: _varpro(_decay_data(), START, TIMES, **_OURS),
        "`curve_fit(bounds=...)`": lambda: _curve_fit(_decay_data(), bounds=_BOUNDS),
        "`least_squares(bounds=...)`": lambda: _least_squares(
            _decay_data(), bounds=_BOUNDS
        ),
        "lmfit, by a transformation": lambda: _lmfit(_decay_data(), upper=2.0),
    },
    "outliers, soft L1": {
        "`varpro(loss=...)`": lambda: _varpro(_decay_data(True), START, TIMES, **_LOSS),
        "`least_squares(loss=...)`": lambda: _least_squares(_decay_data(True), **_LOSS),
        "lmfit, with that": lambda: _lmfit(
            _decay_data(True), method="least_squares", fit_kws=_LOSS
        ),
    },
    "three decays, 200 spectra, not negative": {
        "`varpro(coefficient_bounds=...)`": _varpro_global,
        "pyglotaran": _glotaran,
    },
}
_NEEDS = {"lmfit": "lmfit", "pyglotaran": "glotaran"}


def _first(job: str, name: str) -> float:
    """Seconds of a new process, import included."""
    script = (
        "import time; began = time.perf_counter()\n"
        "from benchmarks.practice import JOBS\n"
        f"JOBS[{job!r}][{name!r}]()()\n"
        "print(time.perf_counter() - began)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    return float(process.stdout.split()[-1])


def _row(job: str, name: str, reference: Answer | None, rounds: int) -> Answer:
    call = JOBS[job][name]()
    answer = call()
    against = answer if reference is None else reference
    warm = np.median([sample(call, 1) for _ in range(rounds)])
    first = np.median([_first(job, name) for _ in range(max(rounds // 2, 1))])
    theta, deviation = (
        ", ".join(f"{number:.4g}" for number in numbers)
        for numbers in (answer.theta, answer.deviation)
    )
    off = np.max(np.abs(answer.theta / against.theta - 1))
    print(
        f"| {name} | {theta} | {deviation} | {off:.0e} | {answer.cost:.8g} | "
        f"{first:.1f} | {warm:.3g} |",
        flush=True,
    )
    return against


def main() -> None:
    parser = parse(__doc__, 5)
    parser.add_argument("--only", default="", help="part of the name of a job")
    arguments = parser.parse_args()
    began = time.perf_counter()
    print_header()
    for job, contenders in JOBS.items():
        if arguments.only not in job:
            continue
        print(f"\n| {job} | rates | std. dev. | off | cost | first, s | warm, ms |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        reference = None
        for name in contenders:
            needed = _NEEDS.get(name.split(",")[0])
            if needed is not None and importlib.util.find_spec(needed) is None:
                print(f"| {name} | not installed | | | | | |")
                continue
            reference = _row(job, name, reference, arguments.rounds)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
