"""θ by Levenberg–Marquardt and a polish: one loop, in which one evaluation serves both.

Of r and J = ∂r/∂θ a step needs the triangle of the QR factorisation of [J, r] alone. With
J = U S Vᴴ, what minimises ‖J s + r‖² + λ‖s‖² is s = −V S (S² + λ)⁻¹ Uᴴr, for any λ.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, Bool, Float, Inexact, Int, Integer, PyTree

from .._base import axes
from .._base.axes import cond, is_manual
from .._base.tree import all_finite
from .._kernel.active_set import bounded_least_squares
from .._map.factorised import Factorised
from .._solver import PivotedQR
from .data_sets import listed
from .elimination import Eliminated
from .parameters import Box
from .real import as_real


# Undamped steps after the search. Levenberg–Marquardt compares sums of squares, in which
# a change of θ by √eps is lost in rounding; a Gauss–Newton step has no such floor.
_POLISHING_STEPS = 20
# What is first added to the diagonal of JᵀJ, over its largest entry: Madsen, Nielsen &
# Tingleff, Methods for Non-Linear Least Squares Problems (2004), (3.14).
_FIRST_DAMPING = 1e-3
# As Optimistix: a step that changes ‖r‖² by less than the first of what it foretells is
# not taken, and the damping rises; by more than the second, and it falls.
_POOR = 0.01
_GOOD = 0.99
_RISE = 4.0
_FALL = 1 / 3.5
# θ is then known to 1e-10 of its standard deviation, and a batch waits for its slowest.
_NEGLIGIBLE_OFFSET = 1e-10
# Residuals below this multiple of eps ‖W y‖ are rounding.
_ROUNDING = 1e2


class Evaluated(eqx.Module):
    """The elimination at some point, but for its factors."""

    residual: PyTree[Inexact[Array, "_ _"]]
    coefficients: PyTree[Inexact[Array, "_ _"]]
    rank: PyTree[Integer[Array, "..."]]
    result: lx.RESULTS

    @classmethod
    def of(cls, at: Eliminated) -> "Evaluated":
        results = lx.RESULTS
        # Of a basis that is not finite, a solver may say that it is singular.
        operators = [factors.factorised.operator for factors in listed(at.factors)]
        model = eqx.filter(operators, eqx.is_inexact_array)
        result = results.where(all_finite(model), at.result, results.nonfinite_input)
        return cls(at.residual, at.coefficients, at.rank, result)


class Linearised(eqx.Module):
    """r and [∂r/∂point, r] in real numbers: all of the latter, or its triangle."""

    at: Evaluated
    both: Float[Array, "rows columns"]

    @classmethod
    def create(cls, at: Evaluated, jacobian: Float[Array, "mk q"], reduced: bool):
        both = jnp.column_stack([jacobian, as_real(at.residual)])
        return cls(at, jnp.linalg.qr(both, mode="r") if reduced else both)

    def first_damping(self) -> Float[Array, ""]:
        damping = _FIRST_DAMPING * jnp.max(jnp.sum(self.both[:, :-1] ** 2, axis=0))
        return jnp.where(jnp.isfinite(damping) & (damping > 0), damping, 1)


class Found(eqx.Module):
    """Where a search is, and what it knows there.

    - `step`: what to subtract from the point next.
    - `foretold`: the change of ½‖r‖² by that, as far as r is linear.
    - `moved`: ‖J J†r‖, if the step is not damped; infinite where r was never finite.
    """

    point: Float[Array, " q"]
    at: Evaluated
    both: Float[Array, "rows columns"]
    step: Float[Array, " q"]
    foretold: Float[Array, ""]
    moved: Float[Array, ""]
    damping: Float[Array, ""]
    first_damping: Float[Array, ""]  # zero before the first evaluation
    num_steps: Int[Array, ""]
    polishing_steps: Int[Array, ""]
    searching: Bool[Array, ""]
    done: Bool[Array, ""]

    def relative_offset(self) -> Float[Array, ""]:
        """‖J J†r‖ per parameter over the rest of r per datum: the cosine between r and
        what θ can still change, as a multiple of the statistical error. Zero where r is
        rounding."""
        r = as_real(self.at.residual)
        rest = jnp.sqrt(jnp.maximum(jnp.sum(r**2) - self.moved**2, 0))
        per_datum = rest * _per_datum(r.size, self.point.size)
        rounding = self.moved <= _ROUNDING * jnp.finfo(r.dtype).eps
        known = per_datum > 0
        offset = jnp.where(known, self.moved / jnp.where(known, per_datum, 1), jnp.inf)
        return jnp.where(rounding, 0, offset)


class Search(eqx.Module):
    """Levenberg–Marquardt, and then undamped steps for as long as they bring r closer to
    orthogonal to J; without tolerances the latter alone."""

    linearise: Callable[[Float[Array, " q"]], Linearised]  # closed by Equinox
    box: Box | None
    tolerances: tuple[float, float] | None = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    differentiable: bool = eqx.field(static=True)

    def __call__(self, point: Float[Array, " q"], while_loop: Callable) -> Found:
        searching = self.tolerances is not None
        structure = self.linearise.out_struct  # pyright: ignore[reportFunctionMemberAccess]
        zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), structure)
        zero = jnp.zeros((), zeros.both.dtype)
        found = Found(
            point=point,
            # All is better than this.
            at=eqx.tree_at(
                lambda at: at.residual,
                zeros.at,
                jtu.tree_map(lambda leaf: leaf + jnp.inf, zeros.at.residual),
            ),
            both=zeros.both,
            step=jnp.zeros_like(point),
            foretold=zero,
            moved=zero + jnp.inf,
            damping=zero,
            first_damping=zero,
            num_steps=jnp.array(0),
            polishing_steps=jnp.array(0 if searching else -1),
            searching=jnp.array(searching),
            done=jnp.array(False),
        )
        # To differentiate through a loop, its length has to be known.
        length = 1 + _POLISHING_STEPS if self.differentiable else None
        if is_manual() and not self.differentiable:
            return axes.while_loop(lambda f: ~f.done, self._next, found)
        return while_loop(lambda f: ~f.done, self._next, found, max_steps=length)

    def _next(self, old: Found) -> Found:
        point = self._ahead(old.point, old.step)
        new = self.linearise(point)
        finite = all_finite((point, new.both))
        finite &= new.at.result == lx.RESULTS.successful
        first = old.first_damping == 0
        r, before = as_real(new.at.residual), as_real(old.at.residual)
        change = 0.5 * jnp.sum((r - before) * (r + before))

        taken = finite & (change <= _POOR * old.foretold)
        good = (change < _GOOD * old.foretold) & (old.foretold < 0)
        factor = jnp.where(taken, jnp.where(good, _FALL, 1), _RISE)
        first_damping = jnp.where(first, new.first_damping(), old.first_damping)
        damping = factor.astype(old.damping.dtype) * old.damping
        damping = jnp.where(first, first_damping, damping)
        num_steps = old.num_steps + jnp.where(old.searching, 1, 0)
        searching = old.searching & (finite | ~first)
        if self.tolerances is not None:
            rtol, atol = self.tolerances
            # In a unit of r in which the first damping is one.
            unit = jnp.sqrt(first_damping)
            searching &= ~(
                jnp.all(jnp.abs(old.step) < atol + rtol * jnp.abs(point))
                & jnp.all(jnp.abs(r - before) < atol * unit + rtol * jnp.abs(r))
            )
        if self.max_steps is not None:
            searching &= num_steps < self.max_steps

        both = jnp.where(jnp.where(old.searching, taken, finite), new.both, old.both)
        damping_ahead = jnp.where(searching, damping, 0)
        if self.box is None:
            step, along = self._step(both, damping_ahead, r.size)
        else:
            base = jnp.where(old.searching & ~taken, old.point, point)
            step, along = _within(self.box, base, both, damping_ahead)
        rest, moved = both[:, -1] - along, jnp.linalg.norm(along)
        per_datum = jnp.linalg.norm(rest) * _per_datum(r.size, step.size)

        # The sums of squares of a polish differ by rounding.
        no_worse = change <= jnp.finfo(change.dtype).eps ** 0.5 * jnp.sum(r**2)
        better = finite & (moved < old.moved) & no_worse
        polishing_steps = old.polishing_steps + jnp.where(better & ~old.searching, 1, 0)
        usable = jnp.where(old.searching, finite | ~first, better)
        more = moved > _NEGLIGIBLE_OFFSET * per_datum
        more &= polishing_steps < _POLISHING_STEPS
        point, at = cond(
            jnp.where(old.searching, taken, better) | first,
            lambda new, old: new,
            lambda new, old: old,
            (point, new.at),
            (old.point, old.at),
        )
        return Found(
            point=point,
            at=at,
            both=both,
            step=step.astype(point.dtype),
            foretold=-0.5 * jnp.sum(along * (both[:, -1] + rest)),
            moved=jnp.where(usable, moved, old.moved),
            damping=damping,
            first_damping=first_damping,
            num_steps=num_steps,
            polishing_steps=polishing_steps,
            searching=searching,
            done=~(searching | (usable & more)),
        )

    def _ahead(self, point: Float[Array, " q"], step: Float[Array, " q"]):
        if self.box is None:
            return point - step
        # To the bound itself where the step ends there.
        low, high = point - self.box.upper, point - self.box.lower
        side = jnp.where(step >= high, -1, jnp.where(step <= low, 1, 0))
        return self.box.held(point - step, side)

    def _step(self, both, damping: Float[Array, ""], rows: int):
        """What minimises ‖r − J s‖² + damping ‖s‖², and J s."""
        j, r = both[:, :-1], both[:, -1]
        # Without damping in columns of one length, so that none is lost for the scale of
        # its parameter.
        length = jnp.linalg.norm(j, axis=0)
        length = jnp.where((damping > 0) | (length == 0), 1, length)
        solve = _differentiable if self.differentiable else _damped
        step, along = solve(j / length[None, :], r, damping, rows)
        return step / length, along


def _within(box: Box, point, both, damping: Float[Array, ""]):
    """What minimises ‖r − J s‖² + damping ‖s‖² for a point − s in the box, and J s."""
    j, r = both[:, :-1], both[:, -1]
    (q,) = point.shape
    damped = jnp.concatenate([j, jnp.sqrt(damping) * jnp.eye(q, dtype=j.dtype)])
    length = jnp.linalg.norm(damped, axis=0)
    length = jnp.where(length > 0, length, 1)
    low, high = (point - bound for bound in (box.upper, box.lower))
    found = bounded_least_squares(
        damped / length[None, :], jnp.pad(r, (0, q)), length * low, length * high
    )
    side = found.active
    step = jnp.where(side < 0, low, jnp.where(side > 0, high, found.x / length))
    return step, j @ step


def _per_datum(data: int, parameters: int) -> float:
    return math.sqrt(parameters / max(data - parameters, 1))


def _damped(j, r, damping, rows: int):
    """The least x that minimises ‖J x − r‖² + damping ‖x‖², and J x."""
    u, s, vh = jnp.linalg.svd(j, full_matrices=False)
    kept = s > jnp.finfo(s.dtype).eps * max(rows, s.size) * s[0]
    along = jnp.where(kept, s * (r @ u) / jnp.where(kept, s**2 + damping, 1), 0)
    return along @ vh, u @ (s * along)


def _differentiable(j, r, damping, rows: int):
    """The same without damping, by the rule of the pseudoinverse."""
    del damping, rows
    operator = lx.MatrixLinearOperator(j)
    factorised, _ = Factorised.create(operator, PivotedQR(), throw=False)
    step, rest, _, _ = factorised.apply(r, residual=True)
    assert step is not None
    assert rest is not None  # J has more rows than columns
    return step, r - rest
