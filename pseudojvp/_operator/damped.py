from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._base.tree import tree_scale
from .as_operator import as_operator


class _Damped(eqx.Module):
    operator: lx.AbstractLinearOperator
    damp: Array

    def __call__(self, vector: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        return self.operator.mv(vector), tree_scale(self.damp, vector)


def damped(operator: Any, damp: Any) -> lx.FunctionLinearOperator:
    """Returns the operator [A; λI], whose least-squares solutions are damped:

        [A; λI]† (b, 0) = argmin_x |A x − b|² + λ²|x|² = (A^H A + λ²I)^-1 A^H b.

    Use it as `linear_solve(damped(A, damp), (b, zeros_like_x), LSMR())`. LSMR on it takes
    the same steps as its own damped form. A and λ are both parts of the operator, so both
    have the derivatives of any solve. For λ > 0 the operator has full rank, so
    `LSMR(well_posed=True)` is faster in derivatives. Any solver of tall operators works.

    **Arguments:**

    - `operator`: A; a `lineax.AbstractLinearOperator`, or an array or a sparse matrix as
        for [`pseudojvp.linear_solve`][].
    - `damp`: λ, a real scalar in the units of A.

    **Returns:** a `lineax.FunctionLinearOperator` from the space of x to pairs: a vector
    like b and one like x. Cost: one product with A.

    **Derivatives:** with respect to `operator` and `damp`, of every order.

    **Raises:** `ValueError` if `damp` is not a scalar; `TypeError` if it is complex or
    `operator` is not an operator.

    **Sources:** Paige & Saunders, *LSQR: an algorithm for sparse linear equations and
    sparse least squares*, ACM Trans. Math. Softw. 8 (1982), section 2.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    A, b = jnp.eye(2), jnp.array([2.0, 4.0])
    operator = pj.damped(A, 1.0)  # (AᵀA + I)⁻¹Aᵀb
    x = pj.linear_solve(operator, (b, jnp.zeros(2)), pj.LSMR(well_posed=True)).value
    print(x.round(2))  # [1. 2.]
    ```
    """
    operator = as_operator(operator, "damped")
    damp = jnp.asarray(damp)
    if damp.ndim != 0:
        raise ValueError(
            f"`damped(damp=...)` got an array of shape {damp.shape}. Pass a scalar; for "
            "a batch of them use `jax.vmap`."
        )
    if jnp.iscomplexobj(damp):
        raise TypeError("`damped(damp=...)` got a complex number. Pass a real one.")
    # Not as a jaxpr, which could not be pickled.
    return lx.FunctionLinearOperator(
        _Damped(operator, damp), operator.in_structure(), closure_convert=False
    )
