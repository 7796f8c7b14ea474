"""How many fits per second, and in how much memory, does one call of a large image take?

512 x 512 pixels of 64 time bins, two decays and a background in each, by
`pseudojvp.varpro_batch` in one call: compiled, with a progress bar. The peak memory is
that of the process (MiB), with and without the fit.

    python -m benchmarks.varpro_image [--pixels 262144] [--chunk 1024]
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import pseudojvp as pj

from .turns import print_header


TIMES = np.linspace(0, 12, 64)
START = np.log([0.6, 4.0])


def decays(log_lifetimes, times):
    decays = jnp.exp(-times[:, None] / jnp.exp(log_lifetimes))
    return jnp.column_stack([decays, jnp.ones_like(times)])


def make_image(pixels: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    lifetimes = np.stack([rng.uniform(0.4, 0.8, pixels), rng.uniform(2, 4, pixels)])
    photons = rng.uniform(500, 2000, (2, pixels))
    counts = np.full((pixels, TIMES.size), 5.0)
    for lifetime, amplitude in zip(lifetimes, photons, strict=True):
        counts += amplitude[:, None] * np.exp(-TIMES / lifetime[:, None])
    return rng.poisson(counts).astype(float)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux


def _fit(counts, weights, chunk: int):
    fit = pj.varpro_batch(
        decays,
        counts,
        START,
        TIMES,
        weights=weights,
        batch_size=chunk,
        progress=True,
        throw=False,
    )
    return jax.block_until_ready(fit)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pixels", type=int, default=262_144, help="number of fits")
    parser.add_argument("--chunk", type=int, default=1024, help="`batch_size`")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print_header()
    counts = jax.device_put(make_image(arguments.pixels))
    weights = 1 / jnp.sqrt(jnp.maximum(counts, 1))
    before = _peak()
    seconds = []
    for _ in range(2):  # the first with compiling
        began = time.perf_counter()
        fit = _fit(counts, weights, arguments.chunk)
        seconds.append(time.perf_counter() - began)
    failed = int(jnp.sum(fit.result != optx.RESULTS.successful))
    print(
        f"\n{arguments.pixels} fits in chunks of {arguments.chunk}: {seconds[1]:.2f} s "
        f"({seconds[0]:.2f} s with compiling), {arguments.pixels / seconds[1]:.0f} fits "
        f"per second, {failed} failed\n"
        f"peak memory {_peak():.0f} MiB, before the fit {before:.0f} MiB; the image and "
        f"its weights are {2 * counts.nbytes / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
