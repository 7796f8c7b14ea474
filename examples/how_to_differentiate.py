"""Asks which derivative of a solve is worth its price: error, memory, products and time.

A chain of 128 unknowns with springs exp(θ) between them and a spring to the ground, stiff
(condition number 10) or soft (2600), is loaded by b. The loss is |x − x*|², and its
gradient in θ comes from

    finite differences    of the loss, each value after so many steps of CG,
    implicit              so many steps of CG, forward and for the adjoint,
    unrolled              the derivative of so many steps of CG, all of them stored,
    unrolled, checkpoints the same, with the root of their number stored,
    truncated             x exactly, and so many terms of a Neumann series,
    stochastic            x exactly, and as many terms on average, at random,

against the number of steps. Memory is what the compiled gradient needs beside its
arguments; products are those with A and its derivative, counted by hand.

    python examples/how_to_differentiate.py [--output how_to_differentiate.png]
"""

import argparse
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from matplotlib.figure import Figure

import pseudojvp as pj


SIZE = 128
STEPS = (4, 16, 64, 256)
GROUND = {"well-conditioned": 0.6, "ill-conditioned": 0.002}
KEYS = 16  # over which the error of the stochastic gradient is averaged
FOLKLORE = (4096, 1000)  # unknowns and steps, for the memory alone


def chain(theta, ground):
    """A = ground I + Dᵀ diag(exp θ) D, D the differences of neighbours."""

    def product(v):
        force = jnp.exp(theta) * jnp.diff(v)
        zero = jnp.zeros(1)
        return ground * v - jnp.diff(jnp.concatenate([zero, force, zero]))

    structure = jax.ShapeDtypeStruct((len(theta) + 1,), theta.dtype)
    tag = lx.positive_semidefinite_tag
    return lx.FunctionLinearOperator(product, structure, tag)


def problem(size=SIZE):
    rng = np.random.default_rng(0)
    theta = jnp.asarray(0.2 * rng.standard_normal(size - 1))
    b, target = jnp.asarray(rng.standard_normal((2, size)))
    return theta, b, target


def loss(theta, problem, solver, adjoint):
    ground, b, target = problem
    A = chain(theta, ground)
    x = pj.linear_solve(A, b, solver, adjoint=adjoint, throw=False).value
    return jnp.sum((x - target) ** 2)


def methods(steps):
    """From a name to the gradient: a function of θ, (ground, b, x*) and a key."""
    few = pj.CG(rtol=0, atol=0, max_steps=steps)
    exact = pj.CG(rtol=1e-12)
    root = max(math.isqrt(steps), 1)

    def gradient(solver, adjoint_of):
        def function(theta, problem, key):
            return jax.grad(loss)(theta, problem, solver, adjoint_of(problem[0], key))

        return function

    def differences(theta, problem, key):
        del key
        value = lambda t: loss(t, problem, few, pj.ImplicitAdjoint())
        step = 1e-5
        one = lambda e: (value(theta + step * e) - value(theta - step * e)) / (2 * step)
        return jax.lax.map(one, jnp.eye(len(theta)))

    # The largest eigenvalue is at most ground + 4 max exp θ, with θ < 0.6.
    scale_of = lambda ground: 1 / (ground + 4)
    decay = steps / (1 + steps)
    return {
        "finite differences": differences,
        "implicit": gradient(few, lambda *_: pj.ImplicitAdjoint()),
        "unrolled": gradient(few, lambda *_: pj.UnrolledAdjoint()),
        "unrolled, checkpoints": gradient(few, lambda *_: pj.UnrolledAdjoint(root)),
        "truncated": gradient(
            exact, lambda ground, _: pj.TruncatedAdjoint(steps, scale_of(ground))
        ),
        "stochastic": gradient(
            exact,
            lambda ground, key: pj.StochasticAdjoint(
                key, scale=scale_of(ground), decay=decay, max_terms=20 * steps
            ),
        ),
    }


def products(name, steps, size=SIZE):
    """With A, its tangent and its adjoint, for the gradient beside x itself."""
    return {
        "finite differences": 2 * (size - 1) * steps,
        "implicit": steps + 1,
        "unrolled": 2 * steps,
        "unrolled, checkpoints": 3 * steps,
        "truncated": steps + 1,
        "stochastic": steps + 1,
    }[name]


