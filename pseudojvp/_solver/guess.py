"""A first guess from earlier solutions."""

from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from .._base.structure import Structure
from .._base.tree import stop_gradient
from .._kernel.norms import two_norm


def combined(
    mv: Callable[[PyTree[Array]], PyTree[Array]],
    candidates: PyTree[Array],
    vector: PyTree[Array],
) -> PyTree[Array]:
    """The combination x of the candidates that leaves the smallest |b − A x|.

    Never a worse guess than zero, whatever the candidates are: one that is not finite, or
    whose image depends on those before, counts for nothing. They stand along the last
    axis of each leaf. Cost: their products with A, all at once.
    """
    candidates, vector = stop_gradient((candidates, vector))
    in_structure = Structure.of(jax.tree.map(lambda leaf: leaf[..., 0], candidates))
    out_structure = Structure.of(vector)
    directions = jax.vmap(in_structure.ravel, -1)(candidates)  # (memory, cols)
    image = lambda flat: out_structure.ravel(mv(in_structure.unravel(flat)))
    images = stop_gradient(jax.vmap(image)(directions))  # (memory, rows)
    residual = out_structure.ravel(vector)
    guess = jnp.zeros(in_structure.size, directions.dtype)
    kept: list[tuple[Array, Array]] = []
    for direction, image in zip(directions, images, strict=True):
        pair = _unit(direction, image)
        for earlier in kept:
            part = _dot(earlier[1], pair[1])
            pair = pair[0] - part * earlier[0], pair[1] - part * earlier[1]
        pair = _unit(*pair, least=out_structure.eps**0.5)
        kept.append(pair)
        step = _dot(pair[1], residual)
        guess, residual = guess + step * pair[0], residual - step * pair[1]
    return in_structure.unravel(guess)


def _unit(direction, image, least: float = 0.0):
    """Both over the norm of the image; zero if that is no larger than `least`."""
    size = two_norm(image)
    usable = (size > least) & jnp.isfinite(size) & jnp.all(jnp.isfinite(direction))
    size = jnp.where(usable, size, 1).astype(image.dtype)
    scaled = lambda array: jnp.where(usable, array / size, 0)
    return scaled(direction), scaled(image)


def _dot(left: Inexact[Array, " n"], right: Inexact[Array, " n"]):
    return jnp.vdot(left, right, precision=lax.Precision.HIGHEST)
