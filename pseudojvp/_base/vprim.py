"""Primitives whose batching rule is `jax.vmap` of their other rules.

As `equinox.internal.create_vprim`; of a batch they keep the types on a mesh: how arrays
are sharded over explicit axes, and over which axes they vary. A batch of a batch has an
entry in `batches` for each, the outermost last.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
import jax.numpy as jnp

from .axes import in_auto_mode, on_mesh_of


class _Batch(NamedTuple):
    size: int
    axes: tuple[int | None, ...]  # of the arguments
    mesh_axis: Any  # over which the batch is sharded, if that axis is explicit


def create_vprim(
    name: str, impl: Callable, abstract_eval: Callable, jvp: Callable, transpose: Callable
) -> jex.Primitive:
    """A primitive of several results; a batch of it is one named `name`_batch."""
    single, many = jex.Primitive(name), jex.Primitive(f"{name}_batch")
    single.multiple_results = many.multiple_results = True

    def batch(size, mesh_axis, arguments, axes, batches, **params):
        if all(axis is None for axis in axes):
            primitive = ft.partial(many.bind, batches=batches) if batches else single.bind
            out = primitive(*arguments, **params)
            return out, [None] * len(out)
        batches = *batches, _Batch(size, tuple(axes), mesh_axis)
        out = many.bind(*arguments, batches=batches, **params)
        return out, [0] * len(out)

    def batch_single(axis_data, arguments, axes, **params):
        mesh_axis = axis_data.explicit_mesh_axis
        return batch(axis_data.size, mesh_axis, arguments, axes, (), **params)

    def batch_many(axis_data, arguments, axes, *, batches, **params):
        mesh_axis = axis_data.explicit_mesh_axis
        return batch(axis_data.size, mesh_axis, arguments, axes, batches, **params)

    impl_many = ft.partial(_impl, impl)
    rules = {
        single: (impl, abstract_eval, jvp, transpose, batch_single),
        many: (
            impl_many,
            ft.partial(_abstract_eval, abstract_eval),
            ft.partial(_jvp, jvp),
            ft.partial(_transpose, transpose),
            batch_many,
        ),
    }
    for primitive, (impl, abstract_eval, jvp, transpose, batcher) in rules.items():
        impl = in_auto_mode(impl, abstract_eval)
        primitive.def_impl(impl)
        primitive.def_abstract_eval(abstract_eval)
        mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=True))
        ad.primitive_jvps[primitive] = jvp
        ad.primitive_transposes[primitive] = transpose
        batching.fancy_primitive_batchers[primitive] = batcher
    return single


def _impl(impl: Callable, *arguments, batches: tuple[_Batch, ...], **params):
    function = ft.partial(impl, **params)
    for size, axes, _ in batches:
        function = jax.vmap(function, axes, axis_size=size)
    return function(*arguments)


def _abstract_eval(abstract_eval, *avals, batches: tuple[_Batch, ...], **params):
    *inner, (size, axes, mesh_axis) = batches
    avals = [jex.mapped_aval(size, axis, a) for axis, a in zip(axes, avals, strict=True)]
    out = _nested(abstract_eval, _abstract_eval, inner)(*avals, **params)
    out = on_mesh_of(avals, out)
    return [jex.unmapped_aval(size, 0, aval, mesh_axis) for aval in out]


def _jvp(jvp, primals, tangents, *, batches: tuple[_Batch, ...], **params):
    *inner, (size, axes, _) = batches
    rule = ft.partial(_nested(jvp, _jvp, inner), **params)
    moving = [type(tangent) is not ad.Zero for tangent in tangents]
    out_moving = []

    def member(primals, tangents):
        rest = iter(tangents)
        tangents = [
            next(rest) if moves else ad.Zero(jax.typeof(primal).to_tangent_aval())
            for primal, moves in zip(primals, moving, strict=True)
        ]
        out, t_out = rule(primals, tangents)
        out_moving[:] = [type(tangent) is not ad.Zero for tangent in t_out]
        return list(out), _kept(t_out, out_moving)

    t_axes = _kept(axes, moving)
    member = jax.vmap(member, (list(axes), t_axes), axis_size=size)
    out, t_out = member(list(primals), _kept(tangents, moving))
    rest = iter(t_out)
    t_out = [
        next(rest) if moves else ad.Zero(jax.typeof(primal).to_tangent_aval())
        for primal, moves in zip(out, out_moving, strict=True)
    ]
    return out, t_out


def _transpose(transpose, cts, *arguments, batches: tuple[_Batch, ...], **params):
    *inner, (size, axes, _) = batches
    rule = ft.partial(_nested(transpose, _transpose, inner), **params)
    linear = [type(argument) is ad.UndefinedPrimal for argument in arguments]
    known = [not undefined for undefined in linear]
    of_members = [
        ad.UndefinedPrimal(jex.mapped_aval(size, axis, argument.aval))
        for axis, argument in zip(axes, arguments, strict=True)
        if type(argument) is ad.UndefinedPrimal
    ]
    live = [type(ct) is not ad.Zero for ct in cts]
    zeros = [
        None if alive else jex.mapped_aval(size, 0, ct.aval)
        for ct, alive in zip(cts, live, strict=True)
    ]
    moving = []

    def member(cts, arguments):
        rest, undefined, cts = iter(arguments), iter(of_members), iter(cts)
        cts = [ad.Zero(zero) if zero is not None else next(cts) for zero in zeros]
        arguments = [next(undefined) if flag else next(rest) for flag in linear]
        out = _kept(rule(cts, *arguments), linear)
        moving[:] = [type(ct) is not ad.Zero and ct is not None for ct in out]
        return _kept(out, moving)

    member = jax.vmap(member, (0, _kept(axes, known)), axis_size=size)
    out = iter(member(_kept(cts, live), _kept(arguments, known)))
    moved = iter(moving)

    def cotangent(argument, axis):
        if type(argument) is not ad.UndefinedPrimal:
            return None
        if not next(moved):
            return ad.Zero(argument.aval)
        ct = next(out)
        return jnp.sum(ct, 0) if axis is None else jnp.moveaxis(ct, 0, axis)

    return [cotangent(*pair) for pair in zip(arguments, axes, strict=True)]


def _nested(rule: Callable, of_batch: Callable, batches: list[_Batch]) -> Callable:
    if not batches:
        return rule
    return ft.partial(of_batch, rule, batches=tuple(batches))


def _kept(items, flags) -> list[Any]:
    return [item for item, flag in zip(items, flags, strict=True) if flag]
