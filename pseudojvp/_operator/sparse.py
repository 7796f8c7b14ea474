"""A sparse matrix as a linear operator, and what it is made from."""

import math
import operator as _operator
import sys
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Inexact, Num, Real

from .._base.inexact import as_inexact, as_native
from .._base.tree import one_or_nan
from .sparse_product import rows_face
from .sparsity import create_sparsity, Sparsity
from .tags import as_scalar, tags_of_multiple


class SparseLinearOperator(lx.AbstractLinearOperator):
    """A sparse matrix; it and its derivatives store only its entries.

    The indices are sorted once, when the operator is built: by rows for A v and by
    columns for A^T v. Build it outside `jax.jit`, or inside from indices that are known
    while JAX traces: NumPy arrays, SciPy matrices, JAX arrays made outside. (Indices of a
    `BCOO` or `BCSR` that is made inside, even from NumPy arrays, are not known.) With
    traced indices the products are several times slower, those with many columns at once
    ten times; and nothing is derived from the pattern, such as that the matrix is
    triangular.

    **Arguments:**

    - `matrix`: a `jax.experimental.sparse` `BCOO` or `BCSR`, a SciPy sparse matrix or
        array, a tuple `(data, row, col, shape)` with `data`, `row`, `col` of shape
        `(nse,)`, or a tuple `(data, sparsity)` with the `sparsity` of another operator,
        which is not sorted again. Entries may be in any order; entries with the same
        indices add up. Integer data become the default floating dtype. In `BCOO` and
        `BCSR` an index equal to the dimension marks padding, as in JAX.
    - `tags`: what is known about the matrix, as for `lineax.MatrixLinearOperator`.
        Defaults to none. Unless the indices are traced, a square matrix is recognised as
        diagonal, tridiagonal or triangular from them.

    Multiples (`2.0 * A`, `A / 2.0`, `-A`) are sparse again and keep the tags that hold
    for them. They keep definiteness only if the sign of the factor is known, that is, not
    traced.

    A triangular matrix with `lineax.unit_diagonal_tag` need not store its diagonal:
    missing ones are appended to the entries, unless the indices are traced.

    The fields are `data`, in the order given, and `sparsity`, with `row`, `col` and
    `shape`.

    Cost of A v and A^T v: `nse` multiplications. Several vectors under `jax.vmap` are one
    product with a matrix of columns.

    **Derivatives:** with respect to `data` only, forward and reverse, of every order. The
    cotangent has the shape and the order of `data`; it is zero for padding.

    **Raises:** `TypeError` for a `matrix` of another type, such as a dense one;
    `ValueError` for shapes that do not match, indices out of range, and a tag that the
    indices contradict: an entry outside a diagonal, tridiagonal or triangular matrix, or
    a unit diagonal tag on a matrix that is not triangular and lacks diagonal entries. If
    the indices are traced, indices out of range make the operator NaN.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    row, col = jnp.array([0, 0, 1]), jnp.array([0, 1, 1])
    A = pj.SparseLinearOperator((jnp.array([2.0, 1.0, 4.0]), row, col, (2, 2)))
    print(A.mv(jnp.array([1.0, 1.0])))  # [3. 4.]
    print((2.0 * A).as_matrix().tolist())  # [[4.0, 2.0], [0.0, 8.0]]
    ```
    """

    data: Inexact[Array, " nse"]
    sparsity: Sparsity
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, matrix: Any, tags: object | Iterable[object] = ()):
        data, self.sparsity, in_range = _read(matrix)
        data = as_inexact(data, "SparseLinearOperator(matrix=...)")
        if data.shape != self.sparsity.row.shape:
            raise ValueError(
                f"`SparseLinearOperator(matrix=...)` got data of shape {data.shape} for "
                f"{self.sparsity.nse} entries. Pass data of shape "
                f"({self.sparsity.nse},); for a batch of matrices use `jax.vmap`."
            )
        if in_range is not None:
            data = data * one_or_nan(in_range).astype(data.dtype)
        if isinstance(tags, str):  # its letters would be the tags
            raise TypeError(
                f"`SparseLinearOperator(tags=...)` got {tags!r}. Pass a tag of lineax, "
                "as `lineax.symmetric_tag`, or a collection of them."
            )
        self.tags = frozenset(tags if isinstance(tags, Iterable) else (tags,))
        if lx.unit_diagonal_tag in self.tags:
            data, self.sparsity = _with_ones(data, self.sparsity)
        self.data = data
        _check_tags(self.sparsity, self.tags)

    def mv(self, vector: Num[Array | np.ndarray, " cols"]) -> Inexact[Array, " rows"]:
        if jnp.shape(vector) != self.sparsity.shape[1:]:
            raise ValueError(
                f"`SparseLinearOperator.mv` got a vector of shape {jnp.shape(vector)} "
                f"for a matrix of shape {self.sparsity.shape}. Pass one of shape "
                f"{self.sparsity.shape[1:]}; for several use `jax.vmap`."
            )
        data, vector = jnp.asarray(self.data), jnp.asarray(vector)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(data, vector)
        data, vector = data.astype(dtype), vector.astype(dtype)
        return rows_face(self.sparsity, data[:, None], vector[:, None, None])[:, 0, 0]

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        zeros = jnp.zeros(self.sparsity.shape, self.data.dtype)
        place = self.sparsity.row, self.sparsity.col
        return zeros.at[place].add(self.data, mode="drop")

    def transpose(self) -> "SparseLinearOperator":
        transposed = self.data, self.sparsity.transpose()
        return SparseLinearOperator(transposed, lx.transpose_tags(self.tags))

    def __mul__(self, other: Any) -> "SparseLinearOperator":
        return self._multiple(_operator.mul, other)

    def __truediv__(self, other: Any) -> "SparseLinearOperator":
        return self._multiple(_operator.truediv, other)

    def __neg__(self) -> "SparseLinearOperator":
        return self._multiple(_operator.mul, -1)

    def _multiple(self, operation: Callable, number: Any) -> "SparseLinearOperator":
        """In the dtype of A, but complex if the number is."""
        scalar = as_scalar(number, "SparseLinearOperator")
        of_complex = jnp.iscomplexobj(self.data)
        if of_complex or not jnp.iscomplexobj(scalar):
            scalar = scalar.astype(self.data.dtype)
        with jax.numpy_dtype_promotion("standard"):
            data = operation(jnp.asarray(self.data), scalar)
        tags = tags_of_multiple(self.tags, number, of_complex=of_complex)
        return SparseLinearOperator((data, self.sparsity), tags)

    def largest_entries(self) -> Real[Array, " cols"]:
        """Returns the largest absolute value in each column, without adding up entries
        that have the same indices."""
        sizes = jnp.abs(self.data)
        zeros = jnp.zeros(self.sparsity.shape[1], sizes.dtype)
        return zeros.at[self.sparsity.col].max(sizes, mode="drop")

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.sparsity.shape[1:], self.data.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.sparsity.shape[:1], self.data.dtype)


