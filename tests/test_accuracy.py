"""Errors of x, x' and x'' against mpmath, for condition numbers from 1 to 1e12 and above.

Along a path, A x^(k) = b^(k) − (terms A^(j) x^(k−j)). So for a generic A' each order
multiplies by ‖A†‖, the derivative and its error alike: ‖x^(k)‖ ~ κ^k ‖x‖, and the error
that a relative change of the data by eps causes is κ eps ‖x^(k)‖. Therefore errors here
are relative to the derivative itself, in the 2-norm; the paths are generic, and
`test_accuracy_truth.py` shows by perturbation that this is their sensitivity. Allowed are

    100 eps κ                              x, x', x''
    100 eps (κ + κ² ‖r‖ / (‖A‖ ‖x‖))       x, for least squares with residual r
    100 eps κ²                             x, x', x'' by normal equations

The second line is Wedin's theorem (Björck, Numerical Methods for Least Squares Problems,
1996, theorem 1.4.6; Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
20.1), the third the error of a factorisation of A^H A (Higham, section 20.4).

An answer whose `result` is not `successful`, or a derivative that is NaN, is refused.
That is no error, but up to the condition number `reach` nothing may be refused.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from accuracy_truth import make_path, relative_error, truncated_solution, truth
from checks import jit

import pseudojvp as pj


_direct = {"reach": {8: 1e12, 4: 1e4}, "top": {8: 1e18, 4: 1e12}}  # by bytes


class Solver(NamedTuple):
    """
    - `make`: from eps to the solver.
    - `power`: the power of κ in the error that theory allows.
    - `reach`: for float64 and float32, the κ up to which nothing may be refused.
    - `top`: the largest κ asked for. Those for any rank cut off beyond 1/eps.
    - `notices`: whether it must refuse when κ^power is 1/eps or more.
    """

    make: Callable
    power: int = 1
    reach: dict = _direct["reach"]
    top: dict = _direct["top"]
    notices: bool = True


_any_rank = {"top": {8: 1e12, 4: 1e4}, "notices": False}
_squared = {"power": 2, "reach": {8: 1e6, 4: 1e2}}
_krylov = {"reach": {8: 1e4, 4: 1e2}, "top": {8: 1e12, 4: 1e6}, "notices": False}
_ten = {8: 10.0, 4: 10.0}

SOLVERS = {
    "QR": Solver(lambda eps: pj.QR()),
    "CholeskyQR": Solver(lambda eps: pj.CholeskyQR(), reach={8: 1e6, 4: 1e2}),
    "SVD": Solver(lambda eps: pj.SVD(), **_any_rank),
    "PivotedQR": Solver(lambda eps: pj.PivotedQR(), **_any_rank),
    "LU": Solver(lambda eps: pj.LU()),
    "Cholesky": Solver(lambda eps: pj.Cholesky()),
    "Triangular": Solver(lambda eps: pj.Triangular()),
    "Tridiagonal": Solver(lambda eps: pj.Tridiagonal()),
    "Diagonal": Solver(lambda eps: lx.Diagonal(), **_any_rank),
    "Auto(True)": Solver(lambda eps: pj.AutoLinearSolver(True)),
    "Auto(None)": Solver(lambda eps: pj.AutoLinearSolver(None)),
    "Auto(False)": Solver(lambda eps: pj.AutoLinearSolver(False), **_any_rank),
    "Normal(Cholesky)": Solver(lambda eps: pj.Normal(pj.Cholesky()), **_squared),
    "Normal(QR)": Solver(lambda eps: pj.Normal(pj.QR()), **_squared),
    "CG": Solver(lambda eps: pj.CG(50 * eps, 0.0), **_krylov),
    "Normal(CG)": Solver(lambda eps: pj.Normal(pj.CG(50 * eps, 0.0)), 2, **_krylov),
    "Neumann": Solver(lambda eps: pj.Neumann(300, 1.8), 1, _ten, _ten, False),
}

DEFAULT = {
    "float64": {
        "CholeskyQR": "tall-residual",
        "Normal(Cholesky)": "tall-residual",
    },
    "complex128": {"QR": "wide"},
}
SLOW = {  # programs of one to three seconds of compiling each
    "float64": {
        "SVD": "tall-deficient",
        "PivotedQR": "wide-deficient",
        "LU": "square",
        "Cholesky": "definite",
        "Triangular": "upper-triangular",
        "Tridiagonal": "tridiagonal",
        "Diagonal": "diagonal",
        "Auto(True)": "square",
        "Auto(None)": "tall",
        "Auto(False)": "tall-deficient",
        "Normal(QR)": "wide",
        "CG": "definite",
        "Normal(CG)": "tall",
        "Neumann": "definite",
    },
    "float32": {
        "QR": "tall",
        "CholeskyQR": "tall",
        "SVD": "wide-deficient",
        "PivotedQR": "tall-deficient",
        "LU": "square",
        "Normal(Cholesky)": "tall",
    },
    "complex128": {
        "SVD": "wide-deficient",
        "PivotedQR": "tall-deficient",
        "Cholesky": "definite",
        "Normal(CG)": "wide",
    },
}
NIGHTLY = {  # some forty more
    "float64": {
        "QR": "tall tall-residual wide square",
        "CholeskyQR": "tall wide square",
        "SVD": "tall tall-residual wide wide-deficient",
        "PivotedQR": "tall tall-residual wide tall-deficient",
        "Auto(True)": "definite",
        "Auto(None)": "upper-triangular",
        "Normal(Cholesky)": "tall wide",
        "Normal(QR)": "tall-residual",
        "Normal(CG)": "tall-residual wide",
    },
    "float32": {
        "QR": "tall-residual wide",
        "CholeskyQR": "tall-residual wide",
        "SVD": "tall tall-deficient",
        "PivotedQR": "wide wide-deficient",
        "Cholesky": "definite",
        "Triangular": "upper-triangular",
        "Tridiagonal": "tridiagonal",
        "Normal(QR)": "wide",
        "CG": "definite",
        "Normal(CG)": "tall",
        "Neumann": "definite",
    },
    "complex128": {
        "QR": "tall-residual square",
        "CholeskyQR": "tall-residual",
        "SVD": "tall",
        "LU": "square",
        "Tridiagonal": "tridiagonal",
        "Normal(Cholesky)": "tall wide",
        "CG": "definite",
        "Neumann": "definite",
    },
}
TAGS = {
    "definite": lx.positive_semidefinite_tag,
    "diagonal": lx.diagonal_tag,
    "upper-triangular": lx.upper_triangular_tag,
    "tridiagonal": lx.tridiagonal_tag,
}


def each(condition=lambda solver: True):
    """Parametrises a test by the cases whose solver fulfils the condition."""
    return pytest.mark.parametrize(
        ("name", "kind", "dtype"),
        [
            pytest.param(name, kind, dtype, marks=marks, id=f"{kind}-{dtype}-{name}")
            for table, marks in (
                (DEFAULT, ()),
                (SLOW, pytest.mark.slow),
                (NIGHTLY, pytest.mark.nightly),
            )
            for dtype, row in table.items()
            for name, kinds in row.items()
            for kind in kinds.split()
            if condition(SOLVERS[name])
        ],
    )


class Outcome(NamedTuple):
    """One row a problem; in those of (problems, 3) the columns are x, x', x''."""

    conditions: np.ndarray  # (problems,)
    successful: np.ndarray  # (problems,)
    refused: np.ndarray  # (problems, 3)
    errors: np.ndarray  # (problems, 3)
    allowed: np.ndarray  # (problems, 3)


