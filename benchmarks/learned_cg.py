"""What do learned numbers gain in the residual after 8 steps of conjugate gradients?

The mean of |b − A x| / |b| for held-out b on Poisson's equation, 16 x 16 unknowns, beside
`CG` and `MINRES`; in the A-norm of the error nothing can be gained. The numbers were
learned for random normal b and are asked for smooth ones and for another grid as well:
`python -m benchmarks.learned_cg`, some 20 seconds.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import pseudojvp as pj


STEPS = 8


def poisson(side: int) -> lx.AbstractLinearOperator:
    number = np.arange(side**2).reshape(side, side)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    ends = [[each.ravel() for each in pair] for pair in pairs]
    row = np.concatenate([number.ravel(), *(e for pair in ends for e in pair)])
    col = np.concatenate([number.ravel(), *(e for pair in ends for e in pair[::-1])])
    data = np.where(row == col, 4.0, -1.0)
    stored = jnp.asarray(data), row, col, (side**2, side**2)
    return pj.SparseLinearOperator(stored, lx.positive_semidefinite_tag)


def residual_after_the_steps(solver, operator, vector):
    """|b − A x| / |b| of the steps themselves, differentiable in the numbers."""
    x, *_ = solver.compute(solver.init(operator, {}), vector, {})
    return jnp.linalg.norm(vector - operator.mv(x)) / jnp.linalg.norm(vector)


def learn(operator, vectors, updates: int, rate: float = 0.02) -> pj.LearnedCG:
    """The numbers that make the mean residual of `vectors` small, by Adam."""
    solver = pj.LearnedCG(STEPS)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, updates))

    @eqx.filter_jit
    def update(solver, moments, operator, vectors):
        @eqx.filter_grad
        def gradient(solver):
            one = lambda vector: residual_after_the_steps(solver, operator, vector)
            return jnp.mean(jax.vmap(one)(vectors))

        arrays = eqx.filter(solver, eqx.is_inexact_array)
        change, moments = optimiser.update(gradient(solver), moments, arrays)
        return eqx.apply_updates(solver, change), moments

    moments = optimiser.init(eqx.filter(solver, eqx.is_inexact_array))
    for _ in range(updates):
        solver, moments = update(solver, moments, operator, vectors)
    return solver


@eqx.filter_jit
def told(solver, operator, vectors):
    """Means over held-out b: |b − A x| / |b|, and the A-norm of the error beside x's."""

    def one(vector):
        solution = pj.linear_solve(operator, vector, solver, throw=False)
        exact = pj.linear_solve(operator, vector, pj.CG(1e-12)).value
        residual = vector - operator.mv(solution.value)
        error = exact - solution.value
        energy = error @ residual / (exact @ vector)
        return jnp.linalg.norm(residual) / jnp.linalg.norm(vector), jnp.sqrt(energy)

    return jax.tree.map(jnp.mean, jax.vmap(one)(vectors))


def held_out(rng, side: int, kind: str):
    """64 random vectors; smooth ones are sums of the lowest eigenvectors of the grid."""
    if kind == "random":
        return jnp.asarray(rng.standard_normal((64, side**2)))
    modes = np.sin(np.pi * np.outer(np.arange(1, side + 1), [1, 2, 3]) / (side + 1))
    weights = rng.standard_normal((64, 3, 3))
    return jnp.asarray(np.einsum("xi,yj,kij->kxy", modes, modes, weights).reshape(64, -1))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    operator = poisson(16)
    started = time.process_time()
    learned = learn(operator, jnp.asarray(rng.standard_normal((256, 256))), 600)
    print(f"Learned in {time.process_time() - started:.0f} s of processor time.\n")
    steps = {"rtol": 0.0, "atol": 0.0, "max_steps": STEPS}
    solvers = {
        "`CG`": pj.CG(**steps),
        "`MINRES`": pj.MINRES(**steps, well_posed=True),
        "`LearnedCG`": learned,
    }
    cases = [(16, "random"), (32, "random"), (16, "smooth")]
    print(
        "| residual, A-norm | " + " | ".join(f"{k}, {s} x {s}" for s, k in cases) + " |"
    )
    print("|---|" + "---|" * len(cases))
    for name, solver in solvers.items():
        cells = []
        for side, kind in cases:
            vectors = held_out(np.random.default_rng(1), side, kind)
            residual, energy = told(solver, poisson(side), vectors)
            cells.append(f"{residual:.4f}, {energy:.4f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(
        "\nfactors", np.round(learned.factors, 3), "shifts", np.round(learned.shifts, 3)
    )


if __name__ == "__main__":
    main()
