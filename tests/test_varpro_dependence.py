"""Which columns each parameter moves, and the tangents of Φ that it saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._varpro.dependence import groups_of, moved_columns


Q = 6
THETA = jnp.linspace(0.3, 1.3, Q)
POINTS = jnp.linspace(0.1, 2.0, 9)


def peaks(theta):
    """Three centres, then three widths."""
    centres, widths = jnp.split(theta, 2)
    return jnp.exp(-(((POINTS[:, None] - centres[None, :]) / widths[None, :]) ** 2))


def column_by_column(theta):
    """One parameter in two columns, one in none; a constant column."""
    first = jnp.exp(-theta[0] * POINTS)
    second = first * jnp.cos(6 * theta[1] * POINTS)
    third = jnp.sin(3 * theta[3] * POINTS) + theta[4] * POINTS**3
    rest = jnp.where(theta[5] > 0, theta[5], 1.0) + POINTS
    return jnp.column_stack([first, second, jnp.ones_like(POINTS), third, rest])


def mapped(theta):
    """Real and imaginary parts, parameter by parameter, in twice as many columns."""
    wave = jax.vmap(
        lambda rate: jnp.exp(1j * (rate * POINTS).astype(complex)), out_axes=1
    )(theta[:3])
    return jnp.concatenate([wave.real, wave.imag[:, ::2]], axis=1)


def pairs(theta):
    """Rows of a reshaped θ."""
    table = theta.reshape(3, 2)
    return jnp.stack([a * POINTS**b for a, b in table], axis=1)[:, :2]


def rotated(theta):
    """A product with a matrix, whose columns come in another order."""
    phi = jnp.sin(POINTS[:, None] * theta[None, :])
    return jnp.pad(jnp.tanh(phi) @ jnp.eye(Q), [(0, 0), (1, 0)])[:, 1:].T[::-1].T


def smoothed(theta):
    """Along the rows by a matrix; the columns stay apart."""
    phi = jnp.exp(-POINTS[:, None] * theta[None, :])
    return jnp.tril(jnp.ones((9, 9))) @ phi


def summed(theta):
    """All columns divided by their sum."""
    phi = jnp.exp(-POINTS[:, None] * theta[None, :])
    return phi / jnp.sum(phi, axis=1, keepdims=True)


def chosen(theta):
    """By indices that are not known when JAX traces."""
    order = jnp.argsort(jnp.asarray([2.0, 0.0, 1.0]) * theta[0])
    return jnp.sin(POINTS[:, None] * theta[order][None, :])


def stepped(theta):
    """A loop."""
    step = lambda y, t: (y - 0.1 * theta * y, y)
    return jax.lax.scan(step, jnp.ones(Q), POINTS)[1]


EXACT = [peaks, column_by_column, mapped, pairs, smoothed]
COARSE = [rotated, summed, chosen, stepped]


def moved(basis):
    _, push = jax.linearize(basis, THETA)
    (columns,) = moved_columns(push, THETA)
    return columns


def truly_moved(basis):
    """By the numbers, at a point where none is zero by chance."""
    slopes = jax.jit(jax.jacfwd(basis))(THETA)
    return np.any(np.asarray(slopes) != 0, axis=0).T


@pytest.mark.parametrize("basis", EXACT)
def test_moved_columns_are_those_with_slopes(basis):
    np.testing.assert_array_equal(moved(basis), truly_moved(basis))


@pytest.mark.parametrize("basis", COARSE)
def test_no_column_with_a_slope_is_missed(basis):
    assert np.all(moved(basis) >= truly_moved(basis))


@pytest.mark.parametrize("basis", [summed, chosen, stepped])
def test_what_is_not_known_moves_all(basis):
    used = truly_moved(basis).any(axis=1)
    assert moved(basis)[used].all()


def test_compiled_basis_is_looked_into():
    np.testing.assert_array_equal(moved(jax.jit(peaks)), moved(peaks))


def test_peaks_share_two_tangents():
    np.testing.assert_array_equal(groups_of(moved(peaks)), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("seed", range(20))
def test_groups_have_each_parameter_once_and_no_column_twice(seed):
    rng = np.random.default_rng(seed)
    q, n = rng.integers(1, 12, 2)
    columns = rng.random((q, n)) < rng.uniform(0.05, 0.6)
    groups = groups_of(columns)
    members = groups[groups < q]
    np.testing.assert_array_equal(np.sort(members), np.arange(q))
    for group in groups:
        assert np.all(columns[group[group < q]].sum(axis=0) <= 1)


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_hardly_filled_up(seed):
    rng = np.random.default_rng(seed)
    q = int(rng.integers(1, 60))
    groups = groups_of(rng.random((q, 20)) < 0.1)
    assert groups.size < 2 * q + groups.shape[0]


def loops(jaxpr):
    """Lengths of the loops over tangents."""
    return [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]


@pytest.mark.parametrize(
    ("basis", "lengths"), [(peaks, [2]), (column_by_column, [2]), (summed, [Q])]
)
def test_jacobian_takes_one_tangent_for_each_group(basis, lengths):
    residual = pj.projected_residual(lambda theta, _: basis(theta), jnp.cos(POINTS))
    jaxpr = jax.make_jaxpr(residual.jacobian)(THETA)
    assert loops(jaxpr.jaxpr) == lengths


def test_parameters_of_different_columns_take_no_loop():
    residual = pj.projected_residual(
        lambda theta, _: jnp.exp(-POINTS[:, None] * theta[None, :]), jnp.cos(POINTS)
    )
    jaxpr = jax.make_jaxpr(residual.jacobian)(THETA)
    assert loops(jaxpr.jaxpr) == []


def offset(theta):
    """Moved by parameters of two groups, one of which also moves columns."""
    return theta[1] * jnp.sin(theta[2] * POINTS)


@pytest.mark.ci("*")
@pytest.mark.parametrize("basis", [peaks, column_by_column])
@pytest.mark.parametrize("with_offset", [False, True], ids=["plain", "offset"])
def test_jacobian_of_groups_is_exact(basis, with_offset):
    rng = np.random.default_rng(1)
    data, weights = rng.standard_normal((9, 3)), rng.uniform(0.5, 2, 9)
    residual = pj.projected_residual(
        lambda theta, _: basis(theta),
        data,
        weights=weights,
        offset=(lambda theta, _: offset(theta)) if with_offset else None,
    )
    got = jit(residual.jacobian)(THETA)

    phi = weights[:, None] * np.asarray(basis(THETA))
    t_phi = weights[:, None, None] * np.asarray(jax.jacfwd(basis)(THETA))
    shift, t_shift = np.zeros(9), np.zeros((9, Q))
    if with_offset:
        shift = np.asarray(offset(THETA))
        t_shift = weights[:, None] * np.asarray(jax.jacfwd(offset)(THETA))
    b = weights[:, None] * (data - shift[:, None])
    inverse = np.linalg.pinv(phi)
    orthogonal = np.eye(9) - phi @ inverse
    want = []
    for j in range(Q):
        half = orthogonal @ t_phi[..., j] @ inverse
        want.append(-(half + half.T) @ b - (orthogonal @ t_shift[:, j])[:, None])
    assert_close(got, np.stack(want, axis=-1), 1e-10)
