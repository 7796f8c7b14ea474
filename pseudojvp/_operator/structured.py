"""What the operators whose structure gives their inverse have in common."""

import abc
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .._base.structure import Structure
from .adjoint import hermitian_tag, is_hermitian
from .matrix import known_tags, TAGS
from .sparse import untagged
from .tags import as_scalar, tags_of_multiple


Tags = frozenset[object]


class AbstractStructured(lx.AbstractLinearOperator):
    """A matrix of flat vectors, which `AutoLinearSolver` solves by its structure.

    The laws: `tags` hold whatever the numbers are, or were promised; `conj` and
    `diagonal` are those of the matrix; sums, products and multiples are of the same
    class where the structure is, and operators of lineax otherwise.
    """

    @property
    @abc.abstractmethod
    def tags(self) -> Tags:
        """What is known of it, with all that follows."""

    def mv(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " rows"]:
        """Returns A v for a flat vector."""
        if jnp.shape(vector) != (self.in_size(),):
            raise ValueError(
                f"`{type(self).__name__}.mv` got a vector of shape {jnp.shape(vector)}, "
                f"and its matrix has shape ({self.out_size()}, {self.in_size()}). Pass a "
                f"flat vector of {self.in_size()} entries."
            )
        return self._mv(vector)

    @abc.abstractmethod
    def _mv(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " rows"]:
        """Returns A v for a vector of the right shape."""

    @abc.abstractmethod
    def conj(self) -> "AbstractStructured":
        """Returns the complex conjugate, not transposed."""

    @abc.abstractmethod
    def diagonal(self) -> Inexact[Array, " k"]:
        """Returns the entries A_ii."""

    @abc.abstractmethod
    def linearise(self) -> "AbstractStructured":
        """Returns it with its parts linearised, as `lineax.linearise`."""

    @abc.abstractmethod
    def materialise(self) -> "AbstractStructured":
        """Returns it with its parts materialised, as `lineax.materialise`."""

    def trace(self) -> Inexact[Array, ""]:
        """Returns the sum of the diagonal of a square A, at the cost of the diagonal."""
        self.check_square("trace")
        return jnp.sum(self.diagonal())

    def check_square(self, method: str) -> None:
        if self.in_size() != self.out_size():
            raise ValueError(
                f"`{type(self).__name__}.{method}` got an operator of shape "
                f"({self.out_size()}, {self.in_size()}). It has to be square."
            )

    def __radd__(self, other: Any) -> lx.AbstractLinearOperator:
        return lx.AddLinearOperator(other, self)

    def __sub__(self, other: Any) -> lx.AbstractLinearOperator:
        return self + (-other)

    def __truediv__(self, other: Any) -> lx.AbstractLinearOperator:
        scalar = as_scalar(other, type(self).__name__)
        return self * (1 / scalar.astype(jnp.result_type(scalar, float)))

    def __neg__(self) -> lx.AbstractLinearOperator:
        return self * -1


def check_operator(other: Any) -> None:
    if not isinstance(other, lx.AbstractLinearOperator):
        raise TypeError(
            f"A structured operator was added to, or multiplied with, a "
            f"{type(other).__name__}. Pass a `lineax.AbstractLinearOperator`; a matrix "
            "wants `lineax.MatrixLinearOperator`, a number `*`."
        )


def scalar_for(number: Any, dtype: np.dtype, name: str) -> Inexact[Array, ""]:
    """`number` in the dtype of an operator, that is complex if `number` is."""
    scalar = as_scalar(number, name)
    if jnp.iscomplexobj(scalar) and not np.issubdtype(dtype, np.complexfloating):
        raise TypeError(
            f"A `{name}` of dtype {dtype} was multiplied with a complex number. Make it "
            "of complex arrays first."
        )
    return scalar.astype(dtype)


def dtype_of(operator: lx.AbstractLinearOperator) -> np.dtype:
    """Of its flat vectors."""
    return Structure.of((operator.in_structure(), operator.out_structure())).dtype


