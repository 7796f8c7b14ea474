"""Orthonormal factors of a tall matrix by blocks of its rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact

from .._base.order import after_in_batch
from .householder import apply_q, apply_qh, Reflectors


def orthogonal_factor(
    matrix: Inexact[Array, "long short"], blocks: int
) -> "Reflectors | BlockReflectors":
    """That of a QR factorisation."""
    if blocks == 1:
        return Reflectors.of(matrix)
    return BlockReflectors.of(matrix, blocks)


class BlockReflectors(eqx.Module):
    """Q = diag(Q₁, …, Q_p) Q₀ of a tall matrix of p row blocks, A_i = Q_i R_i.

    `rows` and `taus` are those of the Q_i, batched; `top` is that of the R_i, stacked:
    Q₀, and the R of all. XLA leaves a block where it lies, and moves the R_i alone, n²
    numbers each. The last block is filled up with zeros, which every Q_i leaves alone.
    """

    rows: Inexact[Array, "blocks short height"]
    taus: Inexact[Array, "blocks short"]
    top: Reflectors
    long: int = eqx.field(static=True)

    @classmethod
    def of(cls, matrix: Inexact[Array, "long short"], blocks: int) -> "BlockReflectors":
        """Those of a QR factorisation; no block has fewer rows than columns."""
        long, short = matrix.shape
        rows, taus = jnp.linalg.qr(_in_blocks(matrix, blocks), mode="raw")
        r = jnp.tril(rows[:, :, :short]).mT
        top = Reflectors.of(_placed(r).reshape(blocks * short, short))
        return cls(rows, taus, top, long)

    def after(self, earlier: Array) -> "BlockReflectors":
        """In a batch applied once `earlier` is there, whatever the vectors are."""
        taus, top = after_in_batch(earlier, self.taus), self.top.after(earlier)
        return BlockReflectors(self.rows, taus, top, self.long)

    @property
    def shape(self) -> tuple[int, int]:
        """That of Q."""
        return self.long, self.top.taus.size

    @property
    def r(self) -> Inexact[Array, "short short"]:
        return self.top.r

    def r_solve(
        self, columns: Inexact[Array, "short *k"], *, adjoint: bool = False
    ) -> Inexact[Array, "short *k"]:
        """R⁻¹ C or R⁻ᴴ C."""
        return self.top.r_solve(columns, adjoint=adjoint)

    def mv(self, vector: Inexact[Array, " short"]) -> Inexact[Array, " long"]:
        """Q c."""
        vectors = _placed(self.top.mv(vector).reshape(len(self.rows), 1, -1), self.rows)
        return apply_q(self.rows, self.taus, vectors).reshape(-1)[: self.long]

    def adjoint_mv(self, vector: Inexact[Array, " long"]) -> Inexact[Array, " short"]:
        """Q^H v."""
        vectors = _in_blocks(vector[:, None], len(self.rows)).mT
        vectors = apply_qh(self.rows, self.taus, vectors)
        return self.top.adjoint_mv(_placed(vectors).reshape(-1))


def _in_blocks(matrix: Inexact[Array, "long k"], blocks: int):
    """(blocks, rows, k), with zeros below the last row."""
    long, count = matrix.shape
    matrix = _by_rows(matrix, blocks)
    if long % blocks:
        matrix = jnp.pad(matrix, ((0, -long % blocks), (0, 0)))
    return matrix.reshape(blocks, -1, count)


def _by_rows(matrix: Array, blocks: int) -> Array:
    """Over explicit axes of a mesh sharded by its rows alone, whole blocks on a device;
    as XLA does by itself over others.
    """
    sharding = jax.typeof(matrix).sharding
    rows, *rest = sharding.spec
    parts = matrix.shape[0] // max(sharding.shard_shape(matrix.shape)[0], 1)
    fits = blocks % parts == 0 and matrix.shape[0] % blocks == 0
    if (rows is None or fits) and all(part is None for part in rest):
        return matrix
    spec = PartitionSpec(rows if fits else None, *(None for _ in rest))
    return jax.sharding.reshard(matrix, NamedSharding(sharding.mesh, spec))


def _placed(array: Array, like: Array | None = None) -> Array:
    """Where the blocks of `like` lie, by default everywhere; XLA sees to it itself where
    a mesh does not have `AxisType.Explicit`.
    """
    sharding = jax.typeof(array if like is None else like).sharding
    if all(part is None for part in sharding.spec):
        return array
    spec = PartitionSpec(None if like is None else sharding.spec[0], None, None)
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))
