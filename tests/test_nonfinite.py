"""NaN or Inf in operator or vector is never `successful`, alone or in a batch."""

import functools
import subprocess
import sys

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj
from pseudojvp._base.tree import one_or_nan
from pseudojvp._map.guard import _told


SIZE = 3
_MORE = {
    "Neumann-one-term": cases.Case(lambda tol: pj.Neumann(0), "near_identity"),
    "Neumann-Landweber": cases.Case(
        lambda tol: pj.Neumann(
            60,
            scale=0.9,
            preconditioner=lx.MatrixLinearOperator(
                jnp.asarray(cases.matrix_of("near_identity", SIZE, float).T)
            ),
        ),
        "near_identity",
    ),
    "CG-steps-only": cases.Case(lambda tol: pj.CG(0.0, 0.0, max_steps=3), "positive"),
    "Auto(None)-diagonal": cases.Case(lambda tol: pj.AutoLinearSolver(None), "diagonal"),
    "Auto(False)-diagonal": cases.Case(
        lambda tol: pj.AutoLinearSolver(False), "diagonal"
    ),
}
_ALL = {**cases.OURS, **cases.AUTO, **cases.THEIRS, **cases.LSMR, **_MORE}
# GMRES is long to compile; LAPACK's SVD of a matrix with an Inf, unguarded in lineax,
# can run for ever.
for _name in ("lx.GMRES", "lx.SVD", "lx.Auto(False)", "lx.Auto(True)"):
    del _ALL[_name]


def _entries(kind):
    """Entries of the matrix that its tags leave free."""
    return np.argwhere(cases.direction_of(kind, SIZE, float, 5))


def _spoilt_operators(matrix, kind):
    """Copies of the matrix, each with a NaN or an Inf in one free entry."""
    spoilt = []
    for bad in (np.nan, np.inf):
        for row, col in _entries(kind):
            copy = matrix.copy()
            copy[row, col] = bad
            spoilt.append(copy)
    return spoilt


def _spoilt_vectors(vector):
    spoilt = []
    for bad in (np.nan, np.inf):
        for index in range(SIZE):
            copy = vector.copy()
            copy[index] = bad
            spoilt.append(copy)
    return spoilt


@functools.cache
def _compiled(name):
    """(matrix, vector) to whether the solve was successful and blamed the input."""
    case = _ALL[name]
    solver = case.make(1e-10)

    @jax.jit
    def told(matrix, vector):
        operator = cases.operator_of(matrix, case.kind)
        result = pj.linear_solve(operator, vector, solver, throw=False).result
        nonfinite = lx.RESULTS.nonfinite_input
        return result == lx.RESULTS.successful, result == nonfinite

    return lambda matrix, vector: tuple(map(bool, told(matrix, vector)))


@pytest.mark.default(
    "QR", "SVD", "Normal(Cholesky)", "Neumann-tol", "lx.LU", "lx.Diagonal"
)
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _ALL)
def test_non_finite_operator_is_never_successful(name):
    told, kind = _compiled(name), _ALL[name].kind
    matrix = cases.matrix_of(kind, SIZE, float)
    assert told(matrix, np.ones(SIZE)) == (True, False)
    for spoilt in _spoilt_operators(matrix, kind):
        assert not told(spoilt, np.ones(SIZE))[0], spoilt
        assert not told(spoilt, np.zeros(SIZE))[0], spoilt


@pytest.mark.default(
    "QR", "SVD", "Normal(Cholesky)", "Neumann-tol", "lx.LU", "lx.Diagonal"
)
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _ALL)
def test_non_finite_vector_is_told_as_non_finite_input(name):
    told, matrix = _compiled(name), cases.matrix_of(_ALL[name].kind, SIZE, float)
    for spoilt in _spoilt_vectors(np.ones(SIZE)):
        assert told(matrix, spoilt) == (False, True), spoilt


@pytest.mark.default("SVD")
@pytest.mark.ci(
    "QR",
    "Normal(Cholesky)",
    "Normal(CG)",
    "CG-singular",
    "Neumann-tol",
    "lx.LU",
    "lx.LSMR",
)
@pytest.mark.parametrize("name", [name for name in _ALL if name != "Neumann-one-term"])
def test_one_bad_member_of_a_batch_spoils_only_itself(name):
    case = _ALL[name]
    matrix = cases.matrix_of(case.kind, SIZE, float)
    spoilt = _spoilt_operators(matrix, case.kind)
    bad_vector = np.array([1.0, np.nan, 1.0])
    matrices = np.stack([matrix, spoilt[0], matrix, spoilt[-1], matrix])
    vectors = np.stack([*[np.ones(SIZE)] * 2, bad_vector, *[np.ones(SIZE)] * 2])
    solver = case.make(1e-10)

    @eqx.filter_jit
    @eqx.filter_vmap
    def solve(matrix, vector):
        operator = cases.operator_of(matrix, case.kind)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful

    value, successful = solve(jnp.asarray(matrices), jnp.asarray(vectors))
    np.testing.assert_array_equal(successful, [True, False, False, False, True])
    truth = np.linalg.solve(matrix, np.ones(SIZE))
    np.testing.assert_allclose(value[0], truth, rtol=1e-8)  # iterations stop at 1e-10
    np.testing.assert_allclose(value[4], truth, rtol=1e-8)


