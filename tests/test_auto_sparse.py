"""Which solver `AutoLinearSolver` picks for a sparse operator, and that none is dense."""

import jax
import jax.experimental.sparse as jsparse
import jax.extend.core as jex
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj
from pseudojvp._front import sparse
from pseudojvp._solver.auto import default_solver


LARGE = 1001  # the square of it is more than a million
_POSITIVE = lx.positive_semidefinite_tag


def _sparse(rows, cols, tags=()):
    """Ones on both sides of the diagonal, some of them far."""
    ends = np.array([0, 1]), np.array([cols - 1, 0])
    return pj.SparseLinearOperator((np.ones(2), *ends, (rows, cols)), tags)


def _banded(size, *offsets, dtype=float):
    row = np.concatenate([np.arange(size - k) for k in offsets])
    col = np.concatenate([np.arange(k, size) for k in offsets])
    return pj.SparseLinearOperator((np.ones(row.size, dtype), row, col, (size, size)))


def _tagged(operator, *tags):
    for tag in tags:
        operator = lx.TaggedLinearOperator(operator, tag)
    return operator


SQUARE = {
    "small": (_sparse(4, 4), pj.LU),
    "small-definite": (_sparse(4, 4, _POSITIVE), pj.Cholesky),
    "small-triangular": (_banded(4, 0, 3), pj.SparseTriangular),
    "diagonal": (_banded(LARGE, 0), lx.Diagonal),
    "tridiagonal": (_banded(LARGE, 0, 1), pj.Tridiagonal),
    "triangular": (_banded(LARGE, 0, 3), pj.SparseTriangular),
    "tagged-triangular": (
        _tagged(_banded(LARGE, 0, 3), _POSITIVE, lx.upper_triangular_tag),
        pj.SparseTriangular,
    ),
    "definite": (_sparse(LARGE, LARGE, _POSITIVE), pj.CG),
    "negative": (_sparse(LARGE, LARGE, lx.negative_semidefinite_tag), pj.CG),
    "symmetric": (_sparse(LARGE, LARGE, lx.symmetric_tag), pj.MINRES),
    "general": (_sparse(LARGE, LARGE), pj.BiCGStab),
    "sum": (_sparse(LARGE, LARGE) + _banded(LARGE, 0, 3), pj.BiCGStab),
    "with-a-dense-one": (
        _sparse(LARGE, LARGE) @ lx.MatrixLinearOperator(jnp.ones((LARGE, LARGE))),
        pj.LU,
    ),
}


@pytest.mark.parametrize(("operator", "expected"), SQUARE.values(), ids=SQUARE.keys())
@pytest.mark.parametrize("well_posed", [True, None])
def test_square_operator_gets_the_solver_of_its_size_and_tags(
    operator, expected, well_posed
):
    solver = pj.AutoLinearSolver(well_posed).select_solver(operator)
    assert type(solver) is expected


ANY_SHAPE = {
    "small": ((4, 3), (), pj.QR, pj.PivotedQR),
    "tall": ((LARGE + 1, LARGE), (), pj.LSMR, pj.LSMR),
    "wide": ((LARGE, LARGE + 1), (), pj.LSMR, pj.LSMR),
    "general": ((LARGE, LARGE), (), pj.BiCGStab, pj.LSMR),
    "symmetric": ((LARGE, LARGE), lx.symmetric_tag, pj.MINRES, pj.MINRES),
}


@pytest.mark.parametrize(
    ("shape", "tags", "of_full_rank", "of_any_rank"),
    ANY_SHAPE.values(),
    ids=ANY_SHAPE.keys(),
)
def test_solver_of_any_shape_allows_the_rank_it_should(
    shape, tags, of_full_rank, of_any_rank
):
    operator = _sparse(*shape, tags)
    picked = [pj.AutoLinearSolver(w).select_solver(operator) for w in (None, False)]
    assert [type(solver) for solver in picked] == [of_full_rank, of_any_rank]
    assert [solver.assume_full_rank() for solver in picked] == [True, False]


