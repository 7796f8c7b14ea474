"""The (pseudo)inverse of an operator, as an operator."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, PyTree

from .._base.call import compiled, Frame, split
from .._base.checks import check_vector
from .._base.inexact import as_inexact
from .._base.statistics import without_derivative
from .._base.structure import Structure
from .._base.tree import tree_conj
from .._map.factorised import Factorised
from .._operator.matrix import matrix_of
from .._operator.over_reals import mixes
from .._operator.sparse import is_sparse


class InverseLinearOperator(lx.AbstractLinearOperator):
    """A†, its transpose or its conjugate, as an operator: one solve a product.

    Returned by [`pseudojvp.invert`][]. Besides what every lineax operator does, it has

        x = inverse.mv(b)              # A†b
        X = inverse.mm(B)              # A†B, for columns
        X = inverse @ B                # the same, and `inverse @ b` is `inverse.mv(b)`
        solution = inverse.solve(b)    # A†b with `result` and `stats`

    `inverse.T` and `lineax.conj(inverse)` have the same methods. `inverse @ operator` is
    a composition.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    inverse = pj.invert(jnp.array([[2.0, 1.0], [0.0, 4.0]]))
    print(inverse @ jnp.array([3.0, 4.0]))  # [1. 1.]
    print(inverse.T.mv(jnp.array([2.0, 5.0])))  # [1. 1.]
    print(inverse.mm(jnp.eye(2)).tolist())  # [[0.5, -0.125], [0.0, 0.25]]
    ```
    """

    # lineax knows how functions behave, and so does whoever looks for functions in an
    # operator.
    function: lx.FunctionLinearOperator

    # Else `vector @ inverse` with a NumPy vector is an array of operators.
    __array_ufunc__: ClassVar[None] = None

    @classmethod
    def of(
        cls, factorised: Factorised, tags: frozenset[object]
    ) -> "InverseLinearOperator":
        """Returns the inverse that `function` applies, with the tags of A†."""
        product = _Product(*split(factorised), transposed=False, conjugated=False)
        return cls._of(product, tags)

    @classmethod
    def _of(cls, product: "_Product", tags) -> "InverseLinearOperator":
        # Not as a jaxpr, which could not be pickled.
        function = lx.FunctionLinearOperator(
            product, product.in_structure(), tags, closure_convert=False
        )
        return cls(function)

    @property
    def tags(self) -> frozenset[object]:
        return self.function.tags

    def mv(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns A†b; NaN if the solve fails under `throw=False`."""
        return self.function.mv(vector)

    def solve(self, vector: PyTree[ArrayLike]) -> lx.Solution:
        """Returns A†b as a `lineax.Solution`, under `jax.jit` and `jax.vmap` as well.

        Like `linear_solve` with the factors already computed: `result` and `stats` belong
        to this solve. If it fails under `throw=False`, `value` is what the solver has.
        There is no `state`: the inverse itself is the state.
        """
        return _solution(self._product, vector)

    def mm(self, matrix: PyTree[ArrayLike]) -> PyTree[Array]:
        """Returns A†B for a block of columns: each leaf of B has one more axis, the last.

        Cost: one application of the factors to all columns, or one loop of an iterative
        solver.

        **Raises:** `ValueError` for leaves of other shapes or dtypes, or with different
        numbers of columns.
        """
        given = jtu.tree_map(lambda leaf: as_inexact(leaf, "mm(matrix=...)"), matrix)
        expected = Structure.of(self.in_structure())
        counts = {leaf.shape[-1] for leaf in jtu.tree_leaves(given) if leaf.ndim > 0}
        shapes = [leaf.shape[:-1] for leaf in jtu.tree_leaves(given) if leaf.ndim > 0]
        if len(counts) != 1 or tuple(shapes) != expected.shapes:
            raise ValueError(
                f"`inverse.mm` got {Structure.of(given).as_tree()}, but takes columns of "
                f"vectors with structure {expected.as_tree()}. Pass each leaf with one "
                "more axis, the last, and as many columns in each."
            )
        if Structure.of(given).dtypes != expected.dtypes:
            raise ValueError(
                f"`inverse.mm` got {Structure.of(given).as_tree()}, but takes columns of "
                f"vectors with structure {expected.as_tree()}. Pass each leaf in the "
                "dtype of the latter."
            )
        if counts == {0}:  # no solve that could fail
            out = self.out_structure()
            return jtu.tree_map(lambda leaf: jnp.zeros((*leaf.shape, 0), leaf.dtype), out)
        return jax.vmap(self.mv, -1, -1)(given)

    def __matmul__(self, other: Any) -> Any:
        """Composes operators; applies A† to an array, as a vector or as columns."""
        if isinstance(other, lx.AbstractLinearOperator):
            return lx.ComposedLinearOperator(self, other)
        if is_sparse(other):
            raise TypeError(
                f"`inverse @ other` got a sparse {type(other).__name__}. Densify "
                "it (`todense`), or pass a `SparseLinearOperator` for a composition."
            )
        ndim = len(getattr(other, "shape", ()))
        if ndim not in (1, 2):
            raise TypeError(
                f"`inverse @ other` got a {type(other).__name__} with {ndim} axes. Pass "
                "an operator, a vector or a matrix; for a pytree use `inverse.mv`, for "
                "columns of one `inverse.mm`."
            )
        return self.mv(other) if ndim == 1 else self.mm(other)

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        if mixes(self):
            return matrix_of(self.function)  # which says that there is none
        rows, cols = map(Structure.of, (self.out_structure(), self.in_structure()))
        column = lambda unit: rows.ravel(self.mv(cols.unravel(unit)))
        return jax.vmap(column, out_axes=1)(jnp.eye(cols.size, dtype=cols.dtype))

    def transpose(self) -> lx.AbstractLinearOperator:
        if lx.is_symmetric(self):
            return self
        tags = lx.transpose_tags(self.tags)
        return InverseLinearOperator._of(self._product.turned(transposed=True), tags)

    def conj(self) -> "InverseLinearOperator":
        product = self._product.turned(conjugated=True)
        return InverseLinearOperator._of(product, self.tags)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self._product.in_structure()

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self._product.turned(transposed=True).in_structure()

    @property
    def _product(self) -> Any:
        return self.function.fn


class _Product(eqx.Module):
    """v ↦ A†v, or its transpose or conjugate, of which only the arrays are leaves."""

    arrays: list[Array]
    rest: Frame
    transposed: bool = eqx.field(static=True)
    conjugated: bool = eqx.field(static=True)

    def __call__(self, vector: PyTree[ArrayLike]) -> PyTree[Array]:
        return _value(self, vector)

    @property
    def factorised(self) -> Factorised:
        return self.rest.filled(self.arrays)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        operator = self.factorised.operator
        return operator.in_structure() if self.transposed else operator.out_structure()

    def turned(self, *, transposed: bool = False, conjugated: bool = False):
        return _Product(
            self.arrays,
            self.rest,
            self.transposed != transposed,
            self.conjugated != conjugated,
        )

    def apply(self, factorised: Factorised, vector: PyTree[Array]):
        """The value, result and stats of the solve: (A†)ᵀ is the conjugate of A†ᴴ."""
        turn = tree_conj if self.transposed != self.conjugated else lambda tree: tree
        if self.transposed:
            value, result, stats = factorised.apply_adjoint(turn(vector))
        else:
            value, _, result, stats = factorised.apply(turn(vector))
        return turn(value), result, stats


@compiled
def _value(product: _Product, vector) -> PyTree[Array]:
    vector = check_vector(vector, product.in_structure(), "mv")
    return product.apply(product.factorised.nan_if_failed(), vector)[0]


@compiled
def _solution(product: _Product, vector) -> lx.Solution:
    vector = check_vector(vector, product.in_structure(), "solve")
    factorised = product.factorised
    value, result, stats = product.apply(factorised, vector)
    if not factorised.unrolls:
        stats = without_derivative(stats, factorised, vector)
    return lx.Solution(value=value, result=result, stats=stats, state=None)


@lx.linearise.register(InverseLinearOperator)
def _(operator):
    return operator


@lx.conj.register(InverseLinearOperator)
def _(operator):
    return operator.conj()


def _delegate(query) -> None:
    query.register(InverseLinearOperator)(lambda operator: query(operator.function))


for _query in (
    lx.materialise,
    lx.diagonal,
    lx.tridiagonal,
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.has_unit_diagonal,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _delegate(_query)
