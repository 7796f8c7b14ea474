"""Learns the ridge penalties of a small network through the minimum of its loss.

A network of weights w is trained to the minimum of

    f(w, λ) = ½ mean (net(w, x) − y)² + ½ Σₗ exp(λₗ) |Wₗ|²,

with one penalty for each layer. What the penalties do to the loss V(w*(λ)) on other data
follows from the implicit function theorem:

    dV/dλ = −(∂²f/∂λ∂w)ᵀ (∇²f)⁻¹ ∇V,

one solve with the Hessian at the minimum. `pseudojvp.hessian_operator` is that Hessian on
the tree of weights, by products alone. The script compares solvers of this one system by
the products that they take, checks dV/dλ against refits, and descends along it:

    python examples/hyperparameters.py [--output hyperparameters.png]
"""

import argparse
import pathlib
import time

import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
from matplotlib.figure import Figure

import pseudojvp as pj


WIDTH, INPUTS = 12, 6
TRAIN, HELD_OUT = 60, 200
NOISE = 0.4
POSITIVE = lx.positive_semidefinite_tag


def make_data(rng, count):
    """Of six inputs two matter."""
    x = rng.uniform(-2, 2, (count, INPUTS))
    clean = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] ** 2 - 0.6
    return jnp.asarray(x), jnp.asarray(clean + NOISE * rng.standard_normal(count))


def start(rng):
    return {
        "first": jnp.asarray(rng.standard_normal((INPUTS, WIDTH)) / np.sqrt(INPUTS)),
        "bias": jnp.zeros(WIDTH),
        "last": jnp.asarray(rng.standard_normal(WIDTH) / np.sqrt(WIDTH)),
    }


def misfit(weights, data):
    x, y = data
    hidden = jnp.tanh(x @ weights["first"] + weights["bias"])
    return 0.5 * jnp.mean((hidden @ weights["last"] - y) ** 2)


def loss(weights, penalties, data):
    first, bias, last = (jnp.sum(weights[k] ** 2) for k in ("first", "bias", "last"))
    first_penalty, last_penalty = jnp.exp(penalties)
    ridge = first_penalty * (first + bias) + last_penalty * last
    return misfit(weights, data) + 0.5 * ridge


@jax.jit
def train(weights, penalties, data):
    """Damped Newton steps to the minimum: the damping falls as the gradient does."""

    def not_done(carry):
        _, size, steps = carry
        return (size > 1e-11) & (steps < 300)

    def step(carry):
        weights, size, steps = carry
        fn = lambda weights: loss(weights, penalties, data)
        slope = lambda weights: jfu.ravel_pytree(jax.grad(fn)(weights))[0]
        flat, unravel = jfu.ravel_pytree(weights)
        # |H| in the place of H: a saddle is left along its negative directions.
        values, vectors = jnp.linalg.eigh(pj.hessian_operator(fn, weights).as_matrix())
        damped = jnp.abs(values) + 0.1 * jnp.minimum(size, 1)
        newton = vectors @ ((vectors.T @ slope(weights)) / damped)

        def merit(scale):
            """The loss; near the minimum, where that is flat, its gradient."""
            moved = unravel(flat - scale * newton)
            small = jnp.linalg.norm(slope(moved))
            return jnp.where(size < 1e-4, small, fn(moved))

        scales = 0.5 ** jnp.arange(12.0)
        best = scales[jnp.argmin(jax.vmap(merit)(scales))]
        weights = unravel(flat - best * newton)
        return weights, jnp.linalg.norm(slope(weights)), steps + 1

    return jax.lax.while_loop(not_done, step, (weights, jnp.inf, 0))[0]


def hessian_at(weights, penalties, data):
    fn = lambda weights: loss(weights, penalties, data)
    return pj.hessian_operator(fn, weights, tags=POSITIVE)


def hypergradient(weights, penalties, data, held_out, solver, preconditioner=None):
    """dV/dλ by one solve, (∇²f)⁻¹∇V and the statistics of that solve."""
    hessian = hessian_at(weights, penalties, data)
    gradient = jax.grad(misfit)(weights, held_out)
    options = {} if preconditioner is None else {"preconditioner": preconditioner}
    solution = pj.linear_solve(hessian, gradient, solver, options=options, throw=False)
    slope = lambda penalties: jax.grad(loss)(weights, penalties, data)
    _, pull_back = jax.vjp(slope, penalties)
    return -pull_back(solution.value)[0], solution.value, solution.stats


