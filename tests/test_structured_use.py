"""Structured operators in other solvers, in transforms, at size, and in settings."""

import pickle

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
from checks import assert_close, jit
from structured_cases import CASES, definite, normal, path_of, tagged

import pseudojvp as pj


RNG = np.random.default_rng(0)


def _matrix(*shape, is_complex=False):
    matrix = normal(RNG, shape, is_complex)
    return jnp.asarray(matrix + 3 * np.eye(*shape[-2:]))


DEFINITE = {
    "kronecker": pj.Kronecker(definite(_matrix(3, 3)), definite(_matrix(2, 2))),
    "damped": pj.Kronecker(definite(_matrix(3, 3)), definite(_matrix(2, 2))).damped(1.0),
    "blocks": pj.BlockDiagonal(definite(_matrix(3, 3)), definite(_matrix(2, 2))),
    "eigh": pj.Eigh(
        np.arange(1.0, 5), np.eye(4)[:, ::-1], tags=lx.positive_semidefinite_tag
    ),
    "circulant": pj.Circulant(
        np.array([4.0, 1.0, 0.5, 1.0]), lx.positive_semidefinite_tag
    ),
    "toeplitz": pj.Toeplitz(np.array([4.0, 1.0, 0.5]), tags=lx.positive_semidefinite_tag),
}
SOLVERS = {
    "QR": pj.QR(),
    "SVD": pj.SVD(),
    "LU": pj.LU(),
    "Cholesky": pj.Cholesky(),
    "CG": pj.CG(rtol=1e-12, atol=0.0),
    "MINRES": pj.MINRES(rtol=1e-12),
    "LSMR": pj.LSMR(rtol=1e-12),
    "Normal(CG)": pj.Normal(pj.CG(rtol=1e-13, atol=0.0)),
    "lineax.GMRES": lx.GMRES(1e-12, 1e-12),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", DEFINITE)
@pytest.mark.default("circulant-QR")
@pytest.mark.ci("damped-*", "eigh-*", "toeplitz-LSMR", "blocks-Cholesky", "kronecker-CG")
def test_any_solver_takes_a_structured_operator(name, solver):
    operator = DEFINITE[name]
    vector = jnp.arange(1.0, 1 + operator.out_size())
    x = pj.linear_solve(operator, vector, SOLVERS[solver]).value
    want = np.linalg.solve(np.asarray(operator.as_matrix()), vector)
    assert_close(x, want, 1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.default("damped")
@pytest.mark.ci("*")
def test_a_batch_is_solved_as_each_of_its_members(name):
    paths = [path_of(name, True, seed) for seed in range(2)]
    well_posed = paths[0].case.well_posed[0]
    make = paths[0].case.make

    def solve(arrays, vector):
        operator = make(*arrays)
        return pj.linear_solve(operator, vector, pj.AutoLinearSolver(well_posed)).value

    arrays = [jnp.stack(pair) for pair in zip(*(p.at(0.0) for p in paths), strict=True)]
    vectors = jnp.stack([path.vector for path in paths])
    got = jit(jax.vmap(solve))(arrays, vectors)
    for value, path in zip(got, paths, strict=True):
        want = np.linalg.pinv(path.matrix(0.0), rcond=1e-10) @ path.vector
        assert_close(value, want, 1e-11)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.ci("*")
def test_single_precision_is_kept(name):
    operator = path_of(name, True).operator(0.0)
    single = jax.tree.map(
        lambda leaf: leaf.astype("c8" if jnp.iscomplexobj(leaf) else "f4"), operator
    )
    vector = jnp.arange(single.out_size()).astype(jnp.complex64)
    x = pj.linear_solve(single, vector, pj.AutoLinearSolver(False)).value
    want = np.linalg.pinv(np.asarray(operator.as_matrix()), rcond=1e-6)
    want = want @ np.arange(single.out_size())
    assert x.dtype == jnp.complex64
    assert_close(x, want, 1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.ci("*")
@pytest.mark.default("eigh")
def test_operators_and_their_factors_can_be_pickled(name):
    path = path_of(name, False)
    operator = path.operator(0.0)
    copy = pickle.loads(pickle.dumps(operator))
    assert eqx.tree_equal(copy, operator) is not False
    factorised = pj.factorise(operator, pj.AutoLinearSolver(False))
    copy = pickle.loads(pickle.dumps(factorised))
    vector = jnp.asarray(path.vector)
    np.testing.assert_array_equal(copy.solve(vector), factorised.solve(vector))


def _damped(a, b):
    return pj.Kronecker(tagged(a), tagged(b)).damped(0.1)


def _toeplitz(column):
    return pj.Toeplitz(column, tags=lx.positive_semidefinite_tag)


def _largest_array(jaxpr) -> int:
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            largest = max(largest, getattr(variable.aval, "size", 0))
        for leaf in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr)
        ):
            inner = getattr(leaf, "jaxpr", leaf)
            if isinstance(inner, jex.Jaxpr):
                largest = max(largest, _largest_array(inner))
    return largest


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (pj.Kronecker, ((20, 20), (30, 30))),
        (
            lambda a, b: pj.Kronecker(tagged(a), tagged(b)).damped(0.1),
            ((20, 20), (30, 30)),
        ),
        (pj.BlockDiagonal, ((100, 6, 6),)),
        (pj.Circulant, ((600,),)),
        (
            lambda column: pj.Toeplitz(column, tags=lx.positive_semidefinite_tag),
            ((2000,),),
        ),
    ],
    ids=["kronecker", "damped", "blocks", "circulant", "toeplitz"],
)
def test_no_matrix_is_made_in_a_gradient(make, shapes):
    arrays = [jnp.zeros(shape) for shape in shapes]
    size = make(*arrays).in_size()

    def loss(arrays, vector):
        return jnp.sum(pj.linear_solve(make(*arrays), vector, throw=False).value)

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(arrays, jnp.zeros(size))
    assert _largest_array(jaxpr.jaxpr) < size**2 // 10


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_large_definite_toeplitz_matrix_takes_few_preconditioned_steps(sign):
    size = 3000
    column = sign * 0.95 ** np.arange(size)
    column[0] += 0.1 * sign
    tag = {1: lx.positive_semidefinite_tag, -1: lx.negative_semidefinite_tag}[sign]
    vector = RNG.standard_normal(size)
    operator = pj.Toeplitz(column, tags=tag)
    solution = pj.linear_solve(operator, jnp.asarray(vector))
    want = scipy.linalg.solve_toeplitz(column, vector)
    assert_close(solution.value, want, 1e-9)
    assert solution.stats["num_steps"] < 20
    plain = pj.linear_solve(operator, jnp.asarray(vector), pj.CG(rtol=1e-10, atol=0.0))
    assert plain.stats["num_steps"] > 3 * solution.stats["num_steps"]

    def loss(column, vector):
        operator = pj.Toeplitz(column, tags=tag)
        return jnp.sum(pj.linear_solve(operator, vector).value ** 2)

    of_column, of_vector = jax.grad(loss, (0, 1))(
        jnp.asarray(column), jnp.asarray(vector)
    )
    adjoint = scipy.linalg.solve_toeplitz(column, 2 * want)
    assert_close(of_vector, adjoint, 1e-8)
    # −λᵀ A' x of each diagonal, and of its mirror image.
    lags = np.correlate(want, adjoint, "full")
    below, above = lags[size - 1 :], lags[size - 1 :: -1]
    slope = -(below + above)
    slope[0] /= 2
    assert_close(of_column, slope, 1e-8)


