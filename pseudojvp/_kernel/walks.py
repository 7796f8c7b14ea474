"""rᵀ C⁻¹ s by random walks, on the host: what pushes have left, with an interval.

A walk starts at j with probability |r_j| / ‖r‖₁. From j it goes on to k with probability
|c_jk| / |c_jj|, with the sign of −c_jk / c_jj, or it ends, with probability d_j / |c_jj|,
and counts s_j / d_j with all signs: its mean is rᵀC⁻¹s / ‖r‖₁ (von Neumann and Ulam), and
it is no larger than max |s_j| / d_j. So the interval is the bound that pushes prove,
times a number that falls as one over the root of the number of walks, at most.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .pushes import EPS, first_seen, Side


# Walks that go on together: their steps are drawn from one running sum.
_TOGETHER = 1024


class Walked(NamedTuple):
    """The mean, how far it is off at most, walks that it is of, steps, and rows read."""

    mean: Any
    bound: float
    walks: int
    steps: int
    rows: int


def walk(
    left: Side, right: Side, rng: Any, wanted: float, doubt: float, most: int
) -> Walked:
    """Walks until the mean is as near as wanted, but with a probability of `doubt`.

    Their number is doubled, and each look at them takes half of the doubt that is left. A
    round that is not over after `most` steps counts for nothing.
    """
    largest = left.one_norm * right.largest
    scores = np.zeros(0, left.solution.dtype)
    walks = Walked(0.0, largest, 0, 0, 0)
    seen, steps, rows, longest = left.was_read.copy(), 0, 0, 0
    while walks.bound > wanted:
        batches = []
        for _ in range(max(1, scores.size // _TOGETHER)):
            batch, taken, length, new = _batch(left, right, rng, seen, most - steps)
            steps, rows, longest = steps + taken, rows + new, max(longest, length)
            if batch is None:
                return walks._replace(steps=steps, rows=rows)
            batches.append(batch)
        scores = np.concatenate([scores, *batches])
        doubt /= 2
        parts = [np.real(scores), np.imag(scores)][: 1 + np.iscomplexobj(scores)]
        errors = [_interval(part, largest, doubt / len(parts)) for part in parts]
        # What rounding does to the probabilities of a step, and to r and s.
        drawn = EPS * _TOGETHER**2 * (left.rows.longest + 2) * longest
        error = math.hypot(*errors) + largest * drawn
        error += left.one_norm * float(np.max(right.error / left.rows.gaps))
        error += float(np.sum(left.error)) * right.largest
        walks = Walked(scores.mean(), error, scores.size, steps, rows)
    return walks


def _interval(scores, largest: float, doubt: float) -> float:
    """By Hoeffding's inequality, or the empirical one of Bernstein (Maurer & Pontil)."""
    number, logarithm = scores.size, math.log(8 / doubt)  # two of them, of two sides each
    hoeffding = largest * math.sqrt(2 * logarithm / number)
    spread = math.sqrt(2 * float(np.var(scores, ddof=1)) * logarithm / number)
    return min(hoeffding, spread + 14 * largest * logarithm / (3 * (number - 1)))


def _batch(left: Side, right: Side, rng: Any, seen: Any, most: int):
    """Scores, or `None` after too many steps; steps, the longest walk, rows read."""
    weights = np.cumsum(np.abs(left.residual[left.active]))
    drawn = np.searchsorted(weights, rng.random(_TOGETHER) * weights[-1], side="right")
    at = left.active[np.minimum(drawn, weights.size - 1)]
    start = left.residual[at]
    sign = left.one_norm * start / np.abs(start)
    scores = np.zeros(_TOGETHER, np.result_type(sign, right.residual))
    who, steps, length, new = np.arange(_TOGETHER), 0, 0, 0
    while who.size:
        steps, length = steps + who.size, length + 1
        new += first_seen(at, seen).size
        if steps > most:
            return None, steps, length, new
        cols, entries, _, counts = left.rows.read(at)
        diagonal = left.rows.diagonal[at]
        moves = np.where(cols == np.repeat(at, counts), 0, -entries)
        moves = moves / np.repeat(diagonal, counts)
        sizes, ends = np.cumsum(np.abs(moves)), np.cumsum(counts)
        before = np.append(0, sizes[ends[:-1] - 1])
        place = np.searchsorted(sizes, before + rng.random(who.size), side="right")
        over = place >= ends
        gap = 1 - np.add.reduceat(np.abs(moves), ends - counts)[over]
        ended = right.residual[at[over]] / diagonal[over] / gap
        scores[who[over]] = sign[over] * ended
        place, who, sign = place[~over], who[~over], sign[~over]
        at, sign = cols[place], sign * moves[place] / np.abs(moves[place])
    return scores, steps, length, new
