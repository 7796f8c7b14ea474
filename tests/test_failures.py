"""Honest failures: what cannot be solved is told in `result`, raised, or is NaN."""

import functools

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SIZE = 3
_POSITIVE = cases.matrix_of("positive", SIZE, float)


def _zeros(shape=(SIZE, SIZE)):
    return np.zeros(shape)


# A solver beside a matrix that it fails on, and the tags.
FAILING = {
    "QR-zero": (pj.QR(), _zeros(), ()),
    "QR-tall": (pj.QR(), np.ones((4, 2)), ()),
    "QR-wide": (pj.QR(), np.ones((2, 4)), ()),
    "LU-zero": (lx.LU(), _zeros(), ()),
    "LU-singular": (lx.LU(), np.ones((SIZE, SIZE)), ()),
    "Cholesky-zero": (lx.Cholesky(), _zeros(), cases.positive),
    "Cholesky-indefinite": (lx.Cholesky(), np.diag([1.0, -1, 1]), cases.positive),
    "Diagonal-zero": (lx.Diagonal(well_posed=True), _zeros(), lx.diagonal_tag),
    "Triangular-zero": (lx.Triangular(), _zeros(), cases.lower),
    "Auto-zero": (pj.AutoLinearSolver(well_posed=True), _zeros(), ()),
    "Normal(Cholesky)-zero": (pj.Normal(lx.Cholesky()), _zeros((4, 2)), ()),
    "CG-zero": (pj.CG(1e-8, 1e-8), _zeros(), cases.positive),
    "CG-indefinite": (pj.CG(1e-8, 1e-8), np.diag([1.0, -2, 3]), cases.positive),
    "CG-out-of-steps": (pj.CG(1e-9, 1e-9, max_steps=1), _POSITIVE, cases.positive),
    "Normal(CG)-out-of-steps": (pj.Normal(pj.CG(1e-9, 1e-9, max_steps=1)), _POSITIVE, ()),
    "Neumann-divergent": (pj.Neumann(200), 4 * _POSITIVE, ()),
    "Neumann-out-of-terms": (pj.Neumann(2, 0.3, rtol=1e-9), _POSITIVE, ()),
}
ALL = pytest.mark.parametrize("name", FAILING)
# The programs with derivatives or that raise take a second and more to compile.
FEW = pytest.mark.default("QR-tall", "Neumann-divergent")
OTHERS = pytest.mark.ci("*")


def _solve(name, throw):
    solver, _, tags = FAILING[name]

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        return pj.linear_solve(operator, vector, solver, throw=throw)

    return solve


def _problem(name):
    matrix = jnp.asarray(FAILING[name][1])
    return matrix, jnp.arange(1.0, matrix.shape[0] + 1)


@functools.cache
def _failed(name):
    return _solve(name, throw=False)(*_problem(name))


def _derivatives(name, throw=False):
    """(t_value for A, for b; ct of A, of b), one compiled program."""
    solve = _solve(name, throw)

    def derivatives(matrix, vector):
        of_matrix = lambda m: solve(m, vector).value
        of_vector = lambda v: solve(matrix, v).value
        t_matrix = jnp.ones_like(matrix) + jnp.eye(*matrix.shape)
        _, by_matrix = jax.jvp(of_matrix, (matrix,), (t_matrix,))
        _, by_vector = jax.jvp(of_vector, (vector,), (jnp.ones_like(vector),))
        pull = jax.vjp(lambda m, v: solve(m, v).value, matrix, vector)[1]
        return by_matrix, by_vector, *pull(jnp.arange(1.0, matrix.shape[1] + 1))

    return derivatives


@ALL
def test_failed_solve_is_not_successful(name):
    assert _failed(name).result != lx.RESULTS.successful


@FEW
@OTHERS
@ALL
def test_failed_solve_raises_if_asked_to(name):
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"linear solve|non-finite|steps"):
        _solve(name, throw=True)(*_problem(name))


@FEW
@OTHERS
@ALL
def test_derivatives_of_a_failed_solve_are_nan(name):
    for derivative in eqx.filter_jit(_derivatives(name))(*_problem(name)):
        assert np.isnan(derivative).any()


@pytest.mark.default("QR-zero")
@OTHERS
@pytest.mark.parametrize(
    "name", ["QR-zero", "LU-singular", "CG-zero", "Neumann-divergent"]
)
def test_one_failed_member_of_a_batch_spoils_only_its_own_derivatives(name):
    matrix, vector = _problem(name)
    good = jnp.eye(SIZE) + 0.1  # positive definite, and the series converges
    matrices = jnp.stack([good, matrix, good])
    batched = jax.vmap(_derivatives(name), in_axes=(0, None))
    for first, failed, last in map(tuple, eqx.filter_jit(batched)(matrices, vector)):
        assert np.isnan(failed).any()
        assert np.isfinite(first).all()
        assert np.isfinite(last).all()


@pytest.mark.default("QR-tall")
@OTHERS
@pytest.mark.parametrize("name", ["LU-singular", "QR-tall", "CG-out-of-steps"])
def test_derivative_of_a_failed_solve_raises_if_asked_to(name):
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"linear solve|non-finite|steps"):
        jax.block_until_ready(eqx.filter_jit(_derivatives(name, True))(*_problem(name)))


