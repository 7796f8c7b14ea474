"""Data that stay on the host, or come one chunk after the other."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable, TypeGuard

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._base.inexact import as_inexact
from .data_sets import each, listed
from .failure import raise_if_failed
from .members import axes_of, Batched, check_members, count_members
from .progress import ChunkBar


@runtime_checkable
class StoredArray(Protocol):
    """What has the shape of an array and is read by slices."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


class Chunk(NamedTuple):
    """The arguments of `varpro_batch` for some of the members."""

    data: Any
    theta0: PyTree[Any]
    weights: Any
    args: Any
    in_axes: dict[str, Any]


def is_stored(data: Any) -> TypeGuard[StoredArray]:
    """Whether `data` are not in memory: a memory map, or an array of h5py or zarr."""
    if isinstance(data, np.memmap):
        return True
    of_memory = isinstance(data, np.ndarray | np.generic | jax.Array)
    of_memory |= hasattr(data, "__dlpack__") or hasattr(data, "__jax_array__")
    return not of_memory and isinstance(data, StoredArray)


def chunks_of_stored(
    data, theta0: PyTree, weights, args, in_axes: dict[str, Any], size: int
) -> Iterator[Chunk]:
    """Slices of all that has the axis of the members."""
    in_axes = axes_of(in_axes, theta0, weights, data)
    members = count_members(data)
    trees = {"theta0": theta0, "weights": weights, "args": args}
    whole = [
        Batched.create(tree, in_axes[name], members, name) for name, tree in trees.items()
    ]

    def chunks():
        for start in range(0, members, size):
            # A copy, so that no page of a file is read while the fits run.
            read = lambda leaf, start=start: np.array(leaf[start : start + size])
            theta0, weights, args = (tree.of(tree.map(read).batched) for tree in whole)
            yield Chunk(each(read, data), theta0, weights, args, in_axes)

    return chunks()


def chunks_of_iterator(
    data: Iterator, theta0, weights, args, in_axes: dict[str, Any]
) -> Iterator[Chunk]:
    """Each item of `data` with the next of what else is an iterator."""
    trees = {"theta0": theta0, "weights": weights, "args": args}
    axes = {"theta0": None, "weights": None, "args": None}
    iterators = {name for name, tree in trees.items() if isinstance(tree, Iterator)}
    axes |= dict.fromkeys(iterators - {"args"}, 0) | in_axes
    for name in sorted(set(in_axes) - iterators):
        if jtu.tree_leaves(in_axes[name]):
            raise ValueError(
                f"`varpro_batch(in_axes=...)` got {in_axes[name]!r} for `{name}`, but "
                f"`data` is an iterator and `{name}` is none. Pass an iterator that has "
                "one item for each of `data`, or `None` for what all members share."
            )

    def item(name: str, number: int):
        if name not in iterators:
            return trees[name]
        try:
            return jtu.tree_map(_own, next(trees[name]))
        except StopIteration:
            raise ValueError(
                f"`varpro_batch({name}=...)` got an iterator that ended before item "
                f"{number} of `data`. Pass one item for each of `data`."
            ) from None

    def chunks():
        for number, array in enumerate(data):
            theta0, weights, args = (item(name, number) for name in trees)
            yield Chunk(each(_own, array), theta0, weights, args, axes)

    return chunks()


def stream(
    fit: Callable[[Chunk, int], Any],
    chunks: Iterator[Chunk],
    total: int | None,
    throw: bool,
    progress: bool,
) -> Iterator[Any]:
    """The fits of each chunk, of which the first is read here."""
    chunks = _alike(chunks)
    first = next(chunks, None)
    if first is None:
        raise ValueError(
            "`varpro_batch(data=...)` got an iterator without a single item. Let it give "
            "arrays of shape (members, m) or (members, m, k), one for each chunk."
        )
    return _fit_each(fit, first, chunks, total, throw, progress)


def _fit_each(fit, chunk: Chunk | None, chunks, total, throw, progress):
    bar = ChunkBar()
    if progress:
        bar.begin(total)
    size, error = 0, None
    try:
        while chunk is not None:
            # One program for all, unless a chunk is larger than those before.
            size = max(size, count_members(chunk.data))
            fits = fit(chunk, size)
            refuse_tracers(fits.theta)
            try:  # JAX has not ended: a chunk is read while one is fitted
                chunk = next(chunks, None)
            except Exception as later:
                chunk, error = None, later
            fits = raise_if_failed(fits) if throw else fits
            fits = jax.block_until_ready(fits)  # or chunks would wait in a queue
            bar.update(None)
            yield fits
        if error is not None:
            raise error
    finally:
        bar.close()


def _alike(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """With data as JAX arrays, all but their members as of the first."""
    first = None
    for number, chunk in enumerate(chunks):
        data = each(lambda part: as_inexact(part, "varpro_batch(data=...)"), chunk.data)
        check_members(data, f"an iterator whose item {number} has shape")
        kind = [(part.shape[1:], part.dtype) for part in listed(data)]
        first = kind if first is None else first
        if kind != first:
            raise ValueError(
                f"`varpro_batch(data=...)` got an iterator whose item {number} has "
                f"{_told(kind)} in each member; the first has {_told(first)}. Fit "
                "different data by different calls."
            )
        yield chunk._replace(data=data)


def _told(kind: list[tuple[tuple[int, ...], Any]]) -> str:
    return ", ".join(f"shape {shape} and dtype {dtype}" for shape, dtype in kind)


def refuse_tracers(tree: PyTree) -> None:
    # Within `jax.jit` a new array is traced, too.
    leaves = jtu.tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Iterator))
    leaves.append(jnp.zeros(()))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise TypeError(
            "`varpro_batch(data=...)` got an iterator or an array that is not in memory, "
            "within `jax.jit`, `jax.grad` or `jax.vmap`, which cannot trace what is read "
            "while fits run. Call it outside of them, or pass an array of JAX."
        )


def _own(array):
    """A copy, for the next item may be written into the same memory."""
    return array.copy() if isinstance(array, np.ndarray) else array
