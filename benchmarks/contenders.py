"""Who takes part: our solvers, those of lineax, other libraries, and the limits."""

import dataclasses
import functools as ft
from collections.abc import Callable, Mapping
from typing import Any

import jax
import lineax as lx

import pseudojvp as pj

from . import limits
from .harness import Contender


@dataclasses.dataclass(frozen=True)
class Ours:
    """One of our solvers, lineax's of the same kind, and what no such solver can avoid.

    - `factorise`: the bare library call, from the matrix; `None` if there is none.
    """

    solver: lx.AbstractLinearSolver
    same: lx.AbstractLinearSolver
    factorise: Callable[[jax.Array], Any] | None = None


# What serves a tall or wide matrix of full rank.
QR = Ours(pj.QR(), lx.QR(), limits.householder)
NORMAL = Ours(pj.Normal(pj.Cholesky()), lx.Normal(lx.Cholesky()), limits.gram)
CHOLESKY = Ours(pj.CholeskyQR(), lx.QR(), limits.gram)
FULL_RANK = (QR, CHOLESKY, NORMAL)
# Of these the gradients and tangents by `vmap` may hang: lineax's QR, and JAX's.
MAY_HANG = ("QR()", "qr")


def solvers(
    program: Callable,
    ours: tuple[Ours, ...],
    lineax: tuple[lx.AbstractLinearSolver, ...] = (),
    numpy: Mapping[str, Callable] | None = None,
    operators: Mapping[str, Callable] | None = None,
    limit: Callable[[Callable], Callable] | None = None,
    may_hang: tuple[str, ...] = (),
) -> tuple[Contender, ...]:
    """Ours, lineax's, functions of JAX itself, and the limit of each of ours.

    **Arguments:**

    - `program`: from `(linear_solve, solver)` to the function of the problem data that is
        compiled and timed. The contenders differ in these two values alone.
    - `ours`, `lineax`: solvers; those of lineax beyond the ones of the same kind.
    - `numpy`, `operators`: functions x = f(A, b) for one vector b, by name; A is an array
        or an operator.
    - `limit`: from a bare factorisation to the function of the problem data that does it
        and the products that the job cannot avoid.
    - `may_hang`: the names of those that run apart, of whatever library: on two cores,
        batched library calls of one program can wait for each other for ever.
    """
    same = [each.same for each in ours]
    functions = {name: _of_matrix(f) for name, f in (numpy or {}).items()}
    functions |= operators or {}
    limited = ours if limit else ()
    takes_part = ft.partial(_takes_part, may_hang)
    return (
        *(
            takes_part(
                "pseudojvp",
                describe(each.solver),
                compiled(program(pj.linear_solve, each.solver)),
                describe(each.same),
            )
            for each in ours
        ),
        *(
            takes_part("lineax", name, compiled(program(lx.linear_solve, solver)))
            for name, solver in {describe(it): it for it in (*same, *lineax)}.items()
        ),
        *(
            takes_part("jax", name, compiled(program(_as_linear_solve(f), None)))
            for name, f in functions.items()
        ),
        *(
            Contender("limit", describe(each.solver), compiled(limit(each.factorise)))
            for each in limited
            if each.factorise
        ),
    )


def _takes_part(may_hang, library: str, name: str, prepare, same="") -> Contender:
    return Contender(library, name, prepare, same, apart=name in may_hang)


def scipy(**functions: Callable) -> tuple[Contender, ...]:
    """Functions of the problem data as they are, by name."""
    return tuple(
        Contender("scipy", name, lambda *arguments, f=f: ft.partial(f, *arguments))
        for name, f in functions.items()
    )


def compiled(program: Callable) -> Callable[..., Callable[[], Any]]:
    """`Contender.prepare`: compiles `program`, with the problem data as arguments."""

    def prepare(*arguments):
        arguments = jax.block_until_ready(jax.device_put(arguments))
        call = jax.jit(program).lower(*arguments).compile()
        return ft.partial(call, *arguments)

    return prepare


@dataclasses.dataclass(frozen=True)
class _Solution:
    value: jax.Array


def _as_linear_solve(function):
    """x = f(A, b) in the place of `linear_solve`."""

    def linear_solve(operator, vector, _):
        return _Solution(function(operator, vector))

    return linear_solve


def _of_matrix(function):
    return lambda operator, vector: function(operator.as_matrix(), vector)


def describe(solver: lx.AbstractLinearSolver) -> str:
    """`Normal(Cholesky())`: the solver's name with the solvers inside it."""
    inside = ", ".join(
        describe(value)
        for value in vars(solver).values()
        if isinstance(value, lx.AbstractLinearSolver)
    )
    return f"{type(solver).__name__}({inside})"
