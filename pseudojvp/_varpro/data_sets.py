"""Several data sets in one fit: each has a model, args and coefficients of its own."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._base.inexact import as_array, as_native
from .._base.results import first_failure
from .elimination import Eliminated, Elimination
from .parameters import Parameters


class SharedAndOwn(NamedTuple):
    """θ of several data sets: what they share, and what each has of its own.

    Use it as `theta0` of [`pseudojvp.varpro`][] if `data` is a tuple. `basis` and
    `offset` of a data set get one too, whose `own` is that of this data set alone:
    `theta.shared["rates"]`, `theta.own["width"]`.

    - `shared`: a pytree of real numbers, or `None` if nothing is shared.
    - `own`: a tuple with a pytree of real numbers for each data set, in any structures.
        `None` for a data set without parameters of its own, or instead of the tuple if
        there are none at all.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.linspace(0.0, 4.0, 50)
    def peak(theta, t):
        return jnp.exp(-((t - theta.own) ** 2) / theta.shared**2)[:, None]
    data = 2 * jnp.exp(-((t - 1) ** 2)), 3 * jnp.exp(-((t - 2.5) ** 2))
    start = pj.SharedAndOwn(jnp.array(0.8), (jnp.array(1.2), jnp.array(2.2)))
    fit = pj.varpro(peak, data, start, (t, t))
    print(fit.theta.own[1].round(2), fit.coefficients[1].round(1))  # 2.5 [3.]
    ```
    """

    shared: PyTree[Any]
    own: Any


class _OfOneSet(SharedAndOwn):
    """With what one data set has for itself."""


class OfSet(eqx.Module):
    """A function of (theta, args) for the data set of that number."""

    function: Callable
    number: int = eqx.field(static=True)

    def __call__(self, theta: PyTree[Array], args: Any):
        if type(theta) is SharedAndOwn:
            own = None if theta.own is None else theta.own[self.number]
            theta = _OfOneSet(theta.shared, own)
        return self.function(theta, args)


class Eliminations(eqx.Module):
    """As an `Elimination`, of tuples: of args, observations, residuals, ..."""

    parts: tuple[Elimination, ...]

    @property
    def caller(self) -> str:
        return self.parts[0].caller

    def __call__(self, theta: PyTree[Array], args: Any, observations: Any) -> Eliminated:
        found = each(lambda e, *of: e(theta, *of), self.parts, args, observations)
        residual, coefficients, rank, results, factors = zip(*found, strict=True)
        result = ft.reduce(first_failure, results)
        return Eliminated(residual, coefficients, rank, result, factors)

    def closed(self, theta: PyTree[Array], args: Any) -> "Eliminations":
        return Eliminations(each(lambda e, a: e.closed(theta, a), self.parts, args))

    def restricted(self, parameters: Parameters) -> "Eliminations":
        return Eliminations(each(lambda e: e.restricted(parameters), self.parts))

    def predict(self, theta: PyTree[Array], args: Any, coefficients: Any, gain: Any):
        return each(
            lambda e, *of: e.predict(theta, *of), self.parts, args, coefficients, gain
        )

    def jacobian(self, theta, args, observations, at: Eliminated, *, exact: bool):
        """∂r/∂θ of each, `(q, m, k)`."""
        return each(
            lambda e, a, o, *at: e.jacobian(theta, a, o, Eliminated(*at), exact=exact),
            self.parts,
            args,
            observations,
            *_each_of(at),
        )


def _each_of(at: Eliminated):
    """The fields, each as a tuple."""
    results = (at.result,) * len(at.residual)
    return at.residual, at.coefficients, at.rank, results, at.factors


def each(function: Callable, first: Any, *rest: Any) -> Any:
    """`function` of what belongs to each data set, side by side in tuples; where `first`
    is no tuple there is one data set, and all is what it is."""
    if type(first) is not tuple:
        return function(first, *rest)
    found = []
    for number, parts in enumerate(zip(first, *rest, strict=True)):
        try:
            found.append(function(*parts))
        except (TypeError, ValueError) as error:
            error.add_note(f"In data set {number}, counted from 0.")
            raise
    return tuple(found)


def listed(parts: Any) -> tuple:
    """What belongs to each data set, of one in a tuple too."""
    return parts if type(parts) is tuple else (parts,)


def for_each(given: Any, data: Any, what: str) -> Any:
    """`given` for each data set: a tuple as it is, anything else for all."""
    if type(data) is not tuple:
        return given
    if _is_list_of_sets(given):
        raise TypeError(
            f"`{what}` got a list beside {len(data)} data sets. Pass a tuple with one "
            "for each, in their order."
        )
    if type(given) is not tuple:
        return (given,) * len(data)
    if len(given) != len(data):
        raise ValueError(
            f"`{what}` got a tuple of {len(given)} beside {len(data)} data sets. Pass "
            "one for each, in their order."
        )
    return given


def check_no_list(data: Any, caller: str) -> None:
    """Raises where data sets are in a list, which would be the rows of one array."""
    if _is_list_of_sets(data):
        raise TypeError(
            f"`{caller}(data=...)` got a list of arrays. Pass a tuple of them for "
            "several data sets, or one array with a column for each: "
            "`numpy.stack(data, axis=1)`."
        )


def _is_list_of_sets(given: Any) -> bool:
    """Whether there is more in a list than numbers and lists of them."""

    def is_one(part):
        is_array = isinstance(part, np.ndarray | jax.Array) and part.ndim > 0
        return part is None or callable(part) or is_array

    return isinstance(given, list) and any(map(is_one, given))


def pairs_for_each(pair: Any, data: tuple, what: str) -> tuple:
    """A pair for each data set, of one whose parts may be tuples; `None` for two."""
    pairs = zip(*(for_each(part, data, what) for part in pair), strict=True)
    return tuple(None if low is high is None else (low, high) for low, high in pairs)


def check_sets(theta0: Any, args: Any, data: Any, caller: str) -> Any:
    """The arguments of each data set, or an error where their number is another."""
    divided = isinstance(theta0, SharedAndOwn)
    own = theta0.own if divided else None
    if type(data) is not tuple:
        if divided:
            raise TypeError(
                f"`{caller}(theta0=SharedAndOwn(...))` got data that are no tuple. Pass "
                "a tuple with an array for each data set, or a plain pytree for `theta0`."
            )
        return args
    if own is not None and (not isinstance(own, tuple | list) or len(own) != len(data)):
        raise ValueError(
            f"`{caller}(theta0=SharedAndOwn(own=...))` got {_length(own)} beside "
            f"{len(data)} data sets. Pass a tuple with a pytree for each, `None` for one "
            "without parameters of its own."
        )
    if args is not None and (type(args) is not tuple or len(args) != len(data)):
        raise ValueError(
            f"`{caller}(args=...)` got {_length(args)} beside {len(data)} data sets. "
            "Pass a tuple with one for each, in their order."
        )
    return for_each(args, data, f"{caller}(args=...)")


def _length(given: Any) -> str:
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {len(given)}"
    return type(given).__name__


def as_arrays(args: Any) -> Any:
    """NumPy arrays as JAX arrays; everything else as it is."""

    def convert(leaf):
        is_array = isinstance(leaf, np.ndarray)
        return as_array(as_native(leaf, "varpro(args=...)")) if is_array else leaf

    return jtu.tree_map(convert, args)
