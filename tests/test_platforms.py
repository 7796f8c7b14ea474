"""Programs are lowered for other platforms than the one that they are made on."""

import jax
import jax.numpy as jnp
import lineax as lx
import pytest

import pseudojvp as pj


_POSITIVE = lx.positive_semidefinite_tag
_SOLVERS = {
    "LU": (pj.AutoLinearSolver(True), ()),
    "Cholesky": (pj.Cholesky(), _POSITIVE),
    "Triangular": (pj.Triangular(), lx.lower_triangular_tag),
    "Tridiagonal": (pj.Tridiagonal(), lx.tridiagonal_tag),
    "QR": (pj.QR(), ()),
    "CholeskyQR": (pj.CholeskyQR(), ()),
    "PivotedQR": (pj.AutoLinearSolver(False), ()),
    "SVD": (pj.SVD(), ()),
    "Normal(Cholesky)": (pj.Normal(pj.Cholesky()), ()),
    "CG": (pj.CG(), _POSITIVE),
    "LSMR": (pj.LSMR(), ()),
}
_each_solver = pytest.mark.parametrize(
    ("solver", "tags"), _SOLVERS.values(), ids=_SOLVERS.keys()
)


@pytest.mark.default("*-LU", "tpu-PivotedQR", "tpu-CG")
@pytest.mark.ci("*")
@_each_solver
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_gradients_of_a_batch_are_lowered_for_another_platform(platform, solver, tags):
    @jax.jit
    @jax.vmap
    @jax.grad
    def gradient(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        # A callback, which raises, is made for the backend of this process.
        return jnp.sum(pj.linear_solve(operator, vector, solver, throw=False).value)

    traced = gradient.trace(jnp.ones((2, 3, 3)), jnp.ones((2, 3)))
    assert "func.func" in traced.lower(lowering_platforms=(platform,)).as_text()
