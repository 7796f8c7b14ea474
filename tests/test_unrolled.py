"""`UnrolledAdjoint`: against loops written by hand, and minima over Krylov spaces."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


STEPS = 5
POSITIVE = lx.positive_semidefinite_tag


def hermitian(matrix):
    return (matrix + matrix.conj().T) / 2


def positive(size, rng, dtype=float, condition=100.0):
    """A matrix with that condition number."""
    matrix = rng.standard_normal((size, size))
    if dtype is complex:
        matrix = matrix + 1j * rng.standard_normal((size, size))
    vectors, _ = np.linalg.qr(matrix)
    values = np.geomspace(1, condition, size)
    return jnp.asarray((vectors * values) @ vectors.conj().T)


def vector(size, rng, dtype=float):
    real = rng.standard_normal(size)
    if dtype is complex:
        real = real + 1j * rng.standard_normal(size)
    return jnp.asarray(real)


def cg_by_hand(A, b, P, y0, steps=STEPS):
    """Hestenes and Stiefel, with the preconditioner as a matrix."""
    inner = lambda u, v: jnp.vdot(u, v).real
    x, r = y0, b - A @ y0
    z = P @ r
    p, norms = z, []
    for _ in range(steps):
        image = A @ p
        step = (inner(r, z) / inner(p, image)).astype(r.dtype)
        x, new = x + step * p, r - step * image
        z_new = P @ new
        p = z_new + (inner(new, z_new) / inner(r, z)).astype(r.dtype) * p
        r, z = new, z_new
        norms.append(jnp.sqrt(inner(r, r)))
    return x, jnp.stack(norms)


def minimum_over(basis, A, r, metric):
    """x in the span of the basis with the least ‖metric (r − A x)‖."""
    images = metric @ A @ basis
    gram = images.conj().T @ images
    return basis @ jnp.linalg.solve(gram, images.conj().T @ (metric @ r))


def krylov(matrix, start, steps=STEPS):
    """An orthonormal basis, by Gram-Schmidt twice."""
    columns = []
    w = start
    for _ in range(steps):
        for _ in range(2):
            for v in columns:
                w = w - jnp.vdot(v, w) * v
        columns.append(w / jnp.sqrt(jnp.vdot(w, w).real).astype(w.dtype))
        w = matrix @ columns[-1]
    return jnp.stack(columns, axis=1)


def minres_by_hand(A, b, P, y0):
    r = b - A @ y0
    basis = krylov(P @ A, P @ r)
    root = jnp.linalg.cholesky(P).conj().T
    return y0 + minimum_over(basis, A, r, root)


def lsmr_by_hand(A, b, P, y0):
    """With P on the right: |(A P)ᴴ r| over a space of (A P)ᴴ A P."""
    r = b - A @ y0
    B = A @ P
    basis = krylov(B.conj().T @ B, B.conj().T @ r)
    return y0 + P @ minimum_over(basis, B, r, B.conj().T)


def neumann_by_hand(A, b, P, scale):
    term = scale * (P @ b)
    x = term
    for _ in range(STEPS):
        term = term - scale * (P @ (A @ term))
        x = x + term
    return x


def scalar(value):
    """A real function of all entries."""
    weights = jnp.cos(jnp.arange(value.size)).astype(value.dtype)
    return jnp.vdot(weights, value).real + jnp.sum(jnp.abs(value) ** 3)


def gradients(function, *args):
    return jax.grad(lambda *args: scalar(function(*args)), range(len(args)))(*args)


def assert_close(given, expected, rtol=1e-10):
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


def solve(A, b, solver, adjoint=None, tags=POSITIVE, **options):
    adjoint = pj.UnrolledAdjoint() if adjoint is None else adjoint
    operator = lx.MatrixLinearOperator(A, tags)
    return pj.linear_solve(
        operator, b, solver, options=options, adjoint=adjoint, throw=False
    )


def tagged(P):
    return lx.MatrixLinearOperator(P, POSITIVE)


def problem(dtype, size=12):
    rng = np.random.default_rng(3)
    A = positive(size, rng, dtype)
    P = positive(size, rng, dtype, condition=3.0)
    return A, vector(size, rng, dtype), P, vector(size, rng, dtype)


STEPPED = {"rtol": 0, "atol": 0, "max_steps": STEPS}


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", [float, complex], ids=["float", "complex"])
@pytest.mark.parametrize("kind", [pj.CG, pj.FlexibleCG], ids=["CG", "FlexibleCG"])
def test_gradient_of_conjugate_gradients_is_that_of_the_loop(kind, dtype):
    solver = kind(**STEPPED, history=True)

    def ours(A, b, P, y0):
        P = tagged(hermitian(P))
        solution = solve(hermitian(A), b, solver, preconditioner=P, y0=y0)
        norms = solution.stats["residual_norms"]
        return jnp.concatenate([solution.value, norms.astype(b.dtype)])

    def by_hand(A, b, P, y0):
        x, norms = cg_by_hand(hermitian(A), b, hermitian(P), y0)
        return jnp.concatenate([x, norms.astype(b.dtype)])

    args = problem(dtype)
    compare = jax.jit(lambda *args: (gradients(ours, *args), gradients(by_hand, *args)))
    assert_close(*compare(*args))


@pytest.mark.ci("*")
@pytest.mark.parametrize("dtype", [float, complex], ids=["float", "complex"])
@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [(pj.MINRES, minres_by_hand), (pj.LSMR, lsmr_by_hand)],
    ids=["MINRES", "LSMR"],
)
def test_gradient_is_that_of_the_minimum_over_a_krylov_space(kind, by_hand, dtype):
    solver = kind(**STEPPED, well_posed=True)
    tags = pj.hermitian_tag if kind is pj.MINRES else ()

    def ours(A, b, P, y0):
        A = hermitian(A) - 5 * jnp.eye(len(b), dtype=b.dtype)
        P = tagged(hermitian(P))
        return solve(A, b, solver, tags=tags, preconditioner=P, y0=y0).value

    def truth(A, b, P, y0):
        A = hermitian(A) - 5 * jnp.eye(len(b), dtype=b.dtype)
        return by_hand(A, b, hermitian(P), y0)

    args = problem(dtype)
    compare = jax.jit(lambda *args: (gradients(ours, *args), gradients(truth, *args)))
    assert_close(*compare(*args))


@pytest.mark.slow  # a second
def test_gradient_of_a_neumann_series_has_that_of_its_scale():
    def ours(A, b, P, scale):
        solver = pj.Neumann(STEPS, scale, lx.MatrixLinearOperator(P))
        return solve(A, b, solver, tags=()).value

    A, b, P, _ = problem(float)
    args = A, b, P, jnp.array(0.004)
    assert_close(gradients(ours, *args), gradients(neumann_by_hand, *args))


@pytest.mark.slow
def test_the_numbers_of_learned_steps_have_gradients():
    def ours(A, b, factors, shifts):
        solver = pj.LearnedCG(STEPS)
        where = lambda solver: (solver.factors, solver.shifts)
        return solve(A, b, eqx.tree_at(where, solver, (factors, shifts))).value

    def by_hand(A, b, factors, shifts):
        x, r, p = jnp.zeros_like(b), b, b
        for factor, shift in zip(factors, shifts, strict=True):
            image = A @ p
            step = factor * (r @ r) / (p @ image)
            x, new = x + step * p, r - step * image
            p = new + ((new @ new) / (r @ r) + shift) * p
            r = new
        return x

    A, b, *_ = problem(float)
    index = jnp.arange(float(STEPS))
    args = A, b, 1 - 0.02 * index, 0.05 * index
    assert_close(gradients(ours, *args), gradients(by_hand, *args))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pj.MINRES, pj.LSMR], ids=["MINRES", "LSMR"])
def test_norms_of_the_residual_are_differentiated(kind):
    solver = kind(**STEPPED, history=True)

    def ours(A, b):
        A = hermitian(A)
        return solve(A, b, solver, tags=lx.symmetric_tag).stats["residual_norms"]

    def truth(A, b):
        A = hermitian(A)
        norms = []
        for steps in range(1, STEPS + 1):
            if kind is pj.MINRES:
                x = minimum_over(krylov(A, b, steps), A, b, jnp.eye(len(b)))
            else:
                x = minimum_over(krylov(A @ A, A @ b, steps), A, b, A)
            norms.append(jnp.linalg.norm(b - A @ x))
        return jnp.stack(norms)

    A, b, *_ = problem(float)
    assert_close(ours(A, b), truth(A, b))
    assert_close(gradients(ours, A, b), gradients(truth, A, b))


@pytest.mark.ci("*")
@pytest.mark.parametrize("checkpoints", [1, 2, 3])
def test_checkpoints_change_no_gradient(checkpoints):
    A, b, *_ = problem(float)
    solver = pj.CG(**STEPPED)

    def ours(adjoint):
        return lambda A, b: solve(hermitian(A), b, solver, adjoint).value

    compare = jax.jit(
        lambda A, b: (
            gradients(ours(pj.UnrolledAdjoint(checkpoints)), A, b),
            gradients(ours(pj.UnrolledAdjoint()), A, b),
        )
    )
    assert_close(*compare(A, b), rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [None, 2])
def test_second_derivatives_are_those_of_the_loop(checkpoints):
    A, b, P, y0 = problem(float, size=7)
    adjoint = pj.UnrolledAdjoint(checkpoints)
    steps = 3
    solver = pj.CG(rtol=0, atol=0, max_steps=steps)
    direction = jnp.sin(jnp.arange(49.0)).reshape(7, 7)

    def ours(A):
        P_ = tagged(P)
        x = solve(hermitian(A), b, solver, adjoint, preconditioner=P_, y0=y0).value
        return scalar(x)

    def by_hand(A):
        return scalar(cg_by_hand(hermitian(A), b, P, y0, steps)[0])

    def both(function):
        forward_over_reverse = jax.jvp(jax.grad(function), (A,), (direction,))[1]
        along = lambda A: jnp.vdot(jax.grad(function)(A), direction)
        return forward_over_reverse, jax.grad(along)(A)

    assert_close(jax.jit(lambda: both(ours))(), jax.jit(lambda: both(by_hand))())
