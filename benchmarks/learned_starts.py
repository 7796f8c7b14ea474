"""How many steps do a learned first guess and a learned direction save, and where not?

Poisson's equation of 16 x 16 unknowns. Two perceptrons learn from 512 smooth right-hand
sides: one a first guess `y0` of x, one the direction of a step of `FlexibleCG` from the
residual. Then they meet right-hand sides of the same kind, random ones, and a system with
jumps in the coefficient. Steps to 1e-8, and the error of x beside dense NumPy:
`python -m benchmarks.learned_starts`, some 20 seconds.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import pseudojvp as pj


SIDE, WIDTH = 16, 48
RTOL = 1e-8


class Perceptron(eqx.Module):
    """v ↦ |v| (v̂ / 4 + V tanh(U v̂)), of v̂ = v / |v|: as long as its argument."""

    inner: jax.Array
    outer: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key)
        self.inner = jax.random.normal(keys[0], (WIDTH, SIDE**2)) / SIDE
        self.outer = 0.1 * jax.random.normal(keys[1], (SIDE**2, WIDTH)) / SIDE

    def __call__(self, vector):
        size = jnp.linalg.norm(vector)
        unit = vector / jnp.where(size == 0, 1, size)
        return size * (unit / 4 + self.outer @ jnp.tanh(self.inner @ unit))


def system(jumps: float = 1.0):
    """Finite volumes; the coefficient is `jumps` times as large in one quarter."""
    k = np.ones((SIDE + 2, SIDE + 2))
    k[: SIDE // 2, : SIDE // 2] = jumps
    matrix = np.zeros((SIDE**2, SIDE**2))
    number = np.pad(np.arange(SIDE**2).reshape(SIDE, SIDE), 1, constant_values=-1)
    for i, j in np.ndindex(SIDE, SIDE):
        here = number[i + 1, j + 1]
        for a, b in ((i, j + 1), (i + 2, j + 1), (i + 1, j), (i + 1, j + 2)):
            weight = 2 * k[i + 1, j + 1] * k[a, b] / (k[i + 1, j + 1] + k[a, b])
            matrix[here, here] += weight
            if number[a, b] >= 0:
                matrix[here, number[a, b]] -= weight
    return matrix


def smooth(rng, count: int):
    """Three bumps at random places, of random heights."""
    grid = np.linspace(0, 1, SIDE)
    centre, height = rng.uniform(0, 1, (2, count, 3)), rng.standard_normal((count, 3))
    bump = np.exp(-((grid - centre[..., None]) ** 2) / 0.05)  # (2, count, 3, side)
    return np.einsum("ck,ckx,cky->cxy", height, *bump).reshape(count, -1)


def fit(loss, network, samples, updates: int, rng, rate: float = 3e-3):
    """Adam on batches of 64 of the samples."""
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, updates))

    @eqx.filter_jit
    def update(network, moments, batch):
        mean = lambda network: jnp.mean(jax.vmap(lambda s: loss(network, *s))(batch))
        change, moments = optimiser.update(eqx.filter_grad(mean)(network), moments)
        return eqx.apply_updates(network, change), moments

    moments = optimiser.init(eqx.filter(network, eqx.is_inexact_array))
    for _ in range(updates):
        chosen = rng.choice(len(samples[0]), 64)
        network, moments = update(network, moments, tuple(s[chosen] for s in samples))
    return network


def learn_start(matrix, vectors, updates: int, rng) -> Perceptron:
    """The guess of least error in the A-norm, beside that of the solution."""
    solutions = np.linalg.solve(matrix, vectors.T).T

    def loss(network, vector, solution):
        error = network(vector) - solution
        return error @ (matrix @ error) / (vector @ solution)

    samples = jnp.asarray(vectors), jnp.asarray(solutions)
    return fit(loss, Perceptron(jax.random.key(0)), samples, updates, rng)


def residuals_of_cg(matrix, vectors, steps: int = 24):
    """b − A x after each step of conjugate gradients: what a direction is made from."""
    x, r, p, kept = np.zeros_like(vectors), vectors, vectors, [vectors]
    for _ in range(steps):
        image, square = p @ matrix, np.sum(r**2, 1, keepdims=True)
        size = square / np.sum(p * image, 1, keepdims=True)
        x, r = x + size * p, r - size * image
        p = r + np.sum(r**2, 1, keepdims=True) / square * p
        kept.append(r / np.linalg.norm(r, axis=1, keepdims=True))
    return np.concatenate(kept)


def learn_direction(matrix, vectors, updates: int, rng) -> Perceptron:
    """The direction along which a step takes most of the error's energy."""
    residuals = residuals_of_cg(matrix, vectors[:128])
    energies = np.sum(residuals * np.linalg.solve(matrix, residuals.T).T, 1)

    def loss(network, residual, energy):
        d = network(residual)
        return 1 - (d @ residual) ** 2 / (d @ (matrix @ d)) / energy

    samples = jnp.asarray(residuals), jnp.asarray(energies)
    return fit(loss, Perceptron(jax.random.key(1)), samples, updates, rng)


@eqx.filter_jit
def solve(solver, start, matrix, vectors):
    """Steps, whether `successful`, and x, of each vector."""

    def one(vector):
        options = {} if start is None else {"y0": start(vector)}
        operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
        solution = pj.linear_solve(operator, vector, solver, options=options, throw=False)
        successful = solution.result == lx.RESULTS.successful
        return solution.stats["num_steps"], successful, solution.value

    return jax.vmap(one)(vectors)


def learned(updates: int):
    """The system, a guess and a direction, with the generator after it."""
    rng = np.random.default_rng(0)
    matrix, vectors = system(), smooth(rng, 512)
    start = learn_start(matrix, vectors, updates, rng)
    return matrix, start, learn_direction(matrix, vectors, updates, rng), rng


def cases(matrix, rng, count: int = 32):
    noise = rng.standard_normal((count, SIDE**2))
    return {
        "smooth b": (matrix, smooth(rng, count)),
        "random b": (matrix, noise),
        "smooth b, a jump of 100": (system(100.0), smooth(rng, count)),
    }


def contenders(start, direction):
    flexible = pj.FlexibleCG(RTOL, preconditioner=direction)
    return {
        "`CG`": (pj.CG(RTOL), None),
        "`CG`, learned start": (pj.CG(RTOL), start),
        "`FlexibleCG`, learned direction": (flexible, None),
        "both": (flexible, start),
    }


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    began = time.process_time()
    matrix, start, direction, rng = learned(1500)
    print(f"Learned in {time.process_time() - began:.0f} s of processor time.\n")
    asked = cases(matrix, rng)
    print("| steps, error of x | " + " | ".join(asked) + " |")
    print("|---|" + "---|" * len(asked))
    for name, (solver, guess) in contenders(start, direction).items():
        cells = []
        for a, vectors in asked.values():
            steps, successful, x = solve(
                solver, guess, jnp.asarray(a), jnp.asarray(vectors)
            )
            exact = np.linalg.solve(a, vectors.T).T
            error = np.linalg.norm(x - exact) / np.linalg.norm(exact)
            failed = "" if np.all(successful) else ", not all successful"
            cells.append(f"{np.mean(steps):.1f}, {error:.0e}{failed}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
