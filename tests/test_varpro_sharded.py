"""`varpro_batch` of data sharded over the members: each device fits its own.

The number of devices is fixed when JAX starts: all cases run in one process of their own.
The data are exact, so that the rates are known, and dθ/dy is the upper part of the
pseudoinverse of [∂(Φ c)/∂θ, Φ].
"""

import json
import os
import subprocess
import sys

import pytest


pytestmark = pytest.mark.slow  # a process of its own, with five large programs

SCRIPT = """
import json
import re
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pseudojvp as pj
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
members = PartitionSpec("i")
times = np.linspace(0.0, 3.0, 12)
rates = np.random.default_rng(0).uniform([0.4, 2.5], [0.8, 4.0], (352, 2))
decays = np.exp(-rates[:, None, :] * times[:, None])
data = decays @ [1.0, 2.0]
full = np.concatenate([-times[:, None] * decays * [1.0, 2.0], decays], axis=2)
gradient = np.linalg.pinv(full)[:, :2].sum(axis=1)
data[117, 3] = np.nan
good = np.arange(352) != 117
sharded = jax.device_put(data, NamedSharding(mesh, members))

def basis(theta, times):
    return jnp.exp(-jnp.outer(times, theta))

def fit(data, **keywords):
    # 88 members on each device, in chunks of 32, 32 and 24
    start = np.array([0.5, 3.0])
    keywords = {"batch_size": 128, "throw": False} | keywords
    fits = pj.varpro_batch(basis, data, start, times, **keywords)
    return fits.theta, fits.coefficients, fits.residual, fits.cost, fits.result

def of_data(data):
    return jax.grad(lambda data: jnp.sum(fit(data)[0]))(data)

def inside(function):
    return jax.shard_map(function, mesh=mesh, in_specs=members, out_specs=members)

def by_optimistix(data):
    return fit(data, optimiser=optx.Dogleg(1e-10, 1e-10))

def difference(got, truth):
    return float(np.abs(np.asarray(got) - truth)[good].max())

def report(function, truth):
    program = jax.jit(function)
    compiled = program.lower(sharded).compile()
    moved = re.findall(
        r"= (\\S+) (?:all-|reduce-scatter|collective-)[\\w-]+\\(", compiled.as_text()
    )
    out = jax.tree.leaves(compiled(sharded))
    alone = program.lower(data).compile().memory_analysis().temp_size_in_bytes
    return {
        "moved": sorted(set(moved)),
        "specs": [str(leaf.sharding.spec) for leaf in out],
        "difference": difference(out[0], truth),
        "memory": compiled.memory_analysis().temp_size_in_bytes / alone,
        "failed": np.flatnonzero(np.asarray(out[-1])).tolist(),
    }

cases = {
    "value": (fit, rates),
    "gradient": (of_data, gradient),
    "value-in-shard_map": (inside(fit), rates),
    "optimistix-in-shard_map": (inside(by_optimistix), rates),
}
print(json.dumps({name: report(*case) for name, case in cases.items()}))
"""
CASES = ["value", "gradient", "value-in-shard_map", "optimistix-in-shard_map"]


@pytest.fixture(scope="module")
def reports():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_nothing_moves_but_that_a_chunk_is_done(reports, case):
    assert set(reports[case]["moved"]) <= {"pred[]"}


@pytest.mark.parametrize("case", CASES)
def test_results_are_sharded_as_the_members(reports, case):
    assert set(reports[case]["specs"]) == {"P('i',)"}


@pytest.mark.parametrize("case", CASES)
def test_members_have_their_order_and_the_derivative_of_the_full_problem(reports, case):
    assert reports[case]["difference"] < 1e-8


@pytest.mark.parametrize("case", [case for case in CASES if case != "gradient"])
def test_failing_member_is_flagged_alone(reports, case):
    assert reports[case]["failed"] == [117]


@pytest.mark.parametrize("case", ["value", "gradient"])
def test_memory_of_a_device_is_its_share(reports, case):
    assert reports[case]["memory"] < 1.3 / 4
