"""The model y ≈ offset(θ) + Φ(θ) c, what is observed of it, and products with Φ."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Float, Inexact, PyTree, Real

from .._kernel.products import adjoint_matmul, matmul
from .._operator.adjoint import adjoint
from .._operator.multiples import with_true_dtypes
from .limits import Limits


class Observations(eqx.Module):
    """What is fitted, as columns: W (data − offset ⊗ gain − Φ c) is to be small.

    - `data`: `(m, k)`.
    - `weights`: `None`, `(m,)` for all columns or `(m, k)`; real, and multiplied with
        the residual before it is squared.
    - `gain`: `(k,)`, how much of the offset is in each column: ones, until the columns
        are scaled or compressed.
    """

    data: Inexact[Array, "m k"]
    weights: Real[Array, " m"] | Real[Array, "m k"] | None
    gain: Inexact[Array, " k"]
    limits: Limits | None = None  # of the coefficients
    # Rows at the end that say the same in each column, and count once.
    common: int = eqx.field(default=0, static=True)
    # Rows at the end that are no data, but priors.
    below: int = eqx.field(default=0, static=True)

    @property
    def shares_weights(self) -> bool:
        return self.weights is None or self.weights.ndim == 1

    @property
    def weight_columns(self) -> Real[Array, "m _"] | None:
        """`(m, 1)` or `(m, k)`."""
        if self.weights is None or self.weights.ndim == 2:
            return self.weights
        return self.weights[:, None]

    def weigh(self, columns: Inexact[Array, "m k"]) -> Inexact[Array, "m k"]:
        weights = self.weight_columns
        return columns if weights is None else weights.astype(columns.dtype) * columns

    def residual(self, fitted: Inexact[Array, "m k"]) -> Inexact[Array, "m k"]:
        return self.weigh(self.data.astype(fitted.dtype) - fitted)

    def over(self, size: Float[Array, ""]) -> "Observations":
        """In units of `size`."""
        size = size.astype(self.data.dtype)
        limits = None if self.limits is None else self.limits.over(size)
        data, gain = self.data / size, self.gain / size
        return Observations(data, self.weights, gain, limits, self.common, self.below)


def size_of_data(
    observations: Observations | tuple[Observations, ...],
) -> Float[Array, ""]:
    """‖W y‖ of all data sets, or one where that is zero. A constant."""
    one_set = isinstance(observations, Observations)
    sets = [observations] if one_set else observations
    columns = [lax.stop_gradient(part.weigh(part.data)) for part in sets]
    largest = ft.reduce(jnp.maximum, [jnp.max(jnp.abs(part)) for part in columns])
    largest = jnp.where(largest > 0, largest, 1)
    norms = [jnp.linalg.norm(part / largest.astype(part.dtype)) for part in columns]
    size = largest * (norms[0] if one_set else jnp.linalg.norm(jnp.stack(norms)))
    return jnp.where(size > 0, size, 1)


class SeparableModel(eqx.Module):
    """Φ(θ, args) and offset(θ, args), checked."""

    basis: Callable
    offset: Callable | None

    def closed(self, theta: PyTree[Array], args: Any) -> "SeparableModel":
        """The model with what its functions close over as leaves, for `theta` and `args`
        of these shapes: behind a custom rule, a tracer in a closure has derivative zero.
        """

        def close(function):
            converted = eqx.filter_closure_convert(function, theta, args)
            leaves = jtu.tree_leaves(converted)
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
            return converted if traced else function

        offset = None if self.offset is None else close(self.offset)
        return SeparableModel(close(self.basis), offset)

    def matrix(self, theta: PyTree[Array], args: Any, caller: str):
        """Φ, an array `(m, n)` or a lineax operator."""
        phi = self.basis(theta, args)
        if isinstance(phi, lx.AbstractLinearOperator):
            structures = (phi.in_structure(), phi.out_structure())
            if not all(
                isinstance(s, jax.ShapeDtypeStruct) and s.ndim == 1 for s in structures
            ):
                raise ValueError(
                    f"`{caller}(basis=...)` returned an operator from "
                    f"{structures[0]} to {structures[1]}. Return one between plain "
                    "vectors, of shapes (n,) and (m,)."
                )
            return with_true_dtypes(phi)
        if not eqx.is_inexact_array(phi) or phi.ndim != 2:
            got = f"a {type(phi).__name__}"
            if eqx.is_array(phi):
                got = f"{phi.dtype} of shape {phi.shape}"
            raise ValueError(
                f"`{caller}(basis=...)` returned {got}. Return a "
                "floating-point or complex array of shape (m, n), one column for each "
                "coefficient, or a lineax operator."
            )
        return phi

    def shift(self, theta: PyTree[Array], args: Any, caller: str):
        """The offset, `(m,)` or `(m, k)`, or `None`."""
        if self.offset is None:
            return None
        shift = self.offset(theta, args)
        if not eqx.is_inexact_array(shift) or shift.ndim not in (1, 2):
            raise ValueError(
                f"`{caller}(offset=...)` returned {shift!r}. Return a floating-point or "
                "complex array of shape (m,) or (m, k)."
            )
        return shift


def common_dtype(phi, shift, data):
    """The dtype of r, for which Φ, offset and data are promoted."""
    if isinstance(phi, lx.AbstractLinearOperator):
        dtypes = [phi.in_structure().dtype, phi.out_structure().dtype]
    else:
        dtypes = [phi.dtype]
    dtype = _result_type(*dtypes, data.dtype, *([] if shift is None else [shift.dtype]))
    return _result_type(dtype, jnp.float32) if dtype.itemsize == 2 else dtype


def _result_type(*dtypes):
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def size_of(phi) -> tuple[int, int]:
    """`(m, n)`."""
    if isinstance(phi, lx.AbstractLinearOperator):
        return phi.out_size(), phi.in_size()
    return phi.shape


def has_real_coefficients(phi) -> bool:
    """Of complex data: columns of those are no combinations of others, then."""
    if not isinstance(phi, lx.AbstractLinearOperator):
        return False
    structures = phi.in_structure(), phi.out_structure()
    real, data = (jnp.issubdtype(s.dtype, jnp.floating) for s in structures)
    return bool(real and not data)


def check_rows(phi, data, caller: str) -> None:
    if size_of(phi)[0] != data.shape[0]:
        raise ValueError(
            f"`{caller}(basis=...)` returned a matrix of shape {size_of(phi)}, but "
            f"`data` has {data.shape[0]} rows. Return one row for each row of `data`."
        )


def check_shapes(phi, shift, data, caller: str) -> None:
    """Raises where Φ, offset and data do not belong together."""
    check_rows(phi, data, caller)
    rows, cols = size_of(phi)
    if cols == 0:
        raise ValueError(
            f"`{caller}(basis=...)` returned a matrix of shape {(rows, cols)}. Return "
            "at least one column; without coefficients, use `optimistix.least_squares`."
        )
    _check_fields(phi, shift, data, caller)
    of_datum = 2 if has_real_coefficients(phi) else 1
    if of_datum * rows <= cols:
        raise ValueError(
            f"`{caller}(basis=...)` returned a matrix of shape {(rows, cols)}: "
            f"{cols} coefficients fit {rows} data whatever the parameters. Use more data "
            "than coefficients."
        )
    if shift is not None and shift.shape not in ((rows,), data.shape):
        raise ValueError(
            f"`{caller}(offset=...)` returned an array of shape {shift.shape}. Return "
            f"one of shape {(rows,)} or of the shape of `data`, {data.shape}."
        )


def _check_fields(phi, shift, data, caller: str) -> None:
    """Raises where the numbers of an operator are not those of what it has to fit."""
    if not isinstance(phi, lx.AbstractLinearOperator):
        return
    structures = phi.in_structure(), phi.out_structure()
    from_complex, to_complex = (jnp.iscomplexobj(s) for s in structures)
    if from_complex and not to_complex:
        raise ValueError(
            f"`{caller}(basis=...)` returned an operator from complex coefficients to "
            "real data. Return one of real coefficients, with real and imaginary part of "
            "each as two: [Re Φ, −Im Φ]."
        )
    given = [name for name, x in (("data", data), ("offset", shift)) if _is_complex(x)]
    if given and not to_complex:
        raise ValueError(
            f"`{caller}(basis=...)` returned an operator between real vectors, but "
            f"`{given[0]}` is complex. Return one between complex vectors, one from real "
            "coefficients to complex data, or an array."
        )


def _is_complex(array) -> bool:
    return array is not None and jnp.iscomplexobj(array)


def of_dtype(vector: Any, structure: jax.ShapeDtypeStruct) -> Any:
    """Cast to that of an operator's vectors: real ones are the real part."""
    if vector is None:
        return None
    if not jnp.issubdtype(structure.dtype, jnp.complexfloating):
        vector = vector.real
    return vector.astype(structure.dtype)


