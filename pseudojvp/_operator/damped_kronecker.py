"""Kronecker products of Hermitian operators, plus a multiple of the identity."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact, Real

from .adjoint import hermitian_tag
from .structured import (
    AbstractStructured,
    check_operator,
    completed,
    dtype_of,
    identity_multiple,
    same_spaces,
    scalar_for,
    Tags,
    tags_of_shifted,
)


class DampedKronecker(AbstractStructured):
    """A ⊗ B ⊗ … + λ I, of Hermitian factors."""

    kronecker: Any  # a `Kronecker`
    damping: Real[Array, ""]
    # By the sign of the damping, which is known here and not within `jax.jit`.
    known_tags: Tags = eqx.field(static=True)

    def __init__(self, kronecker: Any, damping: Real[Array, ""]):
        if hermitian_tag not in kronecker.tags:
            raise ValueError(
                "`Kronecker.damped` needs Hermitian factors, and not all of these are "
                "known to be. Tag them with `pseudojvp.hermitian_tag` or "
                "`lineax.positive_semidefinite_tag` (real ones with "
                "`lineax.symmetric_tag`), or use `factored_damped`."
            )
        self.kronecker, self.damping = kronecker, damping
        tags = tags_of_shifted(kronecker.tags - {lx.unit_diagonal_tag}, damping)
        self.known_tags = completed(tags, dtype_of(kronecker))

    @property
    def tags(self) -> Tags:
        return self.known_tags

    def _mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return self.kronecker.mv(vector) + self._damping() * vector

    def as_matrix(self) -> Inexact[Array, "n n"]:
        matrix = self.kronecker.as_matrix()
        return matrix + self._damping() * jnp.eye(len(matrix), dtype=matrix.dtype)

    def diagonal(self) -> Inexact[Array, " n"]:
        return self.kronecker.diagonal() + self._damping()

    def trace(self) -> Inexact[Array, ""]:
        return self.kronecker.trace() + self.in_size() * self._damping()

    def transpose(self) -> "DampedKronecker":
        return DampedKronecker(self.kronecker.transpose(), self.damping)

    def conj(self) -> "DampedKronecker":
        return DampedKronecker(self.kronecker.conj(), self.damping)

    def linearise(self) -> "DampedKronecker":
        return DampedKronecker(self.kronecker.linearise(), self.damping)

    def materialise(self) -> "DampedKronecker":
        return DampedKronecker(self.kronecker.materialise(), self.damping)

    def __mul__(self, other: Any) -> lx.AbstractLinearOperator:
        scalar = scalar_for(other, dtype_of(self.kronecker), "Kronecker")
        if jnp.iscomplexobj(other):
            return lx.MulLinearOperator(self, scalar)
        return DampedKronecker(self.kronecker * other, scalar.real * self.damping)

    def __add__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        shift = identity_multiple(other)
        if shift is None or jnp.iscomplexobj(shift) or not same_spaces(self, other):
            return lx.AddLinearOperator(self, other)
        return DampedKronecker(
            self.kronecker, self.damping + shift.astype(self.damping.dtype)
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.kronecker.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.kronecker.out_structure()

    def _damping(self):
        return self.damping.astype(dtype_of(self.kronecker))


def real_scalar(
    number: Any, operator: lx.AbstractLinearOperator, what: str
) -> Real[Array, ""]:
    """`number` in the real dtype of an operator."""
    scalar = jnp.asarray(number)
    what = f"{type(operator).__name__}.{what}"
    if scalar.ndim != 0:
        raise ValueError(
            f"`{what}` got an array of shape {scalar.shape}. Pass a scalar; for a batch "
            "of them use `jax.vmap`."
        )
    if jnp.iscomplexobj(scalar):
        raise TypeError(f"`{what}` got a complex number. Pass a real one.")
    return scalar.astype(jnp.finfo(dtype_of(operator)).dtype)
