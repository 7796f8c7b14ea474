"""What is returned goes to another process, and to a file, and comes back as it was."""

import copy
import io
import os
import pathlib
import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sps
from varpro_cases import basis, DATA, offset, POINTS, START

import pseudojvp as pj


def _pickled(value):
    return pickle.loads(pickle.dumps(value))


_each_copy = pytest.mark.parametrize(
    "copied", [_pickled, copy.deepcopy], ids=["pickle", "deepcopy"]
)

_RNG = np.random.default_rng(0)
_TALL = _RNG.standard_normal((6, 3))
_SQUARE = _RNG.standard_normal((3, 3)) + 3 * np.eye(3)
_DEFINITE = _TALL.T @ _TALL
_SPARSE = sps.csr_array(np.diag([4.0, 5.0, 6.0]) + np.diag([1.0, 2.0], 1))
_DEFINITE_SPARSE = sps.csr_array(_SPARSE.todense().T @ _SPARSE.todense())


class Pair(eqx.Module):
    """A vector that is a module of Equinox, whose treedefs do not survive copies."""

    first: jax.Array
    second: jax.Array


def _definite(matrix=_DEFINITE):
    return lx.MatrixLinearOperator(jnp.asarray(matrix), lx.positive_semidefinite_tag)


def _of_pairs():
    """diag(2, 2, 4), of which a solver keeps the structure of its vectors."""
    return lx.DiagonalLinearOperator(Pair(2.0 * jnp.ones(2), 4.0 * jnp.ones(1)))


def _cg(**options):
    return pj.CG(rtol=1e-12, atol=1e-12, **options)


def _sparse(matrix=_DEFINITE_SPARSE):
    return pj.SparseLinearOperator(matrix, lx.positive_semidefinite_tag)


_FACTORISED = {
    "Auto": lambda: (_SQUARE, pj.AutoLinearSolver(True)),
    "LU": lambda: (_SQUARE, pj.LU()),
    "QR": lambda: (_TALL, pj.QR()),
    "CholeskyQR": lambda: (_TALL, pj.CholeskyQR()),
    "PivotedQR": lambda: (_TALL, pj.PivotedQR()),
    "SVD": lambda: (_TALL, pj.SVD()),
    "Cholesky": lambda: (_definite(), pj.Cholesky()),
    "CG": lambda: (_definite(), _cg()),
    "CG(jacobi)": lambda: (_definite(), _cg(preconditioner=pj.jacobi(_definite()))),
    "MINRES": lambda: (_definite(), pj.MINRES(rtol=1e-12, atol=1e-12)),
    "GMRES": lambda: (_SQUARE, pj.GMRES(rtol=1e-12, atol=1e-12)),
    "FlexibleCG": lambda: (
        _definite(),
        pj.FlexibleCG(1e-12, preconditioner=_definite()),
    ),
    "LearnedCG": lambda: (_definite(), pj.LearnedCG(9, 1e-12)),
    "BiCGStab": lambda: (_SQUARE, pj.BiCGStab(rtol=1e-12, atol=1e-12)),
    "LSMR": lambda: (_TALL, pj.LSMR(rtol=1e-12, atol=1e-12)),
    "Normal(CG)": lambda: (_TALL, pj.Normal(_cg())),
    "Normal(Cholesky)": lambda: (_TALL, pj.Normal(pj.Cholesky())),
    "Neumann": lambda: (_definite(0.1 * _DEFINITE), pj.Neumann(1000)),
    "SparseLU": lambda: (pj.SparseLinearOperator(_SPARSE), pj.SparseLU()),
    "SparseTriangular": lambda: (pj.SparseLinearOperator(_SPARSE), pj.SparseTriangular()),
    "sparse": lambda: (_sparse(), _cg(preconditioner=pj.incomplete_cholesky(_sparse()))),
    "amg": lambda: (_sparse(), _cg(preconditioner=pj.amg(_sparse()))),
    "pairs": lambda: (_of_pairs(), pj.LU()),
    "lineax.Diagonal": lambda: (
        lx.DiagonalLinearOperator(jnp.arange(1.0, 4)),
        lx.Diagonal(),
    ),
    "lineax.GMRES": lambda: (_SQUARE, lx.GMRES(1e-12, 1e-12, max_steps=10)),
}
_each_factorised = pytest.mark.parametrize("name", _FACTORISED)


