"""Failures found in other libraries, one by one: here each is a test."""

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from checks import jit
from jax.sharding import Mesh, PartitionSpec

import pseudojvp as pj


OTHERS = pytest.mark.ci("*")  # a program each
SUCCESSFUL = lx.RESULTS.successful


def _rng(seed=0):
    return np.random.default_rng(seed)


def _of_condition(condition, rows, cols, seed=0):
    rng, short = _rng(seed), min(rows, cols)
    left, _ = np.linalg.qr(rng.standard_normal((rows, short)))
    right, _ = np.linalg.qr(rng.standard_normal((cols, short)))
    return left * np.geomspace(1, 1 / condition, short) @ right.T


# 1. lineax.QR and lineax.LU: a rank-deficient matrix gives 1e15 and `successful`.


@pytest.mark.default("tall")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", [(8, 4), (4, 8)], ids=["tall", "wide"])
def test_qr_of_rank_three_of_four_is_singular_and_not_1e15(shape):
    rng = _rng()
    matrix = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    solution = pj.linear_solve(matrix, np.ones(shape[0]), pj.QR(), throw=False)
    assert solution.result == lx.RESULTS.singular


@pytest.mark.parametrize(
    "solver", [pj.LU(), pj.AutoLinearSolver(True)], ids=["LU", "Auto(True)"]
)
def test_lu_beyond_condition_1e15_is_singular(solver):
    matrix = _of_condition(1e16, 6, 6)
    solution = pj.linear_solve(matrix, np.ones(6), solver, throw=False)
    assert solution.result == lx.RESULTS.singular


def test_rank_three_of_four_has_its_pseudoinverse_solution_by_pivoted_qr():
    rng = _rng()
    matrix = rng.standard_normal((8, 3)) @ rng.standard_normal((3, 4))
    vector = rng.standard_normal(8)
    solver = pj.AutoLinearSolver(False)
    solution = pj.linear_solve(matrix, vector, solver, throw=False)
    truth = np.linalg.pinv(matrix, rcond=1e-10) @ vector
    np.testing.assert_allclose(solution.value, truth, rtol=1e-10)


# 2. lineax: the gradient of a solve with `throw=False` raises.


def _throwless(solver, tags):
    def solve(vector):
        operator = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 2, 3])), tags)
        return pj.linear_solve(operator, vector, solver, throw=False).value

    return solve


_ONE_STEP = pj.CG(1e-10, 1e-10, max_steps=1)  # enough for an eigenvector alone


@pytest.mark.slow  # as in `test_failures.py`
def test_gradient_that_fails_after_a_good_solve_is_nan_and_does_not_raise():
    solve = _throwless(_ONE_STEP, lx.positive_semidefinite_tag)
    eigenvector = jnp.array([1.0, 0, 0])
    np.testing.assert_allclose(solve(eigenvector), eigenvector)
    gradient = jit(jax.grad(lambda b: jnp.sum(solve(b))))(eigenvector)
    assert np.isnan(gradient).all()


@pytest.mark.slow  # as in `test_failures.py`
def test_tangent_that_fails_after_a_good_solve_is_nan_and_does_not_raise():
    solve = _throwless(_ONE_STEP, lx.positive_semidefinite_tag)
    push = jit(lambda b, t_b: jax.jvp(solve, (b,), (t_b,)))
    _, tangent = push(jnp.array([1.0, 0, 0]), jnp.ones(3))
    assert np.isnan(tangent).all()


def test_trust_region_solver_with_our_full_rank_solver_does_not_crash():
    residuals = lambda y, args: jnp.stack([y[0] - 3, 2 * (y[1] + 1), y[0] * y[1] + 3])
    solver = optx.LevenbergMarquardt(1e-10, 1e-10, linear_solver=pj.QR())
    solution = optx.least_squares(residuals, solver, jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(solution.value, [3.0, -1.0], rtol=1e-8)


# 3. lineax: complex gradients of Normal(LU()), for `conj` flips the transpose flag.


@pytest.mark.default("tall-lineax.LU", "wide-LU")
@OTHERS
@pytest.mark.parametrize("inner", [pj.LU(), lx.LU()], ids=["LU", "lineax.LU"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)], ids=["tall", "wide"])
def test_complex_gradient_of_normal_lu_is_right(inner, shape):
    rng = _rng()
    draw = lambda *size: rng.standard_normal(size) + 1j * rng.standard_normal(size)
    matrix, vector, weights = draw(*shape), draw(shape[0]), draw(shape[1])
    solve = lambda b: pj.linear_solve(matrix, b, pj.Normal(inner), throw=False).value
    gradient = jit(jax.grad(lambda b: jnp.sum(weights * solve(b)).real))(vector)
    # d Re(w^T A†b) = Re(w^T A† db): JAX returns the transpose without conjugate.
    truth = weights @ np.linalg.pinv(matrix)
    np.testing.assert_allclose(gradient, truth, rtol=1e-10)


