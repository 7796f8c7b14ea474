"""Entries of A⁻¹ b on the host, each with a bound, by local pushes or the whole solve."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int, Real, UInt

from .._base.host import called_on_host
from .._base.optional import import_late
from .entry import Entries, System, Told, Walks
from .pushes import Tolerance


_NOT_EXPORTED = (
    "`jax.export` cannot serialise `solve_entries()`, which calls the host. Use "
    "`sparse_solve` with an iterative solver."
)


def entries_on_host(
    row: Int[Array, " nse"],
    col: Int[Array, " nse"],
    data: Inexact[Array, " nse"],
    vector: Inexact[Array, " n"],
    indices: Int[Array, " k"],
    rtol: Real[Array, ""],
    atol: Real[Array, ""],
    seed: UInt[Array, " words"],
    *,
    most: int | None,
    doubt: float,
    gradient: bool,
) -> tuple[Told, Inexact[Array, "k two n"] | None]:
    """Returns what is told of x_i, one for each of the indices, and y and x nearby.

    Entries in one place add up; those with an index n are padding. With a seed, which is
    empty for none, random walks take the place of the whole solve. With `gradient`, y and
    x are such that x_i' = yᵀ(b' − A' x).
    """
    import_late("scipy.sparse")  # here, where filters of warnings can be kept
    real, integer = jnp.finfo(data.dtype).dtype, jnp.result_type(int)
    dtypes = data.dtype, real, *3 * [integer], jnp.dtype(bool), integer
    shapes = Told(*(jax.ShapeDtypeStruct(indices.shape, dtype) for dtype in dtypes))
    both = None
    if gradient:
        both = jax.ShapeDtypeStruct((*indices.shape, 2, vector.size), data.dtype)
    row = called_on_host(row, _NOT_EXPORTED)
    arguments = row, col, data, vector, indices, rtol, atol, seed
    tell = ft.partial(_tell_all, most=most, doubt=doubt, gradient=gradient)
    # Each batch is an axis in front: of length one for an array that does not have it.
    return jax.pure_callback(tell, (shapes, both), *arguments, vmap_method="expand_dims")


_RANKS = 1, 1, 1, 1, 1, 0, 0, 1  # of the arguments, without those of a batch


def _tell_all(*arguments, most: int | None, doubt: float, gradient: bool):
    pairs = list(zip(map(np.asarray, arguments), _RANKS, strict=True))
    leading = [array.shape[: array.ndim - rank] for array, rank in pairs]
    of_matrix, batch = np.broadcast_shapes(*leading[:3]), np.broadcast_shapes(*leading)
    inner = [array.shape[array.ndim - rank :] for array, rank in pairs]
    full = [
        np.broadcast_to(array, (*batch, *shape))
        for (array, _), shape in zip(pairs, inner, strict=True)
    ]
    dtype, shape = full[2].dtype, (*batch, *inner[4])
    dtypes = dtype, np.finfo(dtype).dtype, *3 * [np.int64], bool, np.int64
    told = Told(*(np.zeros(shape, dtype) for dtype in dtypes))
    both = np.zeros((*shape, 2, *inner[3]), dtype) if gradient else None
    system, known = None, None
    with np.errstate(all="ignore"):  # what overflows is seen in the bound
        for at in np.ndindex(batch):
            row, col, data, vector, indices, rtol, atol, seed = (a[at] for a in full)
            one = zip(at, of_matrix, strict=True)
            of_this = tuple(i if axis > 1 else 0 for i, axis in one)
            if system is None or of_this != known:  # only the newest is kept
                system, known = System(row, col, data, vector.size), of_this
            tolerance = Tolerance(float(rtol), float(atol))
            entries = Entries(system, vector, tolerance, most)
            walks = Walks(seed.tolist(), doubt) if seed.size else None
            for k, index in enumerate(indices):
                here, *nearby = entries.tell(int(index), walks, gradient=gradient)
                for array, number in zip(told, here, strict=True):
                    array[(*at, k)] = number
                if both is not None:
                    both[(*at, k, 0)], both[(*at, k, 1)] = nearby
    return told, both
