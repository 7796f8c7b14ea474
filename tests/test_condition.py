"""`stats["reciprocal_condition"]`: the estimate, what is singular by it, what is said."""

import re

import equinox as eqx
import jax
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


DTYPES = ("float32", "float64", "complex128")
_CONDITIONS = {"f": 10.0 ** np.arange(6), "d": 10.0 ** np.arange(0, 14)}


def _random(rng, dtype, *shape):
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values


def _conditions(dtype):
    return _CONDITIONS[np.finfo(dtype).dtype.char]


def _dense(rng, dtype, rows, cols, condition):
    short = min(rows, cols)
    values = np.geomspace(1, 1 / condition, short)
    left, _ = np.linalg.qr(_random(rng, dtype, rows, short))
    right, _ = np.linalg.qr(_random(rng, dtype, cols, short))
    return left * values @ right.conj().T


def _definite(rng, dtype, size, condition):
    basis, _ = np.linalg.qr(_random(rng, dtype, size, size))
    return basis * np.geomspace(1, 1 / condition, size) @ basis.conj().T


def _lower(rng, dtype, size, condition):
    return np.linalg.qr(_dense(rng, dtype, size, size, condition))[1].conj().T


def _tridiagonal(rng, dtype, size, condition):
    """A Hermitian one, shifted almost to an eigenvalue."""
    off = _random(rng, dtype, size - 1)
    matrix = np.diag(rng.standard_normal(size)).astype(off.dtype)
    matrix += np.diag(off, 1) + np.diag(off.conj(), -1)
    nearest = np.linalg.eigvalsh(matrix)[size // 2]
    return matrix - (nearest + 1 / condition) * np.eye(size)


# Solver, tags, a matrix of (rng, dtype, condition), whether its rows are scaled.
_ESTIMATES = {
    "QR-tall": (pj.QR(), (), lambda *a: _dense(*a[:2], 30, 20, a[2]), False),
    "QR-wide": (pj.QR(), (), lambda *a: _dense(*a[:2], 20, 30, a[2]), True),
    "QR-small": (pj.QR(), (), lambda *a: _dense(*a[:2], 5, 3, a[2]), False),
    "LU": (pj.LU(), (), lambda *a: _dense(*a[:2], 25, 25, a[2]), False),
    "LU-small": (pj.LU(), (), lambda *a: _dense(*a[:2], 4, 4, a[2]), False),
    "Cholesky": (
        pj.Cholesky(),
        lx.positive_semidefinite_tag,
        lambda *a: _definite(*a[:2], 20, a[2]),
        False,
    ),
    "Triangular": (
        pj.Triangular(),
        lx.lower_triangular_tag,
        lambda *a: _lower(*a[:2], 20, a[2]),
        False,
    ),
    "Tridiagonal": (
        pj.Tridiagonal(),
        lx.tridiagonal_tag,
        lambda *a: _tridiagonal(*a[:2], 20, a[2]),
        False,
    ),
    "AutoLinearSolver": (
        pj.AutoLinearSolver(None),
        (),
        lambda *a: _dense(*a[:2], 12, 6, a[2]),
        False,
    ),
}


def _solve_all(solver, tags, matrices):
    def solve(matrix):
        operator = lx.MatrixLinearOperator(matrix, tags)
        vector = matrix[:, 0]
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        estimate = solution.stats["reciprocal_condition"]
        return estimate, solution.result == lx.RESULTS.successful

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(solve))(matrices))


def _reciprocal_condition(matrix, by_rows):
    """σ_min / σ_max with unit columns (rows), from the stored matrix."""
    wide = np.result_type(matrix.dtype, np.float64)
    matrix = matrix.astype(wide)
    lengths = np.linalg.norm(matrix, axis=1 if by_rows else 0)
    scaled = matrix / (lengths[:, None] if by_rows else lengths)
    values = np.linalg.svd(scaled, compute_uv=False)
    return values[-1] / values[0]


@pytest.mark.default("QR-wide-complex128", "Tridiagonal-complex128")
@pytest.mark.ci("*-complex128", "LU-small-float32", "Cholesky-float64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", _ESTIMATES)
def test_rcond_is_within_ten_of_that_with_unit_columns(name, dtype):
    solver, tags, make, by_rows = _ESTIMATES[name]
    rng = np.random.default_rng(0)
    matrices = np.stack(
        [make(rng, dtype, c) for c in _conditions(dtype) for _ in range(4)]
    ).astype(dtype)
    rcond, _ = _solve_all(solver, tags, matrices)
    truth = np.array([_reciprocal_condition(m, by_rows) for m in matrices])
    assert rcond.dtype == np.finfo(dtype).dtype
    assert np.all(rcond >= truth / 10)
    # Beyond, rounding in the factors hides how small it is.
    hidden = np.finfo(dtype).eps
    assert np.all(rcond <= 10 * np.maximum(truth, hidden))


