"""What is kept of the parts of an operator: each solved by a solver of its own."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Inexact, Integer, PyTree, Real

from ..._base.order import after, after_in_batch
from ..._base.results import first_failure
from ..._kernel.condition import full_rank_result
from ..._operator.block_diagonal import BlockDiagonal
from ..._operator.kronecker import Kronecker
from ..._operator.parts import along_each_axis
from ..._operator.runs import split_by_runs
from ..factorisation import AbstractFactorisation, AbstractTelling
from ..state import structures_of, swapped


Solver = lx.AbstractLinearSolver


class Part(eqx.Module):
    """The state of one part, or of `count` equal ones with a leading axis."""

    state: PyTree[Any]
    structures: eqxi.Static
    count: int | None = eqx.field(static=True, default=None)

    @classmethod
    def create(cls, solver: Solver, operator: lx.AbstractLinearOperator) -> "Part":
        return cls(solver.init(operator, {}), structures_of(operator))

    @property
    def sizes(self) -> tuple[int, int]:
        """Those of b and of x, of one part."""
        out_structure, in_structure = self.structures.value
        return out_structure.size, in_structure.size

    def solve(self, solver: Solver, vector: Inexact[Array, " m"]):
        """The flat solution of a flat vector, and the result."""
        out_structure, in_structure = self.structures.value
        vector = out_structure.unravel(vector)
        solution, result, _ = solver.compute(self.state, vector, {})
        return in_structure.ravel(solution), result

    def transpose(self, solver: Solver) -> "Part":
        transpose = lambda state: solver.transpose(state, {})[0]
        return Part(self._map(transpose), swapped(self.structures), self.count)

    def conj(self, solver: Solver) -> "Part":
        conj = lambda state: solver.conj(state, {})[0]
        return Part(self._map(conj), self.structures, self.count)

    def result(self, solver: Solver) -> lx.RESULTS:
        """What the factors tell, of the worst of equal parts."""
        if not isinstance(solver, AbstractTelling):
            return lx.RESULTS.successful
        return worst(self._map(solver.result))

    def rank(self, solver: Solver) -> Integer[Array, ""] | int:
        """The sum of the ranks of equal parts; the full one if the solver tells none."""
        if isinstance(solver, AbstractFactorisation):
            stats = self._map(solver.stats)
            if "rank" in stats:
                return jnp.sum(stats["rank"])
        return min(self.sizes) * (1 if self.count is None else self.count)

    def reciprocal_condition(self, solver: Solver) -> Real[Array, ""] | None:
        """The smallest of equal parts; `None` if the solver tells none."""
        if not isinstance(solver, AbstractTelling):
            return None
        estimate = self._map(solver.stats).get("reciprocal_condition")
        return None if estimate is None else jnp.min(estimate, initial=1)

    def _map(self, function):
        if self.count is None:
            return function(self.state)
        return eqx.filter_vmap(function)(self.state)


def worst(result: lx.RESULTS) -> lx.RESULTS:
    """One result of an array of them: zero is `successful`."""
    return jtu.tree_map(lambda code: jnp.max(code, initial=0), result)


class KroneckerState(eqx.Module):
    """The factors, one by one."""

    parts: tuple[Part, ...]

    @classmethod
    def create(cls, solvers: tuple[Solver, ...], operator: Kronecker):
        parts: list[Part] = []
        for solver, factor in zip(solvers, operator.operators, strict=True):
            factor = _ordered(after_in_batch, parts, factor)
            parts.append(Part.create(solver, factor))
        return cls(tuple(parts))

    def solve(self, solvers: tuple[Solver, ...], vector: Inexact[Array, " m"]):
        told = []

        def of_rows(solver: Solver, part: Part):
            def solve(rows):
                solve_row = lambda row: part.solve(solver, row)
                solutions, results = jax.vmap(solve_row)(rows)
                told.append(worst(results))
                return solutions

            return solve

        vector = after_in_batch(self.parts, vector)
        functions = [of_rows(*pair) for pair in zip(solvers, self.parts, strict=True)]
        sizes = [part.sizes for part in self.parts]
        solution = along_each_axis(functions, sizes, vector)
        return solution, _first(told)

    def result(self, solvers: tuple[Solver, ...], *, full_rank: bool) -> lx.RESULTS:
        told = _results(solvers, self.parts)
        known = _known(_estimates(solvers, self.parts))  # one that is not counts as 1
        if full_rank and known:
            estimate = jnp.prod(jnp.stack(known))
            rows = cols = 1
            for part in self.parts:
                rows, cols = rows * part.sizes[0], cols * part.sizes[1]
            told.append(full_rank_result(estimate, rows, cols))
        return _first(told)

    def rank(self, solvers: tuple[Solver, ...]) -> Integer[Array, ""]:
        rank = jnp.array(1)
        for solver, part in zip(solvers, self.parts, strict=True):
            rank = rank * part.rank(solver)
        return rank

    def reciprocal_condition(self, solvers: tuple[Solver, ...]):
        estimates = _estimates(solvers, self.parts)
        known = _known(estimates)
        return jnp.prod(jnp.stack(known)) if len(known) == len(estimates) else None


class BlocksState(eqx.Module):
    """The runs of equal blocks, one by one."""

    parts: tuple[Part, ...]

    @classmethod
    def create(cls, solvers: tuple[Solver, ...], operator: BlockDiagonal):
        parts: list[Part] = []
        for solver, run in zip(solvers, operator.runs, strict=True):
            counted = [part for part in parts if part.count is not None]
            if run.count is None:
                block = _ordered(after_in_batch, parts, run.operator)
                parts.append(Part.create(solver, block))
                continue
            blocks = _ordered(after, counted, run.operator)
            blocks = _ordered(after_in_batch, parts, blocks)
            init = lambda block, solver=solver: Part.create(solver, block)
            part = eqx.filter_vmap(init)(blocks)
            parts.append(Part(part.state, part.structures, run.count))
        return cls(tuple(parts))

    def solve(self, solvers: tuple[Solver, ...], vector: Inexact[Array, " m"]):
        sizes = [part.sizes[0] * (part.count or 1) for part in self.parts]
        told, solutions, counted = [], [], None
        vector = after_in_batch(self.parts, vector)
        batches = [part for part in self.parts if part.count is not None]
        if len(batches) > 1:
            vector = after(batches, vector)
        pieces = split_by_runs(vector, sizes)
        last = None
        for solver, part, piece in zip(solvers, self.parts, pieces, strict=True):
            piece = after_in_batch(last, piece)
            if part.count is None:
                solution, result = part.solve(solver, piece)
            else:
                one = Part(part.state, part.structures)
                rows = after(counted, piece).reshape(part.count, part.sizes[0])
                solve = lambda part, row, solver=solver: part.solve(solver, row)
                solution, result = eqx.filter_vmap(solve)(one, rows)
                counted = solution
                solution, result = solution.reshape(-1), worst(result)
            last = solution
            solutions.append(solution)
            told.append(result)
        if len(solutions) == 1:
            return solutions[0], _first(told)
        # Who waits for the first entry waits for all blocks.
        solution = after_in_batch(last, jnp.concatenate(solutions))
        if len(batches) > 1:
            solution = after(counted, solution)
        return solution, _first(told)

    def result(self, solvers: tuple[Solver, ...], *, full_rank: bool) -> lx.RESULTS:
        del full_rank
        return _first(_results(solvers, self.parts))

    def rank(self, solvers: tuple[Solver, ...]) -> Integer[Array, ""]:
        rank = jnp.array(0)
        for solver, part in zip(solvers, self.parts, strict=True):
            rank = rank + part.rank(solver)
        return rank

    def reciprocal_condition(self, solvers: tuple[Solver, ...]):
        estimates = _estimates(solvers, self.parts)
        known = _known(estimates)
        return jnp.min(jnp.stack(known)) if len(known) == len(estimates) else None


def _ordered(order, earlier: list[Part], operator: lx.AbstractLinearOperator):
    """The operator, factorised after those before it: see `_base/order.py`."""
    if not earlier:
        return operator
    arrays, rest = eqx.partition(operator, eqx.is_inexact_array)
    return eqx.combine(order(earlier[-1].state, arrays), rest)


def _results(solvers, parts) -> list[lx.RESULTS]:
    return [part.result(solver) for solver, part in zip(solvers, parts, strict=True)]


def _estimates(solvers, parts) -> list[Real[Array, ""] | None]:
    pairs = zip(solvers, parts, strict=True)
    return [part.reciprocal_condition(solver) for solver, part in pairs]


def _known(estimates: list[Real[Array, ""] | None]) -> list[Real[Array, ""]]:
    return [estimate for estimate in estimates if estimate is not None]


def _first(told: list[lx.RESULTS]) -> lx.RESULTS:
    result = lx.RESULTS.successful
    for other in told:
        result = first_failure(result, other)
    return result
