"""What `CholeskyQR` promises: accuracy up to its limit, no answer beyond it, its cost."""

import jax
import jax.numpy as jnp
import lineax as lx
import mpmath
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


SOLVER = pj.CholeskyQR()


def _orthonormal(rng, rows, cols):
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def _matrix(rng, rows, cols, values):
    rank = len(values)
    right = _orthonormal(rng, cols, rank).T
    return (_orthonormal(rng, rows, rank) * values) @ right


def _solve(matrix, vector):
    solution = pj.linear_solve(matrix, vector, SOLVER, throw=False)
    successful = solution.result == lx.RESULTS.successful
    return solution.value, successful, solution.stats["reciprocal_condition"]


_solve_each = jit(jax.vmap(_solve))


def _error(matrix, vector, solution):
    """The relative error, beside A†b from the normal equations at 50 digits."""
    with mpmath.workdps(50):
        a, b = mpmath.matrix(matrix.tolist()), mpmath.matrix(vector.tolist())
        if a.rows > a.cols:
            true = (a.T * a) ** -1 * (a.T * b)
        else:
            true = a.T * ((a * a.T) ** -1 * b)
        true = np.array([float(entry) for entry in true])
    return np.linalg.norm(np.asarray(solution) - true) / np.linalg.norm(true)


_CONDITION_NUMBERS = [
    *[(np.float64, condition) for condition in (2, 1e1, 1e3, 1e5, 1e6, 1e7)],
    *[(np.float32, condition) for condition in (2, 1e1, 1e2, 5e2)],
]


@pytest.mark.default("float64-*-wide")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", [(8, 4), (4, 8)], ids=["tall", "wide"])
@pytest.mark.parametrize(("dtype", "condition"), _CONDITION_NUMBERS)
def test_error_of_consistent_systems_is_that_of_a_qr_factorisation(
    dtype, condition, shape
):
    rng = np.random.default_rng(0)
    matrices, vectors = [], []
    for values in (np.geomspace(1, 1 / condition, 4), [1, 1, 1, 1 / condition]):
        matrix = _matrix(rng, *shape, values).astype(dtype)
        matrices.append(matrix)
        in_rows = matrix.T.astype(float) @ rng.standard_normal(shape[0])
        vectors.append((matrix.astype(float) @ in_rows).astype(dtype))
    solutions, successful, _ = _solve_each(np.stack(matrices), np.stack(vectors))
    assert successful.all()
    for matrix, vector, solution in zip(matrices, vectors, solutions, strict=True):
        error = _error(matrix, vector, solution)
        assert error <= 4 * condition * np.finfo(dtype).eps


@pytest.mark.default("float64-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(("dtype", "largest"), [(np.float64, 1e8), (np.float32, 1e4)])
def test_no_singular_matrix_is_called_regular(dtype, largest):
    rng = np.random.default_rng(1)
    matrices = []
    for i in range(400):
        values = np.geomspace(1, largest ** -rng.uniform(0, 1), 7)
        values = values if i % 2 else np.ones(7)
        units = 10.0 ** rng.uniform(-3, 3, 8)
        matrices.append((_matrix(rng, 20, 8, values) * units).astype(dtype))
    vectors = rng.standard_normal((400, 20)).astype(dtype)
    _, successful, _ = _solve_each(np.stack(matrices), vectors)
    assert not successful.any()


def test_estimate_is_that_of_the_matrix_with_columns_of_norm_one():
    rng = np.random.default_rng(2)
    matrices = [
        _matrix(rng, 40, 12, np.geomspace(1, 10 ** -rng.uniform(0, 6), 12))
        * 10.0 ** rng.uniform(-30, 30, 12)
        for _ in range(200)
    ]
    matrices = np.stack(matrices)
    _, _, rcond = _solve_each(matrices, np.ones((200, 40)))
    scaled = matrices / np.linalg.norm(matrices, axis=1, keepdims=True)
    ratios = rcond * np.linalg.cond(scaled)
    assert ratios.min() > 0.7
    assert ratios.max() < 6


def test_beyond_the_limit_it_refuses():
    rng = np.random.default_rng(3)
    matrix = _matrix(rng, 9, 4, [1, 1, 1, 1e-9])
    _, successful, rcond = _solve(matrix, np.ones(9))
    assert not successful
    assert rcond <= 4 * np.finfo(float).eps ** 0.5


@pytest.mark.default("1000000.0")
@pytest.mark.ci("*")
@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_minimum_residual_is_orthogonal_to_the_columns(condition):
    rng = np.random.default_rng(4)
    matrix, vector = _matrix(rng, 30, 5, [1, 1, 1, 1, 1 / condition]), np.ones(30)
    _, residual = jit(lambda a, b: pj.project(a, b, SOLVER, throw=False))(matrix, vector)
    columns, _ = np.linalg.qr(matrix)
    true = vector - columns @ (columns.T @ vector)
    # Both are as far from the truth as A is from being known: eps κ.
    atol = 10 * condition * np.finfo(float).eps
    np.testing.assert_allclose(residual, true, atol=atol)


@pytest.mark.default("wide")
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])
def test_transposed_and_conjugated_states_solve_those_systems(shape):
    rng = np.random.default_rng(5)
    a, b, transposed_b = (
        rng.standard_normal(s) + 1j * rng.standard_normal(s)
        for s in (shape, shape[0], shape[1])
    )

    @jit
    def solve(a, b, transposed_b):
        state = SOLVER.init(lx.MatrixLinearOperator(a), {})
        transposed, _ = SOLVER.transpose(state, {})
        conjugated, _ = SOLVER.conj(state, {})
        return (
            SOLVER.compute(transposed, transposed_b, {})[0],
            SOLVER.compute(conjugated, b, {})[0],
        )

    of_transpose, of_conjugate = solve(a, b, transposed_b)
    np.testing.assert_allclose(of_transpose, np.linalg.pinv(a.T) @ transposed_b)
    np.testing.assert_allclose(of_conjugate, np.linalg.pinv(a.conj()) @ b)


def test_entries_of_any_size_change_nothing():
    rng = np.random.default_rng(6)
    matrix, vector = rng.standard_normal((9, 4)), rng.standard_normal(9)
    sizes = np.array([1e-300, 1e-150, 1.0, 1e150, 1e300])
    matrices = sizes[:, None, None] * matrix
    solutions, successful, _ = _solve_each(matrices, np.stack([vector] * 5))
    assert successful.all()
    true = np.linalg.lstsq(matrix, vector)[0]
    np.testing.assert_allclose(solutions * sizes[:, None], np.stack([true] * 5))


def _memory(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, float) for shape in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.optimised
@pytest.mark.ci("*")
@pytest.mark.parametrize("shape", [(2000, 100), (100, 2000)], ids=["tall", "wide"])
def test_matrix_is_not_copied_for_each_vector(shape):
    def solve(matrix, vectors):
        solve_one = lambda v: pj.linear_solve(matrix, v, SOLVER, throw=False).value
        return jax.vmap(solve_one)(vectors)

    def gradient(matrix, vectors):
        loss = lambda *arguments: jnp.sum(solve(*arguments) ** 2)
        return jax.grad(loss, argnums=(0, 1))(matrix, vectors)

    # A itself and a few blocks of 64 vectors of its sizes.
    limit = 8 * (4 * 2000 * 100 + 10 * 64 * 2100)
    assert _memory(gradient, shape, (64, shape[0])) < limit
