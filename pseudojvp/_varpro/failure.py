"""What is told of a failed fit: one `result`, and one message."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import PyTree

from .._base.host import raise_if


def result_of(
    result: optx.RESULTS, eliminated: lx.RESULTS, sound, sound_input
) -> optx.RESULTS:
    """The first of: unusable input, a failed elimination, a failed search."""
    results = optx.RESULTS
    result = results.where(sound, result, results.nonfinite)
    unusable: Any = results.nonfinite_input  # a name of lineax
    # Not finite is what the solver got, but not from the user.
    failed = _promoted(eliminated)
    failed = results.where(failed == unusable, results.nonfinite, failed)
    result = results.where(failed == results.successful, result, failed)
    return results.where(sound_input, result, unusable)


def _promoted(eliminated: lx.RESULTS) -> optx.RESULTS:
    # Not by `promote`: Equinox looks the code up in an array, of which it makes a program
    # of its own, and on another mesh than that of `jax.shard_map`.
    promoted = optx.RESULTS.successful
    for name in _LINEAR:  # Optimistix has the names of lineax
        failed = eliminated == getattr(lx.RESULTS, name)
        promoted = optx.RESULTS.where(failed, getattr(optx.RESULTS, name), promoted)
    return promoted


def raise_if_failed(fit: PyTree) -> PyTree:
    """Returns `fit`, with a run-time error if it failed, or one member of a batch did.

    The message is made on the host, and only a scalar goes through the branch.
    """
    code, successful = _code(fit.result), _code(optx.RESULTS.successful)
    if not isinstance(code, jax.core.Tracer):
        # Of members in other processes only what is computed there is known here.
        known = code if code.is_fully_addressable else jnp.max(code)
        if np.all(np.asarray(known) == successful):
            return fit  # as it is: a compiled check would copy all of the data
    one = raise_if(jnp.max(code), _Messages())  # one message
    told = fit.theta, fit.coefficients, fit.residual, fit.cost
    told = jtu.tree_map(lambda leaf: leaf * one.astype(leaf.dtype), told)
    return eqx.tree_at(
        lambda fit: (fit.theta, fit.coefficients, fit.residual, fit.cost), fit, told
    )


def _code(result: optx.RESULTS):
    (code,) = jtu.tree_leaves(result)
    return code


@dataclasses.dataclass(frozen=True)
class _Messages(Sequence[str]):
    """The message for the code of a result."""

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, code):
        saw = _saw(code)
        if saw is None:
            return "`varpro` failed. Pass `throw=False` and look at `result`."
        return f"`varpro` {saw} With `throw=False` this is `result` instead."


def words_of(result: optx.RESULTS) -> str:
    """What a failed fit met, or "" of a successful one; on the host."""
    if int(_code(result)) == int(_code(optx.RESULTS.successful)):
        return ""
    return _saw(_code(result)) or f"ended with the result {optx.RESULTS[result]!r}."


def _saw(code) -> str | None:
    return {int(_code(kind)): saw for kind, saw in _KINDS}.get(int(code))


_LINEAR = (
    "max_steps_reached",
    "singular",
    "breakdown",
    "stagnation",
    "conlim",
    "nonfinite_input",
)
_KINDS = [
    (
        optx.RESULTS.nonfinite_input,
        "got NaN, Inf or a negative weight among `data`, `weights` and `theta0`, or a "
        "start outside of its bounds. Give unusable data the weight zero and any finite "
        "value.",
    ),
    (
        optx.RESULTS.nonlinear_max_steps_reached,
        "reached `max_steps` before the residual was stationary. Raise `max_steps`, "
        "or start closer; `fit.stats['relative_offset']` tells how far it is.",
    ),
    (
        optx.RESULTS.stagnation,
        "stopped at a point where the residual is not stationary in theta. Try "
        "another start, another `x_scale`, or smaller tolerances of `optimiser`.",
    ),
    (
        optx.RESULTS.nonfinite,
        "met NaN or Inf: the basis or the offset is not finite at `theta0`, or the "
        "search left the range where it is, or ended where the mean of counts is not "
        "positive. Start elsewhere, or fit a transformed parameter, such as the "
        "logarithm of a positive one; keep amplitudes of counts positive.",
    ),
    (
        optx.RESULTS.breakdown,
        "could not solve for the coefficients: the solver broke down, or the basis "
        "conjugates and is not linear over the complex numbers. Let such a basis take "
        "real and imaginary part of c as two real leaves, or use another solver.",
    ),
    (
        optx.RESULTS.singular,
        "ended where the basis has no full rank. Use `solver=PivotedQR()`, which "
        "truncates it, or fewer columns.",
    ),
]
