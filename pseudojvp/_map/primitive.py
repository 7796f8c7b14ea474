"""`linear_solve_p`: the saddle-point map of a linear solve, with its own derivatives.

Let M = [[I, A], [A^H, 0]] and P = A†A. The primitive is the self-adjoint map

    (r, x) = M†(v, w):   x = A†v − (A^H A)†w,   r = (I − A A†)v + A†^H w        (1)
    p = P y                                                                     (2)

Its tangent is the same map applied once. For independent columns, P = I and

    (r', x') = M†(v' − A'x, w' − A'^H r).                                       (3)

Otherwise, along paths of constant rank, with z = A'^H A†^H x,

    (r', x') = (3) + (0, (I − P) z) + M† M†(A'(I − P) w, 0),                    (4)
    p' = P(y' − s) + s + A†A'(y − p),   s = A'^H A†^H y.                        (5)

Everything on the right is this primitive again, so derivatives of every order follow. Its
transpose is itself, up to conjugation: JAX transposes without conjugating, and (M†)^T =
conj(M†). `docs/maths.md` has the proofs; `rows.py` says how each solver applies (1) and
(2).

**Example:**

```python
import jax
import jax.numpy as jnp
import pseudojvp as pj

A = jnp.array([[2.0, 1.0], [0.0, 4.0]])
program = jax.make_jaxpr(lambda b: pj.linear_solve(A, b).value)(jnp.ones(2))
print(pj.linear_solve_p.name in str(program))  # True
```
"""

import functools as ft
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.core
import jax.interpreters.ad as ad
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import PyTree

from .._base.axes import as_avals, as_structs, like, on_mesh_of
from .._base.tree import tree_add, tree_conj, tree_sub
from .._base.vprim import create_vprim
from .guard import Guard
from .mesh import checked, sharded_as, typed, varying_alike
from .rows import apply_saddle_point, Blocks, Problem, spaces, structure_of_blocks
from .tangents import product, tangent_products
from .traits import order_of, traits_of


def bind(
    problem: Problem, rhs: Blocks, wanted: Blocks, guard: Guard
) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
    """Applies the map: (v, w, y) to the `wanted` blocks of (r, x, P y).

    A block that is `None` is zero, on the way in and on the way out.
    """
    problem, rhs = varying_alike(problem, rhs)
    return eqxi.filter_primitive_bind(linear_solve_p, problem, rhs, wanted, guard)


def _impl(problem: Problem, rhs: Blocks, wanted: Blocks, guard: Guard, *, check_closure):
    out, result, stats = apply_saddle_point(problem, rhs, wanted)
    out = checked(problem, out)
    if check_closure:
        out = eqxi.nontraceable(
            out, name="pseudojvp.linear_solve with respect to a closed-over value"
        )
    return guard.judge(problem, rhs, out, result, stats)


@eqxi.filter_primitive_def
def _abstract_eval(problem, rhs, wanted, guard):
    given = problem, rhs
    problem, rhs = as_structs(given)
    if guard.derivative:  # known without a trace of the solver
        out = _types_of_blocks(problem, rhs, wanted), _successful(), {}
    else:
        impl = ft.partial(_impl, check_closure=False)
        out = eqx.filter_eval_shape(impl, problem, rhs, wanted, guard)
    out, result, stats = on_mesh_of(given, as_avals(out))
    return sharded_as(*given, out), result, stats


def _successful() -> lx.RESULTS:
    struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jtu.tree_map(struct, lx.RESULTS.successful)


