"""The blocks of a block diagonal operator, equal ones as one batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .._base.structure import Structure
from .structured import flat_mv, Tags, tags_of
from .unit_diagonal import with_implied_ones


class BlockSpec(NamedTuple):
    """Of one block: the sizes and dtype of its flat vectors, and what is known of it."""

    rows: int
    cols: int
    dtype: np.dtype
    tags: Tags


class Run(eqx.Module):
    """Equal blocks, one after the other: one operator, whose arrays have a leading axis.

    `count` is the size of that axis, `None` of one block without it.
    """

    operator: lx.AbstractLinearOperator
    count: int | None = eqx.field(static=True)

    @property
    def blocks(self) -> int:
        return 1 if self.count is None else self.count

    @property
    def spec(self) -> BlockSpec:
        return self.of_block(_spec)

    def of_block(self, function: Callable) -> Any:
        """What a function without arrays in its value makes of one block."""
        if self.count is None:
            return function(self.operator)
        block = jtu.tree_map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
                if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
                else leaf
            ),
            self.operator,
        )
        return eqx.filter_eval_shape(function, block)

    def map(self, function: Callable, *arguments: Any) -> Any:
        """A function of a block and arrays, of all blocks at once."""
        if self.count is None:
            return function(self.operator, *arguments)
        return eqx.filter_vmap(function)(self.operator, *arguments)

    def mapped(self, function: Callable, *arguments: Any) -> "Run":
        return Run(self.map(function, *arguments), self.count)

    def mv(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " rows"]:
        if self.count is None:
            return flat_mv(self.operator, vector)
        return self.map(flat_mv, vector.reshape(self.count, -1)).reshape(-1)


def _spec(block: lx.AbstractLinearOperator) -> BlockSpec:
    dtype = Structure.of((block.in_structure(), block.out_structure())).dtype
    return BlockSpec(block.out_size(), block.in_size(), dtype, tags_of(block))


def split_by_runs(
    vector: Inexact[Array, " n"], sizes: list[int]
) -> list[Inexact[Array, " _"]]:
    if len(sizes) == 1:
        return [vector]
    return jnp.split(vector, np.cumsum(sizes)[:-1].tolist())


def as_run(part: Any) -> Run:
    if isinstance(part, lx.AbstractLinearOperator):
        return Run(part, None)
    return Run(eqx.filter_vmap(lx.MatrixLinearOperator)(part), len(part))


def as_batched_run(operator: Any) -> Run:
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"`BlockDiagonal(..., batched=True)` got a {type(operator).__name__}. Pass "
            "operators whose arrays have a leading axis; an array of shape (count, rows, "
            "cols) goes without `batched`."
        )
    leaves = [leaf for leaf in jtu.tree_leaves(operator) if eqx.is_array(leaf)]
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            f"`BlockDiagonal(..., batched=True)` got an operator with arrays of shapes "
            f"{shapes}. All of them need a leading axis of one size, the number of "
            "blocks."
        )
    return Run(eqx.filter_vmap(with_implied_ones)(operator), sizes.pop())


def merged(runs: list[Run]) -> list[Run]:
    """With those neighbours as one run whose blocks are equal but for their floats."""
    groups: list[list[Run]] = []
    kinds: list[Any] = []
    for run in runs:
        kind = _kind(run)
        if kinds and kind is not None and kinds[-1] is not None and kind == kinds[-1]:
            groups[-1].append(run)
        else:
            groups.append([run])
            kinds.append(kind)
    return [_stacked(group) if len(group) > 1 else group[0] for group in groups]


def _kind(run: Run) -> Any:
    """What blocks of one run have in common; `None` of one that stays alone."""
    leaves, treedef = jtu.tree_flatten(run.operator)
    if not leaves or not all(eqx.is_inexact_array(leaf) for leaf in leaves):
        return None
    skip = 0 if run.count is None else 1
    return treedef, tuple((leaf.shape[skip:], leaf.dtype) for leaf in leaves)


def _stacked(runs: list[Run]) -> Run:
    def stack(*leaves):
        pairs = zip(leaves, runs, strict=True)
        return jnp.concatenate(
            [leaf[None] if run.count is None else leaf for leaf, run in pairs]
        )

    operator = jtu.tree_map(stack, *(run.operator for run in runs))
    return Run(operator, sum(run.blocks for run in runs))
