"""Solves that start from those of the last step, and so do their adjoint solves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._base.call import compiled
from .._base.statistics import without_derivative
from .._base.tree import stop_gradient, tree_conj
from .._map.factorised import Factorised
from .._operator import as_operator, Matrix
from .._operator.as_operator import with_known_pattern
from .._operator.over_reals import mixes
from .._solver import AbstractKrylovSolver
from .._solver.counterpart import counterpart
from .._solver.guess import combined
from .linear_solve import check_system


class WarmStart(eqx.Module):
    """The last solutions of a solve and of its adjoint solve, newest first.

    Created by [`pseudojvp.warm_start`][], used by [`pseudojvp.warm_solve`][], and updated
    by [`pseudojvp.warm_value_and_grad`][]. A pytree of arrays with fixed shapes, suited
    to the carry of `jax.lax.scan`. The last axis of each leaf counts the solutions.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    warm = pj.warm_start(jnp.eye(4), memory=3, batch=2)  # for `jax.vmap` of two solves
    print(warm.solutions.shape)  # (2, 4, 3)
    ```
    """

    solutions: PyTree[Array]
    adjoints: PyTree[Array]

    def updated(self, cotangent: "WarmStart") -> "WarmStart":
        """Returns the state after the reverse pass, a constant.

        `cotangent` is the cotangent of the state that went into `warm_solve`: the adjoint
        solution is in the slot of the newest one. A slot that is not finite, or is zero
        because the loss did not depend on the solution, has no effect on a guess.
        """
        newest = jtu.tree_map(lambda ct: ct[..., :1], cotangent.adjoints)
        return stop_gradient(
            dataclasses.replace(self, adjoints=_pushed(self.adjoints, tree_conj(newest)))
        )


def _pushed(history: PyTree[Array], newest: PyTree[Array]) -> PyTree[Array]:
    """With a newest one in the place of the oldest."""

    def push(old, new):
        return jnp.concatenate([new, old[..., :-1]], axis=-1)

    return jtu.tree_map(push, history, newest)


def warm_start(
    operator: lx.AbstractLinearOperator | Matrix,
    *,
    memory: int = 3,
    batch: int | tuple[int, ...] = (),
) -> WarmStart:
    """Returns the state before the first step, filled with zeros.

    **Arguments:**

    - `operator`: A, square, as for [`pseudojvp.linear_solve`][]. Only the structures of x
        and b are used.
    - `memory`: how many solutions are kept, at least 1. A first guess is their best
        combination: along a smooth path of parameters its error falls like the step size
        to the power `memory`. It costs `memory` products with A in each solve. Defaults
        to `3`.
    - `batch`: the leading axes of a state for many solves, to be mapped by `jax.vmap`.
        Defaults to none.

    **Returns:** a [`pseudojvp.WarmStart`][]: memory for `memory` vectors like x and as
    many like b.

    **Raises:** `TypeError` for an `operator` that is not one; `ValueError` for a `memory`
    that is not a positive integer, or a `batch` that is not one or several nonnegative
    integers.

    **Example:**

    ```python
    import jax.numpy as jnp
    import pseudojvp as pj

    warm = pj.warm_start(jnp.eye(5), memory=2)
    print(warm.solutions.shape, warm.adjoints.shape)  # (5, 2) (5, 2)
    ```
    """
    operator = as_operator(operator, "warm_start")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(
            f"`warm_start(memory=...)` got {memory!r}. Pass an integer of at least 1."
        )
    axes = batch if isinstance(batch, tuple) else (batch,)
    if not all(type(size) is int and size >= 0 for size in axes):
        raise ValueError(
            f"`warm_start(batch=...)` got {batch!r}. Pass the number of solves, or a "
            "tuple of them."
        )

    def zeros(structure):
        return jtu.tree_map(
            lambda leaf: jnp.zeros((*axes, *leaf.shape, memory), leaf.dtype), structure
        )

    return WarmStart(zeros(operator.in_structure()), zeros(operator.out_structure()))


def warm_solve(
    operator: lx.AbstractLinearOperator | Matrix,
    vector: PyTree[ArrayLike],
    warm: WarmStart,
    solver: lx.AbstractLinearSolver,
    *,
    options: dict[str, Any] | None = None,
    throw: bool = True,
) -> tuple[lx.Solution, WarmStart]:
    """Returns the solution of A x = b, started from earlier solutions, and the new state.

        solution, warm = pj.warm_solve(A, b, warm, pj.CG(rtol=1e-6))

    The first guess is the combination of the solutions in `warm` with the smallest
    residual. In reverse mode the adjoint solve starts likewise from the combination of
    the adjoint solutions, for its own right-hand side. A guess is never worse than zero.
    It does not change what is promised: the solver continues to its tolerance, measured
    by b − A x itself, and the result says if it fails. To put adjoint solutions into the
    state, differentiate with [`pseudojvp.warm_value_and_grad`][].

    One state serves one solve in each step. For many right-hand sides use `jax.vmap` and
    a `batch` of states.

    **Arguments:**

    - `operator`, `vector`, `options`, `throw`: as in [`pseudojvp.linear_solve`][], with
        the same defaults; A is square and nonsingular, and there is no option `y0`.
    - `warm`: from [`pseudojvp.warm_start`][], or from the last step.
    - `solver`: an iterative solver for square nonsingular A: [`pseudojvp.CG`][],
        [`pseudojvp.GMRES`][], [`pseudojvp.BiCGStab`][], `MINRES(well_posed=True)`,
        `LSMR(well_posed=True)`.

    **Returns:** a `lineax.Solution` and a `WarmStart`, whose solutions are constants.

    Cost: that of `linear_solve`, plus `memory` products with A in the primal and in each
    adjoint solve, as one product with a block of columns.

    **Derivatives:** of the solution, with respect to `operator` and `vector`, as for
    `linear_solve`; the incoming state is a constant. Only adjoint solves start from a
    guess, including those of higher derivatives; tangents of forward mode start from
    zero.

    **Raises:** `TypeError` or `ValueError` at trace time for another kind of solver, an A
    that is not square or mixes real and complex leaves, a state of another structure, and
    as `linear_solve`; a run-time error as `throw` says.

    **Sources:** Fischer, *Projection techniques for iterative solution of Ax = b with
    successive right-hand sides*, Comput. Methods Appl. Mech. Engrg. 163 (1998), for the
    guess, here with the smallest residual; Lin, Padhy, Mlodozeniec, Antorán & Hernández-
    Lobato, *Improving linear system solvers for hyperparameter optimisation in iterative
    Gaussian processes* (2024), section 4, for its use in training.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    diagonal = jnp.diag(jnp.arange(1.0, 9.0))
    A = lx.MatrixLinearOperator(diagonal, lx.positive_semidefinite_tag)
    warm = pj.warm_start(A)
    first, warm = pj.warm_solve(A, jnp.ones(8), warm, pj.CG(rtol=1e-4))
    second, warm = pj.warm_solve(A, jnp.ones(8), warm, pj.CG(rtol=1e-4))
    print(second.stats["num_steps"] < first.stats["num_steps"])  # True
    ```
    """
    operator = with_known_pattern(operator, "warm_solve")
    return _warm_solve(operator, vector, warm, solver, options, throw)


@compiled
def _warm_solve(operator, vector, warm: WarmStart, solver, options, throw):
    operator, vector = check_system(operator, vector, solver, "warm_solve")
    solver, options = counterpart(solver), {} if options is None else options
    _check(operator, warm, solver, options)
    constant = lx.linearise(stop_gradient(operator))
    guess = combined(constant.mv, warm.solutions, vector)
    options = {**options, "y0": guess}
    factorised, state = Factorised.create(operator, solver, options, throw=throw)
    factorised = factorised.with_adjoints(stop_gradient(warm.adjoints))
    slot = jtu.tree_map(lambda leaf: leaf[..., 0], warm.adjoints)
    value, _, result, stats = factorised.apply(_carrying(vector, slot))
    stats = without_derivative(stats, operator, vector, warm, solver, options)
    solution = lx.Solution(value=value, result=result, stats=stats, state=state)
    newest = jtu.tree_map(lambda leaf: leaf[..., None], stop_gradient(value))
    solutions = stop_gradient(_pushed(warm.solutions, newest))
    return solution, WarmStart(solutions, stop_gradient(warm.adjoints))


@jax.custom_jvp
def _carrying(vector: PyTree[Array], slot: PyTree[Array]) -> PyTree[Array]:
    """b, and its cotangent, A⁻ᴴ of that of x, for `slot` as well."""
    del slot
    return vector


@_carrying.defjvp
def _(primals, tangents):
    return primals[0], jtu.tree_map(jnp.add, *tangents)


def _check(operator, warm: Any, solver, options: dict[str, Any]) -> None:
    if not isinstance(warm, WarmStart):
        raise TypeError(
            f"`warm_solve(warm=...)` got a {type(warm).__name__}. Pass "
            "`warm_start(operator)`, or the state of the last step."
        )
    if not (isinstance(solver, AbstractKrylovSolver) and solver.assume_full_rank()):
        raise ValueError(
            f"`warm_solve` got the solver `{type(solver).__name__}`, which takes no "
            "first guess or allows a singular A. Pass `CG()`, `GMRES()`, `BiCGStab()`, "
            "`MINRES(well_posed=True)` or `LSMR(well_posed=True)`."
        )
    if "y0" in options:
        raise ValueError(
            "`warm_solve` got the option `y0`, and makes a first guess itself. Leave it "
            "out, or use `linear_solve`."
        )
    if operator.in_size() != operator.out_size() or mixes(operator):
        raise ValueError(
            f"`warm_solve` got an operator of shape "
            f"({operator.out_size()}, {operator.in_size()}) from "
            f"{operator.in_structure()} to {operator.out_structure()}. Pass a square one "
            "whose leaves are all real or all complex, or use `linear_solve`."
        )
    spaces = operator.in_structure(), operator.out_structure()
    for name, history, space in zip(
        ("solutions", "adjoints"), (warm.solutions, warm.adjoints), spaces, strict=True
    ):
        given = jax.eval_shape(
            lambda tree: jtu.tree_map(lambda leaf: leaf[..., 0], tree), history
        )
        if jtu.tree_structure(given) != jtu.tree_structure(space) or any(
            (one.shape, one.dtype) != (other.shape, other.dtype)
            for one, other in zip(*map(jtu.tree_leaves, (given, space)), strict=True)
        ):
            raise ValueError(
                f"`warm_solve(warm=...)` got {name} of structure {given} for an operator "
                f"with vectors {space}. Pass the state of this solve; one of a `batch` "
                "goes through `jax.vmap` with its right-hand sides."
            )


def warm_value_and_grad(function: Callable, *, has_aux: bool = False) -> Callable:
    """Returns a function that computes value, gradient and the state of the next step.

        def loss(parameters, warm):
            solution, warm = pj.warm_solve(A(parameters), b, warm, solver)
            return jnp.sum(solution.value**2), warm

        step = pj.warm_value_and_grad(loss)
        value, gradient, warm = step(parameters, warm)

    Like `jax.value_and_grad(loss)`, whose reverse pass also returns the adjoint
    solutions. They are the cotangents of the incoming state, and go into the outgoing
    one. The outgoing state is a constant, so nothing of one step is differentiated in the
    next. It has the structure of the incoming one, as `jax.lax.scan` needs.

    **Arguments:**

    - `function`: takes three kinds of arguments: the parameters, whose floating-point
        arrays are differentiated; the state, one [`pseudojvp.WarmStart`][] or a pytree
        with one for each solve; any further arguments. Returns a real scalar and the
        state from its `warm_solve`s.
    - `has_aux`: whether `function` returns a third, auxiliary value. Defaults to `False`.

    **Returns:** a function of the same arguments. It returns the value, the gradient with
    respect to the parameters, the state, and with `has_aux` the auxiliary value. It costs
    what `jax.value_and_grad(loss)` costs.

    **Raises:** `TypeError` or `ValueError` for parameters without a floating-point array,
    a state that is not a `WarmStart`, a function that does not return the above, or a
    returned state whose structure or shapes differ from the incoming one.

    **Example:**

    ```python
    import jax.numpy as jnp
    import lineax as lx
    import pseudojvp as pj

    def loss(t, warm):
        A = lx.MatrixLinearOperator(t * jnp.eye(3), lx.positive_semidefinite_tag)
        solution, warm = pj.warm_solve(A, jnp.ones(3), warm, pj.CG())
        return solution.value.sum(), warm

    step = pj.warm_value_and_grad(loss)
    value, gradient, warm = step(jnp.array(2.0), pj.warm_start(jnp.eye(3)))
    print(value.round(2), gradient.round(2))  # 1.5 -0.75
    ```
    """

    def value_and_grad(parameters, warm, *args, **kwargs):
        parameters = jtu.tree_map(_as_array, parameters)
        if not any(map(eqx.is_inexact_array, jtu.tree_leaves(parameters))):
            raise TypeError(
                f"`warm_value_and_grad` got the parameters {parameters!r}, and none is "
                "floating-point. Pass a pytree with the arrays to differentiate."
            )
        states = jtu.tree_leaves(warm, is_leaf=_is_state)
        if not all(map(_is_state, states)):
            raise TypeError(
                "`warm_value_and_grad` got a state of "
                f"{', '.join(type(state).__name__ for state in states)}. Pass a "
                "`WarmStart`, from `warm_start(operator)`, or a pytree of them."
            )
        warm = stop_gradient(warm)

        def split(pair, *args, **kwargs):
            out = function(*pair, *args, **kwargs)
            if not isinstance(out, tuple) or len(out) != 2 + has_aux:
                wanted = "value, warm, aux" if has_aux else "value, warm"
                raise TypeError(
                    f"`warm_value_and_grad` got a function that returns {out!r}. Return "
                    f"`{wanted}`, with `warm` from `warm_solve`."
                )
            value, new, *rest = out
            return value, (new, rest)

        differentiated = eqx.filter_value_and_grad(split, has_aux=True)
        (value, (new, rest)), (gradient, cotangent) = differentiated(
            (parameters, warm), *args, **kwargs
        )
        given, returned = map(eqx.tree_pformat, (warm, new))
        if given != returned:
            raise ValueError(
                f"`warm_value_and_grad` got a function that takes the state {given} and "
                f"returns {returned}. Return `value, warm`, with `warm` of `warm_solve`."
            )
        new = jtu.tree_map(WarmStart.updated, new, cotangent, is_leaf=_is_state)
        return (value, gradient, new, *rest)

    return value_and_grad


def _is_state(node: Any) -> bool:
    return isinstance(node, WarmStart)


def _as_array(leaf: Any) -> Any:
    """A number of Python or NumPy as an array, which is differentiated."""
    return jnp.asarray(leaf) if isinstance(leaf, float | np.ndarray) else leaf
