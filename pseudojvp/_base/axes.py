"""Types of arrays on a mesh: the axes that they vary over, and loops that keep them.

Inside `jax.shard_map` the type of an array says over which axes of the mesh its entries
may differ. JAX casts the operands of arithmetic to the same axes, but neither what a loop
carries, nor the branches of a condition, nor operands of a primitive of ours.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree


Tree = TypeVar("Tree")
_AUTO = (
    "JAX cannot tell there how to shard what comes of it. Make the mesh with "
    "`jax.make_mesh(..., axis_types=(AxisType.Auto,))`, or use `jax.shard_map`."
)


def is_manual() -> bool:
    """Whether the code being traced is inside `jax.shard_map`."""
    return len(jax.sharding.get_abstract_mesh().manual_axes) > 0


def manual_axes() -> frozenset[Any]:
    """Those of the mesh of `jax.shard_map`, in which the code being traced is."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def has_explicit_axes(tree: PyTree) -> bool:
    """Whether an array of `tree` is on a mesh with explicit axes."""
    arrays = [leaf for leaf in jtu.tree_leaves(tree) if isinstance(leaf, jax.Array)]
    return any(jax.typeof(array).sharding.mesh.explicit_axes for array in arrays)


def check_not_refused(error: Exception, caller: str, arrays: Sequence[Any]) -> None:
    """Says what to do where JAX refuses a program of arrays on explicit axes."""
    of_mesh = re.search("mesh|shard", str(error), re.IGNORECASE)
    told = "AxisType.Auto" in str(error)
    if of_mesh and not told and has_explicit_axes(arrays):
        raise ValueError(
            f"`{caller}` got an array on a mesh with explicit axes. {_AUTO} JAX says: "
            f"{error}"
        ) from error


def is_sharded_explicitly(array: Array) -> bool:
    """Over explicit axes of a mesh, but for the batch of `jax.vmap`."""
    sharding = jax.typeof(array).sharding
    explicit = len(sharding.mesh.explicit_axes) > 0
    return explicit and any(entry is not None for entry in sharding.spec)


def placed_as(aval: Any, array: Array) -> Array:
    """`array`, over explicit axes of a mesh sharded as `aval` is."""
    if not aval.sharding.mesh.explicit_axes:
        return array
    if jax.typeof(array).sharding == aval.sharding:
        return array
    return jax.sharding.reshard(array, aval.sharding)


def varying_axes(tree: PyTree) -> frozenset[Any]:
    """The axes that any array of `tree`, or any abstract one, varies over."""
    return frozenset().union(*map(_axes_of, jtu.tree_leaves(tree)))


def as_varying(axes: frozenset[Any], tree: Tree) -> Tree:
    """`tree`, varying over `axes` too; the transpose of the cast is a sum over them."""
    if not axes:
        return tree
    return jtu.tree_map(lambda leaf: _cast(leaf, axes), tree)


def alike(*trees: PyTree) -> tuple[PyTree, ...]:
    """The trees, all arrays in them varying over the axes of any."""
    return as_varying(varying_axes(trees), trees) if is_manual() else trees


def on_mesh_of(given: PyTree, avals: Tree) -> Tree:
    """The abstract arrays on the mesh of those given, as what depends on them is."""
    meshes = [aval.sharding.mesh for aval in jtu.tree_leaves(given) if _is_aval(aval)]
    mesh = next((mesh for mesh in meshes if not mesh.empty), None)
    if mesh is None:
        return avals

    def put(aval):
        if not _is_aval(aval) or not aval.sharding.mesh.empty:
            return aval
        spec = jax.sharding.PartitionSpec(*(None for _ in aval.shape))
        return aval.update(sharding=jax.sharding.NamedSharding(mesh, spec))

    return jtu.tree_map(put, avals)


def structure_on_mesh_of(arrays: PyTree[Array], structure: Tree) -> Tree:
    """The structure on the mesh of `arrays` with explicit axes, sharded over none."""
    meshes = [jax.typeof(array).sharding.mesh for array in jtu.tree_leaves(arrays)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return structure
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jtu.tree_map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        structure,
    )


def in_auto_mode(function: Callable, abstract_eval: Callable) -> Callable:
    """`function` of arrays, for which XLA alone decides how to shard what is within.

    JAX refuses much of what it has no rule for on a mesh with explicit axes. What comes
    out is sharded as `abstract_eval` says.
    """

    def run(*arrays, **params):
        if not has_explicit_axes(arrays):
            return function(*arrays, **params)
        avals = [jax.typeof(array) for array in arrays]
        shardings = [aval.sharding for aval in abstract_eval(*avals, **params)]
        auto = jax.sharding.auto_axes(
            lambda *arrays: list(function(*arrays, **params)), out_sharding=shardings
        )
        try:
            return auto(*arrays)
        except (TypeError, ValueError) as error:
            check_not_refused(error, "linear_solve", arrays)
            raise

    return run


def _is_aval(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.ShapedArray)


