"""The pivoted QR for platforms without LAPACK's, against SciPy's and the laws."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg

import pseudojvp as pj
from pseudojvp._kernel.pivoting import by_projections
from pseudojvp._solver.orthogonal import pivoted_qr


EPS = np.finfo(float).eps


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


def _of_singular_values(rng, values, dtype, rows):
    left, right = rng.standard_normal((2, rows, len(values)))
    if dtype is complex:
        left, right = left + 1j * right[::-1], right - 1j * left[::-1]
    left, right = np.linalg.qr(left)[0], np.linalg.qr(right[: len(values)])[0]
    return left * values @ right.conj().T


def _hostile(dtype):
    """Tall matrices of several ranks, and their ranks: of full and of deficient rank,
    graded to the cutoff, of extreme size, zero.
    """
    rng = np.random.default_rng(0)
    spectra = {
        (1.0, 0.8, 0.5, 0.3): 4,
        (1.0, 0.7, 0.0, 0.0): 2,
        (1.0, 0.0, 0.0, 0.0): 1,
        (1.0, 1e-3, 1e-6, 0.0): 3,
        (1.0, 1.0, 1e-13, 1e-18): 3,
        (0.0, 0.0, 0.0, 0.0): 0,
        (1e200, 1e199, 0.0, 0.0): 2,
        (1e-200, 1e-201, 1e-202, 0.0): 3,
    }
    matrices = [_of_singular_values(rng, np.array(s), dtype, 7) for s in spectra]
    return np.stack(matrices), list(spectra.values())


@ft.cache
def _answers(shape, dtype):
    """Of solves with LAPACK's pivoted QR and with that by projections: x, its JVP, its
    gradients, a second derivative, and the ranks; of moderate size and rank gap.
    """
    matrices, ranks = _hostile(dtype)
    matrices = matrices if shape == "tall" else matrices.conj().swapaxes(1, 2)
    rng = np.random.default_rng(1)
    b = rng.standard_normal(matrices.shape[1]).astype(dtype)
    w = rng.standard_normal(matrices.shape[2])
    solver = pj.PivotedQR()

    def states():
        state = lambda matrix: solver.init(lx.MatrixLinearOperator(matrix), {})
        return jax.jit(jax.vmap(state))(matrices)

    def answer(matrix, state):
        def solve(matrix, vector):
            operator = lx.MatrixLinearOperator(matrix)
            return pj.linear_solve(operator, vector, solver, state=state, throw=False)

        def gradients(matrix, vector):
            loss = lambda *args: jnp.sum(w * solve(*args).value.real)
            return jax.grad(loss, (0, 1))(matrix, vector)

        rate = lambda function: jax.jvp(function, (matrix, b), (matrix, b[::-1]))
        out = solve(matrix, b)
        value = lambda *args: solve(*args).value
        return rate(value), rate(gradients), out.result._value, state.rank

    answers = jax.jit(jax.vmap(answer))
    of_lapack = states()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pivoted_qr, "pivoted_columns", by_projections)
        of_projections = states()
    both = (answers(matrices, state) for state in (of_lapack, of_projections))
    return matrices, b, ranks, *both


def _each_shape(test):
    test = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])(
        pytest.mark.parametrize("shape", ["tall", "wide"])(test)
    )
    return pytest.mark.ci("wide-complex", "tall-real")(test)


@_each_shape
def test_ranks_by_projections_are_right(shape, dtype):
    _, _, ranks, _, (*_, result, found) = _answers(shape, dtype)
    assert list(found) == ranks
    assert np.all(result == lx.RESULTS.successful._value)


@_each_shape
def test_solutions_by_projections_are_those_of_the_pseudoinverse(shape, dtype):
    matrices, b, ranks, _, ((x, _), *_) = _answers(shape, dtype)
    for matrix, rank, got in zip(matrices, ranks, x, strict=True):
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        want = vh[:rank].conj().T @ (u.conj().T[:rank] @ b / s[:rank])
        # As far as its condition number, of up to 1e13, lets it.
        rtol = 100 * EPS * s[0] / s[rank - 1] if rank else 0
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


@_each_shape
def test_derivatives_by_projections_are_those_by_lapack(shape, dtype):
    *_, lapack, projections = _answers(shape, dtype)
    moderate = np.array([0, 1, 2, 5])
    for got, want in zip(*map(jax.tree.leaves, (projections, lapack)), strict=True):
        np.testing.assert_allclose(got[moderate], want[moderate], rtol=0, atol=1e-12)


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_pivoted_qr_calls_no_host_off_the_cpu(platform):
    def solve(matrix, vector):
        return pj.linear_solve(matrix, vector, pj.PivotedQR(), throw=False).value

    arguments = jnp.ones((6, 4), jnp.float32), jnp.ones(6, jnp.float32)
    lowered = jax.jit(solve).trace(*arguments).lower(lowering_platforms=(platform,))
    assert "geqp3" not in lowered.as_text()
