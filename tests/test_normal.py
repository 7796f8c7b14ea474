"""What `Normal` promises, for every inner solver, against dense NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SUCCESSFUL = lx.RESULTS.successful
PSD = lx.positive_semidefinite_tag
CG = pj.CG(1e-12, 1e-12, max_steps=200)
DEFICIENT = {"tall": (5, 3, 2), "wide": (3, 5, 2)}

dtypes = pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])
deficient_shapes = pytest.mark.parametrize(
    ("rows", "cols", "rank"), DEFICIENT.values(), ids=DEFICIENT.keys()
)
tall_or_wide = pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=["tall", "wide"])


def _normal_entries(rng, shape, dtype):
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if dtype is complex else real


def _matrix(rows, cols, rank, dtype):
    """A matrix with singular values between 1 and 3."""
    rng = np.random.default_rng(2)
    left, _ = np.linalg.qr(_normal_entries(rng, (rows, rank), dtype))
    right, _ = np.linalg.qr(_normal_entries(rng, (cols, rank), dtype))
    return (left * np.linspace(1, 3, rank)) @ right.conj().T


def _vector(size, dtype):
    return _normal_entries(np.random.default_rng(3), (size,), dtype)


def _solve_and_compare(matrix, solver, operator=None):
    operator = (
        lx.MatrixLinearOperator(jnp.asarray(matrix)) if operator is None else operator
    )
    b = _vector(matrix.shape[0], complex if np.iscomplexobj(matrix) else float)
    solution = pj.linear_solve(operator, b, solver, throw=False)
    assert solution.result == SUCCESSFUL
    np.testing.assert_allclose(
        solution.value, np.linalg.pinv(matrix, rcond=1e-8) @ b, rtol=1e-9, atol=1e-10
    )
    return solution


@pytest.mark.default("lineax.LU-wide", "pseudojvp.SVD-tall")
@pytest.mark.ci("*-wide")
@tall_or_wide
@pytest.mark.parametrize(
    "inner",
    [
        lx.Cholesky(),
        lx.LU(),
        pj.QR(),
        lx.QR(),
        pj.SVD(),
        lx.SVD(),
        pj.AutoLinearSolver(True),
        lx.AutoLinearSolver(True),
        CG,
        lx.CG(1e-12, 1e-12, max_steps=200),
    ],
    ids=lambda inner: f"{type(inner).__module__.split('.')[0]}.{type(inner).__name__}",
)
def test_every_inner_solver_gives_the_pseudoinverse_solution(inner, shape):
    _solve_and_compare(_matrix(*shape, min(shape), complex), pj.Normal(inner))


@pytest.mark.default("square")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "shape", [(5, 3), (3, 5), (4, 4)], ids=["tall", "wide", "square"]
)
def test_real_operator_gets_a_real_pseudoinverse_solution(shape):
    matrix = _matrix(*shape, min(shape), float)
    solution = _solve_and_compare(matrix, pj.Normal(lx.Cholesky()))
    assert solution.value.dtype == float


@pytest.mark.default("complex")
@pytest.mark.ci("*")
@dtypes
def test_square_operator_is_solved_as_tall(dtype):
    _solve_and_compare(_matrix(4, 4, 4, dtype), pj.Normal(CG))


@pytest.mark.default("SVD-wide")
@pytest.mark.ci("*-tall", "CG-singular-wide")
@deficient_shapes
@pytest.mark.parametrize(
    "inner",
    [
        pj.SVD(1e-8),
        lx.SVD(1e-8),
        pj.CG(1e-10, 1e-10, max_steps=200),
        pj.CG(1e-10, 1e-10, max_steps=200, well_posed=False),
        pj.Neumann(1000, scale=0.1, rtol=1e-12),
    ],
    ids=["SVD", "lx.SVD", "CG", "CG-singular", "Neumann"],
)
def test_rank_deficient_operator_gives_the_pseudoinverse_solution(
    inner, rows, cols, rank
):
    matrix = _matrix(rows, cols, rank, complex)
    b = matrix @ _vector(cols, complex)  # in the range, which wide inner systems need
    solution = pj.linear_solve(jnp.asarray(matrix), b, pj.Normal(inner), throw=False)
    assert solution.result == SUCCESSFUL
    expected = np.linalg.pinv(matrix, rcond=1e-8) @ b
    np.testing.assert_allclose(solution.value, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.default("SVD-tall")
@pytest.mark.ci("*")
@deficient_shapes
@pytest.mark.parametrize(
    "inner",
    [pj.SVD(1e-8), pj.CG(1e-10, 1e-10, max_steps=200, well_posed=False)],
    ids=["SVD", "CG-singular"],
)
def test_semidefinite_inner_solver_takes_an_inconsistent_vector(inner, rows, cols, rank):
    _solve_and_compare(_matrix(rows, cols, rank, complex), pj.Normal(inner))


class _MatrixFree(lx.AbstractLinearOperator):
    """A matrix that refuses to be materialised, in every form."""

    matrix: jax.Array

    def mv(self, vector):
        return self.matrix @ vector

    def as_matrix(self):
        raise AssertionError("a matrix-free operator was materialised")

    def transpose(self):
        return _MatrixFree(self.matrix.T)

    def in_structure(self):
        return jax.ShapeDtypeStruct((self.matrix.shape[1],), self.matrix.dtype)

    def out_structure(self):
        return jax.ShapeDtypeStruct((self.matrix.shape[0],), self.matrix.dtype)


@lx.linearise.register(_MatrixFree)
def _(operator):
    return operator


@lx.conj.register(_MatrixFree)
def _(operator):
    return _MatrixFree(operator.matrix.conj())


for _check in (
    lx.has_unit_diagonal,
    lx.is_diagonal,
    lx.is_lower_triangular,
    lx.is_negative_semidefinite,
    lx.is_positive_semidefinite,
    lx.is_symmetric,
    lx.is_tridiagonal,
    lx.is_upper_triangular,
):
    _check.register(_MatrixFree, lambda operator: False)


@pytest.mark.default("CG-wide")
@pytest.mark.ci("*-tall")
@tall_or_wide
@pytest.mark.parametrize(
    "inner",
    [CG, pj.Neumann(1000, scale=0.15, rtol=1e-12), lx.CG(1e-12, 1e-12, max_steps=200)],
    ids=["CG", "Neumann", "lx.CG"],
)
def test_matrix_free_operator_is_never_materialised(inner, shape):
    matrix = _matrix(*shape, min(shape), complex)
    _solve_and_compare(matrix, pj.Normal(inner), _MatrixFree(jnp.asarray(matrix)))


@pytest.mark.default("Cholesky-wide")
@pytest.mark.ci("*")
@tall_or_wide
@pytest.mark.parametrize(
    "inner",
    [lx.LU(), lx.Cholesky(), pj.QR(), CG],
    ids=lambda inner: type(inner).__name__,
)
def test_transposed_and_conjugated_states_solve_those_systems(inner, shape):
    matrix = _matrix(*shape, min(shape), complex)
    rows, cols = shape

    @jax.jit
    def solve(matrix, b, transposed_b):
        solver = pj.Normal(inner)
        state = solver.init(lx.MatrixLinearOperator(matrix), {})
        transposed = solver.transpose(state, {})
        conjugated = solver.conj(state, {})
        return (
            solver.compute(transposed[0], transposed_b, transposed[1])[0],
            solver.compute(conjugated[0], b, conjugated[1])[0],
        )

    b, transposed_b = _vector(rows, complex), _vector(cols, complex)
    x_transposed, x_conjugated = solve(matrix, b, transposed_b)
    np.testing.assert_allclose(x_transposed, np.linalg.pinv(matrix.T) @ transposed_b)
    np.testing.assert_allclose(x_conjugated, np.linalg.pinv(matrix.conj()) @ b)


@pytest.mark.default("wide-complex")
@pytest.mark.ci("tall-complex")
@dtypes
@tall_or_wide
def test_exact_preconditioner_converges_at_once(shape, dtype):
    # M = A† makes M M^H the inverse of A^H A, and M^H M that of A A^H.
    matrix = _matrix(*shape, min(shape), dtype)
    options = {"preconditioner": lx.MatrixLinearOperator(np.linalg.pinv(matrix))}
    b = _vector(shape[0], dtype)
    solver = pj.Normal(pj.CG(1e-9, 1e-9, max_steps=50))
    solution = pj.linear_solve(matrix, b, solver, options=options, throw=False)
    assert solution.stats["num_steps"] <= 2
    expected = np.linalg.pinv(matrix) @ b
    np.testing.assert_allclose(solution.value, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.default("tall-complex")
@pytest.mark.ci("wide-complex")
@dtypes
@tall_or_wide
def test_first_guess_at_the_solution_saves_steps(shape, dtype):
    # A wide system needs M as well: the inner guess is M^H y0.
    matrix = _matrix(*shape, min(shape), dtype)
    pseudoinverse = np.linalg.pinv(matrix)
    b = _vector(shape[0], dtype)
    guess = jnp.asarray(pseudoinverse @ b)
    options = {"y0": guess, "preconditioner": lx.MatrixLinearOperator(pseudoinverse)}
    solver = pj.Normal(pj.CG(1e-9, 1e-9, max_steps=50))
    solution = pj.linear_solve(matrix, b, solver, options=options, throw=False)
    assert solution.stats["num_steps"] <= 1
    np.testing.assert_allclose(solution.value, guess, rtol=1e-8, atol=1e-10)


@pytest.mark.default("wide")
@pytest.mark.ci("*")
@tall_or_wide
def test_first_guess_leaves_the_solution(shape):
    matrix = _matrix(*shape, min(shape), complex)
    b, guess = _vector(shape[0], complex), jnp.ones(shape[1], complex)
    solution = pj.linear_solve(
        matrix, b, pj.Normal(CG), options={"y0": guess}, throw=False
    )
    np.testing.assert_allclose(solution.value, np.linalg.pinv(matrix) @ b, rtol=1e-9)


@pytest.mark.slow  # loops with preconditioners: one to two seconds of compiling each
@tall_or_wide
@pytest.mark.parametrize("scale", [2.0**664, 2.0**-664], ids=["huge", "tiny"])
@pytest.mark.parametrize("names", [(), ("y0", "preconditioner")], ids=["bare", "options"])
def test_scale_of_a_matrix_free_operator_does_not_matter(names, shape, scale):
    # The preconditioner and the first guess are in the units of the operator.
    matrix = _matrix(*shape, min(shape), complex)
    pseudoinverse, b = np.linalg.pinv(matrix), _vector(shape[0], complex)
    options = {
        "y0": jnp.ones(shape[1], complex) / scale,
        "preconditioner": lx.MatrixLinearOperator(pseudoinverse / scale),
    }
    solver = pj.Normal(pj.CG(1e-12, 0.0, max_steps=50))
    given = {name: options[name] for name in names}
    solution = pj.linear_solve(scale * matrix, b, solver, options=given, throw=False)
    np.testing.assert_allclose(solution.value * scale, pseudoinverse @ b, rtol=1e-10)


@pytest.mark.default("transpose-tall")
@pytest.mark.ci("*")
@tall_or_wide
@pytest.mark.parametrize("mapping", ["transpose", "conj"])
def test_transposed_and_conjugated_states_keep_the_scale(mapping, shape):
    matrix, scale = _matrix(*shape, min(shape), complex), 2.0**664
    truth = {"transpose": matrix.T, "conj": matrix.conj()}[mapping]
    b = _vector(len(truth), complex)

    @eqx.filter_jit
    def solve(matrix, b):
        solver = pj.Normal(CG)
        state = solver.init(lx.MatrixLinearOperator(matrix), {})
        state, options = getattr(solver, mapping)(state, {})
        return solver.compute(state, b, options)

    value, result, _ = solve(scale * matrix, b)
    assert result == SUCCESSFUL
    np.testing.assert_allclose(value * scale, np.linalg.pinv(truth) @ b, rtol=1e-10)


@pytest.mark.slow  # of an inner solver of lineax
@tall_or_wide
def test_inner_gmres_that_is_content_with_a_large_residual_is_told(shape):
    # It looks at the residual after its preconditioner, here one that is far too small.
    matrix = _matrix(*shape, min(shape), float)
    small = lx.MatrixLinearOperator(1e-20 * np.linalg.pinv(matrix))
    solution = pj.linear_solve(
        jnp.asarray(matrix),
        _vector(shape[0], float),
        pj.Normal(lx.GMRES(1e-9, 1e-9, max_steps=30)),  # theirs, and not ours
        options={"preconditioner": small},
        throw=False,
    )
    assert solution.result == lx.RESULTS.stagnation


@pytest.mark.slow  # a second of compiling each
@pytest.mark.parametrize(
    "inner", [CG, lx.GMRES(1e-10, 1e-10, max_steps=30)], ids=["CG", "GMRES"]
)
@pytest.mark.parametrize(
    "operator",
    [
        lx.MatrixLinearOperator(np.array([[2.0 - 4.0j]])),
        lx.DiagonalLinearOperator(np.array([2.0, 3.0, 4.0])),
        lx.TridiagonalLinearOperator(np.arange(3.0, 7), np.ones(3), np.ones(3)),
        lx.MatrixLinearOperator(2 * np.eye(3), lx.diagonal_tag),
    ],
    ids=["one", "diagonal", "tridiagonal", "tagged"],
)
def test_operators_with_a_structure_are_solved(operator, inner):
    vector = jnp.arange(1, 1 + operator.out_size(), dtype=operator.out_structure().dtype)
    got = pj.linear_solve(operator, vector, pj.Normal(inner), throw=False).value
    np.testing.assert_allclose(
        got, np.linalg.solve(operator.as_matrix(), vector), rtol=1e-9
    )
