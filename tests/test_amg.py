"""`amg`: a V-cycle on PyAMG's hierarchy."""

import os
import subprocess
import sys

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from checks import jit

import pseudojvp as pj
from pseudojvp._preconditioner.padded_rows import padded_operator


PSD = lx.positive_semidefinite_tag
SIDE = 12

methods = pytest.mark.parametrize("method", ["smoothed_aggregation", "ruge_stuben"])


def _poisson(side=SIDE):
    line = scipy.sparse.diags_array(
        [-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)], offsets=[-1, 0, 1]
    )
    return scipy.sparse.csr_array(scipy.sparse.kronsum(line, line))


def _hermitian(side=SIDE):
    """Poisson's matrix in a magnetic field: phases along the first direction."""
    matrix = _poisson(side).tocoo()
    phase = np.exp(0.1j * np.sign(matrix.col - matrix.row))
    return scipy.sparse.coo_array((matrix.data * phase, matrix.coords), matrix.shape)


def _amg(matrix, tags=PSD, **options):
    return pj.amg(pj.SparseLinearOperator(matrix, tags), **{"max_coarse": 20, **options})


@pytest.mark.ci("*")
@methods
@pytest.mark.parametrize("steps", [1, 2])
def test_cycle_of_a_definite_operator_is_definite(method, steps):
    operator = _amg(_poisson(), method=method, smoothing_steps=steps)
    assert len(operator.levels) >= 2
    matrix = jit(lambda operator: operator.as_matrix())(operator)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    assert lx.is_positive_semidefinite(operator)


@pytest.mark.ci("*")
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_cycle_is_the_product_of_smoothings_and_coarse_correction(steps):
    matrix = _poisson(6)
    operator = _amg(matrix, smoothing_steps=steps, max_levels=2)
    (level,) = operator.levels
    a = matrix.toarray()
    prolongation = np.asarray(level.prolongation.as_matrix())
    coarse = prolongation @ np.linalg.inv(prolongation.T @ a @ prolongation)
    # T_k((θ − D⁻¹A) / δ) / T_k(θ / δ), the Chebyshev polynomial on [ρ / (k + 1)², ρ] for
    # the largest row sum ρ = 2 of |D⁻¹A|; D = 4.
    lower, upper = 2 / (steps + 1) ** 2, 2
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    polynomial = np.polynomial.Chebyshev.basis(steps).convert(
        kind=np.polynomial.Polynomial
    )
    argument = (middle * np.eye(36) - a / 4) / half
    powers = [np.linalg.matrix_power(argument, k) for k in range(steps + 1)]
    left_over = sum(c * power for c, power in zip(polynomial.coef, powers, strict=True))
    left_over = left_over / polynomial(middle / half)
    error = left_over @ (np.eye(36) - coarse @ prolongation.T @ a) @ left_over
    want = np.linalg.solve(a.T, (np.eye(36) - error).T).T
    got = jit(lambda operator: operator.as_matrix())(operator)
    np.testing.assert_allclose(got, want, atol=1e-13)


