"""What `FunctionSolver` says of a function that does not solve."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import pseudojvp as pj


RESULTS = lx.RESULTS
_RNG = np.random.default_rng(0)
_SQUARE = _RNG.standard_normal((4, 4)) + 3 * np.eye(4)
_TALL, _WIDE = _RNG.standard_normal((6, 3)), _RNG.standard_normal((3, 6))
_DEFICIENT = _TALL @ np.array([[1.0, 1, 0], [0, 0, 1], [0, 0, 2]])  # of rank two
_VECTOR = np.arange(1.0, 7.0)


def _pinv(A, b):
    return jnp.linalg.pinv(A.as_matrix(), rtol=1e-10) @ b


def _off(A, b):
    return 1.001 * _pinv(A, b)


def _zero(A, b):
    return jnp.zeros(A.in_size())


def _beside(A, b):
    """The least-squares solution, with a part of the null space of A."""
    x = _pinv(A, b)
    other = jnp.max(jnp.abs(x)) * jnp.arange(1.0, x.size + 1)
    return x + other - _pinv(A, A.mv(other))


def _solution(matrix, solve, **settings):
    solver = pj.FunctionSolver(solve, **settings)
    vector = _VECTOR[: len(matrix)]
    return pj.linear_solve(matrix, vector, solver, throw=False)


_WRONG = {
    "square-off": (_SQUARE, _off, True),
    "square-zero": (_SQUARE, _zero, False),
    "tall-off": (_TALL, _off, True),
    "tall-zero": (_TALL, _zero, False),
    "wide-off": (_WIDE, _off, True),
    "wide-beside": (_WIDE, _beside, True),
    "deficient-off": (_DEFICIENT, _off, False),
    "deficient-beside": (_DEFICIENT, _beside, False),
}


@pytest.mark.default("tall-off-small", "wide-beside-large", "deficient-*-one")
@pytest.mark.ci("*")
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200], ids=["one", "small", "large"])
@pytest.mark.parametrize(
    ("matrix", "solve", "well_posed"), _WRONG.values(), ids=_WRONG.keys()
)
def test_what_is_not_the_solution_is_told(matrix, solve, well_posed, scale):
    got = _solution(scale * matrix, solve, well_posed=well_posed)
    assert got.result == RESULTS.stagnation
    got = _solution(scale * matrix, _pinv, well_posed=well_posed)
    assert got.result == RESULTS.successful
    want = np.linalg.pinv(matrix, rcond=1e-10) @ _VECTOR[: len(matrix)] / scale
    np.testing.assert_allclose(got.value, want, rtol=1e-9)


def test_solution_of_a_singular_system_that_has_none_is_told():
    singular = np.diag([1.0, 2.0, 0.0, 3.0])
    by_lu = lambda A, b: jnp.linalg.solve(A.as_matrix(), b)
    assert _solution(singular, by_lu).result == RESULTS.singular
    assert _solution(singular, _pinv).result == RESULTS.stagnation


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entry_of_the_matrix_that_is_not_finite_is_told(bad):
    matrix = np.where(np.eye(4) == 1, bad, _SQUARE)
    assert _solution(matrix, lambda A, b: b).result == RESULTS.singular


@pytest.mark.slow  # a second
def test_tolerances_are_those_of_the_look_at_the_residual():
    loose = lambda A, b: _pinv(A, b) + 1e-5
    assert _solution(_SQUARE, loose).result == RESULTS.stagnation
    assert _solution(_SQUARE, loose, rtol=1e-3).result == RESULTS.successful
    assert _solution(_SQUARE, loose, rtol=0, atol=1e-3).result == RESULTS.successful
    got = _solution(_SQUARE, loose, rtol=0, atol=1e-12)
    assert got.result == RESULTS.stagnation
    residual = _VECTOR[:4] - _SQUARE @ got.value
    np.testing.assert_allclose(got.stats["residual_norm"], np.linalg.norm(residual))


def test_absolute_tolerance_does_not_let_a_small_cotangent_end_in_zero():
    solver = pj.FunctionSolver(lambda A, b: jnp.where(b[0] > 0.5, _pinv(A, b), 0 * b))
    solver = pj.FunctionSolver(solver.solve, atol=1e-3)
    solve = lambda b: pj.linear_solve(_SQUARE, b, solver, throw=False).value
    x, pull = jax.vjp(solve, jnp.asarray(_VECTOR[:4]))
    np.testing.assert_allclose(x, np.linalg.solve(_SQUARE, _VECTOR[:4]))
    assert np.all(np.isnan(pull(jnp.full(4, 1e-6))[0]))


@pytest.mark.slow  # a second
def test_function_that_does_not_look_which_matrix_it_is_given_is_told_in_the_gradient():
    def solve(A, b):  # as if it ignored which matrix it is given
        return jnp.linalg.solve(_SQUARE, b)

    A = scipy.sparse.csr_array(_SQUARE)
    x, pull = jax.vjp(lambda b: pj.sparse_solve(A, b, solve, throw=False), _VECTOR[:4])
    np.testing.assert_allclose(x, np.linalg.solve(_SQUARE, _VECTOR[:4]))
    assert np.all(np.isnan(pull(jnp.ones(4))[0]))
    slope = jax.grad(lambda b: jnp.sum(pj.sparse_solve(A, b, solve)))
    with pytest.raises(RuntimeError, match="got no solution from its function"):
        slope(jnp.asarray(_VECTOR[:4]))


@pytest.mark.slow  # a second
def test_front_raises_or_gives_nan_for_what_is_no_solution():
    A = scipy.sparse.csr_array(_SQUARE)
    with pytest.raises(RuntimeError, match="b − A x does not meet the tolerance"):
        pj.sparse_solve(A, _VECTOR[:4], lambda A, b: b)
    with pytest.raises(RuntimeError, match="or the function failed"):
        pj.sparse_solve(A, _VECTOR[:4], lambda A, b: jnp.nan * b)
    B = jnp.stack([_VECTOR[:4], -_VECTOR[:4]], 1)
    one_sided = lambda A, b: jnp.where(b[0] > 0, _pinv(A, b), b)
    x = pj.sparse_solve(A, B, one_sided, throw=False)
    np.testing.assert_array_equal(np.isnan(x), [[False, True]] * 4)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("solve", "match"),
    [
        (lambda A, b: None, "returned None. Return x alone"),
        (lambda A, b: (b, 0), "Return x alone"),
        (lambda A, b: b[:2], r"shape=\(2,\).*A.in_structure"),
        (lambda A, b: b.astype(np.float32), "float32"),
    ],
)
def test_function_that_returns_something_else_is_an_error(solve, match):
    A = scipy.sparse.csr_array(_SQUARE)
    for front in (pj.sparse_solve, pj.sparse_lstsq):
        with pytest.raises(ValueError, match=match):
            front(A, _VECTOR[:4], solve)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pj.FunctionSolver(pj.QR), TypeError, "Pass a function"),
        (lambda: pj.FunctionSolver(pj.QR()), TypeError, "Pass a function"),
        (lambda: pj.FunctionSolver("lu"), TypeError, "Pass a function"),
        (lambda: pj.FunctionSolver(_pinv, -1.0), ValueError, "non-negative"),
        (lambda: pj.linear_solve(_SQUARE, _VECTOR[:4], _pinv), TypeError, "FunctionSol"),
        (
            lambda: pj.sparse_solve(scipy.sparse.eye_array(4), _VECTOR[:4], pj.LU),
            TypeError,
            "Pass an instance",
        ),
        (
            lambda: pj.sparse_solve(
                scipy.sparse.eye_array(4), _VECTOR[:4], _pinv, options={"y0": 0}
            ),
            ValueError,
            r"`FunctionSolver` was given the unknown option\(s\) \['y0'\]",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
