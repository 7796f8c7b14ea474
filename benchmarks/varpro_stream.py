"""In how much memory (MiB) are many fits made whose data stay in a file?

A million data sets of 64 time bins, two decays and a background in each, in a memory map
that is written chunk by chunk, and fitted by `pseudojvp.varpro_batch` with Poisson
weights. The peak of the resident memory is that of a process of its own, with the pages
of the file, which the system may drop, and without them.

    python -m benchmarks.varpro_stream [--fits 1000000] [--chunk 4096]
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import optimistix as optx

import pseudojvp as pj

from .turns import print_header
from .varpro_image import decays, make_image, START, TIMES


def write(file: pathlib.Path, fits: int, chunk: int) -> None:
    """Writes the counts, 64 of each fit, as float64."""
    shape = (fits, TIMES.size)
    counts = np.lib.format.open_memmap(file, mode="w+", dtype=float, shape=shape)
    for start in range(0, fits, chunk):
        counts[start : start + chunk] = make_image(min(chunk, fits - start), start)
    counts.flush()


def memory() -> dict[str, float]:
    """The resident memory of this process by kind, and its peak (MiB; Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return {
        name: int(kilobytes) / 1024
        for name, kilobytes in re.findall(r"(VmHWM|RssAnon|RssFile):\s+(\d+)", status)
    }


def fit(file: pathlib.Path, chunk: int, progress: bool = True) -> dict[str, float]:
    """Fits the counts in the file; seconds, what failed, and memory (MiB)."""
    counts = np.load(file, mmap_mode="r")
    weights = (
        1 / np.sqrt(np.maximum(counts[start : start + chunk], 1))
        for start in range(0, len(counts), chunk)
    )
    data = (counts[start : start + chunk] for start in range(0, len(counts), chunk))
    lifetimes = np.empty((len(counts), 2))
    failed = done = 0
    most = first = 0.0
    began = time.perf_counter()
    for fits in pj.varpro_batch(
        decays, data, START, TIMES, weights=weights, throw=False, progress=progress
    ):
        lifetimes[done : done + len(fits)] = np.exp(fits.theta)
        failed += int(np.sum(fits.result != optx.RESULTS.successful))
        done += len(fits)
        most = max(most, memory()["RssAnon"])
        first = first or most
    seconds = time.perf_counter() - began
    peak = memory()["VmHWM"]
    named = {"fits": done, "failed": failed, "seconds": seconds, "peak": peak}
    return named | {"without_file": most, "after_first_chunk": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fits", type=int, default=1_000_000, help="number of fits")
    parser.add_argument("--chunk", type=int, default=4096, help="members in a chunk")
    parser.add_argument("--file", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.file is not None:  # the process that is measured
        told = fit(arguments.file, arguments.chunk)
        print(
            f"\n{told['fits']} fits in {told['seconds']:.0f} s, "
            f"{told['fits'] / told['seconds']:.0f} a second, {told['failed']} failed\n"
            f"peak of the resident memory {told['peak']:.0f} MiB; without pages of files "
            f"{told['without_file']:.0f} MiB, {told['after_first_chunk']:.0f} MiB of "
            "which after the first chunk"
        )
        return
    print_header()
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "counts.npy"
        write(file, arguments.fits, arguments.chunk)
        print(f"\n{file.stat().st_size / 2**20:.0f} MiB of data in a file", flush=True)
        command = [sys.executable, "-m", "benchmarks.varpro_stream", "--file", str(file)]
        subprocess.run([*command, "--chunk", str(arguments.chunk)], check=True)


if __name__ == "__main__":
    main()
