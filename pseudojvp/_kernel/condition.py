"""An estimate of the reciprocal condition number, at O(n²) cost, from a factorisation."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact, Real


# Unit vectors that the inverse is applied to. For larger matrices the chance that the
# estimate is too large by a factor t falls as t^-8 (Gudmundsson, Kenney & Laub).
PROBES = 8


def largest_entries(matrix: Inexact[Array, "rows cols"]) -> Real[Array, " cols"]:
    """The largest absolute value of each column."""
    return jnp.max(jnp.abs(matrix), axis=0, initial=0)


def reciprocal_condition(
    scale: Real[Array, " n"],
    mv: Callable[[Array], Array],
    adjoint_mv: Callable[[Array], Array],
    dtype,
    adjoint_solve: Callable[[Inexact[Array, "n k"]], Inexact[Array, "n k"]],
) -> Real[Array, ""]:
    """An estimate of σ_min / σ_max of S = A D⁻¹, where D = diag(scale).

    Scaled, because the solvers that use it are indifferent to the units of the columns:
    `scale` has their largest entries, which take one pass over A (their norms, without
    over- or underflow, two). σ_max by one and a half power steps, 1/σ_min by ‖S⁻ᴴ V‖ for
    a few fixed vectors V: exact in the Frobenius norm for n up to 8. Zero if it is not
    finite.

    `adjoint_solve` applies A⁻ᴴ to columns.
    """
    size = scale.size
    if size == 0:
        return jnp.ones((), scale.dtype)
    vectors = probes(size, PROBES, scale.dtype)
    largest = largest_singular_value(scale, mv, adjoint_mv, vectors.astype(dtype))
    solved = adjoint_solve((scale[:, None] * vectors).astype(dtype))
    return estimate_of(largest, jnp.linalg.norm(solved), vectors.shape)


def estimate_of(
    largest: Real[Array, ""], solved: Real[Array, ""], shape: tuple[int, ...]
) -> Real[Array, ""]:
    """From σ_max and the norm of the inverse times the probes; zero if not finite."""
    size, count = shape
    estimate = 1 / (largest * solved * math.sqrt(size / count))
    return jnp.where(jnp.isfinite(estimate), estimate, 0)


def probes(size: int, count: int, dtype) -> Real[Array, "size k"]:
    """`count` fixed vectors of norm one, of random signs; those of a basis if they do."""
    if size <= count:
        return jnp.eye(size, dtype=dtype)
    return jnp.asarray(random_signs(size, count), dtype)


def random_signs(size: int, count: int) -> np.ndarray:
    """`count` fixed columns of norm one."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (size, count))
    return signs / math.sqrt(size)


def largest_singular_value(
    scale: Real[Array, " n"],
    mv: Callable[[Array], Array],
    adjoint_mv: Callable[[Array], Array],
    vectors: Inexact[Array, "n k"],
) -> Real[Array, ""]:
    """An estimate of that of A D⁻¹, at least one, by one and a half power steps."""
    divisor = scale.astype(vectors.dtype)
    image = mv(vectors[:, 0] / divisor)
    back = adjoint_mv(image) / divisor
    return jnp.maximum(jnp.linalg.norm(back) / jnp.linalg.norm(image), 1)


def full_rank_result(estimate: Real[Array, ""], rows: int, cols: int) -> lx.RESULTS:
    """`singular` if the estimate is at most eps max(rows, cols)."""
    cutoff = jnp.finfo(estimate.dtype).eps * max(rows, cols)
    return lx.RESULTS.where(estimate > cutoff, lx.RESULTS.successful, lx.RESULTS.singular)


def resolve_rcond(
    rcond: Real[ArrayLike, ""] | None, default: Real[ArrayLike, ""], dtype
) -> Real[Array, ""]:
    """The cutoff relative to the largest singular value; negative means eps."""
    resolved = jnp.asarray(default if rcond is None else rcond, dtype)
    return jnp.where(resolved < 0, jnp.finfo(dtype).eps, resolved)
