"""The steps of `MINRES` and of `LSMR`."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree, Real

from ..._base.structure import Structure
from ..._base.tree import tree_scale
from ..unrolled import Iteration, iteration_of
from . import lsmr, minres
from .cg import definite_preconditioner
from .iteration import divide, dot, flat_system, KrylovState, over
from .unrolled import check_steps, iteration, Progress, safe_length, safe_root, safe_unit


class _Short(eqx.Module):
    solution: Inexact[Array, " n"]
    lanczos: minres.Lanczos
    rotated: minres.Rotated


@iteration_of.register(minres.MINRES)
def _(
    solver: minres.MINRES, state: KrylovState, vector: PyTree[Array], options: Any
) -> Iteration:
    check_steps(solver)
    structure = Structure.of(state.operator.in_structure())
    preconditioner = definite_preconditioner(solver, options, structure)
    solver.check_aids(preconditioner, options)
    system = flat_system(solver, state, vector, options)
    precondition = system.mapped(preconditioner)

    def next_vector(y):
        """q, v = P q and the length of y in the norm of P."""
        y, norm = safe_unit(y)
        z = precondition(y)
        size = safe_root(dot(y, z).real)
        return over(size, y), over(size, z), norm * size

    residual = system.vector
    if "y0" in options:
        residual = residual - system.mv(system.guess)
    norm = safe_length(residual)
    q, v, beta = next_vector(residual)
    ratio = divide(norm, beta)
    zeros = jnp.zeros_like(residual)
    start = _Short(
        system.guess,
        minres.Lanczos(zeros, q, v, jnp.zeros_like(beta)),
        minres.unrotated(zeros, beta),
    )

    def advance(iterate: _Short, progress: Progress):
        old = iterate.lanczos
        image = system.mv(old.v)
        y = image - tree_scale(old.beta, old.previous)
        alpha = dot(old.v, y).real
        y = y - tree_scale(alpha, old.q)
        q, v, beta = next_vector(y)
        rotated, step_size, root, gamma = minres.rotate(iterate.rotated, old, alpha, beta)
        size = jnp.sqrt(old.beta**2 + alpha**2 + beta**2)
        size = jnp.maximum(progress.size, lax.stop_gradient(size))
        rounding = 10 * system.eps * size
        moves = (gamma > rounding) & (root > rounding)
        step = jnp.where(moves, step_size, 0)
        new = _Short(
            iterate.solution + tree_scale(step, rotated.w),
            minres.Lanczos(old.q, q, v, beta),
            rotated,
        )
        told = progress.after(
            system,
            new.solution,
            rotated.phi_bar * ratio,
            size,
            ends=~moves | (beta <= rounding),
            broken=jnp.array(False),
        )
        return new, told

    size = 0.5 if preconditioner is None else 0.0
    return iteration(
        system,
        start,
        advance,
        Progress.start(system, norm, size),
        residual,
        norm_of=lambda iterate: iterate.rotated.phi_bar * ratio,
        solution_of=lambda iterate: iterate.solution,
    )


class _Long(eqx.Module):
    change: Inexact[Array, " cols"]  # the solution is x + R z
    bidiagonal: lsmr.Bidiagonal
    rotated: lsmr.Rotated
    residual: lsmr.Residual
    norm: Real[Array, ""]


@iteration_of.register(lsmr.LSMR)
def _(
    solver: lsmr.LSMR, state: KrylovState, vector: PyTree[Array], options: Any
) -> Iteration:
    check_steps(solver)
    if solver.conlim is not None:
        raise ValueError(
            "`UnrolledAdjoint` got `LSMR(conlim=...)`, which ends as it runs. Leave "
            "`conlim` out."
        )
    system, maps = solver.prepared(state, vector, options)

    def adjoint(u):
        return maps.right_adjoint(maps.adjoint_mv(maps.left_adjoint(u)))

    residual = system.vector
    if "y0" in options:
        residual = residual - system.mv(system.guess)
    norm = safe_length(residual)
    u, beta = safe_unit(maps.left(residual))
    v, alpha = safe_unit(adjoint(u))
    ratio = divide(norm, beta)
    start = _Long(
        jnp.zeros_like(system.guess),
        lsmr.Bidiagonal(u, v, alpha),
        lsmr.unrotated(v, alpha, alpha * beta),
        lsmr.unrotated_residual(beta),
        norm,
    )

    def advance(iterate: _Long, progress: Progress):
        old = iterate.bidiagonal
        u = maps.left(maps.mv(maps.right(old.v))) - tree_scale(old.alpha, old.u)
        u, beta = safe_unit(u)
        v, alpha = safe_unit(adjoint(u) - tree_scale(beta, old.v))
        bidiagonal = lsmr.Bidiagonal(u, v, alpha)
        rotated, residual = lsmr.rotate(
            iterate.rotated, iterate.residual, bidiagonal, beta
        )
        size = lax.stop_gradient(jnp.sqrt(old.alpha**2 + beta**2))
        size = jnp.maximum(progress.size, size)
        limit = 10 * system.eps * size
        moves = (rotated.rho > limit) & (rotated.rho_bar > limit)
        step_size = divide(divide(rotated.zeta, rotated.rho), rotated.rho_bar)
        change = iterate.change + tree_scale(
            jnp.where(moves, step_size, 0), rotated.h_bar
        )
        norm = safe_root(lsmr.residual_square(rotated, residual))
        new = _Long(change, bidiagonal, rotated, residual, norm * ratio)
        least_squares = ~(jnp.abs(rotated.zeta_bar) > limit * norm)
        told = progress.after(
            system,
            change,
            new.norm,
            size,
            ends=~moves | least_squares,
            broken=jnp.array(False),
        )
        return new, told

    started = norm * lax.stop_gradient(alpha)
    return iteration(
        system,
        start,
        advance,
        Progress.start(system, started, 0.0),
        residual,
        norm_of=lambda iterate: iterate.norm,
        solution_of=lambda iterate: system.guess + maps.right(iterate.change),
    )
