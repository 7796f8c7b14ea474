"""What the Krylov solvers share: the loop, its cycles, and when it may stop.

A run consists of cycles. Each begins with a *check*, a pass of the loop that computes the
residual b − A x itself, and goes on with *steps* that move x along a recurrence, until
the residual that the recurrence tells is within the tolerance, or the cycle can go no
further. Only a check ends a run, so what is `successful` rests on b − A x. Both kinds of
pass take the same product with A, which stands in the loop once: under `jax.vmap` over
vectors it is one product with a block of columns, each of them in a cycle of its own.
"""

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
from jaxtyping import Array, ArrayLike, Bool, Inexact, Integer, PyTree, Real, Scalar

from ..._base.axes import largest, total, while_loop
from ..._base.checks import check_options
from ..._base.structure import Structure
from ..._base.tree import promoting, tree_conj
from ..._kernel.norms import power_of_two
from ..._operator.adjoint import transpose_of
from ..._operator.function import Spread
from ..._operator.matrix import widened
from ..options import check_tolerances, resolve_y0


OPTIONS = ("preconditioner", "y0")
# Of a cycle: what the next pass is, or how the run has ended.
_STEP = 0
_CHECK = 1
_CHECK_BROKEN = 2
_CONVERGED = 3
_STALLED = 4
_BROKEN = 5


class KrylovState(eqx.Module):
    """A, and a power of two near |A u| for a unit vector u: A / scale is near one.

    The scale is negative for the negative definite A of `CG`, and A / scale positive.
    """

    operator: lx.AbstractLinearOperator
    scale: Real[Array, ""]
    # Of products with A / scale, in units of that of the dtype, where it is larger.
    rounding: Real[Array, ""] | None = None

    @classmethod
    def create(cls, operator: lx.AbstractLinearOperator) -> "KrylovState":
        operator = lx.linearise(operator)
        image = operator.mv(Structure.of(operator.in_structure()).probe())
        return cls(operator, largest(power_of_two(image), Spread.of(operator).codomain))


class Cycle(eqx.Module):
    """Where a run is; a part of what each solver carries through its loop."""

    step: Integer[Array, ""]
    norm: Real[Array, ""]  # of the residual, as far as the last pass tells
    measure: Real[Array, ""]  # at the last check, what the cycle is to make smaller
    stalls: Integer[Array, ""]  # cycles in a row that did not
    phase: Integer[Array, ""]
    goal: Real[Array, ""] | None  # the norm to end a cycle at, if it is not `allowed`

    @property
    def due(self) -> Bool[Array, ""]:
        """Whether the next pass is a check."""
        return self.phase > _STEP

    @property
    def broken(self) -> Bool[Array, ""]:
        """Whether the check is due because the recurrence broke down."""
        return self.phase == _CHECK_BROKEN

    @property
    def done(self) -> Bool[Array, ""]:
        return self.phase >= _CONVERGED

    def checked(self, norm, met, goal, measure, *, shrink, patience, max_steps):
        """After a check; `shrink` is by what a cycle should make `measure` smaller."""
        moved = measure < shrink * self.measure  # no measure that is not finite
        stalls = jnp.where(moved, 0, self.stalls + 1)
        stuck = (stalls >= patience) | (self.step >= max_steps)
        ended = jnp.where(met, _CONVERGED, self.phase + (_STALLED - _CHECK))
        return Cycle(
            step=self.step,
            norm=norm,
            measure=jnp.where(moved, measure, self.measure),
            stalls=stalls,
            phase=jnp.where(met | stuck, ended, _STEP),
            goal=goal,
        )

    def stepped(self, norm, ends, *, max_steps, broken: Any = False, count: Any = 1):
        """After a step; `ends`, too for NaN, says that the cycle can go no further."""
        step = self.step + count
        due = jnp.where(ends | (step >= max_steps), _CHECK, _STEP)
        phase = jnp.where(broken, _CHECK_BROKEN, due)
        return dataclasses.replace(self, step=step, norm=norm, phase=phase)

    def finished(self) -> "Cycle":
        """Converged by what was found since the last check, without another."""
        return dataclasses.replace(self, phase=jnp.array(_CONVERGED))


