"""The product of a sparse matrix with vectors: a primitive closed under derivatives.

The trilinear form T(a, v, u) = Σ_e a_e v_col(e) u_row(e) over the entries e has three
faces, each the gradient of T in one argument and bilinear in the other two:

    rows:     u_i = Σ a_e v_col(e)  over the entries of row i,      A v
    cols:     v_j = Σ a_e u_row(e)  over the entries of column j,   A^T u
    entries:  a_e = v_col(e) u_row(e),                              u v^T on the pattern

The JVP of a face is that face twice, and its transpose in either argument is one of the
others. So derivatives of every order stay sorted, and none takes memory beyond a few
arrays of its arguments' sizes.

Arguments carry batches: a is (nse, b), v is (cols, b, k), u is (rows, b, k), for b
matrices on one pattern with k vectors each. `jax.vmap` enlarges b or k, so that a batch
of vectors is one product with a matrix of columns.
"""

import functools as ft

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Inexact

from .._kernel.faces import bound, create_faces
from .._kernel.row_sums import take
from .sparsity import Sparsity


# Numbers gathered at a time in the face `entries`.
_BLOCK = 65_536


def rows_face(
    sparsity: Sparsity, a: Inexact[Array, "nse b"], v: Inexact[Array, "cols b k"]
) -> Inexact[Array, "rows b k"]:
    return _bind(sparsity, a, v, "rows")


def _bind(sparsity: Sparsity, first, second, face: str):
    leaves, treedef = jtu.tree_flatten(sparsity)
    return bound(sparse_product_p, first, second, *leaves, treedef=treedef, face=face)


def _impl(first, second, *leaves, treedef, face):
    sparsity = jtu.tree_unflatten(treedef, leaves)
    if face == "rows":
        return sparsity.by_row(first, second)
    if face == "cols":
        return sparsity.by_col(first, second)
    return _entries(sparsity, first, second)


def _entries(sparsity: Sparsity, v, u):
    """Σ_k v_col(e) u_row(e), some entries at a time: never (nse, b, k) at once."""
    batch, columns = v.shape[1:]
    if 0 in (sparsity.nse, batch, columns, *sparsity.shape):
        return jnp.zeros((sparsity.nse, batch), v.dtype)
    if columns == 1:
        out = take(v[:, :, 0], sparsity.col) * take(u[:, :, 0], sparsity.row)
    else:

        def entry(place):
            row, col = place
            pair = take(v, col), take(u, row)
            return jnp.einsum("bk,bk->b", *pair, precision=jax.lax.Precision.HIGHEST)

        block = max(_BLOCK // (batch * columns), 1)
        out = jax.lax.map(entry, (sparsity.row, sparsity.col), batch_size=block)
    if sparsity.padded:
        out = jnp.where((sparsity.row < sparsity.shape[0])[:, None], out, 0)
    return out


def _abstract_eval(first, second, *leaves, treedef, face):
    sparsity = jtu.tree_unflatten(treedef, leaves)
    batch = second.shape[1:]
    shape = {
        "rows": (sparsity.shape[0], *batch),
        "cols": (sparsity.shape[1], *batch),
        "entries": (sparsity.nse, *batch[:1]),
    }
    return jax.core.ShapedArray(shape[face], second.dtype)


# (face, which argument) to the face of its cotangent, from (the other argument, the
# cotangent) in the order that this face takes them: a before v before u.
_TRANSPOSES = {
    ("rows", 0): lambda v, u: (v, u, "entries"),
    ("rows", 1): lambda a, u: (a, u, "cols"),
    ("cols", 0): lambda u, v: (v, u, "entries"),
    ("cols", 1): lambda a, v: (a, v, "rows"),
    ("entries", 0): lambda u, a: (a, u, "cols"),
    ("entries", 1): lambda v, a: (a, v, "rows"),
}


def _batch(arguments, dims, *, treedef, face):
    first, second, *leaves = arguments
    d_first, d_second, *d_leaves = dims
    if any(dim is not None for dim in d_leaves):  # a batch of patterns
        impl = ft.partial(_impl, treedef=treedef, face=face)
        return jax.vmap(impl, dims)(*arguments), 0
    dim = next(dim for dim in (d_first, d_second) if dim is not None)
    size = (first if d_first is not None else second).shape[dim]
    bind = ft.partial(sparse_product_p.bind, treedef=treedef, face=face)
    if face != "entries" and d_first is None:  # one matrix, more vectors
        second = jnp.moveaxis(second, d_second, -1)
        columns = second.shape[2]
        out = bind(first, jax.lax.collapse(second, 2), *leaves)
        return out.reshape(*out.shape[:2], columns, size), 3

    def enlarged(array, dim):
        """The batch axis within b, before its own."""
        if dim is None:
            array = jnp.broadcast_to(
                array[:, None], (array.shape[0], size, *array.shape[1:])
            )
        else:
            array = jnp.moveaxis(array, dim, 1)
        return jax.lax.collapse(array, 1, 3)

    out = bind(enlarged(first, d_first), enlarged(second, d_second), *leaves)
    batch = first.shape[1 if d_first is None or d_first > 1 else 2]
    return out.reshape(out.shape[0], size, batch, *out.shape[2:]), 1


sparse_product_p = create_faces(
    "sparse_product", _impl, _abstract_eval, _batch, _TRANSPOSES, "treedef"
)
