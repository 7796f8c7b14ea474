import abc
from typing import Any, TypeVar

import lineax as lx


State = TypeVar("State")


class AbstractFactorisation(lx.AbstractLinearSolver[State]):
    """A solver that reads every entry of A, once, and what its factors say of A.

    It holds for every solve with them.
    """

    @abc.abstractmethod
    def result(self, state: State) -> lx.RESULTS:
        """Returns `successful`, or why no solve with these factors can be."""

    @abc.abstractmethod
    def stats(self, state: State) -> dict[str, Any]:
        """Returns what the factors tell of A."""
