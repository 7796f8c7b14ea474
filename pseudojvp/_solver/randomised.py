"""Series that end at random, and are unbiased."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, Integer, Num, PyTree, Real

from .._base.axes import scan, while_loop
from .._base.checks import check_options, check_square
from .._base.structure import Structure
from .._base.tree import tree_add, tree_conj, tree_scale, tree_sub
from .._kernel.norms import power_of_two, two_norm
from .._operator.adjoint import transpose_of
from .krylov.iteration import dot, flat_mv, KrylovState, length


class Draws(eqx.Module):
    """Products with a fresh A of a key, and with its transpose."""

    forward: Callable[[Array, PyTree[Array]], PyTree[Array]]
    backward: Callable[[Array, PyTree[Array]], PyTree[Array]]


class RandomisedState(eqx.Module):
    """A or what it has become, near `scale` in size, and the fresh ones."""

    operator: lx.AbstractLinearOperator
    scale: Real[Array, ""]
    draws: Draws | None
    transposed: bool = eqx.field(static=True, default=False)
    conjugated: bool = eqx.field(static=True, default=False)

    def fresh_mv(self, key: Array, vector: PyTree[Array]) -> PyTree[Array]:
        if self.draws is None:
            return self.operator.mv(vector)
        product = self.draws.backward if self.transposed else self.draws.forward
        if not self.conjugated:
            return product(key, vector)
        return tree_conj(product(key, tree_conj(vector)))


class Randomised(lx.AbstractLinearSolver[RandomisedState]):
    """A⁻¹v by increments d₀ + d₁ + …, of which the first N + 1 are computed:

        x = Σ_{k=0}^{N} d_k / P(N ≥ k),   P(N ≥ k) = decayᵏ for k ≤ max_terms, else 0.

    - `key`: as `jax.random.key_data` has it; `samples` of such sums are averaged.
    - `steps`: "neumann", d_k = scale (I − scale A)ᵏ v, with a fresh A for each k where
        there are `draws`; or "cg", the moves of conjugate gradients.
    """

    key: Integer[Array, "..."]
    scale: Num[Array, ""]
    draws: Draws | None
    steps: str = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    max_terms: int = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    impl: Any = eqx.field(static=True)

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> RandomisedState:
        check_options(self, options)
        check_square(self, operator)
        if self.steps == "cg":
            state = KrylovState.create(operator)
            return RandomisedState(state.operator, state.scale, None)
        return RandomisedState(lx.linearise(operator), jnp.ones(()), self.draws)

    def compute(
        self, state: RandomisedState, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        check_options(self, options)
        keys = jax.random.wrap_key_data(self.key, impl=self.impl)
        one = self._by_cg if self.steps == "cg" else self._by_neumann

        def sample(carry, key):
            total, broken = carry
            value, broke = one(state, vector, key)
            return (tree_add(total, value), broken | broke), None

        start = jax.tree.map(jnp.zeros_like, vector), jnp.array(False)
        keys = jax.random.split(keys, self.samples)
        (total, broken), _ = scan(sample, start, keys)
        mean = jax.tree.map(lambda leaf: leaf / self.samples, total)
        results = lx.RESULTS
        result = results.where(broken, results.breakdown, results.successful)
        return mean, result, {}

    def _goes_on(self, key: Array, index: Integer[Array, ""]) -> Bool[Array, ""]:
        """Whether there is another increment after the one of `index`."""
        uniform = jax.random.uniform(jax.random.fold_in(key, index))
        return (uniform < self.decay) & (index < self.max_terms)

    def _by_neumann(self, state, vector, key) -> tuple[PyTree[Array], Bool[Array, ""]]:
        of_length, of_terms = jax.random.split(key)
        first = self._scaled(vector)
        first_norm = two_norm(first)
        limit = first_norm / jnp.finfo(first_norm.dtype).eps ** 0.5

        def body(carry):
            total, term, weight, index, _, _ = carry
            image = state.fresh_mv(jax.random.fold_in(of_terms, index), term)
            term = tree_sub(term, self._scaled(image))
            weight = weight / self.decay
            total = tree_add(total, tree_scale(weight, term))
            broken = ~(two_norm(term) <= limit)
            going = self._goes_on(of_length, index + 1) & ~broken
            return total, term, weight, index + 1, going, broken

        zero, weight = jnp.array(0), jnp.ones_like(first_norm)
        going = self._goes_on(of_length, zero)
        start = first, first, weight, zero, going, jnp.array(False)
        total, *_, broken = while_loop(lambda carry: carry[4], body, start)
        return total, broken

    def _by_cg(self, state, vector, key) -> tuple[PyTree[Array], Bool[Array, ""]]:
        structure = Structure.of(state.operator.in_structure())
        b = structure.ravel(vector)
        unit = power_of_two(b)
        b = b / unit.astype(b.dtype)
        norm = length(b)
        scale = state.scale.astype(norm.dtype)

        def mv(flat):
            return flat_mv(state.operator)(flat) / scale.astype(flat.dtype)

        def body(carry: _Moves) -> _Moves:
            p, r = carry.direction, carry.residual
            image = mv(p)
            product = dot(p, image).real
            moves = product * carry.sign >= 0
            step = jnp.where(product != 0, carry.square / product, 0)
            r = r - tree_scale(step, image)
            square = dot(r, r).real
            # All increments are zero where the residual is rounding.
            ends = jnp.sqrt(square) <= structure.eps * norm
            broken = ~moves | (product == 0)
            going = self._goes_on(key, carry.index) & ~ends & ~broken
            return _Moves(
                carry.total + tree_scale(carry.weight * step, p),
                r,
                r + tree_scale(square / carry.square, p),
                square,
                carry.weight / self.decay,
                carry.index + 1,
                jnp.sign(product),
                going,
                broken,
            )

        zero = jnp.zeros_like(norm)
        start = _Moves(
            jnp.zeros_like(b),
            b,
            b,
            norm**2,
            zero + 1,
            jnp.array(0),
            zero,
            norm > 0,
            jnp.array(False),
        )
        final = while_loop(lambda carry: carry.going, body, start)
        total = (unit / scale).astype(b.dtype) * final.total
        return structure.unravel(total), final.broken

    def _scaled(self, tree: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: self.scale.astype(leaf.dtype) * leaf, tree)

    def transpose(self, state: RandomisedState, options: dict[str, Any]):
        operator = transpose_of(state.operator)
        turned = not state.transposed, state.conjugated
        return RandomisedState(operator, state.scale, state.draws, *turned), options

    def conj(self, state: RandomisedState, options: dict[str, Any]):
        operator = lx.conj(state.operator)
        turned = state.transposed, not state.conjugated
        return RandomisedState(operator, state.scale, state.draws, *turned), options

    def assume_full_rank(self) -> bool:
        return True


class _Moves(eqx.Module):
    total: Inexact[Array, " n"]
    residual: Inexact[Array, " n"]
    direction: Inexact[Array, " n"]
    square: Real[Array, ""]  # |r|^2
    weight: Real[Array, ""]  # 1 / P(N >= index)
    index: Integer[Array, ""]
    sign: Real[Array, ""]  # of <p, A p>; zero before the first
    going: Bool[Array, ""]
    broken: Bool[Array, ""]
