"""Vectors of every kind that lineax takes: pytrees, mixed dtypes, integers."""

import subprocess
import sys

import drop_in_cases as cases
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


OTHERS = pytest.mark.ci("*")  # a program each
# lineax promotes in the operators of leaves of several dtypes.
_promotes = pytest.mark.usefixtures("_promotion")


@pytest.fixture
def _promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


SOLVERS = {
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "LU": lx.LU(),
    "Normal(Cholesky)": pj.Normal(lx.Cholesky()),
    "Normal(CG)": pj.Normal(pj.CG(1e-12, 1e-12)),
    "CG": pj.CG(1e-12, 1e-12),
    "Neumann": pj.Neumann(200, scale=0.5),
}
_EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
_DENSE = pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), lx.LU(), pj.Normal(lx.Cholesky())],
    ids=["QR", "SVD", "LU", "Normal(Cholesky)"],
)
_SQUARE_PART = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, 0.25], [0.5, 0.25, 1.5]])


def _block_operator(matrix, tags):
    """A 3 x 3 matrix as an operator on {"a": two entries, "b": one entry}."""
    matrix = jnp.asarray(matrix)
    tree = {
        "a": {"a": matrix[:2, :2], "b": matrix[:2, 2:]},
        "b": {"a": matrix[2:, :2], "b": matrix[2:, 2:]},
    }
    structure = jax.eval_shape(lambda: {"a": jnp.ones(2), "b": jnp.ones(1)})
    return lx.PyTreeLinearOperator(tree, structure, tags)


def _mixed_function(first, second):
    """The matrix above on a pair of leaves of two dtypes, each kept by the map."""

    def multiply(vector):
        a, b = vector
        flat = jnp.concatenate([a.astype(float), b.astype(float)])
        image = jnp.asarray(_SQUARE_PART) @ flat
        return image[:2].astype(first), image[2:].astype(second)

    structure = (jax.ShapeDtypeStruct((2,), first), jax.ShapeDtypeStruct((1,), second))
    tags = lx.positive_semidefinite_tag
    return lx.FunctionLinearOperator(multiply, structure, tags)


_NON_SQUARE = pytest.mark.parametrize(
    "solver",
    [pj.QR(), pj.SVD(), pj.Normal(lx.Cholesky()), pj.Normal(pj.CG(1e-12, 1e-12))],
    ids=["QR", "SVD", "Normal(Cholesky)", "Normal(CG)"],
)
_TALL = cases.conditioned((3, 2), [1.0, 2.0], float, 3)


def _tall_pytree_operator():
    tree = {"a": [jnp.asarray(_TALL[:2]), ()], "b": jnp.asarray(_TALL[2])}
    structure = jax.eval_shape(lambda: {"a": [jnp.ones(2), ()], "b": jnp.ones(())})
    return lx.PyTreeLinearOperator(tree, structure)


@pytest.mark.default("SVD")
@OTHERS
@_NON_SQUARE
def test_tall_operator_maps_a_nested_vector_to_a_flat_solution(solver):
    vector = {"a": [jnp.array([1.0, -2.0]), ()], "b": jnp.array(0.5)}
    solution = pj.linear_solve(_tall_pytree_operator(), vector, solver, throw=False)
    truth = np.linalg.pinv(_TALL) @ [1.0, -2.0, 0.5]
    np.testing.assert_allclose(solution.value, truth, rtol=1e-9)


@pytest.mark.default("Normal(Cholesky)")
@OTHERS
@_NON_SQUARE
def test_wide_operator_maps_a_flat_vector_to_a_nested_solution(solver):
    operator = _tall_pytree_operator().transpose()
    vector = jnp.array([1.0, -2.0])
    value = pj.linear_solve(operator, vector, solver, throw=False).value
    truth = np.linalg.pinv(_TALL.T) @ [1.0, -2.0]
    np.testing.assert_allclose(value["a"][0], truth[:2], rtol=1e-9)
    np.testing.assert_allclose(value["b"], truth[2], rtol=1e-9)


def _columns(first, second, out):
    """The 2 x 2 matrix [[3, 1], [1, 2]], each column of a dtype, with a vector `out`."""
    tree = [
        [jnp.asarray(3, first), jnp.asarray(1, second)],
        [jnp.asarray(1, first), jnp.asarray(2, second)],
    ]
    structure = jax.eval_shape(lambda: [jnp.asarray(0, out)] * 2)
    return lx.PyTreeLinearOperator(tree, structure)


