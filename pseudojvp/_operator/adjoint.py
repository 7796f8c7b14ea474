import copyreg

import jax
import jax.numpy as jnp
import lineax as lx

from .._base.structure import Structure


class _HermitianTag:
    """States that an operator is its own conjugate transpose, A = Aᴴ.

    A tag like those of lineax: pass it to `lineax.MatrixLinearOperator`,
    `lineax.TaggedLinearOperator` and similar operators. It is not checked. For a real A
    it means the same as `lineax.symmetric_tag`; for a complex A that tag means A = Aᵀ.
    Sums, negatives and real multiples of operators with this tag have it as well.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    A = lx.MatrixLinearOperator(jnp.array([[2.0, 1j], [-1j, 2.0]]), pj.hermitian_tag)
    x = pj.linear_solve(A, jnp.array([2.0 + 1j, 2.0 - 1j]), pj.MINRES()).value
    print(jnp.allclose(x, jnp.array([1.0, 1.0]), atol=1e-4))  # True
    ```
    """

    def __repr__(self):
        return "hermitian_tag"

    def __reduce__(self):
        return "hermitian_tag"


hermitian_tag = _HermitianTag()

# A tag is known by its identity, so that a copy would be none: a tag is pickled and
# copied as the name that it has, as `hermitian_tag` is.
copyreg.pickle(type(lx.symmetric_tag), repr)


def is_complex(operator: lx.AbstractLinearOperator) -> bool:
    spaces = (operator.in_structure(), operator.out_structure())
    return Structure.of(spaces).is_complex


def transpose_of(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """Aᵀ. lineax promotes leaves of several dtypes to ask whether it is symmetric."""
    with jax.numpy_dtype_promotion("standard"):
        return operator.transpose()


def adjoint(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    transpose = transpose_of(operator)
    return lx.conj(transpose) if is_complex(operator) else transpose


def is_hermitian(operator: lx.AbstractLinearOperator) -> bool:
    """By its tags, or those of its parts."""
    if isinstance(operator, lx.MulLinearOperator | lx.DivLinearOperator):
        real = not jnp.iscomplexobj(operator.scalar)
        return real and is_hermitian(operator.operator)
    known = (
        hermitian_tag in getattr(operator, "tags", frozenset())
        or lx.is_positive_semidefinite(operator)
        or lx.is_negative_semidefinite(operator)
        or (lx.is_symmetric(operator) and not is_complex(operator))
    )
    if known:
        return True
    if isinstance(operator, lx.NegLinearOperator | lx.TaggedLinearOperator):
        return is_hermitian(operator.operator)
    if isinstance(operator, lx.AddLinearOperator):
        return is_hermitian(operator.operator1) and is_hermitian(operator.operator2)
    return False
