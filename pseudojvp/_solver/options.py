"""What the iterative solvers are given beside the operator."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from .._base.structure import Structure
from .._operator.function import typed
from .._operator.multiples import with_true_dtypes


class PreconditioningFunction(eqx.Module):
    """A preconditioner that is no linear operator; a constant, like those that are."""

    function: Callable

    @classmethod
    def of(cls, given: Any) -> "PreconditioningFunction":
        if isinstance(given, PreconditioningFunction):
            return given
        if not callable(given) or isinstance(given, type):
            raise TypeError(
                f"A flexible solver got a preconditioner of type {type(given).__name__}. "
                "Pass a function from a vector to a vector, or a linear operator; wrap a "
                "matrix in `lineax.MatrixLinearOperator`."
            )
        return cls(given)

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        return self.function(vector)


def as_preconditioner(
    given: Any,
) -> lx.AbstractLinearOperator | PreconditioningFunction | None:
    """For the flexible solvers: a linear operator, or any function."""
    if given is None or isinstance(given, lx.AbstractLinearOperator):
        return given
    return PreconditioningFunction.of(given)


def resolve_preconditioner(
    solver: lx.AbstractLinearSolver,
    default: lx.AbstractLinearOperator | None,
    options: dict[str, Any],
    in_structure: Structure,
    out_structure: Structure,
) -> lx.AbstractLinearOperator | None:
    """The preconditioner of `options` if it has one, else `default`, linearised.

    It has to map `in_structure` to `out_structure`; `None` is the identity.
    """
    preconditioner = options.get("preconditioner", default)
    if preconditioner is None:
        return None
    name = type(solver).__name__
    if not isinstance(preconditioner, lx.AbstractLinearOperator):
        raise ValueError(
            f"`{name}` got a preconditioner of type {type(preconditioner).__name__}. "
            "The preconditioner must be a linear operator; wrap a matrix in "
            "`lineax.MatrixLinearOperator`."
        )
    given = (
        Structure.of(preconditioner.in_structure()),
        Structure.of(preconditioner.out_structure()),
    )
    if given != (in_structure, out_structure):
        raise ValueError(
            f"`{name}` got a preconditioner that maps {given[0].as_tree()} to "
            f"{given[1].as_tree()}. It approximates the inverse, so it must map "
            f"{in_structure.as_tree()} to {out_structure.as_tree()}."
        )
    return lx.linearise(with_true_dtypes(typed(preconditioner)))


def resolve_y0(
    solver: lx.AbstractLinearSolver, options: dict[str, Any], in_structure: Structure
) -> PyTree[Array] | None:
    y0 = options.get("y0")
    if y0 is not None and Structure.of(y0) != in_structure:
        raise ValueError(
            f"`{type(solver).__name__}` got a first guess `y0` of structure "
            f"{Structure.of(y0).as_tree()}. It must have the structure of the solution, "
            f"{in_structure.as_tree()}."
        )
    return y0


def check_tolerances(caller: str, **tolerances: Any) -> None:
    """That they are `None`, or real and not negative where that is known."""
    for name, value in tolerances.items():
        if value is None:
            continue
        number = isinstance(value, Real | np.ndarray | jax.Array)
        if not number or jnp.iscomplexobj(value):
            raise TypeError(
                f"`{caller}({name}=...)` got {value!r}. Tolerances must be real numbers."
            )
        known = not isinstance(value, jax.core.Tracer)
        if known and not np.all(np.asarray(value) >= 0):
            raise ValueError(
                f"`{caller}({name}=...)` got {value}. Tolerances must be non-negative."
            )


def check_positive(solver: lx.AbstractLinearSolver, *names: str) -> None:
    for name in names:
        value = getattr(solver, name)
        if value < 1:
            raise ValueError(
                f"`{type(solver).__name__}({name}=...)` got {value}. Pass a positive "
                "integer."
            )
