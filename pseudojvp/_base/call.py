"""Functions compiled by `jax.jit`, called with little Python around."""

import dataclasses
import functools as ft
import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .axes import check_not_refused
from .inexact import as_native


def compiled(function: Callable) -> Callable:
    """As `equinox.filter_jit`, at a third of its time, for positional arguments.

    Arrays among the leaves of the arguments and of what is returned are traced; any
    other leaf is static, and has to be hashable. A call returns when all of it is
    computed, so that a run-time error is raised by the call itself.
    """

    def program(frame: Frame, *arrays):
        arrays, frame = split(function(*frame.filled(arrays)))
        # The marker is computed even where all else is handed through.
        return jnp.array(0), arrays, frame

    program.__name__ = program.__qualname__ = function.__name__
    program = jax.jit(program, static_argnums=0)
    caller = function.__name__.strip("_")

    @ft.wraps(function)
    def call(*arguments):
        arrays, frame = split(arguments)
        arrays = [
            as_native(a, caller) if isinstance(a, np.ndarray) else a for a in arrays
        ]
        _callback_logger.addFilter(quiet := _Quiet())
        try:
            marker, results, frame = program(frame, *arrays)
            if not isinstance(marker, jax.core.Tracer) and isinstance(marker, jax.Array):
                marker.block_until_ready()
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            check_not_refused(error, caller, arrays)
            _tell(error)  # a `ValueError` of a callback, from the second call on
        except Exception as error:  # also one of JAX's, of shardings, that is not public
            check_not_refused(error, caller, arrays)
            raise
        finally:
            _callback_logger.removeFilter(quiet)
        return frame.filled(results)

    return call


# XLA of JAX 0.10 has older emitters of fused loops, with which compiling takes a third of
# the time. Of few numbers what they make is as fast; later XLA has no choice.
_QUICKLY: Any = {"compiler_options": {"xla_cpu_use_fusion_emitters": False}}
_HAS_CHOICE = jax.__version_info__ < (0, 11)
_FEW = 2**14


def compiled_lazily(function: Callable) -> Callable:
    """As `equinox.filter_jit` for positional arguments, telling 1, 1.0 and True apart.

    A call returns before all of it is computed. Of few numbers the program is made in
    less time.
    """

    def program(arrays, frame: Frame):
        return function(*frame.filled(arrays))

    program.__name__ = program.__qualname__ = function.__name__
    of_many = eqx.filter_jit(program)
    of_few = eqx.filter_jit(program, **_QUICKLY)
    caller = function.__name__.strip("_")

    @ft.wraps(function)
    def call(*arguments):
        arrays, frame = split(arguments)
        few = _HAS_CHOICE and sum(a.size for a in arrays) <= _FEW
        # Part of another program has no options, nor have constants within.
        few = few and not _traced(arrays) and not _traced([jax.device_put(np.zeros(()))])
        try:
            return (of_few if few else of_many)(arrays, frame)
        except Exception as error:
            if few and "compiler_options" in str(error):  # traced by a closure
                return of_many(arrays, frame)
            check_not_refused(error, caller, arrays)
            raise

    return call


def _traced(arrays: Sequence[Any]) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


@jtu.register_static
@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A tree without its arrays, in whose places `leaves` has `None`."""

    leaves: tuple[Any, ...]
    treedef: Any
    # Python takes 1, 1.0 and True for equal, and they may mean different things.
    types: tuple[type, ...] = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "types", tuple(map(type, self.leaves)))

    def __reduce__(self):
        # By the tree: a copied treedef does not fit modules of Equinox.
        leaves = [_Place if leaf is None else leaf for leaf in self.leaves]
        return _framed, (self.treedef.unflatten(leaves),)

    def filled(self, arrays: Sequence[Any]) -> Any:
        leaves = arrays
        if len(arrays) < len(self.leaves):
            rest = iter(arrays)
            leaves = [next(rest) if leaf is None else leaf for leaf in self.leaves]
        return self.treedef.unflatten(leaves)


class _Place:
    """Stands, itself, for an array in a tree that is pickled."""


def _framed(tree: Any) -> Frame:
    leaves, treedef = jtu.tree_flatten(tree)
    return Frame(tuple(None if leaf is _Place else leaf for leaf in leaves), treedef)


def split(tree: Any) -> tuple[list[Any], Frame]:
    """The arrays of a tree, and the rest of it."""
    leaves, treedef = jtu.tree_flatten(tree)
    arrays, rest = [], []
    for leaf in leaves:
        if eqx.is_array(leaf):
            arrays.append(leaf)
            leaf = None
        rest.append(leaf)
    return arrays, Frame(tuple(rest), treedef)


@eqx.filter_jit
def _tell(error: Exception) -> NoReturn:
    """Raises `error`; if it is one of `equinox.error_if`, then as Equinox does."""
    raise error


_callback_logger = logging.getLogger("jax._src.callback")


class _Quiet(logging.Filterer):
    """Lets no callback be logged that failed, as Equinox: its error is raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.getMessage() != "jax.pure_callback failed"