@ft.cache
def outcome(name, kind, dtype) -> Outcome:
    eps, size = float(np.finfo(dtype).eps), np.finfo(dtype).dtype.itemsize
    solver = SOLVERS[name]
    grid = [
        (kind, 10.0**power, dtype, seed)
        for power in (0, 1, 2, 4, 6, 8, 10, 12, 18)
        if 10.0**power <= solver.top[size]
        for seed in range(3)
    ]
    paths = [make_path(*arguments) for arguments in grid]
    truths = [truth(*arguments) for arguments in grid]
    matrices = np.stack([path.matrix for path in paths])
    vectors = np.stack([path.vector for path in paths])
    program = jit(solution_and_derivatives(solver.make(eps), TAGS.get(kind, ())))
    got, successful = map(np.asarray, program(matrices, vectors))
    errors = [
        [relative_error(*pair) for pair in zip(values, true.derivatives, strict=True)]
        for values, true in zip(got, truths, strict=True)
    ]
    conditions = np.array([true.condition for true in truths])
    factors = np.array([true.amplification for true in truths])
    if solver.power == 2:
        factors = np.maximum(factors, conditions[:, None] ** 2)
    refused = ~successful[:, None] | ~np.isfinite(got).all(axis=2)
    return Outcome(conditions, successful, refused, np.array(errors), 100 * eps * factors)


