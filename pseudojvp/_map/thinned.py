"""A few rows and columns of an outer product, drawn by their size."""

from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.interpreters.ad as ad
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, Integer

from .._base.structure import Structure


class Thinning(eqx.Module):
    """How many rows and columns of A' count; `None` for all.

    - `key`: as `jax.random.key_data` has it.
    """

    key: Integer[Array, "..."]
    rows: int | None = eqx.field(static=True)
    columns: int | None = eqx.field(static=True)
    impl: Any = eqx.field(static=True)

    def of(self, operator: lx.AbstractLinearOperator, t_forward, t_adjoint):
        """The products with A' and A'^H, of which the cotangent of A is thin."""
        of_rows, of_columns = jax.random.split(
            jax.random.wrap_key_data(self.key, impl=self.impl)
        )
        rows = _Side(of_rows, self.rows, Structure.of(operator.out_structure()))
        columns = _Side(of_columns, self.columns, Structure.of(operator.in_structure()))
        return (
            lambda vector: rows.received(t_forward(columns.given(vector))),
            lambda vector: columns.received(t_adjoint(rows.given(vector))),
        )


class _Side(eqx.Module):
    key: Array
    count: int | None
    structure: Structure

    def given(self, vector):
        """A vector that A' is multiplied with."""
        if self.count is None:
            return vector
        flat = jax.lax.stop_gradient(self.structure.ravel(vector))
        return self.structure.unravel(thin(self.key, flat, self.count))

    def received(self, vector):
        """A product with A', of which the cotangent is thin."""
        if self.count is None:
            return vector
        data, impl = jax.random.key_data(self.key), jax.random.key_impl(self.key)
        flat = self.structure.ravel(vector)[None]
        (out,) = thinned_p.bind(flat, data[None], count=self.count, impl=impl)
        return self.structure.unravel(out)


def thin(key: Array, flat: Inexact[Array, " n"], count: int) -> Inexact[Array, " n"]:
    """`flat` in expectation: at most `count` entries, drawn with P(i) ~ |flat_i|."""
    size = jnp.abs(flat)
    size = size / jnp.where(jnp.max(size) > 0, jnp.max(size), 1)
    total = jnp.sum(size)
    # Of a vector of zeros any will do.
    logits = jnp.where(total > 0, jnp.log(size), 0)
    places = jax.random.categorical(key, logits, shape=(count,))
    drawn = flat[places] * (total / (count * jnp.where(size > 0, size, 1)[places]))
    return jnp.zeros_like(flat).at[places].add(drawn.astype(flat.dtype))


def _create_thinned() -> jex.Primitive:
    """The identity of (batch, n) vectors with keys (batch, …); cotangents are thinned."""
    primitive = jex.Primitive("thinned")

    def jvp(primals, tangents, *, count, impl):
        flat, keys = primals
        tangent, _ = tangents
        out = primitive.bind(flat, keys, count=count, impl=impl)
        if isinstance(tangent, ad.Zero):
            return out, tangent
        return out, primitive.bind(tangent, keys, count=count, impl=impl)

    def transpose(cotangent, flat, keys, *, count, impl):
        if isinstance(cotangent, ad.Zero):
            return cotangent, None
        one = lambda key, ct: thin(jax.random.wrap_key_data(key, impl=impl), ct, count)
        return jax.vmap(one)(keys, cotangent), None

    def batch(arguments, axes, *, count, impl):
        (flat, keys), sizes = arguments, []
        for array, axis in zip(arguments, axes, strict=True):
            if axis is not None:
                sizes.append(array.shape[axis])
        moved = [
            jnp.broadcast_to(array, (sizes[0], *array.shape))
            if axis is None
            else jnp.moveaxis(array, axis, 0)
            for array, axis in zip((flat, keys), axes, strict=True)
        ]
        flat, keys = (array.reshape(-1, *array.shape[2:]) for array in moved)
        out = primitive.bind(flat, keys, count=count, impl=impl)
        return out.reshape(moved[0].shape), 0

    primitive.def_impl(lambda flat, keys, **_: flat)
    primitive.def_abstract_eval(lambda flat, keys, **_: flat)
    mlir.register_lowering(primitive, lambda ctx, flat, keys, **_: [flat])
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive


thinned_p = _create_thinned()
