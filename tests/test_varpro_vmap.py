"""Fits under `jax.vmap`: each as it is alone, and a failure stays with its member."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import varpro_cases as cases
from checks import assert_close, jit


# Two programs of the fit. By default, `test_varpro_batch.py` has fits side by side.
pytestmark = pytest.mark.slow

BATCH = 4
FAILED = 2
GOOD = [0, 1, 3]
DATA = cases.columns(BATCH).T.at[FAILED, 5].set(jnp.nan)
WEIGHTS = jnp.asarray(np.random.default_rng(7).uniform(0.5, 2.0, (BATCH, 16)))
RATES = jnp.array([1.2, 0.5, 1.0, 1.5])


def fit(data, weights, rate):
    return cases.fit(data, weights, start={**cases.START, "rate": rate})


@pytest.fixture(scope="module")
def batch():
    return jit(jax.vmap(fit))(DATA, WEIGHTS, RATES)


@pytest.fixture(scope="module")
def single():
    return [fit(*inputs) for inputs in zip(DATA, WEIGHTS, RATES, strict=True)]


def test_only_the_failed_member_is_flagged(batch):
    want = np.arange(BATCH) != FAILED
    np.testing.assert_array_equal(cases.successful(batch), want)


@pytest.mark.parametrize("member", GOOD)
def test_members_are_as_they_are_alone(batch, single, member):
    got = jax.tree.map(lambda leaf: leaf[member], batch)
    assert_close(cases.unknowns(got), cases.unknowns(single[member]), 1e-10)
    assert_close(got.residual, single[member].residual, 1e-10)
    assert got.rank == 3


def test_failed_member_is_nan(batch):
    assert np.isnan(batch.residual[FAILED]).all()
    assert np.isnan(batch.coefficients[FAILED]).all()


@pytest.mark.slow  # two more programs
def test_statistics_of_members_are_as_they_are_alone(batch, single):
    got = eqx.filter_vmap(lambda fit: fit.statistics())(batch).theta_standard_deviation
    for member in GOOD:
        want = single[member].statistics().theta_standard_deviation
        assert_close(got[member], want, 1e-9)
    assert np.isnan(got[FAILED]).all()


@pytest.mark.slow  # two more programs
def test_gradient_of_the_batch_is_that_of_each_member():
    theta = lambda *inputs: cases.raveled(fit(*inputs).theta)

    def total(data):
        return jnp.sum(jax.vmap(theta)(data, WEIGHTS, RATES))

    gradient = jit(jax.grad(total))(DATA)
    alone = jit(jax.grad(lambda *inputs: jnp.sum(theta(*inputs))))
    for member in GOOD:
        want = alone(DATA[member], WEIGHTS[member], RATES[member])
        assert_close(gradient[member], want, 1e-9)
    assert np.isnan(gradient[FAILED]).all()
