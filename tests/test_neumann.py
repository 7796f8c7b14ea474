"""The truncated Neumann series against explicit matrix polynomials."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj
from pseudojvp._map.guard import Guard
from pseudojvp._map.primitive import bind
from pseudojvp._map.rows import Blocks, Problem


SUCCESSFUL = lx.RESULTS.successful
BREAKDOWN = lx.RESULTS.breakdown
RNG = np.random.default_rng(11)


def _complex(*shape):
    return RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)


def _normal_entries(shape, dtype):
    return _complex(*shape) if dtype is complex else RNG.standard_normal(shape)


A_REAL = np.eye(4) + 0.2 * RNG.standard_normal((4, 4))
P_REAL = np.eye(4) + 0.2 * RNG.standard_normal((4, 4))
A_COMPLEX = np.eye(4) + 0.2 * _complex(4, 4)
P_COMPLEX = np.eye(4) + 0.2 * _complex(4, 4)
A_TALL = np.eye(5, 3) + 0.2 * _complex(5, 3)
P_WIDE = np.eye(3, 5) + 0.2 * _complex(3, 5)
SERIES = pytest.mark.parametrize(
    ("a", "p", "scale"),
    [
        (A_REAL, None, 0.8),
        (A_REAL, P_REAL, 0.7),
        (A_COMPLEX, None, 0.9),
        (A_COMPLEX, P_COMPLEX, 0.6),
        (A_COMPLEX, P_COMPLEX, 0.6 + 0.2j),
        (A_TALL, P_WIDE, 0.5),
    ],
    ids=["real", "real-P", "complex", "complex-P", "complex-scale", "tall-P"],
)


def _as_operator(matrix, tags=()):
    return None if matrix is None else lx.MatrixLinearOperator(jnp.asarray(matrix), tags)


def _polynomial(a, p, scale, num_terms, weight=lambda k: 1):
    """scale * sum of weight(k) (I - scale P A)^k P, term by term."""
    p = np.eye(a.shape[0]) if p is None else p
    error = np.eye(a.shape[1]) - scale * p @ a
    powers = (np.linalg.matrix_power(error, k) for k in range(num_terms + 1))
    return scale * sum(weight(k) * power for k, power in enumerate(powers)) @ p


@eqx.filter_jit
def _solve(matrices, vectors, solver):
    """One solve for each member of a batch: value, result and stats."""

    def solve(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        return solution.value, solution.result, solution.stats["num_steps"]

    return jax.vmap(solve)(matrices, vectors)


@pytest.mark.default("5-complex-P")
@pytest.mark.ci("5-*", "0-complex-scale", "1-tall-P")
@SERIES
@pytest.mark.parametrize("num_terms", [0, 1, 2, 5])
def test_series_and_its_derivatives_in_b_are_the_polynomial(a, p, scale, num_terms):
    solver = pj.Neumann(num_terms, scale, _as_operator(p))

    @jax.jit
    def columns(a):
        def solve(b):
            return pj.linear_solve(lx.MatrixLinearOperator(a), b, solver).value

        b = jnp.ones(a.shape[0], a.dtype)
        x, transpose = jax.vjp(solve, b)
        jvp = jax.vmap(lambda t: jax.jvp(solve, (b,), (t,))[1])
        vjp = jax.vmap(lambda ct: transpose(ct)[0])
        return x, jvp(jnp.eye(b.size, dtype=b.dtype)), vjp(jnp.eye(x.size, dtype=x.dtype))

    x, tangents, cotangents = columns(a)
    polynomial = _polynomial(a, p, scale, num_terms)
    np.testing.assert_allclose(x, polynomial.sum(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tangents, polynomial.T, rtol=1e-12, atol=1e-12)
    # JAX's transpose does not conjugate: row i is e_i^T N.
    np.testing.assert_allclose(cotangents, polynomial, rtol=1e-12, atol=1e-12)


def test_num_terms_zero_is_the_scaled_preconditioner():
    solver = pj.Neumann(0, 0.3, _as_operator(P_COMPLEX))
    b = _complex(4)
    x = pj.linear_solve(A_COMPLEX, b, solver).value
    np.testing.assert_allclose(x, 0.3 * P_COMPLEX @ b, rtol=1e-13)


def test_preconditioner_of_options_wins_over_the_field():
    solver = pj.Neumann(2, 0.6, _as_operator(P_REAL))
    options = {"preconditioner": _as_operator(A_REAL.T)}
    b = RNG.standard_normal(4)
    x = pj.linear_solve(A_REAL, b, solver, options=options).value
    np.testing.assert_allclose(x, _polynomial(A_REAL, A_REAL.T, 0.6, 2) @ b, rtol=1e-12)


@pytest.mark.default("complex-scale", "tall-P")
@pytest.mark.ci("*")
@SERIES
def test_row_space_projection_is_the_closed_form(a, p, scale):
    solver = pj.Neumann(3, scale, _as_operator(p))

    @jax.jit
    def columns(a):
        operator = lx.MatrixLinearOperator(a)
        problem = Problem.create(operator, solver.init(operator, {}), {}, solver)

        def project(y):
            rhs, wanted = Blocks(None, None, y), Blocks(False, False, True)
            return bind(problem, rhs, wanted, Guard(throw=False))[0]

        return jax.vmap(project)(jnp.eye(a.shape[1], dtype=a.dtype)).projection.T

    eye = np.eye(a.shape[1])
    error = eye - scale * (a if p is None else p @ a)
    expected = eye - np.linalg.matrix_power(error, 4)
    np.testing.assert_allclose(columns(a), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("matrix", [A_REAL, A_COMPLEX], ids=["real", "complex"])
def test_gram_inverse_is_the_series_with_weights(matrix):
    hermitian = matrix @ matrix.conj().T
    operator = _as_operator(hermitian, lx.positive_semidefinite_tag)
    solver = pj.Neumann(5, 0.3)
    w = RNG.standard_normal(4).astype(matrix.dtype)
    state = solver.init(operator, {})
    assert solver.has_gram_series(state, {})
    solution, gram, _ = jax.jit(lambda w: solver.gram_inverse(state, w, {}))(w)
    weighted = 0.3 * _polynomial(hermitian, None, 0.3, 5, weight=lambda k: k + 1)
    np.testing.assert_allclose(solution, _polynomial(hermitian, None, 0.3, 5) @ w)
    np.testing.assert_allclose(gram, weighted @ w, rtol=1e-12)


def test_no_gram_series_without_hermitian_operator():
    solver = pj.Neumann(5, 0.3)
    state = solver.init(_as_operator(A_REAL), {})
    assert not solver.has_gram_series(state, {})


def test_no_gram_series_for_complex_symmetric_operator():
    solver = pj.Neumann(5, 0.3)
    operator = _as_operator(A_COMPLEX + A_COMPLEX.T, lx.symmetric_tag)
    assert not solver.has_gram_series(solver.init(operator, {}), {})


def _with_radius(radius, count=200, size=5):
    """Systems with I - A symmetric, of spectral radius `radius`."""
    rng = np.random.default_rng(3)
    q, _ = np.linalg.qr(rng.standard_normal((count, size, size)))
    eigenvalues = rng.uniform(-radius, radius, (count, size))
    eigenvalues[:, 0] = radius
    a = np.eye(size) - (q * eigenvalues[:, None]) @ q.mT
    return a, rng.standard_normal((count, size))


@pytest.mark.default("0.99")
@pytest.mark.ci("*")
@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
def test_with_tolerance_the_error_is_within_twice_it(radius):
    a, b = _with_radius(radius)
    rtol, atol = 1e-8, 1e-8
    x, result, num_steps = _solve(a, b, pj.Neumann(4000, rtol=rtol, atol=atol))
    exact = np.linalg.solve(a, b[..., None])[..., 0]
    allowed = atol + rtol * np.abs(exact)
    assert jnp.all(result == SUCCESSFUL)
    # Twice: the rest is estimated as geometric, with the ratio of the last two norms.
    assert np.max(np.abs(x - exact) / allowed) <= 2
    assert np.max(num_steps) < 4000


def test_unmet_tolerance_reports_max_steps_reached():
    a, b = _with_radius(0.9, count=3)
    _, result, num_steps = _solve(a, b, pj.Neumann(10, rtol=1e-8, atol=0.0))
    assert jnp.all(result == lx.RESULTS.max_steps_reached)
    assert np.all(np.asarray(num_steps) == 10)


@pytest.mark.slow  # a second
def test_tolerance_stops_at_the_first_term_that_meets_it():
    # Every term of the series of A = I / 2 is half of the last: x_k = 2 - 2^-k.
    _, result, num_steps = _solve(
        0.5 * np.eye(2)[None], np.ones((1, 2)), pj.Neumann(100, atol=2.0**-10)
    )
    assert jnp.all(result == SUCCESSFUL)
    assert int(num_steps[0]) == 10


@pytest.mark.default("1e-06-1.5", "None-3.0")
@pytest.mark.ci("*")
@pytest.mark.parametrize("radius", [1.5, 3.0])
@pytest.mark.parametrize("rtol", [None, 1e-6])
def test_growth_stops_early_with_breakdown(radius, rtol):
    a, b = _with_radius(radius, count=20)
    _, result, num_steps = _solve(a, b, pj.Neumann(100, rtol=rtol))
    assert jnp.all(result == BREAKDOWN)
    assert np.max(num_steps) < 100


def test_overflow_of_the_terms_stops_early_with_breakdown():
    a, b = np.full((1, 2, 2), 1e300), np.full((1, 2), 1e10)
    _, result, num_steps = _solve(a, b, pj.Neumann(100))
    assert jnp.all(result == BREAKDOWN)
    assert np.max(num_steps) < 3


def test_slow_divergence_is_told_at_the_end():
    a, b = _with_radius(1.05, count=20)
    _, result, num_steps = _solve(a, b, pj.Neumann(150))
    assert jnp.all(result == BREAKDOWN)
    assert np.all(np.asarray(num_steps) == 150)


TRANSIENT = np.eye(2) - np.array([[0.5, 1e5], [0.0, 0.5]])  # terms grow to 1e5 first


@pytest.mark.parametrize("rtol", [None, 1e-12, 1e-3], ids=["none", "fine", "coarse"])
def test_transient_growth_of_a_convergent_series_is_no_breakdown(rtol):
    b = np.array([0.0, 1.0])
    x, result, _ = _solve(TRANSIENT[None], b[None], pj.Neumann(100, rtol=rtol))
    assert jnp.all(result == SUCCESSFUL)
    exact = np.linalg.solve(TRANSIENT, b)
    # The coarsest tolerance asked for.
    np.testing.assert_allclose(x[0], exact, rtol=1e-3)


def test_vmap_flags_the_divergent_member_alone():
    a, b = _with_radius(0.5, count=4)
    a[2] = 3 * np.eye(5)
    x, result, num_steps = _solve(a, b, pj.Neumann(60))
    expected = np.array([True, True, False, True])
    np.testing.assert_array_equal(result == SUCCESSFUL, expected)
    exact = np.linalg.solve(a, b[..., None])[..., 0]
    np.testing.assert_allclose(x[expected], exact[expected], rtol=1e-12)
    assert int(num_steps[2]) < 60


@pytest.mark.default("tall-deficient-complex")
@pytest.mark.ci("*-complex", "square-deficient-real")
@pytest.mark.parametrize("dtype", [float, complex], ids=["real", "complex"])
@pytest.mark.parametrize(
    ("rows", "cols", "rank"),
    [(5, 3, 3), (3, 5, 3), (5, 3, 2), (3, 5, 2), (4, 4, 2)],
    ids=["tall", "wide", "tall-deficient", "wide-deficient", "square-deficient"],
)
def test_landweber_gives_the_pseudoinverse(rows, cols, rank, dtype):
    left = np.linalg.qr(_normal_entries((rows, rank), dtype))[0]
    right = np.linalg.qr(_normal_entries((cols, rank), dtype))[0]
    a = (left * np.linspace(0.7, 1, rank)) @ right.conj().T
    solver = pj.Neumann(500, preconditioner=_as_operator(a.conj().T), rtol=1e-12)
    x, result, _ = _solve(
        jnp.broadcast_to(a, (rows, *a.shape)), np.eye(rows, dtype=dtype), solver
    )
    assert jnp.all(result == SUCCESSFUL)
    np.testing.assert_allclose(x.T, np.linalg.pinv(a, rcond=1e-8), atol=1e-10)


def test_pytrees_are_summed_leaf_by_leaf():
    matrix = A_REAL
    structure = {
        "a": jax.ShapeDtypeStruct((3,), float),
        "b": jax.ShapeDtypeStruct((), float),
    }

    def mv(tree):
        out = matrix @ jnp.append(tree["a"], tree["b"])
        return {"a": out[:3], "b": out[3]}

    b = RNG.standard_normal(4)
    operator = lx.FunctionLinearOperator(mv, structure)
    vector = {"a": jnp.asarray(b[:3]), "b": jnp.asarray(b[3])}
    x = pj.linear_solve(operator, vector, pj.Neumann(5, 0.7)).value
    expected = _polynomial(matrix, None, 0.7, 5) @ b
    np.testing.assert_allclose(jnp.append(x["a"], x["b"]), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_single_precision_is_kept(dtype):
    a = A_COMPLEX.astype(dtype) if dtype is np.complex64 else A_REAL.astype(dtype)
    solver = pj.Neumann(20, 0.8, rtol=1e-3)
    b = np.ones(4, dtype)
    x = pj.linear_solve(a, b, solver).value
    assert x.dtype == dtype
    # The tolerance asked for, in single precision.
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=2e-3)
