"""`lsq_linear`: mistakes raise while JAX traces, failures raise or are told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from bounded_cases import normal
from jax.experimental.sparse import BCOO

import pseudojvp as pj
from pseudojvp._kernel import active_set


A, B = normal(np.random.default_rng(0), 6, 3)
ZEROS = np.zeros(3)
TREE = lx.FunctionLinearOperator(
    lambda x: x[0], [jax.ShapeDtypeStruct((3,), jnp.float64)]
)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((A.tolist(), B), {}, TypeError, r"lsq_linear\(a=...\)` got a list"),
        ((A, "b"), {}, TypeError, r"lsq_linear\(b=...\)` got a str"),
        ((A[None], B), {}, ValueError, r"shape \(1, 6, 3\).*`jax.vmap`"),
        ((A, B[:2]), {}, ValueError, r"shape \(2,\).*Pass `b` of shape \(6,\) or"),
        ((A + 1j, B), {}, TypeError, "complex numbers, which have no order"),
        ((A, B + 1j), {}, TypeError, "complex numbers, which have no order"),
        ((TREE, B), {}, ValueError, "operator with the structure .*one axis"),
        ((A, B, 0.0), {}, TypeError, r"bounds=...\)` got 0.0. Pass the pair"),
        ((A, B, (0.0,)), {}, TypeError, r"bounds=...\)` got 1 of them"),
        (
            (A, B, (ZEROS[:2], 1.0)),
            {},
            ValueError,
            r"lower bound\)` got the shape \(2,\)",
        ),
        (
            (A, B, (0.0, ZEROS[None])),
            {},
            ValueError,
            r"upper bound\)` got the shape \(1,",
        ),
        ((A, B, (0.0, 1j)), {}, TypeError, r"upper bound\)` got a complex"),
        ((A, B, (0.0, ZEROS + 1j)), {}, TypeError, r"upper bound\)` got complex numbers"),
        ((A, B, ([0.0] * 3, 1.0)), {}, TypeError, r"lower bound\)` got a list"),
        ((A, B), {"solver": pj.QR()}, TypeError, r"got QR. Pass `PivotedQR\(\)`"),
        ((A, B), {"solver": "qr"}, TypeError, r"got 'qr'. Pass `PivotedQR\(\)`"),
        ((A, B), {"rcond": "small"}, TypeError, "got 'small'. Pass a real number"),
        (
            (A, B),
            {"rcond": 0.1, "solver": pj.SVD(0.2)},
            ValueError,
            "its own. Drop one of the two",
        ),
    ],
)
def test_mistake_raises(arguments, options, error, match):
    with pytest.raises(error, match=match):
        pj.lsq_linear(*arguments, **options)


def test_large_sparse_matrix_is_refused():
    matrix = BCOO((jnp.ones(1), jnp.zeros((1, 2), int)), shape=(2000, 2000))
    with pytest.raises(ValueError, match="would make it dense. Above"):
        pj.lsq_linear(matrix, np.ones(2000))


INVALID = {
    "NaN in a": ((np.full((6, 3), np.nan), B), "nonfinite_input", "NaN or Inf in `a`"),
    "Inf in b": ((A, B + np.inf), "nonfinite_input", "NaN or Inf in `a` or `b`"),
    "crossed": ((A, B, (1.0, 0.0)), "breakdown", "lower bound above the upper"),
    "NaN bound": ((A, B, (np.nan, 0.0)), "breakdown", "or a NaN"),
    "lower +Inf": ((A, B, (np.inf, None)), "breakdown", r"lower bound of \+Inf"),
}


@pytest.mark.default("crossed")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", INVALID)
def test_invalid_numbers_raise(name):
    arguments, _, match = INVALID[name]
    with pytest.raises(eqx.EquinoxRuntimeError, match=match):
        pj.lsq_linear(*arguments)


@pytest.mark.default("NaN in a")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", INVALID)
def test_invalid_numbers_are_told_without_throw(name):
    arguments, result, _ = INVALID[name]
    solution = pj.lsq_linear(*arguments, throw=False)
    assert solution.result == getattr(lx.RESULTS, result)
    assert np.all(np.isnan(solution.value))


@pytest.mark.slow
def test_one_of_many_right_hand_sides_fails_alone():
    columns = np.stack([B, B * np.nan], axis=1)
    solution = pj.lsq_linear(A, columns, (0.0, None), throw=False)
    expected = pj.lsq_linear(A, B, (0.0, None))
    np.testing.assert_array_equal(solution.result == lx.RESULTS.successful, [True, False])
    np.testing.assert_allclose(solution.value[:, 0], expected.value, rtol=1e-12)
    assert np.all(np.isnan(solution.value[:, 1]))


@pytest.mark.slow
def test_search_that_does_not_end_is_told(monkeypatch):
    monkeypatch.setattr(active_set, "_STEPS", 0)
    a, b = normal(np.random.default_rng(1), 7, 4)  # of a shape that no other test has
    solution = pj.lsq_linear(a, b, (0.0, None), throw=False)
    assert solution.result == lx.RESULTS.max_steps_reached
    assert np.all(np.isnan(solution.value))
    with pytest.raises(eqx.EquinoxRuntimeError, match="did not find the bounds"):
        pj.lsq_linear(a, b, (0.0, None))


@pytest.mark.slow
def test_rank_that_pivots_do_not_reveal_is_told_and_svd_solves_it():
    # Kahan's matrix, of 119 to rounding: each pivot is above the cutoff.
    size, c = 120, 0.3
    upper = np.eye(size) - c * np.triu(np.ones((size, size)), 1)
    rows = np.sqrt(1 - c * c) ** np.arange(size)[:, None]
    jitter = 1 + 1e3 * np.finfo(float).eps * np.arange(size, 0, -1)
    a = rows * upper * jitter
    b = a @ np.ones(size)
    solution = pj.lsq_linear(a, b, throw=False)
    assert solution.result == lx.RESULTS.singular
    with pytest.raises(eqx.EquinoxRuntimeError, match="whose rank is not clear"):
        pj.lsq_linear(a, b)
    assert pj.lsq_linear(a, b, solver=pj.SVD()).result == lx.RESULTS.successful


@pytest.mark.slow
def test_failure_within_jit_raises():
    solve = jax.jit(lambda b: pj.lsq_linear(A, b, (0.0, None)).value)
    np.testing.assert_allclose(solve(B), pj.nnls(A, B)[0])
    with pytest.raises(Exception, match="NaN or Inf in `a` or `b`"):
        jax.block_until_ready(solve(B * np.nan))