# 4. lineax: the gradient through an inverse operator by QR has no rule for geqrf.


@pytest.mark.slow  # a second
def test_gradient_through_an_inverse_by_qr_is_right():
    rng = _rng()
    matrix, vector = rng.standard_normal((6, 3)), rng.standard_normal(6)
    solve = lambda a: jnp.sum(pj.invert(a, pj.QR()).mv(jnp.asarray(vector)))
    gradient = jit(jax.grad(solve))(matrix)
    step, truth = 1e-6, np.zeros_like(matrix)
    for index in np.ndindex(*matrix.shape):
        moved = np.zeros_like(matrix)
        moved[index] = step
        plus, minus = (np.linalg.pinv(matrix + s * moved) @ vector for s in (1, -1))
        truth[index] = np.sum(plus - minus) / (2 * step)
    # Central differences with a step of 1e-6: rounding of 1e-16 / 1e-6.
    np.testing.assert_allclose(gradient, truth, rtol=1e-6, atol=1e-8)


# 5. lineax.BiCGStab breaks down in float32 on negative-definite input; lineax.GMRES stops
# on the residual after its preconditioner.


def test_bicgstab_in_single_precision_is_right_or_says_so():
    def solve(matrix, vector):
        solver = lx.BiCGStab(1e-4, 1e-4)
        solution = pj.linear_solve(matrix, vector, solver, throw=False)
        return solution.value, solution.result == SUCCESSFUL

    rng = _rng()
    left = rng.standard_normal((50, 5, 5)).astype(np.float32)
    matrices = -(left @ left.swapaxes(1, 2) + np.eye(5, dtype=np.float32))
    vectors = rng.standard_normal((50, 5)).astype(np.float32)
    value, successful = jit(jax.vmap(solve))(matrices, vectors)
    residual = np.einsum("kij,kj->ki", matrices, value) - vectors
    # Ten times the tolerance: what the recurrence loses to rounding in float32.
    allowed = 10 * (1e-4 + 1e-4 * np.abs(vectors))
    assert np.all((np.abs(residual) <= allowed).all(axis=1) | ~np.asarray(successful))


def test_gmres_is_not_successful_on_a_preconditioned_residual_alone():
    matrix = np.diag([1.0, 1e-3, 1e-6, 1.0]) + 1e-7 * np.ones((4, 4))
    vector = np.array([1.0, 2.0, 3.0, 4.0])
    tiny = lx.MatrixLinearOperator(1e-9 * jnp.eye(4))
    solution = pj.linear_solve(
        matrix,
        vector,
        lx.GMRES(1e-6, 1e-6),
        options={"preconditioner": tiny},
        throw=False,
    )
    met = np.all(np.abs(matrix @ solution.value - vector) <= 1e-5 * (1 + np.abs(vector)))
    assert met or solution.result != SUCCESSFUL


# 6. lineax: vector and operator inside `shard_map` have different structures.


def test_solve_inside_shard_map_is_accepted():
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    matrix, vector = jnp.asarray(_of_condition(3, 4, 4)), jnp.arange(4.0)
    solve = jax.shard_map(
        lambda a, b: pj.linear_solve(a, b, pj.LU(), throw=False).value,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("x")),
        out_specs=PartitionSpec("x"),
        check_vma=False,
    )
    truth = np.linalg.solve(matrix, vector)
    np.testing.assert_allclose(jit(solve)(matrix, vector), truth, rtol=1e-12)


# 7. lineax: a misspelt option is ignored.


@pytest.mark.parametrize(
    "solver", [pj.CG(1e-8, 1e-8), lx.CG(1e-8, 1e-8), pj.Normal(pj.CG(1e-8, 1e-8))]
)
def test_misspelt_option_is_an_error(solver):
    operator = lx.MatrixLinearOperator(jnp.eye(2), lx.positive_semidefinite_tag)
    with pytest.raises(ValueError, match="preconditoner"):
        pj.linear_solve(
            operator, jnp.ones(2), solver, options={"preconditoner": operator}
        )


# 8. lineax.AutoLinearSolver drops the statistics of the solver that it picked.


