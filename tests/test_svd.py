"""What `SVD` promises, against dense NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SUCCESSFUL = lx.RESULTS.successful
dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def _normal_entries(shape, dtype=float, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


@eqx.filter_jit
def _solve(matrix, vector, rcond=None):
    solution = pj.linear_solve(matrix, vector, pj.SVD(rcond), throw=False)
    return solution.value, solution.result, solution.stats["rank"]


def _solve_up_to(rcond, matrix, vector):
    """With the cutoff as an array, for which there is one program for all."""
    return _solve(matrix, vector, None if rcond is None else np.array(rcond))


def _with_singular_values(*values):
    q, _ = np.linalg.qr(_normal_entries((5, len(values))))
    p, _ = np.linalg.qr(_normal_entries((len(values),) * 2, seed=1))
    return (q * np.array(values)) @ p.T


@pytest.mark.default("3-5-1-complex", "5-3-2-real")
@pytest.mark.ci("*-complex")
@dtypes
@pytest.mark.parametrize(
    ("rows", "cols", "rank"),
    [(5, 3, 3), (3, 5, 3), (4, 4, 4), (5, 3, 2), (3, 5, 1), (4, 4, 2)],
)
def test_solution_is_the_pseudoinverse_solution_of_any_rank(rows, cols, rank, dtype):
    a = _normal_entries((rows, rank), dtype) @ _normal_entries((rank, cols), dtype, 1)
    b = _normal_entries(rows, dtype, 2)
    x, result, found = _solve(a, b)
    assert result == SUCCESSFUL
    assert found == rank
    np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-10) @ b, rtol=1e-10)


def test_rcond_is_relative_to_the_largest_singular_value():
    a = 1e3 * _with_singular_values(1.0, 1e-2, 1e-4)
    ranks = [int(_solve_up_to(rcond, a, np.ones(5))[2]) for rcond in (0.1, 1e-3, 1e-5)]
    assert ranks == [1, 2, 3]


def test_solution_is_the_truncated_one():
    a, b = _with_singular_values(1.0, 1e-2, 1e-4), np.ones(5)
    x, _, _ = _solve_up_to(1e-3, a, b)
    np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-3) @ b, rtol=1e-9)


def test_singular_value_at_the_cutoff_counts_as_zero():
    _, _, rank = _solve_up_to(0.5, np.diag([4.0, 2.0, 1.0]), np.ones(3))
    assert rank == 1


def test_default_rcond_is_twice_eps_times_the_longer_side():
    cutoff = 2 * np.finfo(float).eps * 5
    ranks = []
    for last in (0.9 * cutoff, 1.1 * cutoff):
        a = np.zeros((5, 3))
        np.fill_diagonal(a, [1.0, 0.5, last])
        ranks.append(int(_solve(a, np.ones(5))[2]))
    assert ranks == [2, 3]


def test_negative_rcond_means_eps():
    eps = np.finfo(float).eps
    ranks = [
        int(_solve_up_to(-1.0, np.diag([1.0, factor * eps, 0.0]), np.ones(3))[2])
        for factor in (0.9, 1.1)
    ]
    assert ranks == [1, 2]


@pytest.mark.default("(5, 3)-*")
@pytest.mark.ci("*")
@pytest.mark.parametrize("rcond", [None, 0.0, 1e-3, -1.0])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (3, 3)], ids=str)
def test_zero_operator_gives_zero_of_rank_zero(shape, rcond):
    x, result, rank = _solve_up_to(rcond, np.zeros(shape), np.ones(shape[0]))
    assert result == SUCCESSFUL
    assert rank == 0
    np.testing.assert_array_equal(x, np.zeros(shape[1]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_empty_operator_gives_zeros(shape):
    x, result, rank = _solve(np.zeros(shape), np.ones(shape[0]))
    assert result == SUCCESSFUL
    assert rank == 0
    np.testing.assert_array_equal(x, np.zeros(shape[1]))


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_transposed_and_conjugated_states_solve_those_systems(dtype):
    a = _normal_entries((5, 2), dtype) @ _normal_entries((2, 3), dtype, 1)
    b, transposed_b = _normal_entries(5, dtype, 2), _normal_entries(3, dtype, 2)

    @jax.jit
    def solve(a, b, transposed_b):
        solver = pj.SVD()
        state = solver.init(lx.MatrixLinearOperator(a), {})
        transposed, _ = solver.transpose(state, {})
        conjugated, _ = solver.conj(state, {})
        return (
            solver.compute(transposed, transposed_b, {})[0],
            solver.compute(conjugated, b, {})[0],
        )

    pseudoinverse = np.linalg.pinv(a, rcond=1e-10)
    x_transposed, x_conjugated = solve(a, b, transposed_b)
    np.testing.assert_allclose(x_transposed, pseudoinverse.T @ transposed_b, rtol=1e-10)
    np.testing.assert_allclose(x_conjugated, pseudoinverse.conj() @ b, rtol=1e-10)


def test_each_member_of_a_batch_has_its_own_rank():
    a = np.stack([np.diag([2.0, 3.0, 4.0]), np.diag([2.0, 3.0, 0.0]), np.zeros((3, 3))])
    x, _, rank = jax.vmap(_solve, (0, None))(a, jnp.ones(3))
    np.testing.assert_array_equal(rank, [3, 2, 0])
    np.testing.assert_allclose(x, [[1 / 2, 1 / 3, 1 / 4], [1 / 2, 1 / 3, 0], [0, 0, 0]])


@pytest.mark.default("complex64")
@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_single_precision_is_kept(dtype):
    a = (_normal_entries((5, 2)) @ _normal_entries((2, 3))).astype(dtype)
    x, result, rank = _solve(a, np.ones(5, dtype))
    assert result == SUCCESSFUL
    assert rank == 2
    assert x.dtype == dtype
    # Single precision.
    np.testing.assert_allclose(x, np.linalg.pinv(a, rcond=1e-4).sum(1), rtol=1e-3)
