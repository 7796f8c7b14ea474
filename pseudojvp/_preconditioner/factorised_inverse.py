from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np

from .._base.axes import has_explicit_axes, is_manual
from .._base.inexact import as_inexact
from .._base.structure import Structure
from .._base.tree import tree_add
from .._operator import as_operator
from .._operator.adjoint import adjoint
from .._operator.function import product_on_mesh


def factorised_inverse(G: Any, epsilon: Any = 0.0) -> lx.AbstractLinearOperator:
    """Returns the preconditioner P = G Gᴴ + diag(ε) for a known G.

    P is an approximate inverse that is applied, not solved with: P v takes a product with
    Gᴴ and one with G. Whatever the entries of G, P is positive semidefinite, and definite
    for ε > 0. G may come from a network, as in [`pseudojvp.PreconditionerNetwork`][], or
    from a sparse approximate inverse.

    Cost: nothing to create; an application takes a product with G, one with Gᴴ and 2 n
    flops.

    **Arguments:**

    - `G`: a square operator or matrix, as [`pseudojvp.linear_solve`][] takes. P
        approximates A⁻¹ if G approximates the factor in A⁻¹ = G Gᴴ.
    - `epsilon`: ε `≥ 0`, a real scalar, or a vector with the structure of vectors of G.
        Defaults to `0.0`.

    **Returns:** a lineax operator, tagged `lineax.positive_semidefinite_tag`.

    **Derivatives:** products with P are differentiable with respect to G and ε, so a loss
    such as [`pseudojvp.condition_number`][] can be minimised. In a solve P is a constant.

    **Raises:** `ValueError` if G is not square, if ε has another structure or is complex,
    and if ε is known to be negative; a negative traced ε makes P NaN.

    **Sources:** Kolotilina & Yeremin, *Factorized sparse approximate inverse
    preconditionings I*, SIAM J. Matrix Anal. Appl. 14 (1993); Yang et al., *Learning
    sparse approximate inverse preconditioners for conjugate gradient solvers on GPUs*,
    NeurIPS (2025), for a learned G beside ε I.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    G = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    P = pj.factorised_inverse(G, 0.5)  # G Gᵀ + I/2
    print(P.as_matrix().tolist())  # [[1.5, 1.0], [1.0, 5.5]]
    ```
    """
    G = as_operator(G, "factorised_inverse")
    structure = G.in_structure()
    if Structure.of(structure) != Structure.of(G.out_structure()):
        raise ValueError(
            f"`factorised_inverse(G=...)` got an operator that maps {structure} to "
            f"{G.out_structure()}. Pass a square G: P = G Gᴴ + diag(ε) is near A⁻¹."
        )
    diagonal = _diagonal(epsilon, structure)
    if is_manual() or has_explicit_axes((G, diagonal)):
        product = lambda v: tree_add(
            G.mv(adjoint(G).mv(v)), jtu.tree_map(jnp.multiply, diagonal, v)
        )
        inverse = product_on_mesh(product, Structure.of(structure).as_tree())
        return lx.TaggedLinearOperator(inverse, lx.positive_semidefinite_tag)
    inverse = G @ adjoint(G) + lx.DiagonalLinearOperator(diagonal)
    return lx.TaggedLinearOperator(inverse, lx.positive_semidefinite_tag)


def _diagonal(epsilon: Any, structure: Any) -> Any:
    """ε as a vector of that structure; NaN where it is negative."""
    name = "factorised_inverse(epsilon=...)"
    given = jtu.tree_map(lambda leaf: as_inexact(leaf, name), epsilon)
    if isinstance(given, jax.Array) and given.ndim == 0:
        scalar = given
        given = jtu.tree_map(lambda like: jnp.full(like.shape, scalar), structure)
    shapes = lambda tree: jtu.tree_map(jnp.shape, tree)
    if shapes(given) != shapes(structure):
        raise ValueError(
            f"`{name}` got a vector of shapes {shapes(given)} for a G that takes "
            f"{structure}. Pass a scalar, or a vector of that structure."
        )

    def checked(leaf, like):
        known = not isinstance(leaf, jax.core.Tracer)
        if jnp.iscomplexobj(leaf) or (known and not np.all(np.asarray(leaf) >= 0)):
            raise ValueError(f"`{name}` got {leaf}. Pass real numbers, none below zero.")
        return jnp.where(leaf >= 0, leaf, jnp.nan).astype(like.dtype)

    return jtu.tree_map(checked, given, structure)