def test_automatic_solver_passes_on_the_rank():
    rng = _rng()
    matrix = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 4))
    solver = pj.AutoLinearSolver(False)
    solution = pj.linear_solve(matrix, np.ones(6), solver, throw=False)
    assert solution.stats["rank"] == 2


def test_automatic_solver_passes_on_the_condition():
    solver = pj.AutoLinearSolver(True)
    solution = pj.linear_solve(jnp.eye(3), jnp.ones(3), solver, throw=False)
    estimate = solution.stats["reciprocal_condition"]
    np.testing.assert_allclose(estimate, 1 / np.sqrt(3))  # 1 / (‖I‖ ‖I‖_F)


# 9. Sparse gradients wrong because the backward pass solved with A and not A^T.


def _dense(data, rows, cols):
    return lx.MatrixLinearOperator(jnp.zeros((5, 5)).at[rows, cols].set(data))


def _sparse(data, rows, cols):
    return lx.FunctionLinearOperator(
        lambda vector: jnp.zeros(5).at[rows].add(data * vector[cols]),
        jax.ShapeDtypeStruct((5,), float),
    )


@pytest.mark.ci("sparse")
@OTHERS
@pytest.mark.parametrize("make_operator", [_dense, _sparse], ids=["dense", "sparse"])
def test_gradient_of_a_nonsymmetric_krylov_solve_is_with_the_transpose(make_operator):
    rng = _rng()
    matrix = np.where(rng.random((5, 5)) < 0.5, rng.standard_normal((5, 5)), 0)
    matrix += 4 * np.eye(5)
    indices = np.nonzero(matrix)
    vector, weights = rng.standard_normal((2, 5))

    def loss(data, vector):
        operator, solver = make_operator(data, *indices), lx.GMRES(1e-12, 1e-12)
        return weights @ pj.linear_solve(operator, vector, solver, throw=False).value

    gradient, by_vector = jit(jax.grad(loss, argnums=(0, 1)))(matrix[indices], vector)
    solution = np.linalg.solve(matrix, vector)
    dual = np.linalg.solve(matrix.T, weights)
    np.testing.assert_allclose(by_vector, dual, rtol=1e-9)
    truth = -np.outer(dual, solution)[indices]
    np.testing.assert_allclose(gradient, truth, rtol=1e-9, atol=1e-12)


# 10. A Neumann series that diverges runs to the end and returns NaN.


def test_divergent_neumann_series_stops_early_and_says_so():
    solution = pj.linear_solve(
        jnp.diag(jnp.array([0.5, 4.0])), jnp.ones(2), pj.Neumann(1000), throw=False
    )
    assert solution.result == lx.RESULTS.breakdown
    assert solution.stats["num_steps"] < 30
    with pytest.raises(eqx.EquinoxRuntimeError, match="diverges"):
        pj.linear_solve(jnp.diag(jnp.array([0.5, 4.0])), jnp.ones(2), pj.Neumann(1000))


# 11. jnp.linalg.lstsq: the tangent at eye(3) is NaN.


@pytest.mark.default("pivoted_qr")
@OTHERS
@pytest.mark.parametrize("name", cases.LSTSQ)
def test_lstsq_has_its_tangent_at_the_identity(name):
    t_matrix, vector = _rng().standard_normal((3, 3)), jnp.array([1.0, 2, 3])
    solve = lambda a: pj.lstsq(a, vector, solver=cases.LSTSQ[name])[0]
    push = jit(lambda a, t_a: jax.jvp(solve, (a,), (t_a,)))
    _, tangent = push(jnp.eye(3), t_matrix)
    np.testing.assert_allclose(tangent, -t_matrix @ vector, rtol=1e-12)


# 12. lineax.BiCGStab makes NaN of b = 0, and so of a cotangent that is zero.


@pytest.mark.parametrize("normal", [False, True])
def test_bicgstab_of_lineax_has_the_solution_zero_of_zero(normal):
    matrix = jnp.asarray(_of_condition(2.0, 4, 4))
    solver = lx.BiCGStab(1e-12, 1e-12)
    solver = pj.Normal(solver) if normal else solver

    @jit
    def masked(matrix, vector):
        loss = lambda a, b: 0.0 * jnp.sum(pj.linear_solve(a, b, solver).value)
        return jax.value_and_grad(loss, (0, 1))(matrix, vector)

    for vector in (jnp.zeros(4), jnp.ones(4)):
        for leaf in jax.tree.leaves(masked(matrix, vector)):
            np.testing.assert_array_equal(leaf, 0)
