"""Programs are lowered for other platforms than the one that they are made on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_cases import CASES, MATRIX, VECTOR

import pseudojvp as pj


@pytest.mark.default("*-LU", "tpu-PivotedQR", "tpu-CG")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_gradients_of_a_batch_are_lowered_for_another_platform(platform, name):
    # A callback, which raises, is made for the backend of this process.
    gradient = jax.jit(jax.vmap(jax.grad(CASES[name].value)))
    traced = gradient.trace(jnp.ones((2, 3, 3)), jnp.ones((2, 3)))
    assert "func.func" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_program_that_raises_is_not_lowered_for_another_platform_and_says_so(platform):
    traced = jax.jit(lambda a, b: pj.linear_solve(a, b).value).trace(MATRIX, VECTOR)
    with pytest.raises(NotImplementedError, match="Pass `throw=False`"):
        traced.lower(lowering_platforms=(platform,))


TIMES = np.linspace(0.0, 3.0, 8)


def _decays(rate, times):
    return jnp.exp(-rate * times)[:, None]


def _fit(data):
    return pj.varpro(_decays, data, jnp.array(0.5), jnp.asarray(TIMES), throw=False)


# Of a platform without LAPACK, and without a pivoted QR of its own.
FUNCTIONS = {
    "lstsq": lambda a, b: pj.lstsq(a, b, throw=False),
    "lstsq-gradient": jax.grad(
        lambda *ab: jnp.sum(pj.lstsq(*ab, throw=False)[0]), (0, 1)
    ),
    "pinv": lambda a, b: pj.pinv(a, throw=False),
    "slogdet": lambda a, b: pj.slogdet(a, pj.PivotedQR(), throw=False),
    "PivotedQR-blocks": lambda a, b: pj.linear_solve(
        a, b, pj.PivotedQR(blocks=2), throw=False
    ),
    "varpro": lambda a, b: _fit(b).statistics(),
    "varpro-gradient": lambda a, b: jax.grad(lambda data: _fit(data).theta)(b),
    "varpro_batch": lambda a, b: (
        pj.varpro_batch(
            _decays, a.T, jnp.array(0.5), jnp.asarray(TIMES), throw=False
        ).theta
    ),
}


@pytest.mark.default("tpu-lstsq")
@pytest.mark.ci("*")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_front_is_lowered_for_another_platform_without_a_call_of_the_host(platform, name):
    traced = jax.jit(FUNCTIONS[name]).trace(jnp.ones((8, 3)), jnp.ones(8))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "func.func" in text
    assert "callback" not in text
    assert "geqp3" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_sparse_lu_is_not_lowered_for_another_platform_and_says_so(platform):
    operator = pj.SparseLinearOperator((np.ones(3), np.arange(3), np.arange(3), (3, 3)))
    solve = lambda b: pj.linear_solve(operator, b, pj.SparseLU(), throw=False).value
    traced = jax.jit(solve).trace(VECTOR)
    with pytest.raises(NotImplementedError, match="for a platform that is not here"):
        traced.lower(lowering_platforms=(platform,))
