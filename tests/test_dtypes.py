"""Vectors with leaves of several dtypes, and of 16 bits."""

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


POSITIVE = lx.positive_semidefinite_tag
SQUARE = {
    "LU": pj.LU(),
    "QR": pj.QR(),
    "PivotedQR": pj.PivotedQR(),
    "SVD": pj.SVD(),
    "Cholesky": pj.Cholesky(),
    "Auto(True)": pj.AutoLinearSolver(True),
}


def _definite(seed, dtype=float):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((4, 6)).astype(dtype)
    if np.issubdtype(dtype, np.complexfloating):
        root = root + 1j * rng.standard_normal((4, 6))
    return root @ root.conj().T + np.eye(4)


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # lineax's functions ask for it
        yield


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "dtypes", [("float32", "float64"), ("complex64", "complex128")], ids=lambda d: d[1]
)
@pytest.mark.parametrize("name", SQUARE)
def test_leaves_of_two_precisions(name, dtypes):
    narrow, wide = dtypes
    matrix = _definite(0, np.dtype(wide))

    def mv(x):
        image = matrix @ jnp.concatenate([x["a"].astype(wide), x["b"]])
        return {"a": image[:2].astype(narrow), "b": image[2:]}

    structure = {
        k: jax.ShapeDtypeStruct((2,), d) for k, d in zip("ab", dtypes, strict=True)
    }
    vector = {"a": jnp.ones(2, narrow), "b": jnp.arange(2.0).astype(wide)}
    flat = np.array([1, 1, 0, 1.0])

    def solve(vector):
        operator = lx.FunctionLinearOperator(mv, structure, POSITIVE)
        return pj.linear_solve(operator, vector, SQUARE[name]).value

    x = jax.jit(solve)(vector)
    assert (x["a"].dtype, x["b"].dtype) == dtypes
    want = np.linalg.solve(matrix, flat)
    np.testing.assert_allclose(np.concatenate([x["a"], x["b"]]), want, rtol=1e-5)
    gradient = jax.grad(lambda vector: jnp.sum(solve(vector)["b"].real))(vector)
    assert (gradient["a"].dtype, gradient["b"].dtype) == dtypes
    got = np.concatenate([gradient["a"], gradient["b"]])
    want = np.linalg.solve(matrix.T, [0, 0, 1, 1])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


HALF = {
    "LU": (pj.LU(), "square", ()),
    "QR": (pj.QR(), "tall", ()),
    "CholeskyQR": (pj.CholeskyQR(), "tall", ()),
    "PivotedQR": (pj.PivotedQR(), "tall", ()),
    "SVD": (pj.SVD(), "tall", ()),
    "Normal(Cholesky)": (pj.Normal(pj.Cholesky()), "tall", ()),
    "Cholesky": (pj.Cholesky(), "definite", POSITIVE),
    "Triangular": (pj.Triangular(), "lower", lx.lower_triangular_tag),
    "Tridiagonal": (pj.Tridiagonal(), "tridiagonal", lx.tridiagonal_tag),
    "Auto(None)": (pj.AutoLinearSolver(None), "tall", ()),
    "CG": (pj.CG(), "definite", POSITIVE),
    "MINRES": (pj.MINRES(), "definite", POSITIVE),
    "GMRES": (pj.GMRES(), "square", ()),
    "BiCGStab": (pj.BiCGStab(), "square", ()),
    "FlexibleCG": (pj.FlexibleCG(), "definite", POSITIVE),
    "FlexibleGMRES": (pj.FlexibleGMRES(), "square", ()),
    "LearnedCG": (pj.LearnedCG(12), "definite", POSITIVE),
    "LSMR": (pj.LSMR(), "tall", ()),
}


def _matrix(kind):
    rng = np.random.default_rng(1)
    square = rng.standard_normal((6, 6)) + 4 * np.eye(6)
    tall = rng.standard_normal((9, 6))
    return {
        "square": square,
        "tall": tall,
        "definite": tall.T @ tall,
        "lower": np.tril(square),
        "tridiagonal": np.tril(np.triu(square, -1), 1),
    }[kind]


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", HALF)
def test_sixteen_bits_are_solved_for_in_thirty_two(name, dtype):
    solver, kind, tags = HALF[name]
    matrix = jnp.asarray(_matrix(kind), dtype)
    vector = jnp.asarray(np.random.default_rng(2).standard_normal(len(matrix)), dtype)
    exact = np.asarray(matrix, float)
    inverse = np.linalg.pinv(exact)

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        return pj.linear_solve(operator, vector, solver).value

    def loss(matrix, vector):
        return jnp.sum(solve(matrix, vector).astype(jnp.float32))

    x = solve(matrix, vector)
    gradient = jax.grad(loss, (0, 1))(matrix, vector)
    assert {x.dtype, *(g.dtype for g in gradient)} == {jnp.dtype(dtype)}
    eps = float(jnp.finfo(dtype).eps)
    want = inverse @ np.asarray(vector, float)
    np.testing.assert_allclose(np.asarray(x, float), want, atol=eps * abs(want).max())
    want = inverse.T @ np.ones(len(want))
    got = np.asarray(gradient[1], float)
    np.testing.assert_allclose(got, want, atol=2 * eps * abs(want).max())


