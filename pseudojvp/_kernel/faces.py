"""Primitives that are the faces of a trilinear form, and so closed under derivatives.

A face is the gradient of the form in one argument, and bilinear in the other two. Its JVP
is itself twice, and its transpose in either argument is one of the other faces.
"""

import functools as ft
from collections.abc import Callable, Mapping

import jax
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir

from .._base.axes import alike, as_avals, in_auto_mode, on_mesh, placed_as


def bound(primitive: jex.Primitive, first, second, *rest, **params):
    """The face of both arrays, which on a mesh are cast to the same axes."""
    return primitive.bind(*alike(first, second), *rest, **params)


def create_faces(
    name: str,
    impl: Callable,
    abstract_eval: Callable,
    batch: Callable,
    transposes: Mapping[tuple[str, int], Callable],
    *static: str,
    specs: Callable | None = None,
) -> jex.Primitive:
    """A primitive of two arrays, more that are constants, and `face=`.

    `transposes` maps a face and which argument is transposed to a function of the other
    argument and the cotangent, that returns the two arguments and the name of the face
    which is the cotangent of that argument. `static` are further parameters. `specs` says
    how a face is sharded over explicit axes, from how the two arrays are and its name.
    """
    primitive = jex.Primitive(name)

    def typed(*avals, **params):
        if not on_mesh(avals):
            return abstract_eval(*avals, **params)
        first, second, *_ = avals
        if specs is not None and first.sharding.mesh.explicit_axes:
            spec = specs(first.sharding.spec, second.sharding.spec, params["face"])
            sharding = jax.sharding.NamedSharding(first.sharding.mesh, spec)
            return abstract_eval(*avals, **params).update(sharding=sharding)
        return as_avals(jax.eval_shape(ft.partial(impl, **params), *avals))

    def jvp(primals, tangents, **params):
        first, second, *rest = primals
        t_first, t_second, *_ = tangents
        bind = ft.partial(bound, primitive, **params)
        t_out = [
            bind(*pair, *rest)
            for pair in ((t_first, second), (first, t_second))
            if not any(isinstance(argument, ad.Zero) for argument in pair)
        ]
        return bind(first, second, *rest), sum(t_out[1:], t_out[0])

    def transpose(ct, first, second, *rest, face, **params):
        linear = 0 if ad.is_undefined_primal(first) else 1
        known, undefined = (second, first) if linear == 0 else (first, second)
        if isinstance(ct, ad.Zero):
            ct_linear = ad.Zero(undefined.aval)
        else:
            *arguments, to = transposes[face, linear](known, ct)
            ct_linear = bound(primitive, *arguments, *rest, face=to, **params)
            ct_linear = placed_as(undefined.aval, ct_linear)
        cotangents = (ct_linear, None) if linear == 0 else (None, ct_linear)
        return (*cotangents, *(None for _ in rest))

    def lowered(*arrays, **params):
        if specs is None:
            return impl(*arrays, **params)
        several = in_auto_mode(
            lambda *arrays, **params: [impl(*arrays, **params)],
            lambda *avals, **params: [typed(*avals, **params)],
        )
        return several(*arrays, **params)[0]

    primitive.def_impl(jax.jit(lowered, static_argnames=("face", *static)))
    primitive.def_abstract_eval(typed)
    mlir.register_lowering(primitive, mlir.lower_fun(lowered, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive
