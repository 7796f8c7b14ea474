"""What a program moves and holds on each of eight devices that have rows of A.

The number of devices is fixed when JAX starts: all programs are made in one process of
their own. Bytes are those that XLA tells of the compiled program.
"""

import pytest
from devices import told_by


pytestmark = pytest.mark.slow  # a process of its own: half a minute

DEVICES, ROWS, COLS = 8, 131072, 64
SCRIPT = """
import dataclasses
import json
import re
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pseudojvp as pj
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_enable_x64", True)
shape = ROWS, COLS
cg = pj.CG(1e-10, 1e-10)
solvers = {
    "QR": pj.QR(blocks=8),
    "QR-by-default": pj.QR(),
    "PivotedQR": pj.PivotedQR(blocks=8),
    "SVD": pj.SVD(blocks=8),
    "CholeskyQR": pj.CholeskyQR(),
    "Normal(Cholesky)": pj.Normal(pj.Cholesky()),
    "Normal(CG)": pj.Normal(cg),
    "LSMR": pj.LSMR(1e-10, 1e-10),
}

def put(mesh, array, *axes):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

def gradient(solver, throw=False):
    def loss(A, b):
        operator = lx.MatrixLinearOperator(A)
        return jnp.sum(pj.linear_solve(operator, b, solver, throw=throw).value ** 2)
    return jax.jit(jax.value_and_grad(loss, (0, 1)))

def numbers(shapes):
    sizes = re.findall(r"\\[([\\d,]*)\\]", shapes)
    return [int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes]

def report(function, wide, sharding, axis):
    spec = PartitionSpec(None, axis) if wide else PartitionSpec(axis)
    vector = PartitionSpec() if wide else PartitionSpec(axis)
    place = lambda spec: None if sharding is None else NamedSharding(sharding, spec)
    size = shape[::-1] if wide else shape
    compiled = function.lower(
        jax.ShapeDtypeStruct(size, float, sharding=place(spec)),
        jax.ShapeDtypeStruct(size[:1], float, sharding=place(vector)),
    ).compile()
    calls = re.findall(r"= (.*) (all-\\w+|collective-permute)\\(", compiled.as_text())
    sums = [n for shapes, call in calls if call == "all-reduce" for n in numbers(shapes)]
    moves = [n for shapes, call in calls if call != "all-reduce" for n in numbers(shapes)]
    return {
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "gathered": max(moves, default=0),
        "reduced": sum(sums),
        "sharded": sharding is not None and function is not solution
        and compiled.output_shardings[1][0].is_equivalent_to(place(spec), 2),
    }

solution = jax.jit(lambda A, b: pj.linear_solve(A, b, pj.QR(), throw=False).value)
auto = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((8,), ("i",))
told = {}
for name, solver in solvers.items():
    function = gradient(solver)
    told[name] = report(function, False, auto, "i")
    told[name]["alone"] = report(function, False, None, None)["temporary"]
told["QR-wide"] = report(gradient(pj.QR(blocks=8)), True, auto, "i")
told["QR-explicit-solution"] = report(solution, False, explicit, "i")
for name in ("QR", "CholeskyQR"):
    throwing = gradient(solvers[name], throw=True)
    told[f"{name}-throwing"] = report(throwing, False, auto, "i")
for name, solver in solvers.items():
    told[f"{name}-explicit"] = report(gradient(solver), False, explicit, "i")

rng = np.random.default_rng(0)
tall, b = rng.normal(size=(1024, 6)), rng.normal(size=1024)
pinv = np.linalg.pinv(tall)
x = pinv @ b
u = 2 * pinv.T @ x
truth = x, np.outer(b - tall @ x, pinv @ u) - np.outer(u, x), u
matrix, vector = put(auto, tall, "i"), put(auto, b, "i")
of_wide = put(auto, tall.T, None, "i"), put(auto, b[:6])
for name, solver in [("QR", pj.QR()), ("PivotedQR", pj.PivotedQR()), ("SVD", pj.SVD()),
                     ("Auto", pj.AutoLinearSolver(None))]:
    found = pj.linear_solve(matrix, vector, solver)
    _, gradients = gradient(dataclasses.replace(solver, blocks=8))(matrix, vector)
    wide = pj.linear_solve(*of_wide, solver).value
    told["solved-" + name] = {
        "errors": [float(np.abs(got - want).max() / np.abs(want).max()) for got, want in
                   zip((found.value, *gradients), truth)],
        "error of wide": float(np.abs(wide - pinv.T @ b[:6]).max()),
        "blocks": [leaf.shape[0] for leaf in jax.tree.leaves(found.state)
                   if leaf.ndim == 3],
    }
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    script = SCRIPT.replace("ROWS", str(ROWS)).replace("COLS", str(COLS))
    return told_by("-c", script, devices=DEVICES)


# MiB on each device, beside A and b, their cotangents and x; A takes 8 on each.
FACTORISING = {"QR": 9, "PivotedQR": 9, "SVD": 17}
MULTIPLYING = {"CholeskyQR": 0.5, "Normal(Cholesky)": 0.3, "Normal(CG)": 9, "LSMR": 10}
LIMITS = FACTORISING | MULTIPLYING
# Over explicit axes as well, where the number of blocks is known.
LIMITS |= {f"{name}-explicit": limit for name, limit in LIMITS.items()}
LIMITS |= {"QR-wide": 9, "QR-by-default-explicit": 9, "QR-explicit-solution": 17}
LIMITS |= {"QR-throwing": 9, "CholeskyQR-throwing": 0.5}
BY_PRODUCTS = [name for name in LIMITS if name.split("-")[0] in MULTIPLYING]
BY_BLOCKS = sorted({*LIMITS} - {*BY_PRODUCTS})


@pytest.mark.parametrize("name", LIMITS)
def test_memory_of_a_device(name, told):
    assert told[name]["temporary"] <= LIMITS[name] * 2**20


def test_one_block_is_gathered_on_each_device(told):
    assert told["QR-by-default"]["temporary"] >= 2 * ROWS * COLS * 8


@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_memory_of_a_device_is_a_part_of_that_of_one_alone(name, told):
    alone = told[name.split("-")[0]]["alone"]
    assert told[name]["temporary"] <= 1.3 / DEVICES * alone


@pytest.mark.parametrize("name", BY_BLOCKS)
def test_triangles_alone_are_gathered(name, told):
    assert told[name]["gathered"] == DEVICES * COLS**2


@pytest.mark.parametrize("name", BY_PRODUCTS)
def test_nothing_is_gathered_by_products(name, told):
    assert told[name]["gathered"] == 0


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_summed_over_the_devices_is_small(name, told):
    assert told[name]["reduced"] <= 2 * COLS**2


@pytest.mark.parametrize("name", sorted({*LIMITS} - {"QR-explicit-solution"}))
def test_cotangent_of_the_matrix_stays_on_its_device(name, told):
    assert told[name]["sharded"]


@pytest.mark.parametrize("name", ["QR", "PivotedQR", "SVD", "Auto"])
def test_solution_and_gradients_on_eight_devices_are_right(name, told):
    assert all(error < 1e-14 for error in told[f"solved-{name}"]["errors"])
    assert told[f"solved-{name}"]["error of wide"] < 1e-15


@pytest.mark.parametrize("name", ["QR", "PivotedQR", "Auto"])
def test_number_of_blocks_is_that_of_the_devices_of_a_matrix_at_hand(name, told):
    assert told[f"solved-{name}"]["blocks"] == [DEVICES]