def compare(weights, penalties, data, held_out):
    """Of each solver: the products with the Hessian, and the relative error of dV/dλ."""
    hessian = hessian_at(weights, penalties, data)
    matrix = hessian.as_matrix()
    largest = float(jnp.linalg.eigvalsh(matrix)[-1])
    smallest = float(jnp.linalg.eigvalsh(matrix)[0])
    direct, *_ = hypergradient(weights, penalties, data, held_out, pj.Cholesky())
    nystrom = pj.nystrom(hessian, 20, jax.random.key(0), smallest)
    jacobi = pj.jacobi(hessian)
    krylov = {"max_steps": 400, "history": True}
    solvers = {
        "CG": (pj.CG(1e-12, 0.0, **krylov), None, 1),
        "CG, Jacobi": (pj.CG(1e-12, 0.0, **krylov), jacobi, 1),
        "CG, Nyström of rank 20": (pj.CG(1e-12, 0.0, **krylov), nystrom, 1),
        "MINRES": (pj.MINRES(1e-12, well_posed=True, **krylov), None, 1),
        "LSMR": (pj.LSMR(1e-12, well_posed=True, **krylov), None, 2),
    }
    curves, errors = {}, {}
    size = np.linalg.norm(direct)
    for name, (solver, preconditioner, products) in solvers.items():
        run = jax.jit(
            lambda solver=solver, preconditioner=preconditioner: hypergradient(
                weights, penalties, data, held_out, solver, preconditioner
            )
        )
        value, _, stats = run()
        steps = int(stats["num_steps"])
        norms = np.asarray(stats["residual_norms"])[: steps + 1]
        curves[name] = products * np.arange(len(norms)), norms / norms[0]
        errors[name] = products * steps, float(np.linalg.norm(value - direct) / size)
    gradient = jax.grad(misfit)(weights, held_out)
    series = {
        "Neumann": (1 / largest, None),
        "Neumann, Nyström of rank 20": (0.5, nystrom),
    }
    terms = np.array([0, 10, 100, 300])
    for name, (scale, preconditioner) in series.items():
        norms = []
        for count in terms:
            solver = pj.Neumann(num_terms=int(count), scale=scale)
            value, solution, _ = hypergradient(
                weights, penalties, data, held_out, solver, preconditioner
            )
            rest = jax.tree.map(jnp.subtract, gradient, hessian.mv(solution))
            norms.append(jnp.linalg.norm(jfu.ravel_pytree(rest)[0]))
        first = jnp.linalg.norm(jfu.ravel_pytree(gradient)[0])
        curves[name] = terms, np.array(norms) / first
        errors[name] = int(terms[-1]), float(np.linalg.norm(value - direct) / size)
    return direct, curves, errors, largest / smallest


def descend(weights, penalties, data, held_out, steps=18, rate=0.75):
    """The penalties, losses on both sets of data, step by step."""
    path = []
    solver = pj.CG(1e-10, 0.0)
    slope = jax.jit(
        lambda weights, penalties: hypergradient(
            weights, penalties, data, held_out, solver
        )[0]
    )
    for _ in range(steps):
        weights = train(weights, penalties, data)
        told = misfit(weights, data), misfit(weights, held_out)
        path.append((*map(float, penalties), *map(float, told)))
        gradient = slope(weights, penalties)
        # Of the logarithm of the loss, which has the size of one. No step is longer than
        # a few of the others: where the minimum of the weights is about to vanish, its
        # derivative has no bound.
        move = jnp.clip(rate * gradient / told[1], -0.3, 0.3)
        penalties = penalties - move
    return np.array(path)


def draw(curves, path, output: pathlib.Path) -> None:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    for number, (name, (products, norms)) in enumerate(curves.items()):
        style = "o--" if name.startswith("Neumann") else "-"
        left.semilogy(
            products, norms, style, ms=4, lw=1.5, color=f"C{number}", label=name
        )
    left.set(
        xlabel="products with the Hessian", ylabel="‖b − A x‖ / ‖b‖", xlim=(0, 310),
        ylim=(1e-12, 3),
    )  # fmt: skip
    left.set_title("One inverse-Hessian product", loc="left", fontweight="bold")
    figure.legend(*left.get_legend_handles_labels(), ncols=7, loc="outside lower left")
    steps = np.arange(len(path))
    middle.plot(steps, path[:, 3], color="C3", label="held out")
    middle.plot(steps, path[:, 2], color="C0", label="training")
    middle.axhline(NOISE**2 / 2, color="0.5", lw=0.8, ls=":", label="noise")
    middle.set(
        xlabel="step of the penalties", ylabel="½ mean squared error", ylim=(0, None)
    )
    middle.set_title("The loss", loc="left", fontweight="bold")
    middle.legend(frameon=False, fontsize=8)
    right.semilogy(steps, np.exp(path[:, 0]), color="C4", label="first layer")
    right.semilogy(steps, np.exp(path[:, 1]), color="C5", label="last layer")
    right.set(xlabel="step of the penalties", ylabel="exp λ")
    right.set_title("The penalties", loc="left", fontweight="bold")
    right.legend(frameon=False, fontsize=8)
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=90)


def main(output: pathlib.Path) -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    data, held_out = make_data(rng, TRAIN), make_data(rng, HELD_OUT)
    penalties = jnp.log(jnp.array([2e-3, 2e-3]))
    began = time.perf_counter()
    weights = train(start(rng), penalties, data)
    count = jfu.ravel_pytree(weights)[0].size
    print(f"{count} weights trained in {time.perf_counter() - began:.1f} s")

    direct, curves, errors, condition = compare(weights, penalties, data, held_out)
    print(
        f"dV/dλ = {np.asarray(direct)}, condition number of the Hessian {condition:.0f}"
    )
    for name, (products, error) in errors.items():
        print(f"  {name}: {products} products, relative error of dV/dλ {error:.1e}")

    step = 1e-4
    refits = []
    for direction in np.eye(2):
        moved = [
            misfit(train(weights, penalties + sign * step * direction, data), held_out)
            for sign in (1, -1)
        ]
        refits.append((moved[0] - moved[1]) / (2 * step))
    mismatch = np.linalg.norm(np.array(refits) - direct) / np.linalg.norm(direct)
    print(f"Central differences of refits differ by {mismatch:.1e}")

    path = descend(weights, penalties, data, held_out)
    print(
        f"Held-out loss {path[0, 3]:.4f} before and {path[-1, 3]:.4f} after, of which "
        f"the noise is {NOISE**2 / 2:.4f}; penalties {np.exp(path[-1, :2])}"
    )
    draw(curves, path, output)
    print(f"Wrote {output}.")

    assert mismatch < 1e-5, mismatch
    for name in ("CG", "CG, Jacobi", "CG, Nyström of rank 20", "MINRES"):
        assert errors[name][1] < 1e-8, errors
    assert errors["CG, Nyström of rank 20"][0] < 0.7 * errors["CG"][0], errors
    assert path[-1, 3] < 0.75 * path[0, 3], path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("hyperparameters.png")
    )
    main(parser.parse_args().output)
