"""The pivoted QR for platforms without LAPACK's, against SciPy's and the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import pseudojvp as pj
from pseudojvp._kernel.pivoting import by_projections


def _matrices(dtype):
    rng = np.random.default_rng(0)
    full = rng.standard_normal((6, 6))
    if np.dtype(dtype).kind == "c":
        full = full + 1j * rng.standard_normal((6, 6))
    graded = full * np.logspace(0, -12, 6)
    matrices = full, full[:, :2] @ full[:2], graded, 0 * full, np.eye(6)
    return np.stack(matrices).astype(dtype)


@pytest.mark.default("complex128")
@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_projections_give_the_factors_of_lapack(dtype):
    matrices, eps = _matrices(dtype), np.finfo(dtype).eps
    all_q, all_pivots = jax.jit(jax.vmap(by_projections))(matrices)
    for matrix, q, pivots in zip(matrices, all_q, all_pivots, strict=True):
        _, r, _ = scipy.linalg.qr(matrix, pivoting=True)
        assert np.abs(pivots - np.abs(np.diag(r))).max() <= 50 * eps
        kept = np.asarray(q)[:, np.asarray(pivots) > 100 * eps]
        gram = kept.conj().T @ kept
        assert np.abs(gram - np.eye(len(gram))).max(initial=0) <= 50 * eps
        rest = matrix - kept @ (kept.conj().T @ matrix)
        assert np.abs(rest).max() <= 1000 * eps


def test_pivoted_qr_is_lowered_for_a_platform_without_lapack():
    def solve(matrix, vector):
        return pj.linear_solve(matrix, vector, pj.PivotedQR(), throw=False).value

    arguments = jnp.ones((6, 4), jnp.float32), jnp.ones(6, jnp.float32)
    lowered = jax.jit(solve).trace(*arguments).lower(lowering_platforms=("tpu",))
    assert "geqp3" not in lowered.as_text()
