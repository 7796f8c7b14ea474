"""Fewer columns with the same ‖r‖², JᵀJ and Jᵀr."""

import jax.numpy as jnp
import numpy as np
import pytest
import varpro_cases as cases
from checks import assert_close, jit

import pseudojvp as pj
from pseudojvp._varpro.compression import compress
from pseudojvp._varpro.elimination import Elimination
from pseudojvp._varpro.model import Observations, SeparableModel


MANY = cases.columns(40)


def observations(data, weights):
    return Observations(data, weights, jnp.ones(data.shape[1], data.dtype))


def sums(offset, data, points=cases.POINTS):
    """‖r‖², JᵀJ and Jᵀr before and after, and the number of columns after."""
    model = SeparableModel(cases.basis, offset)
    elimination = Elimination(model, pj.PivotedQR(), "varpro")
    full = observations(data, cases.WEIGHTS)
    shape = None if offset is None else offset(cases.START, points).shape

    def of(observations, exact):
        at = elimination(cases.START, points, observations)
        j = elimination.jacobian(cases.START, points, observations, at, exact=exact)
        r, j = at.residual.reshape(-1), j.reshape(cases.SIZE, -1)
        return (r.conj() @ r).real, (j.conj() @ j.T).real, (j.conj() @ r).real

    def both():
        reduced = compress(full, shape, 3)
        return [[of(o, exact) for exact in (True, False)] for o in (full, reduced)]

    count = compress(full, shape, 3).data.shape[1]
    return jit(both)(), count


@pytest.mark.ci("*")
@pytest.mark.parametrize(
    ("offset", "data", "count"),
    [
        (None, MANY, 16),
        (cases.offset, MANY, 17),
        (cases.offset, MANY.astype(complex) * (1 + 0.5j), 17),
    ],
    ids=["plain", "offset", "offset-complex"],
)
def test_sums_of_squares_are_kept(offset, data, count):
    (full, reduced), got = sums(offset, data)
    assert got == count
    for want, kept in zip(full, reduced, strict=True):
        for index in range(3):
            assert_close(kept[index], want[index], 1e-12)


@pytest.mark.parametrize(
    ("data", "weights", "shape"),
    [
        (MANY[:, :16], cases.WEIGHTS, None),
        (MANY[:, :17], cases.WEIGHTS, (16,)),
        (MANY, jnp.ones((16, 40)), None),
        (MANY, cases.WEIGHTS, (16, 40)),
    ],
    ids=["few", "few-with-offset", "weights-differ", "offsets-differ"],
)
def test_columns_that_differ_or_are_few_stay(data, weights, shape):
    given = observations(data, weights)
    assert compress(given, shape, 3) is given


@pytest.mark.ci("offset")  # two programs of fits and two of statistics for each
@pytest.mark.parametrize("offset", [None, cases.offset], ids=["plain", "offset"])
def test_fit_and_statistics_are_those_without_compression(offset):
    each = jnp.broadcast_to(cases.WEIGHTS[:, None], MANY.shape)
    got = cases.fit(MANY, cases.WEIGHTS, offset=offset)
    want = cases.fit(MANY, each, offset=offset)
    assert_close(cases.unknowns(got), cases.unknowns(want), 1e-9)
    assert_close(got.cost, want.cost, 1e-12)
    for name in ("theta_covariance", "coefficient_covariance", "cross_covariance"):
        values = [getattr(fit.statistics(), name) for fit in (got, want)]
        assert_close(*values, 1e-9)
    np.testing.assert_array_equal(want.rank, np.full(40, 3))
    assert got.rank == 3


def singular_values(matrix):
    return np.linalg.svd(np.asarray(matrix), compute_uv=False)


@pytest.mark.parametrize("size", [0.05, 1e-8], ids=["noise", "hardly-any-noise"])
def test_factor_has_the_smallest_singular_values_of_the_data(size):
    """The Gram matrix alone has none of the digits of the second."""
    clean = cases.basis(cases.START, cases.POINTS) @ cases.noise((3, 40), 1.0, 5)
    data = clean + cases.noise((16, 40), size, 6)
    got = jit(lambda data: compress(observations(data, None), None, 3).data)(data)
    assert_close(singular_values(got)[3:], singular_values(data)[3:], 1e-6)


def test_row_of_weight_zero_does_not_count():
    weights = cases.WEIGHTS.at[3].set(0.0)
    data = MANY.at[3].set(1e9)
    got = jit(lambda data: compress(observations(data, weights), None, 3).data)(data)
    scaled = [np.asarray(weights)[:, None] * np.asarray(y) for y in (got, data)]
    want, kept = (singular_values(y)[:15] for y in scaled)
    assert_close(kept[3:], want[3:], 1e-8)


def test_row_of_zeros_is_no_matter():
    """The Gram matrix is singular then, and its Cholesky factor NaN."""
    data = MANY.at[3].set(0.0)
    got = jit(lambda data: compress(observations(data, None), None, 3).data)(data)
    gram = np.asarray(data) @ np.asarray(data).T
    np.testing.assert_allclose(got @ got.T, gram, rtol=0, atol=1e-12 * np.max(gram))


def test_residual_of_many_columns_keeps_its_digits_beside_huge_coefficients():
    """Of two columns that differ by 1e-7; b − A c has half of the digits."""

    def basis(theta, points):
        first, second = jnp.exp(-theta * points), jnp.cos(points)
        return jnp.stack([first, first + 1e-7 * second], axis=1)

    residual = pj.projected_residual(basis, MANY)
    got = jit(lambda theta: residual(theta, cases.POINTS))(jnp.array(0.7))
    span = np.stack([np.exp(-0.7 * cases.POINTS), np.cos(cases.POINTS)], axis=1)
    q, _ = np.linalg.qr(span)
    want = np.asarray(MANY) - q @ (q.T @ np.asarray(MANY))
    assert_close(got, want, 1e-8)
    assert np.max(np.abs(np.asarray(basis(0.7, cases.POINTS)).T @ got)) < 1e-12
