"""Which columns of Φ each parameter moves, read off a jaxpr: Curtis, Powell and Reid.

Parameters that move different columns can share one tangent of Φ, because each column of
it then belongs to one of them: two tangents are enough for the centres and widths of any
number of peaks (J. Inst. Math. Appl. 13 (1974), for sparse Jacobians).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jaxtyping import Array, Bool, Float, Int


# For each parameter which entries of an array may depend on it, `(q, ...)`: with an axis
# of length one where that is the same along all of the array's. `None`: on none.
_Pattern = Bool[np.ndarray, "q ..."] | None
# No pattern gets larger. What would is taken to depend on all that its parts depend on.
_LARGEST = 2**22
# An entry of what these return depends on the entries of the operands in the same place.
# fmt: off
_ELEMENTWISE = frozenset([
    "add", "add_any", "complex", "conj", "convert_element_type", "copy", "copy_p", "div",
    "imag", "mul", "neg", "real", "reduce_precision", "select_n", "sub",
])
# fmt: on


def moved_columns(
    push: Callable, flat: Float[Array, " q"]
) -> list[Bool[np.ndarray, "q _"]]:
    """Which columns of each array that the linear `push` returns every entry of its
    argument may change. An array of one axis is one column.

    From the structure of the program alone, whatever the numbers are: where an operation
    is not known here, all of what it returns is taken to depend on all of what it got.
    """
    closed = jax.make_jaxpr(push)(flat)
    (q,) = flat.shape
    units = np.eye(q, dtype=bool) if q * q <= _LARGEST else np.ones((q, 1), bool)
    patterns = _propagate(closed.jaxpr, [units])
    columns = []
    for pattern, aval in zip(patterns, closed.out_avals, strict=True):
        count = aval.shape[1] if aval.ndim == 2 else 1
        if pattern is None:
            columns.append(np.zeros((q, count), bool))
        else:
            along = np.any(pattern, axis=1).reshape(q, -1)
            columns.append(np.broadcast_to(along, (q, count)))
    return columns


def groups_of(moved: Bool[np.ndarray, "q n"]) -> Int[np.ndarray, "groups width"]:
    """Parameters that share a tangent, none of which moves what another one moves.

    Greedily, one parameter after the other, into the smallest group that takes it; split
    into at most twice as many groups of about the same width, and filled up with q.
    """
    q = moved.shape[0]
    members: list[list[int]] = []
    taken: list[Bool[np.ndarray, " n"]] = []  # by the members of each group
    for parameter, columns in enumerate(moved):
        apart = [i for i, mine in enumerate(taken) if not np.any(mine & columns)]
        smallest = min(apart, key=lambda i: len(members[i]), default=None)
        if smallest is None:
            members.append([parameter])
            taken.append(columns)
        else:
            members[smallest].append(parameter)
            taken[smallest] = taken[smallest] | columns
    width = -(-q // len(members))
    pieces = [
        group[start : start + width]
        for group in members
        for start in range(0, len(group), width)
    ]
    return np.array([piece + [q] * (width - len(piece)) for piece in pieces])


def _propagate(jaxpr: Any, patterns: Sequence[_Pattern]) -> Sequence[_Pattern]:
    """Those of the outputs, from those of the inputs; closed-over constants have none."""
    known = dict(zip(jaxpr.invars, patterns, strict=True))

    def read(atom) -> _Pattern:
        return None if isinstance(atom, jex.Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if any(operand is not None for operand in operands):
            known.update(zip(equation.outvars, _outcome(equation, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _outcome(equation: Any, operands: Sequence[_Pattern]) -> Sequence[_Pattern]:
    name, params = equation.primitive.name, equation.params
    shapes = [tuple(atom.aval.shape) for atom in equation.invars]
    out = [tuple(atom.aval.shape) for atom in equation.outvars]
    patterns = None
    if name in ("jit", "pjit"):
        return _propagate(params["jaxpr"].jaxpr, operands)
    if name in _ELEMENTWISE:
        patterns = [_union(operands, len(out[0]))]
    elif name in _MOVEMENTS:
        patterns = _MOVEMENTS[name](operands, shapes, out, params)
    if patterns is None or any(p is not None and p.size > _LARGEST for p in patterns):
        return [_everywhere(operands, len(shape)) for shape in out]
    return patterns


def _any(pattern: np.ndarray, axis: int) -> np.ndarray:
    return np.any(pattern, axis=axis, keepdims=True)


def _everywhere(operands: Sequence[_Pattern], ndim: int) -> np.ndarray:
    """Each entry depends on what any entry of the operands depends on."""
    flat = [
        operand.reshape(operand.shape[0], -1).any(axis=1)
        for operand in operands
        if operand is not None
    ]
    return np.any(flat, axis=0).reshape(-1, *[1] * ndim)


def _union(operands: Sequence[_Pattern], ndim: int) -> np.ndarray:
    present = [
        # Scalars stand beside arrays.
        operand.reshape(-1, *[1] * ndim) if operand.ndim == 1 else operand
        for operand in operands
        if operand is not None
    ]
    out = present[0]
    for operand in present[1:]:
        out = out | operand
    return out


def _along(operands, shapes, axis: int) -> list[np.ndarray]:
    """Patterns of one shape but for an axis, which they have at full length."""
    q = next(operand.shape[0] for operand in operands if operand is not None)
    full = []
    for operand, shape in zip(operands, shapes, strict=True):
        if operand is None:
            operand = np.zeros((q, *[1] * len(shape)), bool)
        sizes = list(operand.shape)
        sizes[axis + 1] = shape[axis]
        full.append(np.broadcast_to(operand, sizes))
    sizes = list(np.max([operand.shape for operand in full], axis=0))
    for index, operand in enumerate(full):
        sizes[axis + 1] = operand.shape[axis + 1]
        full[index] = np.broadcast_to(operand, sizes)
    return full


def _broadcast_in_dim(operands, shapes, out, params):
    sizes = [1] * len(out[0])
    for size, dimension in zip(
        operands[0].shape[1:], params["broadcast_dimensions"], strict=True
    ):
        sizes[dimension] = size
    return [operands[0].reshape(-1, *sizes)]


def _concatenate(operands, shapes, out, params):
    axis = params["dimension"]
    return [np.concatenate(_along(operands, shapes, axis), axis=axis + 1)]


def _stack(operands, shapes, out, params):
    axis = params["axis"]
    operands = [
        None if operand is None else np.expand_dims(operand, axis + 1)
        for operand in operands
    ]
    shapes = [(*shape[:axis], 1, *shape[axis:]) for shape in shapes]
    return [np.concatenate(_along(operands, shapes, axis), axis=axis + 1)]


def _reduce_sum(operands, shapes, out, params):
    axes = tuple(axis + 1 for axis in params["axes"])
    return [np.any(operands[0], axis=axes)]


def _reshape(operands, shapes, out, params):
    (pattern, *_), (shape, *_) = operands, shapes
    if params["dimensions"] is not None:
        return None
    q = pattern.shape[0]
    if pattern.size == q:
        return [pattern.reshape(q, *[1] * len(out[0]))]
    if q * math.prod(shape) > _LARGEST:
        return None
    kept = [size for size in shape if size != 1]
    if kept == [size for size in out[0] if size != 1]:
        lengths = iter(
            length
            for length, size in zip(pattern.shape[1:], shape, strict=True)
            if size != 1
        )
        sizes = [1 if size == 1 else next(lengths) for size in out[0]]
        return [pattern.reshape(q, *sizes)]
    return [np.broadcast_to(pattern, (q, *shape)).reshape(q, *out[0])]


def _slice(operands, shapes, out, params):
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or [1] * len(starts)
    pieces = (
        slice(None) if length == 1 else slice(start, limit, stride)
        for length, start, limit, stride in zip(
            operands[0].shape[1:], starts, limits, strides, strict=True
        )
    )
    return [operands[0][:, *pieces]]


def _split(operands, shapes, out, params):
    axis = params["axis"] + 1
    if operands[0].shape[axis] == 1:
        return [operands[0]] * len(out)
    return np.split(operands[0], np.cumsum(params["sizes"])[:-1], axis=axis)


def _squeeze(operands, shapes, out, params):
    axes = tuple(axis + 1 for axis in params["dimensions"])
    return [np.squeeze(operands[0], axis=axes)]


def _transpose(operands, shapes, out, params):
    axes = (axis + 1 for axis in params["permutation"])
    return [np.transpose(operands[0], (0, *axes))]


def _unstack(operands, shapes, out, params):
    pieces = np.moveaxis(operands[0], params["axis"] + 1, 0)
    return list(np.broadcast_to(pieces, (len(out), *pieces.shape[1:])))


def _dot_general(operands, shapes, out, params):
    """Of batch axes, and then those of each side that are not summed over."""
    contracted, batched = params["dimension_numbers"]
    present = [i for i, operand in enumerate(operands) if operand is not None]
    if len(present) != 1:
        return None
    (side,) = present
    pattern = operands[side]
    for axis in contracted[side]:
        pattern = _any(pattern, axis + 1)
    free = [
        [
            axis
            for axis in range(len(shapes[i]))
            if axis not in (*contracted[i], *batched[i])
        ]
        for i in range(2)
    ]
    before, after = (0, len(free[1])) if side == 0 else (len(free[0]), 0)
    lengths = [pattern.shape[axis + 1] for axis in (*batched[side], *free[side])]
    order = (axis + 1 for axis in (*batched[side], *free[side], *contracted[side]))
    pattern = np.transpose(pattern, (0, *order))
    count = len(batched[side])
    sizes = (*lengths[:count], *[1] * before, *lengths[count:], *[1] * after)
    return [pattern.reshape(-1, *sizes)]


_MOVEMENTS: dict[str, Callable[..., Sequence[_Pattern] | None]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,  # from JAX 0.12 on; before, slices
}
