"""Determinants of structured operators, from those of their parts."""

from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Inexact, Integer, Real

from ..._base.tree import one_or_nan
from ..._kernel.determinant import of_product
from ..._operator.block_diagonal import BlockDiagonal
from ..._operator.circulant import Circulant
from ..._operator.eigh import Eigh
from ..._operator.kronecker import Kronecker
from ..factorisation import Slogdet
from .parts import BlocksState, KroneckerState, Solver
from .spectral import diagonal_of, SpectralState


def of_kronecker(
    solvers: tuple[Solver, ...],
    operator: Kronecker,
    state: KroneckerState,
    factorised: Callable,
) -> Slogdet:
    """log |det(A ⊗ B)| = rank B log |det A| + rank A log |det B|."""
    told, ranks = [], []
    for solver, factor, part in zip(
        solvers, operator.operators, state.parts, strict=True
    ):
        told.append(factorised(factor, solver, part.state).slogdet())
        ranks.append(part.rank(solver))
    sign, logabsdet = jnp.ones((), told[0].sign.dtype), jnp.zeros(())
    logabsdet = logabsdet.astype(told[0].logabsdet.dtype)
    sizes = [part.sizes[0] for part in state.parts]
    for index, (own_sign, own_logabsdet) in enumerate(told):
        others = jnp.ones((), logabsdet.dtype)
        exponent = 1
        for other, rank in enumerate(ranks):
            if other != index:
                others = others * jnp.asarray(rank, logabsdet.dtype)
                exponent *= sizes[other]
        sign = sign * own_sign**exponent
        # An exact zero is −inf, of no others zero.
        logabsdet = logabsdet + jnp.where(others == 0, 0, others * own_logabsdet)
    rank = state.rank(solvers)
    return _signed(sign, logabsdet, operator, rank)


def of_blocks(
    solvers: tuple[Solver, ...],
    operator: BlockDiagonal,
    state: BlocksState,
    factorised: Callable,
) -> Slogdet:
    """The products of those of the blocks."""
    signs, sizes = [], []
    for solver, run, part in zip(solvers, operator.runs, state.parts, strict=True):
        block = lambda op, state, solver=solver: tuple(
            factorised(op, solver, state).slogdet()
        )
        sign, logabsdet = run.map(block, part.state)
        signs.append(jnp.prod(sign))
        sizes.append(jnp.sum(logabsdet))
    sign, logabsdet = jnp.prod(jnp.stack(signs)), jnp.sum(jnp.stack(sizes))
    return _signed(sign, logabsdet, operator, state.rank(solvers))


def of_spectrum(
    operator: lx.AbstractLinearOperator, state: SpectralState, *, full_rank: bool
) -> Slogdet | None:
    """The product of the eigenvalues that count; `None` where JAX can't derive it."""
    if isinstance(operator, Circulant):
        values = operator.eigenvalues()
        sign, logabsdet = _product(values, state.kept, full_rank=full_rank)
        if not jnp.iscomplexobj(operator.column):  # the others are pairs
            half = values.size // 2
            ends = values[:1] if values.size % 2 else values[jnp.array([0, half])]
            sign = jnp.prod(jnp.sign(ends.real))
    elif isinstance(operator, Eigh):
        sign, logabsdet = _product(operator.values, state.kept, full_rank=full_rank)
        rows, columns = operator.vectors.shape
        if columns < rows:
            rest, kept = operator.complement, state.complement_kept
            own, size = _product(rest[None], kept[None], full_rank=full_rank)
            sign = sign * own ** (rows - columns)
            logabsdet = logabsdet + (rows - columns) * size
        # These are eigenvalues of A for orthonormal vectors alone.
        one = one_or_nan(state.sound)
        sign = (sign * one.astype(sign.dtype)).astype(operator.vectors.dtype)
        logabsdet = logabsdet * one.astype(logabsdet.dtype)
    else:
        values = diagonal_of(operator)
        sign, logabsdet = _product(values, state.kept, full_rank=full_rank)
    if full_rank:
        return Slogdet(sign, logabsdet)
    return _signed(sign, logabsdet, operator, state.rank)


def of_factors(state: SpectralState, *, full_rank: bool) -> Slogdet:
    """As `of_spectrum`, without derivatives."""
    sign, logabsdet = _product(state.values, state.kept, full_rank=full_rank)
    sign = sign.astype(state.structures.value[0].dtype)
    size = state.structures.value[0].size
    inverse = jnp.array(full_rank) | (state.rank == size)
    return Slogdet(jnp.where(inverse, sign, 1), logabsdet)


def _product(
    values: Inexact[Array, " k"], kept: Bool[Array, " k"], *, full_rank: bool
) -> tuple[Inexact[Array, ""], Real[Array, ""]]:
    return of_product(values if full_rank else jnp.where(kept, values, 1))


def _signed(
    sign: Inexact[Array, ""],
    logabsdet: Real[Array, ""],
    operator: lx.AbstractLinearOperator,
    rank: Integer[Array, ""],
) -> Slogdet:
    """With the sign 1 where A has no inverse."""
    if operator.in_size() != operator.out_size():
        return Slogdet(jnp.ones_like(sign), logabsdet)
    return Slogdet(jnp.where(rank == operator.in_size(), sign, 1), logabsdet)
