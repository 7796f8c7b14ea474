"""Which of the numbers in θ are looked for, and between which bounds."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.flatten_util as jfu
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._base.host import raise_if
from .._base.inexact import as_native


@jtu.register_static
@dataclasses.dataclass(frozen=True)
class Frozen:
    """A pytree of NumPy arrays, hashable: a static part of a program."""

    treedef: Any
    leaves: tuple[Any, ...]

    @classmethod
    def create(cls, tree: Any) -> "Frozen | None":
        if tree is None:
            return None
        leaves, treedef = jtu.tree_flatten(tree)
        if _is_traced(leaves):
            raise TypeError(_NOT_STATIC.format("a traced array"))
        arrays = [np.asarray(leaf) for leaf in leaves]
        told = [(a.shape, a.dtype.str, tuple(a.ravel().tolist())) for a in arrays]
        return cls(treedef, tuple(told))

    def tree(self) -> Any:
        leaves = [
            np.array(values, dtype).reshape(shape) for shape, dtype, values in self.leaves
        ]
        return jtu.tree_unflatten(self.treedef, leaves)


_NOT_STATIC = (
    "`varpro(fixed=...)` got {}. Pass booleans that are known when the program is made: "
    "the fit looks for the other numbers alone."
)


class Box(eqx.Module):
    """Bounds of the free numbers, lower ≤ θ ≤ upper; of a point θ / scale."""

    lower: Float[Array, " q"]
    upper: Float[Array, " q"]

    def over(self, scale: Float[Array, " q"]) -> "Box":
        return Box(self.lower / scale, self.upper / scale)

    def side(self, vector: Float[Array, " q"]) -> Int[Array, " q"]:
        """−1 where at the lower bound, 1 where at the upper one, 0 between."""
        return jnp.where(vector <= self.lower, -1, jnp.where(vector >= self.upper, 1, 0))

    def held(
        self, vector: Float[Array, " q"], side: Int[Array, " q"]
    ) -> Float[Array, " q"]:
        """`vector`, exactly at the bound where `side` says so, and nowhere beyond one.

        With the derivative of `vector`.
        """
        inside = jnp.clip(vector, self.lower, self.upper)
        at = jnp.where(side < 0, self.lower, jnp.where(side > 0, self.upper, inside))
        return vector + lax.stop_gradient(at - vector)


class Parameters(eqx.Module):
    """θ as the vector of its free numbers, the others being what they are."""

    whole: Float[Array, " p"]
    free: tuple[int, ...] = eqx.field(static=True)
    unravel: Callable = eqx.field(static=True)

    @classmethod
    def create(cls, theta0: PyTree[Array], fixed: Any) -> "Parameters":
        whole, unravel = jfu.ravel_pytree(theta0)
        if fixed is None:
            return cls(whole, tuple(range(whole.size)), unravel)
        mask = _mask_like(fixed, theta0)
        return cls(whole, tuple(map(int, np.flatnonzero(~mask))), unravel)

    @property
    def all_free(self) -> bool:
        return len(self.free) == self.whole.size

    @property
    def start(self) -> Float[Array, " q"]:
        return lax.stop_gradient(self.of(self.whole))

    def of(self, vector: Array) -> Array:
        """Of a vector for all of θ the free entries."""
        return vector if self.all_free else vector[np.array(self.free, int)]

    def flat(self, free: Float[Array, " q"]) -> Float[Array, " p"]:
        if self.all_free:
            return free
        rest = np.setdiff1d(np.arange(self.whole.size), self.free)
        places = np.argsort(np.concatenate([np.array(self.free, int), rest]))
        return jnp.concatenate([free, self.whole[rest]])[places]

    def held(self, side: Int[Array, " q"] | None) -> PyTree[Int[Array, "..."]] | None:
        """`side` as a pytree like θ, and 2 for what is fixed; `None` if all are free."""
        if side is None and self.all_free:
            return None
        flat = jnp.full(self.whole.size, 2)
        free = jnp.zeros(len(self.free), int) if side is None else side
        flat = flat.at[np.array(self.free, int)].set(free.astype(flat.dtype))
        dtype = self.whole.dtype
        return jtu.tree_map(
            lambda leaf: leaf.astype(int), self.unravel(flat.astype(dtype))
        )

    def restrict(self, function: Callable) -> Callable:
        """As a function of the free numbers."""
        return _Restricted(function, self)


class _Restricted(eqx.Module):
    function: Callable
    parameters: Parameters

    def __call__(self, free: Float[Array, " q"], args: Any):
        return self.function(self.parameters.unravel(self.parameters.flat(free)), args)


def names_of(theta: PyTree[Array]) -> list[str]:
    """Of each number of θ, in the order of `jax.flatten_util.ravel_pytree`."""
    names = []
    for path, leaf in jtu.tree_leaves_with_path(theta):
        name = jtu.keystr(path, simple=True, separator=".") or "theta"
        name = re.sub(r"^own\.(\d+)", r"own[\1]", name)  # of a data set
        shape = np.shape(leaf)
        indices = np.ndindex(shape)
        names += [f"{name}[{', '.join(map(str, i))}]" if shape else name for i in indices]
    return names


def vector_like(tree: Any, theta0: PyTree[Any], name: str) -> Float[Array, " p"]:
    """A pytree as `theta0`, or scalars for parts of it, as one vector like that of θ."""
    tree = _spread(tree, theta0, name)

    def broadcast(leaf, like):
        leaf = as_native(leaf, f"varpro({name}=...)")
        dtype = getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
        if dtype.kind in "cOSU":
            raise TypeError(f"`varpro({name}=...)` got {dtype}. Pass real numbers.")
        leaf = jnp.asarray(leaf, like.dtype)
        try:
            fits = np.broadcast_shapes(leaf.shape, like.shape) == like.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"`varpro({name}=...)` got a leaf of shape {leaf.shape} beside one of "
                f"shape {like.shape} in `theta0`. Pass one of that shape, or a scalar."
            )
        return jnp.broadcast_to(leaf, like.shape)

    vector, _ = jfu.ravel_pytree(jtu.tree_map(broadcast, tree, theta0))
    return vector.astype(jfu.ravel_pytree(theta0)[0].dtype)


def _spread(tree: Any, theta0: PyTree[Any], name: str) -> PyTree[Any]:
    """`tree` with the structure of θ, of scalars for the parts that they stand for."""

    def spread(leaf, part):
        if jtu.tree_structure(part) != jtu.tree_structure(0) and np.ndim(leaf) != 0:
            raise ValueError(
                f"`varpro({name}=...)` got an array of shape {np.shape(leaf)} for "
                f"{jtu.tree_structure(part)} in `theta0`. Pass the same structure, or a "
                "scalar for all of it."
            )
        return jtu.tree_map(lambda _: leaf, part)

    structure = jtu.tree_structure(tree)
    try:
        parts = structure.flatten_up_to(theta0)
    except ValueError as error:
        raise ValueError(
            f"`varpro({name}=...)` got a pytree of structure {structure}, but `theta0` "
            f"has {jtu.tree_structure(theta0)}. Pass the same structure, or a scalar for "
            "all of it or for a whole part."
        ) from error
    return structure.unflatten(map(spread, jtu.tree_leaves(tree), parts))


def _mask_like(fixed: Any, theta0: PyTree[Array]) -> Bool[np.ndarray, " p"]:
    def check(leaf):
        if isinstance(leaf, jax.core.Tracer) or np.asarray(leaf).dtype != bool:
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(_NOT_STATIC.format(f"a leaf of {kind}"))

    fixed = fixed.tree() if isinstance(fixed, Frozen) else fixed
    jtu.tree_map(check, fixed)
    with jax.ensure_compile_time_eval():
        zeros = jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape), theta0)
        return np.asarray(vector_like(fixed, zeros, "fixed")) != 0


def box_of(
    bounds: Any,
    parameters: Parameters,
    theta0: PyTree[Array],
    given: PyTree[Any],
    throw: bool,
) -> Box | None:
    """The bounds of the free numbers, or `None` where none is given; `theta0` as `given`
    is known to the program's maker, if it is no tracer."""
    if bounds is None:
        return None
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(
            f"`varpro(bounds=...)` got {type(bounds).__name__}. Pass a pair (lower, "
            "upper), each a pytree as `theta0` or a scalar, infinite where θ is free."
        )
    named = [(bound, f"bounds[{i}]") for i, bound in enumerate(bounds)]
    if _is_traced(bounds):
        lower, upper = (vector_like(bound, theta0, name) for bound, name in named)
    else:
        with jax.ensure_compile_time_eval():
            like = jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), theta0)
            lower, upper = (vector_like(bound, like, name) for bound, name in named)
        _check_order(np.asarray(lower), np.asarray(upper), theta0)
        if np.all(np.isinf(lower) & np.isinf(upper)):
            return None
        if not _is_traced(given):
            whole = np.concatenate([np.ravel(leaf) for leaf in jtu.tree_leaves(given)])
            low, high = np.asarray(lower), np.asarray(upper)
            _check_start(low, high, whole, parameters, theta0)
    box = Box(*(lax.stop_gradient(parameters.of(b)) for b in (lower, upper)))
    outside = ~((box.lower <= parameters.start) & (parameters.start <= box.upper))
    if not _is_traced(outside):
        return box
    if not throw:
        return Box(jnp.where(outside, jnp.nan, box.lower), box.upper)
    message = (
        "`varpro(bounds=...)` got NaN, a lower bound above the upper one, or a start "
        "outside of them. Start from `jnp.clip(theta0, lower, upper)`."
    )
    one = raise_if(jnp.any(outside).astype(jnp.int32), ("", message))
    return Box(box.lower * one.astype(box.lower.dtype), box.upper)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jtu.tree_leaves(tree))


def _check_order(lower, upper, theta0) -> None:
    some = (lower <= upper) & (lower < np.inf) & (upper > -np.inf)
    wrong = np.flatnonzero(~some)
    if wrong.size:
        names = names_of(theta0)
        raise ValueError(
            f"`varpro(bounds=...)` got the bounds [{lower[wrong[0]]}, "
            f"{upper[wrong[0]]}] for `{names[wrong[0]]}`. Pass lower ≤ upper, neither "
            "NaN; −inf and inf for none."
        )


def _check_start(lower, upper, whole, parameters: Parameters, theta0) -> None:
    outside = (whole < lower) | (whole > upper)
    free = np.isin(np.arange(whole.size), parameters.free)
    wrong = np.flatnonzero(outside & free)
    if wrong.size:
        i, names = wrong[0], names_of(theta0)
        raise ValueError(
            f"`varpro(theta0=...)` starts `{names[i]}` at {whole[i]}, outside of its "
            f"bounds [{lower[i]}, {upper[i]}]. Start between them."
        )
