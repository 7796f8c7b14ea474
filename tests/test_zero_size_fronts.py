"""No rows or no columns in each front and further solver, and batches without members."""

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import jit

import pseudojvp as pj


SUCCESSFUL = lx.RESULTS.successful
_SHAPES = [(0, 3), (3, 0), (0, 0)]
_each_shape = pytest.mark.parametrize("shape", _SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
_ANY = pj.AutoLinearSolver(well_posed=False)


def _factorise(A, b):
    factorised, w = pj.factorise(A, _ANY), jnp.ones(A.shape[1])
    return (
        factorised.solve(b),
        factorised.residual(b),
        factorised.adjoint_solve(w),
        factorised.gram_inverse(w),
        factorised.project(w),
    )


# What each returns for no rows or no columns, of A and b: NumPy's formulas.
_FRONTS = {
    "linear_solve": (
        lambda A, b: pj.linear_solve(A, b, _ANY).value,
        lambda p, b: p @ b,
    ),
    "lstsq": (lambda A, b: pj.lstsq(A, b)[:2], lambda p, b: (p @ b, np.array([b @ b]))),
    "pinv": (lambda A, b: pj.pinv(A), lambda p, b: p),
    "project": (pj.project, lambda p, b: (0 * b, b)),
    "invert": (lambda A, b: pj.invert(A, _ANY).as_matrix(), lambda p, b: p),
    "factorise": (_factorise, lambda p, b: (p @ b, b, 0 * b, *[np.zeros(len(p))] * 2)),
}


def _assert_equal(got, want):
    for leaf, truth in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(leaf, truth)


@pytest.mark.default("lstsq-0x3", "invert-0x3", "project-3x0")
@pytest.mark.ci("*")
@_each_shape
@pytest.mark.parametrize("name", _FRONTS)
def test_value_and_derivatives_of_a_front_without_rows_or_columns(name, shape):
    front, formula = _FRONTS[name]
    A, b = jnp.zeros(shape), jnp.arange(1.0, shape[0] + 1)
    want = jax.tree.map(np.asarray, formula(np.zeros(shape[::-1]), np.asarray(b)))
    batch = jnp.stack([A] * 2), jnp.stack([b] * 2)

    @jit
    def run(A, b):
        loss = lambda A, b: sum(jnp.sum(x) for x in jax.tree.leaves(front(A, b)))
        return front(A, b), jax.grad(loss, (0, 1))(A, b)

    value, (of_matrix, of_vector) = run(A, b)
    _assert_equal(value, want)
    assert of_matrix.shape == shape
    assert np.all(np.isfinite(of_vector))
    _assert_equal(
        jit(jax.vmap(front))(*batch), jax.tree.map(lambda x: np.stack([x, x]), want)
    )


_FORMATS = {
    "csr": scipy.sparse.csr_array,
    "coo": scipy.sparse.coo_array,
    "BCOO": lambda shape: jsparse.BCOO.fromdense(jnp.zeros(shape), nse=0),
    "operator": lambda shape: pj.SparseLinearOperator(scipy.sparse.csr_array(shape)),
}


@pytest.mark.default("csr-0x0")
@pytest.mark.ci("*")
@_each_shape
@pytest.mark.parametrize("name", _FORMATS)
def test_fronts_take_sparse_matrices_without_rows_or_columns(name, shape):
    A, b = _FORMATS[name](shape), np.arange(1.0, shape[0] + 1)
    zeros = np.zeros(shape[1])
    np.testing.assert_array_equal(pj.linear_solve(A, b, _ANY).value, zeros)
    np.testing.assert_array_equal(pj.project(A, b).residual, b)
    function = lambda A, b: jnp.ones(A.in_size())
    for arguments in ({}, {"damp": 0.5}, {"rtol": 1e-3}, {"solver": function}):
        x = pj.sparse_lstsq(A, np.ones((shape[0], 2)), **arguments)
        np.testing.assert_array_equal(x, np.zeros((shape[1], 2)))


@pytest.mark.parametrize("well_posed", [True, None, False])
def test_default_solvers_take_a_sparse_matrix_without_entries(well_posed):
    A, solver = scipy.sparse.csr_array((0, 0)), pj.AutoLinearSolver(well_posed)
    solution = pj.linear_solve(A, np.zeros(0), solver, throw=False)
    assert solution.value.shape == (0,)
    assert solution.result == SUCCESSFUL


_PSD, _SYMMETRIC = lx.positive_semidefinite_tag, lx.symmetric_tag
_LOWER, _TRIDIAGONAL = lx.lower_triangular_tag, lx.tridiagonal_tag
_ones = lambda A, b: jnp.ones(A.in_size())
# Solvers and tags, beside those of `test_zero_size.py`.
_OF_ANY_SHAPE = {
    "LSMR": pj.LSMR(),
    "LSMR(well_posed=True)": pj.LSMR(well_posed=True),
    "FunctionSolver": pj.FunctionSolver(_ones),
    "FunctionSolver(well_posed=False)": pj.FunctionSolver(_ones, well_posed=False),
    "lineax.LSMR": lx.LSMR(1e-3, 1e-3),
}
_SQUARE = {
    "MINRES": (pj.MINRES(), _SYMMETRIC),
    "MINRES(well_posed=True)": (pj.MINRES(well_posed=True), _SYMMETRIC),
    "GMRES": (pj.GMRES(), ()),
    "BiCGStab": (pj.BiCGStab(), ()),
    "FlexibleCG": (pj.FlexibleCG(preconditioner=jnp.tanh), _PSD),
    "FlexibleGMRES": (pj.FlexibleGMRES(preconditioner=jnp.tanh), ()),
    "LearnedCG": (pj.LearnedCG(3), _PSD),
    "SparseLU": (pj.SparseLU(), ()),
    "SparseTriangular": (pj.SparseTriangular(), _LOWER),
    "SparseTriangular-seen": (pj.SparseTriangular(), ()),
    "Tridiagonal": (pj.Tridiagonal(), _TRIDIAGONAL),
    "lineax.Diagonal": (lx.Diagonal(), lx.diagonal_tag),
    "lineax.GMRES": (lx.GMRES(1e-3, 1e-3), ()),
    "lineax.BiCGStab": (lx.BiCGStab(1e-3, 1e-3), ()),
    "lineax.CG": (lx.CG(1e-3, 1e-3), _PSD),
}
_OF_NONE = [
    pytest.param(solver, (), shape, id=f"{name}-{shape[0]}x{shape[1]}")
    for name, solver in _OF_ANY_SHAPE.items()
    for shape in _SHAPES
] + [
    pytest.param(solver, tags, (0, 0), id=name)
    for name, (solver, tags) in _SQUARE.items()
]


@pytest.mark.ci("*")
@pytest.mark.parametrize(("solver", "tags", "shape"), _OF_NONE)
def test_solver_of_no_rows_or_columns_gives_zero_and_so_do_derivatives(
    solver, tags, shape
):
    nothing = np.zeros(0), np.zeros(0, int), np.zeros(0, int), shape
    sparsity = pj.SparseLinearOperator(nothing).sparsity
    data, vector = jnp.zeros(0), jnp.arange(1.0, shape[0] + 1)

    def solve(data, vector):
        operator = pj.SparseLinearOperator((data, sparsity), tags)
        return pj.linear_solve(operator, vector, solver, throw=False)

    def run(data, vector):
        loss = lambda *primals: jnp.sum(solve(*primals).value ** 2 + 1)
        gradient = jax.grad(loss, (0, 1))
        primals, solution = (data, vector), solve(data, vector)
        return solution.value, solution.result, jax.jvp(gradient, primals, primals)

    batch = data[None], vector[None]
    for out in (jit(run)(data, vector), jit(jax.vmap(run))(*batch)):
        value, result, slopes = out
        assert np.all(result == SUCCESSFUL)
        for leaf in (value, *jax.tree.leaves(slopes)):
            np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
        assert value.shape[-1] == shape[1]


def test_tridiagonal_function_of_no_numbers_is_solved():
    none = jax.ShapeDtypeStruct((0,), float)
    operator = lx.FunctionLinearOperator(lambda x: 2 * x, none, _TRIDIAGONAL)
    solution = pj.linear_solve(operator, jnp.zeros(0), pj.Tridiagonal())
    assert solution.value.shape == (0,)


@pytest.mark.parametrize("create", [pj.incomplete_cholesky, pj.incomplete_lu])
def test_incomplete_factors_of_a_matrix_without_entries(create):
    operator = pj.SparseLinearOperator(scipy.sparse.csr_array((0, 0)), _PSD)
    assert create(operator).mv(jnp.zeros(0)).shape == (0,)


@pytest.mark.default("LU")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    "solver",
    [pj.LU(), pj.QR(), pj.PivotedQR(), pj.LSMR(), pj.GMRES(), lx.BiCGStab(1e-3, 1e-3)],
    ids=lambda solver: type(solver).__name__,
)
def test_batch_without_members_raises_nothing(solver):
    loss = lambda A, b: jnp.sum(pj.linear_solve(A, b, solver).value)
    value_and_grad = jax.value_and_grad(loss, (0, 1))
    value, (of_matrix, of_vector) = jit(jax.vmap(value_and_grad))(
        jnp.zeros((0, 3, 3)), jnp.zeros((0, 3))
    )
    shapes = value.shape, of_matrix.shape, of_vector.shape
    assert shapes == ((0,), (0, 3, 3), (0, 3))


