"""Problems of least squares between bounds, and what SciPy says of them."""

import numpy as np
import scipy.optimize


def normal(rng, m, n):
    return rng.standard_normal((m, n)), rng.standard_normal(m)


def duplicate_columns(rng, m, n):
    a, b = normal(rng, m, n)
    a[:, 1] = a[:, 0]
    return a, b


def zero_columns(rng, m, n):
    a, b = normal(rng, m, n)
    a[:, ::2] = 0
    return a, b


def no_positive_part(rng, m, n):
    a, b = normal(rng, m, n)
    return np.abs(a), -np.abs(b)


def small_integers(rng, m, n):
    """Many ties: multipliers and steps of length zero."""
    return rng.integers(-1, 2, (m, n)).astype(float), rng.integers(-2, 3, m).astype(float)


def rank_two(rng, m, n):
    a, b = normal(rng, m, 2)
    return a @ rng.standard_normal((2, n)), b


def exponentials(rng, m, n):
    """Nearly dependent, as sums of decays are."""
    a = np.exp(-np.outer(np.linspace(0, 3, m), np.logspace(-1, 1, n)))
    return a, a @ rng.standard_normal(n) + 1e-3 * rng.standard_normal(m)


def zero_vector(rng, m, n):
    return rng.standard_normal((m, n)), np.zeros(m)


SYSTEMS = {
    f.__name__: f
    for f in (
        normal,
        duplicate_columns,
        zero_columns,
        no_positive_part,
        small_integers,
        rank_two,
        exponentials,
        zero_vector,
    )
}


def batch(system, shape, members, seed=0):
    """`members` systems, of shapes (members, m, n) and (members, m)."""
    rng = np.random.default_rng(seed)
    draws = [SYSTEMS[system](rng, *shape) for _ in range(members)]
    return tuple(map(np.array, zip(*draws, strict=True)))


def by_scipy(a, b, lower, upper):
    """Its active-set method, until it is at rounding."""
    bounds = np.broadcast_to(lower, a.shape[1:]), np.broadcast_to(upper, a.shape[1:])
    out = scipy.optimize.lsq_linear(a, b, bounds, "bvls", tol=1e-15, max_iter=1000)
    assert out.success
    return out