_EASY = jnp.array([1.0, 0.0, 0.0])  # an eigenvector: CG needs one step for it


@pytest.mark.default("jvp")
@OTHERS
@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_derivative_that_fails_after_a_good_primal_raises_if_asked_to(mode):
    derivative = _hard_derivative(mode, throw=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"maximum number of solver steps"):
        jax.block_until_ready(derivative(_EASY, jnp.array([1.0, 1.0, 2.0])))


@pytest.mark.default("vjp")
@OTHERS
@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_derivative_that_fails_after_a_good_primal_is_nan_if_told_not_to_raise(mode):
    result, derivative = _hard_derivative(mode, throw=False)(
        _EASY, jnp.array([1.0, 1.0, 2.0])
    )
    assert result == lx.RESULTS.successful
    assert np.isnan(derivative).all()


class FailsTransposed(lx.AbstractLinearSolver):
    """Of full rank, by the dense pseudoinverse; never succeeds with the transpose."""

    def init(self, operator, options):
        return jnp.linalg.pinv(operator.as_matrix()), jnp.array(True)

    def compute(self, state, vector, options):
        pseudoinverse, works = state
        breakdown = lx.RESULTS.breakdown
        result = lx.RESULTS.where(works, lx.RESULTS.successful, breakdown)
        return pseudoinverse @ vector, result, {}

    def transpose(self, state, options):
        return (state[0].T, jnp.array(False)), options

    def conj(self, state, options):
        return (state[0].conj(), state[1]), options

    def assume_full_rank(self):
        return True


@pytest.mark.default("square")
@pytest.mark.ci("*")
@pytest.mark.parametrize("rows", [3, 4], ids=["square", "tall"])
def test_adjoint_solve_that_fails_is_told(rows):
    matrix = np.random.default_rng(0).standard_normal((rows, 3))

    def loss(vector, throw):
        operator = lx.MatrixLinearOperator(matrix)
        solver = FailsTransposed()
        return jnp.sum(pj.linear_solve(operator, vector, solver, throw=throw).value)

    gradient = eqx.filter_jit(jax.grad(loss))
    assert np.isfinite(loss(jnp.ones(rows), True))
    assert np.isnan(gradient(jnp.ones(rows), False)).all()
    with pytest.raises(eqx.EquinoxRuntimeError, match="broke down"):
        jax.block_until_ready(gradient(jnp.ones(rows), True))


JUDGED = {
    "LU": (pj.LU(), np.diag([1.0, 2.0, 4.0])),
    "QR": (pj.QR(), np.eye(4, 3)),
    # Entry 2 of a cotangent is of a direction that is dropped.
    "SVD": (pj.SVD(), np.diag([1.0, 2.0, 0.0])),
    "PivotedQR": (pj.PivotedQR(), np.diag([1.0, 2.0, 0.0])),
    "Normal(SVD)": (pj.Normal(pj.SVD(1e-8)), np.diag([1.0, 2.0, 0.0])),
}


@pytest.mark.default("LU", "SVD")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", JUDGED)
def test_nan_in_a_cotangent_is_nan_and_raises_nothing(name):
    solver, matrix = JUDGED[name]

    @eqx.filter_jit
    def pulled(cotangent):
        def solution(vector):
            return pj.linear_solve(matrix, vector, solver).value

        return jax.vjp(solution, jnp.ones(len(matrix)))[1](cotangent)[0]

    assert np.isfinite(pulled(jnp.ones(3))).all()
    assert np.isnan(pulled(jnp.array([1.0, 1.0, jnp.nan]))).any()


def _hard_derivative(mode, throw):
    """A solve of two steps for an eigenvector, too few for the (co)tangent."""
    solver = pj.CG(1e-9, 1e-9, max_steps=2)
    operator = lx.MatrixLinearOperator(
        jnp.diag(jnp.array([1.0, 2.0, 5.0])), cases.positive
    )

    def solve(vector):
        solution = pj.linear_solve(operator, vector, solver, throw=throw)
        return solution.value, solution.result

    @eqx.filter_jit
    def jvp(vector, direction):
        (_, result), (tangent, _) = eqx.filter_jvp(solve, (vector,), (direction,))
        return result, tangent

    @eqx.filter_jit
    def vjp(vector, direction):
        _, pull, result = eqx.filter_vjp(solve, vector, has_aux=True)
        return result, pull(direction)[0]

    return {"jvp": jvp, "vjp": vjp}[mode]


def test_qr_of_a_rank_three_tall_matrix_is_not_successful():
    matrix = cases.conditioned((8, 4), [1.0, 2.0, 3.0], float, 0)
    solution = pj.linear_solve(jnp.asarray(matrix), jnp.ones(8), pj.QR(), throw=False)
    assert solution.result == lx.RESULTS.singular


def test_out_of_steps_is_told_with_the_last_iterate():
    solution = _failed("CG-out-of-steps")
    assert solution.result == lx.RESULTS.max_steps_reached
    assert np.isfinite(solution.value).all()


def test_divergent_series_is_told_early():
    solution = _failed("Neumann-divergent")
    assert solution.result == lx.RESULTS.breakdown
    assert solution.stats["num_steps"] < solution.stats["max_steps"] == 200


def test_series_out_of_terms_is_told():
    solution = _failed("Neumann-out-of-terms")
    assert solution.result == lx.RESULTS.max_steps_reached
