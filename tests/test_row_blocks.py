"""QR factorisations by row blocks, beside those of the whole matrix and NumPy."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from checks import assert_close, derivatives, jit
from paths import evaluate, Path
from truth import solution_derivatives

import pseudojvp as pj


BLOCKS = 3
TIMES = (0.0, 0.1)
SOLVERS = {"QR": pj.QR, "PivotedQR": pj.PivotedQR, "SVD": pj.SVD}
# Of rows that three blocks divide, and not; one of a rank of two.
SHAPES = {
    "tall": (12, 4, 4),
    "uneven": (13, 4, 4),
    "wide": (4, 13, 4),
    "deficient": (13, 4, 2),
    "wide-deficient": (4, 13, 2),
}
_cases = pytest.mark.parametrize(
    "name",
    [
        f"{shape}-{dtype}-{solver}"
        for shape in SHAPES
        for dtype in ("real", "complex")
        for solver in SOLVERS
        if not ("deficient" in shape and solver == "QR")
    ],
)
_ci = pytest.mark.ci(
    "uneven-complex-QR", "wide-deficient-real-PivotedQR", "deficient-complex-SVD"
)


def _factor(rng, is_complex, rows, rank):
    """A line whose constant term has singular values from one to two."""
    coefficients = rng.standard_normal((2, rows, rank)).astype(complex)
    coefficients += 1j * rng.standard_normal((2, rows, rank))
    coefficients = coefficients if is_complex else coefficients.real
    coefficients[0] = np.linalg.qr(coefficients[0])[0] * np.linspace(1, 2, rank)
    return coefficients


@ft.cache
def _path(name):
    shape, dtype, _ = name.rsplit("-", 2)
    rows, cols, rank = SHAPES[shape]
    factor = ft.partial(_factor, np.random.default_rng(0), dtype == "complex")
    right = factor(cols, rank).conj().swapaxes(1, 2)
    return Path(factor(rows, rank), right, factor(rows, 1)[:, :, 0])


@ft.cache
def _answers(name):
    """At two places of the path, with blocks and without: x, x', x'', gradients, their
    derivative, the blocks by name, and what the factors tell.
    """
    path, kind = _path(name), SOLVERS[name.rpartition("-")[2]]
    weights = np.random.default_rng(1).standard_normal(path.right.shape[2])

    def answer(solver, t):
        def at(t):
            matrix = evaluate(path.left, t) @ evaluate(path.right, t)
            return matrix, evaluate(path.vector, t)

        def solution(matrix, vector):
            operator = lx.MatrixLinearOperator(matrix)
            return pj.linear_solve(operator, vector, solver, throw=False).value

        def gradients(t):
            loss = lambda *args: jnp.sum(weights * jnp.abs(solution(*args)) ** 2)
            return jax.grad(loss, (0, 1))(*at(t))

        factorised = pj.factorise(at(t)[0], solver, throw=False)
        return {
            "path": derivatives(lambda t: solution(*at(t)), 2)(t),
            "gradients": jax.jvp(gradients, (t,), (1.0,)),
            "adjoint": factorised.adjoint_solve(weights.astype(path.right.dtype)),
            "slogdet": factorised.slogdet(),
            "told": [factorised.stats.get("rank", 0), factorised.result._value],
        }

    @jit
    def both():
        answers = lambda solver: jax.vmap(ft.partial(answer, solver))(jnp.array(TIMES))
        return answers(kind(blocks=BLOCKS)), answers(kind(blocks=1))

    return both()


@_ci
@_cases
def test_solution_and_its_derivatives_are_those_of_the_dense_formula(name):
    blocked, _ = _answers(name)
    for member, t in enumerate(TIMES):
        truth = solution_derivatives(_path(name), t)
        for got, want in zip(blocked["path"], truth, strict=False):
            assert_close(got[member], want, 1e-12)


@_ci
@_cases
def test_all_is_as_with_one_block(name):
    leaves = map(jax.tree.leaves, _answers(name))
    for got, want in zip(*leaves, strict=True):
        assert_close(got, want, 1e-13)


@pytest.mark.parametrize(
    ("shape", "blocks"), [((12, 3), 4), ((3, 12), 4), ((11, 3), 1), ((3, 3), 1)]
)
@pytest.mark.parametrize("solver", [pj.QR(4), pj.PivotedQR(blocks=4)], ids=str)
def test_no_block_has_fewer_rows_than_columns(solver, shape, blocks):
    state = jax.eval_shape(lambda: solver.init(_operator(shape), {}))
    factor = state.reflectors if isinstance(solver, pj.QR) else state.outer
    batch = factor.rows.shape[:-2] if factor is not None else ()
    assert batch == ((blocks,) if blocks > 1 else ())


def _operator(shape):
    return lx.MatrixLinearOperator(jnp.ones(shape))


@pytest.mark.parametrize("well_posed", [None, False])
def test_automatic_solver_hands_its_blocks_on(well_posed):
    solver = pj.AutoLinearSolver(well_posed, blocks=4)
    assert solver.select_solver(_operator((12, 3))).blocks == 4


def test_matrix_of_deficient_rank_is_singular():
    matrix = np.ones((12, 3))
    matrix[:, 1] = np.arange(12)
    solution = pj.linear_solve(matrix, np.ones(12), pj.QR(blocks=3), throw=False)
    assert solution.result == lx.RESULTS.singular


@pytest.mark.parametrize("solver", [pj.QR(3), pj.PivotedQR(blocks=3), pj.SVD(blocks=3)])
def test_nan_in_one_block_fails(solver):
    matrix = np.random.default_rng(0).standard_normal((12, 3))
    matrix[-1, 0] = np.nan
    solution = pj.linear_solve(matrix, np.ones(12), solver, throw=False)
    assert solution.result == lx.RESULTS.singular


@pytest.mark.untyped
@pytest.mark.parametrize("blocks", [0, True, 2.0])
@pytest.mark.parametrize(
    "solver", [pj.QR, pj.PivotedQR, pj.SVD, lambda **kw: pj.AutoLinearSolver(None, **kw)]
)
def test_blocks_that_are_no_number_of_blocks_are_an_error(solver, blocks):
    with pytest.raises(ValueError, match=r"\(blocks=...\)` got .* number of row blocks"):
        solver(blocks=blocks)
