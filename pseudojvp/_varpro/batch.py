import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, Inexact, Integer, Num, PyTree, Real

from .._base.call import compiled_lazily, Frame, split
from .._base.inexact import as_inexact
from .._solver import PivotedQR
from .failure import raise_if_failed
from .fit import as_arrays, default_adjoint, varpro, VarProFit
from .progress import ChunkBar
from .residual import check_theta, prepare
from .statistics import VarProPrediction, VarProStatistics


class VarProBatch(eqx.Module):
    """What [`pseudojvp.varpro_batch`][] returns.

    The fields of [`pseudojvp.VarProFit`][], each with an axis of members in front.
    `batch[i]` is the fit of one member; `statistics()` and `predict(args)`, with the
    arguments of those of a fit, are those of all members, chunk by chunk.
    """

    theta: PyTree[Array]
    coefficients: Inexact[Array, "members n *k"]
    residual: Inexact[Array, "members m *k"]
    cost: Float[Array, " members"]
    rank: Integer[Array, " members"] | Integer[Array, "members k"]
    result: optx.RESULTS
    stats: dict[str, Any]
    _data: Inexact[Array, "members m *k"]
    _weights: "_Batched"
    _args: "_Batched"
    # Basis, offset and solver: functions as static parts, as in `VarProFit`.
    _arrays: list[Array]
    _functions: Frame
    _batch_size: int = eqx.field(static=True)

    def __getitem__(self, index: int) -> VarProFit:
        return self._fit(jtu.tree_map(lambda leaf: leaf[index], self._members()))

    def __len__(self) -> int:
        return self._data.shape[0]

    def statistics(self, *, absolute_sigma: bool = False) -> VarProStatistics:
        """Returns `VarProFit.statistics` of each member, with the batch in front."""

        return _map_fits(
            jtu.Partial(VarProFit.statistics, absolute_sigma=absolute_sigma), self
        )

    def predict(
        self, args: Any = None, confidence: float = 0.95, *, absolute_sigma: bool = False
    ) -> VarProPrediction:
        """Returns `VarProFit.predict` of each member, at `args` shared by all."""

        predict = jtu.Partial(
            VarProFit.predict,
            args=as_arrays(args),
            confidence=confidence,
            absolute_sigma=absolute_sigma,
        )
        return _map_fits(predict, self)

    def _members(self):
        fields = (
            self.theta,
            self.coefficients,
            self.residual,
            self.cost,
            self.rank,
            self.result,
            self.stats,
        )
        return fields, self._data, self._weights.batched, self._args.batched

    def _fit(self, member) -> VarProFit:
        fields, data, weights, args = member
        basis, offset, solver = self._functions.filled(self._arrays)
        weights = self._weights.of(weights)
        elimination, observations, _ = prepare(
            "varpro_batch", basis, data, weights, offset, solver, "exact"
        )
        arrays, functions = split((elimination, self._args.of(args), observations))
        return VarProFit(*fields, _arrays=arrays, _functions=functions)


class _Batched(eqx.Module):
    """A pytree of which some leaves have a batch axis in front."""

    batched: PyTree[Array]
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
            if axis == 0 and jnp.shape(leaf)[:1] != (batch,):
                raise ValueError(
                    f"`varpro_batch({name}=...)` got an array of shape "
                    f"{jnp.shape(leaf)} beside {batch} members of `data`. Put the batch "
                    f"axis in front, or pass `in_axes={{'{name}': None}}`."
                )
            return axis == 0

        axes = jtu.tree_map(expand, axes, tree, is_leaf=lambda axis: axis is None)
        mask = jtu.tree_map(check, tree, axes)
        return cls(*eqx.partition(tree, mask))

    def of(self, member: PyTree[Array]) -> PyTree[Any]:
        return eqx.combine(member, self.shared)


