"""Systems of A + s I for many s, from one Krylov space.

The spaces of A and of A + s I from the same b are the same, and so is the basis of
Lanczos: only the diagonal of T moves. So `CG` and `MINRES` of all shifts take one product
a step. A solver that is told of one shift sees the others when it is batched: a batch of
shifts of the same A and b is one run, any other batch one run for each member.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Integer, PyTree, Real

from ..._base.axes import largest, while_loop
from ..._base.checks import check_options, check_square
from ..._base.structure import Structure
from ..._base.tree import tree_add, tree_scale, tree_where
from ..._kernel.norms import power_of_two
from ..._operator.function import Spread
from ..._operator.shifted import ShiftedOperator
from . import cg, minres
from .iteration import (
    Cycle,
    dot,
    flat_system,
    KrylovState,
    length,
    over,
    report,
    run,
    System,
)
from .lanczos import Tridiagonal
from .shared_steps import Method


class ShiftedState(eqx.Module):
    """A with its scale, as of a `KrylovState`, u and A u of a unit vector, and s."""

    operator: lx.AbstractLinearOperator
    scale: Real[Array, ""]
    probe: PyTree[Array]
    image: PyTree[Array]
    shift: Real[Array, ""]


class ShiftedSolver(lx.AbstractLinearSolver[ShiftedState]):
    """`CG` or `MINRES` for a `ShiftedOperator`; under `jax.vmap` for many shifts."""

    inner_solver: cg.CG | minres.MINRES

    def __check_init__(self):
        inner = self.inner_solver
        name = type(inner).__name__
        if inner.preconditioner is not None:
            raise ValueError(
                f"`shifted_solve(solver={name}(preconditioner=...))`: the Krylov space "
                "of P (A + s I) is another one for each shift. Drop the preconditioner, "
                "or solve for each shift by `linear_solve`."
            )
        if isinstance(inner, cg.CG) and not inner.well_posed:
            raise ValueError(
                "`shifted_solve(solver=CG(well_posed=False))` projects onto the range of "
                "A + s I, which is another one for each shift. Use `MINRES()`."
            )

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> ShiftedState:
        check_options(self.inner_solver, options)
        assert isinstance(operator, ShiftedOperator)
        check_square(self.inner_solver, operator.operator)
        minres.check_hermitian(self.inner_solver, operator.operator)
        bare = lx.linearise(operator.operator)
        probe = Structure.of(bare.in_structure()).probe()
        image = bare.mv(probe)
        scale = largest(power_of_two(image), Spread.of(bare).codomain)
        if isinstance(self.inner_solver, cg.CG):
            negative = lx.is_negative_semidefinite(operator.operator)
            scale = -scale if negative else scale
        return ShiftedState(bare, scale, probe, image, operator.shift)

    def compute(
        self, state: ShiftedState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self.inner_solver, options)
        given = _Given(
            self.inner_solver,
            state.operator,
            state.scale,
            state.probe,
            state.image,
            vector,
        )
        arrays, static = eqx.partition(given, eqx.is_array)

        @jax.custom_batching.custom_vmap
        def solve(shift, arrays):
            return _solve(eqx.combine(arrays, static), shift)

        @solve.def_vmap
        def _(size, batched, shift, arrays):
            of_shift, of_arrays = batched
            if of_shift and not any(jtu.tree_leaves(of_arrays)):
                out = _solve_all(eqx.combine(arrays, static), shift)
            else:
                axes = jtu.tree_map(lambda is_batched: 0 if is_batched else None, batched)
                one = lambda shift, arrays: _solve(eqx.combine(arrays, static), shift)
                out = jax.vmap(one, axes, axis_size=size)(shift, arrays)
            return out, jtu.tree_map(lambda _: True, out)

        solution, result, stats = solve(state.shift, arrays)
        return solution, result, {"max_steps": self.inner_solver.max_steps, **stats}

    def transpose(self, state: ShiftedState, options: dict[str, Any]):
        return dataclasses.replace(state, operator=state.operator.transpose()), options

    def conj(self, state: ShiftedState, options: dict[str, Any]):
        return dataclasses.replace(state, operator=lx.conj(state.operator)), options

    def assume_full_rank(self) -> bool:
        return self.inner_solver.assume_full_rank()


class _Given(NamedTuple):
    """All but the shift."""

    solver: cg.CG | minres.MINRES
    operator: lx.AbstractLinearOperator
    scale: Real[Array, ""]
    probe: PyTree[Array]
    image: PyTree[Array]
    vector: PyTree[Array]

    def scales(self, shift: Real[Array, ""]) -> tuple[Real[Array, ""], Real[Array, ""]]:
        """Of A + s I, and the rounding of a product with it.

        Where s cancels A the sum is small, but not the rounding of A v + s v.
        """
        finite = jnp.where(jnp.isfinite(shift), shift, 0).astype(self.scale.dtype)
        most = jnp.maximum(jnp.abs(self.scale), power_of_two(finite))
        image = tree_add(self.image, tree_scale(finite, self.probe))
        codomain = Spread.of(self.operator).codomain
        left = largest(power_of_two(image).astype(most.dtype), codomain)
        eps = float(jnp.finfo(most.dtype).eps)
        scale = jnp.clip(left, eps * most, most)
        return jnp.where(self.scale < 0, -scale, scale), most / scale


class _Shift(NamedTuple):
    """(A + s I) / scale_s = τ A / scale + σ I, near one whatever s is."""

    tau: Real[Array, ""]
    sigma: Real[Array, ""]
    scale: Real[Array, ""]
    rounding: Real[Array, ""]

    @classmethod
    def of(cls, given: _Given, system: System, shift: Real[Array, ""]) -> "_Shift":
        scale, rounding = given.scales(shift)
        scale = scale.astype(system.scale.dtype)
        sigma = shift.astype(scale.dtype) / scale
        return cls(system.scale / scale, sigma, scale, rounding.astype(scale.dtype))

    def system(self, of_operator: System) -> System:
        def mv(flat):
            image = tree_scale(self.tau, of_operator.mv(flat))
            return image + tree_scale(self.sigma, flat)

        eps = of_operator.eps * self.rounding
        return of_operator._replace(mv=mv, scale=self.scale, eps=eps)


def _solve(given: _Given, shift):
    """A single shift, as a system of its own."""
    operator = ShiftedOperator(given.operator, shift)
    state = KrylovState(operator, *given.scales(shift))
    solution, result, stats = given.solver.compute(state, given.vector, {})
    stats = {key: value for key, value in stats.items() if key != "max_steps"}
    return solution, result, stats | {"num_products": stats["num_steps"] + 2}


def _solve_all(given: _Given, shifts):
    """All shifts by one run; then b − (A + s I) x for each, and on from there."""
    solver = given.solver
    state = KrylovState(given.operator, given.scale)
    system = flat_system(solver, state, given.vector, {})
    scaled = jax.vmap(lambda shift: _Shift.of(given, system, shift))(shifts)
    method = Method.of(solver, system)
    shared = _run_shared(solver, system, method, scaled)

    def finish(iterate, shift, norms):
        own = shift.system(system)
        start = _Counted(method.resume(iterate), jnp.array(0))
        final, result, stats = run(
            solver,
            own,
            lambda counted: counted.next(method.advance(own, counted.iterate)),
            start,
            norms,
        )
        if isinstance(solver, cg.CG):
            result = cg.result_of(solver, result)
        stats.pop("max_steps")
        return own.solution(final.iterate.solution), result, stats, final.passes

    columns = jax.vmap(finish)(shared.iterates, scaled, shared.norms)
    solution, result, stats, passes = columns
    # A block of columns a pass, one for the size of A.
    products = 1 + shared.step + len(shifts) * jnp.max(passes, initial=0)
    stats["num_products"] = jnp.broadcast_to(products, shifts.shape)
    if shared.tridiagonal is not None:
        kept = shared.tridiagonal.stats(system.scale)
        every = lambda leaf: jnp.broadcast_to(leaf, (len(shifts), *leaf.shape))
        stats["lanczos"] = jtu.tree_map(every, kept)
    return solution, result, stats


class _Shared(eqx.Module):
    """What a shared run carries; iterates and norms have an axis of shifts in front."""

    lanczos: minres.Lanczos
    iterates: Any
    norms: Real[Array, "shifts max_steps"] | None
    tridiagonal: Tridiagonal | None
    step: Integer[Array, ""]


def _run_shared(
    solver: cg.CG | minres.MINRES, system: System, method: Method, shifts
) -> _Shared:
    """Lanczos on A until each shift is due for a check."""
    zeros, zero = jnp.zeros_like(system.vector), jnp.zeros_like(system.norm)
    first = over(system.norm, system.vector)
    count, most = len(shifts.tau), system.max_steps
    every = lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape))
    start = _Shared(
        lanczos=minres.Lanczos(zeros, first, first, zero),
        iterates=jtu.tree_map(every, method.start),
        norms=jnp.full((count, most), jnp.nan, zero.dtype) if solver.history else None,
        tridiagonal=Tridiagonal.start(most, zero) if solver.lanczos else None,
        step=jnp.array(0),
    )

    def advance(shared: _Shared) -> _Shared:
        lanczos, step = shared.lanczos, shared.step
        image = system.mv(lanczos.q)
        y = image - lanczos.beta.astype(image.dtype) * lanczos.previous
        alpha = dot(lanczos.q, y).real
        y = y - alpha.astype(y.dtype) * lanczos.q
        y = y - dot(lanczos.q, y) * lanczos.q
        beta = length(y)
        q = over(beta, y)
        steps = _stepping(shared)

        def one(iterate, shift):
            tau = shift.tau
            own = dataclasses.replace(lanczos, beta=tau * lanczos.beta)
            moved = tau * alpha + shift.sigma
            of_shift = shift.system(system)
            stepped = method.step(of_shift, iterate, own, q, moved, tau * beta)
            return tree_where(iterate.cycle.due, iterate, stepped)

        iterates = jax.vmap(one)(shared.iterates, shifts)
        norms, tridiagonal = shared.norms, shared.tridiagonal
        told = jnp.where(steps, system.unit * iterates.cycle.norm, jnp.nan)
        if norms is not None:
            norms = norms.at[:, step].set(told)
        if tridiagonal is not None:
            tridiagonal = tridiagonal.with_column(
                step, alpha, lanczos.beta, counts=jnp.array(True), anew=jnp.array(False)
            )
        if solver.progress > 0:
            report(solver, step, step + 1, jnp.nanmax(told, initial=0))
        after = minres.Lanczos(lanczos.q, q, q, beta)
        return _Shared(after, iterates, norms, tridiagonal, step + 1)

    return while_loop(lambda shared: jnp.any(_stepping(shared)), advance, start)


def _stepping(shared: _Shared) -> Bool[Array, " shifts"]:
    return jax.vmap(lambda iterate: ~iterate.cycle.due)(shared.iterates)


class _Counted(eqx.Module):
    """An iterate with the number of passes, each of one product."""

    iterate: Any
    passes: Integer[Array, ""]

    @property
    def cycle(self) -> Cycle:
        return self.iterate.cycle

    def next(self, iterate: Any) -> "_Counted":
        return _Counted(iterate, self.passes + 1)