def memory_of(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def measured(function, theta, grounds, b, target):
    """Memory, and for each system the gradients over the keys and the least time."""
    key = jax.random.key(0)
    program = jax.jit(function)
    compiled = program.lower(theta, (jnp.array(1.0), b, target), key).compile()
    found = {}
    for name, ground in grounds.items():
        system = (jnp.array(ground), b, target)
        gradients, seconds = [], []
        for one in jax.random.split(key, KEYS):
            start = time.perf_counter()
            gradients.append(np.array(compiled(theta, system, one)))
            seconds.append(time.perf_counter() - start)
        found[name] = np.stack(gradients), min(seconds)
    return memory_of(compiled), found


def exact_gradient(theta, ground, b, target):
    """By dense matrices: −2 (D x)ᵢ (D λ)ᵢ exp(θᵢ), A λ = x − x*."""
    A = np.array(jax.vmap(chain(theta, ground).mv)(jnp.eye(len(b))))
    x = np.linalg.solve(A, b)
    adjoint = np.linalg.solve(A, x - target)
    return -2 * np.exp(theta) * np.diff(x) * np.diff(adjoint), np.linalg.cond(A)


def compare():
    """A row for each method, system and number of steps."""
    theta, b, target = problem()
    truth = {name: exact_gradient(theta, g, b, target) for name, g in GROUND.items()}
    rows = []
    for steps in STEPS:
        for method, function in methods(steps).items():
            memory, found = measured(function, theta, GROUND, b, target)
            for system, (gradients, seconds) in found.items():
                exact, _ = truth[system]
                errors = np.linalg.norm(gradients - exact, axis=1)
                error = np.sqrt(np.mean(errors**2)) / np.linalg.norm(exact)
                count = products(method, steps)
                rows.append((system, method, steps, error, memory, count, seconds))
    return rows, {name: condition for name, (_, condition) in truth.items()}


def folklore():
    """Bytes of the implicit and of the unrolled gradient, and with checkpoints."""
    size, steps = FOLKLORE
    theta, b, target = problem(size)
    arguments = theta, (jnp.array(1.0), b, target), jax.random.key(0)
    given = methods(steps)
    return [
        memory_of(jax.jit(given[name]).lower(*arguments).compile())
        for name in ("implicit", "unrolled", "unrolled, checkpoints")
    ]


def draw(rows, path):
    labels = ("relative error", "memory (kB)", "products", "time (ms)")
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True)
    for line, system in zip(axes, GROUND, strict=True):
        for method in methods(1):
            mine = [row for row in rows if row[:2] == (system, method)]
            steps = [row[2] for row in mine]
            scales = (1, 1e-3, 1, 1e3)
            for axis, index, scale in zip(line, range(3, 7), scales, strict=True):
                values = [scale * row[index] for row in mine]
                style = "o--" if "checkpoints" in method else "o-"
                axis.loglog(steps, values, style, label=method, markersize=3)
        for axis, label in zip(line, labels, strict=True):
            axis.set_title(f"{label}, {system}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    axes[0, 0].set_ylim(1e-14, 10)
    axes[1, 0].set_ylim(1e-14, 10)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=120)


def main(path: pathlib.Path):
    rows, conditions = compare()
    for system, condition in conditions.items():
        print(f"\n{system}, condition number {condition:.0f}")
        print("method                 steps  error     kB       products  ms")
        for name, method, steps, error, memory, count, seconds in rows:
            if name == system:
                print(
                    f"{method:22} {steps:5}  {error:.1e}  {memory / 1e3:7.1f}"
                    f"  {count:8}  {1e3 * seconds:.2f}"
                )
    implicit, unrolled, checkpointed = folklore()
    print(
        f"\n{FOLKLORE[0]} unknowns, {FOLKLORE[1]} steps: implicit {implicit / 1e6:.2f} MB"
        f", unrolled {unrolled / 1e6:.0f} MB ({unrolled / implicit:.0f} times as much), "
        f"with checkpoints {checkpointed / 1e6:.1f} MB ({checkpointed / implicit:.0f})"
    )
    draw(rows, path)

    table = {row[:3]: row[3:] for row in rows}
    good, bad = GROUND
    # Converged, the three that end in the exact gradient agree with it.
    assert table[good, "implicit", 256][0] < 1e-10
    assert table[good, "unrolled", 256][0] < 1e-8
    assert table[good, "truncated", 256][0] < 1e-8
    assert table[good, "stochastic", 256][0] < 0.5
    # Short runs of an ill-conditioned system: none is near.
    assert all(table[bad, name, 4][0] > 0.1 for name in methods(1))
    assert unrolled > 100 * implicit
    assert checkpointed < unrolled / 10
    print(f"\nThe picture is in {path}.")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("how_to_differentiate.png")
    )
    main(parser.parse_args().output)
