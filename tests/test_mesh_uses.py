"""Fronts, operators, adjoints and preconditioners on four devices, by kind of mesh.

Of batches whose members are sharded; `test_sharding_uses.py` has the solvers, and rows
that are. The number of devices is fixed when JAX starts: all cases that are to run do so
in one process of their own, `mesh_program.py`.
"""

import pathlib

import jax
import mesh_cases
import pytest
from devices import told_by


PROGRAM = pathlib.Path(__file__).with_name("mesh_program.py")
USES = sorted(mesh_cases.USES)
REFUSED = {
    # Of lineax, which compares structures with an axis of a mesh to some without.
    "explicit Jacobian-symmetric": "must have matching input and output structures",
    # lineax closes a function for a vector that is the same on each device.
    "shard_map Function-GMRES": "Use `LSMR",
    "shard_map Function-QR": "Use `LSMR",
    # Of JAX, of the function itself.
    "shard_map Function-of-loops": "must have equal types",
}
if jax.__version_info__ >= (0, 11):  # later JAX transposes no loop of a batch there
    REFUSED["explicit Function-of-loops"] = "not found in mesh"
RIGHT = [f"{on} {use}" for on in ("explicit", "shard_map", "auto") for use in USES]
ON_HOST = ["auto solve_entries"]  # which is one place: `docs/devices.md`
RIGHT = [name for name in RIGHT if name not in (*REFUSED, *ON_HOST)]


@pytest.fixture(scope="module")
def told(request):
    """What the chosen cases tell."""
    items = [i for i in request.session.items if i.path == request.node.path]
    names = sorted({item.callspec.params["name"] for item in items})
    return told_by(PROGRAM, *names, timeout=1800, JAX_DISABLE_MOST_OPTIMIZATIONS="1")


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", RIGHT)
def test_sharded_batch_and_its_cotangents_are_right_and_stay_sharded(name, told):
    assert isinstance(told[name], float), told[name]
    assert told[name] < 1e-9


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ON_HOST)
def test_what_is_solved_on_the_host_is_gathered(name, told):
    assert told[name] == "not sharded"


FRONTS = ["lstsq", "slogdet", "nnls", "varpro"]
MOVES = [f"moves {on} {use}" for on in ("explicit", "auto") for use in FRONTS]


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", MOVES)
def test_sharded_batch_moves_nothing_but_what_tells_of_an_error(name, told):
    """And whether a member still moves: a number for all of them."""
    assert set(told[name]) <= {"s32[]", "s64[]", "pred[]"}


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", REFUSED)
def test_what_jax_refuses_is_an_error_that_says_what_to_do(name, told):
    assert isinstance(told[name], str), told[name]
    assert REFUSED[name] in told[name]
