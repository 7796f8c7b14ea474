"""What calls the host while a program runs, and so cannot be exported."""

from collections.abc import Sequence

import equinox as eqx
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
from jaxtyping import Array, Bool, Integer


_THROWS = (
    "`jax.export` cannot serialise a program that raises at run time if a solve or a fit "
    "fails, for that is a call of the host. Pass `throw=False`, and look at `result`."
)


def raise_if(
    scalar: Array,
    predicate: Bool[Array, "..."],
    index: Integer[Array, "..."] | int,
    messages: Sequence[str],
) -> Array:
    """As `equinox.branched_error_if`, with an error for `jax.export` that says why."""
    scalar = called_on_host(scalar, _THROWS)
    return eqx.branched_error_if(scalar, predicate, index, messages)


def called_on_host(array: Array, message: str) -> Array:
    """`array`; `message` is the error where `jax.export` lowers the program."""
    return _called_on_host_p.bind(array, message=message)


def _lower(ctx, array, *, message: str):
    if getattr(ctx.module_context.lowering_parameters, "for_export", False):
        raise NotImplementedError(message)
    return [array]


_called_on_host_p = jex.Primitive("called_on_host")
_called_on_host_p.def_impl(lambda array, *, message: array)
_called_on_host_p.def_abstract_eval(lambda array, *, message: array)
ad.deflinear2(_called_on_host_p, lambda ct, array, *, message: [ct])
batching.defvectorized(_called_on_host_p)
mlir.register_lowering(_called_on_host_p, _lower)