def flat_mv(
    operator: lx.AbstractLinearOperator, vector: Inexact[Array, " cols"]
) -> Inexact[Array, " rows"]:
    """A v for flat vectors, whatever the operator's are."""
    in_structure = Structure.of(operator.in_structure())
    out_structure = Structure.of(operator.out_structure())
    return out_structure.ravel(operator.mv(in_structure.unravel(vector)))


def tags_of(operator: lx.AbstractLinearOperator) -> Tags:
    """All that is known of an operator."""
    tags = known_tags(operator)
    return tags | {hermitian_tag} if is_hermitian(operator) else tags


def completed(tags: Iterable[object] | object, dtype) -> Tags:
    """With the tags that follow from those given."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        tags = (tags,)
    tags = frozenset(tags)
    if lx.diagonal_tag in tags:
        tags |= {
            lx.symmetric_tag,
            lx.tridiagonal_tag,
            lx.lower_triangular_tag,
            lx.upper_triangular_tag,
        }
    if tags & {lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}:
        tags |= {hermitian_tag}
    equal = {hermitian_tag, lx.symmetric_tag}  # of real matrices
    if tags & equal and not jnp.issubdtype(dtype, jnp.complexfloating):
        tags |= equal
    return tags


# That commute with addition; of products of matrices that commute, too.
LINEAR_TAGS: Tags = frozenset(TAGS) - {lx.unit_diagonal_tag} | {hermitian_tag}


def transposed(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """Aᵀ of a part: of a Hermitian one its conjugate, for lineax drops that tag."""
    return lx.conj(operator) if is_hermitian(operator) else operator.transpose()


def tags_of_transpose(tags: Tags) -> Tags:
    return lx.transpose_tags(tags) | tags & {hermitian_tag}


def tags_of_shifted(tags: Tags, shift: Any) -> Tags:
    """Of A + shift I."""
    of_identity = tags_of_multiple(
        frozenset(LINEAR_TAGS - {lx.negative_semidefinite_tag}), shift, of_complex=True
    )
    return tags & of_identity


def identity_multiple(operator: lx.AbstractLinearOperator) -> Array | None:
    """λ, of an operator that is λ I from a space to itself; else `None`."""
    operator = untagged(operator)
    if isinstance(operator, lx.IdentityLinearOperator):
        spaces = operator.in_structure(), operator.out_structure()
        return (
            jnp.ones(()) if Structure.of(spaces[0]) == Structure.of(spaces[1]) else None
        )
    if isinstance(operator, lx.NegLinearOperator):
        multiple = identity_multiple(operator.operator)
        return None if multiple is None else -multiple
    if isinstance(operator, lx.MulLinearOperator | lx.DivLinearOperator):
        multiple = identity_multiple(operator.operator)
        if multiple is None:
            return None
        with jax.numpy_dtype_promotion("standard"):
            if isinstance(operator, lx.DivLinearOperator):
                return multiple / operator.scalar
            return multiple * operator.scalar
    return None


def same_spaces(
    first: lx.AbstractLinearOperator, second: lx.AbstractLinearOperator
) -> bool:
    def spaces(operator):
        return Structure.of((operator.in_structure(), operator.out_structure()))

    return spaces(first) == spaces(second)


@lx.linearise.register(AbstractStructured)
def _(operator):
    return operator.linearise()


@lx.materialise.register(AbstractStructured)
def _(operator):
    return operator.materialise()


@lx.conj.register(AbstractStructured)
def _(operator):
    return operator.conj()


@lx.diagonal.register(AbstractStructured)
def _(operator):
    return operator.diagonal()


@lx.tridiagonal.register(AbstractStructured)
def _(operator):
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, -1), jnp.diagonal(matrix, 1)


def _register(function, tag: object) -> None:
    function.register(AbstractStructured, lambda operator: tag in operator.tags)


for _tag, _function in TAGS.items():
    _register(_function, _tag)
