"""Structures of vectors, tree arithmetic, and the checks that every solver shares."""

import dataclasses
import math
import operator as _operator
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, PyTree, Scalar


@dataclasses.dataclass(frozen=True)
class Structure:
    """The tree, shapes and dtypes of a vector, without its sharding: hashable."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, tree: PyTree) -> "Structure":
        leaves, treedef = jtu.tree_flatten(tree)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        return cls(treedef, shapes, tuple(np.dtype(leaf.dtype) for leaf in leaves))

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def is_complex(self) -> bool:
        return any(np.issubdtype(dtype, np.complexfloating) for dtype in self.dtypes)

    def as_tree(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves = [
            jax.ShapeDtypeStruct(*leaf)
            for leaf in zip(self.shapes, self.dtypes, strict=True)
        ]
        return jtu.tree_unflatten(self.treedef, leaves)

    def ravel(self, tree: PyTree[Array]) -> Inexact[Array, " size"]:
        if Structure.of(tree) != self:
            raise ValueError(
                f"A vector of structure {self.as_tree()} was expected, but "
                f"{Structure.of(tree).as_tree()} was given. Pass a vector that matches "
                "the operator's `out_structure()`."
            )
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*self.dtypes)
        leaves = [leaf.astype(dtype).reshape(-1) for leaf in jtu.tree_leaves(tree)]
        return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)

    def unravel(self, flat: Inexact[Array, " size"]) -> PyTree[Array]:
        sizes = [math.prod(shape) for shape in self.shapes]
        pieces = [flat] if len(sizes) == 1 else jnp.split(flat, np.cumsum(sizes)[:-1])
        leaves = [
            _cast(piece, dtype).reshape(shape)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]
        return jtu.tree_unflatten(self.treedef, leaves)


def _cast(array: Array, dtype: np.dtype) -> Array:
    """Casts, keeping the real part where a complex matrix maps to a real leaf."""
    if jnp.iscomplexobj(array) and not np.issubdtype(dtype, np.complexfloating):
        array = array.real
    return array.astype(dtype)


def tree_conj(tree: PyTree[Array]) -> PyTree[Array]:
    return jtu.tree_map(jnp.conj, tree)


def tree_add(*terms: PyTree[Array] | None) -> PyTree[Array] | None:
    """The sum of the terms that are not `None`; `None` (a zero) if none is left."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    return jtu.tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *present)


def tree_neg(tree: PyTree[Array] | None) -> PyTree[Array] | None:
    return jtu.tree_map(_operator.neg, tree)


def tree_sub(
    left: PyTree[Array] | None, right: PyTree[Array] | None
) -> PyTree[Array] | None:
    if left is None or right is None:
        return tree_add(left, tree_neg(right))
    return jtu.tree_map(_operator.sub, left, right)


def tree_scale(scalar: Scalar, tree: PyTree[Array]) -> PyTree[Array]:
    """`scalar * tree`, each leaf keeping its dtype under strict promotion."""
    return jtu.tree_map(lambda leaf: scalar.astype(leaf.dtype) * leaf, tree)


def tree_where(
    predicate: Bool[Array, ""], true: PyTree[Array], false: PyTree[Array]
) -> PyTree[Array]:
    return jtu.tree_map(lambda t, f: jnp.where(predicate, t, f), true, false)


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    finite = jnp.array(True)
    for leaf in jtu.tree_leaves(tree):
        finite = finite & jnp.all(jnp.isfinite(leaf))
    return finite


def is_zero(tree: PyTree[Array]) -> Bool[Array, ""]:
    zero = jnp.array(True)
    for leaf in jtu.tree_leaves(tree):
        zero = zero & jnp.all(leaf == 0)
    return zero


def one_or_nan(predicate: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """1 or 0/0: no NaN is made where none is meant, for `jax_debug_nans`."""
    quotient = predicate.astype(jnp.float32)
    return quotient / quotient


def nan_unless(predicate: Bool[Array, "..."], tree: PyTree[Array]) -> PyTree[Array]:
    nan = one_or_nan(predicate)
    return jtu.tree_map(
        lambda leaf: jnp.where(predicate, leaf, nan.astype(leaf.dtype)), tree
    )


def nan_after_failure(result: lx.RESULTS, tree: PyTree[Array]) -> PyTree[Array]:
    """`tree`, or NaN if the solve failed, in its derivatives as well."""
    # A product, for the cotangent of a `where` would be zero.
    factor = one_or_nan(result == lx.RESULTS.successful)
    return jtu.tree_map(lambda leaf: leaf * factor.astype(leaf.dtype), tree)


def stop_gradient(tree: PyTree) -> PyTree:
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def first_failure(first: lx.RESULTS, second: lx.RESULTS) -> lx.RESULTS:
    return lx.RESULTS.where(first == lx.RESULTS.successful, second, first)


def is_complex(operator: lx.AbstractLinearOperator) -> bool:
    spaces = (operator.in_structure(), operator.out_structure())
    return Structure.of(spaces).is_complex


def adjoint(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    transpose = operator.transpose()
    return lx.conj(transpose) if is_complex(operator) else transpose


def check_solver(solver: Any, caller: str) -> None:
    if not isinstance(solver, lx.AbstractLinearSolver):
        raise TypeError(
            f"`{caller}(solver=...)` got {solver!r}. Pass an instance of a solver, as in "
            f"`{caller}(..., solver=QR())`."
        )


def check_options(
    solver: lx.AbstractLinearSolver, options: dict[str, Any], known: Iterable[str] = ()
) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        accepted = ", ".join(f"`{key}`" for key in known) or "none"
        raise ValueError(
            f"`{type(solver).__name__}` was given the unknown option(s) {unknown}. "
            f"Options it takes: {accepted}."
        )


def check_square(solver: lx.AbstractLinearSolver, operator: lx.AbstractLinearOperator):
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    if in_structure != out_structure:
        raise ValueError(
            f"`{type(solver).__name__}` may only be used for linear solves with square "
            f"matrices, but `operator` maps {in_structure.as_tree()} to "
            f"{out_structure.as_tree()}. Use `QR()` if it has full rank, `SVD()` if it "
            "may not, or wrap the solver in `Normal`."
        )
