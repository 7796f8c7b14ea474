"""How many row blocks a factorisation takes: as many as devices that hold the rows."""

from typing import Any

import jax
import jax.core
from jaxtyping import Array, Inexact

from ..._base.axes import is_manual


def check_blocks(solver: Any) -> None:
    blocks = solver.blocks
    if blocks is None:
        return
    if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 1:
        raise ValueError(
            f"`{type(solver).__name__}(blocks=...)` got {blocks!r}. Pass the number of "
            "row blocks, a Python integer from 1 on, or `None`."
        )


def blocks_for(blocks: int | None, matrix: Inexact[Array, "rows cols"]) -> int:
    """Those of the long side: `blocks`, or as many as it is known to be sharded into.

    One if a block would have fewer rows than columns: the R of all of them would be
    larger than the matrix itself.
    """
    rows, cols = matrix.shape
    if blocks is None:
        blocks = shards(matrix, 0 if rows >= cols else 1)
    short, long = sorted((rows, cols))
    return blocks if 0 < blocks * short <= long else 1


def shards(array: Array, axis: int) -> int:
    """Parts of that axis on different devices, as far as they are known.

    Those of an array at hand, and of a traced one with `AxisType.Explicit`; with
    `AxisType.Auto` XLA chooses them once the program is there. Inside `jax.shard_map` an
    array is the part of one device.
    """
    if is_manual():
        return 1
    traced = isinstance(array, jax.core.Tracer)
    sharding = jax.typeof(array).sharding if traced else array.sharding
    size, part = array.shape[axis], sharding.shard_shape(array.shape)[axis]
    return size // max(part, 1)