class AbstractKrylovSolver(lx.AbstractLinearSolver[Any]):
    """A solver of products with A alone, that stops at a tolerance."""

    rtol: eqx.AbstractVar[Real[ArrayLike, ""] | None]
    atol: eqx.AbstractVar[Real[ArrayLike, ""]]
    norm: eqx.AbstractVar[Callable[[PyTree], Scalar] | None]
    max_steps: eqx.AbstractVar[int | None]
    preconditioner: eqx.AbstractVar[Any]  # an operator, or `None`; of some a function
    derivative_rtol: eqx.AbstractVar[Real[ArrayLike, ""] | None]
    history: eqx.AbstractVar[bool]
    progress: eqx.AbstractVar[int]

    def __check_init__(self):
        tolerances = {"rtol": self.rtol, "derivative_rtol": self.derivative_rtol}
        check_tolerances(type(self).__name__, atol=self.atol, **tolerances)
        for name in ("max_steps", "progress"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(
                    f"`{type(self).__name__}({name}=...)` got {value}. Pass a "
                    "non-negative integer."
                )
        if self.norm is not None and not callable(self.norm):
            raise TypeError(
                f"`{type(self).__name__}(norm=...)` got {self.norm!r}. Pass a function "
                "from a vector to a scalar, or other settings by their names."
            )
        if not self.has_tolerance and self.max_steps is None:
            raise ValueError(
                f"`{type(self).__name__}(rtol=0, atol=0, max_steps=None)` would never "
                "stop. Must specify `rtol`, `atol`, or `max_steps` (or some combination "
                "of all three)."
            )

    @property
    def has_tolerance(self) -> bool:
        """Without one, `max_steps` steps are what was asked for."""
        given = (self.rtol, self.atol)
        return not all(isinstance(tol, int | float) and tol == 0 for tol in given)

    def for_derivative(self) -> "AbstractKrylovSolver":
        """The solver of tangents and cotangents."""
        return derivative_solver(self)

    def transpose(self, state: Any, options: dict[str, Any]):
        transform = transpose_of
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


def derivative_solver(solver: AbstractKrylovSolver) -> Any:
    """The solver for tangents and cotangents, relative to each of them.

    Their units are not those of b, so `atol` does not apply: a small cotangent would be
    solved for by zero. `rtol` is never larger than that of the primal. A number of steps
    is the same for all.
    """
    if not solver.has_tolerance:
        return dataclasses.replace(solver, history=False)
    rtol, own = solver.rtol, solver.derivative_rtol
    if rtol is None or (isinstance(rtol, int | float) and rtol == 0):
        rtol = own
    elif isinstance(rtol, int | float) and isinstance(own, int | float):
        rtol = min(rtol, own)
    elif own is not None:
        rtol = jnp.minimum(rtol, own)
    return dataclasses.replace(solver, rtol=rtol, atol=0.0, norm=None, history=False)


class System(NamedTuple):
    """(A / scale) z = b / unit on flat vectors, where x = z unit / scale.

    Scale and unit are powers of two, so that all is near one in size: no square of a
    vector, nor of its product with A / scale, over- or underflows.
    """

    mv: Callable[[Array], Array]
    adjoint_mv: Callable[[Array], Array]
    vector: Inexact[Array, " rows"]
    guess: Inexact[Array, " cols"]
    norm: Real[Array, ""]  # of b
    rtol: Real[Array, ""]
    allowed: Real[Array, ""]  # atol + rtol |b|
    excess: Callable[[Array], Array] | None  # of a residual, in the norm of the solver
    max_steps: int
    eps: float | Real[Array, ""]  # of products with A / scale: of the coarsest leaf
    unit: Real[Array, ""]
    scale: Real[Array, ""]
    in_structure: Structure
    spread: Spread

    def solution(self, flat) -> PyTree[Array]:
        flat = self.unit.astype(flat.dtype) * flat / self.scale.astype(flat.dtype)
        return self.in_structure.unravel(flat)

    def judge(self, residual, norm):
        """Whether the residual is small enough, and the Euclidean norm to aim at."""
        if self.excess is None:
            return norm <= self.allowed, None
        excess = self.excess(residual)
        return excess <= 1, divide(norm, excess)

    def goal(self, cycle: Cycle):
        return self.allowed if cycle.goal is None else cycle.goal

    def start(self) -> Cycle:
        infinite, zero = jnp.full_like(self.norm, jnp.inf), jnp.array(0)
        goal = None if self.excess is None else self.allowed
        return Cycle(zero, infinite, infinite, zero, jnp.array(_CHECK), goal)

    def mapped(self, operator, *, adjoint: bool = False) -> Callable[[Array], Array]:
        """Products with a preconditioner of A / scale; `None` is the identity."""
        if operator is None:
            return lambda flat: flat
        product = (flat_adjoint_mv if adjoint else flat_mv)(operator)
        scale = jnp.abs(self.scale)
        return lambda flat: scale.astype(flat.dtype) * product(flat)


def flat_system(
    solver: AbstractKrylovSolver,
    state: KrylovState,
    vector: PyTree[Array],
    options: dict[str, Any],
) -> System:
    check_options(solver, options, OPTIONS)
    operator = state.operator
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    y0 = resolve_y0(solver, options, in_structure)
    flat = out_structure.ravel(vector)
    spread = Spread.of(operator)
    if y0 is None:
        guess = in_structure.ravel(jtu.tree_map(jnp.zeros_like, in_structure.as_tree()))
        unit = largest(power_of_two(flat), spread.codomain)
    else:
        guess = in_structure.ravel(y0)
        guess = guess * state.scale.astype(guess.dtype)
        unit = largest(power_of_two((flat, guess)), spread.any)
        guess = guess / unit.astype(guess.dtype)
    scale = state.scale.astype(unit.dtype)
    flat = flat / unit.astype(flat.dtype)
    norm = length(flat, spread.codomain)
    products = widened(operator)
    eps: Any = Structure.of((products.in_structure(), products.out_structure())).eps
    rtol = resolve_rtol(solver.rtol, norm.dtype, eps)
    atol = jnp.asarray(solver.atol, norm.dtype) / unit
    size = max(in_structure.size, out_structure.size)
    norm_of: Any = solver.norm

    def scaled(product):
        return lambda flat: product(flat) / scale.astype(flat.dtype)

    def excess(residual):
        allowed = atol + rtol * jnp.abs(flat)
        quotient = divide(residual, allowed.astype(residual.dtype), at_zero=jnp.inf)
        quotient = jnp.where(residual == 0, 0, quotient)
        return promoting(norm_of)(out_structure.unravel(quotient))

    if state.rounding is not None:
        eps = eps * state.rounding.astype(norm.dtype)
    return System(
        mv=scaled(flat_mv(products)),
        adjoint_mv=scaled(flat_adjoint_mv(products)),
        vector=flat,
        guess=guess,
        norm=norm,
        rtol=rtol,
        allowed=atol + rtol * norm,
        excess=None if norm_of is None else excess,
        max_steps=10 * size if solver.max_steps is None else solver.max_steps,
        eps=eps,
        unit=unit,
        scale=scale,
        in_structure=in_structure,
        spread=spread,
    )


def resolve_rtol(rtol: Any, dtype, eps: float) -> Real[Array, ""]:
    """By default 1e-10 in double precision, 1e-5 in single, 10 eps in less."""
    if rtol is None:
        rtol = 1e-10 if eps < 1e-12 else 1e-5 if eps < 1e-6 else 10 * eps
    return jnp.asarray(rtol, dtype)


def flat_mv(operator: lx.AbstractLinearOperator) -> Callable[[Array], Array]:
    """Products with `operator` of flat vectors."""
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    return lambda flat: out_structure.ravel(operator.mv(in_structure.unravel(flat)))


def flat_adjoint_mv(operator: lx.AbstractLinearOperator) -> Callable[[Array], Array]:
    def product(flat):  # not every operator has a transpose
        return tree_conj(flat_mv(transpose_of(operator))(tree_conj(flat)))

    return product


def dot(left: Inexact[Array, " n"], right: Inexact[Array, " n"]) -> Array:
    return jnp.vdot(left, right, precision=lax.Precision.HIGHEST)


def length(flat: Inexact[Array, " n"], spread: frozenset = frozenset()) -> Array:
    """The Euclidean norm of a vector that is near one in size; see `Spread`."""
    return jnp.sqrt(total(dot(flat, flat).real, spread))


def divide(numerator, denominator, *, at_zero: float = 0):
    """The quotient, or zero for a denominator that is zero."""
    zero = denominator == 0
    return jnp.where(zero, at_zero, numerator / jnp.where(zero, 1, denominator))


def over(scalar: Real[Array, ""], array: Inexact[Array, "..."]) -> Array:
    """`array / scalar`, or `array` for a scalar that is zero."""
    return array / jnp.where(scalar == 0, 1, scalar).astype(array.dtype)


def rotation(a, b):
    """(c, s, ρ) of the plane rotation that takes the real (a, b) to (ρ, 0)."""
    rho = jnp.sqrt(a * a + b * b)
    zero = rho == 0
    safe = jnp.where(zero, 1, rho)
    return jnp.where(zero, 1, a / safe), b / safe, rho


def _loop(
    solver: AbstractKrylovSolver,
    advance: Callable,
    start: Any,
    observe: Callable,
    max_steps: int,
    norms: Real[Array, " max_steps"] | None,
) -> tuple[Any, Real[Array, " max_steps"] | None]:
    """A while loop; its last value, and the norms of the residuals if they are kept.

    `norms` are those of steps before, if there were some.

    `observe` takes what is carried to the number of steps and the norm of the residual.
    """
    if solver.history and norms is None:
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
            report(solver, before, step, norm)
        return iterate, norms

    return while_loop(lambda carry: ~carry[0].cycle.done, body, (start, norms))


def run(
    solver: AbstractKrylovSolver,
    system: System,
    advance: Callable,
    start: Any,
    norms: Real[Array, " max_steps"] | None = None,
) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
    """Advances `start` until its `cycle` is done: its last value, result and stats."""
    final, norms = _loop(
        solver,
        advance,
        start,
        lambda iterate: (iterate.cycle.step, system.unit * iterate.cycle.norm),
        system.max_steps,
        norms,
    )
    cycle = final.cycle
    stats = {"num_steps": cycle.step, "max_steps": solver.max_steps}
    if norms is not None:
        stats["residual_norms"] = norms
    return final, _result(solver, cycle, system.max_steps), stats


def _result(solver: AbstractKrylovSolver, cycle: Cycle, max_steps: int) -> lx.RESULTS:
    results = lx.RESULTS
    if solver.has_tolerance:
        exhausted = cycle.step >= max_steps
        out = results.where(exhausted, results.max_steps_reached, results.stagnation)
    else:
        out = results.successful
    out = results.where(cycle.phase == _BROKEN, results.breakdown, out)
    out = results.where(jnp.isfinite(cycle.norm), out, results.singular)
    return results.where(cycle.phase == _CONVERGED, results.successful, out)


def report(solver: AbstractKrylovSolver, before, step, norm) -> None:
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
