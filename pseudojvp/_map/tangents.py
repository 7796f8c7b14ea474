"""Products with the tangent A' of an operator, and with its adjoint A'^H.

For a matrix they are faces of the trilinear form T(M, u, v) = Σ u_ki M_ij v_kj, each the
gradient of T in one argument and bilinear in the other two:

    rows:     u_ki = Σ_j M_ij v_kj,     columns:  v_kj = Σ_i u_ki M_ij,
    matrix:   M_ij = Σ_k u_ki v_kj

The JVP of a face is that face twice, and its transpose in either argument is one of the
others. So one primitive serves derivatives of every order, and its batching rule chooses
the products: JAX's would take the columns face of many M and one u as one product, for
which XLA on the CPU transposes all M first (32 of 2000 x 100: 17.6 ms, and 2.2 as a batch
of products, with u once for each).

Arguments carry batches: M is (b, m, n), u is (b, k, m), v is (b, k, n), for b matrices
with k vectors each. `jax.vmap` enlarges b or k.
"""

from collections.abc import Callable

import jax
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Inexact, PyTree

from .._base.axes import is_sharded_explicitly
from .._base.tree import tree_conj
from .._kernel.faces import bound, create_faces
from .._kernel.products import matmul
from .._operator.adjoint import transpose_of
from .._operator.sparse import untagged


def tangent_products(
    operator: lx.AbstractLinearOperator, t_operator: lx.AbstractLinearOperator
) -> tuple[Callable, Callable]:
    """The functions v ↦ A'v and u ↦ A'^H u."""
    t_bare = untagged(t_operator)
    if isinstance(t_bare, lx.MatrixLinearOperator):
        return _matrix_products(t_bare.matrix)
    tangent = lx.linearise(lx.TangentLinearOperator(operator, t_operator))

    def adjoint_mv(vector: PyTree[Array]) -> PyTree[Array]:
        return tree_conj(transpose_of(tangent).mv(tree_conj(vector)))

    return tangent.mv, adjoint_mv


def product(operator: lx.AbstractLinearOperator, vector: PyTree[Array]) -> PyTree[Array]:
    """A v, over explicit axes of a mesh sharded as the rows of A, if that is a matrix."""
    bare = untagged(operator)
    if isinstance(bare, lx.MatrixLinearOperator) and is_sharded_explicitly(bare.matrix):
        mv, _ = _matrix_products(bare.matrix)
        return mv(vector)
    return operator.mv(vector)


def _matrix_products(t_matrix: Inexact[Array, "rows cols"]):
    def product(face: str, vector):
        out = bound(matrix_product_p, t_matrix[None], vector[None, None], face=face)
        return out[0, 0]

    def mv(vector: Inexact[Array, " cols"]) -> Inexact[Array, " rows"]:
        return product("rows", vector)

    def adjoint_mv(vector: Inexact[Array, " rows"]) -> Inexact[Array, " cols"]:
        return product("columns", vector.conj()).conj()

    return mv, adjoint_mv


def _impl(first, second, *, face: str):
    """(M, v) to u, (M, u) to v, or (u, v) to M."""
    if face == "rows":
        return _product(second, first, (2, 2))
    if face == "columns":
        return _product(second, first, (2, 1))
    batch, count, _ = first.shape
    if count == 1:
        return first[:, 0, :, None] * second[:, 0, None, :]
    if batch == 1:
        return matmul(first[0].T, second[0])[None]
    return _product(first, second, (1, 1))


def _product(left, right, contracted: tuple[int, int]):
    if left.shape[0] == 1:  # XLA would run a batch of one as a batch
        (i, j), left, right = contracted, left[0], right[0]
        dimensions = (((i - 1,), (j - 1,)), ((), ()))
        out = lax.dot_general(left, right, dimensions, precision=lax.Precision.HIGHEST)
        return out[None]
    i, j = contracted
    dimensions = (((i,), (j,)), ((0,), (0,)))
    return lax.dot_general(left, right, dimensions, precision=lax.Precision.HIGHEST)


def _abstract_eval(first, second, *, face: str):
    batch, *sizes = first.shape
    if face == "matrix":
        shape = batch, first.shape[2], second.shape[2]
    else:
        shape = batch, second.shape[1], sizes[0 if face == "rows" else 1]
    return jax.core.ShapedArray(shape, first.dtype)


def _specs(first: PartitionSpec, second: PartitionSpec, face: str) -> PartitionSpec:
    batch = second[0] if first[0] is None else first[0]
    if face == "matrix":
        return PartitionSpec(batch, first[2], second[2])
    return PartitionSpec(batch, second[1], first[1 if face == "rows" else 2])


# (face, which argument) to the face of its cotangent, from (the other argument, the
# cotangent) in the order that this face takes them: M before u before v.
_TRANSPOSES = {
    ("rows", 0): lambda v, u: (u, v, "matrix"),
    ("rows", 1): lambda m, u: (m, u, "columns"),
    ("columns", 0): lambda u, v: (u, v, "matrix"),
    ("columns", 1): lambda m, v: (m, v, "rows"),
    ("matrix", 0): lambda v, m: (m, v, "rows"),
    ("matrix", 1): lambda u, m: (m, u, "columns"),
}


def _batch(arguments, dims, *, face: str):
    first, second = arguments
    d_first, d_second = dims
    size = next(
        array.shape[dim]
        for array, dim in zip(arguments, dims, strict=True)
        if dim is not None
    )
    if face != "matrix" and d_first is None:  # the same matrices, more vectors
        second = jnp.moveaxis(second, d_second, 1)
        count = second.shape[2]
        out = matrix_product_p.bind(first, lax.collapse(second, 1, 3), face=face)
        return out.reshape(out.shape[0], size, count, out.shape[2]), 1

    def enlarged(array, dim):
        """The batch axis in front, within b."""
        if dim is None:
            array = jnp.broadcast_to(array, (size, *array.shape))
        return lax.collapse(array if dim is None else jnp.moveaxis(array, dim, 0), 0, 2)

    out = matrix_product_p.bind(
        enlarged(first, d_first), enlarged(second, d_second), face=face
    )
    batch = first.shape[1 if d_first == 0 else 0]
    return out.reshape(size, batch, *out.shape[1:]), 0


matrix_product_p = create_faces(
    "matrix_product", _impl, _abstract_eval, _batch, _TRANSPOSES, specs=_specs
)