@pytest.mark.parametrize(
    "solver", [lx.GMRES(0.1, 0.1, max_steps=9), lx.LSMR(0.1, 0.1)], ids=["GMRES", "LSMR"]
)
def test_solver_of_lineax_without_sixteen_bits_is_refused_by_name(solver):
    ones = jnp.ones(2, jnp.bfloat16)
    name = type(solver).__name__
    with pytest.raises(TypeError, match=f"16 bits. Use `pseudojvp.{name}`"):
        pj.linear_solve(lx.DiagonalLinearOperator(ones), ones, solver)


@pytest.mark.slow  # a second
def test_rank_of_a_matrix_of_sixteen_bits():
    left, right = np.random.default_rng(3).standard_normal((2, 60, 5))
    matrix = jnp.asarray(left @ right.T, jnp.float16)
    for solver in (pj.PivotedQR(), pj.SVD()):
        operator = lx.MatrixLinearOperator(matrix)
        solution = pj.linear_solve(operator, matrix[:, 0], solver)
        assert solution.stats["rank"] == 5


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fronts_return_sixteen_bits(dtype):
    matrix = jnp.asarray(_matrix("tall"), dtype)
    vector = jnp.arange(9).astype(dtype)
    exact = np.asarray(matrix, float)
    eps = float(jnp.finfo(dtype).eps)
    x, residuals, rank, s = pj.lstsq(matrix, vector)
    want, norms, _, values = np.linalg.lstsq(exact, np.arange(9.0))
    assert {x.dtype, residuals.dtype, s.dtype} == {jnp.dtype(dtype)}
    assert rank == 6
    pairs = (x, want), (residuals, norms), (s, values)
    pairs = (*pairs, (pj.pinv(matrix), np.linalg.pinv(exact)))
    for got, want in pairs:
        error = np.abs(np.asarray(got, float) - want).max()
        assert error <= eps * np.abs(want).max()


@pytest.mark.default(
    "bfloat16-LU",
    "bfloat16-GMRES",
    "float16-auto",
    "float16-SparseLU",
    "float16-LU",
    "float16-GMRES",
)
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [None, pj.SparseLU(), pj.LU(), pj.GMRES()],
    ids=["auto", "SparseLU", "LU", "GMRES"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sparse_matrix_of_sixteen_bits(dtype, solver):
    matrix = jsparse.BCOO.fromdense(jnp.asarray(_matrix("lower"), dtype))
    x = pj.sparse_solve(matrix, jnp.ones(6, dtype), solver)
    assert x.dtype == jnp.dtype(dtype)
    want = np.linalg.solve(np.asarray(matrix.todense(), float), np.ones(6))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(x, float), want, atol=eps * abs(want).max())


def test_function_of_sixteen_bits_is_solved_to_its_tolerance():
    matrix = jnp.asarray(_matrix("square"), jnp.float16)
    structure = jax.ShapeDtypeStruct((6,), jnp.float16)
    operator = lx.FunctionLinearOperator(lambda x: matrix @ x, structure)
    solution = pj.linear_solve(operator, jnp.ones(6, jnp.float16), pj.GMRES())
    exact = np.asarray(matrix, float)
    residual = np.ones(6) - exact @ np.asarray(solution.value, float)
    eps = float(jnp.finfo(jnp.float16).eps)
    assert np.linalg.norm(residual) <= 20 * eps * np.sqrt(6)


@pytest.mark.slow  # two seconds
def test_fit_of_sixteen_bits():
    times = np.linspace(0, 3, 20)
    data = jnp.asarray(2 * np.exp(-0.7 * times), jnp.float16)
    basis = lambda rate, times: jnp.exp(-rate * times)[:, None]
    start = jnp.asarray(0.5, jnp.float16)
    fit = pj.varpro(basis, data, start, jnp.asarray(times, jnp.float32))
    assert {fit.theta.dtype, fit.coefficients.dtype} == {jnp.dtype(jnp.float16)}
    np.testing.assert_allclose(fit.theta, 0.7, rtol=2e-3)
    np.testing.assert_allclose(fit.coefficients, [2.0], rtol=2e-3)
    assert np.isfinite(fit.statistics().theta_standard_deviation)