@_promotes
@pytest.mark.default("float32-float64-SVD", "float-complex-QR")
@OTHERS
@_DENSE
@pytest.mark.parametrize(("first", "second"), [("float32", "float64"), (float, complex)])
def test_leaves_of_two_dtypes_are_solved_and_keep_them(solver, first, second):
    operator = _columns(first, second, second)
    # The solution is (2, −1): real also where the second leaf is complex.
    vector = [jnp.asarray(5, second), jnp.asarray(0, second)]
    if second is complex and isinstance(solver, pj.LU | lx.LU):
        # Over the reals four equations for three unknowns.
        with pytest.raises(ValueError, match="with square matrices"):
            pj.linear_solve(operator, vector, solver)
        return
    a, b = pj.linear_solve(operator, vector, solver, throw=False).value
    assert (a.dtype, b.dtype) == (first, second)
    np.testing.assert_allclose([a, b], [2, -1], rtol=1e-6)  # the first may be float32


# Not for SVD: its rule takes the transpose of the tangent operator, which lineax 0.1.1
# refuses for a `PyTreeLinearOperator` whose columns differ in dtype.
@_promotes
@pytest.mark.default("QR")
@OTHERS
@pytest.mark.parametrize(
    "solver",
    [pj.QR(), lx.LU(), pj.Normal(lx.Cholesky())],
    ids=["QR", "LU", "Normal(Cholesky)"],
)
def test_gradient_for_leaves_of_two_precisions_keeps_their_dtypes(solver):
    operator = _columns("float32", "float64", "float64")

    @jax.jit
    @jax.grad
    def gradient(operator):
        vector = [jnp.asarray(5.0), jnp.asarray(0.0)]
        first, second = pj.linear_solve(operator, vector, solver).value
        return first.astype(float) + 2 * second

    (g00, g01), (g10, g11) = gradient(operator).pytree
    assert (g00.dtype, g01.dtype) == ("float32", "float64")
    adjoint = np.linalg.solve([[3.0, 1.0], [1.0, 2.0]], [1.0, 2.0])
    truth = -np.outer(adjoint, [2.0, -1.0])
    got = [[g00, g01], [g10, g11]]
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-6)  # one leaf is float32


@_promotes
@pytest.mark.default("CG")
@OTHERS
@pytest.mark.parametrize(
    "solver", [pj.CG(1e-6, 1e-6), pj.Neumann(200, scale=0.5)], ids=["CG", "Neumann"]
)
def test_matrix_free_solver_keeps_the_precision_of_each_leaf(solver):
    operator = _mixed_function("float32", "float64")
    vector = (jnp.ones(2, "float32"), jnp.ones(1, "float64"))
    first, second = pj.linear_solve(operator, vector, solver, throw=False).value
    assert (first.dtype, second.dtype) == ("float32", "float64")
    truth = np.linalg.solve(_SQUARE_PART, np.ones(3))
    # One leaf, and so every product with the operator, is in single precision.
    np.testing.assert_allclose(np.append(first, second), truth, rtol=1e-5)


@pytest.mark.default("QR", "Neumann")
@OTHERS
@_EVERY_SOLVER
def test_strict_promotion_and_rank_rules_are_kept(solver):
    operator = _block_operator(_SQUARE_PART, cases.positive)
    vector = {"a": jnp.ones(2), "b": jnp.ones(1)}

    @jax.jit
    def value_and_gradient(vector):
        def loss(vector):
            solution = pj.linear_solve(operator, vector, solver, throw=False)
            return jnp.sum(solution.value["a"])

        return jax.value_and_grad(loss)(vector)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        value, gradient = value_and_gradient(vector)
    solution = np.linalg.solve(_SQUARE_PART, np.ones(3))
    adjoint = np.linalg.solve(_SQUARE_PART.T, [1.0, 1.0, 0.0])
    np.testing.assert_allclose(value, solution[:2].sum(), rtol=1e-10)
    np.testing.assert_allclose(
        np.append(gradient["a"], gradient["b"]), adjoint, rtol=1e-9
    )


def _loosened(solver):
    """The solver with tolerances that single precision can meet."""
    loose = {pj.CG: pj.CG(1e-6, 1e-6), pj.Normal: pj.Normal(pj.CG(1e-5, 1e-5))}
    return loose.get(type(solver), solver)