def _solved(factorised, vector, weights):
    """A†b, and the derivative of ⟨w, A†b⟩ with respect to A and b."""

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(inputs):
        factorised, vector = inputs
        solution = factorised.solve(vector)
        products = jax.tree.map(lambda x, w: jnp.sum(x * w), solution, weights)
        return sum(jax.tree.leaves(products)), solution

    (_, solution), gradient = loss((factorised, vector))
    return solution, gradient


_solved_jit = eqx.filter_jit(_solved)


def _case(name):
    operator, solver = _FACTORISED[name]()
    factorised = pj.factorise(operator, solver)
    spaces = factorised.operator.out_structure(), factorised.operator.in_structure()
    rng = np.random.default_rng(1)
    fill = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape))
    return factorised, *jax.tree.map(fill, spaces)


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.default("pickle-LU", "pickle-CG(jacobi)", "*-pairs")
@pytest.mark.ci("*")
@_each_factorised
@_each_copy
def test_copy_of_factors_solves_and_has_the_derivatives(copied, name):
    factorised, vector, weights = _case(name)
    same = copied(factorised)
    _assert_equal(same, factorised)
    solution, gradient = _solved_jit(same, vector, weights)
    _assert_equal((solution, gradient), _solved_jit(factorised, vector, weights))
    inverse = np.linalg.pinv(factorised.operator.as_matrix())
    np.testing.assert_allclose(_flat(solution), inverse @ _flat(vector), rtol=1e-8)
    np.testing.assert_allclose(_flat(gradient[1]), inverse.T @ _flat(weights), rtol=1e-8)


_SOLVERS = {
    "pseudojvp.QR": (_TALL, pj.QR()),
    "pseudojvp.Auto": (_definite(), pj.AutoLinearSolver(True)),
    "lineax.LU": (_SQUARE, lx.LU()),
    "lineax.CG": (_definite(), lx.CG(1e-12, 1e-12)),
    "lineax.Normal": (_TALL, lx.Normal(lx.Cholesky())),
}


@pytest.mark.default("pickle-of *.QR", "pickle-of *.Auto", "pickle-of lineax.*")
@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("operator", "solver"), _SOLVERS.values(), ids=[f"of {name}" for name in _SOLVERS]
)
@_each_copy
def test_state_of_a_copied_solution_solves_again(copied, operator, solver):
    if not isinstance(operator, lx.AbstractLinearOperator):
        operator = lx.MatrixLinearOperator(jnp.asarray(operator))
    first = pj.linear_solve(operator, jnp.ones(operator.out_size()), solver)
    same = copied(first)
    _assert_equal(same, first)
    operator, solver = copied((operator, solver))

    @jax.value_and_grad
    def loss(vector):
        return jnp.sum(pj.linear_solve(operator, vector, solver, state=same.state).value)

    value, gradient = loss(2 * jnp.ones(operator.out_size()))
    want = np.linalg.pinv(operator.as_matrix()).sum(axis=0)
    np.testing.assert_allclose(value, 2 * want.sum(), rtol=1e-8)
    np.testing.assert_allclose(gradient, want, rtol=1e-8)


_OPERATORS = {
    "tagged": lambda: _definite(),
    "hermitian": lambda: lx.MatrixLinearOperator(
        jnp.asarray(_DEFINITE), pj.hermitian_tag
    ),
    "sparse": lambda: _sparse(),
    "inverse": lambda: pj.invert(_definite(), _cg()),
    "damped": lambda: pj.damped(_sparse(), 0.5),
    "damped inverse": lambda: pj.damped(pj.invert(_SQUARE), 0.5),
    "jacobi": lambda: pj.jacobi(_sparse()),
    "block_jacobi": lambda: pj.block_jacobi(_definite(), 1),
    "chebyshev": lambda: pj.chebyshev(_sparse()),
    "nystrom": lambda: pj.nystrom(_definite(), 2, jax.random.key(0)),
    "incomplete_lu": lambda: pj.incomplete_lu(_SPARSE),
    "incomplete_lu(sweeps)": lambda: pj.incomplete_lu(_SPARSE, sweeps=2),
    "amg": lambda: pj.amg(_sparse()),
}


