import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, PyTree, Real

from .._base.checks import check_options
from .._base.closed import closed
from .._base.structure import Structure
from .._base.tree import is_zero, tree_conj, tree_scale, tree_sub, tree_where
from .._kernel.norms import power_of_two, two_norm
from .._operator.adjoint import transpose_of
from .options import check_tolerances


class _System(eqx.Module):
    """A matrix with the function that solves for it."""

    operator: lx.AbstractLinearOperator
    function: Callable  # of b alone, with what it closes over
    size: Real[Array, ""]  # |A u| for a unit vector u, at most |A|

    @classmethod
    def create(cls, operator: lx.AbstractLinearOperator, solve: Callable) -> "_System":
        structure = Structure.of(operator.in_structure())

        def function(vector):
            solution = solve(operator, vector)
            if jtu.tree_structure(solution) == structure.treedef:
                solution = jtu.tree_map(jnp.asarray, solution)
            _check_solution(solution, structure)
            return solution

        # What `solve` closes over may be traced: here it is known, within the map not.
        function = closed(function, operator.out_structure())
        return cls(operator, function, two_norm(operator.mv(structure.probe())))

    def solve(self, vector: PyTree[Array]) -> PyTree[Array]:
        """Zero for zero, of which iterations may make NaN."""
        solution = self.function(vector)
        zeros = jtu.tree_map(jnp.zeros_like, solution)
        return tree_where(is_zero(vector), zeros, solution)


class FunctionState(eqx.Module):
    """A and A^T; the first is what is solved with, its conjugate if `conjugated`."""

    systems: tuple[_System, _System]
    conjugated: bool = eqx.field(static=True, default=False)


