"""What `SparseLU` promises, against dense NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._kernel import superlu


SIZE = 6
SUCCESSFUL = lx.RESULTS.successful

dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])


def _numbers(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


def _system(dtype=float):
    """Entries in no order, four of them in the place of another, and a vector."""
    rng = np.random.default_rng(0)
    row, col = rng.integers(0, SIZE, (2, 10))
    row, col = np.append(row, row[:4]), np.append(col, col[:4])
    row, col = np.append(row, np.arange(SIZE)), np.append(col, np.arange(SIZE))
    data = np.append(_numbers(rng, 14, dtype), np.full(SIZE, 4))
    return data, row, col, _numbers(rng, SIZE, dtype)


def _dense(data, row, col):
    matrix = np.zeros((SIZE, SIZE), data.dtype)
    np.add.at(matrix, (row, col), data)
    return matrix


def _solution(data, row, col, vector):
    operator = pj.SparseLinearOperator((data, row, col, (SIZE, SIZE)))
    return pj.linear_solve(operator, vector, pj.SparseLU(), throw=False)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_sparse_systems_with_duplicate_entries_are_solved(dtype):
    data, row, col, vector = _system(dtype)
    solution = _solution(data, row, col, vector)
    want = np.linalg.solve(_dense(data, row, col), vector)
    assert solution.result == SUCCESSFUL
    np.testing.assert_allclose(solution.value, want, rtol=1e-12)


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_gradients_are_those_of_the_dense_formula_on_the_pattern(dtype):
    data, row, col, vector = _system(dtype)
    rng = np.random.default_rng(1)
    weights = _numbers(rng, SIZE, dtype)

    def loss(data, vector):
        return jnp.sum(_solution(data, row, col, vector).value * weights).real

    got_data, got_vector = jit(jax.grad(loss, (0, 1)))(data, vector)
    inverse = np.linalg.inv(_dense(data, row, col))
    x, adjoint = inverse @ vector, inverse.T @ weights
    assert_close(got_vector, adjoint, 1e-12)
    assert_close(got_data, -adjoint[row] * x[col], 1e-12)


@pytest.mark.slow  # a large program
def test_second_derivatives_are_those_of_the_dense_formula():
    data, row, col, vector = _system()
    direction = np.random.default_rng(2).standard_normal(data.size)
    path = lambda t: _solution(data + t * direction, row, col, vector).value
    first = lambda t: jax.jvp(path, (t,), (1.0,))[1]
    got = jit(lambda t: jax.jvp(first, (t,), (1.0,))[1])(0.0)
    inverse = np.linalg.inv(_dense(data, row, col))
    step = inverse @ _dense(direction, row, col)
    assert_close(got, 2 * step @ step @ inverse @ vector, 1e-11)


@pytest.fixture
def factorised(monkeypatch):
    """The matrices that SciPy is asked to factorise, in a host that keeps none before."""
    asked, splu = [], scipy.sparse.linalg.splu
    monkeypatch.setattr(superlu, "_kept", superlu._Kept(2**20))
    monkeypatch.setattr(
        scipy.sparse.linalg, "splu", lambda *a, **k: asked.append(a) or splu(*a, **k)
    )
    return asked


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_a_batch_of_vectors_and_its_gradient_are_one_factorisation(dtype, factorised):
    data, row, col, _ = _system(dtype)
    vectors = _numbers(np.random.default_rng(3), (5, SIZE), dtype)

    def loss(data, vectors):
        solve = lambda vector: _solution(data, row, col, vector).value
        solved = jax.vmap(solve)(vectors)
        return jnp.sum(solved).real, solved

    _, solved = jit(jax.grad(loss, (0, 1), has_aux=True))(data, vectors)
    want = np.linalg.solve(_dense(data, row, col), vectors.T).T
    np.testing.assert_allclose(solved, want, rtol=1e-11)
    assert len(factorised) == 1


def test_the_host_keeps_the_newest_factors_and_older_ones_within_its_limit(factorised):
    data, row, col, _ = _system()
    one = superlu._Factorisation(row, col, data, SIZE)
    for limit, again in ((2 * one.nbytes, 2), (0, 3)):
        kept = superlu._Kept(limit)
        del factorised[:]
        for scale in (1.0, 2.0, 1.0, 3.0, 4.0, 4.0, 1.0):
            kept.factorised(row, col, scale * data, SIZE)
        # The last time 3 and 4 have taken the place of 1, where there are two.
        assert len(factorised) == 3 + again


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_a_batch_of_matrices_on_one_pattern_is_solved(dtype):
    data, row, col, vector = _system(dtype)
    batch = np.stack([data, 2 * data, data + 1])
    solve = jax.vmap(lambda data: _solution(data, row, col, vector).value)
    want = [np.linalg.solve(_dense(member, row, col), vector) for member in batch]
    np.testing.assert_allclose(jit(solve)(batch), want, rtol=1e-11)


def _singular():
    rng = np.random.default_rng(0)
    ring = np.roll(np.eye(SIZE), 1, axis=0)
    shift = np.diag(np.ones(SIZE - 1), 1)
    low_rank = rng.integers(-3, 4, (2, SIZE, 3))
    return {
        "zero": np.zeros((SIZE, SIZE)),
        "laplacian": 2 * np.eye(SIZE) - ring - ring.T,
        "nilpotent": shift,
        "ones": np.ones((SIZE, SIZE)),
        "tiny": np.full((SIZE, SIZE), 1e-300),
        "low-rank": (low_rank[0] @ low_rank[1].T).astype(float),
        "complex": np.exp(1j * np.add.outer(np.arange(SIZE), np.arange(SIZE))),
        "gaussian": np.kron([[1, 1j], [1j, -1]], np.eye(3)),
        "no-column": np.eye(SIZE) * (np.arange(SIZE) > 0),
        "nan": np.where(np.eye(SIZE) > 0, np.nan, 1.0),
        "inf": np.where(np.eye(SIZE) > 0, np.inf, 1.0),
    }


@pytest.mark.default("zero", "low-rank", "ones", "nan")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _singular())
def test_singular_matrices_are_never_successful_and_do_not_raise(name):
    matrix = _singular()[name]
    row, col = np.nonzero(np.ones((SIZE, SIZE)))
    solution = _solution(matrix[row, col], row, col, np.ones(SIZE, matrix.dtype))
    assert solution.result != SUCCESSFUL


def test_integer_matrices_of_any_deficient_rank_are_never_successful():
    rng = np.random.default_rng(0)
    row, col = np.nonzero(np.ones((SIZE, SIZE)))
    matrices = []
    for rank in np.arange(200) % SIZE:
        left, right = rng.integers(-2, 3, (2, SIZE, rank)).astype(float)
        matrices.append(left @ right.T)
    data = np.stack(matrices)[:, row, col]
    solve = lambda data: _solution(data, row, col, jnp.ones(SIZE)).result
    results = jax.jit(jax.vmap(solve))(data)
    assert not jnp.any(results == SUCCESSFUL)


def test_a_pattern_that_is_singular_for_any_entries_does_not_crash_the_host():
    """SuperLU by itself ends the process at some of these."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(2, 60))
        row, col = rng.integers(0, size, (2, size))
        row[row == size // 2] = 0
        found = superlu._Factorisation(row, col, np.ones(size), size)
        assert found.estimate == 0
        assert np.all(np.isnan(found.solve(np.ones((size, 1)), transposed=False)))


def test_a_singular_matrix_raises_if_asked_to():
    operator = pj.SparseLinearOperator((np.ones(4), [0, 0, 1, 1], [0, 1, 0, 1], (2, 2)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        pj.linear_solve(operator, jnp.ones(2), pj.SparseLU())


def test_an_ill_scaled_regular_matrix_is_successful():
    scale = 10.0 ** np.linspace(-150, 150, SIZE)
    row, col = np.nonzero(np.ones((SIZE, SIZE)))
    matrix = scale[:, None] * (np.ones((SIZE, SIZE)) + np.eye(SIZE))
    solution = _solution(matrix[row, col], row, col, scale)
    assert solution.result == SUCCESSFUL
    np.testing.assert_allclose(solution.value, np.full(SIZE, 1 / (SIZE + 1)), rtol=1e-12)


def test_a_single_precision_operator_gets_a_single_precision_solution():
    data, row, col, vector = _system()
    solution = _solution(np.float32(data), row, col, jnp.float32(vector))
    assert solution.value.dtype == jnp.float32
    want = np.linalg.solve(_dense(data, row, col), vector)
    np.testing.assert_allclose(solution.value, want, rtol=1e-5)  # of single precision


def test_dense_operators_are_refused():
    with pytest.raises(ValueError, match="takes a `pseudojvp.SparseLinearOperator`"):
        pj.linear_solve(jnp.eye(3), jnp.ones(3), pj.SparseLU())


def test_operators_that_are_not_square_are_refused():
    operator = pj.SparseLinearOperator((np.ones(3), [0, 1, 2], [0, 1, 0], (3, 2)))
    with pytest.raises(ValueError, match="square"):
        pj.linear_solve(operator, jnp.ones(3), pj.SparseLU())


def test_unknown_options_are_refused():
    data, row, col, _ = _system()
    operator = pj.SparseLinearOperator((data, row, col, (SIZE, SIZE)))
    with pytest.raises(ValueError, match="unknown option"):
        pj.linear_solve(operator, jnp.ones(SIZE), pj.SparseLU(), options={"rtol": 1})


def test_a_batch_of_matrices_and_of_patterns_is_solved():
    data, row, col, vector = _system()
    rows, batch = np.stack([row, SIZE - 1 - row]), np.stack([data, 2 * data, data + 1])
    solve = lambda row, data: _solution(data, row, col, vector).value
    got = jit(jax.vmap(jax.vmap(solve, (None, 0)), (0, None)))(rows, batch)
    for i, j in np.ndindex(2, 3):
        want = np.linalg.solve(_dense(batch[j], rows[i], col), vector)
        np.testing.assert_allclose(got[i, j], want, rtol=1e-11)


def test_a_permuted_triangle_without_a_diagonal_is_solved():
    """Each pivot is off the diagonal, and none of it is stored."""
    rng = np.random.default_rng(4)
    row, col = np.nonzero(np.roll(np.tril(np.ones((SIZE, SIZE))), 1, axis=0))
    row, col = row[row != col], col[row != col]
    data = 1 + rng.uniform(size=row.size)
    sparsity = pj.SparseLinearOperator((data, row, col, (SIZE, SIZE))).sparsity
    assert sparsity.nonsingular
    assert not sparsity.full_diagonal
    vector = rng.standard_normal(SIZE)
    solution = _solution(data, row, col, vector)
    assert solution.result == SUCCESSFUL
    want = np.linalg.solve(_dense(data, row, col), vector)
    np.testing.assert_allclose(solution.value, want, rtol=1e-11)


@pytest.mark.default("twice")
@pytest.mark.ci("*")
@pytest.mark.parametrize("repeated", [False, True], ids=["once", "twice"])
def test_pivots_on_a_large_mesh_lose_no_digits(repeated):
    """2-D Poisson, 10,000 unknowns: without refinement the residual was 2.5e-8."""
    line = scipy.sparse.diags_array(
        [-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(100, 100)
    )
    matrix = scipy.sparse.csr_array(scipy.sparse.kronsum(line, line))
    vector = np.random.default_rng(0).standard_normal(10_000)
    row, col = matrix.tocoo().coords
    data = matrix.data
    if repeated:
        row, col, data = np.tile(row, 2), np.tile(col, 2), np.tile(data / 2, 2)
    operator = pj.SparseLinearOperator((data, row, col, matrix.shape))
    solution = pj.linear_solve(operator, vector, pj.SparseLU())
    residual = vector - matrix @ np.asarray(solution.value)
    assert np.linalg.norm(residual) <= 1e-13 * np.linalg.norm(vector)