_BANDS: dict[object, tuple[float, float]] = {  # the most subdiagonals, and superdiagonals
    lx.diagonal_tag: (0, 0),
    lx.tridiagonal_tag: (1, 1),
    lx.lower_triangular_tag: (math.inf, 0),
    lx.upper_triangular_tag: (0, math.inf),
}


def _with_ones(data, sparsity: Sparsity):
    """A triangular matrix with the ones of its diagonal that are not stored."""
    if (
        sparsity.bandwidths is None
        or sparsity.full_diagonal
        or 0 not in sparsity.bandwidths
    ):
        return data, sparsity
    row, col = map(np.asarray, (sparsity.row, sparsity.col))
    size = min(sparsity.shape)
    missing = np.setdiff1d(np.arange(size, dtype=row.dtype), row[row == col])
    row, col = np.append(row, missing), np.append(col, missing)
    sparsity, _ = create_sparsity(row, col, sparsity.shape, allow_padding=True)
    return jnp.append(data, jnp.ones(len(missing), data.dtype)), sparsity


def _check_tags(sparsity: Sparsity, tags: frozenset[object]) -> None:
    if sparsity.bandwidths is None:
        return
    lower, upper = sparsity.bandwidths
    for tag in tags & _BANDS.keys():
        if lower > _BANDS[tag][0] or upper > _BANDS[tag][1]:
            raise ValueError(
                f"`SparseLinearOperator(tags=...)` got `{tag}` for a matrix that has "
                f"entries on {lower} subdiagonals and {upper} superdiagonals. Drop the "
                "tag or the entries."
            )
    if lx.unit_diagonal_tag in tags and not sparsity.full_diagonal:
        raise ValueError(
            "`SparseLinearOperator(tags=...)` got `unit_diagonal_tag` for a matrix that "
            "does not store each entry of its diagonal. Store the ones."
        )


