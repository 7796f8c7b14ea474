"""What is told of a failed fit: one `result`, and one message."""

import equinox as eqx
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import PyTree

from .._base.tree import all_finite
from .elimination import Eliminated
from .optimise import Outcome


def result_of(outcome: Outcome, at: Eliminated, theta, cost, sound_input) -> optx.RESULTS:
    """The first of: unusable input, a failed elimination, a failed search."""
    results = optx.RESULTS
    result = outcome.result
    # A finite sum of squares spares a pass over all of the data; it can overflow, too.
    residual = lax.cond(jnp.isfinite(cost), lambda _: True, all_finite, at.residual)
    sound = residual & all_finite((theta, at.coefficients))
    result = results.where(sound, result, results.nonfinite)
    # Of a basis that is not finite, a solver may say that it is singular.
    model, _ = eqx.partition(at.factors.factorised.operator, eqx.is_inexact_array)
    eliminated = results.where(
        all_finite(model), results.promote(at.result), results.nonfinite
    )
    result = results.where(eliminated == results.successful, result, eliminated)
    unusable = results.promote(lx.RESULTS.nonfinite_input)
    return results.where(sound_input, result, unusable)


def raise_if_failed(fit: PyTree) -> PyTree:
    """Returns `fit`, with a run-time error if it failed, or one member of a batch did."""
    results = optx.RESULTS
    failed = fit.result != results.successful
    if not isinstance(failed, jax.core.Tracer) and not jnp.any(failed):
        return fit  # as it is: a compiled check would copy all of the data
    kinds = [
        (
            results.nonfinite_input,
            "got NaN, Inf or a negative weight among `data`, `weights` and `theta0`. "
            "Give unusable data the weight zero and any finite value.",
        ),
        (
            results.nonlinear_max_steps_reached,
            "reached `max_steps` before the residual was stationary. Raise `max_steps`, "
            "or start closer; `fit.stats['relative_offset']` tells how far it is.",
        ),
        (
            results.stagnation,
            "stopped at a point where the residual is not stationary in theta. Try "
            "another start, another `x_scale`, or smaller tolerances of `optimiser`.",
        ),
        (
            results.nonfinite,
            "met NaN or Inf: the basis or the offset is not finite at `theta0`, or the "
            "search left the range where it is. Start elsewhere, or fit a "
            "transformed parameter, such as the logarithm of a positive one.",
        ),
        (
            results.singular,
            "ended where the basis has no full rank. Use `solver=PivotedQR()`, which "
            "truncates it, or fewer columns.",
        ),
    ]
    messages = ["`varpro` failed. Pass `throw=False` and look at `result`."]
    index = jnp.array(0)
    for kind, saw in kinds:
        index = jnp.where(fit.result == kind, len(messages), index)
        messages.append(f"`varpro` {saw} With `throw=False` this is `result` instead.")
    index = jnp.max(jnp.where(failed, index, 0))  # of a batch, one message
    return eqx.branched_error_if(fit, jnp.any(failed), index, messages)
