"""Structures of vectors: trees, shapes and dtypes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Inexact, PyTree


@dataclasses.dataclass(frozen=True)
class Structure:
    """The tree, shapes and dtypes of a vector, without its sharding: hashable."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, tree: PyTree) -> "Structure":
        leaves, treedef = jtu.tree_flatten(tree)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        return cls(treedef, shapes, tuple(np.dtype(leaf.dtype) for leaf in leaves))

    def __reduce__(self):
        # By a tree: a copied treedef does not fit modules of Equinox.
        return Structure.of, (self.as_tree(),)

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def is_complex(self) -> bool:
        return any(np.issubdtype(dtype, np.complexfloating) for dtype in self.dtypes)

    @property
    def dtype(self) -> np.dtype:
        """Of a flat vector: the widest of its leaves, of at least 32 bits."""
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*self.dtypes)
        return np.dtype(np.float32) if dtype.itemsize == 2 else dtype

    @property
    def eps(self) -> float:
        """That of the coarsest leaf."""
        return max(float(jnp.finfo(dtype).eps) for dtype in self.dtypes)

    def as_tree(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves = [
            jax.ShapeDtypeStruct(*leaf)
            for leaf in zip(self.shapes, self.dtypes, strict=True)
        ]
        return jtu.tree_unflatten(self.treedef, leaves)

    def probe(self) -> PyTree[Array]:
        """A vector of length one for a matrix to be applied to, the same in each call.

        Of random normal entries: no matrix of a simple structure makes zero of them.
        """
        flat = np.random.default_rng(0).standard_normal(self.size)
        return self.unravel(jnp.asarray(flat / max(np.linalg.norm(flat), 1)))

    def ravel(self, tree: PyTree[Array]) -> Inexact[Array, " size"]:
        if Structure.of(tree) != self:
            raise ValueError(
                f"A vector of structure {self.as_tree()} was expected, but "
                f"{Structure.of(tree).as_tree()} was given. Pass a vector that matches "
                "the operator's `out_structure()`."
            )
        leaves = [leaf.astype(self.dtype).reshape(-1) for leaf in jtu.tree_leaves(tree)]
        return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)

    def unravel(self, flat: Inexact[Array, " size"]) -> PyTree[Array]:
        sizes = [math.prod(shape) for shape in self.shapes]
        pieces = [flat] if len(sizes) == 1 else jnp.split(flat, np.cumsum(sizes)[:-1])
        leaves = [
            _cast(piece, dtype).reshape(shape)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]
        return jtu.tree_unflatten(self.treedef, leaves)


def _cast(array: Array, dtype: np.dtype) -> Array:
    """Casts, keeping the real part where a complex matrix maps to a real leaf."""
    if jnp.iscomplexobj(array) and not np.issubdtype(dtype, np.complexfloating):
        array = array.real
    return array.astype(dtype)