def test_hermitian_operator_of_complex_entries_gets_minres():
    operator = _banded(LARGE, 0, 3, dtype=complex)
    operator = pj.SparseLinearOperator(
        (operator.data, operator.sparsity), pj.hermitian_tag
    )
    operator = operator + lx.conj(operator.T)
    tagged = lx.TaggedLinearOperator(operator, pj.hermitian_tag)
    assert type(pj.AutoLinearSolver(True).select_solver(tagged)) is pj.MINRES


WITH_OPTIONS = {
    "diagonal": (_banded(4, 0), pj.MINRES, pj.MINRES),
    "tridiagonal": (_banded(4, 0, 1), pj.BiCGStab, pj.LSMR),
    "triangular": (_banded(4, 0, 3), pj.BiCGStab, pj.LSMR),
    "definite": (_sparse(4, 4, _POSITIVE), pj.CG, pj.MINRES),
    "symmetric": (_sparse(4, 4, lx.symmetric_tag), pj.MINRES, pj.MINRES),
    "general": (_sparse(4, 4), pj.BiCGStab, pj.LSMR),
}


@pytest.mark.parametrize(
    ("operator", "of_full_rank", "of_any_rank"),
    WITH_OPTIONS.values(),
    ids=WITH_OPTIONS.keys(),
)
def test_options_take_an_iterative_solver_with_the_same_claim(
    operator, of_full_rank, of_any_rank
):
    picked = [default_solver(operator, claim, {"y0": 0}) for claim in (True, False)]
    assert [type(solver) for solver in picked] == [of_full_rank, of_any_rank]
    assert [solver.assume_full_rank() for solver in picked] == [True, False]


@pytest.mark.untyped
@pytest.mark.parametrize("size", [4, LARGE])
@pytest.mark.parametrize("tags", [(), lx.symmetric_tag, _POSITIVE])
def test_sparse_fronts_take_the_solver_of_the_automatic_one(monkeypatch, size, tags):
    taken = []
    monkeypatch.setattr(sparse, "_solve_columns", lambda *args: taken.append(args[2]))
    operator = _sparse(size, size, tags)
    for front in (pj.sparse_solve, pj.sparse_lstsq):
        front(operator, np.ones(size))
    want = [pj.AutoLinearSolver(claim).select_solver(operator) for claim in (True, False)]
    assert taken == want


# Singular with a known null space, symmetric, and too large to be solved as dense.
_BASIS = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 5)))[0]
_BLOCK = _BASIS * [1.0, 2.0, -3.0, 4.0, 0.0] @ _BASIS.T


def _singular(block_of_vector, block_of_cotangent, solver=None):
    """x and the gradient in the entries of the block, of 1001 unknowns."""
    row, col = np.divmod(np.arange(25), 5)
    rest = np.arange(5, LARGE)
    stored = np.r_[row, rest], np.r_[col, rest], (LARGE, LARGE)
    ones = np.ones(LARGE - 5)

    @jit
    def run(block):
        def solve(block):
            data = jnp.concatenate([block.ravel(), ones])
            operator = pj.SparseLinearOperator((data, *stored), lx.symmetric_tag)
            vector = np.r_[block_of_vector, ones]
            return pj.sparse_solve(operator, vector, solver, throw=False)[:5]

        x, pull = jax.vjp(solve, block)
        return x, pull(block_of_cotangent)[0]

    return run(_BLOCK)


_WITHIN = _BASIS @ np.array([1.0, 2.0, 3.0, 4.0, 0.0])
_BEYOND = _WITHIN + _BASIS[:, 4]


@pytest.mark.slow  # a second
def test_large_singular_symmetric_system_has_its_solution_and_its_gradient():
    x, gradient = _singular(_WITHIN, jnp.asarray(_WITHIN))
    want = np.linalg.pinv(_BLOCK) @ _WITHIN  # the adjoint solution as well
    np.testing.assert_allclose(x, want, atol=1e-8)
    np.testing.assert_allclose(gradient, -np.outer(want, want), atol=1e-8)


