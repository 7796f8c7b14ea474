"""20,000 fits of data in a file take the memory of a chunk, in a process of their own."""

import json
import pathlib
import subprocess
import sys

import pytest


pytestmark = pytest.mark.slow  # a process of its own, and 20,000 fits

SCRIPT = """
import json
import pathlib
import sys
import tracemalloc
import jax
import jax.numpy as jnp
import numpy as np
import pseudojvp as pj

jax.config.update("jax_enable_x64", True)
times = np.linspace(0.0, 3.0, 256)
rates = np.random.default_rng(0).uniform(0.5, 1.5, 20000)
shape = 20000, 256
file = pathlib.Path(sys.argv[1]) / "data.npy"
data = np.lib.format.open_memmap(file, mode="w+", dtype=float, shape=shape)
for start in range(0, 20000, 1000):
    decays = np.exp(-rates[start : start + 1000, None] * times)
    data[start : start + 1000] = 2 * decays
data.flush()
data = np.load(file, mmap_mode="r")

def basis(theta, times):
    return jnp.exp(-theta * times)[:, None]

fitted, memory, arrays = [], [], []
for fits in pj.varpro_batch(basis, data, np.array(0.9), times, batch_size=1000):
    fitted.append(np.array(fits.theta))
    tracemalloc.start()  # after the first compilation; again is nothing
    memory.append(tracemalloc.get_traced_memory()[0] / 2**20)
    arrays.append(sum(array.nbytes for array in jax.live_arrays()) / 2**20)
print(json.dumps({
    "chunks": len(fitted),
    "difference": float(np.abs(np.concatenate(fitted) - rates).max()),
    "growth": max(memory) - memory[2],
    "arrays": max(arrays),
}))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder: pathlib.Path = tmp_path_factory.mktemp("memory")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_fit_is_made_in_its_chunk(report):
    assert report["chunks"] == 20
    assert report["difference"] < 1e-9


def test_memory_does_not_grow_with_the_fits(report):
    """MiB of Python and NumPy: the data are 39, and so are their residuals; a chunk of
    either, 1.95, may yet wait for the thread that frees it.

    Not the process's: threads of XLA and of its BLAS take 16 MiB each when they first
    meet, which is by chance.
    """
    assert report["growth"] < 4


def test_arrays_are_those_of_two_chunks(report):
    """MiB: data and residuals of a chunk are 1.95 each."""
    assert report["arrays"] < 8.5
