"""Inside `jax.shard_map`, on two devices, with replicated operands and shared losses.

The number of devices is fixed when JAX starts: all cases run in one process of their own.
"""

import math

import pytest
from devices import told_by


pytestmark = pytest.mark.slow  # a process of its own: half a minute

SCRIPT = """
import json
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pseudojvp as pj
from jax.sharding import AxisType, PartitionSpec

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(7)
tall, factor, b = rng.normal(size=(5, 3)), rng.normal(size=(2, 3)), rng.normal(size=5)
square = rng.normal(size=(3, 3))
definite = square @ square.T + np.eye(3)
deficient = tall[:, :2] @ factor
psd = lx.positive_semidefinite_tag
cases = {
    "QR": (pj.QR(), tall, ()),
    "SVD": (pj.SVD(), deficient, ()),
    "Auto(False)": (pj.AutoLinearSolver(well_posed=False), deficient, ()),
    "Auto(True)": (pj.AutoLinearSolver(well_posed=True), square, ()),
    "Normal(Cholesky)": (pj.Normal(lx.Cholesky()), tall, ()),
    "CG": (pj.CG(1e-12, 1e-12), definite, psd),
    "Normal(CG)": (pj.Normal(pj.CG(1e-12, 1e-12)), tall, ()),
}
mesh = jax.make_mesh((2,), ("devices",))
replicated = PartitionSpec()


def report(solver, matrix, tags):
    vector = b[: len(matrix)]

    def loss(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        value = pj.linear_solve(operator, vector, solver).value
        return jnp.sum(value**2), value

    function = jax.grad(loss, argnums=(0, 1), has_aux=True)
    inside = jax.shard_map(
        function, mesh=mesh, in_specs=(replicated, replicated), out_specs=replicated
    )
    try:
        gradients, value = jax.jit(inside)(matrix, vector)
    except Exception as error:
        return {"error": repr(error)}
    x = np.linalg.pinv(matrix) @ vector
    return {
        "devices": len(value.devices()),
        "value": np.abs(value - x).max(),
        "gradients": np.max([
            np.abs(one - other).max()
            for one, other in zip(gradients, jax.jit(function)(matrix, vector)[0])
        ]),
    }


def shared_loss(matrix, vector):
    # Each device has two of the problems; the loss is of all of them.
    each = jax.vmap(lambda A, b: pj.linear_solve(A, b, pj.QR()).value)(matrix, vector)
    return jax.lax.psum(jnp.sum(each**2), "devices")


def silent_factor():
    # Gradients taken inside and outside, with and without types, over the right ones.
    members = PartitionSpec("devices")
    matrices, vectors = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 5))
    inverses = np.linalg.pinv(matrices)
    x = np.einsum("bij,bj->bi", inverses, vectors)
    right = np.einsum("bji,bj->bi", inverses, 2 * x)
    told = {}
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
    for check in (True, False):
        inside = jax.shard_map(
            jax.grad(shared_loss, argnums=1),
            mesh=mesh, in_specs=(members, members), out_specs=members, check_vma=check,
        )
        ratio = np.asarray(jax.jit(inside)(matrices, vectors)) / right
        told[f"inside, {check}"] = [ratio.min(), ratio.max()]
        outside = jax.shard_map(
            shared_loss,
            mesh=mesh, in_specs=(members, members), out_specs=replicated, check_vma=check,
        )
        gradient = jax.jit(jax.grad(outside, argnums=1))
        ratio = np.asarray(gradient(matrices, vectors)) / right
        told[f"outside, {check}"] = [ratio.min(), ratio.max()]
    return told


told = {name: report(*case) for name, case in cases.items()}
print(json.dumps(told | {"factors": silent_factor()}))
"""
CASES = ["QR", "SVD", "Auto(False)", "Auto(True)", "Normal(Cholesky)", "CG", "Normal(CG)"]


@pytest.fixture(scope="module")
def reports():
    # As here: compiling is what takes time.
    return told_by("-c", SCRIPT, devices=2, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.parametrize("name", CASES)
def test_solve_of_replicated_operands_runs_on_both_devices(name, reports):
    assert reports[name].get("devices") == 2, reports[name]


@pytest.mark.parametrize("name", CASES)
def test_solution_of_replicated_operands_is_right(name, reports):
    assert reports[name].get("value", math.inf) < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_replicated_operands_are_those_without_shard_map(name, reports):
    assert reports[name].get("gradients", math.inf) < 1e-12


@pytest.mark.parametrize("place", ["inside, True", "outside, True", "outside, False"])
def test_gradient_of_a_shared_loss_is_right(place, reports):
    assert reports["factors"][place] == pytest.approx([1, 1], abs=1e-10)


def test_gradient_taken_inside_without_types_is_wrong_by_the_number_of_devices(reports):
    """JAX's meaning of `check_vma=False`, which no solver can see: as the docs say."""
    assert reports["factors"]["inside, False"] == pytest.approx([2, 2], abs=1e-10)
