import dataclasses
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree, Real

from .._base.checks import check_options
from .._base.tree import tree_scale
from .._kernel.norms import power_of_two
from .._kernel.products import gram
from .._operator.adjoint import adjoint, transpose_of
from .._operator.divided import Divided, unit_of_products
from .._operator.matrix import matrix_of
from .._operator.stored_adjoint import StoredAdjoint
from .auto import AutoLinearSolver
from .counterpart import counterpart
from .factorisation import AbstractFactorisation
from .krylov.cg import CG
from .krylov.iteration import AbstractKrylovSolver
from .state import structures_of, swapped
from .verified import verified


class NormalState(eqx.Module):
    """The inner state for A^H A (tall or square A) or A A^H (wide A), and A itself.

    A is divided by `unit`. With a dense inner solver it is a matrix, and the inner
    vectors are flat.
    """

    inner: PyTree[Any]
    operator: lx.AbstractLinearOperator
    adjoint: lx.AbstractLinearOperator
    unit: Real[Array, ""]
    tall: eqxi.Static
    structures: eqxi.Static


class Normal(lx.AbstractLinearSolver[NormalState]):
    """Solves systems of any shape by the normal equations, with an inner solver.

        tall or square:  A^H A x = A^H b        wide:  A A^H u = b,  x = A^H u

    An inner solver for definite systems ([`pseudojvp.Cholesky`][], [`pseudojvp.CG`][])
    serves A of full rank. One for semidefinite systems ([`pseudojvp.SVD`][], `CG(...,
    well_posed=False)`) serves any A and gives A†b. The condition number of A is squared:
    expect an error of eps κ². For a matrix-free A only `mv` and its transpose are called;
    for a dense inner solver the Gram matrix is formed once. Against over- and underflow A
    is first divided by a power of two, a matrix-free A only if its size is extreme
    (beyond 2^±256, or 2^±32 in single precision). An `atol` of the inner solver is in the
    units of the scaled system.

    Cost: one inner solve, and for a matrix-free A one product, for its size. If A has
    full rank, one more inner solve for a JVP and one more for a VJP. With an inner solver
    that allows a singular Gram matrix, two more each if A is tall or square and three
    each if it is wide.

    `options`:

    - `preconditioner`: M near A†, a `lineax.AbstractLinearOperator` from the space of b
        to that of x. The inner solver gets M M^H (tall) or M^H M (wide).
    - `y0`: first guess of x. The inner solver gets y0 (tall) or M^H y0 (wide; zero
        without M). Used by the primal solve only.

    A dense inner solver accepts neither. Any other option is passed to the inner solver,
    which decides about it, unless it is one of lineax's.

    **Arguments:**

    - `inner_solver`: any `lineax.AbstractLinearSolver` for systems tagged positive
        semidefinite; no default. A lineax solver is replaced by its counterpart here.

    **Raises:** `TypeError` if `inner_solver` is not a solver, `ValueError` at trace time
    for an unknown option.

    **Sources:** Björck, *Numerical Methods for Least Squares Problems* (1996), section
    2.2 (normal equations of both kinds) and 7.4 (CGLS, CGNE).

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 3.0, 5.0])
    print(pj.linear_solve(A, b, pj.Normal(pj.Cholesky())).value.round(2))  # [1. 2.]
    ```
    """

    inner_solver: lx.AbstractLinearSolver = eqx.field(converter=counterpart)

    def __check_init__(self):
        if not isinstance(self.inner_solver, lx.AbstractLinearSolver):
            raise TypeError(
                f"`Normal(inner_solver=...)` got {self.inner_solver!r}. Pass a solver, "
                "as in `Normal(CG(rtol=1e-8, atol=1e-8))`."
            )

    @property
    def _dense(self) -> bool:
        """Whether the inner solver reads the Gram matrix entry by entry: it is formed."""
        return isinstance(self.inner_solver, AbstractFactorisation | AutoLinearSolver)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> NormalState:
        tall = operator.out_size() >= operator.in_size()
        structures = structures_of(operator)
        if self._dense:
            matrix = matrix_of(operator)
            unit = power_of_two(power_of_two(matrix, axis=0))  # in half of the time
            matrix = matrix / unit.astype(matrix.dtype)
            operator = lx.MatrixLinearOperator(matrix)
            operator_adjoint = StoredAdjoint(matrix)
            product = gram(matrix if tall else matrix.conj().T)
            product = lx.MatrixLinearOperator(product, lx.positive_semidefinite_tag)
        else:
            operator = lx.linearise(operator)
            unit = unit_of_products(operator)
            operator = Divided(operator, jnp.sqrt(unit))
            operator_adjoint = adjoint(operator)
            # These take products with vectors near one alone.
            near_one = isinstance(self.inner_solver, AbstractKrylovSolver)
            factor = dataclasses.replace(operator, near_one=near_one)
            product = adjoint(factor) @ factor if tall else factor @ adjoint(factor)
            product = lx.TaggedLinearOperator(product, lx.positive_semidefinite_tag)
        inner = self.inner_solver.init(product, self.inner_options(tall, unit, options))
        return NormalState(
            inner, operator, operator_adjoint, unit, eqxi.Static(tall), structures
        )

    def compute(
        self, state: NormalState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        tall = state.tall.value
        vector = self.to_inner(state, vector, out=True)
        source = vector if tall else None
        if tall:
            vector = state.adjoint.mv(vector)
        solution, result, stats = self.inner_solve(state, vector, options, source)
        if not tall:
            solution = state.adjoint.mv(solution)
        solution = self.over_unit(state, solution)
        return self.from_inner(state, solution, out=False), result, stats

    def over_unit(self, state: NormalState, vector: PyTree[Array]) -> PyTree[Array]:
        """Solution by A less by A / unit, and what is paired with a solution."""
        return None if vector is None else tree_scale(1 / state.unit, vector)

    def inner_solve(
        self, state: NormalState, vector, options: dict[str, Any], source=None
    ):
        """Applies the (pseudo)inverse of the Gram operator; vectors are inner ones.

        To project a vector that is in its range already, as the product of a `source`
        with A or its adjoint, would cost digits.
        """
        tall = state.tall.value
        inner_options = self.inner_options(tall, state.unit, options)
        if source is not None and isinstance(self.inner_solver, CG):
            solve = self.inner_solver.compute_image
            return solve(state.inner, vector, source, inner_options)
        first, second = state.operator, state.adjoint
        first, second = (first, second) if tall else (second, first)
        out = self.inner_solver.compute(state.inner, vector, inner_options)
        solution, result, stats = out
        gram_mv = lambda vector: second.mv(first.mv(vector))
        verdict = verified(self.inner_solver, gram_mv, vector, solution, result)
        return *verdict, stats

    def to_inner(self, state: NormalState, vector: PyTree[Array], *, out: bool):
        structure = state.structures.value[0 if out else 1]
        return structure.ravel(vector) if self._dense else vector

    def from_inner(self, state: NormalState, vector, *, out: bool) -> PyTree[Array]:
        structure = state.structures.value[0 if out else 1]
        return structure.unravel(vector) if self._dense else vector

    def inner_options(
        self, tall: bool, unit: Real[Array, ""], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Those of the Gram operator of A / unit."""
        if self._dense:
            check_options(self, options)
        elif isinstance(self.inner_solver, lx.CG | lx.GMRES | lx.BiCGStab):
            check_options(self, options, ("preconditioner", "y0"))  # they do not
        inner = dict(options)
        preconditioner = options.get("preconditioner")
        y0 = inner.pop("y0", None)
        if tall and y0 is not None:
            inner["y0"] = tree_scale(unit, y0)
        if preconditioner is None:
            return inner
        if not isinstance(preconditioner, lx.AbstractLinearOperator):
            raise ValueError(
                f"`Normal` got a preconditioner of type {type(preconditioner).__name__}. "
                "The preconditioner must be a linear operator, near the (pseudo)inverse."
            )
        forward = Divided(lx.linearise(preconditioner), jnp.sqrt(1 / unit))
        backward = adjoint(forward)
        product = forward @ backward if tall else backward @ forward
        inner["preconditioner"] = lx.TaggedLinearOperator(
            product, lx.positive_semidefinite_tag
        )
        if not tall and y0 is not None:
            inner["y0"] = backward.mv(tree_scale(unit, y0))
        return inner

    def transpose(self, state: NormalState, options: dict[str, Any]):
        # The Gram operator of A^T is the conjugate of that of A: (A^T)(A^T)^H =
        # conj(A^H A). Conjugation goes through `transpose` because it is Hermitian, and
        # `lineax.LU.conj` flips its transpose flag (lineax 0.1.1).
        options_out = {}
        if "preconditioner" in options:
            options_out["preconditioner"] = options["preconditioner"].transpose()
        tall = state.tall.value
        inner_options = self.inner_options(tall, state.unit, options)
        inner, _ = self.inner_solver.transpose(state.inner, inner_options)
        transposed = NormalState(
            inner,
            transpose_of(state.operator),
            lx.conj(state.operator),
            state.unit,
            eqxi.Static(not tall),
            swapped(state.structures),
        )
        return transposed, options_out

    def conj(self, state: NormalState, options: dict[str, Any]):
        options_out = {}
        if "preconditioner" in options:
            options_out["preconditioner"] = lx.conj(options["preconditioner"])
        inner_options = self.inner_options(state.tall.value, state.unit, options)
        inner, _ = self.inner_solver.transpose(state.inner, inner_options)
        conjugated = NormalState(
            inner,
            lx.conj(state.operator),
            transpose_of(state.operator),
            state.unit,
            state.tall,
            state.structures,
        )
        return conjugated, options_out

    def assume_full_rank(self) -> bool:
        return self.inner_solver.assume_full_rank()