def varpro_batch(
    basis: Callable[[PyTree[Array], Any], Inexact[Array, "m n"]],
    data: Num[ArrayLike, "members m"] | Num[ArrayLike, "members m k"] | list,
    theta0: PyTree[ArrayLike],
    args: Any = None,
    *,
    in_axes: dict[str, Any] | None = None,
    batch_size: int = 1024,
    weights: Real[ArrayLike, "..."] | list | None = None,
    offset: Callable[[PyTree[Array], Any], Inexact[Array, " m"] | Inexact[Array, "m k"]]
    | None = None,
    solver: lx.AbstractLinearSolver = PivotedQR(),
    optimiser: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser = (
        optx.LevenbergMarquardt(rtol=1e-5, atol=1e-5)
    ),
    jacobian: str = "exact",
    x_scale: PyTree[ArrayLike] | None = None,
    max_steps: int | None = 256,
    throw: bool = True,
    adjoint: optx.AbstractAdjoint | None = None,
    progress: bool = False,
) -> VarProBatch:
    """Fits many data sets, each as [`pseudojvp.varpro`][], in chunks.

    What `jax.vmap` of `varpro` returns, with memory for one chunk at a time beside data
    and results, and the iterations of a chunk ended by its own slowest member only.

    **Arguments:** those of `varpro` with the same defaults, of which differ

    - `data`: `(members, m)`, or `(members, m, k)` for k columns in each member.
    - `theta0`: the start, shared, or with the axis of the members in front of each leaf.
    - `weights`: of the shape of `data`, or without its first axis where shared.
    - `in_axes`: a dictionary that says of `"theta0"`, `"weights"` and `"args"` what is
        batched: 0 for an axis in front, `None` for shared, or a pytree of these as in
        `jax.vmap`. Defaults to `None`: `theta0` and `weights` by their shapes, where
        these leave no doubt (otherwise an error); `args` shared.
    - `batch_size`: how many members make a chunk and are fitted at once, as of
        `jax.lax.map`; at least one for each device. Defaults to 1024.
    - `throw`: whether an error is raised at run time if *any* member failed. If `False`,
        `result` tells of each, and the others are what they are. Defaults to `True`.
    - `progress`: whether to show a bar of the chunks. Defaults to `False`.

    **Returns:** a [`pseudojvp.VarProBatch`][].

    Of d devices each holds the members `i * members / d` to `(i + 1) * members / d - 1`
    of an array sharded over the members, and a chunk is `batch_size / d` members of each:
    neither data nor results move, under `jax.jit` and inside `jax.shard_map`.

    **Derivatives:** as of `varpro`.

    **Raises:** as `varpro`; `ValueError` at trace time for batch axes that do not fit.

    **Sources:** as of `varpro`.
    """
    data = as_inexact(data, "varpro_batch(data=...)")
    if data.ndim not in (2, 3) or 0 in data.shape:
        raise ValueError(
            f"`varpro_batch(data=...)` got an array of shape {data.shape}. Pass one of "
            "shape (members, m) or (members, m, k), without empty axes."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"`varpro_batch(batch_size=...)` got {batch_size!r}. Pass 1 or more."
        )
    in_axes = _check_in_axes(in_axes)
    theta0 = check_theta(theta0, "varpro_batch")
    if weights is not None:
        weights = as_inexact(weights, "varpro_batch(weights=...)")
    batch = data.shape[0]
    theta0_axes = in_axes.get("theta0", ...)
    if theta0_axes is ...:
        theta0_axes = jtu.tree_map(lambda leaf: _guess_start(leaf, batch), theta0)
    weights_axis = in_axes.get("weights", ...)
    if weights_axis is ...:
        weights_axis = None if weights is None else _guess_weights(weights, data)
    starts = _Batched.create(theta0, theta0_axes, batch, "theta0")
    weighting = _Batched.create(weights, weights_axis, batch, "weights")
    arguments = _Batched.create(as_arrays(args), in_axes.get("args", None), batch, "args")
    keywords = {
        "offset": offset,
        "solver": solver,
        "optimiser": optimiser,
        "jacobian": jacobian,
        "x_scale": x_scale,
        "max_steps": max_steps,
        "throw": False,
        "adjoint": default_adjoint(throw) if adjoint is None else adjoint,
    }
    fields = _fit_all(
        basis, data, starts, weighting, arguments, keywords, batch_size, progress
    )
    arrays, functions = split((basis, offset, solver))
    fits = VarProBatch(
        *fields,
        _data=data,
        _weights=weighting,
        _args=arguments,
        _arrays=arrays,
        _functions=functions,
        _batch_size=batch_size,
    )
    return raise_if_failed(fits) if throw else fits


