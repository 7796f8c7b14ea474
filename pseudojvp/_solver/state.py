"""What the states of the factorisations have in common."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import equinox.internal as eqxi
import lineax as lx
from jaxtyping import Array, Inexact

from .._base.structure import Structure
from .._base.tree import tree_conj
from .._operator.matrix import matrix_of


State = TypeVar("State", bound=eqx.Module)


def structures_of(operator: lx.AbstractLinearOperator) -> eqxi.Static:
    """The structures of b and of x."""
    spaces = operator.out_structure(), operator.in_structure()
    return eqxi.Static(tuple(map(Structure.of, spaces)))


def swapped(structures: eqxi.Static) -> eqxi.Static:
    out_structure, in_structure = structures.value
    return eqxi.Static((in_structure, out_structure))


def long_side_first(
    operator: lx.AbstractLinearOperator,
) -> tuple[Inexact[Array, "long short"], eqxi.Static]:
    """A and `False`; A^H and `True` if A is wide."""
    matrix = matrix_of(operator)
    wide = matrix.shape[1] > matrix.shape[0]
    return matrix.conj().T if wide else matrix, eqxi.Static(wide)


def conjugated(state: State) -> State:
    arrays, rest = eqx.partition(state, eqx.is_inexact_array)
    return eqx.combine(tree_conj(arrays), rest)


def transposed(state: Any):
    """For factors of A or, if `wide`, of A^H: those of A^T are their conjugates."""
    return dataclasses.replace(
        conjugated(state),
        wide=eqxi.Static(not state.wide.value),
        structures=swapped(state.structures),
    )
