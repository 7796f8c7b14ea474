import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import lineax as lx
from jaxtyping import Array, Inexact, Real


State = TypeVar("State")


class Slogdet(NamedTuple):
    """What [`pseudojvp.slogdet`][] returns: det A = `sign` exp(`logabsdet`)."""

    sign: Inexact[Array, ""]
    """±1, or a complex number of size one; zero if A is singular."""
    logabsdet: Real[Array, ""]
    """log |det A|; −inf if A is singular."""


class AbstractTelling(lx.AbstractLinearSolver[State]):
    """A solver whose state says something of A; a solve may say more."""

    @abc.abstractmethod
    def result(self, state: State) -> lx.RESULTS:
        """Returns `successful`, or why no solve with this state can be."""

    @abc.abstractmethod
    def stats(self, state: State) -> dict[str, Any]:
        """Returns what the state tells of A."""


class AbstractFactorisation(AbstractTelling[State]):
    """A solver that reads every entry of A, once, and what its factors say of A.

    It holds for every solve with them.
    """

    def slogdet(self, state: State) -> Slogdet | None:
        """Returns sign and log |.| of the determinant; `None` where factors tell none.

        If A is not square or of deficient rank: 1, and that of the product of its
        singular values that are not zero. Its derivatives are made from tr(A† A').
        """
        del state


class AbstractByParts(lx.AbstractLinearSolver[State]):
    """A solver whose determinant is made of the parts of an operator."""

    @abc.abstractmethod
    def slogdet_by_parts(
        self, operator: lx.AbstractLinearOperator, state: State, factorised: Callable
    ) -> Slogdet | None:
        """Returns sign and log |.| of the determinant, which JAX differentiates; `None`
        where those of `slogdet` are to be taken.

        `operator` has its tangents and `state` has none. `factorised(operator, solver,
        state)` is the `Factorised` of a part: its `solve` and `slogdet` have derivatives.
        """