@pytest.mark.default("QR-6-float32")
@pytest.mark.ci("*-6-complex128", "*-24-float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 6, 24])
@pytest.mark.parametrize("solver", [pj.QR(), pj.LU()], ids=["QR", "LU"])
def test_products_of_corank_one_are_singular(solver, size, dtype):
    rng = np.random.default_rng(size)
    left = _random(rng, dtype, 300, size, size - 1).astype(dtype)
    right = _random(rng, dtype, 300, size - 1, size).astype(dtype)
    _, successful = _solve_all(solver, (), left @ right)
    assert not successful.any()


@pytest.mark.default("3-complex128")
@pytest.mark.ci("10-float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 10])
def test_gram_matrices_of_corank_one_are_singular_for_cholesky(size, dtype):
    rng = np.random.default_rng(size)
    left = _random(rng, dtype, 300, size, size - 1).astype(dtype)
    gram = left @ left.conj().swapaxes(1, 2)
    _, successful = _solve_all(pj.Cholesky(), lx.positive_semidefinite_tag, gram)
    assert not successful.any()


@pytest.mark.default("LU-complex128")
@pytest.mark.ci("QR-float32")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", [pj.QR(), pj.LU()], ids=["QR", "LU"])
def test_well_conditioned_matrices_are_not_singular(solver, dtype):
    rng = np.random.default_rng(0)
    matrices = np.stack([_dense(rng, dtype, 16, 16, 1e3) for _ in range(300)])
    _, successful = _solve_all(solver, (), matrices.astype(dtype))
    assert successful.all()


@pytest.mark.parametrize("name", ["QR-tall", "LU"])
def test_size_of_a_matrix_does_not_matter(name):
    solver, tags, make, _ = _ESTIMATES[name]
    matrix = make(np.random.default_rng(0), "float64", 1e4)
    sizes = [1.0, 2.0**-500, 2.0**500]
    rcond, _ = _solve_all(solver, tags, np.stack([s * matrix for s in sizes]))
    np.testing.assert_allclose(rcond[1:], rcond[0], rtol=1e-6)


@pytest.mark.default("QR-tall")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR-tall", "LU", "Triangular"])
def test_units_of_the_columns_do_not_matter(name):
    solver, tags, make, _ = _ESTIMATES[name]
    matrix = make(np.random.default_rng(0), "float64", 1e4)
    units = 2.0 ** np.linspace(-300, 300, matrix.shape[1]).round()
    rcond, successful = _solve_all(solver, tags, np.stack([matrix, matrix * units]))
    assert successful.all()
    np.testing.assert_allclose(rcond[1], rcond[0], rtol=1e-10)


def test_units_of_the_rows_do_not_matter_to_a_wide_qr():
    matrix = _dense(np.random.default_rng(0), "float64", 20, 30, 1e4)
    units = 2.0 ** np.linspace(-300, 300, 20).round()[:, None]
    rcond, successful = _solve_all(pj.QR(), (), np.stack([matrix, matrix * units]))
    assert successful.all()
    np.testing.assert_allclose(rcond[1], rcond[0], rtol=1e-10)


_DEFINITE = lx.positive_semidefinite_tag
_EQUAL_COLUMNS = np.stack([np.arange(1.0, 7), np.arange(1.0, 7)], axis=1)
_NEARLY_SINGULAR = np.array([[1.0, 1], [1, 1 + 2.0**-52]])
_NAN = np.array([[1.0, 2], [np.nan, 4]])
_SAID = {
    "QR": (pj.QR(), _EQUAL_COLUMNS, (), r"`QR\(\)` .* shape \(6, 2\) needs full rank"),
    "QR-advice": (pj.QR(), _EQUAL_COLUMNS, (), r"Use `PivotedQR\(\)` or `SVD\(\)`"),
    "LU": (
        pj.LU(),
        _NEARLY_SINGULAR,
        (),
        r"`LU\(\)` .* of A is about \d\.\de-1[67]; at most 4e",
    ),
    "LU-zero": (pj.LU(), np.zeros((2, 2)), (), "is zero, or an entry is non-finite"),
    "LU-nan": (pj.LU(), _NAN, (), "non-finite \\(NaN or Inf\\)"),
    "Cholesky": (pj.Cholesky(), _NEARLY_SINGULAR, _DEFINITE, "`Cholesky.* full rank"),
    "Cholesky-indefinite": (
        pj.Cholesky(),
        np.array([[1.0, 2], [2, 1]]),
        _DEFINITE,
        r"A is not definite as its tag says.* Use `LU\(\)` if A is indefinite",
    ),
    "Triangular": (
        pj.Triangular(),
        np.array([[1.0, 0], [1, 0]]),
        lx.lower_triangular_tag,
        r"`Triangular\(\)` .* shape \(2, 2\) needs full rank",
    ),
    "Tridiagonal": (
        pj.Tridiagonal(),
        np.ones((2, 2)),
        lx.tridiagonal_tag,
        r"`Tridiagonal\(\)` .* needs full rank",
    ),
    "Auto": (pj.AutoLinearSolver(None), _EQUAL_COLUMNS, (), r"`QR\(\)` .* 1e-"),
    "Normal(Cholesky)": (
        pj.Normal(pj.Cholesky()),
        _EQUAL_COLUMNS,
        (),
        r"`Normal\(Cholesky\(\)\)` .* of its Gram matrix .*; at most 4e-16 .*`QR\(\)`",
    ),
    "CholeskyQR": (
        pj.CholeskyQR(),
        np.array([[1.0, 1], [1, 1 + 5e-8], [1, 1]]),
        (),
        r"`CholeskyQR\(\)` .* about \d\.\de-\d+; at most 6e-08 counts .*`QR\(\)` does",
    ),
    "CholeskyQR-far": (pj.CholeskyQR(), _EQUAL_COLUMNS, (), "too small for its Gram"),
    "PivotedQR": (pj.PivotedQR(), _NAN, (), r"`PivotedQR\(\)` .* found no rank.* \(NaN"),
    "SVD": (pj.SVD(), _NAN, (), r"`SVD\(\)` .*: an entry of A is NaN or Inf"),
    "SVD-overflow": (pj.SVD(), 3e-308 * np.eye(8), (), "NaN or Inf, or the solution ov"),
    "CG": (
        pj.CG(1e-8, 1e-8),
        np.diag([1.0, -2.0]),
        _DEFINITE,
        r"`CG\(\)` .* broke down: A is not definite.*`LU\(\)`",
    ),
    "CG-out-of-steps": (
        pj.CG(1e-8, 1e-8, max_steps=1),
        np.diag([1.0, 2.0]),
        _DEFINITE,
        r"`CG\(\)` .* maximum number of solver steps.* preconditioner",
    ),
    "BiCGStab": (
        pj.BiCGStab(),
        np.array([[0.0, 1], [-1, 0]]),
        (),
        r"`BiCGStab\(\)` .* broke down. Try another solver",
    ),
    "Neumann": (
        pj.Neumann(200),
        np.diag([4.0, 5.0]),
        (),
        r"`Neumann\(\)` .* diverges: its terms grow.*smaller `scale`",
    ),
}


def _raising(name):
    solver, matrix, tags, match = _SAID[name]

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        return pj.linear_solve(operator, vector, solver).value

    return solve, (matrix, np.arange(1.0, len(matrix) + 1)), match


@pytest.mark.default(
    *("QR-advice", "LU", "LU-zero", "SVD", "SVD-overflow", "Normal(Cholesky)", "BiCGStab")
)
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _SAID)
def test_message_says_what_was_seen_and_what_would_do(name):
    solve, arguments, match = _raising(name)
    with pytest.raises(eqx.EquinoxRuntimeError, match=match):
        jax.block_until_ready(solve(*arguments))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_message_has_the_estimate_of_the_stats(dtype):
    eps = np.finfo(dtype).eps
    matrices = np.stack([np.eye(2), [[1, 1], [1, 1 + eps]]]).astype(dtype)

    def solve(matrix, throw):
        vector = np.ones(2, dtype)
        return pj.linear_solve(matrix, vector, pj.LU(), throw=throw)

    stats = jax.vmap(lambda matrix: solve(matrix, False))(matrices).stats
    batch = eqx.filter_jit(jax.vmap(lambda matrix: solve(matrix, True).value))
    with pytest.raises(eqx.EquinoxRuntimeError) as error:
        jax.block_until_ready(batch(matrices))
    told = re.search(r"of A is about (\S+);", str(error.value))[1]
    assert float(told) == pytest.approx(float(stats["reciprocal_condition"][1]), rel=0.05)


@pytest.mark.default("LU")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", ["QR", "LU", "CG"])
def test_message_is_the_same_under_plain_jit(name):
    solve, arguments, match = _raising(name)
    with pytest.raises(jax.errors.JaxRuntimeError, match=match):
        jax.block_until_ready(jax.jit(solve)(*arguments))
