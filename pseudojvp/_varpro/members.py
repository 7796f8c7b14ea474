"""What differs between the members of a batch of fits, and what they share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .data_sets import each, for_each, listed


class Batched(eqx.Module):
    """A pytree of which some leaves have a batch axis in front."""

    batched: PyTree[Any]
    shared: PyTree[Any]

    @classmethod
    def create(cls, tree: PyTree[Any], axes: PyTree[int | None], batch: int, name: str):
        def expand(axis, subtree):
            return jtu.tree_map(lambda _: axis, subtree)

        def check(leaf, axis):
            if axis not in (0, None):
                raise ValueError(
                    f"`varpro_batch(in_axes=...)` got the axis {axis!r} for `{name}`. "
                    "Pass 0 for a batch axis in front, `None` for what all members share."
                )
            if axis == 0 and np.shape(leaf)[:1] != (batch,):
                raise ValueError(
                    f"`varpro_batch({name}=...)` got an array of shape "
                    f"{np.shape(leaf)} beside {batch} members of `data`. Put the batch "
                    f"axis in front, or pass `in_axes={{'{name}': None}}`."
                )
            return axis == 0

        axes = jtu.tree_map(expand, axes, tree, is_leaf=lambda axis: axis is None)
        mask = jtu.tree_map(check, tree, axes)
        return cls(*eqx.partition(tree, mask))

    def map(self, function: Callable, *arguments) -> "Batched":
        """With `function` of each leaf that has the axis."""
        batched = jtu.tree_map(lambda leaf: function(leaf, *arguments), self.batched)
        return Batched(batched, self.shared)

    def of(self, member: PyTree[Any]) -> PyTree[Any]:
        return eqx.combine(member, self.shared)


def check_in_axes(in_axes: dict[str, Any] | None) -> dict[str, Any]:
    in_axes = {} if in_axes is None else in_axes
    unknown = set(in_axes) - {"theta0", "weights", "args"}
    if unknown:
        raise ValueError(
            f"`varpro_batch(in_axes=...)` got the keys {sorted(unknown)}. It takes "
            "'theta0', 'weights' and 'args'; the batch axis of `data` is the first."
        )
    return in_axes


def count_members(data: Any) -> int:
    return np.shape(listed(data)[0])[0]


def check_members(data: Any, what: str = "") -> int:
    """How many members there are, or an error where `data` are no batch."""
    shapes = [np.shape(part) for part in listed(data)]
    for shape in shapes:
        if len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                f"`varpro_batch(data=...)` got {what or 'an array of shape'} {shape}. "
                "Pass arrays of shape (members, m) or (members, m, k), without empty "
                "axes."
            )
    if len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"`varpro_batch(data=...)` got {what or 'data sets of shapes'} {shapes}. "
            "Pass the same number of members in front of each."
        )
    return shapes[0][0]


def axes_of(
    in_axes: dict[str, Any], theta0: PyTree[Array], weights: Any, data: Any
) -> dict[str, Any]:
    """`in_axes` of all three for `data`, whose shapes tell what is not said."""
    of_start = lambda leaf: _guess_start(leaf, count_members(data))
    theta0_axes = in_axes.get("theta0", ...)
    if theta0_axes is ...:
        theta0_axes = jtu.tree_map(of_start, theta0)
    weights_axis = in_axes.get("weights", ...)
    if weights_axis is ...:
        guess = lambda part, w: None if w is None else _guess_weights(w, np.shape(part))
        each_weights = for_each(weights, data, "varpro_batch(weights=...)")
        weights_axis = each(guess, data, each_weights)
        if type(weights) is not tuple:  # the same for all data sets
            weights_axis = listed(weights_axis)[0]
    args_axes = in_axes.get("args")
    return {"theta0": theta0_axes, "weights": weights_axis, "args": args_axes}


def _guess_start(leaf: Array, batch: int) -> int | None:
    if leaf.ndim == 1 and leaf.shape[0] == batch:
        raise ValueError(
            f"`varpro_batch(theta0=...)` got a leaf of shape {leaf.shape} beside "
            f"{batch} members: one number for each, or {batch} for all? Pass "
            "`in_axes={'theta0': 0}` or `in_axes={'theta0': None}`."
        )
    return 0 if leaf.ndim > 1 and leaf.shape[0] == batch else None


def _guess_weights(weights: Any, shape: tuple[int, ...]) -> int | None:
    of_weights = np.shape(weights)
    shared = of_weights in (shape[1:2], shape[1:])
    batched = of_weights in (shape[:2], shape)
    if shared and batched:
        raise ValueError(
            f"`varpro_batch(weights=...)` got an array of shape {of_weights} beside "
            f"`data` of shape {shape}: batched or shared? Pass "
            "`in_axes={'weights': 0}` or `in_axes={'weights': None}`."
        )
    return 0 if batched else None