def spread(shift, gain, dtype):
    """The offset in each column."""
    shift = shift[:, None] if shift.ndim == 1 else shift
    return shift.astype(dtype) * gain.astype(dtype)[None, :]


def times(phi, columns: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
    """Φ times columns."""
    if isinstance(phi, lx.AbstractLinearOperator):
        columns = of_dtype(columns, phi.in_structure())
        return jax.vmap(phi.mv, in_axes=1, out_axes=1)(columns)
    phi, columns = _promoted(phi, columns)
    # Of many columns at once, under `vmap`, all as rows of one array.
    return matmul(columns.T, phi.T).T


def adjoint_times(phi, columns: Inexact[Array, "m k"]) -> Inexact[Array, "n k"]:
    """Φᴴ times columns."""
    if isinstance(phi, lx.AbstractLinearOperator):
        columns = of_dtype(columns, phi.out_structure())
        return jax.vmap(adjoint(phi).mv, in_axes=1, out_axes=1)(columns)
    phi, columns = _promoted(phi, columns)
    if columns.shape[1] == 1:
        return adjoint_matmul(phi, columns[:, 0])[:, None]
    return matmul(lax.optimization_barrier(phi.conj().T), columns)


def real_matrix(phi, caller: str, name: str = "coefficient_bounds"):
    """Φ as an array, `(m, n)`, for what the argument `name` asks for."""
    if isinstance(phi, lx.AbstractLinearOperator):
        complex_ = jnp.iscomplexobj(phi.in_structure())
    else:
        complex_ = jnp.iscomplexobj(phi)
    if complex_:
        raise TypeError(
            f"`{caller}({name}=...)` got a complex basis. Return real and "
            "imaginary part as rows, with real columns for each."
        )
    if isinstance(phi, lx.AbstractLinearOperator):
        return phi.as_matrix()
    return phi


def weighted(phi, weights: Real[Array, " m"] | None, dtype) -> lx.AbstractLinearOperator:
    """diag(weights) Φ."""
    if isinstance(phi, lx.AbstractLinearOperator):
        if weights is None:
            return phi
        return lx.DiagonalLinearOperator(weights.astype(dtype)) @ phi
    phi = phi.astype(dtype)
    if weights is not None:
        phi = weights.astype(dtype)[:, None] * phi
    return lx.MatrixLinearOperator(phi)


def _promoted(phi, columns):
    dtype = _result_type(phi.dtype, columns.dtype)
    return phi.astype(dtype), columns.astype(dtype)
