"""What the Krylov solvers share: the loop, its cycles, and when it may stop.

A run consists of cycles. Each begins with a *check*, a pass of the loop that computes the
residual b − A x itself, and goes on with *steps* that move x along a recurrence, until
the residual that the recurrence tells is within the tolerance, or the cycle can go no
further. Only a check ends a run, so what is `successful` rests on b − A x. Both kinds of
pass take the same product with A, which stands in the loop once: under `jax.vmap` over
vectors it is one product with a block of columns, each of them in a cycle of its own.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Bool, Inexact, Integer, PyTree, Real

from ..._base.checks import check_options
from ..._base.structure import Structure
from ..._base.tree import tree_conj
from ..._kernel.norms import two_norm
from ..options import check_tolerances, resolve_y0
from .tolerance import resolve_rtol


OPTIONS = ("preconditioner", "y0")


class KrylovState(eqx.Module):
    operator: lx.AbstractLinearOperator


class Cycle(eqx.Module):
    """Where a run is; a part of what each solver carries through its loop."""

    step: Integer[Array, ""]
    norm: Real[Array, ""]  # of the residual, as far as the last pass tells
    measure: Real[Array, ""]  # at the last check, what the cycle is to make smaller
    stalls: Integer[Array, ""]  # cycles in a row that did not
    due: Bool[Array, ""]  # the next pass is a check
    converged: Bool[Array, ""]
    broken: Bool[Array, ""]  # the recurrence ended in a division by zero
    done: Bool[Array, ""]

    @classmethod
    def start(cls, dtype) -> "Cycle":
        infinite, false = jnp.array(jnp.inf, dtype), jnp.array(False)
        zero = jnp.array(0)
        return cls(zero, infinite, infinite, zero, ~false, false, false, false)

    def checked(self, norm, met, measure, *, shrink, patience, max_steps) -> "Cycle":
        """After a check; `shrink` is by what a cycle should make `measure` smaller."""
        moved = measure <= shrink * self.measure
        stalls = jnp.where(moved, 0, self.stalls + 1)
        stuck = (stalls >= patience) | ~jnp.isfinite(norm)
        return Cycle(
            step=self.step,
            norm=norm,
            measure=jnp.where(moved, measure, self.measure),
            stalls=stalls,
            due=jnp.array(False),
            converged=met,
            broken=self.broken,
            done=met | stuck | (self.step >= max_steps),
        )

    def stepped(self, norm, ends, *, max_steps, broken: Any = False) -> "Cycle":
        """After a step; `ends` says that the cycle can go no further."""
        step = self.step + 1
        return dataclasses.replace(
            self,
            step=step,
            norm=norm,
            due=ends | broken | (step >= max_steps) | ~jnp.isfinite(norm),
            broken=jnp.asarray(broken),
        )

    def finished(self) -> "Cycle":
        """Converged by what was found since the last check, without another."""
        true = jnp.array(True)
        return dataclasses.replace(self, converged=true, done=true)


class AbstractKrylovSolver(lx.AbstractLinearSolver[Any]):
    """A solver of products with A alone, that stops at a tolerance."""

    rtol: eqx.AbstractVar[Real[ArrayLike, ""] | None]
    atol: eqx.AbstractVar[Real[ArrayLike, ""]]
    max_steps: eqx.AbstractVar[int | None]
    preconditioner: eqx.AbstractVar[lx.AbstractLinearOperator | None]
    derivative_rtol: eqx.AbstractVar[Real[ArrayLike, ""] | None]
    history: eqx.AbstractVar[bool]
    progress: eqx.AbstractVar[int]

    def __check_init__(self):
        tolerances = {"rtol": self.rtol, "derivative_rtol": self.derivative_rtol}
        check_tolerances(self, atol=self.atol, **tolerances)
        for name in ("max_steps", "progress"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(
                    f"`{type(self).__name__}({name}=...)` got {value}. Pass a "
                    "non-negative integer."
                )

    @abc.abstractmethod
    def for_derivative(self) -> "AbstractKrylovSolver":
        """The solver of tangents and cotangents: see `derivative_solver`."""

    def transpose(self, state: Any, options: dict[str, Any]):
        transform = lambda operator: operator.transpose()
        return self._map(state, options, transform)

    def conj(self, state: Any, options: dict[str, Any]):
        return self._map(state, options, lx.conj)

    def _map(self, state: Any, options: dict[str, Any], transform: Callable):
        check_options(self, options, OPTIONS)
        preconditioner = options.get("preconditioner", self.preconditioner)
        options = {}
        if preconditioner is not None:
            options = {"preconditioner": transform(preconditioner)}
        operator = transform(state.operator)
        return dataclasses.replace(state, operator=operator), options


def derivative_solver(solver: AbstractKrylovSolver, **changes) -> Any:
    """The solver for tangents and cotangents, relative to each of them.

    Their units are not those of b, so `atol` does not apply: a small cotangent would be
    solved for by zero. `rtol` is never larger than that of the primal.
    """
    rtol, own = solver.rtol, solver.derivative_rtol
    if rtol is None or (isinstance(rtol, int | float) and rtol == 0):
        rtol = own
    elif isinstance(rtol, int | float) and isinstance(own, int | float):
        rtol = min(rtol, own)
    elif own is not None:
        rtol = jnp.minimum(rtol, own)
    return dataclasses.replace(solver, rtol=rtol, atol=0.0, history=False, **changes)


class System(NamedTuple):
    """A x = b on flat vectors, b divided by `unit`: a power of two near its size."""

    mv: Callable[[Array], Array]
    vector: Inexact[Array, " rows"]
    guess: Inexact[Array, " cols"]
    norm: Real[Array, ""]  # of b
    rtol: Real[Array, ""]
    allowed: Real[Array, ""]  # atol + rtol |b|
    max_steps: int
    unit: Real[Array, ""]
    in_structure: Structure

    @property
    def eps(self) -> float:
        return float(jnp.finfo(self.norm.dtype).eps)

    def solution(self, flat) -> PyTree[Array]:
        return self.in_structure.unravel(self.unit.astype(flat.dtype) * flat)


def flat_system(
    solver: AbstractKrylovSolver,
    operator: lx.AbstractLinearOperator,
    vector: PyTree[Array],
    options: dict[str, Any],
) -> System:
    check_options(solver, options, OPTIONS)
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    y0 = resolve_y0(solver, options, in_structure)
    flat = out_structure.ravel(vector)
    largest = jnp.max(jnp.abs(flat), initial=0)
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))
    unit = jnp.ldexp(jnp.ones_like(largest), exponent)
    flat = flat / unit.astype(flat.dtype)
    if y0 is None:
        y0 = jtu.tree_map(jnp.zeros_like, in_structure.as_tree())
    guess = in_structure.ravel(y0)
    norm = two_norm(flat)
    rtol = resolve_rtol(solver.rtol, norm.dtype)
    size = max(in_structure.size, out_structure.size)
    return System(
        mv=flat_mv(operator),
        vector=flat,
        guess=guess / unit.astype(guess.dtype),
        norm=norm,
        rtol=rtol,
        allowed=jnp.asarray(solver.atol, norm.dtype) / unit + rtol * norm,
        max_steps=10 * size if solver.max_steps is None else solver.max_steps,
        unit=unit,
        in_structure=in_structure,
    )


def flat_mv(operator: lx.AbstractLinearOperator | None) -> Callable[[Array], Array]:
    """Products with `operator` of flat vectors; `None` is the identity."""
    if operator is None:
        return lambda flat: flat
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    return lambda flat: out_structure.ravel(operator.mv(in_structure.unravel(flat)))


def flat_adjoint_mv(
    operator: lx.AbstractLinearOperator | None,
) -> Callable[[Array], Array]:
    if operator is None:
        return lambda flat: flat
    transposed = flat_mv(operator.transpose())
    return lambda flat: tree_conj(transposed(tree_conj(flat)))


def divide(numerator, denominator):
    """The quotient, or zero for a denominator that is zero."""
    safe = jnp.where(denominator == 0, 1, denominator)
    return jnp.where(denominator == 0, 0, numerator / safe)


def over(scalar: Real[Array, ""], array: Inexact[Array, "..."]) -> Array:
    """`array / scalar`, or `array` for a scalar that is zero."""
    return array / jnp.where(scalar == 0, 1, scalar).astype(array.dtype)


def rotation(a, b):
    """(c, s, ρ) of the plane rotation that takes the real (a, b) to (ρ, 0)."""
    rho = jnp.hypot(a, b)
    return jnp.where(rho == 0, 1, divide(a, rho)), divide(b, rho), rho


def loop(
    solver: AbstractKrylovSolver,
    keep_going: Callable,
    advance: Callable,
    start: Any,
    observe: Callable,
    max_steps: int,
) -> tuple[Any, Real[Array, " max_steps"] | None]:
    """A while loop; its last value, and the norms of the residuals if they are kept.

    `observe` takes what is carried to the number of steps and the norm of the residual.
    """
    norms = None
    if solver.history:
        norms = jnp.full(max_steps, jnp.nan, observe(start)[1].dtype)

    def body(carry):
        iterate, norms = carry
        if norms is None and solver.progress == 0:
            return advance(iterate), None
        before, _ = observe(iterate)
        iterate = advance(iterate)
        step, norm = observe(iterate)
        if norms is not None:
            index = jnp.where(step > 0, step - 1, max_steps)
            norms = norms.at[index].set(norm, mode="drop")
        if solver.progress > 0:
            _report(solver, before, step, norm)
        return iterate, norms

    return lax.while_loop(lambda carry: keep_going(carry[0]), body, (start, norms))


def run(
    solver: AbstractKrylovSolver, system: System, advance: Callable, start: Any
) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
    """Advances `start` until its `cycle` is done: its last value, result and stats."""
    final, norms = loop(
        solver,
        lambda iterate: ~iterate.cycle.done,
        advance,
        start,
        lambda iterate: (iterate.cycle.step, system.unit * iterate.cycle.norm),
        system.max_steps,
    )
    stats = statistics(solver, final.cycle.step, norms)
    return final, _result(final.cycle, system.max_steps), stats


def statistics(solver: AbstractKrylovSolver, num_steps, norms) -> dict[str, Any]:
    stats = {"num_steps": num_steps, "max_steps": solver.max_steps}
    return stats if norms is None else stats | {"residual_norms": norms}


def _result(cycle: Cycle, max_steps: int) -> lx.RESULTS:
    results = lx.RESULTS
    out = results.where(cycle.broken, results.breakdown, results.stagnation)
    exhausted = cycle.step >= max_steps
    out = results.where(exhausted, results.max_steps_reached, out)
    out = results.where(jnp.isfinite(cycle.norm), out, results.singular)
    return results.where(cycle.converged, results.successful, out)


def _report(solver: AbstractKrylovSolver, before, step, norm) -> None:
    """Prints a line every `solver.progress` steps; of a batch, the worst member."""
    before, step = eqxi.unvmap_max(before), eqxi.unvmap_max(step)
    norm = eqxi.unvmap_max(norm)
    name = type(solver).__name__

    def show(step, norm):
        print(f"{name}: step {int(step)}, residual {float(norm):.3e}", flush=True)

    due = (step > before) & (step % solver.progress == 0)
    lax.cond(
        eqxi.nonbatchable(due),
        lambda: jax.debug.callback(show, step, norm),
        lambda: None,
    )
