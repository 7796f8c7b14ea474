"""`varpro_batch` of data sharded over the members: each device fits its own.

The number of devices is fixed when JAX starts: all cases run in one process of their own.
The data are exact, so that the rates are known, and dθ/dy is the upper part of the
pseudoinverse of [∂(Φ c)/∂θ, Φ].
"""

import pytest
from devices import told_by


pytestmark = pytest.mark.slow  # a process of its own, with five large programs

SCRIPT = r"""
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

def basis(theta, times):
    return jnp.exp(-jnp.outer(times, theta))

def fit(data, **keywords):
    # 88 members on each device, in chunks of 32, 32 and 24
    start = np.array([0.5, 3.0])
    keywords = {"batch_size": 128, "throw": False} | keywords
    fits = pj.varpro_batch(basis, data, start, times, **keywords)
    return fits.theta, fits.coefficients, fits.residual, fits.cost, fits.result

def both(data):
    def loss(data):
        fields = fit(data)
        return jnp.sum(fields[0]), fields

    of_data, fields = jax.grad(loss, has_aux=True)(data)
    return *fields, of_data

def inside(function, **keywords):
    specs = {"in_specs": members, "out_specs": members}
    return jax.shard_map(function, mesh=mesh, **specs, **keywords)

def by_optimistix(data):
    return fit(data, optimiser=optx.Dogleg(1e-10, 1e-10))

def difference(got, truth):
    return float(np.abs(np.asarray(got) - truth)[good].max())

def report(function, mesh):
    sharded = jax.device_put(data, NamedSharding(mesh, members))
    compiled = jax.jit(function).lower(sharded).compile()
    moved = re.findall(
        r"= (\S+) (?:all-|reduce-scatter|collective-)[\w-]+\(", compiled.as_text()
    )
    theta, coefficients, residual, cost, result, *gradients = out = compiled(sharded)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(out)]
    return {
        "moved": sorted(set(moved)),
        "sharded": [spec[0] == "i" and not any(spec[1:]) for spec in specs],
        "theta": difference(theta, rates),
        "gradient": [difference(each, gradient) for each in gradients],
        "memory": compiled.memory_analysis().temp_size_in_bytes,
        "failed": np.flatnonzero(np.asarray(jax.tree.leaves(result)[0])).tolist(),
    }

explicit = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))
reports = {
    "jit": report(both, mesh),
    "shard_map": report(inside(both), mesh),
    "explicit": report(both, explicit),
    "optimistix-in-shard_map": report(inside(by_optimistix, check_vma=False), mesh),
}
alone = jax.jit(both).lower(data).compile().memory_analysis().temp_size_in_bytes
print(json.dumps([reports, alone]))
"""
CASES = ["jit", "shard_map", "explicit", "optimistix-in-shard_map"]


@pytest.fixture(scope="module")
def told():
    return told_by("-c", SCRIPT)


@pytest.mark.parametrize("case", CASES)
def test_nothing_moves_but_that_a_chunk_is_done(told, case):
    assert set(told[0][case]["moved"]) <= {"pred[]"}


@pytest.mark.parametrize("case", CASES)
def test_results_are_sharded_as_the_members(told, case):
    assert all(told[0][case]["sharded"])


@pytest.mark.parametrize("case", CASES)
def test_members_have_their_order(told, case):
    assert told[0][case]["theta"] < 1e-8


@pytest.mark.parametrize("case", ["jit", "shard_map", "explicit"])
def test_gradient_is_the_pseudoinverse_of_the_full_problem(told, case):
    assert all(error < 1e-8 for error in told[0][case]["gradient"])


@pytest.mark.parametrize("case", CASES)
def test_failing_member_is_flagged_alone(told, case):
    assert told[0][case]["failed"] == [117]


@pytest.mark.parametrize("case", ["jit", "shard_map", "explicit"])
def test_memory_of_a_device_is_its_share(told, case):
    reports, alone = told
    assert reports[case]["memory"] < 1.3 / 4 * alone