def largest(value: Array, axes: frozenset[Any]) -> Array:
    """The largest over the axes of a mesh, of those that `value` varies over."""
    names = ordered(axes & varying_axes(value))
    return lax.pmax(value, names) if names else value


def largest_of_devices(value: Array) -> Array:
    """The largest that a device has, inside `jax.shard_map`; the same on each."""
    axes = manual_axes()
    if not axes:
        return value
    checked = len(varying_axes(as_varying(axes, value))) > 0  # by `check_vma=True`
    axes = ordered(varying_axes(value) if checked else axes)
    return lax.pmax(value, axes) if axes else value


def total(value: Array, axes: frozenset[Any]) -> Array:
    """The sum over the axes of a mesh, of those that `value` varies over."""
    names = ordered(axes & varying_axes(value))
    return lax.psum(value, names) if names else value


def settled(step: Callable, carry: Tree) -> Tree:
    """`carry`, of types that `step` keeps."""
    if not is_manual():
        return carry
    while True:
        out = eqx.filter_eval_shape(step, carry)
        cast = like(out, carry)
        if jtu.tree_map(_axes_of, cast) == jtu.tree_map(_axes_of, carry):
            return cast
        carry = cast


def as_structs(tree: PyTree) -> PyTree:
    """Abstract arrays as what `jax.eval_shape` takes, of the same types.

    But for explicit axes: what is traced so runs with `AxisType.Auto`.
    """
    avals, rest = eqx.partition(tree, _is_aval)
    if any(aval.sharding.mesh.manual_axes for aval in jtu.tree_leaves(avals)):
        structs = jax.eval_shape(lambda *avals: avals, *jtu.tree_leaves(avals))
        structs = jtu.tree_unflatten(jtu.tree_structure(avals), structs)
    else:
        structs = jtu.tree_map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), avals)
    return eqx.combine(structs, rest)


def as_avals(tree: PyTree) -> PyTree:
    """The reverse."""
    return jtu.tree_map(
        lambda leaf: jax.typeof(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
        tree,
    )


def on_mesh(avals: PyTree[jax.core.ShapedArray]) -> bool:
    """Whether a mesh is in the type of an abstract array."""
    return any(not leaf.sharding.mesh.empty for leaf in jtu.tree_leaves(avals))


def while_loop(going: Callable, step: Callable, carry: Tree) -> Tree:
    """`jax.lax.while_loop`, of which the types of what is carried settle first."""
    if not is_manual():
        return lax.while_loop(going, step, carry)
    start = settled(step, carry)
    return lax.while_loop(going, lambda carry: like(start, step(carry)), start)


def fori_loop(low: Any, high: Any, step: Callable, carry: Tree) -> Tree:
    """`jax.lax.fori_loop`, of which the types of what is carried settle first."""
    if not is_manual():
        return lax.fori_loop(low, high, step, carry)
    start = settled(lambda carry: step(jnp.asarray(low), carry), carry)
    step_alike = lambda index, carry: like(start, step(index, carry))
    return lax.fori_loop(low, high, step_alike, start)


def scan(step: Callable, carry: Tree, xs: Any = None, **options) -> tuple[Tree, Any]:
    """`jax.lax.scan`, of which the types of what is carried settle first."""
    if not is_manual():
        return lax.scan(step, carry, xs, **options)
    first = jtu.tree_map(lambda x: x[0], xs)
    start = settled(lambda carry: step(carry, first)[0], carry)

    def step_alike(carry, x):
        carry, y = step(carry, x)
        return like(start, carry), y

    return lax.scan(step_alike, start, xs, **options)


def cond(predicate: Any, true: Callable, false: Callable, *operands: Any) -> Any:
    """`jax.lax.cond`, of which the branches return the same types."""
    if not is_manual():
        return lax.cond(predicate, true, false, *operands)
    outs = [eqx.filter_eval_shape(branch, *operands) for branch in (true, false)]
    axes = varying_axes((predicate, *outs))
    branches = [
        lambda *operands, branch=branch: as_varying(axes, branch(*operands))
        for branch in (true, false)
    ]
    return lax.cond(predicate, *branches, *operands)


def _axes_of(leaf: Any) -> frozenset[Any]:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        leaf = jax.typeof(leaf)
    return leaf.mat.varying if isinstance(leaf, jax.core.ShapedArray) else frozenset()


def ordered(axes: frozenset[Any]) -> tuple[Any, ...]:
    return tuple(sorted(axes, key=str))


def _cast(leaf: Any, axes: frozenset[Any]) -> Any:
    more = ordered(axes - _axes_of(leaf))
    if not more or not eqx.is_array_like(leaf):
        return leaf
    return lax.pcast(jnp.asarray(leaf), more, to="varying")


def like(types: PyTree, tree: Tree) -> Tree:
    """Each leaf varying also over the axes of that of `types`."""
    return jtu.tree_map(lambda leaf, like: _cast(leaf, _axes_of(like)), tree, types)
