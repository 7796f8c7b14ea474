"""How long until a new process has printed its first fit (seconds)?

Sixty points and two decays: from the start of the script to the printed summary, import
included, compiled from nothing and with JAX's cache of compiled programs; beside SciPy's
`curve_fit`, which needs starts of the amplitudes too. Then what importing takes.

    python -m benchmarks.first_answer [--rounds 5]
"""

import os
import statistics
import subprocess
import sys
import tempfile

from .turns import parse, print_header


_BEGIN = """
import os, time
began, spent = time.perf_counter(), time.process_time()
"""
_END = """
import sys
print(time.perf_counter() - began, time.process_time() - spent, file=sys.stderr)
"""
_DATA = """
times = np.linspace(0, 5, 60)
y = np.exp(-np.outer(times, [0.5, 3.0])) @ np.array([2.0, 1.0])
y += 0.01 * np.random.default_rng(0).standard_normal(60)
"""
_VARPRO = f"""
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np
import pseudojvp as pj
{_DATA}
def decays(rates, times):
    return jnp.exp(-times[:, None] * rates)

print(pj.varpro(decays, y, np.array([0.2, 1.0]), times).summary())
"""
_CURVE_FIT = f"""
import numpy as np
from scipy.optimize import curve_fit
{_DATA}
def model(times, a, b, c, d):
    return c * np.exp(-a * times) + d * np.exp(-b * times)

found, covariance = curve_fit(model, times, y, [0.2, 1.0, 1.0, 1.0])
print(found, np.sqrt(np.diag(covariance)))
"""
_SCRIPTS = {
    "`varpro` and its summary": (_VARPRO, False),
    "the same, from JAX's cache": (_VARPRO, True),
    "`curve_fit` and its errors": (_CURVE_FIT, False),
    "`import jax, optimistix`": ("import jax, optimistix", False),
    "and `pseudojvp`": ("import jax, optimistix, pseudojvp", False),
    "and `pseudojvp.varpro`": (
        "import jax, optimistix, pseudojvp as pj; pj.varpro",
        False,
    ),
}


def _seconds(script: str, cache: str | None) -> tuple[float, float]:
    """Of a new process, on the clock and of the processor."""
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Python keeps its byte code, as it does for whoever has used a package once.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    process = subprocess.run(
        [sys.executable, "-c", _BEGIN + script + _END],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
    )
    wall, processor = map(float, process.stderr.split()[-2:])
    return wall, processor


def main() -> None:
    rounds = parse(__doc__, 5).parse_args().rounds
    print_header()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in _SCRIPTS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for name, (script, cached) in _SCRIPTS.items():
                sample = _seconds(script, folder if cached else None)
                if turn:  # the first one fills the caches
                    samples[name].append(sample)
    print("\n| what | s | quartiles | s of the processor |")
    print("| --- | ---: | ---: | ---: |")
    for name, taken in samples.items():
        walls, processors = zip(*taken, strict=True)
        lower, median, upper = (
            statistics.quantiles(walls, n=4) if rounds > 1 else 3 * walls
        )
        spread = f"{lower:.2f} to {upper:.2f}"
        spent = statistics.median(processors)
        print(f"| {name} | {median:.2f} | {spread} | {spent:.2f} |", flush=True)


if __name__ == "__main__":
    main()
