"""Arguments that are arrays, checked, of functions with the signatures of NumPy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, Real

from .._base.inexact import as_native
from .._kernel.condition import resolve_rcond
from .._operator import SparseLinearOperator
from .._solver import PivotedQR, SVD
from .._solver.auto import DENSE_ENTRIES


# Solvers with a cutoff of their own.
TRUNCATING = PivotedQR | SVD | lx.SVD


def promote(caller: str, **arrays) -> tuple[Array, ...]:
    """The arrays in one floating or complex dtype, as `jax.numpy` promotes them."""
    for name, array in arrays.items():
        if not (eqx.is_array(array) or isinstance(array, np.ndarray | np.generic)):
            raise TypeError(
                f"`{caller}({name}=...)` got a {type(array).__name__}. Pass an array of "
                "floating-point, complex or integer numbers."
            )
        arrays[name] = as_native(array, f"{caller}({name}=...)")
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays.values())
    # That of a function on floats: float32 for the integers up to 32 bits.
    dtype = jax.eval_shape(jnp.sqrt, jax.ShapeDtypeStruct((), dtype)).dtype
    return tuple(jnp.asarray(array, dtype) for array in arrays.values())


def check_shapes(a: Array, b: Array, caller: str) -> None:
    """That they are a matrix, and one or more right-hand sides of it."""
    if a.ndim != 2:
        raise ValueError(
            f"`{caller}(a=...)` got an array of shape {a.shape}. A matrix has shape "
            "(m, n); for a batch of matrices use `jax.vmap`."
        )
    if b.ndim not in (1, 2) or b.shape[0] != a.shape[0]:
        raise ValueError(
            f"`{caller}(b=...)` got an array of shape {b.shape} beside `a` of shape "
            f"{a.shape}. Pass `b` of shape ({a.shape[0]},) or ({a.shape[0]}, k)."
        )


def as_real(value: Any, what: str, shape: tuple[int, ...], dtype) -> Array:
    """Real numbers of that shape in the real dtype of `dtype`."""
    is_number = isinstance(value, bool | int | float)
    if not (
        is_number or eqx.is_array(value) or isinstance(value, np.ndarray | np.generic)
    ):
        raise TypeError(
            f"`{what}` got a {type(value).__name__}. Pass real numbers of shape {shape}."
        )
    if jnp.iscomplexobj(value):
        raise TypeError(f"`{what}` got complex numbers. Pass real ones of shape {shape}.")
    if jnp.shape(value) != shape:
        raise ValueError(
            f"`{what}` got the shape {jnp.shape(value)}. Pass the shape {shape}."
        )
    value = as_native(value, what)
    return jnp.asarray(value, jnp.finfo(dtype).dtype)


def rcond_beside(solver: lx.AbstractLinearSolver, rcond: Any, caller: str) -> Any:
    """The one `rcond` of the two, or an error."""
    check_rcond(rcond, caller)
    if isinstance(solver, TRUNCATING) and solver.rcond is not None:
        if rcond is not None:
            raise ValueError(
                f"`{caller}` got `rcond={rcond}` beside `{solver}`, which has its own. "
                "Drop one of the two."
            )
        rcond = solver.rcond
    elif rcond is not None and not isinstance(solver, TRUNCATING):
        reason = (
            "takes `a` to have full rank"
            if solver.assume_full_rank()
            else "has no cutoff"
        )
        raise ValueError(
            f"`{caller}` got `rcond={rcond}` beside `{type(solver).__name__}`, which "
            f"{reason}. Drop `rcond`, or pass `solver=PivotedQR()` or `SVD()`."
        )
    return rcond


def dense(matrix: Any, caller: str, instead: str) -> Inexact[Array, "m n"]:
    """A small sparse matrix as an array, or an error that says what to do instead."""
    operator = SparseLinearOperator(matrix)
    rows, cols = operator.out_size(), operator.in_size()
    if rows * cols > DENSE_ENTRIES:
        raise ValueError(
            f"`{caller}(a=...)` got a sparse matrix of shape {rows, cols}, and would "
            f"make it dense. Above {DENSE_ENTRIES:,} entries {instead}."
        )
    return operator.as_matrix()


def check_rcond(rcond: Any, caller: str) -> None:
    real = isinstance(rcond, int | float) or (
        (eqx.is_array(rcond) or isinstance(rcond, np.ndarray | np.generic))
        and rcond.ndim == 0
        and not jnp.iscomplexobj(rcond)
    )
    if rcond is not None and not real:
        raise TypeError(
            f"`{caller}(rcond=...)` got {rcond!r}. Pass a real number or `None`."
        )


def resolve(rcond, matrix) -> Real[Array, ""]:
    """NumPy's: eps times the larger dimension by default, eps if negative."""
    dtype = jnp.finfo(matrix.dtype).dtype
    return resolve_rcond(rcond, jnp.finfo(dtype).eps * max(matrix.shape), dtype)
