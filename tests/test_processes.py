"""Four processes, each with a quarter of the rows of A: as one, and failures raise.

They talk by gloo on the loopback device, with a limit, because a process that raises
alone leaves the others waiting. Of 131072 x 64 A takes 64 MiB, and all processes together
two GiB.
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

process, port, rows, cols = map(int, sys.argv[1:])
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 4, process)

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
A, b, w = (rng.normal(size=size) for size in ((rows, cols), rows, cols))
# Of w . x with x = A+ b and u = (A^T A)^-1 w: dA = (b - A x) u^T - A u x^T, db = A u.
gram = A.T @ A  # of a condition number below 10
x, u = np.linalg.solve(gram, A.T @ b), np.linalg.solve(gram, w)
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
    # The largest, in parts of the largest entry: of x, dL/dA and dL/db.
    pairs = zip(got, map(np.asarray, wanted), strict=True)
    return float(np.max([
        np.abs(np.asarray(shard.data) - one[shard.index]).max() / np.abs(one).max()
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

def failure(solver, good, bad):
    # What is raised by a program that has been right, and after how long, thrice.
    good, bad = tuple(map(put, good)), tuple(map(put, bad))
    compiled = program(solver, True).lower(*bad).compile()
    jax.block_until_ready(compiled(*good))
    messages, seconds = [], []
    for _ in range(3):
        began = time.perf_counter()
        try:
            jax.block_until_ready(compiled(*bad))
        except Exception as error:
            messages.append(str(error))
        try:
            jax.effects_barrier()
        except Exception:
            pass
        seconds.append(time.perf_counter() - began)
    return {"messages": messages, "seconds": seconds}

def failures():
    deficient = A.copy()
    deficient[:, 1] = deficient[:, 0]
    slow = A * np.logspace(0, -6, cols)
    few_steps = pj.LSMR(1e-14, 1e-14, max_steps=12)
    return {
        "QR": failure(pj.QR(), (A, b), (deficient, b)),
        "LSMR": failure(few_steps, (A, b), (slow, b)),
    }

told = {
    "failures": failures() if rows < 1000 else None,
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


def run(rows, cols):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As here: compiling is what takes time.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, (number, port, rows, cols))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        for number in range(4)
    ]
    try:
        ended = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(printed.splitlines()[-1]) for printed, _ in ended]


@pytest.fixture(scope="module")
def small():
    return run(64, 6)


@pytest.fixture(scope="module", params=[(64, 6), (131072, 64)], ids=str)
def told(request):
    small = request.param == (64, 6)
    return request.getfixturevalue("small") if small else run(*request.param)


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
def test_failure_raises_its_message_in_every_process(small, solver):
    for each in small:
        messages = each["failures"][solver]["messages"]
        assert len(messages) == 3
        assert all(MESSAGES[solver] in message for message in messages)


@pytest.mark.parametrize("solver", MESSAGES)
def test_failure_raises_within_a_second_in_every_process(small, solver):
    """Once of three times, for the machine does other things; seen: 0.1 to 0.3 s."""
    for each in small:
        assert min(each["failures"][solver]["seconds"]) < 1
        assert max(each["failures"][solver]["seconds"]) < 10
