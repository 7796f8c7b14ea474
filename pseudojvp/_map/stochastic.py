"""`StochasticAdjoint`: an unbiased derivative at a random cost."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.interpreters.batching as batching
import jax.interpreters.mlir as mlir
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Real

from .._base.checks import check_count
from .._base.structure import Structure
from .._base.tree import stop_gradient, tree_conj
from .._operator.adjoint import adjoint as adjoint_of
from .._solver import Draws, Randomised
from .adjoints import AbstractAdjoint
from .rows import nondifferentiable, Other
from .thinned import Thinning
from .truncated import check_full_rank, check_scale, is_square, one_scale


class StochasticAdjoint(AbstractAdjoint):
    """Differentiates the solution with a random series whose expectation is exact.

    The solver computes x. In reverse mode the cotangent of b is

        λ = Σ_{k=0}^{N} d_k / P(N ≥ k),   P(N ≥ k) = decayᵏ,   E λ = A⁻ᴴx̄,

    where d_k is the term scale (I − scale Aᴴ)ᵏ x̄ of a Neumann series, or step k of
    conjugate gradients for A λ = x̄. The cotangent of A is −λ xᴴ, also unbiased. Each key
    draws a new N. Each term after the first takes one product with A, `expected_products`
    in all on average. The mean of `num_samples` such sums is returned; they are computed
    one after the other, so the cost is `num_samples` times that of one and the variance
    `num_samples` times smaller.

    For "neumann" the variance is finite if q² < decay, with q = ‖I − scale A‖; an
    infinite variance shows as rare, very large gradients. A relative error of about 1
    with one sample is usual. Leaving out the terms beyond `max_terms` causes a bias of at
    most q^(max_terms + 1), relative to the whole. For "cg" the variance is always finite,
    since there are at most n steps; but it is larger.

    **Arguments:**

    - `key`: a key of `jax.random`, a new one for each solve and each training step: the
        same key gives the same N, so the errors do not average out. Under `jax.vmap` of
        the solve, map the keys too (`jax.random.split(key, batch)`); an unmapped key is
        an error. Columns of `sparse_solve` and `lstsq` get keys of their own.
        `jax.debug_key_reuse(True)` notices a key that is used in two solves or steps. All
        products with an operator of `invert` share its key.
    - `method`: `"neumann"`, for any A with q < 1; or `"cg"`, for A tagged positive or
        negative definite, which does not use `scale`. Defaults to `"neumann"`.
    - `scale`: a real scalar in the units of A⁻¹, not zero. Defaults to `1.0`.
    - `decay`: the probability, in (0, 1), that another term follows. Defaults to `0.9`.
    - `max_terms`: the largest index of a term, at least 0. Defaults to `1000`.
    - `num_samples`: how many sums are averaged, at least one. Defaults to `1`.
    - `operators`: a function from a key to an operator with the structure of A, equal to
        A in expectation: a minibatch. Each term then uses a new one, and the derivative
        takes no product with A itself. Only with `"neumann"`; the variance is that of a
        product of random matrices. Defaults to `None`, A itself.
    - `num_rows`, `num_columns`: how many rows and columns of the cotangent of A are
        drawn, with replacement, with probabilities ∝ |λ_i| and ∝ |x_j|; at least one. The
        other rows and columns are zero, so a dense cotangent has at most num_rows ×
        num_columns entries; it stays unbiased. If A is a function of few arguments, their
        cotangent takes a product of a sparse x with a sparse λ. The cotangent of b is
        complete. Default to `None`, all.

    **Derivatives:** of first order, forward and reverse, with respect to A and b; a
    second derivative is an error. The key, `scale` and what `operators` closes over are
    constants. A term larger than the first by 1/√eps, or a direction of curvature of the
    wrong sign, is a `breakdown`: the derivative is NaN, or an error under `throw=True`.

    **Raises:** `TypeError` or `ValueError` for settings outside their range, and for a
    `key` that is not a key or is several; at trace time for an A that is not square, a
    solver that allows any rank, `"cg"` with an A without a definiteness tag, `operators`
    with `"cg"` or of another structure, one key in a batch of solves, and a second
    derivative.

    **Sources:** Beatson & Adams, *Efficient optimization of loops and limits with
    randomized telescoping sums*, ICML (2019), section 3 (their RT estimator with Russian
    roulette weights); Forsythe & Leibler, *Matrix inversion by a Monte Carlo method*,
    Math. Comp. 4 (1950), for the series; Drineas, Kannan & Mahoney, *Fast Monte Carlo
    algorithms for matrices I*, SIAM J. Comput. 36 (2006), for rows and columns by size. A
    system of sampled rows and columns, solved instead of A, is biased.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.array([[1.0, 0.5], [0.0, 1.0]]), jnp.array([2.0, 2.0])
    adjoint = pj.StochasticAdjoint(jax.random.key(0), num_samples=1000)
    loss = lambda b: pj.linear_solve(A, b, adjoint=adjoint).value.sum()
    error = jax.grad(loss)(b) - jnp.array([1.0, 0.5])
    print(jnp.max(jnp.abs(error)) < 0.1)  # True
    ```
    """

    key: Array
    _: KW_ONLY
    method: str = eqx.field(static=True, default="neumann")
    scale: Real[ArrayLike, ""] = 1.0
    decay: float = eqx.field(static=True, default=0.9)
    max_terms: int = eqx.field(static=True, default=1000)
    num_samples: int = eqx.field(static=True, default=1)
    operators: Callable | None = None
    num_rows: int | None = eqx.field(static=True, default=None)
    num_columns: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check_key(self.key)
        if self.method not in ("neumann", "cg"):
            raise ValueError(
                f"`StochasticAdjoint(method=...)` got {self.method!r}. Pass "
                '`"neumann"` or `"cg"`.'
            )
        check_scale(self.scale, "StochasticAdjoint")
        if not (isinstance(self.decay, numbers.Real) and 0 < self.decay < 1):
            raise ValueError(
                f"`StochasticAdjoint(decay=...)` got {self.decay!r}. Pass a number "
                "between zero and one, the chance of another term."
            )
        check_count(self.max_terms, "max_terms", "StochasticAdjoint", least=0)
        for name in ("num_samples", "num_rows", "num_columns"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name, "StochasticAdjoint")
        if self.operators is not None and not callable(self.operators):
            raise TypeError(
                f"`StochasticAdjoint(operators=...)` got {self.operators!r}. Pass a "
                "function from a key to an operator."
            )
        if self.operators is not None and self.method == "cg":
            raise ValueError(
                "`StochasticAdjoint(operators=...)` got fresh operators beside "
                '`method="cg"`, whose directions are of one A. Use `"neumann"`.'
            )

    @property
    def expected_products(self) -> float:
        """The mean number of products in a JVP or a VJP; for "cg" the largest."""
        following = math.fsum(self.decay**k for k in range(1, self.max_terms + 1))
        first = 1 if self.method == "cg" else 0
        return self.num_samples * (first + following)

    def of_primal(self, solver):
        return solver

    def for_solve(self, operator, vector):
        # Split, as a use of it that `jax.debug_key_reuse` counts.
        impl = _impl_of(self.key)
        data = jax.random.split(self.key, 1)[0]
        data = data if impl is None else jax.random.key_data(data)
        arrays = eqx.filter((operator, vector), eqx.is_inexact_array)
        data = one_key_p.bind(data, *jax.lax.stop_gradient(jtu.tree_leaves(arrays)))
        return dataclasses.replace(self, key=jax.random.wrap_key_data(data, impl=impl))

    def other(self, problem, constant, mixed):
        check_full_rank(problem, "StochasticAdjoint")
        if not is_square(constant) or problem.from_adjoint:
            shape = constant.out_size(), constant.in_size()
            raise ValueError(
                f"`StochasticAdjoint` got an operator of shape {shape}, and takes a "
                "square one. Use `TruncatedAdjoint`, `ImplicitAdjoint()`, or solve the "
                "normal equations."
            )
        definite = lx.is_positive_semidefinite(constant) or lx.is_negative_semidefinite(
            constant
        )
        if self.method == "cg" and not definite:
            raise ValueError(
                '`StochasticAdjoint(method="cg")` got an operator that is tagged neither '
                "positive nor negative definite. Tag it with "
                '`lineax.positive_semidefinite_tag`, or use `method="neumann"`.'
            )
        of_series, of_thinning = jax.random.split(self.key)
        impl = _impl_of(of_series)
        solver = Randomised(
            jax.random.key_data(of_series),
            jnp.asarray(one_scale(self.scale, "StochasticAdjoint")),
            self._draws(constant, mixed),
            self.method,
            self.decay,
            self.max_terms,
            self.num_samples,
            impl,
        )
        state = stop_gradient(solver.init(constant, {}))
        thinning = None
        if self.num_rows is not None or self.num_columns is not None:
            data = jax.random.key_data(of_thinning)
            thinning = Thinning(data, self.num_rows, self.num_columns, impl)
        solver = nondifferentiable(dataclasses.replace(solver, draws=None))
        return Other(solver, state, {}, "StochasticAdjoint", thinning)

    def _draws(self, constant: lx.AbstractLinearOperator, mixed: bool) -> Draws | None:
        draw = self.operators
        if draw is None:
            return None
        if mixed:
            raise ValueError(
                "`StochasticAdjoint(operators=...)` got an operator that mixes real and "
                "complex leaves. Pass one whose leaves are all real or all complex."
            )
        key, structure = jax.random.key(0), constant.in_structure()
        told = eqx.filter_eval_shape(draw, key)
        if not isinstance(told, lx.AbstractLinearOperator):
            raise TypeError(
                "`StochasticAdjoint(operators=...)` got a function that returns a "
                f"{type(told).__name__}. Return an operator, of a matrix "
                "`lineax.MatrixLinearOperator(matrix)`."
            )
        spaces = told.in_structure(), told.out_structure()
        if any(Structure.of(space) != Structure.of(structure) for space in spaces):
            raise ValueError(
                "`StochasticAdjoint(operators=...)` got a function that returns an "
                f"operator from {spaces[0]} to {spaces[1]} for a system with vectors "
                f"{structure}. Return one of the structure of A."
            )

        def forward(key, vector):
            return draw(key).mv(vector)

        def backward(key, vector):
            return tree_conj(adjoint_of(draw(key)).mv(tree_conj(vector)))

        convert = lambda function: eqx.filter_closure_convert(function, key, structure)
        return Draws(convert(forward), convert(backward))


def _impl_of(key: Array) -> Any:
    """That of a typed key; `None` for a raw one, which has the default."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_impl(key) if typed else None


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, jax.Array) and key.dtype == jnp.uint32
    if not (typed or raw):
        raise TypeError(
            f"`StochasticAdjoint(key=...)` got {key!r}. Pass a key, as "
            "`jax.random.key(0)`."
        )
    if key.ndim != (0 if typed else 1):
        raise ValueError(
            f"`StochasticAdjoint(key=...)` got keys of shape {key.shape}. Pass one key; "
            "for a batch of solves map over keys and right-hand sides by `jax.vmap`."
        )


def _create_one_key() -> jex.Primitive:
    """The key of a solve, and an error if a batch of solves has one."""
    primitive = jex.Primitive("one_key")

    def batch(arguments, axes):
        if axes[0] is None:
            raise ValueError(
                "`StochasticAdjoint` got one key for a batch of solves under `jax.vmap`, "
                "whose errors would not be independent. Map over as many keys, "
                "`jax.random.split(key, batch)`, together with the systems."
            )
        return primitive.bind(*arguments), axes[0]

    primitive.def_impl(lambda key, *arrays: key)
    primitive.def_abstract_eval(lambda key, *arrays: key)
    mlir.register_lowering(primitive, lambda ctx, key, *arrays: [key])
    batching.primitive_batchers[primitive] = batch
    return primitive


one_key_p = _create_one_key()


def keys_of(other: Other | None, count: int) -> Array | None:
    """As many keys, or `None` where the derivative takes none."""
    if other is None or not isinstance(other.solver, Randomised):
        return None
    key = jax.random.wrap_key_data(other.solver.key, impl=other.solver.impl)
    return jax.random.key_data(jax.random.split(key, count))


def with_key(other: Other, key: Array) -> Other:
    """With another key, as of `keys_of`."""
    solver = dataclasses.replace(other.solver, key=key)
    thinning = other.thinning
    if thinning is not None:
        fold = jax.random.fold_in(jax.random.wrap_key_data(key, impl=thinning.impl), 1)
        thinning = dataclasses.replace(thinning, key=jax.random.key_data(fold))
    return dataclasses.replace(other, solver=solver, thinning=thinning)