class FunctionSolver(lx.AbstractLinearSolver[FunctionState]):
    """Solves with your function, `solve(A, b) -> x`, and checks what it returns.

    The function need not be differentiable: derivatives are those of the solution, of
    every order, and call the same function with A and Aᵀ. It may call another library
    through `jax.pure_callback`, whose `vmap_method` then decides how several right-hand
    sides run.

    The result is `successful` if

        |b − A x| ≤ atol + rtol |b|,

    For least squares it also needs |Aᴴr| ≤ rtol ‖A‖ |r|, where r = b − A x and ‖A‖ is an
    estimate from below, or an Aᴴr that is only the rounding of r. Otherwise the result is
    `stagnation`, or `singular` if x is not finite. If the minimum-norm solution is
    required (a wide A, or `well_posed=False`), the function is called once more, with Aᵀ
    and the conjugate of x, to check with the same `rtol` that x is in the row space of A.
    The condition number of A is not checked. For b = 0 the solution is zero.

    `stats["residual_norm"]` is |b − A x|. Takes no `options`.

    **Arguments:**

    - `solve`: takes a `lineax.AbstractLinearOperator` A and a vector b like its
        `out_structure()`, and returns x like its `in_structure()`, in arrays that JAX can
        trace. A is the operator of the call or its transpose; a sparse one is a
        [`pseudojvp.SparseLinearOperator`][] with `A.data`, `A.sparsity.row` and
        `A.sparsity.col`. What the function closes over is a constant.
    - `rtol`: `≥ 0`, relative tolerance of the check on b − A x. Defaults to `None`, the
        square root of eps: 1.5e-8, or 3.5e-4 in float32.
    - `atol`: `≥ 0`, absolute tolerance, in the units of b; zero in derivatives. Defaults
        to `0.0`.
    - `well_posed`: whether A is taken to have full rank. If `False`, `solve` must return
        A†b for A of any rank. Defaults to `True`.

    Cost: one call of `solve` and one product with A if A is square and of full rank; up
    to two calls and four products otherwise.

    **Raises:** `TypeError` if `solve` is not a function; `ValueError` at trace time if
    its result does not have the structure of x, for an option, or for a negative
    tolerance.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    function = lambda A, b: jnp.linalg.solve(A.as_matrix(), b)
    A, b = jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([3.0, 4.0])
    print(pj.linear_solve(A, b, pj.FunctionSolver(function)).value.round(2))  # [1. 1.]
    ```
    """

    solve: Callable[[lx.AbstractLinearOperator, Any], Any]
    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] = 0.0
    well_posed: bool = True

    def __check_init__(self):
        if not is_function(self.solve):
            raise TypeError(
                f"`FunctionSolver(solve=...)` got {self.solve!r}. Pass a function "
                "`solve(A, b)` that returns x."
            )
        check_tolerances(type(self).__name__, rtol=self.rtol, atol=self.atol)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> FunctionState:
        check_options(self, options)
        operator = lx.linearise(operator)
        transposed = _System.create(transpose_of(operator), self.solve)
        return FunctionState((_System.create(operator, self.solve), transposed))

    def compute(
        self, state: FunctionState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        if state.conjugated:
            plain = FunctionState(state.systems)
            solution, result, stats = self.compute(plain, tree_conj(vector), options)
            return tree_conj(solution), result, stats
        system, transposed = state.systems
        structure = Structure.of(system.operator.in_structure())
        if min(structure.size, system.operator.out_size()) == 0:
            zeros = jtu.tree_map(jnp.zeros_like, structure.as_tree())
            return zeros, lx.RESULTS.successful, {"residual_norm": two_norm(vector)}
        solution = system.solve(vector)
        residual = tree_sub(vector, system.operator.mv(solution))
        met = self._met(system, transposed, vector, solution, residual)
        norm = two_norm(residual)
        results = lx.RESULTS
        result = results.where(met, results.successful, results.stagnation)
        result = results.where(jnp.isfinite(norm), result, results.singular)
        return solution, result, {"residual_norm": norm}

    def _met(self, system, transposed, vector, solution, residual) -> Bool[Array, ""]:
        """Whether x is A⁻¹b or A†b, as far as products with A and Aᵀ tell."""
        rows, cols = system.operator.out_size(), system.operator.in_size()
        b, x, r = map(two_norm, (vector, solution, residual))
        eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jtu.tree_leaves(vector))
        rtol = jnp.asarray(eps**0.5 if self.rtol is None else self.rtol, b.dtype)
        met = r <= jnp.asarray(self.atol, b.dtype) + rtol * b
        # What follows of r and x over their sizes: nothing over- or underflows.
        if not (self.well_posed and rows <= cols):
            unit, scaled = _scaled(tree_conj(residual))
            slope = two_norm(transposed.operator.mv(scaled))
            rounding = jnp.minimum(10 * eps * (system.size * x + b), rtol * b)
            met = met | (slope <= system.size * (jnp.maximum(rtol * r, rounding) / unit))
        if not (self.well_posed and rows >= cols):
            _, scaled = _scaled(tree_conj(solution))
            scaled = tree_scale(power_of_two(system.size), scaled)
            image = transposed.operator.mv(transposed.solve(scaled))
            # x = Aᴴy for some y.
            met = met & (two_norm(tree_sub(scaled, image)) <= rtol * two_norm(scaled))
        return met

    def for_derivative(self) -> "FunctionSolver":
        """The solver for tangents and cotangents, whose units are not those of b."""
        return dataclasses.replace(self, atol=0.0)

    def transpose(self, state: FunctionState, options: dict[str, Any]):
        system, transposed = state.systems
        return FunctionState((transposed, system), state.conjugated), options

    def conj(self, state: FunctionState, options: dict[str, Any]):
        return FunctionState(state.systems, not state.conjugated), options

    def assume_full_rank(self) -> bool:
        return self.well_posed


def is_function(solver: Any) -> bool:
    """Whether it is what `FunctionSolver` takes: no solver, and no class of solvers."""
    return callable(solver) and not isinstance(solver, lx.AbstractLinearSolver | type)


def _scaled(vector: PyTree[Array]) -> tuple[Real[Array, ""], PyTree[Array]]:
    """A power of two near the largest entry, and the vector over it."""
    unit = power_of_two(vector)
    return unit, jtu.tree_map(lambda leaf: leaf / unit.astype(leaf.dtype), vector)


def _check_solution(solution: Any, structure: Structure) -> None:
    leaves = jtu.tree_leaves(solution)
    arrays = all(isinstance(leaf, jax.Array) for leaf in leaves)
    if not arrays or Structure.of(solution) != structure:
        told = Structure.of(solution).as_tree() if arrays else solution
        raise ValueError(
            f"`solve(A, b)` of `FunctionSolver` returned {told}. Return x alone, of the "
            f"structure of `A.in_structure()`: {structure.as_tree()}."
        )