@pytest.mark.slow  # a second
def test_large_singular_symmetric_system_without_a_solution_is_told():
    x, gradient = _singular(_BEYOND, jnp.asarray(_WITHIN))
    assert np.all(np.isnan(x))
    assert np.all(np.isnan(gradient))


@pytest.mark.slow  # a second
def test_cotangent_beyond_the_range_of_a_large_singular_matrix_is_told():
    x, gradient = _singular(_WITHIN, jnp.asarray(_BEYOND))
    np.testing.assert_allclose(x, np.linalg.pinv(_BLOCK) @ _WITHIN, atol=1e-8)
    assert np.all(np.isnan(gradient))


def _largest_array(jaxpr):
    """The number of elements of the largest array that is computed."""
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, jex.Jaxpr)
        ):
            if isinstance(leaf, jex.ClosedJaxpr | jex.Jaxpr):
                sizes.append(_largest_array(getattr(leaf, "jaxpr", leaf)))
    return max(sizes, default=0)


def _diagonally_dominant(size):
    ends = np.arange(size)
    row = np.concatenate([ends, ends, ends])
    col = np.concatenate([ends, (ends + 7) % size, (ends + 100) % size])
    rng = np.random.default_rng(0)
    data = np.concatenate([np.full(size, 4.0), rng.uniform(-1, 1, 2 * size)])
    indices = jnp.asarray(np.stack([row, col], axis=1))
    return jsparse.BCOO((jnp.asarray(data), indices), shape=(size, size))


@pytest.mark.default("True")
@pytest.mark.ci("*")
@pytest.mark.parametrize("well_posed", [True, False])
def test_large_sparse_solve_and_its_gradient_make_nothing_dense(well_posed):
    matrix = _diagonally_dominant(LARGE)

    def loss(data):
        moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
        solver = pj.AutoLinearSolver(well_posed)
        return jnp.sum(pj.linear_solve(moved, jnp.ones(LARGE), solver).value)

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(matrix.data)
    assert _largest_array(jaxpr.jaxpr) <= 8 * matrix.nse  # eight columns of the estimate


@pytest.mark.slow  # a second
def test_default_solve_of_a_large_bcoo_and_its_gradient_are_those_of_the_matrix():
    matrix = _diagonally_dominant(LARGE)
    vector = np.random.default_rng(1).standard_normal(LARGE)

    @jit
    def run(data):
        def loss(data):
            moved = jsparse.BCOO((data, matrix.indices), shape=matrix.shape)
            x = pj.linear_solve(moved, vector).value
            return jnp.sum(x**2), x

        return jax.grad(loss, has_aux=True)(data)

    slope, x = run(matrix.data)
    dense = np.zeros(matrix.shape)
    row, col = np.asarray(matrix.indices).T
    np.add.at(dense, (row, col), np.asarray(matrix.data))
    want = np.linalg.solve(dense, vector)
    np.testing.assert_allclose(x, want, atol=1e-9)
    adjoint = np.linalg.solve(dense.T, 2 * want)
    np.testing.assert_allclose(slope, -adjoint[row] * want[col], atol=1e-8)


def test_conjugate_state_of_an_iterative_choice_solves_with_the_conjugate():
    matrix = _diagonally_dominant(LARGE)
    rotated = np.asarray(matrix.data) * np.exp(1j * np.linspace(0, 1, matrix.nse))
    operator = pj.SparseLinearOperator(
        jsparse.BCOO((rotated, matrix.indices), shape=matrix.shape)
    )
    solver = pj.AutoLinearSolver(True)

    @jit
    def run(operator, vector):
        state, options = solver.conj(solver.init(operator, {}), {})
        return solver.compute(state, vector, options)[0]

    x = run(operator, jnp.ones(LARGE, complex))
    np.testing.assert_allclose(lx.conj(operator).mv(x), np.ones(LARGE), atol=1e-8)
