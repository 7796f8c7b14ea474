"""What is known of operators by their tags, also where lineax forgets it.

lineax does not look at the number of a product: it takes 2 A of a definite A for a matrix
of any sign.
"""

from typing import Any

import jax.core
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from .adjoint import hermitian_tag


_OPPOSITE: dict[object, object] = {
    lx.positive_semidefinite_tag: lx.negative_semidefinite_tag,
    lx.negative_semidefinite_tag: lx.positive_semidefinite_tag,
}
_OF_ANY_MULTIPLE: frozenset[object] = frozenset(
    {
        lx.symmetric_tag,
        lx.diagonal_tag,
        lx.tridiagonal_tag,
        lx.lower_triangular_tag,
        lx.upper_triangular_tag,
    }
)
_Tags = frozenset[object]
_ARITHMETIC = (
    lx.AddLinearOperator
    | lx.ComposedLinearOperator
    | lx.DivLinearOperator
    | lx.MulLinearOperator
    | lx.NegLinearOperator
)


def as_scalar(number: Any, name: str) -> Array:
    """What an operator is multiplied with, or divided by."""
    if isinstance(number, str | lx.AbstractLinearOperator) or number is None:
        raise TypeError(
            f"A `{name}` was multiplied with, or divided by, a {type(number).__name__}. "
            "Pass a number; a product of operators is `@`."
        )
    scalar = jnp.asarray(number)
    if scalar.shape != ():
        raise ValueError(
            f"A `{name}` was multiplied with, or divided by, an array of shape "
            f"{scalar.shape}. Pass a scalar; a product of operators is `@`."
        )
    return scalar


def tags_of_multiple(tags: _Tags, number: Any, *, of_complex: bool) -> _Tags:
    """The tags of `number` times A, or A over `number`, for A of these tags."""
    definite = tags & frozenset(_OPPOSITE)
    kept = tags & _OF_ANY_MULTIPLE
    if definite and not of_complex:
        kept |= {lx.symmetric_tag}
    if not jnp.iscomplexobj(number):
        if definite or hermitian_tag in tags:
            kept |= {hermitian_tag}
        kept |= _with_sign(definite, _sign(number))
    return kept


def with_known_tags(
    operator: lx.AbstractLinearOperator, number: Any = None
) -> lx.AbstractLinearOperator:
    """A multiple or a sum with the tags of definiteness that the numbers in it allow.

    To be called outside of `jit`, where they are known. `number` is what was given for
    that of a multiple, before it was cast to a complex dtype.
    """
    if not isinstance(operator, _ARITHMETIC):
        return operator
    if number is not None and isinstance(
        operator, lx.MulLinearOperator | lx.DivLinearOperator
    ):
        known = _with_sign(_definiteness(operator.operator), _sign(number))
    else:
        known = _definiteness(operator)
    return lx.TaggedLinearOperator(operator, known) if known else operator


def advice(operator: lx.AbstractLinearOperator, tag: str) -> str:
    """The end of an error that asks for a tag: arithmetic may have dropped it."""
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    if not isinstance(operator, _ARITHMETIC):
        return ""
    return (
        f" Arithmetic of operators drops tags, as in this `{type(operator).__name__}`: "
        f"if this one holds, `lineax.TaggedLinearOperator(operator, {tag})` has it again."
    )


def _told(operator: lx.AbstractLinearOperator) -> _Tags:
    """The tags of definiteness that lineax knows of."""
    checks = {
        lx.positive_semidefinite_tag: lx.is_positive_semidefinite,
        lx.negative_semidefinite_tag: lx.is_negative_semidefinite,
    }
    return frozenset(tag for tag, holds in checks.items() if holds(operator))


def _definiteness(operator: lx.AbstractLinearOperator) -> _Tags:
    if isinstance(operator, lx.MulLinearOperator | lx.DivLinearOperator):
        return _with_sign(_definiteness(operator.operator), _sign(operator.scalar))
    if isinstance(operator, lx.NegLinearOperator):
        return _with_sign(_definiteness(operator.operator), -1)
    if isinstance(operator, lx.AddLinearOperator):
        return _definiteness(operator.operator1) & _definiteness(operator.operator2)
    if isinstance(operator, lx.TaggedLinearOperator):
        return operator.tags & frozenset(_OPPOSITE) | _definiteness(operator.operator)
    return _told(operator)


def _with_sign(definite: _Tags, sign: int) -> _Tags:
    """The tags of definiteness of a multiple by a number of this sign."""
    if sign == 0:
        return frozenset()
    return definite if sign > 0 else frozenset(_OPPOSITE[tag] for tag in definite)


def _sign(number: Any) -> int:
    """1 or -1; 0 for a number that is unknown, complex, zero or NaN."""
    if isinstance(number, jax.core.Tracer) or jnp.iscomplexobj(number):
        return 0
    value = float(number)  # which is not traced, as a comparison within `jit` would be
    return int(value > 0) - int(value < 0)
