"""`linear_solve_p`: the saddle-point map of a linear solve, with its own derivatives.

Let M = [[I, A], [A^H, 0]] and P = A†A. The primitive is the self-adjoint map

    (r, x) = M†(v, w):   x = A†v − (A^H A)†w,   r = (I − A A†)v + A†^H w        (1)
    p = P y                                                                     (2)

Its tangent is the same map applied once. For independent columns, P = I and

    (r', x') = M†(v' − A'x, w' − A'^H r).                                       (3)

Otherwise, along paths of constant rank, with z = A'^H A†^H x,

    (r', x') = (3) + (0, (I − P) z) + M† M†(A'(I − P) w, 0),                    (4)
    p' = P(y' − s) + s + A†A'(y − p),   s = A'^H A†^H y.                        (5)

Everything on the right is this primitive again, so derivatives of every order follow.
Its transpose is itself, up to conjugation: JAX transposes without conjugating, and
(M†)^T = conj(M†). `docs/maths.md` has the proofs; `rows.py` says how each
solver applies (1) and (2).
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

from .._base.order import after_in_batch
from .._base.results import nan_after_failure
from .._base.tree import all_finite, nan_unless, tree_add, tree_conj, tree_sub
from .._solver import (
    AbstractDirectSolver,
    CG,
    CholeskyQR,
    Neumann,
    Normal,
    PivotedQR,
    QR,
    SVD,
)
from .guard import raise_if_failed
from .rows import apply_saddle_point, Blocks, Problem, structure_of_blocks
from .tangents import tangent_products


def bind(
    problem: Problem, rhs: Blocks, wanted: Blocks
) -> tuple[Blocks, lx.RESULTS, dict[str, Any]]:
    """Applies the map: (v, w, y) to the `wanted` blocks of (r, x, P y).

    A block that is `None` is zero, on the way in and on the way out.
    """
    return eqxi.filter_primitive_bind(linear_solve_p, problem, rhs, wanted)


def _derivative(
    problem: Problem, rhs: Blocks, wanted: Blocks, *, judged: bool = True
) -> Blocks:
    """As `bind`, for a tangent or a cotangent: NaN if the solve failed.

    A primal solve has `judged` the state, unless this is its transpose. What is no
    primal solve has not: its own derivative stands alone if it alone is asked for.
    """
    if all(block is None for block in rhs):
        return Blocks()
    judged = judged and not problem.derivative
    out, _, _ = bind(problem.for_derivative(judged=judged), rhs, wanted)
    return out


def _impl(problem: Problem, rhs: Blocks, wanted: Blocks, *, check_closure: bool):
    out, result, stats = apply_saddle_point(problem, rhs, wanted)
    if check_closure:
        out = eqxi.nontraceable(
            out, name="pseudojvp.linear_solve with respect to a closed-over value"
        )
    results = lx.RESULTS
    if problem.judged and _factorises(problem.solver):
        return out, results.successful, {}
    sound = all_finite(out)
    if not problem.derivative:
        sound = sound & _operator_is_finite(problem, out)
    result = results.where(
        (result == results.successful) & ~sound, results.singular, result
    )
    result = results.where(all_finite(rhs), result, results.nonfinite_input)
    if problem.derivative:
        out = nan_unless(result == results.successful, out)
    if problem.throw:
        out, result = raise_if_failed(problem, result, stats, (out, result))
    if problem.derivative:
        stats = {}  # nobody sees them, and they may depend on what is wanted
    return out, result, stats


def _factorises(solver: lx.AbstractLinearSolver) -> bool:
    """Whether the solver reads all of A, once: what it says of A holds for each solve."""
    inner = solver.inner_solver if isinstance(solver, Normal) else solver
    factorising = AbstractDirectSolver | CholeskyQR | PivotedQR | QR | SVD
    return isinstance(inner, factorising)


def _operator_is_finite(problem: Problem, out: Blocks):
    """Whether A x is finite: a solver can miss a NaN in an entry that it never reads.

    Those named look at their factors or at the residual themselves.
    """
    solver = problem.solver
    reads_all = _factorises(solver) or isinstance(solver, CG)
    if reads_all or problem.operator.in_size() == 0:
        return True
    solution = out.data if problem.from_adjoint else out.unknown
    return True if solution is None else all_finite(problem.operator.mv(solution))


def _as_struct(x):
    if isinstance(x, jax.core.ShapedArray):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    return x


def _as_aval(x):
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.core.ShapedArray(x.shape, x.dtype)
    return x


@eqxi.filter_primitive_def
def _abstract_eval(problem, rhs, wanted):
    problem, rhs = jtu.tree_map(_as_struct, (problem, rhs))
    if problem.derivative:  # known without a trace of the solver
        out = structure_of_blocks(problem, rhs, wanted), lx.RESULTS.successful, {}
        out = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), out)
    else:
        impl = ft.partial(_impl, check_closure=False)
        out = eqx.filter_eval_shape(impl, problem, rhs, wanted)
    return jtu.tree_map(_as_aval, out)


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
    problem, rhs, wanted = primals
    t_problem, t_rhs, _ = tangents
    t_rhs = Blocks(*map(_materialise, rhs, t_rhs))
    if jtu.tree_leaves(t_problem.operator):
        out, result, stats, t_out = _jvp_operator(
            problem, t_problem.operator, rhs, t_rhs, wanted
        )
    else:
        out, result, stats = bind(problem, rhs, wanted)
        # Before and after, so that tangent and adjoint solves wait for the primal.
        t_out = _derivative(problem, after_in_batch(out, t_rhs), wanted)
        t_out = after_in_batch(out, t_out)
    if not problem.derivative:
        t_out = nan_after_failure(result, t_out)
    no_tangent = lambda tree: jtu.tree_map(lambda _: None, tree)
    t_out = Blocks(
        *(no_tangent(o) if t is None else t for o, t in zip(out, t_out, strict=True))
    )
    return (out, result, stats), (t_out, no_tangent(result), no_tangent(stats))


def _jvp_operator(problem: Problem, t_operator, rhs: Blocks, t_rhs: Blocks, wanted):
    """Equations (3) to (5)."""
    t_forward, t_adjoint = tangent_products(problem.operator, t_operator)
    if problem.from_adjoint:
        t_forward, t_adjoint = t_adjoint, t_forward

    # What the tangents need of the primal: x for A'x, r for A'^H r, p for A'(y − p).
    need_x = wanted.unknown or (wanted.data and not problem.independent_rows)
    need_r = wanted.data or wanted.unknown
    needed = Blocks(need_r, need_x, wanted.projection)
    primal, result, stats = bind(problem, rhs, needed)
    out = Blocks(*(b if want else None for b, want in zip(primal, wanted, strict=True)))
    r, x, p = primal

    t_v = tree_sub(t_rhs.data, None if x is None else t_forward(x))
    t_w = tree_sub(t_rhs.unknown, None if r is None else t_adjoint(r))
    if problem.independent_columns:
        t_out = _derivative(problem, Blocks(t_v, t_w), wanted)
        return out, result, stats, t_out

    t_r = t_x = t_p = None
    if wanted.data or wanted.unknown:
        if rhs.unknown is not None:
            t_w = _within_row_space(problem, t_w)
        u = z = None
        if wanted.unknown and x is not None:
            u = _adjoint_pseudoinverse(problem, x)
            z = t_adjoint(u)
        # Before and after, so that neither tangents nor cotangents are solved for
        # before u is there: see `_base/order.py`.
        t_v, t_w = after_in_batch(u, (t_v, t_w))
        t_r, t_x = _derivative_with_null_part(problem, t_v, t_w, z, wanted)
        t_r, t_x = after_in_batch(u, (t_r, t_x))
        if rhs.unknown is not None:
            more = _outside_row_space(problem, t_forward, rhs.unknown, wanted)
            t_r, t_x = tree_add(t_r, more.data), tree_add(t_x, more.unknown)
    if wanted.projection:
        t_p = _t_projection(
            problem, t_forward, t_adjoint, rhs.projection, p, t_rhs.projection
        )
    return out, result, stats, Blocks(t_r, t_x, t_p)


def _derivative_with_null_part(problem: Problem, v, w, z, wanted: Blocks):
    """M†(v, w) + (0, (I − P) z), the first two terms of (4)."""
    projects = isinstance(problem.solver, PivotedQR | SVD) and z is not None
    if not projects and z is not None:
        # No cheap P: A†(v − A z) + z is the same, and (I − A A†)A z = 0.
        v = tree_sub(v, problem.operator.mv(z))
    t_r, t_x, projected = _derivative(
        problem,
        Blocks(v, w, z if projects else None),
        wanted._replace(projection=projects),
    )
    return t_r, tree_add(t_x, tree_sub(z, projected))


def _adjoint_pseudoinverse(problem: Problem, vector):
    """A†^H w."""
    return _derivative(problem, Blocks(unknown=vector), Blocks(True, False, False)).data


def _project(problem: Problem, vector):
    """P y."""
    rhs, wanted = Blocks(projection=vector), Blocks(False, False, True)
    return _derivative(problem, rhs, wanted).projection


def _within_row_space(problem: Problem, w):
    """P w for a solver that is A†^H only there; w itself for the others."""
    return _project(problem, w) if isinstance(problem.solver, Neumann) else w


def _outside_row_space(problem: Problem, t_forward, w, wanted: Blocks) -> Blocks:
    """M† M†(A'(I − P) w, 0), the last term of (4)."""
    rhs = Blocks(t_forward(tree_sub(w, _project(problem, w))))
    both = Blocks(True, True, False)
    wanted = Blocks(wanted.data, wanted.unknown, False)
    return _derivative(problem, _derivative(problem, rhs, both), wanted)


def _t_projection(problem: Problem, t_forward, t_adjoint, y, p, t_y):
    """Equation (5)."""
    s = t_adjoint(_adjoint_pseudoinverse(problem, y))
    rhs = Blocks(t_forward(tree_sub(y, p)))
    moved = _derivative(problem, rhs, Blocks(False, True, False)).unknown
    return tree_add(_project(problem, tree_sub(t_y, s)), s, moved)


def _is_undefined(x) -> bool:
    return isinstance(x, ad.UndefinedPrimal)


@eqxi.filter_primitive_transpose
def _transpose(inputs, cts):
    problem, rhs, _ = inputs
    ct_out, _, _ = cts
    if any(map(_is_undefined, jtu.tree_leaves(problem, is_leaf=_is_undefined))):
        raise ValueError(
            "`pseudojvp.linear_solve` is linear in `vector` only: it cannot be "
            "transposed with respect to `operator`. Use `jax.vjp`."
        )
    out_structure = problem.operator.out_structure()
    in_structure = problem.operator.in_structure()
    if problem.from_adjoint:
        out_structure, in_structure = in_structure, out_structure
    structures = (out_structure, in_structure, in_structure)
    ct_out = map(_materialise, structures, ct_out)
    ct_out = Blocks(*(None if ct is None else tree_conj(ct) for ct in ct_out))
    linear = Blocks(
        *(
            any(map(_is_undefined, jtu.tree_leaves(block, is_leaf=_is_undefined)))
            for block in rhs
        )
    )
    # Without a primal solve if a solve itself is transposed, by `jax.linear_transpose`.
    ct_rhs = _derivative(problem, ct_out, linear, judged=False)

    def keep(block, ct):
        if ct is None:  # Equinox makes no zero of an undefined primal
            zero = lambda b: jnp.zeros(b.aval.shape, b.aval.dtype)
            return jtu.tree_map(
                lambda b: zero(b) if _is_undefined(b) else None,
                block,
                is_leaf=_is_undefined,
            )
        return jtu.tree_map(
            lambda b, c: c.conj() if _is_undefined(b) else None,
            block,
            ct,
            is_leaf=_is_undefined,
        )

    ct_rhs = Blocks(*map(keep, rhs, ct_rhs))
    no_cotangent = ft.partial(jtu.tree_map, lambda _: None)
    return no_cotangent(problem), ct_rhs, no_cotangent(inputs[2])


# `check_closure=False`, so that the batching rule made from `impl` works.
linear_solve_p = eqxi.create_vprim(
    "linear_solve",
    eqxi.filter_primitive_def(ft.partial(_impl, check_closure=False)),
    _abstract_eval,
    _jvp,
    _transpose,
)
# Outside of `vmap`, a tracer that leaked in by closure is an error with its name.
linear_solve_p.def_impl(eqxi.filter_primitive_def(ft.partial(_impl, check_closure=True)))
eqxi.register_impl_finalisation(linear_solve_p)
