"""Numbers that say how good a preconditioner is, beside dense NumPy."""

import jax
import jax.numpy as jnp
import krylov
import lineax as lx
import numpy as np
import pytest
from checks import jit

import pseudojvp as pj


SIZE = 6
NSD = lx.negative_semidefinite_tag
DENSE = {"condition": pj.condition_number, "kaporin": pj.kaporin_number}
CASES = {"real": (False, 1), "complex": (True, 1), "negative": (False, -1)}


def _pair(is_complex, sign):
    a = krylov.hermitian(0, is_complex, np.geomspace(1, 40, SIZE))
    p = krylov.hermitian(3, is_complex, np.linspace(0.5, 3, SIZE))
    return sign * a, p


def _truth(name, a, p):
    eigenvalues = np.abs(np.linalg.eigvals(p @ a).real)
    if name == "condition":
        return eigenvalues.max() / eigenvalues.min()
    return SIZE * np.log(eigenvalues.mean()) - np.log(eigenvalues).sum()


def _loss(name, a, p, tag=krylov.PSD):
    P = None if p is None else krylov.operator(p, krylov.PSD)
    return DENSE[name](krylov.operator(a, tag), P)


@pytest.mark.default("complex-condition", "negative-kaporin")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("case", CASES)
def test_dense_losses_and_their_derivatives_are_those_of_the_eigenvalues(case, name):
    is_complex, sign = CASES[case]
    a, p = _pair(is_complex, sign)
    tag = krylov.PSD if sign > 0 else NSD
    t_a = krylov.hermitian(5, is_complex, np.linspace(-1, 1, SIZE))
    t_p = krylov.hermitian(6, is_complex, np.linspace(-0.3, 0.2, SIZE))

    @jit
    def compute(a, p, t_a, t_p):
        along = lambda t: _loss(name, a + t * t_a, p + t * t_p, tag)
        reverse = jax.grad(along)(0.0)
        return (
            along(0.0),
            jax.jvp(along, (0.0,), (1.0,))[1],
            reverse,
            _loss(name, a, None, tag),
        )

    value, forward, reverse, alone = compute(*map(jnp.asarray, (a, p, t_a, t_p)))
    step = 1e-5
    moved = [_truth(name, a + s * step * t_a, p + s * step * t_p) for s in (1, -1)]
    np.testing.assert_allclose(value, _truth(name, a, p), rtol=1e-12)
    np.testing.assert_allclose(alone, _truth(name, a, np.eye(SIZE)), rtol=1e-12)
    # Of central differences.
    np.testing.assert_allclose(forward, (moved[0] - moved[1]) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-10)


@pytest.mark.slow  # a second
def test_a_multiple_of_the_inverse_is_perfect_and_a_singular_operator_hopeless():
    a, _ = _pair(False, 1)
    inverse = 3 * np.linalg.inv(a)
    np.testing.assert_allclose(_loss("condition", a, inverse), 1, rtol=1e-12)
    np.testing.assert_allclose(_loss("kaporin", a, inverse), 0, atol=1e-12)
    singular = krylov.hermitian(0, False, [0, 1, 2, 3, 4, 5])
    assert _loss("condition", singular, None) == np.inf
    assert not np.isfinite(_loss("condition", a, singular))
    slope = jax.grad(lambda s: _loss("condition", s * singular, None))(1.0)
    assert not np.isfinite(slope)  # zero would end a training without a word


@pytest.mark.slow  # three solves to compile
def test_kaporin_number_bounds_the_steps_of_cg():
    a, p = _pair(False, 1)
    root = np.linalg.cholesky(p)
    operator = krylov.operator(root.T @ a @ root, krylov.PSD)  # |r|² = rᴴ P r
    log_k = float(_loss("kaporin", a, p))
    for rtol in (1e-1, 1e-3, 1e-6):
        solver = pj.CG(rtol)
        for seed in range(3):
            solution = pj.linear_solve(operator, krylov.random(seed, False, SIZE), solver)
            most = (log_k - 2 * np.log(rtol)) / np.log(2)
            assert int(solution.stats["num_steps"]) <= np.ceil(most)