@pytest.mark.ci("*")
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_batch_without_members_of_a_sparse_matrix(axes):
    pattern = pj.SparseLinearOperator(scipy.sparse.csr_array([[2.0, 1], [0, 3]]))
    data = jnp.zeros((0, 3)) if axes[0] == 0 else pattern.data
    b = jnp.zeros((0, 2)) if axes[1] == 0 else jnp.ones(2)

    def loss(data, b):
        moved = pj.SparseLinearOperator((data, pattern.sparsity))
        return jnp.sum(pj.sparse_solve(moved, b) + pj.sparse_lstsq(moved, b))

    of_data, of_b = jit(jax.vmap(jax.grad(loss, (0, 1)), axes))(data, b)
    assert (of_data.shape, of_b.shape) == ((0, 3), (0, 2))


def test_a_member_that_fails_raises_in_a_batch_of_batches():
    matrices = jnp.stack([jnp.eye(2), jnp.ones((2, 2))] * 2).reshape(2, 2, 2, 2)
    solve = jax.vmap(jax.vmap(lambda A: pj.linear_solve(A, jnp.ones(2)).value))
    with pytest.raises(eqx.EquinoxRuntimeError, match="needs full rank"):
        solve(matrices)
    np.testing.assert_array_equal(solve(matrices[:, :1]), np.ones((2, 1, 2)))


@pytest.mark.parametrize(
    ("basis", "data", "match"),
    [
        (lambda theta, t: jnp.zeros((5, 0)), 5, "at least one column"),
        (lambda theta, t: jnp.exp(-jnp.outer(t, theta)), 0, "at least 1"),
    ],
)
def test_fit_without_columns_or_data_is_an_error(basis, data, match):
    with pytest.raises(ValueError, match=match):
        pj.varpro(basis, jnp.ones(data), jnp.ones(1), jnp.ones(data))
