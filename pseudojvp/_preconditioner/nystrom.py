from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Inexact, PRNGKeyArray, Real

from .._base.checks import check_count
from .._base.structure import Structure
from .operator import (
    AbstractPreconditioner,
    check_definite,
    conj_arrays,
    constant_square_operator,
    symmetry_tags,
)


class NystroemPreconditioner(AbstractPreconditioner):
    """v + U (weights * (U^H v)), where U has orthonormal columns and `weights > -1`."""

    basis: Inexact[Array, "n rank"]
    weights: Real[Array, " rank"]

    def apply(self, flat: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        weights = self.weights.astype(flat.dtype)
        return flat + self.basis @ (weights * (self.basis.conj().T @ flat))

    def transpose(self) -> "NystroemPreconditioner":
        return self.conj()  # Hermitian

    def conj(self) -> "NystroemPreconditioner":
        return conj_arrays(self)


def nystrom(
    operator: Any, rank: int, key: PRNGKeyArray, shift: ArrayLike = 0.0
) -> lx.AbstractLinearOperator:
    """Returns the randomised Nyström preconditioner of A + shift I.

    A U_0, for a random orthonormal U_0 of `rank` columns, gives an approximation U
    diag(λ) U^H of A. With μ = `shift` and λ_r the smallest of λ,

        P = (λ_r + μ) U diag(λ + μ)^-1 U^H + I − U U^H.

    Use it for A whose eigenvalues decay quickly (kernels, Gram matrices, Hessians of
    overparametrised models). If `rank` is about two to four times the effective dimension
    trace(A (A + μ I)^-1), the condition number of P (A + μ I) is a small constant,
    whatever that of A is. It does little if the spectrum does not decay, as for a
    discretised Laplacian.

    Cost: `rank` products with A, all at once, and a QR factorisation and an SVD of an n ×
    rank matrix; then 4 n rank flops an application. Memory: n × rank.

    **Arguments:**

    - `operator`: A *without* the shift, positive semidefinite and tagged so; only its
        products are used.
    - `rank`: the number of columns of U, at least 1; at most n are used.
    - `key`: a JAX random key.
    - `shift`: μ ≥ 0, a scalar in the units of A. Defaults to `0.0`.

    **Returns:** a lineax operator, positive definite and tagged so.

    **Derivatives:** none; a preconditioner is a constant.

    **Raises:** `ValueError` if A is not square, not tagged, or `rank < 1`.

    **Sources:** Frangella, Tropp & Udell, *Randomized Nyström preconditioning*, SIAM J.
    Matrix Anal. Appl. 44 (2023), algorithm 2.1 and (1.3).

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    eigenvalues = 0.5 ** jnp.arange(40.0)
    A = lx.MatrixLinearOperator(jnp.diag(eigenvalues), lx.positive_semidefinite_tag)
    P = pj.nystrom(A, 12, jax.random.key(0), shift=1e-3)
    shifted = lx.MatrixLinearOperator(A.matrix + 1e-3 * jnp.eye(40), A.tags)
    print(pj.condition_number(shifted, P) < 10)  # True
    ```
    """
    check_count(rank, "rank", "nystrom")
    operator, structure = constant_square_operator(operator, "nystrom")
    check_definite(operator, "nystrom")
    size = structure.size
    dtype = jax.eval_shape(structure.ravel, operator.in_structure()).dtype
    basis, eigenvalues = _eigenpairs(operator, structure, min(rank, size), key, dtype)
    shifted = eigenvalues + jax.lax.stop_gradient(jnp.asarray(shift, eigenvalues.dtype))
    # A sketch of more columns than A has rank ends in zeros: P must not.
    floor = 100 * jnp.finfo(eigenvalues.dtype).eps * shifted[:1]
    shifted = jnp.maximum(shifted, jnp.where(floor > 0, floor, 1))
    return NystroemPreconditioner(
        structure, symmetry_tags(operator), basis, shifted[-1:] / shifted - 1
    )


def _eigenpairs(operator, structure: Structure, rank: int, key, dtype):
    """U and λ, largest first, of A Ω (Ω^H A Ω)^-1 (A Ω)^H."""
    real = jnp.finfo(dtype).dtype
    test = jax.random.normal(key, (structure.size, rank), real).astype(dtype)
    test, _ = jnp.linalg.qr(test)
    mv = lambda flat: structure.ravel(operator.mv(structure.unravel(flat)))
    image = jax.vmap(mv, in_axes=1, out_axes=1)(test)  # (n, rank)
    # Shifted against the rounding of a core that is nearly singular; removed below.
    tiny = jnp.finfo(real).eps * jnp.linalg.norm(image)
    image = image + tiny.astype(dtype) * test
    core = test.conj().T @ image
    values, vectors = jnp.linalg.eigh((core + core.conj().T) / 2)
    kept = values > tiny / 10
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
    basis, singular, _ = jnp.linalg.svd(
        image @ (vectors * scale[None].astype(dtype)), full_matrices=False
    )
    return basis, jnp.maximum(singular**2 - tiny, 0)
