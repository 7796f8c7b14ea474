"""Large batches on two cores: batched LAPACK calls must not wait for each other.

On jaxlib 0.10.2 two batched library calls without a data dependency may never return when
the thread pool has no more threads than calls in flight.
"""

import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


SOLVERS = {
    "QR-tall": (pj.QR(), (32, 9), ()),
    "QR-wide": (pj.QR(), (9, 32), ()),
    "CholeskyQR-tall": (pj.CholeskyQR(), (32, 9), ()),
    "CholeskyQR-wide": (pj.CholeskyQR(), (9, 32), ()),
    "PivotedQR-tall": (pj.PivotedQR(), (32, 9), ()),
    "PivotedQR-wide": (pj.PivotedQR(), (9, 32), ()),
    "PivotedQR-square": (pj.PivotedQR(), (9, 9), ()),
    "SVD": (pj.SVD(), (32, 9), ()),
    "LU": (pj.LU(), (9, 9), ()),
    "Cholesky": (pj.Cholesky(), (9, 9), lx.positive_semidefinite_tag),
    "Triangular": (pj.Triangular(), (9, 9), lx.lower_triangular_tag),
    "Tridiagonal": (pj.Tridiagonal(), (9, 9), lx.tridiagonal_tag),
    "Normal(Cholesky)": (pj.Normal(pj.Cholesky()), (32, 9), ()),
    "Normal(QR)": (pj.Normal(pj.QR()), (9, 32), ()),
    "Auto(False)": (pj.AutoLinearSolver(False), (32, 9), ()),
}


def _compiled_gradient(solver, shape, tags, power):
    """The compiled text of the gradient of Σ x^power for a batch."""

    def loss(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix, tags)
        return jnp.sum(pj.linear_solve(operator, vector, solver).value ** power)

    gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))
    matrix = jax.ShapeDtypeStruct((100, *shape), float)
    vector = jax.ShapeDtypeStruct((100, shape[0]), float)
    return gradient.lower(matrix, vector).compile().as_text()


def _computations(text):
    """For each computation of an HLO module: instruction to (operands, LAPACK call?).

    Of batched calls: those for one matrix, without a third axis, do not wait for other
    threads. A loop with a call in it counts as one.
    """
    computations, calling = [], set()
    for line in text.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header:
            computations.append({})
        instruction = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
        if header:
            computation = header.group(1)
        elif instruction:
            name, rest = instruction.groups()
            operands = re.findall(r"%([\w.\-]+)", rest)
            is_call = re.match(r".*\[\d+,\d+,\d+\].* custom-call\(.*lapack", rest)
            is_call = is_call or calling & set(operands)
            if is_call:
                calling.add(computation)
            computations[-1][name] = (operands, bool(is_call))
    return computations


def _unordered_calls(computation):
    """The number of LAPACK calls, and the pairs of them without a data dependency."""
    before = {}  # HLO text is in topological order
    for name, (operands, _) in computation.items():
        known = [operand for operand in operands if operand in before]
        before[name] = set(known).union(*(before[operand] for operand in known))
    calls = [name for name, (_, is_call) in computation.items() if is_call]
    pairs = [(a, b) for i, b in enumerate(calls) for a in calls[:i] if a not in before[b]]
    return len(calls), pairs


# A constant cotangent is the harder case: it does not wait for x.
@pytest.mark.ci("*-constant-cotangent", "LU-constant-cotangent")
@pytest.mark.optimised
@pytest.mark.parametrize("power", [1, 2], ids=["constant-cotangent", "cotangent-of-x"])
@pytest.mark.parametrize("name", SOLVERS)
def test_library_calls_of_a_batched_gradient_have_an_order(name, power):
    _check_order(_compiled_gradient(*SOLVERS[name], power))


def _hermitian(matrix):
    return lx.MatrixLinearOperator(matrix + matrix.T, lx.symmetric_tag)


STRUCTURED = {
    "kronecker": (pj.Kronecker, ((9, 9), (8, 8)), True),
    "kronecker-of-full-rank": (pj.Kronecker, ((9, 7), (8, 6)), None),
    "kronecker-of-any-rank": (pj.Kronecker, ((9, 7), (8, 6)), False),
    "damped": (
        lambda a, b: pj.Kronecker(_hermitian(a), _hermitian(b)).damped(1.0),
        ((9, 9), (8, 8)),
        True,
    ),
    "blocks": (pj.BlockDiagonal, ((9, 9), (8, 8)), True),
    "blocks-of-full-rank": (pj.BlockDiagonal, ((9, 7), (8, 8)), None),
    "blocks-of-any-rank": (pj.BlockDiagonal, ((9, 7), (8, 8)), False),
}


