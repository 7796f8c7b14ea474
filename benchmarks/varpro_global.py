"""How long does a global fit of 20,000 right-hand sides take (milliseconds)?

Four exponentials with rates shared by 20,000 decays of 256 points: `pseudojvp.varpro`,
which compresses the data without loss, beside SciPy's `least_squares` with finite
differences on the residual that `numpy.linalg.lstsq` leaves of all of them.

    python -m benchmarks.varpro_global [--columns 20000] [--rounds 5]
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

import pseudojvp as pj

from .turns import parse, print_header


_RATES = np.array([0.1, 0.5, 2.0, 8.0])
_START = np.log(np.array([0.07, 0.8, 1.5, 12.0]))
_TIMES = np.linspace(0, 10, 256)


def _basis(log_rates, times):
    return jnp.exp(-times[:, None] * jnp.exp(log_rates))


def _make_data(columns: int):
    rng = np.random.default_rng(0)
    amplitudes = rng.uniform(0.5, 2, (_RATES.size, columns))
    clean = np.exp(-_TIMES[:, None] * _RATES) @ amplitudes
    return clean + 0.05 * rng.standard_normal(clean.shape)


def _fit_by_scipy(data):
    def residual(log_rates):
        basis = np.exp(-_TIMES[:, None] * np.exp(log_rates))
        coefficients, *_ = np.linalg.lstsq(basis, data, rcond=None)
        return (data - basis @ coefficients).ravel()

    return least_squares(residual, _START, xtol=1e-8, ftol=1e-8, gtol=1e-8).x


def main() -> None:
    parser = parse(__doc__, 5)
    parser.add_argument("--columns", type=int, default=20_000, help="right-hand sides")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_header()
    data = _make_data(arguments.columns)
    on_device = jax.device_put(data)

    def ours():
        return pj.varpro(_basis, on_device, _START, _TIMES)

    began = time.perf_counter()
    fit = jax.block_until_ready(ours())
    compiling = time.perf_counter() - began
    milliseconds = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        jax.block_until_ready(ours())
        milliseconds.append(1e3 * (time.perf_counter() - began))
    median = np.median(milliseconds)
    print(
        f"\npseudojvp: {arguments.columns} right-hand sides of {_TIMES.size} points, "
        f"{int(fit.stats['num_steps'])} steps, {median:.0f} ms (the first call, with "
        f"compiling: {1e3 * compiling:.0f} ms)",
        flush=True,
    )
    # Once: it takes so long that a warm start is nothing to it.
    began = time.perf_counter()
    by_scipy = _fit_by_scipy(data)
    scipy_milliseconds = 1e3 * (time.perf_counter() - began)
    # Neither is the truth: how far they are apart.
    difference = np.max(np.abs(by_scipy - fit.theta))
    print(
        f"SciPy: {scipy_milliseconds:.0f} ms, ratio {scipy_milliseconds / median:.1f}; "
        f"the log rates differ by {difference:.1e} at most"
    )


if __name__ == "__main__":
    main()
