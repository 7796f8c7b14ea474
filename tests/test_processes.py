"""Four processes, each with a quarter of the rows of A: as one, and failures raise.

They talk by gloo on the loopback device, with a limit, because a process that raises
alone leaves the others waiting.
"""

import json
import os
import socket
import subprocess
import sys

import pytest


pytestmark = pytest.mark.slow  # four processes that compile ten programs: half a minute

SCRIPT = """
import json
import sys
import time
import jax
import pseudojvp as pj

process, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 4, process)

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
A, b, w = rng.normal(size=(64, 6)), rng.normal(size=64), rng.normal(size=6)
# Of w . x with x = A+ b and u = (A^T A)^-1 w: dA = (b - A x) u^T - A u x^T, db = A u.
x, u = np.linalg.pinv(A) @ b, np.linalg.solve(A.T @ A, w)
truth = x, np.outer(b - A @ x, u) - np.outer(A @ u, x), A @ u

def put(array):
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])

def program(solver, throw):
    def loss(A, b):
        operator = lx.MatrixLinearOperator(A)
        solution = pj.linear_solve(operator, b, solver, throw=throw)
        return w @ solution.value, solution.value

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def flat(A, b):
        (_, value), gradients = gradient(A, b)
        return value, *gradients

    return jax.jit(flat)

def differences(got, wanted):
    pairs = zip(got, wanted, strict=True)
    return float(np.max([
        np.abs(np.asarray(shard.data) - np.asarray(one)[shard.index]).max()
        for several, one in pairs
        for shard in several.addressable_shards
    ]))

def report(solver):
    run = program(solver, False)
    got = run(put(A), put(b))
    told = {"truth": differences(got, truth), "spec": str(got[1].sharding.spec)}
    if process == 0:
        told["one"] = differences(got, run(jnp.asarray(A), jnp.asarray(b)))
    return told

def failure(solver, matrix):
    compiled = program(solver, True).lower(put(matrix), put(b)).compile()
    began = time.perf_counter()
    message = "nothing"
    try:
        jax.block_until_ready(compiled(put(matrix), put(b)))
    except Exception as error:
        message = str(error)
    try:
        jax.effects_barrier()
    except Exception:
        pass
    return {"message": message, "seconds": time.perf_counter() - began}

deficient = A.copy()
deficient[:, 1] = deficient[:, 0]
told = {
    "failures": {
        "QR": failure(pj.QR(), deficient),
        "LSMR": failure(pj.LSMR(1e-14, 1e-14, max_steps=1), A),
    },
    # After these failures: the processes go on.
    "QR": report(pj.QR()),
    "CholeskyQR": report(pj.CholeskyQR()),
    "LSMR": report(pj.LSMR(1e-14, 1e-14)),
    "Normal(CG)": report(pj.Normal(pj.CG(1e-15, 1e-15))),
}
print(json.dumps(told), flush=True)
"""
SOLVERS = ["QR", "CholeskyQR", "LSMR", "Normal(CG)"]
MESSAGES = {
    "QR": "reciprocal condition number",
    "LSMR": "maximum number of solver steps",
}


@pytest.fixture(scope="module")
def told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As here: compiling is what takes time.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(number), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        for number in range(4)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(printed.splitlines()[-1]) for printed, _ in ended]


@pytest.mark.parametrize("solver", SOLVERS)
def test_value_and_gradient_are_those_of_the_dense_formula(told, solver):
    assert all(each[solver]["truth"] < 1e-12 for each in told)


@pytest.mark.parametrize("solver", SOLVERS)
def test_value_and_gradient_are_those_of_one_process(told, solver):
    assert told[0][solver]["one"] < 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_of_the_matrix_stays_in_the_processes(told, solver):
    assert {each[solver]["spec"] for each in told} == {"P('rows',)"}


@pytest.mark.parametrize("solver", MESSAGES)
def test_failure_raises_its_message_in_every_process(told, solver):
    for each in told:
        assert MESSAGES[solver] in each["failures"][solver]["message"]


@pytest.mark.parametrize("solver", MESSAGES)
def test_failure_raises_within_seconds_in_every_process(told, solver):
    assert max(each["failures"][solver]["seconds"] for each in told) < 10
