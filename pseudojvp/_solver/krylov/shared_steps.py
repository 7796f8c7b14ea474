"""What one shift of many does with a step of Lanczos, that of them all."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Real

from . import cg, minres
from .iteration import Cycle, divide, over, System


class Method(NamedTuple):
    """What a shared run needs of `CG` or `MINRES`."""

    start: Any  # the iterate of x = 0
    # Of A + s I, from an iterate, Lanczos before, the next of its vectors, α + s and β.
    step: Callable[[System, Any, minres.Lanczos, Array, Array, Array], Any]
    resume: Callable[[Any], Any]  # the iterate of the solver itself, before a check
    advance: Callable[[System, Any], Any]

    @classmethod
    def of(cls, solver: cg.CG | minres.MINRES, system: System) -> "Method":
        of_cg = isinstance(solver, cg.CG)
        return _of_cg(solver, system) if of_cg else _of_minres(solver, system)


def _of_minres(solver: minres.MINRES, system: System) -> Method:
    bare = dataclasses.replace(solver, lanczos=False)
    begun = bare.start(system, 0.5)
    first = over(system.norm, system.vector)
    begun = bare.checked(system, begun, system.vector, first, first, system.norm)

    # The shifts share Lanczos: there is none in what each of them carries.
    def without(iterate):
        return eqx.tree_at(lambda iterate: iterate.lanczos, iterate, None)

    def filled(iterate, lanczos):
        where = lambda iterate: iterate.lanczos
        return eqx.tree_at(where, iterate, lanczos, is_leaf=lambda node: node is None)

    def step(own, iterate, lanczos, q, alpha, beta):
        iterate = filled(iterate, lanczos)
        return without(bare.stepped(own, iterate, q, q, alpha, beta))

    return Method(
        start=without(begun),
        step=step,
        resume=lambda iterate: filled(iterate, begun.lanczos),
        advance=lambda own, iterate: bare.advance(own, None, iterate),
    )


class _Direct(eqx.Module):
    """CG as the LDLᴴ factorisation of T: p_k = v_k − l_k p_{k−1}, A-conjugate."""

    solution: Inexact[Array, " n"]
    direction: Inexact[Array, " n"]  # p
    square: Real[Array, ""]  # |p|^2
    pivot: Real[Array, ""]  # <p, A p>
    share: Real[Array, ""]  # of the next p in L⁻¹ |b| e_1; but for its sign |r|
    curvature: Real[Array, ""]  # the largest |pivot| / |p|^2 so far
    travelled: Real[Array, ""]  # a bound of the length of x
    cycle: Cycle


def _of_cg(solver: cg.CG, system: System) -> Method:
    begun = cg.start_of(system, 0.5, False)
    zeros, zero = jnp.zeros_like(system.vector), jnp.zeros_like(system.norm)

    def step(own, iterate: _Direct, lanczos, q, alpha, beta) -> _Direct:
        l = divide(lanczos.beta, iterate.pivot)  # noqa: E741
        direction = lanczos.q - l.astype(q.dtype) * iterate.direction
        pivot = alpha - l * lanczos.beta
        square = 1 + l**2 * iterate.square
        curvature = pivot / square
        largest = jnp.maximum(iterate.curvature, jnp.abs(curvature))
        moves = curvature > 10 * own.eps * largest
        step_size = jnp.where(moves, divide(iterate.share, pivot), 0)
        share = -beta * step_size
        norm = jnp.where(moves, jnp.abs(share), iterate.cycle.norm)
        cycle = iterate.cycle.stepped(
            norm,
            ~(norm > system.goal(iterate.cycle)),
            broken=~moves,
            max_steps=system.max_steps,
        )
        return _Direct(
            solution=iterate.solution + step_size.astype(q.dtype) * direction,
            direction=direction,
            square=square,
            pivot=pivot,
            share=share,
            curvature=largest,
            travelled=iterate.travelled + jnp.abs(step_size) * jnp.sqrt(square),
            cycle=cycle,
        )

    def resume(iterate: _Direct) -> cg.Iterate:
        return dataclasses.replace(
            begun,
            solution=iterate.solution,
            curvature=iterate.curvature,
            travelled=iterate.travelled,
            cycle=iterate.cycle,
        )

    start = _Direct(
        solution=zeros,
        direction=zeros,
        square=zero,
        pivot=zero,
        share=system.norm,
        curvature=begun.curvature,
        travelled=zero,
        cycle=begun.cycle,
    )
    bare = dataclasses.replace(solver, lanczos=False)
    return Method(
        start, step, resume, lambda own, iterate: bare.advance(own, None, None, iterate)
    )