_SVD_OF_INF = """
import jax, jax.numpy as jnp, lineax as lx, pseudojvp as pj
jax.config.update("jax_enable_x64", True)
matrix = jnp.array([[jnp.inf, 0.1, -0.3], [0.6, 1.3, 0.9], [-1.3, -0.6, 0.4]])
solution = pj.linear_solve(matrix, jnp.ones(3), pj.SVD(), throw=False)
assert solution.result != lx.RESULTS.successful
"""


@pytest.mark.slow  # a process of its own
def test_svd_of_an_infinite_matrix_comes_to_an_end():
    # LAPACK's `gesdd` can run for ever on an Inf: in a process with a time limit.
    subprocess.run([sys.executable, "-c", _SVD_OF_INF], check=True, timeout=300)


@pytest.mark.parametrize("well_posed", [True, False])
@pytest.mark.parametrize("where", ["operator", "vector"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_entry_beside_diagonal_operators_is_told(well_posed, where, bad):
    entries = {"operator": jnp.ones(3), "vector": jnp.ones(3)}
    entries[where] = entries[where].at[1].set(bad)
    operator = lx.DiagonalLinearOperator((entries["operator"], jnp.ones(2)))
    vector = (entries["vector"], jnp.ones(2))
    solver = lx.Diagonal(well_posed=well_posed)
    solution = pj.linear_solve(operator, vector, solver, throw=False)
    expected = {"operator": lx.RESULTS.singular, "vector": lx.RESULTS.nonfinite_input}
    assert solution.result == expected[where]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_vector_against_the_identity_is_told(bad):
    operator = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((2,), jnp.dtype("float64")))
    solution = pj.linear_solve(operator, jnp.array([1.0, bad]), throw=False)
    assert solution.result == lx.RESULTS.nonfinite_input


@pytest.mark.default("wide-QR", "tall-SVD")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), pj.Normal(lx.Cholesky()), pj.Normal(pj.CG(1e-9, 1e-9))],
    ids=["QR", "SVD", "Normal(Cholesky)", "Normal(CG)"],
)
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)], ids=["tall", "wide"])
def test_non_finite_entry_of_a_non_square_operator_is_never_successful(solver, shape):
    matrix = cases.conditioned(shape, [1.0, 2.0], float, 3)
    vector = cases.random_array(shape[:1], float, 7)

    @eqx.filter_jit
    def successful(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        result = pj.linear_solve(operator, vector, solver, throw=False).result
        return result == lx.RESULTS.successful

    assert successful(jnp.asarray(matrix), jnp.asarray(vector))
    for bad in (np.nan, np.inf):
        for index in np.ndindex(shape):
            spoilt = jnp.asarray(matrix).at[index].set(bad)
            assert not successful(spoilt, jnp.asarray(vector))


def test_non_finite_vector_raises_by_default():
    operator = lx.MatrixLinearOperator(jnp.eye(2))
    with pytest.raises(eqx.EquinoxRuntimeError, match="received non-finite"):
        pj.linear_solve(operator, jnp.array([1.0, jnp.nan]), pj.QR())


def test_non_finite_operator_raises_by_default():
    operator = lx.MatrixLinearOperator(jnp.array([[1.0, jnp.nan], [0.0, 1.0]]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="non-finite"):
        pj.linear_solve(operator, jnp.ones(2), pj.QR())


_BLIND = {
    "lx.Diagonal": (lx.Diagonal(), lx.diagonal_tag),
    "lx.Triangular": (lx.Triangular(), lx.lower_triangular_tag),
    "Auto(None)": (pj.AutoLinearSolver(None), lx.diagonal_tag),
    "CG": (pj.CG(1e-9, 1e-9), lx.positive_semidefinite_tag),
    "QR": (pj.QR(), lx.diagonal_tag),
    "SVD": (pj.SVD(), lx.diagonal_tag),
    "Neumann": (pj.Neumann(3), lx.diagonal_tag),
}


@pytest.mark.default("lx.Triangular", "SVD")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _BLIND)
def test_gradient_for_the_vector_of_a_non_finite_operator_is_nan(name):
    solver, tag = _BLIND[name]

    @eqx.filter_jit
    def gradient(bad):
        operator = lx.MatrixLinearOperator(jnp.diag(jnp.ones(3).at[1].set(bad)), tag)

        def loss(vector):
            return jnp.sum(pj.linear_solve(operator, vector, solver, throw=False).value)

        return jax.grad(loss)(jnp.ones(3))

    np.testing.assert_allclose(gradient(jnp.array(1.0)), np.ones(3))
    assert np.isnan(gradient(jnp.array(jnp.nan))).all()
    assert np.isnan(gradient(jnp.array(jnp.inf))).all()


@pytest.mark.optimised
def test_nan_of_a_scalar_that_was_broadcast_is_not_optimised_away():
    def product(number):
        vector = jnp.full(2, number)
        return vector * one_or_nan(vector >= 0).astype(vector.dtype)

    assert np.isnan(jax.jit(product)(-0.1)).all()
    np.testing.assert_array_equal(jax.jit(product)(0.1), [0.1, 0.1])


@pytest.mark.parametrize("number", [np.nan, -np.nan, -1.0, np.inf])
def test_failure_with_any_number_is_told_by_a_positive_integer(number):
    """The sign of 0/0 is set on some processors, and would be that of what is told."""
    number = jnp.asarray(np.array(number))
    assert int(_told(lx.RESULTS.singular, number)) > 0
    assert int(_told(lx.RESULTS.successful, number)) == 0
