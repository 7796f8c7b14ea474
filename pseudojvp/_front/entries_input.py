"""What `solve_entries` takes, checked while JAX traces."""

import operator as _operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, UInt

from .._base.inexact import as_inexact
from .._operator import SparseLinearOperator
from .._operator.sparse import read_entries
from .._solver.options import check_tolerances
from .sparse import check_sparse


def read_square(A: Any) -> tuple[Inexact[Array, " nse"], Any, Any, int]:
    """Entries of a square A, with their rows and columns, in no order, and its size."""
    check_sparse(A, "solve_entries")
    if isinstance(A, SparseLinearOperator):
        data, row, col, shape = A.data, A.sparsity.row, A.sparsity.col, A.sparsity.shape
    else:
        data, row, col, shape = read_entries(A)
    if shape[0] != shape[1]:
        raise ValueError(
            f"`solve_entries(A=...)` got shape {shape}. Pass a square matrix; for others "
            "use `sparse_lstsq`."
        )
    for name, index in (("row", row), ("col", col)):
        if isinstance(index, np.ndarray) and np.min(index, initial=0) < 0:
            raise ValueError(
                f"`solve_entries(A=...)` got a `{name}` index {index.min()}, for a "
                f"matrix of shape {shape}. Pass indices from 0 on."
            )
    return as_inexact(data, "solve_entries(A=...)"), row, col, shape[0]


def vector_of(data: Array, size: int, b: Any) -> Inexact[Array, " n"]:
    b = as_inexact(b, "solve_entries(b=...)")
    if b.shape != (size,):
        raise ValueError(
            f"`solve_entries(b=...)` got an array of shape {b.shape} beside A of shape "
            f"{(size, size)}. Pass one of shape ({size},); for several use `jax.vmap`."
        )
    if b.dtype != data.dtype:
        raise TypeError(
            f"`solve_entries` got A of dtype {data.dtype} and b of dtype {b.dtype}. "
            "Convert one of them."
        )
    return b


def check_indices(indices: Any, size: int) -> Any:
    if not isinstance(indices, jax.core.Tracer):
        none = isinstance(indices, list | tuple) and not indices
        indices = np.asarray(indices, int if none else None)
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.ndim > 1:
        raise TypeError(
            f"`solve_entries(indices=...)` got an array of shape {indices.shape} and "
            f"dtype {indices.dtype}. Pass an integer, or a 1-D array of them."
        )
    if isinstance(indices, np.ndarray):
        wrong = indices[(indices < 0) | (indices >= size)]
        if wrong.size:
            raise ValueError(
                f"`solve_entries(indices=...)` got {wrong[0]}, for x of shape ({size},). "
                f"Pass indices from 0 to {size - 1}."
            )
    return indices


def check_scalar_tolerances(**given: Any) -> None:
    check_tolerances("solve_entries", **given)
    for name, value in given.items():
        if value is None:
            raise TypeError(
                f"`solve_entries({name}=None)`. Pass a number, `0.0` for none."
            )
        if jnp.ndim(value) != 0:
            raise ValueError(f"`solve_entries({name}=...)` got {value}. Pass a scalar.")


def seed_of(key: Any) -> UInt[Array, " words"]:
    """The words of a key; of none no words."""
    if key is None:
        return jnp.zeros(0, jnp.uint32)
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    if getattr(words, "ndim", None) != 1 or words.dtype != jnp.uint32:
        raise TypeError(
            f"`solve_entries(key=...)` got {key!r}. Pass one key, as `jax.random.key(0)`."
        )
    return jnp.asarray(words)


def doubt_of(confidence: Any) -> float:
    if not (isinstance(confidence, float) and 0 < confidence < 1):
        raise ValueError(
            f"`solve_entries(confidence=...)` got {confidence!r}. Pass a float between 0 "
            "and 1."
        )
    return 1 - confidence


def check_pushes(max_pushes: Any) -> None:
    if max_pushes is None:
        return
    try:
        number = None if isinstance(max_pushes, bool) else _operator.index(max_pushes)
    except TypeError:
        number = None
    if number is None or number < 0:
        raise ValueError(
            f"`solve_entries(max_pushes=...)` got {max_pushes!r}. Pass `None` or an "
            "integer that is not negative."
        )