def solution_and_derivatives(solver, tags):
    """From stacks of coefficients to x, x', x'' and whether the solve was successful.

    In a loop, not under `vmap`: batched LAPACK calls can deadlock (jaxlib 0.10.2).
    """

    def evaluate(coefficients, t):
        t = t.astype(coefficients.dtype)
        return coefficients[0] + t * (coefficients[1] + t * coefficients[2])

    def one(arguments):
        matrix, vector = arguments

        def solve(t):
            operator = lx.MatrixLinearOperator(evaluate(matrix, t), tags)
            solution = pj.linear_solve(operator, evaluate(vector, t), solver, throw=False)
            return solution.value, solution.result == lx.RESULTS.successful

        zero = jnp.zeros((), matrix.real.dtype)
        along = ((zero,), (jnp.ones_like(zero),))

        def solve_and_jvp(t):
            x, first, successful = jax.jvp(solve, (t,), along[1], has_aux=True)
            return (x, first), successful

        (x, first), (_, second), successful = jax.jvp(solve_and_jvp, *along, has_aux=True)
        return jnp.stack([x, first, second]), successful

    return lambda matrices, vectors: jax.lax.map(one, (matrices, vectors))


@each()
def test_nothing_is_successful_with_an_error_above_the_bound(name, kind, dtype):
    got = outcome(name, kind, dtype)
    assert np.all(got.refused | (got.errors <= got.allowed))


@each()
def test_nothing_is_refused_within_reach(name, kind, dtype):
    got = outcome(name, kind, dtype)
    reach = SOLVERS[name].reach[np.finfo(dtype).dtype.itemsize]
    # The grid asks for powers of ten; a random matrix has a little more.
    within = got.conditions <= 20 * reach
    assert np.sum(within) >= 6
    assert not np.any(got.refused[within])


@each(lambda solver: solver.notices)
def test_a_matrix_that_is_singular_to_working_precision_is_refused(name, kind, dtype):
    got = outcome(name, kind, dtype)
    singular = got.conditions ** SOLVERS[name].power >= 1 / np.finfo(dtype).eps
    assert np.sum(singular) >= 3
    assert not np.any(got.successful[singular])


@pytest.mark.default("SVD-wide", "PivotedQR-square")
@pytest.mark.ci("*")
@pytest.mark.parametrize("kind", ["tall", "wide", "square"])
@pytest.mark.parametrize("solver", [pj.SVD(), pj.PivotedQR()], ids=["SVD", "PivotedQR"])
def test_beyond_the_cutoff_the_solution_is_that_of_the_rank_reported(solver, kind):
    # Singular values 1, 1e-4, 1e-8, 1e-12 in float32: those dropped are below rounding.
    path = make_path(kind, 1e12, "float32", 0)
    got = pj.linear_solve(path.matrix[0], path.vector[0], solver, throw=False)
    assert got.result == lx.RESULTS.successful
    assert got.stats["rank"] == 2
    solution, amplification = truncated_solution(path, rank=2)
    eps = np.finfo("float32").eps
    error = relative_error(np.asarray(got.value), solution)
    assert error <= 100 * eps * amplification