@pytest.mark.optimised
@pytest.mark.slow
def test_large_general_toeplitz_matrix_is_solved_by_products():
    size = 1500
    column, row = 0.8 ** np.arange(size), 0.5 ** np.arange(size)
    vector = RNG.standard_normal(size)
    solution = pj.linear_solve(pj.Toeplitz(column, row), jnp.asarray(vector))
    assert_close(solution.value, scipy.linalg.solve_toeplitz((column, row), vector), 1e-8)
    assert "num_steps" in solution.stats


@pytest.mark.slow  # two seconds
def test_smaller_tolerance_for_a_large_toeplitz_matrix_is_worth_a_few_steps():
    column = np.exp(-((np.arange(1100) / 20) ** 2) / 2)
    column[0] += 1e-2
    operator = pj.Toeplitz(column, tags=lx.positive_semidefinite_tag)
    want = np.random.default_rng(0).standard_normal(1100)
    vector = jnp.asarray(scipy.linalg.matmul_toeplitz(column, want))
    preconditioner = operator.circulant().pseudoinverse()
    solver = pj.CG(rtol=1e-12, preconditioner=preconditioner)
    default = pj.linear_solve(operator, vector)
    solution = pj.linear_solve(operator, vector, solver)
    assert_close(default.value, want, 1e-7)
    assert_close(solution.value, want, 1e-10)
    assert solution.stats["num_steps"] < 10 + default.stats["num_steps"]


def test_large_toeplitz_matrices_have_no_determinant_by_default():
    operator = pj.Toeplitz(jnp.arange(2000.0, 0, -1), tags=lx.positive_semidefinite_tag)
    with pytest.raises(TypeError, match=r"above 1,000,000 entries.*pass `pj\.LU\(\)`"):
        pj.slogdet(operator)


@pytest.mark.slow
def test_sparse_factors_beyond_the_dense_size_are_iterated_and_judged():
    line = np.arange(1500)
    place = np.concatenate([line, line[1:], line[:-1]])
    other = np.concatenate([line, line[:-1], line[1:]])
    data = np.concatenate([np.full(1500, 3.0), np.full(2998, -1.0)])
    matrix = (data, place, other, (1500, 1500))
    # A permutation that is not tridiagonal would do as well: no tag says it is banded.
    order = np.random.default_rng(0).permutation(1500)
    matrix = (data, order[place], order[other], (1500, 1500))
    sparse = pj.SparseLinearOperator(matrix, lx.positive_semidefinite_tag)
    factor = definite(_matrix(2, 2))
    vector = jnp.asarray(RNG.standard_normal(3000))
    solution = pj.linear_solve(pj.Kronecker(factor, sparse), vector)
    product = np.asarray(factor.as_matrix()) @ np.asarray(solution.value).reshape(2, 1500)
    back = np.stack([sparse.mv(jnp.asarray(row)) for row in product])
    assert_close(back.reshape(-1), vector, 1e-8)
    assert pj.factorise(pj.Kronecker(factor, sparse)).result == lx.RESULTS.successful
