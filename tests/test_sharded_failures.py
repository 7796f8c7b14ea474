"""A failure on arrays of several devices raises, and the process goes on.

The number of devices is fixed when JAX starts: all cases run in one process of their own,
with a limit, because a device that raises alone leaves the others waiting.
"""

import pytest
from devices import told_by


pytestmark = pytest.mark.slow  # a process of its own: half a minute

SCRIPT = """
import json
import time
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pseudojvp as pj
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
matrices = np.random.default_rng(0).normal(size=(8, 3, 3))
matrices[3] = 1.0
tall = np.ones((16, 3))
times = np.linspace(0.0, 3.0, 12)
data = np.exp(-times) + np.zeros((8, 1))
data[3, 0] = np.nan

def put(array, *axes, mesh=mesh):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

def solve(solver):
    return lambda A, b: pj.linear_solve(lx.MatrixLinearOperator(A), b, solver).value

def basis(theta, times):
    return jnp.exp(-theta * times)[:, None]

def fit(data):
    return pj.varpro(basis, data, jnp.array(0.5), jnp.asarray(times)).theta

def fits(data):
    return pj.varpro_batch(basis, data, jnp.array(0.5), jnp.asarray(times)).theta

batch = put(matrices, "i"), put(np.ones((8, 3)), "i")
rows = put(tall, "i"), put(np.ones(16), "i")
replicated = put(matrices[3]), put(np.ones(3))
explicit = jax.make_mesh((4,), ("i",))
of_explicit = [put(array, "i", mesh=explicit) for array in (matrices, np.ones((8, 3)))]
members = PartitionSpec("i")
inside = jax.shard_map(
    jax.vmap(solve(pj.LU())), mesh=mesh, in_specs=(members, members), out_specs=members
)
functions = {
    "explicit-LU": (jax.vmap(solve(pj.LU())), of_explicit),
    "shard_map-LU": (inside, batch),
    "batch-LU": (jax.vmap(solve(pj.LU())), batch),
    "batch-GMRES": (jax.vmap(solve(pj.GMRES(1e-8, 1e-8, max_steps=1))), batch),
    "rows-QR": (solve(pj.QR()), rows),
    "rows-CholeskyQR": (solve(pj.CholeskyQR()), rows),
    "replicated-LU": (solve(pj.LU()), replicated),
    "lstsq": (lambda A, b: pj.lstsq(A, b)[0], (rows[0], rows[1].at[3].set(jnp.nan))),
    "varpro": (fit, (put(data[3], "i"),)),
    "varpro_batch": (fits, (put(data, "i"),)),
}
ways = {
    "called": lambda function: function,
    "jit": jax.jit,
    "gradient": lambda f: jax.jit(jax.grad(lambda *args: jnp.sum(f(*args)))),
}

def failure(program, arguments):
    message = "nothing"
    began = time.perf_counter()
    try:
        jax.block_until_ready(program(*arguments))
    except Exception as error:
        message = str(error)
    try:
        jax.effects_barrier()
    except Exception:
        pass
    return message, time.perf_counter() - began

told, seconds = {}, {}
for name, (function, arguments) in functions.items():
    for way, transform in ways.items():
        program = transform(function)
        told[f"{name}-{way}"], _ = failure(program, arguments)
        # Of what is compiled by now.
        seconds[f"{name}-{way}"] = [failure(program, arguments)[1] for _ in range(2)]
right = jax.vmap(solve(pj.LU()))(put(matrices[4:], "i"), put(np.ones((4, 3)), "i"))
residual = np.einsum("bij,bj->bi", matrices[4:], right) - 1
print(json.dumps([told, float(np.abs(residual).max()), seconds]))
"""


@pytest.fixture(scope="module")
def told():
    return told_by("-c", SCRIPT)


MESSAGES = {
    "explicit-LU": "reciprocal condition number",
    "shard_map-LU": "reciprocal condition number",
    "batch-LU": "reciprocal condition number",
    "batch-GMRES": "maximum number of solver steps",
    "rows-QR": "reciprocal condition number",
    "rows-CholeskyQR": "reciprocal condition number",
    "replicated-LU": "reciprocal condition number",
    "lstsq": "non-finite",
    "varpro": "NaN, Inf or a negative weight",
    "varpro_batch": "NaN, Inf or a negative weight",
}


@pytest.mark.parametrize("way", ["called", "jit", "gradient"])
@pytest.mark.parametrize("name", MESSAGES)
def test_failure_on_several_devices_raises_its_message(told, name, way):
    assert MESSAGES[name] in told[0][f"{name}-{way}"]


@pytest.mark.parametrize("way", ["jit", "gradient"])
@pytest.mark.parametrize("name", MESSAGES)
def test_failure_of_a_compiled_program_raises_within_a_second(told, name, way):
    """Once of two times, for the machine does other things."""
    assert min(told[2][f"{name}-{way}"]) < 1


def test_process_solves_on_after_failures(told):
    assert told[1] < 1e-12