def untagged(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """What is within any number of `lineax.TaggedLinearOperator`."""
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    return operator


def is_sparse(matrix: Any) -> bool:
    """Whether `matrix` is a sparse one of JAX or of SciPy."""
    return _is_of_jax(matrix, "JAXSparse") or _is_of_scipy(matrix)


# Not imported here: whoever has a sparse matrix has imported its module, and importing
# SciPy's, which JAX's does, adds to the filters of `warnings`.
def _is_of_jax(matrix: Any, kind: str) -> bool:
    jax_sparse = sys.modules.get("jax.experimental.sparse")
    return jax_sparse is not None and isinstance(matrix, getattr(jax_sparse, kind))


def _is_of_scipy(matrix: Any) -> bool:
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(matrix)


def _read(matrix: Any) -> tuple[Any, Sparsity, Bool[Array, ""] | None]:
    """(data, sparsity, whether traced indices are within range)."""
    if isinstance(matrix, tuple) and len(matrix) == 2 and isinstance(matrix[1], Sparsity):
        return *matrix, None
    data, row, col, shape = read_entries(matrix)
    padding = _is_of_jax(matrix, "JAXSparse")
    return data, *create_sparsity(row, col, shape, allow_padding=padding)


def read_entries(matrix: Any) -> tuple[Any, Any, Any, tuple[int, int]]:
    """(data, row, col, shape), in the order given; where they are is not checked."""
    if _is_of_jax(matrix, "BCOO"):
        _check_unbatched(matrix)
        indices = _known(matrix.indices)
        data, row, col, shape = matrix.data, indices[:, 0], indices[:, 1], matrix.shape
    elif _is_of_jax(matrix, "BCSR"):
        _check_unbatched(matrix)
        row = _row_of(_known(matrix.indptr), matrix.nse)
        data, col, shape = matrix.data, matrix.indices, matrix.shape
    elif _is_of_scipy(matrix):
        coordinates = matrix.tocoo()
        data, row, col = coordinates.data, coordinates.row, coordinates.col
        shape = coordinates.shape
    elif isinstance(matrix, tuple) and len(matrix) == 4:
        data, row, col, shape = matrix
    else:
        raise TypeError(
            f"`SparseLinearOperator(matrix=...)` got a {type(matrix).__name__}. Pass a "
            "`BCOO` or `BCSR` of `jax.experimental.sparse`, a SciPy sparse matrix, or a "
            "tuple `(data, row, col, shape)`; for a dense array use "
            "`lineax.MatrixLinearOperator`, or `BCOO.fromdense`."
        )
    row, col = _as_indices("row", row, data), _as_indices("col", col, data)
    return data, row, col, _as_shape(shape)


def _known(indices):
    """As a NumPy array where known: under `jax.jit`, what JAX computes is traced."""
    return indices if isinstance(indices, jax.core.Tracer) else np.asarray(indices)


def _check_unbatched(matrix) -> None:
    """A BCOO of any number of axes, of which those of a batch come first, dense last."""
    if matrix.n_batch or matrix.n_dense:
        instead = (
            "for a batch of matrices use `jax.vmap`"
            if matrix.n_batch
            else "`BCOO.fromdense(matrix)` of a dense one is one"
        )
        problem = (
            f"with {matrix.n_batch} batch and {matrix.n_dense} dense dimensions. Pass a "
            f"matrix without; {instead}."
        )
    elif matrix.ndim != 2:
        problem = (
            f"with {matrix.ndim} axes. A matrix has shape (rows, cols): reshape it, as "
            "in `matrix.reshape(1, -1)` for a single row."
        )
    else:
        return
    raise ValueError(
        f"`SparseLinearOperator(matrix=...)` got a {type(matrix).__name__} of shape "
        f"{matrix.shape} {problem}"
    )


def _row_of(indptr, nse: int):
    """The row of each entry of a BCSR; those past the last row are padding."""
    library = jnp if isinstance(indptr, jax.core.Tracer) else np
    entries = library.arange(nse, dtype=indptr.dtype)
    return library.searchsorted(indptr[1:], entries, side="right")


def _as_indices(name: str, indices, data):
    indices = _known(as_native(indices, "SparseLinearOperator(matrix=...)"))
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.shape != jnp.shape(data):
        raise ValueError(
            f"`SparseLinearOperator(matrix=...)` got `{name}` of shape {indices.shape} "
            f"and dtype {indices.dtype} beside data of shape {jnp.shape(data)}. Pass one "
            "integer for each entry."
        )
    return indices


def _as_shape(shape) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(
            f"`SparseLinearOperator(matrix=...)` got the shape {shape}. A matrix has "
            "shape (rows, cols)."
        )
    return _operator.index(shape[0]), _operator.index(shape[1])


@lx.linearise.register(SparseLinearOperator)
@lx.materialise.register(SparseLinearOperator)
def _(operator):
    return operator


@lx.conj.register(SparseLinearOperator)
def _(operator):
    return SparseLinearOperator((operator.data.conj(), operator.sparsity), operator.tags)


@lx.diagonal.register(SparseLinearOperator)
def _(operator):
    return _band(operator, 0)


@lx.tridiagonal.register(SparseLinearOperator)
def _(operator):
    return _band(operator, 0), _band(operator, -1), _band(operator, 1)


def _band(operator, offset: int):
    """The entries with col − row = offset."""
    row, col = operator.sparsity.row, operator.sparsity.col
    rows, cols = operator.sparsity.shape
    size = max(min(rows, cols, rows + offset, cols - offset), 0)
    # An entry elsewhere, and padding, is dropped.
    index = jnp.where(col - row == offset, jnp.minimum(row, col), size)
    return jnp.zeros(size, operator.data.dtype).at[index].add(operator.data, mode="drop")


@lx.is_symmetric.register(SparseLinearOperator)
def _(operator):
    definite = lx.is_positive_semidefinite(operator) | lx.is_negative_semidefinite(
        operator
    )
    hermitian = definite and not jnp.iscomplexobj(operator.data)
    return lx.symmetric_tag in operator.tags or lx.is_diagonal(operator) or hermitian


@lx.is_diagonal.register(SparseLinearOperator)
def _(operator):
    return _within(operator, lx.diagonal_tag)


@lx.is_tridiagonal.register(SparseLinearOperator)
def _(operator):
    return _within(operator, lx.tridiagonal_tag) or lx.is_diagonal(operator)


@lx.is_lower_triangular.register(SparseLinearOperator)
def _(operator):
    return _within(operator, lx.lower_triangular_tag)


@lx.is_upper_triangular.register(SparseLinearOperator)
def _(operator):
    return _within(operator, lx.upper_triangular_tag)


def _within(operator, tag) -> bool:
    """Whether the matrix is tagged so, or a square pattern is known to be so."""
    if tag in operator.tags:
        return True
    rows, cols = operator.sparsity.shape
    bandwidths = operator.sparsity.bandwidths
    if bandwidths is None or rows != cols:
        return False
    return bandwidths[0] <= _BANDS[tag][0] and bandwidths[1] <= _BANDS[tag][1]


@lx.has_unit_diagonal.register(SparseLinearOperator)
def _(operator):
    return lx.unit_diagonal_tag in operator.tags


@lx.is_positive_semidefinite.register(SparseLinearOperator)
def _(operator):
    return lx.positive_semidefinite_tag in operator.tags


@lx.is_negative_semidefinite.register(SparseLinearOperator)
def _(operator):
    return lx.negative_semidefinite_tag in operator.tags
