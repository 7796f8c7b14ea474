"""Operators that are linear over the reals alone: of real leaves beside complex ones.

Their adjoint is that for the inner product Re⟨u, v⟩, and the pseudoinverse solution is
the one over all vectors whose real leaves are real.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from .._base.structure import Structure
from .adjoint import is_hermitian


class Parts(NamedTuple):
    """A complex leaf as two real ones."""

    real: Inexact[Array, "..."]
    imaginary: Inexact[Array, "..."]


def mixes(operator: lx.AbstractLinearOperator) -> bool:
    """Whether of the leaves of x and b some are real and some are complex."""
    spaces = operator.in_structure(), operator.out_structure()
    dtypes = Structure.of(spaces).dtypes
    are_complex = {bool(np.issubdtype(dtype, np.complexfloating)) for dtype in dtypes}
    return len(are_complex) == 2


def parted(tree: PyTree) -> PyTree:
    """The tree with its complex leaves as `Parts`; each an isometry of the other."""
    return jtu.tree_map(
        lambda leaf: (
            Parts(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else jnp.asarray(leaf)
        ),
        tree,
    )


def joined(tree: PyTree) -> PyTree[Array]:
    return jtu.tree_map(
        lambda leaf: lax.complex(*leaf) if isinstance(leaf, Parts) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, Parts),
    )


def over_reals(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator between vectors in which complex leaves are `Parts`."""
    structure = jax.eval_shape(parted, operator.in_structure())
    holds = {
        lx.symmetric_tag: is_hermitian,
        lx.positive_semidefinite_tag: lx.is_positive_semidefinite,
        lx.negative_semidefinite_tag: lx.is_negative_semidefinite,
    }
    tags = frozenset(tag for tag in holds if holds[tag](operator))
    return lx.FunctionLinearOperator(
        eqx.Partial(_mv, operator), structure, tags, closure_convert=False
    )


def _mv(operator: lx.AbstractLinearOperator, vector: PyTree) -> PyTree:
    return parted(operator.mv(joined(vector)))


def aids_over_reals(
    solver: lx.AbstractLinearSolver, options: dict[str, Any]
) -> tuple[lx.AbstractLinearSolver, dict[str, Any]]:
    """Solver and options with their preconditioners and first guess over the reals."""

    def is_operator(node):
        return isinstance(node, lx.AbstractLinearOperator)

    def convert(node):
        return over_reals(node) if is_operator(node) else node

    solver = jtu.tree_map(convert, solver, is_leaf=is_operator)
    options = jtu.tree_map(convert, options, is_leaf=is_operator)
    if "y0" in options:
        options = {**options, "y0": parted(options["y0"])}
    return solver, options
