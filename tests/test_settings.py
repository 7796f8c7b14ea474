"""Global settings of JAX: each in a process of its own, set before JAX is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow  # a process for each setting, of five seconds and more


FEW = ("QR", "PivotedQR", "CG")
# The others of this library; the automatic solvers and CG's variants add nothing here.
REST = (
    "SVD",
    "LU",
    "Cholesky-negative",
    "Triangular",
    "Tridiagonal",
    "Normal(Cholesky)",
    "CholeskyQR",
    "Normal(PivotedQR)",
    "Normal(CG)",
    "CG-singular",
    "Neumann",
    "Auto(False)-diagonal",
)
SETTINGS = {
    "float32-by-default": ({}, "float32"),
    "strict-promotion": (
        {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"},
        "complex64",
    ),
    "strict-promotion-x64": (
        {
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "JAX_ENABLE_X64": "1",
        },
        "complex128",
    ),
    "debug-nans": ({"JAX_DEBUG_NANS": "1", "JAX_ENABLE_X64": "1"}, "float64"),
}


def run(arguments, environment, timeout):
    """The output, with warnings as errors."""
    inherited = {key: os.environ[key] for key in os.environ if not key.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**inherited, **environment},
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "name",
    [
        "float32-by-default",
        "debug-nans",
        pytest.param("strict-promotion", marks=pytest.mark.nightly),
    ],
)
def test_solvers_and_derivatives_work_under_setting(name):
    environment, dtype = SETTINGS[name]
    out = run(["settings_program.py", dtype, *FEW], environment, timeout=300)
    assert out == list(FEW)


@pytest.mark.nightly  # a dozen solvers with second derivatives to compile
@pytest.mark.parametrize("name", SETTINGS)
def test_every_solver_and_its_derivatives_work_under_setting(name):
    environment, dtype = SETTINGS[name]
    out = run(["settings_program.py", dtype, *REST], environment, timeout=600)
    assert out == list(REST)


@pytest.mark.nightly  # every operation is compiled by itself
def test_solvers_work_without_jit():
    environment = {"JAX_DISABLE_JIT": "1", "JAX_ENABLE_X64": "1"}
    out = run(["settings_program.py", "float64", *FEW], environment, timeout=600)
    assert out == list(FEW)


@pytest.mark.nightly  # every operation is compiled by itself
def test_no_operation_of_a_good_solve_makes_a_nan():
    solvers = [*FEW, *REST]
    environment = {
        "JAX_DEBUG_NANS": "1",
        "JAX_DISABLE_JIT": "1",
        "JAX_ENABLE_X64": "1",
    }
    out = run(["settings_program.py", "float64", *solvers], environment, timeout=600)
    assert out == solvers


_DEFAULT_RCOND = """
import jax.numpy as jnp
import pseudojvp as pj

small = 1e-9  # above the eps of double precision, below that of single precision
matrix = jnp.diag(jnp.array([1.0, 0.5, small]))
for solver in (pj.SVD(), pj.PivotedQR()):
    solution = pj.linear_solve(matrix, jnp.ones(3), solver)
    print(solution.value.dtype, int(solution.stats["rank"]))
integers = pj.linear_solve(jnp.array([[2, 0], [0, 4]]), jnp.array([2, 4]))
print(integers.value.dtype)
"""


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        ({}, "float32 2 float32 2 float32"),
        ({"JAX_ENABLE_X64": "1"}, "float64 3 float64 3 float64"),
    ],
    ids=["x64-unset", "x64"],
)
def test_default_rcond_is_of_the_default_dtype(environment, want):
    assert run(["-c", _DEFAULT_RCOND], environment, timeout=300) == want.split()


_FAILURE = """
import jax
import jax.numpy as jnp
import lineax as lx
import pseudojvp as pj

def solve(matrix):
    return pj.linear_solve(matrix, jnp.array([1.0, 2.0, 4.0]), pj.QR(), throw=False)

matrix = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
matrix = matrix + 1e-16 * jnp.eye(3, 2)  # R is not exactly singular: x is finite
solution = solve(matrix)
print(bool(jnp.isfinite(solution.value).all()))
print(bool(solution.result == lx.RESULTS.singular))
try:
    jax.jvp(lambda matrix: solve(matrix).value, (matrix,), (matrix,))
except FloatingPointError:
    print("FloatingPointError")
"""


def test_debug_nans_raises_for_a_failed_derivative_but_not_for_a_finite_failed_primal():
    environment = {"JAX_DEBUG_NANS": "1", "JAX_ENABLE_X64": "1"}
    out = run(["-c", _FAILURE], environment, timeout=300)
    # In between, JAX tells where the NaN came from.
    assert [*out[:2], out[-1]] == ["True", "True", "FloatingPointError"]


_CARRIED_ON = """
import jax
import jax.numpy as jnp
import lineax as lx
import pseudojvp as pj

def solve(vector):
    return pj.linear_solve(jnp.ones((2, 2)) + 1e-17 * jnp.eye(2), vector, pj.LU())

solution = solve(jnp.ones(2))
print(solution.result != lx.RESULTS.successful, bool(jnp.isnan(solution.value).all()))
gradient = jax.jit(jax.grad(lambda vector: jnp.sum(solve(vector).value)))(jnp.ones(2))
print(bool(jnp.isnan(gradient).all()))
"""


def test_a_failure_that_may_not_raise_is_nan_and_no_success():
    environment = {"EQX_ON_ERROR": "nan", "JAX_ENABLE_X64": "1"}
    assert run(["-c", _CARRIED_ON], environment, timeout=300) == ["True"] * 3


_MIXED = """
import jax
import jax.numpy as jnp
import lineax as lx
import pseudojvp as pj

def operator(blocks):
    product = lambda x: {key: blocks[key] @ x[key] for key in blocks}
    structure = {key: jax.ShapeDtypeStruct((2,), blocks[key].dtype) for key in blocks}
    return lx.FunctionLinearOperator(product, structure)

blocks = {
    "real": jnp.array([[1.2, 0.1], [0.3, 0.9]], "float32"),
    "complex": jnp.array([[1.1, 0.2j], [0.1, 0.8 + 0.1j]], "complex64"),
}
vector = {"real": jnp.array([1.0, 2.0], "float32"), "complex": jnp.ones(2, "complex64")}
for solver in (pj.Neumann(60), pj.Normal(pj.CG(1e-6, 1e-6))):
    def solve(blocks, vector):
        return pj.linear_solve(operator(blocks), vector, solver, throw=False).value

    primals = blocks, vector
    value, tangent = jax.jit(lambda p: jax.jvp(solve, p, p))(primals)
    for key in blocks:
        want = jnp.linalg.solve(blocks[key], vector[key])
        assert value[key].dtype == blocks[key].dtype
        assert jnp.allclose(value[key], want, atol=1e-4)
        # (A + t A) x = b + t b: x does not move.
        assert jnp.allclose(tangent[key], 0, atol=1e-4)
    print(type(solver).__name__)
"""


@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_real_and_complex_leaves_together_without_a_matrix(promotion):
    # With a matrix they need lineax to promote: its operators fail under "strict".
    environment = {"JAX_NUMPY_DTYPE_PROMOTION": promotion}
    assert run(["-c", _MIXED], environment, timeout=300) == ["Neumann", "Normal"]
