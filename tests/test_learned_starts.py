"""What is learned beside a solve changes the steps, and not the solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import learned_starts


pytestmark = pytest.mark.slow  # trains, and compiles six solves


@pytest.fixture(scope="module")
def told():
    """Of each case and contender: mean steps, whether all succeed, the error of x."""
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
        matrix, start, direction, rng = learned_starts.learned(400)
    out = {}
    for case, (a, vectors) in learned_starts.cases(matrix, rng, 8).items():
        exact = np.linalg.solve(a, vectors.T).T
        for name, contender in learned_starts.contenders(start, direction).items():
            steps, successful, x = learned_starts.solve(
                *contender, *map(jnp.asarray, (a, vectors))
            )
            error = np.linalg.norm(x - exact) / np.linalg.norm(exact)
            out[case, name] = float(np.mean(steps)), bool(np.all(successful)), error
    return out


def test_solutions_are_the_same_on_and_off_the_training_distribution(told):
    assert all(successful for _, successful, _ in told.values()), told
    # 1e-8 of the residual, times the condition number.
    assert max(error for *_, error in told.values()) < 1e-6, told


def test_learned_direction_takes_fewer_steps_also_with_a_learned_start(told):
    steps = {key: value[0] for key, value in told.items()}
    plain = steps["smooth b", "`CG`"]
    assert steps["smooth b", "`FlexibleCG`, learned direction"] < 0.6 * plain
    assert steps["smooth b", "`CG`, learned start"] < plain
    assert steps["smooth b", "both"] < 0.6 * plain


def test_off_the_training_distribution_a_learned_start_saves_less_or_costs(told):
    saved = {
        case: told[case, "`CG`"][0] - told[case, "`CG`, learned start"][0]
        for case in ("smooth b", "smooth b, a jump of 100")
    }
    assert saved["smooth b, a jump of 100"] < saved["smooth b"]
