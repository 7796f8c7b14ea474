"""What calls the host while a program runs: of one device, or of several."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.core
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from .axes import largest_of_devices
from .results import worst_of_batch


_THROWS = (
    "A program that raises at run time if a solve or a fit fails calls the host: it can "
    "neither be serialised by `jax.export` nor be lowered for a platform that is not "
    "here. Pass `throw=False`, and look at `result`."
)


def raise_if(told: Integer[Array, ""], messages: Sequence[str]) -> Float[Array, ""]:
    """One; an error of the message `told` if that is not zero, of a batch its largest.

    As `equinox.branched_error_if`, and under `EQX_ON_ERROR=nan` NaN. In a program of
    several devices each raises: where one does it alone, the others wait for it until
    XLA ends the process.
    """
    told = largest_of_devices(worst_of_batch(told))
    if not isinstance(told, jax.core.Tracer):  # perhaps on several devices
        return _raise_by_equinox(jnp.asarray(int(told)), messages)
    program = jax.make_jaxpr(lambda told: _raise_by_equinox(told, messages))(told)
    if program.effects:  # under `EQX_ON_ERROR=breakpoint`
        return jex.jaxpr_as_fun(program)(told)[0]
    return _raise_if_p.bind(told, program=program, messages=messages)


def called_on_host(array: Array, message: str) -> Array:
    """`array`; `message` is the error where no host can be called."""
    return _called_on_host_p.bind(array, message=message)


def _raise_by_equinox(told, messages: Sequence[str]):
    one = jnp.ones((), jnp.float32)
    return eqx.branched_error_if(one, told != 0, told, messages)


def _raise_on_each_device(told, *, messages: Sequence[str]):
    def raise_message(told):
        raise RuntimeError(messages[told.item()])

    def fail():
        jax.debug.callback(raise_message, told, partitioned=True)
        return jnp.ones((), jnp.float32)

    return jax.lax.cond(told != 0, fail, lambda: jnp.ones((), jnp.float32))


def _lower_raise_if(ctx, told, *, program, messages):
    _check_host(ctx, _THROWS)
    if _devices(ctx.module_context.axis_context) > 1:
        rule = mlir.lower_fun(_raise_on_each_device, multiple_results=False)
        return rule(ctx, told, messages=messages)
    return mlir.lower_fun(jex.jaxpr_as_fun(program))(ctx, told)


def _lower_called_on_host(ctx, array, *, message: str):
    _check_host(ctx, message)
    return [array]


def _check_host(ctx, message: str) -> None:
    """Raises where the program is made for somewhere else."""
    module = ctx.module_context
    exported = getattr(module.lowering_parameters, "for_export", False)
    if exported or not all(map(_is_here, module.platforms)):
        raise NotImplementedError(message)


def _is_here(platform: str) -> bool:
    try:
        return len(jax.local_devices(backend=platform)) > 0
    except RuntimeError:
        return False


def _devices(axis_context) -> int:
    """Those that the program is lowered for, with `jax.shard_map` those of its mesh."""
    mesh = getattr(axis_context, "mesh", None)
    return mesh.size if mesh is not None else axis_context.num_devices


_raise_if_p = jex.Primitive("raise_if")
_raise_if_p.def_abstract_eval(
    lambda told, **_: told.update(dtype=jnp.dtype(jnp.float32), weak_type=False)
)
mlir.register_lowering(_raise_if_p, _lower_raise_if)

_called_on_host_p = jex.Primitive("called_on_host")
_called_on_host_p.def_impl(lambda array, *, message: array)
_called_on_host_p.def_abstract_eval(lambda array, *, message: array)
ad.deflinear2(_called_on_host_p, lambda ct, array, *, message: [ct])
batching.defvectorized(_called_on_host_p)
mlir.register_lowering(_called_on_host_p, _lower_called_on_host)
