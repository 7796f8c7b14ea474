"""Solves on four devices: solver by use by kind of mesh, with what they move and hold.

The number of devices is fixed when JAX starts: all cases that are to run do so in one
process of their own, `sharding_program.py`.
"""

import pathlib

import pytest
from devices import told_by


PROGRAM = pathlib.Path(__file__).with_name("sharding_program.py")
SOLVERS = [
    "LU",
    "Cholesky",
    "Triangular",
    "Tridiagonal",
    "Diagonal",
    "QR",
    "QR-wide",
    "PivotedQR",
    "SVD",
    "CholeskyQR",
    "Normal(Cholesky)",
    "Normal(CG)",
    "CG",
    "MINRES",
    "LSMR",
    "GMRES",
    "BiCGStab",
    "FlexibleCG",
    "FlexibleGMRES",
    "Neumann",
    "Auto(True)",
    "Auto(False)",
]
SUMS = ["CG", "LSMR", "Normal(CG)", "MINRES", "GMRES", "LU", "Cholesky", "FlexibleCG"]
# Most temporary memory of a device, in parts of that of all. XLA lets no call of LAPACK
# overwrite its operand in a program that it divides, as it does in one of one device.
BYTES = dict.fromkeys(SOLVERS, 1.3) | dict.fromkeys(["LU", "SVD", "Auto(True)"], 1.5)


@pytest.fixture(scope="module")
def told(request):
    """What the chosen cases tell."""
    items = [i for i in request.session.items if i.path == request.node.path]
    names = sorted({item.callspec.params["name"] for item in items})
    # As here, but where it is the program that is measured.
    measured = any(name.startswith("bytes") for name in names)
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if measured else "1"}
    return told_by(PROGRAM, *names, timeout=600, **env)


@pytest.mark.default("QR")  # a process of its own: four seconds
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", SOLVERS)
def test_value_and_gradients_on_four_devices_are_right(name, told):
    """Of batches in `jax.shard_map` and over explicit axes, and beside a shared b."""
    errors = dict(told[name])
    assert not errors.pop("gathered")
    # Of Krylov solvers at 1e-13, and cond A.
    assert all(error < 1e-9 for error in errors.values()), errors


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", [pytest.param(f"sums {n}", id=f"of-{n}") for n in SUMS])
def test_operator_that_sums_over_the_devices_is_solved(name, told):
    assert told[name] < 1e-10


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "name", [pytest.param(f"spread {n}", id=f"of-{n}") for n in ("LSMR", "Normal(CG)")]
)
def test_rows_spread_over_the_devices_are_solved(name, told):
    assert told[name] < 1e-10


ROWS = ["QR", "QR(2)", "PivotedQR(4)", "LSMR"]


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", [pytest.param(f"rows {n}", id=f"of-{n}") for n in ROWS])
def test_matrix_sharded_over_two_explicit_axes_is_solved(name, told):
    """With its rows, its columns or both on several devices, and b so or not."""
    assert all(error < 1e-9 for error in told[name].values()), told[name]


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "name", [pytest.param(f"bytes {n}", id=f"of-{n}") for n in BYTES]
)
def test_sharded_batch_gathers_nothing_and_holds_its_part(name, told):
    assert told[name]["gathers"] == 0
    assert told[name]["sharded"]
    assert told[name]["memory"] <= BYTES[name.removeprefix("bytes ")] / 4


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", [pytest.param("failing LU", id="of-LU")])
def test_failing_member_of_a_sharded_batch_is_flagged_alone(name, told):
    assert told[name] == {"batch": [3], "sharded": True, "shard_map": [3]}


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", [pytest.param("gather FlexibleCG", id="of-FlexibleCG")])
def test_sharding_that_jax_cannot_tell_is_an_error_that_says_what_to_do(name, told):
    assert "AxisType.Auto" in told[name]
