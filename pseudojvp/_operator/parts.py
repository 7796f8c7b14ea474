"""The parts that structured operators are made of, and functions along axes."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .as_operator import as_operator
from .over_reals import mixes
from .structured import AbstractStructured, dtype_of, Tags
from .tags import tags_of_multiple
from .unit_diagonal import with_implied_ones


def as_parts(operators: Iterable[Any], caller: str) -> list[Any]:
    """Operators, or arrays of at least two axes as they are, of one dtype.

    Arrays are promoted to the widest dtype of all, of 32 bits or more; an operator of
    another is an error.
    """
    parts = [
        part if _is_stack(part) else with_implied_ones(as_operator(_native(part), caller))
        for part in operators
    ]
    if not parts:
        raise ValueError(f"`{caller}(*operators)` got no operator. Pass at least one.")
    for part in parts:
        if isinstance(part, lx.AbstractLinearOperator) and mixes(part):
            raise ValueError(
                f"`{caller}` got an operator with real leaves beside complex ones, "
                "which has no matrix over the complex numbers. Make all of them complex."
            )
    dtypes = [_dtype(part) for part in parts]
    with jax.numpy_dtype_promotion("standard"):
        widest = jnp.result_type(*dtypes)
    return [_promoted(part, widest, dtypes, caller) for part in parts]


def _is_stack(part: Any) -> bool:
    return isinstance(part, jax.Array | np.ndarray) and part.ndim == 3


def _native(part: Any) -> Any:
    """With its NumPy arrays as those of JAX."""
    if not isinstance(part, lx.AbstractLinearOperator):
        return part
    to_jax = lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
    return jtu.tree_map(to_jax, part)


def _dtype(part: Any) -> np.dtype:
    if isinstance(part, lx.AbstractLinearOperator):
        return dtype_of(part)
    dtype = np.dtype(part.dtype)
    return (
        dtype if jnp.issubdtype(dtype, jnp.inexact) else np.dtype(jnp.result_type(float))
    )


def _promoted(part: Any, dtype, dtypes, caller: str) -> Any:
    if not isinstance(part, lx.AbstractLinearOperator):
        return jnp.asarray(part).astype(dtype)
    if type(part) is lx.MatrixLinearOperator:
        return lx.MatrixLinearOperator(part.matrix.astype(dtype), part.tags)
    if dtype_of(part) == dtype:
        return part
    names = ", ".join(str(dtype) for dtype in dtypes)
    raise ValueError(
        f"`{caller}` got operators of dtypes {names}. They have to agree: make this "
        f"`{type(part).__name__}` of arrays of dtype {dtype}."
    )


def multiple(
    operator: lx.AbstractLinearOperator, scalar: Inexact[Array, ""], number: Any
):
    """`scalar` times a part: of a matrix, again one. `number` is what was given."""
    if type(operator) is lx.MatrixLinearOperator:
        of_complex = jnp.iscomplexobj(operator.matrix)
        tags = tags_of_multiple(operator.tags, number, of_complex=of_complex)
        return lx.MatrixLinearOperator(scalar * operator.matrix, tags)
    if isinstance(operator, AbstractStructured):
        return operator * number  # whose sign it looks at
    return operator * scalar


def shifted(operator: lx.AbstractLinearOperator, shift: Inexact[Array, ""], tags: Tags):
    """A + shift I of a square part, of which `tags` hold."""
    if type(operator) is lx.MatrixLinearOperator:
        identity = jnp.eye(len(operator.matrix), dtype=operator.matrix.dtype)
        return lx.MatrixLinearOperator(operator.matrix + shift * identity, tags)
    identity = lx.IdentityLinearOperator(operator.in_structure())
    moved = operator + identity * shift
    return (
        moved
        if isinstance(moved, AbstractStructured)
        else (lx.TaggedLinearOperator(moved, tags))
    )


def same(first: lx.AbstractLinearOperator, second: lx.AbstractLinearOperator) -> bool:
    """Whether two operators are made of the very same arrays."""
    leaves, treedef = jtu.tree_flatten(first)
    others, other_treedef = jtu.tree_flatten(second)
    if treedef != other_treedef:
        return False
    return all(leaf is other for leaf, other in zip(leaves, others, strict=True))


def along_each_axis(
    functions: list[Callable], sizes: list[tuple[int, int]], vector: Inexact[Array, " n"]
) -> Inexact[Array, " m"]:
    """Applies a function of the rows of a matrix along each axis of a tensor.

    `vector` holds its entries; `sizes` are those of a row that each function takes and
    gives. What makes the tensor smaller comes first.
    """
    tensor = vector.reshape([size for size, _ in sizes])
    order = sorted(range(len(sizes)), key=lambda i: sizes[i][1] / max(sizes[i][0], 1))
    for axis in order:
        moved = jnp.moveaxis(tensor, axis, -1)
        *others, size = moved.shape
        out = functions[axis](moved.reshape(math.prod(others), size))
        tensor = jnp.moveaxis(out.reshape(*others, sizes[axis][1]), -1, axis)
    return tensor.reshape(-1)
