"""Do two batched QR factorisations in one program return on two CPU cores?

    python benchmarks/deadlock.py [--seconds 60]

Prints "hangs" or "returns"; standalone, as a report of a bug of jaxlib. Measured, each
time: 0.10.0, 0.10.2 and 0.11.0 hang, 0.11.1, 0.11.2 and 0.12.0.1 return. On one core,
with 1000 matrices, or with a data dependency between the calls, 0.10.2 returns as well.
It looks as if each call waits for parts of its batch on the threads of a pool, all of
which are taken by calls that wait.
"""

import argparse
import os
import subprocess
import sys


PROGRAM = """
import os
if hasattr(os, "sched_setaffinity"):  # before XLA counts the cores
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp, numpy as np
both = jax.jit(lambda a: (jnp.linalg.qr(a), jnp.linalg.qr(a + 1)))
a = jnp.asarray(np.random.default_rng(0).standard_normal((10000, 32, 8)))
for _ in range(20):
    jax.block_until_ready(both(a))
"""


def outcome(seconds: float) -> str:
    """Returns "hangs" or "returns", of a process on two cores that has `seconds`."""
    try:
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    return "returns"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    print(outcome(parser.parse_args().seconds))
