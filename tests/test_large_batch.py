"""Large batches on two cores: batched LAPACK calls must not wait for each other."""

import subprocess
import sys

import pytest


# 10,000 problems of 32 x 8. On jaxlib 0.10.2 two batched library calls without a data
# dependency never return on two cores; in a subprocess, so that a deadlock is a failure.
_SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import pseudojvp as pj

rng = np.random.default_rng(0)
a = jnp.asarray(rng.standard_normal((10000, 32, 8)))
b = jnp.asarray(rng.standard_normal((10000, 32)))
solve = jax.vmap(lambda a, b: pj.linear_solve(a, b, pj.{solver}()).value)
loss = lambda a, b: jnp.sum(solve(a, b) ** {power})
gradient, _ = jax.jit(jax.grad(loss, argnums=(0, 1)))(a, b)
print(bool(jnp.all(jnp.isfinite(gradient))))
"""


@pytest.mark.parametrize("power", [1, 2], ids=["constant-cotangent", "cotangent-of-x"])
@pytest.mark.parametrize("solver", ["QR", "SVD"])
def test_gradient_of_ten_thousand_solves_ends(solver, power):
    script = _SCRIPT.format(solver=solver, power=power)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["True"]