def _types_of_blocks(problem: Problem, rhs: Blocks, wanted: Blocks) -> Blocks:
    structure = structure_of_blocks(problem, rhs, wanted)
    if jax.sharding.get_abstract_mesh().empty:
        return structure
    zeros = ft.partial(jtu.tree_map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
    return jax.eval_shape(lambda: typed(problem, zeros(structure)))


def _is_none(x):
    return x is None


def _materialise(primal: PyTree, tangent: PyTree) -> PyTree | None:
    """A tangent with its zeros filled in, or `None` if all of it is zero."""
    if all(leaf is None for leaf in jtu.tree_leaves(tangent, is_leaf=_is_none)):
        return None
    materialise = ft.partial(eqxi.materialise_zeros, allow_struct=True)
    return jtu.tree_map(materialise, primal, tangent, is_leaf=_is_none)


@eqxi.filter_primitive_jvp
def _jvp(primals, tangents):
    problem, rhs, wanted, guard = primals
    t_problem, t_rhs, *_ = tangents
    t_rhs = Blocks(*map(_materialise, rhs, t_rhs))
    rule = _Rule(problem, guard)
    if jtu.tree_leaves(t_problem.operator):
        out, result, stats, t_out = rule.by_operator(
            t_problem.operator, rhs, t_rhs, wanted
        )
    else:
        out, result, stats = bind(problem, rhs, wanted, guard)
        # Before and after, so that tangent and adjoint solves wait for the primal.
        t_out = rule.solve(rule.after(out, t_rhs), wanted)
        t_out = rule.after(out, t_out)
    t_out = guard.tangent(result, t_out)
    no_tangent = lambda tree: jtu.tree_map(lambda _: None, tree)
    t_out = Blocks(
        *(
            no_tangent(o) if t is None else like(o, t)
            for o, t in zip(out, t_out, strict=True)
        )
    )
    return (out, result, stats), (t_out, no_tangent(result), no_tangent(stats))


class _Rule:
    """Equations (3) to (5): the derivative of the map by the map."""

    def __init__(self, problem: Problem, guard: Guard):
        self.problem = problem
        self.guard = guard
        self.traits = traits_of(problem.derivative_solver)
        self.after = order_of(problem.solver, problem.derivative_solver)

    def solve(
        self,
        rhs: Blocks,
        wanted: Blocks,
        *,
        of_primal: bool = True,
        in_row_space: bool = False,
    ) -> Blocks:
        """The map, for a tangent or a cotangent."""
        if all(block is None for block in rhs):
            return Blocks()
        of_primal = of_primal and self.problem.other is None
        guard = self.guard.for_derivative(of_primal=of_primal)
        problem = self.problem.for_derivative(in_row_space)
        return bind(problem, rhs, wanted, guard)[0]

    def by_operator(self, t_operator, rhs: Blocks, t_rhs: Blocks, wanted: Blocks):
        """Value and tangent with respect to the operator, and the vectors."""
        problem = self.problem
        if problem.first_order:
            raise ValueError(
                f"`{problem.first_order}` was differentiated twice, and has no second "
                "derivative: its first is not that of its value. Use `ImplicitAdjoint()`."
            )
        t_forward, t_adjoint = tangent_products(problem.operator, t_operator)
        if problem.other is not None and problem.other.thinning is not None:
            thinning = problem.other.thinning
            t_forward, t_adjoint = thinning.of(problem.operator, t_forward, t_adjoint)
        if problem.from_adjoint:
            t_forward, t_adjoint = t_adjoint, t_forward

        # What the tangents need of the primal: x for A'x, r for A'^H r, p for A'(y − p).
        need_x = wanted.domain or (wanted.codomain and not problem.independent_rows)
        need_r = wanted.codomain or wanted.domain
        needed = Blocks(need_r, need_x, wanted.projection)
        primal, result, stats = bind(problem, rhs, needed, self.guard)
        pairs = zip(primal, wanted, strict=True)
        out = Blocks(*(block if want else None for block, want in pairs))
        r, x, p = primal

        t_v = tree_sub(t_rhs.codomain, None if x is None else t_forward(x))
        t_w = tree_sub(t_rhs.domain, None if r is None else t_adjoint(r))
        if problem.independent_columns:
            return out, result, stats, self.solve(Blocks(t_v, t_w), wanted)

        t_r = t_x = t_p = None
        if wanted.codomain or wanted.domain:
            if rhs.domain is not None and self.traits.within_row_space:
                t_w = self._project(t_w)
            u = z = None
            if wanted.domain and x is not None:
                u = self._adjoint_solve(x, in_row_space=True)
                z = t_adjoint(u)
            # Before and after, so that neither tangents nor cotangents are solved for
            # before u is there: see `_base/order.py`.
            t_v, t_w = self.after(u, (t_v, t_w))
            if rhs.domain is not None and not problem.in_row_space:
                more = self._outside_row_space(t_forward, rhs.domain)
                t_v, t_w = tree_add(t_v, more.codomain), tree_add(t_w, more.domain)
            t_r, t_x = self._with_null_part(t_v, t_w, z, wanted)
            t_r, t_x = self.after(u, (t_r, t_x))
        if wanted.projection:
            t_p = self._of_projection(
                t_forward, t_adjoint, rhs.projection, p, t_rhs.projection
            )
        return out, result, stats, Blocks(t_r, t_x, t_p)

    def _with_null_part(self, v, w, z, wanted: Blocks):
        """M†(v, w) + (0, (I − P) z), the first two terms of (4)."""
        projects = self.traits.projects and z is not None
        if not projects and z is not None:
            # No cheap P: A†(v − A z) + z is the same, and (I − A A†)A z = 0.
            v = tree_sub(v, product(self.problem.operator, z))
        rhs = Blocks(v, w, z if projects else None)
        t_r, t_x, projected = self.solve(rhs, wanted._replace(projection=projects))
        return t_r, tree_add(t_x, tree_sub(z, projected))

    def _adjoint_solve(self, vector, *, in_row_space: bool = False):
        """A†^H w."""
        rhs, wanted = Blocks(domain=vector), Blocks(True, False, False)
        return self.solve(rhs, wanted, in_row_space=in_row_space).codomain

    def _project(self, vector):
        """P y."""
        rhs, wanted = Blocks(projection=vector), Blocks(False, False, True)
        return self.solve(rhs, wanted).projection

    def _outside_row_space(self, t_forward, w) -> Blocks:
        """M†(A'(I − P) w, 0), of the last term of (4)."""
        rhs = Blocks(t_forward(tree_sub(w, self._project(w))))
        return self.solve(rhs, Blocks(True, True, False))

    def _of_projection(self, t_forward, t_adjoint, y, p, t_y):
        """Equation (5)."""
        s = t_adjoint(self._adjoint_solve(y))
        rhs = Blocks(t_forward(tree_sub(y, p)))
        moved = self.solve(rhs, Blocks(False, True, False)).domain
        return tree_add(self._project(tree_sub(t_y, s)), s, moved)


def _is_undefined(x) -> bool:
    return isinstance(x, ad.UndefinedPrimal)


@eqxi.filter_primitive_transpose
def _transpose(inputs, cts):
    problem, rhs, _, guard = inputs
    ct_out, _, _ = cts
    if any(map(_is_undefined, jtu.tree_leaves(problem, is_leaf=_is_undefined))):
        raise ValueError(
            "`pseudojvp.linear_solve` is linear in `vector` only: it cannot be "
            "transposed with respect to `operator`. Use `jax.vjp`."
        )
    ct_out = map(_materialise, spaces(problem), ct_out)
    ct_out = Blocks(*(None if ct is None else tree_conj(ct) for ct in ct_out))
    linear = Blocks(
        *(
            any(map(_is_undefined, jtu.tree_leaves(block, is_leaf=_is_undefined)))
            for block in rhs
        )
    )
    # Without a primal solve if a solve itself is transposed, by `jax.linear_transpose`.
    ct_rhs = _Rule(problem, guard).solve(ct_out, linear, of_primal=False)

    def keep(block, ct):
        if ct is None:  # Equinox makes no zero of an undefined primal
            zero = lambda b: ad.instantiate_zeros(ad.Zero(b.aval))
            return jtu.tree_map(
                lambda b: zero(b) if _is_undefined(b) else None,
                block,
                is_leaf=_is_undefined,
            )
        return jtu.tree_map(
            lambda b, c: like(b.aval, c.conj()) if _is_undefined(b) else None,
            block,
            ct,
            is_leaf=_is_undefined,
        )

    ct_rhs = Blocks(*map(keep, rhs, ct_rhs))
    no_cotangent = ft.partial(jtu.tree_map, lambda _: None)
    return no_cotangent(problem), ct_rhs, *map(no_cotangent, inputs[2:])


# `check_closure=False`, so that the batching rule made from `impl` works.
linear_solve_p = create_vprim(
    "linear_solve",
    eqxi.filter_primitive_def(ft.partial(_impl, check_closure=False)),
    _abstract_eval,
    _jvp,
    _transpose,
)
# Outside of `vmap`, a tracer that leaked in by closure is an error with its name.
linear_solve_p.def_impl(eqxi.filter_primitive_def(ft.partial(_impl, check_closure=True)))
eqxi.register_impl_finalisation(linear_solve_p)
