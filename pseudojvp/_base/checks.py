"""What every solver checks of its arguments, while JAX traces."""

from collections.abc import Iterable
from typing import Any

import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, PyTree

from .inexact import as_inexact
from .structure import Structure


def check_vector(vector: PyTree[Any], structure: PyTree, caller: str) -> PyTree[Array]:
    """Returns the vector as floats, or raises if it is not of that structure."""
    vector = jtu.tree_map(lambda leaf: as_inexact(leaf, f"{caller}(vector=...)"), vector)
    given, expected = Structure.of(vector), Structure.of(structure)
    if given != expected:
        raise ValueError(
            f"Vector and operator structures do not match: `{caller}` got a vector "
            f"with structure {given.as_tree()} and an operator that takes one with "
            f"structure {expected.as_tree()}. Pass a vector with the tree, shapes and "
            "dtypes of the latter."
        )
    return vector


def check_solver(solver: Any, caller: str) -> None:
    if not isinstance(solver, lx.AbstractLinearSolver):
        raise TypeError(
            f"`{caller}(solver=...)` got {solver!r}. Pass an instance of a solver, as in "
            f"`{caller}(..., solver=QR())`, or `FunctionSolver(solve)` for a function "
            "`solve(A, b)` of your own."
        )


def check_count(value: Any, name: str, caller: str, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"`{caller}({name}=...)` got a {type(value).__name__}. Pass a Python integer."
        )
    if value < least:
        raise ValueError(f"`{caller}({name}=...)` got {value}. It is at least {least}.")


def check_options(
    solver: lx.AbstractLinearSolver, options: dict[str, Any], known: Iterable[str] = ()
) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        accepted = ", ".join(f"`{key}`" for key in known) or "none"
        raise ValueError(
            f"`{type(solver).__name__}` was given the unknown option(s) {unknown}. "
            f"Options it takes: {accepted}."
        )


def check_square(
    solver: lx.AbstractLinearSolver,
    operator: lx.AbstractLinearOperator,
    *,
    sizes_alone: bool = False,
):
    """That x and b are of the same structure, or of the same size."""
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    same = in_structure == out_structure
    if sizes_alone:
        same = in_structure.size == out_structure.size
    if not same:
        raise ValueError(
            f"`{type(solver).__name__}` may only be used for linear solves with square "
            f"matrices, but `operator` maps {in_structure.as_tree()} to "
            f"{out_structure.as_tree()}. Use `QR()` if it has full rank, `SVD()` if it "
            "may not, or wrap the solver in `Normal`."
        )
