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
        reduced = compress(full, shape)
        return [[of(o, exact) for exact in (True, False)] for o in (full, reduced)]

    count = compress(full, shape).data.shape[1]
    return jit(both)(), count


@pytest.mark.parametrize(
    ("offset", "data", "count"),
    [
        (None, MANY, 16),
        (cases.offset, MANY, 17),
        (cases.offset, MANY * (1 + 0.5j), 17),
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
    assert compress(given, shape) is given


@pytest.mark.slow  # two programs of fits and two of statistics for each
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
