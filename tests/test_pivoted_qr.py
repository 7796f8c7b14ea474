"""`PivotedQR`: the rank at run time, the meaning of rcond, its state and its cost."""

import collections
import functools as ft
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SHAPES = {"tall": (7, 4), "wide": (4, 7), "square": (5, 5)}
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
REAL_AND_COMPLEX = pytest.mark.parametrize("dtype", [float, complex])


def _random(rng, dtype, *shape):
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if dtype is complex else values


def _with_values(values, rows, cols, dtype=float, seed=0):
    rng, short = np.random.default_rng(seed), min(rows, cols)
    left, _ = np.linalg.qr(_random(rng, dtype, rows, short))
    right, _ = np.linalg.qr(_random(rng, dtype, cols, short))
    return left * np.asarray(values) @ right.conj().T


def _of_rank(rank, rows, cols, dtype=float):
    short = min(rows, cols)
    values = np.where(np.arange(short) < rank, np.linspace(2, 1, short), 0)
    return _with_values(values, rows, cols, dtype, seed=rank)


def _solve(matrix, vector, rcond=None):
    solution = pj.linear_solve(matrix, vector, pj.PivotedQR(rcond), throw=False)
    return (
        solution.value,
        solution.stats["rank"],
        solution.result == lx.RESULTS.successful,
    )


@pytest.mark.default("complex-wide")
@pytest.mark.ci("*")
@EVERY_SHAPE
@REAL_AND_COMPLEX
def test_every_rank_is_found_at_run_time_and_solved(shape, dtype):
    ranks = np.arange(min(shape) + 1)
    matrices = np.stack([_of_rank(rank, *shape, dtype) for rank in ranks])
    vector = _random(np.random.default_rng(1), dtype, shape[0])
    solve = jax.jit(jax.vmap(_solve, in_axes=(0, None)))
    value, found, successful = solve(matrices, vector)
    assert successful.all()
    np.testing.assert_array_equal(found, ranks)
    truth = np.stack(
        [np.linalg.pinv(matrix, rcond=1e-10) @ vector for matrix in matrices]
    )
    np.testing.assert_allclose(value, truth, atol=1e-12)


_rank_up_to = jax.jit(
    lambda matrix, rcond: _solve(matrix, jnp.zeros(len(matrix)), rcond)[1]
)


def _ranks(matrix, *rconds):
    return [int(_rank_up_to(matrix, rcond)) for rcond in rconds]


@pytest.mark.default("wide")
@pytest.mark.ci("*")
@EVERY_SHAPE
def test_rcond_is_relative_to_the_largest_singular_value_as_in_numpy(shape):
    short = min(shape)
    matrix = 1e5 * _with_values(np.geomspace(1, 10.0 ** (-3 * short + 3), short), *shape)
    # In the middle of each gap, a factor of thirty from the singular values.
    rconds = np.geomspace(10**-1.5, 10.0 ** (-3 * short + 4.5), short - 1)
    truth = [np.linalg.matrix_rank(matrix, rtol=rcond) for rcond in rconds]
    assert truth == list(range(1, short))
    assert _ranks(matrix, *map(float, rconds)) == truth


def test_default_rcond_is_eps_times_the_longer_side():
    eps = np.finfo(float).eps
    matrix = np.eye(40, 3) * [1, 1, 40 * eps]
    above, below = matrix * [1, 1, 1.5], matrix * [1, 1, 0.5]
    assert [_ranks(above, None), _ranks(below, None)] == [[3], [2]]


def test_negative_rcond_is_eps():
    eps = np.finfo(float).eps
    matrix = np.eye(40, 3) * [1, 1, eps]
    above, below = matrix * [1, 1, 1.5], matrix * [1, 1, 0.5]
    assert [_ranks(above, -1.0), _ranks(below, -1.0)] == [[3], [2]]


def test_rcond_of_zero_keeps_every_direction_that_is_not_zero():
    matrix = np.eye(40, 3) * [1.0, 1e-300, 0.0]
    assert _ranks(matrix, 0.0) == [2]


@ft.cache
def _mapped_states(shape, dtype):
    """A of rank two, some b and c, conj(A)† b, Aᵀ† c and the rank it was solved with."""

    @jax.jit
    def solve(matrix, vector, transposed_vector):
        solver = pj.PivotedQR()
        state = solver.init(lx.MatrixLinearOperator(matrix), {})
        conjugated, options = solver.conj(state, {})
        of_conjugate, _, _ = solver.compute(conjugated, vector, options)
        transposed, options = solver.transpose(state, {})
        of_transpose, _, stats = solver.compute(transposed, transposed_vector, options)
        return of_conjugate, of_transpose, stats["rank"]

    rng = np.random.default_rng(1)
    vectors = (_random(rng, dtype, size) for size in shape)
    given = _of_rank(2, *shape, dtype), *vectors
    return *given, *solve(*given)


@pytest.mark.default("complex-tall")
@pytest.mark.ci("*")
@EVERY_SHAPE
@REAL_AND_COMPLEX
def test_transposed_state_solves_the_transposed_system(shape, dtype):
    matrix, _, vector, _, value, rank = _mapped_states(shape, dtype)
    truth = np.linalg.pinv(matrix.T, rcond=1e-10) @ vector
    np.testing.assert_allclose(value, truth, rtol=1e-10)
    assert rank == 2


@pytest.mark.default("tall")
@pytest.mark.ci("*")
@EVERY_SHAPE
def test_conjugated_state_solves_the_conjugated_system(shape):
    matrix, vector, _, value, _, _ = _mapped_states(shape, complex)
    truth = np.linalg.pinv(matrix.conj(), rcond=1e-10) @ vector
    np.testing.assert_allclose(value, truth, rtol=1e-10)


