"""`ImplicitAdjoint`: another solver for derivatives, and what has none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from test_unrolled import assert_close, gradients, positive, vector

import pseudojvp as pj


def system(rows, cols, rank=None):
    rng = np.random.default_rng(5)
    A = rng.standard_normal((rows, cols))
    if rank is not None:
        A = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))
    return jnp.asarray(A), vector(rows, rng)


def by_pinv(A, b):
    return jnp.linalg.pinv(A) @ b


CASES = {
    "square": (5, 5, pj.LU(), pj.GMRES(rtol=1e-13)),
    "tall": (7, 4, pj.QR(), pj.LSMR(rtol=1e-14, well_posed=True)),
    "wide": (4, 7, pj.QR(), pj.LSMR(rtol=1e-14, well_posed=True)),
    "wide-by-Krylov": (4, 7, pj.LSMR(rtol=1e-14, well_posed=True), pj.QR()),
    "any-rank": (7, 5, pj.LSMR(rtol=1e-14), pj.PivotedQR()),
    "square-any-rank": (5, 5, pj.PivotedQR(), pj.SVD()),
}


@pytest.mark.ci("*")
@pytest.mark.parametrize("name", CASES)
def test_derivatives_by_another_solver_are_exact_to_second_order(name):
    rows, cols, solver, other = CASES[name]
    adjoint = pj.ImplicitAdjoint(other)
    A, b = system(rows, cols)

    def ours(A, b):
        return pj.linear_solve(A, b, solver, adjoint=adjoint, throw=False).value

    def derivatives(function):
        loss = lambda A, b: jnp.sum(jnp.sin(function(A, b)))
        gradient = jax.grad(loss, (0, 1))
        second = lambda A, b: sum(jnp.sum(jnp.cos(g)) for g in gradient(A, b))
        return gradient(A, b), jax.grad(second, (0, 1))(A, b)

    expected = jax.jit(lambda: derivatives(by_pinv))()
    assert_close(jax.jit(lambda: derivatives(ours))(), expected, rtol=1e-7)


@pytest.mark.slow
def test_a_coarse_solver_of_derivatives_leaves_the_solution_exact():
    rng = np.random.default_rng(0)
    A, b = positive(20, rng), vector(20, rng)
    adjoint = pj.ImplicitAdjoint(pj.CG(rtol=1e-3))

    def ours(b):
        A_ = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
        return pj.linear_solve(A_, b, pj.Cholesky(), adjoint=adjoint, throw=False).value

    value, pull = jax.vjp(ours, b)
    exact = np.linalg.inv(A)
    assert_close(value, exact @ b, rtol=1e-12)
    (given,) = pull(b)
    residual = np.linalg.norm(b - A @ given) / np.linalg.norm(b)
    assert 1e-6 < residual < 1e-3


@pytest.mark.slow
def test_options_are_those_of_the_other_solver():
    rng = np.random.default_rng(0)
    A, b = positive(20, rng, condition=1e4), vector(20, rng)
    P = lx.MatrixLinearOperator(
        jnp.asarray(np.linalg.inv(A)), lx.positive_semidefinite_tag
    )
    one_step = pj.ImplicitAdjoint(
        pj.CG(rtol=0, atol=0, max_steps=2), {"preconditioner": P}
    )
    operator = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
    solve = lambda b: pj.linear_solve(operator, b, adjoint=one_step, throw=False).value
    assert_close(jax.vjp(solve, b)[1](b)[0], np.linalg.solve(A, b), rtol=1e-8)


@pytest.mark.slow
def test_a_failed_derivative_by_another_solver_is_nan():
    A, b = system(5, 5)
    adjoint = pj.ImplicitAdjoint(pj.GMRES(max_steps=1, rtol=1e-12))
    solve = lambda b: jnp.sum(
        pj.linear_solve(A, b, pj.LU(), adjoint=adjoint, throw=False).value
    )
    value, gradient = jax.value_and_grad(solve)(b)
    assert np.isfinite(value)
    assert np.isnan(gradient).all()


@pytest.mark.ci("*")
@pytest.mark.parametrize("front", ["lstsq", "sparse_solve", "sparse_lstsq", "invert"])
def test_each_front_takes_another_solver_of_derivatives(front):
    cols = 6 if front in ("sparse_solve", "invert") else 4
    A, b = system(6, cols)
    A = A + 4 * jnp.eye(6, cols)  # a condition number LSMR meets 1e-14 at
    adjoint = pj.ImplicitAdjoint(pj.LSMR(rtol=1e-14, well_posed=True))
    pattern = np.nonzero(np.ones(A.shape))

    def ours(A, b):
        if front == "lstsq":
            return pj.lstsq(A, b, solver=pj.QR(), adjoint=adjoint, throw=False)[0]
        if front == "invert":
            return pj.invert(A, pj.LU(), adjoint=adjoint, throw=False) @ b
        sparse = pj.SparseLinearOperator((A.ravel(), *pattern, A.shape))
        if front == "sparse_solve":
            return pj.sparse_solve(sparse, b, adjoint=adjoint, throw=False)
        solver = pj.LSMR(rtol=1e-14, well_posed=True)
        return pj.sparse_lstsq(sparse, b, solver, adjoint=adjoint, throw=False)

    given, expected = jax.jit(
        lambda A, b: (gradients(ours, A, b), gradients(by_pinv, A, b))
    )(A, b)
    assert_close(given, expected, rtol=1e-8)


def krylov_stats(b, name, **settings):
    A = jnp.diag(jnp.arange(1.0, 7))
    operator = lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag)
    solver = pj.CG(max_steps=6, **settings)
    return pj.linear_solve(operator, b, solver, throw=False).stats[name]


@pytest.mark.default("residual_norms")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["residual_norms", "lanczos"])
def test_a_cotangent_of_statistics_is_an_error(name):
    settings = {"history": True} if name == "residual_norms" else {"lanczos": True}

    def first(b):
        return jax.tree.leaves(krylov_stats(b, name, **settings))[0][0]

    with pytest.raises(Exception, match=rf'through `stats\["{name}"\]`'):
        jax.block_until_ready(jax.grad(first)(jnp.ones(6)))


@pytest.mark.slow  # a second
def test_statistics_are_carried_through_a_gradient():
    def loss(b):
        operator = lx.MatrixLinearOperator(
            jnp.diag(jnp.arange(1.0, 7)), lx.positive_semidefinite_tag
        )
        solver = pj.CG(max_steps=6, history=True, lanczos=True)
        solution = pj.linear_solve(operator, b, solver, throw=False)
        return jnp.sum(solution.value), solution

    b = jnp.ones(6)
    gradient, solution = jax.jit(jax.grad(loss, has_aux=True))(b)
    np.testing.assert_allclose(gradient, 1 / np.arange(1, 7), rtol=1e-9)
    assert np.isfinite(solution.stats["residual_norms"][0])
    # A branch hands on a cotangent of zeros for them.
    branches = lambda b: jax.lax.cond(b[0] > 0, loss, loss, b)[0]
    np.testing.assert_allclose(jax.jit(jax.grad(branches))(b), gradient, rtol=1e-12)
    tangent = jax.jvp(lambda b: krylov_stats(b, "residual_norms", history=True), [b], [b])
    assert np.isnan(tangent[1]).all()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("adjoint", "match"),
    [
        (optx.ImplicitAdjoint(), "Pass `ImplicitAdjoint"),
        (pj.ImplicitAdjoint, "Pass `ImplicitAdjoint"),
        (None, "Pass `ImplicitAdjoint"),
    ],
)
def test_what_is_no_adjoint_is_an_error(adjoint, match):
    A, b = system(3, 3)
    fronts = [pj.linear_solve, pj.lstsq, pj.sparse_solve, pj.sparse_lstsq]
    for front in fronts:
        with pytest.raises(TypeError, match=match):
            front(A, b, adjoint=adjoint)
    with pytest.raises(TypeError, match=match):
        pj.invert(A, adjoint=adjoint)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: pj.ImplicitAdjoint(options={"preconditioner": 1}), "without a solver"),
        (lambda: pj.ImplicitAdjoint(pj.CG(), {"y0": jnp.ones(3)}), "first guess"),
        (lambda: pj.UnrolledAdjoint(0), "at least 1"),
    ],
)
def test_bad_settings_are_an_error(make, match):
    with pytest.raises(ValueError, match=match):
        make()


STEPS = {"rtol": 0, "atol": 0, "max_steps": 3}


@pytest.mark.parametrize(
    ("solver", "match"),
    [
        (pj.LU(), "`LU`, which is no iteration"),
        (pj.QR(), "`QR`, which is no iteration"),
        (pj.AutoLinearSolver(well_posed=True), "which is no iteration"),
        (pj.GMRES(**STEPS), "which is no iteration"),
        (pj.CG(), "with a tolerance"),
        (pj.LSMR(rtol=1e-3, max_steps=5), "with a tolerance"),
        (pj.CG(**STEPS, well_posed=False), "runs three times"),
        (pj.MINRES(**STEPS, lanczos=True), "Leave them out"),
        (pj.LSMR(**STEPS, conlim=1e8), "conlim"),
        (pj.Neumann(5, rtol=1e-3), "number of terms"),
    ],
)
def test_a_solver_that_cannot_be_unrolled_is_an_error(solver, match):
    operator = lx.MatrixLinearOperator(jnp.eye(3), lx.positive_semidefinite_tag)
    with pytest.raises(ValueError, match=match):
        pj.linear_solve(operator, jnp.ones(3), solver, adjoint=pj.UnrolledAdjoint())


def test_a_state_of_an_unrolled_solver_is_an_error():
    operator = lx.MatrixLinearOperator(jnp.eye(3), lx.positive_semidefinite_tag)
    solver = pj.CG(**STEPS)
    state = solver.init(operator, {})
    with pytest.raises(ValueError, match="which is a constant"):
        pj.linear_solve(
            operator, jnp.ones(3), solver, state=state, adjoint=pj.UnrolledAdjoint()
        )


def test_solvers_for_different_ranks_are_an_error():
    A, b = system(3, 5)
    adjoint = pj.ImplicitAdjoint(pj.QR())
    with pytest.raises(ValueError, match="two solvers for the same rank"):
        pj.linear_solve(A, b, pj.PivotedQR(), adjoint=adjoint)


def test_an_adjoint_is_a_pytree_that_goes_through_jit():
    A, b = system(4, 4)
    solve = eqx.filter_jit(
        lambda A, b, adjoint: pj.linear_solve(A, b, adjoint=adjoint).value
    )
    adjoint = pj.ImplicitAdjoint(pj.GMRES(rtol=jnp.array(1e-8)))
    assert_close(solve(A, b, adjoint), np.linalg.solve(A, b))