def _operations(jaxpr, name):
    """How often a primitive stands in a program, those in its loops once."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == name
        for inside in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr)
        ):
            if isinstance(inside, jex.Jaxpr | jex.ClosedJaxpr):
                count += _operations(getattr(inside, "jaxpr", inside), name)
    return count


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_level_compiles_four_products_whatever_the_smoothing_steps(steps):
    operator = _amg(_poisson(), smoothing_steps=steps)
    jaxpr = jax.make_jaxpr(operator.mv)(jnp.ones(SIDE**2)).jaxpr
    assert _operations(jaxpr, "sparse_product") == 4 * len(operator.levels)


def test_a_product_is_no_larger_a_program_for_longer_rows():
    def program(width):
        diagonals = scipy.sparse.diags_array(np.ones((width, 50)), offsets=range(width))
        operator = padded_operator(diagonals.tocsr(), float)
        multiply = jax.jit(lambda vector: operator.mv(vector))
        return multiply.lower(jnp.ones(operator.in_size())).as_text()

    assert len(program(40).splitlines()) == len(program(4).splitlines())


@pytest.mark.slow  # a second
def test_cycle_of_a_hermitian_operator_is_hermitian_with_the_right_transpose():
    operator = _amg(_hermitian())

    # Transpose and conjugate have the structure of the operator: one compilation.
    as_matrix = jit(lambda operator: operator.as_matrix())
    matrix, conjugate = as_matrix(operator), as_matrix(lx.conj(operator))
    transpose = as_matrix(operator.transpose())
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-13)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    np.testing.assert_allclose(transpose, matrix.T, atol=1e-13)
    np.testing.assert_allclose(conjugate, matrix.conj(), atol=1e-13)


@pytest.mark.slow  # seconds of compiling for a claim beside the main ones
def test_transpose_of_the_cycle_of_a_general_operator_is_its_transpose():
    matrix = _poisson() + 0.5 * scipy.sparse.eye_array(SIDE**2, k=1)
    operator = _amg(matrix.tocsr(), (), symmetry="nonsymmetric")
    assert not lx.is_symmetric(operator)
    got = jit(lambda operator: operator.as_matrix())
    np.testing.assert_allclose(got(operator.transpose()), got(operator).T, atol=1e-13)


@pytest.mark.slow  # two sizes, each a program of a hierarchy in a loop
@methods
def test_iterations_hardly_grow_with_the_number_of_unknowns(method):
    @jit
    def solve(operator, preconditioner, vector):
        options = {"preconditioner": preconditioner}
        solver = pj.CG(1e-10, 1e-10)
        solution = pj.linear_solve(operator, vector, solver, options=options)
        return solution.value, solution.stats["num_steps"]

    steps = []
    for side in (12, 36):
        operator = pj.SparseLinearOperator(_poisson(side), PSD)
        vector = np.random.default_rng(0).standard_normal(side**2)
        solution, taken = solve(operator, _amg(_poisson(side), method=method), vector)
        assert np.abs(_poisson(side) @ np.asarray(solution) - vector).max() < 1e-8
        steps.append(int(taken))
    assert steps[0] <= 11
    assert steps[1] <= steps[0] + 3


def test_the_hierarchy_is_the_same_every_time_and_numpys_generator_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = _amg(_poisson()), _amg(_poisson())
    after = np.random.get_state()[1]  # noqa: NPY002
    np.testing.assert_array_equal(before, after)
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(left, right)


def test_single_precision_stays_single_precision():
    operator = _amg(_poisson().astype(np.float32))
    out = jax.eval_shape(operator.mv, jnp.ones(SIDE**2, jnp.float32))
    assert out.dtype == jnp.float32


def _with_diagonal(value):
    matrix = _poisson().tolil()
    matrix[3, 3] = value
    return scipy.sparse.csr_array(matrix)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("matrix", "options", "match"),
    [
        (_with_diagonal(0.0), {}, "a zero on the diagonal"),
        (_with_diagonal(-1.0), {}, "a diagonal that is not positive"),
        (_with_diagonal(np.nan), {}, "entries that are not finite"),
        (_poisson(), {"method": "geometric"}, "Pass 'smoothed_aggregation' or"),
        (_poisson(), {"smoothing_steps": 0}, "It is at least 1"),
    ],
)
def test_unfit_arguments_are_refused(matrix, options, match):
    with pytest.raises(ValueError, match=match):
        _amg(matrix, **options)


def test_operators_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="a square one"):
        _amg(_poisson()[:, :5], ())


def test_dense_operators_are_refused():
    with pytest.raises(TypeError, match="the stored entries of A"):
        pj.amg(jnp.eye(3))


def test_traced_numbers_are_refused():
    matrix = _poisson().tocoo()
    apply = lambda data: pj.amg((data, *matrix.coords, matrix.shape)).mv(jnp.ones(144))
    with pytest.raises(ValueError, match="got traced numbers"):
        jax.jit(apply)(matrix.data)


_WITHOUT = """
import sys
import pseudojvp as pj
print("pyamg" in sys.modules)
sys.modules["pyamg"] = None
try:
    pj.amg(([1.0], [0], [0], (1, 1)))
except ImportError as error:
    print(error)
"""


@pytest.mark.slow  # a process of its own
def test_without_pyamg_the_error_names_the_command():
    process = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        capture_output=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        text=True,
        timeout=300,
    )
    assert process.stdout.splitlines() == [
        "False",
        '`amg()` needs the package pyamg: `pip install "pseudojvp[amg]"`.',
    ]
