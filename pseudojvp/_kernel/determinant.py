"""Signs and logarithms of determinants, from factors."""

import jax.lax.linalg as jll
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, Real

from .._base.axes import fori_loop, scan


def phases(numbers: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
    """z / |z|, and zero for zero; `jnp.sign` of complex numbers has no derivative."""
    if not jnp.iscomplexobj(numbers):
        return jnp.sign(numbers)
    sizes = jnp.abs(numbers)
    return numbers / jnp.where(sizes > 0, sizes, 1).astype(numbers.dtype)


def of_product(
    numbers: Inexact[Array, " n"],
) -> tuple[Inexact[Array, ""], Real[Array, ""]]:
    """Sign and log |.| of the product of the numbers: 0 and -inf if one is zero."""
    return jnp.prod(phases(numbers)), jnp.sum(jnp.log(jnp.abs(numbers)))


def sign_of(matrix: Inexact[Array, "n n"]) -> Inexact[Array, ""]:
    """The determinant of a unitary matrix, by an LU factorisation."""
    lu, _, permutation = jll.lu(matrix)
    sign, _ = of_product(jnp.diagonal(lu))
    return sign * parity(permutation).astype(sign.dtype)


def parity(permutation: Int[Array, " n"]) -> Int[Array, ""]:
    """The sign of a permutation: −1 to the power of n less the number of its cycles.

    A cycle is counted by its smallest entry, which the others find by steps of doubling
    length: O(n log n).
    """
    size = permutation.size
    smallest, reached = jnp.arange(size, dtype=permutation.dtype), permutation

    def double(_, carry):
        smallest, reached = carry
        return jnp.minimum(smallest, smallest[reached]), reached[reached]

    steps = max(size - 1, 0).bit_length()
    smallest, _ = fori_loop(0, steps, double, (smallest, reached))
    cycles = jnp.sum(smallest == jnp.arange(size, dtype=permutation.dtype))
    return 1 - 2 * ((size - cycles) % 2)


def of_tridiagonal(
    diagonal: Inexact[Array, " n"],
    lower: Inexact[Array, " m"],
    upper: Inexact[Array, " m"],
) -> tuple[Inexact[Array, ""], Real[Array, ""]]:
    """Sign and log |.| of the determinant of a tridiagonal matrix, m = n − 1.

    By elimination with partial pivoting, which JAX differentiates: O(n) for every order.
    """
    if diagonal.size == 0:
        return of_product(diagonal)

    def eliminate(row, below):
        """The rest of the pivot row, and the next one: entries of three columns."""
        above, below = jnp.stack([*row, jnp.zeros_like(row[0])]), jnp.stack(below)
        swap = jnp.abs(below[0]) > jnp.abs(above[0])
        top, rest = jnp.where(swap, below, above), jnp.where(swap, above, below)
        rest = rest - rest[0] / jnp.where(top[0] == 0, 1, top[0]) * top
        # The determinant turns with the rows.
        return (rest[1], rest[2]), jnp.where(swap, -top[0], top[0])

    right = jnp.append(upper, jnp.zeros(1, upper.dtype))
    (last, _), pivots = scan(
        eliminate, (diagonal[0], right[0]), (lower, diagonal[1:], right[1:])
    )
    return of_product(jnp.append(pivots, last))
