from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import lineax.internal as lxi
from jaxtyping import Array, ArrayLike, Bool, Integer, Num, PyTree, Real

from .._base.axes import fori_loop, while_loop
from .._base.checks import check_options, check_square
from .._base.structure import Structure
from .._base.tree import all_finite, promoting, tree_add, tree_sub
from .._operator.adjoint import is_complex, transpose_of
from .options import check_tolerances, resolve_preconditioner


class NeumannState(eqx.Module):
    operator: lx.AbstractLinearOperator
    preconditioner: lx.AbstractLinearOperator | None


class _Sum(eqx.Module):
    """Partial sums of the series: Σ t_k and, if asked for, Σ (k + 1) t_k."""

    total: PyTree[Array]
    weighted: PyTree[Array] | None
    term: PyTree[Array]
    norm: Real[Array, ""]
    first_norm: Real[Array, ""]
    index: Integer[Array, ""]
    met: Bool[Array, ""]


class Neumann(lx.AbstractLinearSolver[NeumannState]):
    """Returns `num_terms + 1` terms of the Neumann series, using only products with A:

        x = scale Σ_{k=0}^{num_terms} (I − scale P A)^k P b

    This is an approximate inverse: `num_terms=0` gives `scale * P b`, and each further
    term takes one product with A. The series converges if every eigenvalue of `scale * P
    A` is within 1 of 1, or is zero with b consistent. For P = I the limit is A^-1 b, or
    A†b for a singular Hermitian A with b in its range. For P = A^H and `0 < scale < 2 /
    ‖A‖²` (Landweber's iteration) it is A†b for A of any shape and any b.

    Without tolerances the truncated series is the answer, and `successful` means that the
    terms did not grow. With `rtol` or `atol` the loop stops once the estimated remainder
    of the series (geometric, with the ratio of the last two terms) is at most `atol +
    rtol |x|` in every entry; if it never is, the result is `max_steps_reached`. The loop
    ends early, with `RESULTS.breakdown`, if a term is not finite or its norm is 1/√eps
    times that of the first (half of the digits are lost). The result is also `breakdown`
    if the last term is larger than the first and no tolerance was met.
    `stats["num_steps"]` is the index k of the last term computed, `stats["max_steps"]` is
    `num_terms`.

    Derivatives are those of A†b with the series instead of A† throughout: with respect to
    b they are exactly the series and its adjoint, with respect to A they are right up to
    the truncation error. A may be singular: the row-space projection of y is y − (I −
    scale P A)^(num_terms+1) y, and for Hermitian A with P = I the Gram inverse is scale²
    Σ (k + 1) (I − scale A)^k. With respect to A a JVP costs four more series and a VJP
    three (three and two in that Hermitian case); with respect to b each costs one.
    `scale` and P are differentiated only under [`pseudojvp.UnrolledAdjoint`][].

    `options`: `preconditioner`, which overrides the field of that name.

    **Arguments:**

    - `num_terms`: the last index K of the series, `≥ 0`. Defaults to `100`.
    - `scale`: a scalar in the units of (P A)^-1. Defaults to `1.0`.
    - `preconditioner`: P, a `lineax.AbstractLinearOperator` from the space of b to that
        of x. Its adjoint is used in the adjoint solve. Defaults to `None`, the identity.
    - `rtol`, `atol`: `≥ 0`; relative and absolute tolerance. Default to `None`: no
        stopping rule. If only one is given, the other is zero.

    **Raises:** `ValueError` at trace time for a non-square operator without
    preconditioner, a preconditioner of another shape, `num_terms < 0`, a negative
    tolerance, an unknown option.

    **Sources:** Landweber, *An iteration formula for Fredholm integral equations of the
    first kind*, Amer. J. Math. 73 (1951); Lorraine, Vicol & Duvenaud, *Optimizing
    millions of hyperparameters by implicit differentiation*, AISTATS (2020), theorem 1.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = jnp.array([[1.0, 0.5], [0.0, 1.0]])
    b = jnp.array([2.0, 2.0])
    print(pj.linear_solve(A, b, pj.Neumann(num_terms=3)).value)  # [1. 2.]
    ```
    """

    num_terms: int = 100
    scale: Num[ArrayLike, ""] = 1.0
    preconditioner: lx.AbstractLinearOperator | None = None
    rtol: Real[ArrayLike, ""] | None = None
    atol: Real[ArrayLike, ""] | None = None

    def __check_init__(self):
        if isinstance(self.num_terms, bool) or not isinstance(self.num_terms, int):
            raise TypeError(
                f"`Neumann(num_terms=...)` got a {type(self.num_terms).__name__}. Pass "
                "a Python integer."
            )
        if self.num_terms < 0:
            raise ValueError(
                f"`Neumann(num_terms=...)` got {self.num_terms}. The series has "
                "`num_terms + 1` terms, so it must be at least zero."
            )
        check_tolerances(type(self).__name__, rtol=self.rtol, atol=self.atol)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> NeumannState:
        check_options(self, options, ("preconditioner",))
        preconditioner = options.get("preconditioner", self.preconditioner)
        if preconditioner is None:
            check_square(self, operator)
        preconditioner = resolve_preconditioner(
            self,
            preconditioner,
            options,
            Structure.of(operator.out_structure()),
            Structure.of(operator.in_structure()),
        )
        return NeumannState(lx.linearise(operator), preconditioner)

    def compute(
        self, state: NeumannState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        final = self._run(state, vector, options, weighted=False)
        stats = {"num_steps": final.index, "max_steps": self.num_terms}
        return final.total, self._result(final), stats

    def row_space_projection(
        self, state: NeumannState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS]:
        """Returns A†A y by the closed form y − (I − scale P A)^(num_terms+1) y."""
        if self.has_tolerance:
            image = state.operator.mv(vector)
            projection, result, _ = self.compute(state, image, options)
            return projection, result
        power = fori_loop(
            0,
            self.num_terms + 1,
            lambda _, y: self.error_mv(state, options, y),
            vector,
        )
        finite = all_finite(power)
        result = lx.RESULTS.where(finite, lx.RESULTS.successful, lx.RESULTS.breakdown)
        return tree_sub(vector, power), result

    def has_gram_series(self, state: NeumannState, options: dict[str, Any]) -> bool:
        """Whether A is Hermitian and P the identity, so that the square of the series is
        one series."""
        operator = state.operator
        hermitian = (
            lx.is_positive_semidefinite(operator)
            or lx.is_negative_semidefinite(operator)
            or (lx.is_symmetric(operator) and not is_complex(operator))
        )
        real_scale = not jnp.iscomplexobj(self.scale)
        return hermitian and real_scale and self._preconditioner(state, options) is None

    def gram_inverse(
        self, state: NeumannState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], PyTree[Array], lx.RESULTS]:
        """Returns (A†w, (A^H A)†w) from one series; only if `has_gram_series`."""
        final = self._run(state, vector, options, weighted=True)
        assert final.weighted is not None
        result = self._result(final)
        return final.total, self._scaled(final.weighted), result

    def _preconditioner(self, state: NeumannState, options: dict[str, Any]):
        check_options(self, options, ("preconditioner",))
        return resolve_preconditioner(
            self,
            state.preconditioner,
            options,
            Structure.of(state.operator.out_structure()),
            Structure.of(state.operator.in_structure()),
        )

    def _scaled(self, tree: PyTree[Array]) -> PyTree[Array]:
        return jtu.tree_map(lambda leaf: jnp.asarray(self.scale, leaf.dtype) * leaf, tree)

    def precondition(self, state, options, vector):
        preconditioner = self._preconditioner(state, options)
        if preconditioner is not None:
            vector = preconditioner.mv(vector)
        return self._scaled(vector)

    def error_mv(self, state, options, vector):
        """Returns (I − scale P A) y."""
        step = self.precondition(state, options, state.operator.mv(vector))
        return tree_sub(vector, step)

    @property
    def has_tolerance(self) -> bool:
        return self.rtol is not None or self.atol is not None

    def _run(self, state, vector, options, *, weighted: bool) -> _Sum:
        first = self.precondition(state, options, vector)
        first_norm = two_norm(first)
        growth_limit = first_norm / jnp.sqrt(jnp.finfo(first_norm.dtype).eps)

        def keep_going(sums):
            small = sums.norm <= growth_limit  # false for NaN
            return (sums.index < self.num_terms) & small & ~sums.met

        def advance(sums):
            term = self.error_mv(state, options, sums.term)
            index = sums.index + 1
            total = tree_add(sums.total, term)
            if sums.weighted is None:
                weighted_sum = None
            else:
                weighted_sum = jtu.tree_map(
                    lambda s, t: s + (index + 1).astype(t.dtype) * t,
                    sums.weighted,
                    term,
                )
            norm = two_norm(term)
            met = self._met(total, term, norm / sums.norm)
            return _Sum(total, weighted_sum, term, norm, sums.first_norm, index, met)

        start = _Sum(
            first,
            first if weighted else None,
            first,
            first_norm,
            first_norm,
            jnp.array(0),
            self._met(first, first, jnp.zeros_like(first_norm)),
        )
        return while_loop(keep_going, advance, start)

    def _met(self, total, term, ratio) -> Bool[Array, ""]:
        if not self.has_tolerance:
            return jnp.array(False)
        # t_k ρ / (1 − ρ) is the rest of a geometric series; at least the term itself.
        rest = jnp.where(ratio < 1, jnp.maximum(1, ratio / (1 - ratio)), jnp.inf)
        rest = jnp.where(jnp.isnan(ratio), 1, rest)  # 0 / 0: the series has ended

        def quotient(err, ref):
            magnitude = jnp.abs(ref)
            rtol = jnp.asarray(0 if self.rtol is None else self.rtol, magnitude.dtype)
            atol = jnp.asarray(0 if self.atol is None else self.atol, magnitude.dtype)
            return jnp.where(err == 0, 0, jnp.abs(err) / (atol + rtol * magnitude))

        return promoting(lxi.max_norm)(jtu.tree_map(quotient, term, total)) * rest <= 1

    def _result(self, final: _Sum) -> lx.RESULTS:
        results = lx.RESULTS
        out = results.max_steps_reached if self.has_tolerance else results.successful
        grown = has_grown(final.norm, final.first_norm)
        out = results.where(grown, results.breakdown, out)
        return results.where(final.met, results.successful, out)

    def transpose(self, state: NeumannState, options: dict[str, Any]):
        return self._map(state, options, transpose_of)

    def conj(self, state: NeumannState, options: dict[str, Any]):
        return self._map(state, options, lx.conj)

    def _map(self, state, options, transform: Callable):
        preconditioner = self._preconditioner(state, options)
        if preconditioner is not None:
            preconditioner = transform(preconditioner)
        return NeumannState(transform(state.operator), preconditioner), {}

    def assume_full_rank(self) -> bool:
        return False


def has_grown(norm: Real[Array, ""], first_norm: Real[Array, ""]) -> Bool[Array, ""]:
    """Whether a term is larger than the first, or not finite."""
    # A part of b outside the range of A leaves terms of constant norm.
    rounding = jnp.sqrt(jnp.finfo(norm.dtype).eps)
    return ~(norm <= first_norm * (1 + rounding))


def two_norm(tree: PyTree[Array]) -> Real[Array, ""]:
    return jnp.sqrt(promoting(lxi.sum_squares)(tree))
