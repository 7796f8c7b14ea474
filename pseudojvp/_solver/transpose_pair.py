from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import lineax as lx
from jaxtyping import Array, PyTree

from .counterpart import counterpart
from .verified import verified


class _PairState(eqx.Module):
    """A and A^T with the states of their solvers; the first is what is solved with."""

    operators: tuple[lx.AbstractLinearOperator, lx.AbstractLinearOperator]
    states: tuple[PyTree[Any], PyTree[Any]]
    swapped: eqxi.Static


class TransposePair(lx.AbstractLinearSolver[_PairState]):
    """One solver for A, another for A^T: what an adjoint solve uses.

    `options` are those of `solver`; A^T gets what `solver.transpose` makes of them (a
    preconditioner is transposed).

    **Arguments:**

    - `solver`, `transpose_solver`: any two solvers that take the options.
    """

    solver: lx.AbstractLinearSolver = eqx.field(converter=counterpart)
    transpose_solver: lx.AbstractLinearSolver = eqx.field(converter=counterpart)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]):
        forward = self.solver.init(operator, options)
        _, options = self.solver.transpose(forward, options)
        transpose = operator.transpose()
        backward = self.transpose_solver.init(transpose, options)
        return _PairState((operator, transpose), (forward, backward), eqxi.Static(False))

    def compute(
        self, state: _PairState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        solver, _ = self._ordered(state)
        solution, result, stats = solver.compute(state.states[0], vector, options)
        mv = state.operators[0].mv
        return *verified(solver, mv, vector, solution, result), stats

    def transpose(self, state: _PairState, options: dict[str, Any]):
        solver, _ = self._ordered(state)
        _, options = solver.transpose(state.states[0], options)
        swapped = eqxi.Static(not state.swapped.value)
        (operator, transpose), (forward, backward) = state.operators, state.states
        state = _PairState((transpose, operator), (backward, forward), swapped)
        return state, options

    def conj(self, state: _PairState, options: dict[str, Any]):
        first, second = self._ordered(state)
        forward, new_options = first.conj(state.states[0], options)
        _, transposed_options = first.transpose(state.states[0], options)
        backward, _ = second.conj(state.states[1], transposed_options)
        operators = (lx.conj(state.operators[0]), lx.conj(state.operators[1]))
        return _PairState(operators, (forward, backward), state.swapped), new_options

    def assume_full_rank(self) -> bool:
        return self.solver.assume_full_rank()

    def _ordered(self, state: _PairState):
        pair = (self.solver, self.transpose_solver)
        return pair[::-1] if state.swapped.value else pair
