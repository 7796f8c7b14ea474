"""Multiples of operators, whose products have the dtypes that they say."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from .._base.structure import Structure
from .matrix import known_tags


_MULTIPLES = lx.MulLinearOperator | lx.DivLinearOperator


def with_true_dtypes(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator, with products of the structure that it has by `out_structure()`.

    lineax takes the structure of a multiple from the operator alone: a complex multiple
    of a real one has complex products, and one of float32 by a number of float64 has
    those of float64. A number is cast to the precision of its operator; where products
    are complex still, and vectors real, what is returned maps to complex vectors.
    """
    if not any(_is_multiple(part) for part in _parts(operator)):
        return operator
    operator = _with_casts(operator)
    true, said = _products(operator), operator.out_structure()
    if Structure.of(true) == Structure.of(said):
        return operator
    is_complex = Structure.of(true).is_complex and not Structure.of(said).is_complex
    return lx.FunctionLinearOperator(
        eqx.Partial(_cast_product, operator),
        operator.in_structure(),
        frozenset() if is_complex else known_tags(operator),
        closure_convert=False,
    )


def _is_multiple(part: Any) -> bool:
    return isinstance(part, _MULTIPLES)


def _parts(tree: PyTree) -> list[Any]:
    return jtu.tree_leaves(tree, is_leaf=_is_multiple)


def _with_casts(tree: Any) -> Any:
    """Each number in a multiple in the precision of the operator that it is of."""

    def convert(part):
        if not _is_multiple(part):
            return part
        operator = _with_casts(part.operator)
        spaces = operator.in_structure(), operator.out_structure()
        dtypes = set(Structure.of(spaces).dtypes)
        dtype = part.scalar.dtype
        if len(dtypes) == 1:  # else each leaf of a product is cast
            dtype = _of_precision(dtypes.pop(), jnp.iscomplexobj(part.scalar))
        return type(part)(operator, part.scalar.astype(dtype))  # no weak type

    return jtu.tree_map(convert, tree, is_leaf=_is_multiple)


def _products(operator: lx.AbstractLinearOperator) -> PyTree[jax.ShapeDtypeStruct]:
    with jax.numpy_dtype_promotion("standard"):
        return jax.eval_shape(operator.mv, operator.in_structure())


def _cast_product(operator: lx.AbstractLinearOperator, vector: PyTree) -> PyTree[Array]:
    with jax.numpy_dtype_promotion("standard"):
        product = operator.mv(vector)

    def cast(leaf, said):
        is_complex = jnp.iscomplexobj(leaf) or jnp.iscomplexobj(said)
        return leaf.astype(_of_precision(said.dtype, is_complex))

    return jtu.tree_map(cast, product, operator.out_structure())


def _of_precision(dtype: np.dtype, is_complex: bool) -> np.dtype:
    """The real or complex dtype of the precision of `dtype`."""
    real = np.dtype(jnp.finfo(dtype).dtype)
    if not is_complex:
        return real
    return np.dtype(np.complex128 if real.itemsize == 8 else np.complex64)