@pytest.mark.default("Neumann-complex64")
@OTHERS
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", ["QR", "SVD", "Normal(CG)", "CG", "Neumann"])
def test_strict_promotion_is_kept_in_single_precision(name, dtype):
    solver = _loosened(SOLVERS[name])
    matrix = cases.matrix_of("positive", 3, np.dtype(dtype))

    @jax.jit
    def gradient(matrix):
        def loss(matrix):
            operator = cases.operator_of(matrix, "positive")
            vector = jnp.ones(3, dtype)
            solution = pj.linear_solve(operator, vector, solver, throw=False)
            return jnp.sum(solution.value.real)

        return jax.grad(loss)(matrix)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = gradient(matrix)
    assert got.dtype == dtype
    assert np.isfinite(got).all()


@pytest.mark.default("SVD")
@OTHERS
@pytest.mark.parametrize("solver", [pj.QR(), pj.SVD()], ids=["QR", "SVD"])
def test_strict_promotion_is_kept_between_leaves_of_two_precisions(solver):
    operator = _columns("float32", "float64", "float64")
    vector = [jnp.asarray(5.0), jnp.asarray(0.0)]

    @jax.jit
    @jax.grad
    def gradient(vector):
        first, second = pj.linear_solve(operator, vector, solver).value
        return first.astype(float) + 2 * second

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = gradient(vector)
    adjoint = np.linalg.solve([[3.0, 1.0], [1.0, 2.0]], [1.0, 2.0])
    np.testing.assert_allclose(got, adjoint, atol=1e-6)  # one leaf is in single precision


@pytest.mark.parametrize(
    "vector", [jnp.arange(3), np.arange(3), jnp.array([0, 1, 2], "int8")]
)
def test_integer_vector_becomes_a_float_vector(vector):
    solution = pj.linear_solve(lx.MatrixLinearOperator(jnp.asarray(_SQUARE_PART)), vector)
    assert solution.value.dtype == float
    truth = np.linalg.solve(_SQUARE_PART, np.arange(3))
    np.testing.assert_allclose(solution.value, truth, rtol=1e-13)


def test_integer_matrix_becomes_a_float_operator():
    solution = pj.linear_solve(np.array([[2, 0], [0, 4]]), jnp.ones(2), pj.QR())
    np.testing.assert_allclose(solution.value, [0.5, 0.25], rtol=1e-15)


def test_identity_returns_the_vector():
    operator = lx.IdentityLinearOperator(
        jax.eval_shape(lambda: (jnp.ones(2), jnp.ones(())))
    )
    vector = (jnp.array([1.0, 2.0]), jnp.array(3.0))
    solution = pj.linear_solve(operator, vector)
    assert solution.result == lx.RESULTS.successful
    assert eqx.tree_equal(solution.value, vector)


def test_identity_between_structures_returns_the_other_structure():
    flat, nested = jnp.array([1.0, 2.0, 3.0]), (jnp.array([1.0, 2.0]), jnp.array(3.0))
    structures = jax.eval_shape(lambda: (nested, flat))
    operator = lx.IdentityLinearOperator(*structures)
    assert eqx.tree_equal(pj.linear_solve(operator, flat).value, nested)


def test_diagonal_operator_of_a_pytree_is_solved_leaf_by_leaf():
    operator = lx.DiagonalLinearOperator(
        {"a": jnp.array([2.0, 4.0]), "b": jnp.array(5.0)}
    )
    solution = pj.linear_solve(operator, {"a": jnp.ones(2), "b": jnp.ones(())})
    np.testing.assert_allclose(solution.value["a"], [0.5, 0.25])
    np.testing.assert_allclose(solution.value["b"], 0.2)


_WITHOUT_X64 = """
import jax, jax.numpy as jnp, lineax as lx, numpy as np, pseudojvp as pj
jax.config.update("jax_disable_most_optimizations", True)
matrix = jnp.array([[3.0, 1.0], [1.0, 2.0]])
for solver in (pj.QR(), pj.SVD(), pj.CG(1e-5, 1e-5), pj.Normal(lx.Cholesky()),
               pj.Neumann(100, 0.4), pj.AutoLinearSolver(well_posed=True)):
    def loss(matrix):
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        return jnp.sum(pj.linear_solve(operator, jnp.ones(2), solver).value)
    value, gradient = jax.jit(jax.value_and_grad(loss))(matrix)
    assert gradient.dtype == value.dtype == jnp.dtype("float32")
    assert abs(value - 0.6) < 1e-5, (solver, value)
    total = jnp.sum(gradient * matrix)
    assert abs(total + value) < 1e-4, (solver, total)  # x(sA) = x(A) / s
"""


@pytest.mark.slow  # ten seconds
def test_solves_and_gradients_work_without_x64():
    # The switch is one of the process, so this takes a process of its own.
    command = [sys.executable, "-W", "error", "-c", _WITHOUT_X64]
    subprocess.run(command, check=True, timeout=300)
