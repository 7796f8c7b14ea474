"""Block diagonal operators."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from .._base.structure import Structure
from .matrix import has_functions, matrix_of
from .parts import as_parts, multiple, shifted
from .runs import as_batched_run, as_run, merged, Run, split_by_runs
from .structured import (
    AbstractStructured,
    check_operator,
    completed,
    identity_multiple,
    scalar_for,
    Tags,
    tags_of,
    transposed,
)


class BlockDiagonal(AbstractStructured):
    """The block diagonal operator of given operators, as `scipy.linalg.block_diag`.

    It acts on flat vectors: those of the blocks, one after the other. Blocks may have any
    shape. The pseudoinverse is that of the blocks, so [`pseudojvp.AutoLinearSolver`][]
    factorises each block alone. Consecutive blocks of the same kind, shapes and tags form
    one batch: one program for all of them, whatever their number.

        A = pj.BlockDiagonal(stack, pj.Kronecker(B, C))  # stack: (count, rows, cols)
        x = pj.linear_solve(A, b).value

    **Arguments:**

    - `operators`: the blocks, at least one: each a `lineax.AbstractLinearOperator`, an
        array of shape `(rows, cols)`, an array of shape `(count, rows, cols)` for that
        many blocks, or a sparse matrix. Arrays are promoted to one common dtype;
        operators must have it already. If an operator acts on pytrees, its vectors are
        flattened leaf by leaf.
    - `batched`: whether each operator stands for many: all its arrays have a leading axis
        of one size, as `equinox.filter_vmap` creates them. Defaults to `False`.

    These are again a `BlockDiagonal`: its transpose and conjugate, `c * A`, `A + λ I`,
    and `A + B` and `A @ B` if the blocks match and were grouped in the same batches. A
    tag holds if it holds for all blocks. Trace and diagonal need square blocks.

    Cost of A v: one product with each block.

    **Derivatives:** with respect to the blocks and all arrays in them, of every order.

    **Raises:** `TypeError` or `ValueError` if there is no block, a block is not an
    operator, operators differ in dtype, or, with `batched`, arrays differ in the leading
    axis.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A = pj.BlockDiagonal(jnp.array([[2.0]]), jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    print(A.as_matrix().tolist())  # [[2.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    print(pj.linear_solve(A, jnp.array([4.0, 3.0, 1.0])).value.round(2))  # [2. 2. 1.]
    ```
    """

    runs: tuple[Run, ...]

    def __init__(self, *operators: Any, batched: bool = False):
        if batched:
            runs = [as_batched_run(operator) for operator in operators]
            if not runs:
                as_parts((), "BlockDiagonal")
        else:
            runs = merged([as_run(part) for part in as_parts(operators, "BlockDiagonal")])
        dtypes = sorted({str(run.spec.dtype) for run in runs})
        if len(dtypes) > 1:
            raise ValueError(
                f"`BlockDiagonal` got operators of dtypes {', '.join(dtypes)}. They have "
                "to agree: make all of arrays of one dtype."
            )
        self.runs = tuple(runs)

    @classmethod
    def of_runs(cls, runs: list[Run]) -> "BlockDiagonal":
        """Returns the operator of given batches, each kept as one batch."""
        operator = object.__new__(cls)
        object.__setattr__(operator, "runs", tuple(runs))
        return operator

    @property
    def tags(self) -> Tags:
        specs = [run.spec for run in self.runs]
        if any(spec.rows != spec.cols for spec in specs):
            return frozenset()
        tags = frozenset.intersection(*(spec.tags for spec in specs))
        return completed(tags, specs[0].dtype)

    def _mv(self, vector: Inexact[Array, " cols"]) -> Inexact[Array, " rows"]:
        pieces = split_by_runs(vector, [run.spec.cols * run.blocks for run in self.runs])
        products = [run.mv(piece) for run, piece in zip(self.runs, pieces, strict=True)]
        return jnp.concatenate(products) if len(products) > 1 else products[0]

    def as_matrix(self) -> Inexact[Array, "rows cols"]:
        matrix = jnp.zeros((self.out_size(), self.in_size()), self._dtype)
        row = col = 0
        for run in self.runs:
            rows, cols, *_ = run.spec
            count = run.blocks
            blocks = run.map(matrix_of).reshape(count, rows, cols)
            places = jnp.arange(count)
            tall, wide = count * rows, count * cols
            zeros = jnp.zeros((count, rows, count, cols), self._dtype)
            own = zeros.at[places, :, places, :].set(blocks).reshape(tall, wide)
            matrix = matrix.at[row : row + tall, col : col + wide].set(own)
            row, col = row + tall, col + wide
        return matrix

    def transpose(self) -> "BlockDiagonal":
        return self._mapped(transposed)

    def conj(self) -> "BlockDiagonal":
        return self._mapped(lx.conj)

    def linearise(self) -> "BlockDiagonal":
        return self._unbatched(lx.linearise)

    def materialise(self) -> "BlockDiagonal":
        return self._unbatched(lx.materialise)

    def diagonal(self) -> Inexact[Array, " k"]:
        if all(run.spec.rows == run.spec.cols for run in self.runs):
            pieces = [run.map(lx.diagonal).reshape(-1) for run in self.runs]
            return jnp.concatenate(pieces)
        return jnp.diagonal(self.as_matrix())

    def __mul__(self, other: Any) -> "BlockDiagonal":
        scalar = scalar_for(other, self._dtype, "BlockDiagonal")
        return self._mapped(lambda block: multiple(block, scalar, other))

    def __add__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, BlockDiagonal) and self._fits(other, summed=True):
            return self._joined(other, lambda left, right: left + right)
        shift = identity_multiple(other)
        if (
            shift is not None
            and Structure.of(self.in_structure()) == Structure.of(other.in_structure())
            and all(run.spec.rows == run.spec.cols for run in self.runs)
            and not (jnp.iscomplexobj(shift) and not _is_complex(self._dtype))
        ):
            shift = shift.astype(self._dtype)
            kept = frozenset({lx.symmetric_tag})
            return self._mapped(
                lambda block: shifted(block, shift, tags_of(block) & kept)
            )
        return lx.AddLinearOperator(self, other)

    def __matmul__(self, other: Any) -> lx.AbstractLinearOperator:
        check_operator(other)
        if isinstance(other, BlockDiagonal) and self._fits(other, summed=False):
            return self._joined(other, lambda left, right: left @ right)
        return lx.ComposedLinearOperator(self, other)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        size = sum(run.spec.cols * run.blocks for run in self.runs)
        return jax.ShapeDtypeStruct((size,), self._dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        size = sum(run.spec.rows * run.blocks for run in self.runs)
        return jax.ShapeDtypeStruct((size,), self._dtype)

    @property
    def _dtype(self) -> np.dtype:
        return self.runs[0].spec.dtype

    def _mapped(self, function: Callable) -> "BlockDiagonal":
        return BlockDiagonal.of_runs([run.mapped(function) for run in self.runs])

    def _unbatched(self, function: Callable) -> "BlockDiagonal":
        """Of a function that may make new functions, which are not batched."""

        def applied(run: Run) -> Run:
            if run.count is not None and has_functions(run.operator):
                return run
            return run.mapped(function)

        return BlockDiagonal.of_runs([applied(run) for run in self.runs])

    def _fits(self, other: "BlockDiagonal", *, summed: bool) -> bool:
        if [run.count for run in self.runs] != [run.count for run in other.runs]:
            return False
        mine = [run.spec for run in self.runs]
        others = [run.spec for run in other.runs]
        pairs = zip(mine, others, strict=True)
        if summed:
            return all(own[:3] == their[:3] for own, their in pairs)
        return all(
            own.cols == their.rows and own.dtype == their.dtype for own, their in pairs
        )

    def _joined(self, other: "BlockDiagonal", function: Callable) -> "BlockDiagonal":
        pairs = zip(self.runs, other.runs, strict=True)
        return BlockDiagonal.of_runs(
            [left.mapped(function, right.operator) for left, right in pairs]
        )


def _is_complex(dtype: np.dtype) -> bool:
    return bool(np.issubdtype(dtype, np.complexfloating))
