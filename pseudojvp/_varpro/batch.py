import functools as ft
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, Inexact, Integer, Num, PyTree, Real

from .._base.auto_axes import with_auto_axes
from .._base.call import compiled_lazily, Frame, split
from .._base.inexact import as_inexact
from .._base.tree import at_least_single
from .._solver import PivotedQR
from .chunks import in_chunks
from .data_sets import as_arrays, check_sets, each, listed
from .failure import raise_if_failed
from .fit import VarProFit
from .loss import check_loss
from .members import axes_of, Batched, check_in_axes, check_members, count_members
from .parameters import Frozen
from .prior import prior_of
from .residual import check_theta, prepare
from .statistics import VarProPrediction, VarProStatistics
from .stream import (
    Chunk,
    chunks_of_iterator,
    chunks_of_stored,
    is_stored,
    refuse_tracers,
    StoredArray,
    stream,
)
from .varpro import default_adjoint, varpro


class VarProBatch(eqx.Module):
    """What [`pseudojvp.varpro_batch`][] returns.

    It has the fields of [`pseudojvp.VarProFit`][], each with an axis of members in front.
    `batch[i]` is the fit of one member. `statistics()` and `predict(args)` take the
    arguments of those of a fit, and return the results of all members, computed chunk by
    chunk.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    data = jnp.stack([2 * jnp.exp(-0.5 * t), jnp.exp(-t)])
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    fits = pj.varpro_batch(decay, data, jnp.array(0.4), t)
    print(fits.theta.shape, fits.coefficients.shape, fits.rank)  # (2,) (2, 1) [1 1]
    ```
    """

    theta: PyTree[Array]
    coefficients: PyTree[Inexact[Array, "members ..."]]
    residual: PyTree[Inexact[Array, "members ..."]]
    cost: Float[Array, " members"]
    rank: PyTree[Integer[Array, "members ..."]]
    result: optx.RESULTS
    held: PyTree[Integer[Array, "..."]] | None
    held_coefficients: PyTree[Integer[Array, "members ..."]] | None
    stats: dict[str, Any]
    _data: PyTree[Inexact[Array, "members ..."]]
    _weights: Batched
    _args: Batched
    # Basis, offset and solver: functions as static parts, as in `VarProFit`.
    _arrays: list[Array]
    _functions: Frame
    _batch_size: int = eqx.field(static=True)

    def __getitem__(self, index: int) -> VarProFit:
        return self._fit(jtu.tree_map(lambda leaf: leaf[index], self._members()))

    def __len__(self) -> int:
        return self.cost.shape[0]

    def statistics(self, *, absolute_sigma: bool = False) -> VarProStatistics:
        """Returns `VarProFit.statistics` of each member, with an axis of members in
        front."""

        return _map_fits(
            jtu.Partial(VarProFit.statistics, absolute_sigma=absolute_sigma), self
        )

    def predict(
        self, args: Any = None, confidence: float = 0.95, *, absolute_sigma: bool = False
    ) -> VarProPrediction | tuple[VarProPrediction, ...]:
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
            self.held,
            self.held_coefficients,
            self.stats,
        )
        return fields, self._data, self._weights.batched, self._args.batched

    def _fit(self, member) -> VarProFit:
        fields, data, weights, args = member
        model, priors, (loss, f_scale) = self._functions.filled(self._arrays)
        basis, offset, solver, limits = model
        weights = self._weights.of(weights)
        elimination, observations, _ = prepare(
            "varpro_batch", basis, data, weights, offset, solver, "exact", limits
        )
        of_theta, of_c = priors
        known = prior_of(of_theta, of_c, at_least_single(fields[0]), data)
        outliers = check_loss(loss, f_scale, observations, "varpro_batch")
        args = check_sets(fields[0], self._args.of(args), data, "varpro_batch")
        context = elimination, args, observations, known, outliers, varpro
        arrays, functions = split(context)
        return VarProFit(*fields, _arrays=arrays, _functions=functions)


