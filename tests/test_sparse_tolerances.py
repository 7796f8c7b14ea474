"""`rtol` and `atol` of `sparse_solve` and `sparse_lstsq`."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import jit

import pseudojvp as pj
from pseudojvp._solver import auto


_RNG = np.random.default_rng(0)
_GENERAL = scipy.sparse.random_array((40, 40), density=0.1, rng=_RNG).toarray()
_GENERAL = _GENERAL + np.diag(np.linspace(1.0, 10.0, 40))
_DEFINITE = _GENERAL @ _GENERAL.T
_PSD, _SYMMETRIC = lx.positive_semidefinite_tag, lx.symmetric_tag
# Front, matrix, further arguments: one for each of the iterative solvers by default.
_CASES = {
    "CG": (pj.sparse_solve, _DEFINITE, {"tags": _PSD}),
    "MINRES": (pj.sparse_solve, _DEFINITE, {"tags": _SYMMETRIC}),
    "BiCGStab": (pj.sparse_solve, _GENERAL, {}),
    "LSMR": (pj.sparse_lstsq, _GENERAL, {}),
    "LSMR-damped": (pj.sparse_lstsq, _GENERAL, {"damp": 1e-9}),
}


def _relative_residuals(name, tolerances):
    """Of A x = b, and of Aᵀ g = ct for the gradient with respect to b."""
    front, dense, arguments = _CASES[name]
    A = scipy.sparse.csr_array(dense)
    b, ct = np.random.default_rng(1).standard_normal((2, 40))

    @jit
    def run(b):
        solve = lambda b: front(A, b, **arguments, **tolerances, throw=False)
        x, pull = jax.vjp(solve, b)
        return x, pull(jnp.asarray(ct))[0]

    x, slope = run(jnp.asarray(b))
    primal = np.linalg.norm(b - dense @ x) / np.linalg.norm(b)
    return primal, np.linalg.norm(ct - dense.T @ slope) / np.linalg.norm(ct)


@pytest.fixture
def _iterative(monkeypatch):
    """By default iterative, as for a matrix of more than a million entries."""
    monkeypatch.setattr(auto, "DENSE_ENTRIES", 0)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _CASES)
@pytest.mark.usefixtures("_iterative")
def test_rtol_reaches_the_default_solver_in_both_directions(name):
    loose = _relative_residuals(name, {"rtol": 1e-2})
    tight = _relative_residuals(name, {"rtol": 1e-13})
    assert all(1e-10 < residual < 3e-2 for residual in loose)
    assert all(residual < 2e-12 for residual in tight)


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["CG", "BiCGStab"])
@pytest.mark.usefixtures("_iterative")
def test_atol_is_that_of_the_solution_and_not_of_cotangents(name):
    primal, adjoint = _relative_residuals(name, {"rtol": 0.0, "atol": 1e-2})
    assert 1e-10 < primal < 1e-2
    assert adjoint < 2e-10


@pytest.mark.slow  # a second
def test_tolerances_may_be_traced():
    A = scipy.sparse.csr_array(_DEFINITE)
    b, options = np.ones(40), {"y0": np.zeros(40)}  # by products
    arguments = {"options": options, "tags": _PSD, "throw": False}
    solve = jit(lambda rtol: pj.sparse_solve(A, b, rtol=rtol, **arguments))
    for rtol in (1e-2, 1e-12):
        residual = np.linalg.norm(b - _DEFINITE @ solve(rtol)) / np.linalg.norm(b)
        assert residual <= 1.01 * rtol


def test_direct_default_goes_to_rounding_whatever_the_tolerance():
    A = scipy.sparse.csr_array(_GENERAL)
    x = pj.sparse_solve(A, np.ones(40), rtol=0.5)
    np.testing.assert_allclose(x, np.linalg.solve(_GENERAL, np.ones(40)), rtol=1e-12)


@pytest.mark.slow  # two seconds
def test_tolerances_of_a_function_are_those_of_the_look_at_its_residual():
    A = scipy.sparse.csr_array(_GENERAL)
    rounded = lambda A, b: jnp.linalg.solve(A.as_matrix(), b).round(3)
    for front in (pj.sparse_solve, pj.sparse_lstsq):
        with pytest.raises(RuntimeError, match="larger `rtol`"):
            front(A, np.ones(40), rounded)
        x = front(A, np.ones(40), rounded, rtol=1e-2)
        np.testing.assert_allclose(x, np.linalg.solve(_GENERAL, np.ones(40)), atol=6e-4)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda A, b: pj.sparse_solve(A, b, pj.CG(), rtol=1e-3), "`rtol` beside `CG`"),
        (
            lambda A, b: pj.sparse_lstsq(A, b, pj.LSMR(), atol=1e-3, rtol=1e-3),
            "`rtol` and `atol` beside `LSMR`.*Pass them to the solver",
        ),
        (
            lambda A, b: pj.sparse_solve(A, b, None, pj.GMRES(), rtol=1e-3),
            "beside `GMRES`",
        ),
        (lambda A, b: pj.sparse_solve(A, b, rtol=-1.0), r"sparse_solve\(rtol=...\)"),
        (lambda A, b: pj.sparse_lstsq(A, b, atol=-1), r"sparse_lstsq\(atol=...\)"),
        (lambda A, b: pj.sparse_solve(A, b, rtol=np.nan), "non-negative"),
        (lambda A, b: pj.sparse_solve(A, b, rtol=np.array(-1.0)), "non-negative"),
        (lambda A, b: pj.sparse_solve(A, b, rtol=jnp.array(-1.0)), "non-negative"),
        (lambda A, b: pj.sparse_solve(A, b, rtol=np.ones(2)), "Pass a scalar"),
        (lambda A, b: pj.sparse_solve(A, b, rtol=1j), "real numbers"),
        (lambda A, b: pj.sparse_solve(A, b, rtol="1e-3"), "real numbers"),
    ],
)
def test_bad_tolerances_are_named(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call(scipy.sparse.csr_array(_GENERAL), np.ones(40))


@pytest.mark.usefixtures("_iterative")
def test_both_tolerances_zero_would_never_stop():
    A = scipy.sparse.csr_array(_GENERAL)
    with pytest.raises(ValueError, match="would never stop"):
        pj.sparse_solve(A, np.ones(40), rtol=0)