@pytest.mark.default("pickle-[!b]*")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", _OPERATORS)
@_each_copy
def test_copy_of_an_operator_has_its_products_and_tags(copied, name):
    operator = _OPERATORS[name]()
    same = copied(operator)
    _assert_equal(same, operator)
    vector = jnp.arange(1.0, operator.in_size() + 1)
    products = jax.jit(lambda operator: (operator.mv(vector), operator.as_matrix()))
    product, matrix = products(same)
    np.testing.assert_array_equal(product, products(operator)[0])
    np.testing.assert_allclose(np.ravel(_flat(product)), matrix @ vector, rtol=1e-12)
    definite = lx.is_positive_semidefinite
    assert definite(same) == definite(operator)


def _told(fit):
    """The errors of a fit, its prediction, and a derivative of that."""

    def value(points):
        return fit.predict(points).value

    points = jnp.linspace(0.5, 2.0, 5)
    rates = jax.jvp(value, (points,), (jnp.ones(5),))
    return fit.statistics(), fit.predict(points), rates


def _fit():
    return pj.varpro(basis, DATA, START, POINTS, offset=offset, throw=False)


def _fits():
    return pj.varpro_batch(
        basis, jnp.stack([DATA, 2 * DATA]), START, POINTS, offset=offset, throw=False
    )


@pytest.mark.ci("*")
@_each_copy
def test_copy_of_a_fit_predicts_and_tells_its_errors(copied):
    fit = _fit()
    same = copied(fit)
    _assert_equal(same, fit)
    told = _told(same)
    _assert_equal(told, _told(fit))
    points = jnp.linspace(0.5, 2.0, 5)
    want = offset(fit.theta, points) + basis(fit.theta, points) @ fit.coefficients
    np.testing.assert_allclose(told[1].value, want, rtol=1e-12)


@pytest.mark.ci("*")
@_each_copy
def test_copy_of_a_batch_of_fits_predicts_and_tells_its_errors(copied):
    fits = _fits()
    same = copied(fits)
    _assert_equal(same, fits)
    _assert_equal(_told(same), _told(fits))
    _assert_equal(_told(same[1]), _told(fits[1]))


@pytest.mark.default("pickle")
@pytest.mark.ci("*")
@_each_copy
def test_copy_of_a_projected_residual_has_its_jacobian(copied):
    residual = pj.projected_residual(basis, DATA)
    told = eqx.filter_jit(lambda residual: residual.jacobian(START, POINTS))
    _assert_equal(told(copied(residual)), told(residual))


def _blank(tree):
    return jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, tree)


def _saved(value, like):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, value)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, like)


@pytest.mark.slow  # three seconds
def test_leaves_of_a_fit_are_saved_and_loaded():
    fit, fits = _fit(), _fits()
    other = _blank((fit, fits))
    same = _saved((fit, fits), other)
    _assert_equal(same, (fit, fits))
    _assert_equal(_told(same[0]), _told(fit))


@pytest.mark.default("LU", "CG(jacobi)")
@pytest.mark.ci("*")
@_each_factorised
def test_leaves_of_factors_are_saved_and_loaded(name):
    factorised, vector, weights = _case(name)
    other = _blank(factorised)
    same = _saved(factorised, other)
    want = _solved_jit(factorised, vector, weights)
    _assert_equal(_solved_jit(same, vector, weights), want)


_WORKER = """
import pickle, sys
inputs = pickle.load(sys.stdin.buffer)
outputs = [function(*arguments) for function, *arguments in inputs]
sys.stdout.buffer.write(pickle.dumps(outputs))
"""


@pytest.mark.slow  # nine seconds
def test_results_work_in_another_process_and_come_back():
    calls = [(_solved, *_case(name)) for name in ("CG(jacobi)", "pairs")]
    calls += [(_told, _fit())]
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, "-c", _WORKER],
        input=pickle.dumps(calls),
        capture_output=True,
        check=True,
        env={
            **os.environ,
            "JAX_ENABLE_X64": "1",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(paths),
        },
        timeout=300,
    )
    for got, (function, *arguments) in zip(
        pickle.loads(process.stdout), calls, strict=True
    ):
        want = function(*arguments)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-12)