def varpro_batch(
    basis: Callable[[PyTree[Array], Any], Inexact[Array, "m n"]] | tuple[Callable, ...],
    data: Num[ArrayLike, "members m"]
    | Num[ArrayLike, "members m k"]
    | list
    | tuple[Any, ...]
    | Iterator[Any]
    | StoredArray,
    theta0: Iterator[Any] | PyTree[ArrayLike],
    args: Any = None,
    *,
    in_axes: dict[str, Any] | None = None,
    batch_size: int = 1024,
    weights: Real[ArrayLike, "..."]
    | list
    | tuple[Any, ...]
    | Iterator[Any]
    | StoredArray
    | None = None,
    offset: Callable[[PyTree[Array], Any], Inexact[Array, " m"] | Inexact[Array, "m k"]]
    | tuple[Callable | None, ...]
    | None = None,
    solver: lx.AbstractLinearSolver = PivotedQR(),
    optimiser: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser = (
        optx.LevenbergMarquardt(rtol=1e-5, atol=1e-5)
    ),
    jacobian: str = "exact",
    x_scale: PyTree[ArrayLike] | None = None,
    bounds: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    fixed: PyTree[Any] | None = None,
    coefficient_bounds: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    prior: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    coefficient_prior: tuple[PyTree[ArrayLike], PyTree[ArrayLike]] | None = None,
    loss: str | Callable = "linear",
    f_scale: ArrayLike = 1.0,
    max_steps: int | None = 256,
    throw: bool = True,
    adjoint: optx.AbstractAdjoint | None = None,
    progress: bool = False,
) -> VarProBatch | Any:  # an iterator of them, where `data` are read in chunks
    """Fits many data sets, each like [`pseudojvp.varpro`][], in chunks.

    Returns what `jax.vmap` of `varpro` returns, but keeps only one chunk at a time in
    memory, besides data and results, and the iterations of a chunk end with its own
    slowest member.

    **Arguments:** those of `varpro` with the same defaults, except

    - `data`: `(members, m)`, or `(members, m, k)` for k columns in each member. A NumPy
        memory map, or any other array that is not in memory and is read by slices (from
        h5py, zarr, ...), is read and fitted `batch_size` members at a time. Each item of
        an iterator is an array of any number of members. For several data sets pass a
        tuple of such arrays, or an iterator of tuples, with the same members.
    - `theta0`: the start, shared, or with an axis of members in front of each leaf.
    - `weights`: of the shape of `data`, or without its first axis if shared; a tuple of
        these if `data` is one, with `None` for a data set without weights.
    - `theta0`, `weights` and `args` may be iterators if `data` is one, with an item for
        each item of `data`. Items of `theta0` and `weights` have the axis of members,
        unless `in_axes` says `None`. Anything that is not an iterator is shared.
    - `in_axes`: a dictionary that says what is batched in `"theta0"`, `"weights"` and
        `"args"`: 0 for an axis in front, `None` for shared, or a pytree of these as in
        `jax.vmap`. Defaults to `None`: `theta0` and `weights` by their shapes (an error
        if these are ambiguous), and `args` shared.
    - `batch_size`: the number of members in a chunk, which are fitted at once, as in
        `jax.lax.map`; at least one for each device. Defaults to 1024.
    - `throw`: whether an error is raised at run time if *any* member failed. If `False`,
        `result` reports each member, and the others are not affected. Defaults to `True`.
    - `progress`: whether to show a progress bar over the chunks. Defaults to `False`.

    **Returns:** a [`pseudojvp.VarProBatch`][]; for data that are read in chunks, an
    iterator with one for each chunk. One program fits all chunks; smaller ones, such as
    the last, are padded with copies of their last member. A chunk larger than those
    before compiles another program. Each chunk is read while the one before is fitted,
    and no more than these two are held. Residuals take as much memory as the data, so
    keep only what you need of each chunk. The iterator raises what `throw` asks for when
    it reaches the chunk.

    If an array is sharded over the members on d devices, device i holds the members `i *
    members / d` to `(i + 1) * members / d - 1`, and a chunk has `batch_size / d` members
    of each device: neither data nor results move, under `jax.jit` and inside
    `jax.shard_map`.

    **Derivatives:** those of `varpro`; none for data that are read in chunks.

    **Raises:** as `varpro`; `ValueError` at trace time for batch axes that do not match,
    for an iterator without an item, and for items that differ in more than the number of
    members; `TypeError` for data read in chunks inside `jax.jit` or `jax.grad`.

    **Sources:** those of `varpro`.

    Cost: that of `varpro` for each member, with as many steps as the slowest member of
    its chunk.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    data = jnp.stack([2 * jnp.exp(-0.5 * t), jnp.exp(-t)])
    decay = lambda rate, t: jnp.exp(-rate * t)[:, None]
    fits = pj.varpro_batch(decay, data, jnp.array(0.4), t)
    print(fits.theta.round(2))  # [0.5 1. ]
    ```
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"`varpro_batch(batch_size=...)` got {batch_size!r}. Pass 1 or more."
        )
    in_axes = check_in_axes(in_axes)
    keywords = {
        "offset": offset,
        "solver": solver,
        "optimiser": optimiser,
        "jacobian": jacobian,
        "x_scale": x_scale,
        "bounds": bounds,
        "fixed": Frozen.create(fixed),
        "coefficient_bounds": coefficient_bounds,
        "prior": prior,
        "coefficient_prior": coefficient_prior,
        "loss": loss,
        "f_scale": f_scale,
        "max_steps": max_steps,
        "throw": False,
        "adjoint": default_adjoint(throw) if adjoint is None else adjoint,
    }
    fit = ft.partial(_fit_chunk, basis=basis, keywords=keywords, batch_size=batch_size)
    if isinstance(data, Iterator):
        refuse_tracers((theta0, weights, args))
        chunks = chunks_of_iterator(data, theta0, weights, args, in_axes)
        return stream(fit, chunks, None, throw, progress)
    _check_not_iterators({"theta0": theta0, "weights": weights, "args": args})
    stored = any(is_stored(part) for part in listed(data))
    if not stored:
        data = each(lambda part: as_inexact(part, "varpro_batch(data=...)"), data)
    members = check_members(data)
    theta0 = check_theta(theta0, "varpro_batch")
    if stored:
        refuse_tracers((theta0, weights, args))
        chunks = chunks_of_stored(data, theta0, weights, args, in_axes, batch_size)
        return stream(fit, chunks, -(-members // batch_size), throw, progress)
    weights = _as_weights(weights)
    in_axes = axes_of(in_axes, theta0, weights, data)
    chunk = Chunk(data, theta0, weights, args, in_axes)
    fits = fit(chunk, members, progress=progress)
    return raise_if_failed(fits) if throw else fits


def _check_not_iterators(trees: dict[str, Any]) -> None:
    for name, tree in trees.items():
        if isinstance(tree, Iterator):
            raise TypeError(
                f"`varpro_batch({name}=...)` got an iterator, but `data` is none. "
                f"Pass `data` as an iterator too, or `{name}` as an array."
            )


def _fit_chunk(
    chunk: Chunk,
    size: int,
    *,
    basis: Callable | tuple[Callable, ...],
    keywords: dict[str, Any],
    batch_size: int,
    progress: bool = False,
) -> VarProBatch:
    """The fits of a chunk, by the program for `size` members."""
    data, theta0, weights, args, in_axes = chunk
    members = count_members(data)
    theta0 = check_theta(theta0, "varpro_batch")
    weights = _as_weights(weights)
    parts = [
        Batched.create(tree, in_axes[name], members, name)
        for name, tree in (
            ("theta0", theta0),
            ("weights", weights),
            ("args", as_arrays(args)),
        )
    ]
    inputs = [data, *parts]
    if size > members:
        padded = each(lambda part: _pad(part, size), data)
        inputs = [padded, *(part.map(_pad, size) for part in parts)]
    fields = _fit_all(basis, *inputs, keywords, batch_size, progress)
    if size > members:
        fields = jtu.tree_map(lambda leaf: leaf[:members], fields)
    _, weighting, arguments = parts
    limits = as_arrays(keywords["coefficient_bounds"])
    of_model = keywords["offset"], keywords["solver"], limits
    priors = as_arrays((keywords["prior"], keywords["coefficient_prior"]))
    of_loss = keywords["loss"], jnp.asarray(keywords["f_scale"])
    arrays, functions = split(((basis, *of_model), priors, of_loss))
    return VarProBatch(
        *fields,
        _data=data,
        _weights=weighting,
        _args=arguments,
        _arrays=arrays,
        _functions=functions,
        _batch_size=batch_size,
    )


def _as_weights(weights: Any) -> Any:
    name = "varpro_batch(weights=...)"
    return each(lambda w: None if w is None else as_inexact(w, name), weights)


def _pad(leaf: Array, size: int) -> Array:
    """With copies of the last member, which fail if it does."""
    more = jnp.broadcast_to(leaf[-1:], (size - leaf.shape[0], *leaf.shape[1:]))
    return jnp.concatenate([leaf, more])


@compiled_lazily
def _fit_all(basis, data, *rest):
    return with_auto_axes(_fit_members, listed(data)[0])(basis, data, *rest)


def _fit_members(
    basis, data, starts, weighting, arguments, keywords, batch_size, progress
):
    def member(inputs):
        data, theta0, weights, args = inputs
        theta0, weights = starts.of(theta0), weighting.of(weights)
        args = arguments.of(args)
        fit = varpro(basis, data, theta0, args, weights=weights, **keywords)
        fields = fit.theta, fit.coefficients, fit.residual, fit.cost, fit.rank
        return *fields, fit.result, fit.held, fit.held_coefficients, fit.stats

    inputs = data, starts.batched, weighting.batched, arguments.batched
    return in_chunks(member, inputs, batch_size, progress)


@compiled_lazily
def _map_fits(function: Callable, fits: VarProBatch):
    """`function` of the fit of each member."""

    def map_fits(function: Callable, fits: VarProBatch):
        member = lambda fields: function(fits._fit(fields))
        return in_chunks(member, fits._members(), fits._batch_size)

    return with_auto_axes(map_fits, listed(fits._data)[0])(function, fits)
