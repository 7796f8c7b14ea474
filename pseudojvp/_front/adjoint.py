import functools as ft
from collections.abc import Callable

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import optimistix as optx
from jaxtyping import Array, PyTree

from .._base.checks import check_solver
from .._base.order import after_in_batch
from .._base.tree import tree_neg
from .._map.factorised import Factorised
from .._map.rows import nondifferentiable
from .._solver import AutoLinearSolver


class PseudoinverseAdjoint(optx.AbstractAdjoint):
    """Differentiates an Optimistix problem implicitly, with the minimum-norm derivative.

    Pass `adjoint=PseudoinverseAdjoint()` to `optimistix.root_find`, `least_squares`,
    `fixed_point` or `minimise`. Each of them ends at a root y of F(y, θ) = 0. F is the
    function itself for a root, f(y, θ) − y for a fixed point, and the gradient of the
    loss for a minimum or least squares. With J = ∂F/∂y at the root (for a minimum or
    least squares the full Hessian, including second derivatives of the residual),

        ẏ = −J† (∂F/∂θ) θ̇.

    J may have any shape and any rank. Many tangents may satisfy J ẏ + (∂F/∂θ) θ̇ = 0; the
    *minimum-norm derivative* ẏ is the shortest of them, and has no part in the null space
    N(J). If the rank of J is constant near (y, θ), the roots at each θ form a manifold
    with tangent space N(J), and ẏ points from y to the nearest root at θ + ε θ̇, to first
    order in ε. A quantity g(y) that is the same for all roots (∂g/∂y · N(J) = 0; for
    example a prediction of an overparametrised model) has a unique derivative, and gets
    it. The derivative of y itself depends on this choice among the roots:

    - It is *not* the derivative of the root of least norm, unless y is that root and N(J)
        does not move with θ (in F = A y − b: b changes, or A changes and keeps its null
        space).
    - It is *not* the derivative of the iterates, which depend on the method and on `y0`:
        `y0` and `options` have derivative zero.
    - Derivatives of second and higher order are those of the path y(t) that follows ẏ
        along θ(t). With several parameters ẏ need not have a potential, so mixed second
        derivatives of y may depend on the order. Those of g(y) do not.

    If J has full column rank, this is the implicit function theorem. If (∂F/∂θ) θ̇ is
    outside the range of J, as at a fold y² = θ = 0, no differentiable root exists; the
    formula then returns its least-squares solution without any warning.

    Unlike `optimistix.ImplicitAdjoint`, whose solves go through `lineax.linear_solve`,
    tangent and adjoint solves are those of [`pseudojvp.linear_solve`][].

    **Arguments:**

    - `linear_solver`: any solver that [`pseudojvp.linear_solve`][] takes. Defaults to
        `AutoLinearSolver(well_posed=False)`, for any shape and rank; it factorises the
        matrix J. To use only products J v: `Normal(CG(rtol, atol, well_posed=False))`. A
        solver for definite J, such as `CG`, needs the matching `tags` of the problem. A
        solver for full rank (`QR()`, `CG(...)`, …) is faster; its own documentation says
        whether it notices a deficient rank.
    - `throw`: whether a failed tangent or adjoint solve raises at run time. If `False`,
        the derivative is NaN, in forward and in reverse mode. The `throw` of the problem
        concerns only its iterations. Defaults to `True`; use `False` if derivatives are
        also evaluated at points that do not matter, as in one Optimistix problem inside
        another.

    **Derivatives:** of `value` only, forward and reverse, of every order, under
    `jax.vmap` and `jax.jit`. Derivatives of `aux`, `stats` and `state` are an error in
    reverse mode and zero in forward mode, as under `optimistix.ImplicitAdjoint`. Cost of
    a first-order JVP or VJP: one factorisation of J and one application of it, however
    many iterations there were; `jax.vmap` over tangents or cotangents shares the factors.
    Only `result` says whether the iterations converged: if y is not a root, ẏ is just the
    value of the formula.

    **Raises:** `TypeError` if `linear_solver` is not a solver; at trace time, what the
    solver raises for an operator that it cannot take; a run-time error as `throw` says.

    **Sources:** Krantz & Parks, *The Implicit Function Theorem: History, Theory, and
    Applications* (2013), for J of full rank; Ben-Israel, J. Math. Anal. Appl. 15 (1966),
    for Newton's iteration y − J†F, of which ẏ is the first step.

    **Example:**

    ```python
    import jax
    import jax.numpy as jnp
    import optimistix as optx
    import pseudojvp as pj

    def nearest(c):  # a root of one equation in two unknowns
        solver, adjoint = optx.LevenbergMarquardt(1e-6, 1e-6), pj.PseudoinverseAdjoint()
        f = lambda y, c: y[0] + y[1] - c
        return optx.least_squares(f, solver, jnp.zeros(2), c, adjoint=adjoint).value

    print(jax.jacobian(nearest)(2.0).round(2))  # [0.5 0.5]
    ```
    """

    linear_solver: lx.AbstractLinearSolver = AutoLinearSolver(well_posed=False)
    throw: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        check_solver(self.linear_solver, "PseudoinverseAdjoint")

    def apply(
        self,
        primal_fn: Callable,
        rewrite_fn: Callable,
        inputs: PyTree,
        tags: frozenset[object],
    ) -> PyTree[Array]:
        """Returns `primal_fn(inputs)`: y, and whatever else the solve returns."""
        loop = ft.partial(eqxi.while_loop, kind="lax")
        equation = _Equation(rewrite_fn, tags, self.throw)
        solver = nondifferentiable(self.linear_solver)
        root, rest = _root(primal_fn, equation, (*inputs, loop), solver)
        return root, eqxi.nondifferentiable_backward(
            rest, name="All but `value` of a solution under `PseudoinverseAdjoint`"
        )


