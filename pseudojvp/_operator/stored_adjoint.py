import jax
import lineax as lx
from jaxtyping import Array, Inexact

from .._kernel.products import adjoint_matmul


class StoredAdjoint(lx.AbstractLinearOperator):
    """A^H, by its rows: what is stored is A."""

    matrix: Inexact[Array, "rows cols"]

    def mv(self, vector: Inexact[Array, " rows"]) -> Inexact[Array, " cols"]:
        return adjoint_matmul(self.matrix, vector)

    def as_matrix(self) -> Inexact[Array, "cols rows"]:
        return self.matrix.conj().T

    def transpose(self) -> lx.MatrixLinearOperator:
        return lx.MatrixLinearOperator(self.matrix.conj())

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.matrix.shape[:1], self.matrix.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.matrix.shape[1:], self.matrix.dtype)


@lx.conj.register(StoredAdjoint)
def _(operator: StoredAdjoint) -> StoredAdjoint:
    return StoredAdjoint(operator.matrix.conj())


def _is_unknown(operator: StoredAdjoint) -> bool:
    del operator
    return False


for _function in (
    lx.is_negative_semidefinite,
    lx.is_positive_semidefinite,
    lx.is_symmetric,
):
    _function.register(StoredAdjoint, _is_unknown)
