"""What the flexible Krylov solvers share: preconditioners that may be any function."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, PyTree

from ..._base.closed import closed
from ..._base.structure import Structure
from ..._base.tree import tree_conj
from ..._kernel.norms import power_of_two
from ..._operator.over_reals import joined, parted, Parts
from ..options import PreconditioningFunction, resolve_preconditioner
from .iteration import AbstractKrylovSolver, flat_mv, KrylovState, over


# A linear operator, or what a function has become.
_Preconditioner = lx.AbstractLinearOperator | Callable


class FlexibleState(eqx.Module):
    """A with its scale, and what is near A^-1 and near A^-H."""

    scaled: KrylovState
    preconditioner: _Preconditioner | None
    adjoint_preconditioner: _Preconditioner | None

    @classmethod
    def create(
        cls,
        solver: AbstractKrylovSolver,
        state: KrylovState,
        options: dict[str, Any],
        adjoint_preconditioner: Any = None,
    ) -> "FlexibleState":
        structure = Structure.of(state.operator.in_structure())

        def resolved(given, name):
            if isinstance(given, lx.AbstractLinearOperator | None):
                return resolve_preconditioner(solver, given, {}, structure, structure)
            name = f"{type(solver).__name__}({name}=...)"
            return _converted(PreconditioningFunction.of(given), structure, name)

        given = options.get("preconditioner", solver.preconditioner)
        return cls(
            state,
            resolved(given, "preconditioner"),
            resolved(adjoint_preconditioner, "adjoint_preconditioner"),
        )

    def precondition(self, flat: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """P of a vector, over a power of two: near one in size."""
        if isinstance(self.preconditioner, lx.AbstractLinearOperator):
            flat = flat_mv(self.preconditioner)(flat)
        elif self.preconditioner is not None:
            structure = Structure.of(self.scaled.operator.in_structure())
            flat = structure.ravel(self.preconditioner(structure.unravel(flat)))
        return over(power_of_two(flat), flat)

    def _mapped(self, transform: Callable) -> KrylovState:
        return KrylovState(transform(self.scaled.operator), self.scaled.scale)

    def conj(self) -> "FlexibleState":
        return FlexibleState(
            self._mapped(lx.conj),
            _conj(self.preconditioner),
            _conj(self.adjoint_preconditioner),
        )

    def transpose(self) -> "FlexibleState":
        transposed = _conj(self.adjoint_preconditioner)
        if transposed is None and isinstance(
            self.preconditioner, lx.AbstractLinearOperator
        ):
            transposed = self.preconditioner.transpose()
        return FlexibleState(
            self._mapped(lambda operator: operator.transpose()),
            transposed,
            _conj(self.preconditioner),
        )


class _Conjugated(eqx.Module):
    function: Callable

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        return tree_conj(self.function(tree_conj(vector)))


def _conj(preconditioner: _Preconditioner | None) -> _Preconditioner | None:
    if preconditioner is None:
        return None
    if isinstance(preconditioner, lx.AbstractLinearOperator):
        return lx.conj(preconditioner)
    if isinstance(preconditioner, _Conjugated):
        return preconditioner.function
    return _Conjugated(preconditioner)


def _converted(
    function: PreconditioningFunction, structure: Structure, name: str
) -> Callable:
    """The function with all that it closes over: a constant from here on."""
    domain = structure.as_tree()
    over_reals = any(
        isinstance(node, Parts)
        for node in jtu.tree_leaves(domain, is_leaf=lambda node: isinstance(node, Parts))
    )

    def convert(vector):
        out = function(joined(vector))
        out = jtu.tree_map(jnp.asarray, out)
        return parted(out) if over_reals else out

    told = jax.eval_shape(convert, domain)
    if Structure.of(told) != structure:
        raise ValueError(
            f"`{name}` got a function that returns {Structure.of(told).as_tree()} for a "
            "vector. It approximates the inverse of a square operator, so it must return "
            f"a vector of the structure, shapes and dtypes of its argument, {domain}."
        )
    return closed(convert, domain)
