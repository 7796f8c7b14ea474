"""Functions within which the axes of a mesh are `AxisType.Auto`.

On a mesh with explicit axes JAX refuses loops, and whatever it has no rule for.
"""

import functools as ft
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from .axes import has_explicit_axes
from .call import split


def with_auto_axes(function: Callable, members: Array | None = None) -> Callable:
    """`function` of trees, for which XLA alone decides how to shard what is within.

    On a mesh with explicit axes what comes out is the same on all devices, but for the
    batch of `jax.vmap`; or, with `members`, sharded along its first axis as they are.
    """

    @ft.wraps(function)
    def run(*arguments):
        arrays, frame = split(arguments)
        if not has_explicit_axes(arrays):
            return function(*arguments)
        meshes = [jax.typeof(array).sharding.mesh for array in arrays]
        mesh = next(mesh for mesh in meshes if mesh.explicit_axes)
        first = () if members is None else jax.typeof(members).sharding.spec[:1]
        sharding = NamedSharding(mesh, PartitionSpec(*first))
        frames = []

        def within(*arrays):
            out, out_frame = split(function(*frame.filled(arrays)))
            frames.append(out_frame)
            return out

        auto = jax.sharding.auto_axes(
            within, axes=mesh.explicit_axes, out_sharding=sharding
        )
        out = auto(*arrays)
        return frames[0].filled(out)

    return run