def test_probes_of_a_diagonal_error_are_exact_and_differentiable():
    a, p = np.linspace(1, 2, SIZE), np.linspace(0.4, 1.5, SIZE)

    @jax.value_and_grad
    def loss(p):
        A, P = (lx.DiagonalLinearOperator(jnp.asarray(d)) for d in (a, p))
        return pj.inverse_residual(A, P, jax.random.key(0), 3)

    value, gradient = loss(jnp.asarray(p))
    np.testing.assert_allclose(value, np.sum((1 - p * a) ** 2), rtol=1e-13)
    np.testing.assert_allclose(gradient, -2 * a * (1 - p * a), rtol=1e-12)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_probes_estimate_the_frobenius_norm_without_bias(is_complex):
    a, p = _pair(is_complex, 1)
    want = np.linalg.norm(np.eye(SIZE) - p @ a) ** 2
    operators = krylov.operator(jnp.asarray(a)), krylov.operator(jnp.asarray(p))
    estimate = jax.vmap(lambda key: pj.inverse_residual(*operators, key, 1))
    samples = np.asarray(jit(estimate)(jax.random.split(jax.random.key(1), 4000)))
    error = np.abs(samples.mean() - want) / (samples.std() / np.sqrt(len(samples)))
    assert error < 3
    product = (np.eye(SIZE) - p @ a).conj().T @ (np.eye(SIZE) - p @ a)
    assert samples.var() < 2 * np.linalg.norm(product) ** 2


def test_probes_take_operators_on_trees():
    tree = {"a": jnp.arange(1.0, 4), "b": jnp.ones(())}
    A = lx.DiagonalLinearOperator(tree)
    P = lx.DiagonalLinearOperator(jax.tree.map(lambda d: 0.5 / d, tree))
    value = pj.inverse_residual(A, P, jax.random.key(0))
    np.testing.assert_allclose(value, 4 * 0.25)


@pytest.mark.slow  # a solve, and its derivative, to compile
def test_loss_of_an_inverse_by_woodbury_is_differentiated_in_the_low_rank_part():
    a, _ = _pair(False, 1)
    u, t_u = krylov.random(8, False, 2, SIZE, 2)

    @jax.jit
    def loss(u):
        D = lx.DiagonalLinearOperator(jnp.linspace(1, 2, SIZE))
        M = pj.LowRankUpdate(lx.TaggedLinearOperator(D, krylov.PSD), u)
        return pj.kaporin_number(
            krylov.operator(jnp.asarray(a), krylov.PSD), pj.invert(M)
        )

    def truth(u):
        inverse = np.linalg.inv(np.diag(np.linspace(1, 2, SIZE)) + u @ u.T)
        return _truth("kaporin", a, inverse)

    step = 1e-5
    moved = truth(u + step * t_u) - truth(u - step * t_u)
    np.testing.assert_allclose(loss(u), truth(u), rtol=1e-12)
    slope = np.sum(jax.grad(loss)(jnp.asarray(u)) * t_u)
    np.testing.assert_allclose(slope, moved / (2 * step), rtol=1e-6)  # of differences


@pytest.mark.untyped
def test_bad_input_is_an_error():
    a, p = map(jnp.asarray, _pair(False, 1))
    tagged = krylov.operator(a, krylov.PSD)
    for name, loss in DENSE.items():
        with pytest.raises(
            ValueError, match=rf"{name}_number\(A=...\)` needs a definite"
        ):
            loss(a, krylov.operator(p, krylov.PSD))
        with pytest.raises(
            ValueError, match=rf"{name}_number\(P=...\)` needs a definite"
        ):
            loss(tagged, p)
        with pytest.raises(ValueError, match="A and P are square"):
            loss(tagged, krylov.operator(jnp.eye(3), krylov.PSD))
    with pytest.raises(ValueError, match=r"`inverse_residual\(A=...\)` got an operator"):
        pj.inverse_residual(jnp.ones((2, 3)), jnp.ones((3, 2)), jax.random.key(0))
    with pytest.raises(TypeError, match="got a NoneType"):
        pj.inverse_residual(a, None, jax.random.key(0))
    with pytest.raises(ValueError, match="got 0. It is at least 1"):
        pj.inverse_residual(a, p, jax.random.key(0), 0)
    with pytest.raises(TypeError, match="Pass a Python integer"):
        pj.inverse_residual(a, p, jax.random.key(0), 2.0)