class _Equation(eqx.Module):
    """F(y, θ) = 0, where θ is what of `inputs` is differentiated."""

    function: Callable = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)
    throw: bool = eqx.field(static=True)


@eqx.filter_custom_jvp
def _root(primal_fn, equation, inputs, solver):
    del equation, solver
    return jtu.tree_map(jnp.asarray, primal_fn(inputs))


@_root.def_jvp
def _root_jvp(primals, tangents):
    primal_fn, equation, inputs, solver = primals
    _, _, t_inputs, _ = tangents
    root, rest = _root(primal_fn, equation, inputs, solver)
    is_none = lambda leaf: leaf is None
    perturbed = jtu.tree_map(lambda t: t is not None, t_inputs, is_leaf=is_none)
    theta, others = eqx.partition(inputs, perturbed)

    def function(root, theta):
        return equation.function(root, rest, eqx.combine(theta, others))

    _, push = jax.linearize(function, root, theta)
    by_root = lambda t_root: push(t_root, jtu.tree_map(jnp.zeros_like, theta))
    structure = jax.eval_shape(lambda: root)
    jacobian = lx.FunctionLinearOperator(by_root, structure, equation.tags)
    factorised, state = Factorised.create(jacobian, solver, throw=equation.throw)
    root, t_theta = after_in_batch(state, (root, t_inputs))
    t_function = push(jtu.tree_map(jnp.zeros_like, root), t_theta)
    # As a derivative: if the solve fails, tangents and cotangents are NaN.
    t_root, *_ = factorised.for_derivative().apply(tree_neg(t_function))
    return (root, rest), (t_root, _zero_tangent(rest, t_root))


def _zero_tangent(tree: PyTree[Array], tangent: PyTree[Array]) -> PyTree[Array]:
    """Zero, as a multiple of `tangent`: reverse mode would drop a constant unnoticed."""
    zeros = [0 * jnp.sum(leaf.real) for leaf in jtu.tree_leaves(tangent)]

    def fill(leaf):
        if not eqx.is_inexact_array(leaf):
            return None
        zero = sum((zero.astype(leaf.dtype) for zero in zeros), jnp.zeros_like(leaf))
        return jnp.broadcast_to(zero, leaf.shape)

    return jtu.tree_map(fill, tree)
