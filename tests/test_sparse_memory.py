"""The gradient of a sparse solve takes memory in proportion to the stored entries."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import pseudojvp as pj


_SIZE, _ENTRIES = 2000, 8000
_SOLVES = {
    "triangular": (pj.sparse_solve, "lower", ()),
    "definite": (pj.sparse_solve, "any", lx.positive_semidefinite_tag),
    "symmetric": (pj.sparse_solve, "any", lx.symmetric_tag),
    "general": (pj.sparse_solve, "any", ()),
    "least-squares": (pj.sparse_lstsq, "any", ()),
}


@pytest.mark.optimised
@pytest.mark.slow  # three seconds each
@pytest.mark.parametrize(("solve", "pattern", "tags"), _SOLVES.values(), ids=_SOLVES)
def test_temporary_memory_of_a_gradient_is_proportional_to_the_entries(
    solve, pattern, tags
):
    row, col = np.random.default_rng(0).integers(0, _SIZE, (2, _ENTRIES))
    if pattern == "lower":
        row, col = np.maximum(row, col), np.minimum(row, col)
    stored = np.ones(_ENTRIES), row, col, (_SIZE, _SIZE)
    operator = pj.SparseLinearOperator(stored, tags)

    def loss(data, vector, operator):
        moved = pj.SparseLinearOperator((data, operator.sparsity), tags)
        return jnp.sum(solve(moved, vector, throw=False) ** 2)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    lowered = gradient.lower(operator.data, np.ones(_SIZE), operator)
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    # 0.3 to 0.8 MB: the vectors of an iteration. _SIZE² numbers would be 32 MB.
    assert temporary < 8 * 20 * _ENTRIES
