"""Each structured operator against its dense form by NumPy: value and derivatives."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import assert_close, derivatives, jit
from structured_cases import CASES, normal, path_of, pinv_derivatives
from truth import central_difference

import pseudojvp as pj


LABELS = {True: "True", None: "None", False: "False"}
EACH = [
    pytest.param(name, well_posed, is_complex, id=f"{name}-{LABELS[well_posed]}-{field}")
    for name, case in CASES.items()
    for well_posed in case.well_posed
    for field, is_complex in (("real", False), ("complex", True))
]
of_each = pytest.mark.parametrize(("name", "well_posed", "is_complex"), EACH)


def truth_of(path):
    """x, x', x'' at t = 0; the matrix is a polynomial in t, or nearly one."""
    matrix = path.matrix(0.0)
    first, second = (central_difference(path.matrix, order, 0.05) for order in (1, 2))
    inverses = pinv_derivatives(matrix, first, second)
    return [inverse @ path.vector for inverse in inverses]


@of_each
@pytest.mark.default("eigh-shifted-True-complex")
@pytest.mark.ci(
    "damped-*-complex",
    "blocks-True-complex",
    "circulant-True-real",
    "*-wide-None-complex",
    "*-tall-None-real",
    "*-deficient-False-real",
    "*-mixed-False-complex",
    "*-definite-True-complex",
    "*-of-structured-*-real",
    "*-of-three-True-real",
    "factored-damped-*-complex",
    "eigh-*-None-real",
    "eigh-True-complex",
    "circulant-even-True-complex",
    "kronecker-True-complex",
    "blocks-tall-None-real",
    "circulant-deficient-False-complex",
)
def test_solution_and_derivatives_are_those_of_the_dense_form(
    name, well_posed, is_complex
):
    path = path_of(name, is_complex)
    solver = pj.AutoLinearSolver(well_posed)
    weights = normal(np.random.default_rng(3), path.matrix(0.0).shape[1:], is_complex)

    def solve(t):
        vector = jnp.asarray(path.vector)
        return pj.linear_solve(path.operator(t), vector, solver, throw=False).value

    def loss(t):
        return jnp.sum(weights * solve(t)).real

    got, slope, curvature = jit(
        lambda t: (
            derivatives(solve, 2)(t),
            jax.grad(loss)(t),
            jax.jvp(jax.grad(loss), (t,), (1.0,))[1],
        )
    )(0.0)
    x, first, second = truth_of(path)
    for value, want in zip(got, (x, first, second), strict=True):
        assert_close(value, want, 1e-10)
    scale = np.abs(weights).max() * np.abs(second).max()
    assert abs(slope - np.sum(weights * first).real) < 1e-10 * scale * len(x)
    assert abs(curvature - np.sum(weights * second).real) < 1e-10 * scale * len(x)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.ci(
    "*-real", "kronecker-tall-complex", "blocks-wide-complex", "damped-complex"
)
def test_products_transposes_and_conjugates_are_those_of_the_dense_form(name, is_complex):
    path = path_of(name, is_complex)
    dense = path.matrix(0.0)
    operator = path.operator(0.0)
    rng = np.random.default_rng(1)
    v = normal(rng, dense.shape[1:], is_complex)
    u = normal(rng, dense.shape[:1], is_complex)
    assert_close(operator.mv(jnp.asarray(v)), dense @ v, 1e-13)
    assert_close(operator.T.mv(jnp.asarray(u)), dense.T @ u, 1e-13)
    for got, want in (
        (operator, dense),
        (operator.T, dense.T),
        (lx.conj(operator), dense.conj()),
        (lx.linearise(operator), dense),
        (lx.materialise(operator), dense),
    ):
        assert type(got) is type(operator)
        assert_close(got.as_matrix(), want, 1e-13)
    assert_close(lx.diagonal(operator), np.diagonal(dense), 1e-13)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if True in case.well_posed]
)
@pytest.mark.ci("*")
@pytest.mark.default("kronecker-of-three", "eigh-shifted")
def test_trace_is_that_of_the_dense_form(name):
    path = path_of(name, True)
    want = np.trace(path.matrix(0.0))
    assert abs(path.operator(0.0).trace() - want) < 1e-12 * abs(want)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.ci("*")
def test_statistics_are_those_of_the_whole(name):
    path = path_of(name, True)
    solver = pj.AutoLinearSolver(False)
    solution = pj.linear_solve(path.operator(0.0), jnp.asarray(path.vector), solver)
    assert solution.stats["rank"] == np.linalg.matrix_rank(path.matrix(0.0), tol=1e-10)
    factorised = pj.factorise(path.operator(0.0), solver)
    assert factorised.stats["rank"] == solution.stats["rank"]


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if True in case.well_posed]
)
@pytest.mark.slow
def test_condition_numbers_are_near_those_of_the_dense_form(name):
    path = path_of(name, True)
    solution = pj.linear_solve(path.operator(0.0), jnp.asarray(path.vector))
    estimate = solution.stats["reciprocal_condition"]
    # Columns may be scaled, and each factor is off by up to sqrt(n).
    assert 0.02 < estimate * np.linalg.cond(path.matrix(0.0)) < 50


@pytest.mark.slow  # four seconds
def test_a_product_that_is_singular_by_its_factors_together_is_told():
    """Of low-rank updates, and beside a factor whose solver estimates nothing."""
    update = pj.LowRankUpdate(jnp.eye(3), jnp.eye(3)[:, :1], None, [[1e-9 - 1]])
    operator = pj.Kronecker(update, update, _sparse())
    told = pj.linear_solve(operator, jnp.ones(18), throw=False).result
    assert told == lx.RESULTS.singular
    factor = jnp.ones((2, 2)) + jnp.eye(2)
    sound = pj.Kronecker(update, factor)
    got = pj.linear_solve(sound, jnp.ones(6), throw=False)
    assert got.result == lx.RESULTS.successful
    assert_close(got.value, np.linalg.solve(sound.as_matrix(), np.ones(6)), 1e-12)


def _sparse():
    return pj.SparseLinearOperator(scipy.sparse.csr_array([[2.0, 1], [1, 3]]))
