"""A trained network beside Jacobi, on systems that it has not seen; as in the example."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pseudojvp as pj


_PATH = pathlib.Path(__file__).parent.parent / "examples" / "diffusion.py"
_SPEC = importlib.util.spec_from_file_location("diffusion", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)


@pytest.mark.slow  # trains
@pytest.mark.optimised  # and runs long enough for that to pay
def test_network_needs_at_most_half_of_the_steps_of_jacobi_also_on_a_larger_grid():
    rng = np.random.default_rng(1)
    data, _ = example.problems(rng, 16, example.SIDE)
    network = pj.PreconditionerNetwork(key=jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
        network, (first, last), _ = example.train(network, jnp.asarray(data), rng, 25)
    assert last < first
    for side, count in ((example.SIDE, 3), (example.LARGE, 1)):
        steps = {}
        problems = example.problems(rng, count, side)
        for name, setup in (("Jacobi", pj.jacobi), ("network", network)):
            steps[name], *_ = example.measure(setup, *problems, side)
        assert steps["network"] <= 0.5 * steps["Jacobi"], steps
