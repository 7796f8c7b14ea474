"""Programs are lowered for other platforms than the one that they are made on."""

import jax
import jax.numpy as jnp
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
