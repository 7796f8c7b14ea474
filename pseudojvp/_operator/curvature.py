"""Matrices of second derivatives as operators: products alone, on trees of parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree, Real, Scalar

from .._base.axes import as_varying, has_explicit_axes, is_manual, varying_axes
from .._base.inexact import as_inexact
from .._base.structure import Structure
from .._base.tree import tree_scale
from .function import product_on_mesh


class _Scaled(eqx.Module):
    damping: Array

    def __call__(self, vector: PyTree[Array]) -> PyTree[Array]:
        return tree_scale(self.damping, vector)


def hessian_operator(
    fn: Callable[[Any], Scalar],
    x: PyTree[Array],
    *,
    damping: Real[Array, ""] | float | None = None,
    tags: object = lx.symmetric_tag,
) -> lx.AbstractLinearOperator:
    """Returns ∇²f(x) + λI, the Hessian of a scalar function, as an operator.

    A solve with it is an inverse-Hessian-vector product, as in implicit differentiation,
    Newton's method and influence functions. `MINRES()` takes any Hessian, `CG()` one that
    is tagged positive definite; `LSMR()` needs no tag.

    **Arguments:**

    - `fn`: f, a function from the parameters to a real scalar, twice differentiable.
        Arrays that it closes over are parts of the operator too.
    - `x`: the point, a pytree of real floating-point arrays; the operator acts on pytrees
        like x.
    - `damping`: λ, a real scalar in the units of ∇²f. Defaults to `None`, none.
    - `tags`: what holds for ∇²f(x) + λI besides symmetry, such as
        `lineax.positive_semidefinite_tag` at a minimum. Tags are not checked: `CG`
        reports `breakdown` if it meets a direction of the other sign. Defaults to
        `lineax.symmetric_tag`.

    **Returns:** an operator from the space of x to itself. Cost of a product: the tangent
    of a gradient of f, about four to six evaluations of f. No matrix is formed, unless a
    direct solver asks for it; that takes as many products as there are parameters.

    **Derivatives:** with respect to `x`, `damping` and what `fn` closes over, of every
    order.

    **Raises:** `TypeError` at trace time if a parameter is not a real floating-point
    array or `fn` is not a function, `ValueError` if f or `damping` is not a real scalar.

    **Sources:** Pearlmutter, *Fast exact multiplication by the Hessian*, Neural
    Computation 6 (1994).

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    f = lambda x: jnp.sum(x**4)
    H = pj.hessian_operator(f, jnp.array([1.0, 2.0]))
    print(H.mv(jnp.array([1.0, 1.0])))  # [12. 48.]
    step = pj.linear_solve(H, jnp.array([12.0, 48.0]), pj.MINRES()).value
    print(step.round(2))  # [1. 1.]
    ```
    """
    x = _real_arrays(x, "hessian_operator(x=...)", "parameters")
    told = _checked_scalar(fn, x, "hessian_operator(fn=...)")
    gradient = jax.grad(fn)
    tags = frozenset(tags) if isinstance(tags, set | frozenset | tuple | list) else {tags}
    tags = frozenset(tags) | {lx.symmetric_tag}
    if on_mesh := _on_mesh(x, told):
        x = as_varying(varying_axes((x, told, damping)), x)
        curve = lambda vector: jax.jvp(gradient, (x,), (vector,))[1]
        hessian = product_on_mesh(curve, x, tags)
    else:
        hessian = lx.JacobianLinearOperator(lambda x, _: gradient(x), x, tags=tags)
    return _damped(hessian, x, damping, tags, "hessian_operator", on_mesh)


def gauss_newton_operator(
    model: Callable[[Any], PyTree[Array]],
    loss: Callable[[Any], Scalar],
    x: PyTree[Array],
    *,
    damping: Real[Array, ""] | float | None = None,
) -> lx.AbstractLinearOperator:
    """Returns JᵀHJ + λI, the Gauss–Newton matrix of loss(model(x)), as an operator.

    J is the Jacobian of the model at x, and H the Hessian of the loss at model(x). For a
    convex loss the operator is positive semidefinite, whatever the model, and tagged so:
    it replaces ∇²f where that is indefinite, as for networks. For the negative
    log-likelihood of an exponential family in its natural parameters (squares,
    cross-entropy of logits) it is the Fisher information matrix.

    **Arguments:**

    - `model`: a function from the parameters to the predictions, a pytree of real arrays.
    - `loss`: a function from the predictions to a real scalar, convex.
    - `x`: the point, a pytree of real floating-point arrays; the operator acts on pytrees
        like x.
    - `damping`: λ, a real scalar in the units of JᵀHJ, positive for `CG()`. Defaults to
        `None`, none; the operator may then be singular.

    **Returns:** an operator from the space of x to itself. Cost of a product: a tangent
    and a cotangent of the model, about four evaluations of it, and little of the loss.

    **Derivatives:** with respect to `x`, `damping` and what `model` and `loss` close
    over, of every order.

    **Raises:** as [`pseudojvp.hessian_operator`][].

    **Sources:** Schraudolph, *Fast curvature matrix-vector products for second-order
    gradient descent*, Neural Computation 14 (2002); Martens, *New insights and
    perspectives on the natural gradient method*, JMLR 21 (2020), section 8.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    t = jnp.array([0.0, 1.0, 2.0])
    model = lambda p: p[0] + p[1] * t
    loss = lambda y: 0.5 * jnp.sum(y**2)
    operator = pj.gauss_newton_operator(model, loss, jnp.array([1.0, 2.0]), damping=0.5)
    print(operator.as_matrix().tolist())  # [[3.5, 3.0], [3.0, 5.5]]
    ```
    """
    x = _real_arrays(x, "gauss_newton_operator(x=...)", "parameters")
    name = "gauss_newton_operator(model=...)"
    predictions = _real_arrays(model(x), name, "predictions")
    told = _checked_scalar(loss, predictions, "gauss_newton_operator(loss=...)")
    gradient = jax.grad(loss)
    tags = frozenset({lx.symmetric_tag, lx.positive_semidefinite_tag})
    if on_mesh := _on_mesh(x, told):
        x = as_varying(varying_axes((x, told, damping)), x)
        predictions, push = jax.linearize(model, x)
        curve = jax.linearize(gradient, predictions)[1]
        pull = jax.linear_transpose(push, x)
        product = product_on_mesh(lambda v: pull(curve(push(v)))[0], x, tags)
        return _damped(product, x, damping, tags, "gauss_newton_operator", on_mesh)
    jacobian = lx.JacobianLinearOperator(lambda x, _: model(x), x)
    hessian = lx.JacobianLinearOperator(
        lambda z, _: gradient(z), predictions, tags=lx.symmetric_tag
    )
    parts = lx.linearise(jacobian.transpose() @ hessian @ jacobian)
    # A composition would make matrices of its parts, one as large as the predictions.
    product = lx.FunctionLinearOperator(
        lambda vector: parts.mv(vector), jacobian.in_structure(), tags
    )
    return _damped(product, x, damping, tags, "gauss_newton_operator", on_mesh)


def _on_mesh(x: PyTree[Array], told: jax.ShapeDtypeStruct) -> bool:
    """Whether parameters, or what a function of them closes over, are on a mesh."""
    closed_over = jax.typeof(told).sharding.mesh.explicit_axes
    return is_manual() or has_explicit_axes(x) or len(closed_over) > 0


def _damped(operator, x, damping, tags: frozenset[object], caller: str, on_mesh: bool):
    if damping is not None:
        damping = as_inexact(damping, f"{caller}(damping=...)")
        if damping.shape != () or jnp.iscomplexobj(damping):
            raise ValueError(
                f"`{caller}(damping=...)` got an array of shape {damping.shape} and "
                f"dtype {damping.dtype}. Pass a real scalar."
            )
        if on_mesh:
            scaled = product_on_mesh(_Scaled(damping), x, lx.diagonal_tag)
        else:
            scaled = lx.FunctionLinearOperator(
                _Scaled(damping),
                operator.in_structure(),
                lx.diagonal_tag,
                closure_convert=False,
            )
        operator = operator + scaled
    return lx.TaggedLinearOperator(operator, tags)


def _real_arrays(x: PyTree[Any], name: str, what: str) -> PyTree[Array]:
    leaves = jtu.tree_leaves(x)
    if len(leaves) == 0:
        raise ValueError(f"`{name}` has {x!r} as {what}, a tree without arrays.")
    for leaf in leaves:
        number = isinstance(leaf, float | np.ndarray | np.generic | jax.Array)
        if not number or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"`{name}` has {leaf!r} among the {what}, which have to be a pytree of "
                "real floating-point arrays; `equinox.partition(module, "
                "equinox.is_inexact_array)` takes those of a module."
            )
    return jtu.tree_map(lambda leaf: as_inexact(leaf, name), x)


def _checked_scalar(fn: Callable, x: PyTree[Array], name: str) -> jax.ShapeDtypeStruct:
    if not callable(fn):
        raise TypeError(f"`{name}` got a {type(fn).__name__}. Pass a function.")
    structure = jax.eval_shape(fn, x)
    leaves = jtu.tree_leaves(structure)
    real = len(leaves) == 1 and jnp.issubdtype(leaves[0].dtype, jnp.floating)
    if not real or leaves[0].shape != ():
        raise ValueError(
            f"`{name}` returns {Structure.of(structure).as_tree() if leaves else None}. "
            "It has to return a real scalar."
        )
    return leaves[0]