@pytest.mark.slow  # by default in `test_auto.py`
@EVERY_SHAPE
def test_automatic_solver_tells_the_rank(shape):
    matrix = _of_rank(3, *shape)
    solver = pj.AutoLinearSolver(well_posed=False)
    solution = pj.linear_solve(matrix, np.ones(shape[0]), solver, throw=False)
    assert solution.stats["rank"] == 3


def _kahan(size, c=0.3):
    """Upper triangular; its last pivot is far larger than its least singular value."""
    s = np.sqrt(1 - c * c)
    upper = np.eye(size) - c * np.triu(np.ones((size, size)), 1)
    # The usual perturbation, so that rounding does not permute the columns.
    jitter = 1 + 1e3 * np.finfo(float).eps * np.arange(size, 0, -1)
    return s ** np.arange(size)[:, None] * upper * jitter


@pytest.mark.default("120")
@pytest.mark.ci("*")
@pytest.mark.parametrize("size", [90, 120, 150])
def test_kahan_matrix_is_solved_or_told(size):
    matrix = _kahan(size)
    vector = np.random.default_rng(0).standard_normal(size)
    value, rank, successful = _solve(matrix, vector)
    sigma = np.append(np.linalg.svd(matrix, compute_uv=False), 0)
    cutoff = 10 * size * np.finfo(float).eps * sigma[0]
    # Within a factor of ten of the cutoff, and as small a residual as that allows.
    sound = sigma[rank - 1] > cutoff / 100 and sigma[rank] <= cutoff
    residual = np.linalg.norm(matrix @ value - vector)
    small = residual <= cutoff * np.linalg.norm(value)
    assert not successful or (sound and small)


def test_kahan_matrix_of_hidden_rank_is_told_and_svd_solves_it():
    matrix = _kahan(120)
    assert np.linalg.matrix_rank(matrix) < 120
    vector = matrix @ np.ones(120)
    _, rank, successful = _solve(matrix, vector)
    assert rank == 120  # each pivot is above the cutoff
    assert not successful
    solution = pj.linear_solve(matrix, vector, pj.SVD(), throw=False)
    assert np.linalg.norm(matrix @ solution.value - vector) <= 1e-12


def test_message_names_the_rank_that_the_pivots_do_not_reveal():
    matrix = _kahan(120)
    with pytest.raises(eqx.EquinoxRuntimeError, match="found rank 120 of 120, but its"):
        jax.block_until_ready(pj.linear_solve(matrix, np.ones(120), pj.PivotedQR()).value)


def _abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float64)


def _loss(matrix, vector):
    return jnp.sum(_solve(matrix, vector)[0] ** 2)


@ft.cache
def hlo():
    """The compiled text of a 2000 x 50 solve and its gradient."""
    program = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1)))
    return program.lower(_abstract(2000, 50), _abstract(2000)).compile().as_text()


@pytest.mark.optimised
@pytest.mark.slow  # a second
def test_only_the_triangular_factor_is_pivoted():
    target = 'custom_call_target="lapack_dgeqp3'
    (call,) = [line for line in hlo().splitlines() if target in line]
    outputs = call.split("custom-call(")[0]
    assert "f64[50,50]" in outputs
    assert "2000" not in outputs


@pytest.mark.optimised
@pytest.mark.slow  # a second
def test_no_singular_value_decomposition_is_compiled():
    assert "gesdd" not in hlo()
    assert "gesvd" not in hlo()


@pytest.mark.optimised
def test_a_gradient_factorises_once():
    factorisations = re.findall(r'custom_call_target="lapack_dgeqrf', hlo())
    assert len(factorisations) == 2  # A, and the rows of the pivoted R


def _primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)


@pytest.mark.default("wide")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", [(8, 4), (4, 8)], ids=["tall", "wide"])
def test_factors_are_never_differentiated(shape):
    arguments = _abstract(*shape), _abstract(shape[0])
    gradient = jax.grad(_loss, argnums=(0, 1))
    primal, derived = (
        collections.Counter(_primitives(jax.make_jaxpr(f)(*arguments).jaxpr))
        for f in (_loss, gradient)
    )
    # A; R with pivoting and the rows of what that leaves. A derivative would be more of
    # them, or the SVD or the inverse of a factor.
    assert primal["geqrf"] == derived["geqrf"] == 1
    assert primal["qr"] == derived["qr"] == 2
    names = ("svd", "eigh", "lu", "householder_product", "geqp3")
    assert not any(derived[name] for name in names)


def test_gradient_of_a_deficient_system_is_the_adjoint_solve():
    matrix = _of_rank(2, 6, 4)
    vector = np.arange(1.0, 7)
    gradient = jax.jit(jax.grad(_loss, argnums=1))(matrix, vector)
    inverse = np.linalg.pinv(matrix, rcond=1e-10)
    truth = 2 * inverse.T @ (inverse @ vector)
    np.testing.assert_allclose(gradient, truth, rtol=1e-10)


@pytest.mark.parametrize("shape", [(17, 17), (40, 20)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex128])
def test_zeros_of_any_size_have_the_rank_zero(shape, dtype):
    """More than 16 of the least power of two were lost in the sums of the estimate."""
    a, b = jnp.zeros(shape, dtype), jnp.ones(shape[0], dtype)
    solution = pj.linear_solve(a, b, pj.PivotedQR(), throw=False)
    assert bool(solution.result == lx.RESULTS.successful)
    assert int(solution.stats["rank"]) == 0
    assert bool(jnp.all(solution.value == 0))