@compiled_lazily
def _fit_all(basis, data, starts, weighting, arguments, keywords, batch_size, progress):
    def member(inputs):
        data, theta0, weights, args = inputs
        theta0, weights = starts.of(theta0), weighting.of(weights)
        fit = varpro(basis, data, theta0, arguments.of(args), weights=weights, **keywords)
        fields = (fit.theta, fit.coefficients, fit.residual, fit.cost, fit.rank)
        return *fields, fit.result, fit.stats

    inputs = (data, starts.batched, weighting.batched, arguments.batched)
    return _in_chunks(member, inputs, batch_size, ChunkBar() if progress else None)


@compiled_lazily
def _map_fits(function: Callable, fits: VarProBatch):
    """`function` of the fit of each member."""
    member = lambda fields: function(fits._fit(fields))
    return _in_chunks(member, fits._members(), fits._batch_size, None)


def _in_chunks(function: Callable, xs: PyTree[Array], batch_size: int, bar):
    """`jax.vmap` of `function`, one chunk after the other.

    A chunk has as many members of each group: what is sharded over the members is then
    cut into chunks on each device by itself. The last chunk reaches back, so that all
    are of one size and compile as one.
    """
    arrays = jtu.tree_leaves(xs)
    size = arrays[0].shape[0]
    groups = _groups(arrays)
    share = size // groups
    length = min(max(batch_size // groups, 1), share)
    chunks = -(-share // length)
    if bar is not None:
        jax.debug.callback(bar.begin, chunks, ordered=False)
    grouped = jtu.tree_map(lambda leaf: _split_first(leaf, groups), xs)

    def chunk(index):
        start = jnp.minimum(index * length, share - length)
        slices = jtu.tree_map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length, 1), grouped
        )
        out = jax.vmap(function)(jtu.tree_map(_join_first, slices))
        if bar is not None:
            jax.debug.callback(bar.update, jtu.tree_leaves(out)[0].ravel()[0])
        return jtu.tree_map(lambda leaf: _split_first(leaf, groups), out)

    stacked = lax.map(chunk, jnp.arange(chunks))
    whole = (chunks - 1) * length

    def join(leaf):  # (chunks, groups, length, ...)
        first = jnp.moveaxis(leaf[:-1], 0, 1).reshape(groups, whole, *leaf.shape[3:])
        last = leaf[-1][:, whole - share :]
        return _join_first(jnp.concatenate([first, last], axis=1))

    return jtu.tree_map(join, stacked)


def _groups(arrays: list[Array]) -> int:
    """Into how many groups of neighbours members are divided: those of each device."""
    meshes = [jax.typeof(array).sharding.mesh.size or 1 for array in arrays]
    return math.gcd(len(arrays[0]), math.lcm(jax.device_count(), *meshes))


def _split_first(leaf: Array, groups: int) -> Array:
    return leaf.reshape(groups, leaf.shape[0] // groups, *leaf.shape[1:])


def _join_first(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _check_in_axes(in_axes: dict[str, Any] | None) -> dict[str, Any]:
    in_axes = {} if in_axes is None else in_axes
    unknown = set(in_axes) - {"theta0", "weights", "args"}
    if unknown:
        raise ValueError(
            f"`varpro_batch(in_axes=...)` got the keys {sorted(unknown)}. It takes "
            "'theta0', 'weights' and 'args'; the batch axis of `data` is the first."
        )
    return in_axes


def _guess_start(leaf: Array, batch: int) -> int | None:
    if leaf.ndim == 1 and leaf.shape[0] == batch:
        raise ValueError(
            f"`varpro_batch(theta0=...)` got a leaf of shape {leaf.shape} beside "
            f"{batch} members: one number for each, or {batch} for all? Pass "
            "`in_axes={'theta0': 0}` or `in_axes={'theta0': None}`."
        )
    return 0 if leaf.ndim > 1 and leaf.shape[0] == batch else None


def _guess_weights(weights: Array, data: Array) -> int | None:
    shared = weights.shape in (data.shape[1:2], data.shape[1:])
    batched = weights.shape in (data.shape[:2], data.shape)
    if shared and batched:
        raise ValueError(
            f"`varpro_batch(weights=...)` got an array of shape {weights.shape} beside "
            f"`data` of shape {data.shape}: batched or shared? Pass "
            "`in_axes={'weights': 0}` or `in_axes={'weights': None}`."
        )
    return 0 if batched else None
