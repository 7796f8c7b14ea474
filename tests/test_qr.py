"""What `QR` promises, against dense NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SUCCESSFUL = lx.RESULTS.successful
dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])
shapes = pytest.mark.parametrize(
    "shape", [(5, 3), (3, 5), (4, 4)], ids=["tall", "wide", "square"]
)


def _normal_entries(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


@eqx.filter_jit
def _solve(matrix, vector):
    solution = pj.linear_solve(matrix, vector, pj.QR(), throw=False)
    return solution.value, solution.result


def _value(matrix, vector, **kwargs):
    return pj.linear_solve(matrix, vector, pj.QR(), throw=False, **kwargs).value


@pytest.mark.default("wide-complex")
@pytest.mark.ci("*")
@dtypes
@shapes
def test_solution_is_the_pseudoinverse_solution(shape, dtype):
    a, b = _normal_entries(shape, dtype), _normal_entries(shape[0], dtype, 1)
    x, result = _solve(a, b)
    assert result == SUCCESSFUL
    np.testing.assert_allclose(x, np.linalg.pinv(a) @ b, rtol=1e-11)


@pytest.mark.default("wide-complex64")
@pytest.mark.ci("tall-float32")
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@shapes
def test_single_precision_is_kept(shape, dtype):
    a = _normal_entries(shape, complex).astype(np.complex64)
    a = a.real if dtype is np.float32 else a
    b = np.ones(shape[0], dtype)
    x, result = _solve(a, b)
    assert result == SUCCESSFUL
    assert x.dtype == dtype
    # Single precision.
    np.testing.assert_allclose(x, np.linalg.pinv(a) @ b, rtol=1e-4, atol=1e-5)


@pytest.mark.default("wide-complex")
@pytest.mark.ci("*-complex")
@dtypes
@shapes
def test_transposed_and_conjugated_states_solve_those_systems(shape, dtype):
    a = _normal_entries(shape, dtype)
    b, transposed_b = (_normal_entries(size, dtype, 1) for size in shape)

    @jax.jit
    def solve(a, b, transposed_b):
        solver = pj.QR()
        state = solver.init(lx.MatrixLinearOperator(a), {})
        transposed, _ = solver.transpose(state, {})
        conjugated, _ = solver.conj(state, {})
        return (
            solver.compute(transposed, transposed_b, {})[0],
            solver.compute(conjugated, b, {})[0],
        )

    x_transposed, x_conjugated = solve(a, b, transposed_b)
    np.testing.assert_allclose(x_transposed, np.linalg.pinv(a.T) @ transposed_b)
    np.testing.assert_allclose(x_conjugated, np.linalg.pinv(a.conj()) @ b)


@pytest.mark.default("wide-complex")
@pytest.mark.ci("*-complex")
@dtypes
@shapes
def test_rank_deficient_operator_is_singular(shape, dtype):
    rows, cols = shape
    rank = min(shape) - 1
    left, right = (
        _normal_entries((30, rows, rank), dtype),
        _normal_entries((30, rank, cols), dtype, 1),
    )
    _, result = jax.vmap(_solve)(left @ right, np.ones((30, rows), dtype))
    assert jnp.all(result == lx.RESULTS.singular)


def test_rank_three_matrix_of_eight_by_four_is_singular():
    a = _normal_entries((8, 3), float) @ _normal_entries((3, 4), float, 1)
    _, result = _solve(a, np.ones(8))
    assert result == lx.RESULTS.singular


@pytest.mark.default("tall")
@pytest.mark.ci("*")
@shapes
def test_zero_operator_is_singular(shape):
    _, result = _solve(np.zeros(shape), np.ones(shape[0]))
    assert result == lx.RESULTS.singular


def test_graded_operator_of_full_rank_is_solved():
    scales = np.array([1.0, 1e-4, 1e-8])
    a = np.linalg.qr(_normal_entries((5, 3), float))[0] * scales
    x, result = _solve(a, a @ np.ones(3))
    assert result == SUCCESSFUL
    # Condition 1e8.
    np.testing.assert_allclose(x, np.ones(3), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_full_rank_does_not_depend_on_scale(scale):
    a, b = _normal_entries((5, 3), float), np.ones(5)
    x, result = _solve(scale * a, b)
    assert result == SUCCESSFUL
    np.testing.assert_allclose(scale * x, np.linalg.pinv(a) @ b, rtol=1e-11)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_empty_operator_gives_zeros(shape):
    rows, cols = shape
    x, result = _solve(np.zeros(shape), np.ones(rows))
    assert result == SUCCESSFUL
    np.testing.assert_array_equal(x, np.zeros(cols))


def _pseudoinverse_solutions(a, b):
    return (np.linalg.pinv(a) @ b[..., None])[..., 0]


@pytest.mark.default("wide-complex")
@pytest.mark.ci("tall-real")
@dtypes
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])
class TestVmap:
    def test_over_vectors(self, shape, dtype):
        a, b = _normal_entries(shape, dtype), _normal_entries((6, shape[0]), dtype, 1)
        x = jax.jit(jax.vmap(_value, (None, 0)))(a, b)
        np.testing.assert_allclose(x, _pseudoinverse_solutions(a, b), rtol=1e-10)

    def test_over_matrices(self, shape, dtype):
        a, b = _normal_entries((6, *shape), dtype), _normal_entries(shape[0], dtype, 1)
        x = jax.jit(jax.vmap(_value, (0, None)))(a, b)
        np.testing.assert_allclose(x, _pseudoinverse_solutions(a, b), rtol=1e-10)

    def test_over_both(self, shape, dtype):
        a = _normal_entries((6, *shape), dtype)
        b = _normal_entries((6, shape[0]), dtype, 1)
        x = jax.jit(jax.vmap(_value))(a, b)
        np.testing.assert_allclose(x, _pseudoinverse_solutions(a, b), rtol=1e-10)

    def test_over_matrices_of_vmap_over_vectors(self, shape, dtype):
        a = _normal_entries((6, *shape), dtype)
        b = _normal_entries((2, shape[0]), dtype, 1)
        x = jax.jit(jax.vmap(jax.vmap(_value, (None, 0)), (0, None)))(a, b)
        expected = _pseudoinverse_solutions(a[:, None], b[None])
        np.testing.assert_allclose(x, expected, rtol=1e-10)

    def test_over_vectors_of_vmap_over_matrices(self, shape, dtype):
        a = _normal_entries((6, *shape), dtype)
        b = _normal_entries((2, shape[0]), dtype, 1)
        x = jax.jit(jax.vmap(jax.vmap(_value, (0, None)), (None, 0)))(a, b)
        expected = _pseudoinverse_solutions(a[None], b[:, None])
        np.testing.assert_allclose(x, expected, rtol=1e-10)

    def test_over_both_of_vmap_over_vectors(self, shape, dtype):
        a = _normal_entries((6, *shape), dtype)
        b = _normal_entries((6, 2, shape[0]), dtype, 1)
        x = jax.jit(jax.vmap(jax.vmap(_value, (None, 0))))(a, b)
        expected = _pseudoinverse_solutions(a[:, None], b)
        np.testing.assert_allclose(x, expected, rtol=1e-10)


def test_one_factorisation_serves_many_vectors():
    a, b = _normal_entries((5, 3), float), _normal_entries((6, 5), float, 1)

    @jax.jit
    def solutions(b):
        state = pj.QR().init(lx.MatrixLinearOperator(a), {})  # NumPy's, as users have it
        return jax.vmap(lambda b: _value(a, b, state=state))(b)

    x = solutions(b)
    np.testing.assert_allclose(x, _pseudoinverse_solutions(a, b), rtol=1e-10)