@pytest.mark.ci("*")
@pytest.mark.optimised
@pytest.mark.parametrize("name", STRUCTURED)
def test_library_calls_of_structured_operators_have_an_order(name):
    make, shapes, well_posed = STRUCTURED[name]
    of_blocks = make is pj.BlockDiagonal

    def loss(arrays, vector):
        solver = pj.AutoLinearSolver(well_posed)
        return jnp.sum(pj.linear_solve(make(*arrays), vector, solver).value)

    arrays = [jax.ShapeDtypeStruct((100, *shape), float) for shape in shapes]
    gradient = jax.grad(loss, (0, 1))
    (m, _), (k, _) = shapes
    vector = jax.ShapeDtypeStruct((100 * (m + k),), float)
    if not of_blocks:  # a batch of them, where blocks are one by themselves
        gradient = jax.vmap(gradient)
        vector = jax.ShapeDtypeStruct((100, m * k), float)
    _check_order(jax.jit(gradient).lower(arrays, vector).compile().as_text())


def _check_order(text):
    found = map(_unordered_calls, _computations(text))
    counts, pairs = zip(*found, strict=True)
    assert sum(counts) > 0
    assert not any(pairs)


def _fits(data):
    x = np.linspace(0, 3, data.shape[1])

    def decays(theta, _):
        decay = jnp.exp(-jnp.outer(x, jnp.exp(theta)))
        return jnp.concatenate([decay, jnp.ones((x.size, 1))], axis=1)

    weights = 1 + jnp.abs(data) if data.ndim == 2 else None
    start = jnp.array([0.0, 1.0])
    return pj.varpro_batch(decays, data, start, weights=weights, batch_size=100)


@pytest.mark.slow  # two large programs, optimised
@pytest.mark.optimised
@pytest.mark.parametrize("shape", [(250, 20), (250, 20, 30)], ids=["own", "shared"])
def test_library_calls_of_the_statistics_of_many_fits_have_an_order(shape):
    fits = eqx.filter_eval_shape(_fits, jax.ShapeDtypeStruct(shape, float))
    statistics = jax.jit(lambda fits: fits.statistics())
    _check_order(statistics.lower(fits).compile().as_text())


@pytest.mark.nightly  # twenty seconds: a large program, optimised
@pytest.mark.optimised
def test_library_calls_of_the_gradient_of_many_fits_have_an_order():
    gradient = jax.jit(jax.grad(lambda data: jnp.sum(_fits(data).coefficients)))
    data = jax.ShapeDtypeStruct((250, 20), float)
    _check_order(gradient.lower(data).compile().as_text())


# 10,000 problems, in a subprocess, so that a deadlock is a failure.
_SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pseudojvp as pj

rng = np.random.default_rng(0)
for solver, (m, n), tag in [
    (pj.QR(), (32, 8), ()),
    (pj.CholeskyQR(), (32, 8), ()),
    (pj.Normal(pj.Cholesky()), (32, 8), ()),
    (pj.SVD(), (32, 8), ()),
    (pj.PivotedQR(), (8, 32), ()),
    (pj.LU(), (8, 8), ()),
    (pj.Cholesky(), (8, 8), lx.positive_semidefinite_tag),
]:
    a = rng.standard_normal((10000, m, n))
    if m == n:
        a = a @ a.transpose(0, 2, 1) + np.eye(n)
    b = rng.standard_normal((10000, m))

    def solve(a, b):
        operator = lx.MatrixLinearOperator(a, tag)
        return jnp.sum(pj.linear_solve(operator, b, solver).value)

    gradient = jax.jit(jax.vmap(jax.grad(solve, argnums=(0, 1))))
    for _ in range(2):
        of_a, _ = gradient(jnp.asarray(a), jnp.asarray(b))
        print(bool(jnp.all(jnp.isfinite(of_a))), flush=True)
"""


@pytest.mark.nightly  # half a minute: seven programs, optimised, and 140,000 solves
def test_gradients_of_ten_thousand_solves_end():
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == ["True"] * 14
